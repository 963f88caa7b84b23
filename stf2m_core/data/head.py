"""pack.json, the head of a pack: what it must say, and the digest of what it says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stf2m_core.data.folder import inside
from stf2m_core.errors import PackError

FORMAT, VERSION = "stf2m-pack", 1
CLIPS, SEGMENTS, VIEWS, HEAD = "clips.csv", "segments.csv", "views.safetensors", "pack.json"
MEMBERS = frozenset({CLIPS, SEGMENTS, VIEWS, HEAD})
TEXTS = ("name", "title", "licence", "source", "made_by")


def digest_of(head: Mapping[str, Any]) -> str:
    """12 hex digits of the labels, modalities and file hashes, whoever made the pack and however it is called."""
    facts = {key: head[key] for key in ("labels", "modalities", "files")}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_head(folder: Path) -> dict[str, Any]:
    """What pack.json in the folder says, checked.

    Raises:
        PackError: if it is missing, malformed, newer than this kit, or names files it must not.
    """
    path = inside(folder, HEAD)
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackError(
            f"{HEAD} is not JSON: {error}", where=str(path), remedy="Import or copy the pack again"
        ) from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format") if isinstance(head, dict) else head
        raise PackError(f"format is {found!r}", expected=repr(FORMAT), where=str(path))
    version = head.get("version")
    if type(version) is not int or version < 1:
        raise PackError(f"version is {version!r}", expected=str(VERSION), where=str(path))
    if version > VERSION:
        raise PackError(
            f"version is {version}", expected=f"at most {VERSION}", where=str(path), remedy="Update the kit"
        )
    check_head(head, str(path))
    _check_files(head.get("files"), folder, str(path))
    return head


def check_head(head: Mapping[str, Any], where: str) -> None:
    """Refuse a head whose texts, labels or modalities are malformed; the files are checked when they are read.

    Raises:
        PackError: naming the key and its value.
    """
    for key in TEXTS:
        if not isinstance(head.get(key, ""), str) or (key == "name" and not head.get(key)):
            raise PackError(f"{key} is {head.get(key)!r}", expected="a text", where=where)
    labels = head.get("labels")
    if not _are_names(labels):
        raise PackError(f"labels are {labels!r}", expected="different, non-empty names", where=where)
    modalities = head.get("modalities")
    if not isinstance(modalities, dict) or not modalities:
        raise PackError(f"modalities are {modalities!r}", expected="at least one", where=where)
    for name, facts in modalities.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise PackError(f"modality {name!r} is named so", expected="letters, digits, _ and -", where=where)
        if not isinstance(facts, dict) or not {"nodes", "channels", "rate_hz"} <= set(facts):
            raise PackError(f"modality {name!r} is {facts!r}", expected="nodes, channels and rate_hz", where=where)
        for key in ("nodes", "channels"):
            if not _are_names(facts[key]):
                raise PackError(f"{name}.{key} is {facts[key]!r}", expected="different, non-empty names", where=where)
        if "edges" in facts:
            _check_edges(name, facts["edges"], facts["nodes"], where)
    try:
        json.dumps(head, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise PackError(
            f"pack.json cannot hold what it should: {error}", expected="what JSON can hold", where=where
        ) from error


def _check_edges(modality: str, edges: object, nodes: list[str], where: str) -> None:
    """Refuse a graph that joins what is no node, a node to itself, or two nodes twice."""
    if not isinstance(edges, list) or not edges:
        raise PackError(f"{modality}.edges is {edges!r}", expected="a list of pairs of nodes, or no such key",
                        where=where)  # fmt: skip
    seen = set()
    for edge in edges:
        if not isinstance(edge, list) or len(edge) != 2 or not all(isinstance(node, str) for node in edge):
            raise PackError(f"{modality}.edges holds {edge!r}", expected="pairs of names of nodes", where=where)
        strange = [node for node in edge if node not in nodes]
        if strange:
            raise PackError(f"{modality}.edges names {strange[0]!r}", expected="nodes of this modality", where=where)
        if edge[0] == edge[1] or frozenset(edge) in seen:
            wrong = "joins a node to itself" if edge[0] == edge[1] else "is there twice"
            raise PackError(f"edge {' - '.join(edge)} of {modality} {wrong}", expected="two nodes, each pair once",
                            where=where)  # fmt: skip
        seen.add(frozenset(edge))


def _are_names(names: object) -> bool:
    if not isinstance(names, list) or not names:
        return False
    return all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)


def _check_files(files: object, folder: Path, where: str) -> None:
    if not isinstance(files, dict):
        raise PackError(f"files is {files!r}", expected="file names with their sha256", where=where)
    for name in files:
        if name not in MEMBERS:
            inside(folder, name)
            raise PackError(f"file {name!r} is unknown", expected=", ".join(sorted(MEMBERS)), where=where)
    for name in (CLIPS, VIEWS):
        if name not in files:
            raise PackError(f"files lacks {name}", expected=f"{CLIPS} and {VIEWS}", where=where)
