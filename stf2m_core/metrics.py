"""Scores of query predictions, and how sure they are.

Enters: log-probabilities (episode, query, way) with the queries' labels and subjects. Leaves: numbers and intervals.
Every function takes tensors or arrays, works in float64, and treats all episodes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit
from torch import Tensor

from stf2m_core.errors import ResultError

Statistic = Callable[[np.ndarray], np.ndarray]
"""From query weights (replicate, episode, query) to one number per replicate."""

_BLOCK = 1 << 20  # query weights held at once by the bootstrap: 8 MiB


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval; without one, `low` and `high` are None and `reason` says why."""

    low: float | None
    high: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """All scores of one evaluation, ready for a record.

    Attributes:
        metrics: name -> mean, ci95 (half width over episodes), subject_low, subject_high, subject_reason; each None
            where undefined.
        per_episode: name -> one number per episode, for the metrics that have one.
        per_subject: "subjects" and "total" (queries of each), and for each metric that is a mean over queries its sum.
    """

    metrics: dict[str, dict[str, float | str | None]]
    per_episode: dict[str, list[float]]
    per_subject: dict[str, list]


# --- counts, and the scores that are functions of counts


def class_counts(predicted: ArrayLike, label: ArrayLike, n_classes: int, weight: ArrayLike | None = None) -> np.ndarray:
    """How often each class was hit, was true, and was predicted: (..., episode, n_classes, 3) float64.

    Args:
        predicted: (episode, query) int, 0..n_classes-1.
        label: (episode, query) int, 0..n_classes-1.
        n_classes: number of classes.
        weight: (..., episode, query) how often each query counts; once each if None.
    """
    predicted, label = _array(predicted), _array(label)
    weight = np.ones(label.shape) if weight is None else _array(weight)
    outer = weight.shape[:-1]
    first = n_classes * np.arange(int(np.prod(outer))).reshape(*outer, 1)

    def count(classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        cells = np.broadcast_to(first + classes, weights.shape)
        return np.bincount(cells.ravel(), weights.ravel(), first.size * n_classes).reshape(*outer, n_classes)

    return np.stack([count(label, weight * (predicted == label)), count(label, weight), count(predicted, weight)], -1)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Share of queries hit, in 0..1; counts (..., way, 3) -> (...)."""
    return _ratio(counts[..., 0].sum(-1), counts[..., 1].sum(-1))


def uar(counts: np.ndarray) -> np.ndarray:
    """Unweighted average recall over the classes that occur among the queries; counts (..., way, 3) -> (...)."""
    hits, true = counts[..., 0], counts[..., 1]
    return _ratio(_ratio(hits, true).sum(-1), (true > 0).sum(-1))


def f1_macro(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur or were predicted; counts (..., way, 3) -> (...)."""
    return _ratio(_f1(counts).sum(-1), ((counts[..., 1] + counts[..., 2]) > 0).sum(-1))


def f1_weighted(counts: np.ndarray) -> np.ndarray:
    """F1 averaged with the share of each class among the queries; counts (..., way, 3) -> (...)."""
    return _ratio((_f1(counts) * counts[..., 1]).sum(-1), counts[..., 1].sum(-1))


def pooled_counts(
    log_probabilities: ArrayLike, query_label: ArrayLike, classes: ArrayLike, n_labels: int
) -> np.ndarray:
    """Counts by the data set's label over all episodes: (label, 3).

    Only where a label means the same in every episode (Regimes P and D); in Regime C use counts per episode.

    Args:
        log_probabilities: (episode, query, way).
        query_label: (episode, query) int in 0..way-1.
        classes: (episode, way) int, the data set's label of each local class.
        n_labels: labels of the data set.
    """
    predicted, label = _global(_checked(log_probabilities, query_label), query_label, classes)
    return class_counts(predicted.reshape(1, -1), label.reshape(1, -1), n_labels)[0]


def pooled_f1(
    log_probabilities: ArrayLike, query_label: ArrayLike, classes: ArrayLike, n_labels: int
) -> dict[str, float]:
    """`f1_macro` and `f1_weighted` of all queries together by the data set's label; arguments of `pooled_counts`."""
    counts = pooled_counts(log_probabilities, query_label, classes, n_labels)
    return {"f1_macro": float(f1_macro(counts)), "f1_weighted": float(f1_weighted(counts))}


# --- scores of probabilities


def nll(log_probabilities: ArrayLike, query_label: ArrayLike) -> np.ndarray:
    """Negative log-probability of the true class, in nats: (episode, query)."""
    scores = _checked(log_probabilities, query_label)
    return -np.take_along_axis(scores, _array(query_label)[..., None].astype(np.int64), -1)[..., 0]


def cross_entropy(log_probabilities: ArrayLike, soft_label: ArrayLike) -> np.ndarray:
    """Cross-entropy from soft labels to predictions, in nats: (..., way) twice -> (...); `nll` if they are one-hot."""
    soft, scores = _array(soft_label), _array(log_probabilities)
    return -np.where(soft > 0, soft * np.where(soft > 0, scores, 0.0), 0.0).sum(-1)


def divergence(log_probabilities: ArrayLike, soft_label: ArrayLike) -> np.ndarray:
    """Kullback-Leibler divergence from soft labels to predictions, in nats, >= 0: (..., way) twice -> (...)."""
    soft = _array(soft_label)
    return cross_entropy(log_probabilities, soft) - cross_entropy(np.log(np.where(soft > 0, soft, 1.0)), soft)


def calibration_error(
    log_probabilities: ArrayLike,
    query_label: ArrayLike,
    *,
    n_bins: int = 15,
    soft_label: ArrayLike | None = None,
    weight: ArrayLike | None = None,
) -> np.ndarray:
    """Expected calibration error over all queries together, in 0..1: () or, with weights, one per replicate.

    Bins hold equally many queries, save that equal confidences share a bin; so the order of the queries is irrelevant.

    Args:
        log_probabilities: (episode, query, way).
        query_label: (episode, query) int.
        n_bins: bins of equal mass.
        soft_label: (episode, query, way); then the truth of a prediction is its share of the votes.
        weight: (..., episode, query) how often each query counts.

    Source: Naeini et al. 2015, with bins of equal mass after Nguyen & O'Connor 2015.
    """
    scores = _checked(log_probabilities, query_label)
    predicted = scores.argmax(-1)
    confidence = np.exp(scores.max(-1)).ravel()
    if soft_label is None:
        truth = (predicted == _array(query_label)).ravel().astype(np.float64)
    else:
        truth = np.take_along_axis(_array(soft_label), predicted[..., None], -1).ravel()
    weight = np.ones(predicted.shape) if weight is None else _array(weight)
    weight = weight.reshape(*weight.shape[:-2], -1)
    return (np.abs(_bin_sums(confidence - truth, confidence, weight, n_bins)).sum(-1)) / weight.sum(-1)


def concordance(x: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float | np.ndarray:
    """Concordance correlation coefficient (CCC) of two series, in -1..1; 0 where either never varies.

    2 cov / (var x + var y + (mean x - mean y)^2), all with population variance.

    Args:
        x: any shape.
        y: as `x`.
        weight: (..., *shape of x) how often each pair counts; then one number per replicate, (...). Once each if None.

    Source: Lin 1989.
    """
    x, y = _array(x).astype(np.float64), _array(y).astype(np.float64)
    counts = np.ones((1, x.size)) if weight is None else _array(weight)
    counts = counts.reshape(*counts.shape[: counts.ndim - (1 if weight is None else x.ndim)], x.size)
    total, far = counts.sum(-1), x.mean() - y.mean()
    rounding = [(1e-14 * np.abs(part).max(initial=0)) ** 2 for part in (x, y)]
    x, y = (part.ravel() - part.mean() for part in (x, y))  # centred first: variances are then free of cancellation
    mean_x, mean_y = (_ratio(counts @ part, total) for part in (x, y))
    var_x, var_y, both = (_ratio(counts @ part, total) for part in (x * x, y * y, x * y))
    var_x, var_y = _spread(var_x, mean_x, rounding[0]), _spread(var_y, mean_y, rounding[1])
    varies = (var_x > 0) & (var_y > 0)
    found = np.where(varies, _ratio(2 * (both - mean_x * mean_y), var_x + var_y + (mean_x - mean_y + far) ** 2), 0.0)
    return float(found[0]) if weight is None else found


def _spread(square: np.ndarray, mean: np.ndarray, rounding: float) -> np.ndarray:
    """Variance from the mean of squares; what is rounding alone is 0."""
    variance = square - mean**2
    return np.where(variance > rounding + 1e-13 * mean**2, variance, 0.0)


# --- how sure


def half_width(values: ArrayLike) -> float:
    """Half width of the 95 % t-interval of the mean of independent values.

    Over episodes it takes the clips as given: episodes share clips, so it is too narrow as a statement about new
    people (Lafargue et al. 2024). `cluster_bootstrap` is the answer to that.

    Raises:
        ResultError: if there are fewer than two values.
    """
    values = _array(values).ravel()
    if values.size < 2:
        raise ResultError(f"{values.size} episode(s) have no interval", expected="at least 2 episodes")
    return float(stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / np.sqrt(values.size))


def cluster_bootstrap(
    statistic: Statistic, subject: ArrayLike, rng: np.random.Generator, *, n_replicates: int = 1000
) -> Interval:
    """95 % percentile interval when the query subjects, not the queries, are drawn anew with replacement.

    Args:
        statistic: from query weights (replicate, episode, query) to (replicate,).
        subject: (episode, query) the subject of each query, names or numbers.
        rng: where the draws come from.
        n_replicates: draws.

    Source: Field & Welsh 2007, the cluster bootstrap.
    """
    names, code = np.unique(_array(subject), return_inverse=True)
    if names.size < 2:
        return Interval(None, None, f"{names.size} query subject: nothing to resample")
    code = code.reshape(np.shape(subject))
    draws = _draws(names.size, rng, n_replicates)
    n_blocks = max(1, -(-n_replicates * code.size // _BLOCK))
    return _percentiles(np.concatenate([statistic(block[:, code]) for block in np.array_split(draws, n_blocks)]))


def ratio_bootstrap(
    sums: ArrayLike, totals: ArrayLike, rng: np.random.Generator, *, n_replicates: int = 1000
) -> Interval:
    """`cluster_bootstrap` of a mean over queries, from each subject's sum and number of queries: (subject,) twice."""
    sums, totals = _array(sums).astype(np.float64), _array(totals).astype(np.float64)
    if sums.size < 2:
        return Interval(None, None, f"{sums.size} query subject: nothing to resample")
    draws = _draws(sums.size, rng, n_replicates)
    return _percentiles((draws @ sums) / (draws @ totals))


def paired_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Mean of a - b over identical episodes, (episode,) twice, and the half width of its 95 % t-interval.

    Raises:
        ResultError: if the numbers of episodes differ or are below two.
    """
    a, b = _array(a), _array(b)
    if a.shape != b.shape:
        raise ResultError(f"{a.size} and {b.size} episodes cannot be paired", expected="the same episodes twice")
    return float((a - b).mean()), half_width(a - b)


# --- all of it


def summarise(
    log_probabilities: ArrayLike,
    query_label: ArrayLike,
    classes: ArrayLike,
    subject: ArrayLike,
    *,
    n_labels: int,
    pool_f1: bool,
    rng: np.random.Generator,
    accuracies: Mapping[str, ArrayLike] | None = None,
    n_replicates: int = 1000,
) -> Summary:
    """Every metric of a record, with its intervals.

    Args:
        log_probabilities: (episode, query, way).
        query_label: (episode, query) int in 0..way-1.
        classes: (episode, way) int, the data set's label of each local class.
        subject: (episode, query) subject of each query.
        n_labels: labels of the data set.
        pool_f1: F1 over all queries by the data set's label (Regimes P, D) instead of per episode (Regime C).
        rng: for the bootstrap.
        accuracies: name -> log-probabilities (episode, query, way) of other readings of the same queries, such as
            zero steps.
        n_replicates: of the bootstrap.

    Raises:
        ResultError: on NaN, on labels outside 0..way-1, or fewer than two episodes.
    """
    scores, label = _checked(log_probabilities, query_label), _array(query_label)
    query_means = {"accuracy": (scores.argmax(-1) == label).astype(np.float64), "nll": nll(scores, label)}
    for name, other in (accuracies or {}).items():
        query_means[name] = (_checked(other, label).argmax(-1) == label).astype(np.float64)
    statistics = {name: _query_mean(values) for name, values in query_means.items()}
    statistics["uar"] = _episode_mean(uar, scores.argmax(-1), label, scores.shape[-1])
    per_episode = {name: values.mean(-1) for name, values in query_means.items()}
    counts = class_counts(scores.argmax(-1), label, scores.shape[-1])
    per_episode["uar"] = uar(counts)
    pair = _global(scores, label, classes)
    for name, score in (("f1_macro", f1_macro), ("f1_weighted", f1_weighted)):
        if pool_f1:
            statistics[name] = _pooled(score, *pair, n_labels)
        else:
            statistics[name] = _episode_mean(score, scores.argmax(-1), label, scores.shape[-1])
            per_episode[name] = score(counts)
    statistics["ece"] = lambda weight: calibration_error(scores, label, weight=weight)
    return summary_of(statistics, per_episode, query_means, subject, rng, n_replicates=n_replicates)


def summary_of(
    statistics: Mapping[str, Statistic],
    per_episode: Mapping[str, np.ndarray],
    query_means: Mapping[str, np.ndarray],
    subject: ArrayLike,
    rng: np.random.Generator,
    *,
    n_replicates: int = 1000,
) -> Summary:
    """Statistics with the intervals that each of them can have.

    Args:
        statistics: name -> function of query weights.
        per_episode: name -> (episode,), for the metrics that have one number per episode.
        query_means: name -> (episode, query), for those that are means over queries.
        subject: (episode, query) subject of each query.
        rng: for the bootstrap.
        n_replicates: of the bootstrap.
    """
    once = np.ones((1, *np.shape(subject)))
    intervals = {name: cluster_bootstrap(s, subject, rng, n_replicates=n_replicates) for name, s in statistics.items()}
    points = {name: float(s(once)[0]) for name, s in statistics.items()}
    return Summary(
        {name: _estimate(points[name], per_episode.get(name), intervals[name]) for name in statistics},
        {name: values.tolist() for name, values in per_episode.items()},
        _subject_sums(query_means, subject),
    )


def _estimate(mean: float, values: np.ndarray | None, interval: Interval) -> dict[str, float | str | None]:
    return {
        "mean": mean,
        "ci95": None if values is None else half_width(values),
        "subject_low": interval.low,
        "subject_high": interval.high,
        "subject_reason": interval.reason,
    }


def _subject_sums(query_means: Mapping[str, np.ndarray], subject: ArrayLike) -> dict[str, list]:
    names, code = np.unique(_array(subject), return_inverse=True)
    sums = {name: np.bincount(code.ravel(), values.ravel()).tolist() for name, values in query_means.items()}
    return {"subjects": [str(name) for name in names], "total": np.bincount(code.ravel()).tolist(), **sums}


def _query_mean(values: np.ndarray) -> Statistic:
    return lambda weight: (weight * values).sum((-2, -1)) / weight.sum((-2, -1))


def _episode_mean(score: Callable, predicted: np.ndarray, label: np.ndarray, n_way: int) -> Statistic:
    """Mean of a score over episodes; an episode counts as often as its queries were drawn."""

    def statistic(weight: np.ndarray) -> np.ndarray:
        mass = weight.sum(-1)
        return (mass * score(class_counts(predicted, label, n_way, weight))).sum(-1) / mass.sum(-1)

    return statistic


def _pooled(score: Callable, predicted: np.ndarray, label: np.ndarray, n_labels: int) -> Statistic:
    return lambda weight: score(class_counts(predicted, label, n_labels, weight).sum(-3))


def _global(scores: np.ndarray, query_label: ArrayLike, classes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true label in the data set's numbering, (episode, query) each."""
    classes = _array(classes)
    return tuple(np.take_along_axis(classes, local, 1) for local in (scores.argmax(-1), _array(query_label)))


def _bin_sums(gap: np.ndarray, confidence: np.ndarray, weight: np.ndarray, n_bins: int) -> np.ndarray:
    """Weighted sums of `gap` in bins of equal mass of `confidence`: (query,) twice, (..., query) -> (..., bin)."""
    ranked = np.sort(confidence)
    edges = np.unique(ranked[np.arange(1, n_bins) * ranked.size // n_bins])
    bins = np.searchsorted(edges, confidence, side="right")
    return (weight * gap) @ np.eye(edges.size + 1)[bins]


def _draws(n_subjects: int, rng: np.random.Generator, n_replicates: int) -> np.ndarray:
    """How often each subject is drawn: (replicate, subject) float64."""
    return rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), n_replicates).astype(np.float64)


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _f1(counts: np.ndarray) -> np.ndarray:
    return _ratio(2 * counts[..., 0], counts[..., 1] + counts[..., 2])


def _ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """part / whole, and 0 where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole != 0)


def _array(x: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(x, Tensor):
        x = x.detach().cpu().numpy()
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _checked(log_probabilities: ArrayLike, query_label: ArrayLike) -> np.ndarray:
    """The log-probabilities as (episode, query, way) float64, refused where an argmax would hide an error."""
    scores, label = _array(log_probabilities), _array(query_label)
    if scores.ndim != 3 or scores.shape[:2] != label.shape:
        raise ResultError(
            f"log-probabilities of shape {scores.shape} do not fit labels of shape {label.shape}",
            expected="(episode, query, way) and (episode, query)",
        )
    if np.isnan(scores).any():
        episode = int(np.argwhere(np.isnan(scores))[0, 0])
        raise ResultError("a log-probability is NaN", expected="numbers", where=f"episode {episode} of this evaluation")
    if label.size and not (0 <= label.min() and label.max() < scores.shape[-1]):
        raise ResultError(
            f"query labels run from {label.min()} to {label.max()}", expected=f"0 to {scores.shape[-1] - 1}"
        )
    return scores
