"""Drawn face tracks, for want of real ones: nothing enters, a folder as py-feat would leave it comes out.

The faces are made of arcs; they speak, smile a little at good news and frown a little at bad ones. Nothing learned from
them says anything about people.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core import seeding
from stf2m_core.data.adapters.pyfeat_csv import UNITS

GOOD = ("the bus is early", "your cake has risen", "we found your keys", "the rain has stopped", "your seat is free",
        "the lift works again", "your parcel has arrived", "the tea is ready", "your plant is growing",
        "the shop is still open")  # fmt: skip
BAD = ("the bus has left", "your cake has burnt", "we lost your keys", "it will rain all day", "your seat is taken",
       "the lift is broken", "your parcel is missing", "the tea is cold", "your plant has died",
       "the shop has closed")  # fmt: skip
_RATE_HZ, _EVERY = 25, 2
_PIXELS, _CENTRE = 60.0, (160.0, 120.0)


def face(smile: float = 0.0, frown: float = 0.0, opening: float = 0.0) -> np.ndarray:
    """(68, 2) landmarks in the order of the 300-W annotation, half a face's width long; y points down.

    Args:
        smile: how far the corners of the mouth go up and outwards, about 0 to 1.
        frown: how far the brows go down and inwards, about 0 to 1.
        opening: how far the mouth is open, 0 to 1.
    """
    turn = np.linspace(-0.08, 1.08, 17) * np.pi
    jaw = np.stack([-0.95 * np.cos(turn), 1.15 * np.sin(turn) + 0.12 * opening * np.sin(turn)], axis=1)
    step = np.linspace(0, 1, 5)
    brow = np.stack([-0.75 + 0.55 * step + 0.04 * frown * step, -0.48 - 0.12 * np.sin(np.pi * step)], axis=1)
    brow[:, 1] += 0.12 * frown * step
    bridge = np.stack([np.zeros(4), np.linspace(-0.28, 0.14, 4)], axis=1)
    nostrils = np.stack([np.linspace(-0.17, 0.17, 5), 0.26 + 0.04 * np.sin(np.pi * step)], axis=1)
    eye = _ring(6, -0.42, -0.28, 0.17, 0.07, 0.07)
    corner = 0.16 * smile
    mouth = _ring(12, 0.0, 0.58, 0.32 + 0.05 * smile, 0.09, 0.11 + 0.2 * opening)
    lips = _ring(8, 0.0, 0.58, 0.26 + 0.05 * smile, 0.02, 0.02 + 0.17 * opening)
    for part in (mouth, lips):
        part[:, 1] -= corner * (np.abs(part[:, 0]) / 0.32) ** 2
    return np.concatenate([jaw, brow, _mirrored(brow)[::-1], bridge, nostrils, eye,
                           _mirrored(eye)[[3, 2, 1, 0, 5, 4]], mouth, lips])  # fmt: skip


def _ring(n: int, x: float, y: float, width: float, above: float, below: float) -> np.ndarray:
    """(n, 2) points from the left corner over the upper arc to the right corner and back below."""
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    height = np.where(np.sin(turn) > 0, above, below)
    return np.stack([x - width * np.cos(turn), y - height * np.sin(turn)], axis=1)


def _mirrored(points: np.ndarray) -> np.ndarray:
    return points * np.array([-1.0, 1.0])


def write_tracks(folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Twenty tracks of one drawn face and the table of their phrases, for the manifest `pyfeat_news`.

    Args:
        folder: made if absent; its files are written again.
        seed: of the faces.

    Source: ours.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = seeding.numpy_generator(seed, "drawn faces")
    rows = []
    for kind, phrases in (("gn", GOOD), ("ists", BAD)):
        for number, phrase in enumerate(phrases, 1):
            name = f"{len(rows) + 1:03d}"
            rows.append({"clipN": name, "class": kind, "phraseN": number, "phrase_txt": phrase})
            _write(folder / f"{name}.csv", _track(kind == "gn", len(phrase.split()), rng))
    _write(folder / "clip_attrs.csv", pd.DataFrame(rows))
    return folder


def _track(is_good: bool, n_words: int, rng: np.random.Generator) -> pd.DataFrame:
    """One clip: words open the mouth one after the other; how much the face gives away differs from clip to clip."""
    frame = np.arange(0, _RATE_HZ * (0.4 * n_words + 0.4), _EVERY)
    smile, frown = np.clip(rng.normal((0.45, 0.25) if is_good else (0.25, 0.45), 0.2), 0, 1)
    swell = np.sin(np.pi * frame / frame[-1])
    opening = np.clip(np.sin(2 * np.pi * frame / _RATE_HZ / 0.4) * swell, 0, 1)
    points = np.stack([face(smile * s, frown * s, o) for s, o in zip(0.5 + 0.5 * swell, opening, strict=True)])
    sway = rng.normal(0, 2, (len(frame), 1, 2)).cumsum(axis=0)
    points = np.array(_CENTRE) + _PIXELS * points + sway + rng.normal(0, 0.4, points.shape)
    columns = {"frame": frame, "FaceScore": 0.99}
    columns |= {f"{axis}_{k}": points[:, k, j] for j, axis in enumerate("xy") for k in range(points.shape[1])}
    units = np.clip(rng.normal(0.1, 0.05, (len(frame), len(UNITS))), 0, 1)
    for unit, amount in (("AU12", smile), ("AU04", frown)):
        units[:, UNITS.index(unit)] = np.clip(amount * (0.5 + 0.5 * swell), 0, 1)
    return pd.DataFrame(columns | dict(zip(UNITS, units.T, strict=True)))


def _write(path: Path, table: pd.DataFrame) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    table.to_csv(aside, index=False, float_format="%.3f")
    os.replace(aside, path)
