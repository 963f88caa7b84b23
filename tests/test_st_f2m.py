"""The whole model: inner loop against closed forms, meta-gradient against differences, and what must not change it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import LABELS, SynEmoConfig, generate
from stf2m_core.encoding import encode_episodes
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import ConfigError
from stf2m_core.experiment import READINGS
from stf2m_core.model.st_f2m import STF2M, FastWeights
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import build, outer_loss
from stf2m_core.views import ResidentViews

D_EPISODE = EpisodeConfig(regime="D", n_way=3, n_shot=2, n_query=3)
SETTINGS = {
    "split__n_val_subjects": 3,
    "encoder__hidden": 8,
    "encoder__embedding": 12,
    "encoder__dropout": 0.0,
    "fuzzy__n_rules": 6,
    "fuzzy__n_features": 4,
    "fuzzy__rank": 2,
    "fuzzy__n_consequents": 4,
    "meta_rnn__hidden": 4,
    "meta_rnn__n_layers": 1,
    "meta_rnn__task_size": 5,
    "inner__clip_norm": 1e6,
    "train__device": "cpu",
    "train__precision": "float64",
}


def shortened(clips, views, seed=0):
    """The same clips, every third cut to 60 % of its time, so that batches need padding."""
    cut = np.random.default_rng(seed).random(len(clips)) < 1 / 3
    duration = clips["duration_s"].to_numpy() * np.where(cut, 0.6, 1.0)
    result = {}
    for name, view in views.items():
        clip = np.repeat(np.arange(len(clips)), np.diff(view.offsets))
        keep = view.times < duration[clip]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(clip[keep], minlength=len(clips)))])
        mask = None if view.mask is None else view.mask[keep]
        changes = {"values": view.values[keep], "times": view.times[keep], "mask": mask, "rate_hz": None}
        result[name] = dataclasses.replace(view, offsets=offsets, **changes)
    return clips.assign(duration_s=duration), result


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """576 clips of 12 people with votes, missing modalities, dead nodes and two lengths."""
    size = SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=2)
    clips, views = shortened(*generate(size))
    return open_pack(write_pack(tmp_path_factory.mktemp("st_f2m") / "pack", clips, views, LABELS, name="tiny"))


class World:
    """A model whose every weight was moved off its start, data, and episodes."""

    def __init__(self, pack, **changes):
        self.config = RunConfig().replace(**SETTINGS | changes)
        self.splits = split_subjects(pack, self.config.split)
        self.data = ResidentViews(pack, self.config.views, "cpu")
        self.model = build(self.data, self.splits, self.config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter.dtype))

    def episodes(self, pack, n=2, config=D_EPISODE, first=0):
        return EpisodeSampler(pack, self.splits, "meta_train", config, 0).sample(first, n)

    def encode(self, batch, **facts):
        return encode_episodes(self.model, self.data, batch, seed=0, stream="test", **facts)

    def answer(self, batch, n_steps=2, **facts):
        encoding = self.encode(batch, **facts)
        theta = self.model.adapt(encoding.support, n_steps)[-1]
        return self.model.predict(encoding.query, theta, encoding.support).log_probability.detach()


@pytest.fixture(scope="module")
def world(pack):
    return World(pack)


@pytest.fixture(scope="module", params=READINGS)
def reading(request, pack):
    """A world of another reading, with few inner steps."""
    steps = {f"inner__steps_{part}": 2 for part in ("train", "test")}
    made = World(pack, **steps | READINGS[request.param])
    made.name = request.param
    return made


def with_rates(model, rate):
    """Set every inner learning rate to one number."""
    raw = math.log(math.expm1(rate)) if rate > 1e-20 else -800.0
    with torch.no_grad():
        for parameter in model.rates.values():
            parameter.fill_(raw)


def tensors(theta):
    return {field.name: getattr(theta, field.name) for field in dataclasses.fields(FastWeights)}


# --- what a prediction may depend on


def test_a_query_alone_is_answered_as_among_others(pack, world):  # I-13
    batch = world.episodes(pack)
    together = world.answer(batch)
    assert len({int(n) for n in world.data.modalities["audio"].offsets.diff()[batch.query].flatten()}) > 2, "no padding"
    for i in range(batch.query.shape[1]):
        one = dataclasses.replace(batch, query=batch.query[:, i : i + 1], query_label=batch.query_label[:, i : i + 1])
        torch.testing.assert_close(world.answer(one), together[:, i : i + 1], rtol=0, atol=1e-6)
    assert float((together[:, 0] - together[:, 1]).abs().max()) > 1e-3, "all queries are answered alike"


def test_an_episode_alone_is_answered_as_among_others(pack, world):  # I-13
    batch = world.episodes(pack, 4)
    together = world.answer(batch)
    alone = torch.cat([world.answer(batch[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_two_episodes_share_no_fast_state(pack, world):  # I-30
    encoding = world.encode(world.episodes(pack))
    support = encoding.support
    before = world.model.adapt(support, 3)[-1]
    n = len(support.clean.normed) // 2

    def disturbed(encoded):
        normed = encoded.normed.detach().clone()
        normed[:n] += torch.randn(normed[:n].shape, generator=torch.Generator().manual_seed(0), dtype=normed.dtype)
        return dataclasses.replace(encoded, normed=normed)

    other = dataclasses.replace(support, clean=disturbed(support.clean), views=disturbed(support.views))
    after = world.model.adapt(other, 3)[-1]
    for name, tensor in tensors(before).items():
        assert torch.equal(tensor[1], tensors(after)[name][1]), name
        assert not torch.equal(tensor[0], tensors(after)[name][0]), name
    said = [world.model.predict(encoding.query, t, s).log_probability for t, s in ((before, support), (after, other))]
    assert torch.equal(said[0][1], said[1][1])
    assert float((said[0][0] - said[1][0]).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("second_order", [False, True])
def test_adapting_leaves_every_weight_and_buffer_as_it_was(pack, world, second_order):  # I-30
    before = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}
    support = world.encode(world.episodes(pack)).support
    path = world.model.adapt(support, 3, second_order=second_order)
    assert all(torch.equal(tensor, before[name]) for name, tensor in world.model.state_dict().items())
    assert all(parameter.grad is None for parameter in world.model.parameters())
    assert not any(tensor.requires_grad for theta in path for tensor in tensors(theta).values())
    assert len(path) == 4
    assert float((path[3].center - path[0].center).abs().max()) > 1e-4, "nothing was adapted"


@pytest.mark.parametrize("fast", [("head",), ("fuzzy",), ("film",), ("head", "film")])
def test_only_the_chosen_groups_adapt(pack, fast):
    world = World(pack, inner__fast=fast)
    first, *_, last = world.model.adapt(world.encode(world.episodes(pack)).support, 2)
    groups = {"head": {"center", "metric", "bias"}, "fuzzy": {"consequent", "shift"}, "film": {"gamma", "beta"}}
    moved = {name for name, tensor in tensors(first).items() if not torch.equal(tensor, tensors(last)[name])}
    assert moved == set().union(*(groups[group] for group in fast)) == set(world.model.rates)


def test_centers_stay_where_their_rate_is_zero_and_groups_have_rates_of_their_own(pack):
    changes = {"inner__rate": 0.5, "inner__center_rate": 0.0, "inner__fuzzy_rate": 3.0, "inner__film_rate": 0.1}
    fresh = STF2M({"audio": (1, 2)}, {"audio": 0.1}, torch.ones(4, dtype=torch.bool), RunConfig().replace(**changes))
    rates = {name: torch.nn.functional.softplus(raw) for name, raw in fresh.rates.items()}
    expected = {"metric": 0.5, "consequent": 1.5, "shift": 1.5, "gamma": 0.05, "beta": 0.05}
    assert set(rates) == set(expected)
    for name, rate in expected.items():
        torch.testing.assert_close(rates[name], torch.full_like(rates[name], rate))
    world = World(pack, **changes)
    first, *_, last = world.model.adapt(world.encode(world.episodes(pack)).support, 2)
    moved = {name for name, tensor in tensors(first).items() if not torch.equal(tensor, tensors(last)[name])}
    assert moved == set(expected)


def permuted(batch, order):
    """The same episodes with their classes renamed: new class i is old class order[i]."""
    renamed = torch.argsort(order)[batch.query_label]
    return EpisodeBatch(batch.ids, batch.classes[:, order], batch.support[:, order], batch.query, renamed)


@pytest.mark.parametrize("label_knowledge, left_out", [(True, True), (False, True), (True, False)])
def test_renaming_the_classes_renames_the_answer(pack, label_knowledge, left_out):  # I-31
    world = World(pack, inner__label_knowledge=label_knowledge, inner__left_out=left_out)
    support = world.encode(world.episodes(pack)).support
    encoding, order = world.encode(world.episodes(pack)), torch.tensor([2, 0, 1])
    n_shot = D_EPISODE.n_shot
    clip = (order[:, None] * n_shot + torch.arange(n_shot)).flatten()

    def moved(encoded):
        names = [field.name for field in dataclasses.fields(encoded)]
        return type(encoded)(*(getattr(encoded, n).unflatten(0, (2, -1))[:, clip].flatten(0, 1) for n in names))

    other = dataclasses.replace(
        support, clean=moved(support.clean), views=moved(support.views), weight=support.weight[:, clip],
        target=support.target[:, clip][..., order], classes=support.classes[:, order], order=support.order[:, :, order],
    )  # fmt: skip
    said = []
    for some in (support, other):
        theta = world.model.adapt(some, 3)[-1]
        said.append(world.model.predict(encoding.query, theta, some).log_probability.exp().detach())
    torch.testing.assert_close(said[1], said[0][..., order], rtol=0, atol=1e-6)
    assert float((said[0] - said[0][..., order]).abs().max()) > 1e-3, "the classes cannot be told apart"


@pytest.mark.parametrize("n_views, n_shot", [(0, 1), (1, 1), (1, 2)])
def test_renaming_the_classes_of_drawn_episodes_renames_the_answer(pack, n_views, n_shot):
    world = World(pack, inner__n_views=n_views)
    batch, order = world.episodes(pack, 3, dataclasses.replace(D_EPISODE, n_shot=n_shot)), torch.tensor([1, 2, 0])
    said = world.answer(batch, 3).exp()
    torch.testing.assert_close(world.answer(permuted(batch, order), 3).exp(), said[..., order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_way, n_shot", [(2, 1), (5, 1), (3, 3), (6, 2)])
def test_a_model_answers_episodes_of_any_way_and_shot(pack, world, n_way, n_shot):  # I-33
    config = EpisodeConfig(regime="D", n_way=n_way, n_shot=n_shot, n_query=1)
    said = world.answer(world.episodes(pack, 2, config))
    assert said.shape == (2, n_way, n_way)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(2, n_way, dtype=torch.float64))


# --- no clip votes for itself


def hard_support(world, pack, n_shot, n_episodes=2):
    """A support with hard labels and even weights, as of a pack without votes."""
    config = dataclasses.replace(D_EPISODE, n_shot=n_shot)
    encoding = world.encode(world.episodes(pack, n_episodes, config))
    target = torch.eye(3, dtype=torch.float64).repeat_interleave(n_shot, 0).expand_as(encoding.support.target)
    weight = torch.ones_like(encoding.support.weight)
    return dataclasses.replace(encoding.support, target=target, weight=weight)


@pytest.mark.parametrize("differentiable", [False, True])
def test_with_one_shot_nothing_is_learned_and_with_two_shots_it_is(pack, world, differentiable):
    one, two = (hard_support(world, pack, n_shot) for n_shot in (1, 2))
    path = world.model.adapt(one, 3, differentiable=differentiable)
    assert len(path) == 4
    for theta in path[1:]:
        assert all(torch.equal(t, tensors(path[0])[name]) for name, t in tensors(theta).items())
    assert (world.model.inner_loss(path[0], one) == 0).all()
    first, *_, last = world.model.adapt(two, 3, differentiable=differentiable)
    still = {name for name, t in tensors(last).items() if torch.equal(t, tensors(first)[name])}
    assert still == {"residual", "own"}


@pytest.mark.parametrize("left_out", [True, False])
def test_the_inner_loss_is_that_of_answers_to_which_a_clip_itself_adds_nothing_if_so_wished(pack, left_out):
    world = World(pack, inner__left_out=left_out)
    support = world.encode(world.episodes(pack)).support
    model, target, weight = world.model, support.target, support.weight
    theta = model.adapt(support, 2)[-1]
    share = weight[..., None] * target
    total = torch.zeros(2, dtype=torch.float64)
    for clip in range(target.shape[1]):
        some, fast, left = support, theta, torch.ones(2, dtype=torch.float64)
        if left_out:
            lighter = weight.clone()
            lighter[:, clip] = 0
            some = dataclasses.replace(support, weight=lighter)
            fast = dataclasses.replace(theta, center=theta.center - theta.own[:, clip])
            left = (target[:, clip] * (share.sum(1) - share[:, clip]) / share.sum(1)).sum(-1)
        said = model.predict(support.views, fast, some).log_probability[:, clip]
        total += weight[:, clip] * left * -(target[:, clip] * said).sum(-1).detach()
    torch.testing.assert_close(model.inner_loss(theta, support).detach(), total / weight.sum(1), rtol=0, atol=1e-9)


def test_a_clip_that_votes_for_itself_is_learned_from_even_alone(pack):
    world = World(pack, inner__left_out=False)
    support = hard_support(world, pack, 1)
    first, last = world.model.adapt(support, 1)
    assert first.own.numel() == 0
    assert float((last.center - first.center).abs().max()) > 1e-4
    assert bool((world.model.inner_loss(first, support) > 1e-4).all())


# --- the inner loop


def test_without_steps_or_with_rates_of_zero_the_fast_weights_stay_where_they_start(pack):  # I-27
    world = World(pack)
    encoding = world.encode(world.episodes(pack))
    start = world.model.adapt(encoding.support, 0)
    assert len(start) == 1
    moved = world.model.adapt(encoding.support, 4)[-1]
    with_rates(world.model, 0.0)
    still = world.model.adapt(encoding.support, 4)[-1]
    for name, tensor in tensors(start[0]).items():
        torch.testing.assert_close(tensors(still)[name], tensor, rtol=0, atol=1e-12)
        adapts = name in world.model.adapting  # what a clip itself added to the head stays as it was at the start
        assert torch.equal(tensors(moved)[name], tensor) != adapts, name
    answers = [world.model.predict(encoding.query, t, encoding.support).log_probability for t in (start[0], still)]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-12)


def test_the_inner_loss_falls_by_the_rate_times_the_squared_gradient(pack):  # I-34
    world = World(pack)
    with_rates(world.model, 1e-5)
    support = world.encode(world.episodes(pack, 3)).support
    first, second = world.model.adapt(support, 1)
    leaves = {name: tensors(first)[name].detach().requires_grad_() for name in world.model.adapting}
    loss = world.model.inner_loss(dataclasses.replace(first, **leaves), support)
    gradient = torch.autograd.grad(loss.sum(), list(leaves.values()))
    squared = sum((g**2).flatten(1).sum(1) for g in gradient)
    fall = world.model.inner_loss(second, support) - loss
    assert float(squared.min()) > 1e-4
    torch.testing.assert_close(fall.detach(), -1e-5 * squared, rtol=1e-3, atol=0)


class Quadratic(STF2M):
    """The inner loop with L = 1/2 (t - a)' A (t - a) in t = [center, metric, bias] of the head; no model."""

    def place(self, start, goal, curvature):
        self.begin, self.goal, self.curvature = start, goal, curvature
        return self

    def start(self, support, *, conditioned=True):
        return self.begin

    def inner_loss(self, theta, support):
        gap = flat(theta) - self.goal
        return 0.5 * torch.einsum("ei,eij,ej->e", gap, self.curvature, gap)


