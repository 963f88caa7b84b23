"""Named randomness: the same on every machine, uniform, and a pure function of its names and counters."""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from stf2m_core import seeding


def mixed(seed, stream, *counters):
    """The counter-based number, in plain Python integers."""
    word, state = 2**64, seeding.derive(seed, stream)
    for counter in counters:
        state = (state + (counter + 1) * 0x9E3779B97F4A7C15) % word
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % word
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % word
        state ^= state >> 31
    return (state >> 11) / 2**53


def test_derived_seeds_equal_those_worked_out_with_sha256sum():
    # printf '0/a' | sha256sum starts d3216b8dc7c46489; its 8 bytes, last first, halved
    assert seeding.derive(0, "a") == 0x8964C4C78D6B21D3 // 2
    # printf '7/episodes/3' | sha256sum starts 281f8633d773023b
    assert seeding.derive(7, "episodes", 3) == 0x3B0273D733861F28 // 2


def test_derived_seeds_have_63_bits_and_differ_by_seed_name_and_order():
    seeds = [seeding.derive(seed, a, b) for seed in range(20) for a in range(10) for b in range(10)]
    assert len(set(seeds)) == 2000
    assert 2**60 < max(seeds) < 2**63 and min(seeds) >= 0


def test_uniform_equals_the_same_formula_in_python_integers():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**40, (50, 3))
    expected = [mixed(5, "x", *(int(c) for c in row)) for row in counters]
    np.testing.assert_array_equal(seeding.uniform(5, "x", *counters.T), expected)


@pytest.mark.parametrize("stream", ["episodes", "drop", "crop"])
def test_uniform_follows_the_uniform_law(stream):
    draws = seeding.uniform(3, stream, np.arange(200)[:, None], np.arange(200)).ravel()
    assert draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3


def test_neighbouring_counters_and_streams_are_uncorrelated():
    grid = seeding.uniform(0, "a", np.arange(300)[:, None], np.arange(300))
    other = seeding.uniform(0, "b", np.arange(300)[:, None], np.arange(300))
    third = seeding.uniform(1, "a", np.arange(300)[:, None], np.arange(300))
    pairs = [(grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid, grid.T), (grid, other), (grid, third)]
    for one, two in pairs:
        # 5 standard errors of a correlation of 90,000 independent pairs; grid and its transpose share the diagonal
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / 300


def test_successive_numbers_fill_the_unit_square():
    pairs = seeding.uniform(0, "square", np.arange(20000)[:, None], np.arange(2))
    counts = np.histogram2d(*pairs.T, bins=10, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_uniform_does_not_depend_on_how_the_counters_are_broadcast():
    whole = seeding.uniform(0, "s", np.arange(6)[:, None], np.arange(4))
    assert whole.shape == (6, 4)
    for i in range(6):
        np.testing.assert_array_equal(seeding.uniform(0, "s", i, np.arange(4)), whole[i])
        assert float(seeding.uniform(0, "s", i, 3)) == whole[i, 3]
    turned = seeding.uniform(0, "s", np.arange(6), np.arange(4)[:, None])
    np.testing.assert_array_equal(turned.T, whole)


def test_uniform_does_not_depend_on_the_type_of_the_counters():
    kinds = [np.arange(9, dtype=kind) for kind in (np.int64, np.int32, np.uint8)]
    first, *others = [seeding.uniform(0, "s", counters) for counters in kinds]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_uniform_tells_the_order_and_number_of_counters_apart():
    draws = [float(seeding.uniform(0, "s", *counters)) for counters in [(), (0,), (0, 0), (0, 1), (1, 0), (1,)]]
    assert len(set(draws)) == 6


def test_streams_and_seeds_give_different_numbers():
    counters = np.arange(1000)
    draws = [seeding.uniform(seed, stream, counters) for seed in (0, 1) for stream in ("a", "b")]
    assert len(np.unique(np.concatenate(draws))) == 4000


def test_generators_repeat_by_name_and_differ_by_name():
    torch_draws = [torch.rand(5, generator=seeding.generator(0, name)) for name in ("a", "a", "b")]
    numpy_draws = [seeding.numpy_generator(0, name).random(5) for name in ("a", "a", "b")]
    for same, again, other in (torch_draws, numpy_draws):
        assert (same == again).all() and (same != other).all()


def test_nothing_touches_global_random_state():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    seeding.uniform(0, "a", np.arange(5))
    seeding.generator(0, "a")
    seeding.numpy_generator(0, "a").random(3)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
