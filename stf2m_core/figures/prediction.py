"""The figure of one prediction: the answer with a glance at the recording enters, one sheet on one time axis leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stf2m_core.data.media.glance import Glance
from stf2m_core.figures.look import (
    COLOURS,
    FAINT,
    GONE,
    GREY,
    INK,
    PALE,
    RED,
    SOFT,
    counted,
    drawn,
    fit,
    sheet,
    short,
    shorts,
    width_of,
)  # fmt: skip
from stf2m_core.figures.strip import draw_strip, strip_height
from stf2m_core.prediction import RARE, Prediction, RuleReading, is_vague, typicality_in_words

_WIDTH, _LEFT, _SIDE = 10.4, 5.8, 3.7  # inches of the sheet, of its time axis and of the bars beside it with names
_HEAD, _GAP = 0.72, 0.42  # inches of the two lines above, and of a row's title
_NAMED = 5  # emotions that get a colour of their own
_OTHERS = "#C9C9C9"
_BARS = 2.6  # inches of the bars of rules
_KEY = 0.03  # width of an emotion's colour beside its bar


@drawn
def prediction(said: Prediction, seen: Glance | None = None, title: str = "") -> Figure:
    """What was said of a clip and why: the clip itself and the emotions over time, and beside it the whole clip.

    Rows that the clip does not have are left out. Emotions stand at the middles of their windows; where nothing was
    observed there is a gap.

    Args:
        said: the prediction.
        seen: pictures and sound of the same clip; None: for a clip of a pack, which has neither.
        title: in place of the clip's name.

    Source: ours.
    """
    rows = _rows(said, seen)
    side = _side(said)
    tall = sum(h + _GAP for h, _ in rows), sum(h + _GAP for h, _ in side)
    side += [(max(0.5, tall[0] - tall[1]), _verdict)]
    figure = sheet(_WIDTH, max(tall[0], tall[1] + 0.5) + _HEAD + 0.35)
    _head(figure, said, title)
    left, right = figure.add_gridspec(1, 2, width_ratios=[_LEFT + 0.7, _SIDE], wspace=0.04)
    colours = _colours(said)
    axes = _filled(figure, left, rows, said, seen, colours)
    for axis in axes:
        axis.set_xlim(0, said.duration_s)
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[-1].set_xlabel("time since the clip's start (s)")
    figure.align_ylabels(axes)
    _filled(figure, right, side, said, seen, colours)
    return figure


def _head(figure: Figure, said: Prediction, title: str) -> None:
    """The clip and its answer, and in small print where the answer comes from, above all axes."""
    height = figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _HEAD / height))
    answer = f"  ·  {short(said.answer)} {said.probability.max():.0%}"
    room = _WIDTH - 0.2 - width_of(answer, 14, "bold")
    head = fit(title or said.clip, room * 9 / 14, "bold") + answer
    above = figure.suptitle(head, x=0.008, y=1 - 0.09 / height, ha="left", va="top", fontsize=14, fontweight="bold")
    above.set_in_layout(False)  # its room is kept free already
    figure.text(0.008, 1 - 0.42 / height, _small_print(said), color=SOFT, fontsize=10, va="top")


Draw = Callable[[Axes, Prediction, Glance, dict[str, str]], None]


def _filled(figure: Figure, place: object, rows: list[tuple[float, Draw]], said: Prediction, seen: Glance | None,
            colours: dict[str, str]) -> list[Axes]:  # fmt: skip
    grid = place.subgridspec(len(rows), 1, height_ratios=[height for height, _ in rows])
    axes = [figure.add_subplot(grid[number]) for number in range(len(rows))]
    for axis, (_, draw) in zip(axes, rows, strict=True):
        draw(axis, said, seen, colours)
    return axes


def _small_print(said: Prediction) -> str:
    whose = {"own": "of the same person", "others": "of other people"}
    if said.source == "none":
        text = f"not adapted: what meta-training knows of {counted(len(said.labels), 'emotion')}"
    else:
        text = f"adapted to {counted(len(said.support), 'clip')} of {counted(len(said.labels), 'emotion')} "
        text += whose[said.source]
    return f"{text}; probabilities are calibrated on people of meta-validation"


def _rows(said: Prediction, seen: Glance | None) -> list[tuple[float, Draw]]:
    """Height in inches and drawing function of each row on the time axis."""
    partly = len(said.modalities) > 1 or bool((said.timeline.observed < 0.95).any())
    rows = [
        (strip_height(seen, _LEFT), _pictures, seen is not None and len(seen.pictures) > 0),
        (0.62, _sound, seen is not None and len(seen.outline) > 0),
        (0.3, _words, len(said.words) > 0),
        (2.0, _emotions, True),
        (0.18 * len(said.modalities) + 0.05, _observed, partly),
        (0.72, _typicality, said.typicality is not None),
    ]
    return [(height, draw) for height, draw, there in rows if there]


def _side(said: Prediction) -> list[tuple[float, Draw]]:
    """Height in inches and drawing function of what is said of the whole clip."""
    rows = [
        ((0.36 if _has_long_names(said) else 0.19) * min(len(said.labels), 8) + 0.1, _whole, True),
        (0.24 * len(said.modalities) + 0.1, _modalities, True),
        (0.36 * len(said.rules) + 0.1, _rules, len(said.rules) > 0),
    ]
    return [(height, draw) for height, draw, there in rows if there]


def _colours(said: Prediction) -> dict[str, str]:
    """A colour for each of the emotions that matter most somewhere in the clip; the others share a grey."""
    line = said.timeline.probability
    peak = np.maximum(said.probability, np.nan_to_num(line).max(0, initial=0.0))
    n_named = len(said.labels) if len(said.labels) <= _NAMED + 1 else _NAMED
    order = np.argsort(-(peak + said.probability), kind="stable")[:n_named]
    return {said.labels[way]: colour for way, colour in zip(order, COLOURS, strict=False)}


def _pictures(axis: Axes, said: Prediction, seen: Glance, _: dict[str, str]) -> None:
    draw_strip(axis, seen, said.duration_s, _LEFT)
    axis.set_ylim(0, 1)
    _bare(axis, "what is seen")


def _sound(axis: Axes, said: Prediction, seen: Glance, _: dict[str, str]) -> None:
    axis.vlines(seen.sound_times, seen.outline[:, 0], seen.outline[:, 1], color=SOFT, linewidth=0.8)
    reach = max(float(np.abs(seen.outline).max()), 1e-3)
    axis.set_ylim(-1.05 * reach, 1.05 * reach)
    _bare(axis, "what is heard")


def _bare(axis: Axes, title: str) -> None:
    axis.set_title(title)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _words(axis: Axes, said: Prediction, _: Glance, __: dict[str, str]) -> None:
    """The words at their times; one that would touch the last is left to its tick."""
    second, end = _LEFT / said.duration_s, -1.0
    for word, time in zip(said.words, said.word_times, strict=True):
        half = width_of(word, 9) / 2 / second
        middle = min(max(time, half), said.duration_s - half)
        axis.vlines(time, 0.75, 1.0, color=FAINT, linewidth=1.4)
        if middle - half > end:
            axis.text(middle, 0.3, word.replace("$", r"\$"), ha="center", va="center", color=INK, fontsize=9)
            end = middle + half + 0.12 / second
    axis.set_ylim(0, 1)
    _bare(axis, "what is said")


def _emotions(axis: Axes, said: Prediction, _: Glance, colours: dict[str, str]) -> None:
    """Probabilities as bands on top of each other, named where they are widest."""
    line = said.timeline
    length = float(np.diff(line.spans[0])[0])
    right = next((r.accuracy for name, r in said.calibration.items() if "windows" in name), None)
    axis.set_title(f"emotion over time · windows of {length:.3g} s"
                   + ("" if right is None else f", {right:.0%} right in meta-validation"))  # fmt: skip
    axis.set_facecolor(GONE)
    order = sorted(colours, key=lambda label: -said.probability[said.labels.index(label)])
    columns = [line.probability[:, said.labels.index(label)] for label in order]
    columns.append(line.probability.sum(1) - np.sum(columns, 0))
    for part in _runs(np.isfinite(line.probability[:, 0])):
        _bands(axis, said, part, [*zip([*order, "others"], [*map(colours.get, order), _OTHERS], columns, strict=True)])
    for part in _runs(~np.isfinite(line.probability[:, 0])):
        times = _edged(line.spans, part, said.duration_s)
        if (times[-1] - times[0]) * _LEFT / said.duration_s > width_of("nothing observed") + 0.1:
            axis.text(times[[0, -1]].mean(), 0.5, "nothing observed", ha="center", va="center", color=SOFT, fontsize=9)
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    axis.set_ylabel("probability")


def _bands(axis: Axes, said: Prediction, part: np.ndarray, bands: list[tuple[str, str, np.ndarray]]) -> None:
    """One run of windows that have an answer, from the bottom up; paler where a window has no other beside it."""
    spans = said.timeline.spans
    times = _edged(spans, part, said.duration_s)
    low = np.zeros(len(times))
    for label, colour, column in bands:
        high = low + _extended(column[part])
        axis.fill_between(times, low, high, color=colour, linewidth=0)
        if low.any():
            axis.plot(times, low, color="white", linewidth=0.8)
        _name_band(axis, times, low, high, label, said.duration_s, colour)
        low = high
    if len(spans) > 1:
        for first, last in _halves(spans, part, times):
            axis.axvspan(first, last, color="white", alpha=0.35, linewidth=0)


def _runs(there: np.ndarray) -> list[np.ndarray]:
    """Indices of consecutive windows that have an answer."""
    index = np.flatnonzero(there)
    return [] if not index.size else np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)


def _edged(spans: np.ndarray, part: np.ndarray, duration: float) -> np.ndarray:
    """Middles of a run of windows, from the start of the clip or half-way from the window before, likewise to the end.

    A gap is thus as wide as the windows without an answer, and runs do not overlap as their windows do.
    """
    middle, first, last = spans.mean(1), part[0], part[-1]
    start = spans[0, 0] if first == 0 else middle[first - 1 : first + 1].mean()
    end = min(spans[-1, 1], duration) if last == len(spans) - 1 else middle[last : last + 2].mean()
    return np.concatenate([[start], middle[part], [end]])


def _halves(spans: np.ndarray, part: np.ndarray, times: np.ndarray) -> list[tuple[float, float]]:
    """From the clip's ends to the first and the last middle: half a window, for which no other stands."""
    halves = [(times[0], times[1])] if part[0] == 0 else []
    return [*halves, (times[-2], times[-1])] if part[-1] == len(spans) - 1 else halves


