"""The RAVDESS features: a made-up set of two actors shows the layout, the real files show the counts."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stf2m_core.data.adapters.ravdess_features import read
from stf2m_core.data.manifest import find, import_dataset, load_manifest
from stf2m_core.data.pack import open_pack
from stf2m_core.errors import ManifestError

MANIFEST = load_manifest("ravdess_features")
UNITS = [name[2:] for name in MANIFEST.modalities["visual"].nodes]
SENTENCES = ["Kids are talking by the door.", "Dogs are sitting by the door."]


def made_up_arrays(n_clips=4):
    """Arrays as in features.npz; every number says where it comes from."""
    lengths = np.arange(2, 2 + n_clips)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names = [f"AU{unit}_r" for unit in UNITS if unit != "28"] + [f"AU{unit}_c" for unit in UNITS]
    emotion = np.arange(n_clips, dtype=np.int8) % 8
    actor = np.array([1 + row % 2 for row in range(n_clips)], np.int8)
    parts = zip(emotion, actor, strict=True)
    return {
        "audio_logmel": (np.arange(offsets[-1])[:, None] * 100 + np.arange(40)).astype(np.float16),
        "audio_offsets": offsets,
        "visual_au_mean": (np.arange(n_clips)[:, None] + np.arange(35) / 64).astype(np.float32),
        "au_names": np.array(names),
        "emotion_id": emotion,
        "emotion_names": np.array(MANIFEST.labels),
        "actor": actor,
        "clip_id": np.array([f"01-{e + 1:02d}-01-{1 + row % 2:02d}-01-{a:02d}" for row, (e, a) in enumerate(parts)]),
    }


def made_up_index(arrays):
    n_clips = len(arrays["clip_id"])
    statement = 1 + np.arange(n_clips) % 2
    return pd.DataFrame(
        {
            "clip_id": arrays["clip_id"],
            "actor": arrays["actor"],
            "sex": "M",
            "emotion_id": arrays["emotion_id"],
            "emotion": arrays["emotion_names"][arrays["emotion_id"]],
            "intensity": "normal",
            "statement": statement,
            "text": [SENTENCES[number - 1] for number in statement],
            "repetition": 1,
            "audio_duration_s": np.diff(arrays["audio_offsets"]) / 50 + 0.01,
            "n_logmel_frames": np.diff(arrays["audio_offsets"]),
        }
    )


def save(folder, arrays, index):
    np.savez(folder / "features.npz", **arrays)
    index.to_csv(folder / "index.csv", index=False)
    return folder


@pytest.fixture
def arrays():
    return made_up_arrays()


@pytest.fixture
def source(tmp_path, arrays):
    return save(tmp_path, arrays, made_up_index(arrays))


def test_clips_carry_actor_sentence_and_emotion(source):
    clips, _ = read(source, MANIFEST)
    assert clips["subject"].tolist() == ["01", "02", "01", "02"]
    assert clips["group"].tolist() == ["01/kids", "02/dogs", "01/kids", "02/dogs"]
    assert clips["label"].tolist() == ["neutral", "calm", "happy", "sad"]
    assert clips["duration_s"].tolist() == pytest.approx([0.05, 0.07, 0.09, 0.11])
    assert set(clips["domain"]) == {"ravdess"}
    assert set(clips["split"]) == {""}
    assert clips[["x_sex", "x_intensity", "x_statement", "x_repetition"]].iloc[1].tolist() == ["M", "normal", "2", "1"]


def test_audio_bands_are_grouped_in_nodes_of_five_neighbours(source, arrays):
    audio = read(source, MANIFEST)[1]["audio"]
    assert (audio.values.shape, audio.values.dtype, audio.rate_hz) == ((14, 8, 5), np.float16, 50.0)
    assert (audio.nodes[0], audio.nodes[7], audio.channels[0]) == ("mel00-04", "mel35-39", "band0")
    np.testing.assert_array_equal(audio.values[3, 7, 4], arrays["audio_logmel"][3, 39])
    np.testing.assert_array_equal(audio.values[3, 2, 1], arrays["audio_logmel"][3, 11])
    assert audio.offsets.tolist() == arrays["audio_offsets"].tolist()


def test_visual_has_one_frame_in_the_middle_with_action_units_as_nodes(source, arrays):
    visual = read(source, MANIFEST)[1]["visual"]
    assert (visual.values.shape, visual.rate_hz, visual.lengths.tolist()) == ((4, 18, 2), None, [1, 1, 1, 1])
    assert visual.times.tolist() == pytest.approx([0.025, 0.035, 0.045, 0.055])
    names = arrays["au_names"].tolist()
    for node, unit in enumerate(visual.nodes):
        presence = arrays["visual_au_mean"][:, names.index(f"{unit}_c")]
        np.testing.assert_array_equal(visual.values[:, node, 1], presence)
        if unit != "AU28":
            intensity = arrays["visual_au_mean"][:, names.index(f"{unit}_r")]
            np.testing.assert_array_equal(visual.values[:, node, 0], intensity)


def test_au28_has_no_intensity_and_the_manifest_says_so(source):
    visual = read(source, MANIFEST)[1]["visual"]
    assert not visual.values[:, visual.nodes.index("AU28"), 0].any()
    assert any("AU28" in note for note in MANIFEST.notes)


def test_text_has_one_frame_per_word_spread_over_the_clip(source):
    text = read(source, MANIFEST)[1]["text"]
    assert (text.values.shape, text.lengths.tolist()) == ((24, 1, 16), [6, 6, 6, 6])
    assert text.times[:6].tolist() == pytest.approx([0.05 * (word + 0.5) / 6 for word in range(6)])
    assert np.linalg.norm(text.values[:, 0], axis=1) == pytest.approx(np.ones(24))
    shared = [word for word in range(6) if (text.values[word] == text.values[6 + word]).all()]
    assert shared == [1, 3, 4, 5], "are, by, the, door are the same words in both sentences"


def test_text_is_hashed_the_same_on_every_machine(source):
    first = read(source, MANIFEST)[1]["text"].values[0, 0]
    # the trigrams <ki, kid, ids, ds> by hand: byte 0 of SHA-256 modulo 16 is the channel, byte 1 the sign
    wanted = np.zeros(16, np.float32)
    wanted[[0, 12, 14]], wanted[3] = 0.5, -0.5
    np.testing.assert_allclose(first, wanted, rtol=1e-6)


def test_out_of_fold_logits_are_never_read(source, arrays):
    logits = {"visual_logits_aubilstm_oof": np.full((4, 8), 7.0), "audio_logits_wav2vec2_oof": np.full((4, 8), 7.0)}
    clips, views = read(save(source, arrays | logits, made_up_index(arrays)), MANIFEST)
    assert not any("logit" in str(name) for name in clips.columns)
    assert set(views) == {"audio", "visual", "text"}
    assert sum(part.values.shape[1] * part.values.shape[2] for part in views.values()) == 40 + 36 + 16


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("clip_id", "x", "clip_id of row 2 is x in index.csv; expected 01-03-01-01-01-01, as in features.npz"),
        ("actor", 9, "actor of row 2 is 9 in index.csv; expected 1, as in features.npz"),
        ("emotion_id", 5, "emotion_id of row 2 is 5 in index.csv; expected 2"),
        ("emotion", "sad", "emotion of row 2 is sad in index.csv; expected happy"),
        ("n_logmel_frames", 99, "n_logmel_frames of row 2 is 99 in index.csv; expected 4"),
        ("statement", 3, "statement is 3; expected 1 or 2"),
    ],
)
def test_an_index_that_tells_another_story_is_refused(source, arrays, column, value, message):
    index = made_up_index(arrays)
    index.loc[2, column] = value
    save(source, arrays, index)
    with pytest.raises(ManifestError, match=message):
        read(source, MANIFEST)


def test_an_index_of_another_length_is_refused(source, arrays):
    save(source, arrays, made_up_index(arrays).iloc[:3])
    with pytest.raises(ManifestError, match="index.csv has 3 rows; expected 4, as features.npz"):
        read(source, MANIFEST)


def test_an_index_without_a_column_is_refused(source, arrays):
    save(source, arrays, made_up_index(arrays).drop(columns="sex"))
    with pytest.raises(ManifestError, match="column 'sex' is missing"):
        read(source, MANIFEST)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("emotion_names", lambda array: array[::-1], "emotion_names are .*; expected .*'neutral', 'calm'"),
        ("audio_logmel", lambda array: array[:-1], r"audio_logmel has shape \(13, 40\); expected \(14, 40\)"),
        ("audio_logmel", lambda array: array[:, :39], r"audio_logmel has shape \(14, 39\); expected \(14, 40\)"),
        ("audio_offsets", lambda array: array[:-1], r"audio_.* has shape .*; expected"),
        ("visual_au_mean", lambda array: array[:, :34], r"visual_au_mean has shape \(4, 34\); expected \(4, 35\)"),
        ("emotion_id", lambda array: array + 5, "emotion_id goes from 5 to 8; expected 0 to 7"),
        ("actor", lambda array: array[:3], r"actor has shape \(3,\); expected \(4,\)"),
        ("clip_id", lambda array: array.astype(object), "features.npz cannot be read: .*allow_pickle"),
    ],
)
def test_malformed_features_are_refused(source, arrays, name, change, message):
    save(source, arrays | {name: change(arrays[name])}, made_up_index(arrays))
    with pytest.raises(ManifestError, match=message):
        read(source, MANIFEST)


def test_features_without_an_array_are_refused(source, arrays):
    index = made_up_index(arrays)
    del arrays["au_names"]
    save(source, arrays, index)
    with pytest.raises(ManifestError, match="array au_names is missing"):
        read(source, MANIFEST)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken", b"npy"])
def test_features_that_are_no_archive_are_refused(source, content):
    (source / "features.npz").write_bytes(content)
    if content == b"npy":
        with (source / "features.npz").open("wb") as stream:
            np.save(stream, np.zeros(3))
    with pytest.raises(ManifestError, match="features.npz cannot be read"):
        read(source, MANIFEST)


def test_what_is_read_is_what_the_manifest_states(source, tmp_path):
    manifest = dataclasses.replace(MANIFEST, files=())
    for name, part in read(source, manifest)[1].items():
        facts = manifest.modalities[name]
        assert (part.nodes, part.channels, part.rate_hz) == (facts.nodes, facts.channels, facts.rate_hz)


# The real files


@pytest.fixture(scope="module")
def real_pack(tmp_path_factory):
    folder = os.environ.get("STF2M_DATA")
    if not folder:
        pytest.skip("STF2M_DATA is not set: no real data")
    (source,) = [place for manifest, place in find(Path(folder)) if manifest.name == "ravdess_features"]
    out = tmp_path_factory.mktemp("packs") / "ravdess"
    return open_pack(import_dataset("ravdess_features", source=source, out=out).pack, verify="full")


@pytest.mark.realdata
def test_real_counts_are_those_of_the_corpus(real_pack):
    counts = real_pack.clips["label"].value_counts()
    assert len(real_pack) == 960
    assert {label: int(counts[label]) for label in real_pack.labels} == dict.fromkeys(real_pack.labels, 128) | {
        "neutral": 64
    }
    assert real_pack.clips["subject"].value_counts().tolist() == [60] * 16
    assert real_pack.clips["group"].value_counts().tolist() == [30] * 32


@pytest.mark.realdata
def test_real_frames_last_as_long_as_their_clip(real_pack):
    audio = real_pack.view("audio")
    assert len(audio.values) == 174_943
    assert np.abs(audio.lengths / audio.rate_hz - real_pack.clips["duration_s"]).max() < 0.03
    assert len(real_pack.view("text").values) == 960 * 6


@pytest.mark.realdata
def test_real_action_units_lie_in_their_ranges(real_pack):
    visual = np.asarray(real_pack.view("visual").values)
    assert visual[..., 0].min() >= 0
    assert 1 < visual[..., 0].max() <= 5
    assert visual[..., 1].min() >= 0
    assert visual[..., 1].max() <= 1


@pytest.mark.realdata
def test_the_only_real_duplicate_is_the_one_the_manifest_names(real_pack):
    hashes = pd.Series(real_pack.content_hashes(), index=real_pack.clips["clip_id"])
    twins = hashes[hashes.duplicated(keep=False)].index.tolist()
    assert twins == ["01-03-01-02-01-07", "01-03-01-02-02-07"]
    assert any(all(twin in note for twin in twins) for note in MANIFEST.notes)


@pytest.mark.realdata
def test_a_flipped_byte_in_the_real_features_is_refused(tmp_path):
    folder = os.environ.get("STF2M_DATA")
    if not folder:
        pytest.skip("STF2M_DATA is not set: no real data")
    (source,) = [place for manifest, place in find(Path(folder)) if manifest.name == "ravdess_features"]
    content = bytearray((source / "features.npz").read_bytes())
    content[5_000_000] ^= 1
    (tmp_path / "features.npz").write_bytes(content)
    (tmp_path / "index.csv").write_bytes((source / "index.csv").read_bytes())
    with pytest.raises(ManifestError, match="features.npz has sha256 [0-9a-f]{12}… and not 1b2303b028e2…"):
        import_dataset("ravdess_features", source=tmp_path, out=tmp_path / "p")
