"""A manifest as Croissant 1.0, the JSON-LD by which catalogues of data sets find and check them.

Source: MLCommons Croissant format specification 1.0. Only what the manifest states is written: a file without a hash
has no entry, since the format demands one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stf2m_core.data.manifest_file import DownloadFacts, Manifest
from stf2m_core.errors import ManifestError

_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract",
    "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
    "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
    "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}  # fmt: skip
_KINDS = {".zip": "application/zip", ".csv": "text/csv", ".npz": "application/zip", ".wav": "audio/wav",
          ".gz": "application/gzip", ".tar": "application/x-tar"}  # fmt: skip


def croissant(manifest: Manifest) -> dict[str, Any]:
    """The manifest as a Croissant data set, with one record set: the labels in their order.

    Args:
        manifest: of a data set with files or a generated one.
    """
    facts: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "description": _description(manifest),
        "license": manifest.licence,
        "citeAs": manifest.citation,
        "isAccessibleForFree": not manifest.gated,
    }
    address = f"https://doi.org/{manifest.doi}" if manifest.doi else manifest.homepage
    if address:
        facts["url"] = address
    files = [*_files(manifest), *(_download(file, manifest) for file in manifest.download if _hash_of(file))]
    return facts | {"distribution": files} | ({"recordSet": [_labels(manifest)]} if manifest.labels else {})


def write_croissant(manifest: Manifest, path: str | os.PathLike[str]) -> Path:
    """Write the manifest as a Croissant file, whole or not at all.

    Raises:
        ManifestError: if the file cannot be written.
    """
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(croissant(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ManifestError(f"{target} cannot be written: {error.strerror}", where=str(target.parent)) from error
    return target


def _description(manifest: Manifest) -> str:
    modalities = [f"{name}: {facts.description}." for name, facts in manifest.modalities.items()]
    splits = [f"Official split {name}: {what}." for name, what in manifest.splits.items()]
    subjects = [f"Subjects: {manifest.subjects}."] if manifest.subjects else []
    return "\n".join([manifest.title, f"Access: {manifest.access}.", *subjects, *splits, *modalities, *manifest.notes])


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    """The files in the data set's folder, as paths relative to the Croissant file."""
    return [
        _file_object(file.path, file.path, {"sha256": file.sha256}, file.size)
        for file in manifest.files
        if file.sha256 is not None
    ]


def _hash_of(file: DownloadFacts) -> dict[str, str]:
    kind, _, digits = (file.hash or "").partition(":")
    return {kind: digits} if kind in ("md5", "sha256") else {}


def _download(file: DownloadFacts, manifest: Manifest) -> dict[str, Any]:
    return _file_object(file.file, file.url or f"https://doi.org/{manifest.doi}", _hash_of(file), file.size)


def _file_object(name: str, url: str, digest: dict[str, str], size: int | None) -> dict[str, Any]:
    kind = _KINDS.get(Path(name).suffix.lower(), "application/octet-stream")
    facts = {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": url, "encodingFormat": kind, **digest}
    return facts | ({"contentSize": f"{size} B"} if size is not None else {})


def _labels(manifest: Manifest) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": "labels/name", "name": "labels/name", "dataType": "sc:Text"}
    return {
        "@type": "cr:RecordSet", "@id": "labels", "name": "labels", "key": {"@id": "labels/name"},
        "dataType": "sc:Enumeration", "field": [field],
        "data": [{"labels/name": label} for label in manifest.labels],
    }  # fmt: skip
