"""Named randomness derived from one seed; nothing here touches global state.

Two kinds. `uniform` is counter-based: the number for (seed, stream, episode 17, clip 4) is a pure function of those
names, so it does not depend on batching, on the number of workers or on where a run was interrupted. `generator` and
`numpy_generator` give ordinary generators for a named purpose. Source: ours, D-05.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit integer for the named purpose; the same on every machine."""
    text = "/".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the named purpose, on `device`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator (Philox) for the named purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))


def _mix(state: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection of 64-bit words that avalanches."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(seed: int, stream: str, *counters: np.ndarray | int) -> np.ndarray:
    """Uniform numbers in [0, 1), one for each entry of the broadcast `counters` (non-negative integers).

    Example:
        >>> a = uniform(0, "draw", np.arange(3)[:, None], np.arange(2))
        >>> a.shape
        (3, 2)
        >>> bool((a[1] == uniform(0, "draw", 1, np.arange(2))).all())
        True
    """
    with np.errstate(over="ignore"):
        state = np.uint64(derive(seed, stream))
        for counter in counters:
            state = _mix(state + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return (np.asarray(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53
