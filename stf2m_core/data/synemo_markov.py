"""SynEmo clips in which the emotion changes: a configuration goes in, clips of segments with known laws come out.

A clip is a chain of segments. A segment has one emotion and all draws of its own, by the laws of SynEmo; the next one
has the same emotion with probability `stay`, else a neighbour, which differs in one factor. So a new segment is not
always a new emotion. Segments last 3 to 5 words; a word is 8 frames of audio and one of text. Source: ours,
docs/METHOD.md section 'Synthetic set'.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core.data import synemo_laws as laws
from stf2m_core.data.pack import write_pack
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.synemo import SynEmoConfig, domain_table
from stf2m_core.data.synemo_laws import EMOTIONS, FACTORS, LABELS, LAW
from stf2m_core.errors import ConfigError
from stf2m_core.seeding import numpy_generator

NAME = "synemo-markov"
WORD = 8
"""Frames of audio in a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovConfig:
    """What to generate. Like a pure SynEmo: no gains, dead nodes, subject terms, jitter, ambiguity or missing views.

    Attributes:
        seed: 0 or more; every draw follows from it.
        n_domains: domains; each has its own baseline level, contour rate and audio sampling step.
        n_subjects_per_domain: subjects in a domain.
        n_sessions: recording sessions of a subject.
        clips_per_session: clips of a session.
        segments: least and most segments of a clip.
        words: least and most words of a segment.
        stay: probability that the next segment has the same emotion.
        moving: factors by which the emotions of this set differ; the others stay at their first level.

    Raises:
        ConfigError: if a value is out of range.
    """

    seed: int = 0
    n_domains: int = 12
    n_subjects_per_domain: int = 4
    n_sessions: int = 2
    clips_per_session: int = 6
    segments: tuple[int, int] = (4, 8)
    words: tuple[int, int] = (3, 5)
    stay: float = 0.7
    moving: tuple[str, ...] = tuple(FACTORS)

    def __post_init__(self) -> None:
        least = {"seed": 0, "n_domains": 1, "n_subjects_per_domain": 1, "n_sessions": 1, "clips_per_session": 1}
        rules = {name: (getattr(self, name) >= bound, f"at least {bound}") for name, bound in least.items()}
        for name in ("segments", "words"):
            low, high = getattr(self, name)
            rules[name] = (1 <= low <= high, "least and most, at least 1")
        rules["stay"] = (0 <= self.stay <= 1, "a probability")
        known = bool(self.moving) and tuple(f for f in FACTORS if f in self.moving) == tuple(self.moving)
        rules["moving"] = (known, f"some of {', '.join(FACTORS)}, in this order")
        for name, (fine, expected) in rules.items():
            if not fine:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", expected=expected, where="MarkovConfig")

    @property
    def emotions(self) -> np.ndarray:
        """(label,) int64 index of each of the set's emotions in `EMOTIONS`."""
        fixed = [axis for axis, factor in enumerate(FACTORS) if factor not in self.moving]
        return np.flatnonzero((EMOTIONS[:, fixed] == 0).all(1))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the set's emotions."""
        return tuple(LABELS[emotion] for emotion in self.emotions)

    @property
    def transition(self) -> np.ndarray:
        """(label, label) probability of the column's emotion in the segment after one with the row's."""
        levels = EMOTIONS[self.emotions]
        near = (levels[:, None] != levels[None]).sum(2) == 1
        return self.stay * np.eye(len(levels)) + (1 - self.stay) * near / near.sum(1, keepdims=True)

    def digest(self) -> str:
        """12 hex digits of the settings and of the laws."""
        text = json.dumps({**asdict(self), "law": asdict(LAW), "word": WORD}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def domains_of(config: MarkovConfig) -> pd.DataFrame:
    """One row per domain, as `synemo.domain_table`; for references, a model must never see it."""
    return domain_table(SynEmoConfig(seed=config.seed, n_domains=config.n_domains, pure=True))


def write(path: str | os.PathLike[str], config: MarkovConfig, *, overwrite: bool = False) -> Path:
    """Generate and write the pack of recordings with their segments, the same bytes for the same configuration.

    Raises:
        PackError: if the folder cannot be written.
    """
    clips, views, segments = generate(config)
    return write_pack(
        path, clips, views, config.labels, name=NAME, title="SynEmo with emotions that change, synthetic",
        licence="MIT, as the kit", source="Made by this kit", segments=segments, overwrite=overwrite,
        made_from={"config": asdict(config), "digest": config.digest()},
    )  # fmt: skip


def generate(config: MarkovConfig) -> tuple[pd.DataFrame, dict[str, RaggedViews], pd.DataFrame]:
    """Clips, their views (float32) and their segments.

    A clip's own label is undefined: it has several. Clips are sorted by subject and session.

    Returns:
        clips, one row per clip; views: "audio" (contour, tone), "visual" (four nodes; carrier, level), "text" (one
        frame a word), with seconds from the clip's start; segments in the order of the clips and of time.
    """
    domains, design = domains_of(config), _design(config)
    step = domains["step_s"].to_numpy()[design["domain"]]
    owner, emotion, words = design["clip"], design["emotion"], design["words"]
    length = words * WORD * step
    before = np.cumsum(length) - length
    start = before - before[np.searchsorted(owner, owner)]
    n_clips = owner[-1] + 1
    duration = np.bincount(owner, length)
    clips = _table(config, domains, duration)
    end = (start + length).round(6)
    segments = pd.DataFrame({
        "clip_id": clips["clip_id"].to_numpy()[owner], "start_s": start.round(6), "end_s": end,
        "label": np.array(LABELS, object)[emotion],
    })  # fmt: skip
    signals = _signals(config, design, domains, step)
    views = {name: _ragged(name, *signals[name], words, owner, start, n_clips) for name in signals}
    return clips, views, segments


def _draws(config: MarkovConfig) -> laws.Draws:
    return lambda purpose: numpy_generator(config.seed, "synemo-markov", purpose)


def _design(config: MarkovConfig) -> dict[str, np.ndarray]:
    """For each segment, (segment,) int64: clip, domain, emotion (in `EMOTIONS`) and words."""
    draws, emotions = _draws(config), config.emotions
    per_domain = config.n_subjects_per_domain * config.n_sessions * config.clips_per_session
    n_clips, most = config.n_domains * per_domain, config.segments[1]
    count = draws("segments").integers(config.segments[0], most + 1, n_clips)
    draw, edges = draws("emotions").random((n_clips, most)), np.cumsum(config.transition, 1)
    state = np.zeros((n_clips, most), np.int64)
    state[:, 0] = draw[:, 0] * len(emotions)
    for number in range(1, most):
        state[:, number] = (draw[:, number, None] >= edges[state[:, number - 1], :-1]).sum(1)
    inside = np.arange(most) < count[:, None]
    clip = np.repeat(np.arange(n_clips), count)
    words = draws("words").integers(config.words[0], config.words[1] + 1, (n_clips, most))
    return {"clip": clip, "domain": clip // per_domain, "emotion": emotions[state[inside]], "words": words[inside]}


def _table(config: MarkovConfig, domains: pd.DataFrame, duration: np.ndarray) -> pd.DataFrame:
    """clips.csv; names sort as the clips do."""
    shape = (config.n_domains, config.n_subjects_per_domain, config.n_sessions, config.clips_per_session)
    width = [len(str(size - 1)) for size in shape]
    domain, subject, session, clip = (axis.ravel() for axis in np.indices(shape))
    names = domains["domain"].to_numpy(object)[domain]
    subjects = [f"{name}-s{number:0{width[1]}d}" for name, number in zip(names, subject, strict=True)]
    groups = [f"{name}/{number:0{width[2]}d}" for name, number in zip(subjects, session, strict=True)]
    ids = [f"{name}/{number:0{width[3]}d}" for name, number in zip(groups, clip, strict=True)]
    return pd.DataFrame({"clip_id": ids, "subject": subjects, "group": groups, "domain": names,
                         "duration_s": duration.round(6), "label": "", "split": "", "text": ""})  # fmt: skip


def _signals(
    config: MarkovConfig, design: dict[str, np.ndarray], domains: pd.DataFrame, step: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each modality (segment, frame, node, channel) values, (segment, frame) seconds, (segment,) frames a word.

    Frames are those of the longest segment; shorter ones are cut when the frames are put in a row.
    """
    draws, most = _draws(config), config.words[1]
    shown = dict(zip(FACTORS, EMOTIONS[design["emotion"]].T, strict=True))
    facts = domains.iloc[design["domain"]]
    audio = (np.arange(most * WORD) + 0.5) * step[:, None]
    per_word = np.rint(WORD * step * LAW.visual_hz).astype(np.int64)
    frames = most * int(per_word.max())
    visual = np.tile((np.arange(frames) + 0.5) / LAW.visual_hz, (len(step), 1))
    contour = laws.contour(draws, shown["order"], facts["contour_hz"].to_numpy(), audio)
    tone, meaning = laws.tone_and_text(draws, shown["interaction"])
    level = laws.level(draws, shown["level"], facts["level_offset"].to_numpy())
    n_draws = -(-frames // LAW.visual_frames)  # the law draws clips of a fixed length; two of them make a segment
    carrier = laws.carrier(draws, np.repeat(shown["synchrony"], n_draws))
    carrier = carrier.reshape(len(step), n_draws * LAW.visual_frames, -1)[:, :frames]
    words = (np.arange(most) + 0.5) * WORD * step[:, None]
    one = np.ones_like(per_word)
    return {
        "audio": (np.stack([contour, np.tile(tone[:, None], contour.shape[1])], 2)[..., None], audio, WORD * one),
        "visual": (np.stack([carrier, np.broadcast_to(level[:, None, None], carrier.shape)], 3), visual, per_word),
        "text": (np.repeat(meaning[:, None], most, 1)[..., None, None], words, one),
    }


def _ragged(
    name: str, values: np.ndarray, times: np.ndarray, per_word: np.ndarray, words: np.ndarray, owner: np.ndarray,
    start: np.ndarray, n_clips: int,
) -> RaggedViews:  # fmt: skip
    """The frames of all segments, one after the other, with the clock of their clips."""
    count = words * per_word
    inside = np.arange(values.shape[1]) < count[:, None]
    return RaggedViews(
        values=values[inside].astype(np.float32), times=(times + start[:, None])[inside].astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(owner, count, n_clips))]).astype(np.int64),
        nodes={"audio": ("contour", "tone"), "visual": ("a", "b", "c", "d"), "text": ("meaning",)}[name],
        channels=("carrier", "level") if name == "visual" else ("value",),
        rate_hz=LAW.visual_hz if name == "visual" else None,
    )  # fmt: skip
