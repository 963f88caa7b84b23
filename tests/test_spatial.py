"""Spatial convolutions against eigenvectors and loops in float64, and what a mixing of pooled nodes cannot see."""

import dataclasses
import math

import pytest
import torch
from test_encoder import clips, embedded, encoder_of, generic, normal, rng, slow_spatial

from stf2m_core.model.encoder import Dropout
from stf2m_core.model.spatial import SpatialConvolution, chebyshev, joint_graph, neighbour_graph
from stf2m_core.shapes import ViewBatch


def symmetric_part(graph, here):
    """Links among the nodes that are present, each row made to sum to one before the two directions are averaged."""
    part = graph[here][:, here]
    part = part / part.sum(1, keepdim=True)
    return (part + part.T) / 2


def scaled_laplacian(graph, here):
    links = symmetric_part(graph, here)
    degree = links.sum(1)
    laplacian = torch.zeros_like(links)
    for i in range(len(here)):
        for j in range(len(here)):
            laplacian[i, j] = float(i == j) - links[i, j] / math.sqrt(degree[i] * degree[j])
    return 2 * laplacian / 2 - torch.eye(len(here), dtype=links.dtype)


def graph_of(n_nodes, seed=3):
    return torch.rand(n_nodes, n_nodes, generator=rng(seed), dtype=torch.float64)


def some_present(*shape, seed=4):
    mask = torch.rand(*shape, generator=rng(seed)) < 0.6
    mask[0, 0], mask[0, 1] = False, torch.arange(shape[-1]) == 2  # nobody, and one alone
    return mask


def test_chebyshev_terms_are_those_of_a_slow_loop_over_the_scaled_laplacian_of_the_present_nodes():  # I-11
    graph, mask = graph_of(5), some_present(2, 6, 5)
    state = normal(2, 6, 5, 3) * mask[..., None]
    terms = chebyshev(graph, state, mask.double(), 4)
    for clip in range(2):
        for t in range(6):
            here = mask[clip, t].nonzero()[:, 0].tolist()
            laplacian = scaled_laplacian(graph, here)
            slow = [state[clip, t, here], laplacian @ state[clip, t, here]]
            while len(slow) < 5:
                slow.append(2 * laplacian @ slow[-1] - slow[-2])
            for order in range(1, 5):
                expected = torch.zeros(5, 3, dtype=torch.float64)
                expected[here] = slow[order]
                torch.testing.assert_close(terms[order - 1][clip, t], expected, rtol=0, atol=1e-12)


