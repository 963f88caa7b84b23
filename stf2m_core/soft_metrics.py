"""Scores of predicted distributions against soft labels: shares of votes enter, numbers leave.

Everything is in nats, in float64, and over the last axis of emotions; `metrics.divergence` and `metrics.cross_entropy`
are the first of the family. `summarise` puts all of them, with their intervals, into a record.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from stf2m_core.errors import ResultError
from stf2m_core.metrics import Statistic, Summary, calibration_error, divergence, ratio_bootstrap, summary_of


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


def entropy_correlation(
    log_probabilities: ArrayLike, soft_label: ArrayLike, weight: ArrayLike | None = None
) -> float | np.ndarray:
    """Pearson correlation over clips of how undecided prediction and raters are, -1 to 1; 0 if either never varies.

    Args:
        log_probabilities: (*clip, emotion), clips over any axes.
        soft_label: (*clip, emotion).
        weight: (..., *clip) how often each clip counts; then one number per replicate, (...). Once each if None.
    """
    scores, soft = _pair(log_probabilities, soft_label)
    said, true = (part.ravel() - part.mean() for part in (entropy(np.exp(scores)), entropy(soft)))
    counts = np.ones((1, *scores.shape[:-1])) if weight is None else np.asarray(weight, np.float64)
    found = _correlation(said, true, counts.reshape(*counts.shape[: counts.ndim - scores.ndim + 1], said.size))
    return float(found[0]) if weight is None else found


def tied(counts: ArrayLike) -> np.ndarray:
    """Whether two or more emotions lead together, so that there is no hard label: (clip, emotion) votes -> (clip,)."""
    counts = np.asarray(counts)
    return (counts == counts.max(-1, keepdims=True)).sum(-1) > 1


def tied_share(counts: ArrayLike, subject: ArrayLike, rng: np.random.Generator) -> dict[str, float | str | None]:
    """Share of clips without a hard label, as a metric of a record: (clip, emotion) votes and (clip,) subjects."""
    ties, owner = tied(counts), np.unique(np.asarray(subject), return_inverse=True)[1]
    interval = ratio_bootstrap(np.bincount(owner, ties), np.bincount(owner), rng)
    return {"mean": float(ties.mean()), "ci95": None, "subject_low": interval.low, "subject_high": interval.high,
            "subject_reason": interval.reason}  # fmt: skip


def plurality_agreement(log_probabilities: ArrayLike, counts: ArrayLike) -> float:
    """Share of clips whose likeliest emotion is the one most voted for; clips with tied votes are left out.

    Args:
        log_probabilities: (clip, emotion).
        counts: (clip, emotion) votes.

    Raises:
        ResultError: if every clip is tied.
    """
    scores, counts = _pair(log_probabilities, counts)
    untied = ~tied(counts)
    if not untied.any():
        raise ResultError(f"all {len(untied)} clips have tied votes", expected="a clip with one most voted emotion")
    return float((scores.argmax(-1) == counts.argmax(-1))[untied].mean())


def summarise(
    log_probabilities: ArrayLike,
    soft_label: ArrayLike,
    weight: ArrayLike,
    subject: ArrayLike,
    *,
    rng: np.random.Generator,
    others: Mapping[str, ArrayLike] | None = None,
    n_replicates: int = 1000,
) -> Summary:
    """Every soft metric of a record, with its intervals: kl_soft, js_soft, brier_soft, ece_soft, entropy_correlation.

    A query counts as much as its label lies within the episode's classes. `ece_soft` asks whether the most probable
    emotion has the share of votes that it was given; the first three are means over queries.

    Args:
        log_probabilities: (episode, query, way).
        soft_label: (episode, query, way) votes within the episode's classes; rows sum to one.
        weight: (episode, query) 0 to 1, what of the votes lies within; 0 weighs nothing.
        subject: (episode, query) subject of each query.
        rng: for the bootstrap.
        others: name -> log-probabilities of other readings of the same queries; each gets kl_soft_<name>.
        n_replicates: of the bootstrap.

    Raises:
        ResultError: on NaN, shapes that do not fit, or if no query has any weight.

    Source: METHOD, 'Labels'; calibration with soft truths in the bins of `metrics.calibration_error`.
    """
    scores, soft = _pair(log_probabilities, soft_label)
    weight = np.asarray(weight, np.float64)
    if not weight.any():
        raise ResultError("no query has half of its votes among the classes of its episode", expected="one at least",
                          where="soft metrics", remedy="Use episodes of more ways")  # fmt: skip
    parts = {"kl_soft": divergence, "js_soft": jensen_shannon, "brier_soft": brier}
    values = {name: metric(scores, soft) for name, metric in parts.items()}
    values |= {f"kl_soft_{name}": divergence(*_pair(other, soft_label)) for name, other in (others or {}).items()}
    statistics: dict[str, Statistic] = {name: _weighted_mean(value, weight) for name, value in values.items()}
    leader = np.zeros(weight.shape, np.int64)  # the truth of a prediction is its share of the votes, whoever leads
    statistics["ece_soft"] = lambda drawn: calibration_error(scores, leader, soft_label=soft, weight=drawn * weight)
    statistics["entropy_correlation"] = lambda drawn: entropy_correlation(scores, soft, drawn * weight)
    held = weight.sum(-1)
    # an episode none of whose queries weighs anything has no number, and then there is no interval over episodes
    per_episode = {n: (weight * v).sum(-1) / held for n, v in values.items()} if (held > 0).all() else {}
    sums = {name: weight * value / weight.mean() for name, value in values.items()}
    return summary_of(statistics, per_episode, sums, subject, rng, n_replicates=n_replicates)


def _correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's, of centred series (clip,) with weights (..., clip) -> (...); 0 where either never varies."""
    total = np.maximum(counts.sum(-1), 1e-300)
    first, second = counts @ x, counts @ y
    together = counts @ (x * y) - first * second / total
    squares = [counts @ part**2 - mean**2 / total for part, mean in ((x, first), (y, second))]
    scale = np.sqrt(np.maximum(squares[0], 0) * np.maximum(squares[1], 0))
    return np.where(scale > 1e-12, together / np.maximum(scale, 1e-12), 0.0)


def _weighted_mean(value: np.ndarray, weight: np.ndarray) -> Statistic:
    return lambda drawn: (drawn * weight * value).sum((-2, -1)) / np.maximum((drawn * weight).sum((-2, -1)), 1e-300)


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
