"""The label leak of a one-emotion task: what adapting to a single emotion says of the features, measured.

Made-up clips with a known law: a few of their numbers know the emotion, a few the person, the rest is noise. A head
that starts at zero takes gradient steps on the support; every tensor carries a leading task axis, as in the kit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stf2m_core import metrics, seeding
from stf2m_core.config import EpisodeConfig
from stf2m_core.errors import ConfigError
from stf2m_core.lessons.small_reader import first_weights

N_WAY, N_SHOT = 5, 5
N_NUMBERS, N_KNOWING, N_PERSON = 24, 4, 4
"""Numbers of a clip; the first know the emotion, the next the person."""
KINDS = ("one emotion", "five emotions")
"""Of tasks: both have equally many clips on each side."""
FEATURES = ("features that know", "features of pure noise", "no features, a bias alone")
N_OUTER = {"test": 3}
"""Outer steps per profile; 300 elsewhere."""


@dataclass(frozen=True)
class Tasks:
    """Some tasks; sides are support and query.

    Attributes:
        clips: (side 2, task, clip, number).
        label: (side 2, task, clip) int64 in 0..N_WAY-1.
    """

    clips: Tensor
    label: Tensor


def tasks(kind: str, n_tasks: int, seed: int, stream: str = "tasks", *, person: float = 4.0) -> Tasks:
    """Tasks of one person each. Emotions have fresh centres in the numbers that know; all that is left is noise.

    Args:
        kind: of `KINDS`. In "one emotion" all clips of a task have one label, the task's own.
        n_tasks: how many.
        seed: of everything.
        stream: purpose, so that training and test differ.
        person: how far apart people are; emotions are 2 apart, the noise 1.

    Raises:
        ConfigError: if there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind = {kind!r}", expected=f"one of {', '.join(KINDS)}", where="tasks")
    draw = seeding.generator(seed, "leak", stream, kind)
    n_clips = N_WAY * N_SHOT
    label = torch.arange(N_WAY).repeat_interleave(N_SHOT).expand(2, n_tasks, -1)
    if kind == "one emotion":
        label = torch.randint(N_WAY, (n_tasks, 1), generator=draw).expand(2, n_tasks, n_clips)
    centre = torch.randn((n_tasks, N_WAY, N_KNOWING), generator=draw) * 2
    clips = torch.randn((2, n_tasks, n_clips, N_NUMBERS), generator=draw)
    known = torch.take_along_dim(centre.expand(2, -1, -1, -1), label[..., None], 2)
    signature = torch.randn((n_tasks, 1, N_PERSON), generator=draw).expand(2, -1, n_clips, -1) * person
    none = torch.zeros(*clips.shape[:3], N_NUMBERS - N_KNOWING - N_PERSON)
    return Tasks(clips + torch.cat([known, signature, none], -1), label)


def adapted(features: Tensor, label: Tensor, n_steps: int, step: float = 0.3, *, keep: bool = False) -> list[Tensor]:
    """Scores of the queries, (task, clip, way), after 0 to `n_steps` gradient steps of a head that starts at zero.

    Args:
        features: (side 2, task, clip, feature); no features are a last axis of size 0.
        label: (side 2, task, clip) int64; only the support's is read.
        n_steps: of the inner loop.
        step: inner learning rate.
        keep: keep the graph, for an outer gradient of second order.
    """
    weight = features.new_zeros(features.shape[1], N_WAY, features.shape[-1])
    head = [weight.requires_grad_(), features.new_zeros(features.shape[1], 1, N_WAY).requires_grad_()]
    said = [_scores(features[1], head)]
    with torch.enable_grad():
        for _ in range(n_steps):
            loss = cross_entropy(_scores(features[0], head).flatten(0, 1), label[0].flatten(), reduction="sum")
            slopes = torch.autograd.grad(loss / label.shape[-1], head, create_graph=keep, allow_unused=True)
            head = [part if slope is None else part - step * slope for part, slope in zip(head, slopes, strict=True)]
            said.append(_scores(features[1], head))
    return said


def _scores(features: Tensor, head: list[Tensor]) -> Tensor:
    return features @ head[0].transpose(1, 2) + head[1]


