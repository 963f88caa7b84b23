"""Faces: those that are drawn for want of real ones, figures of landmarks, and episodes on twenty real clips."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stf2m_core import figures, own_data
from stf2m_core.data import drawn_faces, landmarks
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import Pack, open_pack
from stf2m_core.episodes import split_subjects
from stf2m_core.errors import EpisodeError, ManifestError, PackError, ResultError
from stf2m_core.model.spatial import complete_graph
from stf2m_core.results import Record
from stf2m_core.training import build
from stf2m_core.views import ResidentViews


def imported(source: Path, out: Path, **options) -> Pack:
    return open_pack(import_dataset("pyfeat_news", source=source, out=out, **options).pack, verify="full")


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    folder = tmp_path_factory.mktemp("faces")
    return imported(drawn_faces.write_tracks(folder / "tracks"), folder / "pack", hold_out="phrases")


# Drawn faces


def test_a_drawn_face_has_its_parts_where_faces_have_them():
    face = drawn_faces.face()
    assert face.shape == (68, 2)
    brows, eyes, mouth, chin = face[17:27, 1], face[36:48, 1], face[48:68, 1], face[8, 1]
    assert brows.max() < eyes.min() and eyes.max() < mouth.min() and mouth.max() < chin  # y points down
    right_half = [*range(8), *range(17, 22), *range(36, 42), 31, 32, 48, 49, 50]
    assert (face[right_half, 0] < 0).all()
    lengths = np.linalg.norm(np.diff(face[landmarks.edges()], axis=1), axis=2)
    assert lengths.max() < 0.6, "the graph joins neighbours: no edge crosses the face"


def test_smile_frown_and_speech_move_what_they_should():
    plain = drawn_faces.face()
    corners = drawn_faces.face(smile=1)[[48, 54]] - plain[[48, 54]]
    assert (corners[:, 1] < -0.1).all() and corners[0, 0] < 0 < corners[1, 0]
    brows = drawn_faces.face(frown=1)[[21, 22]] - plain[[21, 22]]
    assert (brows[:, 1] > 0.1).all() and brows[0, 0] > 0 > brows[1, 0]
    lips = drawn_faces.face(opening=1) - plain
    assert lips[66, 1] > 0.1 and abs(lips[62, 1]) < 0.01


def test_the_same_seed_draws_the_same_tracks(tmp_path):
    first, again, other = (
        drawn_faces.write_tracks(tmp_path / name, seed) for name, seed in zip("abc", (0, 0, 1), strict=True)
    )
    assert (first / "007.csv").read_bytes() == (again / "007.csv").read_bytes() != (other / "007.csv").read_bytes()
    assert len(list(first.iterdir())) == 21


# The pack


def test_landmarks_come_with_their_graph_and_phrases_stand_for_subjects_where_asked(pack):
    assert np.array_equal(pack.edges("visual"), landmarks.edges())
    assert pack.edges("text") is None
    assert pack.clips["subject"].nunique() == 10
    assert (pack.clips.groupby("subject")["label"].nunique() == 2).all()
    parts = split_subjects(pack, own_data.settings_for(pack).split)
    assert sorted(np.concatenate(list(parts.rows.values()))) == list(range(20))


def test_that_phrases_stand_for_subjects_is_said_and_nothing_else_may(tmp_path):
    source = drawn_faces.write_tracks(tmp_path / "tracks")
    report = import_dataset("pyfeat_news", source=source, out=tmp_path / "p", hold_out="phrases")
    assert report.remarks[-1].endswith("other phrases of the same faces, and of nobody new")
    with pytest.raises(ManifestError, match="hold_out is 'actors'; expected 'people' or 'phrases'"):
        import_dataset("pyfeat_news", source=source, out=tmp_path / "q", hold_out="actors")
    with pytest.raises(EpisodeError, match="1 subjects with 20 clips"):
        own_data.settings_for(imported(source, tmp_path / "q"))


def test_episodes_run_on_the_drawn_faces(pack, tmp_path):
    records = own_data.first_records(pack, tmp_path, "test", progress_bar=False)
    assert [record.method for record in records] == ["nearest-prototype", "ridge-prototype", "st-f2m"]
    assert all(np.isfinite(record.accuracy.mean) for record in records)


@pytest.mark.realdata
def test_twenty_real_clips_give_a_pack_of_landmarks_a_training_and_a_record(tmp_path):
    real = imported(Path(os.environ["STF2M_DATA"]) / "pyfeat_news", tmp_path / "pack", hold_out="phrases")
    assert real.edges("visual").shape == (75, 2)
    joined = real.view("visual").values[:, real.edges("visual")].astype(np.float64)
    lengths = np.linalg.norm(joined[:, :, 0] - joined[:, :, 1], axis=2)
    assert np.median(lengths) < 0.2 and lengths.max() < 1.2  # neighbours on the face, in eye distances
    record = own_data.first_records(real, tmp_path, "test", progress_bar=False)[-1]
    assert (record.method, record.dataset, record.episode["regime"]) == ("st-f2m", "pyfeat_news", "D")
    assert record.pack_digest == real.digest
    assert 0.4 < record.accuracy.mean <= 1
    assert Record.from_json(record.to_json(tmp_path / "record.json")).accuracy.mean == record.accuracy.mean


def test_the_graph_that_a_pack_tells_is_the_prior_of_its_convolution_and_others_see_all(pack):
    config = own_data.settings_for(pack)
    data = ResidentViews(pack, config.views, "cpu")
    model = build(data, split_subjects(pack, config.split), config)
    near = {(i, j) for a, b in landmarks.edges().tolist() for i, j in ((a, b), (b, a))} | {(i, i) for i in range(68)}
    expected = np.zeros((68, 68))
    for i in range(68):
        row = [j for j in range(68) if (i, j) in near]
        expected[i, row] = 1 / len(row)
    priors = {name: t for name, t in model.named_buffers() if name.endswith("prior")}
    faces = [t for name, t in priors.items() if "visual" in name]
    words = [t for name, t in priors.items() if "text" in name]
    assert len(faces) == len(words) == 1
    np.testing.assert_allclose(faces[0].numpy(), expected, rtol=1e-6)
    assert torch.equal(words[0], complete_graph(len(words[0])))


# Figures


def test_a_face_graph_has_every_landmark_and_every_edge():
    points = np.random.default_rng(0).random((2, 68, 2))
    drawn = figures.face_graph(points, landmarks.edges(), ["good", "bad"])
    assert [axis.get_title() for axis in drawn.axes] == ["good", "bad"]
    sizes = [(len(axis.collections[0].get_segments()), len(axis.collections[1].get_offsets())) for axis in drawn.axes]
    assert sizes == [(75, 68)] * 2
    assert drawn.axes[0].yaxis_inverted()
    with pytest.raises(ResultError, match="edges name landmarks 0 to 68; expected 0 to 67"):
        figures.face_graph(points, [[0, 68]])
    with pytest.raises(ResultError, match="1 titles; expected 2, one for each face"):
        figures.face_graph(points, landmarks.edges(), ["good"])


def test_the_figure_of_tracks_points_where_the_labels_differ(pack):
    figure = figures.face_tracks(pack)
    titles = [axis.get_title(loc="left") for axis in figure.axes[:3]]
    assert titles[0].startswith("68 nodes, 75 edges")
    assert [title.split(" against")[0] for title in titles[1:]] == list(pack.labels)
    arrows = np.array(figure.axes[1].collections[1].get_segments())  # good news: corners of the mouth up
    assert (arrows[[48, 54], 1, 1] < arrows[[48, 54], 0, 1]).all()


def test_the_figure_of_a_clip_shows_faces_in_time_and_every_word(pack):
    figure = figures.face_clip(pack, 12, n_faces=4)
    assert [len(part.get_segments()) for part in figure.axes[0].collections] == [75] * 4
    assert [text.get_text() for text in figure.axes[1].texts] == pack.clips["text"][12].split()


def test_figures_of_what_is_no_face_are_refused(pack, tmp_path):
    with pytest.raises(ResultError, match="text has no graph; expected edges"):
        figures.face_tracks(pack, "text")
    with pytest.raises(PackError, match="modality 'gaze' is unknown"):
        figures.face_tracks(pack, "gaze")
    with pytest.raises(ResultError, match="row 20; expected 0 to 19"):
        figures.face_clip(pack, 20)
    views = pack.view("visual")
    blind = replace(pack, _views={"visual": replace(views, mask=np.zeros_like(views.mask))})
    with pytest.raises(ResultError, match="no face in clip '001'"):
        figures.face_clip(blind, 0)
    with pytest.raises(ResultError, match="0 labels with a face; expected 1 to 3"):
        figures.face_tracks(blind)
    turned = replace(pack, _views={"visual": replace(views, channels=("u", "v"))})
    with pytest.raises(ResultError, match="visual has the channels u, v"):
        figures.face_clip(turned, 0)
