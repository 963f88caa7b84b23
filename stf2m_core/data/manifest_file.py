"""The TOML file of a data set: its strict reading into a `Manifest`."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stf2m_core.errors import ManifestError

_KEYS = {
    "name": str, "title": str, "citation": str, "licence": str, "access": str, "adapter": str,
    "labels": list, "modalities": dict, "files": list, "notes": list,
}  # fmt: skip
_MODALITY_KEYS = {"nodes": list, "channels": list, "rate_hz": float, "description": str}
_FILE_KEYS = {"path": str, "size": int, "sha256": str}
_OPTIONAL = {"files", "notes", "rate_hz", "size", "sha256"}
_WORDS = {str: "a text", list: "a list", dict: "a table", float: "a number", int: "a whole number"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityFacts:
    """What one modality of the data set is made of."""

    nodes: tuple[str, ...]
    """Names of the nodes."""
    channels: tuple[str, ...]
    """Names of the channels of each node."""
    rate_hz: float | None
    """Frames per second where they are uniform, else None."""
    description: str
    """What the numbers are, with units."""


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
        labels=_names(table["labels"], f"{where}, labels"),
        modalities={
            name: _modality(facts, f"{where}, modalities.{name}") for name, facts in table["modalities"].items()
        },
        files=tuple(_file(facts, f"{where}, files") for facts in table.get("files", [])),
        notes=tuple(str(note) for note in table.get("notes", [])),
        path=path,
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
        if not isinstance(value, kind) or isinstance(value, bool):
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
    return ModalityFacts(
        nodes=_names(facts["nodes"], f"{where}.nodes"),
        channels=_names(facts["channels"], f"{where}.channels"),
        rate_hz=None if rate is None else float(rate),
        description=facts["description"],
    )


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
    path, digest = facts["path"], facts.get("sha256")
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ManifestError(f"path {path!r} leads out of the data set", expected="a relative path", where=where)
    if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ManifestError(f"sha256 of {path} is {digest!r}", expected="64 hex digits", where=where)
    return FileFacts(path=path, size=facts.get("size"), sha256=digest)
