"""What is known before the first step: moments against the Gaussian that made them, prototypes against posteriors."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import LABELS, SynEmoConfig, generate
from stf2m_core.encoding import encode_episodes
from stf2m_core.episodes import EpisodeSampler, load_episodes, save_episodes, split_subjects
from stf2m_core.model.encoder import Dropout, LevelPath, moments
from stf2m_core.model.knowledge import Knowledge, discriminants, emotion_axes, knowledge
from stf2m_core.model.st_f2m import STF2M, Support
from stf2m_core.shapes import EpisodeBatch, ViewBatch
from stf2m_core.training import build
from stf2m_core.views import ResidentViews, standardised

N_LABELS, SIZE = 4, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world(n_persons, n_labels, n_clips, clip, habit, person, size=SIZE, seed=0):
    """Clips of the two-level Gaussian: embedding, label, person, and the emotions' means."""
    clip, habit, person = (torch.as_tensor(v, dtype=torch.float64).expand(size) for v in (clip, habit, person))
    emotion = 2 * drawn(n_labels, size, seed=seed)
    cells = emotion + person.sqrt() * drawn(n_persons, 1, size, seed=seed + 1)
    cells = cells + habit.sqrt() * drawn(n_persons, n_labels, size, seed=seed + 2)
    clips = cells[:, :, None] + clip.sqrt() * drawn(n_persons, n_labels, n_clips, size, seed=seed + 3)
    owner, label, _ = torch.meshgrid(*(torch.arange(n) for n in (n_persons, n_labels, n_clips)), indexing="ij")
    return clips.flatten(0, 2), label.flatten(), owner.flatten(), emotion


# --- moments of the two-level Gaussian


@pytest.mark.parametrize("n_clips", [2, 5])
@pytest.mark.parametrize("ratios", [(0.5, 2.0), (2.0, 1.0)])
def test_the_components_of_a_two_level_gaussian_come_back(n_clips, ratios):
    clip = torch.tensor([1.0, 1.2, 0.8, 2.0, 1.5, 1.0], dtype=torch.float64)
    habit, person = (ratio * clip for ratio in ratios)
    values, label, owner, emotion = world(800, N_LABELS, n_clips, clip, habit, person)
    found = knowledge(values, label, owner, N_LABELS)
    assert found.n_persons == 800
    torch.testing.assert_close(found.anchor, emotion, rtol=0, atol=5 * math.sqrt(4 * float(person.max()) / 800))
    for name, expected in {"clip": clip, "habit": habit, "person": person}.items():
        ratio = getattr(found, name) / expected
        assert float((ratio - 1).abs().max()) < 0.25, name
        assert float(ratio.mean()) == pytest.approx(1, abs=0.12), name


def test_what_is_not_there_is_two_hundredths_of_the_clips_variance():
    values, label, owner, _ = world(3, N_LABELS, 400, 1.0, 0.0, 0.0)
    values = values - values.unflatten(0, (12, 400)).mean(1).repeat_interleave(400, 0)
    found = knowledge(values, label, owner, N_LABELS)
    torch.testing.assert_close(found.habit, 0.02 * found.clip)
    torch.testing.assert_close(found.person, 0.02 * found.clip)


def test_single_features_are_drawn_towards_the_mean_ratio_of_all_which_stays():
    habit = torch.tensor([0.2, 0.4, 0.6, 1.0, 1.4, 2.0], dtype=torch.float64)
    values, label, owner, _ = world(1000, N_LABELS, 3, 1.0, habit, 2 * habit)
    found = knowledge(values, label, owner, N_LABELS)
    torch.testing.assert_close(found.habit, 0.8 * habit + 0.2 * habit.mean(), rtol=0.15, atol=0)
    torch.testing.assert_close(found.person, 1.4 * habit + 0.6 * habit.mean(), rtol=0.15, atol=0)


def test_a_feature_in_which_clips_hardly_differ_is_not_blown_up():
    clip = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1e-8], dtype=torch.float64)
    values, label, owner, _ = world(50, N_LABELS, 4, clip, 0.5 * clip, 0.5 * clip)
    found = knowledge(values, label, owner, N_LABELS)
    assert float(found.clip[-1]) == pytest.approx(0.25 * float(found.clip.max()))


def test_an_emotion_without_clips_has_a_zero_anchor_and_the_others_are_as_if_it_did_not_exist():
    values, label, owner, _ = world(40, 3, 3, 1.0, 0.5, 0.5)
    found, more = knowledge(values, label, owner, 3), knowledge(values, label, owner, 5)
    assert more.anchor.shape == (5, SIZE)
    assert torch.equal(more.anchor[3:], torch.zeros(2, SIZE, dtype=torch.float64))
    torch.testing.assert_close(more.anchor[:3], found.anchor)
    torch.testing.assert_close(more.habit, found.habit)
    assert float(found.anchor.abs().min()) > 0


def test_every_person_counts_once_however_many_clips_they_gave():
    values, label, owner, _ = world(5, 3, 4, 1.0, 0.5, 4.0)
    again = torch.cat([torch.arange(len(values)), torch.arange(12).repeat(30)])
    torch.testing.assert_close(
        knowledge(values[again], label[again], owner[again], 3).anchor, knowledge(values, label, owner, 3).anchor
    )
    assert float((values[again].mean(0) - values.mean(0)).abs().max()) > 0.1, "the person is like the others"


