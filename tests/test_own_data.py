"""Data of one's own: a folder of recordings and a folder of arrays, each with a list of clips, as people write it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from media_files import hum, write

from stf2m_core.data.adapters import features, folder
from stf2m_core.data.manifest import import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError
from stf2m_core.experiment import config_for, study_of


def sound(path: Path, pitch: float = 150.0, seconds: float = 0.4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, sound=hum(seconds, pitch), sound_codec="pcm_s16le")


def listing(source: Path, *lines: str, head: str = "file,subject,label", name: str = "clips.csv") -> Path:
    source.mkdir(parents=True, exist_ok=True)
    (source / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return source


def recordings(source: Path, work: Path, **options):
    settings = {"modalities": ("audio", "text"), "n_workers": 1} | options
    return folder.read(source, load_manifest("folder"), work=work, **settings)


# Recordings


def test_recordings_and_their_list_become_a_pack(tmp_path):
    source = listing(
        tmp_path / "data",
        "ann/1.wav,ann,joy,Good morning,5",
        "bob/1.wav,bob,anger,,3",
        head="file,subject,label,text,camera",
    )
    for name in ("ann", "bob"):
        sound(source / name / "1.wav")
    report = import_dataset("folder", source=source, out=tmp_path / "pack", modalities=("audio", "prosody", "text"))
    pack = open_pack(tmp_path / "pack", verify="full")
    assert pack.labels == ("anger", "joy")
    assert pack.clips["clip_id"].tolist() == ["ann/1", "bob/1"]
    assert pack.clips["group"].tolist() == ["ann/ann/1.wav", "bob/bob/1.wav"]
    assert pack.clips["x_camera"].tolist() == ["5", "3"]
    assert pack.view("text").lengths.tolist() == [2, 0]
    assert (report.absent["text"], report.left_out) == (1, {})


def test_parts_of_one_file_are_clips_of_one_group(tmp_path):
    head = "clip_id,file,subject,label,start_s,end_s"
    source = listing(tmp_path / "data", "a,x.wav,s,joy,0,0.5", "b,x.wav,s,anger,0.5,", head=head)
    sound(source / "x.wav", seconds=1.2)
    clips = recordings(source, tmp_path / "work", modalities=("audio",)).clips
    assert clips["duration_s"].tolist() == pytest.approx([0.5, 0.7], abs=0.02)
    assert clips["group"].tolist() == ["s/x.wav", "s/x.wav"]


def test_what_does_not_fit_is_left_out_with_its_reason_and_the_rest_goes_on(tmp_path):
    source = listing(
        tmp_path / "data",
        "good.wav,s,joy,", "absent.wav,s,joy,", "../outside.wav,s,joy,", "/etc/passwd,s,joy,", "link.wav,s,joy,",
        "notes.txt,s,joy,", "empty.wav,s,joy,", "words.wav,s,joy,nowhere.srt",
        head="file,subject,label,words_path",
    )  # fmt: skip
    for name in ("good.wav", "words.wav", "unlisted.wav", "sub/good.wav"):
        sound(source / name)
    sound(tmp_path / "outside.wav")
    (source / "link.wav").symlink_to(tmp_path / "outside.wav")
    (source / "notes.txt").write_text("no sound")
    (source / "empty.wav").write_bytes(b"")
    read = recordings(source, tmp_path / "work")
    assert read.clips["clip_id"].tolist() == ["good"]
    reasons = {
        "absent": "its file is missing", "../outside": "its file leads out of the folder",
        "/etc/passwd": "its file leads out of the folder", "link": "its file leads out of the folder",
        "notes": "its file ends in '.txt', like no recording", "words": "its words_path nowhere.srt is missing",
        "unlisted.wav": "it has no row in the table", "sub/good.wav": "it has no row in the table",
    }  # fmt: skip
    assert {name: reason for name, reason in read.left_out.items() if name != "empty"} == reasons
    assert "empty" in read.left_out["empty"]


def test_a_recording_that_takes_too_long_is_left_out_and_how_long_may_be_told(tmp_path):
    source = listing(tmp_path / "data", "long.wav,s,joy")
    sound(source / "long.wav")
    read = recordings(source, tmp_path / "work", time_limit_s=1e-6)
    assert (len(read.clips), read.left_out) == (0, {"long": "it took longer than 1e-06 s and was given up"})
    assert len(recordings(source, tmp_path / "work", time_limit_s=60.0).clips) == 1


def test_a_file_whose_name_is_not_utf8_is_named_with_what_to_do(tmp_path):
    source = listing(tmp_path / "data", "good.wav,s,joy")
    sound(source / "good.wav")
    try:
        os.rename(sound(source / "odd.wav"), os.fsencode(source) + b"/\xff\xfe.wav")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    read = recordings(source, tmp_path / "work")
    assert read.clips["clip_id"].tolist() == ["good"]
    assert [(name, reason) for name, reason in read.left_out.items()] == [
        (r"\udcff\udcfe.wav", "its name is not UTF-8; rename it")
    ]


BAD_LISTS = {
    "column 'subject' is missing; .*Did you mean 'subjects'": ("file,subjects,label", "a.wav,s,joy"),
    "rows 2 and 3 are both 'a.wav' and differ": ("file,subject,label", "a.wav,s,joy\na.wav,s,anger"),
    "subject is empty at row 2": ("file,subject,label", "a.wav,,joy"),
    "no row has a label": ("file,subject,label", "a.wav,s,"),
    "start_s is 'soon' at row 2": ("file,subject,label,start_s", "a.wav,s,joy,soon"),
    "column 'votes_fear' does not fit the labels": ("file,subject,label,votes_fear", "a.wav,s,joy,3"),
    "row 2 has 4 cells; expected 3": ("file,subject,label", "a.wav,s,joy,?"),
}


@pytest.mark.parametrize("message", BAD_LISTS)
def test_a_malformed_list_is_refused_with_its_row(tmp_path, message):
    head, lines = BAD_LISTS[message]
    source = listing(tmp_path, lines, head=head)
    with pytest.raises(ManifestError, match=message):
        recordings(source, tmp_path / "work")


def test_a_label_that_is_none_of_those_stated_is_refused_and_the_nearest_named(tmp_path):
    source = listing(tmp_path, "a.wav,s,joy", "b.wav,s,angr")
    with pytest.raises(ManifestError, match="label is 'angr' at row 3; .*Did you mean 'anger'"):
        recordings(source, tmp_path / "work", labels=("anger", "joy"))


def test_a_manifest_with_labels_states_them_for_the_list(tmp_path):
    source = listing(tmp_path, "a.wav,s,joy")
    with pytest.raises(ManifestError, match="label is 'joy' at row 2; expected neutral or calm or happy"):
        folder.read(source, load_manifest("ravdess"), work=tmp_path / "work")


def test_a_list_from_a_spreadsheet_is_read(tmp_path):
    source = tmp_path / "data"
    sound(source / "größe.wav")
    text = "sep=;\r\nfile;subject;label;valence;\r\ngröße.wav; s ;Freude;0,5;\r\ngröße.wav; s ;Freude;0,5;\r\n;;;;\r\n"
    (source / "clips.csv").write_bytes(text.encode("cp1252"))
    read = recordings(source, tmp_path / "work")
    assert read.clips[["clip_id", "subject", "label", "valence"]].values.tolist() == [["größe", "s", "Freude", 0.5]]
    said = " ".join(read.remarks)
    for part in ("not UTF-8 from line 3 on", "separated by semicolons", "1 repeated rows were dropped"):
        assert part in said


IMPORT = """
import sys
from stf2m_core.data.manifest import import_dataset
if __name__ == "__main__":
    import_dataset("folder", source=sys.argv[1], out=sys.argv[2], modalities=("audio",), n_workers=1)
