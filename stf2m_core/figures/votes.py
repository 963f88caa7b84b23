"""Figures of votes as labels: counts of votes, and entropies of what is said, enter; a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stf2m_core.figures.look import (
    BLUE,
    COLOURS,
    INK,
    PALE,
    RED,
    SOFT,
    drawn,
    finite,
    sheet,
    short,
    shorts,
    some,
    whole_labels,
)  # fmt: skip


@drawn
def vote_bars(counts: Any, label: Any, emotions: Sequence[str]) -> Figure:
    """Votes of some clips as shares, with the hard label at the right; none where two emotions lead together.

    Args:
        counts: (clip, emotion) votes.
        label: (clip,) int hard labels, -1 where undefined.
        emotions: names.

    Raises:
        ResultError: if sizes differ, there are no clips, or a value is no finite number.

    Source: ours.
    """
    counts = finite("counts", counts, None, len(emotions))
    some("clips", counts)
    label = whole_labels(label, len(counts), len(emotions))
    total = counts.sum(1, keepdims=True)
    share = counts / np.maximum(total, 1)
    figure = sheet(8, 1.2 + 0.34 * len(counts))
    axis = figure.subplots()
    start = np.zeros(len(counts))
    for number, name in enumerate(shorts(emotions, 14)):
        colour = COLOURS[number % len(COLOURS)]
        axis.barh(np.arange(len(counts)), share[:, number], left=start, height=0.72, edgecolor="white", linewidth=1.2,
                  color=colour, label=name)  # fmt: skip
        for clip in np.flatnonzero(share[:, number] > 0.06):
            axis.text(start[clip] + share[clip, number] / 2, clip, f"{counts[clip, number]:.0f}", ha="center",
                      va="center", fontsize=9, color=INK if colour in PALE else "white")  # fmt: skip
        start += share[:, number]
    for clip, own in enumerate(label):
        text = "no hard label" if own < 0 else short(emotions[own], 14)
        axis.text(1.015, clip, text, va="center", color=RED if own < 0 else BLUE, fontsize=9)
    axis.text(1.015, 1.01, "hard label", transform=axis.get_xaxis_transform(), va="bottom", fontsize=9, color=SOFT)
    axis.set_xlim(0, 1.2)
    axis.set_ylim(len(counts) - 0.5, -0.5)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axis.set_xlabel("share of the votes; numbers are votes")
    axis.set_yticks(range(len(counts)), [f"clip {clip + 1}" for clip in range(len(counts))])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(emotions), columnspacing=1.2, handlelength=1.2)
    return figure


@drawn
def said_and_chosen(pairs: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Shares that learners predict against the shares of raters: on the diagonal, 30 % said is 30 % chosen.

    Every emotion of every clip is one prediction; predictions are grouped in tenths, and a group of fewer than twenty
    is not drawn. The area of a dot says how many there are.

    Args:
        pairs: learner -> ((prediction,) shares said, (prediction,) shares chosen).

    Raises:
        ResultError: if sizes differ, there is no learner, or a value is no finite number.

    Source: ours.
    """
    some("learners", list(pairs))
    figure = sheet(max(3.7 * len(pairs), 6.5), 3.9)
    axes = figure.subplots(1, len(pairs), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (name, (said, chosen)) in zip(axes, pairs.items(), strict=True):
        said = finite("said", said, None)
        chosen = finite("chosen", chosen, len(said))
        owner = np.clip((said * 10).astype(int), 0, 9)
        groups = [owner == part for part in range(10) if (owner == part).sum() >= 20]
        axis.plot([0, 1], [0, 1], color=SOFT, linewidth=1.1, linestyle=(0, (3, 2)), label="said as often as chosen")
        for group in groups:
            mean, half = chosen[group].mean(), 1.96 * chosen[group].std(ddof=1) / group.sum() ** 0.5
            axis.plot([said[group].mean()] * 2, [mean - half, mean + half], color=RED, linewidth=1.4)
        axis.scatter([said[group].mean() for group in groups], [chosen[group].mean() for group in groups],
                     s=[12 + 90 * (group.mean()) ** 0.5 for group in groups], color=RED, zorder=3, linewidth=0,
                     label="a tenth of the scale, 95 % over predictions")  # fmt: skip
        axis.set_title(f"learned from {short(name, 30)}", loc="center")
        axis.set_xlabel("share that the learner says")
        axis.set_aspect("equal")
        axis.grid()
    axes[0].set_ylabel("share that raters chose")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure
