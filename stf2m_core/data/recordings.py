"""The recordings in a folder: names come out once each, and what is left out is named with its reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from stf2m_core.data import landmarks
from stf2m_core.data.manifest_file import nearest
from stf2m_core.data.reading import Reading
from stf2m_core.errors import ManifestError

MODALITIES = ("visual", "audio", "prosody", "text")
"""What the media front end can make."""

_SHOWN = 5  # kinds of remarks of single clips that are repeated in the report of the import

MEDIA = frozenset({".wav", ".flac", ".mp3", ".ogg", ".m4a", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".flv", ".m4v"})
"""Endings of files that the media front end may read."""


@dataclass(frozen=True, slots=True)
class Recordings:
    """Files of a folder and its subfolders.

    Attributes:
        paths: file name without ending, or "folder/name", to the file; in the order of the names.
        left_out: path relative to the folder, to why it is not among them.
    """

    paths: Mapping[str, Path]
    left_out: Mapping[str, str]


def find_recordings(folder: Path, endings: Collection[str] = MEDIA, *, by_folder: bool = False) -> Recordings:
    """The files with such endings; links that lead out of the folder are never followed.

    Args:
        folder: searched with all its subfolders.
        endings: in lower case, with the dot.
        by_folder: a file is named "folder/name", since names repeat from folder to folder.
    """
    root, paths, left_out = folder.resolve(), {}, {}
    for place, folders, names in os.walk(folder):
        for name in sorted(folders):
            if os.path.islink(os.path.join(place, name)):
                left_out[_shown(Path(place, name), folder)] = "a link to a folder is not followed"
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in endings:
                continue
            key = f"{path.parent.name}/{path.stem}" if by_folder else path.stem
            reason = _reason(path, root, paths.get(key))
            if reason is None:
                paths[key] = path
            else:
                left_out[_shown(path, folder)] = reason
    return Recordings(dict(sorted(paths.items())), left_out)


def check_modalities(modalities: Sequence[str]) -> tuple[str, ...]:
    """The modalities asked of the front end, as a tuple.

    Raises:
        ManifestError: if one is unknown.
    """
    for name in [modalities] if isinstance(modalities, str) else modalities:
        if name not in MODALITIES:
            raise ManifestError(
                f"modality {name!r} is unknown", expected=", ".join(MODALITIES), remedy=nearest(name, MODALITIES)
            )
    return (modalities,) if isinstance(modalities, str) else tuple(modalities)


def read_recordings(
    clips: pd.DataFrame, files: pd.DataFrame, work: Path, modalities: Sequence[str], *, left_out: Mapping[str, str],
    remarks: Sequence[str] = (), n_workers: int | None = None, labels: tuple[str, ...] = (), face_model: str = "",
    sentence_model: str = "", time_limit_s: float = 600.0,
) -> Reading:  # fmt: skip
    """The views of recordings, made by the media front end; clips that cannot be read are left out with their reason.

    Args:
        clips: one row per clip; durations are filled in.
        files: the same rows as `media.extract` takes them: clip_id, path and what else is known.
        work: folder where the front end keeps what it made.
        modalities: of the front end: visual, audio, prosody, text.
        left_out: what was left out already.
        remarks: of the reading so far.
        n_workers: processes; None: one per core.
        labels: of the reading.
        face_model: TOML file of a network of the user's own, as `media.read_model_file` takes it; "" for none.
        sentence_model: folder of a model of the user's own for sentence-transformers; "" for none.
        time_limit_s: a clip that takes longer is given up.

    Raises:
        ManifestError: if there is no clip, or a modality is unknown.
        MediaError: if the folder cannot be written, the front end is not installed, or the network is not as stated.
    """
    from stf2m_core.data.media import MediaSettings, extract, read_model_file

    wanted, left_out = check_modalities(modalities), dict(left_out)
    model = read_model_file(face_model) if face_model else None
    if len(clips) == 0:
        return Reading(clips=clips, views={}, left_out=left_out, remarks=remarks, labels=labels)
    settings = MediaSettings(modalities=wanted, face_model=model, sentence_model=sentence_model)
    done = extract(files, work, settings, n_workers=n_workers, time_limit_s=time_limit_s,
                   progress=sys.stderr.isatty())  # fmt: skip
    failed = done.report[~done.kept]
    left_out |= dict(zip(failed["clip_id"], failed["reason"], strict=True))
    duration = done.report["duration_s"].to_numpy()[done.kept].astype(float)
    kept = clips[done.kept].assign(duration_s=duration).reset_index(drop=True)
    noticed = done.report["remarks"][done.kept]
    counts = noticed[noticed != ""].value_counts()
    spoken = [f"{count} clips: {remark}" for remark, count in counts.head(_SHOWN).items()]
    views = dict(done.views)
    if model is not None:
        spoken.append(f"{model.kind} by {Path(model.path).name}, sha256 {model.sha256[:12]}…; licence: {model.licence}")
        if model.kind == "landmarks" and model.kind in views:
            views[model.kind] = replace(views[model.kind], edges=landmarks.named_edges())
    return Reading(clips=kept, views=views, left_out=left_out, remarks=[*remarks, *spoken], labels=labels,
                   media=asdict(settings))  # fmt: skip


def _reason(path: Path, root: Path, other: Path | None) -> str | None:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        return "a link that leads out of the folder"
    if other is not None:
        return f"a second file called {path.stem}; {_shown(other, root)} is taken"
    return None


def _shown(path: Path, folder: Path) -> str:
    """The path as text that can be written, whatever bytes its name has."""
    name = path.relative_to(folder) if path.is_relative_to(folder) else path.name
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")
