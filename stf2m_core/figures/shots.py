"""Figure of accuracy against shots: rows of a sweep enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stf2m_core.figures.look import COLOURS, MARKERS, SOFT, drawn, finite, sheet, shorts, some

REGIMES = {"P": "a new person, own clips", "D": "a new person, other people's clips", "C": "new emotions"}


@drawn
def shots(rows: Sequence[Mapping[str, Any]], *, chance: float | None = None) -> Figure:
    """Accuracy with ever more clips of each emotion, one panel per regime; bars are 95 % intervals over episodes.

    Args:
        rows: {"method", "regime", "n_shot", "mean", "ci95"}; methods and regimes keep their order.
        chance: level of guessing; None: no line.

    Raises:
        ResultError: if there are no rows or a mean is no finite number.

    Source: ours.
    """
    some("rows of the sweep", rows)
    finite("mean", [row["mean"] for row in rows], None)
    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    figure = sheet(1.0 + (3.5 if len(regimes) < 3 else 3.0) * len(regimes), 3.9)
    axes = figure.subplots(1, len(regimes), sharey=True, squeeze=False)[0]
    for axis, regime in zip(axes, regimes, strict=True):
        _panel(axis, [row for row in rows if row["regime"] == regime], methods, chance)
        axis.set_title(REGIMES.get(str(regime), str(regime)))
    axes[0].set_ylabel("accuracy")
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=5, label=name)
        for i, name in enumerate(shorts(methods, 30))
    ]
    if chance is not None:
        handles.append(Line2D([], [], color=SOFT, linewidth=1.1, linestyle=(0, (3, 2)), label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3 if len(regimes) > 1 else 2)
    return figure


def _panel(axis: Axes, rows: Sequence[Mapping[str, Any]], methods: Sequence[str], chance: float | None) -> None:
    counts = sorted({int(row["n_shot"]) for row in rows})
    for number, method in enumerate(methods):
        own = sorted((row for row in rows if str(row["method"]) == method), key=lambda row: row["n_shot"])
        # side by side, so that the bars of equal methods can be told apart
        at = [counts.index(int(row["n_shot"])) + 0.06 * (number - (len(methods) - 1) / 2) for row in own]
        axis.errorbar(at, [row["mean"] for row in own], [row.get("ci95") or 0.0 for row in own],
                      color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=5,
                      markeredgecolor="white", markeredgewidth=0.6, elinewidth=1.2)  # fmt: skip
    if chance is not None:
        axis.axhline(chance, color=SOFT, linewidth=1.1, linestyle=(0, (3, 2)))
    axis.set_xticks(range(len(counts)), [str(k) for k in counts])
    axis.set_xlim(-0.4, len(counts) - 0.6)
    axis.set_ylim(0, 1)
    axis.set_xlabel("clips of each emotion")
    axis.grid(axis="y")
