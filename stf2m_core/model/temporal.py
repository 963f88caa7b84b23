"""Time: features of real time stamps, gated convolution along it, and slots of it.

Source: METHOD, 'Time' and 'Encoder'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

N_PAIRS = 16
TIME_FEATURES = 2 * N_PAIRS + 3


def time_features(times: Tensor, observed: Tensor, duration: Tensor | None, step_s: float) -> Tensor:
    """Positional encoding on real time: (clip, time, 35).

    Sines and cosines of the seconds since the clip's start (periods 60 s to 0.1 s), the share of the clip that has
    passed, log(1 + gap / usual gap) to the last observed frame, and a flag of the first observed frame.

    Args:
        times: (clip, time) seconds.
        observed: (clip, time) bool.
        duration: (clip,) seconds; None: nobody knows yet how long the clip will be, and its share is zero.
        step_s: usual gap, seconds.

    Source: Vaswani et al. 2017 for the waves; METHOD, 'Time'.
    """
    pairs = torch.arange(N_PAIRS, device=times.device, dtype=times.dtype)
    rate = 2 * math.pi / 60 * (600 ** (pairs / (N_PAIRS - 1)))
    wave = times[..., None] * rate
    seen = torch.where(observed, times, torch.full_like(times, -math.inf))
    last = torch.cat([torch.full_like(times[:, :1], -math.inf), seen.cummax(1).values[:, :-1]], 1)
    first = observed & torch.isinf(last)
    gap = torch.where(torch.isinf(last), torch.zeros_like(times), times - last).clamp(min=0)
    passed = torch.zeros_like(times) if duration is None else times / duration[:, None]
    rest = torch.stack([passed, torch.log1p(gap / step_s), first.to(times.dtype)], -1)
    features = torch.cat([wave.sin(), wave.cos(), rest], -1)
    return torch.where(observed[..., None], features, torch.zeros((), dtype=times.dtype, device=times.device))


class TemporalConvolution(nn.Module):
    """Gated, dilated convolution along time, per node, that renormalises for masked frames.

    TC(H) = (n sum_o W_o a_o H_o + b + H) * sigmoid(n sum_o V_o a_o H_o + c), with n = taps / observed taps.
    Source: gates as in STGCN (Yu et al. 2018), renormaliser as in partial convolution (Liu et al. 2018).
    """

    def __init__(self, width: int, kernel: int, dilation: int, causal: bool = False):
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.before = dilation * (kernel - 1 if causal else kernel // 2)  # frames from the first tap to a frame
        self.mix = nn.Linear(kernel * width, 2 * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        """(clip, time, node, channel), zero where masked, and the mask (clip, time, node); masked places stay zero."""
        weight = mask.to(state.dtype)
        taps = self.mix.weight.unflatten(1, (self.kernel, -1)).permute(0, 2, 1).contiguous()
        seen = self._along_time(weight[..., None], weight.new_ones(1, 1, self.kernel)).clamp(min=1)
        mixed = torch.addcmul(self.bias, self._along_time(state, taps), self.kernel / seen)
        content, gate = mixed.chunk(2, -1)
        return (content + state) * gate.sigmoid() * weight[..., None]

    def _along_time(self, state: Tensor, taps: Tensor) -> Tensor:
        """Taps (to, from, tap) on (clip, time, node, from): (clip, time, node, to), zeros outside the clip.

        Node by node, with channels as the last axis as they lie in memory: no tap is copied.
        """
        images = state.permute(0, 3, 1, 2)
        mixed = nn.functional.conv2d(images, taps[..., None], padding=(self.before, 0), dilation=(self.dilation, 1))
        return mixed[:, :, : state.shape[1]].permute(0, 2, 3, 1)


def slot_centers(duration: Tensor, slot_s: float, max_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (clip, slot), width (clip,) in seconds, and which slots exist (clip, slot) bool.

    A clip longer than max_slots allows gets wider slots.
    """
    width = torch.clamp(duration / (max_slots - 1), min=slot_s)
    n_slots = (torch.ceil(duration / width * (1 - 1e-6)).long() + 1).clamp(max=max_slots)
    index = torch.arange(int(n_slots.max()), device=duration.device)
    return index * width[:, None], width, index < n_slots[:, None]


def slots(
    state: Tensor, mask: Tensor, times: Tensor, centers: Tensor, width: Tensor, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Means of the states near each centre with weights on real time; slots without a frame are masked.

    The weights are a triangle that reaches one width to either side of the centre. If causal, a slot is the plain mean
    of the width that ends at its centre, so that it knows nothing later.

    Args:
        state: (clip, time, node, channel), zero where masked.
        mask: (clip, time, node) bool.
        times: (clip, time) seconds.
        centers: (clip, slot) seconds.
        width: (clip,) seconds.
        causal: whether a slot looks back only.
    """
    if causal:
        # counted, not compared with both ends: rounding must not lose a frame between two slots
        slot = torch.ceil(times / width[:, None] * (1 - 1e-6))
        index = torch.arange(centers.shape[1], device=times.device, dtype=times.dtype)
        weight = (slot[:, None] == index[:, None]).to(state.dtype)
    else:
        weight = (1 - (times[:, None] - centers[..., None]).abs() / width[:, None, None]).clamp(min=0).to(state.dtype)
    total = torch.matmul(weight, state.flatten(2)).unflatten(2, state.shape[2:])
    share = torch.matmul(weight, mask.to(state.dtype))
    filled = share > 1e-4
    return total / torch.where(filled, share, torch.ones_like(share))[..., None] * filled[..., None], filled


def level_of(values: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
    """Mean over time of every node's channels: (clip, 1, node, channel), or so far at each time if causal.

    Args:
        values: (clip, time, node, channel), anything finite where masked.
        mask: (clip, time, node) bool.
        causal: whether only what has passed counts.
    """
    weight = mask[..., None].to(values.dtype)
    if causal:
        return (weight * values).cumsum(1) / weight.cumsum(1).clamp(min=1)
    return (weight * values).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
