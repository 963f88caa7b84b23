"""Many clips: what fails is a line of the report, nothing is lost, and a killed run goes on where it was."""

import errno
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stf2m_core import open_pack, write_pack
from stf2m_core.data.media import MediaSettings, extract, extraction, kept, read_clip
from stf2m_core.data.media.kept import place_of, read_streams
from stf2m_core.data.media.worker import work_off
from stf2m_core.data.ragged import check_views
from stf2m_core.errors import MediaError

for _name in ("av", "cv2", "librosa"):
    pytest.importorskip(_name, reason="needs the extra `media`")

from media_files import hum, pictures, write  # noqa: E402

AUDIO, WORDS = MediaSettings(modalities=("audio",)), MediaSettings(modalities=("text",))  # words are quick to make


def wavs(folder: Path, n: int, seconds: float = 0.5) -> pd.DataFrame:
    """A table of n different hums."""
    paths = [write(folder / f"{k:03d}.wav", sound=hum(seconds, 100.0 + k), sound_codec="pcm_s16le") for k in range(n)]
    rows = {"clip_id": [path.stem for path in paths], "path": [str(path) for path in paths]}
    return pd.DataFrame(rows | {"text": [f"this is clip {path.stem}" for path in paths]})


def made(folder: Path) -> dict[str, int]:
    """The clips' files and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("clips/*/*.safetensors")}


def test_good_and_bad_clips_together(tmp_path):
    table = wavs(tmp_path, 3)
    video = write(tmp_path / "face.mp4", pictures(20, faces=(90,)))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.wav").write_text("not a sound\n" * 100)
    bad = [["face", str(video)], ["empty", str(tmp_path / "empty.mp4")], ["notes", str(tmp_path / "notes.wav")],
           ["gone", str(tmp_path / "gone.mp4")]]  # fmt: skip
    table = pd.concat([pd.DataFrame(bad, columns=["clip_id", "path"]), table], ignore_index=True)
    table["text"] = ["hello there", "", "", "", "one", np.nan, "three"]
    done = extract(table, tmp_path / "out", n_workers=1, progress=False)
    report = done.report
    assert report["clip_id"].tolist() == table["clip_id"].tolist()
    assert report["status"].tolist() == ["made", "failed", "failed", "failed", "made", "made", "made"]
    assert report["reason"].iloc[1].startswith("the file is empty (0 bytes)")
    assert report["reason"].iloc[2].startswith("the file cannot be read: Invalid data")
    assert report["reason"].iloc[3].startswith("the file cannot be read: No such file")
    assert report["remarks"].iloc[0].startswith("no audio track; the transcript has no times")
    assert done.kept.tolist() == [True, False, False, False, True, True, True]
    written = pd.read_csv(tmp_path / "out" / "report.csv", keep_default_na=False)
    assert written["reason"].tolist() == report["reason"].tolist()
    assert {name: views.lengths.tolist() for name, views in done.views.items()} == {
        "visual": [20, 0, 0, 0], "audio": [0, 24, 24, 24], "prosody": [0, 24, 24, 24], "text": [2, 1, 0, 1],
    }  # fmt: skip
    for name, views in done.views.items():
        check_views(name, views, 4, where=name)
    alone = read_clip(video, text="hello there").streams["visual"]
    np.testing.assert_array_equal(done.views["visual"].values, alone.values)


def test_views_become_a_pack(tmp_path):
    table = wavs(tmp_path, 2)
    done = extract(table, tmp_path / "out", AUDIO, n_workers=1, progress=False)
    clips = table.assign(subject=["a", "b"], group=["a", "b"], domain="lab", label=["joy", "fear"], split="", text="")
    clips["duration_s"] = done.report["duration_s"]
    write_pack(tmp_path / "pack", clips.drop(columns="path"), done.views, ["fear", "joy"], name="mine")
    assert open_pack(tmp_path / "pack", verify="full").view("audio").lengths.tolist() == [24, 24]


def test_a_second_run_makes_only_what_is_missing_or_changed(tmp_path):
    table, out = wavs(tmp_path, 6), tmp_path / "out"
    (tmp_path / "notes.wav").write_text("not a sound")
    table.loc[6] = ["notes", str(tmp_path / "notes.wav"), "no"]
    first = extract(table, out, WORDS, n_workers=2, progress=False)
    before = made(out)
    assert len(before) == 7
    os.utime(tmp_path / "000.wav")  # touched, not changed
    write(tmp_path / "001.wav", sound=hum(0.7, 300.0), sound_codec="pcm_s16le")
    place_of(out, "002").unlink()
    place_of(out, "003").write_bytes(place_of(out, "003").read_bytes()[:-40])
    table.loc[4, "text"] = "now five words are said"
    second = extract(table, out, WORDS, n_workers=2, progress=False)
    assert second.report["status"].tolist() == ["kept", "made", "made", "made", "made", "kept", "failed"]
    assert second.report["reason"].iloc[6] == first.report["reason"].iloc[6]
    after = made(out)
    same = [after[place_of(out, clip).name] == before[place_of(out, clip).name] for clip in table["clip_id"]]
    assert same == [True, False, False, False, False, True, True], "what cannot be read is not tried again in vain"
    assert second.views["text"].lengths.tolist() == [4, 4, 4, 4, 5, 4]
    other = extract(table, out, MediaSettings(modalities=("text",), word_channels=8), n_workers=1, progress=False)
    assert other.report["status"].tolist() == ["made"] * 6 + ["failed"]
    assert other.views["text"].values.shape == (25, 1, 8)


def test_the_number_of_workers_does_not_change_the_views(tmp_path):
    table = wavs(tmp_path, 5)
    one = extract(table, tmp_path / "one", WORDS, n_workers=1, progress=False)
    three = extract(table, tmp_path / "three", WORDS, n_workers=3, progress=False)
    np.testing.assert_array_equal(one.views["text"].values, three.views["text"].values)
    np.testing.assert_array_equal(one.views["text"].times, three.views["text"].times)


def test_clips_may_share_a_file_and_have_spans(tmp_path):
    path = write(tmp_path / "long.wav", sound=hum(3.0), sound_codec="pcm_s16le")
    table = pd.DataFrame({"clip_id": ["a", "b"], "path": str(path), "start_s": [0.0, 1.0], "end_s": [1.0, np.nan]})
    done = extract(table, tmp_path / "out", AUDIO, n_workers=1, progress=False)
    assert done.report["duration_s"].tolist() == pytest.approx([1.0, 2.0], abs=0.01)
    assert done.views["audio"].lengths.tolist() == pytest.approx([49, 99], abs=1)


def test_a_clip_that_takes_too_long_is_given_up_and_the_rest_goes_on(tmp_path):
    table = wavs(tmp_path, 2)
    os.mkfifo(tmp_path / "endless.wav")  # reading it never ends
    table.loc[2] = ["endless", str(tmp_path / "endless.wav"), ""]
    done = extract(table.iloc[::-1], tmp_path / "out", WORDS, n_workers=1, time_limit_s=2.0, progress=False)
    assert done.report["status"].tolist() == ["failed", "made", "made"]
    assert done.report["reason"].iloc[0] == "it took longer than 2 s and was given up"


def descendants(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_is_a_line_of_the_report(tmp_path):
    table = wavs(tmp_path, 1)
    os.mkfifo(tmp_path / "endless.wav")
    table.loc[1] = ["endless", str(tmp_path / "endless.wav"), ""]
    table.loc[2] = ["last", table["path"][0], "the last"]
    code = (
        "import sys, pandas as pd; from stf2m_core.data.media import *\n"
        "table = pd.read_csv(sys.argv[1], dtype=str, keep_default_na=False)\n"
        "extract(table, sys.argv[2], MediaSettings(modalities=['text']), n_workers=1, progress=False)"
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "table.csv"), str(tmp_path / "out")])
    wait_for(lambda: made(tmp_path / "out"))
    time.sleep(0.2)
    (worker,) = descendants(run.pid)
    os.kill(worker, signal.SIGKILL)
    assert run.wait(60) == 0
    report = pd.read_csv(tmp_path / "out" / "report.csv", keep_default_na=False)
    assert report["status"].tolist() == ["made", "failed", "made"]
    assert report["reason"][1] == "the process that read it died of signal 9; perhaps memory ran out"


def wait_for(condition, seconds: float = 60.0) -> None:
    """Return when the condition holds; fail if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_an_extraction_of_200_clips_that_was_killed_goes_on_where_it_was(tmp_path):
    table = wavs(tmp_path, 200, seconds=0.2)
    table.to_csv(tmp_path / "table.csv", index=False)
    code = (
        "import sys, pandas as pd; from stf2m_core.data.media import *\n"
        "table = pd.read_csv(sys.argv[1], dtype=str, keep_default_na=False)\n"
        "extract(table, sys.argv[2], MediaSettings(modalities=['text']), n_workers=2, progress=False)"
    )
    out = tmp_path / "out"
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "table.csv"), str(out)])
    wait_for(lambda: len(made(out)) >= 20)
    run.kill()
    run.wait()
    (leftover := place_of(out, "x")).parent.mkdir(parents=True, exist_ok=True)
    leftover.with_name(f".{leftover.name}.123").write_bytes(b"half")
    before = made(out)
    assert 20 <= len(before) < 200
    assert not (out / "report.csv").exists()
    done = extract(table, out, WORDS, n_workers=2, progress=False)
    counts = done.report["status"].value_counts().to_dict()
    assert set(counts) == {"kept", "made"}
    assert counts["kept"] >= len(before)  # a worker may have finished its last clip after the kill
    after = made(out)
    assert all(after[name] == stamp for name, stamp in before.items())
    assert len(after) == 200
    assert not [path for path in out.rglob(".*") if path.is_file()], "nothing half-written is left"
    assert done.views["text"].lengths.tolist() == [4] * 200


