"""Features of one's own: one archive of arrays per modality and a CSV file that lists the clips enter, clips leave.

`<modality>.npz` holds values (frame, node, channel), or (frame, channel) for one node; offsets (clip + 1,), left out if
each clip has one frame; and of times (frame,), mask (frame, node), nodes, channels, rate_hz, edges (edge, 2) as names
of nodes what there is. Clip i is row i of the list.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stf2m_core.data.clip_list import read_clip_list
from stf2m_core.data.manifest_file import Manifest, nearest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.reading import Reading
from stf2m_core.errors import ManifestError

_KEYS = ("values", "offsets", "times", "mask", "nodes", "channels", "rate_hz", "edges")


def read(
    source: Path, manifest: Manifest, *, table: str = "clips.csv", labels: Sequence[str] | None = None,
    modalities: Sequence[str] = (),
) -> Reading:  # fmt: skip
    """The clips in the list with the features in the archives.

    Each clip is a group of its own unless the list has a column for it. The list needs a column duration_s where an
    archive has neither times nor rate_hz: then frames lie evenly in the clip.

    Args:
        source: folder with the archives and the list.
        manifest: states the labels if a data set with labels of its own is listed like this.
        table: the list.
        labels: names in order; None: the manifest's, else those of the list, sorted.
        modalities: names of the archives; () takes every archive in the folder.

    Raises:
        ManifestError: if the list or an archive is malformed, or they have different numbers of clips.
    """
    listed = read_clip_list(source, table, labels=labels or manifest.labels)
    duration = listed.clips["duration_s"].to_numpy(float)
    root = source.resolve()
    there = {path.stem: path for path in sorted(source.glob("*.npz")) if path.resolve().is_relative_to(root)}
    for modality in modalities:
        if modality not in there:
            raise ManifestError(f"{modality}.npz is missing", expected=f"it in {source}",
                                remedy=nearest(modality, there))  # fmt: skip
    views = {name: _views(there[name], duration) for name in modalities or there}
    least = np.max([_spans(part) for part in views.values()], axis=0)
    clips = listed.clips.assign(duration_s=np.where(np.isnan(duration), least, duration))
    return Reading(clips=clips, views=views, labels=listed.labels, remarks=listed.remarks)


def _views(path: Path, duration: np.ndarray) -> RaggedViews:
    arrays = _arrays(path)
    values = arrays["values"]
    values = values[:, None, :] if values.ndim == 2 else values
    if values.ndim != 3 or values.dtype.kind not in "fiu":
        raise ManifestError(f"values are {arrays['values'].dtype} of shape {arrays['values'].shape}",
                            expected="numbers (frame, node, channel) or (frame, channel)", where=str(path))  # fmt: skip
    values = values if values.dtype == np.float16 else values.astype(np.float32, copy=False)
    offsets = _offsets(arrays.get("offsets"), len(values), len(duration), path)
    rate = float(arrays["rate_hz"]) if "rate_hz" in arrays else None
    times = arrays["times"].astype(np.float32) if "times" in arrays else None
    if rate is None and times is None:
        times = _even_times(offsets, duration, path)
    return RaggedViews(
        values=values,
        offsets=offsets,
        nodes=_names(arrays.get("nodes"), values.shape[1], "node", path),
        channels=_names(arrays.get("channels"), values.shape[2], "channel", path),
        rate_hz=rate,
        times=times,
        mask=arrays["mask"].astype(np.uint8) if "mask" in arrays else None,
        edges=_edges(arrays.get("edges"), path),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ManifestError(f"{path.name} cannot be read: {error}", expected="an archive of arrays",
                            where=str(path), remedy="Write it with numpy.savez") from error  # fmt: skip
    for name in arrays:
        if name not in _KEYS:
            raise ManifestError(f"array {name!r} is unknown", expected=", ".join(_KEYS), where=str(path),
                                remedy=nearest(name, _KEYS))  # fmt: skip
    if "values" not in arrays:
        raise ManifestError("array 'values' is missing", expected=", ".join(_KEYS), where=str(path))
    return arrays


def _offsets(offsets: np.ndarray | None, n_frames: int, n_clips: int, path: Path) -> np.ndarray:
    if offsets is None:
        offsets = np.arange(n_frames + 1)
    if len(offsets) != n_clips + 1 or offsets.dtype.kind not in "iu":
        raise ManifestError(f"there are {len(offsets) - 1} clips", expected=f"{n_clips}, as in the list",
                            where=str(path))  # fmt: skip
    if offsets[0] != 0 or offsets[-1] != n_frames or (np.diff(offsets) < 0).any():
        raise ManifestError(f"offsets go from {offsets[0]} to {offsets[-1]}", where=str(path),
                            expected=f"0 to {n_frames}, the frames of the values, never decreasing")  # fmt: skip
    return offsets.astype(np.int64)


def _even_times(offsets: np.ndarray, duration: np.ndarray, path: Path) -> np.ndarray:
    if np.isnan(duration).any():
        raise ManifestError("nothing says when frames are", expected="times or rate_hz, or duration_s in the list",
                            where=str(path))  # fmt: skip
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + 0.5
    return (position / np.repeat(lengths, lengths) * np.repeat(duration, lengths)).astype(np.float32)


def _names(names: np.ndarray | None, n: int, kind: str, path: Path) -> tuple[str, ...]:
    if names is None:
        return tuple(f"{kind}{number:0{len(str(n - 1))}d}" for number in range(n))
    if names.shape != (n,):
        raise ManifestError(f"{kind}s has shape {names.shape}", expected=f"{n} names", where=str(path))
    return tuple(str(name) for name in names)


def _edges(edges: np.ndarray | None, path: Path) -> tuple[tuple[str, str], ...] | None:
    if edges is None:
        return None
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind != "U":
        raise ManifestError(f"edges are {edges.dtype} of shape {edges.shape}", expected="names of nodes (edge, 2)",
                            where=str(path))  # fmt: skip
    return tuple((first, second) for first, second in edges.tolist())


def _spans(views: RaggedViews) -> np.ndarray:
    """(clip,) seconds that a clip lasts at least: to its last frame."""
    if views.rate_hz is not None:
        return views.lengths / views.rate_hz
    last = views.times[np.maximum(views.offsets[1:], 1) - 1].astype(float)
    # a clip of one frame at second 0 must last something: a millisecond
    return np.where(views.lengths > 0, np.maximum(last + 1e-3, 1e-3), 0.0)
