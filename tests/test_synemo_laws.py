"""The statistical laws of SynEmo: what each factor shows, and what it must not show."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from stf2m_core.data.synemo import EMOTIONS, FACTORS, LAW, SynEmoConfig, domain_table, generate
from stf2m_core.data.synemo_laws import NEIGHBOURS, triangle, votes
from stf2m_core.seeding import numpy_generator

CHANCE = 4.5  # standard errors; with some 200 comparisons in this file, chance alone exceeds it once in 700 seeds


@pytest.fixture(scope="module")
def pure():
    return _signals(SynEmoConfig(pure=True, seed=3, n_domains=24))


def _signals(config: SynEmoConfig) -> dict[str, np.ndarray]:
    """Levels of the factors and the signals of all clips, as float64; needs every modality of every clip."""
    clips, views = generate(config)
    audio = views["audio"].values.astype(np.float64).reshape(len(clips), LAW.audio_frames, 2)
    visual = views["visual"].values.astype(np.float64).reshape(len(clips), LAW.visual_frames, 4, 2)
    levels = {factor: clips[f"x_{factor}"].map(names.index).to_numpy() for factor, names in FACTORS.items()}
    return levels | {
        "domain": clips["domain"].str[1:].astype(int).to_numpy(),
        "times": views["audio"].times.astype(np.float64).reshape(len(clips), LAW.audio_frames),
        "contour": audio[:, :, 0],
        "tone": audio[:, 0, 1],
        "carrier": visual[..., 0],
        "mean level": visual[:, 0, 0, 1],
        "text": views["text"].values.astype(np.float64).ravel(),
    }


def _z(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Difference of the means of two sets of clips in standard errors; values are (clip, ...)."""
    one, two = values[first], values[second]
    return (one.mean(0) - two.mean(0)) / np.sqrt(one.var(0) / len(one) + two.var(0) / len(two))


def _greatest_z(values: np.ndarray, level: np.ndarray) -> float:
    pairs = combinations(np.unique(level), 2)
    return max(float(np.abs(_z(values, level == one, level == two)).max()) for one, two in pairs)


def _increment_skew(contour: np.ndarray) -> np.ndarray:
    """(clip,) changes sign when time runs backwards."""
    return (np.diff(contour, axis=1) ** 3).mean(1)


def _pair_products(carrier: np.ndarray) -> np.ndarray:
    """(clip, synchrony) mean product within the pairs that each level of synchrony names."""
    pairs = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    products = [[(carrier[..., i] * carrier[..., j]).mean(1) for i, j in level] for level in pairs]
    return np.mean(products, axis=1).T


