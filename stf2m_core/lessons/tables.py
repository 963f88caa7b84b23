"""Rows of numbers enter; tables with their intervals in words leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def estimates(rows: Sequence[Mapping[str, Any]], what: str, *, value: str = "mean", digits: int = 3) -> pd.DataFrame:
    """The rows with their number and its interval in one column.

    Args:
        rows: each with `value` and "ci95", half a 95 % interval.
        what: name of the joined column.
        value: key of the number.
        digits: after the point.
    """
    return pd.DataFrame(
        [
            {what if key == value else key: _words(row, value, digits) if key == value else cell
             for key, cell in row.items() if key != "ci95"}
            for row in rows
        ]
    )  # fmt: skip


def _words(row: Mapping[str, Any], value: str, digits: int) -> str:
    return f"{row[value]:.{digits}f} ± {row['ci95']:.{digits}f}".replace("-", "−")
