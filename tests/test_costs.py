"""Costs against formulas written out by hand, and what an option that is off must not cost."""

import dataclasses

import pytest
import torch
from test_encoder import clips, encoder_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stf2m_core import experiment
from stf2m_core.config import MetaRNNConfig
from stf2m_core.costs import cost_of, cost_rows, multiply_adds
from stf2m_core.encoding import encode_episodes
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import ConfigError
from stf2m_core.experiment import EMBEDDED, READINGS, VARIANTS, config_for, study_of
from stf2m_core.model.encoder import Dropout
from stf2m_core.model.meta_rnn import TaskEncoder
from stf2m_core.training import build
from stf2m_core.views import ResidentViews


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return experiment.open_or_make_pack(tmp_path_factory.mktemp("packs") / EMBEDDED, "test")


@pytest.fixture(scope="module")
def rows(pack):
    return {row["variant"]: row for row in cost_rows(pack, "test")}


class Built:
    """A model of the data set's study, its data, and one episode of meta-test."""

    def __init__(self, pack, variant="full", **changes):
        self.config = config_for(pack, "test", variant=variant).replace(train__device="cpu", **changes)
        splits = split_subjects(pack, self.config.split)
        self.data = ResidentViews(pack, self.config.views, "cpu")
        self.model = build(self.data, splits, self.config)
        self.batch = EpisodeSampler(pack, splits, "meta_test", study_of(pack).test[-1], 0).sample(0, 1)


def test_a_matrix_product_costs_its_three_sizes_and_its_gradient_twice_as_much():
    left, right = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    assert multiply_adds(lambda: left @ right)[0] == 60
    assert multiply_adds(lambda: torch.autograd.grad((left @ right).sum(), (left, right)))[0] == 180


def test_a_forward_computation_costs_what_torchs_own_counter_says(pack):
    built = Built(pack)

    def answer():
        episode = encode_episodes(built.model, built.data, built.batch, seed=0, stream="cost")
        return built.model.predict(episode.query, built.model.adapt(episode.support, 0)[0], episode.support)

    built.model.requires_grad_(False).double()  # in double precision nothing is fused
    with FlopCounterMode(display=False) as counter:
        answer()
    assert multiply_adds(answer)[0] == counter.get_total_flops() // 2 > 10**6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_layers, bidirectional", [(1, False), (2, True)])
def test_a_recurrent_network_costs_its_weights_at_every_moment(n_layers, bidirectional, dtype):
    rnn = nn.LSTM(6, 4, n_layers, batch_first=True, bidirectional=bidirectional, dtype=dtype)
    n_directions = 1 + bidirectional
    per_moment = n_directions * 16 * (6 + 4) + (n_layers - 1) * n_directions * 16 * (n_directions * 4 + 4)
    with torch.no_grad():
        assert multiply_adds(lambda: rnn(torch.randn(3, 7, 6, dtype=dtype)))[0] == 3 * 7 * per_moment


def block(n_time, n_nodes, config, spread):
    """Multiply-adds of a block per clip; the learned graph is shared by all clips and left out."""
    width, hops = config.hidden, config.hops
    temporal = 2 * n_time * n_nodes * config.kernel * (width * 2 * width + 1)  # and the observed taps are counted
    rows = 0 if config.spatial == "identity" else 2 * n_time * n_nodes * n_nodes
    return temporal + n_time * n_nodes * (1 + 2 * hops) * width * width + rows + 2 * hops * n_time * spread


@pytest.mark.parametrize("spatial", ["diffusion", "identity", "chebyshev"])
def test_the_encoder_costs_what_its_formula_says(spatial):
    encoder, views = encoder_of(spatial=spatial), clips(1.3, 0.6, 4.2)
    config, width = encoder.config, encoder.config.hidden
    found, encoded = multiply_adds(lambda: encoder(views, Dropout()))
    n_slots, n_joint = encoded.mask.shape[1:]
    walks = {"diffusion": 1, "identity": 0, "chebyshev": 2}[spatial]
    shared, per_clip = n_joint * 8 * n_joint, n_slots * 35 * width
    per_clip += block(n_slots, n_joint, config, walks * n_joint**2 * width)
    per_clip += 2 * n_slots * 2 * n_joint**2 if spatial == "chebyshev" else 0  # degrees of both graphs, both directions
    for view in views.values():
        n_time, n_nodes, n_channels = view.values.shape[1:]
        per_clip += n_time * n_nodes * n_channels * width + n_nodes * n_channels * width + n_time * 35 * width
        per_clip += block(n_time, n_nodes, config, walks * n_nodes**2 * width)
        per_clip += 2 * n_time * 2 * n_nodes**2 if spatial == "chebyshev" else 0
        per_clip += n_slots * n_time * n_nodes * (width + 1) + 2 * n_nodes * n_channels * config.embedding
        shared += n_nodes * 8 * n_nodes  # the learned graph is made once for all clips
    assert found == 3 * per_clip + shared


