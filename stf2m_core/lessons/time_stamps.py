"""Temporal convolution and real time: what a tap reaches, what a gap does, and what frames without stamps cannot tell.

Waves of two speeds are sampled at two rates, so that a slow wave sampled finely and a fast one sampled coarsely give
the same frames. Everything is measured on the kit's own `TemporalConvolution` and `time_features`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stf2m_core import seeding
from stf2m_core.lessons.small_reader import accuracy, first_weights, fit
from stf2m_core.model.temporal import TIME_FEATURES, TemporalConvolution, time_features

RATES_HZ = (0.8, 1.2)
"""Of the waves: slow, fast."""
STEPS_S = (0.08, 0.12)
"""Between frames. 0.8 Hz times 0.12 s is 1.2 Hz times 0.08 s: the same share of a cycle."""
N_FRAMES = 32
USUAL_STEP_S = 0.1
CEILING = 0.75
"""Of who sees frames without stamps: sure of the two kinds of clip that differ, guessing between the two alike."""
READERS = {
    "single frames": (1, False), "single frames, stamps": (1, True), "convolution": (3, False),
    "convolution, stamps": (3, True),
}  # fmt: skip
"""Kernel of the convolutions, and whether time stamps are read."""
N_STEPS = {"test": 4}
"""Steps of training per profile; 400 elsewhere."""


@dataclass(frozen=True)
class Waves:
    """Clips of one node and one channel.

    Attributes:
        values: (clip, time, 1, 1) sine of random phase plus noise.
        times: (clip, time) seconds.
        speed: (clip,) int64, 0 slow or 1 fast: what is to be told.
        step: (clip,) int64, index into `STEPS_S`.
    """

    values: Tensor
    times: Tensor
    speed: Tensor
    step: Tensor


def waves(n_clips: int, seed: int = 0, *, noise: float = 0.3) -> Waves:
    """Equally many clips of each speed and step, in turn.

    Phase and noise are drawn per frame number, alike for all four kinds: four clips in a row show the same drawing.
    """
    n_clips -= n_clips % 4
    kind = torch.arange(n_clips) % 4
    speed, step = kind // 2, kind % 2
    draw = seeding.generator(seed, "waves")
    phase = torch.rand((n_clips // 4, 1), generator=draw).repeat_interleave(4, 0)
    rest = torch.randn((n_clips // 4, N_FRAMES), generator=draw).repeat_interleave(4, 0)
    gap = torch.tensor(STEPS_S, dtype=torch.float64)[step][:, None]
    cycle = torch.tensor(RATES_HZ, dtype=torch.float64)[speed][:, None] * gap  # cycles per frame
    frames = torch.arange(N_FRAMES, dtype=torch.float64)
    values = torch.sin(2 * math.pi * (cycle * frames + phase)) + noise * rest
    return Waves(values.float()[..., None, None], (gap * frames).float(), speed, step)


class WaveReader(nn.Module):
    """Two temporal convolutions and the mean over time.

    Args:
        kernel: taps.
        stamps: whether time features are added to the frames.
    """

    def __init__(self, kernel: int, stamps: bool, width: int = 12):
        super().__init__()
        self.enter = nn.Linear(1, width)
        self.time = nn.Linear(TIME_FEATURES, width) if stamps else None
        self.convolutions = nn.ModuleList([TemporalConvolution(width, kernel, d) for d in (1, 2)])
        self.leave = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, values: Tensor, times: Tensor) -> Tensor:
        """(clip, 2) scores."""
        mask = torch.ones(values.shape[:3], dtype=torch.bool)
        state = self.enter(values)
        if self.time is not None:
            duration = times[:, -1] + USUAL_STEP_S
            state = state + self.time(time_features(times, mask[..., 0], duration, USUAL_STEP_S))[:, :, None]
        for convolution in self.convolutions:
            state = convolution(state, mask)
        return self.leave(state.mean((1, 2)))


def reader_rows(profile: str, seed: int = 0) -> list[dict[str, object]]:
    """Accuracy of every reader on new clips: {"reader", "mean", "ci95"}; same clips, same number of steps.

    Args:
        profile: `test` trains hardly at all and only shows that everything runs.
        seed: of clips, first weights and batches.
    """
    train, new = waves(1600, seed), waves(800, seed + 1)
    rows = []
    for name, (kernel, stamps) in READERS.items():
        reader = first_weights(lambda k=kernel, s=stamps: WaveReader(k, s), seed, "wave reader")
        fit(reader, (train.values, train.times), train.speed, n_steps=N_STEPS.get(profile, 400), seed=seed)
        mean, half = accuracy(reader, (new.values, new.times), new.speed)
        rows.append({"reader": name, "mean": mean, "ci95": half})
    return rows


def twins(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A slow clip and a fast one with the same frames: values (2, time), seconds (2, time), names."""
    four = waves(4, seed)
    pair = [1, 2]  # slow and coarse, fast and fine
    names = [f"{RATES_HZ[four.speed[i]]:g} Hz, a frame each {STEPS_S[four.step[i]]:g} s" for i in pair]
    return four.values[pair, :, 0, 0].numpy(), four.times[pair].numpy(), names


