"""Clips in which the emotion changes: their laws, and the reference that knows them, against sums over histories."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from stf2m_core.data.pack import open_pack
from stf2m_core.data.segments import cut, rows_of
from stf2m_core.data.synemo_laws import EMOTIONS, LAW, triangle
from stf2m_core.data.synemo_markov import MarkovConfig, domains_of, generate, write
from stf2m_core.data.synemo_markov_bayes import evidence, reference
from stf2m_core.errors import ConfigError
from stf2m_core.markov import forward_backward, shares_of, transitions

THREE = ("order", "level", "interaction")
SMALL = MarkovConfig(n_domains=4, n_subjects_per_domain=2, clips_per_session=8, moving=THREE)


def packs(folder, config):
    """(recordings, segments)."""
    recordings = open_pack(write(folder / "whole", config), verify="full")
    return recordings, open_pack(cut(recordings, folder / "parts"), verify="full")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return packs(tmp_path_factory.mktemp("markov"), SMALL)


# --- the laws


def test_the_same_settings_give_the_same_bytes_and_another_seed_does_not(made, tmp_path):
    again = open_pack(write(tmp_path / "again", SMALL))
    other = open_pack(write(tmp_path / "other", replace(SMALL, seed=1)))
    assert made[0].digest == again.digest != other.digest
    assert SMALL.digest() == replace(SMALL).digest() != replace(SMALL, stay=0.6).digest()


def test_segments_follow_one_another_from_the_clips_start_to_its_end(made):
    recordings, _ = made
    parts = recordings.segments
    first = ~parts["clip_id"].eq(parts["clip_id"].shift())
    assert (parts["start_s"][first] == 0).all()
    np.testing.assert_allclose(parts["start_s"][~first], parts["end_s"].shift()[~first], atol=1e-6)
    last = parts.groupby("clip_id", sort=False)["end_s"].last()
    np.testing.assert_allclose(last, recordings.clips["duration_s"], atol=1e-6)
    count = parts.groupby("clip_id").size()
    assert set(count) == {4, 5, 6, 7, 8}
    assert (recordings.clips["label"] == "").all()


def test_a_word_is_eight_frames_of_audio_and_one_of_text(made):
    recordings, pack = made
    step = domains_of(SMALL).set_index("domain")["step_s"][pack.clips["domain"]].to_numpy()
    words = pack.view("text").lengths
    assert set(words) == {3, 4, 5}
    np.testing.assert_array_equal(pack.view("audio").lengths, 8 * words)
    np.testing.assert_array_equal(pack.view("visual").lengths, np.rint(8 * words * step * LAW.visual_hz))
    np.testing.assert_allclose(pack.clips["duration_s"], 8 * words * step, atol=1e-5)
    for name in recordings.modalities:
        assert recordings.view(name).lengths.sum() == pack.view(name).lengths.sum()


def test_the_emotion_stays_or_moves_to_a_neighbour(made):
    _, pack = made
    levels = EMOTIONS[SMALL.emotions][pack.label_ids]
    same_clip = pack.clips["x_clip"].to_numpy()[1:] == pack.clips["x_clip"].to_numpy()[:-1]
    moved = (levels[1:] != levels[:-1]).sum(1)[same_clip]
    assert set(moved) == {0, 1}
    assert abs((moved == 0).mean() - SMALL.stay) < 3 * (0.21 / len(moved)) ** 0.5
    assert (np.bincount(pack.label_ids, minlength=8) > len(pack) / 20).all()


def test_the_chain_of_the_settings_is_the_one_that_is_seen():
    config = MarkovConfig(n_domains=1, n_subjects_per_domain=1, clips_per_session=1500, words=(1, 1), moving=THREE)
    clips, _, segments = generate(config)
    code = np.array([config.labels.index(label) for label in segments["label"]])
    clip = np.searchsorted(clips["clip_id"].to_numpy(str), segments["clip_id"].to_numpy(str))
    states = np.full((len(clips), 8), -1)
    states[clip, np.arange(len(clip)) - np.searchsorted(clip, clip)] = code
    np.testing.assert_allclose(transitions(states, 8), config.transition, atol=0.03)
    np.testing.assert_allclose(shares_of(states[:, :1], 8), 1 / 8, atol=0.03)


def test_factors_that_do_not_move_stay_at_their_first_level():
    assert (len(MarkovConfig().labels), len(SMALL.labels)) == (24, 8)
    assert all(".ab-cd." in label for label in SMALL.labels)
    np.testing.assert_allclose(MarkovConfig().transition.sum(1), 1)
    assert ((SMALL.transition > 0).sum(1) == 4).all()


def test_level_tone_and_text_are_constant_in_a_segment_and_jump_where_the_next_begins(made):
    recordings, pack = made
    for name, node, channel in (("visual", 0, 1), ("audio", 1, 0), ("text", 0, 0)):
        view = pack.view(name)
        values, starts = view.values[:, node, channel], view.offsets[:-1]
        np.testing.assert_array_equal(np.maximum.reduceat(values, starts), np.minimum.reduceat(values, starts))
    level = recordings.view("visual").values[:, 0, 1]
    clip = np.repeat(np.arange(len(recordings)), recordings.view("visual").lengths)
    jumps = ((np.diff(level) != 0) & (np.diff(clip) == 0)).sum()
    assert jumps == len(pack) - len(recordings)


def test_each_factor_shows_in_every_segment_as_in_synemo(made):
    _, pack = made
    emotion = EMOTIONS[SMALL.emotions][pack.label_ids]
    base = domains_of(SMALL).set_index("domain")["level_offset"][pack.clips["domain"]].to_numpy()
    level = pack.view("visual").values[pack.view("visual").offsets[:-1], 0, 1] - base
    for above in (0, 1):
        own = level[emotion[:, 2] == above]
        assert own.mean() == pytest.approx(LAW.level_shift * (2 * above - 1), abs=4 * LAW.level_sd / len(own) ** 0.5)
        assert own.std() == pytest.approx(LAW.level_sd, rel=0.15)
    tone = pack.view("audio").values[pack.view("audio").offsets[:-1], 1, 0]
    text = pack.view("text").values[pack.view("text").offsets[:-1], 0, 0]
    for oppose, sign in ((0, 1), (1, -1)):
        own = emotion[:, 3] == oppose
        assert np.corrcoef(tone[own], text[own])[0, 1] == pytest.approx(sign * LAW.modality_correlation, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": (5, 4)}, r"segments is \(5, 4\); expected least and most"),
        ({"words": (0, 4)}, r"words is \(0, 4\)"),
        ({"stay": 1.2}, "stay is 1.2; expected a probability"),
        ({"n_domains": 0}, "n_domains is 0; expected at least 1"),
        ({"moving": ()}, r"moving is \(\); expected some of order, synchrony, level, interaction"),
        ({"moving": ("level", "order")}, "in this order"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MarkovConfig(**changes)


# --- the reference


def by_hand(pack, config, support, label, clip):
    """(segment, label) posterior of one clip by a sum over all histories, rates and a fine grid of baselines."""
    levels, n = EMOTIONS[config.emotions], len(config.emotions)
    grid = np.linspace(-8, 8, 4001)
    rates = np.array(LAW.contour_hz)

    def likelihood(row):
        """(label, rate, baseline) of one segment, from the frames themselves."""
        audio, visual, text = (pack.view(m) for m in ("audio", "visual", "text"))
        a, v = (slice(view.offsets[row], view.offsets[row + 1]) for view in (audio, visual))
        frames, times = audio.values[a, :, 0].astype(float), audio.times[a].astype(float)
        pair = [frames[0, 1], float(text.values[text.offsets[row], 0, 0])]
        found = np.zeros((n, len(rates), len(grid)))
        for number, (order, synchrony, above, oppose) in enumerate(levels):
            node = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])[synchrony]
            covariance = np.where(node[:, None] == node, LAW.pair_correlation, 0.0)
            np.fill_diagonal(covariance, 1)
            said = multivariate_normal(cov=covariance).logpdf(visual.values[v, :, 0].astype(float)).sum()
            corr = LAW.modality_correlation * (1 - 2 * oppose)
            said += multivariate_normal(cov=[[1, corr], [corr, 1]]).logpdf(pair)
            shift = LAW.level_shift * (2 * above - 1)
            said = said + norm(grid + shift, LAW.level_sd).logpdf(float(visual.values[v, 0, 1][0]))[None]
            wave = [[triangle(rate * times + (p + 0.5) / 32, LAW.rise[order]) for p in range(32)] for rate in rates]
            curve = norm(0, 1).logpdf(frames[:, 0] - LAW.amplitude * np.array(wave)).sum(2)
            found[number] = said + (logsumexp(curve, 1) - np.log(32))[:, None]
        return found

    nuisance = norm(0, LAW.domain_level_sd).logpdf(grid)[None] + sum(
        likelihood(row)[of] for row, of in zip(support, label, strict=True)
    )
    parts = [likelihood(row) for row in clip]
    posterior = np.full((len(clip), n), -np.inf)
    for history in product(range(n), repeat=len(clip)):
        chance = np.log(1 / n) + sum(np.log(config.transition[a, b]) if config.transition[a, b] > 0 else -np.inf
                                     for a, b in zip(history[:-1], history[1:], strict=True))  # fmt: skip
        if np.isfinite(chance):
            total = logsumexp(nuisance + sum(part[s] for part, s in zip(parts, history, strict=True))) + chance
            for place, state in enumerate(history):
                posterior[place, state] = np.logaddexp(posterior[place, state], total)
    return np.exp(posterior - logsumexp(posterior, 1, keepdims=True))


@pytest.mark.parametrize("moving", [("order", "level"), ("synchrony", "interaction")])
def test_the_reference_is_the_sum_over_all_histories(tmp_path, moving):
    sizes = {"n_domains": 2, "n_subjects_per_domain": 2, "clips_per_session": 3, "segments": (3, 4), "words": (1, 2)}
    config = MarkovConfig(seed=3, moving=moving, **sizes)
    recordings, pack = packs(tmp_path, config)
    owner = rows_of(recordings, pack.clips["x_clip"].to_numpy())
    domain = pack.clips["domain"].to_numpy()
    clips = [0, 7, 13]
    classes = np.arange(len(config.labels))
    support = np.stack([[np.flatnonzero((pack.label_ids == c) & (domain == domain[np.searchsorted(owner, clip)]))[:1]
                         for c in classes] for clip in clips])  # fmt: skip
    count = np.bincount(owner)[clips]
    rows = np.searchsorted(owner, clips)[:, None] + np.minimum(np.arange(4), count[:, None] - 1)
    found = np.exp(reference(evidence(pack), config, support, np.tile(classes, (3, 1)), rows, count))
    for number in range(3):
        wanted = by_hand(pack, config, support[number, :, 0], classes, rows[number, : count[number]])
        np.testing.assert_allclose(found[number, : count[number]], wanted, atol=2e-3)
        assert (found[number, count[number] :] == 0).all()


def test_the_reference_means_what_it_says_and_neighbours_tell_something(made):
    recordings, pack = made
    owner = rows_of(recordings, pack.clips["x_clip"].to_numpy())
    domain = pack.clips["domain"].to_numpy()[np.searchsorted(owner, np.arange(len(recordings)))]
    count = np.bincount(owner)
    rows = np.searchsorted(owner, np.arange(len(recordings)))[:, None]
    rows = rows + np.minimum(np.arange(count.max()), count[:, None] - 1)
    pool = {(d, c): np.flatnonzero((pack.clips["domain"].to_numpy() == d) & (pack.label_ids == c))[:5]
            for d in np.unique(domain) for c in range(8)}  # fmt: skip
    support = np.stack([[pool[d, c] for c in range(8)] for d in domain])
    facts = evidence(pack), SMALL, support, np.tile(np.arange(8), (len(recordings), 1)), rows, count
    inside = np.arange(rows.shape[1]) < count[:, None]
    truth = pack.label_ids[rows][inside]
    said = {chained: np.exp(reference(*facts, chained=chained))[inside] for chained in (True, False)}
    hits = {chained: (p.argmax(1) == truth).mean() for chained, p in said.items()}
    assert hits[True] > hits[False] + 0.05
    error = 2 * (0.25 / len(truth)) ** 0.5
    for chained in (True, False):  # sure by as much as it is right
        assert said[chained].max(1).mean() == pytest.approx(hits[chained], abs=2 * error)
    np.testing.assert_allclose(said[True].sum(1), 1)


def test_a_reference_of_masked_frames_is_refused(made):
    _, pack = made
    view = pack.view("audio")
    masked = replace(view, mask=np.ones(view.values.shape[:2], np.uint8))
    other = replace(pack, _views={n: masked if n == "audio" else pack.view(n) for n in pack.modalities})
    with pytest.raises(ConfigError, match="masked or missing frames; expected a pure set"):
        evidence(other)


# --- hidden Markov chains


def test_forward_backward_is_the_sum_over_all_histories():
    draw = np.random.default_rng(0)
    seen, step, start = draw.normal(size=(3, 2, 4, 3)), draw.dirichlet([1, 1, 1], 3), draw.dirichlet([1, 1, 1])
    step[0] = [0.4, 0.6, 0.0]
    n_steps = np.array([[4, 1], [2, 3], [4, 4]])
    found, total = forward_backward(seen, step, start, n_steps)
    for chain in np.ndindex(3, 2):
        size, mass = n_steps[chain], np.zeros((4, 3))
        for history in product(range(3), repeat=int(size)):
            chance = start[history[0]] * np.prod([step[a, b] for a, b in zip(history[:-1], history[1:], strict=True)])
            chance *= np.exp(sum(seen[chain][t, s] for t, s in enumerate(history)))
            mass[np.arange(size), list(history)] += chance
        assert total[chain] == pytest.approx(np.log(mass[0].sum()))
        np.testing.assert_allclose(np.exp(found[chain])[:size], mass[:size] / mass[0].sum(), atol=1e-12)
        assert np.isneginf(found[chain][size:]).all()


def test_what_lies_beyond_a_chains_end_changes_nothing():
    seen = np.random.default_rng(1).normal(size=(1, 6, 2))
    other = seen.copy()
    other[:, 4:] = 50.0
    step = np.array([[0.9, 0.1], [0.2, 0.8]])
    one, two = (forward_backward(x, step, np.array([0.5, 0.5]), np.array([4]))[0] for x in (seen, other))
    np.testing.assert_array_equal(one, two)


def test_a_chain_that_is_no_distribution_is_refused():
    with pytest.raises(ConfigError, match=r"probabilities that sum to \[1.0, 0.9, 1.0\]; expected 1 in every row"):
        forward_backward(np.zeros((2, 2)), np.array([[0.5, 0.5], [0.5, 0.4]]), np.array([0.5, 0.5]))
    with pytest.raises(ConfigError, match=r"transition \(2, 2\) and start \(3,\)"):
        forward_backward(np.zeros((2, 2)), np.full((2, 2), 0.5), np.full(3, 1 / 3))


def test_undefined_states_neither_follow_nor_are_followed():
    found = transitions(np.array([[0, 1, -1, 1, 1, 0]]), 2, prior=1e-9)
    np.testing.assert_allclose(found, [[0, 1], [0.5, 0.5]], atol=1e-6)
    assert transitions(np.full((1, 3), -1), 2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
