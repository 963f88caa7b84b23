"""Figures of the vote fusion: cards of rules and scores of methods enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stf2m_core.figures.look import (
    AMOUNT,
    BLUE,
    GONE,
    GREY,
    INK,
    SOFT,
    cells,
    drawn,
    finite,
    fit,
    scale,
    sheet,
    short,
    some,
    width_of,
)

_ROW = 0.27


@drawn
def rule_cards(
    voice: Any, face: Any, answer: Any, use: Any, emotions: Sequence[str], *, names: Sequence[str] | None = None
) -> Figure:
    """One line per rule: the votes it owns, on the voice and on the face, and what it answers.

    Args:
        voice: (rule, emotion) mean shares of the votes on the voice alone; a row of NaN, owns nothing, stays grey.
        face: (rule, emotion) the same of the face.
        answer: (rule, emotion) the rule's own distribution; rows sum to 1.
        use: (rule,) mean firing.
        emotions: names.
        names: of the rules, written at the right; None: none.

    Raises:
        ResultError: if sizes differ, there are no rules, or an answer is no finite number.

    Source: ours.
    """
    answer = finite("answer", answer, None, len(emotions))
    some("rules", answer)
    use = finite("use", use, len(answer))
    owned = [np.where(np.isnan(part), -1, part) for part in (np.array(voice, float), np.array(face, float))]
    blocks = [finite(name, part, *answer.shape) for name, part in zip(("voice", "face"), owned, strict=True)]
    room = 3.4 if names is not None else 0.0
    height = max(_ROW * len(answer), 0.8)
    figure = sheet(6.6 + room, height + 1.55)
    axes = figure.subplots(1, 4, sharey=True, width_ratios=[1.4, 1.4, 1.4, 0.7])
    titles = ("voice votes it owns", "face votes it owns", "what it answers")
    for axis, part, title in zip(axes, (*blocks, answer), titles, strict=False):
        image = _block(axis, part, emotions, title)
    axes[0].set_yticks(range(len(answer)), [str(rule + 1) for rule in range(len(answer))])
    axes[0].set_ylabel("rule")
    _use(axes[3], use, names, room)
    scale(axes[3], image, height, "share") if names is None else _scale_below(figure, axes, image)
    return figure


def _block(axis: Axes, part: np.ndarray, emotions: Sequence[str], title: str) -> Any:
    axis.set_facecolor(GONE)
    image = axis.imshow(np.ma.masked_less(part, 0), cmap=AMOUNT, vmin=0, vmax=1, aspect="auto")
    cells(axis, *part.shape)
    axis.set_xticks(range(len(emotions)), [short(name, 12) for name in emotions], rotation=90)
    axis.set_title(title, fontsize=9.5)
    return image


def _use(axis: Axes, use: np.ndarray, names: Sequence[str] | None, room: float) -> None:
    axis.barh(np.arange(len(use)), 100 * use, color=BLUE, height=0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_title("use, %", fontsize=9.5)
    axis.locator_params(axis="x", nbins=2, integer=True)
    for rule, name in enumerate(names or ()):
        axis.annotate(fit(name, room - 0.2), (1, rule), xycoords=("axes fraction", "data"), xytext=(8, 0),
                      textcoords="offset points", va="center", fontsize=9, color=INK)  # fmt: skip


def _scale_below(figure: Figure, axes: Sequence[Axes], image: Any) -> None:
    bar = figure.colorbar(image, ax=list(axes[:3]), location="bottom", pad=0.01, aspect=60, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.set_label("share of votes, or of the answer")


@drawn
def fusion(scores: Sequence[Mapping[str, Any]], *, targets: Mapping[str, float] | None = None) -> Figure:
    """Divergence of every method with its interval over actors, and its paired difference to a base on the same clips.

    Differences beyond 0.02 nat lie outside the right side and are left out there.

    Args:
        scores: of each method `method`, `kl`, `kl_low`, `kl_high`, and of all or none `gap`, `gap_low`, `gap_high`.
        targets: name -> divergence, drawn as a line.

    Raises:
        ResultError: if there are no scores or one is no finite number.

    Source: ours.
    """
    some("scores", scores)
    values = _columns(scores, "kl_low", "kl", "kl_high")
    names = [short(one["method"], 52) for one in scores]
    colours = [BLUE if "rules" in one["method"] else GREY for one in scores]
    is_paired = all("gap" in one for one in scores)
    figure = sheet(min((6.6 if is_paired else 4.4) + max(map(width_of, names)), 10.4), 1.35 + 0.24 * len(names))
    axes = figure.subplots(1, 1 + is_paired, sharey=True, squeeze=False)[0]
    _intervals(axes[0], values, colours)
    for number, (name, target) in enumerate((targets or {}).items()):
        axes[0].axvline(target, color=SOFT, linewidth=1, linestyle=("--", ":")[number % 2], label=short(name, 40))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_xscale("log")
    ticks = [tick for tick in (0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 1.5) if values.min() < tick < values.max()]
    axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].minorticks_off()
    axes[0].set_xlabel("KL, nat (logarithmic)")
    if is_paired:
        gaps = _columns(scores, "gap_low", "gap", "gap_high")
        _intervals(axes[1], np.where(np.abs(gaps[:, [1]]) <= 0.02, gaps, np.nan), colours)
        axes[1].axvline(0, color=INK, linewidth=0.8)
        axes[1].locator_params(axis="x", nbins=5)
        axes[1].set_xlabel("minus softmax regression, nat")
    if targets:
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _columns(scores: Sequence[Mapping[str, Any]], *keys: str) -> np.ndarray:
    return finite("scores", [[one[key] for key in keys] for one in scores], len(scores), len(keys))


def _intervals(axis: Axes, values: np.ndarray, colours: Sequence[str]) -> None:
    """One dot and its interval per row of (low, mean, high)."""
    for row, ((low, mean, high), colour) in enumerate(zip(values, colours, strict=True)):
        axis.plot([low, high], [row, row], color=colour, linewidth=1.4)
        axis.plot([mean], [row], "o", color=colour, markersize=4.5)
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
