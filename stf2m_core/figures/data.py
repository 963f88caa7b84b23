"""Figures of data: a pack, or one clip of it, enters, a Figure leaves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stf2m_core.data.pack import Pack, RaggedViews
from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    AMOUNT,
    COLOURS,
    FAINT,
    GONE,
    GREY,
    INK,
    MODALITY,
    SIGNED,
    SOFT,
    cells,
    counted,
    drawn,
    fit,
    name_x,
    name_y,
    scale,
    sheet,
    short,
    shorts,
    some,
)  # fmt: skip

MOST_LINES = 8  # more series than this are drawn as an image


@drawn
def views(pack: Pack, row: int) -> Figure:
    """One clip's modalities over one time axis, seconds.

    A modality with few series is drawn as lines, with many as an image; both show each series' deviation from its own
    mean over the clip, in standard deviations, since series differ in unit. A modality with a single frame is drawn
    as bars of its values. Masked values are left out.

    Args:
        pack: the data.
        row: of clips.csv.

    Raises:
        ResultError: if the pack has no such row.

    Source: ours.
    """
    if not 0 <= row < len(pack.clips):
        raise ResultError(f"row {row}", expected=f"0 to {len(pack.clips) - 1}", where=str(pack.path))
    clip = pack.clips.iloc[row]
    modalities = sorted(pack.modalities, key=lambda m: _n_frames(pack.view(m), row) == 1)  # bars, without time, last
    heights = [1.15 if len(pack.view(m).nodes) * len(pack.view(m).channels) <= 2 else 1.75 for m in modalities]
    figure = sheet(8, 0.95 + sum(heights) + 0.35 * len(heights))
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    duration = float(clip["duration_s"])
    drawn_over_time = [
        _view(axis, pack.view(m), m, row, duration, height)
        for axis, m, height in zip(axes, modalities, heights, strict=True)
    ]
    timed = [axis for axis, is_timed in zip(axes, drawn_over_time, strict=True) if is_timed]
    for axis in timed:
        axis.set_xlim(0, duration)
        axis.tick_params(labelbottom=axis is timed[-1])
    if timed:
        timed[-1].set_xlabel("time since the clip's start (s)")
    facts = " · ".join((clip["clip_id"], clip["label"] or "label undefined", f"subject {clip['subject']}"))
    lines = [facts] + ([f"“{clip['text']}”"] if clip["text"] else [])
    figure.suptitle("\n".join(fit(line, 6.2) for line in lines), x=0.01, ha="left")  # 6.2 inches at 9 points
    figure.align_ylabels(axes)
    return figure


def _n_frames(view: RaggedViews, row: int) -> int:
    return int(view.offsets[row + 1] - view.offsets[row])


def _view(axis: Axes, view: RaggedViews, modality: str, row: int, duration: float, height: float) -> bool:
    """Draw one modality; True if x is time."""
    lower, upper = int(view.offsets[row]), int(view.offsets[row + 1])
    values = np.array(view.values[lower:upper], np.float64)
    mask = np.ones(values.shape[:2], bool) if view.mask is None else np.array(view.mask[lower:upper]) > 0
    values[~mask] = np.nan
    draw = _lines if values[0:1].size <= MOST_LINES else _image
    axis.set_title(f"{modality} · {counted(upper - lower, 'frame') if mask.any() else 'not observed'}")
    if not mask.any():
        axis.set_yticks([])
        axis.set_facecolor(GONE)
        return True
    if len(values) == 1:
        _bars(axis, values[0], view, modality)
        return False
    draw(axis, _times(view, lower, upper, duration), values.reshape(len(values), -1), view, modality, height)
    return True


def _times(view: RaggedViews, lower: int, upper: int, duration: float) -> np.ndarray:
    """(time,) seconds; frames without stamps or rate are spread evenly."""
    n = upper - lower
    if view.times is not None:
        return np.array(view.times[lower:upper], np.float64)
    step = duration / n if view.rate_hz is None else 1 / view.rate_hz
    return (np.arange(n) + 0.5) * step


def _standardised(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(time, series) minus its mean, over its standard deviation, and the (series,) mean; NaN stays NaN.

    A constant series becomes 0, a series without any value keeps the mean NaN.
    """
    seen = np.isfinite(series)
    count = seen.sum(0)
    mean = np.where(seen, series, 0).sum(0) / np.maximum(count, 1)
    deviation = np.sqrt((np.where(seen, series - mean, 0) ** 2).sum(0) / np.maximum(count, 1))
    return (series - mean) / np.where(deviation > 1e-9, deviation, 1), np.where(count > 0, mean, np.nan)


def _series_names(view: RaggedViews) -> list[str]:
    if len(view.channels) == 1:
        return [short(node, 18) for node in view.nodes]
    if len(view.nodes) == 1:
        return [short(channel, 18) for channel in view.channels]
    return [short(f"{node} {channel}", 18) for node in view.nodes for channel in view.channels]


