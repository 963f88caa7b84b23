"""A drawn recording to look at where there is no other: a simple face that moves and leaves, a hum, and words."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np

from stf2m_core.data.media.extra import library

SAMPLE_TEXT = "look the face smiles and frowns and then it leaves"
"""What is said in the sample, as it were."""
_RATE, _SECONDS, _PICTURES_PER_S = 16_000, 4.0, 25


def drawn_face(size: int, mouth: float = 0.0, brows: float = 0.0) -> np.ndarray:
    """(size, size) uint8: a face seen from the front, of soft ellipses of light and shade.

    Args:
        size: pixels of a side.
        mouth: how far the mouth is open, 0 to 1.
        brows: how far the brows are raised, 0 to 1.
    """
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.full((size, size), 60.0)

    def blob(cx: float, cy: float, rx: float, ry: float, level: float) -> None:
        share = 0.5 - 0.5 * np.tanh(4 * (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 - 1))
        picture[:] = picture * (1 - share) + level * share

    blob(0.5, 0.5, 0.36, 0.47, 190)
    for cx in (0.35, 0.65):
        blob(cx, 0.33 - 0.03 * brows, 0.11, 0.025, 70)
        blob(cx, 0.41, 0.10, 0.05, 110)
        blob(cx, 0.41, 0.045, 0.04, 40)
    blob(0.5, 0.55, 0.05, 0.13, 205)
    blob(0.5, 0.64, 0.07, 0.02, 120)
    blob(0.5, 0.76, 0.14, 0.035 + 0.04 * mouth, 90 - 40 * mouth)
    return picture.clip(0, 255).astype(np.uint8)


def write_sample(path: str | os.PathLike[str]) -> Path:
    """Write four seconds of drawn video with a hum, 320 × 240; the file is whole or absent. Returns its path.

    The face opens its mouth and raises its brows by turns, sways, and is gone for the last second.

    Raises:
        MediaError: if the extra `media` is not installed.
    """
    av, path = library("av"), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with av.open(str(aside), "w") as container:
            video = container.add_stream("mpeg4", rate=_PICTURES_PER_S)
            video.width, video.height, video.pix_fmt, video.bit_rate = 320, 240, "yuv420p", 1_000_000
            audio = container.add_stream("aac", rate=_RATE, layout="mono")
            for number in range(round(_SECONDS * _PICTURES_PER_S)):
                frame = av.VideoFrame.from_ndarray(_picture(number / _PICTURES_PER_S), format="gray")
                container.mux(video.encode(frame.reformat(format="yuv420p")))
            container.mux(video.encode(None))
            for frame in _sound_frames(av):
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _picture(time: float) -> np.ndarray:
    picture = np.full((240, 320), 60, np.uint8)
    if time < 0.75 * _SECONDS:
        mouth, brows = max(0.0, np.sin(2 * np.pi * time)), max(0.0, np.sin(2 * np.pi * time / 1.5 + 2))
        left, top = 90 + round(8 * np.sin(2 * time)), 50
        picture[top : top + 140, left : left + 140] = drawn_face(140, float(mouth), float(brows))
    return picture


def _sound_frames(av: object) -> list[object]:
    time = np.arange(round(_SECONDS * _RATE)) / _RATE
    pitch = 2 * np.pi * np.cumsum(150 + 40 * np.sin(2 * np.pi * time / 1.5)) / _RATE
    loud = np.clip(np.sin(2 * np.pi * time) + 0.3, 0, 1) * (time < 0.8 * _SECONDS)
    sound = (0.15 * loud * sum(np.sin(k * pitch) / k for k in range(1, 12))).astype(np.float32)
    frames = []
    for start in range(0, len(sound), 1024):
        frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = _RATE, Fraction(1, _RATE), start
        frames.append(frame)
    return frames
