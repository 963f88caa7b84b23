"""Parts of clips: a pack whose labels stand inside its clips becomes a pack whose clips are its segments.

Segments and windows are the same thing here, spans of clips with a clock of their own. Source: METHOD, 'Labels'.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data.clips import vote_columns
from stf2m_core.data.pack import Pack, write_pack
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.errors import PackError

LEAST_LABELLED = 0.5
"""Share of a window that must be labelled for the window to have a label."""
_EDGE = 1e-6  # seconds by which a time stamp may miss an edge: stamps are float32, edges decimal


def cut(pack: Pack, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the pack whose clips are the segments of a pack; what trains on clips then trains on segment labels.

    A segment keeps subject, group and domain of its clip: whoever keeps groups apart keeps all segments of a clip on
    one side. Its clock starts with it. Column x_clip names the clip and x_start_s where in it the segment begins.

    Args:
        pack: with segments.
        path: the folder to make.
        overwrite: replace a pack that is there.

    Returns:
        The folder, absolute.

    Raises:
        PackError: if the pack has no segments, or in a segment no modality has a frame.
    """
    if pack.segments is None or len(pack.segments) == 0:
        raise PackError("the pack has no segments", expected="labels inside clips", where=str(pack.path))
    owner = rows_of(pack, pack.segments["clip_id"])
    start, end = (pack.segments[name].to_numpy() for name in ("start_s", "end_s"))
    order = np.lexsort((start, owner))
    owner, start, end = owner[order], start[order], end[order]
    number = np.arange(len(owner)) - np.searchsorted(owner, owner)
    width = len(str(number.max()))
    source = pack.clips.iloc[owner]
    told = pack.segments.iloc[order][["label", *vote_columns(pack.segments, pack.labels)]].reset_index(drop=True)
    names = [f"{clip}#{i:0{width}d}" for clip, i in zip(source["clip_id"], number, strict=True)]
    table = source[["subject", "group", "domain", "split"]].reset_index(drop=True).assign(
        clip_id=names, duration_s=end - start, text="", x_clip=source["clip_id"].to_numpy(),
        x_start_s=[repr(value) for value in start.tolist()],
    )  # fmt: skip
    views = {name: cut_views(pack, name, owner, start, end) for name in pack.modalities}
    _refuse_unobserved(views, names, str(pack.path))
    return write_pack(
        path, pd.concat([table, told], axis=1), views, pack.labels, name=f"{pack.name}-segments", title=pack.title,
        licence=pack.licence, source=pack.source, made_from={"segments_of": pack.digest}, overwrite=overwrite,
    )  # fmt: skip


def spans(pack: Pack, owner: np.ndarray, start_s: np.ndarray, end_s: np.ndarray) -> Pack:
    """Spans of clips as the clips of a pack in memory, without labels; it has the folder and digest of the whole.

    Args:
        pack: the clips.
        owner: (span,) int64 row of each span's clip.
        start_s: (span,) seconds within the clip.
        end_s: (span,) seconds, later than `start_s`.

    Raises:
        PackError: if a span has no length.
    """
    clips = pack.clips.iloc[owner][["subject", "group", "domain"]].reset_index(drop=True)
    clips = clips.assign(clip_id=np.arange(len(owner)).astype(str), duration_s=end_s - start_s, label="", split="",
                         text="")  # fmt: skip
    views = {name: cut_views(pack, name, owner, start_s, end_s) for name in pack.modalities}
    return replace(pack, clips=clips, segments=None, _views=views)


def cut_views(pack: Pack, modality: str, owner: np.ndarray, start_s: np.ndarray, end_s: np.ndarray) -> RaggedViews:
    """The frames of one modality within each span, each with a clock that starts with the span.

    A frame at the edge belongs to the later span; the end of the clip belongs to the span that reaches it. Arguments
    of `spans`.

    Raises:
        PackError: if a span has no length, or there is no such modality.
    """
    _refuse_empty(owner, start_s, end_s, pack)
    view = pack.view(modality)
    rows, number = np.unique(owner, return_inverse=True)  # of a large pack only the clips that are asked for are read
    frame = _ranges(view.offsets[rows], view.lengths[rows])
    clip = np.repeat(np.arange(len(rows)), view.lengths[rows])
    if view.times is None:
        times = (frame - view.offsets[rows][clip]) / view.rate_hz
    else:
        times = np.asarray(view.times[frame], np.float64)
    duration = pack.clips["duration_s"].to_numpy()[owner]
    far = max(times.max(initial=0), duration.max(initial=0)) + 1  # clip after clip on one clock
    last = np.where(end_s >= duration - _EDGE, far - 0.5, end_s - _EDGE)
    clock = clip * far + times
    first, stop = (np.searchsorted(clock, number * far + edge) for edge in (start_s - _EDGE, last))
    count = np.maximum(stop - first, 0)
    kept = _ranges(first, count)
    return replace(
        view, values=np.asarray(view.values[frame[kept]]),
        offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        times=np.maximum(times[kept] - np.repeat(start_s, count), 0).astype(np.float32),
        mask=None if view.mask is None else np.asarray(view.mask[frame[kept]]),
    )  # fmt: skip


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The numbers from `first` on, `count` of them, of one range after the other."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)