def _extended(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:1], values, values[-1:]])


def _name_band(axis: Axes, times: np.ndarray, low: np.ndarray, high: np.ndarray, label: str, duration: float,
               colour: str) -> None:  # fmt: skip
    """Write the name into the band where it is widest, if it fits there."""
    name = fit(label, 2.3, "bold")
    half = (width_of(name, 10, "bold") / 2 + 0.05) / (_LEFT / duration)
    fine = np.linspace(times[0], times[-1], 200)
    under, over = np.interp(fine, times, low), np.interp(fine, times, high)
    inside = (fine - half >= times[1] - 1e-9) & (fine + half <= times[-2] + 1e-9)
    if not inside.any():  # a single window, or a few: the whole breadth is one answer
        inside = (fine - half >= times[0]) & (fine + half <= times[-1])
    if not inside.any():
        return
    # the room for the whole word, not only at its middle
    reach = max(1, int(half / (fine[1] - fine[0])))
    padded = [np.pad(edge, reach, mode="edge") for edge in (under, over)]
    floor = np.lib.stride_tricks.sliding_window_view(padded[0], 2 * reach + 1).max(1)
    roof = np.lib.stride_tricks.sliding_window_view(padded[1], 2 * reach + 1).min(1)
    room = np.where(inside, roof - floor, -1)
    best = int((room - 1e-3 * np.linspace(-1, 1, len(fine)) ** 2).argmax())  # of equal places the middle one
    if room[best] > 0.095:
        colour = INK if colour in (*PALE, _OTHERS) else "white"
        axis.text(fine[best], (floor[best] + roof[best]) / 2, name, ha="center", va="center", color=colour, fontsize=10,
                  fontweight="bold")  # fmt: skip