def test_chebyshev_terms_are_cosines_of_multiples_of_the_angles_of_the_eigenvalues():  # I-11
    graph = graph_of(6)
    state, everybody = normal(1, 1, 6, 3), torch.ones(1, 1, 6, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(scaled_laplacian(graph, list(range(6))))
    assert values.min() >= -1 - 1e-12 and values.max() <= 1 + 1e-12
    angles = torch.arccos(values.clamp(-1, 1))
    for order, term in enumerate(chebyshev(graph, state, everybody, 5), start=1):
        expected = vectors @ torch.diag(torch.cos(order * angles)) @ vectors.T @ state[0, 0]
        torch.testing.assert_close(term[0, 0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_no_chebyshev_term_of_any_order_is_larger_than_the_state(seed):
    mask = some_present(3, 5, 6, seed=seed)
    state = normal(3, 5, 6, 2, seed=seed) * mask[..., None]
    size = state.norm(dim=2)
    for term in chebyshev(graph_of(6, seed) ** 4, state, mask.double(), 60):
        assert (term.norm(dim=2) <= size + 1e-9).all()


def test_the_chebyshev_convolution_mixes_the_terms_of_prior_and_learned_graph():
    prior = graph_of(4)
    module = generic(lambda: SpatialConvolution(3, prior.float(), 2, "chebyshev"))
    state, everybody = normal(1, 5, 4, 3), torch.ones(1, 5, 4, dtype=torch.bool)
    weights = module.mix.weight.unflatten(1, (5, 3)).unbind(1)
    total = state @ weights[0].T + module.mix.bias + state
    for number, graph in enumerate((prior.float().double(), module.learned())):
        laplacian = scaled_laplacian(graph.detach(), list(range(4)))
        first = torch.einsum("uv,btvc->btuc", laplacian, state)
        second = 2 * torch.einsum("uv,btvc->btuc", laplacian, first) - state
        total = total + first @ weights[1 + 2 * number].T + second @ weights[2 + 2 * number].T
    torch.testing.assert_close(module(state, everybody), torch.relu(total), rtol=0, atol=1e-10)


# Mixing nodes only after time is pooled


def test_node_mixing_adds_the_spatial_convolution_of_the_means_over_slots_to_what_goes_round_the_joint_block():
    encoder, views = encoder_of(spatial="node-mixing"), clips(1.3, 0.6, 4.2)
    alone = encoder_of(spatial="identity")
    alone.load_state_dict({n: t for n, t in encoder.state_dict().items() if not n.startswith("after_pooling")})
    ours, before = encoder(views, Dropout()), alone(views, Dropout())
    assert torch.equal(ours.normed, before.normed) and torch.equal(ours.mask, before.mask)
    for clip in range(3):
        mask = before.mask[clip]
        state = (before.normed + before.residual)[clip] * mask[..., None]
        mean = state.sum(0) / mask.sum(0).clamp(min=1)[:, None]
        mixed = slow_spatial(encoder.after_pooling, mean[None], mask.any(0)[None], 2)[0]
        expected = before.residual[clip] + mixed * mask[..., None]
        torch.testing.assert_close(ours.residual[clip], expected, rtol=0, atol=1e-12)


FACE = {"face": (3, 2)}


def one_node_moved(n_frames):
    """One clip of four seconds; three nodes are seen for a second and a half each, the last `n_frames` later."""
    views = clips(4.0, shapes=FACE, observed=1.1)["face"]
    values, mask = torch.zeros_like(views.values), torch.zeros_like(views.mask)
    said = normal(15, 3, 2, seed=7)
    for node, start in enumerate((5, 5, 5 + n_frames)):
        values[0, start : start + 15, node], mask[0, start : start + 15, node] = said[:, node], True
    times = (torch.arange(mask.shape[1], dtype=torch.float64) / 10)[None]
    return {"face": ViewBatch(values, mask, times, views.duration)}


@pytest.mark.parametrize("spatial, sees", [("identity", False), ("node-mixing", False), ("diffusion", True),
                                           ("chebyshev", True)])  # fmt: skip
def test_only_a_mixing_before_pooling_sees_who_moves_together_with_whom(spatial, sees):
    encoder = encoder_of(FACE, spatial=spatial, positional=False, max_slots=16)
    apart = [embedded(encoder, one_node_moved(n))[0] for n in (0, 10)]
    gap = float((apart[0] - apart[1]).detach().abs().max())
    assert gap > 1e-3 if sees else gap < 1e-10


def test_node_mixing_does_mix_the_nodes_and_other_kinds_have_no_weights_for_it():
    encoder, views = encoder_of(FACE, spatial="node-mixing"), clips(1.3, shapes=FACE)["face"]
    moved = dataclasses.replace(views, values=views.values + torch.tensor([0.0, 0.0, 1.0]).double()[:, None])
    before, after = (encoder({"face": v}, Dropout()).residual for v in (views, moved))
    assert ((after - before).abs().amax((0, 1, 3)) > 1e-3).all()
    assert not [name for name in encoder_of().state_dict() if "after_pooling" in name]
    own = sum(p.numel() for p in encoder.after_pooling.parameters())
    assert sum(p.numel() for p in encoder.parameters()) == own + sum(p.numel() for p in encoder_of(FACE).parameters())
    assert torch.equal(encoder.after_pooling.prior, joint_graph([3]).double())


def test_neighbours_see_each_other_and_themselves_evenly():
    edges = torch.tensor([[0, 1], [3, 1], [1, 4]])
    expected = [
        [1 / 2, 1 / 2, 0, 0, 0],
        [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4],
        [0, 0, 1, 0, 0],
        [0, 1 / 2, 0, 1 / 2, 0],
        [0, 1 / 2, 0, 0, 1 / 2],
    ]
    torch.testing.assert_close(neighbour_graph(5, edges), torch.tensor(expected))
    torch.testing.assert_close(neighbour_graph(5, edges.flip(0, 1)), torch.tensor(expected))
    assert torch.equal(neighbour_graph(3, torch.zeros(0, 2, dtype=torch.int64)), torch.eye(3))
