"""The figure of the method: nothing enters, a Figure leaves; drawn by code, so that it can be changed like text."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Rectangle

from stf2m_core.figures.look import BLUE, FAINT, GREEN, INK, ORANGE, PINK, RED, SKY, SOFT, drawn, sheet

PAPER, EDGE = "#F7F7F5", "#D5D5D0"
EMOTIONS = (SKY, PINK, "#B5A100")  # of the three emotion tasks drawn, told apart from the colours of the modalities
NAMES = ("emotion 1", "emotion 2", "emotion N")


@drawn
def method() -> Figure:
    """ST-F2M from video to probabilities: views, emotion tasks, convolutions, fuzzy rules, meta-RNN, fast weights.

    Source: ours; the parts are those that the paper's abstract names.
    """
    figure = sheet(10, 4.2)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))  # one unit is a tenth of an inch
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 42)
    axis.set_axis_off()
    axis.set_xticks([])
    axis.set_yticks([])
    _views_of_video(axis)
    _emotion_tasks(axis)
    _convolutions(axis)
    _rules(axis)
    _probabilities(axis)
    _meta_rnn(axis)
    _fast_weights(axis)
    for start, end in (((18.2, 25), (20.8, 25)), ((38.2, 29.5), (40.8, 29.5)), ((63.2, 29.5), (65.8, 29.5)),
                       ((80.2, 29.5), (82.8, 29.5))):  # fmt: skip
        _arrow(axis, start, end)
    return figure


def _panel(axis: Axes, left: float, bottom: float, width: float, height: float, title: str) -> None:
    axis.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=1.1",
                                  facecolor=PAPER, edgecolor=EDGE, linewidth=1, zorder=0))  # fmt: skip
    axis.text(left + 1.1, bottom + height - 1.9, title, fontweight="bold", fontsize=10, va="center")


def _note(axis: Axes, x: float, y: float, text: str, **kwargs: object) -> None:
    axis.text(x, y, text, **{"fontsize": 9, "ha": "center", "va": "center", "linespacing": 1.25, **kwargs})


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], **kwargs: object) -> None:
    look = {"color": INK, "linewidth": 1.4, "arrowstyle": "-|>", "mutation_scale": 11, "zorder": 4} | kwargs
    axis.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))


def _tile(axis: Axes, x: float, y: float, width: float, height: float, **kwargs: object) -> None:
    look = {"facecolor": "white", "edgecolor": EDGE, "linewidth": 0.9} | kwargs
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.4", **look))


def _views_of_video(axis: Axes) -> None:
    _panel(axis, 1, 1, 17, 40, "Views of a video")
    axis.add_patch(Rectangle((2.6, 29.2), 13.8, 7.2, facecolor="#3A3A3A"))
    for number in range(3):
        left = 3.2 + 4.4 * number
        axis.add_patch(Rectangle((left, 30.4), 3.8, 4.8, facecolor="white"))
        _face(axis, left + 1.9, 32.8, number - 1)
    for hole in np.arange(3.3, 16.2, 1.1):
        for y in (29.55, 35.6):
            axis.add_patch(Rectangle((hole, y), 0.5, 0.45, facecolor="#BBBBBB"))
    _arrow(axis, (9.5, 28.8), (9.5, 26.4))
    for name, colour, top in (("visual", BLUE, 25.8), ("audio", ORANGE, 17.8), ("text", GREEN, 9.8)):
        _tile(axis, 2.6, top - 7.2, 13.8, 7)
        axis.text(3.3, top - 1.6, name, fontsize=9.5, color=colour, fontweight="bold", va="center")
    for frame in range(4):
        _landmarks(axis, 4.6 + 3.2 * frame, 20.7, frame)
    time = np.linspace(0, 1, 161)
    wave = np.sin(2 * np.pi * 17 * time) * (0.25 + np.sin(np.pi * time) ** 2 * np.abs(np.sin(9 * time + 0.4)))
    axis.plot(3.6 + 11.8 * time, 13 + 1.7 * wave, color=ORANGE, linewidth=1)
    for left, width, shade in ((3.5, 2.6, "55"), (6.5, 1.6, "99"), (8.5, 3.4, "77"), (12.3, 3.2, "BB")):
        _tile(axis, left, 4.0, width, 1.9, facecolor=GREEN + shade, edgecolor="none")


def _face(axis: Axes, x: float, y: float, mood: int) -> None:
    axis.add_patch(Circle((x, y), 1.6, facecolor="#F3E3C3", edgecolor=INK, linewidth=0.8))
    for side in (-0.55, 0.55):
        axis.add_patch(Circle((x + side, y + 0.4), 0.16, facecolor=INK))
    at = np.linspace(-0.7, 0.7, 15)
    axis.plot(x + at, y - 0.65 + 0.7 * mood * (at**2 - 0.25), color=INK, linewidth=1)


def _landmarks(axis: Axes, x: float, y: float, frame: int) -> None:
    lift = 0.25 * frame
    points = np.array([(-0.9, 0.9 + lift / 2), (0.9, 0.9 + lift / 2), (0, 0), (-0.8, -1 + lift), (0.8, -1 + lift)])
    for i, j in ((0, 2), (1, 2), (2, 3), (2, 4), (0, 1), (3, 4)):
        axis.plot(*(points[[i, j]] + (x, y)).T, color=BLUE, linewidth=0.8, alpha=0.6)
    axis.scatter(*(points + (x, y)).T, s=9, color=BLUE, zorder=3)


def _emotion_tasks(axis: Axes) -> None:
    _panel(axis, 21, 1, 17, 40, "N emotion tasks")
    _note(axis, 27, 35.9, "support", color=SOFT, va="baseline")
    _note(axis, 34.1, 35.9, "query", color=SOFT, va="baseline")
    for number, (top, name) in enumerate(zip((34.9, 25.6, 13.7), NAMES, strict=True)):
        colour = EMOTIONS[number]
        _tile(axis, 22.2, top - 8.2, 14.6, 8, facecolor=colour + "26", edgecolor=colour)
        axis.text(23, top - 1.7, name, fontsize=9.5, fontweight="bold", va="center")
        for column, left in enumerate((23.2, 27.2, 32.3)):
            for row, modality in enumerate((BLUE, ORANGE, GREEN)):
                if (number, column, row) in ((0, 1, 2), (1, 0, 1), (2, 1, 0)):  # a view that is missing
                    continue
                _tile(axis, left, top - 4.3 - 1.55 * row, 3.5, 1.2, facecolor=modality, edgecolor="none",
                      alpha=0.45 if column == 2 else 0.9)  # fmt: skip
        axis.plot([31.5, 31.5], [top - 7.7, top - 2.9], color=SOFT, linewidth=0.8, linestyle=(0, (3, 2)))
    for y in (15.7, 15.0, 14.3):
        axis.add_patch(Circle((29.5, y + 0.25), 0.17, facecolor=SOFT))
    _note(axis, 29.5, 3.1, "no clip on both sides", color=SOFT)


def _convolutions(axis: Axes) -> None:
    _panel(axis, 41, 18, 22, 23, "Spatio-temporal encoder")
    for column, name in ((44.1, "time"), (48.5, "space"), (52.9, "time")):
        _note(axis, column, 35.9, name, color=SOFT, va="baseline")
    for y, colour in ((33.3, BLUE), (28.6, ORANGE), (23.9, GREEN)):
        _tile(axis, 42.2, y - 2, 12.7, 4, edgecolor=colour)
        _kernel(axis, 44.1, y, colour)
        _graph(axis, 48.5, y, colour)
        _kernel(axis, 52.9, y, colour)
        _arrow(axis, (55, y), (56.6, 28.6 + (y - 28.6) * 0.55), color=SOFT, linewidth=1, mutation_scale=8)
    _tile(axis, 56.8, 23.6, 5.2, 10, edgecolor=INK)
    nodes = [(58.1, 31.6, BLUE), (60.7, 32, BLUE), (58, 28.7, ORANGE), (60.9, 28.4, ORANGE), (59.4, 25.3, GREEN)]
    for i, a in enumerate(nodes):
        for b in nodes[i + 1 :]:
            axis.plot([a[0], b[0]], [a[1], b[1]], color=FAINT, linewidth=1, zorder=2)
    for x, y, colour in nodes:
        axis.add_patch(Circle((x, y), 0.55, facecolor=colour, zorder=3))
    _note(axis, 59.4, 35.9, "joint", color=SOFT, va="baseline")
    _note(axis, 52, 20, "each modality, then all together", color=SOFT)


def _kernel(axis: Axes, x: float, y: float, colour: str) -> None:
    for number, height in enumerate((1.2, 2.4, 1.7)):
        axis.add_patch(Rectangle((x - 1.15 + 0.85 * number, y - 1.2), 0.6, height, facecolor=colour))


def _graph(axis: Axes, x: float, y: float, colour: str) -> None:
    points = np.array([(-1.2, 0.9), (1.2, 0.8), (0, -1.1), (0.1, 0.3)]) + (x, y)
    for i, j in ((0, 3), (1, 3), (2, 3), (0, 1), (0, 2)):
        axis.plot(*points[[i, j]].T, color=colour, linewidth=0.9, alpha=0.7)
    axis.scatter(*points.T, s=13, color=colour, zorder=3)


def _rules(axis: Axes) -> None:
    _panel(axis, 66, 18, 14, 23, "Fuzzy rules")
    generator = np.random.Generator(np.random.PCG64(5))
    shapes = ((70.2, 32.6, 8, 3.4, 38), (75.8, 29.3, 8.4, 3.0, -52), (70.6, 25.4, 6.8, 3.2, -14))
    for own, (x, y, width, height, angle) in zip(EMOTIONS, shapes, strict=True):
        for size, alpha in ((1.0, 0.10), (0.6, 0.12)):
            axis.add_patch(Ellipse((x, y), width * size, height * size, angle=angle, facecolor=INK, alpha=alpha))
        axis.add_patch(Ellipse((x, y), width, height, angle=angle, fill=False, edgecolor=SOFT, linewidth=1.1))
        turn = np.deg2rad(angle)
        spread = generator.normal(size=(10, 2)).clip(-1.6, 1.6) * (width / 5, height / 5)
        points = spread @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + (x, y)
        colours = [own] * 7 + list(EMOTIONS)  # a rule is no emotion: clips of several emotions fire it
        axis.scatter(*points.T, s=13, color=colours, edgecolor=INK, linewidth=0.4, zorder=3)
    _note(axis, 73, 20, "firing of each clip", color=SOFT)


def _probabilities(axis: Axes) -> None:
    _panel(axis, 83, 18, 16, 23, "Prediction")
    for name, colour, y, share in zip(NAMES, EMOTIONS, (34.2, 29.8, 24.2), (0.22, 0.66, 0.12), strict=True):
        axis.text(84.2, y + 1.5, name, fontsize=9, va="center")
        axis.add_patch(Rectangle((84.2, y - 1), 13.6, 1.5, facecolor=FAINT))
        axis.add_patch(Rectangle((84.2, y - 1), 13.6 * share, 1.5, facecolor=colour))
    for y in (27.9, 27.3, 26.7):
        axis.add_patch(Circle((91, y), 0.15, facecolor=SOFT))
    _note(axis, 91, 20, "probabilities", color=SOFT)


def _meta_rnn(axis: Axes) -> None:
    _panel(axis, 41, 1, 39, 14, "Meta-RNN reads each emotion task")
    _arrow(axis, (73, 17.8), (73, 15.2))
    for x, name, colour in zip((43, 51.8, 63), NAMES, EMOTIONS, strict=True):
        _tile(axis, x, 5, 6.8, 4.6, facecolor=colour + "40", edgecolor=colour)
        for number in range(3):
            axis.add_patch(Circle((x + 1.5 + 1.9 * number, 7.3), 0.6, facecolor="white", edgecolor=INK, linewidth=0.8))
            if number:
                _arrow(axis, (x + 0.25 + 1.9 * number, 7.3), (x + 0.85 + 1.9 * number, 7.3), linewidth=0.8,
                       arrowstyle="-", mutation_scale=5)  # fmt: skip
        _note(axis, x + 3.4, 3.3, name)
    for x in (60.2, 60.8, 61.4):
        axis.add_patch(Circle((x, 7.3), 0.17, facecolor=SOFT))
    _arrow(axis, (70, 7.3), (72, 7.3), linewidth=1, mutation_scale=8)
    _tile(axis, 72.2, 5, 6.4, 4.6, edgecolor=INK)
    _note(axis, 75.4, 7.3, "task\ncode")
    _arrow(axis, (52, 15.2), (52, 17.8), color=SOFT, linestyle=(0, (3, 2)), linewidth=1.1)
    _note(axis, 53, 16.5, "scale and shift", color=SOFT, ha="left")
    _note(axis, 74, 16.5, "firing", color=SOFT, ha="left")


def _fast_weights(axis: Axes) -> None:
    _panel(axis, 83, 1, 16, 14, "Fast weights")
    _arrow(axis, (80.2, 7.3), (82.8, 7.3))
    _arrow(axis, (88.3, 15.2), (88.3, 17.8))
    _arrow(axis, (94, 17.8), (94, 15.2), color=RED)
    shades = np.array([[2, 6, 4, 8, 3, 7], [7, 3, 9, 2, 5, 4]]) / 10
    for (row, column), shade in np.ndenumerate(shades):
        axis.add_patch(Rectangle((84.4 + 2.2 * column, 9.3 - 1.9 * row), 1.9, 1.6, facecolor=BLUE, alpha=shade))
    _note(axis, 91, 4.2, "inner loop: k steps on\nthe support loss", color=RED)