def _observed(axis: Axes, said: Prediction, _: Glance, __: dict[str, str]) -> None:
    """For each modality a thread whose strength is the share that was observed."""
    line, n = said.timeline, len(said.modalities)
    edges = np.concatenate([[0], line.spans.mean(1)[:-1] + np.diff(line.spans.mean(1)) / 2, [said.duration_s]])
    for number in range(n):
        axis.barh(number, said.duration_s, height=0.62, color=GONE)
        for first, last, share in zip(edges[:-1], edges[1:], line.observed[:, number], strict=True):
            axis.add_patch(Rectangle((first, number - 0.31), last - first, 0.62, color=SOFT, alpha=float(share),
                                     linewidth=0))  # fmt: skip
    axis.set_yticks(range(n), [short(reading.name, 12) for reading in said.modalities])
    axis.set_ylim(n - 0.5, -0.5)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title("what could be observed")


def _typicality(axis: Axes, said: Prediction, _: Glance, __: dict[str, str]) -> None:
    """Typicality over time above the zone of unusual clips."""
    line = said.timeline
    axis.set_title("how typical · rank among clips of meta-validation; red: unusual")
    axis.axhspan(0, RARE, color=RED, alpha=0.18, linewidth=0)
    axis.axhspan(0.25, 0.75, color=GONE, linewidth=0)
    for part in _runs(np.isfinite(line.typicality)):
        axis.plot(_edged(line.spans, part, said.duration_s), _extended(line.typicality[part]), color=INK)
    low = np.isfinite(line.typicality) & (line.typicality < RARE)
    if low.any():
        axis.plot(line.spans.mean(1)[low], line.typicality[low], "o", color=RED, markersize=4, clip_on=False)
    axis.set_ylim(0, 1.04)
    axis.set_yticks([0, 0.5, 1], ["0", ".5", "1"])


