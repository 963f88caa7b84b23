"""Figures of adapting to small tasks: paths of the inner loop and single waves enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stf2m_core.figures.look import BLUE, COLOURS, INK, MARKERS, SOFT, drawn, finite, sheet, short, some


@drawn
def inner_paths(paths: Mapping[str, Mapping[str, Any]], *, metric: str, chance: float | None = None) -> Figure:
    """A score along the inner loop, one panel per kind of task, one line with its 95 % band per learner.

    Args:
        paths: panel -> learner -> (step + 1, episode).
        metric: what the y axis shows.
        chance: level of guessing; None: no line.

    Raises:
        ResultError: if there is nothing to draw or a value is no finite number.

    Source: ours.
    """
    some("panels", list(paths))
    figure = sheet(4.1 * len(paths) if len(paths) > 1 else 6.5, 3.3)
    axes = figure.subplots(1, len(paths), sharey=True, squeeze=False)[0]
    for axis, (panel, learners) in zip(axes, paths.items(), strict=True):
        some("learners", list(learners))
        for number, (name, values) in enumerate(learners.items()):
            values = finite(name, values, None, None)
            steps, mean = np.arange(len(values)), values.mean(1)
            half = 1.96 * values.std(1, ddof=1) / np.sqrt(values.shape[1]) if values.shape[1] > 1 else 0 * mean
            colour = COLOURS[number % len(COLOURS)]
            axis.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.22, linewidth=0)
            thick = max(0, 2 - number)  # an earlier line stays visible below a later one
            axis.plot(steps, mean, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4.5 + 1.3 * thick,
                      linewidth=1.6 + 0.8 * thick, label=short(name, 44))  # fmt: skip
        if chance is not None:
            axis.axhline(chance, color=SOFT, linewidth=1.1, linestyle=(0, (3, 2)), label="chance")
        axis.set_xticks(steps[:: max(1, len(steps) // 8)])
        axis.set_xlabel("inner step")
        axis.set_title(short(panel, 40))
        axis.grid(axis="y")
    axes[0].set_ylabel(metric)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


@drawn
def one_wave(x: Any, truth: Any, support: Any, before_and_after: Mapping[str, Any]) -> Figure:
    """One wave, its support, and what learners say of it before and after adaptation.

    Args:
        x: (place,) in order.
        truth: (place,).
        support: (point, 2).
        before_and_after: learner -> (2, place).

    Raises:
        ResultError: if sizes differ, there is no learner, or a value is no finite number.

    Source: ours.
    """
    x = finite("x", x, None)
    truth, support = finite("truth", truth, len(x)), finite("support", support, None, 2)
    some("learners", list(before_and_after))
    figure = sheet(2.75 * len(before_and_after), 3.0)
    axes = figure.subplots(1, len(before_and_after), sharey=True, squeeze=False)[0]
    for axis, (name, said) in zip(axes, before_and_after.items(), strict=True):
        before, after = finite(name, said, 2, len(x))
        axis.plot(x, truth, color=SOFT, linewidth=5, alpha=0.35, label="the wave")
        axis.plot(x, before, color=BLUE, linestyle="--", label="before")
        axis.plot(x, after, color=BLUE, label="after adaptation")
        axis.plot(*support.T, "o", color=INK, markersize=4.5, label="support")
        axis.set_title(short(name, 32), fontsize=9.5, loc="center")
        axis.set_xlabel("x")
        axis.grid(axis="y")
    axes[0].set_ylabel("y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure
