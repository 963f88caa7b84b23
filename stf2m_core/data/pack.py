"""The feature pack: tables and views of any data set go in, checked and memory-mapped clips come out.

A pack is a folder with pack.json, clips.csv, views.safetensors and, for labels inside clips, segments.csv. The rest of
the kit reads nothing else. A pack on disk is whole or absent, whatever happens to its writer.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import save_file

from stf2m_core.data.clips import check_clips, check_segments, from_csv, to_csv, vote_columns
from stf2m_core.data.folder import check_replaceable, inside, locked, recover, sha256, write_folder
from stf2m_core.data.head import (
    CLIPS,
    FORMAT,
    HEAD,
    MEMBERS,
    SEGMENTS,
    TEXTS,
    VERSION,
    VIEWS,
    check_head,
    digest_of,
    read_head,
)  # fmt: skip
from stf2m_core.data.ragged import RaggedViews, check_views, map_tensors, mask_nonfinite, tensors_of, views_of
from stf2m_core.errors import PackError

__all__ = ["Pack", "RaggedViews", "mask_nonfinite", "open_pack", "verify", "write_pack"]


@dataclass(frozen=True, eq=False)
class Pack:
    """An open pack. Row i of `clips` is clip i of every modality.

    Attributes:
        path: its folder, absolute.
        name: short name, as in records.
        title: one line for tables.
        licence: of the data.
        source: citation or address.
        labels: names of the labels; the index into them is the label's number everywhere.
        clips: clips.csv, one row per clip; text columns are str, missing text is "".
        segments: segments.csv, or None.
        modalities: names of the modalities, in the order of pack.json.
        digest: 12 hex digits of what is in the pack; equal packs made at different times have the same.
    """

    path: Path
    name: str
    title: str
    licence: str
    source: str
    labels: tuple[str, ...]
    clips: pd.DataFrame
    segments: pd.DataFrame | None
    modalities: tuple[str, ...]
    digest: str
    _views: Mapping[str, RaggedViews] = field(repr=False)

    def __len__(self) -> int:
        return len(self.clips)

    def view(self, modality: str) -> RaggedViews:
        """All clips' views of one modality, memory-mapped and read-only.

        Raises:
            PackError: if the pack has no such modality.
        """
        if modality not in self._views:
            raise PackError(
                f"modality {modality!r} is unknown", expected=" or ".join(self.modalities), where=str(self.path)
            )
        return self._views[modality]

    def edges(self, modality: str) -> np.ndarray | None:
        """(edge, 2) int64 numbers of nodes that are neighbours, each pair once; None where the pack tells no graph.

        Raises:
            PackError: if the pack has no such modality.
        """
        views = self.view(modality)
        if views.edges is None:
            return None
        number = {node: index for index, node in enumerate(views.nodes)}
        return np.array([[number[first], number[second]] for first, second in views.edges], np.int64)

    @cached_property
    def label_ids(self) -> np.ndarray:
        """(clip,) int64 index into `labels`; -1 where the label is undefined."""
        codes = pd.Index(self.labels).get_indexer(self.clips["label"]).astype(np.int64)
        return _frozen(codes)

    @cached_property
    def soft_labels(self) -> np.ndarray:
        """(clip, label) float32; every row sums to 1.

        Shares of the raters' votes where there are any; else all on the clip's label; else, where that is undefined,
        the same for all labels.
        """
        known = self.label_ids >= 0
        shares = np.full((len(self), len(self.labels)), 1 / len(self.labels))
        shares[known] = np.eye(len(self.labels))[self.label_ids[known]]
        columns = vote_columns(self.clips, self.labels)
        if columns:
            votes = self.clips[columns].to_numpy(np.float64)
            rated = votes.sum(1) > 0
            shares[rated] = votes[rated] / votes[rated].sum(1, keepdims=True)
        return _frozen(shares.astype(np.float32))

    def content_hashes(self) -> np.ndarray:
        """(clip,) str: 16 hex digits of the clip's values in all modalities; equal for clips with equal content."""
        hashes = np.empty(len(self), dtype="<U16")
        offsets = {name: self._views[name].offsets.tolist() for name in sorted(self.modalities)}
        for row in range(len(self)):
            digest = hashlib.sha256()
            for name, edges in offsets.items():
                values = self._views[name].values[edges[row] : edges[row + 1]]
                digest.update(f"{name}:{values.nbytes};".encode())
                digest.update(np.ascontiguousarray(values).data)
            hashes[row] = digest.hexdigest()[:16]
        return hashes


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def write_pack(
    path: str | os.PathLike[str],
    clips: pd.DataFrame,
    views: Mapping[str, RaggedViews],
    labels: Sequence[str],
    *,
    name: str,
    title: str = "",
    licence: str = "",
    source: str = "",
    made_by: str = "",
    made_from: Any = None,
    segments: pd.DataFrame | None = None,
    overwrite: bool = False,
) -> Path:
    """Check everything, then write a pack, whole or not at all.

    Args:
        path: the folder to make.
        clips: one row per clip: clip_id, subject, group, domain, duration_s, label, split, text; optional votes_<label>
            for every label, valence, arousal; columns of your own are prefixed x_ and kept as text.
        views: modality to views, all with one slice per row of `clips`.
        labels: names of the labels, in order.
        name: short name of the data set.
        title: one line for tables.
        licence: of the data.
        source: citation or address.
        made_by: who or what made the pack.
        made_from: anything JSON can hold about the origin.
        segments: labels inside clips: clip_id, start_s, end_s, label, optional votes_<label>.
        overwrite: replace a pack that is there.

    Returns:
        The folder, absolute.

    Raises:
        PackError: for anything malformed, naming the key and both values, or if the folder cannot be written.
    """
    target = _absolute(path)
    labels, texts = list(labels), dict(zip(TEXTS, (name, title, licence, source, made_by or "stf2m_core"), strict=True))
    head = {"format": FORMAT, "version": VERSION, **texts, "labels": labels, "made_from": made_from}
    head["modalities"] = {modality: _facts(modality, part) for modality, part in views.items()}
    check_head(head, "the arguments of write_pack")
    clips = check_clips(clips, labels, "clips")
    tables = {CLIPS: to_csv(clips)}
    if segments is not None:
        tables[SEGMENTS] = to_csv(check_segments(segments, clips, labels, "segments"))
    for modality, part in views.items():
        check_views(modality, part, len(clips), where="views")
    _check_presence(clips, views, "views")
    tensors = {key: array for modality, part in views.items() for key, array in tensors_of(modality, part).items()}
    write_folder(target, lambda folder: _fill(folder, head, tables, tensors), overwrite=overwrite, members=MEMBERS)
    return target


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a place where `write_pack` would not write; for those who have costly work to do before.

    Raises:
        PackError: if something is there that must not be replaced.
    """
    target = _absolute(path)
    recover(target)
    check_replaceable(target, overwrite, MEMBERS)


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Absolute; a link is followed, so that the folder behind it is replaced and not the link."""
    return Path(os.path.realpath(path) if os.path.islink(path) else os.path.abspath(path))


def _facts(modality: str, views: object) -> dict[str, Any]:
    if not isinstance(views, RaggedViews):
        raise PackError(f"modality {modality!r} is a {type(views).__name__}", expected="RaggedViews", where="views")
    rate = None if views.rate_hz is None else float(views.rate_hz)
    facts = {"nodes": list(views.nodes), "channels": list(views.channels), "rate_hz": rate}
    if views.edges is not None:
        edges = views.edges if isinstance(views.edges, Iterable) else [views.edges]
        facts["edges"] = [list(edge) if isinstance(edge, tuple) else edge for edge in edges]
    return facts


def _fill(folder: Path, head: dict[str, Any], tables: dict[str, bytes], tensors: dict[str, np.ndarray]) -> None:
    for name, content in tables.items():
        (folder / name).write_bytes(content)
    try:
        save_file(tensors, folder / VIEWS)
    except SafetensorError as error:  # the library hides the system's error number in its text
        code = re.search(r"(?:code:|os error) (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, os.strerror(int(code[1])) if code else str(error)) from error
    shutil.copymode(folder / CLIPS, folder / VIEWS)  # the library makes files that only their owner may read
    files = {name: sha256(folder / name) for name in (*tables, VIEWS)}
    text = json.dumps({**head, "files": files}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / HEAD).write_text(text + "\n", encoding="utf-8")


def open_pack(path: str | os.PathLike[str], *, verify: Literal["full", "fast"] = "fast") -> Pack:
    """Open a pack; views are memory-mapped, so this is quick however large the pack is.

    Args:
        path: its folder.
        verify: "fast" checks the tables by hash and the views by size, header and offsets; "full" also checks the hash
            of the views and looks at every value.

    Raises:
        PackError: if the pack is missing, malformed, damaged or newer than this kit.
    """
    if verify not in ("full", "fast"):
        raise PackError(f"verify is {verify!r}", expected="'full' or 'fast'")
    folder = _absolute(path)
    try:
        recover(folder)
        if not folder.is_dir():
            raise PackError(f"there is no pack at {folder}", expected="a folder", remedy="Import the data set first")
        with locked(folder.parent, exclusive=False):  # a writer cannot swap the folder while its files are being opened
            return _open(folder, full=verify == "full")
    except OSError as error:
        raise PackError(f"the pack cannot be read: {error.strerror or error}", where=str(folder)) from error


def verify(path: str | os.PathLike[str], *, level: Literal["full", "fast"] = "full") -> None:
    """Check a pack on disk and return nothing.

    Raises:
        PackError: if the pack is missing, malformed, damaged or newer than this kit.
    """
    open_pack(path, verify=level)


def _open(folder: Path, *, full: bool) -> Pack:
    head = read_head(folder)
    clips = check_clips(_read_table(folder, CLIPS, head), head["labels"], str(folder / CLIPS))
    segments = None
    if SEGMENTS in head["files"]:
        table = _read_table(folder, SEGMENTS, head)
        segments = check_segments(table, clips, head["labels"], str(folder / SEGMENTS))
    views = _map_views(folder, head, len(clips), full=full)
    _check_presence(clips, views, str(folder / VIEWS))
    return Pack(
        path=folder,
        **{key: head.get(key, "") for key in ("name", "title", "licence", "source")},
        labels=tuple(head["labels"]),
        clips=clips,
        segments=segments,
        modalities=tuple(head["modalities"]),
        digest=digest_of(head),
        _views=views,
    )


def _map_views(folder: Path, head: dict[str, Any], n_clips: int, *, full: bool) -> dict[str, RaggedViews]:
    path = inside(folder, VIEWS)
    tensors = map_tensors(path)
    if full:
        _check_hash(path, sha256(path), head)
    for key in tensors:
        modality, _, part = key.rpartition(".")
        if modality not in head["modalities"] or part not in ("values", "offsets", "times", "mask"):
            raise PackError(f"{key} is unknown", expected=f"keys of {', '.join(head['modalities'])}", where=str(path))
    views = {name: views_of(name, tensors, facts, str(path)) for name, facts in head["modalities"].items()}
    for name, part in views.items():
        check_views(name, part, n_clips, where=str(path), contents=full)
    return views


def _read_table(folder: Path, name: str, head: dict[str, Any]) -> pd.DataFrame:
    path = inside(folder, name)
    content = path.read_bytes()
    _check_hash(path, hashlib.sha256(content).hexdigest(), head)
    return from_csv(content, str(path))


def _check_hash(path: Path, found: str, head: dict[str, Any]) -> None:
    stated = head["files"][path.name]
    if found != stated:
        raise PackError(
            f"{path.name} has sha256 {found[:12]}…",
            expected=f"{str(stated)[:12]}… by {HEAD}",
            where=str(path),
            remedy="The file was changed or damaged; import or copy the pack again",
        )


def _check_presence(clips: pd.DataFrame, views: Mapping[str, RaggedViews], where: str) -> None:
    present = np.zeros(len(clips), bool)
    for part in views.values():
        present |= part.lengths > 0
    if not present.all():
        row = int(np.flatnonzero(~present)[0])
        clip = clips["clip_id"].iloc[row]
        raise PackError(f"clip {clip!r} (row {row}) has no frame in any modality", expected="one or more", where=where)
