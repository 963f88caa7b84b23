"""The table of clips that a user writes beside recordings or arrays of their own: one row per clip enters, checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.reading import clip_table
from stf2m_core.data.tables import Table, check_labels, read_table
from stf2m_core.errors import ManifestError

COLUMNS = ("subject", "label")
"""Columns that must be there, besides clip_id or file."""

_TEXTS = ("group", "domain", "split", "text")
_RATINGS = ("valence", "arousal")
_PATHS = ("audio_path", "words_path")
_SPANS = ("start_s", "end_s")


@dataclass(frozen=True, slots=True, eq=False)
class ClipList:
    """The clips of a table.

    Attributes:
        clips: as `write_pack` takes them; duration_s is NaN where the table does not tell it.
        files: (clip,) the file of each clip as the table names it, or "".
        labels: in the order the user stated, else sorted.
        remarks: what was noticed while reading.
        parts: of audio_path, words_path (text), start_s and end_s (numbers) what the table has, if it was read by file.
    """

    clips: pd.DataFrame
    files: pd.Series
    labels: tuple[str, ...]
    remarks: tuple[str, ...]
    parts: pd.DataFrame

    def matched(self, names: Collection[str], left_out: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
        """The clips that are among `names`, and what is left out, with the clips or names that have no partner.

        Args:
            names: of the files that are there.
            left_out: what was left out already.
        """
        known, there = set(self.clips["clip_id"]), self.clips["clip_id"].isin(list(names))
        left_out |= {name: "it has no row in the table" for name in names if name not in known}
        left_out |= dict.fromkeys(self.clips["clip_id"][~there], "its file is missing")
        return self.clips[there].reset_index(drop=True), left_out


def read_clip_list(
    folder: Path, table: str = "clips.csv", *, labels: Collection[str] | None = None, by_file: bool = False
) -> ClipList:
    """The clips in a table: clip_id (or file), subject, label; optional group, domain, split, text, duration_s,
    valence, arousal, votes_<label> for every label, and columns of your own, which are kept as x_<name>.

    Args:
        folder: of the data.
        table: name of the table in it.
        labels: names of the labels in order; None: those in the table, sorted.
        by_file: the column `file` names each clip's recording, of which clip_id may name parts; without clip_id, the
            clip's name is the file's path without ending. Clips of one file are one group by default.

    Raises:
        ManifestError: naming the row and its value: a clip or file twice with different facts, an unknown label, an
            empty subject, a cell that is no number.
    """
    key = "file" if by_file else "clip_id"
    read = read_table(folder / table, (key, *COLUMNS))
    read = read.without_repeats("clip_id" if "clip_id" in read.rows else key)
    rows = read.rows.apply(lambda column: column.str.strip())
    known = tuple(labels) if labels else tuple(sorted(set(rows["label"]) - {""}))
    if not known:
        raise ManifestError("no row has a label", expected="labels, or labels=[…]", where=read.where)
    check_labels(rows["label"], (*known, ""), read.where)
    for column in dict.fromkeys((key, "clip_id" if "clip_id" in rows else key, "subject")):
        empty = np.flatnonzero((rows[column] == "").to_numpy())
        if empty.size:
            raise ManifestError(f"{column} is empty at row {empty[0] + 2}", expected="a name", where=read.where)
    files = rows["file"] if by_file else pd.Series("", index=rows.index)
    clip_id = rows["clip_id"] if "clip_id" in rows else files.str.replace(r"\.[^./]*$", "", regex=True)
    columns = {"clip_id": clip_id, "subject": rows["subject"], "label": rows["label"]}
    columns |= {"duration_s": _numbers(read, "duration_s")}
    columns |= {name: rows[name] for name in _TEXTS if name in rows}
    group = rows["group"] if "group" in rows else pd.Series("", index=rows.index)
    # where nothing is known to be shared, each clip stands alone
    columns["group"] = group.where(group != "", rows["subject"] + "/" + (files if by_file else clip_id))
    parts = pd.DataFrame({name: rows[name] for name in _PATHS if by_file and name in rows}, index=rows.index)
    parts = parts.assign(**{name: read.numbers(name) for name in _SPANS if by_file and name in rows})
    clips = clip_table(columns, **_extras(read, rows.drop(columns=list(parts)), known))
    return ClipList(clips, files, known, read.remarks, parts)


def _numbers(table: Table, column: str) -> np.ndarray:
    return table.numbers(column) if column in table.rows else np.full(len(table.rows), np.nan)


def _extras(table: Table, rows: pd.DataFrame, labels: tuple[str, ...]) -> dict[str, object]:
    """Ratings and votes as numbers, and what else there is as text."""
    votes = [f"votes_{label}" for label in labels]
    counted = [name for name in rows if name.startswith("votes_")]
    if counted and set(counted) != set(votes):
        wrong = sorted(set(counted) ^ set(votes))[0]
        raise ManifestError(f"column {wrong!r} does not fit the labels", expected="votes for every label or for none",
                            where=table.where)  # fmt: skip
    numbers = {name: table.numbers(name) for name in (*counted, *(r for r in _RATINGS if r in rows))}
    used = {"clip_id", "file", "duration_s", *COLUMNS, *_TEXTS, *numbers}
    own = {name if name.startswith("x_") else f"x_{name}": rows[name] for name in rows if name not in used}
    return numbers | own
