"""Face tracks of py-feat and the phrases spoken: one CSV per clip enters, landmarks, action units and words leave.

Source of the columns: py-feat (Cheong et al. 2023). Its emotion columns are the answers of a model and are never read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data import landmarks
from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.reading import Reading, clip_table, spread_words
from stf2m_core.data.recordings import find_recordings
from stf2m_core.data.tables import check_labels, check_numeric, read_columns, read_table
from stf2m_core.errors import ManifestError

UNITS = ("AU01", "AU02", "AU04", "AU05", "AU06", "AU07", "AU09", "AU10", "AU11", "AU12", "AU14", "AU15", "AU17", "AU20",
         "AU23", "AU24", "AU25", "AU26", "AU28", "AU43")  # fmt: skip
_LANDMARKS = [f"{axis}_{number}" for axis in "xy" for number in range(landmarks.N_LANDMARKS)]
_TABLE = "clip_attrs.csv"
_SAME_FACE = "subjects are numbers of phrases: the test is of other phrases of the same faces, and of nobody new"
_CLASSES = {"gn": "good news", "ists": "bad news"}


def read(
    source: Path, manifest: Manifest, *, rate_hz: float = 25.0, confidence: float = 0.5, clips_per_subject: int = 20,
    hold_out: str = "people",
) -> Reading:  # fmt: skip
    """The clips of which there are both a track and a row in the table.

    Args:
        source: folder with clip_attrs.csv and 001.csv, 002.csv, …
        manifest: states the labels.
        rate_hz: frames per second of the video; the tracks say only the second each frame lies in, and must agree.
        confidence: frames whose face is less certain are masked.
        clips_per_subject: clips in a row of the table that one person spoke.
        hold_out: "people", or "phrases": then every phrase number of a person stands as a subject of its own, so that
            a single person's clips give meta-splits, which share no phrase; they all share the face.

    Raises:
        ManifestError: if a table is malformed, a track's seconds do not fit the rate, or `hold_out` is something else.
    """
    if hold_out not in ("people", "phrases"):
        raise ManifestError(f"hold_out is {hold_out!r}", expected="'people' or 'phrases'", where=manifest.name)
    table = read_table(source / _TABLE, ("clipN", "class", "phraseN", "phrase_txt")).without_repeats("clipN")
    rows = table.rows.assign(label=table.rows["class"].str.strip().map(_CLASSES).fillna(table.rows["class"]))
    rows["subject"] = [f"s{row // clips_per_subject + 1:02d}" for row in range(len(rows))]
    check_labels(rows["label"], manifest.labels, table.where)
    found = find_recordings(source, {".csv"})
    paths = {name: path for name, path in found.paths.items() if path.name != _TABLE}
    left_out = {**found.left_out, **{n: "it has no row in the table" for n in paths if n not in set(rows["clipN"])}}
    left_out |= {name: "its track is missing" for name in rows["clipN"] if name not in paths}
    rows = rows[rows["clipN"].isin(list(paths))].reset_index(drop=True)
    tracks = [_Track.read(paths[name], rate_hz, confidence) for name in rows["clipN"]]
    if not tracks:
        return Reading(clips=rows, views={}, left_out=left_out)
    duration = np.array([track.duration_s for track in tracks])
    views = {
        "visual": _join(
            [track.points for track in tracks], tracks, landmarks.NAMES, ("x", "y"), landmarks.named_edges()
        ),
        "action_units": _join([track.units for track in tracks], tracks, UNITS, ("intensity",)),
        "text": spread_words(rows["phrase_txt"].tolist(), duration),
    }
    clips, remarks = _clips(rows, duration), list(table.remarks)
    if hold_out == "phrases":
        clips["subject"] = clips["group"]
        remarks.append(_SAME_FACE)
    return Reading(clips=clips, views=views, left_out=left_out, remarks=remarks)


def _clips(rows: pd.DataFrame, duration: np.ndarray) -> pd.DataFrame:
    return clip_table(
        {
            "clip_id": rows["clipN"],
            "subject": rows["subject"],
            # the n-th good and the n-th bad phrase: an episode needs both kinds in one group, and no phrase is in two
            "group": rows["subject"] + "/" + rows["phraseN"],
            "domain": "news",
            "duration_s": duration,
            "label": rows["label"],
            "text": rows["phrase_txt"],
        }
    )


class _Track:
    """One clip: (frame, 68, 2) points, (frame, 20, 1) units, (frame,) times and whether a face was seen."""

    def __init__(self, points: np.ndarray, units: np.ndarray, times: np.ndarray, seen: np.ndarray, duration_s: float):
        self.points, self.units, self.times, self.seen, self.duration_s = points, units, times, seen, duration_s

    @classmethod
    def read(cls, path: Path, rate_hz: float, confidence: float) -> _Track:
        wanted = ["frame", "FaceScore", *_LANDMARKS, *UNITS]
        table = _read_track(path, wanted)
        frame = table["frame"].to_numpy(np.float64)
        if len(frame) == 0 or (np.diff(frame) <= 0).any():
            raise ManifestError(f"frames of {path.name} are not in order", expected="rising frame numbers, one face",
                                where=str(path))  # fmt: skip
        _check_seconds(table, frame, rate_hz, path)
        points = table[_LANDMARKS].to_numpy(np.float64).reshape(len(frame), 2, -1).transpose(0, 2, 1)
        seen = table["FaceScore"].to_numpy(np.float64) >= confidence  # NaN is no face
        step = float(np.median(np.diff(frame))) if len(frame) > 1 else 1.0
        units = table[list(UNITS)].to_numpy(np.float32)[..., None]
        return cls(landmarks.centred(points), units, frame / rate_hz, seen, float((frame[-1] + step) / rate_hz))


def _read_track(path: Path, wanted: list[str]) -> pd.DataFrame:
    """The columns wanted and the clock; the thousands of others are not parsed."""
    read = {*wanted, "approx_time"}
    table = read_columns(path, wanted, expected="the columns of py-feat", skipinitialspace=True,
                         usecols=lambda name: name.strip() in read)  # fmt: skip
    check_numeric(table, wanted, str(path))
    return table


def _check_seconds(table: pd.DataFrame, frame: np.ndarray, rate_hz: float, path: Path) -> None:
    """The track writes minutes and whole seconds; frames at the stated rate must fall into them."""
    if "approx_time" not in table.columns:
        return
    clock = table["approx_time"].astype(str).str.extract(r"^(\d+):(\d+)$").astype(float)
    stated = (clock[0] * 60 + clock[1]).to_numpy()
    first, last = ((frame + off) / rate_hz for off in (-1, 1))  # a second may begin one frame early or late
    wrong = np.flatnonzero((np.floor(last) < stated) | (np.floor(first) > stated))
    if wrong.size:
        row = wrong[0]
        raise ManifestError(
            f"frame {frame[row]:.0f} lies in second {stated[row]:g}",
            expected=f"second {int(frame[row] / rate_hz)} at {rate_hz:g} frames per second",
            where=str(path),
            remedy="State the rate of the video with rate_hz",
        )


def _join(
    parts: list[np.ndarray], tracks: list[_Track], nodes: tuple[str, ...], channels: tuple[str, ...],
    edges: tuple[tuple[str, str], ...] | None = None,
) -> RaggedViews:  # fmt: skip
    values = np.concatenate(parts).astype(np.float32)
    seen = np.concatenate([track.seen for track in tracks])
    values[~seen] = 0
    return RaggedViews(
        values=values,
        offsets=np.cumsum([0, *(len(track.times) for track in tracks)], dtype=np.int64),
        nodes=tuple(nodes),
        channels=tuple(channels),
        times=np.concatenate([track.times for track in tracks]).astype(np.float32),
        mask=np.repeat(seen[:, None].astype(np.uint8), len(nodes), axis=1),
        edges=edges,
    )