@pytest.mark.parametrize("case", ["missing cells", "one person", "one label", "one clip each", "one clip"])
def test_little_data_gives_finite_positive_moments_and_finite_directions(case):
    values, label, owner, _ = world(6, N_LABELS, 3, 1.0, 0.5, 0.5)
    keep = {
        "missing cells": (label + owner) % 3 != 0,
        "one person": owner == 0,
        "one label": label == 0,
        "one clip each": torch.arange(len(values)) % 3 == 0,
        "one clip": torch.arange(len(values)) == 0,
    }[case]
    facts = values[keep], label[keep], owner[keep]
    found = knowledge(*facts, N_LABELS)
    assert bool(torch.isfinite(found.anchor).all())
    for name in ("clip", "habit", "person"):
        part = getattr(found, name)
        assert bool((torch.isfinite(part) & (part > 0)).all()), name
    assert bool(torch.isfinite(discriminants(*facts, 4)).all())


def test_anchors_and_components_do_not_depend_on_who_showed_which_emotion():
    """Half of all (person, emotion) cells are empty, at random; the Gaussian stays the same."""
    values, label, owner, emotion = world(800, N_LABELS, 3, 1.0, 0.3, 1.0)
    cells = torch.rand(800, N_LABELS, generator=torch.Generator().manual_seed(3)) < 0.5
    cells[:, 0] |= ~cells.any(1)
    keep = cells[owner, label]
    found = knowledge(values[keep], label[keep], owner[keep], N_LABELS)
    gaps = [part - part.mean(0) for part in (found.anchor, emotion)]
    torch.testing.assert_close(gaps[0], gaps[1], rtol=0, atol=0.2)
    torch.testing.assert_close(found.habit, torch.full((SIZE,), 0.3, dtype=torch.float64), rtol=0.3, atol=0)
    torch.testing.assert_close(found.person, torch.ones(SIZE, dtype=torch.float64), rtol=0.3, atol=0)


# --- discriminants


def within(values, label, owner, directions):
    """Variance within emotions of the projections, (direction, direction), by loops over persons and emotions."""
    projected = values @ directions
    persons, labels = owner.unique(), label.unique()
    cell = {(int(p), int(e)): projected[(owner == p) & (label == e)].mean(0) for p in persons for e in labels}
    center = {int(p): torch.stack([cell[int(p), int(e)] for e in labels]).mean(0) for p in persons}
    emotion = {int(e): torch.stack([cell[int(p), int(e)] - center[int(p)] for p in persons]).mean(0) for e in labels}
    facts = zip(projected, label, owner, strict=True)
    rest = torch.stack([row - center[int(p)] - emotion[int(e)] for row, e, p in facts])
    return rest.T @ rest / (len(rest) - 1), torch.stack(list(center.values()))


@pytest.mark.parametrize("n_directions", [2, 5, SIZE])
def test_directions_have_unit_variance_within_emotions_and_persons_uncorrelated(n_directions):
    mix = drawn(SIZE, SIZE, seed=9)
    values, label, owner, _ = world(12, N_LABELS, 5, 1.0, 0.5, 2.0)
    values = values @ mix
    directions = discriminants(values, label, owner, n_directions, 0.0)
    inside, centers = within(values, label, owner, directions)
    torch.testing.assert_close(inside, torch.eye(n_directions, dtype=torch.float64), rtol=0, atol=1e-8)
    spread = torch.cov(centers.T)
    assert float((spread - spread.diagonal().diag()).abs().max()) < 1e-8 * float(spread.diagonal().max())
    plain = torch.cov(within(values, label, owner, torch.eye(SIZE, dtype=torch.float64))[1].T)
    assert float((plain - plain.diagonal().diag()).abs().max()) > 0.1, "persons were uncorrelated from the start"


@pytest.mark.parametrize("shrinkage", [0.01, 0.2, 0.7])
def test_the_shrunk_variance_within_emotions_is_one_along_every_direction(shrinkage):
    values, label, owner, _ = world(12, N_LABELS, 5, 1.0, 0.5, 2.0)
    values, identity = values @ drawn(SIZE, SIZE), torch.eye(SIZE, dtype=torch.float64)
    inside, _ = within(values, label, owner, identity)
    shrunk = (1 - shrinkage) * inside + shrinkage * inside.diagonal().mean() * identity
    found = discriminants(values, label, owner, 5, shrinkage)
    torch.testing.assert_close(found.T @ shrunk @ found, identity[:5, :5], rtol=0, atol=1e-8)


def test_the_first_directions_are_those_that_tell_emotions_apart():
    """Emotions differ in one feature; with two emotions a single direction is asked, whose best is Fisher's."""
    values, label, owner, _ = world(30, 2, 6, 1.0, 0.0, 4.0)
    values = (values + torch.eye(SIZE, dtype=torch.float64)[0] * (10.0 * label[:, None])) @ drawn(SIZE, SIZE, seed=4)
    found = discriminants(values, label, owner, 1, 0.0)[:, 0]
    inside, _ = within(values, label, owner, torch.eye(SIZE, dtype=torch.float64))
    center = torch.stack([values[owner == p].mean(0) for p in range(30)])[owner]
    gap = (values - center)[label == 1].mean(0) - (values - center)[label == 0].mean(0)
    fisher = torch.linalg.solve(inside, gap)
    fisher = fisher / torch.sqrt(fisher @ inside @ fisher)
    torch.testing.assert_close(found * torch.sign(found @ fisher), fisher, rtol=1e-6, atol=1e-8)


