"""Views of one clip on disk: a file that is whole or absent, and says what it was made from.

One safetensors file per clip. A clip that cannot be read leaves the same kind of file with the reason and no tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stf2m_core.data.media.clip import ClipViews, FaceTrack, Stream

_PARTS = ("values", "times", "mask")


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a clip's file says: the key it was made from, facts, and the reason where there are no views."""

    key: str
    facts: dict[str, Any]
    reason: str = ""


def place_of(folder: Path, clip_id: str) -> Path:
    """The file of a clip; any clip_id gives a safe name."""
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return folder / "clips" / digest[:2] / f"{digest}.safetensors"


def write_clip(path: Path, key: str, clip: ClipViews | None, *, reason: str = "", seconds: float = 0.0) -> None:
    """Write a clip's views, or why there are none; the file is whole or absent.

    Raises:
        OSError: if it cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {"seconds": round(seconds, 3), "streams": {}, "remarks": [], "words": []}
    if clip is not None:
        for name, stream in clip.streams.items():
            tensors |= {f"{name}.{part}": np.ascontiguousarray(getattr(stream, part)) for part in _PARTS}
            facts["streams"][name] = {"nodes": stream.nodes, "channels": stream.channels, "rate_hz": stream.rate_hz,
                                      "frames": len(stream.times)}  # fmt: skip
        facts |= {"duration_s": clip.duration_s, "remarks": clip.remarks, "words": clip.words}
        if clip.track is not None:
            track = clip.track
            tensors |= {f"track.{part}": np.ascontiguousarray(getattr(track, part)) for part in
                        ("times", "boxes", "confidence", "n_faces")}  # fmt: skip
            facts["frame_size"] = track.frame_size
    content = save(tensors, {"key": key, "reason": reason, "facts": json.dumps(facts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed workers were writing; the caller holds the folder's lock, so nobody else is at work there."""
    for aside in [*folder.glob("clips/*/.*.safetensors.*"), *folder.glob("views/.*.npy.*")]:
        aside.unlink(missing_ok=True)


def read_kept(path: Path) -> Kept | None:
    """What the file says, without its tensors; None if it is absent or damaged."""
    try:
        with safe_open(path, "np") as file:
            said = file.metadata() or {}
            return Kept(said["key"], json.loads(said["facts"]), said["reason"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def read_streams(path: Path) -> ClipViews:
    """The views in a clip's file.

    Raises:
        OSError, SafetensorError: if it is absent or damaged.
    """
    with safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["facts"])
        streams = {
            name: Stream(*(file.get_tensor(f"{name}.{part}") for part in _PARTS), tuple(about["nodes"]),
                         tuple(about["channels"]), about["rate_hz"])
            for name, about in facts["streams"].items()
        }  # fmt: skip
        track = None
        if "frame_size" in facts:
            parts = (file.get_tensor(f"track.{part}") for part in ("times", "boxes", "confidence", "n_faces"))
            track = FaceTrack(*parts, tuple(facts["frame_size"]))
    return ClipViews(facts["duration_s"], streams, track, tuple(facts["words"]), tuple(facts["remarks"]))
