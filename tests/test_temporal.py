"""Readings of time: without positional features, and looking back only, from the frames to the embedding."""

import dataclasses

import pytest
import torch
from test_encoder import STEPS, changed, clips, embedded, encoder_of, normal, rng

from stf2m_core.model.encoder import Dropout
from stf2m_core.model.temporal import level_of, slot_centers, slots, time_features
from stf2m_core.shapes import ViewBatch


def exact(views):
    """The same views on times and durations with all digits of double precision, so that a second is ten tenths."""
    return {
        n: dataclasses.replace(v, times=torch.round(v.times * 100) / 100, duration=torch.round(v.duration * 100) / 100)
        for n, v in views.items()
    }


def later(views, seconds):
    """Everything happens `seconds` later, and the clip lasts as much longer."""
    return {n: dataclasses.replace(v, times=v.times + seconds, duration=v.duration + seconds)
            for n, v in views.items()}  # fmt: skip


# Without positional features


@pytest.mark.parametrize("positional", [False, True])
def test_without_positional_features_it_does_not_matter_when_a_clip_happens(positional):  # I-3
    encoder, views = encoder_of(positional=positional, max_slots=16), exact(clips(1.3, 0.6, 2.0))
    for seconds in (0.5, 2.0):
        moved, still = embedded(encoder, later(views, seconds))[0], embedded(encoder, views)[0]
        gap = float((moved - still).detach().abs().max())
        assert gap > 1e-2 if positional else gap < 1e-10


@pytest.mark.parametrize("kernel, positional", [(1, False), (1, True), (3, False)])
def test_without_kernels_and_positional_features_a_clip_and_its_reverse_are_one(kernel, positional):
    encoder = encoder_of(kernel=kernel, positional=positional, max_slots=16)
    views = {n: ViewBatch(normal(2, size, *shape), torch.rand(2, size, shape[0], generator=rng(1)) < 0.7,
                          (torch.arange(size, dtype=torch.float64) * STEPS[n]).expand(2, -1),
                          torch.full((2,), 2.0, dtype=torch.float64))
             for n, shape, size in (("face", (3, 2), 21), ("voice", (2, 3), 9))}  # fmt: skip
    views = {n: dataclasses.replace(v, values=v.values * v.mask[..., None]) for n, v in views.items()}
    turned = {n: dataclasses.replace(v, values=v.values.flip(1), mask=v.mask.flip(1)) for n, v in views.items()}
    gap = float((embedded(encoder, turned)[0] - embedded(encoder, views)[0]).detach().abs().max())
    assert gap < 1e-10 if (kernel, positional) == (1, False) else gap > 1e-3


def test_positional_features_that_are_off_have_no_weights_and_other_weights_stay():
    off, on = encoder_of(positional=False), encoder_of()
    gone = set(on.state_dict()) - set(off.state_dict())
    assert gone == {f"{place}time.{part}" for place in ("", "level1.face.", "level1.voice.")
                    for part in ("weight", "bias")}  # fmt: skip
    assert set(off.state_dict()) < set(on.state_dict())


# Looking back only


def test_a_level_so_far_is_the_mean_of_a_slow_loop_over_what_has_passed():
    mask = torch.rand(2, 9, 3, generator=rng(5)) < 0.5
    values = normal(2, 9, 3, 2) * mask[..., None]
    ours, whole = level_of(values, mask, causal=True), level_of(values, mask)
    for clip in range(2):
        for node in range(3):
            for t in range(9):
                seen = [values[clip, s, node] for s in range(t + 1) if mask[clip, s, node]]
                mean = sum(seen) / len(seen) if seen else torch.zeros(2, dtype=torch.float64)
                torch.testing.assert_close(ours[clip, t, node], mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[:, -1:], whole, rtol=0, atol=1e-12)