def request(path: Path, out: Path) -> dict:
    settings = {"modalities": ["audio"]}
    return {"clip_id": "a", "path": str(path), "audio_path": "", "words_path": "", "text": "", "start_s": 0.0,
            "end_s": None, "out": str(out), "settings": settings}  # fmt: skip


def test_a_full_disk_leaves_no_half_file_and_stops_the_run(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", sound=hum(0.5), sound_codec="pcm_s16le")

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(kept.Path, "write_bytes", full)
        answer = work_off(request(path, tmp_path / "out"))
    assert (answer["status"], answer["reason"]) == ("stopped", "No space left on device")
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert work_off(request(path, tmp_path / "out"))["status"] == "made"
    assert read_streams(place_of(tmp_path / "out", "a")).streams["audio"].values.shape == (24, 8, 5)


def test_a_folder_that_cannot_be_written_stops_the_run_with_one_sentence(tmp_path):
    table = wavs(tmp_path, 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clips").write_text("a file where a folder should be")
    with pytest.raises(MediaError, match="the views cannot be written: .*Make room or choose another folder"):
        extract(table, tmp_path / "out", AUDIO, n_workers=1, progress=False)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_not_utf8_and_strange_clip_ids_are_fine(tmp_path):
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav"))
    with open(path, "wb") as file:
        file.write(write(tmp_path / "a.wav", sound=hum(0.5), sound_codec="pcm_s16le").read_bytes())
    table = pd.DataFrame({"clip_id": ["../../up", 'a/b\n,"c'], "path": [path, path], "text": "hello"})
    done = extract(table, tmp_path / "deep" / "out", WORDS, n_workers=1, progress=False)
    assert done.report["status"].tolist() == ["made", "made"]
    written = pd.read_csv(tmp_path / "deep" / "out" / "report.csv")
    assert written["clip_id"].tolist() == table["clip_id"].tolist()
    assert written["path"].str.contains("caf").all()
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(["a.wav", os.path.basename(path), "deep"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"clip_id": ["a"]}, "column 'path' is missing; expected clip_id and path"),
        ({"clip_id": [], "path": []}, "there are no clips; expected at least one"),
        ({"clip_id": ["a", "a"], "path": ["x", "y"]}, "clip 'a' is there twice; expected different clips"),
        ({"clip_id": ["a"], "path": ["x"], "start_s": ["soon"]}, "start_s of clip 'a' is 'soon'; expected seconds"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path, table, message):
    with pytest.raises(MediaError, match=message):
        extract(pd.DataFrame(table), tmp_path / "out", AUDIO, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reads", [False, True])
def test_a_worker_loads_no_model_and_no_table_and_little_to_read_a_clip(tmp_path, reads):
    from stf2m_core.data.media import extraction

    code = "from stf2m_core.data.media.worker import read_clip; import sys, json; "
    if reads:
        path = write(tmp_path / "face.mp4", pictures(5, faces=(90,)), hum(0.5))
        code += f"read_clip({str(path)!r}, text='hello'); "
    code += "print(json.dumps(sorted(sys.modules)))"
    start = extraction._START.replace("from stf2m_core.data.media.worker import main\nmain()", code)
    package = Path(extraction.__file__).parents[2]
    stubs = ["stf2m_core", str(package), "stf2m_core.data.media", str(package / "data" / "media")]
    said = subprocess.run([sys.executable, "-c", start, *stubs], capture_output=True, text=True, check=True).stdout
    costly = {"torch", "pandas", "matplotlib", "scipy", "librosa", "numba"} | (set() if reads else {"av", "cv2"})
    assert not costly & set(json.loads(said)), "a worker takes 100 MB; with librosa it would be 300"
    assert not reads or {"av", "cv2"} <= set(json.loads(said))


def test_a_worker_that_is_ended_while_it_is_asked_leaves_no_error_behind():
    """Else the reason why all ended would be lost behind the pipe that broke."""
    hand = extraction._Hand([], queue.SimpleQueue(), queue.SimpleQueue(), 1.0, threading.Event())
    hand.worker = subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    hand.worker.wait()
    hand.worker.stdin.write(b"a request that was not sent yet")
    hand.end()
    assert hand.worker is None
