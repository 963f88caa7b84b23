"""Scores of labels over time: label sequences enter, frame accuracy, segmental F1 and boundary F1 with intervals leave.

Frames are steps of a regular clock. A segment is a longest run of one label, a boundary the change from one label to
another. Every score is a ratio of counts, so that clips are added up and not averaged: a clip without boundaries says
nothing of boundaries and is no perfect score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from stf2m_core.errors import ResultError

OVERLAPS = (0.1, 0.25, 0.5)
"""Least intersection over union at which a predicted segment is a hit."""
METRICS = ("frame accuracy", *(f"segment F1@{100 * o:g}" for o in OVERLAPS), "boundary precision", "boundary recall",
           "boundary F1")  # fmt: skip
_FUZZ = 1e-9


@dataclass(frozen=True, slots=True)
class Score:
    """A score with its 95 % interval over subjects; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None

    def text(self, digits: int = 2) -> str:
        """As in tables."""
        if self.value is None:
            return "undefined"
        value, low, high = (
            "" if part is None else f"{part:.{digits}f}".replace("-", "−") for part in (self.value, self.low, self.high)
        )
        return f"{value} [{low}, {high}]" if low else value


def counts(predicted: np.ndarray, truth: np.ndarray, hop_s: float, tolerance_s: float) -> np.ndarray:
    """What each sequence adds to each metric's ratio: (sequence, metric, 2) float64, part and whole.

    Args:
        predicted: (sequence, frame) int, -1 where nothing is said, which is never right.
        truth: (sequence, frame) int, -1 where unlabelled or beyond the end; such frames are not looked at, and a
            segment does not reach across them.
        hop_s: seconds from one frame to the next.
        tolerance_s: how far a predicted boundary may be from the true one that it is matched with.

    Returns:
        In the order of `METRICS`: hits of frames; twice the hits of segments over all segments, predicted and true, at
        each overlap (Lea et al. 2017); hits of boundaries over predicted ones, over true ones, and twice over both.

    Raises:
        ResultError: if the shapes differ, or there is no frame.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or truth.ndim != 2 or truth.size == 0:
        raise ResultError(f"predictions of shape {predicted.shape} and truth of shape {truth.shape}",
                          expected="(sequence, frame) twice, at least one")  # fmt: skip
    scored = truth >= 0
    predicted = np.where(scored, predicted, -1)
    parts = [np.stack([(scored & (predicted == truth)).sum(1), scored.sum(1)], 1)]
    parts += _segment_hits(predicted, truth)
    hits, told, true = _boundary_hits(predicted, truth, hop_s, tolerance_s)
    parts += [np.stack(pair, 1) for pair in ((hits, told), (hits, true), (2 * hits, told + true))]
    return np.stack(parts, 1).astype(np.float64)


def runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Longest runs of one label, row by row: (run,) row, first frame, one past the last, label; without those of -1.

    Args:
        labels: (sequence, frame) int.
    """
    change = np.ones(labels.shape, bool)
    change[:, 1:] = labels[:, 1:] != labels[:, :-1]
    row, first = np.nonzero(change)
    flat = np.flatnonzero(change.ravel())
    length = np.diff(np.append(flat, labels.size))
    kept = labels[row, first] >= 0
    row, first, length = row[kept], first[kept], length[kept]
    return row, first, first + length, labels[row, first]


def _segment_hits(predicted: np.ndarray, truth: np.ndarray) -> list[np.ndarray]:
    """For each overlap (sequence, 2): twice the hits, and the segments of both.

    A predicted segment is held against the true one of its label that it overlaps most; a true one is hit once.
    """
    said, true = runs(predicted), runs(truth)
    n_said, n_true = len(said[0]), len(true[0])
    both = (predicted >= 0) & (truth >= 0)
    pair = _run_of(said, truth.shape)[both] * max(n_true, 1) + _run_of(true, truth.shape)[both]
    pair, shared = np.unique(pair, return_counts=True)
    mine, theirs = pair // max(n_true, 1), pair % max(n_true, 1)
    union = (said[2] - said[1])[mine] + (true[2] - true[1])[theirs] - shared
    overlap = np.where(said[3][mine] == true[3][theirs], shared / union, 0.0)
    best = np.zeros(n_said)
    np.maximum.at(best, mine, overlap)
    chosen = np.full(n_said, -1)
    is_best = (overlap == best[mine]) & (overlap > 0)
    chosen[mine[is_best][::-1]] = theirs[is_best][::-1]  # of equal ones the first
    total = np.bincount(said[0], minlength=len(truth)) + np.bincount(true[0], minlength=len(truth))
    hits = [np.unique(chosen[(best >= least - _FUZZ) & (chosen >= 0)]) for least in OVERLAPS]
    return [np.stack([2 * np.bincount(true[0][hit], minlength=len(truth)), total], 1) for hit in hits]


