"""The recurrent reader of the support against an LSTM run by hand; I-n cites the method's list of invariants."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from stf2m_core.config import MetaRNNConfig
from stf2m_core.model.meta_rnn import TaskEncoder, tokens
from stf2m_core.model.recurrent_learner import in_turn

CONFIG = MetaRNNConfig(hidden=4, n_layers=2, task_size=5)
N_TOKEN, CHANNELS, EMBEDDING = 9, 6, 7
GENERATORS = ("film", "trust", "head")
KINDS = ("bilstm", "deep-set", "gru", "mmaml")
READERS = pytest.mark.parametrize("kind", KINDS)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def reader(kind="bilstm", *, started=False, **changes):
    """A reader with generic weights; `started` leaves the generators as training finds them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        changes = {"n_layers": 1 if kind == "gru" else 2} | changes
        encoder = TaskEncoder(N_TOKEN, CHANNELS, EMBEDDING, dataclasses.replace(CONFIG, kind=kind, **changes))
    with torch.no_grad():
        for number, (name, weight) in enumerate(encoder.named_parameters()):
            if not (started and name.startswith(GENERATORS)):
                weight.add_(0.4 * normal(*weight.shape, seed=number))
    return encoder.double()


def orders(n_draws, *shape, seed=0):
    """(draw, *shape) random permutations along the last axis."""
    return torch.rand(n_draws, *shape, generator=rng(seed)).argsort(-1)


def in_order(*shape):
    return torch.arange(shape[-1]).expand(1, *shape)


def labels_of(token):
    """(episode, way) numbers of the classes in the data set, in no order."""
    return torch.tensor([7, 2, 9, 4, 0, 5, 1, 8, 3])[: token.shape[1]].expand(len(token), -1)


def read(encoder, token, order):
    return encoder(token, order, labels_of(token))


def code_of(encoder, token, order):
    code = read(encoder, token, order)
    return [getattr(code, field.name) for field in dataclasses.fields(code)]


# Tokens


def support(n_episodes=2, n_way=3, n_shot=2, n_rules=4, n_modalities=2):
    n_clips = n_way * n_shot
    return {
        "embedding": normal(n_episodes, n_clips, EMBEDDING),
        "firing": torch.softmax(normal(n_episodes, n_clips, n_rules, seed=1), -1),
        "target": torch.softmax(normal(n_episodes, n_clips, n_way, seed=2), -1),
        "entropy": normal(n_episodes, n_clips, seed=3).abs(),
        "disagreement": normal(n_episodes, n_clips, seed=4).abs(),
        "duration": 1 + normal(n_episodes, n_clips, seed=5).abs(),
        "present": torch.rand(n_episodes, n_clips, n_modalities, generator=rng(6)) < 0.5,
    }


def test_a_token_holds_embedding_firing_own_label_share_entropies_disagreement_duration_and_presence():
    facts = support()
    token = tokens(**facts)
    assert token.shape == (2, 3, 2, EMBEDDING + 4 + 5 + 2)
    for e in range(2):
        for way in range(3):
            for shot in range(2):
                i = 2 * way + shot
                target = facts["target"][e, i]
                doubt = -sum(float(q) * math.log(q) for q in target.tolist()) / math.log(3)
                scalars = [float(target[way]), doubt, float(facts["entropy"][e, i]), float(facts["disagreement"][e, i]),
                           math.log(facts["duration"][e, i])]  # fmt: skip
                slow = torch.cat([facts["embedding"][e, i], facts["firing"][e, i],
                                  torch.tensor(scalars).double(), facts["present"][e, i].double()])  # fmt: skip
                torch.testing.assert_close(token[e, way, shot], slow, rtol=0, atol=1e-6)


def test_a_token_of_hard_labels_has_a_full_share_and_no_doubt():
    facts = support() | {"target": torch.eye(3).double().repeat_interleave(2, 0).expand(2, -1, -1)}
    scalars = tokens(**facts)[..., EMBEDDING + 4 :]
    torch.testing.assert_close(scalars[..., 0], torch.ones(2, 3, 2).double())
    torch.testing.assert_close(scalars[..., 1], torch.zeros(2, 3, 2).double(), rtol=0, atol=1e-10)


