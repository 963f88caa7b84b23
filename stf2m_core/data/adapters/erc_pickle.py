"""Pickles of emotion recognition in conversation, tuples of nine dictionaries: utterance features enter, clips leave.

Format: conv-emotion (declare-lab), IEMOCAP_features*.pkl and MELD_features*.pkl; read by the restricted unpickler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from stf2m_core.data.adapters.mmsa_pickle import find_pickle
from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.reading import Reading, clip_table, one_frame
from stf2m_core.data.unpickle import load_plain_pickle
from stf2m_core.errors import ManifestError

_N_PARTS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which of the nine entries is what.

    Attributes:
        features: modality to its place.
        text: place of the sentences.
        train: place of the dialogues of the training split, which validation is taken from too.
        test: place of those of the test split.
        labels: the numbers' meaning, in order.
    """

    features: Mapping[str, int]
    text: int
    train: int
    test: int
    labels: tuple[str, ...]


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "iemocap_erc": Layout(
            features={"text": 3, "audio": 4, "visual": 5}, text=6, train=7, test=8,
            labels=("happiness", "sadness", "neutral", "anger", "excitement", "frustration"),
        ),
        "meld_erc": Layout(
            features={"text": 3, "audio": 4}, text=5, train=6, test=7,
            labels=("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
        ),
    }
)  # fmt: skip
"""Manifest to layout."""


def read(source: Path, manifest: Manifest, *, file: str | None = None) -> Reading:
    """The utterances of all dialogues; each is one frame, and lasts a nominal second because no time is told.

    Args:
        source: folder with the pickle.
        manifest: its name says the layout.
        file: the pickle relative to the folder; None: the only one there.

    Raises:
        ManifestError: if the pickle holds code, is damaged or not of the layout.
    """
    if manifest.name not in LAYOUTS:
        raise ManifestError(f"no layout for {manifest.name!r}", expected=" or ".join(LAYOUTS))
    layout, path = LAYOUTS[manifest.name], find_pickle(source, file)
    parts = load_plain_pickle(path)
    if not isinstance(parts, (tuple, list)) or len(parts) != _N_PARTS or not isinstance(parts[0], Mapping):
        size = len(parts) if isinstance(parts, (tuple, list)) else type(parts).__name__
        raise ManifestError(f"{path.name} holds {size}", expected=f"a tuple of {_N_PARTS}", where=str(path))
    dialogues = list(parts[0])
    _check_lengths(parts, layout, dialogues, path)
    counts = [len(parts[0][dialogue]) for dialogue in dialogues]
    owner = np.repeat(np.arange(len(dialogues)), counts)
    dialogue = np.array([str(name) for name in dialogues], object)[owner]
    label = np.concatenate([np.asarray(parts[2][name], dtype=np.int64).reshape(-1) for name in dialogues])
    if label.min() < 0 or label.max() >= len(layout.labels):
        raise ManifestError(f"labels go from {label.min()} to {label.max()}", expected=f"0 to {len(layout.labels) - 1}",
                            where=str(path))  # fmt: skip
    split = {**dict.fromkeys(parts[layout.train], "train"), **dict.fromkeys(parts[layout.test], "test")}
    utterance = [str(value) for name in dialogues for value in parts[0][name]]
    own_name = [u if u.startswith(f"{d}_") else f"{d}_{u}" for d, u in zip(dialogue, utterance, strict=True)]
    clips = clip_table(
        {
            "clip_id": own_name,
            "subject": _subjects(parts[1], dialogues),
            "group": dialogue,
            "domain": manifest.name,
            "duration_s": 1.0,
            "label": np.array(layout.labels, object)[label],
            "split": np.array([split.get(name, "") for name in dialogues], object)[owner],
            "text": [str(text) for name in dialogues for text in parts[layout.text][name]],
        }
    )
    views = {name: _frames(parts[place], dialogues, name, path) for name, place in layout.features.items()}
    return Reading(clips=clips, views=views, labels=layout.labels)


def _check_lengths(parts: Any, layout: Layout, dialogues: list[Any], path: Path) -> None:
    """Every dialogue has as many of everything as it has utterances."""
    for place in (1, 2, *layout.features.values(), layout.text):
        if not isinstance(parts[place], Mapping):
            raise ManifestError(f"entry {place} is a {type(parts[place]).__name__}", expected="a dictionary",
                                where=str(path))  # fmt: skip
        for name in dialogues:
            found = len(parts[place].get(name, ()))
            if found != len(parts[0][name]):
                raise ManifestError(f"dialogue {name!r} has {found} in entry {place}",
                                    expected=f"{len(parts[0][name])}, its utterances", where=str(path))  # fmt: skip


def _subjects(speakers: Mapping[Any, Any], dialogues: list[Any]) -> list[str]:
    """IEMOCAP: session and sex, as Ses01F. MELD: the dialogue and the speaker's place in it; names are not told."""
    subjects = []
    for name in dialogues:
        for speaker in speakers[name]:
            if isinstance(speaker, str):
                subjects.append(f"{str(name)[:5]}{speaker}")
            else:
                subjects.append(f"{name}/{int(np.argmax(speaker))}")
    return subjects


def _frames(part: Mapping[Any, Any], dialogues: list[Any], modality: str, path: Path):
    try:
        rows = np.concatenate([np.asarray(part[name], dtype=np.float32) for name in dialogues])
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{modality} cannot be put together: {error}", expected="as many features everywhere",
                            where=str(path)) from error  # fmt: skip
    if rows.ndim != 2:
        raise ManifestError(f"{modality} has shape {rows.shape}", expected="(utterance, feature)", where=str(path))
    channels = [f"{modality}{channel:04d}" for channel in range(rows.shape[1])]
    return one_frame(rows[:, None, :], ("utterance",), channels, np.full(len(rows), 0.5))
