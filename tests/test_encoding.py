"""Encoded episodes: each draw belongs to its episode, the support never sees the query, what is hidden stays so."""

import dataclasses

import numpy as np
import pytest
import torch

from stf2m_core import seeding
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import LABELS, SynEmoConfig, generate
from stf2m_core.encoding import Disturbance, encode_episodes
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.training import build
from stf2m_core.views import ResidentViews

EPISODE = EpisodeConfig(regime="D", n_way=3, n_shot=2, n_query=2)
SETTINGS = {
    "split__n_val_subjects": 3,
    "encoder__hidden": 8,
    "encoder__embedding": 12,
    "fuzzy__n_rules": 6,
    "fuzzy__n_features": 4,
    "meta_rnn__hidden": 4,
    "meta_rnn__n_layers": 1,
    "train__device": "cpu",
    "train__precision": "float64",
}
NAMES = ("normed", "residual", "mask", "present", "duration")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoding")


@pytest.fixture(scope="module")
def synthetic():
    return generate(SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=2))


@pytest.fixture(scope="module")
def pack(folder, synthetic):
    return open_pack(write_pack(folder / "pack", *synthetic, LABELS, name="tiny"))


class World:
    def __init__(self, pack, **changes):
        self.config = RunConfig().replace(**SETTINGS | changes)
        self.splits = split_subjects(pack, self.config.split)
        self.data = ResidentViews(pack, self.config.views, "cpu")
        self.model = build(self.data, self.splits, self.config)
        self.sampler = EpisodeSampler(pack, self.splits, "meta_train", EPISODE, 0)

    def encode(self, batch, seed=0, stream="test", **facts):
        with torch.no_grad():
            return encode_episodes(self.model, self.data, batch, seed=seed, stream=stream, **facts)


@pytest.fixture(scope="module")
def world(pack):
    return World(pack)


def of_episode(encoded, number, n_episodes):
    """One episode's clips; only slots that exist for them, so that padding does not count."""
    parts = {name: getattr(encoded, name).unflatten(0, (n_episodes, -1))[number] for name in NAMES}
    n_slots = int(parts["mask"].any(2).any(0).sum())
    return {name: t[:, :n_slots] if name in ("normed", "residual", "mask") else t for name, t in parts.items()}


def assert_same(one, other):
    for name in NAMES:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-9)


def whole(encoded):
    return {name: getattr(encoded, name) for name in NAMES}


def quiet(**changes):
    nothing = {"noise": 0.0, "level_noise": 0.0, "dropout": 0.0, "view_drop": 0.0, "drop_rule": 0.0}
    return Disturbance(**nothing | changes, generator=seeding.generator(0, "test"))


def test_support_views_and_query_have_the_shapes_that_their_descriptions_name(world):
    encoding = world.encode(world.sampler.sample(0, 4), n_orders=3)
    support = encoding.support
    assert support.clean.duration.shape == support.views.duration.shape == (4 * 6,)
    assert support.target.shape == (4, 6, 3)
    assert support.order.shape == (3, 4, 3, 2)
    assert support.order.sort(-1).values.eq(torch.arange(2)).all()
    assert support.kept is None
    assert encoding.query.normed.shape[0] == 4 * 6
    assert encoding.query.normed.dtype == encoding.target.dtype == torch.float64
    assert encoding.label_target.shape == (4, 6, len(LABELS))


def test_an_episode_is_encoded_the_same_alone_and_among_others(world):
    batch = world.sampler.sample(0, 4)
    together = world.encode(batch, disturbance=quiet(view_drop=1.0, drop_rule=0.5))
    for number in range(4):
        alone = world.encode(batch[number : number + 1], disturbance=quiet(view_drop=1.0, drop_rule=0.5))
        for part in ("clean", "views"):
            some = of_episode(getattr(together.support, part), number, 4)
            assert_same(some, of_episode(getattr(alone.support, part), 0, 1))
        assert_same(of_episode(together.query, number, 4), of_episode(alone.query, 0, 1))
        assert torch.equal(together.support.order[:, number], alone.support.order[:, 0])
        assert torch.equal(together.support.kept[number], alone.support.kept[0])


def test_random_views_follow_seed_and_stream_and_the_clean_clips_do_not(world):
    batch = world.sampler.sample(0, 4)
    first, again = world.encode(batch), world.encode(batch)
    assert_same(whole(first.support.views), whole(again.support.views))
    for other in (world.encode(batch, seed=1), world.encode(batch, stream="other")):
        assert_same(whole(first.support.clean), whole(other.support.clean))
        assert_same(whole(first.query), whole(other.query))
        assert not torch.equal(first.support.views.mask, other.support.views.mask)


def test_a_random_view_shows_part_of_its_clip_and_never_nothing(world):
    support = world.encode(world.sampler.sample(0, 40)).support
    assert support.views.present.any(1).all()
    assert not (support.views.present & ~support.clean.present).any()
    assert not (support.views.mask & ~support.clean.mask).any()
    assert support.views.present.sum() < support.clean.present.sum()


def test_without_random_views_the_inner_loss_reads_the_clean_clips(pack):
    support = World(pack, inner__n_views=0).encode(World(pack).sampler.sample(0, 2)).support
    assert_same(whole(support.views), whole(support.clean))


def test_two_views_of_each_clip_differ_and_stand_apart_by_the_number_of_clips(pack):
    world = World(pack, inner__n_views=2)
    support = world.encode(world.sampler.sample(0, 3)).support
    views = support.views.mask.unflatten(0, (3, 2, 6))
    assert not torch.equal(views[:, 0], views[:, 1])
    duration = support.views.duration.unflatten(0, (3, 2, 6))
    assert torch.equal(duration[:, 0], support.clean.duration.unflatten(0, (3, 6)))
    assert torch.equal(duration[:, 0], duration[:, 1])


