"""Sentences by a model of the user's own: how speech is cut into pieces, what is refused, and what a model makes."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from stf2m_core.clip_features import media_settings, recorded
from stf2m_core.data.manifest import import_dataset, options_of
from stf2m_core.data.media import MediaSettings, read_clip
from stf2m_core.data.media.sentence import folder_digest, pieces_of
from stf2m_core.data.media.transcript import Transcript, spread
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import MediaError

pytest.importorskip("av", reason="needs the extra `media`")

from media_files import hum, write  # noqa: E402

IS_THERE = importlib.util.find_spec("sentence_transformers") is not None
with_package = pytest.mark.skipif(
    not IS_THERE, reason="needs the package sentence-transformers, which is no dependency"
)


def saved(folder, kind="sentence_transformers.sentence_transformer.modules.bow.BoW"):
    """A folder as sentence-transformers saves it: a model that counts three words and needs no weights."""
    (folder / "0_BoW").mkdir(parents=True)
    about = {
        "vocab": ["joy", "night", "morning"],
        "word_weights": {},
        "unknown_word_weight": 1,
        "cumulative_term_frequency": True,
    }
    (folder / "0_BoW" / "config.json").write_text(json.dumps(about))
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "0_BoW", "type": kind}]))
    (folder / "config_sentence_transformers.json").write_text("{}")
    return folder


def text_with(folder):
    return MediaSettings(modalities=("text",), sentence_model=str(folder))


# Pieces


def test_a_text_is_cut_at_the_ends_of_sentences_and_each_has_the_time_of_its_words():
    text = "Good morning! It is … well, a joy.\nGood night"
    pieces, times = pieces_of(text, spread(text, 0.0, 9.0), timed=False)
    assert pieces == ["Good morning!", "It is …", "well, a joy.", "Good night"]
    assert times.tolist() == pytest.approx([1.0, 3.0, 5.5, 8.0])


def test_words_with_times_are_cut_at_pauses():
    script = Transcript(("good", "morning", "joy"), np.array([0.5, 1.0, 4.0], np.float32))
    pieces, times = pieces_of("", script, timed=True)
    assert (pieces, times.tolist()) == (["good morning", "joy"], [0.75, 4.0])


# What is refused


def test_a_folder_that_holds_no_model_or_one_that_may_run_code_is_refused(tmp_path):
    with pytest.raises(
        MediaError, match="there is no sentence model; expected a folder that sentence-transformers saved"
    ):
        folder_digest(str(tmp_path / "gone"))
    with pytest.raises(MediaError, match="the sentence model needs 'own.Module', which may run code"):
        folder_digest(str(saved(tmp_path / "own", kind="own.Module")))
    (saved(tmp_path / "pickled") / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(MediaError, match=r"needs 'pytorch_model.bin', which may run code; expected .* safetensors"):
        folder_digest(str(tmp_path / "pickled"))
    with pytest.raises(MediaError, match="sentence_model is 'a'; expected none without text"):
        MediaSettings(modalities=("audio",), sentence_model="a")


@pytest.mark.skipif(IS_THERE, reason="the package sentence-transformers is installed")
def test_without_the_package_one_sentence_says_what_to_install(tmp_path):
    folder = saved(tmp_path / "model")
    path = write(tmp_path / "a.wav", sound=hum(1.0), sound_codec="pcm_s16le")
    with pytest.raises(MediaError, match="package 'sentence-transformers'.*pip install sentence-transformers"):
        read_clip(path, text_with(folder), text="good morning")


def test_the_digest_is_that_of_the_files_wherever_they_lie(tmp_path):
    folder = saved(tmp_path / "model")
    moved = shutil.copytree(folder, tmp_path / "moved")
    one, two = text_with(folder).digest(), text_with(moved).digest()
    (moved / "config_sentence_transformers.json").write_text("{ }")
    assert (one == two, one == text_with(moved).digest(), one == MediaSettings(modalities=("text",)).digest()) == (
        True, False, False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["folder", "meld", "iemocap", "dfew"])
def test_every_set_with_words_takes_a_users_model(name):
    assert options_of(name, ["sentence_model=model"]) == {"sentence_model": "model"}


# What it makes


@with_package
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sentences_become_a_modality_of_a_pack_and_a_clip_is_read_for_it_alike(tmp_path):
    folder, source = saved(tmp_path / "model"), tmp_path / "data"
    source.mkdir()
    path = write(source / "a.wav", sound=hum(2.0), sound_codec="pcm_s16le")
    (source / "clips.csv").write_text("file,subject,label,text\na.wav,ann,joy,Joy! Good morning\n")
    report = import_dataset("folder", source=source, out=tmp_path / "pack", modalities=("audio", "text"), n_workers=1,
                            sentence_model=str(folder))  # fmt: skip
    pack = open_pack(report.pack, verify="full")
    assert pack.modalities == ("audio", "text", "sentence")
    assert pack.view("sentence").values[:, 0].tolist() == [[1, 0, 0], [0, 0, 1]]
    again = recorded(path, pack, media_settings(pack, ("sentence",), None), text="good night")
    assert again.streams["sentence"].values[:, 0].tolist() == [[0, 1, 0]]
