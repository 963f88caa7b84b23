"""The TOML file of a data set: its strict reading into a `Manifest`."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from stf2m_core.errors import ManifestError

_KEYS = {
    "name": str, "title": str, "citation": str, "licence": str, "access": str, "adapter": str,
    "labels": list, "modalities": dict, "files": list, "notes": list,
    "gated": bool, "doi": str, "homepage": str, "subjects": str, "splits": dict, "needs": list, "bad_clips": list,
    "download": list,
}  # fmt: skip
_MODALITY_KEYS = {"nodes": list, "channels": list, "rate_hz": float, "description": str, "optional": bool}
_FILE_KEYS = {"path": str, "size": int, "sha256": str}
_BAD_CLIP_KEYS = {"clip": str, "reason": str}
_DOWNLOAD_KEYS = {"file": str, "url": str, "size": int, "hash": str, "unpack": bool}
_OPTIONAL = {
    "labels", "files", "notes", "gated", "doi", "homepage", "subjects", "splits", "needs", "bad_clips", "download",
    "nodes", "channels", "rate_hz", "optional", "size", "sha256", "hash", "unpack", "url",
}  # fmt: skip
_WORDS = {
    str: "a text", list: "a list", dict: "a table", float: "a number", int: "a whole number", bool: "true or false",
}  # fmt: skip
_HASH_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityFacts:
    """What one modality of the data set is made of."""

    nodes: tuple[str, ...]
    """Names of the nodes; none where the files or the front end decide."""
    channels: tuple[str, ...]
    """Names of the channels of each node."""
    rate_hz: float | None
    """Frames per second where they are uniform, else None."""
    description: str
    """What the numbers are, with units."""
    optional: bool = False
    """Whether the data set may be imported without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One file of the data set, as it was when the manifest was written."""

    path: str
    """Relative to the data set's folder, with forward slashes."""
    size: int | None
    """Bytes, or None where it is not stated."""
    sha256: str | None
    """64 hex digits, or None where it is not stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadFacts:
    """One file that can be fetched; from its own address, or from the repository behind the manifest's DOI."""

    file: str
    """Name of the file once it is here."""
    url: str | None
    """Address; None means the file of this name at the manifest's DOI."""
    size: int | None
    """Bytes, or None where it is not stated."""
    hash: str | None
    """As "md5:…" or "sha256:…"; None: the repository's own hash if it states one."""
    unpack: bool
    """Whether it is an archive to be unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a data set is, where it comes from and what may be done with it."""

    name: str
    """Short name; also the name of the file and of the pack."""
    title: str
    """One line for tables."""
    citation: str
    """Who to cite."""
    licence: str
    """Of the data, not of the kit."""
    access: str
    """How to get it."""
    adapter: str
    """Module in stf2m_core/data/adapters that reads it."""
    labels: tuple[str, ...]
    """Names of the labels, in order."""
    modalities: Mapping[str, ModalityFacts]
    """Modality to what it is made of."""
    files: tuple[FileFacts, ...]
    """The files the adapter needs; none for a generated set."""
    notes: tuple[str, ...]
    """What a user must know before believing a number."""
    path: Path
    """The TOML file."""
    gated: bool = False
    """Whether its owners must be asked; then `access` says whom, for what, and where to put the files."""
    doi: str | None = None
    """Digital object identifier of the data, without https://."""
    homepage: str | None = None
    """Where its owners describe it."""
    subjects: str = ""
    """Who is recorded, in a sentence."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Official splits: name to what belongs to it."""
    needs: tuple[str, ...] = ()
    """Glob patterns of which each must match a file, where files are too many to list; "a | b": either."""
    bad_clips: Mapping[str, str] = field(default_factory=dict)
    """Clip to why it is left out."""
    download: tuple[DownloadFacts, ...] = ()
    """What can be fetched."""


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest in a TOML file.

    Raises:
        ManifestError: naming the key, if one is unknown, missing or of the wrong kind.
    """
    path = Path(path)
    where = str(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"the manifest cannot be read: {error.strerror}", where=where) from error
    except ValueError as error:
        raise ManifestError(f"the manifest is not TOML: {error}", where=where) from error
    _check_keys(table, _KEYS, where)
    if table["name"] != path.stem:
        raise ManifestError(f"name is {table['name']!r}", expected=f"{path.stem!r}, the name of its file", where=where)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", table["adapter"]):
        raise ManifestError(f"adapter is {table['adapter']!r}", expected="the name of a module", where=where)
    texts = {key: table[key].strip() for key in ("name", "title", "citation", "licence", "access", "adapter")}
    return Manifest(
        **texts,
        labels=_names(table["labels"], f"{where}, labels") if "labels" in table else (),
        modalities={
            name: _modality(facts, f"{where}, modalities.{name}") for name, facts in table["modalities"].items()
        },
        files=tuple(_file(facts, f"{where}, files") for facts in table.get("files", [])),
        notes=tuple(str(note) for note in table.get("notes", [])),
        path=path,
        gated=table.get("gated", False),
        doi=table.get("doi"),
        homepage=table.get("homepage"),
        subjects=table.get("subjects", ""),
        splits=_splits(table.get("splits", {}), f"{where}, splits"),
        needs=tuple(_inside(pattern, f"{where}, needs") for pattern in table.get("needs", [])),
        bad_clips=dict(_bad_clip(facts, f"{where}, bad_clips") for facts in table.get("bad_clips", [])),
        download=tuple(_download(facts, table.get("doi"), f"{where}, download") for facts in table.get("download", [])),
    )


def _check_keys(table: object, kinds: Mapping[str, type], where: str) -> None:
    if not isinstance(table, dict):
        raise ManifestError(f"{table!r} is no table", expected=", ".join(kinds), where=where)
    for key, value in table.items():
        if key not in kinds:
            raise ManifestError(
                f"key {key!r} is unknown", expected=", ".join(kinds), where=where, remedy=nearest(key, kinds)
            )
        kind = (int, float) if kinds[key] is float else kinds[key]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ManifestError(f"{key} is {value!r}", expected=_WORDS[kinds[key]], where=where)
    for key in kinds:
        if key not in table and key not in _OPTIONAL:
            raise ManifestError(f"key {key!r} is missing", expected=", ".join(kinds), where=where)


def nearest(word: str, legal: Iterable[str]) -> str | None:
    """A sentence with the legal word nearest to `word`, or None if none is near."""
    near = difflib.get_close_matches(word, list(legal), n=1)
    return f"Did you mean {near[0]!r}?" if near else None


def _modality(facts: object, where: str) -> ModalityFacts:
    _check_keys(facts, _MODALITY_KEYS, where)
    rate = facts.get("rate_hz")
    if ("nodes" in facts) != ("channels" in facts):
        absent = "channels" if "nodes" in facts else "nodes"
        raise ManifestError(f"key {absent!r} is missing", expected="nodes and channels, or neither", where=where)
    return ModalityFacts(
        nodes=_names(facts["nodes"], f"{where}.nodes") if "nodes" in facts else (),
        channels=_names(facts["channels"], f"{where}.channels") if "channels" in facts else (),
        rate_hz=None if rate is None else float(rate),
        description=facts["description"],
        optional=facts.get("optional", False),
    )


def _splits(table: dict[str, object], where: str) -> dict[str, str]:
    for name, text in table.items():
        if not isinstance(text, str):
            raise ManifestError(f"{name} is {text!r}", expected="a text", where=where)
    return dict(table)


def _bad_clip(facts: object, where: str) -> tuple[str, str]:
    _check_keys(facts, _BAD_CLIP_KEYS, where)
    return facts["clip"], facts["reason"]


def _download(facts: object, doi: str | None, where: str) -> DownloadFacts:
    _check_keys(facts, _DOWNLOAD_KEYS, where)
    url, stated = facts.get("url"), facts.get("hash")
    name = _inside(facts["file"], where)
    if url is None and doi is None:
        raise ManifestError(f"{name} has no url", expected="a url, or a doi of the data set", where=where)
    if url is not None and not re.match(r"https?://", url):
        raise ManifestError(f"url is {url!r}", expected="http:// or https://", where=where)
    if stated is not None:
        kind, _, digits = stated.partition(":")
        if kind not in _HASH_LENGTHS or not re.fullmatch(r"[0-9a-f]+", digits) or len(digits) != _HASH_LENGTHS[kind]:
            raise ManifestError(f"hash of {name} is {stated!r}", expected="md5: or sha256: and hex digits", where=where)
    return DownloadFacts(file=name, url=url, size=facts.get("size"), hash=stated, unpack=facts.get("unpack", False))


def _inside(path: object, where: str) -> str:
    """The path or pattern, refused if it leads out of the data set's folder."""
    if not isinstance(path, str):
        raise ManifestError(f"path {path!r} is no text", expected="a relative path", where=where)
    for part in path.split(" | "):
        parts = PurePosixPath(part).parts
        if not parts or part.startswith("/") or ".." in parts or "\\" in part or ":" in part:
            raise ManifestError(f"path {path!r} leads out of the data set", expected="a relative path", where=where)
    return path


def _names(names: list[object], where: str) -> tuple[str, ...]:
    """The names, where an entry such as "band00..band39" stands for a run of numbered ones."""
    full: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise ManifestError(f"name {name!r} is no text", expected="non-empty names", where=where)
        run = re.fullmatch(r"(.*?)(\d+)\.\.\1(\d+)", name)
        if run and len(run[2]) == len(run[3]):
            full += [f"{run[1]}{number:0{len(run[2])}d}" for number in range(int(run[2]), int(run[3]) + 1)]
        else:
            full.append(name)
    if not full or len(set(full)) != len(full):
        raise ManifestError(f"names are {full}", expected="different names, at least one", where=where)
    return tuple(full)


def _file(facts: object, where: str) -> FileFacts:
    _check_keys(facts, _FILE_KEYS, where)
    path, digest = _inside(facts["path"], where), facts.get("sha256")
    if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ManifestError(f"sha256 of {path} is {digest!r}", expected="64 hex digits", where=where)
    return FileFacts(path=path, size=facts.get("size"), sha256=digest)
