"""Views of many clips, joined: their files enter one after the other, memory-mapped ragged views leave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stf2m_core.data.media.kept import read_kept, read_streams
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.errors import MediaError

_KINDS = {"values": np.float32, "times": np.float32, "mask": np.uint8}


def join(places: Sequence[Path], folder: Path) -> dict[str, RaggedViews]:
    """Modality to the views of all clips, in the order of their files; one clip is held at a time.

    Args:
        places: the clips' files.
        folder: where the joined arrays are written, each whole or absent.

    Raises:
        MediaError: if clips do not have the same nodes and channels.
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about, lengths = _survey(places)
    offsets = {name: np.concatenate([[0], np.cumsum(counts)]).astype(np.int64) for name, counts in lengths.items()}
    parts = {(name, part): _Part(folder / f"{name}.{part}.npy", _shape(part, offsets[name][-1], about[name]), kind)
             for name in about for part, kind in _KINDS.items()}  # fmt: skip
    try:
        for row, place in enumerate(places):
            for name, stream in read_streams(place).streams.items():
                for part in _KINDS:
                    parts[name, part].array[offsets[name][row] : offsets[name][row + 1]] = getattr(stream, part)
        arrays = {key: part.finished() for key, part in parts.items()}
    finally:
        for part in parts.values():
            part.aside.unlink(missing_ok=True)
    return {
        name: RaggedViews(
            arrays[name, "values"], offsets[name], tuple(facts["nodes"]), tuple(facts["channels"]), None,
            arrays[name, "times"], arrays[name, "mask"],
        )
        for name, facts in about.items()
    }  # fmt: skip


def _survey(places: Sequence[Path]) -> tuple[dict[str, dict], dict[str, list[int]]]:
    """Nodes and channels of each modality, and how many frames each clip has of it."""
    about: dict[str, dict] = {}
    lengths: dict[str, list[int]] = {}
    for row, place in enumerate(places):
        for name, facts in read_kept(place).facts["streams"].items():
            first = about.setdefault(name, facts)
            if (first["nodes"], first["channels"]) != (facts["nodes"], facts["channels"]):
                what = f"{name} of clip {row} has other nodes or channels"
                raise MediaError(what, expected="those of the first clip", where=str(place))
            counts = lengths.setdefault(name, [])
            counts.extend([0] * (row - len(counts)) + [facts["frames"]])
    for counts in lengths.values():
        counts.extend([0] * (len(places) - len(counts)))
    return about, lengths


def _shape(part: str, n_frames: int, facts: dict) -> tuple[int, ...]:
    n_nodes, n_channels = len(facts["nodes"]), len(facts["channels"])
    return {"values": (n_frames, n_nodes, n_channels), "times": (n_frames,), "mask": (n_frames, n_nodes)}[part]


class _Part:
    """An array on disk that is filled aside and then moved into place."""

    def __init__(self, path: Path, shape: tuple[int, ...], kind: type):
        self.path, self.aside = path, path.with_name(f".{path.name}.{os.getpid()}")
        self.array = np.lib.format.open_memmap(self.aside, mode="w+", dtype=kind, shape=tuple(int(n) for n in shape))

    def finished(self) -> np.ndarray:
        """The array in place, to read only."""
        self.array.flush()
        del self.array
        os.replace(self.aside, self.path)
        return np.load(self.path, mmap_mode="r")
