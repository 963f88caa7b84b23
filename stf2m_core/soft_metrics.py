"""Scores of predicted distributions against soft labels: shares of votes enter, numbers leave.

Everything is in nats, in float64, and over the last axis of emotions; `metrics.divergence` and `metrics.cross_entropy`
are the first of the family.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from stf2m_core.errors import ResultError
from stf2m_core.metrics import divergence


def jensen_shannon(log_probabilities: ArrayLike, soft_label: ArrayLike) -> np.ndarray:
    """Jensen-Shannon divergence, 0 to log 2 nats: (..., emotion) twice -> (...). Source: Lin 1991."""
    scores, soft = _pair(log_probabilities, soft_label)
    middle = np.logaddexp(scores, _log(soft)) - np.log(2)
    return (divergence(middle, soft) + divergence(middle, np.exp(scores))) / 2


def brier(log_probabilities: ArrayLike, soft_label: ArrayLike) -> np.ndarray:
    """Squared distance of the two distributions, 0 to 2: (..., emotion) twice -> (...). Source: Brier 1950."""
    scores, soft = _pair(log_probabilities, soft_label)
    return ((np.exp(scores) - soft) ** 2).sum(-1)


def entropy(probabilities: ArrayLike) -> np.ndarray:
    """Entropy of distributions, nats: (..., emotion) -> (...)."""
    return entr(np.asarray(probabilities, np.float64)).sum(-1)


def soft_calibration_error(log_probabilities: ArrayLike, soft_label: ArrayLike, *, n_bins: int = 15) -> float:
    """Expected calibration error, 0 to 1, of all emotions of all clips: is what gets 30 % chosen by 30 % of raters?

    Every emotion of every clip is one prediction, its truth the share of the votes; bins hold equally many, save that
    equal predictions share a bin.

    Args:
        log_probabilities: (..., emotion).
        soft_label: (..., emotion).
        n_bins: bins of equal mass.

    Source: classwise calibration (Kull et al. 2019) with shares in place of hits; bins as in `metrics`.
    """
    scores, soft = _pair(log_probabilities, soft_label)
    said, true = np.exp(scores).ravel(), soft.ravel()
    ranked = np.sort(said)
    edges = np.unique(ranked[np.arange(1, n_bins) * ranked.size // n_bins])
    owner = np.searchsorted(edges, said, side="right")
    gap = np.bincount(owner, said - true, len(edges) + 1)
    return float(np.abs(gap).sum() / said.size)


def entropy_correlation(log_probabilities: ArrayLike, soft_label: ArrayLike) -> float:
    """Pearson correlation over clips of how undecided prediction and raters are, -1 to 1; 0 if either never varies.

    Args:
        log_probabilities: (clip, emotion).
        soft_label: (clip, emotion).
    """
    scores, soft = _pair(log_probabilities, soft_label)
    said, true = (part - part.mean() for part in (entropy(np.exp(scores)), entropy(soft)))
    scale = np.sqrt((said**2).sum() * (true**2).sum())
    return float((said * true).sum() / scale) if scale > 1e-12 else 0.0


def plurality_agreement(log_probabilities: ArrayLike, counts: ArrayLike) -> float:
    """Share of clips whose likeliest emotion is the one most voted for; clips with tied votes are left out.

    Args:
        log_probabilities: (clip, emotion).
        counts: (clip, emotion) votes.

    Raises:
        ResultError: if every clip is tied.
    """
    scores, counts = _pair(log_probabilities, counts)
    untied = (counts == counts.max(-1, keepdims=True)).sum(-1) == 1
    if not untied.any():
        raise ResultError(f"all {len(untied)} clips have tied votes", expected="a clip with one most voted emotion")
    return float((scores.argmax(-1) == counts.argmax(-1))[untied].mean())


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.where(probabilities > 0, probabilities, np.exp(-745)))


def _pair(log_probabilities: ArrayLike, other: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, other = np.asarray(log_probabilities, np.float64), np.asarray(other, np.float64)
    if scores.shape != other.shape:
        raise ResultError(f"log-probabilities of shape {scores.shape} do not fit soft labels of shape {other.shape}",
                          expected="equal shapes")  # fmt: skip
    if np.isnan(scores).any() or np.isnan(other).any():
        raise ResultError("a log-probability or soft label is NaN", expected="numbers")
    return scores, other