def _whole(axis: Axes, said: Prediction, _: Glance, colours: dict[str, str]) -> None:
    """Probabilities of the whole clip, the largest first."""
    order = np.argsort(-said.probability, kind="stable")[:8]
    names = [said.labels[way] for way in order]
    is_long = _has_long_names(said)
    _bars(axis, [""] * len(order) if is_long else list(map(short, names)), said.probability[order],
          [colours.get(name, _OTHERS) for name in names], 0.4 if is_long else 0.72)  # fmt: skip
    # a key beside the bar, since a band over time may be too thin for its name, and a bar too short to be seen
    keys = [colours.get(name, _OTHERS) for name in names]
    axis.barh(range(len(order)), _KEY, left=-1.6 * _KEY, height=0.4 if is_long else 0.72, color=keys)
    for row, way in enumerate(order):
        axis.text(said.probability[way] + 0.02, row, f"{said.probability[way]:.0%}", va="center", fontsize=9,
                  fontweight="bold" if row == 0 else "normal")  # fmt: skip
    for row, name in enumerate(shorts(names, 32) if is_long else []):
        axis.text(0.015, row + 0.44, name, va="center", fontsize=9, color=SOFT)
    if is_long:
        axis.set_ylim(len(order) - 0.3, -0.3)
    axis.set_xlim(-1.8 * _KEY, 1.15)
    axis.axvline(0, color=SOFT, linewidth=0.8)
    axis.spines[["left"]].set_visible(False)
    more = f" · the {len(order)} likeliest of {len(said.labels)}" if len(order) < len(said.labels) else ""
    axis.set_title(f"the whole clip{more}")


def _has_long_names(said: Prediction) -> bool:
    """Whether the emotions' names need the room below their bars, beside which there is none."""
    return max(width_of(short(label, 99)) for label in said.labels) > 1.25


