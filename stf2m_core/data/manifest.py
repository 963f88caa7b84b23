"""From a data set to a pack: find the manifest that fits a folder, read the folder by its adapter, report."""

from __future__ import annotations

import hashlib
import importlib
import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from stf2m_core.data.folder import sha256
from stf2m_core.data.manifest_file import FileFacts, Manifest, ModalityFacts, nearest, read_manifest
from stf2m_core.data.options import WORK, check_options, typed_options
from stf2m_core.data.pack import RaggedViews, check_target, mask_nonfinite, write_pack
from stf2m_core.data.reading import Reading
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
    "options_of",
    "read_manifest",
]

_PACKAGE = "stf2m_core.data.adapters"
_SHOWN = 10  # clips left out that the report shows one by one


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
    sizes: Mapping[str, tuple[int, int]]
    """Modality to its nodes and channels."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Clip or file to why it is not in the pack."""
    remarks: tuple[str, ...] = ()
    """What was noticed while reading."""

    def __str__(self) -> str:
        lines = [f"{self.manifest.title}: {self.n_clips} clips of {self.n_subjects} subjects in {self.pack}"]
        for name, (n_nodes, n_channels) in self.sizes.items():
            size = f"{n_nodes} nodes x {n_channels} channels"
            lost = f"{self.absent[name]} clips without it, {self.masked[name]} values masked"
            lines.append(f"  {name}: {self.frames[name]} frames, {size}; {lost}")
        counts = ", ".join(f"{label or '(undefined)'} {count}" for label, count in self.label_counts.items())
        lines += textwrap.wrap(f"labels: {counts}", 118, initial_indent="  ", subsequent_indent="    ")
        lines += [f"  licence: {self.manifest.licence}"]
        shown = list(self.left_out.items())[:_SHOWN]
        lines += [f"  left out: {name}: {reason}" for name, reason in shown]
        if len(self.left_out) > _SHOWN:
            lines.append(f"  left out: {len(self.left_out) - _SHOWN} more; see left_out of the report")
        lines += [f"  remark: {remark}" for remark in self.remarks]
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
    folder: str | os.PathLike[str],
    *,
    manifests: str | os.PathLike[str] | None = None,
    among: Collection[str] | None = None,
) -> list[tuple[Manifest, Path]]:
    """The data sets whose files lie in the folder or in one of its subfolders, each with the first place they lie in.

    Files are recognised by name and size; hashes are checked when the set is imported.

    Args:
        folder: looked at before its subfolders.
        manifests: the folder of the manifests, if not the kit's own.
        among: names of manifests to look for; None: all that have files and labels.

    Raises:
        ManifestError: if the folder is not there or holds no known data set, saying what was expected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"there is no folder {folder}", expected="a folder with a data set")
    known = [read_manifest(path) for path in sorted(manifest_folder(manifests).glob("*.toml"))]
    # a manifest that states no labels is for data of one's own: it would fit any folder
    known = [manifest for manifest in known if _is_recorded(manifest) and manifest.labels]
    known = [manifest for manifest in known if among is None or manifest.name in among]
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    fits = [(manifest, [place for place in places if not _mismatches(manifest, place)][:1]) for manifest in known]
    found = [(manifest, *place) for manifest, place in fits if place]
    if not found:
        nearly = [(manifest, place) for manifest in known for place in places if _has_any(manifest, place)]
        reasons = [f"{place} is not {manifest.name}: {_mismatches(manifest, place)[0]}" for manifest, place in nearly]
        wanted = [f"{manifest.name} ({', '.join(_wanted(manifest))})" for manifest in known]
        if len(known) > 3:
            wanted = [manifest.name for manifest in known]
        remedy = reasons[0] if reasons else "Data of your own: import it as `folder` or `features`"
        raise ManifestError(f"{folder} holds no known data set", expected=" or ".join(wanted), remedy=remedy)
    return found


def _is_recorded(manifest: Manifest) -> bool:
    """Whether the data set has files; else it is generated."""
    return bool(manifest.files or manifest.needs)


def _wanted(manifest: Manifest) -> list[str]:
    return [*(file.path for file in manifest.files[:3]), *manifest.needs][:3]


def _has_any(manifest: Manifest, place: Path) -> bool:
    return any((place / file.path).is_file() for file in manifest.files)


def _mismatches(manifest: Manifest, place: Path) -> list[str]:
    """What keeps the folder from being this data set, by names and sizes; empty if nothing does."""
    wrong = [f"no file is like {pattern}" for pattern in manifest.needs if not _matches(place, pattern)]
    for file in manifest.files:
        path = place / file.path
        if not path.is_file():
            wrong.append(f"{file.path} is missing")
        elif file.size is not None and path.stat().st_size != file.size:
            wrong.append(f"{file.path} has {path.stat().st_size} bytes and not {file.size}")
    return wrong


def _matches(place: Path, pattern: str) -> bool:
    return any(any(place.glob(part)) for part in pattern.split(" | "))


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

    Features made from recordings are kept in the folder `<out>.media`, so that a second import, or one after a kill,
    makes only what is missing; that folder may be deleted at any time.

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
    check_options(adapter, options, manifest.name)
    check_target(out, overwrite=overwrite)
    folder = _checked_source(manifest, source)
    given = {**options, **_work_folder(adapter, out)}
    reading = Reading.of(adapter.read(folder, manifest, **given), manifest)
    _check_read(manifest, reading)
    masked = {modality: mask_nonfinite(part) for modality, part in reading.views.items()}
    order = [*(m for m in manifest.modalities if m in masked), *(m for m in masked if m not in manifest.modalities)]
    views = {modality: masked[modality][0] for modality in order}
    pack = write_pack(
        out,
        reading.clips,
        views,
        reading.labels,
        name=manifest.name,
        title=manifest.title,
        licence=manifest.licence,
        source=manifest.citation,
        made_by=f"{_PACKAGE}.{manifest.adapter}",
        made_from=_origin(manifest, options, reading),
        segments=reading.segments,
        overwrite=overwrite,
    )
    return _report(manifest, pack, reading, views, {modality: masked[modality][1] for modality in order})


def options_of(
    name: str, words: Sequence[str], *, manifests: str | os.PathLike[str] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Options for `import_dataset` out of words such as "modalities=audio", typed as the data set's adapter takes them.

    Raises:
        ManifestError: if the data set or an option is unknown, or a value is of another kind.
    """
    manifest = load_manifest(name, manifests=manifests)
    return typed_options(_adapter(manifest), words, name)


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


