"""RAVDESS as recordings: short hums under the data set's file names show the layout, the real voices show the rest."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from media_files import hum, write

from stf2m_core.__main__ import main
from stf2m_core.config import EpisodeConfig, SplitConfig
from stf2m_core.data.adapters.ravdess import read
from stf2m_core.data.manifest import find, import_dataset, load_manifest
from stf2m_core.data.media import MediaSettings
from stf2m_core.data.pack import open_pack
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import ManifestError
from stf2m_core.experiment import STUDIES
from stf2m_core.reproduce import find_datasets
from stf2m_core.results import Record

MANIFEST = load_manifest("ravdess")


def voice(path: Path, pitch: float = 150.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, sound=hum(0.4, pitch), sound_codec="pcm_s16le")


def clips_of(source: Path, work: Path, **options):
    return read(source, MANIFEST, work=work, n_workers=1, **options)


def test_a_file_name_tells_the_label_and_everything_else(tmp_path):
    voice(tmp_path / "Actor_02" / "03-01-06-02-01-02-02.wav")
    (row,) = clips_of(tmp_path, tmp_path / "work").clips.to_dict("records")
    assert row.pop("duration_s") == pytest.approx(0.4, abs=0.01)
    assert row == {
        "clip_id": "01-06-02-01-02-02", "subject": "02", "group": "02/kids", "domain": "ravdess", "label": "fearful",
        "split": "", "text": "Kids are talking by the door", "x_sex": "female", "x_intensity": "strong",
        "x_statement": "01", "x_repetition": "02",
    }  # fmt: skip


def test_how_long_a_take_may_take_can_be_told(tmp_path):
    voice(tmp_path / "Actor_02" / "03-01-06-02-01-02-02.wav")
    reading = clips_of(tmp_path, tmp_path / "work", time_limit_s=1e-6)
    assert reading.left_out == {"01-06-02-01-02-02": "it took longer than 1e-06 s and was given up"}


@pytest.mark.parametrize(("emotion", "label"), list(enumerate(MANIFEST.labels, 1)))
def test_the_numbers_of_the_emotions_are_in_the_order_of_the_labels(emotion, label, tmp_path):
    published = {1: "neutral", 2: "calm", 3: "happy", 4: "sad", 5: "angry", 6: "fearful", 7: "disgust", 8: "surprised"}
    assert label == published[emotion]


def test_files_of_one_take_are_one_clip_and_song_is_read_on_demand(tmp_path):
    take = "01-03-01-01-01-01"
    voice(tmp_path / f"03-{take}.wav")
    write(tmp_path / f"01-{take}.mp4", np.full((8, 64, 64), 90, np.uint8), hum(0.32))
    voice(tmp_path / "03-02-04-01-01-01-01.wav")
    spoken = clips_of(tmp_path, tmp_path / "work", modalities=("audio",))
    assert (spoken.clips["clip_id"].tolist(), spoken.left_out) == ([take], {})
    assert spoken.remarks[0] == "1 files of the other channel were not read"
    sung = clips_of(tmp_path, tmp_path / "work", channel="song")
    assert (sung.clips["label"].tolist(), set(sung.views)) == (["sad"], {"audio", "prosody"})
    with pytest.raises(ManifestError, match="channel is 'sing'; expected 'speech' or 'song'"):
        clips_of(tmp_path, tmp_path / "work", channel="sing")


def test_the_sentence_is_a_modality_for_those_who_ask(tmp_path):
    voice(tmp_path / "03-01-03-01-02-01-01.wav")
    views = clips_of(tmp_path, tmp_path / "work", modalities=("audio", "text")).views
    assert (set(views), views["text"].lengths.tolist()) == ({"audio", "text"}, [6])


def test_a_silent_video_is_heard_by_the_voice_file_of_its_take(tmp_path):
    voice(tmp_path / "03-01-03-01-01-01-01.wav")
    write(tmp_path / "02-01-03-01-01-01-01.mp4", np.full((10, 64, 64), 90, np.uint8))
    read_both = clips_of(tmp_path, tmp_path / "work")
    assert set(read_both.views) == {"visual", "audio", "prosody"}
    assert read_both.views["audio"].lengths[0] > 10
    assert not read_both.views["visual"].mask.any(), "there is no face on an even ground"


def test_what_is_no_clip_is_left_out_with_its_reason(tmp_path):
    source = tmp_path / "data"
    voice(source / "03-01-01-01-01-01-01.wav")
    voice(source / "03-01-09-01-01-01-01.wav")
    voice(source / "copy" / "03-01-01-01-01-01-01.wav")
    (source / "03-01-02-01-01-01-01.wav").write_bytes(b"")
    (source / "03-01-03-01-01-01-01.wav").symlink_to(voice(tmp_path / "elsewhere.wav"))
    (source / "more").symlink_to(tmp_path)
    done = clips_of(source, tmp_path / "work")
    assert done.clips["clip_id"].tolist() == ["01-01-01-01-01-01"]
    reasons = {
        "03-01-09-01-01-01-01": "its name is none of RAVDESS",
        "copy/03-01-01-01-01-01-01.wav": "a second file called 03-01-01-01-01-01-01",
        "01-02-01-01-01-01": "empty",
        "03-01-03-01-01-01-01.wav": "a link that leads out of the folder",
        "more": "a link to a folder is not followed",
    }
    assert set(done.left_out) == set(reasons)
    for name, reason in reasons.items():
        assert reason in done.left_out[name]


def test_an_import_reports_what_it_left_out_and_a_second_one_makes_nothing_anew(tmp_path):
    source, out = tmp_path / "data", tmp_path / "pack"
    voice(source / "03-01-01-01-01-01-01.wav")
    (source / "03-01-02-01-01-01-01.wav").write_bytes(b"RIFF")
    report = import_dataset("ravdess", source=source, out=out)
    assert "left out: 01-02-01-01-01-01: " in str(report)
    assert (report.n_clips, report.sizes["audio"]) == (1, (8, 5))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack.media").glob("clips/*/*")}
    assert len(made) == 2
    said = json.loads((out / "pack.json").read_text(encoding="utf-8"))["made_from"]["media"]
    assert MediaSettings(**said) == MediaSettings(modalities=("audio", "prosody")), "as predict reads other clips"
    before = open_pack(out, verify="full").digest
    import_dataset("ravdess", source=source, out=out, overwrite=True)
    assert open_pack(out, verify="full").digest == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pack.media").glob("clips/*/*")} == made


def test_a_folder_of_other_files_is_refused_and_one_of_broken_ones_says_why(tmp_path, capsys):
    voice(tmp_path / "data" / "hello.wav")
    arguments = ["import", "ravdess", "--source", str(tmp_path / "data"), "--out", str(tmp_path / "pack")]
    assert main(arguments) == 2
    assert "is not ravdess: no file is like 0[123]-0[12]" in capsys.readouterr().err
    (tmp_path / "data" / "03-01-02-01-01-01-01.wav").write_bytes(b"")
    assert main(arguments) == 2
    assert "no clip of ravdess is left; expected at least one. The first of 2 left out is " in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


def test_actors_may_be_chosen_and_those_that_are_not_there_are_refused(tmp_path):
    for actor in ("01", "02", "03"):
        voice(tmp_path / f"03-01-01-01-01-01-{actor}.wav")
    chosen = clips_of(tmp_path, tmp_path / "work", actors=("01", "03"), modalities=("audio",))
    assert (chosen.clips["subject"].tolist(), chosen.left_out) == (["01", "03"], {})
    with pytest.raises(ManifestError, match="of actor '07' there is no file; expected 01, 02, 03"):
        clips_of(tmp_path, tmp_path / "work", actors=("07",))


def test_a_set_that_can_be_read_but_is_not_studied_is_found_and_adds_nothing_to_the_main_job(tmp_path):
    voice(tmp_path / "more" / "Actor_01" / "03-01-01-01-01-01-01.wav")
    assert [(manifest.name, place) for manifest, place in find(tmp_path)] == [("ravdess", tmp_path)]
    with pytest.raises(ManifestError, match="holds no known data set; expected ravdess_features"):
        find_datasets(str(tmp_path))


# The real voices of actors 01 to 04


@pytest.fixture(scope="module")
def real_pack(tmp_path_factory):
    """Each sentence in each emotion once from each of the four actors, through the command line."""
    if not os.environ.get("STF2M_DATA"):
        pytest.skip("STF2M_DATA is not set: no real data")
    real = Path(os.environ["STF2M_DATA"]) / "ravdess" / "wav16k"
    folder = tmp_path_factory.mktemp("ravdess")
    source = folder / "data"
    source.mkdir()
    for path in sorted(real.glob("03-01-0[1-8]-01-0[12]-01-*.wav")):
        (source / path.name).write_bytes(path.read_bytes())
    assert main(["import", "ravdess", "--source", str(source), "--out", str(folder / "pack")]) == 0
    return open_pack(folder / "pack", verify="full")


@pytest.mark.realdata
def test_real_voices_become_a_pack_that_gives_episodes_of_both_regimes(real_pack):
    assert (len(real_pack), real_pack.clips["subject"].nunique()) == (64, 4)
    assert real_pack.clips["label"].value_counts().tolist() == [8] * 8
    splits = split_subjects(real_pack, SplitConfig(n_folds=4, n_val_subjects=1))
    for regime in ("P", "D"):
        config = EpisodeConfig(regime=regime, n_way=8, n_query=1)
        batch = EpisodeSampler(real_pack, splits, "meta_train", config, seed=0).sample(0, 3)
        assert batch.support.shape[0] == 3


@pytest.mark.realdata
def test_one_command_goes_from_the_voices_of_four_actors_to_a_result(tmp_path, capsys):
    real = Path(os.environ["STF2M_DATA"]) / "ravdess" / "wav16k"
    command = ["import", "ravdess", "--source", str(real), "--out", str(tmp_path / "pack"), "--set", "modalities=audio",
               "--set", "actors=01,02,03,04", "--first-result", str(tmp_path / "results")]  # fmt: skip
    assert main([*command, "--profile", "test"]) == 0
    said = capsys.readouterr().out
    assert "RAVDESS, recordings: 240 clips of 4 subjects" in said
    assert "P 8-way 1-shot" in said and "st-f2m" in said
    records = [Record.from_json(path) for path in (tmp_path / "results" / "records" / "ravdess").iterdir()]
    assert {record.method for record in records} == {"nearest-prototype", "ridge-prototype", "st-f2m"}
    assert {record.pack_digest for record in records} == {open_pack(tmp_path / "pack").digest}


@pytest.mark.realdata
def test_the_real_folder_is_recognised_and_stays_out_of_the_main_job():
    folder = os.environ["STF2M_DATA"]
    assert "ravdess" in {manifest.name for manifest, _ in find(folder)}
    assert "ravdess" not in STUDIES
    assert [dataset.name for dataset in find_datasets(folder)] == ["ravdess_features"]
