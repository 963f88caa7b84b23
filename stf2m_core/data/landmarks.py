"""The 68 landmarks of a face: their names, their places freed of where the face is, and which belong together."""

from __future__ import annotations

import numpy as np

N_LANDMARKS = 68
NAMES = tuple(f"lm{number:02d}" for number in range(N_LANDMARKS))
"""In the order of the 300-W annotation (Sagonas et al. 2013), as OpenFace and py-feat count them from 0."""

_CHAINS = {
    "jaw": (range(0, 17), False), "brow_r": (range(17, 22), False), "brow_l": (range(22, 27), False),
    "bridge": (range(27, 31), False), "nostrils": (range(31, 36), False), "eye_r": (range(36, 42), True),
    "eye_l": (range(42, 48), True), "mouth": (range(48, 60), True), "lips": (range(60, 68), True),
}  # fmt: skip
_BETWEEN = ((21, 22), (21, 27), (22, 27), (30, 33), (17, 0), (26, 16), (36, 17), (45, 26), (33, 51), (57, 8), (48, 60),
            (54, 64))  # fmt: skip
_EYE_CORNERS = (36, 45)


def edges() -> np.ndarray:
    """(edge, 2) int64: neighbours along the outline of each part, and links that join the parts to one graph.

    Source: the parts are those of the 300-W annotation; the links between parts are ours.
    """
    found = [pair for chain, closed in _CHAINS.values() for pair in _steps(list(chain), closed)]
    return np.array([*found, *_BETWEEN], np.int64)


def named_edges() -> tuple[tuple[str, str], ...]:
    """The edges as a pack takes them: pairs of names."""
    return tuple((NAMES[first], NAMES[second]) for first, second in edges())


def _steps(chain: list[int], closed: bool) -> list[tuple[int, int]]:
    return list(zip(chain, [*chain[1:], chain[0]] if closed else chain[1:], strict=False))


def centred(points: np.ndarray) -> np.ndarray:
    """(frame, 68, 2) float32: freed of place and size, in distances between the outer corners of the eyes.

    The origin is the mean landmark, y points down as in the picture; a turn of the head stays. Where the corners
    coincide the frame is NaN: there is no face to measure by.

    Args:
        points: (frame, 68, 2) in pixels.
    """
    points = np.asarray(points, np.float64)
    first, second = (points[:, corner] for corner in _EYE_CORNERS)
    size = np.linalg.norm(first - second, axis=1)[:, None, None]
    place = points.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, (points - place) / size, np.nan).astype(np.float32)
