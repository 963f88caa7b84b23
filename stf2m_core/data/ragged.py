"""One modality of all clips, end to end: its container, its checks, and its place in a safetensors file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stf2m_core.errors import PackError

_DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
_CHUNK = 1 << 16  # frames looked at together, so that a check never holds a whole modality in memory


@dataclass(frozen=True, slots=True, eq=False)
class RaggedViews:
    """One modality of all clips, one after the other; clip i is rows `offsets[i]:offsets[i + 1]`.

    Attributes:
        values: (ΣT, node, channel) float16 or float32, finite.
        offsets: (clip + 1,) int64, from 0 to ΣT, never decreasing; an empty slice says the clip lacks the modality.
        nodes: names of the nodes.
        channels: names of the channels.
        rate_hz: frames per second where frames are uniform, else None; then `times` says when they are.
        times: (ΣT,) float32 seconds since the clip's start, never decreasing within a clip, or None (uniform).
        mask: (ΣT, node) uint8, 1 where a node was observed, or None (all were).
        edges: pairs of names of nodes that are neighbours in the prior graph, or None (nothing is known of it).
    """

    values: np.ndarray
    offsets: np.ndarray
    nodes: tuple[str, ...]
    channels: tuple[str, ...]
    rate_hz: float | None = None
    times: np.ndarray | None = None
    mask: np.ndarray | None = None
    edges: tuple[tuple[str, str], ...] | None = None

    @property
    def lengths(self) -> np.ndarray:
        """(clip,) int64: frames of each clip; 0 where the clip lacks the modality."""
        return np.diff(self.offsets)


def mask_nonfinite(views: RaggedViews) -> tuple[RaggedViews, int]:
    """The same views with NaN and infinite values masked, and how many such values there were.

    A node of a frame with one such value is masked as a whole and set to zero, because the mask has no channel axis.
    """
    bad = ~np.isfinite(views.values)
    count = int(bad.sum())
    if count == 0:
        return views, 0
    lost = bad.any(axis=2)
    mask = np.ones(lost.shape, np.uint8) if views.mask is None else np.array(views.mask, np.uint8)
    mask[lost] = 0
    values = np.array(views.values)
    values[lost] = 0
    return replace(views, values=values, mask=mask), count


def check_views(modality: str, views: RaggedViews, n_clips: int, *, where: str, contents: bool = True) -> None:
    """Refuse views that do not fit together.

    Args:
        modality: its name.
        views: the views.
        n_clips: how many clips there must be.
        where: the file, for the message.
        contents: also look at every value, time stamp and mask entry, not only at sizes and offsets.

    Raises:
        PackError: naming the key and both values.
    """
    _check_sizes(modality, views, where)
    _check_offsets(f"{modality}.offsets", views, n_clips, where)
    if contents:
        _check_values(f"{modality}.values", views, where)
        _check_mask(f"{modality}.mask", views, where)
        _check_times(f"{modality}.times", views, where)


def _check_sizes(modality: str, views: RaggedViews, where: str) -> None:
    for key, names in (("nodes", views.nodes), ("channels", views.channels)):
        if not names or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
            raise PackError(f"{modality}.{key} is {list(names)}", expected="different, non-empty names", where=where)
    if views.values.ndim != 3:
        shape = views.values.shape
        raise PackError(f"{modality}.values has shape {shape}", expected="(frame, node, channel)", where=where)
    frames = views.values.shape[0]
    _check_array(f"{modality}.values", views.values, (frames, len(views.nodes), len(views.channels)), "F16 F32", where)
    _check_array(f"{modality}.offsets", views.offsets, (views.offsets.size,), "I64", where)
    if views.times is not None:
        _check_array(f"{modality}.times", views.times, (frames,), "F32", where)
    if views.mask is not None:
        _check_array(f"{modality}.mask", views.mask, (frames, len(views.nodes)), "U8", where)
    rate = views.rate_hz
    if rate is None and views.times is None:
        raise PackError(f"{modality} has neither rate_hz nor times", expected="one of them", where=where)
    if rate is not None and not (_is_number(rate) and math.isfinite(rate) and rate > 0):
        raise PackError(f"{modality}.rate_hz is {rate!r}", expected="frames per second above 0, or null", where=where)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _check_array(key: str, array: np.ndarray, shape: tuple[int, ...], kinds: str, where: str) -> None:
    allowed = [_DTYPES[kind] for kind in kinds.split()]
    if array.dtype not in allowed:
        names = " or ".join(dtype.name for dtype in allowed)
        raise PackError(f"{key} is {array.dtype}", expected=names, where=where, remedy="Convert it with astype")
    if array.shape != shape:
        raise PackError(f"{key} has shape {array.shape}", expected=str(shape), where=where)


def _check_offsets(key: str, views: RaggedViews, n_clips: int, where: str) -> None:
    offsets, frames = views.offsets, views.values.shape[0]
    if len(offsets) != n_clips + 1:
        raise PackError(f"{key} has {len(offsets)} entries", expected=f"{n_clips + 1} for {n_clips} clips", where=where)
    if offsets[0] != 0:
        raise PackError(f"{key} starts at {offsets[0]}", expected="0", where=where)
    drops = np.flatnonzero(offsets[1:] < offsets[:-1])
    if drops.size:
        row = int(drops[0])
        raise PackError(
            f"{key} decreases from {offsets[row]} to {offsets[row + 1]} at clip {row}",
            expected="no decrease",
            where=where,
        )
    if offsets[-1] != frames:
        raise PackError(f"{key} ends at {offsets[-1]}", expected=f"{frames}, the frames of the values", where=where)


def _check_values(key: str, views: RaggedViews, where: str) -> None:
    for start in range(0, len(views.values), _CHUNK):
        bad = ~np.isfinite(views.values[start : start + _CHUNK])
        if bad.any():
            frame, node, channel = (int(axis[0]) for axis in np.nonzero(bad))
            value = views.values[start + frame, node, channel]
            raise PackError(
                f"{key} is {value} at frame {start + frame}, node {views.nodes[node]!r}, "
                f"channel {views.channels[channel]!r} of clip {_clip_of(views, start + frame)}",
                expected="finite values",
                where=where,
                remedy="Mask such values first, as mask_nonfinite does",
            )


def _check_mask(key: str, views: RaggedViews, where: str) -> None:
    if views.mask is not None and len(views.mask) and views.mask.max() > 1:
        raise PackError(f"{key} holds {views.mask.max()}", expected="0 or 1", where=where)


def _check_times(key: str, views: RaggedViews, where: str) -> None:
    if views.times is None or len(views.times) == 0:
        return
    bad = np.flatnonzero(~(np.isfinite(views.times) & (views.times >= 0)))
    if bad.size:
        frame = int(bad[0])
        clip = _clip_of(views, frame)
        raise PackError(
            f"{key} is {views.times[frame]} in clip {clip}", expected="seconds since the clip's start", where=where
        )
    falls = views.times[1:] < views.times[:-1]
    starts = views.offsets[(views.offsets > 0) & (views.offsets < len(views.times))]
    falls[starts - 1] = False  # a new clip starts its own clock
    if falls.any():
        frame = int(np.flatnonzero(falls)[0])
        before, after = views.times[frame], views.times[frame + 1]
        raise PackError(
            f"{key} decreases from {before} to {after} within clip {_clip_of(views, frame)}",
            expected="no decrease",
            where=where,
        )


def _clip_of(views: RaggedViews, frame: int) -> int:
    return int(np.searchsorted(views.offsets, frame, side="right")) - 1


def tensors_of(modality: str, views: RaggedViews) -> dict[str, np.ndarray]:
    """The arrays of one modality under their keys in the safetensors file."""
    parts = {"values": views.values, "offsets": views.offsets, "times": views.times, "mask": views.mask}
    return {f"{modality}.{key}": np.ascontiguousarray(array) for key, array in parts.items() if array is not None}


def views_of(modality: str, tensors: Mapping[str, np.ndarray], facts: Mapping[str, object], where: str) -> RaggedViews:
    """The modality's views out of the mapped tensors and its entry in pack.json.

    Raises:
        PackError: if the values or offsets are missing.
    """
    for key in (f"{modality}.values", f"{modality}.offsets"):
        if key not in tensors:
            raise PackError(f"{key} is missing", expected=f"the keys of modality {modality!r}", where=where)
    return RaggedViews(
        values=tensors[f"{modality}.values"],
        offsets=tensors[f"{modality}.offsets"],
        nodes=tuple(facts["nodes"]),
        channels=tuple(facts["channels"]),
        rate_hz=facts["rate_hz"],
        times=tensors.get(f"{modality}.times"),
        mask=tensors.get(f"{modality}.mask"),
        edges=tuple((first, second) for first, second in facts["edges"]) if "edges" in facts else None,
    )


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only views of one memory map; nothing but the header is read.

    Raises:
        PackError: if the header or any tensor's place in the file is not as the format demands.
    """
    size = os.path.getsize(path)
    header, start = _read_header(path, size)
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    tensors, end = {}, 0
    entries = {key: _entry(path, key, entry) for key, entry in header.items() if key != "__metadata__"}
    for key, (dtype, shape, first, last) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise PackError(f"{key} starts at byte {first} of the data", expected=str(end), where=str(path))
        if last - first != math.prod(shape) * dtype.itemsize:
            need = math.prod(shape) * dtype.itemsize
            raise PackError(f"{key} has {last - first} bytes", expected=f"{need} for shape {shape}", where=str(path))
        if start + last > size:
            _refuse_size(path, size, start + last)
        try:
            tensors[key] = mapped[start + first : start + last].view(dtype).reshape(shape)
        except ValueError as error:
            raise PackError(f"{key} has shape {list(shape)}: {error}", where=str(path)) from error
        end = last
    if start + end != size:
        _refuse_size(path, size, start + end)
    return tensors


