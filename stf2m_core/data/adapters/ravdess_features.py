"""RAVDESS speech as features: a folder with features.npz and index.csv enters, clips and three modalities leave.

Livingstone & Russo 2018, doi 10.1371/journal.pone.0196391. The out-of-fold logits that lie in the same file come from
models trained on these very labels; they are never read.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.tables import read_columns
from stf2m_core.data.words import N_CHANNELS, hash_words, words_of
from stf2m_core.errors import ManifestError

_FEATURES, _INDEX = "features.npz", "index.csv"
_ARRAYS = (
    "audio_logmel", "audio_offsets", "visual_au_mean", "au_names", "emotion_id", "emotion_names", "actor", "clip_id",
)  # fmt: skip
_COLUMNS = (
    "clip_id", "actor", "sex", "emotion_id", "emotion", "intensity", "statement", "text", "repetition",
    "audio_duration_s", "n_logmel_frames",
)  # fmt: skip
_RATE_HZ = 50.0
_BANDS_PER_NODE = 5
_SENTENCES = {1: "kids", 2: "dogs"}


def read(source: Path, manifest: Manifest) -> tuple[pd.DataFrame, dict[str, RaggedViews]]:
    """The clips and the views of audio, visual and text.

    Args:
        source: folder with features.npz and index.csv.
        manifest: states the labels and names of nodes and channels.

    Returns:
        One row per clip, and modality to views: audio (50 frames/s, 8 groups of mel bands, 5 bands; ln power), visual
        (one frame, 18 action units, intensity 0–5 and presence 0–1), text (one frame per word, one node, 16 channels).

    Raises:
        ManifestError: if a file is malformed or the two files tell different stories.
    """
    arrays = _load_features(source / _FEATURES)
    index = read_columns(source / _INDEX, _COLUMNS, keep_default_na=False)
    _cross_check(arrays, index, manifest, source)
    duration = index["audio_duration_s"].to_numpy(np.float64)
    views = {
        "audio": _audio(arrays),
        "visual": _visual(arrays, duration),
        "text": _text(index["text"].tolist(), duration),
    }
    return _clips(index), views


def _load_features(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise ManifestError(f"array {missing[0]} is missing", expected=", ".join(_ARRAYS), where=str(path))
            return {name: archive[name] for name in _ARRAYS}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ManifestError(
            f"{path.name} cannot be read: {error}", expected="an npz archive", where=str(path)
        ) from error


def _cross_check(arrays: dict[str, np.ndarray], index: pd.DataFrame, manifest: Manifest, source: Path) -> None:
    names = tuple(str(name) for name in arrays["emotion_names"])
    if names != manifest.labels:
        raise ManifestError(f"emotion_names are {names}", expected=str(manifest.labels), where=str(source / _FEATURES))
    n_clips = len(arrays["clip_id"])
    if len(index) != n_clips:
        raise ManifestError(f"{_INDEX} has {len(index)} rows", expected=f"{n_clips}, as {_FEATURES}", where=str(source))
    _check_arrays(arrays, n_clips, len(names), source)
    pairs = {
        "clip_id": arrays["clip_id"],
        "actor": arrays["actor"],
        "emotion_id": arrays["emotion_id"],
        "emotion": arrays["emotion_names"][arrays["emotion_id"]],
        "n_logmel_frames": np.diff(arrays["audio_offsets"]),
    }
    for column, stated in pairs.items():
        differs = np.flatnonzero(index[column].to_numpy() != stated)
        if differs.size:
            row = int(differs[0])
            raise ManifestError(
                f"{column} of row {row} is {index[column].iloc[row]} in {_INDEX}",
                expected=f"{stated[row]}, as in {_FEATURES}",
                where=str(source),
                remedy="The two files do not belong together; get both from one release",
            )
    strange = sorted(set(index["statement"]) - set(_SENTENCES))
    if strange:
        raise ManifestError(f"statement is {strange[0]!r}", expected="1 or 2", where=str(source / _INDEX))


def _check_arrays(arrays: dict[str, np.ndarray], n_clips: int, n_labels: int, source: Path) -> None:
    """Refuse arrays whose sizes would make the views wrong or the checks above fail in numpy's words."""
    n_bands, n_units = 40, len(arrays["au_names"])
    shapes = {
        "audio_logmel": (int(arrays["audio_offsets"].flat[-1]), n_bands),
        "audio_offsets": (n_clips + 1,),
        "visual_au_mean": (n_clips, n_units),
        "actor": (n_clips,),
        "emotion_id": (n_clips,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ManifestError(
                f"{name} has shape {arrays[name].shape}", expected=str(shape), where=str(source / _FEATURES)
            )
    emotion = arrays["emotion_id"]
    if emotion.min() < 0 or emotion.max() >= n_labels:
        raise ManifestError(
            f"emotion_id goes from {emotion.min()} to {emotion.max()}",
            expected=f"0 to {n_labels - 1}",
            where=str(source / _FEATURES),
        )


def _clips(index: pd.DataFrame) -> pd.DataFrame:
    subject = index["actor"].map("{:02d}".format)
    return pd.DataFrame(
        {
            "clip_id": index["clip_id"],
            "subject": subject,
            "group": subject + "/" + index["statement"].map(_SENTENCES),
            "domain": "ravdess",
            "duration_s": index["audio_duration_s"].astype(np.float64),
            "label": index["emotion"],
            "split": "",
            "text": index["text"],
            **{f"x_{name}": index[name].astype(str) for name in ("sex", "intensity", "statement", "repetition")},
        }
    )


def _audio(arrays: dict[str, np.ndarray]) -> RaggedViews:
    bands = arrays["audio_logmel"].astype(np.float16, copy=False)
    n_nodes = bands.shape[1] // _BANDS_PER_NODE
    starts = range(0, bands.shape[1], _BANDS_PER_NODE)
    return RaggedViews(
        values=bands.reshape(-1, n_nodes, _BANDS_PER_NODE),
        offsets=arrays["audio_offsets"].astype(np.int64),
        nodes=tuple(f"mel{start:02d}-{start + _BANDS_PER_NODE - 1:02d}" for start in starts),
        channels=tuple(f"band{band}" for band in range(_BANDS_PER_NODE)),
        rate_hz=_RATE_HZ,
    )


def _visual(arrays: dict[str, np.ndarray], duration: np.ndarray) -> RaggedViews:
    """One frame per clip, in its middle; an action unit without intensity keeps 0 there."""
    columns = {str(name): column for column, name in enumerate(arrays["au_names"])}
    units = sorted({name[:-2] for name in columns})
    values = np.zeros((len(duration), len(units), 2), np.float32)
    for channel, suffix in enumerate(("_r", "_c")):
        for node, unit in enumerate(units):
            if unit + suffix in columns:
                values[:, node, channel] = arrays["visual_au_mean"][:, columns[unit + suffix]]
    return RaggedViews(
        values=values,
        offsets=np.arange(len(duration) + 1, dtype=np.int64),
        nodes=tuple(units),
        channels=("intensity", "presence"),
        times=(duration / 2).astype(np.float32),
    )


def _text(sentences: list[str], duration: np.ndarray) -> RaggedViews:
    """One frame per word, in the middle of an equal share of the clip: nothing says when a word was spoken."""
    known = {sentence: hash_words(words_of(sentence)) for sentence in set(sentences)}
    frames = [known[sentence] for sentence in sentences]
    times = [(np.arange(len(words)) + 0.5) / len(words) * span for words, span in zip(frames, duration, strict=True)]
    return RaggedViews(
        values=np.concatenate(frames)[:, None, :],
        offsets=np.cumsum([0, *(len(words) for words in frames)], dtype=np.int64),
        nodes=("word",),
        channels=tuple(f"hash{channel:02d}" for channel in range(N_CHANNELS)),
        times=np.concatenate(times).astype(np.float32),
    )
