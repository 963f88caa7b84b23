"""Nodes: graphs over them, and convolutions that mix their states.

Source: METHOD, 'Encoder'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def complete_graph(n_nodes: int) -> Tensor:
    """The prior graph of a modality of which nothing is known: every node sees all, rows sum to one."""
    return torch.full((n_nodes, n_nodes), 1.0 / n_nodes)


def neighbour_graph(n_nodes: int, edges: Tensor) -> Tensor:
    """The prior graph of a modality whose pack tells which nodes are neighbours: each sees them and itself, evenly.

    Args:
        n_nodes: nodes.
        edges: (edge, 2) int64, each pair once.
    """
    graph = torch.eye(n_nodes)
    graph[edges[:, 0], edges[:, 1]] = graph[edges[:, 1], edges[:, 0]] = 1.0
    return graph / graph.sum(1, keepdim=True)


def joint_graph(sizes: list[int]) -> Tensor:
    """Prior of the joint graph: each modality complete, and every node linked to the first node of the others."""
    total = sum(sizes)
    graph = torch.zeros(total, total)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for start, size in zip(starts, sizes, strict=True):
        graph[start : start + size, start : start + size] = 1
    graph[:, starts] = 1
    return graph / graph.sum(1, keepdim=True)


def diffused(graph: Tensor, state: Tensor, weight: Tensor, hops: int) -> list[Tensor]:
    """A H, A^2 H, ... up to `hops`. Absent nodes are left out of every row, which is then renormalised.

    Args:
        graph: (node, node) not negative.
        state: (clip, time, node, channel), zero for absent nodes.
        weight: (clip, time, node) 1 or 0.
        hops: how many.

    Source: Li et al. 2018 (diffusion convolution), Wu et al. 2019 (Graph WaveNet).
    """
    scale, spread, parts = _row_scale(graph, weight)[..., None], state, []
    for _ in range(hops):
        spread = torch.matmul(graph, spread) * scale
        parts.append(spread)
    return parts


def _row_scale(graph: Tensor, weight: Tensor) -> Tensor:
    """(clip, time, node) what each row is multiplied by to sum to one over the nodes that are present."""
    share = weight @ graph.T
    return weight * torch.where(share > 0, 1 / share.clamp(min=1e-9), torch.zeros_like(share))


def chebyshev(graph: Tensor, state: Tensor, weight: Tensor, hops: int) -> list[Tensor]:
    """T_1(L) H, T_2(L) H, ... up to `hops`, with L the scaled Laplacian of the nodes that are present.

    L = 2 (I - S) / 2 - I = -S with S = D^-1/2 A D^-1/2, where A is the symmetric part of the graph whose rows sum to
    one over the nodes that are present. No eigenvalue of I - S exceeds 2, so those of L lie in [-1, 1], where the
    polynomials T_k stay bounded. Arguments as in `diffused`. Source: Defferrard et al. 2016; the bound 2 as in Kipf &
    Welling 2017.
    """
    scale = _row_scale(graph, weight)[..., None]

    def links(some: Tensor) -> Tensor:
        return (scale * torch.matmul(graph, some) + torch.matmul(graph.T, scale * some)) / 2

    degree = links(weight[..., None])
    root = weight[..., None] * torch.where(degree > 0, degree.clamp(min=1e-9).rsqrt(), torch.zeros_like(degree))
    parts = [state]
    for order in range(1, hops + 1):
        moved = -root * links(root * parts[-1])
        parts.append(moved if order == 1 else 2 * moved - parts[-2])
    return parts[1:]


def unmoved(graph: Tensor, state: Tensor, weight: Tensor, hops: int) -> list[Tensor]:
    """H in place of every spread state: nodes do not mix and the number of weights stays (ablation)."""
    return [state] * hops


SPREADS = {"diffusion": diffused, "chebyshev": chebyshev, "identity": unmoved}
"""What each kind of spatial convolution sees of the neighbours."""


class SpatialConvolution(nn.Module):
    """Mixes node states over a prior and a learned graph.

    SC(H) = ReLU(H W_0 + sum_A sum_j S_j(A) H W_Aj + b + H), A in {prior, learned}, j = 1..hops, where S_j is A^j
    (diffusion), T_j of the scaled Laplacian (chebyshev) or I (identity). The learned graph is
    rowsoftmax(ReLU(E_1 E_2') / sqrt(d)). Source: METHOD, 'Encoder'.

    Args:
        width: channels.
        prior: (node, node).
        hops: highest power or order of each graph.
        kind: key into `SPREADS`; all kinds have the same weights.
    """

    def __init__(self, width: int, prior: Tensor, hops: int, kind: str = "diffusion"):
        super().__init__()
        n_nodes = prior.shape[0]
        self.hops, self.spread = hops, SPREADS[kind]
        self.register_buffer("prior", prior)
        self.source = nn.Parameter(torch.randn(n_nodes, 8) * 0.3)
        self.target = nn.Parameter(torch.randn(n_nodes, 8) * 0.3)
        self.mix = nn.Linear((1 + 2 * hops) * width, width)

    def learned(self) -> Tensor:
        """(node, node) rows sum to one."""
        return torch.softmax(torch.relu(self.source @ self.target.T) / math.sqrt(self.source.shape[1]), -1)

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        """(clip, time, node, channel) and (clip, time, node) to the same shape; masked places are zero."""
        weight, parts = mask.to(state.dtype), [state]
        for graph in (self.prior, self.learned()):
            parts += self.spread(graph.to(state.dtype), state, weight, self.hops)
        return torch.relu(self.mix(torch.cat(parts, -1)) + state) * weight[..., None]