@torch.no_grad()
def reach_table() -> pd.DataFrame:
    """How far one frame is seen, in frames and seconds, behind and ahead: found by sending a pulse through."""
    rows = []
    kinds = {"kernel 1": (1, (1,), False), "kernel 3": (3, (1,), False), "kernel 3, dilation 2": (3, (2,), False),
             "both kernels of a block": (3, (1, 2), False), "both, causal": (3, (1, 2), True)}  # fmt: skip
    for name, (kernel, dilations, causal) in kinds.items():
        seen = _pulse(kernel, dilations, causal)
        back, ahead = int(seen.max()), int(-seen.min())  # who answers later than the pulse looks back at it
        row = {"convolution": name, "frames back": back, "frames ahead": ahead}
        rows.append(row | {f"seconds back at {s:g} s a frame": f"{back * s:.2f}" for s in STEPS_S})
    return pd.DataFrame(rows)


def _pulse(kernel: int, dilations: tuple[int, ...], causal: bool) -> np.ndarray:
    """Places, relative to a pulse, that answer to it."""
    middle, size = 16, 33
    pulse = torch.zeros(1, size, 1, 1)
    pulse[0, middle] = 1
    mask = torch.ones(1, size, 1, dtype=torch.bool)
    silence, heard = torch.zeros_like(pulse), pulse
    for dilation in dilations:
        convolution = first_weights(lambda d=dilation: TemporalConvolution(1, kernel, d, causal), 0, "pulse")
        silence, heard = convolution(silence, mask), convolution(heard, mask)
    return np.flatnonzero((heard != silence)[0, :, 0, 0].numpy()) - middle


@torch.no_grad()
def gap_answers(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A slow signal with frames missing, smoothed by one convolution in three ways.

    Returns:
        (time,) values; (time,) bool which frames were observed; (time,) the answer with all frames; (2, time) the
        answer with the mask, and with zeros in place of what is missing.
    """
    frames = torch.arange(48, dtype=torch.float32)
    values = 2 + torch.sin(frames / 7) + 0.1 * torch.randn(48, generator=seeding.generator(seed, "gaps"))
    observed = torch.rand(48, generator=seeding.generator(seed, "missing")) > 0.3
    whole = torch.ones_like(observed)
    masked = torch.where(observed, values, torch.zeros_like(values))
    answers = [_smoothed(*pair) for pair in ((values, whole), (masked, observed), (masked, whole))]
    return values.numpy(), observed.numpy(), answers[0], np.stack(answers[1:])


def _smoothed(values: Tensor, mask: Tensor) -> np.ndarray:
    """The mean of five frames by a `TemporalConvolution`: its gate wide open, its direct path taken back."""
    mean = TemporalConvolution(1, 5, 1)
    with torch.no_grad():
        mean.mix.weight.zero_()
        mean.mix.weight[0] = 0.2
        mean.bias[1] = 30.0
        state = values[None, :, None, None]
        return (mean(state, mask[None, :, None]) - state * mask[None, :, None, None])[0, :, 0, 0].numpy()
