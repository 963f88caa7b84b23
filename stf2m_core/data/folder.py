"""Folders that are whole or absent: written aside, moved into place, and found again after a kill at any moment.

A folder cannot be swapped in one portable system call. The order is: move the old folder to `.<name>.old`, move the new
one to `<name>`, rename the old one away, delete it. Whenever `<name>` is missing and `.<name>.old` is there, a writer
was killed between the two moves, and `recover` moves the whole old folder back. Source: ours.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stf2m_core.errors import PackError

try:
    import fcntl
except ImportError:  # a system without flock: still atomic for one writer, but leftovers of dead writers stay
    fcntl = None


@contextmanager
def locked(folder: Path, *, exclusive: bool) -> Iterator[bool]:
    """Hold the folder's advisory lock, which the system drops when the process dies; yields whether locks work here."""
    handle = _lock(folder, exclusive=exclusive, wait=True)
    try:
        yield handle is not None
    finally:
        _unlock(handle)


def _lock(folder: Path, *, exclusive: bool, wait: bool) -> int | None:
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _old(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def recover(target: Path) -> None:
    """Move the old folder back if a writer was killed between its two moves; do nothing otherwise.

    Raises:
        PackError: if the old folder is there but may not be moved.
    """
    if target.exists() or not _old(target).exists():
        return
    with locked(target.parent, exclusive=True):
        if target.exists() or not _old(target).exists():
            return
        try:
            os.rename(_old(target), target)
        except OSError as error:
            raise PackError(
                f"a writer of {target} was killed and the old pack could not be moved back: {error.strerror}",
                where=str(_old(target)),
                remedy=f"Rename {_old(target).name} to {target.name} by hand",
            ) from error


def write_folder(target: Path, fill: Callable[[Path], None], *, overwrite: bool, members: frozenset[str]) -> None:
    """Make the folder `target`, whole or not at all, with the files that `fill` writes into the folder it is given.

    Args:
        target: absolute path.
        fill: writes the files; whatever it raises leaves the old state untouched.
        overwrite: replace a folder that is there.
        members: the file names such a folder may hold; a folder that holds others is never replaced.

    Raises:
        PackError: if the target is there and must not be replaced, cannot be written, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        check_replaceable(target, overwrite, members)
        temporary, handle = _begin(target)
        try:
            fill(temporary)
            _sync_tree(temporary)
            with locked(target.parent, exclusive=True):
                check_replaceable(target, overwrite, members)
                _commit(temporary, target)
        finally:
            _unlock(handle)
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _as_pack_error(error, target) from error


def _begin(target: Path) -> tuple[Path, int | None]:
    """A fresh, locked folder beside the target; folders of dead writers, which nobody locks any more, are removed."""
    with locked(target.parent, exclusive=True) as locks_work:
        pattern = f".{glob.escape(target.name)}.new-{'[0-9a-f]' * 12}"
        for leftover in target.parent.glob(pattern) if locks_work else ():
            handle = _lock(leftover, exclusive=True, wait=False)
            if handle is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                _unlock(handle)
        temporary = target.parent / f".{target.name}.new-{secrets.token_hex(6)}"
        temporary.mkdir()
        return temporary, _lock(temporary, exclusive=True, wait=False)


def _commit(temporary: Path, target: Path) -> None:
    old = _old(target)
    if target.exists():
        _discard(old, target)
        os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    _sync(target.parent)
    _discard(old, target)


def _discard(old: Path, target: Path) -> None:
    """Delete the old folder; renamed first, so that a folder called `.<name>.old` is never a half-deleted one."""
    if old.exists():
        dead = target.parent / f".{target.name}.new-{secrets.token_hex(6)}"
        os.rename(old, dead)
        shutil.rmtree(dead, ignore_errors=True)


def check_replaceable(target: Path, overwrite: bool, members: frozenset[str]) -> None:
    """Refuse to write where something is that must not be replaced.

    Raises:
        PackError: if the target is a file, holds what is not among the members, or is there and `overwrite` is False.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise PackError(f"{target} is a file", expected="a folder or nothing there", remedy="Choose another path")
    held = sorted(entry.name for entry in target.iterdir())
    strangers = [name for name in held if name not in members and not name.startswith(".")]
    if strangers:
        raise PackError(
            f"{target} holds {strangers[0]!r}, which is no part of a pack",
            expected="an empty path or an earlier pack",
            remedy="Choose another path",
        )
    if held and not overwrite:
        raise PackError(
            f"{target} is already there", expected="a free path", remedy="Pass overwrite=True to replace it"
        )


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if fcntl is None:  # such systems cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_pack_error(error: OSError, target: Path) -> PackError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PackError(
            f"the disk is full, so {target} was not written",
            where=str(target.parent),
            remedy="Free some space and write again",
        )
    reason = error.strerror or str(error)
    return PackError(f"{target} cannot be written: {reason}", expected="a folder you may write to")


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` in `folder`.

    Raises:
        PackError: if the name, or a link behind it, leads out of the folder, or there is no such file.
    """
    plain = Path(name).name == name and name not in ("", ".", "..") and "\\" not in name
    if not plain or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise PackError(f"file name {name!r} leads out of the pack", expected=f"a file in {folder}", where="pack.json")
    path = folder / name
    if not path.is_file():
        raise PackError(f"{name} is missing", expected=f"a file in {folder}", remedy="Import or copy the pack again")
    return path


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