def test_a_label_that_says_nothing_has_full_doubt_whatever_the_number_of_classes():
    for n_way in (2, 3, 5):
        facts = support(n_way=n_way) | {"target": torch.full((2, 2 * n_way, n_way), 1 / n_way).double()}
        doubt = tokens(**facts)[..., EMBEDDING + 5]
        torch.testing.assert_close(doubt, torch.ones(2, n_way, 2).double())


def test_renaming_the_classes_reorders_the_tokens_and_changes_none():  # I-31
    facts, order = support(), [2, 0, 1]
    rows = [2 * way + shot for way in order for shot in range(2)]
    renamed = {n: t[:, rows] for n, t in facts.items()}
    renamed["target"] = renamed["target"][..., order]
    torch.testing.assert_close(tokens(**renamed), tokens(**facts)[:, order])


# Reading


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_class_is_read_as_by_an_lstm_that_reads_it_alone_in_each_order(n_layers):
    encoder, token, order = reader(n_layers=n_layers), normal(2, 3, 5, N_TOKEN), orders(4, 2, 3, 5)
    by_hand = nn.LSTM(N_TOKEN, 4, n_layers, bidirectional=True).double()
    by_hand.load_state_dict(encoder.rnn.state_dict())
    code = encoder.read(token, order)
    assert code.shape == (2, 3, 8)
    for episode in range(2):
        for way in range(3):
            read = []
            for draw in range(4):
                sequence = torch.stack([token[episode, way, int(i)] for i in order[draw, episode, way]])
                _, (last, _) = by_hand(sequence)
                read.append(torch.cat([last[-2], last[-1]]))
            torch.testing.assert_close(code[episode, way], sum(read) / 4, rtol=0, atol=1e-12)


