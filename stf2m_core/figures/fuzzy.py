"""Figures of the fuzzy rules: firing strengths, centers and covariances enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    AMOUNT,
    BLUE,
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
    whole_labels,
    width_of,
)


@drawn
def firing(
    firing: Any, label: Any, labels: Sequence[str], *, entropy: Any = None, typicality: Any = None
) -> Figure:  # fmt: skip
    """Mean normalised firing per emotion and rule, and how sure and how typical the clips are.

    Args:
        firing: (clip, rule) normalised firing; rows sum to 1.
        label: (clip,) index into `labels`; -1, undefined, is left out of the heat map.
        labels: names; an emotion without clips gets an empty row.
        entropy: (clip,) entropy of the firing over its maximum, 0 (one rule) to 1 (all alike); None: not drawn.
        typicality: (clip,) log of the largest membership per feature, 0 at a rule's center; None: not drawn.

    Raises:
        ResultError: if sizes differ, there are no clips, or a value is no finite number.

    Source: ours.
    """
    firing = finite("firing", firing, None, None)
    some("clips", firing)
    some("rules", firing.T)
    label = whole_labels(label, len(firing), len(labels))
    extra = {
        name: finite(name.split()[0], values, len(firing))
        for name, values in (("entropy of firing", entropy), ("typicality (log)", typicality))
        if values is not None
    }
    mean = np.full((len(labels), firing.shape[1]), np.nan)
    for number in np.unique(label[label >= 0]):
        mean[number] = firing[label == number].mean(0)
    height = max(0.24 * len(labels), 0.8)
    figure = sheet(8, height + 1.2 + (1.75 if extra else 0))
    parts = figure.subfigures(2, 1, height_ratios=[height + 1.2, 1.75]) if extra else [figure]
    _firing_map(parts[0], mean, shorts(labels), height)
    if extra:
        axes = parts[1].subplots(1, len(extra), sharey=True, squeeze=False)[0]
        for axis, (name, values) in zip(axes, extra.items(), strict=True):
            _histogram(axis, values, name)
        axes[0].set_ylabel("clips")
    return figure


def _firing_map(part: Figure, mean: np.ndarray, names: Sequence[str], height: float) -> None:
    axis = part.subplots()
    axis.set_facecolor(GONE)
    image = axis.imshow(np.ma.masked_invalid(mean), cmap=AMOUNT, vmin=0, aspect="auto")
    cells(axis, *mean.shape)
    name_y(axis, names, height)
    name_x(axis, [str(rule + 1) for rule in range(mean.shape[1])], 4.5, may_turn=False)
    axis.set_xlabel("rule")
    scale(axis, image, height, "mean firing")


def _histogram(axis: Axes, values: np.ndarray, name: str) -> None:
    lower, upper = float(values.min()), float(values.max())
    if name.startswith("entropy"):
        lower, upper = min(lower, 0.0), max(upper, 1.0)
    if upper - lower < 1e-6:
        lower, upper = lower - 0.5, upper + 0.5
    axis.hist(values, np.linspace(lower, upper, 31), color=BLUE)
    axis.axvline(np.median(values), color=INK, linewidth=1, linestyle="--")
    axis.set_title(f"median {np.median(values):.2f}".replace("-", "−"), fontsize=9, color=SOFT, loc="right")
    axis.set_xlabel(name)
    axis.locator_params(axis="x", nbins=6)
    axis.locator_params(axis="y", nbins=3, integer=True)


@drawn
def rules(centers: Any, covariances: Any, points: Any, label: Any, labels: Sequence[str]) -> Figure:
    """Generalised fuzzy rules as rotated ellipses over clips, all projected to one plane.

    An ellipse is drawn at one standard deviation, where the membership is exp(-1/2), and, thinner, at two.

    Args:
        centers: (rule, 2) projected centers.
        covariances: (rule, 2, 2) projected covariances, positive semi-definite.
        points: (clip, 2) projected clips.
        label: (clip,) index into `labels`; clips with -1, undefined, are drawn in grey.
        labels: names; only those that have clips are in the legend.

    Raises:
        ResultError: if sizes differ, there are no rules, a covariance is none, or a value is no finite number.

    Source: ours.
    """
    centers = finite("centers", centers, None, 2)
    some("rules", centers)
    axes_of_rules = [_ellipse(c, r) for r, c in enumerate(finite("covariances", covariances, len(centers), 2, 2))]
    points = finite("points", points, None, 2)
    label = whole_labels(label, len(points), len(labels))
    present = np.unique(label).tolist()
    all_names = [*shorts(labels), "undefined"]  # which is -1
    names = [all_names[number] for number in present]
    beside = 0.6 + max(map(width_of, names), default=0)
    figure = sheet(5.6 + beside if names else 5.6, max(5.2, 0.6 + 0.2 * len(names)))
    axis = figure.subplots()
    for number, name in zip(present, names, strict=True):
        here = points[label == number]
        colour = SOFT if number < 0 else COLOURS[number % len(COLOURS)]
        marker = MARKERS[max(number, 0) // len(COLOURS) % len(MARKERS)]
        axis.scatter(*here.T, s=15, color=colour, marker=marker, alpha=0.75, linewidth=0, label=name)
    for center, (width, height, angle) in zip(centers, axes_of_rules, strict=True):
        for size, look in ((1, {"facecolor": "#2222220F", "linewidth": 1.2}), (2, {"fill": False, "linewidth": 0.7})):
            edge = INK if size == 1 else f"{SOFT}88"
            axis.add_patch(Ellipse(center, size * width, size * height, angle=angle, edgecolor=edge, **look))
    _frame(axis, np.concatenate([centers, points]))
    _number(axis, centers, 5.0)
    axis.set_xlabel("first direction of the plane")
    axis.set_ylabel("second direction of the plane")
    if names:
        figure.legend(loc="outside right center", markerscale=1.5, handletextpad=0.2)
    return figure


def _ellipse(covariance: np.ndarray, rule: int) -> tuple[float, float, float]:
    """Width, height and angle in degrees at one standard deviation."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-6 * max(abs(values[1]), 1e-12):
        raise ResultError(f"covariance of rule {rule} has the eigenvalue {values[0]:.3g}", expected="none below 0",
                          where="figure")  # fmt: skip
    height, width = 2 * np.sqrt(np.maximum(values, 0))
    return float(width), float(height), float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))


