"""Figures of synthetic truth: rows of the factor table enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import COLOURS, GONE, INK, MARKERS, SOFT, drawn, finite, sheet, shorts, some

LANE = 0.2  # inches per reader


@drawn
def factors(rows: Sequence[Mapping[str, Any]], *, best: str = "Bayes", ceiling: str = "ceiling") -> Figure:
    """Where each factor is contrasted: models between what is possible and what is possible without the mechanism.

    The band of a factor begins at the ceiling of who lacks its mechanism and ends at Bayes. A model inside has shown
    the mechanism; one without the mechanism must not be inside.

    Args:
        rows: {"factor", "reader", "mean", "ci95"}; ci95 is half a 95 % interval or None. Factors and readers keep their
            order; `best` and `ceiling` are needed for every factor.
        best: the reader that knows the laws.
        ceiling: the reader that knows them but lacks the factor's mechanism.

    Raises:
        ResultError: if there are no rows, a mean is no finite number, or a factor lacks one of the two references.

    Source: ours.
    """
    some("rows of factors", rows)
    finite("mean", [row["mean"] for row in rows], None)
    names = list(dict.fromkeys(str(row["factor"]) for row in rows))
    readers = [r for r in dict.fromkeys(str(row["reader"]) for row in rows) if r not in (best, ceiling)]
    found = {(str(row["factor"]), str(row["reader"])): row for row in rows}
    missing = [name for name in names if (name, best) not in found or (name, ceiling) not in found]
    if missing:
        raise ResultError(f"factor {missing[0]!r} lacks a reference", expected=f"{best} and {ceiling}", where="figure")
    band = len(readers) + 1.2
    figure = sheet(8, 1.2 + LANE * band * len(names) + 0.2 * (len(readers) // 4))
    axis = figure.subplots()
    for number, name in enumerate(names):
        middle = number * band
        low, high = (found[name, reader]["mean"] for reader in (ceiling, best))
        axis.barh(middle, high - low, left=low, height=band - 0.5, color=GONE, zorder=0)
        for value, line in ((low, "--"), (high, "-")):
            axis.plot([value] * 2, [middle - band / 2 + 0.25, middle + band / 2 - 0.25], color=INK, linewidth=1.2,
                      linestyle=line)  # fmt: skip
        for lane, reader in enumerate(readers):
            if (name, reader) in found:
                _reader(axis, found[name, reader], middle + lane - (len(readers) - 1) / 2, lane)
    axis.set_ylim((len(names) - 0.5) * band, -0.5 * band)
    axis.set_yticks([number * band for number in range(len(names))], shorts(names))
    axis.set_xlabel("accuracy where only this factor tells the emotions of a pair apart")
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    handles = [Line2D([], [], color=INK, linewidth=1.2, linestyle="--", label="ceiling without the mechanism"),
               Line2D([], [], color=INK, linewidth=1.2, label=best)]  # fmt: skip
    handles += [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=5, label=reader)
        for i, reader in enumerate(shorts(readers, 30))
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _reader(axis: Axes, row: Mapping[str, Any], at: float, lane: int) -> None:
    colour, half = COLOURS[lane % len(COLOURS)], row.get("ci95")
    if half is not None:
        axis.plot([row["mean"] - half, row["mean"] + half], [at, at], color=colour, linewidth=2.4)
    axis.plot(row["mean"], at, color=colour, marker=MARKERS[lane % len(MARKERS)], markersize=6,
              markeredgecolor=SOFT if half is None else "white", markeredgewidth=0.8)  # fmt: skip
