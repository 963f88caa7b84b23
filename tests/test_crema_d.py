"""CREMA-D: rows as upstream writes them, the real table, and hums under the names of recordings."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from media_files import hum, write

from stf2m_core.data.adapters import crema_d
from stf2m_core.data.adapters.crema_d_votes import EMOTIONS, SENTENCES, read, read_votes
from stf2m_core.data.manifest import import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError

HEADER = ",A,D,F,H,N,S,fileName,numResponses,meanAngerResp,meanDisgustResp,meanFearResp,meanHappyResp,meanNeutralResp,meanSadResp"  # noqa: E501
VOTES = load_manifest("crema_d_votes")


def rows(clip: str, voice, face, both) -> list[str]:
    """Three lines of the table, as upstream writes them: the row's number says the condition."""
    lines = []
    for condition, counts in enumerate((voice, face, both), 1):
        means = ",".join("50" if count else "-1" for count in counts)
        lines.append(f"{condition}00001,{','.join(map(str, counts))},{clip},{sum(counts)},{means}")
    return lines


def table(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tabulatedVotes.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder


@pytest.fixture
def source(tmp_path):
    one = rows("1001_DFA_ANG_XX", (6, 2, 0, 0, 1, 0), (5, 2, 0, 0, 3, 0), (8, 1, 0, 0, 0, 0))
    two = rows("1002_IEO_HAP_HI", (0, 0, 0, 4, 4, 1), (0, 0, 0, 9, 1, 0), (0, 0, 0, 5, 5, 0))
    return table(tmp_path / "crema", *one, *two)


def test_votes_of_the_three_conditions_are_told_apart(source):
    votes = read_votes(source)
    assert votes.clip_id.tolist() == ["1001_DFA_ANG_XX", "1002_IEO_HAP_HI"]
    assert votes.counts[0].tolist() == [[6, 2, 0, 0, 1, 0], [5, 2, 0, 0, 3, 0], [8, 1, 0, 0, 0, 0]]
    assert np.isnan(votes.levels[0, 0]).tolist() == [False, False, True, True, False, True]
    assert [EMOTIONS[number] for number in votes.intended] == ["anger", "happy"]
    assert (votes.actor.tolist(), votes.level.tolist()) == ([1001, 1002], ["XX", "HI"])


def test_a_pack_has_the_votes_of_one_condition_as_labels_and_the_single_senses_as_views(source, tmp_path):
    pack = open_pack(import_dataset("crema_d_votes", source=source, out=tmp_path / "p").pack, verify="full")
    assert pack.clips["label"].tolist() == ["anger", ""]  # the second ties
    assert pack.soft_labels[1].tolist() == [0, 0, 0, 0.5, 0.5, 0]
    assert pack.view("voice").values[0, :, 0] == pytest.approx(np.array([6, 2, 0, 0, 1, 0]) / 9)
    assert pack.clips["group"].tolist() == ["1001/DFA", "1002/IEO"]


def test_the_condition_whose_votes_are_the_labels_is_never_a_view(source):
    clips, views = read(source, VOTES, condition="voice", label="intended")
    assert (set(views), clips["label"].tolist()) == ({"face"}, ["anger", "happy"])
    assert clips["votes_happy"].tolist() == [0, 4]


def test_the_control_of_hard_labels_has_the_same_clips_and_no_votes(source, tmp_path):
    paths = [import_dataset("crema_d_votes", source=source, out=tmp_path / str(s), soft=s).pack for s in (True, False)]
    soft, hard = map(open_pack, paths)
    assert [c for c in hard.clips if c.startswith("votes_")] == []
    assert hard.clips.equals(soft.clips[hard.clips.columns])
    assert hard.soft_labels[0].tolist() == [1, 0, 0, 0, 0, 0] and soft.soft_labels[0].max() < 1
    assert hard.label_ids.tolist() == soft.label_ids.tolist() == [0, -1]
    assert (hard.view("face").values == soft.view("face").values).all()


@pytest.mark.parametrize(("option", "value"), [("condition", "ear"), ("label", "mode")])
def test_an_unknown_option_is_refused(source, option, value):
    with pytest.raises(ManifestError, match=f"{option} is '{value}'; expected "):
        read(source, VOTES, **{option: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("300001", "100007", 1), "'1001_DFA_ANG_XX' has 2 rows for voice; expected 1"),
        (lambda text: text.replace("300001,8", "400001,8", 1), "data row 2 has no row number of a condition"),
        (lambda text: text.replace("1002_IEO_HAP_HI", "1002-IEO-HAP-HI"), "'1002-IEO-HAP-HI' is no name of CREMA-D"),
        (lambda text: text.replace("numResponses", "n", 1), "column 'numResponses' is missing"),
        (lambda text: text.rpartition("300001")[0], "'1002_IEO_HAP_HI' has 0 rows for audiovisual; expected 1"),
    ],
)
def test_a_malformed_table_is_refused(source, change, message):
    path = source / "tabulatedVotes.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(ManifestError, match=message):
        read_votes(source)


