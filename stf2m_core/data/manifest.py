"""From a data set to a pack: find the manifest that fits a folder, read the folder by its adapter, report."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from stf2m_core.data.folder import sha256
from stf2m_core.data.manifest_file import FileFacts, Manifest, ModalityFacts, nearest, read_manifest
from stf2m_core.data.pack import RaggedViews, mask_nonfinite, write_pack
from stf2m_core.errors import ManifestError

__all__ = [
    "FileFacts",
    "ImportReport",
    "Manifest",
    "ModalityFacts",
    "find",
    "import_dataset",
    "load_manifest",
    "manifest_folder",
    "read_manifest",
]

_PACKAGE = "stf2m_core.data.adapters"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was imported; `str(report)` is for people."""

    manifest: Manifest
    """The manifest followed."""
    pack: Path
    """The pack's folder."""
    n_clips: int
    """Clips in the pack."""
    n_subjects: int
    """Different subjects."""
    frames: Mapping[str, int]
    """Modality to frames in all clips."""
    absent: Mapping[str, int]
    """Modality to clips without it."""
    masked: Mapping[str, int]
    """Modality to values that were NaN or infinite and are masked now."""
    label_counts: Mapping[str, int]
    """Label to clips; "" counts the clips whose label is undefined, if there are any."""

    def __str__(self) -> str:
        lines = [f"{self.manifest.title}: {self.n_clips} clips of {self.n_subjects} subjects in {self.pack}"]
        for name, facts in self.manifest.modalities.items():
            size = f"{len(facts.nodes)} nodes x {len(facts.channels)} channels"
            lost = f"{self.absent[name]} clips without it, {self.masked[name]} values masked"
            lines.append(f"  {name}: {self.frames[name]} frames, {size}; {lost}")
        counts = ", ".join(f"{label or '(undefined)'} {count}" for label, count in self.label_counts.items())
        lines += textwrap.wrap(f"labels: {counts}", 118, initial_indent="  ", subsequent_indent="    ")
        lines += [f"  licence: {self.manifest.licence}"]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.manifest.notes)])


def manifest_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the manifests: `folder` if given, else data_manifests beside the package.

    Raises:
        ManifestError: if it is not there.
    """
    path = Path(folder) if folder is not None else Path(__file__).resolve().parents[2] / "data_manifests"
    if not path.is_dir():
        raise ManifestError(
            f"there is no folder {path}", expected="a folder of manifests", remedy="Name it with manifests="
        )
    return path


def load_manifest(name: str, *, manifests: str | os.PathLike[str] | None = None) -> Manifest:
    """The manifest called `name`.

    Raises:
        ManifestError: if there is none (the nearest name is suggested) or it is malformed.
    """
    folder = manifest_folder(manifests)
    names = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in names:
        raise ManifestError(
            f"data set {name!r} is unknown", expected=" or ".join(names), where=str(folder), remedy=nearest(name, names)
        )
    return read_manifest(folder / f"{name}.toml")


def find(
    folder: str | os.PathLike[str], *, manifests: str | os.PathLike[str] | None = None
) -> list[tuple[Manifest, Path]]:
    """The data sets whose files lie in the folder or in one of its subfolders, each with where they lie.

    Files are recognised by name and size; hashes are checked when the set is imported.

    Raises:
        ManifestError: if the folder is not there or holds no known data set, saying what was expected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"there is no folder {folder}", expected="a folder with a data set")
    known = [read_manifest(path) for path in sorted(manifest_folder(manifests).glob("*.toml"))]
    known = [manifest for manifest in known if manifest.files]
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = [(manifest, place) for manifest in known for place in places if not _mismatches(manifest, place)]
    if not found:
        nearly = [(manifest, place) for manifest in known for place in places if _has_any(manifest, place)]
        reasons = [f"{place} is not {manifest.name}: {_mismatches(manifest, place)[0]}" for manifest, place in nearly]
        wanted = [f"{manifest.name} ({', '.join(file.path for file in manifest.files[:3])})" for manifest in known]
        remedy = reasons[0] if reasons else "Data of your own: write a pack with write_pack"
        raise ManifestError(f"{folder} holds no known data set", expected=" or ".join(wanted), remedy=remedy)
    return found


def _has_any(manifest: Manifest, place: Path) -> bool:
    return any((place / file.path).is_file() for file in manifest.files)


def _mismatches(manifest: Manifest, place: Path) -> list[str]:
    """What keeps the folder from being this data set, by names and sizes; empty if nothing does."""
    wrong = []
    for file in manifest.files:
        path = place / file.path
        if not path.is_file():
            wrong.append(f"{file.path} is missing")
        elif file.size is not None and path.stat().st_size != file.size:
            wrong.append(f"{file.path} has {path.stat().st_size} bytes and not {file.size}")
    return wrong


