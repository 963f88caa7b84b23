"""Speed of importing ready features: many clips in one archive and one list become a pack; beside it, a plain copy.

    python benchmarks/import_features.py [--clips N] [--frames N] [--rounds N]

The copy reads the archive and writes the same number of bytes, synced to the disk, as a pack is. Both work in one
folder, alternating; read the ratio. Opening the pack is timed, too. The files are in the cache of the system: this
shows the cost of the kit and not that of a cold disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import open_pack


def make_features(folder: Path, n_clips: int, n_frames: int) -> int:
    """Write noise as features of one modality, 8 nodes of 5 channels, and the list; the bytes of the archive leave."""
    noise = np.random.default_rng(0)
    lengths = noise.integers(1, 2 * n_frames, n_clips)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = noise.standard_normal((offsets[-1], 8, 5), np.float32)
    np.savez(folder / "audio.npz", values=values, offsets=offsets, rate_hz=50.0)
    number = np.arange(n_clips)
    label = np.array(["calm", "joy"])[number % 2]
    clips = {"clip_id": number.astype(str), "subject": (number % 500).astype(str), "label": label}
    pd.DataFrame(clips).to_csv(folder / "clips.csv", index=False)
    return (folder / "audio.npz").stat().st_size


def copy(source: Path, target: Path) -> None:
    """The archive once more, on the disk when this returns."""
    shutil.copyfile(source, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=20, help="per clip, on average")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, pack = Path(name, "data"), Path(name, "pack")
        source.mkdir()
        size = make_features(source, options.clips, options.frames)
        print(f"{options.clips} clips, {size / 1e6:.0f} MB")
        for _ in range(options.rounds):
            copied = seconds(lambda: copy(source / "audio.npz", Path(name, "copy")))
            made = seconds(lambda: import_dataset("features", source=source, out=pack, overwrite=True))
            opened = seconds(lambda: open_pack(pack))
            print(f"copy {copied:.2f} s, import {made:.2f} s ({made / copied:.1f} times), open {opened:.3f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"peak memory {peak / 1e6:.0f} MB, {peak / size:.1f} times the archive")


if __name__ == "__main__":
    main()