def test_a_constant_per_person_leaves_the_space_of_the_directions_as_it_was():
    values, label, owner, _ = world(12, N_LABELS, 5, 1.0, 0.5, 2.0)
    moved = values + 30 * drawn(12, SIZE, seed=7)[owner]
    one, other = (discriminants(v, label, owner, 4) for v in (values, moved))
    torch.testing.assert_close(one @ one.T, other @ other.T, rtol=0, atol=1e-8)
    shifted = discriminants(values + 30, label, owner, 4)
    torch.testing.assert_close(shifted.abs(), one.abs(), rtol=0, atol=1e-8)
    assert float((one @ one.T).abs().max()) > 0.1


def test_a_feature_that_never_varies_says_nothing():
    values, label, owner, _ = world(12, N_LABELS, 5, 1.0, 0.5, 2.0)
    padded = torch.cat([values[:, :3], torch.full((len(values), 1), 7.0), values[:, 3:]], 1)
    found = discriminants(padded, label, owner, 5)
    assert float(found[3].abs().max()) < 1e-9
    assert float(found.abs().amax(1)[[0, 1, 2, 4, 5, 6]].min()) > 1e-3


@pytest.mark.parametrize("n_persons, rank", [(1, N_LABELS - 1), (2, 2 * (N_LABELS - 1)), (3, 3 * (N_LABELS - 1))])
def test_directions_beyond_the_rank_are_zero(n_persons, rank):
    """Emotions span labels - 1 directions, habits (persons - 1)(labels - 1) more; nothing else is there."""
    values, label, owner, _ = world(n_persons, N_LABELS, 30, 1.0, 0.5, 2.0, size=24)
    found = discriminants(values, label, owner, 20, 0.0)
    assert int((found.norm(dim=0) > 1e-9).sum()) == rank
    assert float(found[:, rank:].abs().max()) < 1e-9
    inside, _ = within(values, label, owner, found[:, :rank])
    torch.testing.assert_close(inside, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-8)


def test_emotions_that_span_all_moments_leave_no_direction_to_habits():
    values, label, owner, _ = world(12, N_LABELS, 5, 1.0, 0.5, 2.0, size=3)
    found = discriminants(values, label, owner, 5, 0.0)
    inside, _ = within(values, label, owner, found[:, :3])
    torch.testing.assert_close(inside, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8)
    assert float(found[:, 3:].abs().max()) < 1e-9


def test_more_directions_than_moments_leaves_the_rest_zero():
    values, label, owner, _ = world(12, N_LABELS, 5, 1.0, 0.5, 2.0)
    found = discriminants(values, label, owner, SIZE + 3, 0.0)
    assert found.shape == (SIZE, SIZE + 3)
    assert float(found[:, SIZE:].abs().max()) < 1e-9
    assert int(torch.linalg.matrix_rank(found)) == SIZE


# --- level path


def view(n_clips=40, n_frames=7, n_nodes=2, n_channels=3, seed=0):
    """Random clips; some frames and nodes unseen, and clip 0 without the modality at all."""
    values = drawn(n_clips, n_frames, n_nodes, n_channels, seed=seed)
    mask = drawn(n_clips, n_frames, n_nodes, seed=seed + 1) > -0.7
    mask[:, 0] = True
    mask[1, :, 0] = False
    mask[0] = False
    times = torch.arange(n_frames, dtype=torch.float64).expand(n_clips, -1) / 25
    return ViewBatch(values, mask, times, torch.full((n_clips,), n_frames / 25, dtype=torch.float64))


@pytest.fixture
def level():
    path = LevelPath(12, 5).double()
    path.standardise(moments(view()))
    with torch.no_grad():
        path.mix.weight.copy_(drawn(5, 12, seed=8))
    return path


def test_moments_are_mean_and_deviation_over_the_seen_frames():
    some = view(6)
    found = moments(some).unflatten(1, (2, 6))
    for clip in range(6):
        for node in range(2):
            seen = some.values[clip, some.mask[clip, :, node], node]
            expected = torch.zeros(6, dtype=torch.float64)
            if len(seen):
                expected = torch.cat([seen.mean(0), torch.sqrt(seen.var(0, correction=0) + 1e-5)])
            torch.testing.assert_close(found[clip, node], expected, rtol=0, atol=1e-12)
    assert float(found[1, 0].abs().max()) == 0 < float(found[1, 1].abs().min())


def test_a_clip_without_the_modality_adds_nothing(level):
    said = level(view(), Dropout()).detach()
    assert torch.equal(said[0], torch.zeros(5, dtype=torch.float64))
    assert float(said[1:].abs().amax(1).min()) > 0


def test_masked_frames_and_more_padding_do_not_matter(level):
    some = view()
    garbage = torch.where(some.mask[..., None], some.values, torch.full_like(some.values, 1e8))
    padded = ViewBatch(*(torch.cat([t, t[:, :3] * 0], 1) for t in (garbage, some.mask, some.times)), some.duration)
    said = level(some, Dropout())
    torch.testing.assert_close(level(padded, Dropout()), said, rtol=0, atol=1e-12)
    changed = dataclasses.replace(some, values=some.values + drawn(*some.values.shape, seed=5))
    assert float((level(changed, Dropout()) - said).detach().abs().max()) > 0.1


