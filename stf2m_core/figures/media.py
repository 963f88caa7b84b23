"""Figures of recordings: what was read from one clip enters, with a glance at it, a Figure leaves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stf2m_core.data.media import ClipViews, Stream
from stf2m_core.data.media.glance import Glance
from stf2m_core.figures.look import (
    BLUE,
    FAINT,
    GONE,
    GREEN,
    INK,
    ORANGE,
    SOFT,
    drawn,
    fit,
    scale,
    sheet,
    width_of,
)  # fmt: skip
from stf2m_core.figures.strip import draw_strip, strip_height

_WIDTH, _LONG = 8.0, 6.6  # inches of the sheet, and of its time axis, about


@drawn
def recording(clip: ClipViews, seen: Glance, title: str = "") -> Figure:
    """One clip on one time axis: pictures, face regions, sound, spectrogram with pitch, words.

    Rows that the clip does not have are left out; what is masked is grey.

    Args:
        clip: as `read_clip` gives it.
        seen: pictures and sound of the same clip.
        title: above the figure.

    Source: ours.
    """
    rows = [(height, draw) for height, draw, there in _rows(clip, seen) if there]
    figure = sheet(_WIDTH, 0.9 + sum(height + 0.36 for height, _ in rows))
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[height for height, _ in rows])[:, 0]
    for axis, (height, draw) in zip(axes, rows, strict=True):
        axis.set_xlim(0, clip.duration_s)
        draw(axis, clip, seen, height)
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[-1].set_xlabel("time since the clip's start (s)")
    if title:
        figure.suptitle(fit(title, 6.2), x=0.01, ha="left")
    figure.align_ylabels(axes)
    return figure


def _rows(clip: ClipViews, seen: Glance) -> list[tuple[float, object, bool]]:
    """Height in inches, drawing function, and whether the clip has it."""
    return [
        (strip_height(seen, _LONG), _pictures, bool(seen.pictures)),
        (1.8, _regions, "visual" in clip.streams),
        (0.75, _outline, len(seen.outline) > 0),
        (1.6, _spectrogram, "audio" in clip.streams),
        (0.42, _words, "text" in clip.streams),
    ]


def _pictures(axis: Axes, clip: ClipViews, seen: Glance, height: float) -> None:
    """A strip of pictures with the box of the followed face."""
    axis.set_title("pictures and the followed face")
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    places = draw_strip(axis, seen, clip.duration_s, _LONG)
    for (time, (left, low, width, tall)), picture in zip(places, seen.pictures, strict=True):
        rows, columns = picture.shape
        _box(axis, clip, seen, time, (left, low, width / columns, tall / rows), rows)
    axis.set_xlim(0, clip.duration_s)


def _box(axis: Axes, clip: ClipViews, seen: Glance, time: float, place: tuple[float, ...], rows: int) -> None:
    if clip.track is None:
        return
    box = clip.track.boxes[np.argmin(np.abs(clip.track.times - time))] * seen.scale
    if np.isfinite(box).all():
        left, low, x, y = place
        corner = (left + box[0] * x, low + (rows - box[1] - box[3]) * y)
        axis.add_patch(Rectangle(corner, box[2] * x, box[3] * y, fill=False, edgecolor=ORANGE, linewidth=1.4, zorder=2))


def _edges(times: np.ndarray, duration: float) -> np.ndarray:
    """(frame + 1,) seconds between which each frame is drawn."""
    if len(times) == 1:
        return np.array([0.0, duration])
    middle = (times[1:] + times[:-1]) / 2
    return np.concatenate([[max(0, 2 * times[0] - middle[0])], middle, [min(duration, 2 * times[-1] - middle[-1])]])


def _image(axis: Axes, stream: Stream, values: np.ndarray, clip: ClipViews, colours: str, top: float | None) -> object:
    """(frame, row) values as an image over real time; NaN is grey."""
    axis.set_facecolor(GONE)
    times = stream.times.astype(np.float64)
    shown = values[np.isfinite(values)]
    lower, upper = (np.percentile(shown, [2, 99]) if shown.size else (0.0, 1.0)) if top is None else (0.0, top)
    rows = np.arange(values.shape[1] + 1) - 0.5
    mesh = axis.pcolormesh(_edges(times, clip.duration_s), rows, values.T, cmap=colours, vmin=lower,
                           vmax=max(upper, lower + 1e-6), rasterized=True)  # fmt: skip
    axis.set_xlim(0, clip.duration_s)
    return mesh


def _regions(axis: Axes, clip: ClipViews, _: Glance, height: float) -> None:
    stream = clip.streams["visual"]
    speed = stream.values[:, :, stream.channels.index("flow_speed")].astype(np.float64)
    speed[stream.mask == 0] = np.nan
    shown = speed[np.isfinite(speed)]
    top = max(0.2, float(np.percentile(shown, 98))) if shown.size else 1.0
    mesh = _image(axis, stream, speed, clip, "Blues", top)
    axis.set_title("visual · motion of the face's regions; grey: no face")
    names = [node.replace("_", " ") if node != "motion" else "head" for node in stream.nodes]
    axis.set_yticks(np.arange(len(names)), names)
    axis.invert_yaxis()
    scale(axis, mesh, height, "face widths / s")


def _outline(axis: Axes, clip: ClipViews, seen: Glance, _: float) -> None:
    axis.set_title("sound")
    axis.set_facecolor("white")
    axis.vlines(seen.sound_times, seen.outline[:, 0], seen.outline[:, 1], color=ORANGE, linewidth=0.9)
    reach = max(float(np.abs(seen.outline).max()), 1e-3)
    axis.set_ylim(-1.05 * reach, 1.05 * reach)
    axis.set_yticks([0])
    axis.axhline(0, color=FAINT, linewidth=0.7, zorder=0)


def _spectrogram(axis: Axes, clip: ClipViews, _: Glance, height: float) -> None:
    stream = clip.streams["audio"]
    bands = stream.values.reshape(len(stream.values), -1).astype(np.float64)
    bands[np.repeat(stream.mask == 0, len(stream.channels), axis=1)] = np.nan
    mesh = _image(axis, stream, bands, clip, "magma", None)
    size = len(stream.channels)
    at = range(0, bands.shape[1], 2 * size)
    axis.set_yticks(at, [f"band {band}" for band in at])
    axis.set_title("audio · log-mel bands" + _pitch(axis, clip))
    scale(axis, mesh, height, "ln power")


def _pitch(axis: Axes, clip: ClipViews) -> str:
    """Draw the pitch over the spectrogram, broken where nothing is voiced; returns what the title says of it."""
    if "prosody" not in clip.streams:
        return ""
    stream = clip.streams["prosody"]
    node = stream.nodes.index("pitch")
    voiced = stream.mask[:, node] > 0
    if not voiced.any():
        return "; no voice was found"
    octaves = np.where(voiced, stream.values[:, node, 0], np.nan)
    low, high = np.nanmin(octaves), np.nanmax(octaves)
    own = axis.twinx()
    own.plot(stream.times, 100 * 2.0**octaves, color="white", linewidth=3)
    own.plot(stream.times, 100 * 2.0**octaves, color=BLUE, linewidth=1.6)
    own.set_yscale("log")
    own.set_ylim(100 * 2.0 ** (low - 0.6), 100 * 2.0 ** (high + 1.2))
    own.set_axis_off()
    own.tick_params(which="both", labelbottom=False, labelright=False)
    return f"; blue: pitch, {100 * 2.0**low:.0f} to {100 * 2.0**high:.0f} Hz"


def _words(axis: Axes, clip: ClipViews, _: Glance, height: float) -> None:
    """The words at their times, on as many lines as they need to stay apart."""
    times = clip.streams["text"].times
    second = (_WIDTH - 1.4) / clip.duration_s
    ends: list[float] = []
    axis.set_title("text")
    axis.set_yticks([])
    n_lines = max(1, int(height / 0.2))
    for word, time in zip(clip.words, times, strict=True):
        half = width_of(word, 9) / 2 / second
        line = next((k for k, end in enumerate(ends) if end < time - half), len(ends))
        if line >= n_lines:
            continue  # its tick still says when it was spoken
        ends[line:] = [time + half + 0.06 / second, *ends[line + 1 :]]
        axis.text(time, 0.32 + 0.68 * line / n_lines, word.replace("$", r"\$"), ha="center", va="center", color=INK,
                  clip_on=True)  # fmt: skip
    axis.set_ylim(0, 1.1)
    axis.add_collection(LineCollection([[(t, 0), (t, 0.12)] for t in times], colors=GREEN, linewidths=2))
    axis.spines["left"].set_visible(False)
    axis.tick_params(colors=SOFT, labelcolor=INK)