@pytest.mark.parametrize("kind", ["bilstm", "deep-set", "gru", "mmaml", "constant"])
def test_each_reader_costs_what_its_formula_says(kind):
    h, n_layers, n_token, channels, embedding, task = 5, 1 if kind == "gru" else 2, 9, 6, 7, 8
    config = MetaRNNConfig(kind=kind, hidden=h, n_layers=n_layers, task_size=task)
    made = TaskEncoder(n_token, channels, embedding, config)
    draws, episodes, way, shot = 3, 2, 4, 5
    order = torch.arange(shot).expand(draws, episodes, way, shot)
    token, classes = torch.randn(episodes, way, shot, n_token), torch.arange(way).expand(episodes, way)
    found, _ = multiply_adds(lambda: made(token, order, classes))
    n_read = draws * episodes * way * shot
    lstm = 2 * 4 * h * (n_token + h) + 2 * 4 * h * (2 * h + h)
    film, trust, head = episodes * task * 2 * channels, episodes * task, episodes * way * 2 * h * embedding
    width = made.shot[0].out_features if kind == "deep-set" else 0
    summary = episodes * (4 * h * 64 + 64 * task)
    whole = {
        "bilstm": n_read * lstm + summary + head + trust,
        "deep-set": episodes * way * shot * width * (n_token + 2 * h) + summary + head + trust,
        "gru": n_read * 2 * 3 * h * (n_token + h) + episodes * (n_token * 16 + 16 * 2)
        + episodes * 2 * 2 * (3 * h * (n_token + h) + 6 * h) + summary + head + trust,
        "mmaml": n_read * (lstm + 2 * 4 * h * n_token) + episodes * (2 * h * 64 + 64 * task),
        "constant": trust,
    }  # fmt: skip
    assert found == whole[kind] + film


def test_every_variant_has_a_row_and_parameters_and_adapted_numbers_are_those_of_the_model(pack, rows):
    assert list(rows) == [*VARIANTS, *READINGS]
    for variant in ("full", "recurrent-learner", "node-mixing"):
        model = Built(pack, variant).model
        assert rows[variant]["parameters"] == sum(p.numel() for p in model.parameters())
    sizes, rules = Built(pack).config.encoder, Built(pack).config.fuzzy
    assert Built(pack).config.inner.center_rate == 0, "of the head the metric alone moves"
    head, fuzzy = sizes.embedding, rules.n_rules * (rules.n_consequents + rules.n_features)
    assert rows["full"]["adapted"] == head + fuzzy + 2 * sizes.hidden
    assert rows["modulation-only"]["adapted"] == head + fuzzy
    assert rows["zero-order"]["adapted"] == rows["recurrent-learner"]["adapted"] == 0


def test_an_option_that_is_off_costs_nothing(rows):
    full = rows["full"]
    for variant in ("no-position", "zero-order", "recurrent-learner"):
        assert rows[variant]["parameters"] < full["parameters"], variant
    assert rows["no-position"]["encode"] < full["encode"] and rows["no-order"]["encode"] < full["encode"]
    assert rows["zero-order"]["step"] == rows["recurrent-learner"]["step"] == 0 < full["step"]
    assert rows["no-spatial"]["parameters"] == rows["chebyshev"]["parameters"] == full["parameters"]
    assert rows["no-spatial"]["encode"] < full["encode"] < rows["chebyshev"]["encode"]
    assert rows["first-order"] == full | {"variant": "first-order"}
    assert abs(rows["deep-set"]["parameters"] - full["parameters"]) < 50
    assert rows["recurrent-learner"]["answer"] > full["answer"] > 0 == rows["recurrent-learner"]["start"]


def test_costs_are_shares_of_an_episode_and_do_not_depend_on_how_many_are_counted(pack):
    built = Built(pack)
    two = EpisodeSampler(pack, split_subjects(pack, built.config.split), "meta_test", study_of(pack).test[-1], 0)
    one, both = (cost_of(built.model, built.data, two.sample(0, n)) for n in (1, 2))
    support = encode_episodes(built.model, built.data, two.sample(0, 1), seed=0, stream="cost").support
    with torch.no_grad():
        paths = [multiply_adds(lambda n=n: built.model.adapt(support, n))[0] for n in range(4)]
    assert paths == [one.start + n * one.step for n in range(4)]
    names = ("parameters", "adapted", "start", "step", "answer")
    assert [getattr(one, n) for n in names] == [getattr(both, n) for n in names]
    assert both.encode == pytest.approx(one.encode, rel=0.01)  # the learned graph is made once for all clips
    before = {n: t.clone() for n, t in built.model.state_dict().items()}
    cost_of(built.model, built.data, built.batch)
    assert all(torch.equal(t, before[n]) for n, t in built.model.state_dict().items())
    assert dataclasses.is_dataclass(one)


def test_an_unknown_variant_is_refused(pack):
    with pytest.raises(ConfigError, match="variant = 'no-luck'; expected one of full"):
        cost_rows(pack, "test", variants=["no-luck"])
