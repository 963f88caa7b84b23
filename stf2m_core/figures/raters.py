"""Figures of raters and their votes: counts of votes enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    AMOUNT,
    BLUE,
    GREEN,
    INK,
    ORANGE,
    SOFT,
    cells,
    drawn,
    finite,
    scale,
    sheet,
    short,
    some,
)

_COLOURS = (ORANGE, BLUE, GREEN)


@drawn
def agreement(counts: Any, conditions: Sequence[str], emotions: Sequence[str]) -> Figure:
    """How far raters agree: what share of them chose the leading emotion, and how many emotions they spread over.

    Left: for each share, the part of the clips that reach it. Right: the part of the clips in which so many emotions
    got a vote.

    Args:
        counts: (clip, condition, emotion) votes, at least one for each clip and condition.
        conditions: their names.
        emotions: their names.

    Raises:
        ResultError: if sizes differ, there are no clips, or a clip has no votes.

    Source: ours.
    """
    counts = finite("counts", counts, None, len(conditions), len(emotions))
    some("clips", counts)
    total = counts.sum(axis=2)
    if total.min() <= 0:
        raise ResultError("a clip has no votes", expected="one or more in each condition", where="figure")
    figure = sheet(9.4, 3.5)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    lead = counts.max(axis=2) / total
    steps = np.linspace(0.2, 1, 161)
    for number in range(len(conditions)):
        colour = _COLOURS[number % len(_COLOURS)]
        reached = (lead[:, number, None] >= steps - 1e-9).mean(axis=0)
        left.plot(100 * steps, 100 * reached, color=colour, label=short(conditions[number]))
    left.legend(loc="lower left")
    left.set_xlabel("at least this share of the raters chose the same emotion, %")
    left.set_ylabel("clips, %")
    left.set_xlim(20, 100)
    left.set_ylim(0, 102)
    left.grid(True, axis="both")
    _spread(right, (counts > 0).sum(axis=2), len(emotions))
    return figure


def _spread(axis: Axes, chosen: np.ndarray, most: int) -> None:
    width = 0.8 / chosen.shape[1]
    for number in range(chosen.shape[1]):
        part = np.bincount(chosen[:, number], minlength=most + 1)[1:] / len(chosen)
        at = np.arange(1, most + 1) + (number - (chosen.shape[1] - 1) / 2) * width
        axis.bar(at, 100 * part, width * 0.9, color=_COLOURS[number % len(_COLOURS)])
    axis.set_xticks(range(1, most + 1))
    axis.set_xlabel("emotions that got a vote")
    axis.set_ylabel("clips, %")
    axis.grid(True, axis="y")


@drawn
def taken_for(shares: Any, conditions: Sequence[str], emotions: Sequence[str]) -> Figure:
    """What each intended emotion is taken for in each rating condition: mean shares of the votes.

    Args:
        shares: (condition, intended, chosen), rows sum to 1.
        conditions: their names.
        emotions: their names.

    Raises:
        ResultError: if sizes differ or a share is no finite number.

    Source: ours.
    """
    shares = finite("shares", shares, len(conditions), len(emotions), len(emotions))
    some("conditions", shares)
    figure = sheet(3.05 * len(conditions) + 1.2, 3.7)
    axes = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
    names = [short(name, 12) for name in emotions]
    for axis, part, condition in zip(axes, shares, conditions, strict=True):
        image = axis.imshow(part, cmap=AMOUNT, vmin=0, vmax=1, aspect="equal")
        cells(axis, *part.shape)
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_title(f"rated from: {short(condition)}", fontsize=9.5)
        for row, column in np.argwhere(part >= 0.095):
            colour = "white" if part[row, column] > 0.55 else INK
            axis.text(column, row, f"{100 * part[row, column]:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylabel("the actor was asked for", color=SOFT)
    axes[len(axes) // 2].set_xlabel("raters chose", color=SOFT)
    scale(axes[-1], image, 2.2, "share of votes")
    return figure
