"""Prototypes against scikit-learn, features against plain loops, and the laws of a fair control."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from stf2m_core.baselines import nearest_prototype, ridge_prototype
from stf2m_core.baselines.nearest_prototype import ClipFeatures, NearestPrototype, clip_features, standardised
from stf2m_core.baselines.ridge_prototype import ALPHAS, RidgePrototype
from stf2m_core.errors import ConfigError, RunError
from stf2m_core.seeding import numpy_generator
from stf2m_core.shapes import EpisodeBatch

BASELINES = (NearestPrototype, RidgePrototype)


def make_pack(**modalities) -> SimpleNamespace:
    """A pack of views given as lists of (time, node, channel) arrays, with or without masks."""

    def views(arrays, mask=None):
        offsets = np.cumsum([0, *map(len, arrays)])
        values = np.concatenate(arrays)
        return SimpleNamespace(values=values, offsets=offsets, lengths=np.diff(offsets), mask=mask)

    built = {name: views(*given) if isinstance(given, tuple) else views(given) for name, given in modalities.items()}
    return SimpleNamespace(modalities=tuple(built), view=built.__getitem__)


def flat(values, modality=None) -> ClipFeatures:
    """Features without presence, of one modality unless told."""
    size = values.shape[1]
    modality = np.zeros(size, int) if modality is None else np.array(modality)
    return ClipFeatures(values, modality, np.zeros(size, bool))


@pytest.fixture
def world():
    """200 clips, 6 features of unlike scale, 4 labels: features, labels, train_rows, val_rows, episodes of the rest."""
    rng = numpy_generator(0, "baselines")
    labels = rng.integers(0, 4, 200)
    values = (rng.normal(size=(200, 6)) + 1.2 * rng.normal(size=(4, 6))[labels]) * [1, 5, 0.1, 2, 1, 30] + 3
    return flat(values), labels, np.arange(80), np.arange(80, 120), make_episodes(rng, labels, np.arange(120, 200))


def make_episodes(rng, labels, rows, n_episodes=9, n_shot=3, n_query=12) -> EpisodeBatch:
    classes, support, query, query_label = [], [], [], []
    for _ in range(n_episodes):
        order = rng.permutation(4)
        drawn = rng.permutation(rows)
        support.append([drawn[labels[drawn] == label][:n_shot] for label in order])
        query.append(np.setdiff1d(drawn, support[-1])[:n_query])
        classes.append(order)
        query_label.append(np.argsort(order)[labels[query[-1]]])
    parts = (np.arange(n_episodes), classes, support, query, query_label)
    return EpisodeBatch(*(torch.from_numpy(np.array(part)) for part in parts))


def test_predictions_are_those_of_nearest_centroid(world):
    features, labels, train, val, batch = world
    scaled = StandardScaler().fit(features.values[train]).transform(features.values)
    ours = NearestPrototype().fit(features, labels, train, val).log_probabilities(batch).argmax(-1)
    for episode in range(len(batch)):
        support = batch.support[episode].flatten().numpy()
        reference = NearestCentroid().fit(scaled[support], np.repeat(np.arange(4), 3))
        np.testing.assert_array_equal(ours[episode], reference.predict(scaled[batch.query[episode]]))


def test_logits_are_minus_the_squared_distance_per_feature(world):
    features, labels, train, val, batch = world
    scaled = StandardScaler().fit(features.values[train]).transform(features.values)
    fitted = NearestPrototype().fit(features, labels, train, val)
    logits = nearest_prototype.prototype_logits(fitted.embedding, batch)
    prototype = scaled[batch.support[2, 1]].mean(0)
    expected = -((scaled[batch.query[2, 5]] - prototype) ** 2).sum() / 6
    assert float(logits[2, 5, 1]) == pytest.approx(expected, rel=1e-9)


def test_modalities_weigh_the_same_whatever_their_number_of_features():
    values = np.column_stack([np.tile([0.0, 1.0], 10)] * 4 + [np.repeat([0.0, 1.0], 10)])
    embedding = standardised(flat(values, [0, 0, 0, 0, 1]), np.arange(20))
    other_in_first, other_in_second = (((embedding[0] - embedding[row]) ** 2).sum() for row in (1, 10))
    assert other_in_first == pytest.approx(other_in_second)


@pytest.mark.parametrize("alpha", [ALPHAS[0], ALPHAS[4], ALPHAS[-1]])
def test_outputs_are_those_of_ridge_classifier(world, alpha):
    features, labels, train, _, _ = world
    reference = RidgeClassifier(alpha=alpha).fit(features.values[train], labels[train])
    target = np.eye(4)[labels[train]] * 2 - 1
    (ours,) = ridge_prototype.ridge_outputs(features.values, train, target, (alpha,))
    np.testing.assert_allclose(ours, reference.decision_function(features.values), atol=1e-8)


def test_left_out_accuracy_is_that_of_scikit_learn():
    labels = np.repeat(np.arange(3), (2, 3, 5))
    for draw in range(5):  # classes this small, so that a clip moves its own mean a lot
        values = numpy_generator(draw, "left out").normal(size=(10, 4)) + 0.8 * labels[:, None]
        reference = cross_val_score(NearestCentroid(), values, labels, cv=LeaveOneOut())
        assert ridge_prototype.left_out_accuracy(values, labels) == pytest.approx(reference.mean())
    alone = np.array([[0.0], [0.1], [5.0]])
    assert ridge_prototype.left_out_accuracy(alone, np.array([0, 0, 1])) == pytest.approx(2 / 3)


def test_alpha_is_the_best_on_meta_validation_and_nothing_else(world):
    features, labels, train, val, _ = world
    fitted = RidgePrototype().fit(features, labels, train, val)
    target = np.eye(4)[labels[train]] * 2 - 1
    outputs = ridge_prototype.ridge_outputs(standardised(features, train), train, target, ALPHAS)
    scores = {a: ridge_prototype.left_out_accuracy(o[val], labels[val]) for a, o in zip(ALPHAS, outputs, strict=True)}
    assert fitted.val_accuracy == max(scores.values())
    assert scores[fitted.alpha] == fitted.val_accuracy
    np.testing.assert_allclose(fitted.embedding * 2, outputs[ALPHAS.index(fitted.alpha)])


@pytest.mark.parametrize("baseline", BASELINES)
def test_meta_test_clips_do_not_touch_what_is_fitted(world, baseline):
    features, labels, train, val, _ = world
    values, shuffled = features.values.copy(), labels.copy()
    values[120:] += 100
    shuffled[120:] = shuffled[120:][::-1]
    before = baseline().fit(features, labels, train, val).embedding[:120]
    after = baseline().fit(replace(features, values=values), shuffled, train, val).embedding[:120]
    assert torch.equal(before, after)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_query_is_answered_alone_and_classes_by_their_support(world, baseline):
    features, labels, train, val, batch = world
    fitted = baseline().fit(features, labels, train, val)
    whole = fitted.log_probabilities(batch)
    single = replace(batch, query=batch.query[:, :1], query_label=batch.query_label[:, :1])
    torch.testing.assert_close(fitted.log_probabilities(single), whole[:, :1])
    order = torch.tensor([3, 1, 0, 2])
    permuted = replace(batch, support=batch.support[:, order], classes=batch.classes[:, order])
    torch.testing.assert_close(fitted.log_probabilities(permuted), whole[..., order])
    torch.testing.assert_close(fitted.log_probabilities(batch[2:5]), whole[2:5])
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(9, 12, dtype=torch.float64))


@pytest.mark.parametrize("baseline", BASELINES)
def test_scale_and_shift_of_a_feature_are_irrelevant(world, baseline):
    features, labels, train, val, batch = world
    moved = replace(features, values=features.values * [2, 1, 7, 0.5, 1, 1] - [0, 50, 0, 0, 1, 0])
    ours = baseline().fit(features, labels, train, val).log_probabilities(batch)
    torch.testing.assert_close(baseline().fit(moved, labels, train, val).log_probabilities(batch), ours)


@pytest.mark.parametrize("baseline", BASELINES)
def test_support_with_information_beats_chance_and_constant_features_do_not(world, baseline):
    features, labels, train, val, batch = world
    informed = baseline().fit(features, labels, train, val).log_probabilities(batch).argmax(-1)
    assert (informed == batch.query_label).double().mean() > 0.5
    blank = replace(features, values=np.ones_like(features.values))
    assert baseline().fit(blank, labels, train, val).log_probabilities(batch).exp().sub(0.25).abs().max() < 1e-9


@pytest.mark.parametrize("baseline", BASELINES)
def test_an_unfitted_baseline_says_so(world, baseline):
    with pytest.raises(RunError, match="the baseline has no embedding. Call fit first"):
        baseline().log_probabilities(world[-1])


def test_undefined_labels_do_not_take_part_and_one_class_is_refused(world):
    features, labels, train, val, _ = world
    some = labels.copy()
    some[train[::2]] = -1
    fewer = RidgePrototype().fit(features, labels, train[1::2], val)
    masked = RidgePrototype().fit(features, some, train, val)
    assert masked.alpha in ALPHAS
    assert fewer.embedding.shape == masked.embedding.shape == (200, 4)
    some[val] = -1
    some[val[0]] = 2
    with pytest.raises(RunError, match=r"meta_val has 1 class\(es\) with labels; expected at least 2"):
        RidgePrototype().fit(features, some, train, val)


def test_ridge_works_where_meta_validation_has_other_classes():
    rng = numpy_generator(1, "regime c")
    labels = np.repeat(np.arange(6), 20)
    features = flat(rng.normal(size=(120, 5)) + 2 * rng.normal(size=(6, 5))[labels])
    fitted = RidgePrototype().fit(features, labels, np.arange(60), np.arange(60, 120))
    assert fitted.val_accuracy > 0.5
    assert torch.isfinite(fitted.embedding).all()


def _plain_moments(clip, mask):
    """Mean and standard deviation over the observed frames of each node and channel, one after the other."""
    means, deviations = [], []
    for node in range(clip.shape[1]):
        for channel in range(clip.shape[2]):
            seen = clip[mask[:, node] > 0, node, channel].astype(np.float64)
            means.append(seen.mean() if seen.size else np.nan)
            deviations.append(seen.std() if seen.size else np.nan)
    return means + deviations


def test_features_equal_plain_loops_over_ragged_masked_clips(monkeypatch):
    rng = numpy_generator(2, "features")
    clips = [(50 + rng.normal(size=(n, 2, 3))).astype(np.float32) for n in (4, 0, 1, 7, 0, 0, 3, 0)]
    mask = (rng.uniform(size=(15, 2)) < 0.6).astype(np.uint8)
    mask[-3:, 1] = 0
    pack = make_pack(face=(clips, mask))
    pack.view("face").values[mask == 0] = 1e9
    found = clip_features(pack)
    assert found.is_presence.tolist() == [False] * 12 + [True]
    np.testing.assert_array_equal(found.values[:, -1], [1, 0, 1, 1, 0, 0, 1, 0])
    masks = np.split(mask, pack.view("face").offsets[1:-1])
    expected = [_plain_moments(*pair) if len(pair[0]) else [np.nan] * 12 for pair in zip(clips, masks, strict=True)]
    np.testing.assert_allclose(found.values[:, :-1], expected, rtol=1e-9)
    monkeypatch.setattr(nearest_prototype, "_BLOCK", 5)
    np.testing.assert_allclose(clip_features(pack).values, found.values, rtol=1e-12)


def test_one_frame_gives_means_only_and_full_modalities_no_presence():
    rng = numpy_generator(3, "one frame")
    pack = make_pack(
        voice=[rng.normal(size=(n, 1, 4)).astype(np.float16) for n in (3, 5, 1)],
        face=[rng.normal(size=(1, 1, 2)).astype(np.float32) for _ in range(3)],
    )
    both = clip_features(pack)
    assert both.modality.tolist() == [0] * 8 + [1] * 2
    assert not both.is_presence.any()
    np.testing.assert_allclose(clip_features(pack, ["face"]).values, pack.view("face").values[:, 0])
    with pytest.raises(ConfigError, match="no modality is named; expected voice or face"):
        clip_features(pack, [])


def test_an_absent_modality_is_the_training_mean_and_its_rarity_has_no_weight():
    rng = numpy_generator(4, "absent")
    values = np.column_stack([rng.normal(size=(1000, 2)), np.ones(1000)])
    values[7] = [np.nan, np.nan, 0]
    features = ClipFeatures(values, np.zeros(3, int), np.array([False, False, True]))
    embedding = standardised(features, np.arange(1000))
    np.testing.assert_array_equal(embedding[7, :2], 0)
    np.testing.assert_allclose(embedding[np.arange(1000) != 7, :2].mean(0), 0, atol=1e-12)
    assert abs(embedding[7, 2]) < 1


def test_features_unknown_in_all_of_meta_train_are_finite():
    values = np.array([[np.nan, 1.0], [np.nan, 2.0], [3.0, 3.0]])
    assert np.isfinite(standardised(flat(values), np.arange(2))).all()


def _own_clip_episodes(rng, labels, actor, sentence, actors, n_episodes=100, n_shot=2) -> EpisodeBatch:
    """Regime P: support from one sentence of a new actor, two queries per class from the other."""
    support, query = [], []
    for _ in range(n_episodes):
        who, said = rng.choice(actors), rng.integers(2)
        own = actor == who
        support.append([_draw(rng, own & (sentence == said) & (labels == c), n_shot) for c in range(8)])
        query.append(np.ravel([_draw(rng, own & (sentence != said) & (labels == c), 2) for c in range(8)]))
    classes = np.tile(np.arange(8), (n_episodes, 1))
    parts = (np.arange(n_episodes), classes, support, query, np.repeat(classes, 2, axis=1))
    return EpisodeBatch(*(torch.from_numpy(np.array(part)) for part in parts))


def _draw(rng, condition, size):
    return rng.choice(np.flatnonzero(condition), size, replace=False)


@pytest.mark.realdata
def test_own_clips_of_a_new_actor_tell_the_emotion_on_real_speech_and_faces():
    folder = os.environ.get("STF2M_DATA")
    if not folder:
        pytest.skip("STF2M_DATA is not set")
    with np.load(Path(folder) / "ravdess" / "features.npz") as data:
        frames = np.split(data["audio_logmel"][:, None, :], data["audio_offsets"][1:-1])
        faces = list(data["visual_au_mean"][:, None, None, :])
        labels, actor = data["emotion_id"].astype(np.int64), data["actor"]
        sentence = np.array([name.split("-")[3] == "02" for name in data["clip_id"]])
    features = clip_features(make_pack(voice=frames, face=faces))
    train, val = np.flatnonzero(actor <= 8), np.flatnonzero((actor > 8) & (actor <= 12))
    batch = _own_clip_episodes(numpy_generator(0, "own clips"), labels, actor, sentence, np.arange(13, 17))
    for baseline in BASELINES:
        predicted = baseline().fit(features, labels, train, val).log_probabilities(batch).argmax(-1)
        assert 0.6 < (predicted == batch.query_label).double().mean() < 0.9, "chance is 0.125"
