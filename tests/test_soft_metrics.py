"""Scores against soft labels, each beside scipy's or scikit-learn's own and at values known by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from scipy.stats import pearsonr
from sklearn.metrics import brier_score_loss

from stf2m_core.errors import ResultError
from stf2m_core.metrics import cross_entropy, divergence
from stf2m_core.soft_metrics import (
    brier,
    entropy,
    entropy_correlation,
    jensen_shannon,
    plurality_agreement,
    soft_calibration_error,
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
