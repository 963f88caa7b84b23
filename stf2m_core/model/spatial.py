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


def joint_graph(sizes: list[int]) -> Tensor:
    """Prior of the joint graph: each modality complete, and every node linked to the first node of the others."""
    total = sum(sizes)
    graph = torch.zeros(total, total)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for start, size in zip(starts, sizes, strict=True):
        graph[start : start + size, start : start + size] = 1
    graph[:, starts] = 1
    return graph / graph.sum(1, keepdim=True)


class SpatialConvolution(nn.Module):
    """Diffusion of node states over a prior and a learned graph.

    SC(H) = ReLU(H W_0 + sum_A sum_j A^j H W_Aj + b + H), A in {prior, learned}, j = 1..hops. The learned graph is
    rowsoftmax(ReLU(E_1 E_2') / sqrt(d)). Absent nodes are left out of every row, which is then renormalised.
    Source: Graph WaveNet (Wu et al. 2019); with `identity` A = I and the number of weights stays (ablation).
    """

    def __init__(self, width: int, prior: Tensor, hops: int, identity: bool):
        super().__init__()
        n_nodes = prior.shape[0]
        self.hops, self.identity = hops, identity
        self.register_buffer("prior", prior)
        self.source = nn.Parameter(torch.randn(n_nodes, 8) * 0.3)
        self.target = nn.Parameter(torch.randn(n_nodes, 8) * 0.3)
        self.mix = nn.Linear((1 + 2 * hops) * width, width)

    def learned(self) -> Tensor:
        """(node, node) rows sum to one."""
        return torch.softmax(torch.relu(self.source @ self.target.T) / math.sqrt(self.source.shape[1]), -1)

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        """(clip, time, node, channel) and (clip, time, node) to the same shape; masked places are zero."""
        weight = mask.to(state.dtype)
        parts = [state]
        for graph in (self.prior.to(state.dtype), self.learned().to(state.dtype)):
            share = weight @ graph.T
            scale = (weight * torch.where(share > 0, 1 / share.clamp(min=1e-9), torch.zeros_like(share)))[..., None]
            spread = state
            for _ in range(self.hops):
                spread = state if self.identity else torch.matmul(graph, spread) * scale
                parts.append(spread)
        return torch.relu(self.mix(torch.cat(parts, -1)) + state) * weight[..., None]
