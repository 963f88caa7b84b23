"""Figures of faces: landmarks with the graph that joins them enter, plain or in a pack, Figures leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from stf2m_core.data.pack import Pack
from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    AMOUNT,
    BLUE,
    COLOURS,
    FAINT,
    INK,
    SOFT,
    counted,
    drawn,
    finite,
    fit,
    scale,
    sheet,
    short,
    some,
    width_of,
)  # fmt: skip

_MOST_LABELS = 3  # more faces over each other cannot be told apart
_MOST_LINES = 5  # of words below a clip
_LONGEST = 0.18  # of an arrow, in distances between the outer corners of the eyes


@drawn
def face_graph(points: Any, edges: Any, titles: Sequence[str] = ()) -> Figure:
    """Landmarks of faces with the graph that joins them, one panel per face.

    Args:
        points: (face, landmark, 2); y points down, as in a picture.
        edges: (edge, 2) indices of landmarks.
        titles: one for each face, or none.

    Raises:
        ResultError: if sizes differ, there is no face, or an edge names a landmark that is not there.

    Source: ours.
    """
    points = finite("points", points, None, None, 2)
    some("faces", points)
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    if edges.size and (edges.min() < 0 or edges.max() >= points.shape[1]):
        raise ResultError(f"edges name landmarks {edges.min()} to {edges.max()}",
                          expected=f"0 to {points.shape[1] - 1}", where="figure")  # fmt: skip
    if titles and len(titles) != len(points):
        raise ResultError(f"{len(titles)} titles", expected=f"{len(points)}, one for each face", where="figure")
    figure = sheet(2.5 * len(points), 2.9 if titles else 2.6)
    axes = figure.subplots(1, len(points), sharex=True, sharey=True, squeeze=False)[0]
    for number, (axis, face) in enumerate(zip(axes, points, strict=True)):
        _graph(axis, face, edges)
        axis.scatter(face[:, 0], face[:, 1], s=7, color=INK, zorder=3, linewidths=0)
        if titles:
            axis.set_title(short(titles[number], 30), fontsize=9.5, loc="center")
    axes[0].invert_yaxis()
    return figure


@drawn
def face_tracks(pack: Pack, modality: str = "visual") -> Figure:
    """The graph of a pack's landmarks on its mean face: what moves, and where the labels differ.

    Left, each landmark's movement within a clip: the distance from its mean place there, root mean square, averaged
    over clips. Then, for each label, arrows from the mean of all clips to the mean of its own, enlarged as the title
    says. Every clip weighs the same; masked frames are left out.

    Args:
        pack: with a graph and the channels x and y of this modality.
        modality: its name.

    Raises:
        ResultError: if the modality has no graph or other channels, or the pack has more than three labels.
        PackError: if there is no such modality.

    Source: ours.
    """
    edges = _edges(pack, modality)
    place, movement = _clip_places(pack, modality)
    known = ~np.isnan(place).any(axis=(1, 2))
    labels = [label for label in pack.labels if (known & (pack.clips["label"] == label)).any()]
    if not 0 < len(labels) <= _MOST_LABELS:
        raise ResultError(f"{len(labels)} labels with a face", expected=f"1 to {_MOST_LABELS}", where=str(pack.path))
    mean = place[known].mean(axis=0)
    figure = sheet(min(10.4, 2.75 * (1 + len(labels)) + 0.6), 3.3)
    axes = figure.subplots(1, 1 + len(labels), sharex=True, sharey=True)
    _moving(axes[0], mean, edges, movement[known].mean(axis=0))
    shifts = [place[known & (pack.clips["label"] == label).to_numpy()].mean(axis=0) - mean for label in labels]
    longest = max(float(np.linalg.norm(shift, axis=1).max()) for shift in shifts)
    factor = max(1, int(_LONGEST / max(longest, 1e-6)))
    names = [fit(label, 1.4) for label in labels]
    if len(set(names)) < len(names):
        names = [f"{number} {fit(label, 1.2)}" for number, label in enumerate(labels, 1)]
    for axis, label, name, shift, colour in zip(axes[1:], labels, names, shifts, COLOURS, strict=False):
        _graph(axis, mean, edges, FAINT)
        tips = mean + factor * shift
        axis.add_collection(LineCollection(np.stack([mean, tips], axis=1), colors=colour, linewidths=1.3, zorder=3))
        axis.scatter(tips[:, 0], tips[:, 1], s=9, color=colour, zorder=4, linewidths=0)
        n_clips = int((known & (pack.clips["label"] == label)).sum())
        enlarged = f", arrows {factor} times as long" if factor > 1 else ""
        axis.set_title(f"{name} against all\n{counted(n_clips, 'clip')}{enlarged}", fontsize=9.5)
    axes[0].invert_yaxis()
    return figure


@drawn
def face_clip(pack: Pack, row: int, modality: str = "visual", *, n_faces: int = 6) -> Figure:
    """One clip as faces at even times, with its words below where they lie.

    Args:
        pack: with a graph and the channels x and y of this modality.
        row: of clips.csv.
        modality: its name.
        n_faces: as many are drawn, or fewer where fewer frames were seen.

    Raises:
        ResultError: if there is no such row, the modality has no graph, or no face was seen in the clip.

    Source: ours.
    """
    if not 0 <= row < len(pack):
        raise ResultError(f"row {row}", expected=f"0 to {len(pack) - 1}", where=str(pack.path))
    edges, (points, times) = _edges(pack, modality), _seen(pack, modality, row)
    clip = pack.clips.iloc[row]
    if len(points) == 0:
        raise ResultError(f"no face in clip {clip['clip_id']!r}", expected="one or more frames", where=str(pack.path))
    chosen = np.unique(np.linspace(0, len(points) - 1, n_faces).round().astype(int))
    inches, words = 1.35 * n_faces, clip["text"].split()
    room = 0.94 * inches / max(len(words), 1)
    n_lines = min(_MOST_LINES, max([math.ceil((width_of(word) + 0.1) / room) for word in words], default=1))
    figure = sheet(inches, 2.2 + 0.2 * n_lines)
    upper, lower = figure.subplots(2, 1, height_ratios=(1.7, 0.2 * n_lines), sharex=True)
    step = clip["duration_s"] / n_faces
    size = 0.42 * step / np.abs(points[chosen][..., 0]).max()
    tall = np.abs(points[chosen][..., 1]).max() * size * 1.1
    for number, at in enumerate(chosen):
        middle = (number + 0.5) * clip["duration_s"] / len(chosen)
        face = points[at] * size + [middle, 0]
        _graph(upper, face, edges, equal=False)
        upper.text(middle, tall * 1.12, f"{times[at]:.1f} s", ha="center", va="top", fontsize=9, color=SOFT)
    upper.set_ylim(tall * 1.35, -tall)
    upper.set_aspect("equal")
    _words(lower, [fit(word, n_lines * room - 0.1) for word in words], float(clip["duration_s"]), n_lines)
    upper.set_xlim(0, clip["duration_s"])
    figure.suptitle(fit(f"{clip['clip_id']} · {clip['label'] or 'label undefined'}", 0.8 * inches), x=0.01, ha="left")
    return figure


def _graph(axis: Axes, face: np.ndarray, edges: np.ndarray, colour: str = BLUE, *, equal: bool = True) -> None:
    lines = LineCollection(face[edges], colors=colour, linewidths=1.1, alpha=0.75 if colour == BLUE else 1.0)
    axis.add_collection(lines)
    _bare(axis)
    if equal:
        axis.set_aspect("equal")
        axis.autoscale_view()


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_axis_off()


def _moving(axis: Axes, mean: np.ndarray, edges: np.ndarray, movement: np.ndarray) -> None:
    _graph(axis, mean, edges, SOFT)
    dots = axis.scatter(mean[:, 0], mean[:, 1], s=22, c=movement, cmap=AMOUNT, vmin=0, zorder=3, edgecolors=INK,
                        linewidths=0.4)  # fmt: skip
    axis.set_title(f"{len(mean)} nodes, {counted(len(edges), 'edge')}\nmovement within a clip", fontsize=9.5)
    scale(axis, dots, 3.0, "distances between the eyes' corners")


def _words(axis: Axes, words: list[str], duration_s: float, n_lines: int) -> None:
    """The words in order, evenly over the clip, by turns on as many lines as keep them apart."""
    _bare(axis)
    axis.set_ylim(n_lines, 0)
    for number, word in enumerate(words):
        middle = (number + 0.5) / len(words) * duration_s
        axis.text(middle, number % n_lines + 0.5, word, ha="center", va="center", fontsize=9, color=INK)


def _edges(pack: Pack, modality: str) -> np.ndarray:
    channels = pack.view(modality).channels
    edges = pack.edges(modality)
    if edges is None or channels[:2] != ("x", "y"):
        what = "no graph" if edges is None else f"the channels {', '.join(channels)}"
        raise ResultError(f"{modality} has {what}", expected="edges, and the channels x and y", where=str(pack.path))
    return edges


def _seen(pack: Pack, modality: str, row: int) -> tuple[np.ndarray, np.ndarray]:
    """(frame, node, 2) places and (frame,) seconds of the frames in which every node was seen."""
    views = pack.view(modality)
    own = slice(int(views.offsets[row]), int(views.offsets[row + 1]))
    points = np.asarray(views.values[own, :, :2], np.float64)
    seen = np.ones(len(points), bool) if views.mask is None else (views.mask[own] > 0).all(axis=1)
    times = np.arange(len(points)) / views.rate_hz if views.times is None else np.asarray(views.times[own])
    return points[seen], times[seen]


def _clip_places(pack: Pack, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """(clip, node, 2) mean places and (clip, node) movement about them; NaN for a clip in which no face was seen."""
    n_nodes = len(pack.view(modality).nodes)
    place, movement = np.full((len(pack), n_nodes, 2), np.nan), np.full((len(pack), n_nodes), np.nan)
    for row in range(len(pack)):
        points, _ = _seen(pack, modality, row)
        if len(points):
            place[row] = points.mean(axis=0)
            movement[row] = np.sqrt(((points - place[row]) ** 2).sum(axis=2).mean(axis=0))
    return place, movement