def test_the_last_forward_and_the_first_backward_state_are_those_of_the_gates_written_out():
    encoder, token = reader(n_layers=1), normal(1, 1, 3, N_TOKEN)
    weights = encoder.rnn.state_dict()
    halves = []
    for suffix, sequence in (("", token[0, 0]), ("_reverse", token[0, 0].flip(0))):
        w, u, b, c = (weights[f"{n}_l0{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        hidden = cell = torch.zeros(4).double()
        for x in sequence:
            enter, forget, new, leave = (w @ x + b + u @ hidden + c).chunk(4)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
        halves.append(hidden)
    torch.testing.assert_close(encoder.read(token, in_order(1, 1, 3))[0, 0], torch.cat(halves), rtol=0, atol=1e-12)


def test_the_task_code_film_head_and_trust_are_those_written_out():
    encoder, token, order = reader(), normal(2, 3, 4, N_TOKEN), orders(2, 2, 3, 4)
    code, ours = encoder.read(token, order), read(encoder, token, order)
    for e in range(2):
        mean = sum(code[e]) / 3
        spread = torch.sqrt(sum((c - mean) ** 2 for c in code[e]) / 3 + 1e-5)
        tau = encoder.summary(torch.cat([mean, spread]))
        film = encoder.film.weight @ tau + encoder.film.bias
        torch.testing.assert_close(ours.tau[e], tau)
        torch.testing.assert_close(ours.gamma[e], film[:CHANNELS])
        torch.testing.assert_close(ours.beta[e], film[CHANNELS:])
        torch.testing.assert_close(ours.trust[e], encoder.trust(tau)[0])
        for way in range(3):
            torch.testing.assert_close(ours.head[e, way], encoder.head(code[e, way] - mean))
    assert ours.gamma.shape == (2, CHANNELS) and ours.head.shape == (2, 3, EMBEDDING) and ours.tau.shape == (2, 5)


@READERS
def test_renaming_the_classes_leaves_the_task_code_and_reorders_the_heads(kind):  # I-31
    encoder, token, order, renamed = reader(kind), normal(2, 3, 4, N_TOKEN), orders(2, 2, 3, 4), [2, 0, 1]
    labels = labels_of(token)
    ours = encoder(token[:, renamed], order[:, :, renamed], labels[:, renamed])
    theirs = encoder(token, order, labels)
    torch.testing.assert_close(ours.head, theirs.head[:, renamed])
    for name in ("tau", "gamma", "beta", "trust"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))


@READERS
def test_an_episode_is_read_as_if_it_were_alone(kind):  # I-13, state starts anew in every episode
    encoder, token, order = reader(kind), normal(3, 2, 4, N_TOKEN), orders(2, 3, 2, 4)
    together = code_of(encoder, token, order)
    for e in range(3):
        alone = code_of(encoder, token[e : e + 1], order[:, e : e + 1])
        for left, right in zip(alone, together, strict=True):
            torch.testing.assert_close(left[0], right[e])
    for left, right in zip(code_of(encoder, token, order), together, strict=True):
        assert torch.equal(left, right)


@READERS
@pytest.mark.parametrize(("n_way", "n_shot"), [(2, 1), (5, 1), (5, 5), (9, 3)])
def test_one_reader_reads_any_number_of_classes_and_shots(kind, n_way, n_shot):  # I-33
    token, order = normal(2, n_way, n_shot, N_TOKEN), orders(3, 2, n_way, n_shot)
    tau, gamma, beta, head, trust = code = code_of(reader(kind), token, order)
    assert torch.broadcast_shapes(head.shape, (2, n_way, EMBEDDING)) == (2, n_way, EMBEDDING)
    assert gamma.shape == beta.shape == (2, CHANNELS)
    assert tau.shape == (2, 5) and trust.shape == (2,) and all(torch.isfinite(t).all() for t in code)


@pytest.mark.parametrize("kind", ["bilstm", "gru"])
def test_reordering_the_clips_and_the_order_alike_changes_nothing_and_the_clips_alone_does(kind):  # I-32
    encoder, token, order = reader(kind), normal(2, 3, 5, N_TOKEN), orders(3, 2, 3, 5)
    moved = [4, 2, 0, 1, 3]
    place = torch.tensor(moved).argsort()  # where each clip has gone
    torch.testing.assert_close(encoder.read(token[:, :, moved], place[order]), encoder.read(token, order))
    change = encoder.read(token[:, :, moved], in_order(2, 3, 5)) - encoder.read(token, in_order(2, 3, 5))
    assert change.abs().max() > 1e-2


def test_the_order_does_not_matter_to_a_single_shot():  # I-32
    encoder, token = reader(), normal(2, 3, 1, N_TOKEN)
    for left, right in zip(code_of(encoder, token, in_order(2, 3, 1)), code_of(encoder, token, orders(4, 2, 3, 1)),
                           strict=True):  # fmt: skip
        torch.testing.assert_close(left, right)


def test_averaging_over_orders_narrows_the_spread_by_the_root_of_their_number():  # I-32
    encoder, token = reader(), normal(1, 3, 6, N_TOKEN)
    spread = {}
    with torch.no_grad():
        for n_orders in (1, 4, 16):
            codes = [encoder.read(token, orders(n_orders, 1, 3, 6, seed=100 * n_orders + s)) for s in range(80)]
            spread[n_orders] = float(torch.stack(codes).var(0).mean().sqrt())
    assert spread[1] > 1e-2
    for n_orders in (4, 16):
        fall = spread[1] / spread[n_orders] / math.sqrt(n_orders)
        assert 1 / 1.5 < fall < 1.5


# Other readers


@pytest.mark.parametrize("started", [True, False])
def test_a_generated_gru_is_torchs_gru_with_the_weights_that_were_generated_for_the_task(started):
    encoder, token, order = reader("gru", started=started), normal(3, 2, 4, N_TOKEN), orders(2, 3, 2, 4)
    if started:
        with torch.no_grad():
            encoder.rnn.generate.weight.zero_()
    code = encoder.read(token, order)
    made = []
    for episode in range(3):
        by_hand = nn.GRU(N_TOKEN, 4, bidirectional=True).double()
        known = encoder.rnn.knowledge(token[episode].flatten(0, 1).mean(0))
        flat = encoder.rnn.generate.weight @ known + encoder.rnn.generate.bias
        made.append(flat.detach())
        nn.utils.vector_to_parameters(flat, by_hand.parameters())
        for way in range(2):
            read = []
            for draw in range(2):
                sequence = torch.stack([token[episode, way, int(i)] for i in order[draw, episode, way]])
                read.append(by_hand(sequence)[1].flatten())
            torch.testing.assert_close(code[episode, way], sum(read) / 2, rtol=0, atol=1e-12)
    assert torch.equal(made[0], made[1]) == started, "tasks have weights of their own once the generator has moved"


def test_the_gates_of_a_generated_gru_are_those_written_out():
    encoder, token = reader("gru"), normal(1, 1, 3, N_TOKEN)
    halves = []
    for (w, u, b, c), sequence in zip(encoder.rnn.weights(token.mean((1, 2))), (token[0, 0], token[0, 0].flip(0)),
                                      strict=True):  # fmt: skip
        hidden = torch.zeros(4).double()
        for x in sequence:
            (reset, update, new), (r, z, n) = (w[0] @ x + b[0]).chunk(3), (u[0] @ hidden + c[0]).chunk(3)
            update = torch.sigmoid(update + z)
            hidden = (1 - update) * torch.tanh(new + torch.sigmoid(reset + r) * n) + update * hidden
        halves.append(hidden)
    torch.testing.assert_close(encoder.read(token, in_order(1, 1, 3))[0, 0], torch.cat(halves), rtol=0, atol=1e-12)


def test_before_training_the_generated_gru_is_the_same_for_every_task():
    encoder = reader("gru", started=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = TaskEncoder(N_TOKEN, CHANNELS, EMBEDDING, encoder.config).rnn
    assert (fresh.generate.weight == 0).all()
    assert 0.4 < float(fresh.generate.bias.detach().abs().max()) <= 0.5  # 1 / sqrt(4), as torch starts its own


def test_a_deep_set_is_the_mean_over_shots_and_knows_no_order():  # I-32
    encoder, token = reader("deep-set"), normal(2, 3, 5, N_TOKEN)
    code = encoder.read(token, in_order(2, 3, 5))
    first, _, last = encoder.shot
    for episode in range(2):
        for way in range(3):
            slow = [last.weight @ torch.relu(first.weight @ x + first.bias) + last.bias for x in token[episode, way]]
            torch.testing.assert_close(code[episode, way], sum(slow) / 5, rtol=0, atol=1e-12)
    assert torch.equal(encoder.read(token, orders(4, 2, 3, 5)), code)
    for left, right in zip(code_of(encoder, token[:, :, [4, 2, 0, 1, 3]], orders(3, 2, 3, 5)),
                           code_of(encoder, token, in_order(2, 3, 5)), strict=True):  # fmt: skip
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_deep_set_has_as_many_weights_as_the_lstm_up_to_half_a_hidden_unit(n_layers):
    config = dataclasses.replace(CONFIG, hidden=40, n_layers=n_layers)
    counts = [sum(p.numel() for p in TaskEncoder(96, 32, 64, dataclasses.replace(config, kind=kind)).parameters())
              for kind in ("deep-set", "bilstm")]  # fmt: skip
    assert abs(counts[0] - counts[1]) <= (96 + 1 + 80) / 2


@pytest.mark.parametrize("n_draws", [1, 3])
def test_in_turn_every_clip_is_read_once_in_rounds_of_one_clip_of_each_class(n_draws):
    order, classes = orders(n_draws, 2, 3, 4), torch.tensor([[7, 2, 9], [0, 5, 1]])
    index = in_turn(classes, order)
    assert torch.equal(index.sort(-1).values, torch.arange(12).expand(n_draws, 2, -1))
    sorted_way = [[1, 0, 2], [0, 2, 1]]
    for draw in range(n_draws):
        for episode in range(2):
            slow = []
            for shot in range(4):
                for turn in range(3):
                    way = sorted_way[episode][(turn + shot + draw) % 3]
                    slow.append(4 * way + int(order[draw, episode, way, shot]))
            assert index[draw, episode].tolist() == slow


def test_a_modulator_reads_the_whole_support_as_one_sequence_labelled_by_class_means_and_only_modulates():
    encoder, token, order = reader("mmaml"), normal(2, 3, 4, N_TOKEN), orders(2, 2, 3, 4)
    labels, ours = labels_of(token), read(encoder, token, order)
    by_hand = nn.LSTM(2 * N_TOKEN, 4, 2, bidirectional=True).double()
    by_hand.load_state_dict(encoder.rnn.state_dict())
    for episode in range(2):
        codes = []
        for draw in range(2):
            sequence = []
            for place in in_turn(labels, order)[draw, episode].tolist():
                way, shot = divmod(place, 4)
                sequence.append(torch.cat([token[episode, way, shot], token[episode, way].mean(0)]))
            _, (last, _) = by_hand(torch.stack(sequence))
            codes.append(torch.cat([last[-2], last[-1]]))
        tau = encoder.summary(sum(codes) / 2)
        torch.testing.assert_close(ours.tau[episode], tau, rtol=0, atol=1e-12)
        film = encoder.film.weight @ tau + encoder.film.bias
        torch.testing.assert_close(torch.cat([ours.gamma[episode], ours.beta[episode]]), film)
    assert (ours.head == 0).all() and (ours.trust == 0).all() and ours.trust.shape == (2,)
    assert not [name for name, _ in encoder.named_parameters() if name.startswith(("head", "trust"))]


# The start of training, and the control


@pytest.mark.parametrize("kind", [*KINDS, "constant"])
def test_film_head_and_trust_are_zero_at_the_start(kind):  # I-14
    encoder = reader(kind, started=True)
    code = read(encoder, normal(2, 3, 4, N_TOKEN), in_order(2, 3, 4))
    for name in ("gamma", "beta", "head", "trust"):
        value = getattr(code, name)
        assert value.shape[0] == 2 and (value == 0).all()
    if kind != "constant":
        assert code.tau.abs().max() > 1e-3


@READERS
def test_the_zero_generators_have_gradients_although_the_reader_has_none_until_they_move(kind):  # I-37
    for started in (True, False):
        encoder = reader(kind, started=started)
        code = read(encoder, normal(2, 3, 4, N_TOKEN), in_order(2, 3, 4))
        target = (normal(2, 3, EMBEDDING, seed=1), normal(2, CHANNELS, seed=2), normal(2, CHANNELS, seed=3))
        loss = sum(((t - c) ** 2).sum() for t, c in zip(target, (code.head, code.gamma, code.beta), strict=True))
        (loss + ((code.trust - 1) ** 2).sum()).backward()
        for name, weight in encoder.named_parameters():
            moving = not started or name.startswith(GENERATORS)
            assert (float(weight.grad.abs().max()) > 1e-12) == moving, name


def test_the_constant_control_reads_nothing_of_the_support():
    encoder = reader("constant")
    token = normal(2, 3, 4, N_TOKEN)
    code, other = (
        code_of(encoder, t, o)
        for t, o in ((token, in_order(2, 3, 4)), (5 * normal(2, 3, 4, N_TOKEN, seed=9), orders(4, 2, 3, 4)))
    )
    for left, right in zip(code, other, strict=True):
        assert torch.equal(left, right)
    tau, gamma, beta, head, trust = code
    assert gamma.abs().min() > 0 and beta.abs().min() > 0 and trust.abs().min() > 0
    assert torch.equal(gamma[0], gamma[1]) and gamma.shape == (2, CHANNELS) and tau.shape == (2, 5)
    assert (head == 0).all() and torch.broadcast_shapes(head.shape, (2, 3, EMBEDDING)) == (2, 3, EMBEDDING)


@READERS
def test_the_reader_does_read_the_support(kind):
    encoder, token = reader(kind), normal(2, 3, 4, N_TOKEN)
    for shot in range(4):
        moved = token.clone()
        moved[:, 1, shot] += 1
        ours, theirs = (read(encoder, t, in_order(2, 3, 4)) for t in (moved, token))
        for name in ("tau", "gamma", "beta") if kind == "mmaml" else ("tau", "gamma", "beta", "trust", "head"):
            assert (getattr(ours, name) - getattr(theirs, name)).abs().max() > 1e-6


@READERS
def test_equal_classes_give_equal_heads_and_finite_gradients(kind):  # I-15
    encoder = reader(kind)
    token = normal(1, 1, 2, N_TOKEN).expand(2, 3, 2, -1)
    code = code_of(encoder, token, in_order(2, 3, 2))
    torch.testing.assert_close(code[3], torch.zeros_like(code[3]))
    weights = list(encoder.parameters())
    loss = sum((t**2).sum() for t in code)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, weights))