def _lines(axis: Axes, times: np.ndarray, series: np.ndarray, view: RaggedViews, modality: str, height: float) -> None:
    n, step = series.shape[1], 5.0  # standard deviations between neighbouring lines
    series, mean = _standardised(series)
    beside = axis.get_yaxis_transform()
    axis.text(1.01, 1.0, "mean", transform=axis.transAxes, fontsize=9, color=SOFT, va="bottom")
    for number in range(n):
        colour = MODALITY.get(modality, GREY)
        axis.axhline(number * step, color=FAINT, linewidth=0.7)
        axis.plot(times, number * step - series[:, number], color=colour, linewidth=1.1, marker=".", markersize=2.5)
        said = f"{mean[number]:.2f}".replace("-", "−") if np.isfinite(mean[number]) else "none"
        axis.text(1.01, number * step, said, transform=beside, fontsize=9, color=SOFT, va="center")
    axis.set_ylim((n - 0.4) * step, -0.6 * step)
    name_y(axis, _series_names(view), height, np.arange(n) * step)
    axis.tick_params(axis="y", length=0)


def _image(axis: Axes, times: np.ndarray, series: np.ndarray, view: RaggedViews, modality: str, height: float) -> None:
    series = _standardised(series)[0]
    middle = (times[1:] + times[:-1]) / 2
    edges = np.concatenate([[max(0, 2 * times[0] - middle[0])], middle, [2 * times[-1] - middle[-1]]])
    edges = np.maximum.accumulate(edges)
    axis.set_facecolor(GONE)
    mesh = axis.pcolormesh(edges, np.arange(series.shape[1] + 1) - 0.5, np.ma.masked_invalid(series.T), cmap=SIGNED,
                           vmin=-3, vmax=3, rasterized=True)  # fmt: skip
    axis.set_ylim(series.shape[1] - 0.5, -0.5)
    is_one = len(view.nodes) == 1
    names = view.channels if is_one else view.nodes
    block = 1 if is_one else len(view.channels)
    name_y(axis, [short(name, 18) for name in names], height, np.arange(len(names)) * block + (block - 1) / 2)
    axis.tick_params(axis="y", length=0)
    scale(axis, mesh, height, "deviation (sd)", ticks=[-3, 0, 3])


def _bars(axis: Axes, values: np.ndarray, view: RaggedViews, modality: str) -> None:
    """(node, channel) values of a single frame, as bars in groups."""
    by_node = len(view.nodes) > 1
    names = view.nodes if by_node else view.channels
    groups = values if by_node else values.T
    width = 0.8 / groups.shape[1]
    first = MODALITY.get(modality, GREY)
    colours = [first] + [colour for colour in COLOURS if colour != first]
    for number, column in enumerate(groups.T):
        at = np.arange(len(names)) - 0.4 + (number + 0.5) * width
        label = short(view.channels[number], 18) if by_node else None
        axis.bar(at, np.nan_to_num(column), width * 0.92, color=colours[number % len(colours)], label=label)
    axis.axhline(0, color=SOFT, linewidth=0.8)
    axis.set_xlim(-0.6, max(len(names) - 0.4, 8))
    name_x(axis, shorts(names, 14), 6.4)
    axis.set_ylabel("value")
    if by_node and len(view.channels) > 1 and len(view.channels) <= MOST_LINES:
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(view.channels), borderpad=0, handlelength=1)


@drawn
def label_counts(pack: Pack) -> Figure:
    """How many clips there are per label and subject, with the sums of rows and columns as bars.

    Args:
        pack: the data; clips without a defined label get a row of their own.

    Raises:
        ResultError: if the pack has no clips.

    Source: ours.
    """
    some("clips", pack.clips)
    subjects, subject = np.unique(pack.clips["subject"].to_numpy(str), return_inverse=True)
    counts = np.zeros((len(pack.labels) + 1, len(subjects)), int)
    np.add.at(counts, (pack.label_ids, subject), 1)  # -1, undefined, is the last row
    names = [*shorts(pack.labels), "(undefined)"]
    if counts[-1].sum() == 0:
        counts, names = counts[:-1], names[:-1]
    height, width = max(0.24 * len(names), 0.6), 4.6
    figure = sheet(8, height + 2.2)
    axes = figure.subplots(2, 2, height_ratios=[0.7, height], width_ratios=[width, 1.2], sharex="col", sharey="row")
    heat, top, right = axes[1, 0], axes[0, 0], axes[1, 1]
    axes[0, 1].remove()
    image = heat.imshow(counts, cmap=AMOUNT, aspect="auto", vmin=0)
    cells(heat, *counts.shape)
    if len(subjects) <= 20 and counts.max() < 1000:
        _numbers(heat, counts)
    else:
        scale(right, image, height, "clips per cell")
    name_x(heat, shorts(subjects, 14), width)
    name_y(heat, names, height)
    heat.set_xlabel("subject")
    top.bar(np.arange(len(subjects)), counts.sum(0), 0.8, color=SOFT)
    right.barh(np.arange(len(names)), counts.sum(1), 0.8, color=SOFT)
    top.tick_params(axis="x", which="both", length=0, labelbottom=False)
    right.tick_params(axis="y", which="both", length=0, labelleft=False)
    right.locator_params(axis="x", nbins=2)
    top.locator_params(axis="y", nbins=2)
    right.set_xlabel("clips per label")
    top.set_ylabel("clips per\nsubject")
    size = ", ".join(map(counted, (len(pack.clips), len(pack.labels), len(subjects)), ("clip", "label", "subject")))
    top.set_title(f"{short(pack.name, 30)}: {size}")
    return figure


def _numbers(axis: Axes, counts: np.ndarray) -> None:
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if count > 0.55 * counts.max() else INK
        axis.text(j, i, str(count), ha="center", va="center", fontsize=9, color=colour if count else SOFT)
