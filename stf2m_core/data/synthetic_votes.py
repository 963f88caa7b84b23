"""Made-up votes with a known law, for tests and for a look at the mechanics where the real votes are not at hand.

A seed enters, votes in the three rating conditions leave. No rater and no actor stands behind them.
"""

from __future__ import annotations

import numpy as np

from stf2m_core import seeding
from stf2m_core.data.adapters.crema_d_votes import EMOTIONS, Votes


def synthetic_votes(n_actors: int = 20, n_clips: int = 30, seed: int = 0) -> Votes:
    """Votes of `n_actors` with `n_clips` each.

    Voice and face of a clip are two noisy scores per emotion, the face's clearer. What both together say weighs the
    face more, save where the face looks neutral: then the voice decides. That interaction is for rules to find.
    """
    rng = seeding.numpy_generator(seed, "synthetic votes")
    n, size = n_actors * n_clips, len(EMOTIONS)
    intended = np.tile(np.arange(n_clips) % size, n_actors)
    meant = np.eye(size)[intended]
    voice, face = (clear * meant + rng.normal(size=(n, size)) for clear in (1.2, 2.5))
    face[:, EMOTIONS.index("neutral")] += np.where(rng.random(n) < 0.3, 3.0, 0.0)
    asleep = _softmax(2 * face)[:, [EMOTIONS.index("neutral")]]
    both = (0.5 + 1.2 * asleep) * voice + (1.2 - 0.9 * asleep) * face
    truth = np.stack([_softmax(1.5 * score) for score in (voice, face, both)], 1)
    counts = rng.multinomial(rng.integers(8, 12, (n, 3)), truth).astype(np.int16)
    levels = np.where(counts > 0, np.clip(35 + 40 * truth + 8 * rng.normal(size=truth.shape), 0, 100), np.nan)
    actor = np.repeat(1001 + np.arange(n_actors), n_clips).astype(np.int16)
    names = np.array([f"{a}_X{i:02d}" for a, i in zip(actor, np.tile(np.arange(n_clips), n_actors), strict=True)])
    return Votes(clip_id=names, counts=counts, levels=levels.astype(np.float32), intended=intended.astype(np.int8),
                 actor=actor, sentence=np.full(n, "SYN"), level=np.full(n, "XX"))  # fmt: skip


def _softmax(score: np.ndarray) -> np.ndarray:
    weight = np.exp(score - score.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)
