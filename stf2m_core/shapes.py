"""The glossary of axes and the three containers of tensors that travel through the kit.

Axes, always in this order and in the singular: episode, way (class within an episode), shot, query, clip, view, time,
slot, node, channel, feature, rule, label (class of the whole data set), step (of the inner loop).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """One modality of a batch of clips, padded.

    Attributes:
        values: (clip, time, node, channel) float32; anything at all where `mask` is False.
        mask: (clip, time, node) bool, True where a value was observed.
        times: (clip, time) float32 seconds since the start of the clip.
        duration: (clip,) float32 seconds, > 0.
    """

    values: Tensor
    mask: Tensor
    times: Tensor
    duration: Tensor

    @property
    def present(self) -> Tensor:
        """(clip,) bool: whether the clip has this modality at all."""
        return self.mask.flatten(1).any(1)


@dataclass(frozen=True)
class EpisodeBatch:
    """Some episodes as index tensors; a row is a row of the pack's clips.csv.

    Attributes:
        ids: (episode,) int64, the episode's number within its stream.
        classes: (episode, way) int64, index into the pack's labels.
        support: (episode, way, shot) int64 rows.
        query: (episode, query) int64 rows.
        query_label: (episode, query) int64 in 0..way-1.
        own: (episode,) bool, whether support and query are of one person (Regime P); None: all False.
    """

    ids: Tensor
    classes: Tensor
    support: Tensor
    query: Tensor
    query_label: Tensor
    own: Tensor | None = None

    def __post_init__(self) -> None:
        if self.own is None:
            object.__setattr__(self, "own", torch.zeros(self.ids.shape, dtype=torch.bool, device=self.ids.device))

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def n_way(self) -> int:
        """Classes per episode."""
        return self.classes.shape[1]

    @property
    def n_shot(self) -> int:
        """Support clips per class."""
        return self.support.shape[2]

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """The same episodes on another device."""
        return EpisodeBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def __getitem__(self, part: slice) -> EpisodeBatch:
        """A run of consecutive episodes."""
        return EpisodeBatch(*(getattr(self, name)[part] for name in self.__dataclass_fields__))
