"""IEMOCAP: evaluation and transcription files written here line by line as its owners write them."""

from pathlib import Path

import pytest
from media_files import hum, write

from stf2m_core.data.adapters.iemocap import LABELS, read, read_evaluation
from stf2m_core.data.manifest import import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError

MANIFEST = load_manifest("iemocap")
EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-E3:\tNeutral;\t()
C-E4:\tAnger; Frustration;\t()
C-F1:\tNeutral;\t(curious)
A-E3:\tval 3; act 2; dom  2;\t()
A-F1:\tval 3; act 2; dom  1;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M000\txxx\t[2.0000, 3.5000, 3.0000]
C-E2:\tExcited;\t()
C-E3:\tSurprise; Excited;\t(startled)
C-E4:\tOther;\t(amused)
C-M1:\tBored;\t()

[12.0000 - 13.0000]\tSes01F_impro01_F001\tfru\t[1.5000, 4.0000, 3.5000]
C-E2:\tFrustration;\t()
"""
TRANSCRIPT = """Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
Ses01F_impro01_M000 [010.0100-011.3925]: Yeah.
M: [BREATHING]
Ses01F_impro01_F001 [012.0000-013.0000]: Is there a problem?
"""


@pytest.fixture
def source(tmp_path):
    session = tmp_path / "IEMOCAP_full_release" / "Session1"
    for folder, text in (("EmoEvaluation", EVALUATION), ("transcriptions", TRANSCRIPT)):
        (session / "dialog" / folder).mkdir(parents=True)
        (session / "dialog" / folder / "Ses01F_impro01.txt").write_text(text)
    return session.parent


def evaluation(source) -> Path:
    return source / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"


def test_labels_votes_and_words_become_a_pack(source, tmp_path):
    report = import_dataset("iemocap", source=source, out=tmp_path / "p", audio=False)
    pack = open_pack(report.pack, verify="full")
    assert pack.labels == LABELS
    clips = pack.clips.set_index("clip_id")
    assert clips["label"].tolist() == ["neutral", "", "frustration"]
    assert clips["subject"].tolist() == ["Ses01F", "Ses01M", "Ses01F"]
    assert set(clips["group"]) == {"Ses01F_impro01"}
    assert clips["text"].tolist() == ["Excuse me.", "Yeah.", "Is there a problem?"]
    assert clips["duration_s"].tolist() == [1.9456, 1.3825, 1.0]
    assert clips.loc["Ses01F_impro01_F000", ["votes_neutral", "votes_anger", "votes_frustration"]].tolist() == [3, 1, 0]
    undecided = clips.loc["Ses01F_impro01_M000"]  # Bored is none of the ten emotions: that rater has no vote
    assert [undecided[f"votes_{name}"] for name in ("excitement", "surprise", "other")] == [1, 1, 1]
    assert sum(undecided[f"votes_{name}"] for name in LABELS) == 3
    assert (undecided["valence"], undecided["arousal"], undecided["x_kind"]) == (2.0, 3.5, "improvised")


def test_only_the_emotions_asked_for_are_kept(source, tmp_path):
    reading = read(source, MANIFEST, work=tmp_path / "w", labels=("neutral", "anger"), audio=False)
    assert reading.clips["clip_id"].tolist() == ["Ses01F_impro01_F000", "Ses01F_impro01_M000"]
    assert reading.left_out == {"Ses01F_impro01_F001": "its label is frustration"}
    with pytest.raises(ManifestError, match="label 'angry' is unknown; expected neutral or anger"):
        read(source, MANIFEST, work=tmp_path / "w", labels=("angry",), audio=False)


def test_sentence_wavs_are_read_and_missing_ones_named(source, tmp_path):
    folder = source / "Session1/sentences/wav/Ses01F_impro01"
    folder.mkdir(parents=True)
    for name in ("F000", "F001"):
        write(folder / f"Ses01F_impro01_{name}.wav", sound=hum(0.3, 200.0), sound_codec="pcm_s16le")
    reading = read(source, MANIFEST, work=tmp_path / "w", n_workers=1)
    assert (len(reading.clips), set(reading.views)) == (2, {"audio", "prosody", "text"})
    assert reading.media["modalities"] == ("audio", "prosody", "text")
    assert reading.clips["duration_s"].tolist() == pytest.approx([0.3, 0.3], abs=0.01)
    assert reading.left_out == {"Ses01F_impro01_M000": "its wav is missing"}
    late = read(source, MANIFEST, work=tmp_path / "l", modalities=("audio",), n_workers=1, time_limit_s=1e-6)
    assert late.left_out["Ses01F_impro01_F000"] == "it took longer than 1e-06 s and was given up"


def test_an_emotion_that_iemocap_does_not_have_is_refused(source):
    evaluation(source).write_text(EVALUATION.replace("\tfru\t", "\tjoy\t"))
    with pytest.raises(ManifestError, match="emotion 'joy' at line 17 is unknown; expected neu ang"):
        read_evaluation(evaluation(source))


def test_a_file_without_utterances_is_refused(source):
    evaluation(source).write_bytes(b"\xff\xfe nothing here")
    with pytest.raises(ManifestError, match="Ses01F_impro01.txt has no utterance"):
        read_evaluation(evaluation(source))


def test_a_folder_that_is_not_the_release_is_refused_with_the_way_to_get_it(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no file is like Session.*Southern California after a signed"):
        import_dataset("iemocap", source=tmp_path / "empty", out=tmp_path / "p")
