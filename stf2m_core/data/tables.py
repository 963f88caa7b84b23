"""CSV tables from outside: what people wrote comes out as text with what was noticed, what programs wrote as numbers.

Accepted from people: UTF-8 with or without byte-order mark, UTF-16 with one, Windows-1252; commas, semicolons or tabs;
blanks around names; empty rows and columns at the end, as spreadsheets leave them. What had to be guessed is remarked.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stf2m_core.data.manifest_file import nearest
from stf2m_core.errors import ManifestError

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SEPARATORS = ",;\t"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table as text.

    Attributes:
        rows: every cell as str, missing cells "".
        where: the file, for messages.
        remarks: what was noticed while reading.
        decimal_comma: whether numbers may be written as 1,5: only where commas do not separate cells.
    """

    rows: pd.DataFrame
    where: str
    remarks: tuple[str, ...]
    decimal_comma: bool

    def numbers(self, column: str) -> np.ndarray:
        """(row,) float64; empty cells are NaN.

        Raises:
            ManifestError: naming the first cell that is no number, and its row.
        """
        cells = self.rows[column].str.strip()
        if self.decimal_comma:
            cells = cells.str.replace(",", ".", regex=False)
        numbers = pd.to_numeric(cells.where(cells != "", "nan"), errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(np.isnan(numbers) & ~cells.str.lower().isin(["", "nan", "na"]).to_numpy())
        if bad.size:
            raise ManifestError(
                f"{column} is {self.rows[column].iloc[bad[0]]!r} at row {bad[0] + 2}", expected="a number",
                where=self.where,
            )  # fmt: skip
        return numbers

    def without_repeats(self, key: str | Sequence[str]) -> Table:
        """The table without rows that repeat another word for word.

        Raises:
            ManifestError: if two rows have the same key and differ elsewhere, naming both rows.
        """
        keys = [key] if isinstance(key, str) else list(key)
        kept = self.rows.drop_duplicates()
        twice = np.flatnonzero(kept.duplicated(keys, keep=False))
        if twice.size:
            names = kept.iloc[twice[0]][keys].tolist()
            same = (kept[keys] == names).all(axis=1).to_numpy()
            first, second = (kept.index[same] + 2)[:2]
            raise ManifestError(
                f"rows {first} and {second} are both {', '.join(names)!r} and differ",
                expected="one row for each",
                where=self.where,
                remedy="Correct one of them or remove it",
            )
        lost = len(self.rows) - len(kept)
        remark = (f"{Path(self.where).name}: {lost} repeated rows were dropped",) if lost else ()
        return Table(kept.reset_index(drop=True), self.where, self.remarks + remark, self.decimal_comma)


def read_table(path: str | Path, columns: Sequence[str]) -> Table:
    """The table in a CSV file; the columns named must be there, others may be.

    Raises:
        ManifestError: if the file cannot be read, is no table, or lacks a column (the nearest name is suggested).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from error
    text, remarks = _decode(content, path)
    text, separator = _separator(text)
    if separator != ",":
        remarks.append(f"{path.name}: cells are separated by {'tabs' if separator == chr(9) else 'semicolons'}")
    rows = _parse(text, separator, path)
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise ManifestError(
            f"column {missing[0]!r} is missing",
            expected=", ".join(columns),
            where=str(path),
            remedy=nearest(missing[0], [str(name) for name in rows.columns]),
        )
    return Table(rows, str(path), tuple(remarks), separator != ",")


def read_columns(path: Path, columns: Sequence[str], *, expected: str = "", **how: Any) -> pd.DataFrame:
    """The table in a CSV file that a program wrote, UTF-8, with numbers as numbers; nothing is guessed or mended.

    Args:
        path: the file.
        columns: those that must be there; blanks around names do not count.
        expected: what to name in the message where one is missing; "" names the columns.
        how: further settings of `pandas.read_csv`.

    Raises:
        ManifestError: if the file cannot be read or lacks a column.
    """
    try:
        table = pd.read_csv(path, encoding="utf-8", **how)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{path.name} cannot be read: {reason}", expected="a CSV table", where=str(path)) from error
    table.columns = table.columns.str.strip()
    missing = [name for name in columns if name not in table.columns]
    if missing:
        expected = expected or ", ".join(columns)
        raise ManifestError(f"column {missing[0]!r} is missing", expected=expected, where=str(path))
    return table


def check_numeric(table: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    """Refuse a table of which one of the columns is not all numbers.

    Raises:
        ManifestError: naming the first such column.
    """
    strange = [name for name in columns if not pd.api.types.is_numeric_dtype(table[name])]
    if strange:
        raise ManifestError(f"{strange[0]} holds a cell that is no number", expected="numbers", where=where)


def check_labels(found: pd.Series, labels: Sequence[str], where: str) -> None:
    """Refuse a label that the data set does not have.

    Args:
        found: one label per row of the file.
        labels: those there may be.
        where: the file.

    Raises:
        ManifestError: naming the first such label, its row and the nearest label.
    """
    unknown = np.flatnonzero(~found.isin(list(labels)).to_numpy())
    if unknown.size:
        value = found.iloc[unknown[0]]
        raise ManifestError(
            f"label is {value!r} at row {unknown[0] + 2}", expected=" or ".join(labels), where=where,
            remedy=nearest(value, labels),
        )  # fmt: skip


def _decode(content: bytes, path: Path) -> tuple[str, list[str]]:
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text, remarks = content.decode(encoding), []
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ManifestError(f"{path.name} is not {encoding}: {error.reason}", where=str(path)) from error
        # Windows-1252 leaves five bytes undefined; a file with one of them is latin1
        text = content.decode("cp1252" if _is_cp1252(content) else "latin1")
        line = content[: error.start].count(b"\n") + 1
        remarks = [f"{path.name} is not UTF-8 from line {line} on; it was read as Windows-1252, check its accents"]
    if "\0" in text:
        raise ManifestError(f"{path.name} holds zero bytes", expected="a CSV table", where=str(path))
    return text, remarks


def _is_cp1252(content: bytes) -> bool:
    return not any(byte in content for byte in (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d"))


def _separator(text: str) -> tuple[str, str]:
    """The text without a line such as `sep=;`, and the separator that line or the header says."""
    head, _, rest = text.partition("\n")
    stated = head.strip().strip('"')
    if stated.lower().startswith("sep=") and len(stated) <= 5:
        return rest, stated[4:] or "\t"
    outside = "".join(head.split('"')[::2])
    return text, max(_SEPARATORS, key=outside.count)


def _parse(text: str, separator: str, path: Path) -> pd.DataFrame:
    where = str(path)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise ManifestError(f"{path.name} is no table: {error}", expected="CSV", where=where) from error
    lines = [(number, row) for number, row in enumerate(lines, 1) if "".join(row).strip()]
    if not lines:
        raise ManifestError(f"{path.name} is empty", expected="a header and rows", where=where)
    header = [name.strip() for name in lines[0][1]]
    while header and not header[-1]:
        header.pop()
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ManifestError(f"column {twice[0]!r} is there twice", expected="different columns", where=where)
    rows = []
    for number, row in lines[1:]:
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            raise ManifestError(
                f"row {number} has {len(row)} cells", expected=f"{len(header)}, as the header", where=where,
                remedy="Quote cells that hold the separator",
            )  # fmt: skip
        rows.append(row if len(row) == len(header) else (row + [""] * len(header))[: len(header)])
    return pd.DataFrame(rows, columns=header, dtype=str)