def test_standardised_moments_of_meta_train_have_mean_zero_and_deviation_one(level):
    standard = (moments(view()) - level.shift) / level.scale
    torch.testing.assert_close(standard.mean(0), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(standard.std(0), torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_moment_that_never_varies_reaches_no_feature():
    some = view()
    still = dataclasses.replace(some, values=some.values * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    full = dataclasses.replace(still, mask=torch.ones_like(some.mask))
    path = LevelPath(12, 5).double()
    path.standardise(moments(full))
    dead = torch.isinf(path.scale)
    assert dead.nonzero().flatten().tolist() == [2, 5, 8, 11]
    loud = dataclasses.replace(full, values=full.values + torch.tensor([0.0, 0.0, 50.0], dtype=torch.float64))
    said = path(full, Dropout())
    assert bool(torch.isfinite(said).all())
    torch.testing.assert_close(path(loud, Dropout()), said, rtol=0, atol=1e-12)


# --- axes after a start


def tilted(n_labels=5, n_episodes=400, n_shot=3, seed=0):
    """Clips of emotions with full covariances within and between, in episodes that are each shifted as a whole."""
    inside = drawn(SIZE, SIZE, seed=seed) + torch.eye(SIZE)
    means = drawn(n_labels, SIZE, seed=seed + 1) @ drawn(SIZE, SIZE, seed=seed + 2)
    episode, label, _ = torch.meshgrid(*(torch.arange(n) for n in (n_episodes, n_labels, n_shot)), indexing="ij")
    episode, label = episode.flatten(), label.flatten()
    values = means[label] + 10 * drawn(n_episodes, SIZE, seed=seed + 3)[episode]
    return values + drawn(len(label), SIZE, seed=seed + 4) @ inside, label, episode, inside.T @ inside, means


def test_along_the_axes_clips_vary_by_one_and_emotions_are_uncorrelated():
    values, label, episode, within, means = tilted()
    axes = emotion_axes(values, label, episode, shrinkage=0.0)
    torch.testing.assert_close(axes.T @ within @ axes, torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=0.1)
    turned = (means - means.mean(0)) @ axes
    between = turned.T @ turned
    strength = between.diagonal()
    assert bool((strength[:4] > strength[1:5]).all()), "the axis in which emotions differ most comes first"
    assert float(strength[4:].max()) < 0.02 * float(strength[3]), "five emotions differ along four axes"
    apart = between / strength[:4].max()
    assert float((apart - apart.diagonal().diag()).abs().max()) < 0.05


def test_axes_do_not_ask_how_the_embedding_was_turned_or_where_an_episode_lies():
    values, label, episode, _, means = tilted()
    axes = emotion_axes(values, label, episode, shrinkage=0.0)
    turn = drawn(SIZE, SIZE, seed=9) + 2 * torch.eye(SIZE)
    other = emotion_axes((values + drawn(400, SIZE, seed=8)[episode]) @ turn, label, episode, shrinkage=0.0)
    once, again = means @ axes[:, :4], means @ turn @ other[:, :4]
    torch.testing.assert_close(torch.cdist(once, once), torch.cdist(again, again), rtol=1e-6, atol=1e-6)


def test_shrinkage_keeps_axes_finite_where_clips_are_fewer_than_features():
    values, label, episode, *_ = tilted(n_labels=2, n_episodes=1, n_shot=2)
    axes = emotion_axes(values, label, episode)
    assert axes.shape == (SIZE, SIZE)
    assert bool(torch.isfinite(axes).all())
    assert emotion_axes(values.float(), label, episode).dtype == torch.float32


# --- prototypes


SETTINGS = {
    "encoder__hidden": 4, "encoder__embedding": SIZE, "fuzzy__n_rules": 3, "fuzzy__n_features": 2, "fuzzy__rank": 1,
    "fuzzy__n_consequents": 2, "meta_rnn__hidden": 3, "meta_rnn__n_layers": 1, "meta_rnn__task_size": 3,
    "train__device": "cpu", "train__precision": "float64",
}  # fmt: skip


@pytest.fixture(params=[0.0, 0.5], ids=["no-start", "start"])
def model(request):
    """Knows three of four emotions, worth and anchors anywhere."""
    known, config = torch.tensor([True, True, False, True]), RunConfig().replace(**SETTINGS, train__start=request.param)
    result = STF2M({"audio": (1, 2)}, {"audio": 0.1}, known, config).double()
    with torch.no_grad():
        if result.turned:
            result.log_worth_new.copy_(drawn(SIZE, seed=24))
        result.anchor.copy_(drawn(4, SIZE, seed=21))
        result.log_worth.copy_(drawn(2, SIZE, seed=22))
        result.log_worth_shift.copy_(drawn(SIZE, seed=23))
    return result


CLASSES = torch.tensor([[0, 2, 3], [3, 1, 0]])


def support_of(classes=CLASSES, own=(True, False), n_shot=2, seed=31):
    """Clips with soft labels and weights; nothing is encoded."""
    n_episodes, n_way = classes.shape
    target = torch.softmax(2 * drawn(n_episodes, n_way * n_shot, n_way, seed=seed), -1)
    weight = torch.rand(target.shape[:2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    person = torch.arange(n_way * n_shot).expand(n_episodes, -1) * 2 % 3  # three people, each in several classes
    return Support(None, None, target, weight, classes, torch.tensor(own), person, None)


def prototypes(model, embedding, support, trust=(0.0, 0.0)):
    return model.prototypes(embedding, support, torch.tensor(trust, dtype=torch.float64)).detach()


@torch.no_grad()
def slow_prototypes(model, embedding, support, trust):
    """The formula of one number at a time."""
    n_episodes, n_clips, n_way = support.target.shape
    result = torch.zeros(n_episodes, n_way, SIZE, dtype=torch.float64)
    for e, d in np.ndindex(n_episodes, SIZE):
        own = bool(support.own[e])
        shift_worth = math.exp(float(model.log_worth_shift[d]))
        others = math.exp(-float(model.log_worth[1, d])) + 1 / shift_worth
        count, mean, worth, start = [], [], [], []
        for w in range(n_way):
            label = int(support.classes[e, w])
            known = bool(model.known[label])
            share = [float(support.weight[e, i] * support.target[e, i, w]) for i in range(n_clips)]
            if known and not own:
                same = [[j for j in range(n_clips) if support.person[e, j] == person] for person in support.person[e]]
                people = [sum(share[j] for j in clips) for clips in same]
                share = [s * (1 + others) / (1 + n * others) for s, n in zip(share, people, strict=True)]
            count.append(sum(share))
            mean.append(sum(s * float(embedding[e, i, d]) for i, s in enumerate(share)) / count[-1])
            worth.append(math.exp(float(model.log_worth[int(own), d]) + trust[e]) if known else 0.0)
            start.append(float(model.anchor[label, d]))
        certainty = [n * k / (n + k) for n, k in zip(count, worth, strict=True)]
        pulled = sum(g * (m - a) for g, m, a in zip(certainty, mean, start, strict=True))
        shift = pulled / (sum(certainty) + shift_worth) if own else 0.0
        for w in range(n_way):
            start[w] += shift
            if model.turned and not bool(model.known[support.classes[e, w]]):
                start[w], worth[w] = sum(mean) / n_way, math.exp(float(model.log_worth_new[d]) + trust[e])
            pull = count[w] * mean[w] + worth[w] * start[w]
            result[e, w, d] = pull / (count[w] + worth[w])
    return result


@pytest.mark.parametrize("own", [(True, True), (False, False), (True, False)])
def test_prototypes_follow_the_formula_one_number_at_a_time(model, own):
    embedding, support, trust = drawn(2, 6, SIZE, seed=41), support_of(own=own), (0.7, -0.4)
    expected = slow_prototypes(model, embedding, support, trust)
    torch.testing.assert_close(prototypes(model, embedding, support, trust), expected, rtol=0, atol=1e-12)


def moves(model, own, constant):
    embedding, support = drawn(2, 6, SIZE, seed=41), support_of(own=(own, own))
    return prototypes(model, embedding + constant, support) - prototypes(model, embedding, support)


def test_what_a_person_adds_to_every_clip_moves_their_prototypes_with_it(model):
    constant = drawn(SIZE, seed=51)
    with torch.no_grad():
        model.log_worth_shift.fill_(-60.0)
    torch.testing.assert_close(moves(model, True, constant), constant.expand(2, 3, SIZE), rtol=0, atol=1e-10)
    with torch.no_grad():
        model.log_worth_shift.fill_(60.0)
    without = moves(model, True, constant)
    known = model.known[CLASSES]
    share = (without / constant)[known]
    assert 0 < float(share.min()) and float(share.max()) < 0.95, "a person held to be like all others was followed"


def test_with_someone_elses_query_nothing_is_shifted(model):
    support, constant = support_of(own=(False, False)), drawn(SIZE, seed=51)
    with torch.no_grad():
        model.log_worth[1] = model.log_worth_shift[:] = 60.0  # people are alike: every clip counts
    count = (support.weight[..., None] * support.target).sum(1)[..., None]
    worth = model.known[CLASSES][..., None] * model.log_worth[0].exp()
    moved = moves(model, False, constant)
    # after a start the mean that a new emotion shrinks to moves along
    old = model.known[CLASSES] if model.turned else torch.ones_like(CLASSES, dtype=torch.bool)
    torch.testing.assert_close(moved[old], (constant * count / (count + worth)).detach()[old])
    torch.testing.assert_close(moved[~old], constant.expand(2, 3, -1)[~old])


def test_other_people_are_counted_and_not_their_clips(model):
    """A hundred clips of one person never pass what one person is worth; those of a hundred people do."""
    with torch.no_grad():
        model.log_worth.fill_(0.0)
        model.log_worth_shift.fill_(30.0)  # no shift: what is left of a person is their habit, o = 1
    classes, at = torch.tensor([[0]]), 2.0 + torch.zeros(1, 100, SIZE, dtype=torch.float64)
    ones = torch.ones(1, 100, dtype=torch.float64)
    for person, worth in ((torch.zeros(1, 100).long(), 200 / 101), (torch.arange(100)[None], 100.0)):
        support = Support(None, None, ones[..., None], ones, classes, torch.tensor([False]), person, None)
        expected = (worth * 2.0 + model.anchor[0].detach()) / (worth + 1)
        torch.testing.assert_close(prototypes(model, at, support, (0.0,))[0, 0], expected, rtol=0, atol=1e-9)
    own = dataclasses.replace(support, own=torch.tensor([True]))
    alike = [dataclasses.replace(own, person=p) for p in (own.person, torch.zeros_like(own.person))]
    first, second = (prototypes(model, at, some, (0.0,)) for some in alike)
    assert torch.equal(first, second), "the support of the query's own person is of one person, whatever it is called"


@pytest.mark.parametrize("own", [True, False])
def test_unknown_emotions_get_plain_means_and_give_the_person_no_shift(model, own):
    embedding, support = drawn(2, 6, SIZE, seed=41), support_of(own=(own, own))
    share = support.weight[..., None] * support.target
    mean = torch.einsum("esw,esd->ewd", share, embedding) / share.sum(1)[..., None]
    if model.turned:
        with torch.no_grad():
            model.log_worth_new.fill_(-60.0)
    found = prototypes(model, embedding, support)
    torch.testing.assert_close(found[0, 1], mean[0, 1], rtol=0, atol=1e-12)
    assert float((found - mean)[model.known[CLASSES]].abs().min()) > 0
    hard = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0).repeat(2, 1, 1)
    sharp = dataclasses.replace(support, target=hard)
    other = embedding.clone()
    other[0, 2:4] += 100
    gap = prototypes(model, other, sharp) - prototypes(model, embedding, sharp)
    assert torch.equal(gap[0, [0, 2]], torch.zeros(2, SIZE, dtype=torch.float64))
    torch.testing.assert_close(gap[0, 1], torch.full((SIZE,), 100.0, dtype=torch.float64))


@pytest.mark.parametrize("n_shot", [1, 4])
def test_after_a_start_new_emotions_are_posterior_means_around_a_common_one(model, known, n_shot):
    """With clips of variance c and emotions of variance v around their mean, n clips count n / (n + c/v)."""
    model.known.fill_(False)
    model.know(known)
    support = hard(support_of(n_shot=n_shot))
    embedding = drawn(2, 3 * n_shot, SIZE, seed=41)
    mean = embedding.unflatten(1, (3, n_shot)).mean(2)
    if not model.turned:
        torch.testing.assert_close(prototypes(model, embedding, support), mean)
        return
    common = mean.mean(1, keepdim=True)
    trusted = n_shot / (n_shot + known.clip / known.emotion)
    torch.testing.assert_close(prototypes(model, embedding, support), common + trusted * (mean - common))
    assert float(trusted.min()) < 0.1 < 0.6 < float(trusted.max())


def test_renaming_the_classes_permutes_the_prototypes(model):
    embedding, support, order = drawn(2, 6, SIZE, seed=41), support_of(), torch.tensor([2, 0, 1])
    clip = (2 * order[:, None] + torch.arange(2)).flatten()
    renamed = dataclasses.replace(
        support,
        target=support.target[:, clip][..., order],
        weight=support.weight[:, clip],
        classes=CLASSES[:, order],
        person=support.person[:, clip],
    )
    plain = prototypes(model, embedding, support)
    torch.testing.assert_close(prototypes(model, embedding[:, clip], renamed), plain[:, order], rtol=0, atol=1e-12)
    assert float((plain - plain[:, order]).abs().min(-1).values.max()) > 1e-3


@pytest.mark.parametrize("own", [True, False])
def test_more_clips_bring_the_prototypes_closer_to_their_mean(model, own):
    classes, embedding = torch.tensor([[0, 1, 3]]), drawn(1, 3, SIZE, seed=41)
    gaps = []
    for n in (1, 10, 100, 1000):
        target = torch.eye(3, dtype=torch.float64).repeat(n, 1)[None]
        weight = torch.ones(1, 3 * n, dtype=torch.float64)
        person = torch.arange(3 * n)[None] // 3  # each of them shows every emotion once
        support = Support(None, None, target, weight, classes, torch.tensor([own]), person, None)
        gaps.append((prototypes(model, embedding.repeat(1, n, 1), support, (0.0,)) - embedding).norm())
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3]
    assert float(gaps[3]) < 0.02 < float(gaps[0])


# --- from moments to prototypes


@pytest.fixture
def known():
    clip = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0, 0.8], dtype=torch.float64)
    ratio = torch.tensor([0.1, 0.3, 0.5, 1.0, 0.2, 0.7], dtype=torch.float64)
    emotion = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.01, 0.1], dtype=torch.float64)
    return Knowledge(drawn(4, SIZE, seed=61), emotion, clip, clip * ratio, clip * (1.3 - ratio), n_persons=20)


