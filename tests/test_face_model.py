"""A network of the user's own for faces: what it must say of itself, what it makes, and what is refused."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stf2m_core.clip_features import media_settings, reads_recordings, recorded
from stf2m_core.data import drawn_faces, landmarks
from stf2m_core.data.manifest import import_dataset, options_of
from stf2m_core.data.media import MediaSettings, ModelFile, extract, read_clip, read_model_file
from stf2m_core.data.media.kept import place_of
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.errors import MediaError, RunError

for _name in ("av", "cv2", "librosa"):
    pytest.importorskip(_name, reason="needs the extra `media`")

from media_files import pictures, write  # noqa: E402
from onnx_files import write_linear  # noqa: E402

SIZE = 16
MEAN = np.full((1, SIZE * SIZE), 1 / SIZE**2)


def facts(path: Path, **changes) -> dict:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    about = {"path": str(path), "sha256": digest, "licence": "CC0", "kind": "embedding", "size": SIZE, "n_channels": 1}
    return about | changes


def brightness(folder: Path, **changes) -> ModelFile:
    """A network whose two numbers are the mean of its input and one more than that."""
    path = write_linear(folder / "mean.onnx", np.concatenate([MEAN, MEAN]), np.array([0.0, 1.0]), SIZE)
    return ModelFile(**facts(path, **changes))


def template(folder: Path, points: np.ndarray) -> ModelFile:
    """A network that finds the same landmarks in every face, in pixels of its input."""
    path = write_linear(folder / "template.onnx", np.zeros((points.size, SIZE * SIZE)), points.ravel(), SIZE)
    return ModelFile(**facts(path, kind="landmarks"))


def settings(model: ModelFile | None, **changes) -> MediaSettings:
    return MediaSettings(**{"modalities": ("visual",), "face_model": model} | changes)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A face for a second, gone for another."""
    frames = np.concatenate([pictures(25, faces=(90,)), pictures(25)])
    return write(tmp_path_factory.mktemp("video") / "a.mp4", frames)


# What it makes


def test_an_embedding_stands_beside_the_regions_and_is_masked_with_them(tmp_path, video):
    clip = read_clip(video, settings(brightness(tmp_path)))
    visual, stream = clip.streams["visual"], clip.streams["embedding"]
    assert (stream.nodes, stream.channels) == (("face",), ("emb0", "emb1"))
    assert stream.mask[:, 0].tolist() == visual.mask[:, 0].tolist()
    assert 20 < stream.mask.sum() < 40
    seen = stream.values[stream.mask[:, 0] > 0, 0]
    assert seen[:, 1] - seen[:, 0] == pytest.approx(np.ones(len(seen)), abs=1e-5)
    assert (0.4 < seen[:, 0]).all() and (seen[:, 0] < 0.8).all(), "the face is lighter than its ground of 60 / 255"
    assert not stream.values[stream.mask[:, 0] == 0].any()
    assert np.array_equal(visual.values, read_clip(video, settings(None)).streams["visual"].values)


def test_mean_and_scale_are_applied_to_pixels(tmp_path, video):
    plain = read_clip(video, settings(brightness(tmp_path))).streams["embedding"].values[0, 0, 0]
    other = read_clip(video, settings(brightness(tmp_path, mean=100.0, scale=2.0))).streams["embedding"].values[0, 0, 0]
    assert other == pytest.approx(2 * (255 * plain - 100), rel=1e-4)


def test_a_network_of_three_channels_sees_the_same_grey_three_times(tmp_path, video):
    thrice = np.zeros((1, 3 * SIZE * SIZE))
    thrice[0, -SIZE * SIZE :] = 1 / SIZE**2
    path = write_linear(tmp_path / "three.onnx", thrice, np.array([0.0]), SIZE, 3)
    models = (ModelFile(**facts(path, n_channels=3)), brightness(tmp_path))
    last, grey = (read_clip(video, settings(model)).streams["embedding"].values[0, 0, 0] for model in models)
    assert last == pytest.approx(grey)


def test_landmarks_are_freed_of_place_and_size(tmp_path, video):
    points = drawn_faces.face(smile=1.0)
    stream = read_clip(video, settings(template(tmp_path, 8 + 5 * points))).streams["landmarks"]
    assert (stream.nodes, stream.channels) == (landmarks.NAMES, ("x", "y"))
    assert stream.values[0] == pytest.approx(landmarks.centred(points[None])[0], abs=1e-5)


