"""A glance at a recording, for people: a few of its pictures and the outline of its sound."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.media.clip import ClipViews
from stf2m_core.data.media.extra import library
from stf2m_core.data.media.recording import Picture, Recording, play

_RATE = 8000
_PER_SECOND = 100


@dataclass(frozen=True, slots=True, eq=False)
class Glance:
    """What a person looks at.

    Attributes:
        times: (picture,) seconds since the clip's start.
        pictures: one (height, width) uint8 each, upright, at most 160 pixels high.
        scale: pixels of these per pixel of the recording's upright pictures.
        sound_times: (n,) seconds.
        outline: (n, 2) smallest and largest sample of each hundredth of a second; (0, 2) without sound.
    """

    times: np.ndarray
    pictures: tuple[np.ndarray, ...]
    scale: float
    sound_times: np.ndarray
    outline: np.ndarray


def glance(
    path: str | os.PathLike[str], duration_s: float, *, n_pictures: int = 8, start_s: float = 0.0,
    end_s: float = math.inf,
) -> Glance:  # fmt: skip
    """Pictures at the middles of equal parts of a clip, and the outline of its sound.

    Args:
        path: the file.
        duration_s: of the clip, as `read_clip` found it.
        n_pictures: how many pictures.
        start_s: where in the file the clip begins.
        end_s: where it ends.

    Raises:
        MediaError: if the file cannot be read.
    """
    wanted = [(k + 0.5) * duration_s / n_pictures for k in range(n_pictures)]
    times, pictures, sound_times, outline, scale = [], [], [], [], 1.0
    for part in play(Path(path), Recording(os.fspath(path)), video_rate_hz=25.0, sample_rate_hz=_RATE,
                     start_s=start_s, end_s=end_s):  # fmt: skip
        if isinstance(part, Picture):
            if len(times) < n_pictures and part.time >= wanted[len(times)] - 0.021:
                scale = min(1.0, 160 / part.gray.shape[0])
                size = (max(1, round(part.gray.shape[1] * scale)), max(1, round(part.gray.shape[0] * scale)))
                pictures.append(library("cv2").resize(part.gray, size, interpolation=library("cv2").INTER_AREA))
                times.append(part.time)
        else:
            step = _RATE // _PER_SECOND
            for first in range(0, len(part.samples), step):
                piece = part.samples[first : first + step]
                sound_times.append(part.time + first / _RATE)
                outline.append((piece.min(), piece.max()))
    return Glance(np.array(times), tuple(pictures), scale, np.array(sound_times),
                  np.array(outline, np.float32).reshape(-1, 2))  # fmt: skip


def stream_table(clip: ClipViews) -> pd.DataFrame:
    """One row per modality of a clip: frames, nodes, channels, times of the first and last frame, share observed."""
    rows = [
        {
            "modality": name, "frames": len(part.times), "nodes": ", ".join(part.nodes), "channels": len(part.channels),
            "first (s)": float(part.times[0]), "last (s)": float(part.times[-1]), "observed": f"{part.mask.mean():.0%}",
        }
        for name, part in clip.streams.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)
