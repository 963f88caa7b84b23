"""Pickles of MMSA and of MulT (CMU-MOSI, CMU-MOSEI): three splits of padded arrays enter, ragged views leave.

Formats: MMSA (thuiar/MMSA) with regression_labels and, where modalities are not aligned, audio_lengths and
vision_lengths; MulT (yaohungt/Multimodal-Transformer) with labels, and no lengths. Both are read by the restricted
unpickler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.reading import Reading, clip_table
from stf2m_core.data.unpickle import load_plain_pickle
from stf2m_core.errors import ManifestError

_MOSI = (1284, 229, 686)
_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_VIEWS = {"text": "text", "audio": "audio", "vision": "visual"}
_LABELS = ("negative", "neutral", "positive")


def read(source: Path, manifest: Manifest, *, file: str | None = None, words_per_s: float = 3.0) -> Reading:
    """The clips of all splits of one pickle.

    The pickle has no time: positions are spread evenly over a clip that lasts as long as its words would at
    `words_per_s`. That keeps their order and the order of magnitude, nothing else.

    Args:
        source: folder with the pickle, or with the folder Processed.
        manifest: states the labels, which are the signs of the sentiment: negative, neutral, positive.
        file: the pickle relative to the folder; None: the only one there.
        words_per_s: the nominal rate of speech.

    Raises:
        ManifestError: if the pickle holds code, is damaged, not of these formats, or of the other data set.
    """
    path = find_pickle(source, file)
    content = load_plain_pickle(path)
    if not isinstance(content, dict) or not set(_SPLITS) <= set(content):
        raise ManifestError(f"{path.name} has no splits", expected="train, valid and test", where=str(path))
    parts = [_Part(content[name], name, path) for name in _SPLITS]
    check_set(manifest.name, tuple(part.n_clips for part in parts), path)
    parts = [part for part in parts if part.n_clips]
    lengths = {name: np.concatenate([part.lengths(name) for part in parts]) for name in _VIEWS}
    duration = np.maximum(lengths["text"], 1) / words_per_s
    views = {}
    for name, modality in _VIEWS.items():
        frames = np.concatenate([part.frames(name) for part in parts])
        views[modality] = _ragged(modality, frames, lengths[name], duration)
    score = np.concatenate([part.score for part in parts])
    names = [name for part in parts for name in part.ids]
    video = [name.rpartition("$_$")[0] or name.rpartition("[")[0] or name for name in names]
    clips = clip_table(
        {
            "clip_id": _different(names),
            "subject": video,
            "group": video,
            "domain": manifest.name,
            "duration_s": duration,
            "label": np.array(_LABELS, object)[np.sign(score).astype(int) + 1],
            "split": [_SPLITS[part.name] for part in parts for _ in range(part.n_clips)],
            "text": [text for part in parts for text in part.texts],
        },
        valence=score,
    )
    remarks = [f"{path.name} has no lengths: frames of zeros at either end are taken as padding"]
    return Reading(clips=clips, views=views, remarks=[] if all(part.has_lengths for part in parts) else remarks)


def find_pickle(source: Path, file: str | None) -> Path:
    """The pickle named, or the only one in the folder and its subfolders.

    Raises:
        ManifestError: if there is none or more than one, or the name leads out of the folder.
    """
    if file is not None:
        path = source / file
        if not path.resolve().is_relative_to(source.resolve()) or not path.is_file():
            raise ManifestError(f"file {file!r} is not there", expected=f"a pickle in {source}")
        return path
    found = sorted(path for path in source.rglob("*.pkl") if path.resolve().is_relative_to(source.resolve()))
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(source)) for path in found[:5]) or "none"
        raise ManifestError(f"{source} has {len(found)} pickles ({names})", expected="one", remedy="Name it with file=")
    return found[0]


def check_set(name: str, sizes: tuple[int, ...], path: Path) -> None:
    """Refuse a pickle of the other one of the two sets: both go by the names aligned_50.pkl and unaligned_50.pkl.

    CMU-MOSI has 2199 utterances, of which 1284, 229 and 686 are for training, validation and test; CMU-MOSEI has more
    than ten times as many. A part of CMU-MOSEI of at most 2199 cannot be told from CMU-MOSI by this, and passes.

    Args:
        name: of the manifest.
        sizes: clips in train, valid and test.
        path: of the pickle.

    Raises:
        ManifestError: if the name is cmu_mosi and there are more clips than CMU-MOSI has, or cmu_mosei and the splits
            are those of CMU-MOSI.
    """
    other = {"cmu_mosi": "cmu_mosei", "cmu_mosei": "cmu_mosi"}.get(name)
    wrong = {"cmu_mosi": sum(sizes) > sum(_MOSI), "cmu_mosei": sizes == _MOSI}
    if other and wrong[name]:
        said = f"{path.name} has {', '.join(map(str, sizes))} clips in train, valid and test"
        expected = f"at most {sum(_MOSI)} in all" if name == "cmu_mosi" else "more: these are the splits of CMU-MOSI"
        raise ManifestError(said, expected=expected, where=str(path), remedy=f"Import it as {other}")


class _Part:
    """One split of a pickle."""

    def __init__(self, content: Any, name: str, path: Path):
        self.name, self.where = name, f"{path}, {name}"
        if not isinstance(content, Mapping):
            raise ManifestError(f"{name} is a {type(content).__name__}", expected="a dictionary", where=str(path))
        self.content = content
        self.n_clips = len(self._get("text"))
        self.score = self._score()
        self.ids = [self._id(value) for value in self._get("id")]
        self.texts = [str(text) for text in content.get("raw_text", [""] * self.n_clips)]
        for name_, values in (("id", self.ids), ("raw_text", self.texts), ("labels", self.score)):
            if len(values) != self.n_clips:
                raise ManifestError(f"{name_} has {len(values)} entries", expected=str(self.n_clips), where=self.where)

    @property
    def has_lengths(self) -> bool:
        """Whether the pickle says how long each clip is."""
        return "text_bert" in self.content or "audio_lengths" in self.content

    def _get(self, key: str) -> Any:
        if key not in self.content:
            raise ManifestError(f"{key} is missing", expected="text, audio, vision, id and labels", where=self.where)
        return self.content[key]

    def _array(self, key: str) -> np.ndarray:
        values = np.asarray(self._get(key))
        if values.ndim != 3 or values.dtype.kind != "f" or len(values) != self.n_clips:
            raise ManifestError(f"{key} has shape {values.shape} of {values.dtype}",
                                expected=f"({self.n_clips}, time, feature) of floats", where=self.where)  # fmt: skip
        return values

    def _score(self) -> np.ndarray:
        """(clip,) sentiment from -3 to 3, under its new or old key."""
        key = next((key for key in ("regression_labels", "labels") if key in self.content), None)
        if key is None:
            raise ManifestError("regression_labels is missing", expected="it, or labels", where=self.where)
        score = np.asarray(self.content[key], dtype=np.float64).reshape(len(self.content[key]), -1)
        if score.shape[1] != 1 or not np.isfinite(score).all():
            raise ManifestError(f"{key} has {score.shape[1]} numbers for a clip, or one that is not finite",
                                expected="one finite number", where=self.where)  # fmt: skip
        return score[:, 0]

    @staticmethod
    def _id(value: Any) -> str:
        """MMSA writes "video$_$clip"; MulT writes the video, the start and the end."""
        parts = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        texts = [part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in parts]
        return texts[0] if len(texts) == 1 else f"{texts[0]}$_${'_'.join(texts[1:])}"

    def lengths(self, key: str) -> np.ndarray:
        """(clip,) frames of one modality that are no padding."""
        n_steps, stated = self._array(key).shape[1], self.content.get(f"{key}_lengths")
        if stated is None and "text_bert" in self.content and self._is_aligned():
            stated = np.asarray(self.content["text_bert"])[:, 1].sum(axis=1)  # row 1 is the attention mask
        elif stated is None and key == "text" and "text_bert" in self.content:
            stated = np.asarray(self.content["text_bert"])[:, 1].sum(axis=1)
        if stated is None:
            first, last = self._span(key)
            return last - first
        lengths = np.asarray(stated).astype(np.int64).reshape(-1)
        if len(lengths) != self.n_clips or (lengths < 0).any() or (lengths > n_steps).any():
            raise ManifestError(f"{key}_lengths goes up to {lengths.max(initial=0)} for {len(lengths)} clips",
                                expected=f"up to {n_steps} for {self.n_clips} clips", where=self.where)  # fmt: skip
        return lengths

    def _is_aligned(self) -> bool:
        return len({self._array(key).shape[1] for key in _VIEWS}) == 1

    def _span(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(clip,) first frame that is not all zeros, and the one after the last; aligned modalities share theirs."""
        keys = list(_VIEWS) if self._is_aligned() else [key]
        filled = np.logical_or.reduce([(self._array(name) != 0).any(axis=2) for name in keys])
        last = filled.shape[1] - filled[:, ::-1].argmax(axis=1)
        none = ~filled.any(axis=1)
        return np.where(none, 0, filled.argmax(axis=1)), np.where(none, 0, last)

    def frames(self, key: str) -> np.ndarray:
        """(ΣT, feature) float32: the frames of all clips that are no padding, one clip after the other."""
        values = self._array(key)
        lengths, first = self.lengths(key), 0
        if not self.has_lengths:
            first = self._span(key)[0][:, None]
        step = np.arange(values.shape[1])[None]
        return values[(step >= first) & (step < first + lengths[:, None])].astype(np.float32)


def _ragged(modality: str, frames: np.ndarray, lengths: np.ndarray, duration: np.ndarray) -> RaggedViews:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + 0.5
    times = position / np.repeat(lengths, lengths) * np.repeat(duration, lengths)
    channels = tuple(f"{modality}{channel:03d}" for channel in range(frames.shape[1]))
    return RaggedViews(frames[:, None, :], offsets, (modality,), channels, None, times.astype(np.float32))


def _different(names: Sequence[str]) -> list[str]:
    """The names, with a number after those that come again."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return out
