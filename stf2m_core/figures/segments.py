"""Figures of labels over time: probabilities and labels of one clip enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    COLOURS,
    FAINT,
    INK,
    PALE,
    SOFT,
    drawn,
    finite,
    fit,
    sheet,
    shorts,
    some,
    whole_labels,
    width_of,
)  # fmt: skip

GIVEN = len(COLOURS)  # emotions with a colour of their own; the others share one
WIDTH, LEFT = 9.0, 1.35  # inches, of the page and of the names at its left
TRUTH, AREA = 0.5, 1.25


@drawn
def clip_segments(
    truth: np.ndarray, readings: Mapping[str, np.ndarray], labels: Sequence[str], *, hop_s: float,
    starts_s: Sequence[float] = (), title: str = "",
) -> Figure:  # fmt: skip
    """What is felt when: true segments above, then what each reader says, on one time axis.

    A reader's probabilities are stacked to one; the strip under them is what it says, the most probable emotion.
    Lines through all rows are where the emotion changes, ticks under the truth where a segment begins without a change.

    Args:
        truth: (step,) int, label of each step of the clock; -1 where unlabelled.
        readings: name -> (step, label) probabilities.
        labels: names of the labels.
        hop_s: seconds from one step to the next.
        starts_s: where segments begin.
        title: over all.

    Raises:
        ResultError: if there is no reading, or sizes do not fit.

    Source: ours.
    """
    some("readings", list(readings))
    truth = whole_labels(truth, len(truth), len(labels))
    said = {name: finite(name, values, len(truth), len(labels)) for name, values in readings.items()}
    if hop_s <= 0:
        raise ResultError(f"hop_s is {hop_s}", expected="more than 0", where="figure")
    colour, named = _colours(truth, said, len(labels))
    edges = np.arange(len(truth) + 1) * hop_s
    changes = _changes(truth) * hop_s
    quiet = [start for start in starts_s if start > 0 and np.abs(changes - start).min(initial=np.inf) > hop_s]
    handles = _key(labels, colour, named, len(changes) > 0, len(quiet) > 0)
    columns = max(1, min(4, int(WIDTH / (max(width_of(handle.get_label()) for handle in handles) + 0.5))))
    lines = -(-len(handles) // columns)
    heights = [TRUTH] + [AREA] * len(said)
    figure = sheet(WIDTH, 0.95 + sum(heights) + 0.12 * len(said) + 0.2 * lines)
    axes = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    _bare(axes[0], edges, "truth")
    _bars(axes[0], truth, edges, colour, (0, 1))
    _named(axes[0], truth, edges, colour, labels)
    for place in quiet:
        axes[0].plot([place, place], [-0.3, 0.0], color=SOFT, linewidth=1.2, clip_on=False)
    for axis, (name, values) in zip(axes[1:], said.items(), strict=True):
        _area(axis, values, edges, colour, name)
        _bars(axis, _decided(values), edges, colour, (-0.36, -0.08))
    for axis in axes:
        for place in changes:
            axis.axvline(place, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=3)
    axes[-1].set_xlabel("seconds")
    axes[-1].tick_params(axis="x", length=3)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2)
    if title:
        axes[0].set_title(fit(title, 0.8 * (WIDTH - LEFT)))
    return figure


def _key(
    labels: Sequence[str], colour: Sequence[str], named: Sequence[int], has_changes: bool, has_starts: bool
) -> list[Artist]:
    """What colours and lines mean."""
    names = shorts([labels[i] for i in named], 30)
    handles: list[Artist] = [Patch(color=colour[i], label=name) for i, name in zip(named, names, strict=True)]
    handles += [Patch(color=FAINT, label="others")] if len(named) < len(labels) else []
    change = Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), label="the emotion changes")
    start = Line2D([], [], color=SOFT, linewidth=0, marker="|", markersize=7, label="new segment, same emotion")
    return handles + [change] * has_changes + [start] * has_starts


def _colours(truth: np.ndarray, said: Mapping[str, np.ndarray], n_labels: int) -> tuple[list[str], list[int]]:
    """Colour of each label, and the labels that have one of their own: those that matter most in the clip."""
    weight = sum(values.sum(0) for values in said.values()) + len(said) * len(truth) * np.isin(range(n_labels), truth)
    named = sorted(np.argsort(-weight, kind="stable")[:GIVEN].tolist())
    colour = [FAINT] * n_labels
    for place, label in enumerate(named):
        colour[label] = COLOURS[place]
    return colour, named


def _changes(labels: np.ndarray) -> np.ndarray:
    """(change,) first steps of a new label, both sides labelled."""
    return np.flatnonzero((labels[1:] != labels[:-1]) & (labels[1:] >= 0) & (labels[:-1] >= 0)) + 1


def _decided(values: np.ndarray) -> np.ndarray:
    """(step,) most probable label; -1 where all are equally probable."""
    return np.where(values.max(1) > values.min(1), values.argmax(1), -1)


def _bare(axis: Axes, edges: np.ndarray, name: str) -> None:
    axis.set_xlim(0, edges[-1])
    axis.set_ylim(0, 1)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_yticks([])
    axis.set_ylabel("\n".join(_wrapped(name)), rotation=0, ha="right", va="center", labelpad=8)


def _wrapped(name: str, most: int = 17) -> list[str]:
    lines = [""]
    for word in name.split():
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= most or not lines[-1] else [*lines, word]
    return lines


def _runs(labels: np.ndarray) -> list[tuple[int, int]]:
    """First step and one past the last of each run of a label; without what is unlabelled."""
    first = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    pairs = zip(first.tolist(), [*first[1:].tolist(), len(labels)], strict=True)
    return [(start, stop) for start, stop in pairs if labels[start] >= 0]


def _bars(
    axis: Axes, labels: np.ndarray, edges: np.ndarray, colour: Sequence[str], between: tuple[float, float]
) -> None:
    """One bar per run of a label."""
    low, high = between
    for start, stop in _runs(labels):
        axis.barh((low + high) / 2, edges[stop] - edges[start], left=edges[start], height=high - low,
                  color=colour[labels[start]], edgecolor="white", linewidth=0.6)  # fmt: skip


def _named(axis: Axes, labels: np.ndarray, edges: np.ndarray, colour: Sequence[str], names: Sequence[str]) -> None:
    """The names of true segments, a word a line, where they fit."""
    inch = (WIDTH - LEFT - 0.2) / edges[-1]
    for start, stop in _runs(labels):
        text = "\n".join(_wrapped(names[labels[start]], 12))
        if width_of(text, 9) + 0.08 < (edges[stop] - edges[start]) * inch and text.count("\n") < 2:
            ink = INK if colour[labels[start]] in (*PALE, FAINT) else "white"
            axis.text((edges[start] + edges[stop]) / 2, 0.48, text, ha="center", va="center", fontsize=9, color=ink,
                      linespacing=1.1)  # fmt: skip


def _area(axis: Axes, values: np.ndarray, edges: np.ndarray, colour: Sequence[str], name: str) -> None:
    """Stacked probabilities, constant within a step."""
    _bare(axis, edges, name)
    top = np.cumsum(values, 1)
    for label in range(values.shape[1]):
        low = top[:, label] - values[:, label]
        axis.fill_between(edges, np.r_[low, low[-1]], np.r_[top[:, label], top[-1, label]], step="post",
                          color=colour[label], linewidth=0)  # fmt: skip
    axis.set_ylim(-0.4, 1)
    axis.set_yticks([-0.22, 0, 1], ["says", "0", "1"])