def test_own_prototypes_are_the_posterior_means_of_the_gaussian_that_was_measured(model, known):
    """Conditioning the joint normal of all clips and a person's emotion means, feature by feature."""
    model.know(known)
    classes = torch.tensor([[0, 1, 3]])
    clip_class = torch.tensor([0, 0, 0, 1, 2, 2])
    target = torch.eye(3, dtype=torch.float64)[clip_class][None]
    support = Support(None, None, target, torch.ones(1, 6, dtype=torch.float64), classes, torch.tensor([True]),
                      torch.zeros(1, 6).long(), None)  # fmt: skip
    embedding = drawn(1, 6, SIZE, seed=71)
    found = prototypes(model, embedding, support, (0.0,))
    same = (clip_class[:, None] == torch.arange(3)).double()
    for d in range(SIZE):
        a, clip, habit, person = known.anchor[classes[0], d], known.clip[d], known.habit[d], known.person[d]
        of_clips = person + habit * same @ same.T + clip * torch.eye(6, dtype=torch.float64)
        cross = person + habit * same.T
        expected = a + cross @ torch.linalg.solve(of_clips, embedding[0, :, d] - a[clip_class])
        torch.testing.assert_close(found[0, :, d], expected, rtol=0, atol=1e-10)


def test_anchors_are_worth_more_beside_other_peoples_clips_than_beside_own(model, known):
    model.know(known)
    others, own = model.log_worth.detach().exp()
    assert bool((others > own).all())
    torch.testing.assert_close(model.anchor.detach(), known.anchor)
    # the mean of 20 persons against one clip of one more person: precisions of the emotion's mean
    total = known.habit + known.person
    torch.testing.assert_close(others, (known.clip + total) / (total / 20))
    support = {own: support_of(torch.tensor([[0, 1, 3]]), (own,)) for own in (True, False)}
    embedding = 5 + drawn(1, 6, SIZE, seed=41)
    start = known.anchor[[0, 1, 3]]
    follow = {own: prototypes(model, embedding, some, (0.0,)) - start for own, some in support.items()}
    assert bool((follow[True] > 2 * follow[False]).all()), "own clips do not correct more than other people's"


