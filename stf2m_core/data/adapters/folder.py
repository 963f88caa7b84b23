"""Recordings of your own and a table: media files and clips.csv enter, clips with all their modalities leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from stf2m_core.data.clip_list import read_clip_list
from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.reading import Reading
from stf2m_core.data.recordings import MEDIA, find_recordings, read_recordings

_PATHS = ("path", "audio_path", "words_path")


def read(
    source: Path, manifest: Manifest, *, work: Path, table: str = "clips.csv", labels: Sequence[str] | None = None,
    modalities: Sequence[str] = ("visual", "audio", "prosody", "text"), n_workers: int | None = None,
    face_model: str = "", sentence_model: str = "", time_limit_s: float = 600.0,
) -> Reading:  # fmt: skip
    """The clips of the table whose file is there; files without a row are named in the report.

    Args:
        source: folder with the table and the recordings, in subfolders if you like.
        manifest: states the labels if a data set with labels of its own is listed like this.
        work: where the front end keeps what it made.
        table: name of the table. Columns: file (relative to the folder), subject, label; optional clip_id, group,
            domain, split, text, valence, arousal, votes_<label>; optional audio_path and words_path (relative, too),
            start_s, end_s as the media front end takes them; columns of your own are kept as x_<name>. Clips of one
            file are one group unless the table says otherwise.
        labels: names of the labels in order; None: the manifest's, else those in the table, sorted.
        modalities: of the front end; text only for clips with text or words.
        n_workers: processes of the front end.
        face_model: TOML file that describes a network of your own for faces; see `media.model_file.ModelFile`.
        sentence_model: folder of a model of your own for the package sentence-transformers; adds sentence to text.
        time_limit_s: seconds after which a recording is given up.

    Raises:
        ManifestError: if the table is malformed.
    """
    listed = read_clip_list(source, table, labels=labels or manifest.labels, by_file=True)
    files = pd.DataFrame({"clip_id": listed.clips["clip_id"], "path": listed.files, "text": listed.clips["text"]})
    files = files.join(listed.parts)
    paths = {column: files[column].str.replace("\\", "/", regex=False) for column in _PATHS if column in files}
    reasons = _reasons(source, paths)
    keep = reasons == ""
    left_out = _without_row(source, set(paths["path"]))
    left_out |= dict(zip(files["clip_id"][~keep], reasons[~keep], strict=True))
    for column, names in paths.items():
        files[column] = names.map(lambda name: str(source / name) if name else "")
    return read_recordings(
        listed.clips[keep].reset_index(drop=True), files[keep].reset_index(drop=True), work, modalities,
        left_out=left_out, remarks=listed.remarks, n_workers=n_workers, labels=listed.labels,
        face_model=face_model, sentence_model=sentence_model, time_limit_s=time_limit_s,
    )  # fmt: skip


def _reasons(source: Path, paths: Mapping[str, pd.Series]) -> pd.Series:
    """Why each row is left out, or ""."""
    reasons = pd.Series("", index=paths["path"].index)
    for column, names in paths.items():
        known = {name: _reason(source, name, column) for name in set(names) - {""}}
        reasons = reasons.where(reasons != "", names.map(known).fillna(""))
    return reasons


def _reason(source: Path, name: str, column: str) -> str:
    what = "its file" if column == "path" else f"its {column} {name}"
    path = source / name
    strange = name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name
    if strange or not path.resolve().is_relative_to(source.resolve()):
        return f"{what} leads out of the folder"
    if not path.is_file():
        return f"{what} is missing"
    if column != "words_path" and path.suffix.lower() not in MEDIA:
        return f"{what} ends in {path.suffix!r}, like no recording"
    return ""


def _without_row(source: Path, listed: set[str]) -> dict[str, str]:
    """Recordings that the table does not name, and what cannot be read at all."""
    found = find_recordings(source, by_folder=True)
    twice = {name for name, reason in found.left_out.items() if reason.startswith("a second file")}
    there = {path.relative_to(source).as_posix() for path in found.paths.values()} | twice
    strange = {name: reason for name, reason in found.left_out.items() if name not in listed | twice}
    return strange | dict.fromkeys(sorted(there - listed), "it has no row in the table")