def test_a_causal_slot_is_the_mean_of_the_width_that_ends_at_its_centre_and_no_frame_is_lost():
    times = torch.tensor([[0.0, 1e-9, 0.3, 0.5, 0.5000001, 0.50001, 1.0, 1.2, 1.5, 9.0]], dtype=torch.float64)
    state, mask = torch.arange(1.0, 11, dtype=torch.float64)[None, :, None, None], torch.ones(1, 10, 1).bool()
    centers, width, _ = slot_centers(torch.tensor([2.0], dtype=torch.float64), 0.5, 16)
    means, filled = slots(state, mask, times, centers, width, causal=True)
    assert filled[0, :, 0].tolist() == [True, True, True, True, False]
    # the eighth part of a millionth of a slot is rounding; 10 us are not
    assert means[0, :4, 0, 0].tolist() == [1.0, (2 + 3 + 4 + 5) / 4, (6 + 7) / 2, (8 + 9) / 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_frame_of_a_clip_is_in_exactly_one_causal_slot(dtype):
    times = (torch.arange(310, dtype=dtype) * 0.05)[None]
    centers, width, _ = slot_centers(torch.tensor([15.5], dtype=dtype), 0.5, 32)
    ones = torch.ones(1, 310, 1, 1, dtype=dtype)
    per_slot = [slots(ones * (torch.arange(310) == i)[None, :, None, None], ones[..., 0].bool(), times, centers, width,
                      causal=True)[0].count_nonzero() for i in range(310)]  # fmt: skip
    assert per_slot == [1] * 310


def test_a_running_clip_has_no_share_that_has_passed_and_all_other_features_stay():
    times, observed = torch.tensor([[0.0, 0.1, 0.4]]), torch.ones(1, 3, dtype=torch.bool)
    known = time_features(times, observed, torch.tensor([0.5]), 0.1)
    running = time_features(times, observed, None, 0.1)
    assert (running[..., 32] == 0).all() and known[..., 32].max() > 0.5
    assert torch.equal(torch.cat([running[..., :32], running[..., 33:]], -1),
                       torch.cat([known[..., :32], known[..., 33:]], -1))  # fmt: skip


def states(encoder, views):
    encoded = encoder(views, Dropout())
    return (encoded.normed + encoded.residual).detach(), encoded.mask


NOW = 1.5


@pytest.mark.parametrize("settings", [{}, {"spatial": "chebyshev"}, {"dilations": (2, 4)}, {"positional": False}])
def test_no_later_frame_changes_an_earlier_state_of_a_causal_encoder(settings):  # I-12
    views, n_slots = exact(clips(3.2, 2.6, 3.2)), int(NOW / 0.5) + 1
    moved = views
    for name, view in views.items():
        after = (view.times > NOW)[..., None]
        mask = torch.where(after, view.mask & (torch.rand(view.mask.shape, generator=rng(3)) < 0.5), view.mask)
        values = torch.where(after[..., None], view.values + 3 * normal(*view.values.shape, seed=8), view.values)
        moved = changed(moved, name, values=values * mask[..., None], mask=mask)
    for causal in (True, False):
        encoder = encoder_of(causal=causal, max_slots=16, **settings)
        (before, seen), (after, _) = states(encoder, views), states(encoder, moved)
        assert seen[:, :n_slots].any((0, 2)).all()
        assert torch.equal(before[:, :n_slots], after[:, :n_slots]) == causal
        assert float((before - after).abs().max()) > 1e-2


def test_a_causal_encoder_says_of_a_clip_that_still_runs_what_it_says_of_its_beginning_later():  # I-12
    views = exact(clips(3.2, 2.6))
    so_far = {}
    for name, view in views.items():
        n_frames = int((view.times[0] <= NOW).sum())
        so_far[name] = ViewBatch(view.values[:, :n_frames], view.mask[:, :n_frames], view.times[:, :n_frames],
                                 torch.full_like(view.duration, NOW))  # fmt: skip
    for causal in (True, False):
        encoder = encoder_of(causal=causal, max_slots=16)
        (whole, filled), (part, filled_so_far) = states(encoder, views), states(encoder, so_far)
        assert part.shape[1] == 4 and bool(filled_so_far.any((0, 2)).all())
        gap = float((whole[:, :4] - part).abs().max())
        assert gap < 1e-12 and torch.equal(filled[:, :4], filled_so_far) if causal else gap > 1e-3
