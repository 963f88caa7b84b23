"""Figures of fuzzy sets and of firing: memberships, shapes of rules and entropies enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    AMOUNT,
    COLOURS,
    INK,
    MARKERS,
    SOFT,
    cells,
    drawn,
    finite,
    sheet,
    short,
    some,
    whole_labels,
)


@drawn
def fuzzy_sets(place: Any, memberships: Mapping[str, Any]) -> Figure:
    """Memberships of one feature in some fuzzy sets around zero.

    Args:
        place: (place,) in widths of the set.
        memberships: name -> (place,) in 0 to 1.

    Raises:
        ResultError: if sizes differ, there are no sets, or a value is no finite number.

    Source: ours.
    """
    place = finite("place", place, None)
    some("sets", list(memberships))
    figure = sheet(8, 2.9)
    axis = figure.subplots()
    for number, (name, values) in enumerate(memberships.items()):
        values = finite(name, values, len(place))
        axis.plot(place, values, color=INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)], label=short(name),
                  linewidth=2.4 if number == 0 else 1.6)  # fmt: skip
    axis.set_xlabel("distance from the centre, in widths")
    axis.set_ylabel("membership")
    axis.set_ylim(0, 1.03)
    axis.grid(axis="y")
    figure.legend(loc="outside right center")
    return figure


@drawn
def rule_shapes(points: Any, owner: Any, centers: Mapping[str, Any], covariances: Mapping[str, Any]) -> Figure:
    """The same clips under rules of several kinds, each an ellipse at one and at two widths.

    Args:
        points: (clip, 2).
        owner: (clip,) int, cluster of each clip.
        centers: kind -> (rule, 2).
        covariances: kind -> (rule, 2, 2).

    Raises:
        ResultError: if sizes differ, there is no kind, or a value is no finite number.

    Source: ours.
    """
    points = finite("points", points, None, 2)
    some("kinds", list(centers))
    owner = whole_labels(owner, len(points), len(COLOURS))
    figure = sheet(2.75 * len(centers), 3.0)
    axes = figure.subplots(1, len(centers), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (kind, middle) in zip(axes, centers.items(), strict=True):
        axis.scatter(*points.T, s=7, color=np.array(COLOURS)[owner], alpha=0.55, linewidth=0)
        middle = finite("centers", middle, None, 2)
        spread = finite("covariances", covariances[kind], len(middle), 2, 2)
        for center, covariance in zip(middle, spread, strict=True):
            widths, turn = np.linalg.eigh(covariance)
            angle = np.degrees(np.arctan2(turn[1, 1], turn[0, 1]))
            for size, line in ((2, 1.4), (4, 0.8)):
                width, height = size * widths[::-1] ** 0.5
                axis.add_patch(Ellipse(center, width, height, angle=angle, fill=False, edgecolor=INK, linewidth=line))
        axis.set_title(short(kind, 24), loc="center")
        axis.set_aspect("equal")
        axis.set_xlabel("first feature")
    axes[0].set_ylabel("second feature")
    return figure


@drawn
def saturation(
    sizes: Sequence[int], entropy: Mapping[str, Any], largest: Mapping[str, Any], n_rules: int, names: Mapping[str, str]
) -> Figure:  # fmt: skip
    """How sure kinds of firing are over numbers of features: entropy of firing, and firing of the strongest rule.

    Args:
        sizes: numbers of features.
        entropy: kind -> (size,) 0 to 1.
        largest: kind -> (size,) 0 to 1.
        n_rules: rules; 1 / n_rules is the least that the strongest can fire.
        names: of the kinds, in words.

    Raises:
        ResultError: if sizes differ, there is no kind, or a value is no finite number.

    Source: ours.
    """
    some("kinds", list(entropy))
    figure = sheet(8, 3.2)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    parts = (("entropy of firing, 1: all rules alike", entropy), ("firing of the strongest rule", largest))
    for axis, (title, values) in zip(axes, parts, strict=True):
        for number, kind in enumerate(values):
            line = finite(kind, values[kind], len(sizes))
            axis.plot(sizes, line, color=COLOURS[number], marker=MARKERS[number], markersize=5, label=names[kind])
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel("features")
        axis.set_title(title)
        axis.grid(axis="y")
        axis.set_ylim(0, 1.05)
    axes[1].axhline(1 / n_rules, color=SOFT, linewidth=1, linestyle=":")
    axes[1].annotate("even", (sizes[0], 1 / n_rules), xytext=(0, 3), textcoords="offset points", fontsize=9,
                     color=SOFT)  # fmt: skip
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


@drawn
def firing_side_by_side(firing: Mapping[str, Any], names: Mapping[str, str], title: str) -> Figure:
    """What the rules say of the same clips under several kinds of firing.

    Args:
        firing: kind -> (clip, rule) rows sum to one.
        names: of the kinds, in words.
        title: above all.

    Raises:
        ResultError: if there is no kind or a value is no finite number.

    Source: ours.
    """
    some("kinds", list(firing))
    figure = sheet(8, 3.6)
    axes = figure.subplots(1, len(firing), sharey=True, squeeze=False)[0]
    order = None
    for axis, (kind, values) in zip(axes, firing.items(), strict=True):
        values = finite(kind, values, None, None)
        order = np.argsort(values.argmax(1), kind="stable") if order is None else order
        if len(values) != len(order):
            raise ResultError(f"{len(values)} clips fire {kind}", expected=f"{len(order)}", where="figure")
        image = axis.imshow(values[order], cmap=AMOUNT, vmin=0, vmax=1, aspect="auto")
        cells(axis, *values.shape)
        axis.set_xticks(range(values.shape[1]), [str(rule + 1) for rule in range(values.shape[1])])
        axis.set_xlabel("rule")
        axis.set_title(short(names[kind], 30), fontsize=9.5)
    axes[0].set_yticks([])
    axes[0].set_ylabel("clips")
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=24, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.set_label("firing")
    figure.suptitle(short(title, 80), x=0.01, ha="left")
    return figure