def test_answers_that_are_no_numbers_are_masked(tmp_path, video):
    without_size = template(tmp_path, np.zeros((68, 2)))
    stream = read_clip(video, settings(without_size)).streams["landmarks"]
    assert not stream.mask.any() and not stream.values.any()


# Many clips, and a pack


def test_another_network_makes_the_views_again_and_the_same_one_elsewhere_does_not(tmp_path, video):
    table = {"clip_id": ["a"], "path": [str(video)]}
    (tmp_path / "moved").mkdir()
    statuses = [
        extract(table, tmp_path / "out", settings(model), n_workers=1, progress=False).report["status"][0]
        for model in (None, brightness(tmp_path), brightness(tmp_path / "moved", licence="MIT"),
                      brightness(tmp_path, mean=1.0), None)
    ]  # fmt: skip
    assert statuses == ["made", "made", "kept", "made", "made"]


def test_without_a_network_the_digest_of_the_settings_is_what_it_was():
    assert MediaSettings(face_model=None).digest() == MediaSettings().digest() == "848f5abb7e0e1d52"


def test_a_network_that_is_not_as_stated_is_refused_once_and_no_clip_is_blamed(tmp_path, video):
    model = brightness(tmp_path)
    Path(model.path).write_bytes(b"other")
    with pytest.raises(MediaError, match="the face model has sha256 .*…; expected .*…, as stated .*mean.onnx"):
        extract({"clip_id": ["a"], "path": [str(video)]}, tmp_path / "out", settings(model), progress=False)
    assert not place_of(tmp_path / "out", "a").exists()


def test_landmarks_of_a_users_network_become_a_pack_with_their_graph_and_their_licence_is_said(tmp_path, video):
    model = template(tmp_path, drawn_faces.face())
    source = tmp_path / "data"
    source.mkdir()
    (source / "a.mp4").write_bytes(video.read_bytes())
    (source / "clips.csv").write_text("file,subject,label\na.mp4,ann,joy\n")
    text = f'path = "template.onnx"\nsha256 = "{model.sha256}"\nlicence = "CC BY 4.0"\nkind = "landmarks"\n'
    (tmp_path / "model.toml").write_text(text + f"size = {SIZE}\nn_channels = 1\n")
    report = import_dataset("folder", source=source, out=tmp_path / "pack", modalities=("visual",), n_workers=1,
                            face_model=str(tmp_path / "model.toml"))  # fmt: skip
    pack = open_pack(report.pack, verify="full")
    assert pack.modalities == ("visual", "landmarks")
    assert np.array_equal(pack.edges("landmarks"), landmarks.edges())
    assert report.remarks[-1] == f"landmarks by template.onnx, sha256 {model.sha256[:12]}…; licence: CC BY 4.0"
    assert media_settings(pack, ("landmarks",), None) == settings(replace(model, licence="CC BY 4.0")), "as it was made"
    assert media_settings(pack, ("visual",), None) == settings(None), "the network is not run for nothing"


def test_the_same_network_elsewhere_reads_a_clip_for_a_pack_and_another_one_does_not(tmp_path, video):
    made, place = settings(brightness(tmp_path)), tmp_path / "pack"
    done = extract({"clip_id": ["a"], "path": [str(video)]}, tmp_path / "out", made, n_workers=1, progress=False)
    rows = {"clip_id": ["a"], "subject": "ann", "group": "a", "domain": "", "duration_s": 2.0, "label": "joy"}
    write_pack(place, pd.DataFrame(rows | {"split": "", "text": ""}), done.views, ["joy"], name="pack",
               made_from={"media": asdict(made)})  # fmt: skip
    pack, names = open_pack(place), ("visual", "embedding")
    (tmp_path / "moved").mkdir()
    moved = settings(brightness(tmp_path / "moved"))
    assert media_settings(pack, names, moved).face_model.path == moved.face_model.path
    again = recorded(video, pack, media_settings(pack, names, moved))
    np.testing.assert_array_equal(again.streams["embedding"].values, done.views["embedding"].values)
    with pytest.raises(RunError, match="settings .* of the front end; expected .*, which made the pack"):
        media_settings(pack, names, settings(brightness(tmp_path / "moved", mean=1.0)))
    assert reads_recordings(pack, ("embedding",), None)
    assert not reads_recordings(pack, ("gaze",), None)