def _work_folder(adapter: ModuleType, out: str | os.PathLike[str]) -> dict[str, Path]:
    """Where an adapter may keep what is costly to make, for those that ask for it."""
    if WORK not in signature(adapter.read).parameters:
        return {}
    pack = Path(os.path.abspath(out))
    return {WORK: pack.with_name(f"{pack.name}.media")}


def _checked_source(manifest: Manifest, source: str | os.PathLike[str] | None) -> Path | None:
    if not _is_recorded(manifest):
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
        wanted = ", ".join(_wanted(manifest))
        raise ManifestError(
            f"{folder} is not {manifest.name}: {wrong[0]}",
            expected=f"{wanted} as its manifest states",
            where=str(manifest.path),
            remedy=manifest.access,
        )
    return folder


def _check_read(manifest: Manifest, reading: Reading) -> None:
    """Refuse views that are not what the manifest says; a user's own models may add their modalities anywhere."""
    where = f"what {manifest.adapter} read, against {manifest.path}"
    if not manifest.modalities:
        return  # the data set's own files decide
    media = reading.media or {}
    own = {(media.get("face_model") or {}).get("kind"), "sentence" if media.get("sentence_model") else None}
    views = {name: part for name, part in reading.views.items() if name not in own}
    required = {name for name, facts in manifest.modalities.items() if not facts.optional}
    if not required <= set(views) <= set(manifest.modalities):
        raise ManifestError(f"modalities are {sorted(views)}", expected=str(sorted(manifest.modalities)), where=where)
    for name, facts in manifest.modalities.items():
        if name not in views or not facts.nodes:
            continue
        for key in ("nodes", "channels", "rate_hz"):
            found, stated = getattr(views[name], key), getattr(facts, key)
            if found != stated:
                raise ManifestError(f"{name}.{key} is {found}", expected=str(stated), where=where)


def _origin(manifest: Manifest, options: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    media = {} if reading.media is None else {"media": dict(reading.media)}
    return {
        "manifest": manifest.name,
        "manifest_sha256": hashlib.sha256(manifest.path.read_bytes()).hexdigest(),
        "files": {file.path: file.sha256 for file in manifest.files},
        "options": dict(options),
        **media,
    }


def _report(
    manifest: Manifest, pack: Path, reading: Reading, views: Mapping[str, RaggedViews], masked: Mapping[str, int]
) -> ImportReport:
    clips = reading.clips
    counts = clips["label"].fillna("").value_counts()
    order = [*reading.labels, *([""] if "" in counts.index else [])]
    return ImportReport(
        manifest=manifest,
        pack=pack,
        n_clips=len(clips),
        n_subjects=clips["subject"].nunique(),
        frames={name: len(part.values) for name, part in views.items()},
        absent={name: int(np.sum(part.lengths == 0)) for name, part in views.items()},
        masked=masked,
        label_counts={label: int(counts.get(label, 0)) for label in order},
        sizes={name: (len(part.nodes), len(part.channels)) for name, part in views.items()},
        left_out=dict(reading.left_out),
        remarks=tuple(reading.remarks),
    )
