"""Pitch and voicing of frames of sound by probabilistic YIN.

Source: Mauch & Dixon 2014; YIN by de Cheveigné & Kawahara 2002. All constants are those of `librosa.pyin`, and so are
the results, by test. It is done here because a worker that loads librosa takes four times the memory.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from stf2m_core.data.media.settings import MediaSettings

_N_THRESHOLDS = 100  # of the difference function, below each of which a trough may be the period
_DECAY = 2.0  # each further trough below a threshold is exp(-2) times as likely as the one before
_NO_TROUGH = 0.01  # share of a threshold below which there is no trough that goes to the lowest one
_RATE = 35.92  # octaves per second that pitch moves at most
_SWITCH = 0.01  # probability that voice begins or ends from one frame to the next
_AT_ONCE = 64  # frames whose thresholds are looked at together


def find_pitch(frames: np.ndarray, settings: MediaSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch in Hz (a best guess where nothing is voiced), voicing probability and whether voiced, (frame,) each.

    Args:
        frames: (frame, sample) float32 windows one hop apart, as long as two periods of the lowest pitch or longer.
        settings: states rates and the range of the pitch.
    """
    rate, low, high = settings.sample_rate_hz, settings.pitch_low_hz, settings.pitch_high_hz
    shortest, longest = int(rate / high), min(math.ceil(rate / low), frames.shape[1] - 1)
    per_octave = 12 * math.ceil(1 / settings.pitch_step)
    n_bins = int(per_octave * math.log2(high / low)) + 1
    observed = np.zeros((n_bins + 1, len(frames)))  # the last row takes what is higher than the highest
    for first in range(0, len(frames), _AT_ONCE):
        difference = _normalised_difference(frames[first : first + _AT_ONCE], shortest, longest)
        share = _period_shares(difference)
        frame, lag = np.nonzero(share)
        hertz = rate / (shortest + lag + _refinement(difference)[frame, lag])
        pitch = np.clip(np.round(per_octave * np.log2(hertz / low)), 0, n_bins).astype(int)
        observed[pitch, first + frame] = share[frame, lag]
    voicing = np.clip(observed[:-1].sum(axis=0), 0, 1)
    reach = round(_RATE * 12 * settings.hop / rate) * (per_octave // 12) + 1
    state = _likeliest_path(observed[:-1], (1 - voicing) / n_bins, reach)
    return low * 2 ** (state % n_bins / per_octave), voicing, state < n_bins


def _normalised_difference(frames: np.ndarray, shortest: int, longest: int) -> np.ndarray:
    """(frame, lag): how unlike each frame is to itself some samples later, against the mean of smaller lags."""
    size = 1 << (2 * frames.shape[1] - 2).bit_length()
    spectrum = np.fft.rfft(frames, size)
    likeness = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[:, : longest + 1]
    before = np.cumsum(np.square(frames), axis=1)[:, :longest]
    unlike = 2 * (likeness[:, :1] - likeness[:, 1:]) - before
    mean = np.cumsum(unlike, axis=1) / np.arange(1, longest + 1)
    return unlike[:, shortest - 1 :] / (mean[:, shortest - 1 :] + np.finfo(np.float64).tiny)


def _refinement(difference: np.ndarray) -> np.ndarray:
    """(frame, lag): where, within one sample, the parabola through a lag and its neighbours is lowest; else 0."""
    shift = np.zeros_like(difference)
    left, middle, right = difference[:, :-2], difference[:, 1:-1], difference[:, 2:]
    bend, slope = right + left - 2 * middle, (right - left) / 2
    np.divide(-slope, bend, out=shift[:, 1:-1], where=np.abs(slope) < np.abs(bend))
    return shift


def _period_shares(difference: np.ndarray) -> np.ndarray:
    """(frame, lag): how likely each lag is the period, over all thresholds; together at most 1 in a frame."""
    trough = np.zeros(difference.shape, bool)
    trough[:, 0] = difference[:, 0] < difference[:, 1]
    trough[:, 1:-1] = (difference[:, 1:-1] < difference[:, :-2]) & (difference[:, 1:-1] <= difference[:, 2:])
    trough[:, -1] = difference[:, -1] < difference[:, -2]
    share, (frame, lag) = np.zeros_like(difference), np.nonzero(trough)
    if not len(frame):
        return share
    levels, weight = _thresholds()
    height = difference[frame, lag]
    below = height[:, None] < levels
    first = np.flatnonzero(np.diff(frame, prepend=-1))  # of each frame's troughs
    owner = np.repeat(np.arange(len(first)), np.diff(first, append=len(frame)))
    count = np.cumsum(below, axis=0)
    place = count - (count[first] - below[first])[owner] - 1
    n_below = np.add.reduceat(below, first, axis=0, dtype=int)[owner]
    prior = -np.expm1(-_DECAY) / -np.expm1(-_DECAY * np.maximum(n_below, 1)) * np.exp(-_DECAY * place)
    probability = np.where(below, prior, 0) @ weight
    lowest = first + [int(part.argmin()) for part in np.split(height, first[1:])]
    probability[lowest] += _NO_TROUGH * np.where(below[lowest], 0, weight).sum(axis=1)
    share[frame, lag] = probability
    return share


@lru_cache(maxsize=1)
def _thresholds() -> tuple[np.ndarray, np.ndarray]:
    """Thresholds and how much each counts: the beta distribution with parameters 2 and 18, in its closed form."""
    level = np.linspace(0, 1, _N_THRESHOLDS + 1)
    reached = 1 - (1 - level) ** 19 - 19 * level * (1 - level) ** 18
    return level[1:], np.diff(reached)


def _likeliest_path(voiced: np.ndarray, unvoiced: np.ndarray, reach: int) -> np.ndarray:
    """(frame,) states: pitch bins, then the same bins without voice; the path of largest likelihood (Viterbi).

    Args:
        voiced: (bin, frame) likelihood of each pitch.
        unvoiced: (frame,) likelihood of no voice, at each of the bins.
        reach: bins that pitch may move from one frame to the next, there and back together.
    """
    n_bins, n_frames = voiced.shape
    move, tiny = _log_moves(n_bins, reach), np.finfo(np.float64).tiny
    likely = np.log(np.concatenate([voiced.T, np.repeat(unvoiced[:, None], n_bins, axis=1)], axis=1) + tiny)
    best = likely[0] - math.log(2 * n_bins)
    came = np.empty((n_frames, 2 * n_bins), np.int16)
    ways, row = np.empty_like(move), np.arange(2 * n_bins)
    for frame in range(1, n_frames):
        np.add(best, move, out=ways)
        came[frame] = ways.argmax(axis=1)
        best = likely[frame] + ways[row, came[frame]]
    state = np.empty(n_frames, np.int64)
    state[-1] = best.argmax()
    for frame in range(n_frames - 1, 0, -1):
        state[frame - 1] = came[frame, state[frame]]
    return state


@lru_cache(maxsize=2)
def _log_moves(n_bins: int, reach: int) -> np.ndarray:
    """(to, from) logarithm of the probability of each move between states: small steps of pitch, few switches."""
    step = np.arange(n_bins) - np.arange(n_bins)[:, None] + 0.5 * (reach % 2 == 0)  # rows are where it comes from
    near = np.maximum(1 - np.abs(2 * step) / (reach + reach % 2), 0)
    near /= near.sum(axis=1, keepdims=True)
    stay = np.array([[1 - _SWITCH, _SWITCH], [_SWITCH, 1 - _SWITCH]])
    return np.ascontiguousarray(np.log(np.kron(stay, near) + np.finfo(np.float64).tiny).T)
