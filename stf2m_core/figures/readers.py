"""Figures of small comparisons: rows of readers or of differences enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stf2m_core.figures.look import COLOURS, FAINT, SOFT, drawn, finite, sheet, short, shorts, some, width_of

_LANE = 0.3  # inches per row
_OWN = 0.66  # of the way to the next name that rows of one name take
_DASHES = ((0, (3, 2)), (0, (1, 1.5)), "-")


@drawn
def readers(
    rows: Sequence[Mapping[str, Any]], *, name: str = "reader", value: str = "mean", group: str | None = None,
    lines: Mapping[str, float] | None = None, metric: str = "accuracy on new clips",
) -> Figure:  # fmt: skip
    """One dot per row with its 95 % interval, beside lines that say what is possible; rows of one name share a line.

    Args:
        rows: each with `name`, `value`, "ci95" (half a 95 % interval, or None) and, if asked for, `group`.
        name: key of a row's name.
        value: key of its number.
        group: key whose values get a colour each; None: one colour.
        lines: name -> value of vertical lines, such as chance or a ceiling.
        metric: what the x axis shows.

    Raises:
        ResultError: if there are no rows or a number is not finite.

    Source: ours.
    """
    some("rows of readers", rows)
    finite(value, [row[value] for row in rows], None)
    groups = list(dict.fromkeys(str(row[group]) for row in rows)) if group else [""]
    names = list(dict.fromkeys(str(row[name]) for row in rows))
    n_keys = len(lines or {}) + (len(groups) if group else 0)
    lane = _LANE + 0.14 * (len(groups) - 1)
    figure = sheet(8, 0.75 + lane * len(names) + 0.24 * -(-n_keys // 2))
    axis = figure.subplots()
    for number, own in enumerate(groups):
        aside = (number - (len(groups) - 1) / 2) * _OWN / len(groups)
        mine = [row for row in rows if not group or str(row[group]) == own]
        _dots(axis, mine, [names.index(str(row[name])) + aside for row in mine], value, COLOURS[number % len(COLOURS)],
              short(own, 40) if group else None)  # fmt: skip
    for number, (line, level) in enumerate((lines or {}).items()):
        axis.axvline(level, color=SOFT, linewidth=1.2, linestyle=_DASHES[number % 3], label=short(line, 60), zorder=0)
    if group:
        axis.hlines([line + 0.5 for line in range(len(names) - 1)], 0, 1, color=FAINT, linewidth=0.7, zorder=0,
                    transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_yticks(range(len(names)), shorts(names, 44))
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel(metric)
    axis.grid(axis="x")
    axis.margins(x=0.06)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    if n_keys:
        widest = max(width_of(text) for text in axis.get_legend_handles_labels()[1])
        figure.legend(loc="outside lower center", ncols=2 if widest < 3.2 else 1)
    return figure


def _dots(
    axis: Axes, rows: Sequence[Mapping[str, Any]], at: Sequence[float], value: str, colour: str, label: str | None
) -> None:  # fmt: skip
    for row, y in zip(rows, at, strict=True):
        if row.get("ci95") is not None:
            ends = [row[value] - row["ci95"], row[value] + row["ci95"]]
            axis.plot(ends, [y, y], color=colour, linewidth=3.2, solid_capstyle="butt")
        axis.plot(row[value], y, "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8,
                  label=label)  # fmt: skip
        label = None
