"""A strip of pictures on a time axis: a glance at a recording enters, the place of each picture leaves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from stf2m_core.data.media.glance import Glance

_FILLED = 0.96  # of the strip's length; the rest is between the pictures
_NEAR = 0.1  # of a picture's share of the strip: so near to its middle it is drawn in the middle, for even gaps


def strip_height(seen: Glance | None, inches: float, most: float = 0.95) -> float:
    """Inches that the pictures are high on an axis so many inches long; 0 without pictures."""
    if seen is None or not seen.pictures:
        return 0.0
    rows, columns = seen.pictures[0].shape
    return min(most, inches / len(seen.pictures) * _FILLED * rows / columns)


def draw_strip(
    axis: Axes, seen: Glance, duration_s: float, inches: float
) -> list[tuple[float, tuple[float, float, float, float]]]:
    """Draw the pictures, each centred on its time; time and place (left, low, width, height) of each leave.

    Args:
        axis: from 0 to 1 in height, in seconds along.
        seen: the pictures.
        duration_s: of the clip.
        inches: length of the axis, about.
    """
    second, height = inches / duration_s, strip_height(seen, inches)
    share = duration_s / max(len(seen.pictures), 1)
    middles = (np.arange(len(seen.pictures)) + 0.5) * share
    places = []
    for time, middle, picture in zip(seen.times, middles, seen.pictures, strict=True):
        rows, columns = picture.shape
        width = min(share * _FILLED, height / second * columns / rows)
        tall = width * second / height * rows / columns
        at = middle if abs(time - middle) < _NEAR * share else time
        left, low = min(max(at - width / 2, 0), duration_s - width), (1 - tall) / 2
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(left, left + width, low, low + tall), aspect="auto",
                    interpolation="bilinear", zorder=1)  # fmt: skip
        places.append((float(time), (left, low, width, tall)))
    return places
