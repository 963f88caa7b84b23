"""Archives from outside: zip and tar files are unpacked into one folder, and nothing in them leads out of it."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from stf2m_core.errors import ManifestError

_DAMAGES = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError,
    RuntimeError,  # a password or a method of compression that zipfile does not know
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    is_plain: bool
    """Whether it is a file, and no link or device."""
    key: zipfile.ZipInfo | tarfile.TarInfo


def unpack(path: Path, folder: Path) -> list[Path]:
    """Unpack an archive into a folder; files that are there already with their size are left alone.

    Every name is checked before the first file is written; each file appears whole or not at all.

    Args:
        path: a zip file, or a tar file, compressed or not.
        folder: where the files go.

    Returns:
        The files, in the order of the archive.

    Raises:
        ManifestError: if it is no archive or damaged, if a name leads out of the folder, if it holds links or devices,
            or if there is no room.
    """
    try:
        with _opened(path) as (members, open_member):
            places = [_place(member, folder, path) for member in members]
            todo = [(m, p) for m, p in zip(members, places, strict=True) if not _is_there(p, m.size)]
            _check_room(sum(member.size for member, _ in todo), folder, path)
            for member, place in todo:
                with open_member(member) as source:
                    _write(source, place, member.size)
    except _DAMAGES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise ManifestError(f"{path.name} cannot be unpacked: {reason}", expected="a whole zip or tar file",
                            where=str(path), remedy="Remove it and get it again") from error  # fmt: skip
    except OSError as error:
        raise ManifestError(f"{path.name} cannot be unpacked: {error.strerror or error}", where=str(folder)) from error
    return places


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[_Member], object]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            members = [_Member(info.filename, info.file_size, _is_plain_zip(info), info) for info in infos]
            yield members, lambda member: archive.open(member.key)
        return
    with tarfile.open(path) as archive:
        infos = [info for info in archive.getmembers() if not info.isdir()]
        members = [_Member(info.name, info.size, info.isreg(), info) for info in infos]
        yield members, lambda member: archive.extractfile(member.key)


def _is_plain_zip(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind in (0, stat.S_IFREG)


def _place(member: _Member, folder: Path, path: Path) -> Path:
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    if not parts or parts[0].startswith("/") or ".." in parts or ":" in parts[0]:
        raise ManifestError(f"{member.name!r} leads out of the folder", expected="names inside it", where=str(path),
                            remedy="Nothing was unpacked; do not trust the archive")  # fmt: skip
    if not member.is_plain:
        raise ManifestError(f"{member.name!r} is a link or a device", expected="plain files", where=str(path),
                            remedy="Nothing was unpacked; do not trust the archive")  # fmt: skip
    place = folder.joinpath(*parts)
    if not place.parent.resolve().is_relative_to(folder.resolve()):
        raise ManifestError(f"{member.name!r} leads out of the folder by a link", where=str(folder),
                            remedy="Nothing was unpacked; remove the link")  # fmt: skip
    return place


def _is_there(place: Path, size: int) -> bool:
    return place.is_file() and not place.is_symlink() and place.stat().st_size == size


def _check_room(need: int, folder: Path, path: Path) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ManifestError(f"{path.name} holds {need} bytes and {free} are free", where=str(folder),
                            remedy="Make room and call again")  # fmt: skip


def _write(source: IO[bytes], place: Path, size: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
            written = out.tell()
        if written != size:
            raise EOFError(f"{place.name} has {written} bytes and not {size}")
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise
