"""MELD: byte-true rows of its CSV in the encodings that are about, clips beside it, and the real dev split."""

import os
from pathlib import Path

import numpy as np
import pytest
from media_files import hum, write

from stf2m_core.data.adapters.meld import read
from stf2m_core.data.manifest import import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError

MANIFEST = load_manifest("meld")
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
LOST = '1,"Oh my God, he’s lost it.",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256","00:21:00,049"'
WHAT = '2,What?,Monica,surprise,negative,0,1,4,7,"00:21:01,927","00:21:03,261"'
SILENT = '3,...,Ross,neutral,neutral,1,0,4,7,"00:22:01,000","00:22:02,000"'


def dev(folder: Path, *lines: str, encoding: str = "utf-8", name: str = "dev") -> Path:
    (folder / f"{name}_sent_emo.csv").write_bytes("\n".join([HEADER, *lines, ""]).encode(encoding))
    return folder


def test_a_row_becomes_a_clip(tmp_path):
    reading = read(dev(tmp_path, LOST, WHAT), MANIFEST, work=tmp_path / "w")
    first = reading.clips.iloc[0].to_dict()
    assert first["duration_s"] == pytest.approx(2.793)
    assert {key: first[key] for key in ("clip_id", "subject", "group", "label", "split", "text")} == {
        "clip_id": "dev_dia0_utt0", "subject": "Phoebe", "group": "dev_dia0", "label": "sadness", "split": "val",
        "text": "Oh my God, he’s lost it.",
    }  # fmt: skip
    assert reading.views["text"].lengths.tolist() == [6, 1]
    assert reading.views["text"].times[:6] == pytest.approx((np.arange(6) + 0.5) / 6 * 2.793)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_the_encodings_that_are_about_tell_the_same(tmp_path, encoding):
    reading = read(dev(tmp_path, WHAT, LOST, encoding=encoding), MANIFEST, work=tmp_path / "w")
    assert reading.clips["text"][1] == "Oh my God, he’s lost it."
    assert [remark for remark in reading.remarks if "not UTF-8 from line 3" in remark] == (
        ["dev_sent_emo.csv is not UTF-8 from line 3 on; it was read as Windows-1252, check its accents"]
        if encoding == "cp1252"
        else []
    )


def test_an_utterance_without_words_is_left_out_and_named(tmp_path):
    silent = SILENT.replace("...", '" "')
    backwards = WHAT.replace("00:21:03,261", "00:20:03,261")
    reading = read(dev(tmp_path, LOST, backwards, silent), MANIFEST, work=tmp_path / "w")
    assert reading.left_out == {"dev_dia0_utt1": "it ends before it starts", "dev_dia1_utt0": "it has no text"}
    assert reading.clips["clip_id"].tolist() == ["dev_dia0_utt0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (WHAT.replace("surprise", "suprise"), "label is 'suprise' at row 3; .*Did you mean 'surprise'"),
        (WHAT.replace("00:21:01,927", "21.01"), "StartTime is '21.01' at row 3; expected hours:minutes"),
        (LOST.replace("Phoebe", "Joey"), "rows 2 and 3 are both '0, 0' and differ"),
        (WHAT + ",extra", "row 3 has 12 cells; expected 11"),
    ],
)
def test_a_malformed_row_is_refused(tmp_path, line, message):
    with pytest.raises(ManifestError, match=message):
        read(dev(tmp_path, LOST, line), MANIFEST, work=tmp_path / "w")


def test_a_repeated_row_is_dropped_and_remarked(tmp_path):
    reading = read(dev(tmp_path, LOST, LOST, WHAT), MANIFEST, work=tmp_path / "w")
    assert (len(reading.clips), reading.remarks) == (2, ["dev_sent_emo.csv: 1 repeated rows were dropped"])


def test_a_split_that_is_not_there_is_refused(tmp_path):
    dev(tmp_path, LOST)
    with pytest.raises(ManifestError, match="train_sent_emo.csv is missing"):
        read(tmp_path, MANIFEST, work=tmp_path / "w", split="train")
    with pytest.raises(ManifestError, match="split is 'valid'; expected 'train', 'dev' or 'test'"):
        read(tmp_path, MANIFEST, work=tmp_path / "w", split="valid")


def test_clips_and_rows_are_matched_and_the_known_bad_ones_left_out(tmp_path):
    bad = SILENT.replace("neutral,1,0", "neutral,110,7")
    assert "110,7" in bad
    dev(tmp_path, LOST, WHAT, bad)
    folder = tmp_path / "dev_splits_complete"
    folder.mkdir()
    for name in ("dia0_utt0", "dia66_utt9", "dia110_utt7"):
        write(folder / f"{name}.wav", sound=hum(0.3, 150.0), sound_codec="pcm_s16le")
    reading = read(tmp_path, MANIFEST, work=tmp_path / "w", media=True, modalities=("audio", "text"), n_workers=1)
    assert (reading.clips["clip_id"].tolist(), set(reading.views)) == (["dev_dia0_utt0"], {"audio", "text"})
    assert reading.media["modalities"] == ("audio", "text")
    assert reading.left_out == {
        "dev_dia0_utt1": "its recording is missing",
        "dev_dia66_utt9": "it has no row in the table",
        "dev_dia110_utt7": "its recording is missing in the archive",
    }
    late = read(tmp_path, MANIFEST, work=tmp_path / "l", media=True, modalities=("audio",), time_limit_s=1e-6)
    assert late.left_out["dev_dia0_utt0"] == "it took longer than 1e-06 s and was given up"


@pytest.mark.realdata
def test_the_real_dev_split_is_whole(tmp_path):
    source = Path(os.environ["STF2M_DATA"]) / "meld_text"
    report = import_dataset("meld", source=source, out=tmp_path / "p")
    pack = open_pack(report.pack, verify="full")
    assert (len(pack), dict(report.left_out), report.remarks) == (1109, {}, ())
    assert pack.clips["label"].value_counts().to_dict() == {
        "neutral": 470, "joy": 163, "anger": 153, "surprise": 150, "sadness": 111, "fear": 40, "disgust": 22,
    }  # fmt: skip
    assert set(pack.clips["split"]) == {"val"}
