"""Face tracks of OpenFace 2: one CSV per clip and a table of labels enter, landmarks, action units and head leave.

Source of the columns: OpenFace 2 (Baltrusaitis et al. 2018), whose headers have a blank after each comma.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data import landmarks
from stf2m_core.data.clip_list import read_clip_list
from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.reading import Reading
from stf2m_core.data.recordings import find_recordings
from stf2m_core.data.tables import check_numeric, read_columns
from stf2m_core.errors import ManifestError

UNITS = ("AU01", "AU02", "AU04", "AU05", "AU06", "AU07", "AU09", "AU10", "AU12", "AU14", "AU15", "AU17", "AU20", "AU23",
         "AU25", "AU26", "AU28", "AU45")  # fmt: skip
_HEAD = {
    "place": ("pose_Tx", "pose_Ty", "pose_Tz"), "turn": ("pose_Rx", "pose_Ry", "pose_Rz"),
    "gaze_0": ("gaze_0_x", "gaze_0_y", "gaze_0_z"), "gaze_1": ("gaze_1_x", "gaze_1_y", "gaze_1_z"),
}  # fmt: skip
_POINTS = [f"{axis}_{number}" for axis in "xy" for number in range(landmarks.N_LANDMARKS)]
_NEEDED = ["timestamp", "confidence", "success", *_POINTS, *(name for part in _HEAD.values() for name in part)]


def read(source: Path, manifest: Manifest, *, table: str = "clips.csv", confidence: float = 0.5) -> Reading:
    """The clips of the table of which there is a track, called <clip_id>.csv.

    Args:
        source: folder with the table and the tracks.
        manifest: needed for nothing but messages; the table states the labels.
        table: name of the table of clips; its columns are those of the manifest `folder`, without `file`.
        confidence: frames that OpenFace marks as failed, or trusts less than this, are masked.

    Raises:
        ManifestError: if the table or a track is malformed.
    """
    listed = read_clip_list(source, table)
    found = find_recordings(source, {".csv"})
    paths = {name: path for name, path in found.paths.items() if path.name != table}
    clips, left_out = listed.matched(paths, dict(found.left_out))
    tracks = [read_track(paths[name], confidence) for name in clips["clip_id"]]
    if not tracks:
        return Reading(clips=clips, views={}, left_out=left_out, labels=listed.labels)
    times = [track["times"] for track in tracks]
    stated = clips["duration_s"].to_numpy(np.float64)
    measured = np.array([track_times[-1] + _step(track_times) for track_times in times])
    clips = clips.assign(duration_s=np.where(np.isnan(stated), measured, stated))
    names = {"visual": (UNITS, ("intensity", "presence")), "landmarks": (landmarks.NAMES, ("x", "y")),
             "head": (tuple(_HEAD), ("x", "y", "z"))}  # fmt: skip
    views = {name: _join(name, tracks, *facts) for name, facts in names.items()}
    return Reading(clips=clips, views=views, labels=listed.labels, left_out=left_out, remarks=listed.remarks)


def read_track(path: Path, confidence: float = 0.5) -> dict[str, np.ndarray]:
    """One track.

    Args:
        path: CSV as OpenFace writes it.
        confidence: frames below are not seen.

    Returns:
        times (frame,) s; seen (frame,) bool; visual (frame, 18, 2) intensity 0 to 5 and presence 0 or 1; landmarks
        (frame, 68, 2) by `landmarks.centred`; head (frame, 4, 3): place in mm, turn in radians, gaze directions.

    Raises:
        ManifestError: naming a column that is missing or no number, or if time runs backwards or two faces are told.
    """
    table = read_columns(path, _NEEDED, expected="the columns of OpenFace 2", skipinitialspace=True)
    check_numeric(table, _NEEDED, str(path))
    _check(table, path)
    values = np.zeros((len(table), len(UNITS), 2), np.float32)
    for channel, ending in enumerate(("_r", "_c")):
        for node, unit in enumerate(UNITS):
            if unit + ending in table.columns:  # AU28 has presence alone; its intensity stays 0
                values[:, node, channel] = table[unit + ending]
    points = table[_POINTS].to_numpy(np.float64).reshape(len(table), 2, -1).transpose(0, 2, 1)
    head = np.stack([table[list(part)].to_numpy(np.float32) for part in _HEAD.values()], axis=1)
    seen = ((table["success"] == 1) & (table["confidence"] >= confidence)).to_numpy()
    return {
        "times": table["timestamp"].to_numpy(np.float64), "seen": seen, "visual": values,
        "landmarks": landmarks.centred(points), "head": head,
    }  # fmt: skip


def _check(table: pd.DataFrame, path: Path) -> None:
    if len(table) == 0 or (np.diff(table["timestamp"]) < 0).any():
        raise ManifestError(f"{path.name} is empty or its time runs backwards", expected="rising time stamps",
                            where=str(path))  # fmt: skip
    if "face_id" in table.columns and table["face_id"].nunique() > 1:
        raise ManifestError(f"{path.name} has {table['face_id'].nunique()} faces", expected="one", where=str(path),
                            remedy="Write a track for each face")  # fmt: skip


def _step(times: np.ndarray) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 1.0


def _join(
    name: str, tracks: list[dict[str, np.ndarray]], nodes: tuple[str, ...], channels: tuple[str, ...]
) -> RaggedViews:
    seen = np.concatenate([track["seen"] for track in tracks])
    values = np.concatenate([track[name] for track in tracks])
    values[~seen] = 0
    return RaggedViews(
        values=values,
        offsets=np.cumsum([0, *(len(track["times"]) for track in tracks)], dtype=np.int64),
        nodes=nodes,
        channels=channels,
        times=np.concatenate([track["times"] - track["times"][0] for track in tracks]).astype(np.float32),
        mask=np.repeat(seen[:, None].astype(np.uint8), len(nodes), axis=1),
        edges=landmarks.named_edges() if name == "landmarks" else None,
    )
