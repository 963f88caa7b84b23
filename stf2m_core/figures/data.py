"""Figures of data: a pack, a clip's views or an episode enter, a Figure leaves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from stf2m_core.data.pack import Pack, RaggedViews
from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    AMOUNT, COLOURS, FAINT, GONE, GREY, INK, MODALITY, SIGNED, SOFT, cells, drawn, fit, name_x, name_y, sheet, short,
    some, width_of,
)  # fmt: skip
from stf2m_core.shapes import EpisodeBatch

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
    facts = [short(clip["clip_id"], 30), clip["label"] or "label undefined", f"subject {short(clip['subject'], 16)}"]
    said = f"\n“{short(clip['text'], 80)}”" if clip["text"] else ""
    figure.suptitle(" · ".join(facts) + said, x=0.01, ha="left")
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
    n_frames = f"{upper - lower} frame{'s' if upper - lower != 1 else ''}"
    axis.set_title(f"{modality} · {n_frames if mask.any() else 'not observed'}", color=INK)
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
    bar = axis.figure.colorbar(mesh, ax=axis, pad=0.01, aspect=12, ticks=[-3, 0, 3])
    bar.outline.set_visible(False)
    bar.set_label("deviation (sd)")


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
    name_x(axis, [short(name, 14) for name in names], 6.4)
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
    names = [short(label) for label in pack.labels] + ["(undefined)"]
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
        bar = figure.colorbar(image, ax=right, pad=0.02, aspect=14)
        bar.outline.set_visible(False)
        bar.set_label("clips per cell")
    name_x(heat, [short(name, 14) for name in subjects], width)
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
    top.set_title(f"{short(pack.name, 30)}: {len(pack.clips)} clips, {len(pack.labels)} labels, {len(subjects)} subjects")
    return figure


def _numbers(axis: Axes, counts: np.ndarray) -> None:
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if count > 0.55 * counts.max() else INK
        axis.text(j, i, str(count), ha="center", va="center", fontsize=9, color=colour if count else SOFT)


CELL, SEAM, GAP = 0.96, 0.06, 0.3  # inches: a clip's cell with its seam, room between support and query
MOST_CELLS = 7


@drawn
def episode(pack: Pack, batch: EpisodeBatch, index: int = 0) -> Figure:
    """One episode as a grid: a row per class, its support clips left, its query clips right.

    The colour, and the name in each cell, is the unit that support and query must not share: the subject, or, where
    support and query come from one subject (Regime P), the group.

    Args:
        pack: the data the episode was drawn from.
        batch: episodes.
        index: of the episode in the batch.

    Raises:
        ResultError: if the batch has no such episode.

    Source: ours.
    """
    if not 0 <= index < len(batch):
        raise ResultError(f"episode {index}", expected=f"0 to {len(batch) - 1}", where="figure")
    one = batch[index : index + 1]
    classes, support, query = (getattr(one, name)[0].numpy() for name in ("classes", "support", "query"))
    queries = [query[one.query_label[0].numpy() == way] for way in range(len(classes))]
    unit, title = _sides(pack, support.reshape(-1), query)
    n_support, n_query = _columns(support.shape[1], max(map(len, queries)))
    names = [short(pack.labels[c], 24) for c in classes]
    margin = 0.25 + max(map(width_of, names))
    width = max(margin + (n_support + n_query) * CELL + GAP, 0.3 + width_of(title, 9.5))
    figure = sheet(width, 1.25 + 0.5 * len(classes))
    axis = figure.subplots()
    known = {name: i for i, name in enumerate(dict.fromkeys(unit[np.concatenate([support.reshape(-1), query])]))}
    clips = _tails(pack, np.concatenate([support.reshape(-1), query]))
    for way in range(len(classes)):
        for rows, start, most in ((support[way], 0.0, n_support), (queries[way], n_support * CELL + GAP, n_query)):
            _cells(axis, rows, start, way, most, unit, known, clips)
    axis.set_xlim(-0.03, width - margin)
    axis.set_ylim(len(classes) - 0.5, -0.85)
    axis.spines[:].set_visible(False)
    axis.set_yticks(np.arange(len(classes)), names)
    axis.set_xticks([])
    axis.tick_params(length=0)
    for at, text in ((0, "support"), (n_support * CELL + GAP, "query")):
        axis.text(at, -0.62, text, fontweight="bold", va="center")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    return figure


def _columns(n_shot: int, n_query: int) -> tuple[int, int]:
    """Cells shown of support and of query; a cell that says how many are left out counts as one."""
    n_support = min(n_shot, max(MOST_CELLS - n_query, MOST_CELLS // 2))
    return n_support, max(min(n_query, MOST_CELLS - n_support), 1)


def _sides(pack: Pack, support: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, str]:
    """The unit of every clip of the pack that must not be shared, and the sentence that says whether."""
    column = {name: pack.clips[name].to_numpy(str) for name in ("subject", "group")}
    people = set(column["subject"][support]) | set(column["subject"][query])
    kind = "group" if len(people) == 1 else "subject"
    unit = column[kind]
    sides = set(unit[support]), set(unit[query])
    n_support, n_query, n_shared = len(sides[0]), len(sides[1]), len(sides[0] & sides[1])
    who = f"subject {short(people.pop(), 16)}: " if kind == "group" else ""
    words = [f"{n} {kind}{'s' if n != 1 else ''}" for n in (n_support, n_query)]
    shared = "none shared" if n_shared == 0 else f"{n_shared} SHARED"
    legend = f"colour and upper line: {kind}; lower line: clip"
    return unit, f"{who}support of {words[0]}, query of {words[1]}, {shared}\n{legend}"


def _tails(pack: Pack, rows: np.ndarray) -> dict[int, str]:
    """Clip ids without the subject's name and without the parts that all of them begin with."""
    marks = "-_/. "
    ids = {}
    for row in rows.tolist():
        clip, subject = (str(pack.clips[name].iloc[row]) for name in ("clip_id", "subject"))
        ids[row] = clip.removeprefix(subject).removesuffix(subject).strip(marks) or clip
    first, last = min(ids.values()), max(ids.values())
    n_same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    while n_same > 0 and first[n_same - 1] not in marks:
        n_same -= 1
    return {row: text[n_same:] or text for row, text in ids.items()}


def _cells(
    axis: Axes, rows: np.ndarray, start: float, way: int, most: int, unit: np.ndarray, known: dict[str, int],
    clips: dict[int, str],
) -> None:  # fmt: skip
    shown = rows if len(rows) <= most else rows[: most - 1]
    for number, row in enumerate(shown.tolist()):
        colour = COLOURS[known[unit[row]] % len(COLOURS)]
        at = start + number * CELL
        box = FancyBboxPatch((at, way - 0.42), CELL - SEAM, 0.84, boxstyle="round,pad=0,rounding_size=0.06",
                             facecolor=f"{colour}33", edgecolor=colour, linewidth=1)  # fmt: skip
        axis.add_patch(box)
        middle, room = at + (CELL - SEAM) / 2, CELL - SEAM - 0.06
        axis.text(middle, way - 0.19, fit(unit[row], room, "bold"), ha="center", va="center", fontsize=9, fontweight="bold")
        axis.text(middle, way + 0.2, fit(clips[row], room), ha="center", va="center", fontsize=9, color=INK)
    if len(rows) > most:
        axis.text(start + (most - 1) * CELL + 0.1, way, f"+ {len(rows) - most + 1}", va="center", color=SOFT)
    if len(rows) == 0:
        axis.text(start + 0.1, way, "none", va="center", color=SOFT)