def _bars(axis: Axes, names: list[str], lengths: np.ndarray, colours: list[str], height: float = 0.72) -> None:
    axis.barh(range(len(names)), lengths, height=height, color=colours)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xticks([])
    axis.spines[["bottom"]].set_visible(False)
    axis.tick_params(length=0)


def _modalities(axis: Axes, said: Prediction, _: Glance, __: dict[str, str]) -> None:
    """What the answer loses without each modality, nat."""
    change = np.array([0.0 if m.change is None else m.change for m in said.modalities])
    _bars(axis, [short(m.name, 12) for m in said.modalities], change, [SOFT] * len(change))
    reach = max(0.5, float(np.abs(change).max()))
    lower = min(0.0, float(change.min()))
    axis.set_xlim(lower * 1.05, max(float(change.max()) + 0.55 * reach, 0.5))
    axis.axvline(0, color=SOFT, linewidth=0.8)
    for row, reading in enumerate(said.modalities):
        text = "absent" if reading.observed == 0 else "the only one there is"
        text = text if reading.change is None else f"{reading.change:+.2f} nat".replace("-", "−")
        at = 0.04 * reach if reading.change is None else max(change[row], 0) + 0.04 * reach
        axis.text(at, row, text, va="center", fontsize=9, color=SOFT if reading.change is None else INK)
    axis.spines[["left"]].set_visible(False)
    axis.set_title("what carries the answer")


def _rules(axis: Axes, said: Prediction, _: Glance, colours: dict[str, str]) -> None:
    """The rules that fired most: length is firing, the tick its usual firing, the colour what it stands for."""
    firing = np.array([rule.firing for rule in said.rules])
    tops = [None if is_vague(rule) else next(iter(rule.stands_for)) for rule in said.rules]
    reach = 1.25 * max(firing.max(), max(rule.usual for rule in said.rules), 1e-6)
    axis.barh(np.arange(len(firing)) - 0.18, firing, height=0.36, color=[colours.get(top, GREY) for top in tops])
    for row, rule in enumerate(said.rules):
        axis.vlines(rule.usual, row - 0.42, row + 0.06, color=INK, linewidth=1.2)
        text, end = f"{rule.firing:.0%}", firing[row] + 0.02 * reach
        hits_tick = end - 0.03 * reach < rule.usual < end + (width_of(text, 9) / _BARS + 0.03) * reach
        axis.text(rule.usual + 0.02 * reach if hits_tick else end, row - 0.18, text, va="center", fontsize=9)
        axis.text(0.015 * reach, row + 0.24, _meant(rule), va="center", fontsize=9, color=SOFT)
    axis.set_yticks(np.arange(len(firing)) - 0.18, [f"rule {rule.number}" for rule in said.rules])
    axis.set_ylim(len(firing) - 0.5, -0.5)
    axis.set_xlim(0, reach)
    axis.set_xticks([])
    axis.spines[["bottom"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title("rules that fire · tick: as usual")


def _meant(rule: RuleReading, room: float = 2.5) -> str:
    """The two emotions that a rule stands for most, or one where two do not fit into so many inches."""
    head = "vague: " if is_vague(rule) else ""
    parts = [f"{fit(label, 1.75)} {share:.0%}" for label, share in list(rule.stands_for.items())[:2]]
    both = head + ", ".join(parts)
    return both if width_of(both) <= room else head + parts[0]


def _verdict(axis: Axes, said: Prediction, _: Glance, __: dict[str, str]) -> None:
    """What the typicality means, in words."""
    axis.set_axis_off()
    axis.set(xticks=[], yticks=[])
    if said.typicality is not None:
        text = _broken(typicality_in_words(said.typicality, said.evidence))
        axis.text(0, 0.98, text, va="top", color=RED if said.typicality < RARE else INK, fontsize=9.5, linespacing=1.4)


def _broken(text: str, most: int = 40) -> str:
    """The text on lines of at most so many letters."""
    lines = [""]
    for word in text.split():
        lines = [*lines, word] if len(lines[-1]) + len(word) >= most else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return "\n".join(lines)
