"""Scores over time: against slow loops that follow the definitions, and where there is nothing to count."""

from itertools import permutations

import numpy as np
import pytest

from stf2m_core.errors import ResultError
from stf2m_core.segment_metrics import METRICS, OVERLAPS, Score, counts, differences, in_words, runs, scores


def rng():
    return np.random.default_rng(0)


def sequences(n, length, n_labels, seed, stay=0.8, unlabelled=0.1):
    """(sequence, frame) labels that stay a while, some frames -1."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(n_labels, size=(n, length))
    for t in range(1, length):
        labels[:, t] = np.where(draw.random(n) < stay, labels[:, t - 1], labels[:, t])
    return np.where(draw.random((n, length)) < unlabelled, -1, labels)


def slow_runs(labels):
    """[(first, stop, label)] of one sequence."""
    found, first = [], 0
    for t in range(1, len(labels) + 1):
        if t == len(labels) or labels[t] != labels[first]:
            if labels[first] >= 0:
                found.append((first, t, labels[first]))
            first = t
    return found


def slow_segments(predicted, truth, least):
    """(hits, predicted segments, true segments): each prediction takes the true segment of its label with the largest
    intersection over union, in order, and a true segment is hit once."""
    said, true = slow_runs(predicted), slow_runs(truth)
    hit = set()
    for first, stop, label in said:
        best, which = 0.0, None
        for number, (a, b, other) in enumerate(true):
            shared = len(set(range(first, stop)) & set(range(a, b)))
            overlap = shared / len(set(range(first, stop)) | set(range(a, b))) if label == other else 0.0
            if overlap > best:
                best, which = overlap, number
        if which is not None and best >= least - 1e-9:
            hit.add(which)
    return len(hit), len(said), len(true)


def slow_boundaries(predicted, truth, hop, tolerance):
    """(most pairs, predicted, true), by trying every order in which the shorter list may be matched."""

    def places(labels):
        return [t for t in range(1, len(labels)) if labels[t - 1] != labels[t] and min(labels[t - 1 : t + 1]) >= 0]

    said, true = places(predicted), places(truth)
    few, many = sorted((said, true), key=len)
    many = many + [10**6] * len(few)
    best = 0
    for order in permutations(range(len(many)), len(few)):
        near = (abs(a - many[i]) * hop <= tolerance + 1e-9 for a, i in zip(few, order, strict=True))
        best = max(best, sum(near))
        if best == len(few):
            break
    return best, len(said), len(true)


@pytest.mark.parametrize("seed", range(6))
def test_frames_and_segments_are_counted_as_the_definition_says(seed):
    truth, predicted = sequences(20, 25, 3, seed), sequences(20, 25, 3, seed + 100, unlabelled=0.05)
    found = counts(predicted, truth, 0.5, 1.0)
    for row in range(20):
        told = np.where(truth[row] >= 0, predicted[row], -1)
        assert found[row, 0].tolist() == [sum((truth[row] >= 0) & (predicted[row] == truth[row])), sum(truth[row] >= 0)]
        for number, least in enumerate(OVERLAPS):
            hits, n_said, n_true = slow_segments(told, truth[row], least)
            assert found[row, 1 + number].tolist() == [2 * hits, n_said + n_true], (row, least)


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.5])
def test_boundaries_are_matched_one_to_one_as_well_as_any_matching_can(tolerance):
    truth, predicted = (sequences(30, 14, 3, seed, stay=0.75) for seed in (7, 8))
    found = counts(predicted, truth, 0.5, tolerance)
    compared = 0
    for row in range(30):
        told = np.where(truth[row] >= 0, predicted[row], -1)
        hits, n_said, n_true = slow_boundaries(told, truth[row], 0.5, tolerance)
        if max(n_said, n_true) <= 5:
            compared += 1
            assert found[row, 4:].tolist() == [[hits, n_said], [hits, n_true], [2 * hits, n_said + n_true]], row
    assert compared >= 15


def test_one_true_boundary_is_not_hit_twice():
    truth, predicted = np.array([[0] * 5 + [1] * 5]), np.array([[0] * 4 + [2] * 2 + [1] * 4])
    assert counts(predicted, truth, 1.0, 1.0)[0, 4].tolist() == [1, 2]


def test_a_boundary_at_exactly_the_tolerance_is_hit_and_one_beyond_it_is_not():
    truth = np.array([[0] * 6 + [1] * 6])
    for shift, hits in ((3, 1), (4, 0)):
        predicted = np.array([[0] * (6 + shift) + [1] * (6 - shift)])
        assert counts(predicted, truth, 0.1, 0.3)[0, 4, 0] == hits


def test_boundaries_of_one_clip_never_meet_those_of_the_next():
    truth = np.array([[0] * 9 + [1], [0] * 10])
    predicted = np.array([[0] * 10, [0] + [1] * 9])
    assert counts(predicted, truth, 1.0, 100.0)[:, 4:6, 0].sum() == 0


def test_the_truth_scores_one_in_everything():
    truth = sequences(12, 40, 4, 3)
    found = scores(counts(truth, truth, 0.25, 0.0), np.arange(12) % 4, rng())
    assert {name: score.value for name, score in found.items()} == dict.fromkeys(METRICS, 1.0)


def test_renaming_the_labels_and_reversing_time_change_nothing():
    truth, predicted = sequences(10, 30, 4, 1), sequences(10, 30, 4, 2)
    found = counts(predicted, truth, 0.5, 1.0)
    swap = np.array([2, 0, 3, 1, -1])  # the last entry serves -1
    np.testing.assert_array_equal(counts(swap[predicted], swap[truth], 0.5, 1.0), found)
    totals = counts(predicted[:, ::-1], truth[:, ::-1], 0.5, 1.0).sum(0)
    np.testing.assert_array_equal(totals[[0, 3, 4, 5, 6]], found.sum(0)[[0, 3, 4, 5, 6]])


def test_a_segment_does_not_reach_across_unlabelled_time():
    row, first, stop, label = runs(np.array([[1, 1, -1, 1], [-1, -1, -1, -1]]))
    assert (row.tolist(), first.tolist(), stop.tolist(), label.tolist()) == ([0, 0], [0, 3], [2, 4], [1, 1])
    truth, predicted = np.array([[1, 1, -1, 1]]), np.array([[1, 1, 1, 1]])
    assert counts(predicted, truth, 1.0, 0.0)[0, 3].tolist() == [4, 4]


def test_who_says_nothing_is_never_right_and_has_no_segment():
    found = counts(np.full((1, 6), -1), np.array([[0, 0, 0, 1, 1, 1]]), 1.0, 1.0)[0]
    assert found[:, 0].sum() == 0
    assert found[:, 1].tolist() == [6, 2, 2, 2, 0, 1, 1]


def test_without_any_boundary_boundary_scores_are_undefined_and_not_perfect():
    found = scores(counts(np.zeros((3, 5), int), np.zeros((3, 5), int), 1.0, 1.0), np.arange(3), rng())
    assert found["segment F1@50"].value == 1.0
    assert found["boundary F1"] == Score(None, None, None, "nothing to count")
    assert in_words({"model": found})[0]["boundary recall"] == "undefined"


def test_a_label_that_is_absent_from_the_truth_costs_its_segments():
    found = counts(np.array([[0, 0, 5, 5]]), np.array([[0, 0, 0, 0]]), 1.0, 0.0)[0]
    assert found[1:4].tolist() == [[2, 3], [2, 3], [2, 3]]


def test_who_flickers_finds_frames_but_no_segments():
    truth = np.zeros((1, 40), int)
    predicted = np.where(np.arange(40) % 4 == 3, 1, 0)[None]
    found = scores(counts(predicted, truth, 0.25, 1.0), np.zeros(1), rng())
    assert found["frame accuracy"].value == 0.75
    assert found["segment F1@10"].value == 0.0


def test_intervals_are_over_subjects_and_their_clips_stay_together():
    truth = np.zeros((40, 10), int)
    right = np.repeat([1, 0, 1, 0], 10)  # two people are read well, two not
    predicted = np.where(right[:, None] == 1, 0, 1) * np.ones((1, 10), int)
    wide = scores(counts(predicted, truth, 1.0, 1.0), np.repeat(np.arange(4), 10), rng())["frame accuracy"]
    narrow = scores(counts(predicted, truth, 1.0, 1.0), np.arange(40), rng())["frame accuracy"]
    assert (wide.value, wide.low, wide.high) == (0.5, 0.0, 1.0)
    assert 0.3 < narrow.low < 0.4 and 0.6 < narrow.high < 0.7


def test_one_subject_has_no_interval_and_the_reason_is_said():
    found = scores(counts(np.zeros((2, 5), int), np.zeros((2, 5), int), 1.0, 1.0), np.zeros(2), rng())["frame accuracy"]
    assert (found.value, found.low, found.reason) == (1.0, None, "1 subject: nothing to resample")
    assert found.text() == "1.00"


def test_a_difference_is_paired_so_that_what_is_hard_for_both_cancels():
    truth = np.zeros((30, 20), int)
    draw = np.random.default_rng(4)
    worse = np.where(draw.random((30, 1)) < 0.5, 1, 0) * np.ones((1, 20), int)
    better = worse.copy()
    better[:, :2] = 0
    pair = [counts(made, truth, 1.0, 1.0) for made in (better, worse)]
    gap = differences(*pair, np.arange(30), rng())["frame accuracy"]
    alone = scores(pair[0], np.arange(30), rng())["frame accuracy"]
    assert gap.value == pytest.approx(0.1 * (worse[:, 0] == 1).mean())
    assert gap.high - gap.low < 0.2 * (alone.high - alone.low)
    assert gap.low > 0


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(ResultError, match=r"predictions of shape \(1, 3\) and truth of shape \(1, 4\)"):
        counts(np.zeros((1, 3), int), np.zeros((1, 4), int), 1.0, 1.0)
    with pytest.raises(ResultError, match="3 and 2 sequences cannot be paired"):
        differences(np.ones((3, 7, 2)), np.ones((2, 7, 2)), np.arange(3), rng())
