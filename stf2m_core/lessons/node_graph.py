"""Spatial convolution on graphs one can see: how a node's state spreads, and what only neighbours can tell.

A toy face shows the diffusion itself. The four visual nodes of SynEmo show what it is for: which of them move together
cannot be seen in any single node. Everything is measured on the kit's own diffusion and `SpatialConvolution`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stf2m_core import seeding
from stf2m_core.data import synemo_laws as laws
from stf2m_core.lessons.small_reader import accuracy, first_weights, fit
from stf2m_core.model.spatial import SpatialConvolution, complete_graph, diffused

FACE = {
    "brow r": (-1.0, 1.5), "brow l": (1.0, 1.5), "eye r": (-0.9, 0.7), "eye l": (0.9, 0.7), "nose": (0.0, 0.0),
    "mouth r": (-0.7, -0.9), "mouth l": (0.7, -0.9), "jaw": (0.0, -1.7),
}  # fmt: skip
"""Nodes of the toy face and their places."""
LINKS = (("brow r", "eye r"), ("brow l", "eye l"), ("brow r", "brow l"), ("eye r", "nose"), ("eye l", "nose"),
         ("nose", "mouth r"), ("nose", "mouth l"), ("mouth r", "mouth l"), ("mouth r", "jaw"),
         ("mouth l", "jaw"))  # fmt: skip
SQUARE = {"a": (-1.0, 1.0), "b": (1.0, 1.0), "c": (-1.0, -1.0), "d": (1.0, -1.0)}
"""Places for the four visual nodes of SynEmo."""
READERS = {"every node alone": "identity", "nodes and their neighbours": "diffusion"}
"""Kind of the spatial convolution; the first is that of the ablation."""
CEILING = 1 / 3
"""Of who sees single nodes only: they have the same law whatever moves together."""
N_STEPS = {"test": 4}
"""Steps of training per profile; 600 elsewhere."""


def face_edges() -> np.ndarray:
    """(edge, 2) int64 indices into `FACE`."""
    names = list(FACE)
    return np.array([[names.index(a), names.index(b)] for a, b in LINKS], np.int64)


def walk(edges: np.ndarray, n_nodes: int) -> Tensor:
    """(node, node) adjacency of an undirected graph with every node its own neighbour, rows summing to one."""
    graph = torch.eye(n_nodes)
    graph[edges[:, 0], edges[:, 1]] = graph[edges[:, 1], edges[:, 0]] = 1
    return graph / graph.sum(1, keepdim=True)


def hop_by_hop(graph: Tensor, amount: Tensor, observed: Tensor, n_hops: int) -> Tensor:
    """(hop + 1, node) an amount after 0 to `n_hops` hops; whatever is not observed neither gives nor gets.

    Args:
        graph: (node, node) rows sum to one.
        amount: (node,) at the start.
        observed: (node,) bool.
        n_hops: how far.
    """
    state, weight = (amount * observed)[None, None, :, None], observed[None, None].to(amount.dtype)
    return torch.stack([state, *diffused(graph, state, weight, n_hops)])[:, 0, 0, :, 0]


def spread_on_face(start: str = "mouth r", absent: str = "nose", n_hops: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An amount of one that starts at a node, with all nodes and without `absent`.

    Returns:
        (row, hop + 1, node) amounts, and (row, node) bool which nodes were observed.

    Raises:
        KeyError: if the toy face has no such node.
    """
    names = {name: number for number, name in enumerate(FACE)}
    amount = torch.zeros(len(FACE))
    amount[names[start]] = 1
    observed = torch.ones(2, len(FACE), dtype=torch.bool)
    observed[1, names[absent]] = False
    graph = walk(face_edges(), len(FACE))
    return torch.stack([hop_by_hop(graph, amount, row, n_hops) for row in observed]).numpy(), observed.numpy()


def carriers(n_clips: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(clip, time, 4, 1) white signals of four nodes by SynEmo's law, and (clip,) which pairs of them correlate."""
    together = torch.arange(n_clips) % len(laws.PAIR_OF_NODE)
    values = laws.carrier(lambda purpose: seeding.numpy_generator(seed, "lesson", purpose), together.numpy())
    return torch.from_numpy(values)[..., None], together


def best_guess(values: Tensor) -> Tensor:
    """(clip,) which pairs correlate, by Bayes' rule: the grouping whose nodes have the largest products within pairs.

    The nodes are Gaussian, and the three covariances differ only in which products they reward, equally much.
    """
    products = torch.einsum("btv,btw->bvw", values[..., 0].double(), values[..., 0].double())
    pair = torch.from_numpy(laws.PAIR_OF_NODE)
    together = (pair[:, :, None] == pair[:, None]).double()
    return torch.einsum("bvw,gvw->bg", products, together).argmax(-1)


class NodeReader(nn.Module):
    """One spatial convolution on four nodes, then means over time; no convolution along time."""

    def __init__(self, kind: str, width: int = 16):
        super().__init__()
        self.enter = nn.Parameter(torch.randn(4, width))  # every node has its own weights, as in the kit's encoder
        self.spatial = SpatialConvolution(width, complete_graph(4), 2, kind)
        self.leave = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, 3))

    def forward(self, values: Tensor) -> Tensor:
        """(clip, 3) scores."""
        mask = torch.ones(values.shape[:3], dtype=torch.bool)
        return self.leave(self.spatial(values * self.enter, mask).mean(1).flatten(1))


@dataclass(frozen=True)
class NodeResult:
    """What two readers can tell.

    Attributes:
        rows: {"reader", "mean", "ci95"} accuracy on new clips.
        best: accuracy of who knows the law, on the same clips.
        prior: (node, node) the graph the convolution started with, rows sum to one.
        learned: (node, node) the graph that it learned beside it, rows sum to one.
    """

    rows: list[dict[str, object]]
    best: float
    prior: np.ndarray
    learned: np.ndarray


def read_nodes(profile: str, seed: int = 0) -> NodeResult:
    """Train both readers on the same clips and score them on new ones.

    Args:
        profile: `test` trains hardly at all and only shows that everything runs.
        seed: of clips, first weights and batches.
    """
    (values, label), (new, truth) = carriers(2400, seed), carriers(1200, seed + 1)
    rows, reader = [], None
    for name, kind in READERS.items():
        reader = first_weights(lambda k=kind: NodeReader(k), seed, "node reader")
        fit(reader, (values,), label, n_steps=N_STEPS.get(profile, 600), seed=seed)
        mean, half = accuracy(reader, (new,), truth)
        rows.append({"reader": name, "mean": mean, "ci95": half})
    best = (best_guess(new) == truth).double().mean().item()
    graphs = (reader.spatial.prior, reader.spatial.learned())
    return NodeResult(rows, best, *(graph.detach().numpy() for graph in graphs))