def _run_of(found: tuple[np.ndarray, ...], shape: tuple[int, int]) -> np.ndarray:
    """(sequence, frame) number of the run that each frame belongs to; -1 where there is none."""
    row, first, stop, _ = found
    number = np.full(shape, -1)
    length = stop - first
    at = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + np.repeat(first, length)
    number[np.repeat(row, length), at] = np.repeat(np.arange(len(row)), length)
    return number


def _boundary_hits(
    predicted: np.ndarray, truth: np.ndarray, hop_s: float, tolerance_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sequence,) three times: most pairs of boundaries within the tolerance, each used once; predicted; true."""
    (said_row, said_at), (true_row, true_at) = _boundaries(predicted), _boundaries(truth)
    n_rows, far = len(truth), truth.shape[1] * hop_s + 2 * tolerance_s + 1  # one clip after the other on one clock
    said, true = said_row * far + said_at * hop_s, true_row * far + true_at * hop_s
    low = np.searchsorted(true, said - tolerance_s - _FUZZ)
    high = np.searchsorted(true, said + tolerance_s + _FUZZ)
    count = high - low
    column = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    graph = csr_array((np.ones(len(column)), column, np.concatenate([[0], np.cumsum(count)])),
                      shape=(len(said), len(true)))  # fmt: skip
    matched = maximum_bipartite_matching(graph, perm_type="column") if len(column) else np.full(len(said), -1)
    hits = np.bincount(said_row[matched >= 0], minlength=n_rows)
    return hits, np.bincount(said_row, minlength=n_rows), np.bincount(true_row, minlength=n_rows)


def _boundaries(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(boundary,) row and first frame of the new label; both sides are labelled."""
    before, after = labels[:, :-1], labels[:, 1:]
    row, frame = np.nonzero((before != after) & (before >= 0) & (after >= 0))
    return row, frame + 1


def scores(
    counted: np.ndarray, subject: np.ndarray, rng: np.random.Generator, *, n_replicates: int = 1000
) -> dict[str, Score]:
    """Every metric over all sequences, with a 95 % interval from drawing subjects anew.

    Args:
        counted: (sequence, metric, 2) from `counts`.
        subject: (sequence,) who is seen in it.
        rng: of the draws.
        n_replicates: draws.
    """
    points, drawn, reason = _replicates(counted, subject, rng, n_replicates)
    return {name: _score(points[i], drawn[:, i], reason) for i, name in enumerate(METRICS)}


def differences(
    counted: np.ndarray, against: np.ndarray, subject: np.ndarray, rng: np.random.Generator, *,
    n_replicates: int = 1000,
) -> dict[str, Score]:  # fmt: skip
    """Every metric minus that of another prediction of the same sequences, paired in every draw of subjects.

    Raises:
        ResultError: if the numbers of sequences differ.
    """
    if counted.shape != against.shape:
        raise ResultError(f"{len(counted)} and {len(against)} sequences cannot be paired", expected="the same twice")
    points, drawn, reason = _replicates(np.concatenate([counted, against], 1), subject, rng, n_replicates)
    size = len(METRICS)
    return {
        name: _score(points[i] - points[size + i], drawn[:, i] - drawn[:, size + i], reason)
        for i, name in enumerate(METRICS)
    }


def _replicates(
    counted: np.ndarray, subject: np.ndarray, rng: np.random.Generator, n_replicates: int
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """(metric,) ratios, (replicate, metric) of redrawn subjects, and why there is no interval."""
    names, code = np.unique(subject, return_inverse=True)
    total = np.zeros((len(names), *counted.shape[1:]))
    np.add.at(total, code, counted)
    reason = None if len(names) > 1 else f"{len(names)} subject: nothing to resample"
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_replicates)
    return _ratio(total.sum(0)), _ratio(np.einsum("rs,smp->rmp", draws, total)), reason


def _ratio(counted: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...): part over whole, NaN where there is nothing to count."""
    part, whole = counted[..., 0], counted[..., 1]
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _score(point: float, drawn: np.ndarray, reason: str | None) -> Score:
    if not np.isfinite(point):
        return Score(None, None, None, "nothing to count")
    if reason is not None:
        return Score(float(point), None, None, reason)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Score(float(point), float(low), float(high))


def in_words(rows: Mapping[str, Mapping[str, Score]], digits: int = 2) -> list[dict[str, str]]:
    """{"method": ..., metric: score in words} for each method."""
    return [
        {"method": name} | {metric: score.text(digits) for metric, score in row.items()} for name, row in rows.items()
    ]
