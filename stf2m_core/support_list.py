"""The support of one prediction: a folder, a table or a file of clips with labels enters, checked rows leave."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stf2m_core.data.pack import Pack
from stf2m_core.data.recordings import find_recordings
from stf2m_core.data.tables import Table, check_labels, read_table
from stf2m_core.errors import EpisodeError
from stf2m_core.shapes import EpisodeBatch

_TEXTS = ("path", "clip_id", "label", "subject", "text", "words_path", "audio_path")
_SPANS = {"start_s": 0.0, "end_s": math.inf}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One labelled clip of the support: a recording, or a clip of the pack."""

    label: str
    path: str = ""
    clip_id: str = ""
    subject: str = ""
    text: str = ""
    words_path: str = ""
    audio_path: str = ""
    start_s: float = 0.0
    end_s: float = math.inf


@dataclass(frozen=True, slots=True)
class SupportList:
    """Examples in the order of their labels, and what was noticed."""

    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def read_support(
    support: str | os.PathLike[str] | pd.DataFrame | Mapping[str, Sequence[Any]], labels: Sequence[str] | None
) -> SupportList:
    """The examples in a folder with one sub-folder per label, a CSV file or a table.

    Args:
        support: a folder; or a table, or a CSV file, with the column label, one of path or clip_id, and optionally
            subject, start_s, end_s, text, words_path, audio_path. Paths in a file count from its folder.
        labels: that the run knows, in order; None: any.

    Raises:
        ManifestError: if the file is no table, lacks a column, or holds an unknown label (the nearest is named).
        EpisodeError: if there are fewer than two labels, or a row names no clip.
    """
    remarks: tuple[str, ...] = ()
    if isinstance(support, str | os.PathLike):
        place = Path(support)
        if place.is_dir():
            table, remarks = _from_folder(place)
        else:
            table = read_table(place, ("label",))
            remarks, rows = table.remarks, table.rows
            for name in {"path", "words_path", "audio_path"} & set(rows):
                rows[name] = [str(place.parent / cell) if cell.strip() else "" for cell in rows[name].str.strip()]
    else:
        rows = pd.DataFrame(support).reset_index(drop=True)
        table = Table(rows.astype(object).where(rows.notna(), "").astype(str), "the support", (), False)
    return SupportList(*_checked(table, labels), remarks)


def from_episode(pack: Pack, batch: EpisodeBatch, number: int = 0) -> tuple[str, pd.DataFrame, str]:
    """One query of an episode, its support as a table of clip_id and label, and what the query's label is.

    Args:
        pack: the data.
        batch: episodes of it.
        number: of the episode in the batch.
    """
    names, labels = pack.clips["clip_id"].to_numpy(str), np.array(pack.labels)
    classes = labels[batch.classes[number].numpy()]
    rows = batch.support[number].numpy()
    table = pd.DataFrame({"clip_id": names[rows].ravel(), "label": np.repeat(classes, rows.shape[1])})
    return str(names[int(batch.query[number, 0])]), table, str(classes[int(batch.query_label[number, 0])])


def _from_folder(folder: Path) -> tuple[Table, tuple[str, ...]]:
    found = find_recordings(folder, by_folder=True)
    inside = {name: path for name, path in found.paths.items() if path.parent != folder}
    if not inside:
        raise EpisodeError("no recordings in sub-folders", expected="one sub-folder per label, with recordings",
                           where=str(folder))  # fmt: skip
    rows = pd.DataFrame({"path": [str(path) for path in inside.values()],
                         "label": [path.relative_to(folder).parts[0] for path in inside.values()]})  # fmt: skip
    remarks = tuple(f"{name} of the support is left out: {reason}" for name, reason in found.left_out.items())
    return Table(rows, str(folder), (), False), remarks


def _checked(table: Table, known: Sequence[str] | None) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    rows, where = table.rows, table.where
    if "label" not in rows or not {"path", "clip_id"} & set(rows):
        raise EpisodeError(f"the support has columns {', '.join(map(str, rows.columns)) or 'none'}",
                           expected="label, and path or clip_id", where=where)  # fmt: skip
    texts = {name: rows[name].str.strip() if name in rows else pd.Series("", index=rows.index) for name in _TEXTS}
    nameless = np.flatnonzero(((texts["path"] == "") == (texts["clip_id"] == "")).to_numpy())
    if nameless.size:
        raise EpisodeError(f"row {nameless[0] + 2} of the support names no clip or two", expected="path or clip_id",
                           where=where)  # fmt: skip
    if known is not None:
        check_labels(texts["label"], known, where)
    there = set(texts["label"])
    labels = tuple(name for name in known if name in there) if known is not None else tuple(sorted(there))
    if len(labels) < 2 or "" in labels:
        raise EpisodeError(f"the support has {len(rows)} clips of labels {', '.join(map(repr, labels)) or 'none'}",
                           expected="clips of at least two labels", where=where)  # fmt: skip
    numbers = {name: table.numbers(name) if name in rows else np.full(len(rows), np.nan) for name in _SPANS}
    numbers = {name: np.where(np.isnan(value), _SPANS[name], value) for name, value in numbers.items()}
    order = np.argsort([labels.index(label) for label in texts["label"]], kind="stable")
    made = tuple(
        Example(**{name: str(texts[name].iloc[i]) for name in _TEXTS}, start_s=float(numbers["start_s"][i]),
                end_s=float(numbers["end_s"][i])) for i in order
    )  # fmt: skip
    return made, labels
