"""Meta-learning on sine waves: ten points of an unknown wave are the support, the rest of the wave is the query.

Tasks and protocol are those of Finn et al. 2017; the inner loop is the kit's: every fast tensor carries a leading
episode axis, its rates are learned per weight through a softplus, and an episode's gradient is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from stf2m_core import metrics, seeding
from stf2m_core.config import InnerConfig
from stf2m_core.lessons.small_reader import first_weights

N_SHOT, N_QUERY, WIDTH = 10, 20, 32
LEARNERS = ("trained on all waves at once", "meta-learned start", "meta-learned start and rates")
FIRST_RATE = 0.01
N_OUTER = {"test": 4}
"""Outer steps per profile; 2500 elsewhere."""

Fast = list[Tensor]
"""Weights and biases of the network, each with a leading episode axis."""


@dataclass(frozen=True)
class Waves:
    """Some episodes; the first `N_SHOT` points of each are its support.

    Attributes:
        x: (episode, point, 1) in -5 to 5.
        y: (episode, point, 1) amplitude * sin(x - phase).
    """

    x: Tensor
    y: Tensor


def waves(n_episodes: int, seed: int, stream: str, *, grid: int = 0) -> Waves:
    """Waves of amplitude .1 to 5 and phase 0 to pi at random places; with `grid`, the queries lie evenly instead."""
    draw = seeding.generator(seed, "sines", stream)
    amplitude = 0.1 + 4.9 * torch.rand((n_episodes, 1, 1), generator=draw)
    phase = math.pi * torch.rand((n_episodes, 1, 1), generator=draw)
    x = 10 * torch.rand((n_episodes, N_SHOT + N_QUERY, 1), generator=draw) - 5
    if grid:
        even = torch.linspace(-5, 5, grid)[:, None].expand(n_episodes, -1, -1)
        x = torch.cat([x[:, :N_SHOT], even], 1)
    return Waves(x, amplitude * torch.sin(x - phase))


class Learner(nn.Module):
    """A network of two hidden layers, and the rates of its inner loop.

    Args:
        rates: whether the inner rates are learned; one fixed rate else.
    """

    def __init__(self, rates: bool):
        super().__init__()
        sizes = [1, WIDTH, WIDTH, 1]
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.start = nn.ParameterList([part for layer in layers for part in (layer.weight.T, layer.bias[None])])
        raw = math.log(math.expm1(FIRST_RATE))
        self.rates = nn.ParameterList([nn.Parameter(torch.full_like(p, raw), requires_grad=rates) for p in self.start])

    def adapt(self, given: Waves, n_steps: int, *, second_order: bool = False) -> list[Fast]:
        """Weights after 0 to `n_steps` steps on the support: theta - rate * clip(gradient), all episodes at once."""
        path = [[part.expand(len(given.x), *part.shape) for part in self.start]]
        bound = InnerConfig().clip_norm
        for _ in range(n_steps):
            leaves = [part + 0 for part in path[-1]]
            with torch.enable_grad():
                leaves = [part if part.requires_grad else part.requires_grad_() for part in leaves]
                loss = squared_error(leaves, given, slice(0, N_SHOT)).sum()
                slopes = torch.autograd.grad(loss, leaves, create_graph=second_order)
            norm = torch.sqrt(sum((slope.detach() ** 2).sum((1, 2)) for slope in slopes))[:, None, None]
            factor = (bound / norm.clamp(min=1e-12)).clamp(max=1)
            steps = [softplus(rate) * slope * factor for rate, slope in zip(self.rates, slopes, strict=True)]
            path.append([part - step for part, step in zip(leaves, steps, strict=True)])
        return path


def answer(fast: Fast, x: Tensor) -> Tensor:
    """(episode, point, 1) what the network says under fast weights."""
    for number in range(0, len(fast), 2):
        x = torch.baddbmm(fast[number + 1], x, fast[number])
        x = torch.relu(x) if number + 2 < len(fast) else x
    return x


def squared_error(fast: Fast, given: Waves, part: slice) -> Tensor:
    """(episode,) mean over some points."""
    return ((answer(fast, given.x[:, part]) - given.y[:, part]) ** 2).mean((1, 2))


QUERY = slice(N_SHOT, None)


def train(name: str, profile: str, seed: int = 0) -> Learner:
    """One of `LEARNERS`; all see the same waves for the same number of outer steps.

    The first never adapts while it learns: it minimises the error on all points of all waves. The others minimise the
    error on the queries after as many inner steps as the kit trains with: first order for three tenths of the time,
    then second order.
    """
    n_outer, n_steps, is_joint = N_OUTER.get(profile, 2500), InnerConfig().steps_train, name == LEARNERS[0]
    learner = first_weights(lambda: Learner(rates=name == LEARNERS[2]), seed, "sines")
    weights = [part for part in learner.parameters() if part.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_outer)
    for step in range(n_outer):
        given = waves(25, seed, f"outer {step}")
        if is_joint:
            loss = squared_error(learner.adapt(given, 0)[0], given, slice(None)).mean()
        else:
            path = learner.adapt(given, n_steps, second_order=step >= 0.3 * n_outer)
            loss = squared_error(path[-1], given, QUERY).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 10.0)
        optimiser.step()
        schedule.step()
    return learner


def trained(profile: str, seed: int = 0) -> dict[str, Learner]:
    """All three learners."""
    return {name: train(name, profile, seed) for name in LEARNERS}


def error_paths(
    learners: dict[str, Learner], n_episodes: int = 300, n_steps: int = 5, seed: int = 0
) -> dict[str, np.ndarray]:
    """Learner -> (step + 1, episode) squared error on the queries of new waves."""
    given = waves(n_episodes, seed, "new")
    paths = {}
    for name, learner in learners.items():
        with torch.no_grad():
            steps = [squared_error(fast, given, QUERY) for fast in learner.adapt(given, n_steps)]
            paths[name] = torch.stack(steps).numpy()
    return paths


def error_rows(paths: dict[str, np.ndarray], steps: Sequence[int] = (0, 1, 3, 5)) -> list[dict[str, object]]:
    """{"learner", "inner steps", "mean", "ci95"} squared error over waves."""
    return [
        {"learner": name, "inner steps": step, "mean": path[step].mean(), "ci95": metrics.half_width(path[step])}
        for name, path in paths.items()
        for step in steps
    ]


def one_wave(learners: dict[str, Learner], n_steps: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """One new wave: "x", "truth", "support" (point, 2), and for each learner (2, place): before and after."""
    given = waves(1, seed, "shown", grid=101)
    shown = {"x": given.x[0, N_SHOT:, 0].numpy(), "truth": given.y[0, N_SHOT:, 0].numpy(),
             "support": torch.cat([given.x, given.y], -1)[0, :N_SHOT].numpy()}  # fmt: skip
    for name, learner in learners.items():
        path = learner.adapt(given, n_steps)
        with torch.no_grad():
            said = [answer(fast, given.x[:, N_SHOT:])[0, :, 0] for fast in (path[0], path[-1])]
            shown[name] = torch.stack(said).numpy()
    return shown
