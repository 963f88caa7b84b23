"""Scores against scikit-learn and scipy, and the laws that intervals and calibration must obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

from stf2m_core import metrics
from stf2m_core.errors import ResultError
from stf2m_core.seeding import numpy_generator


@pytest.fixture
def predictions():
    """30 episodes, 4 ways of 7 labels, 13 queries of any class; (log-probabilities, query_label, classes, subject)."""
    rng = numpy_generator(0, "test_metrics")
    logits = torch.from_numpy(rng.normal(size=(30, 13, 4)))
    label = rng.integers(0, 4, (30, 13))
    logits[torch.arange(30)[:, None], torch.arange(13), torch.from_numpy(label)] += 1
    classes = np.stack([rng.permutation(7)[:4] for _ in range(30)])
    return logits.log_softmax(-1), torch.from_numpy(label), torch.from_numpy(classes), rng.integers(0, 6, (30, 13))


def _counts(predictions):
    log_probabilities, label, _, _ = predictions
    return metrics.class_counts(log_probabilities.argmax(-1), label, 4)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (metrics.accuracy, accuracy_score),
        (metrics.uar, lambda t, p: recall_score(t, p, labels=np.unique(t), average="macro")),
        (metrics.f1_macro, lambda t, p: f1_score(t, p, average="macro")),
        (metrics.f1_weighted, lambda t, p: f1_score(t, p, average="weighted")),
    ],
    ids=["accuracy", "uar", "f1_macro", "f1_weighted"],
)
def test_each_episode_scores_as_in_scikit_learn(predictions, ours, reference):
    log_probabilities, label, _, _ = predictions
    predicted = log_probabilities.argmax(-1)
    expected = [reference(t, p) for t, p in zip(label.numpy(), predicted.numpy(), strict=True)]
    np.testing.assert_allclose(ours(_counts(predictions)), expected, atol=1e-12)


def test_scores_stay_defined_when_classes_are_missing_among_the_queries():
    predicted, label = np.array([[0, 0, 2, 2]]), np.array([[0, 0, 0, 2]])
    counts = metrics.class_counts(predicted, label, 4)
    assert metrics.uar(counts)[0] == pytest.approx(recall_score(label[0], predicted[0], average="macro"))
    assert metrics.f1_macro(counts)[0] == pytest.approx(f1_score(label[0], predicted[0], average="macro"))


def test_nll_is_the_log_loss_of_scikit_learn(predictions):
    log_probabilities, label, _, _ = predictions
    expected = log_loss(label.ravel(), log_probabilities.exp().reshape(-1, 4), labels=range(4))
    assert metrics.nll(log_probabilities, label).mean() == pytest.approx(expected, abs=1e-12)


def test_pooled_f1_is_that_of_scikit_learn_over_global_labels(predictions):
    log_probabilities, label, classes, _ = predictions
    true = classes.gather(1, label).ravel()
    predicted = classes.gather(1, log_probabilities.argmax(-1)).ravel()
    ours = metrics.pooled_f1(log_probabilities, label, classes, 7)
    assert ours["f1_macro"] == pytest.approx(f1_score(true, predicted, average="macro"), abs=1e-12)
    assert ours["f1_weighted"] == pytest.approx(f1_score(true, predicted, average="weighted"), abs=1e-12)


def test_renaming_local_classes_changes_no_score(predictions):
    log_probabilities, label, _, _ = predictions
    order = torch.tensor([2, 0, 3, 1])
    renamed = metrics.class_counts(log_probabilities[..., order].argmax(-1), order.argsort()[label], 4)
    for score in (metrics.accuracy, metrics.uar, metrics.f1_macro, metrics.f1_weighted):
        np.testing.assert_allclose(score(renamed), score(_counts(predictions)), atol=1e-12)


def test_half_width_is_the_t_interval_of_scipy():
    values = numpy_generator(1, "t").normal(size=23)
    low, high = stats.t.interval(0.95, 22, values.mean(), stats.sem(values))
    assert metrics.half_width(values) == pytest.approx((high - low) / 2, rel=1e-10)


def test_one_episode_has_no_interval():
    with pytest.raises(ResultError, match=r"1 episode\(s\) have no interval; expected at least 2 episodes"):
        metrics.half_width([0.5])


def test_paired_difference_is_the_paired_t_interval_of_scipy():
    rng = numpy_generator(2, "paired")
    a = rng.normal(size=40)
    b = a + 0.1 * rng.normal(size=40)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, half = metrics.paired_difference(a, b)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert half < metrics.half_width(a) / 3, "pairing removes what the episodes have in common"


def test_unequal_numbers_of_episodes_cannot_be_paired():
    with pytest.raises(ResultError, match="3 and 2 episodes cannot be paired"):
        metrics.paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_cross_entropy_with_one_hot_labels_is_nll(predictions):
    log_probabilities, label, _, _ = predictions
    one_hot = torch.nn.functional.one_hot(label, 4)
    np.testing.assert_allclose(
        metrics.cross_entropy(log_probabilities, one_hot), metrics.nll(log_probabilities, label), atol=1e-12
    )


def test_divergence_is_zero_for_the_truth_and_positive_otherwise(predictions):
    log_probabilities = predictions[0]
    soft = log_probabilities.exp()
    assert np.abs(metrics.divergence(log_probabilities, soft)).max() < 1e-12
    assert metrics.divergence(log_probabilities, soft.flip(0)).min() > 0
    one_hot = np.eye(4)[1]
    with np.errstate(divide="ignore"):
        assert metrics.divergence(np.log(one_hot), one_hot) == 0


def test_concordance_knows_its_landmarks():
    x = numpy_generator(3, "ccc").normal(size=200)
    x -= x.mean()
    assert metrics.concordance(x, x) == pytest.approx(1)
    assert metrics.concordance(x, -x) == pytest.approx(-1)
    assert metrics.concordance(np.ones(5), np.ones(5)) == 0
    assert metrics.concordance(np.ones(200), x) == pytest.approx(0, abs=1e-12)
    assert metrics.concordance(x, x + 1) == pytest.approx(2 * x.var() / (2 * x.var() + 1)), "a shift costs"


def test_concordance_is_pearsons_correlation_times_a_correction_of_bias():  # I-39, by another formula
    rng = numpy_generator(2, "concordance")
    x, y = rng.normal(0.3, 1, 400), rng.normal(-0.2, 2, 400)
    y = y + 0.8 * x
    scale, shift = x.std() / y.std(), (x.mean() - y.mean()) / np.sqrt(x.std() * y.std())
    expected = stats.pearsonr(x, y).statistic * 2 / (scale + 1 / scale + shift**2)
    assert metrics.concordance(x, y) == pytest.approx(expected, abs=1e-12)
    assert metrics.concordance(y.reshape(20, 20), x.reshape(20, 20)) == pytest.approx(expected, abs=1e-12)
    assert metrics.concordance(5 + 1e-3 * x, 5 + 1e-3 * y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e6 / 7])
def test_constants_agree_in_nothing_however_they_are_rounded(value):  # I-39
    for n in range(2, 60):  # the mean of some of these is not the constant itself
        constant = np.full(n, value)
        assert metrics.concordance(constant, constant) == 0
        assert metrics.concordance(constant, np.arange(float(n))) == 0
        assert metrics.concordance(constant, constant, np.full((1, n), 0.3))[0] == 0


def test_concordance_with_weights_is_that_of_repeated_pairs():
    rng = numpy_generator(3, "concordance")
    x, y, times = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.integers(0, 4, (5, 3, 4))
    expected = [metrics.concordance(np.repeat(x, t.ravel()), np.repeat(y, t.ravel())) for t in times]
    np.testing.assert_allclose(metrics.concordance(x, y, times), expected, atol=1e-12)
    assert metrics.concordance(x, y, np.zeros((1, 3, 4)))[0] == 0


def _two_way(confidence, correct):
    """Log-probabilities (1, query, 2) with this confidence in class 0, and labels 0 where it is correct."""
    return np.log(np.stack([confidence, 1 - confidence], -1))[None], np.where(correct, 0, 1)[None]


def test_a_calibrated_simulator_has_no_calibration_error():  # I-40
    rng = numpy_generator(4, "ece")
    errors = []
    for n in (2_000, 200_000):
        confidence = rng.uniform(0.5, 1, n)
        errors.append(metrics.calibration_error(*_two_way(confidence, rng.uniform(size=n) < confidence)))
    assert errors[1] < 0.005
    assert errors[1] < errors[0] / 3, "what is left is noise and falls with the number of queries"


def test_an_always_wrong_simulator_is_off_by_its_confidence():
    confidence = np.full(101, 0.8)
    assert metrics.calibration_error(*_two_way(confidence, np.zeros(101, bool))) == pytest.approx(0.8)
    varied = np.linspace(0.6, 0.9, 100)
    assert metrics.calibration_error(*_two_way(varied, np.zeros(100, bool))) == pytest.approx(0.75)


def test_calibration_error_equals_a_plain_loop_over_sorted_bins():
    rng = numpy_generator(5, "ece loop")
    confidence, correct = rng.uniform(0.5, 1, 150), rng.uniform(size=150) < 0.7
    order = np.argsort(confidence)
    bins = [order[10 * i : 10 * i + 10] for i in range(15)]
    expected = sum(abs(confidence[b].mean() - correct[b].mean()) * 10 / 150 for b in bins)
    assert metrics.calibration_error(*_two_way(confidence, correct)) == pytest.approx(expected, abs=1e-12)


def test_equal_confidences_share_a_bin_whatever_their_order():
    correct = np.arange(100) < 80
    for order in (np.arange(100), numpy_generator(6, "ties").permutation(100)):
        error = metrics.calibration_error(*_two_way(np.full(100, 0.8), correct[order]))
        assert error == pytest.approx(0, abs=1e-12)


def test_soft_labels_count_as_the_share_of_votes():
    log_probabilities, label = _two_way(np.full(10, 0.7), np.ones(10, bool))
    soft = np.broadcast_to([0.7, 0.3], (1, 10, 2))
    assert metrics.calibration_error(log_probabilities, label) == pytest.approx(0.3)
    assert metrics.calibration_error(log_probabilities, label, soft_label=soft) == pytest.approx(0, abs=1e-12)


def test_drawing_every_subject_once_gives_the_estimate_itself(predictions):
    log_probabilities, label, classes, subject = predictions
    rng = numpy_generator(7, "summary")
    once = metrics.summarise(log_probabilities, label, classes, subject, n_labels=7, pool_f1=True, rng=rng)
    assert once.metrics["accuracy"]["mean"] == pytest.approx(metrics.accuracy(_counts(predictions)).mean())
    assert once.metrics["uar"]["mean"] == pytest.approx(metrics.uar(_counts(predictions)).mean())
    assert once.metrics["f1_weighted"]["mean"] == pytest.approx(
        metrics.pooled_f1(log_probabilities, label, classes, 7)["f1_weighted"]
    )
    assert once.metrics["ece"]["mean"] == pytest.approx(float(metrics.calibration_error(log_probabilities, label)))


def test_a_query_drawn_twice_counts_as_two_queries(predictions):
    log_probabilities, label, _, _ = predictions
    weight = numpy_generator(8, "weights").integers(0, 3, label.shape)
    counts = metrics.class_counts(log_probabilities.argmax(-1), label, 4, weight)
    repeats = [np.repeat(np.arange(13), w) for w in weight]
    expected = [
        f1_score(label[e][r], log_probabilities[e].argmax(-1)[r], average="weighted") for e, r in enumerate(repeats)
    ]
    np.testing.assert_allclose(metrics.f1_weighted(counts), expected, atol=1e-12)
    error = metrics.calibration_error(log_probabilities, label, weight=np.stack([np.ones_like(weight)] * 2))
    np.testing.assert_allclose(error, metrics.calibration_error(log_probabilities, label))


def test_subject_interval_equals_a_plain_loop_over_resampled_subjects():
    rng = numpy_generator(9, "loop")
    subject = np.repeat(np.arange(8), 5)[None]
    correct = (rng.uniform(size=(1, 40)) < rng.uniform(size=8)[subject]).astype(float)
    log_probabilities, label = _two_way(np.full(40, 0.9), correct[0] > 0)
    summary = metrics.summarise(
        log_probabilities.repeat(2, 0), label.repeat(2, 0), np.array([[0, 1]] * 2), subject.repeat(2, 0),
        n_labels=2, pool_f1=True, rng=numpy_generator(1, "a"), n_replicates=4000,
    )  # fmt: skip
    means = np.array([correct[subject == s].mean() for s in range(8)])
    loop = [means[rng.integers(0, 8, 8)].mean() for _ in range(4000)]
    low, high = np.percentile(loop, [2.5, 97.5])
    assert summary.metrics["accuracy"]["subject_low"] == pytest.approx(low, abs=0.03)
    assert summary.metrics["accuracy"]["subject_high"] == pytest.approx(high, abs=0.03)
    sums = summary.per_subject
    again = metrics.ratio_bootstrap(sums["accuracy"], sums["total"], numpy_generator(1, "a"), n_replicates=4000)
    assert again.low == pytest.approx(summary.metrics["accuracy"]["subject_low"], abs=1e-9)


def test_blocks_of_replicates_do_not_change_the_interval(predictions, monkeypatch):
    log_probabilities, label, _, subject = predictions
    statistic = metrics._episode_mean(metrics.f1_macro, log_probabilities.argmax(-1).numpy(), label.numpy(), 4)
    whole = metrics.cluster_bootstrap(statistic, subject, numpy_generator(0, "b"), n_replicates=50)
    monkeypatch.setattr(metrics, "_BLOCK", 1000)
    assert metrics.cluster_bootstrap(statistic, subject, numpy_generator(0, "b"), n_replicates=50) == whole


def test_one_query_subject_gives_no_interval_but_a_reason():
    interval = metrics.cluster_bootstrap(lambda weight: weight.sum((1, 2)), [["a", "a"]], numpy_generator(0, "one"))
    assert (interval.low, interval.high) == (None, None)
    assert "1 query subject" in interval.reason
    assert metrics.ratio_bootstrap([3], [4], numpy_generator(0, "one")).reason == interval.reason


def test_summary_keeps_local_labels_apart_in_regime_c(predictions):
    log_probabilities, label, classes, subject = predictions
    rng = numpy_generator(0, "c")
    apart = metrics.summarise(
        log_probabilities, label, classes, subject, n_labels=7, pool_f1=False, rng=rng,
        accuracies={"accuracy_zero_step": torch.zeros(30, 13, 4)}, n_replicates=20,
    )  # fmt: skip
    np.testing.assert_allclose(apart.per_episode["f1_macro"], metrics.f1_macro(_counts(predictions)))
    assert apart.metrics["f1_macro"]["ci95"] == pytest.approx(metrics.half_width(apart.per_episode["f1_macro"]))
    assert apart.metrics["accuracy_zero_step"]["mean"] == pytest.approx(float((label == 0).double().mean()))
    assert apart.metrics["ece"]["ci95"] is None
    assert sum(apart.per_subject["total"]) == label.numel()


@pytest.mark.parametrize(
    ("log_probabilities", "label", "message"),
    [
        (np.full((2, 3, 4), np.nan), np.zeros((2, 3), int), "a log-probability is NaN; expected numbers .in episode 0"),
        (np.zeros((2, 3, 4)), np.full((2, 3), 4), "query labels run from 4 to 4; expected 0 to 3"),
        (np.zeros((2, 3, 4)), np.zeros((3, 2), int), r"\(2, 3, 4\) do not fit labels of shape \(3, 2\)"),
    ],
    ids=["nan", "label", "shape"],
)
def test_predictions_that_an_argmax_would_hide_are_refused(log_probabilities, label, message):
    with pytest.raises(ResultError, match=message):
        metrics.nll(log_probabilities, label)


def _coverage(rng, *, shared: bool, n_simulations: int = 600) -> float:
    """How often the t-interval over 40 episodes of 20 queries covers the population's accuracy of .7.

    Shared: all episodes of one simulation draw their queries from the same 60 clips, as in practice.
    """
    if shared:
        clips = (rng.uniform(size=(n_simulations, 60)) < 0.7).astype(float)
        drawn = rng.integers(0, 60, (n_simulations, 40 * 20))
        correct = np.take_along_axis(clips, drawn, 1).reshape(n_simulations, 40, 20)
    else:
        correct = (rng.uniform(size=(n_simulations, 40, 20)) < 0.7).astype(float)
    episodes = correct.mean(-1)
    return float(np.mean([abs(e.mean() - 0.7) <= metrics.half_width(e) for e in episodes]))


def test_the_episode_interval_covers_when_episodes_are_independent_and_not_when_they_share_clips():  # I-41
    rng = numpy_generator(10, "coverage")
    assert 0.92 <= _coverage(rng, shared=False) <= 0.98
    assert _coverage(rng, shared=True) < 0.6


def test_the_subject_interval_covers_where_the_episode_interval_does_not():
    rng = numpy_generator(11, "subjects")
    n_subjects, n_queries, covered = 30, 20, []
    for _ in range(300):
        skill = rng.beta(7, 3, n_subjects)
        hits = rng.binomial(n_queries, skill)
        interval = metrics.ratio_bootstrap(hits, np.full(n_subjects, n_queries), rng, n_replicates=400)
        covered.append(interval.low <= 0.7 <= interval.high)
    assert 0.88 <= np.mean(covered) <= 0.98