def span_labels(pack: Pack, owner: np.ndarray, start_s: np.ndarray, end_s: np.ndarray) -> np.ndarray:
    """Label distribution of each span by overlap: q = sum_j |w ^ j| q_j / sum_j |w ^ j|, (span, label) float64.

    q_j of a segment are the shares of its votes, else all on its label. NaN, undefined, where less than half of the
    span is labelled; a segment without votes or label labels nothing. Arguments and errors of `spans`.

    Raises:
        PackError: if the pack has no segments, or a span has no length.
    """
    if pack.segments is None:
        raise PackError("the pack has no segments", expected="labels inside clips", where=str(pack.path))
    _refuse_empty(owner, start_s, end_s, pack)
    shares = _shares(pack)
    known = np.isfinite(shares).all(1)
    told = pack.segments.assign(segment=np.arange(len(known)), owner=rows_of(pack, pack.segments["clip_id"]))[known]
    asked = pd.DataFrame({"owner": owner, "span": np.arange(len(owner)), "first": start_s, "last": end_s})
    pairs = asked.merge(told[["owner", "segment", "start_s", "end_s"]], on="owner")
    overlap = (np.minimum(pairs["last"], pairs["end_s"]) - np.maximum(pairs["first"], pairs["start_s"])).clip(lower=0)
    mass = np.zeros((len(owner), len(pack.labels)))
    np.add.at(mass, pairs["span"].to_numpy(), overlap.to_numpy()[:, None] * shares[pairs["segment"]])
    labelled = mass.sum(1)
    enough = labelled >= LEAST_LABELLED * (end_s - start_s) - _EDGE
    return np.where(enough[:, None], mass / np.where(enough, labelled, 1)[:, None], np.nan)


def rows_of(pack: Pack, clip_ids: pd.Series | np.ndarray) -> np.ndarray:
    """(name,) int64 row of each clip.

    Raises:
        PackError: naming a clip that the pack lacks.
    """
    rows = pd.Index(pack.clips["clip_id"]).get_indexer(clip_ids).astype(np.int64)
    if (rows < 0).any():
        missing = str(np.asarray(clip_ids)[rows < 0][0])
        raise PackError(f"clip {missing!r} is unknown", expected="a clip of the pack", where=str(pack.path))
    return rows


def _shares(pack: Pack) -> np.ndarray:
    """(segment, label) distribution of each segment; NaN where it has neither votes nor label."""
    code = pd.Index(pack.labels).get_indexer(pack.segments["label"])
    shares = np.where((code >= 0)[:, None], np.eye(len(pack.labels))[code], np.nan)
    columns = vote_columns(pack.segments, pack.labels)
    if columns:
        votes = pack.segments[columns].to_numpy(np.float64)
        rated = votes.sum(1) > 0
        shares[rated] = votes[rated] / votes[rated].sum(1, keepdims=True)
    return shares


def _refuse_empty(owner: np.ndarray, start_s: np.ndarray, end_s: np.ndarray, pack: Pack) -> None:
    bad = ~(end_s > start_s)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        clip = pack.clips["clip_id"].iloc[int(owner[row])]
        raise PackError(f"a span from {start_s[row]:g} to {end_s[row]:g} s of clip {clip!r}", where=str(pack.path),
                        expected="an end after the start")  # fmt: skip


def _refuse_unobserved(views: dict[str, RaggedViews], names: list[str], where: str) -> None:
    present = np.any([view.lengths > 0 for view in views.values()], axis=0)
    if not present.all():
        name = names[int(np.flatnonzero(~present)[0])]
        raise PackError(f"segment {name!r} has no frame in any modality", expected="one or more", where=where,
                        remedy="Leave the segment out, or make it longer")  # fmt: skip
