"""Spatio-temporal encoder: views go in, the joint graph's state and the clip embedding come out.

Per modality a temporal-spatial-temporal block on the modality's own graph and grid, then slots of real time, then one
block on the joint graph of all nodes of all modalities. Everything that depends on fast weights (FiLM) comes after the
last convolution, so the convolutions run once per clip. Source: METHOD, 'Encoder'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from stf2m_core.config import EncoderConfig
from stf2m_core.errors import ConfigError
from stf2m_core.model.spatial import SpatialConvolution, complete_graph, joint_graph, neighbour_graph
from stf2m_core.model.temporal import (
    TIME_FEATURES,
    TemporalConvolution,
    level_of,
    slot_centers,
    slots,
    time_features,
)
from stf2m_core.shapes import ViewBatch

EPSILON = 1e-5


class Block(nn.Module):
    """Temporal, spatial, temporal convolution and a norm over channels; no statistics over time, nodes or clips."""

    def __init__(self, prior: Tensor, config: EncoderConfig):
        super().__init__()
        width = config.hidden
        self.before = TemporalConvolution(width, config.kernel, config.dilations[0], config.causal)
        kind = "identity" if config.spatial == "node-mixing" else config.spatial
        self.spatial = SpatialConvolution(width, prior, config.hops, kind)
        self.after = TemporalConvolution(width, config.kernel, config.dilations[1], config.causal)
        self.norm = nn.LayerNorm(width)

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        """(clip, time, node, channel) to the same, before FiLM and the residual path."""
        mixed = self.after(self.spatial(self.before(state, mask), mask), mask)
        return self.norm(mixed) * mask[..., None]


class ModalityEncoder(nn.Module):
    """Level 1: one modality on its own grid and graph, then slots of real time."""

    def __init__(
        self, n_nodes: int, n_channels: int, step_s: float, config: EncoderConfig, edges: Tensor | None = None
    ):
        super().__init__()
        self.step_s, self.causal = step_s, config.causal
        # every node has its own input weights: what a high value means differs from node to node
        self.weight = nn.Parameter(torch.randn(n_nodes, n_channels, config.hidden) / math.sqrt(n_channels))
        self.level = nn.Parameter(torch.randn(n_nodes, n_channels, config.hidden) / math.sqrt(n_channels))
        self.place = nn.Parameter(torch.randn(n_nodes, config.hidden) * 0.3)
        self.time = nn.Linear(TIME_FEATURES, config.hidden) if config.positional else None
        self.block = Block(complete_graph(n_nodes) if edges is None else neighbour_graph(n_nodes, edges), config)

    def forward(self, view: ViewBatch, centers: Tensor, slot: Tensor, dropout: Dropout) -> tuple[Tensor, Tensor]:
        """Slots (clip, slot, node, channel) and their mask (clip, slot, node) bool.

        Args:
            view: standardised.
            centers: (clip, slot) seconds.
            slot: (clip,) width in seconds.
            dropout: of the block's output.
        """
        level = level_of(view.values, view.mask, self.causal)
        state = torch.einsum("btvc,vch->btvh", view.values - level, self.weight) + self.place
        if self.time is not None:
            duration = None if self.causal else view.duration
            waves = time_features(view.times, view.mask.any(2), duration, self.step_s).to(view.values.dtype)
            state = state + self.time(waves)[:, :, None]
        state = state * view.mask[..., None]
        state = dropout(self.block(state, view.mask)) + state
        # what is constant in a clip would shift every gate of the convolutions; it goes round them
        around = torch.einsum("btvc,vch->btvh", level, self.level)
        if self.causal:  # the level so far differs from frame to frame
            return slots(state + around * view.mask[..., None], view.mask, view.times, centers, slot, causal=True)
        slotted, filled = slots(state, view.mask, view.times, centers, slot)
        return slotted + around * filled[..., None], filled


@dataclass(frozen=True)
class Dropout:
    """Inverted dropout from a given generator; rate 0 does nothing. Global random state is never touched."""

    rate: float = 0.0
    generator: torch.Generator | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.rate == 0:
            return tensor
        keep = torch.rand(tensor.shape, device=tensor.device, generator=self.generator) >= self.rate
        return tensor * keep / (1 - self.rate)


@dataclass(frozen=True)
class Encoded:
    """Clips after the last convolution; everything before the fast weights.

    Attributes:
        normed: (clip, slot, node, channel) normed output of the joint block, before FiLM.
        residual: (clip, slot, node, channel) what the block's residual path adds.
        mask: (clip, slot, node) bool.
        present: (clip, modality) bool.
        duration: (clip,) seconds.
        level: (clip, modality, feature) what the level path adds to each modality's embedding.
    """

    normed: Tensor
    residual: Tensor
    mask: Tensor
    present: Tensor
    duration: Tensor
    level: Tensor

    def select(self, part: slice, n_episodes: int) -> Encoded:
        """Some clips of every episode; clips are ordered by episode."""
        names = self.__dataclass_fields__
        return Encoded(*(getattr(self, n).unflatten(0, (n_episodes, -1))[:, part].flatten(0, 1) for n in names))


class Encoder(nn.Module):
    """Both levels.

    Args:
        shapes: modality -> (nodes, channels).
        steps: modality -> usual gap between frames, seconds.
        config: sizes.
        edges: modality -> (edge, 2) nodes that are neighbours, where that is known; else all see all.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], steps: Mapping[str, float], config: EncoderConfig,
        edges: Mapping[str, Tensor] = MappingProxyType({}),
    ):  # fmt: skip
        super().__init__()
        self.config = config
        self.names = tuple(shapes)
        for name in self.names:
            if hasattr(nn.ModuleDict(), name):
                raise ConfigError(f"modality {name!r}", expected="a name that torch.nn.ModuleDict leaves free",
                                  where="encoder", remedy="Rename it in the manifest")  # fmt: skip
        self.sizes = [shapes[name][0] for name in self.names]
        each = {n: (*shapes[n], steps[n], config, edges.get(n)) for n in self.names}
        self.level1 = nn.ModuleDict({n: ModalityEncoder(*facts) for n, facts in each.items()})
        width = config.hidden
        self.time = nn.Linear(TIME_FEATURES, width) if config.positional else None
        self.joint = Block(joint_graph(self.sizes), config)
        self.attention = nn.ModuleDict({n: nn.Linear(width, 1, bias=False) for n in self.names})
        self.project = nn.ModuleDict({n: nn.Linear(3 * width, config.embedding) for n in self.names})
        if config.level_path:
            for layer in self.project.values():  # what the level path says already need not be unlearned first
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            sizes = {n: 2 * nodes * channels for n, (nodes, channels) in shapes.items()}
            self.level = nn.ModuleDict({n: LevelPath(sizes[n], config.embedding) for n in self.names})
        if config.node_read_out:
            sizes = dict(zip(self.names, self.sizes, strict=True))
            self.nodes = nn.ModuleDict(
                {n: nn.Linear(sizes[n] * width, config.embedding, bias=False) for n in self.names}
            )
        if config.spatial == "node-mixing":
            self.after_pooling = SpatialConvolution(width, joint_graph(self.sizes), config.hops)

    def forward(self, views: Mapping[str, ViewBatch], dropout: Dropout) -> Encoded:
        """All convolutions, once per clip."""
        duration = next(iter(views.values())).duration
        centers, width, exists = slot_centers(duration, self.config.slot_s, self.config.max_slots)
        states, masks = zip(*(self.level1[n](views[n], centers, width, dropout) for n in self.names), strict=True)
        mask = torch.cat(masks, 2) & exists[..., None]
        state = torch.cat(states, 2)
        if self.time is not None:
            ends = None if self.config.causal else duration
            waves = time_features(centers, exists, ends, self.config.slot_s).to(state.dtype)
            # the slot's time enters again, so that the gates depend on when something happens as well as on what
            state = state + self.time(waves)[:, :, None]
        state = state * mask[..., None]
        present = torch.stack([views[n].present for n in self.names], 1)
        normed = dropout(self.joint(state, mask))
        if self.config.spatial == "node-mixing":
            state = state + self._pooled_and_mixed(normed + state, mask)
        return Encoded(normed, state, mask, present, duration, self._levels(views, dropout))

    def _pooled_and_mixed(self, state: Tensor, mask: Tensor) -> Tensor:
        """The nodes' means over slots, mixed, in every slot (ablation).

        Nodes meet only when time is gone: who moves together with whom cannot be seen any more.
        """
        pooled = level_of(state, mask)
        return self.after_pooling(pooled, mask.any(1, keepdim=True)) * mask[..., None]

    def _levels(self, views: Mapping[str, ViewBatch], dropout: Dropout) -> Tensor:
        """(clip, modality, feature) linear in mean and deviation over time of all channels; 0 without the path."""
        n_clips = len(next(iter(views.values())).duration)
        if not self.config.level_path:
            like = next(iter(self.project.values())).weight
            return like.new_zeros(n_clips, len(self.names), self.config.embedding)
        return torch.stack([self.level[n](views[n], dropout) for n in self.names], 1)

    def embed(self, encoded: Encoded, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Read-out and fusion under the episodes' FiLM.

        Args:
            encoded: clips, ordered by episode.
            gamma: (episode, channel); the joint block's output is scaled by 1 + gamma.
            beta: (episode, channel); and shifted by beta.

        Returns:
            z (episode, clip, feature), and the disagreement of the modalities (episode, clip).
        """
        n_episodes, width = gamma.shape
        normed = encoded.normed.unflatten(0, (n_episodes, -1))
        film = normed * (1 + gamma)[:, None, None, None] + beta[:, None, None, None]
        state = (film.flatten(0, 1) + encoded.residual) * encoded.mask[..., None]
        parts, start = [], 0
        for name, size in zip(self.names, self.sizes, strict=True):
            nodes = slice(start, start + size)
            own = (t[:, :, nodes].flatten(1, 2) for t in (state, encoded.mask))
            parts.append(self._read_out(name, *own) + encoded.level[:, len(parts)])
            start += size
        z = torch.stack(parts, 1)
        # even shares: a learned gate is won by the easiest modality within a few steps, and the others never learn
        share = encoded.present.to(z.dtype)
        share = (share / share.sum(1, keepdim=True).clamp(min=1))[..., None]
        fused = (share * z).sum(1)
        disagreement = (share * (z - fused[:, None]) ** 2).sum((1, 2)) / z.shape[-1]
        return fused.unflatten(0, (n_episodes, -1)), disagreement.unflatten(0, (n_episodes, -1))

    def _read_out(self, name: str, state: Tensor, mask: Tensor) -> Tensor:
        """Masked mean, masked standard deviation and attention pool over (slot, node)."""
        weight = mask.to(state.dtype)[..., None]
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
        mean = (weight * state).sum(1)
        deviation = torch.sqrt((weight * (state - mean[:, None]) ** 2).sum(1) + EPSILON)
        pooled = (masked_softmax(self.attention[name](state)[..., 0], mask)[..., None] * state).sum(1)
        z = self.project[name](torch.cat([mean, deviation, pooled], -1))
        return z + self._nodes_apart(name, state, mask) if self.config.node_read_out else z

    def _nodes_apart(self, name: str, state: Tensor, mask: Tensor) -> Tensor:
        """Linear in each node's masked mean over slots."""
        n_nodes = self.sizes[self.names.index(name)]
        weight = mask.unflatten(1, (-1, n_nodes))[..., None].to(state.dtype)
        mean = (weight * state.unflatten(1, (-1, n_nodes))).sum(1) / weight.sum(1).clamp(min=1)
        return self.nodes[name](mean.flatten(1))


class LevelPath(nn.Module):
    """Linear in mean and deviation over time of every node's channels, each standardised over the clips of meta-train.

    What a plain classifier of clip statistics sees reaches the embedding without passing a convolution (ours, D-22).
    """

    def __init__(self, n_moments: int, embedding: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(n_moments))
        self.register_buffer("scale", torch.ones(n_moments))
        self.mix = nn.Linear(n_moments, embedding, bias=False)

    @torch.no_grad()
    def standardise(self, moments: Tensor) -> None:
        """Take shift and scale from the moments (clip, moment) of meta-train; one that never varies says nothing."""
        spread = moments.std(0)
        self.shift.copy_(moments.mean(0))
        self.scale.copy_(torch.where(spread > 1e-3, spread, torch.full_like(spread, torch.inf)))

    def forward(self, view: ViewBatch, dropout: Dropout) -> Tensor:
        """(clip, feature); zero for a clip without the modality."""
        standard = (moments(view) - self.shift) / self.scale
        return self.mix(dropout(standard)) * view.present[:, None]


def moments(view: ViewBatch) -> Tensor:
    """(clip, 2 * node * channel) masked mean and standard deviation over time; zero for a node that is absent."""
    weight = view.mask.to(view.values.dtype)[..., None]
    count = weight.sum(1).clamp(min=1)
    mean = (weight * view.values).sum(1) / count
    variance = (weight * (view.values - mean[:, None]) ** 2).sum(1) / count
    deviation = torch.sqrt(variance + EPSILON) * view.mask.any(1)[..., None]
    return torch.cat([mean, deviation], -1).flatten(1)


def masked_softmax(score: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among the unmasked entries; a row with none is zero."""
    score = torch.where(mask, score, torch.full_like(score, -torch.inf))
    top = torch.where(mask.any(-1, keepdim=True), score.amax(-1, keepdim=True), torch.zeros_like(score[..., :1]))
    weight = torch.where(mask, torch.exp(score - top.detach()), torch.zeros_like(score))
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
