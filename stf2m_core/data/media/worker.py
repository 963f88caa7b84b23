"""One worker of the extraction: requests come in as lines of JSON, an answer goes out for each.

It is a fresh Python that loads only what reading a clip needs, so a worker takes little memory, forks nothing, and can
be killed at any moment: what it writes is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from stf2m_core.data.media.clip import read_clip
from stf2m_core.data.media.kept import place_of, read_kept, write_clip
from stf2m_core.data.media.settings import MediaSettings
from stf2m_core.errors import MediaError

_hashes: dict[tuple[Any, ...], str] = {}


def work_off(request: dict[str, Any]) -> dict[str, Any]:
    """Make the views of one clip unless they are there; the answer is a row of the report.

    Args:
        request: clip_id, path, audio_path, words_path, text, start_s, end_s (None: the end), out, settings.

    Returns:
        status "made", "kept" or "failed" with a reason, seconds; or "stopped" if the views cannot be kept on disk.
    """
    started = time.perf_counter()
    place = place_of(Path(request["out"]), request["clip_id"])
    try:
        settings = MediaSettings(**request["settings"])
        key = _key(request, settings)
        settings.check_models()  # what is wrong with them says nothing of the clip
    except (MediaError, OSError) as error:
        return {"status": "failed", "reason": _unreadable(error), "seconds": 0.0}
    kept = read_kept(place)
    if kept is not None and kept.key == key:
        return {"status": "failed" if kept.reason else "kept", "reason": kept.reason, "seconds": 0.0}
    clip, reason = None, ""
    try:
        clip = _read(request, settings)
    except MediaError as error:
        reason = str(error)
    except MemoryError:
        return {"status": "failed", "reason": "there is not enough memory for it", "seconds": 0.0}
    seconds = time.perf_counter() - started
    try:
        write_clip(place, key, clip, reason=reason, seconds=seconds)
    except OSError as error:
        return {"status": "stopped", "reason": error.strerror or str(error), "seconds": seconds}
    return {"status": "failed" if reason else "made", "reason": reason, "seconds": seconds}


def _read(request: dict[str, Any], settings: MediaSettings) -> Any:
    end = math.inf if request["end_s"] is None else request["end_s"]
    try:
        return read_clip(
            request["path"], settings, audio_path=request["audio_path"], text=request["text"],
            words_path=request["words_path"], start_s=request["start_s"], end_s=end,
        )  # fmt: skip
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # whatever a strange file makes a library do, the other clips go on
        raise MediaError(f"reading it failed: {type(error).__name__}: {error}", where=request["path"]) from error


def _unreadable(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(MediaError(f"the file cannot be read: {error.strerror}", where=os.fspath(error.filename or "")))
    return str(error)


def _key(request: dict[str, Any], settings: MediaSettings) -> str:
    """What the clip is made from: the content of its files, its span, its words and the settings."""
    files = [_sha256(request[name]) if request[name] else "" for name in ("path", "audio_path", "words_path")]
    parts = [settings.digest(), *files, request["text"], request["start_s"], request["end_s"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _sha256(path: str) -> str:
    """The hash of a file's content; read once per worker for the clips that share a file."""
    about = os.stat(path)
    known = (path, about.st_size, about.st_mtime_ns, about.st_ino)
    if known not in _hashes:
        with open(path, "rb") as stream:
            _hashes[known] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[known]


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints, the answers stay lines of JSON
    for line in sys.stdin.buffer:
        answers.write(json.dumps(work_off(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