def test_the_support_is_encoded_without_a_look_at_the_query(pack, world):
    batch = world.sampler.sample(0, 2)
    before = world.encode(batch).support
    data = ResidentViews(pack, world.config.views, "cpu")
    for name, modality in data.modalities.items():
        values = modality.values.clone()
        moments = {n: getattr(modality, n).clone() for n in ("mean", "square")}
        for row in set(batch.query.flatten().tolist()):
            values[int(modality.offsets[row]) : int(modality.offsets[row + 1])] = 1e3
            for tensor in moments.values():
                tensor[row] = 1e3
        data.modalities[name] = dataclasses.replace(modality, values=values, **moments)
    with torch.no_grad():
        after = encode_episodes(world.model, data, batch, seed=0, stream="test")
    assert_same(whole(before.clean), whole(after.support.clean))
    assert_same(whole(before.views), whole(after.support.views))
    assert float((after.query.normed - world.encode(batch).query.normed).abs().max()) > 1e-3


def test_a_hidden_modality_might_hold_anything(world):
    batch = world.sampler.sample(0, 2)
    keep = torch.tensor([True, False, True])
    before = world.encode(batch, keep=keep)
    hidden = world.data.modalities["visual"]
    try:
        world.data.modalities["visual"] = dataclasses.replace(hidden, values=torch.full_like(hidden.values, 7.0))
        after = world.encode(batch, keep=keep)
    finally:
        world.data.modalities["visual"] = hidden
    for one, other in ((before.support.clean, after.support.clean), (before.query, after.query)):
        assert_same(whole(one), whole(other))
        assert not one.present[:, 1].any()
    assert world.encode(batch).query.present[:, 1].any(), "visual is always missing: nothing was hidden"


def test_labels_of_voted_clips_are_their_votes_among_the_classes_of_the_episode(pack, world):
    batch = world.sampler.sample(0, 8)
    encoding = world.encode(batch)
    votes = torch.from_numpy(pack.soft_labels.copy()).double()
    inside = votes[batch.query].gather(2, batch.classes[:, None].expand(-1, batch.query.shape[1], -1))
    held = inside.sum(-1)
    torch.testing.assert_close(encoding.target, inside / held[..., None], rtol=0, atol=1e-6)
    torch.testing.assert_close(encoding.weight, torch.where(held >= 0.5, held, 0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoding.label_target, votes[batch.query], rtol=0, atol=1e-6)
    assert float(encoding.target.amax(-1).min()) < 0.99


def test_labels_without_votes_are_one_hot_in_the_order_of_the_episode(folder):
    size = SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=2, pure=True)
    world = World(open_pack(write_pack(folder / "pure", *generate(size), LABELS, name="pure")))
    batch = world.sampler.sample(0, 3)
    encoding = world.encode(batch)
    assert torch.equal(encoding.target.argmax(-1), batch.query_label)
    assert torch.equal(encoding.support.target, torch.eye(3).double().repeat_interleave(2, 0).expand(3, -1, -1))
    assert (encoding.weight == 1).all()
    assert (encoding.support.weight == 1).all()


def test_a_disturbance_of_nothing_changes_nothing(world):
    batch = world.sampler.sample(0, 2)
    plain, other = world.encode(batch), world.encode(batch, disturbance=quiet())
    assert_same(whole(plain.query), whole(other.query))
    assert_same(whole(plain.support.views), whole(other.support.views))
    assert other.support.kept is None


@pytest.mark.parametrize("kind", ["noise", "level_noise", "dropout"])
def test_each_kind_of_noise_disturbs_and_comes_from_its_generator_alone(world, kind):
    batch = world.sampler.sample(0, 2)
    plain = world.encode(batch)
    first, again = (world.encode(batch, disturbance=quiet(**{kind: 0.3})) for _ in range(2))
    assert torch.equal(first.query.normed, again.query.normed)
    assert float((first.query.normed - plain.query.normed).abs().max()) > 1e-2
    assert torch.equal(first.query.mask, plain.query.mask)


def test_some_training_episodes_miss_modalities_and_no_clip_loses_all(world):
    batch = world.sampler.sample(0, 40)
    before = world.encode(batch).query.present
    after = world.encode(batch, disturbance=quiet(view_drop=0.5)).query.present
    assert after.any(1).all()
    assert not (after & ~before).any()
    touched = (before & ~after).any(1).unflatten(0, (40, -1)).any(1).float().mean()
    assert 0.2 < touched < 0.7
    lost = 1 - after.sum() / before.sum()
    assert 0.02 < lost < 0.25  # half of the episodes, at rates of 1/4 on average, less what must stay


def test_dropped_rules_are_one_mask_per_episode_and_two_stay_at_least(world):
    batch = world.sampler.sample(0, 200)
    kept = world.encode(batch[:50], disturbance=quiet(drop_rule=0.5)).support.kept
    assert kept.shape == (50, 1, 6)
    assert 0.4 < kept.double().mean() < 0.6
    extreme = world.encode(batch[:50], disturbance=quiet(drop_rule=0.99)).support.kept
    assert extreme.sum(-1).min() == 2


def test_encoding_leaves_global_random_states_untouched(world):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    everything = quiet(noise=0.1, level_noise=0.1, dropout=0.1, view_drop=1.0, drop_rule=0.5)
    world.encode(world.sampler.sample(0, 2), disturbance=everything)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
