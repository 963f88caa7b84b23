"""Speed of importing ready features: many clips in one archive and one list become a pack; beside it, a plain copy.

    python benchmarks/import_features.py [--clips N] [--frames N] [--rounds N] [--open-gb N]

The copy reads the archive and writes the same number of bytes, synced to the disk, as a pack is. Both work in one
folder, alternating; read the ratio. Opening the pack is timed, too. The files are in the cache of the system: this
shows the cost of the kit and not that of a cold disk. With --open-gb a pack of so many gigabytes is written, too, and
opened by a fresh process after its pages have left the cache of the system.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.ragged import RaggedViews


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


OPEN = """
import sys, time
from stf2m_core.data.pack import open_pack
start = time.perf_counter()
pack = open_pack(sys.argv[1])
opened = time.perf_counter() - start
pack.view("audio").values[len(pack) // 2].sum()
print(f"{opened:.3f} s, with the first clip read {time.perf_counter() - start:.3f} s, {len(pack)} clips")
"""


def open_large(folder: Path, gigabytes: float, n_clips: int) -> str:
    """Seconds in which a large pack is opened, told by a fresh process."""
    n_frames = round(gigabytes * 1e9 / 80 / n_clips)  # of 40 half-precision numbers
    hollow = np.memmap(folder / "hollow", np.float16, "w+", shape=(n_clips * n_frames, 8, 5))
    offsets = np.arange(n_clips + 1) * n_frames
    nodes, channels = tuple(f"node{k}" for k in range(8)), tuple(f"channel{k}" for k in range(5))
    number = np.arange(n_clips)
    clips = {"clip_id": number.astype(str), "subject": (number % 500).astype(str), "group": number.astype(str),
             "domain": "", "duration_s": n_frames / 50, "label": np.array(["calm", "joy"])[number % 2], "split": "",
             "text": ""}  # fmt: skip
    views = {"audio": RaggedViews(hollow, offsets, nodes, channels, 50.0)}
    pack = write_pack(folder / "large", pd.DataFrame(clips), views, ["calm", "joy"], name="large")
    size = sum(path.stat().st_size for path in pack.iterdir())
    os.sync()
    for path in pack.iterdir():
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run([sys.executable, "-c", OPEN, str(pack)], check=True, capture_output=True, text=True)
    return f"a pack of {size / 1e9:.1f} GB is opened in {done.stdout.strip()}"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=20, help="per clip, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--open-gb", type=float, default=0, help="also open a pack of so many gigabytes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, pack = Path(name, "data"), Path(name, "pack")
        source.mkdir()
        size = make_features(source, options.clips, options.frames)
        print(f"{options.clips} clips, {size / 1e6:.0f} MB")
        for _ in range(options.rounds):
            copied = seconds(lambda: copy(source / "audio.npz", Path(name, "copy")))
            worked = time.process_time()
            made = seconds(lambda: import_dataset("features", source=source, out=pack, overwrite=True))
            worked = time.process_time() - worked
            opened = seconds(lambda: open_pack(pack))
            print(f"copy {copied:.2f} s, import {made:.2f} s ({made / copied:.1f} times; processor {worked:.2f} s), "
                  f"open {opened:.3f} s")  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"peak memory {peak / 1e6:.0f} MB, {peak / size:.1f} times the archive")
        if options.open_gb:
            print(open_large(Path(name), options.open_gb, options.clips))


if __name__ == "__main__":
    main()