def _frame(axis: Axes, around: np.ndarray) -> None:
    """Limits with room for the numbers; the same scale on both axes, or angles would mislead."""
    middle, half = (around.max(0) + around.min(0)) / 2, max(float(np.ptp(around, 0).max()) / 2, 0.5) * 1.12
    axis.set_xlim(middle[0] - half, middle[0] + half)
    axis.set_ylim(middle[1] - half, middle[1] + half)
    axis.set_aspect("equal")


def _number(axis: Axes, centers: np.ndarray, room: float) -> None:
    """Number the rules at their centers; a number that would touch another goes a little aside, or is left out."""
    scale = room / np.ptp(axis.get_xlim())  # inches per unit
    shifts = [(0, 0)] + [(r * np.cos(t), r * np.sin(t)) for r in (0.2, 0.3) for t in np.arange(8) * np.pi / 4]
    taken: list[np.ndarray] = []
    for rule, center in enumerate(centers):
        tries = [center + np.array(shift) / scale for shift in shifts]
        free = (at for at in tries if all((np.abs(at - other) * scale > (0.24, 0.17)).any() for other in taken))
        at = next(free, None)
        if at is not None:
            taken.append(at)
            axis.text(*at, str(rule + 1), ha="center", va="center", fontsize=9, fontweight="bold", clip_on=True,
                      path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
