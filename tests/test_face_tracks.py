"""Face tracks of OpenFace and py-feat: rows written here, the real files, and the graph of the 68 landmarks."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stf2m_core.data import landmarks
from stf2m_core.data.adapters import openface_csv, pyfeat_csv
from stf2m_core.data.manifest import import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError

NEWS = load_manifest("pyfeat_news")


def face(n_frames: int, *, left: float = 100.0, size: float = 50.0) -> np.ndarray:
    """(frame, 68, 2): a circle of landmarks, whose outer eye corners lie `size` apart."""
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points[36], points[45] = (-0.5, 0.0), (0.5, 0.0)
    return np.tile(left + size * points, (n_frames, 1, 1))


def columns(points: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{axis}_{k}": points[:, k, j] for j, axis in enumerate("xy") for k in range(68)}


# Landmarks


def test_place_and_size_of_the_face_do_not_matter_and_its_form_does():
    small, large = (landmarks.centred(face(2, left=left, size=size)) for left, size in ((10, 20), (400, 90)))
    assert small == pytest.approx(large, abs=1e-6)
    assert np.linalg.norm(small[0, 36] - small[0, 45]) == pytest.approx(1)
    moved = face(1)
    moved[0, 62] += 3
    assert landmarks.centred(moved)[0, 62] != pytest.approx(small[0, 62], abs=1e-3)


def test_a_face_without_size_has_no_places():
    assert np.isnan(landmarks.centred(np.zeros((1, 68, 2)))).all()


def test_the_graph_is_one_piece_with_every_landmark_and_no_pair_twice():
    edges = landmarks.edges()
    assert len({frozenset(edge) for edge in edges.tolist()}) == len(edges) == 75
    assert (edges[:, 0] != edges[:, 1]).all()
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(68, 68))
    assert connected_components(graph, directed=False)[0] == 1


# OpenFace


def openface(path: Path, n_frames: int = 4, **changes) -> Path:
    table = {"frame": np.arange(1, n_frames + 1), "timestamp": np.arange(n_frames) / 25}
    table |= {"confidence": 0.9, "success": 1} | {name: 0.5 for part in openface_csv._HEAD.values() for name in part}
    table |= columns(face(n_frames)) | {f"{unit}_r": 2.0 for unit in openface_csv.UNITS if unit != "AU28"}
    table |= {f"{unit}_c": 1.0 for unit in openface_csv.UNITS}
    frame = pd.DataFrame({**table, **changes}, index=range(n_frames))
    frame.rename(columns=lambda name: name if name == "frame" else f" {name}").to_csv(path, index=False)
    return path


def test_a_track_with_blanks_in_its_header_is_read(tmp_path):
    track = openface_csv.read_track(openface(tmp_path / "a.csv"))
    assert track["visual"].shape == (4, 18, 2)
    assert track["visual"][0, openface_csv.UNITS.index("AU28")].tolist() == [0, 1]
    assert track["landmarks"][0] == pytest.approx(landmarks.centred(face(1))[0])
    assert track["seen"].all()


def test_frames_that_openface_does_not_trust_are_masked_and_not_zeros_that_count(tmp_path):
    openface(tmp_path / "a.csv", success=[1, 0, 1, 1], confidence=[0.9, 0.0, 0.4, 0.9])
    (tmp_path / "clips.csv").write_text("clip_id,label,subject\na,joy,ann\nb,anger,ann\n")
    report = import_dataset("openface_csv", source=tmp_path, out=tmp_path / "p")
    pack = open_pack(report.pack, verify="full")
    for name in ("visual", "landmarks", "head"):
        assert pack.view(name).mask.all(axis=1).tolist() == [True, False, False, True]
        assert not pack.view(name).values[1:3].any() and pack.view(name).values[0].any()
    assert (report.left_out, pack.labels) == ({"b": "its file is missing"}, ("anger", "joy"))
    assert pack.clips["duration_s"].tolist() == pytest.approx([0.16])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestamp": [0, 0.1, 0.05, 0.2]}, "its time runs backwards"),
        ({"x_3": ["a", "b", "c", "d"]}, "x_3 holds a cell that is no number"),
        ({"face_id": [0, 0, 1, 1]}, "a.csv has 2 faces; expected one"),
    ],
)
def test_a_malformed_track_is_refused(tmp_path, changes, message):
    with pytest.raises(ManifestError, match=message):
        openface_csv.read_track(openface(tmp_path / "a.csv", **changes))


def test_a_file_that_is_no_track_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("frame,timestamp\n1,0\n")
    with pytest.raises(ManifestError, match="column 'confidence' is missing; expected the columns of OpenFace 2"):
        openface_csv.read_track(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(ManifestError, match="a.csv cannot be read: No columns"):
        openface_csv.read_track(tmp_path / "a.csv")


@pytest.mark.realdata
def test_a_real_track_of_openface_is_read():
    track = openface_csv.read_track(Path(os.environ["STF2M_DATA"]) / "face_media" / "OpenFace_Test.csv")
    assert (track["visual"].shape, track["head"].shape) == ((100, 18, 2), (100, 4, 3))
    assert track["head"][0, 0] == pytest.approx([16.6573, 43.4571, 597.876])  # as in the first row of the file
    corners = track["landmarks"][:, 36] - track["landmarks"][:, 45]
    assert np.linalg.norm(corners, axis=1) == pytest.approx(np.ones(100), abs=1e-5)
    assert track["seen"].all()


# py-feat


def pyfeat(folder: Path, *clips: str, n_frames: int = 4, **changes) -> Path:
    table = {"FaceScore": 0.99, "frame": np.arange(n_frames) * 20, "approx_time": ["00:00", "00:00", "00:01", "00:02"]}
    table |= columns(face(n_frames)) | {unit: 0.25 for unit in pyfeat_csv.UNITS} | {"Happy": 0.9, "Identity_1": ""}
    for clip in clips:
        pd.DataFrame({**table, **changes}, index=range(n_frames)).to_csv(folder / f"{clip}.csv", index=False)
    lines = ["clipN,class,phraseN,phrase_txt", "001,gn,1,we won the match", "002,ists,1,we've sold out"]
    (folder / "clip_attrs.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_tracks_and_phrases_become_one_pack(tmp_path):
    reading = pyfeat_csv.read(pyfeat(tmp_path, "001", "003"), NEWS)
    assert reading.clips[["clip_id", "label", "text"]].to_numpy().tolist() == [["001", "good news", "we won the match"]]
    assert reading.left_out == {"003": "it has no row in the table", "002": "its track is missing"}
    assert reading.views["visual"].values.shape == (4, 68, 2)
    assert reading.views["action_units"].values[0, 0, 0] == 0.25
    assert reading.views["visual"].times == pytest.approx([0, 0.8, 1.6, 2.4])
    assert reading.clips["duration_s"][0] == pytest.approx(3.2)


def test_frames_without_a_face_are_masked(tmp_path):
    reading = pyfeat_csv.read(pyfeat(tmp_path, "001", FaceScore=[0.99, "", 0.2, 0.99]), NEWS)
    assert reading.views["visual"].mask.all(axis=1).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"approx_time": ["00:00", "00:00", "00:00", "00:01"]}, "frame 40 lies in second 0; expected second 1 at 25"),
        ({"frame": [0, 20, 20, 40]}, "frames of 001.csv are not in order"),
        ({"AU12": "high"}, "AU12 holds a cell that is no number"),
    ],
)
def test_a_malformed_track_of_pyfeat_is_refused(tmp_path, changes, message):
    with pytest.raises(ManifestError, match=message):
        pyfeat_csv.read(pyfeat(tmp_path, "001", **changes), NEWS)


def test_a_table_with_an_unknown_class_is_refused(tmp_path):
    table = pyfeat(tmp_path, "001") / "clip_attrs.csv"
    table.write_text(table.read_text().replace("ists", "sad"))
    with pytest.raises(ManifestError, match="label is 'sad' at row 3; expected good news or bad news"):
        pyfeat_csv.read(tmp_path, NEWS)


@pytest.mark.realdata
def test_the_twenty_real_tracks_become_a_pack_of_landmarks_and_words(tmp_path):
    source = Path(os.environ["STF2M_DATA"]) / "pyfeat_news"
    report = import_dataset("pyfeat_news", source=source, out=tmp_path / "p")
    pack = open_pack(report.pack, verify="full")
    assert (len(pack), len(report.left_out)) == (20, 280)
    assert pack.clips["label"].value_counts().to_dict() == {"good news": 10, "bad news": 10}
    assert pack.view("visual").lengths[:3].tolist() == [20, 14, 24]
    assert pack.clips["text"][0] == "your loan has been approved"
    assert set(np.bincount(landmarks.edges().ravel(), minlength=68) > 0) == {True}
    chin, nose = pack.view("visual").values[0, [8, 30], 1]
    assert chin > nose  # y points down, as in the picture
