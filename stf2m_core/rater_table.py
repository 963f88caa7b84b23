"""How far raters agree: votes of the three rating conditions enter, agreement with intervals over actors leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stf2m_core import seeding
from stf2m_core.data.adapters.crema_d_votes import CONDITIONS, EMOTIONS, Votes
from stf2m_core.errors import ResultError
from stf2m_core.metrics import Interval

_REPLICATES = 1000


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement of raters beyond what their overall shares would give by chance: 1 is perfect, 0 is chance.

    Args:
        counts: (clip, emotion) votes; clips may have different numbers of raters; those with fewer than two are
            passed over.

    Raises:
        ResultError: if no clip has two raters, or all raters always say the same.

    Source: Fleiss 1971, doi 10.1037/h0031619; for different numbers of raters the mean over clips of the share of
    agreeing pairs, as in Fleiss, Levin & Paik 2003.
    """
    agreeing, pooled, n_clips = _sums(counts, np.zeros(len(counts), np.int64))
    return float(_kappa(agreeing, pooled, n_clips)[0])


def _sums(counts: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each owner: sum over clips of the share of agreeing pairs, (owner, emotion) votes, number of clips."""
    counts = np.asarray(counts, np.float64)
    raters = counts.sum(axis=1)
    usable = raters >= 2
    if not usable.any():
        raise ResultError("no clip has two raters", expected="two or more", where="fleiss_kappa")
    counts, raters, owner = counts[usable], raters[usable], owner[usable]
    pairs = ((counts**2).sum(axis=1) - raters) / (raters * (raters - 1))
    size = int(owner.max()) + 1
    pooled = np.stack([np.bincount(owner, column, size) for column in counts.T], axis=1)
    return np.bincount(owner, pairs, size), pooled, np.bincount(owner, minlength=size).astype(np.float64)


def _kappa(
    agreeing: np.ndarray, pooled: np.ndarray, n_clips: np.ndarray, draws: np.ndarray | None = None
) -> np.ndarray:
    """(replicate,) kappa of owners drawn so often: (replicate, owner); None: each once."""
    draws = np.ones((1, len(n_clips))) if draws is None else draws
    found = (draws @ agreeing) / (draws @ n_clips)
    shares = draws @ pooled
    chance = ((shares / shares.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    if (chance >= 1 - 1e-12).any():
        raise ResultError("all raters always say the same", expected="at least two answers", where="fleiss_kappa")
    return (found - chance) / (1 - chance)


def kappa_interval(counts: np.ndarray, actor: np.ndarray) -> tuple[float, Interval]:
    """Fleiss' kappa and its 95 % bootstrap interval over actors.

    Args:
        counts: (clip, emotion) votes.
        actor: (clip,) any.
    """
    names, owner = np.unique(actor, return_inverse=True)
    sums = _sums(counts, owner)
    rng = seeding.numpy_generator(0, "kappa")
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_REPLICATES).astype(np.float64)
    low, high = np.percentile(_kappa(*sums, draws), [2.5, 97.5])
    return float(_kappa(*sums)[0]), Interval(float(low), float(high), "")


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """(clip,) entropy of the shares of the votes in bits: 0 where all agree, log2 of the emotions at most.

    Args:
        counts: (clip, emotion) votes, at least one per clip.
    """
    share = counts / counts.sum(axis=1, keepdims=True)
    return -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)


def intended_shares(votes: Votes) -> np.ndarray:
    """(condition, intended, chosen) mean share of votes for each emotion where the actor was asked for another."""
    share = votes.counts / votes.counts.sum(axis=2, keepdims=True)
    of = np.eye(len(EMOTIONS))[votes.intended]
    return np.einsum("nce,ni->cie", share, of) / of.sum(axis=0)[None, :, None]


def leading_share(counts: np.ndarray) -> np.ndarray:
    """(clip,) share of the votes for the emotion that most chose."""
    return counts.max(axis=1) / counts.sum(axis=1)


def agreement_table(votes: Votes) -> pd.DataFrame:
    """One row per rating condition: raters, kappa with its interval over actors, entropy, ties, and the intended."""
    rows = []
    for number, condition in enumerate(CONDITIONS):
        counts = votes.counts[:, number]
        kappa, interval = kappa_interval(counts, votes.actor)
        top = counts == counts.max(axis=1, keepdims=True)
        alone = top.sum(axis=1) == 1
        hit = alone & top[np.arange(len(top)), votes.intended]
        rows.append({
            "rated from": condition, "raters per clip": f"{np.median(counts.sum(axis=1)):.0f}",
            "Fleiss' kappa [95 % over actors]": f"{kappa:.2f} [{interval.low:.2f}, {interval.high:.2f}]",
            "entropy, bits": f"{entropy_bits(counts).mean():.2f}",
            "all raters agree": f"{(leading_share(counts) == 1).mean():.2f}",
            "two or more emotions lead": f"{(~alone).mean():.2f}",
            "the intended emotion leads alone": f"{hit.mean():.2f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def emotion_table(votes: Votes) -> pd.DataFrame:
    """One row per intended emotion: the mean share of votes it got in each condition, and what it was taken for."""
    shares = intended_shares(votes)
    rows = []
    for row, emotion in enumerate(EMOTIONS):
        cells = {condition: f"{shares[number, row, row]:.2f}" for number, condition in enumerate(CONDITIONS)}
        rows.append({"asked for": emotion} | cells | {"taken for, from the voice": _second(shares[0, row], row),
                                                      "from the face": _second(shares[1, row], row)})  # fmt: skip
    return pd.DataFrame(rows)


def _second(shares: np.ndarray, own: int) -> str:
    others = np.where(np.arange(len(shares)) == own, -1.0, shares)
    return f"{EMOTIONS[int(others.argmax())]} {others.max():.2f}"


def noise_floor(votes: Votes, condition: int, n_draws: int = 20) -> float:
    """Share of clips whose leading emotion would change if as many other people of the same opinions voted.

    Other people are drawn from each clip's own shares: an underestimate where few voted, since shares of zero stay.

    Args:
        votes: of the clips.
        condition: index into CONDITIONS.
        n_draws: of each clip.
    """
    counts = votes.counts[:, condition].astype(np.int64)
    rng = seeding.numpy_generator(0, "raters", condition)
    again = rng.multinomial(counts.sum(axis=1), counts / counts.sum(axis=1, keepdims=True), size=(n_draws, len(counts)))
    return float((again.argmax(axis=2) != counts.argmax(axis=1)).mean())


def noise_table(votes: Votes, conditions: Sequence[str] = CONDITIONS) -> pd.DataFrame:
    """How often a hard label would change with other raters, in each condition."""
    changed = [f"{noise_floor(votes, CONDITIONS.index(name)):.2f}" for name in conditions]
    return pd.DataFrame({"rated from": list(conditions), "clips whose label would change": changed})
