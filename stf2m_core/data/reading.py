"""What an adapter read: clips, views, and what it left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.words import N_CHANNELS, hash_words, words_of
from stf2m_core.errors import ManifestError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What goes into a pack, before it is checked.

    Attributes:
        clips: one row per clip, as `write_pack` takes them.
        views: modality to views.
        labels: names of the labels, in order; () takes the manifest's.
        segments: labels inside clips, or None.
        left_out: clip or file to why it is not among the clips.
        remarks: what a user should know of how the files were read.
        media: settings of the front end that made views of recordings; None where nothing was recorded. A pack keeps
            them, so that a recording can later be read as its clips were.
    """

    clips: pd.DataFrame
    views: Mapping[str, RaggedViews]
    labels: tuple[str, ...] = ()
    segments: pd.DataFrame | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    media: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, read: Reading | tuple[pd.DataFrame, Mapping[str, RaggedViews]], manifest: Manifest) -> Reading:
        """A reading with labels, from what an adapter's `read` gave: a reading, or just clips and views.

        Raises:
            ManifestError: if every clip was left out.
        """
        reading = read if isinstance(read, Reading) else cls(clips=read[0], views=read[1])
        if len(reading.clips) == 0:
            reasons = [f"{clip}: {reason}" for clip, reason in reading.left_out.items()]
            raise ManifestError(
                f"no clip of {manifest.name} is left",
                expected="at least one",
                remedy=f"The first of {len(reasons)} left out is {reasons[0]}" if reasons else None,
            )
        return replace(reading, labels=tuple(reading.labels) or manifest.labels)


def clip_table(columns: Mapping[str, object], **extra: object) -> pd.DataFrame:
    """A table of clips in the order of a pack's columns; what is not given is empty, the domain too.

    Args:
        columns: clip_id, subject, group, duration_s, label and what else there is of domain, split, text.
        extra: further columns: votes, ratings, or your own prefixed x_.
    """
    empty = {"clip_id": "", "subject": "", "group": "", "domain": "", "duration_s": 0.0, "label": ""}
    return pd.DataFrame({**empty, "split": "", "text": "", **columns, **extra})


def spread_words(texts: Sequence[str], duration_s: np.ndarray) -> RaggedViews:
    """One frame per word, evenly over the clip: for transcripts that do not say when a word was spoken.

    Args:
        texts: one for each clip; a text without words leaves the clip without the modality.
        duration_s: (clip,) seconds.
    """
    known = {text: hash_words(words_of(text)) for text in dict.fromkeys(texts)}
    lengths = np.array([len(known[text]) for text in texts], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + 0.5
    times = position / np.repeat(lengths, lengths) * np.repeat(np.asarray(duration_s, np.float64), lengths)
    return RaggedViews(
        values=np.concatenate([known[text] for text in texts])[:, None, :],
        offsets=offsets,
        nodes=("word",),
        channels=tuple(f"hash{channel:02d}" for channel in range(N_CHANNELS)),
        times=times.astype(np.float32),
    )


def one_frame(values: np.ndarray, nodes: Sequence[str], channels: Sequence[str], times: np.ndarray) -> RaggedViews:
    """Views of one frame per clip.

    Args:
        values: (clip, node, channel).
        nodes: their names.
        channels: their names.
        times: (clip,) seconds since the clip's start.
    """
    return RaggedViews(
        values=np.ascontiguousarray(values, np.float32),
        offsets=np.arange(len(values) + 1, dtype=np.int64),
        nodes=tuple(nodes),
        channels=tuple(channels),
        times=np.asarray(times, np.float32),
    )
