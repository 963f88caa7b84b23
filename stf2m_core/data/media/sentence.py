"""Sentences as vectors by a model of the user's own: pieces of what is said enter, one embedding each leaves.

The package sentence-transformers does the work, where it is installed; it is no dependency. Only a folder on disk is
read, nothing is downloaded, and neither pickles nor code from the folder are loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stf2m_core.data.media.extra import library
from stf2m_core.data.media.transcript import Transcript
from stf2m_core.data.words import words_of
from stf2m_core.errors import MediaError

_END = re.compile(r"(?<=[.!?…])\s+|\n+")
_PAUSE_S = 1.0  # a longer way from one word to the next begins another piece
_CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".py")


def pieces_of(text: str, script: Transcript, timed: bool) -> tuple[list[str], np.ndarray]:
    """The sentences of a text, or what is said between pauses, and (piece,) float32 seconds of their middles.

    Args:
        text: as it was given; looked at where its words have no times of their own.
        script: its words and when they are said.
        timed: whether the words have times of their own.
    """
    if timed:
        first = np.flatnonzero(np.diff(script.times, prepend=-np.inf) > _PAUSE_S)
        words = [script.words[a:b] for a, b in zip(first, [*first[1:], len(script.words)], strict=True)]
        pieces = [" ".join(part) for part in words]
    else:
        parts = [(part.strip(), len(words_of(part))) for part in _END.split(text)]
        pieces = [part for part, n_words in parts if n_words]
        first = np.cumsum([0, *(n_words for _, n_words in parts if n_words)])[:-1]
    last = [*first[1:], len(script.words)]
    middle = [(script.times[a] + script.times[b - 1]) / 2 for a, b in zip(first, last, strict=True)]
    return pieces, np.array(middle, np.float32)


def embed(folder: str, pieces: list[str]) -> np.ndarray:
    """(piece, channel) float32.

    Raises:
        MediaError: as `sentence_model`.
    """
    said = sentence_model(folder).encode(pieces, convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(said, np.float32)


def folder_digest(folder: str) -> str:
    """Hash of all files of the model, whatever their place.

    Raises:
        MediaError: if the folder holds no model.
    """
    files = _files(folder)
    stamps = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _digest(folder, stamps)


@lru_cache(maxsize=2)
def _digest(folder: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, _, _ in stamps:
        with open(name, "rb") as stream:
            parts = (os.path.relpath(name, folder), hashlib.file_digest(stream, "sha256").hexdigest())
        whole.update("\0".join(parts).encode())
    return whole.hexdigest()


@lru_cache(maxsize=1)
def sentence_model(folder: str) -> Any:
    """The model, read once per process.

    Raises:
        MediaError: if the package is not installed or the folder holds no model that is safe to load.
    """
    _files(folder)
    package = library("sentence_transformers")
    try:
        return package.SentenceTransformer(folder, device="cpu", local_files_only=True)
    except Exception as error:  # whatever a strange folder makes the package do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MediaError(f"the sentence model cannot be loaded: {reason}", where=folder) from error


def _files(folder: str) -> list[Path]:
    """The files of a model, in order; refused where there is none, or where loading one would run code."""
    place, what = Path(folder), "a folder that sentence-transformers saved, with modules.json"
    try:
        kinds = [part["type"] for part in json.loads((place / "modules.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MediaError("there is no sentence model", expected=what, where=folder) from error
    strange = [kind for kind in kinds if not str(kind).startswith("sentence_transformers.")]
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != "README.md")
    strange += [path.name for path in files if path.suffix in _CODE]
    if strange:
        raise MediaError(f"the sentence model needs {strange[0]!r}, which may run code", where=folder,
                         expected="modules of sentence-transformers with safetensors")  # fmt: skip
    return files