@pytest.mark.parametrize("own", [True, False])
def test_the_head_compares_densities_of_a_query_clip(model, known, own):
    """W . e + b differs between classes as log-densities do; own prototypes doubt the habit, others' the person too."""
    model.know(known)
    support = support_of(torch.tensor([[0, 1, 3]]), (own,))
    embedding, query = drawn(1, 6, SIZE, seed=41), drawn(SIZE, seed=43)
    seen = type("Seen", (), {"embedding": embedding})
    trust = torch.zeros(1, dtype=torch.float64)
    theta = model._with_head(model.unmodulated(1), seen, support, 0.0, trust)
    logits = model.head(query[None, None], theta, support)[0, 0].detach()
    # what one own clip leaves unknown of a habit, by conditioning two normals
    left = known.habit - known.habit**2 / (known.habit + known.clip)
    variance = known.clip + (left if own else known.habit + known.person)
    center = prototypes(model, embedding, support, (0.0,))[0]
    density = torch.distributions.Normal(center, variance.sqrt()).log_prob(query).sum(-1)
    torch.testing.assert_close(logits - logits[0], density - density[0], rtol=0, atol=1e-9)


def without_clip(support, clip):
    """The same support, of which one clip weighs nothing."""
    weight = support.weight.clone()
    weight[:, clip] = 0
    return dataclasses.replace(support, weight=weight)


