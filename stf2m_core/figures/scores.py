"""Figures of scores: rows of tables and confusion counts enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    AMOUNT,
    COLOURS,
    GONE,
    INK,
    MARKERS,
    SOFT,
    cells,
    drawn,
    finite,
    name_x,
    name_y,
    scale,
    sheet,
    shorts,
    some,
    width_of,
)

LANE = 0.235  # inches per dot


@drawn
def results(
    table_rows: Sequence[Mapping[str, Any]],
    *,
    chance: float | Mapping[str, float] | None = None,
    metric: str = "accuracy",
) -> Figure:  # fmt: skip
    """Methods against each other in every setting, as dots with two intervals.

    The thick interval is the 95 % interval over episodes; the thin one, over subjects, is wider because the subjects
    of a split are few and shared by its episodes.

    Args:
        table_rows: {"method", "setting", "mean", "ci95", "subject_low", "subject_high"}; ci95 is a half width; an
            interval that is None is not drawn. Settings and methods keep their order.
        chance: level of guessing, for all settings or per setting; None: no line.
        metric: what the x axis shows.

    Raises:
        ResultError: if there are no rows or a mean is no finite number.

    Source: ours.
    """
    some("rows of results", table_rows)
    finite("mean", [row["mean"] for row in table_rows], None)
    settings = list(dict.fromkeys(str(row["setting"]) for row in table_rows))
    methods = list(dict.fromkeys(str(row["method"]) for row in table_rows))
    method_names = shorts(methods, 30)
    names, heads, at = [], [], 0.0
    figure = sheet(8, 1.35 + LANE * (len(table_rows) + 1.6 * len(settings)))
    axis = figure.subplots()
    for setting in settings:
        heads.append(at)
        first = at + 1
        for row in (row for row in table_rows if str(row["setting"]) == setting):
            at += 1
            names.append((at, method_names[methods.index(str(row["method"]))]))
            _dot(axis, row, at, COLOURS[methods.index(str(row["method"])) % len(COLOURS)])
        level = chance.get(setting) if isinstance(chance, Mapping) else chance
        if level is not None:
            axis.plot([level] * 2, [first - 0.45, at + 0.45], color=INK, linewidth=1.1, linestyle=(0, (3, 2)))
        at += 1.6
    axis.set_ylim(at - 0.9, -0.7)
    axis.set_yticks([y for y, _ in names], [name for _, name in names])
    for y, setting in zip(heads, shorts(settings, 60), strict=True):
        axis.text(0.0, y, setting, transform=axis.get_yaxis_transform(), fontweight="bold", va="center")
    _end(axis, metric)
    has_thick = any(row.get("ci95") is not None for row in table_rows)
    thick = {"linewidth": 3.2, "label": "mean, 95 % over episodes"} if has_thick else {"linewidth": 0, "label": "mean"}
    handles = [
        Line2D([], [], color=INK, marker="o", markersize=5, **thick),
        Line2D([], [], color=INK, linewidth=1, label="95 % over subjects"),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (3, 2)), label="chance"),
    ]
    figure.legend(handles=handles[: 3 if chance is not None else 2], loc="outside upper left", ncols=3)
    return figure


def _dot(axis: Axes, row: Mapping[str, Any], at: float, colour: str) -> None:
    mean, half, low, high = (row.get(name) for name in ("mean", "ci95", "subject_low", "subject_high"))
    if low is not None and high is not None:
        axis.plot([low, high], [at, at], color=colour, linewidth=1)
    if half is not None:
        axis.plot([mean - half, mean + half], [at, at], color=colour, linewidth=3.6, solid_capstyle="butt")
    axis.plot(mean, at, color=colour, marker="o", markersize=6, markeredgecolor="white", markeredgewidth=0.8)


def _end(axis: Axes, name: str) -> None:
    axis.set_xlabel(name)
    axis.grid(axis="x")
    axis.margins(x=0.06)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)


@drawn
def ablation(rows: Sequence[Mapping[str, Any]], *, metric: str = "accuracy") -> Figure:
    """What each variant loses or gains against the full model on the very same episodes.

    A full dot: the 95 % interval of the paired difference excludes zero. A hollow one: it does not.

    Args:
        rows: {"variant", "setting", "difference", "ci95"}; difference is variant minus full model, ci95 a half width
            or None. Variants and settings keep their order.
        metric: what the difference is of.

    Raises:
        ResultError: if there are no rows or a difference is no finite number.

    Source: ours.
    """
    some("rows of the ablation", rows)
    finite("difference", [row["difference"] for row in rows], None)
    variants = list(dict.fromkeys(str(row["variant"]) for row in rows))
    settings = list(dict.fromkeys(str(row["setting"]) for row in rows))
    band = max(1.3, len(settings) + 0.5)
    lane_height = LANE if len(settings) <= 3 else 0.15
    figure = sheet(8, 1.3 + lane_height * band * len(variants) + 0.2 * (len(settings) // 3 + 1))
    axis = figure.subplots()
    for number in range(0, len(variants), 2):
        axis.axhspan((number - 0.5) * band, (number + 0.5) * band, color=GONE, linewidth=0, zorder=0)
    for row in rows:
        lane = settings.index(str(row["setting"]))
        at = variants.index(str(row["variant"])) * band + lane - (len(settings) - 1) / 2
        _difference(axis, row, at, lane)
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_ylim((len(variants) - 0.5) * band, -0.5 * band)
    axis.set_yticks(np.arange(len(variants)) * band, shorts(variants, 30))
    _end(axis, f"difference in {metric} to the full model, 95 % over episodes")
    handles = [
        Line2D([], [], color=COLOURS[i % 8], marker=MARKERS[i // 8 % 6], markersize=5, label=setting)
        for i, setting in enumerate(shorts(settings, 34))
    ]
    for face, label in ((SOFT, "interval excludes 0"), ("white", "interval includes 0")):
        look = {"marker": "o", "markersize": 6, "markerfacecolor": face, "linestyle": "none"}
        handles.append(Line2D([], [], color=SOFT, label=label, **look))
    columns = max(1, min(len(handles), int(7.6 / (max(width_of(line.get_label()) for line in handles) + 0.6))))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    return figure


def _difference(axis: Axes, row: Mapping[str, Any], at: float, lane: int) -> None:
    difference, half, colour = row["difference"], row.get("ci95"), COLOURS[lane % len(COLOURS)]
    if half is not None:
        axis.plot([difference - half, difference + half], [at, at], color=colour, linewidth=2)
    is_clear = half is not None and abs(difference) > half
    axis.plot(difference, at, color=colour, marker=MARKERS[lane // len(COLOURS) % len(MARKERS)], markersize=6,
              markerfacecolor=colour if is_clear else "white", markeredgewidth=1.4)  # fmt: skip


@drawn
def confusion(matrix: Any, labels: Sequence[str]) -> Figure:
    """What the clips of each label were taken for, percent of the label's clips.

    Args:
        matrix: (label, label) counts or weights; row: true label, column: answer. A label without clips gets an
            empty row.
        labels: names.

    Raises:
        ResultError: if the sizes differ, there are no labels, or a value is negative or no finite number.

    Source: ours.
    """
    some("labels", labels)
    matrix = finite("matrix", matrix, len(labels), len(labels))
    if matrix.min() < 0:
        raise ResultError(f"matrix has the value {matrix.min():g}", expected="counts of 0 or more", where="figure")
    total = matrix.sum(1, keepdims=True)
    percent = np.where(total > 0, 100 * matrix / np.where(total > 0, total, 1), np.nan)
    names = shorts(labels)
    side = float(np.clip(min(0.42 * len(labels), max(4.6, 0.28 * len(labels))), 1.5, 8))
    margin = 0.45 + max(map(width_of, names))
    has_numbers = side / len(labels) > 0.25
    figure = sheet(side + margin + (0.2 if has_numbers else 1.0), side + margin + 0.2)
    axis = figure.subplots()
    axis.set_facecolor(GONE)
    image = axis.imshow(np.ma.masked_invalid(percent), cmap=AMOUNT, vmin=0, vmax=100)
    cells(axis, *matrix.shape)
    if has_numbers:
        for (i, j), value in np.ndenumerate(percent):
            if round(np.nan_to_num(value)) > 0:
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=9,
                          color="white" if value > 65 else INK)  # fmt: skip
    name_x(axis, names, side * 0.95)
    name_y(axis, names, side * 0.95)
    axis.set_xlabel("answer\n(% of the true label)")
    axis.set_ylabel("true label")
    if not has_numbers:
        scale(axis, image, side, "% of the true label", ticks=[0, 50, 100])
    return figure
