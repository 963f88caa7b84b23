"""The Bayes reference of SynEmo against brute force, and what must hold of any reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from stf2m_core.config import EpisodeConfig, SplitConfig
from stf2m_core.contrast import ContrastSampler
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import Pack, open_pack
from stf2m_core.data.synemo import EMOTIONS, FACTORS, LAW, SynEmoConfig, factor_contrast_classes
from stf2m_core.data.synemo_bayes import FROZEN, Evidence, evidence, reference
from stf2m_core.data.synemo_laws import triangle
from stf2m_core.episodes import EpisodeSampler, Splits, split_subjects
from stf2m_core.errors import ConfigError, EpisodeError
from stf2m_core.metrics import half_width
from stf2m_core.shapes import EpisodeBatch

SIZE = {"seed": 5, "n_domains": 8, "n_subjects_per_domain": 4, "clips_per_class": 4}


def _config(**off: bool) -> SynEmoConfig:
    return SynEmoConfig(pure=True, **SIZE, **off)


def _made(folder, **settings) -> Pack:
    import_dataset("synemo", out=folder / "synemo", pure=True, **SIZE, **settings)
    return open_pack(folder / "synemo")


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return _made(tmp_path_factory.mktemp("pure"))


@pytest.fixture(scope="module")
def known(pack) -> Evidence:
    return evidence(pack, _config())


@pytest.fixture(scope="module")
def splits(pack) -> Splits:
    return split_subjects(pack, SplitConfig(n_folds=2, n_val_subjects=4))


def _accuracy(said: np.ndarray, batch: EpisodeBatch) -> tuple[float, float]:
    right = (said.argmax(-1) == batch.query_label.numpy()).mean(1)
    return float(right.mean()), half_width(right)


def _contrast(pack: Pack, splits: Splits, factor: str, n: int = 60) -> EpisodeBatch:
    return ContrastSampler(pack, splits, "meta_test", factor, seed=1).sample(0, n)


def _random(pack: Pack, splits: Splits, n_shot: int, n: int = 60) -> EpisodeBatch:
    kind = EpisodeConfig(regime="D", n_way=5, n_shot=n_shot, n_query=4)
    return EpisodeSampler(pack, splits, "meta_test", kind, 2).sample(0, n)


def test_the_frozen_digests_are_those_of_the_presets():
    assert dict(FROZEN) == {name: SynEmoConfig.preset(name, pure=True).digest() for name in ("smoke", "standard")}


def test_the_evidence_of_a_clip_is_the_density_written_out(pack, known):
    clip = 17
    carrier = np.asarray(pack.view("visual").values).reshape(-1, LAW.visual_frames, 4, 2)[clip, :, :, 0]
    pairs = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    by_hand = []
    for level in pairs:
        covariance = np.eye(4)
        for one, two in level:
            covariance[one, two] = covariance[two, one] = LAW.pair_correlation
        by_hand.append(multivariate_normal(cov=covariance).logpdf(carrier).sum())
    np.testing.assert_allclose(np.diff(known.synchrony[clip]), np.diff(by_hand), rtol=1e-6)
    tone = float(np.asarray(pack.view("audio").values).reshape(-1, LAW.audio_frames, 2)[clip, 0, 1])
    text = float(np.asarray(pack.view("text").values).reshape(-1)[clip])
    rho = LAW.modality_correlation
    pair = [multivariate_normal(cov=[[1, s * rho], [s * rho, 1]]).logpdf([tone, text]) for s in (1, -1)]
    np.testing.assert_allclose(np.diff(known.interaction[clip]), np.diff(pair), rtol=1e-6)


def test_the_phase_of_the_contour_is_integrated_finely_enough(pack, known):
    clip, rate = 40, 3
    frames = slice(clip * LAW.audio_frames, (clip + 1) * LAW.audio_frames)
    contour = np.asarray(pack.view("audio").values, np.float64)[frames, 0, 0]
    times = np.asarray(pack.view("audio").times, np.float64)[frames]
    phase = (np.arange(4096) + 0.5) / 4096 + (LAW.contour_hz[rate] * times)[:, None]
    density = [norm.logpdf(contour[:, None] - LAW.amplitude * triangle(phase, rise)).sum(0) for rise in LAW.rise]
    fine = [np.log(np.mean(np.exp(d - d.max()))) + d.max() for d in density]
    assert np.diff(known.order[clip, rate])[0] == pytest.approx(np.diff(fine)[0], abs=0.25)


def test_the_baseline_follows_from_the_support_as_a_sum_over_a_fine_grid_says(pack, splits, known):
    batch = _random(pack, splits, 2, n=4)
    factors = [name for name in FACTORS if name != "level"]
    said = reference(known, batch, without=factors)
    grid = np.linspace(-12, 12, 4001)
    above = EMOTIONS[batch.classes.numpy()][..., list(FACTORS).index("level")]
    sign = LAW.level_shift * (2 * above - 1)
    for episode in range(len(batch)):
        seen = known.level[batch.support[episode].numpy()] - sign[episode][:, None]
        posterior = norm.logpdf(grid, 0, LAW.domain_level_sd)
        posterior = posterior + norm.logpdf(seen.ravel()[:, None], grid, LAW.level_sd).sum(0)
        weight = np.exp(posterior - posterior.max())
        query = known.level[batch.query[episode].numpy()][:, None, None]
        density = (norm.pdf(query, grid + sign[episode][:, None], LAW.level_sd) * weight).sum(-1)
        np.testing.assert_allclose(np.exp(said[episode]), density / density.sum(-1, keepdims=True), atol=1e-8)


def test_the_rate_is_weighted_by_what_the_support_says_of_it(pack, splits, known):
    batch = _random(pack, splits, 2, n=4)
    said = reference(known, batch, without=[name for name in FACTORS if name != "order"])
    falls = EMOTIONS[batch.classes.numpy()][..., list(FACTORS).index("order")]
    for episode in range(len(batch)):
        density = np.zeros((batch.query.shape[1], batch.n_way))
        for rate in range(len(LAW.contour_hz)):
            pairs = zip(batch.support[episode].tolist(), falls[episode], strict=True)
            weight = np.exp(sum(known.order[clip, rate, level] for clips, level in pairs for clip in clips) + 400)
            density += weight * np.exp(known.order[batch.query[episode].numpy(), rate][:, falls[episode]] + 40)
        np.testing.assert_allclose(np.exp(said[episode]), density / density.sum(-1, keepdims=True), atol=1e-8)


@pytest.mark.parametrize("classes", ["known", "new"])
def test_probabilities_sum_to_one_and_renaming_the_classes_permutes_them(pack, splits, known, classes):
    batch = _random(pack, splits, 2, n=5)
    said = reference(known, batch, classes=classes)
    np.testing.assert_allclose(np.exp(said).sum(-1), 1)
    turned = torch.tensor([3, 0, 4, 1, 2])
    back = torch.argsort(turned)[batch.query_label]
    other = EpisodeBatch(batch.ids, batch.classes[:, turned], batch.support[:, turned], batch.query, back)
    np.testing.assert_allclose(reference(known, other, classes=classes), said[..., turned.numpy()], atol=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_the_reference_beats_the_ceiling_without_a_factor_where_that_factor_is_contrasted(pack, splits, known, factor):
    batch = _contrast(pack, splits, factor)
    best, half = _accuracy(reference(known, batch), batch)
    ceiling, other = _accuracy(reference(known, batch, without=[factor]), batch)
    assert best - half > ceiling + other + 0.2
    assert ceiling < 0.5 + other


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_switched_off_tells_nothing_even_to_who_knows_the_laws(tmp_path, factor):
    pack = _made(tmp_path, **{factor: False})
    splits = split_subjects(pack, SplitConfig(n_folds=2, n_val_subjects=4))
    batch = _contrast(pack, splits, factor, n=40)
    said = evidence(pack, _config(**{factor: False}))
    best, half = _accuracy(reference(said, batch), batch)
    assert best <= 0.5 + half
    np.testing.assert_allclose(reference(said, batch), reference(said, batch, without=[factor]), atol=1e-9)


def test_time_means_of_single_nodes_say_little_of_synchrony(pack, splits, known):
    batch = _contrast(pack, splits, "synchrony")
    whole, half = _accuracy(reference(known, batch), batch)
    pooled, other = _accuracy(reference(known, batch, pooled=True), batch)
    assert whole - half > pooled + other + 0.15


def test_the_support_is_worth_most_where_the_level_is_contrasted(pack, splits, known):
    worth = {}
    for factor in FACTORS:
        batch = _contrast(pack, splits, factor)
        without = _accuracy(reference(known, batch, use_support=False), batch)[0]
        worth[factor] = _accuracy(reference(known, batch), batch)[0] - without
    assert max(worth, key=worth.get) == "level"
    assert worth["level"] > 0.1


def test_new_classes_need_more_shots_than_known_ones(pack, splits, known):
    one, five = _random(pack, splits, 1, n=40), _random(pack, splits, 4, n=40)
    few = _accuracy(reference(known, one, classes="new"), one)[0]
    assert few < _accuracy(reference(known, five, classes="new"), five)[0]
    assert few < _accuracy(reference(known, one), one)[0]


def test_the_reference_is_calibrated(pack, splits, known):
    batch = _random(pack, splits, 4, n=150)
    said = np.exp(reference(known, batch))
    right = said.argmax(-1) == batch.query_label.numpy()
    assert said.max(-1).mean() == pytest.approx(right.mean(), abs=0.03)


def test_contrast_episodes_hold_the_six_classes_and_keep_people_apart(pack, splits):
    names = {name for pair in factor_contrast_classes("order") for name in pair}
    batch = _contrast(pack, splits, "order", n=20)
    assert all({pack.labels[c] for c in row} == names for row in batch.classes.tolist())
    subject = pack.clips["subject"].to_numpy(str)
    for support, query in zip(batch.support.flatten(1).numpy(), batch.query.numpy(), strict=True):
        assert not set(subject[support]) & set(subject[query])
    again = ContrastSampler(pack, splits, "meta_test", "order", seed=1).sample(7, 3)
    assert torch.equal(again.query, batch.query[7:10])


def test_sets_outside_the_reference_are_refused(pack, known, splits):
    with pytest.raises(ConfigError, match="pure"):
        evidence(pack, replace(_config(), pure=False))
    with pytest.raises(ConfigError, match="3072 clips"):
        evidence(pack, replace(_config(), n_domains=9))
    batch = _random(pack, splits, 1, n=2)
    with pytest.raises(ConfigError, match="tempo"):
        reference(known, batch, without=["tempo"])
    with pytest.raises(ConfigError, match="without support"):
        reference(known, batch, classes="new", use_support=False)
    with pytest.raises(EpisodeError, match="24 emotions"):
        reference(known, replace(batch, classes=batch.classes + 24))