def _refuse_size(path: Path, size: int, need: int) -> None:
    word = "truncated" if size < need else "too long"
    raise PackError(
        f"{path.name} is {word}: it has {size} bytes",
        expected=f"{need} by its header",
        where=str(path),
        remedy="Import or copy the pack again",
    )


def _read_header(path: Path, size: int) -> tuple[dict[str, object], int]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise PackError(
                f"{path.name} is truncated or no safetensors file: it says its header has {length} bytes",
                expected=f"at most {max(size - 8, 0)}, what the file holds",
                where=str(path),
            )
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackError(f"the header of {path.name} is not JSON: {error}", where=str(path)) from error
    if not isinstance(header, dict):
        raise PackError(
            f"the header of {path.name} is a {type(header).__name__}", expected="a mapping", where=str(path)
        )
    return header, 8 + length


def _entry(path: Path, key: str, entry: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """The type, shape, first and last byte of a tensor, each of the right kind."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PackError(f"{key} is described by {entry!r}", expected="dtype, shape, data_offsets", where=str(path))
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise PackError(f"{key} has dtype {entry['dtype']!r}", expected=" or ".join(_DTYPES), where=str(path))
    for name, length in (("shape", None), ("data_offsets", 2)):
        numbers = entry[name]
        fine = isinstance(numbers, list) and all(type(number) is int and 0 <= number < 2**40 for number in numbers)
        if not fine or (length is not None and len(numbers) != length):
            raise PackError(f"{key} has {name} {numbers!r}", expected="integers from 0 to 2^40", where=str(path))
    return _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"][0], entry["data_offsets"][1]
