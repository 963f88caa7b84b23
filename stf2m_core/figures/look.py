"""The house look of all figures: a size and a way to draw enter, a finished matplotlib Figure leaves.

Figures are made through matplotlib's objects alone; no setting of the caller's matplotlib is read or changed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from stf2m_core.errors import ResultError

DPI = 160
INK, SOFT, FAINT, GONE = "#222222", "#6B6B6B", "#D9D9D9", "#EFEFEF"
# Okabe and Ito's colours, safe for colour-blind readers; yellow is left out because it fades on white.
BLUE, ORANGE, GREEN, RED, SKY, PINK, BROWN, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6239", "#7F7F7F",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PINK, BROWN, GREY)
PALE = (ORANGE, SKY, PINK)  # too pale for white letters
MARKERS = ("o", "s", "^", "D", "v", "P")
MODALITY = {"visual": BLUE, "audio": ORANGE, "text": GREEN}
AMOUNT, SIGNED = "Blues", "PuOr_r"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": SOFT,
    "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titlepad": 7, "axes.labelsize": 9.5,
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.unicode_minus": True, "xtick.labelsize": 9, "ytick.labelsize": 9, "xtick.color": SOFT, "ytick.color": SOFT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.size": 3, "ytick.major.size": 3,
    "grid.color": FAINT, "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round", "figure.titlesize": 11, "image.interpolation": "nearest", "hatch.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.06, "figure.constrained_layout.h_pad": 0.06,
}  # fmt: skip
_PLAIN = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(("backend", "toolbar"))}
LINE = 0.165  # height of a line of 9 points with its gap, inches


class Plate(Figure):
    """A matplotlib Figure that a notebook can show without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return _png(self), {"width": round(96 * self.get_figwidth()), "height": round(96 * self.get_figheight())}


Arguments = ParamSpec("Arguments")


def drawn(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw in the house look, lay out once and freeze the layout, so that every rendering gives the same bytes."""

    @wraps(draw)
    def finished(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_PLAIN | STYLE):
            figure = draw(*args, **kwargs)
            for _ in range(2):  # the first pass settles the ticks, the second the room they need
                figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure

    return finished


def sheet(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    return Plate(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, 160 dots per inch; the file is whole or absent, and the same bytes on every repetition.

    Raises:
        ResultError: if the path does not end in .png.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ResultError(f"figure file {path.name!r}", expected="a name that ends in .png", where=str(path.parent))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(_png(figure))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_PLAIN | STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@lru_cache(maxsize=4096)
def width_of(text: str, size: float = 9.0, weight: str = "normal") -> float:
    """Width of a line of text, inches; the longest line counts."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    lines = text.replace(r"\$", "S").split("\n")
    return max(TextToPath().get_text_width_height_descent(line, font, False)[0] for line in lines) / 72


def short(name: object, most: int = 26) -> str:
    """A name of at most `most` letters; what is too long loses its middle. Dollar signs stay dollar signs."""
    name = " ".join(str(name).split())
    if len(name) > most:
        head = most // 2
        name = f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"
    return name.replace("$", r"\$")


def shorts(names: Sequence[object], most: int = 26) -> list[str]:
    """Names of at most `most` letters; where shortening made two of them equal, all are numbered from 1."""
    result = [short(name, most) for name in names]
    if len(set(result)) < len(set(map(str, names))):
        result = [f"{number} {short(name, most - 4)}" for number, name in enumerate(names, 1)]
    return result


def counted(n: int, noun: str) -> str:
    """`3 clips`, `1 clip`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def fit(name: object, inches: float, weight: str = "normal") -> str:
    """A name shortened until it is at most `inches` wide."""
    most = len(str(name))
    while most > 2 and width_of(short(name, most), weight=weight) > inches:
        most -= 1
    return short(name, most)


def name_x(
    axis: Axes, names: Sequence[str], room: float, at: Sequence[float] | None = None, *, may_turn: bool = True
) -> None:  # fmt: skip
    """Name the ticks of x: level where the names fit into `room` inches, else upright, thinned where they must be."""
    at = np.arange(len(names)) if at is None else np.asarray(at, float)
    lower, upper = sorted(axis.get_xlim())
    inch = room / max(upper - lower, 1e-9)
    gaps = np.diff(at) * inch if len(at) > 1 else np.array([room])
    widths = np.array([width_of(name) for name in names])
    needs = (widths[:-1] + widths[1:]) / 2 + 0.1 if len(names) > 1 else widths
    is_level = not may_turn or bool((needs < gaps).all())
    every = max(1, int(np.ceil((needs.max() if is_level else LINE) / gaps.min()))) if len(names) > 1 else 1
    axis.set_xticks(at[::every], list(names)[::every], rotation=0 if is_level else 90)


def name_y(axis: Axes, names: Sequence[str], room: float, at: Sequence[float] | None = None) -> None:
    """Name the ticks of y, thinned where lines would touch in `room` inches."""
    at = np.arange(len(names)) if at is None else np.asarray(at, float)
    lower, upper = sorted(axis.get_ylim())
    gap = np.diff(at).min() * room / max(upper - lower, 1e-9) if len(at) > 1 else room
    every = max(1, int(np.ceil(LINE / gap)))
    axis.set_yticks(at[::every], list(names)[::every])


def scale(axis: Axes, image: Any, height: float, label: str, *, ticks: Sequence[float] | None = None) -> None:
    """A colour bar beside an axis `height` inches high, equally thin in all figures."""
    bar = axis.figure.colorbar(image, ax=axis, pad=0.015, aspect=height / 0.12, ticks=ticks)
    if ticks is None:
        bar.locator.set_params(nbins=5)
    bar.outline.set_visible(False)
    bar.set_label(label)


def finite(name: str, values: Any, *shape: int | None) -> np.ndarray:
    """`values` as float64, a copy, after a look at its size and for values that are no numbers.

    Raises:
        ResultError: if an axis has another size than `shape` says (None: any), or a value is not finite.
    """
    array = np.array(values, np.float64)
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise ResultError(f"{name} has shape {array.shape}", expected=wanted, where="figure")
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ResultError(f"{name} has {bad} values that are no finite numbers", expected="none", where="figure")
    return array


def whole_labels(label: Any, n_clips: int, n_labels: int) -> np.ndarray:
    """(clip,) int64 labels; -1 stands for an undefined label.

    Raises:
        ResultError: if a label is out of range or there is not one per clip.
    """
    label = np.array(label, np.int64)
    if label.shape != (n_clips,):
        raise ResultError(f"label has shape {label.shape}", expected=f"({n_clips},)", where="figure")
    if n_clips and (label.min() < -1 or label.max() >= n_labels):
        raise ResultError(f"labels from {label.min()} to {label.max()}", expected=f"-1 to {n_labels - 1}",
                          where="figure")  # fmt: skip
    return label


def some(name: str, rows: Sequence[Any]) -> None:
    """Refuse to draw nothing.

    Raises:
        ResultError: if there are no rows.
    """
    if len(rows) == 0:
        raise ResultError(f"no {name}", expected="at least one", where="figure")


def cells(axis: Axes, n_rows: int, n_columns: int) -> None:
    """Make an axis a sheet of cells: no frame, no ticks, thin white seams."""
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    width = 0.8 if max(n_rows, n_columns) <= 40 else 0.2
    columns = [[(x, -0.5), (x, n_rows - 0.5)] for x in np.arange(1, n_columns) - 0.5]
    rows = [[(-0.5, y), (n_columns - 0.5, y)] for y in np.arange(1, n_rows) - 0.5]
    axis.add_collection(LineCollection(columns + rows, colors="white", linewidths=width), autolim=False)