def _hits(said: Tensor, label: Tensor) -> np.ndarray:
    """(task,) share of queries; a clip whose scores all tie counts as a guess."""
    best = said == said.amax(-1, keepdim=True)
    return (best.gather(2, label[..., None])[..., 0] / best.sum(-1)).mean(1).detach().double().numpy()


def bias_table(steps: Sequence[float] = (1.0, 5.0, 20.0)) -> pd.DataFrame:
    """Cross-entropy and accuracy of the query after one step of the bias alone, in tasks of one emotion."""
    given = tasks("one emotion", 64, 0)
    rows = []
    for size in steps:
        said = adapted(given.clips[..., :0], given.label, 1, size)[-1]
        loss = cross_entropy(said.flatten(0, 1), given.label[1].flatten())
        rows.append({"size of the step": size, "query cross-entropy, nat": loss.item(),
                     "accuracy": float(_hits(said, given.label[1]).mean())})  # fmt: skip
    return pd.DataFrame(rows)


def accuracy_paths(n_tasks: int = 100, n_steps: int = 8, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Kind of task -> features -> (step + 1, task) accuracy of the queries along the inner loop."""
    paths = {}
    for kind in KINDS:
        given = tasks(kind, n_tasks, seed, "paths")
        noise = torch.randn(given.clips.shape, generator=seeding.generator(seed, "leak", "noise"))
        parts = (given.clips[..., :N_KNOWING], noise, given.clips[..., :0])
        paths[kind] = {
            name: np.stack([_hits(said, given.label[1]) for said in adapted(part, given.label, n_steps)])
            for name, part in zip(FEATURES, parts, strict=True)
        }
    return paths


def trained_encoder(kind: str, n_outer: int, seed: int = 0, *, person: float = 4.0) -> nn.Module:
    """An encoder of eight features, meta-trained on tasks of one kind through two inner steps of second order."""
    encoder = first_weights(lambda: nn.Linear(N_NUMBERS, 8), seed, "leak", "encoder")
    optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    for number in range(n_outer):
        given = tasks(kind, 16, seed, f"outer {number}", person=person)
        said = adapted(encoder(given.clips), given.label, 2, keep=True)[-1]
        loss = cross_entropy(said.flatten(0, 1), given.label[1].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return encoder


@torch.no_grad()
def shares_read(encoder: nn.Module) -> tuple[float, float]:
    """Shares of the encoder's squared weights that read the emotion and the person."""
    power = (encoder.weight**2).sum(0) / (encoder.weight**2).sum()
    return power[:N_KNOWING].sum().item(), power[N_KNOWING : N_KNOWING + N_PERSON].sum().item()


def encoder_rows(profile: str, seed: int = 0, n_tasks: int = 200, *, person: float = 4.0) -> list[dict[str, object]]:
    """What an encoder is worth that was trained on each kind of task, {"encoder", "scored on", "mean", "ci95", shares}.

    Args:
        profile: `test` trains hardly at all and only shows that everything runs.
        seed: of weights and tasks.
        n_tasks: new ones, to score on, of each kind.
        person: how far apart people are, in training and where it is scored.
    """
    n_outer = N_OUTER.get(profile, 300)
    trainings = {"not trained": (KINDS[0], 0)} | {f"trained on {kind}": (kind, n_outer) for kind in KINDS}
    rows = []
    for name, (kind, steps) in trainings.items():
        encoder = trained_encoder(kind, steps, seed, person=person)
        emotion, own = shares_read(encoder)
        for scored in KINDS:
            given = tasks(scored, n_tasks, seed, "scored", person=person)
            with torch.no_grad():
                features = encoder(given.clips)
            hits = _hits(adapted(features, given.label, 2)[-1], given.label[1])
            rows.append({"encoder": name, "scored on": scored, "mean": hits.mean(), "ci95": metrics.half_width(hits),
                         "weights on emotion": emotion, "weights on person": own})  # fmt: skip
    return rows


def refusal() -> str:
    """What the kit says to an episode of one emotion."""
    try:
        EpisodeConfig(n_way=1)
    except ConfigError as error:
        return str(error)
    raise ConfigError("an episode of one emotion was accepted", expected="a refusal", where="refusal")
