"""The learner without gradients against an LSTM that reads support and query in one go; I-n cites the invariants."""

import pytest
import torch
from torch import nn

from stf2m_core.config import MetaRNNConfig
from stf2m_core.model.recurrent_learner import RecurrentLearner, facts, in_turn

EMBEDDING, N_FACT, N_WAY, N_SHOT, N_QUERY = 4, 9, 3, 2, 5


def rng(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def learner(n_layers=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = RecurrentLearner(N_FACT + 2, 6, EMBEDDING, MetaRNNConfig(kind="recurrent", hidden=4, n_layers=n_layers))
    with torch.no_grad():
        for number, weight in enumerate(made.parameters()):
            weight.add_(0.4 * normal(*weight.shape, seed=number).float())
    return made.double()


def task(n_draws=2, n_episodes=2, n_way=N_WAY, n_shot=N_SHOT):
    n_clips = n_way * n_shot
    return {
        "support": normal(n_episodes, n_clips, N_FACT),
        "target": torch.softmax(2 * normal(n_episodes, n_clips, n_way, seed=1), -1),
        "anchor": normal(n_episodes, n_way, EMBEDDING, seed=2),
        "query": normal(n_episodes, N_QUERY, N_FACT, seed=3),
        "classes": torch.rand(n_episodes, 20, generator=rng(4)).argsort(-1)[:, :n_way],
        "order": torch.rand(n_draws, n_episodes, n_way, n_shot, generator=rng(5)).argsort(-1),
    }


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_score_is_that_of_an_lstm_that_reads_anchor_support_and_query_in_one_go(n_layers):
    made, given = learner(n_layers), task()
    by_hand = nn.LSTM(N_FACT + 2, 4, n_layers).double()
    by_hand.load_state_dict(made.rnn.state_dict())
    scores = made(**given)
    assert scores.shape == (2, N_QUERY, N_WAY)
    rest = torch.zeros(N_FACT - EMBEDDING, dtype=torch.float64)
    flags = {"shown": torch.zeros(1).double(), "asked": torch.tensor([0.0, 1.0]).double()}
    for episode in range(2):
        for way in range(N_WAY):
            for query in range(N_QUERY):
                total = 0
                for places in in_turn(given["classes"], given["order"])[:, episode].tolist():
                    share = given["target"][episode, :, way]
                    sequence = [torch.cat([given["anchor"][episode, way], rest, torch.tensor([1.0, 0.0]).double()])]
                    sequence += [torch.cat([given["support"][episode, i], share[i : i + 1], flags["shown"]])
                                 for i in places]  # fmt: skip
                    sequence += [torch.cat([given["query"][episode, query], flags["asked"]])]
                    out, _ = by_hand(torch.stack(sequence))
                    total = total + made.score.weight[0] @ out[-1]
                torch.testing.assert_close(scores[episode, query, way], total / 2, rtol=0, atol=1e-12)


def test_renaming_the_classes_renames_the_scores_to_the_last_digit():  # I-31
    made, given, new = learner(), task(), [2, 0, 1]
    clip = [N_SHOT * way + shot for way in new for shot in range(N_SHOT)]
    renamed = given | {
        "support": given["support"][:, clip], "target": given["target"][:, clip][..., new],
        "anchor": given["anchor"][:, new], "classes": given["classes"][:, new], "order": given["order"][:, :, new],
    }  # fmt: skip
    scores = made(**given)
    torch.testing.assert_close(made(**renamed), scores[..., new], rtol=0, atol=1e-14)
    assert float((scores - scores[..., new]).detach().abs().max()) > 1e-3


def test_a_query_is_scored_alone_and_an_episode_too():  # I-13
    made, given = learner(), task()
    scores = made(**given)
    for query in range(N_QUERY):
        alone = made(**given | {"query": given["query"][:, query : query + 1]})
        torch.testing.assert_close(alone, scores[:, query : query + 1], rtol=0, atol=1e-14)
    one = {n: t[:, 1:] if n == "order" else t[1:] for n, t in given.items()}
    torch.testing.assert_close(made(**one), scores[1:], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["support", "target", "anchor", "query", "order"])
def test_every_thing_that_is_read_matters(name):
    made, given = learner(), task()
    other = given[name].flip(-1) if name == "order" else given[name] + normal(*given[name].shape, seed=9)
    assert float((made(**given | {name: other}) - made(**given)).detach().abs().max()) > 1e-4


@pytest.mark.parametrize(("n_way", "n_shot"), [(2, 1), (5, 3), (9, 1)])
def test_one_learner_answers_any_number_of_classes_and_shots(n_way, n_shot):  # I-33
    scores = learner()(**task(3, 2, n_way, n_shot))
    assert scores.shape == (2, N_QUERY, n_way) and bool(torch.isfinite(scores).all())


def test_the_facts_of_a_clip_are_its_embedding_firing_entropy_typicality_log_duration_and_presence():
    given = normal(2, 3, 4), normal(2, 3, 5, seed=1), normal(2, 3, seed=2), normal(2, 3, seed=6)
    duration, present = 1 + normal(2, 3, seed=3).abs(), torch.rand(2, 3, 2, generator=rng(4)) < 0.5
    told = facts(*given, duration, present)
    for episode in range(2):
        for clip in range(3):
            slow = [*given[0][episode, clip], *given[1][episode, clip], *(t[episode, clip] for t in given[2:]),
                    duration[episode, clip].log(), *present[episode, clip].double()]  # fmt: skip
            torch.testing.assert_close(told[episode, clip], torch.stack(slow))


def drawn_task(generator, n_episodes=32, n_way=3, n_query=2):
    """Classes are places; clips lie near them. Emotions are new in every task."""
    place = 2 * torch.randn(n_episodes, n_way, EMBEDDING, generator=generator)
    noise = 0.3 * torch.randn(n_episodes, n_way * (1 + n_query), EMBEDDING, generator=generator)
    given = {
        "support": place + noise[:, :n_way],
        "target": torch.eye(n_way).expand(n_episodes, -1, -1),
        "anchor": torch.zeros_like(place),
        "query": place.repeat_interleave(n_query, 1) + noise[:, n_way:],
        "classes": torch.rand(n_episodes, n_way, generator=generator).argsort(-1),
        "order": torch.zeros(1, n_episodes, n_way, 1, dtype=torch.long),
    }
    return given, torch.arange(n_way).repeat_interleave(n_query).expand(n_episodes, -1)


def test_it_learns_to_learn_from_the_labels_of_the_support():
    generator = rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MetaRNNConfig(kind="recurrent", n_layers=1)
        made = RecurrentLearner(EMBEDDING + 2, 6, EMBEDDING, config)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(100):
        given, label = drawn_task(generator)
        loss = nn.functional.cross_entropy(made(**given).flatten(0, 1), label.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    given, label = drawn_task(generator, n_episodes=200)
    turned = given | {"target": given["target"].roll(1, -1)}
    right, wrong = (float((made(**g).argmax(-1) == label).double().mean()) for g in (given, turned))
    assert right > 0.9
    assert wrong < 0.1, "with false labels it answers falsely: what it knows of a task comes from them"
