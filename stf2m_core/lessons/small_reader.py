"""Small readers of made-up clips: a module, clips and labels enter; a trained module and its accuracy leave.

For lessons only: one batch size, one optimiser, no selection, so that readers differ in nothing but their parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stf2m_core import metrics, seeding

Clips = tuple[Tensor, ...]
"""What a reader is called with; the first axis of each is the clip."""


def first_weights(make: Callable[[], nn.Module], seed: int, *names: str) -> nn.Module:
    """A module whose first weights follow from the seed; the global state of torch is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, *names))
        return make()


def fit(reader: nn.Module, clips: Clips, label: Tensor, *, n_steps: int, seed: int, lr: float = 1e-2) -> nn.Module:
    """The reader after `n_steps` of Adam on batches of 64 clips, cross-entropy, learning rate falling to zero.

    Args:
        reader: gives (clip, class) scores.
        clips: to train on.
        label: (clip,) int64.
        n_steps: of training.
        seed: of the batches.
        lr: at the start.
    """
    draw = seeding.generator(seed, "batches")
    optimiser = torch.optim.Adam(reader.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
    for _ in range(n_steps):
        rows = torch.randint(len(label), (64,), generator=draw)
        loss = cross_entropy(reader(*(part[rows] for part in clips)), label[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return reader


@torch.no_grad()
def accuracy(reader: nn.Module, clips: Clips, label: Tensor) -> tuple[float, float]:
    """Accuracy on clips and half its 95 % interval over clips."""
    hit = (reader(*clips).argmax(-1) == label).double().numpy()
    return float(np.mean(hit)), metrics.half_width(hit)