def test_a_folder_without_votes_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="tabulatedVotes.csv is missing; expected it in"):
        read_votes(tmp_path)


def test_an_archive_that_tells_other_votes_is_refused(source):
    votes = read_votes(source)
    np.savez(source / "votes.npz", clip_id=votes.clip_id[::-1], votes=votes.counts[::-1])
    assert len(read_votes(source).clip_id) == 2  # another order is the same votes
    np.savez(source / "votes.npz", clip_id=votes.clip_id, votes=votes.counts[:, ::-1])
    with pytest.raises(ManifestError, match="votes.npz and tabulatedVotes.csv tell different votes"):
        read_votes(source)


def test_recordings_get_the_votes_as_soft_labels_and_what_has_no_partner_is_named(source, tmp_path):
    for name in ("1001_DFA_ANG_XX", "1003_IEO_SAD_XX", "1076_MTI_SAD_XX"):
        path = source / "AudioWAV" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        write(path, sound=hum(0.3, 150.0), sound_codec="pcm_s16le")
    reading = crema_d.read(source, load_manifest("crema_d"), work=tmp_path / "work", n_workers=1)
    assert reading.clips["clip_id"].tolist() == ["1001_DFA_ANG_XX"]
    assert (reading.clips["votes_anger"].tolist(), set(reading.views)) == ([8], {"audio", "prosody"})
    assert reading.media["modalities"] == ("audio", "prosody")
    assert reading.clips["duration_s"][0] == pytest.approx(0.3, abs=0.01)
    assert reading.left_out == {
        "1003_IEO_SAD_XX": "it has no votes",
        "1076_MTI_SAD_XX": "its sound is missing",
        "1002_IEO_HAP_HI": "its recording is missing",
    }
    late = crema_d.read(source, load_manifest("crema_d"), work=tmp_path / "late", n_workers=1, time_limit_s=1e-6)
    assert late.left_out["1001_DFA_ANG_XX"] == "it took longer than 1e-06 s and was given up"


@pytest.mark.realdata
def test_the_real_votes_are_those_of_the_index(tmp_path):
    source = Path(os.environ["STF2M_DATA"]) / "crema_d_votes"
    pack = open_pack(import_dataset("crema_d_votes", source=source, out=tmp_path / "p").pack, verify="full")
    index = pd.read_csv(source / "index.csv").set_index("clip_id").loc[pack.clips["clip_id"]]
    votes = read_votes(source)
    assert (len(pack), pack.clips["subject"].nunique(), int(votes.counts.sum())) == (4983, 61, 142_063)
    for row, name in enumerate(("n_voice", "n_face", "n_av")):
        assert np.array_equal(votes.counts[:, row].sum(1), index[name])
    assert index["intended_emotion"].tolist() == pack.clips["x_intended"].tolist()
    assert index["text"].tolist() == [SENTENCES[name] for name in votes.sentence] == pack.clips["text"].tolist()
    known = pack.clips["label"].to_numpy() != ""
    assert (pack.clips["label"][known].to_numpy() == index["av_argmax"][known].to_numpy()).all()