def test_recordings_of_a_public_set_take_a_users_network_too(tmp_path, video):
    model = brightness(tmp_path)
    about = f'path = "mean.onnx"\nsha256 = "{model.sha256}"\nlicence = "CC0"\nkind = "embedding"\n'
    (tmp_path / "model.toml").write_text(about + f"size = {SIZE}\nn_channels = 1\n")
    (tmp_path / "ravdess").mkdir()
    (tmp_path / "ravdess" / "02-01-03-01-01-01-01.mp4").write_bytes(video.read_bytes())
    report = import_dataset("ravdess", source=tmp_path / "ravdess", out=tmp_path / "pack", n_workers=1,
                            modalities=("visual",), face_model=str(tmp_path / "model.toml"))  # fmt: skip
    assert report.sizes == {"visual": (9, 9), "embedding": (1, 2)}
    assert report.remarks[-1].startswith("embedding by mean.onnx, sha256 ")


@pytest.mark.parametrize("name", ["folder", "ravdess", "crema_d", "meld", "dfew", "mafw"])
def test_every_set_with_pictures_takes_a_users_network(name):
    assert options_of(name, ["face_model=model.toml"]) == {"face_model": "model.toml"}


# What is refused


BAD_FACTS = {
    "sha256 of the face model is 'abc'; expected 64 hex digits": {"sha256": "abc"},
    "licence of the face model is ' '; expected the licence of the weights": {"licence": " "},
    "kind of the face model is 'emotion'; expected landmarks or embedding": {"kind": "emotion"},
    "size of the face model is 4; expected 8 to 1024 pixels": {"size": 4},
    "n_channels of the face model is 2; expected 1 or 3": {"n_channels": 2},
    "scale of the face model is 0; expected a number other than 0": {"scale": 0},
    "mean of the face model is True; expected a number": {"mean": True},
}


@pytest.mark.parametrize("message", BAD_FACTS)
def test_facts_that_make_no_sense_are_refused(tmp_path, message):
    with pytest.raises(MediaError, match=message):
        brightness(tmp_path, **BAD_FACTS[message])


def test_a_network_needs_pictures(tmp_path):
    with pytest.raises(MediaError, match="face_model is .*; expected none without visual"):
        settings(brightness(tmp_path), modalities=("audio",))


def test_what_is_no_network_or_another_than_its_kind_needs_is_refused(tmp_path, video, capfd):
    (tmp_path / "noise.onnx").write_bytes(b"\x00\x01\x02")
    with pytest.raises(MediaError, match=r"face model cannot be run: .*an ONNX file with one input \(1, 1, 16, 16\)"):
        read_clip(video, settings(ModelFile(**facts(tmp_path / "noise.onnx"))))
    with pytest.raises(MediaError, match="the face model gives 2 numbers; expected 136: 68 pairs x, y"):
        read_clip(video, settings(brightness(tmp_path, kind="landmarks")))
    with pytest.raises(MediaError, match="the face model cannot be run"):
        read_clip(video, settings(brightness(tmp_path, size=32)))
    with pytest.raises(MediaError, match="the face model cannot be read: No such file"):
        read_clip(video, settings(replace(brightness(tmp_path), path=str(tmp_path / "gone.onnx"))))
    assert "OPENCV" not in capfd.readouterr().err, "what is wrong is said once, in the error"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path = "a"', "key 'sha256' is missing; expected path, sha256, licence, kind"),
        ('path = "a"\nweights = 1', "key 'weights' is unknown"),
        ("path =", "file of facts is not TOML"),
        (None, "file of facts cannot be read: No such file"),
        ('path = ""\nsha256 = "a"\nlicence = "b"\nkind = "c"', "path of the face model is ''; expected the file's"),
    ],
)
def test_a_malformed_file_of_facts_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "model.toml").write_text(text)
    with pytest.raises(MediaError, match=message):
        read_model_file(tmp_path / "model.toml")