def hard(support):
    """The same support with hard labels, class by class, and even weights."""
    n_way = support.target.shape[-1]
    label = torch.arange(n_way).repeat_interleave(support.target.shape[1] // n_way)
    target = torch.nn.functional.one_hot(label, n_way).double().expand_as(support.target)
    return dataclasses.replace(support, target=target, weight=torch.ones_like(support.weight))


@pytest.mark.parametrize("own", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("labels", [hard, lambda support: support], ids=["hard", "soft"])
@pytest.mark.parametrize("n_shot", [1, 3])
def test_prototypes_without_a_clip_are_those_of_a_support_in_which_it_weighs_nothing(model, own, labels, n_shot):
    support, trust = labels(support_of(own=own, n_shot=n_shot)), torch.tensor((0.7, -0.4), dtype=torch.float64)
    n_clips = 3 * n_shot
    embedding = drawn(2, n_clips, SIZE, seed=41)
    found = model.prototypes(embedding, support, trust, left_out=True).detach()
    assert found.shape == (2, n_clips, 3, SIZE)
    for clip in range(n_clips):
        expected = prototypes(model, embedding, without_clip(support, clip), (0.7, -0.4))
        torch.testing.assert_close(found[:, clip], expected, rtol=0, atol=1e-12)
    if labels is hard and n_shot == 1 and model.turned:
        torch.testing.assert_close(found[0, 1, 1], embedding[0, [0, 2]].mean(0))  # nothing is left: the others' mean
    elif labels is hard and n_shot == 1:
        assert float(found[0, 1, 1].abs().max()) == 0, "nothing is left of the new emotion"
    moved = embedding.clone()
    moved[:, 0] += 5
    again = model.prototypes(moved, support, trust, left_out=True).detach()
    torch.testing.assert_close(again[:, 0], found[:, 0], rtol=0, atol=1e-12)
    assert float((again[:, 1] - found[:, 1]).abs().max()) > 1e-3


def test_the_share_of_a_class_that_is_there_without_a_clip_is_one_less_of_n():
    for n_shot in (1, 2, 5):
        left = hard(support_of(n_shot=n_shot)).left
        torch.testing.assert_close(left, torch.full_like(left, (n_shot - 1) / n_shot))
        assert bool(left.any()) == (n_shot > 1)
    support = support_of(n_shot=2)
    for e, i in np.ndindex(2, 6):
        share = (support.weight[e][:, None] * support.target[e]).numpy()
        rest = [share[:, w].sum() - share[i, w] for w in range(3)]
        expected = sum(float(support.target[e, i, w]) * rest[w] / share[:, w].sum() for w in range(3))
        assert float(support.left[e, i]) == pytest.approx(expected)


@pytest.mark.parametrize("own", [(True, False), (False, True)])
def test_the_head_is_a_linear_one_and_without_a_clip_measures_distances_to_centers_it_did_not_add_to(model, own):
    with torch.no_grad():
        model.log_metric.copy_(drawn(2, SIZE, seed=61))
    support, embedding = support_of(own=own), drawn(2, 6, SIZE, seed=41)
    trust = torch.zeros(2, dtype=torch.float64)
    seen = type("Seen", (), {"embedding": embedding})
    start = model._with_head(model.unmodulated(2), seen, support, drawn(2, 3, SIZE, seed=62), trust)
    change = {"metric": drawn(2, SIZE, seed=63), "bias": drawn(2, 3, seed=64)}
    theta = dataclasses.replace(start, center=start.center + drawn(2, 3, SIZE, seed=65), **change)
    views = drawn(2, 12, SIZE, seed=66)
    plain = model.head(views, theta, support).detach()
    without = model.head(views, theta, support, left_out=True).detach()
    for e in range(2):
        metric = (model.log_metric[int(own[e])] + theta.metric[e] - model.log_temperature).exp().detach()
        for view, w in np.ndindex(12, 3):
            x, v = views[e, view], theta.residual[e, w]
            center = theta.center[e, w].detach()
            weight, bias = 2 * metric * center + v, theta.bias[e, w] - (metric * center**2).sum()
            assert float(plain[e, view, w]) == pytest.approx(float(weight @ x + bias), abs=1e-10)
            rest = prototypes(model, embedding, without_clip(support, view % 6), (0.0, 0.0))[e, w]
            center = rest + (theta.center - start.center)[e, w].detach()
            near = (metric * (x**2 - (x - center) ** 2)).sum() + v @ x + theta.bias[e, w]
            assert float(without[e, view, w]) == pytest.approx(float(near), abs=1e-10)
    assert float((plain - without).abs().max()) > 1e-2


# --- whose query it is, from the sampler to the support


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    clips, views = generate(SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=4))
    # four sessions of each person
    session = clips.groupby("subject").cumcount() % 4
    clips["group"] = clips["subject"].astype(str) + "-" + session.astype(str)
    return open_pack(write_pack(tmp_path_factory.mktemp("knowledge") / "pack", clips, views, LABELS, name="tiny"))


def episodes(pack, regime, n=4):
    config = RunConfig().replace(split__n_val_subjects=3, **SETTINGS)
    kind = EpisodeConfig(regime=regime, n_way=2, n_shot=1, n_query=1)
    splits = split_subjects(pack, config.split)
    return EpisodeSampler(pack, splits, "meta_train", kind, 0).sample(0, n), kind, splits, config


@pytest.mark.parametrize("regime, own", [("P", True), ("D", False)])
def test_an_episode_says_whether_its_query_is_of_the_supports_person_wherever_it_goes(pack, tmp_path, regime, own):
    batch, kind, *_ = episodes(pack, regime)
    assert batch.own.dtype == torch.bool
    assert batch.own.tolist() == [own] * 4
    person = pack.clips["subject"].to_numpy(str)
    for i in range(4):
        same = set(person[batch.support[i].flatten()]) == set(person[batch.query[i]])
        assert same is own
    assert batch.to("cpu").own.tolist() == [own] * 4
    assert batch[1:3].own.tolist() == [own] * 2
    again = load_episodes(save_episodes(tmp_path / "episodes.json", batch, pack, kind), pack)
    assert again.own.dtype == torch.bool
    assert again.own.tolist() == [own] * 4


def test_episodes_of_both_kinds_keep_their_order_in_slices_and_files(pack, tmp_path):
    batch, kind, *_ = episodes(pack, "P")
    mixed = dataclasses.replace(batch, own=torch.tensor([True, False, False, True]))
    assert mixed[2:].own.tolist() == [False, True]
    again = load_episodes(save_episodes(tmp_path / "episodes.json", mixed, pack, kind), pack)
    assert again.to("cpu").own.tolist() == [True, False, False, True]
    told = EpisodeBatch(batch.ids, batch.classes, batch.support, batch.query, batch.query_label)
    assert told.own.tolist() == [False] * 4


def test_the_encoded_support_knows_whose_query_it_is_and_answers_by_it(pack):
    batch, _, splits, config = episodes(pack, "P", 2)
    data = ResidentViews(pack, config.views, "cpu")
    model = build(data, splits, config)
    said = {}
    for own in (True, False):
        some = dataclasses.replace(batch, own=torch.tensor([own, own]))
        support = encode_episodes(model, data, some, seed=0, stream="test").support
        assert support.own.tolist() == [own, own]
        said[own] = model.start(support).center.detach()
    assert float((said[True] - said[False]).abs().max()) > 1e-3


def test_a_fresh_model_starts_from_the_moments_of_meta_train(pack):
    _, _, splits, config = episodes(pack, "P", 2)
    data = ResidentViews(pack, config.views, "cpu")
    model = build(data, splits, config)
    rows = torch.from_numpy(splits.rows["meta_train"])
    views = {name: standardised(data.gather(rows), data.training_statistics(rows), 1)[name] for name in data.shapes}
    for name, some in views.items():
        path = model.encoder.level[name]
        standard = (moments(some).double() - path.shift) / path.scale
        varies = torch.isfinite(path.scale)
        assert int(varies.sum()) > 0
        torch.testing.assert_close(standard.mean(0), torch.zeros_like(path.shift), rtol=0, atol=1e-4)
        torch.testing.assert_close(standard[:, varies].std(0), torch.ones_like(path.shift[varies]), rtol=1e-3, atol=0)