"""


def test_a_killed_import_of_200_clips_goes_on_where_it_was(tmp_path):
    source, out = tmp_path / "data", tmp_path / "pack"
    listing(source, *(f"{number:03d}.wav,s{number % 4},{'joy' if number % 2 else 'anger'}" for number in range(200)))
    content = sound(source / "000.wav", seconds=0.2).read_bytes()
    for number in range(200):
        (source / f"{number:03d}.wav").write_bytes(content)
    command = [sys.executable, "-c", IMPORT, str(source), str(out)]
    first = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline, made = time.monotonic() + 60, []
    while len(made) < 20 and time.monotonic() < deadline:
        made = list((tmp_path / "pack.media").glob("clips/*/[!.]*.safetensors"))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in made}
    assert 20 <= len(kept) < 200
    assert not out.exists()
    subprocess.run(command, check=True, timeout=120)
    assert len(open_pack(out, verify="full")) == 200
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.realdata
def test_real_videos_become_a_pack_in_which_a_face_that_has_left_is_masked(tmp_path):
    real = Path(os.environ["STF2M_DATA"]) / "face_media"
    names = ("face_noface.mov", "single_face.mp4", "no_face.mp4")
    source = listing(tmp_path / "data", *(f"{name},s{k},joy" for k, name in enumerate(names)))
    for name in names:
        (source / name).write_bytes((real / name).read_bytes())
    report = import_dataset("folder", source=source, out=tmp_path / "pack", modalities=("visual", "audio"), n_workers=1)
    pack = open_pack(report.pack, verify="full")
    visual = pack.view("visual")
    seen = [visual.mask[slice(*span), 0].mean() for span in zip(visual.offsets, visual.offsets[1:], strict=False)]
    assert (len(pack), seen[1], seen[2]) == (3, 1.0, 0.0)
    assert 0.3 < seen[0] < 0.5
    assert not visual.values[visual.mask == 0].any()
    assert (pack.view("audio").lengths > 100).all()


FULL = """
import resource, sys
from stf2m_core.data.manifest import import_dataset
from stf2m_core.errors import KitError
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)  # no file may grow larger, as on a full disk
    try:
        import_dataset("folder", source=sys.argv[1], out=sys.argv[2], modalities=("audio",), n_workers=1)
    except KitError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize(
    ("limit", "n_kept", "kind"),
    [  # room for short clips alone, and for all of them but not for the pack
        (12_000, 2, "MediaError the views cannot"),
        (268_000, 6, "PackError .*pack cannot"),
    ],
)
def test_an_import_that_runs_out_of_room_says_so_once_and_goes_on_when_there_is_some(tmp_path, limit, n_kept, kind):
    source, out = tmp_path / "data", tmp_path / "packs" / "pack"
    seconds = [0.2, 0.2, *([8.0] * 4)]
    listing(source, *(f"{number}.wav,s{number % 2},{'joy' if number % 2 else 'anger'}" for number in range(6)))
    for number, length in enumerate(seconds):
        sound(source / f"{number}.wav", 100.0 + number, length)
    command = [sys.executable, "-c", FULL, str(source), str(out), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert re.match(rf"{kind} be written: File too large", done.stdout), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    assert not out.exists()
    assert [path.name for path in (tmp_path / "packs").iterdir() if "media" not in path.name] == []
    clips = {path: path.stat().st_mtime_ns for path in (tmp_path / "packs").rglob("*.safetensors")}
    assert len(clips) == n_kept
    import_dataset("folder", source=source, out=out, modalities=("audio",), n_workers=1)
    assert len(open_pack(out, verify="full")) == 6
    assert {path: path.stat().st_mtime_ns for path in clips} == clips, "what was whole is not made again"


# Arrays


def arrays(source: Path, name: str = "audio", **changes) -> None:
    source.mkdir(parents=True, exist_ok=True)
    values = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    facts = {"values": values, "offsets": np.array([0, 2, 3]), "rate_hz": 10.0} | changes
    np.savez(source / f"{name}.npz", **{key: value for key, value in facts.items() if value is not None})


def two_clips(source: Path, head: str = "clip_id,subject,label", more: str = "") -> Path:
    return listing(source, f"a,ann,joy{more}", f"b,bob,anger{more}", head=head)


def own_arrays(source: Path, **options):
    return features.read(source, load_manifest("features"), **options)


def test_a_manifest_with_labels_states_them_for_arrays_too(tmp_path):
    arrays(two_clips(tmp_path))
    with pytest.raises(ManifestError, match="label is 'joy' at row 2; expected neutral or calm or happy"):
        features.read(tmp_path, load_manifest("ravdess"))


def test_arrays_and_their_list_become_a_pack(tmp_path):
    source = two_clips(tmp_path / "data")
    arrays(source, nodes=np.array(["low", "high"]))
    arrays(source, "face", values=np.ones((2, 5)), offsets=None, rate_hz=None, times=np.array([0.1, 0.1]))
    import_dataset("features", source=source, out=tmp_path / "pack")
    pack = open_pack(tmp_path / "pack", verify="full")
    audio, face = pack.view("audio"), pack.view("face")
    assert (audio.nodes, audio.channels, audio.lengths.tolist()) == (("low", "high"), ("channel0", "channel1"), [2, 1])
    assert audio.values[2].tolist() == [[8, 9], [10, 11]]
    assert (face.nodes, face.lengths.tolist(), face.values.dtype) == (("node0",), [1, 1], np.float32)
    assert pack.clips["duration_s"].tolist() == pytest.approx([0.2, 0.101])
    assert pack.clips["group"].tolist() == ["ann/a", "bob/b"]


def test_a_graph_of_the_nodes_is_taken_along(tmp_path):
    source = two_clips(tmp_path / "data")
    arrays(source, nodes=np.array(["brow", "jaw"]), edges=np.array([["jaw", "brow"]]))
    pack = open_pack(import_dataset("features", source=source, out=tmp_path / "pack").pack)
    assert pack.edges("audio").tolist() == [[1, 0]]


def test_frames_lie_evenly_in_the_clip_where_only_its_duration_is_told(tmp_path):
    source = two_clips(tmp_path, "clip_id,subject,label,duration_s", ",4")
    arrays(source, rate_hz=None)
    assert own_arrays(source).views["audio"].times.tolist() == [1.0, 3.0, 2.0]


@pytest.mark.parametrize(("n_subjects", "regime", "n_val"), [(7, "P", 1), (8, "D", 3)])
def test_few_subjects_are_asked_about_themselves_since_a_meta_split_may_hold_one(tmp_path, n_subjects, regime, n_val):
    lines = [f"{s}-{k}-{r},{s},{'joy' if k else 'anger'},{r}" for s in range(n_subjects) for k in (0, 1) for r in "abc"]
    source = listing(tmp_path / "data", *lines, head="clip_id,subject,label,group")
    arrays(source, values=np.ones((len(lines), 3)), offsets=None)
    import_dataset("features", source=source, out=tmp_path / "pack")
    pack = open_pack(tmp_path / "pack")
    (kind,) = study_of(pack).test
    config = config_for(pack, "smoke")
    assert (kind.regime, config.split.n_val_subjects) == (regime, n_val)


def test_values_that_are_not_finite_are_masked_and_counted(tmp_path):
    source = two_clips(tmp_path / "data")
    values = np.ones((3, 2, 2), np.float32)
    values[0, 1, 0] = np.nan
    arrays(source, values=values)
    report = import_dataset("features", source=source, out=tmp_path / "pack")
    assert report.masked == {"audio": 1}
    assert open_pack(tmp_path / "pack").view("audio").mask.tolist() == [[1, 0], [1, 1], [1, 1]]


BAD_ARRAYS = {
    "there are 1 clips; expected 2, as in the list": {"offsets": np.array([0, 3])},
    "there are 3 clips; expected 2, as in the list": {"offsets": None},
    r"values are float32 of shape \(12,\)": {"values": np.arange(12, dtype=np.float32)},
    r"values are <U1 of shape \(3, 2, 2\)": {"values": np.full((3, 2, 2), "x")},
    r"nodes has shape \(3,\); expected 2 names": {"nodes": np.array(["a", "b", "c"])},
    r"edges are int64 of shape \(1, 2\); expected names of nodes": {"edges": np.array([[0, 1]])},
    "array 'value' is unknown; .*Did you mean 'values'": {"value": np.ones(3)},
    "array 'values' is missing": {"values": None},
    "nothing says when frames are; expected times or rate_hz, or duration_s": {"rate_hz": None},
    "offsets go from 0 to 2; expected 0 to 3, the frames of the values": {"offsets": np.array([0, 1, 2])},
    "offsets go from 0 to 3; expected 0 to 3, .* never decreasing": {"offsets": np.array([0, 4, 3])},
    "audio.npz cannot be read: Object arrays cannot be loaded": {"mask": np.array([{}], object)},
}


@pytest.mark.parametrize("message", BAD_ARRAYS)
def test_malformed_arrays_are_refused(tmp_path, message):
    arrays(two_clips(tmp_path), **BAD_ARRAYS[message])
    with pytest.raises(ManifestError, match=message):
        own_arrays(tmp_path)


def test_a_damaged_archive_and_a_missing_one_are_refused_and_no_pack_is_left(tmp_path):
    source = two_clips(tmp_path / "data")
    arrays(source)
    with pytest.raises(ManifestError, match="face.npz is missing; expected it in "):
        own_arrays(source, modalities=("face",))
    content = (source / "audio.npz").read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:60] + b"????" + content[64:]):
        (source / "audio.npz").write_bytes(damaged)
        with pytest.raises(ManifestError, match="audio.npz cannot be read"):
            import_dataset("features", source=source, out=tmp_path / "pack")
    (source / "audio.npz").unlink()
    (tmp_path / "elsewhere.npz").write_bytes(content)
    (source / "audio.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(ManifestError, match="audio.npz is missing"):
        own_arrays(source, modalities=("audio",))
    assert not (tmp_path / "pack").exists()
