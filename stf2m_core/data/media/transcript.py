"""Transcripts become words with times: plain text, subtitles (srt, vtt), or a table of words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stf2m_core.data.words import words_of
from stf2m_core.errors import MediaError

_CUE = re.compile(r"((?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3})\s*-->\s*((?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3})")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True, slots=True, eq=False)
class Transcript:
    """Words and (word,) float32 seconds of their middles since the clip's start, in time order."""

    words: tuple[str, ...]
    times: np.ndarray
    remarks: tuple[str, ...] = ()


def spread(text: str, start_s: float, end_s: float) -> Transcript:
    """The words of a text in equal shares of a span, for nothing says when each was spoken."""
    words = words_of(text)
    times = start_s + (np.arange(len(words)) + 0.5) / max(len(words), 1) * (end_s - start_s)
    return Transcript(tuple(words), times.astype(np.float32))


def read_transcript(path: Path, *, start_s: float, end_s: float) -> Transcript:
    """The words of a file whose middle lies between start and end; their times count from the start.

    Args:
        path: .srt or .vtt (words share their cue evenly), or a CSV table with columns word, start_s and end_s.
        start_s: where the clip begins, in seconds of the file.
        end_s: where it ends.

    Raises:
        MediaError: if the file cannot be read or is no transcript.
    """
    remarks: tuple[str, ...] = ()
    if path.suffix.lower() in (".srt", ".vtt"):
        parts, remarks = _subtitles(path)
    elif path.suffix.lower() == ".csv":
        parts, remarks = _table(path)
    else:
        expected = "a name that ends in .srt, .vtt or .csv"
        raise MediaError(f"the transcript is called {path.name!r}", expected=expected, where=str(path))
    words = [word for part in parts for word in part.words]
    times = np.concatenate([np.zeros(0, np.float32), *(part.times for part in parts)])
    inside = (times >= start_s) & (times < end_s)
    order = np.flatnonzero(inside)[np.argsort(times[inside], kind="stable")]
    return Transcript(tuple(words[i] for i in order), (times[order] - start_s).astype(np.float32), remarks)


def _subtitles(path: Path) -> tuple[list[Transcript], tuple[str, ...]]:
    text, remarks = _text(path)
    cues = list(_CUE.finditer(text))
    if not cues:
        raise MediaError(f"{path.name} holds no cue", expected="lines like 00:01.000 --> 00:02.500", where=str(path))
    ends = [cue.start() for cue in cues[1:]] + [len(text)]
    parts = []
    for cue, end in zip(cues, ends, strict=True):
        lines = text[cue.end() : end].split("\n")[1:]  # what follows the times on their own line is layout
        blank = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
        spoken = " ".join(_TAG.sub(" ", line) for line in lines[:blank])
        parts.append(spread(spoken, _seconds(cue[1]), _seconds(cue[2])))
    return parts, remarks


def _seconds(stamp: str) -> float:
    hours_minutes, seconds = stamp.replace(",", ".").rsplit(":", 1)
    return sum(60 ** (n + 1) * int(part) for n, part in enumerate(reversed(hours_minutes.split(":")))) + float(seconds)


def _text(path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MediaError(f"the transcript cannot be read: {error.strerror}", where=str(path)) from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n"), ()
    except UnicodeDecodeError:
        remark = f"{path.name} is not UTF-8; it was read as Windows-1252, check its accents"
        return content.decode("cp1252", errors="replace").replace("\r\n", "\n"), (remark,)


def _table(path: Path) -> tuple[list[Transcript], tuple[str, ...]]:
    from stf2m_core.data.tables import read_table  # needs pandas, which nothing else here does
    from stf2m_core.errors import ManifestError

    try:
        table = read_table(path, ["word", "start_s", "end_s"])
        start, end = table.numbers("start_s"), table.numbers("end_s")
    except ManifestError as error:
        raise MediaError(f"the transcript cannot be read: {error}") from error
    bad = np.flatnonzero(~(np.isfinite(start) & np.isfinite(end) & (end >= start) & (start >= 0)))
    if bad.size:
        row = int(bad[0])
        raise MediaError(f"row {row + 2} lasts from {start[row]} to {end[row]}", expected="seconds, start before end",
                         where=str(path))  # fmt: skip
    words = table.rows["word"]
    return [spread(word, a, b) for word, a, b in zip(words, start, end, strict=True)], table.remarks