def import_dataset(
    name: str,
    *,
    source: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str],
    overwrite: bool = False,
    manifests: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ImportReport:
    """Read a data set by its manifest and write it as a pack.

    Args:
        name: of the manifest.
        source: the data set's folder; None for a generated set.
        out: the pack's folder.
        overwrite: replace a pack that is there.
        manifests: the folder of the manifests, if not the kit's own.
        options: for the adapter; each adapter's `read` names its own.

    Raises:
        ManifestError: if the manifest, the option, the folder or what the adapter read is not as stated.
        PackError: if the pack cannot be written.
    """
    manifest = load_manifest(name, manifests=manifests)
    adapter = _adapter(manifest)
    _check_options(adapter, options, manifest)
    folder = _checked_source(manifest, source)
    clips, views = adapter.read(folder, manifest, **options)
    _check_read(manifest, views)
    masked = {modality: mask_nonfinite(part) for modality, part in views.items()}
    views = {modality: masked[modality][0] for modality in manifest.modalities}
    pack = write_pack(
        out,
        clips,
        views,
        manifest.labels,
        name=manifest.name,
        title=manifest.title,
        licence=manifest.licence,
        source=manifest.citation,
        made_by=f"{_PACKAGE}.{manifest.adapter}",
        made_from=_origin(manifest, options),
        overwrite=overwrite,
    )
    return _report(manifest, pack, clips, views, {modality: count for modality, (_, count) in masked.items()})


def _adapter(manifest: Manifest) -> ModuleType:
    folder = Path(__file__).parent / "adapters"
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    if manifest.adapter not in names:
        raise ManifestError(
            f"adapter {manifest.adapter!r} is unknown",
            expected=" or ".join(names),
            where=str(manifest.path),
            remedy=nearest(manifest.adapter, names),
        )
    return importlib.import_module(f"{_PACKAGE}.{manifest.adapter}")


def _check_options(adapter: ModuleType, options: Mapping[str, Any], manifest: Manifest) -> None:
    parameters = inspect.signature(adapter.read).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return  # such an adapter checks its options itself
    legal = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in legal:
            raise ManifestError(
                f"option {option!r} is unknown",
                expected=", ".join(legal) or "no options",
                where=f"import of {manifest.name}",
                remedy=nearest(option, legal),
            )


def _checked_source(manifest: Manifest, source: str | os.PathLike[str] | None) -> Path | None:
    if not manifest.files:
        if source is not None:
            raise ManifestError(f"source is {str(source)!r}", expected=f"none: {manifest.name} is generated")
        return None
    if source is None:
        raise ManifestError(f"{manifest.name} needs a source", expected=f"its folder. {manifest.access}")
    folder = Path(source)
    if not folder.is_dir():
        raise ManifestError(
            f"there is no folder {folder}", expected=f"the files of {manifest.name}", remedy=manifest.access
        )
    wrong = _mismatches(manifest, folder)
    if not wrong:
        wrong = [
            f"{file.path} has sha256 {found[:12]}… and not {file.sha256[:12]}…"
            for file in manifest.files
            if file.sha256 is not None and (found := sha256(folder / file.path)) != file.sha256
        ]
    if wrong:
        wanted = ", ".join(file.path for file in manifest.files[:3])
        raise ManifestError(
            f"{folder} is not {manifest.name}: {wrong[0]}",
            expected=f"{wanted} as its manifest states",
            where=str(manifest.path),
            remedy=manifest.access,
        )
    return folder


def _check_read(manifest: Manifest, views: Mapping[str, RaggedViews]) -> None:
    """Refuse views that are not what the manifest says."""
    where = f"what {manifest.adapter} read, against {manifest.path}"
    if set(views) != set(manifest.modalities):
        raise ManifestError(f"modalities are {sorted(views)}", expected=str(sorted(manifest.modalities)), where=where)
    for name, facts in manifest.modalities.items():
        for key in ("nodes", "channels", "rate_hz"):
            found, stated = getattr(views[name], key), getattr(facts, key)
            if found != stated:
                raise ManifestError(f"{name}.{key} is {found}", expected=str(stated), where=where)


def _origin(manifest: Manifest, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "manifest": manifest.name,
        "manifest_sha256": hashlib.sha256(manifest.path.read_bytes()).hexdigest(),
        "files": {file.path: file.sha256 for file in manifest.files},
        "options": dict(options),
    }


def _report(
    manifest: Manifest, pack: Path, clips: pd.DataFrame, views: Mapping[str, RaggedViews], masked: Mapping[str, int]
) -> ImportReport:
    counts = clips["label"].fillna("").value_counts()
    order = [*manifest.labels, *([""] if "" in counts.index else [])]
    return ImportReport(
        manifest=manifest,
        pack=pack,
        n_clips=len(clips),
        n_subjects=clips["subject"].nunique(),
        frames={name: len(part.values) for name, part in views.items()},
        absent={name: int(np.sum(part.lengths == 0)) for name, part in views.items()},
        masked=masked,
        label_counts={label: int(counts.get(label, 0)) for label in order},
    )
