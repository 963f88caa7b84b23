"""Scores against soft labels, each beside scipy's or scikit-learn's own and at values known by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from scipy.stats import pearsonr
from sklearn.metrics import brier_score_loss

from stf2m_core.errors import ResultError
from stf2m_core.metrics import calibration_error, cross_entropy, divergence, half_width, ratio_bootstrap
from stf2m_core.seeding import numpy_generator
from stf2m_core.soft_metrics import (
    brier,
    entropy,
    entropy_correlation,
    jensen_shannon,
    plurality_agreement,
    soft_calibration_error,
    summarise,
    tied,
    tied_share,
)


def some(n_clips=300, n_emotions=6, seed=0):
    """Predictions (log) and counts that have to do with them."""
    rng = np.random.default_rng(seed)
    said = rng.dirichlet(np.full(n_emotions, 0.5), n_clips) * 0.98 + 0.02 / n_emotions
    counts = np.stack([rng.multinomial(10, p) for p in said])
    return np.log(said), counts, counts / 10


def test_the_divergence_is_scipys():
    said, _, soft = some()
    expected = [scipy_entropy(q, p) for q, p in zip(soft, np.exp(said), strict=True)]
    np.testing.assert_allclose(divergence(said, soft), expected, atol=1e-12)


def test_the_divergence_is_never_negative_and_zero_for_the_labels_themselves():  # I-38
    said, _, soft = some()
    assert (divergence(said, soft) > 0).all()
    np.testing.assert_allclose(divergence(said, np.exp(said)), 0, atol=1e-12)
    np.testing.assert_allclose(cross_entropy(said, soft) - divergence(said, soft), entropy(soft), atol=1e-12)


def test_the_jensen_shannon_divergence_is_scipys_squared_distance():
    said, _, soft = some()
    expected = [jensenshannon(q, p) ** 2 for q, p in zip(soft, np.exp(said), strict=True)]
    np.testing.assert_allclose(jensen_shannon(said, soft), expected, atol=1e-12)


def test_the_jensen_shannon_divergence_is_symmetric_and_log_two_where_nothing_is_shared():
    said, _, soft = some()
    np.testing.assert_allclose(jensen_shannon(said, soft), jensen_shannon(np.log(soft + 1e-300), np.exp(said)),
                               atol=1e-12)  # fmt: skip
    apart = jensen_shannon(np.log([[1.0, 1e-300]]), [[0.0, 1.0]])
    assert apart.item() == pytest.approx(np.log(2))
    assert jensen_shannon(said, np.exp(said)).max() < 1e-12


def test_the_brier_score_of_hard_labels_is_scikit_learns():
    said, counts, _ = some()
    hard = counts.argmax(-1)
    expected = brier_score_loss(hard, np.exp(said), labels=np.arange(6), scale_by_half=False)
    assert brier(said, np.eye(6)[hard]).mean() == pytest.approx(expected)


def test_the_brier_score_is_two_for_a_certain_error_and_zero_for_the_truth():
    assert brier(np.log([[1.0, 1e-300]]), [[0.0, 1.0]]).item() == pytest.approx(2)
    said, _, _ = some()
    assert brier(said, np.exp(said)).max() < 1e-12


def test_the_entropy_is_scipys():
    _, _, soft = some()
    np.testing.assert_allclose(entropy(soft), [scipy_entropy(q) for q in soft], atol=1e-12)


def test_a_calibrated_simulator_has_next_to_no_calibration_error_and_a_boastful_one_has_its_boast():  # I-40
    said, counts, soft = some(20000)
    assert soft_calibration_error(said, soft) < 0.005
    sharp = np.log(np.exp(3 * said) / np.exp(3 * said).sum(-1, keepdims=True))
    assert soft_calibration_error(sharp, soft) > 0.05
    wrong = np.log(np.tile([1 - 5e-12, *[1e-12] * 5], (50, 1)))
    assert soft_calibration_error(wrong, np.tile([0.0, 1, 0, 0, 0, 0], (50, 1))) == pytest.approx(2 / 6)


def test_the_calibration_error_is_that_of_a_slow_loop_over_bins():
    said, _, soft = some(100)
    flat, true = np.exp(said).ravel(), soft.ravel()
    order = np.argsort(flat)
    total = sum(abs(flat[part].sum() - true[part].sum()) for part in np.split(order, [200, 400]))
    assert soft_calibration_error(said, soft, n_bins=3) == pytest.approx(total / 600)


def test_the_entropy_correlation_is_scipys():
    said, _, soft = some()
    expected = pearsonr(entropy(np.exp(said)), entropy(soft)).statistic
    assert entropy_correlation(said, soft) == pytest.approx(expected)
    assert 0.2 < expected < 0.99


def test_the_entropy_correlation_of_a_prediction_that_never_varies_is_zero():
    _, _, soft = some()
    assert entropy_correlation(np.full(soft.shape, -np.log(6)), soft) == 0


def test_tied_votes_have_no_plurality_and_are_left_out():
    said = np.log([[0.6, 0.4], [0.6, 0.4], [0.3, 0.7]])
    assert plurality_agreement(said, [[5, 5], [3, 7], [2, 8]]) == 0.5
    with pytest.raises(ResultError, match="all 1 clips have tied votes"):
        plurality_agreement(said[:1], [[5, 5]])


@pytest.mark.parametrize("score", [jensen_shannon, brier, soft_calibration_error, entropy_correlation])
def test_what_does_not_fit_or_is_no_number_is_refused(score):
    said, _, soft = some()
    with pytest.raises(ResultError, match=r"shape \(300, 6\) do not fit soft labels of shape \(300, 5\)"):
        score(said, soft[:, :5])
    with pytest.raises(ResultError, match="is NaN"):
        score(np.where(said < said.max(), said, np.nan), soft)


def test_the_entropy_correlation_with_weights_is_that_of_repeated_clips():
    said, _, soft = some(60)
    times = np.random.default_rng(3).integers(0, 4, (5, 60))
    expected = [entropy_correlation(np.repeat(said, t, 0), np.repeat(soft, t, 0)) for t in times]
    np.testing.assert_allclose(entropy_correlation(said, soft, times), expected, atol=1e-12)
    assert entropy_correlation(said, soft, np.zeros((1, 60)))[0] == 0


# --- all of it, for a record


def episodes(n_episodes=20, n_query=15, seed=0):
    """(log-probabilities, soft labels, weights, subjects) of episodes; a few queries weigh nothing."""
    said, _, soft = some(n_episodes * n_query, seed=seed)
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random((n_episodes, n_query)) < 0.1, 0, rng.uniform(0.5, 1, (n_episodes, n_query)))
    shape = (n_episodes, n_query, 6)
    return said.reshape(shape), soft.reshape(shape), weight, rng.integers(0, 7, (n_episodes, n_query))


def test_a_query_counts_as_much_as_its_votes_lie_within_the_episode():
    said, soft, weight, subject = episodes()
    found = summarise(said, soft, weight, subject, rng=numpy_generator(0, "soft"), n_replicates=20)
    flat, share = weight.ravel(), weight.ravel() / weight.sum()
    expected = {
        "kl_soft": [scipy_entropy(q, p) for q, p in zip(soft.reshape(-1, 6), np.exp(said).reshape(-1, 6), strict=True)],
        "js_soft": jensen_shannon(said, soft).ravel(),
        "brier_soft": brier(said, soft).ravel(),
    }
    for name, values in expected.items():
        assert found.metrics[name]["mean"] == pytest.approx(float(share @ values), abs=1e-12), name
    whole = np.round(flat * 1000).astype(int)  # weights as numbers of copies
    again = entropy_correlation(np.repeat(said.reshape(-1, 6), whole, 0), np.repeat(soft.reshape(-1, 6), whole, 0))
    assert found.metrics["entropy_correlation"]["mean"] == pytest.approx(again, abs=1e-3)
    none = np.zeros(weight.shape, int)
    ece = calibration_error(said, none, soft_label=soft, weight=weight[None])[0]
    assert found.metrics["ece_soft"]["mean"] == pytest.approx(ece)


def test_what_weighs_nothing_changes_nothing():
    said, soft, weight, subject = episodes()
    other = np.where(weight[..., None] > 0, said, np.log(np.full(6, 1 / 6)))
    a, b = (summarise(x, soft, weight, subject, rng=numpy_generator(0, "soft"), n_replicates=20) for x in (said, other))
    same = ("kl_soft", "js_soft", "brier_soft", "entropy_correlation")
    assert [a.metrics[n]["mean"] for n in same] == pytest.approx([b.metrics[n]["mean"] for n in same], abs=1e-12)


def test_means_over_queries_have_both_intervals_and_the_sums_that_give_the_second():
    said, soft, weight, subject = episodes()
    found = summarise(said, soft, weight, subject, rng=numpy_generator(0, "soft"), others={"prototype": said / 2})
    names = ["kl_soft", "js_soft", "brier_soft", "kl_soft_prototype"]
    assert set(found.metrics) == {*names, "ece_soft", "entropy_correlation"}
    assert set(found.per_episode) == set(names) and len(found.per_episode["kl_soft"]) == 20
    kl, sums = found.metrics["kl_soft"], found.per_subject
    assert kl["ci95"] == pytest.approx(half_width(found.per_episode["kl_soft"]))
    assert sum(sums["kl_soft"]) / sum(sums["total"]) == pytest.approx(kl["mean"])
    interval = ratio_bootstrap(sums["kl_soft"], sums["total"], numpy_generator(1, "soft"), n_replicates=4000)
    assert (kl["subject_low"], kl["subject_high"]) == pytest.approx((interval.low, interval.high), abs=0.02)
    assert kl["subject_low"] < kl["mean"] < kl["subject_high"]
    assert found.metrics["ece_soft"]["ci95"] is None and found.metrics["ece_soft"]["subject_low"] is not None


def test_an_episode_without_any_weight_leaves_no_interval_over_episodes():
    said, soft, weight, subject = episodes()
    weight[3] = 0
    found = summarise(said, soft, weight, subject, rng=numpy_generator(0, "soft"), n_replicates=20)
    assert (found.per_episode, found.metrics["kl_soft"]["ci95"]) == ({}, None)
    assert np.isfinite(found.metrics["kl_soft"]["mean"])
    with pytest.raises(ResultError, match="no query has half of its votes among the classes of its episode"):
        summarise(said, soft, np.zeros_like(weight), subject, rng=numpy_generator(0, "soft"))


def test_the_votes_themselves_are_a_perfect_answer():
    _, soft, weight, subject = episodes()
    with np.errstate(divide="ignore"):
        certain = np.maximum(np.log(soft), -700)
    found = summarise(certain, soft, weight, subject, rng=numpy_generator(0, "soft"), n_replicates=5).metrics
    assert [found[n]["mean"] for n in ("kl_soft", "js_soft", "brier_soft", "ece_soft")] == pytest.approx([0] * 4)
    assert found["entropy_correlation"]["mean"] == pytest.approx(1)


def test_ties_are_counted_and_never_guessed():
    counts = np.array([[5, 5, 0], [3, 2, 5], [4, 4, 4], [0, 9, 1], [1, 0, 0]])
    assert tied(counts).tolist() == [True, False, True, False, False]
    share = tied_share(counts, ["a", "a", "b", "b", "c"], numpy_generator(0, "ties"))
    assert share["mean"] == pytest.approx(0.4)
    assert 0 <= share["subject_low"] < 0.4 < share["subject_high"] <= 0.5
    alone = tied_share(counts[:2], ["a", "a"], numpy_generator(0, "ties"))
    assert (alone["mean"], alone["subject_low"], alone["subject_reason"][:15]) == (0.5, None, "1 query subject")
