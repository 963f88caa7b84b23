"""The tables of a pack, clips.csv and segments.csv: their columns, types and checks."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stf2m_core.errors import PackError

CLIP_COLUMNS = ("clip_id", "subject", "group", "domain", "duration_s", "label", "split", "text")
SEGMENT_COLUMNS = ("clip_id", "start_s", "end_s", "label")
_NUMBERS = ("duration_s", "start_s", "end_s")
_RATINGS = ("valence", "arousal")
_NEVER_EMPTY = ("clip_id", "subject", "group")


def check_clips(table: pd.DataFrame, labels: Sequence[str], where: str) -> pd.DataFrame:
    """The clips with their columns in order and of their types.

    Text columns become str, missing text ""; numbers become float64; columns prefixed x_ are kept as text.

    Args:
        table: one row per clip.
        labels: the labels of the set; a clip's label is one of them, or "" where it is undefined.
        where: the file, for messages.

    Raises:
        PackError: naming the column, the row's clip and both values.
    """
    clips = _typed(table, CLIP_COLUMNS, labels, where)
    if len(clips) == 0:
        raise PackError("there are no clips", expected="at least one", where=where)
    for column in _NEVER_EMPTY:
        _refuse(clips, column, clips[column] == "", "a name", where)
    _refuse(clips, "clip_id", clips["clip_id"].duplicated(), "a different one for each clip", where)
    duration = clips["duration_s"]
    _refuse(clips, "duration_s", ~(np.isfinite(duration) & (duration > 0)), "seconds above 0", where)
    _check_labels(clips, labels, where)
    return clips


def check_segments(table: pd.DataFrame, clips: pd.DataFrame, labels: Sequence[str], where: str) -> pd.DataFrame:
    """The labelled parts of clips with their columns in order and of their types.

    Raises:
        PackError: naming the column, the row's clip and both values.
    """
    segments = _typed(table, SEGMENT_COLUMNS, labels, where)
    duration = segments["clip_id"].map(clips.set_index("clip_id")["duration_s"])
    _refuse(segments, "clip_id", duration.isna(), "a clip of clips.csv", where)
    start, end = segments["start_s"], segments["end_s"]
    _refuse(segments, "start_s", ~((start >= 0) & (start < duration)), "seconds within the clip", where)
    # half a millisecond of slack: durations are commonly rounded to milliseconds
    _refuse(segments, "end_s", ~((end > start) & (end <= duration + 5e-4)), "after start_s, within the clip", where)
    _check_labels(segments, labels, where)
    return segments


def vote_columns(table: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """The columns of rater counts in the order of the labels; empty if the set has none."""
    return [f"votes_{label}" for label in labels if f"votes_{label}" in table.columns]


def to_csv(table: pd.DataFrame) -> bytes:
    """The table as UTF-8 CSV; text is always quoted, so that commas, quotes and line breaks survive.

    Raises:
        PackError: if a text cannot be written as UTF-8.
    """
    try:
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PackError(f"a text cannot be written as UTF-8: {error.reason}", where="clips") from error


def from_csv(content: bytes, where: str) -> pd.DataFrame:
    """The table in the bytes of a CSV file, every cell as text.

    Raises:
        PackError: if it is no UTF-8 CSV table.
    """
    try:
        return pd.read_csv(io.BytesIO(content), dtype=str, na_filter=False, index_col=False, encoding="utf-8")
    except (ValueError, pd.errors.ParserError) as error:
        reason = str(error).splitlines()[0]
        raise PackError(f"the table cannot be read: {reason}", expected="UTF-8 CSV", where=where) from error


def _typed(table: pd.DataFrame, required: tuple[str, ...], labels: Sequence[str], where: str) -> pd.DataFrame:
    _check_columns(table, required, labels, where)
    votes = vote_columns(table, labels)
    ratings = [name for name in _RATINGS if name in table.columns]
    extras = [name for name in table.columns if str(name).startswith("x_")]
    typed = {}
    for column in (*required, *votes, *ratings, *extras):
        if column in _NUMBERS or column in votes or column in ratings:
            typed[column] = _as_number(table, column, where)
        else:
            typed[column] = _as_text(table[column])
    return pd.DataFrame(typed)


def _check_columns(table: pd.DataFrame, required: tuple[str, ...], labels: Sequence[str], where: str) -> None:
    names = [str(name) for name in table.columns]
    missing = [name for name in required if name not in names]
    if missing:
        raise PackError(f"column {missing[0]!r} is missing", expected=", ".join(required), where=where)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PackError(f"column {twice!r} is there twice", expected="different columns", where=where)
    votes = [f"votes_{label}" for label in labels]
    legal = {*required, *votes, *(_RATINGS if "duration_s" in required else ())}
    for name in names:
        if name.startswith("votes_") and name not in legal:
            raise PackError(
                f"column {name!r} counts votes for an unknown label", expected=", ".join(labels), where=where
            )
        if name not in legal and not name.startswith("x_"):
            near = difflib.get_close_matches(name, legal, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Prefix columns of your own with x_"
            raise PackError(f"column {name!r} is unknown", expected=", ".join(required), where=where, remedy=hint)
    if any(name in names for name in votes) and not all(name in names for name in votes):
        absent = next(name for name in votes if name not in names)
        raise PackError(f"column {absent!r} is missing", expected="votes for every label or for none", where=where)


def _as_text(column: pd.Series) -> pd.Series:
    missing = column.isna()
    if missing.any():
        column = column.astype(object).where(~missing, "")
    return column.astype(str).reset_index(drop=True)


def _as_number(table: pd.DataFrame, column: str, where: str) -> pd.Series:
    cells = table[column].reset_index(drop=True)
    if not pd.api.types.is_numeric_dtype(cells):
        # numpy parses a Python string exactly; pandas' own parser may be off by one in the last digit
        cells = cells.astype(object).where(cells.notna() & (cells != ""), "nan").astype(object)
    try:
        return pd.Series(cells.to_numpy().astype(np.float64))
    except (TypeError, ValueError) as error:
        raise PackError(f"{column} holds a cell that is no number: {error}", expected="numbers", where=where) from error


def _check_labels(table: pd.DataFrame, labels: Sequence[str], where: str) -> None:
    known = table["label"].isin([*labels, ""])
    _refuse(table, "label", ~known, f"one of {', '.join(labels)}, or empty where it is undefined", where)
    for column in vote_columns(table, labels):
        _refuse(table, column, ~(np.isfinite(table[column]) & (table[column] >= 0)), "a count of 0 or more", where)
    for column in _RATINGS:
        if column in table.columns:
            _refuse(table, column, np.isinf(table[column]), "a finite rating or none", where)


def _refuse(table: pd.DataFrame, column: str, bad: pd.Series, expected: str, where: str) -> None:
    """Raise for the first row where `bad` is true."""
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        value, clip = table[column].iloc[row], table["clip_id"].iloc[row]
        shown = repr(str(value)) if isinstance(value, str) else f"{value:g}"
        raise PackError(f"{column} is {shown} at row {row} (clip {clip!r})", expected=expected, where=where)
