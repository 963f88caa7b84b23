"""Valence and arousal: ridge as scikit-learn's, CCC as a loss, and a head that uses what a few ratings tell."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from stf2m_core import metrics
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import FACTORS, LABELS, SynEmoConfig, generate
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import ConfigError, EpisodeError, PackError
from stf2m_core.lessons import ratings as lesson
from stf2m_core.training import build
from stf2m_core.valence_arousal import (
    RatedEpisodes,
    RatingConfig,
    RatingHead,
    answers,
    ccc_gap,
    ccc_loss,
    ccc_rows,
    chosen_worth,
    embed,
    learn,
    ratings,
    ridge_alone,
    support_mean,
)
from stf2m_core.views import ResidentViews

N_FEATURES = 6


def world(n_episodes, seed=0, turn=0.0, n_clips=8, noise=0.05):
    """Ratings linear in six features, the same line for all or one turned per episode; two clips are unrated."""
    make = torch.Generator().manual_seed(seed)
    line = torch.randn(N_FEATURES, 2, generator=torch.Generator().manual_seed(99)) * 0.3
    lines = line + turn * torch.randn(n_episodes, N_FEATURES, 2, generator=make)
    offset = turn * torch.randn(n_episodes, 1, 2, generator=make)
    sides = []
    for _ in range(2):
        x = torch.randn(n_episodes, n_clips, N_FEATURES, generator=make)
        sides += [x, x @ lines + offset + noise * torch.randn(n_episodes, n_clips, 2, generator=make)]
    sides[1][0, 0], sides[3][0, 1, 1] = torch.nan, torch.nan
    rows = torch.arange(n_episodes * n_clips).view(n_episodes, n_clips)
    return RatedEpisodes(*sides, rows, rows)


def plain_head(worth=3.0):
    return RatingHead(N_FEATURES, worth)


# --- closed form


@pytest.mark.parametrize("n_clips", [4, 30], ids=["fewer clips than features", "more clips than features"])
def test_around_no_prior_adaptation_is_scikit_learns_ridge(n_clips):
    episodes, head = world(3, seed=1, n_clips=n_clips), plain_head()
    said = ridge_alone(episodes, head, 3.0)
    for episode in range(3):
        told = episodes.support_rating[episode].isfinite().all(-1)
        reference = Ridge(alpha=3.0).fit(episodes.support[episode][told], episodes.support_rating[episode][told])
        np.testing.assert_allclose(said[episode], reference.predict(episodes.query[episode]), atol=2e-4)


def test_adaptation_minimises_squared_errors_plus_the_distance_to_the_prior():
    episodes, head = world(2, seed=2), plain_head()
    with torch.no_grad():
        head.prior.copy_(torch.randn(head.prior.shape, generator=torch.Generator().manual_seed(0)))
        head.log_worth.copy_(torch.linspace(-1, 2, N_FEATURES + 1))
    weights = head.adapt(episodes.support, episodes.support_rating).detach().double().requires_grad_()
    x, y = head.features(episodes.support).double(), episodes.support_rating.double()
    errors = torch.where(y.isfinite(), y.nan_to_num() - x @ weights, 0.0)
    held = head.log_worth.exp().double()[:, None] * (weights - head.prior.double()) ** 2
    slope = torch.autograd.grad((errors**2).sum() + held.sum(), weights)[0]
    assert slope.abs().max() < 1e-4


def test_a_prior_of_endless_worth_stays_and_one_of_none_gives_way():
    episodes, prior = world(2, seed=3), torch.ones(N_FEATURES + 1, 2)
    for worth, is_near in ((1e9, True), (1e-6, False)):
        head = plain_head(worth)
        with torch.no_grad():
            head.prior.copy_(prior)
        moved = (head.adapt(episodes.support, episodes.support_rating) - prior).abs().max()
        assert bool(moved < 1e-4) == is_near


def test_clips_without_ratings_teach_nothing():
    episodes, head = world(1, seed=4), plain_head()
    shorter = head.adapt(episodes.support[:, 1:], episodes.support_rating[:, 1:])  # the first has no rating
    torch.testing.assert_close(head.adapt(episodes.support, episodes.support_rating), shorter, atol=1e-5, rtol=0)
    blank = torch.full_like(episodes.support_rating, torch.nan)
    torch.testing.assert_close(head.adapt(episodes.support, blank)[0], head.prior)


def test_each_query_is_rated_alone_and_each_episode_too():
    episodes, head = world(4, seed=5), plain_head()
    whole = head(episodes)
    torch.testing.assert_close(head(episodes[2:3]), whole[2:3])
    one = dataclasses.replace(episodes, query=episodes.query[:, :1])
    torch.testing.assert_close(head(one), whole[:, :1])


def test_the_order_of_the_support_changes_nothing():
    episodes, head = world(3, seed=6), plain_head()
    turned = dataclasses.replace(episodes, support=episodes.support.flip(1),
                                 support_rating=episodes.support_rating.flip(1))  # fmt: skip
    torch.testing.assert_close(head(turned), head(episodes), atol=1e-5, rtol=0)


# --- the loss


def test_the_loss_is_one_minus_the_concordance_of_the_rated_clips():
    episodes = world(10, seed=7)
    said = episodes.query_rating.nan_to_num() * 0.5 + 0.2 * torch.randn(10, 8, 2, generator=torch.Generator())
    told = episodes.query_rating.isfinite()
    expected = [metrics.concordance(said[..., a][told[..., a]], episodes.query_rating[..., a][told[..., a]])
                for a in (0, 1)]  # fmt: skip
    assert float(ccc_loss(said, episodes.query_rating)) == pytest.approx(1 - np.mean(expected), abs=1e-5)


def test_the_loss_is_zero_for_the_truth_two_for_its_mirror_and_finite_for_constants():  # I-39
    rating = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    rating = rating - rating.mean(0)
    assert float(ccc_loss(rating, rating)) == pytest.approx(0, abs=1e-6)
    assert float(ccc_loss(-rating, rating)) == pytest.approx(2, abs=1e-6)
    constant = torch.full_like(rating, 0.3, requires_grad=True)
    loss = ccc_loss(constant, rating)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1, abs=1e-6) and bool(constant.grad.isfinite().all())


def test_a_meta_batch_of_few_ratings_is_refused():
    rating = torch.rand(4, 8, 2)
    rating[0, 0, 1] = torch.nan
    with pytest.raises(ConfigError, match="31 ratings of arousal in a meta-batch; expected 32 or more"):
        ccc_loss(rating.nan_to_num(), rating)


# --- learning


@pytest.fixture(scope="module")
def turned():
    """Heads learned where every episode has a line of its own near a common one, and an unseen world."""
    sizes = (400, 10), (60, 11), (200, 12)
    train, validation, test = (world(n, seed=s, turn=0.15, n_clips=6, noise=0.3) for n, s in sizes)
    return learn(train, validation, RatingConfig(steps=300, worth=100.0, rate=0.03)), validation, test


def concordances(said, episodes):
    return {row["method"]: row["mean"] for row in ccc_rows(said, episodes, np.arange(10000) % 9, n_replicates=5)
            if row["axis"] == "mean of both"}  # fmt: skip


def test_a_learned_prior_beats_the_support_alone_and_the_prior_alone(turned):
    head, validation, test = turned
    found = concordances(answers(test, head, chosen_worth(validation, head)), test)
    assert found["adapted head"] > found["ridge on the support alone"] + 0.02
    assert found["adapted head"] > found["regression, no support"] + 0.02
    assert found["mean of the support"] < 0.3


def test_the_worth_that_is_learned_is_near_the_one_that_generated_the_lines(turned):
    head, _, _ = turned
    true = np.log(0.3**2 / 0.15**2)  # variance of a rating over variance of the lines; it starts at log 100
    assert float(head.log_worth.detach().mean()) == pytest.approx(true, abs=0.8)


def test_the_same_seed_learns_the_same_head():
    train, validation = world(20, seed=1), world(10, seed=2)
    a, b = (learn(train, validation, RatingConfig(steps=20)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_setting_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="rate = 0; expected more than 0 .in RatingConfig"):
        RatingConfig(rate=0)


def test_the_mean_of_the_support_leaves_out_what_is_not_rated():
    episodes = world(1, seed=4)
    expected = episodes.support_rating[0, 1:].mean(0)
    torch.testing.assert_close(support_mean(episodes)[0, 5], expected)


# --- scores


def test_intervals_are_over_people_and_a_gap_of_a_method_to_itself_is_zero():
    episodes, people = world(30, seed=8), np.arange(240) % 6
    said = {"half": episodes.query_rating.nan_to_num() / 2, "mirror": -episodes.query_rating.nan_to_num()}
    rows = ccc_rows(said, episodes, people, n_replicates=200)
    assert [row["axis"] for row in rows[:3]] == ["valence", "arousal", "mean of both"]
    assert all(row["subject_low"] <= row["mean"] <= row["subject_high"] for row in rows)
    told = episodes.query_rating[..., 1].isfinite()
    expected = metrics.concordance(said["half"][..., 1][told], episodes.query_rating[..., 1][told])
    assert rows[1]["mean"] == pytest.approx(expected)
    same = ccc_gap(said["half"], said["half"], episodes, people, n_replicates=20)
    assert (same["mean"], same["subject_low"], same["subject_high"]) == (0, 0, 0)
    assert ccc_gap(said["half"], said["mirror"], episodes, people, n_replicates=20)["subject_low"] > 1
    assert ccc_rows(said, episodes, np.zeros(240), n_replicates=5)[0]["subject_low"] is None


# --- packs and models


@pytest.fixture(scope="module")
def synemo(tmp_path_factory):
    """SynEmo of 12 people in four domains, pure, with ratings on a scale from 1 to 5."""
    clips, views = generate(SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=2, pure=True))
    rated = clips.assign(valence=np.where(np.arange(len(clips)) % 7 == 0, np.nan, 1 + np.arange(len(clips)) % 5),
                         arousal=3.0)  # fmt: skip
    folder = tmp_path_factory.mktemp("synemo")
    return open_pack(write_pack(folder / "rated", rated, views, LABELS, name="synemo"))


def test_ratings_of_a_pack_are_read_onto_one_scale(synemo):
    found = ratings(synemo, scale=(1, 5))
    assert found.shape == (len(synemo), 2)
    assert np.isnan(found[0, 0]) and found[1:6, 0].tolist() == [-0.5, 0, 0.5, 1, -1]
    assert (found[:, 1] == 0).all()


def test_ratings_outside_the_scale_and_packs_without_any_are_refused(synemo):
    with pytest.raises(PackError, match=r"arousal of clip .* is 3; expected -1 to 1 .*Name the scale of the raters"):
        ratings(synemo)
    bare = dataclasses.replace(synemo, clips=synemo.clips.drop(columns=["valence", "arousal"]))
    with pytest.raises(PackError, match="no ratings; expected columns valence and arousal in clips.csv"):
        ratings(bare)
    only = dataclasses.replace(synemo, clips=synemo.clips.drop(columns=["arousal"]))
    assert np.isnan(ratings(only, scale=(1, 5))[:, 1]).all()


def test_episodes_are_embedded_as_the_model_does_and_keep_their_ratings(synemo):
    config = RunConfig.preset("test").replace(split__n_val_subjects=3, train__device="cpu")
    splits = split_subjects(synemo, config.split)
    data = ResidentViews(synemo, config.views, "cpu")
    model = build(data, splits, config)
    kind = EpisodeConfig(regime="D", n_way=3, n_shot=2, n_query=2)
    batch = EpisodeSampler(synemo, splits, "meta_train", kind, 0).sample(0, 5)
    rating = ratings(synemo, scale=(1, 5))
    whole, chunked = (embed(model, data, batch, rating, chunk=size) for size in (8, 2))
    torch.testing.assert_close(whole.query, chunked.query, atol=1e-5, rtol=0)
    assert whole.support.shape == (5, 6, config.encoder.embedding) and whole.query.shape[:2] == (5, 6)
    torch.testing.assert_close(whole.support_rating, torch.from_numpy(rating[batch.support.flatten(1)]), equal_nan=True)
    again = whole.rated(-rating)
    torch.testing.assert_close(again.query_rating, -whole.query_rating, equal_nan=True)


# --- the lesson


def test_neighbours_on_the_circle_differ_in_one_factor():
    place = lesson.coordinates()
    angle = np.round(np.arctan2(place[:, 1], place[:, 0]) * 24 / (2 * np.pi)).astype(int) % 24
    order = [LABELS[i].split(".") for i in np.argsort(angle)]
    assert sorted(angle) == list(range(24)) and len(FACTORS) == 4
    changes = [sum(a != b for a, b in zip(order[i], order[i - 1], strict=True)) for i in range(24)]
    assert changes == [1] * 24
    np.testing.assert_allclose(np.hypot(*place.T), lesson.RADIUS)


def test_made_up_ratings_follow_the_circle_and_turn_with_the_domain(synemo):
    plain, turned = lesson.made_up_ratings(synemo, 0.0), lesson.made_up_ratings(synemo, 40.0)
    place = lesson.coordinates()[synemo.label_ids]
    assert np.abs(plain - place).mean() == pytest.approx(lesson.NOISE * np.sqrt(2 / np.pi), rel=0.1)
    assert np.abs(turned).max() <= 1 and np.abs(turned - place).mean() > 0.2
    again = lesson.made_up_ratings(synemo, 40.0)
    assert (again == turned).all() and (lesson.made_up_ratings(synemo, 40.0, seed=1) != turned).any()
    for name in np.unique(synemo.clips["domain"]):  # within a domain a turn keeps all distances but for the noise
        own = (synemo.clips["domain"] == name).to_numpy()
        product = np.abs((plain[own] * turned[own]).sum(1) / np.hypot(*plain[own].T) / np.hypot(*turned[own].T))
        assert product.std() < 0.25
    with pytest.raises(EpisodeError, match="a pack of 2 labels; expected SynEmo's 24"):
        lesson.made_up_ratings(dataclasses.replace(synemo, labels=("a", "b")), 0.0)


def test_the_table_of_the_lesson_names_every_method_and_setting():
    ends = {"mean": -0.25, "ci95": None, "subject_low": -0.5, "subject_high": 0.0}
    rows = [{"method": m, "axis": a} | ends for m in ("adapted head", "mean of the support")
            for a in ("valence", "arousal", "mean of both")]  # fmt: skip
    one = lesson.Rated("one circle for all", 4, {"adapted head": None, "mean of the support": None}, None, rows,
                       {"mean of the support": ends})  # fmt: skip
    table = lesson.table([one])
    assert table["adapted head ahead by"].tolist() == ["–", "−0.25 [−0.50, 0.00]"]
    assert set(table["raters and support"]) == {"one circle for all, 4 rated clips of each emotion"}
    assert [row["setting"] for row in lesson.rows([one])] == table["raters and support"].tolist()
    assert isinstance(table, pd.DataFrame)