def flat(theta):
    return torch.cat([theta.center.flatten(1), theta.metric, theta.bias], 1)


@pytest.fixture
def quadratic(pack):
    """Two episodes with different matrices, goals and starts; rate 0.1."""

    def make(rate=0.1, clip_norm=1e6):
        world = World(pack, inner__fast=("head",), inner__clip_norm=clip_norm, inner__left_out=False)
        world.model.__class__ = Quadratic
        with_rates(world.model, rate)
        generator = torch.Generator().manual_seed(3)
        n_way, size, n_episodes = 3, world.config.encoder.embedding, 2
        total = n_way * size + size + n_way
        goal = torch.randn(n_episodes, total, generator=generator, dtype=torch.float64)
        spread = torch.randn(2, n_episodes, total, total, generator=generator, dtype=torch.float64) / total**0.5
        inner, outer = spread @ spread.transpose(2, 3)
        plain = world.model.unmodulated(n_episodes)
        center, metric, bias = (
            torch.randn(n_episodes, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
            for shape in ((n_way, size), (size,), (n_way,))
        )
        start = dataclasses.replace(plain, center=center, metric=metric, bias=bias)
        return world.model.place(start, goal, inner), start, goal, inner, outer

    return make


def meta_loss(theta, goal, matrix):
    gap = flat(theta) - goal
    return 0.5 * torch.einsum("ei,eij,ej->", gap, matrix, gap)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_steps_on_a_quadratic_follow_its_closed_form(quadratic, n_steps):  # I-28
    model, start, goal, inner, _ = quadratic()
    last = model.adapt(None, n_steps, differentiable=True)[-1]
    shrink = torch.linalg.matrix_power(torch.eye(inner.shape[-1], dtype=torch.float64) - 0.1 * inner, n_steps)
    expected = goal + torch.einsum("eij,ej->ei", shrink, flat(start) - goal)
    torch.testing.assert_close(flat(last), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_meta_gradient_of_a_quadratic_is_that_of_its_closed_form(quadratic, n_steps):  # I-28
    model, start, goal, inner, outer = quadratic()
    shrink = torch.linalg.matrix_power(torch.eye(inner.shape[-1], dtype=torch.float64) - 0.1 * inner, n_steps)
    other = goal.flip(0) + 1
    found = {}
    for second_order in (True, False):
        last = model.adapt(None, n_steps, second_order=second_order, differentiable=True)[-1]
        gradient = torch.autograd.grad(meta_loss(last, other, outer), [start.center, start.metric, start.bias])
        found[second_order] = torch.cat([gradient[0].flatten(1), *gradient[1:]], 1)
        first_order = torch.einsum("eij,ej->ei", outer, flat(last) - other)
    torch.testing.assert_close(found[False], first_order, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[True], torch.einsum("eji,ej->ei", shrink, first_order), rtol=0, atol=1e-10)
    assert float((found[True] - found[False]).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("second_order", [True, False])
def test_the_derivative_by_the_inner_rate_after_one_step_is_its_closed_form(quadratic, second_order):
    model, start, goal, inner, outer = quadratic()
    other = goal.flip(0) + 1
    last = model.adapt(None, 1, second_order=second_order, differentiable=True)[-1]
    rates = list(model.rates.values())
    gradient = torch.autograd.grad(meta_loss(last, other, outer), rates)
    # chain rule backwards through softplus: d rate / d raw = 1 - exp(-rate)
    by_rate = sum(g.sum() for g in gradient) / -math.expm1(-0.1)
    slope = torch.einsum("eij,ej->ei", inner, flat(start) - goal)
    expected = -torch.einsum("ei,eij,ej->", slope, outer, flat(last) - other)
    torch.testing.assert_close(by_rate, expected.detach(), rtol=1e-10, atol=0)


def test_an_inner_gradient_is_cut_to_its_bound_for_each_episode_alone(quadratic):
    model, start, goal, inner, _ = quadratic()
    norm = torch.einsum("eij,ej->ei", inner, (flat(start) - goal).detach()).norm(dim=1)
    bound = float(norm.mean())
    assert norm.min() < bound < norm.max()
    model, start, *_ = quadratic(clip_norm=bound)
    step = (flat(model.adapt(None, 1, differentiable=True)[-1]) - flat(start)).detach().norm(dim=1)
    torch.testing.assert_close(step, 0.1 * norm.clamp(max=bound), rtol=1e-10, atol=0)


# --- the meta-gradient


def outer(world, batch, second_order, n_steps=2, slopes=None):
    """The outer loss from the episodes on; with `slopes`, inner steps along these in place of gradients."""
    model, encoding = world.model, world.encode(batch)
    if slopes is None:
        path = model.adapt(encoding.support, n_steps, second_order=second_order, differentiable=True)
    else:
        path = [model.start(encoding.support)]
        for slope in slopes:
            here = tensors(path[-1])
            rate = {name: torch.nn.functional.softplus(raw) for name, raw in model.rates.items()}
            path.append(dataclasses.replace(path[-1], **{n: here[n] - rate[n] * slope[n] for n in slope}))
    return outer_loss(model, encoding, path, 0.3, "second order")[0]


def gradient_of(world, loss):
    gradient = torch.autograd.grad(loss, list(world.model.parameters()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(world.model.named_parameters(), gradient, strict=True)
    }


def along(world, gradient, direction):
    return sum(float((gradient[name] * direction[name]).sum()) for name in direction)


def difference(world, direction, loss, size=1e-5):
    """Central difference of the loss along a direction of the weights, which are as before afterwards."""
    before = {name: parameter.detach().clone() for name, parameter in world.model.named_parameters()}
    values = []
    for sign in (1, -1):
        moved = {name: tensor + sign * size * direction.get(name, 0) for name, tensor in before.items()}
        world.model.load_state_dict(moved, strict=False)
        values.append(loss())
    world.model.load_state_dict(before, strict=False)
    return (values[0] - values[1]) / (2 * size)


def directions(world, n=5):
    """Random directions of all weights, and one of each part of the model alone."""
    generator = torch.Generator().manual_seed(11)
    draw = [
        {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in world.model.named_parameters()}
        for _ in range(n)
    ]
    parts = ("encoder.level1", "encoder.joint", "rules", "task_encoder.rnn", "task_encoder", "rates", "anchor", "log_")
    draw += [{name: step for name, step in draw[0].items() if name.startswith(part)} for part in parts]
    lengths = [math.sqrt(sum(float((step**2).sum()) for step in direction.values())) for direction in draw]
    return [{n: s / length for n, s in d.items()} for d, length in zip(draw, lengths, strict=True)]


def test_the_second_order_meta_gradient_of_the_whole_model_equals_central_differences(pack, world):  # I-29
    batch = world.episodes(pack)
    gradient = gradient_of(world, outer(world, batch, True))
    for number, direction in enumerate(directions(world)):
        expected = difference(world, direction, lambda: float(outer(world, batch, True).detach()))
        assert abs(expected) > 1e-5, "flat along this direction: nothing is tested"
        assert along(world, gradient, direction) == pytest.approx(expected, rel=1e-5), number


def test_the_first_order_meta_gradient_is_that_of_steps_along_fixed_slopes(pack, world):  # I-29
    batch, model = world.episodes(pack), world.model
    support, slopes = world.encode(batch).support, []
    for theta in model.adapt(support, 2)[:2]:
        leaves = {name: tensors(theta)[name].detach().requires_grad_() for name in model.adapting}
        loss = model.inner_loss(dataclasses.replace(theta, **leaves), support).sum()
        slopes.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
    found = gradient_of(world, outer(world, batch, False))
    expected = gradient_of(world, outer(world, batch, False, slopes=slopes))
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    second = gradient_of(world, outer(world, batch, True))
    gap = math.sqrt(sum(float(((second[n] - found[n]) ** 2).sum()) for n in found))
    size = math.sqrt(sum(float((second[n] ** 2).sum()) for n in found))
    assert gap > 1e-3 * size, "second order adds nothing"


CANNOT_MATTER = {
    # text has one node: the softmax over its learned graph has one entry, which is one
    "encoder.level1.text.block.spatial.source",
    "encoder.level1.text.block.spatial.target",
    # text has one frame: all of it is level, which goes round the convolutions
    "encoder.level1.text.weight",
}


def test_every_weight_gets_a_gradient_in_second_order_except_those_that_cannot_matter(pack, world):  # I-37
    gradient = gradient_of(world, outer(world, world.episodes(pack, 4), True))
    silent = {name for name, g in gradient.items() if not float(g.abs().max()) > 1e-10}
    assert silent == CANNOT_MATTER
    assert all(bool(torch.isfinite(g).all()) for g in gradient.values())


def test_at_the_start_the_recurrent_network_gets_no_gradient_but_its_generators_do(pack):  # I-37
    world = World(pack, encoder__level_path=False)
    fresh = build(world.data, world.splits, world.config)
    world.model = fresh
    gradient = gradient_of(world, outer(world, world.episodes(pack), True))
    assert all(float(g.abs().max()) == 0 for name, g in gradient.items() if name.startswith("task_encoder.rnn"))
    assert float(gradient["task_encoder.film.weight"].abs().max()) > 0
    assert float(gradient["task_encoder.head.weight"].abs().max()) > 0


def test_a_path_that_is_not_differentiable_equals_one_that_is(pack, world):
    support = world.encode(world.episodes(pack)).support
    plain = world.model.adapt(support, 3)
    kept = world.model.adapt(support, 3, second_order=True, differentiable=True)
    for one, other in zip(plain, kept, strict=True):
        for name, tensor in tensors(one).items():
            torch.testing.assert_close(tensors(other)[name].detach(), tensor, rtol=0, atol=1e-12)


# --- other readings


def test_every_reading_answers_a_query_and_an_episode_alone_as_among_others(pack, reading):  # I-13
    batch, n_steps = reading.episodes(pack), reading.config.inner.steps_test
    together = reading.answer(batch, n_steps)
    alone = torch.cat([reading.answer(batch[i : i + 1], n_steps) for i in range(2)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    one = dataclasses.replace(batch, query=batch.query[:, 1:2], query_label=batch.query_label[:, 1:2])
    torch.testing.assert_close(reading.answer(one, n_steps), together[:, 1:2], rtol=0, atol=1e-6)
    assert float((together[:, 0] - together[:, 1]).abs().max()) > 1e-4, "all queries are answered alike"


def test_renaming_the_classes_renames_the_answer_of_every_reading(pack, reading):  # I-31
    batch, order, n_steps = reading.episodes(pack, 3), torch.tensor([1, 2, 0]), reading.config.inner.steps_test
    said = reading.answer(batch, n_steps).exp()
    torch.testing.assert_close(reading.answer(permuted(batch, order), n_steps).exp(), said[..., order],
                               rtol=0, atol=1e-6)  # fmt: skip
    assert float((said - said[..., order]).abs().max()) > 1e-3, "the classes cannot be told apart"


def test_the_meta_gradient_of_every_reading_equals_central_differences(pack, reading):
    batch, n_steps = reading.episodes(pack), reading.config.inner.steps_train

    def loss():
        return outer(reading, batch, True, n_steps)

    gradient, direction = gradient_of(reading, loss()), directions(reading, 1)[0]
    expected = difference(reading, direction, lambda: float(loss().detach()))
    assert abs(expected) > 1e-5, "flat along this direction: nothing is tested"
    assert along(reading, gradient, direction) == pytest.approx(expected, rel=1e-5)


NEVER_ADAPTED = {"zero-order", "recurrent-learner"}
NOT_ASKED = {
    # a word of one moment is in one slot, and a softmax over one slot is one
    "causal": {"encoder.attention.text.weight"},
    # only the graph of the pooled nodes is walked
    "node-mixing": {f"encoder.{place}.spatial.{end}" for place in ("joint", "level1.audio.block", "level1.visual.block")
                    for end in ("source", "target")},
    # the state answers, not a prototype; anchors are read, their worth and metric are not
    "recurrent-learner": {"log_worth", "log_worth_shift"},
}  # fmt: skip


def test_every_weight_of_every_reading_gets_a_gradient_except_those_that_cannot_matter(pack, reading):
    gradient = gradient_of(reading, outer(reading, reading.episodes(pack, 4), True, reading.config.inner.steps_train))
    # axis-parallel antecedents have a rotated part of rank 0: no numbers
    silent = {name for name, g in gradient.items() if g.numel() and not float(g.abs().max()) > 1e-10}
    assert silent == CANNOT_MATTER | NOT_ASKED.get(reading.name, set())
    assert all(bool(torch.isfinite(g).all()) for g in gradient.values())


def test_a_reading_without_inner_steps_has_no_rates_and_refuses_steps(pack, reading):
    assert (len(reading.model.rates) == 0) == (reading.name in NEVER_ADAPTED) == (reading.model.adapting == ())
    support = reading.encode(reading.episodes(pack)).support
    assert len(reading.model.adapt(support, 0)) == 1
    if reading.name in NEVER_ADAPTED:
        with pytest.raises(ConfigError, match="2 inner steps; expected 0, as steps_train and steps_test of this model"):
            reading.model.adapt(support, 2)


def test_the_recurrent_learner_has_no_head_and_its_prototypes_are_those_of_any_model(pack):
    world = World(pack, **READINGS["recurrent-learner"])
    encoding = world.encode(world.episodes(pack))
    theta, plain = world.model.start(encoding.support), world.model.start(encoding.support, conditioned=False)
    assert theta.center.numel() == 0 and float(theta.gamma.abs().max()) == 0
    usual = World(pack)
    own = {n: t for n, t in usual.model.state_dict().items() if n.startswith(("task_encoder", "rates"))}
    shared = {n: t for n, t in world.model.state_dict().items() if not n.startswith("task_encoder")}
    usual.model.load_state_dict(shared | own)
    torch.testing.assert_close(plain.center, usual.model.start(encoding.support, conditioned=False).center)
    said = [world.model.predict(encoding.query, t, encoding.support).log_probability for t in (theta, plain)]
    assert float((said[0] - said[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(said[0].exp().sum(-1), torch.ones(2, 9, dtype=torch.float64))


def test_what_is_known_of_an_emotion_reaches_the_recurrent_learner_only_if_it_may(pack):
    for label_knowledge in (True, False):
        world = World(pack, inner__label_knowledge=label_knowledge, **READINGS["recurrent-learner"])
        batch = world.episodes(pack)
        before = world.answer(batch, 0)
        with torch.no_grad():
            world.model.anchor.add_(torch.randn(world.model.anchor.shape, generator=torch.Generator().manual_seed(1)))
        assert (float((world.answer(batch, 0) - before).abs().max()) > 1e-6) == label_knowledge


def test_the_modulation_that_was_generated_stays_through_the_inner_loop_of_the_modulator(pack):
    world = World(pack, **READINGS["modulation-only"])
    first, *_, last = world.model.adapt(world.encode(world.episodes(pack)).support, 3)
    assert torch.equal(first.gamma, last.gamma) and torch.equal(first.beta, last.beta)
    assert float(first.gamma.abs().max()) > 1e-3 and not torch.equal(first.center, last.center)


@pytest.mark.parametrize("kind", ["bilstm", "mmaml", "constant"])
def test_without_modulation_the_model_is_as_little_linear_as_with_it(pack, kind):
    """In the code released with the paper the non-linearity goes with the modulation; an ablation would lose both."""
    world = World(pack, meta_rnn__kind=kind, inner__fast=("head", "fuzzy"), encoder__level_path=False)
    plain = world.data.gather(world.episodes(pack).query.flatten())
    bend = {}
    for name, film in (("without", 0.0), ("with", 0.3)):
        factor = torch.full((1, world.config.encoder.hidden), film, dtype=torch.float64)
        said = []
        for size in (0.0, 1.0, 2.0):
            moved = {n: dataclasses.replace(v, values=(size * v.values * v.mask[..., None]).double())
                     for n, v in plain.items()}  # fmt: skip
            said.append(world.model.encoder.embed(world.model.encode(moved), factor, factor)[0])
        bend[name] = float((said[2] - 2 * said[1] + said[0]).detach().abs().max())
    assert min(bend.values()) > 1e-2


# --- precision and device


def test_the_encoder_in_bfloat16_stays_within_a_twentieth_in_probability(pack):  # I-35
    """Stated tolerance of an untrained model: 0.05 in any probability; bfloat16 has 8 significant bits."""
    world = {name: World(pack, train__precision=name) for name in ("float32", "bfloat16")}
    batch = world["float32"].episodes(pack, 4)
    said = {name: w.answer(batch, 3).exp() for name, w in world.items()}
    assert said["bfloat16"].dtype == torch.float32
    gap = (said["bfloat16"] - said["float32"]).abs()
    assert 0 < float(gap.max()) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_cuda_give_the_same_answer(pack):  # I-35
    world = World(pack, train__precision="float32")
    batch = world.episodes(pack, 4)
    here = world.answer(batch, 3).exp()
    world.data = ResidentViews(pack, world.config.views, "cuda")
    world.model.to("cuda")
    there = world.answer(batch.to("cuda"), 3).exp().cpu()
    torch.testing.assert_close(there, here, rtol=0, atol=1e-4)