def _evidence(signals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each factor, a statistic of the clip that shows it; the level is taken relative to its domain."""
    n_clips = np.bincount(signals["domain"])
    baseline = np.bincount(signals["domain"], signals["mean level"]) / n_clips
    return {
        "order": _increment_skew(signals["contour"]),
        "synchrony": _pair_products(signals["carrier"]),
        "level": signals["mean level"] - baseline[signals["domain"]],
        "interaction": signals["tone"] * signals["text"],
    }


def test_reversing_time_exchanges_the_two_triangles():
    phase = np.linspace(-2, 2, 4001)
    rising, falling = LAW.rise
    assert rising + falling == pytest.approx(1)
    np.testing.assert_allclose(triangle(-phase, rising), triangle(phase, falling), atol=1e-12)
    assert np.abs(triangle(phase, rising) - triangle(phase, falling)).max() > 1


def test_both_triangles_have_mean_zero_and_unit_variance_and_rise_for_their_share():
    phase = (np.arange(100_000) + 0.5) / 100_000
    for rise in LAW.rise:
        wave = triangle(phase, rise)
        assert wave.mean() == pytest.approx(0, abs=1e-6)
        assert wave.var() == pytest.approx(1, abs=1e-6)
        assert (np.diff(wave) > 0).mean() == pytest.approx(rise, abs=1e-4)


def test_contour_is_triangle_plus_unit_noise(pure):
    for level in (0, 1):
        variance = pure["contour"][pure["order"] == level].var()
        assert variance == pytest.approx(LAW.amplitude**2 + 1, abs=0.03)


def test_order_shows_when_time_runs_forward_and_changes_sign_backward(pure):
    skew, rising = _increment_skew(pure["contour"]), pure["order"] == 0
    assert _z(skew, rising, ~rising) < -20
    backward = _increment_skew(pure["contour"][:, ::-1])
    mixed = np.where(rising, skew, backward)  # falling clips played backwards are rising clips
    assert abs(_z(mixed, rising, ~rising)) < CHANCE


def test_unordered_frames_tell_nothing_of_the_order(pure):
    unordered = np.sort(pure["contour"], axis=1)
    assert _greatest_z(unordered, pure["order"]) < CHANCE
    assert _greatest_z(unordered**2, pure["order"]) < CHANCE
    lagged = np.stack([(pure["contour"][:, lag:] * pure["contour"][:, :-lag]).mean(1) for lag in (1, 2, 5)], axis=1)
    assert _greatest_z(lagged, pure["order"]) < CHANCE


def test_order_is_readable_when_the_rate_is_known_and_the_phase_is_not(pure):
    rates = domain_table(SynEmoConfig(pure=True, seed=3, n_domains=24))["contour_hz"].to_numpy()
    rows = slice(None, None, 4)
    contour, order = pure["contour"][rows], pure["order"][rows]
    periods = rates[pure["domain"][rows], None] * pure["times"][rows]
    score = np.full((2, len(order)), -np.inf)
    for level, rise in enumerate(LAW.rise):
        for phase in (np.arange(32) + 0.5) / 32:
            error = contour - LAW.amplitude * triangle(periods + phase, rise)
            score[level] = np.logaddexp(score[level], -0.5 * (error**2).sum(1))
    # the domains drawn matter: a fast rate at the long step has few frames per period
    assert (score.argmax(0) == order).mean() == pytest.approx(0.988, abs=0.01)


def test_nodes_of_a_pair_correlate_and_others_do_not(pure):
    products = _pair_products(pure["carrier"])
    for level in range(3):
        expected = np.where(np.arange(3) == level, LAW.pair_correlation, 0)
        np.testing.assert_allclose(products[pure["synchrony"] == level].mean(0), expected, atol=0.007)


def test_each_node_alone_has_the_same_law_for_every_synchrony(pure):
    carrier = pure["carrier"]
    powers = np.stack([(carrier**power).mean(1) for power in (1, 2, 3, 4)], axis=2)
    lagged = (carrier[:, 1:] * carrier[:, :-1]).mean(1)
    assert carrier.var() == pytest.approx(1, abs=0.01)
    assert _greatest_z(powers, pure["synchrony"]) < CHANCE
    assert _greatest_z(np.sort(carrier, axis=1), pure["synchrony"]) < CHANCE
    assert _greatest_z(lagged, pure["synchrony"]) < CHANCE


def test_synchrony_is_readable_from_frames_and_hardly_from_time_means(pure):
    guess = _pair_products(pure["carrier"]).argmax(1)
    assert (guess == pure["synchrony"]).mean() == pytest.approx(0.856, abs=0.02)
    means = pure["carrier"].mean(1, keepdims=True)
    guess = _pair_products(means).argmax(1)
    assert (guess == pure["synchrony"]).mean() == pytest.approx(0.394, abs=0.025)


def test_level_is_readable_against_the_baseline_of_its_domain_only():
    config = SynEmoConfig(pure=True, seed=5, n_domains=400, n_subjects_per_domain=1, clips_per_class=2)
    signals = _signals(config)
    high, mean = signals["level"] == 1, signals["mean level"]
    relative = mean - domain_table(config)["level_offset"].to_numpy()[signals["domain"]]
    # 4 standard errors, which are 0.022 for either at this number of clips and domains
    for values, expected, tolerance in ((relative, 3.33, 0.09), (mean, 0.65, 0.09)):
        spread = np.sqrt((values[high].var() + values[~high].var()) / 2)
        assert (values[high].mean() - values[~high].mean()) / spread == pytest.approx(expected, abs=tolerance)


def test_level_is_the_same_in_all_nodes_and_frames_of_a_clip():
    _, views = generate(SynEmoConfig(pure=True, n_domains=1))
    level = views["visual"].values[..., 1].reshape(-1, LAW.visual_frames * 4)
    assert (level == level[:, :1]).all()
    assert len(np.unique(level[:, 0])) > len(level) / 2


def test_tone_and_text_correlate_by_the_interaction(pure):
    for level, expected in ((0, 0.92), (1, -0.92)):
        clips = pure["interaction"] == level
        assert np.corrcoef(pure["tone"][clips], pure["text"][clips])[0, 1] == pytest.approx(expected, abs=0.01)
    guess = np.where(pure["tone"] * pure["text"] > 0, 0, 1)
    assert (guess == pure["interaction"]).mean() == pytest.approx(0.5 + np.arcsin(0.92) / np.pi, abs=0.015)


def test_one_modality_alone_tells_nothing_of_the_interaction(pure):
    for name in ("tone", "text"):
        powers = np.stack([pure[name] ** power for power in (1, 2, 3, 4)], axis=1)
        assert powers[:, 1].mean() == pytest.approx(1, abs=0.05)
        assert _greatest_z(powers, pure["interaction"]) < CHANCE


def test_the_sum_of_tone_and_text_tells_of_the_interaction_through_its_spread_only(pure):
    total, agree = pure["tone"] + pure["text"], pure["interaction"] == 0
    assert abs(_z(total, agree, ~agree)) < CHANCE
    cuts = np.linspace(-3, 3, 61)
    best = max(max(correct, 1 - correct) for correct in (((total > cut) == agree).mean() for cut in cuts))
    assert best == pytest.approx(0.66, abs=0.02)


@pytest.mark.parametrize("factor", FACTORS)
def test_no_factor_shows_in_the_evidence_of_another(pure, factor):
    for other, evidence in _evidence(pure).items():
        if other != factor:
            assert _greatest_z(evidence, pure[factor]) < CHANCE, other


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_switched_off_makes_no_difference(pure, factor):
    assert _greatest_z(_evidence(pure)[factor], pure[factor]) > 20
    off = _signals(SynEmoConfig(pure=True, seed=3, n_domains=24, **{factor: False}))
    assert _greatest_z(_evidence(off)[factor], off[factor]) < CHANCE


def test_a_factor_switched_off_shows_all_its_levels_equally_often(pure):
    off = _signals(SynEmoConfig(pure=True, seed=3, n_domains=24, **dict.fromkeys(FACTORS, False)))
    evidence = _evidence(off)
    shown = _evidence(pure)["level"]
    assert evidence["level"].var() == pytest.approx(shown.var(), rel=0.03)
    for factor in ("order", "interaction"):
        assert abs(evidence[factor].mean()) / evidence[factor].std() * np.sqrt(len(shown)) < CHANCE
    np.testing.assert_allclose(evidence["synchrony"].mean(0), LAW.pair_correlation / 3, atol=0.006)


def test_the_noises_of_different_factors_are_independent(pure):
    cell = pure["domain"] * 2 + pure["level"]
    mean = np.bincount(cell, pure["mean level"]) / np.bincount(cell)
    residual = pure["mean level"] - mean[cell]
    noises = [residual, pure["text"], pure["tone"], *pure["contour"].T[:3], *pure["carrier"][:, :3, 0].T]
    groups = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3])
    correlation = np.corrcoef(noises)[groups[:, None] != groups]
    assert np.abs(correlation).max() * np.sqrt(len(residual)) < CHANCE


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_switched_off_leaves_the_evidence_of_the_others_as_it_is(pure, factor):
    off = _evidence(_signals(SynEmoConfig(pure=True, seed=3, n_domains=24, **{factor: False})))
    changed = {name for name, evidence in _evidence(pure).items() if not np.array_equal(evidence, off[name])}
    assert changed == {factor}


def test_stamps_have_the_same_law_when_time_runs_backwards():
    clips, views = generate(SynEmoConfig(dropout=0.0, seed=1))
    times = views["audio"].times.reshape(len(clips), -1)
    duration = clips["duration_s"].to_numpy()[:, None]
    step = duration / LAW.audio_frames
    forward, backward = times / step, (duration - times[:, ::-1]) / step
    error = np.concatenate([forward, backward]).std(0) * np.sqrt(2 / len(clips))
    assert (np.abs(forward.mean(0) - backward.mean(0)) / error < CHANCE).all()
    assert np.abs(forward - np.arange(LAW.audio_frames) - 0.5).max() == pytest.approx(LAW.jitter, abs=1e-3)


def test_votes_follow_the_mixture_of_the_emotion_and_its_neighbour():
    emotion = np.full(20_000, 7)
    counts, neighbour, state = votes(lambda purpose: numpy_generator(0, purpose), emotion, 0.3)
    ambiguous = neighbour >= 0
    assert ambiguous.mean() == pytest.approx(0.3, abs=0.015)
    assert set(neighbour[ambiguous]) == set(NEIGHBOURS[7])
    assert (state[ambiguous] == 7).mean() == pytest.approx(0.7, abs=0.03)
    assert (state[~ambiguous] == 7).all()
    assert set(counts.sum(1)) == set(range(5, 11))
    shares = (counts / counts.sum(1, keepdims=True)).mean(0)
    floor = 0.05 / 24
    assert shares[7] == pytest.approx(0.95 * (0.7 + 0.3 * 0.7) + floor, abs=0.006)
    assert shares[NEIGHBOURS[7]] == pytest.approx(0.95 * 0.09 / 5 + floor, abs=0.004)
    others = np.setdiff1d(np.arange(24), [7, *NEIGHBOURS[7]])
    assert shares[others] == pytest.approx(floor, abs=0.0012)


def test_neighbours_differ_in_exactly_one_factor():
    assert NEIGHBOURS.shape == (24, 5)
    assert ((EMOTIONS[NEIGHBOURS] != EMOTIONS[:, None]).sum(2) == 1).all()
