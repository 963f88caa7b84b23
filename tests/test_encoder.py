"""Encoder against slow loops in float64, and the laws it must obey; I-n cites the method's list of invariants."""

import dataclasses
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from stf2m_core.config import EncoderConfig
from stf2m_core.errors import ConfigError
from stf2m_core.model.encoder import Block, Dropout, Encoder, masked_softmax
from stf2m_core.model.spatial import SpatialConvolution, complete_graph, joint_graph
from stf2m_core.model.temporal import TemporalConvolution, slot_centers, slots, time_features
from stf2m_core.shapes import ViewBatch
from stf2m_core.views import Statistics, standardised

SHAPES = {"face": (3, 2), "voice": (2, 3)}
STEPS = {"face": 0.1, "voice": 0.25}
CONFIG = EncoderConfig(hidden=6, embedding=5, slot_s=0.5, max_slots=8, dropout=0.0)
KINDS = pytest.mark.parametrize("kind", ["diffusion", "chebyshev"])
FLOATS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


def rng(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def generic(build, seed=0, dtype=torch.float64):
    """A module with weights away from every special value of its start; the global generator stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            weight.add_(0.2 * normal(*weight.shape, seed=1000 * seed + number))
    return module.to(dtype)


def encoder_of(shapes=SHAPES, dtype=torch.float64, **changes):
    return generic(lambda: Encoder(shapes, STEPS, dataclasses.replace(CONFIG, **changes)), dtype=dtype)


def clips(*durations, shapes=SHAPES, seed=0, dtype=torch.float64, observed=0.8):
    """Views of clips padded to the longest; zero under the mask, as the views come out of `standardised`."""
    views = {}
    for name, (n_nodes, n_channels) in shapes.items():
        lengths = [max(1, round(d / STEPS[name])) for d in durations]
        size = (len(durations), max(lengths), n_nodes)
        inside = torch.arange(size[1]) < torch.tensor(lengths)[:, None]
        mask = (torch.rand(size, generator=rng(seed + 1)) < observed) & inside[..., None]
        mask[:, 0] = True
        times = (torch.arange(size[1]) * STEPS[name]).expand(size[:2]) * inside
        values = normal(*size, n_channels, seed=seed + n_nodes) * mask[..., None]
        views[name] = ViewBatch(values.to(dtype), mask, times.to(dtype), torch.tensor(durations, dtype=dtype))
    return views


def changed(views, name, **tensors):
    return views | {name: dataclasses.replace(views[name], **tensors)}


def embedded(encoder, views, gamma=None, beta=None):
    """z and disagreement of one episode, (clip, embedding) and (clip,)."""
    zero = next(encoder.parameters()).new_zeros(1, encoder.config.hidden)
    z, disagreement = encoder.embed(encoder(views, Dropout()), zero if gamma is None else gamma,
                                    zero if beta is None else beta)  # fmt: skip
    return z[0], disagreement[0]


def outcome(encoder, views):
    """z, disagreement and the gradient of a generic function of them in every weight."""
    z, disagreement = embedded(encoder, views)
    loss = (z * normal(*z.shape, seed=9, dtype=z.dtype)).sum() + (disagreement * disagreement).sum()
    return z, disagreement, *torch.autograd.grad(loss, list(encoder.parameters()))


def assert_same(ours, theirs, tolerance):
    for left, right in zip(ours, theirs, strict=True):
        scale = max(1.0, float(right.detach().abs().max()))
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance * scale)


# Slow references: one clip, frames and nodes in Python loops, formulas of the method


def slow_time_features(times, observed, duration, step):
    rows, last = [], None
    for t, seen in zip(times.tolist(), observed.tolist(), strict=True):
        if not seen:
            rows.append([0.0] * 35)
            continue
        rates = [2 * math.pi / (60 * (0.1 / 60) ** (k / 15)) for k in range(16)]
        gap = 0.0 if last is None else t - last
        rows.append([math.sin(w * t) for w in rates] + [math.cos(w * t) for w in rates]
                    + [t / duration, math.log(1 + gap / step), float(last is None)])  # fmt: skip
        last = t
    return torch.tensor(rows, dtype=torch.float64)


def slow_temporal(module, state, mask, offsets):
    n_time, n_nodes, width = state.shape
    content, gate = module.mix.weight.unflatten(0, (2, width)).unflatten(2, (len(offsets), width)).unbind(0)
    result = torch.zeros_like(state)
    for t in range(n_time):
        for v in range(n_nodes):
            if not mask[t, v]:
                continue
            taps = [(i, t + o) for i, o in enumerate(offsets) if 0 <= t + o < n_time and mask[t + o, v]]
            n = len(offsets) / max(1, len(taps))
            u, g = (n * sum(w[:, i] @ state[s, v] for i, s in taps) for w in (content, gate))
            u, g = u + module.bias[:width], g + module.bias[width:]
            result[t, v] = (u + state[t, v]) / (1 + torch.exp(-g))
    return result


def slow_spatial(module, state, mask, hops):
    n_nodes, width = state.shape[1:]
    learned = torch.zeros(n_nodes, n_nodes, dtype=state.dtype)
    for i in range(n_nodes):
        score = [max(0.0, (module.source[i] @ module.target[j]).item()) / math.sqrt(8) for j in range(n_nodes)]
        for j in range(n_nodes):
            learned[i, j] = math.exp(score[j]) / sum(math.exp(s) for s in score)
    first, *rest = module.mix.weight.unflatten(1, (1 + 2 * hops, width)).unbind(1)
    result = torch.zeros_like(state)
    for t in range(state.shape[0]):
        here = [v for v in range(n_nodes) if mask[t, v]]
        for v in here:
            total = first @ state[t, v] + module.mix.bias + state[t, v]
            for a, graph in enumerate((module.prior.to(state.dtype), learned)):
                part = graph[here][:, here]
                part = part / part.sum(1, keepdim=True)
                for j in range(hops):
                    walk = torch.linalg.matrix_power(part, j + 1)[here.index(v)]
                    spread = sum(walk[k] * state[t, u] for k, u in enumerate(here))
                    total = total + rest[a * hops + j] @ spread
            result[t, v] = total.clamp(min=0)
    return result


def slow_slots(state, mask, times, centers, width):
    result = torch.zeros(len(centers), *state.shape[1:], dtype=state.dtype)
    filled = torch.zeros(len(centers), state.shape[1], dtype=torch.bool)
    for i, center in enumerate(centers.tolist()):
        for v in range(state.shape[1]):
            weight = [max(0.0, 1 - abs(t - center) / width) * bool(mask[j, v]) for j, t in enumerate(times.tolist())]
            filled[i, v] = sum(weight) > 1e-4
            if filled[i, v]:
                result[i, v] = sum(w * state[j, v] for j, w in enumerate(weight)) / sum(weight)
    return result, filled


def layer_norm(module, x):
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + module.eps) * module.weight + module.bias


def slow_block(block, state, mask, config):
    reach = range(-(config.kernel // 2), config.kernel // 2 + 1)
    state = slow_temporal(block.before, state, mask, [config.dilations[0] * o for o in reach])
    state = slow_spatial(block.spatial, state, mask, config.hops)
    state = slow_temporal(block.after, state, mask, [config.dilations[1] * o for o in reach])
    return layer_norm(block.norm, state) * mask[..., None]


def slow_modality(module, view, clip, centers, width, config):
    mask, times = view.mask[clip], view.times[clip]
    wave = slow_time_features(times, mask.any(1), float(view.duration[clip]), module.step_s)
    state = torch.zeros(*mask.shape, config.hidden, dtype=torch.float64)
    level = torch.zeros(mask.shape[1], config.hidden, dtype=torch.float64)
    for v in range(mask.shape[1]):
        here = [t for t in range(mask.shape[0]) if mask[t, v]]
        mean = sum(view.values[clip, t, v] for t in here) / max(1, len(here))
        for t in here:
            state[t, v] = (view.values[clip, t, v] - mean) @ module.weight[v] + module.place[v]
            state[t, v] += module.time.weight @ wave[t] + module.time.bias
        level[v] = mean @ module.level[v] if here else level[v]
    result, filled = slow_slots(state + slow_block(module.block, state, mask, config), mask, times, centers, width)
    return result + level * filled[..., None], filled


def slow_read_out(encoder, name, state, mask):
    """State (slot, node, channel) of one modality: mean, deviation and attention pool, then linear."""
    rows = state[mask]
    mean = rows.mean(0)
    deviation = torch.sqrt(((rows - mean) ** 2).mean(0) + 1e-5)
    share = torch.softmax(encoder.attention[name](rows)[:, 0], 0)
    z = encoder.project[name](torch.cat([mean, deviation, share @ rows]))
    if not encoder.config.node_read_out:
        return z
    nodes = [state[mask[:, v], v].mean(0) if mask[:, v].any() else state[0, v] * 0 for v in range(mask.shape[1])]
    return z + encoder.nodes[name].weight @ torch.cat(nodes)


def slow_level(encoder, name, view, clip):
    """Mean and deviation of every node's channels, standardised, then linear."""
    mean, deviation = torch.zeros(2, *view.values.shape[2:], dtype=torch.float64)
    for v in range(view.mask.shape[2]):
        rows = view.values[clip, view.mask[clip, :, v], v]
        if len(rows):
            mean[v], deviation[v] = rows.mean(0), torch.sqrt(((rows - rows.mean(0)) ** 2).mean(0) + 1e-5)
    path = encoder.level[name]
    return path.mix.weight @ ((torch.cat([mean, deviation], -1).flatten() - path.shift) / path.scale)


def slow_embed(encoder, normed, residual, mask, gamma, beta, level):
    """One clip: z and disagreement; `level` (modality, feature)."""
    state = (normed * (1 + gamma) + beta + residual) * mask[..., None]
    parts, start = [], 0
    for name, size in zip(encoder.names, encoder.sizes, strict=True):
        nodes = slice(start, start + size)
        if mask[:, nodes].any():
            index = encoder.names.index(name)
            parts.append(slow_read_out(encoder, name, state[:, nodes], mask[:, nodes]) + level[index])
        start += size
    fused = sum(parts) / len(parts)
    return fused, sum(((z - fused) ** 2).mean() for z in parts) / len(parts)


def slow_clip(encoder, views, clip):
    """The whole encoder, one clip, without FiLM."""
    config, duration = encoder.config, float(views["face"].duration[clip])
    width = max(config.slot_s, duration / (config.max_slots - 1))
    centers = torch.tensor([i * width for i in range(math.ceil(duration / width - 1e-6) + 1)], dtype=torch.float64)
    parts = [slow_modality(encoder.level1[n], views[n], clip, centers, width, config) for n in encoder.names]
    mask = torch.cat([filled for _, filled in parts], 1)
    exists = torch.ones(len(centers), dtype=torch.bool)
    wave = slow_time_features(centers, exists, duration, config.slot_s)
    state = torch.cat([s for s, _ in parts], 1) + (wave @ encoder.time.weight.T + encoder.time.bias)[:, None]
    state = state * mask[..., None]
    zero = torch.zeros(config.hidden, dtype=torch.float64)
    level = [slow_level(encoder, n, views[n], clip) for n in encoder.names]
    return slow_embed(encoder, slow_block(encoder.joint, state, mask, config), state, mask, zero, zero, level)


# Parts against the slow references


def test_time_features_are_those_of_a_slow_loop_over_observed_frames():
    times = torch.tensor([[0.0, 0.13, 0.31, 0.58, 1.7, 2.0], [0.2, 0.4, 0.5, 0.9, 1.0, 1.2]], dtype=torch.float64)
    observed = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()
    duration = torch.tensor([2.5, 1.3], dtype=torch.float64)
    ours = time_features(times, observed, duration, 0.1)
    for row in range(2):
        slow = slow_time_features(times[row], observed[row], float(duration[row]), 0.1)
        torch.testing.assert_close(ours[row], slow, rtol=0, atol=1e-10)


def test_the_slowest_wave_has_a_period_of_a_minute_and_the_fastest_of_a_tenth_of_a_second():
    times = torch.tensor([[0.0, 0.1, 15.0]], dtype=torch.float64)
    features = time_features(times, torch.ones(1, 3, dtype=torch.bool), torch.tensor([60.0]), 0.1)[0]
    torch.testing.assert_close(features[1, [15, 31]], features[0, [15, 31]], rtol=0, atol=1e-9)
    torch.testing.assert_close(features[2, 0], torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kernel", "dilation", "causal"), [(3, 1, False), (3, 2, False), (5, 4, False), (1, 1, False),
                                                            (3, 1, True), (3, 2, True)])  # fmt: skip
def test_the_temporal_convolution_is_that_of_a_slow_loop_with_masks_and_renormaliser(kernel, dilation, causal):
    module = generic(lambda: TemporalConvolution(4, kernel, dilation, causal))
    mask = torch.rand(2, 7, 3, generator=rng(2)) < 0.6
    state = normal(2, 7, 3, 4) * mask[..., None]
    reach = range(-(kernel - 1), 1) if causal else range(-(kernel // 2), kernel // 2 + 1)
    for row in range(2):
        slow = slow_temporal(module, state[row], mask[row], [dilation * o for o in reach])
        torch.testing.assert_close(module(state, mask)[row], slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_the_spatial_convolution_is_that_of_a_slow_loop_over_both_masked_graphs(hops):
    prior = torch.rand(4, 4, generator=rng(3))
    module = generic(lambda: SpatialConvolution(3, prior / prior.sum(1, keepdim=True), hops))
    mask = torch.rand(2, 5, 4, generator=rng(4)) < 0.6
    mask[0, 0], mask[0, 1] = False, torch.tensor([False, False, True, False])
    state = normal(2, 5, 4, 3) * mask[..., None]
    for row in range(2):
        slow = slow_spatial(module, state[row], mask[row], hops)
        torch.testing.assert_close(module(state, mask)[row], slow, rtol=0, atol=1e-12)


def test_slots_are_those_of_a_slow_loop_with_triangular_weights_on_real_time():
    mask = torch.rand(2, 9, 3, generator=rng(5)) < 0.4
    state = normal(2, 9, 3, 4) * mask[..., None]
    times = torch.rand(2, 9, generator=rng(6), dtype=torch.float64).sort(1).values * 3
    centers, width, _ = slot_centers(torch.tensor([3.0, 1.4], dtype=torch.float64), 0.5, 8)
    means, filled = slots(state, mask, times, centers, width)
    assert filled.any() and not filled.all()
    for row in range(2):
        slow, slow_filled = slow_slots(state[row], mask[row], times[row], centers[row], float(width[row]))
        assert torch.equal(filled[row], slow_filled)
        torch.testing.assert_close(means[row], slow, rtol=0, atol=1e-12)


def test_a_constant_state_stays_that_constant_in_every_filled_slot():
    times = torch.linspace(0, 2, 21)[None]
    centers, width, _ = slot_centers(torch.tensor([2.0]), 0.5, 8)
    means, filled = slots(torch.full((1, 21, 1, 1), 3.0), torch.ones(1, 21, 1, dtype=torch.bool), times, centers, width)
    assert filled.all()
    torch.testing.assert_close(means, torch.full_like(means, 3.0))


def test_slots_stand_half_a_second_apart_and_a_long_clip_gets_wider_ones():
    centers, width, exists = slot_centers(torch.tensor([0.2, 2.0, 2.3, 31.0, 62.0]), 0.5, 32)
    assert width.tolist() == [0.5, 0.5, 0.5, 1.0, 2.0]
    assert exists.sum(1).tolist() == [2, 5, 6, 32, 32]
    torch.testing.assert_close(centers[:, 1], width)


def test_every_moment_of_a_clip_lies_within_its_slots_and_there_are_never_more_than_allowed():
    duration = torch.rand(20_000, generator=rng(7)) * 200 + 0.01
    centers, width, exists = slot_centers(duration, 0.5, 32)
    last = torch.where(exists, centers, torch.zeros_like(centers)).amax(1)
    assert (last >= duration * (1 - 1e-5)).all() and (last < duration + width * (1 + 1e-5)).all()
    assert exists.sum(1).max() == 32 and exists.shape[1] == 32


@pytest.mark.parametrize("max_slots", [40, 64, 128])
def test_rounding_never_gives_a_clip_more_slots_than_allowed(max_slots):
    duration = torch.rand(20_000, generator=rng(8)) * 2000 + 0.01
    assert slot_centers(duration, 0.5, max_slots)[2].sum(1).max() <= max_slots


def test_rounding_gives_no_slot_beyond_a_clip_that_ends_on_the_last_one():
    duration = torch.arange(1, 300, dtype=torch.float32) * 0.1
    n_slots = slot_centers(duration, 0.1, 1000)[2].sum(1)
    assert n_slots.tolist() == list(range(2, 301))


def test_masked_softmax_is_softmax_of_what_is_left_and_zero_where_nothing_is():
    score = normal(4, 6) * 5
    mask = torch.rand(4, 6, generator=rng(8)) < 0.5
    mask[1], mask[2] = True, False
    ours = masked_softmax(score, mask)
    for row in (0, 1, 3):
        torch.testing.assert_close(ours[row][mask[row]], torch.softmax(score[row][mask[row]], 0), rtol=0, atol=1e-12)
    assert (ours[~mask] == 0).all()
    assert torch.isfinite(masked_softmax(torch.tensor([[1e30, -1e30]]), torch.tensor([[True, True]]))).all()


def test_masked_softmax_has_right_first_and_second_derivatives():
    mask = torch.tensor([[True, False, True, True], [False, False, False, False]])
    score = normal(2, 4).requires_grad_()
    assert gradcheck(lambda s: masked_softmax(s, mask), score)
    assert gradgradcheck(lambda s: masked_softmax(s, mask), score)


def test_the_joint_graph_links_every_node_to_its_modality_and_to_the_first_node_of_the_others():
    linked = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 0, 0, 1, 1], [1, 0, 0, 1, 1]]).float()
    torch.testing.assert_close(joint_graph([3, 2]), linked / linked.sum(1, keepdim=True))
    torch.testing.assert_close(joint_graph([4]), complete_graph(4))
    encoder = encoder_of(dtype=torch.float32)
    assert torch.equal(encoder.joint.spatial.prior, joint_graph([3, 2]))
    assert torch.equal(encoder.level1["face"].block.spatial.prior, torch.full((3, 3), 1 / 3))


@pytest.mark.parametrize("nodes_apart", [False, True])
def test_the_whole_encoder_is_that_of_a_slow_loop_clip_by_clip(nodes_apart):
    encoder, views = encoder_of(node_read_out=nodes_apart), clips(1.3, 0.6, 4.2)
    views = changed(views, "voice", mask=views["voice"].mask & torch.tensor([True, False, True])[:, None, None])
    z, disagreement = embedded(encoder, views)
    for clip in range(3):
        slow_z, slow_disagreement = slow_clip(encoder, views, clip)
        torch.testing.assert_close(z[clip], slow_z, rtol=0, atol=1e-7)
        torch.testing.assert_close(disagreement[clip], slow_disagreement, rtol=0, atol=1e-7)


def test_film_scales_and_shifts_the_clips_of_its_own_episode_only():
    encoder, views = encoder_of(), clips(1.3, 0.6, 2.0, 0.9)
    encoded = encoder(views, Dropout())
    gamma, beta = normal(2, 6, seed=1), normal(2, 6, seed=2)
    z, disagreement = encoder.embed(encoded, gamma, beta)
    assert z.shape == (2, 2, 5) and disagreement.shape == (2, 2)
    for clip in range(4):
        tensors = (encoded.normed[clip], encoded.residual[clip], encoded.mask[clip])
        slow_z, slow_disagreement = slow_embed(
            encoder, *tensors, gamma[clip // 2], beta[clip // 2], encoded.level[clip]
        )
        torch.testing.assert_close(z[clip // 2, clip % 2], slow_z, rtol=0, atol=1e-7)
        torch.testing.assert_close(disagreement[clip // 2, clip % 2], slow_disagreement, rtol=0, atol=1e-7)


def test_the_read_out_in_double_precision_has_the_digits_of_double_precision():
    encoder, views = encoder_of(), clips(1.3, 0.6)
    encoded, zero = encoder(views, Dropout()), torch.zeros(6, dtype=torch.float64)
    tensors = (encoded.normed[0], encoded.residual[0], encoded.mask[0])
    slow = slow_embed(encoder, *tensors, zero, zero, encoded.level[0])[0]
    torch.testing.assert_close(embedded(encoder, views)[0][0], slow, rtol=0, atol=1e-12)


def test_zero_film_is_the_unmodulated_block():  # I-14
    encoder, views = encoder_of(), clips(1.3, 0.6)
    encoded = encoder(views, Dropout())
    plain = dataclasses.replace(encoded, normed=torch.zeros_like(encoded.normed), residual=encoded.normed
                                + encoded.residual)  # fmt: skip
    expected = [t[0] for t in encoder.embed(plain, torch.zeros(1, 6), torch.zeros(1, 6))]
    assert_same(embedded(encoder, views), expected, 1e-12)
    moved = embedded(encoder, views, gamma=torch.full((1, 6), 0.5).double())
    assert (moved[0] - embedded(encoder, views)[0]).abs().max() > 1e-3


def test_read_out_has_right_first_and_second_derivatives_in_film():
    encoder = encoder_of(hidden=3, embedding=2)
    encoded = encoder(clips(0.6, 0.4), Dropout())
    film = tuple(0.3 * normal(1, 3, seed=s).requires_grad_() for s in (1, 2))
    assert gradcheck(lambda g, b: encoder.embed(encoded, g, b), film)
    assert gradgradcheck(lambda g, b: encoder.embed(encoded, g, b), film)


def test_some_clips_of_every_episode_are_selected_in_their_order():
    encoder = encoder_of()
    encoded = encoder(clips(1.3, 0.6, 2.0, 0.9, 1.0, 0.7), Dropout())
    part = encoded.select(slice(1, 3), 2)
    for field in dataclasses.fields(part):
        assert torch.equal(getattr(part, field.name), getattr(encoded, field.name)[[1, 2, 4, 5]])


# Masks, padding, absence


def padded(view, n_frames, fill):
    """`n_frames` masked frames after the clip, filled with anything."""
    n_clips, _, n_nodes, n_channels = view.values.shape
    garbage = torch.full((n_clips, n_frames, n_nodes, n_channels), fill, dtype=view.values.dtype)
    when = torch.tensor([0.3, 1e4, -7.0, 0.9], dtype=view.times.dtype)[:n_frames].expand(n_clips, -1)
    blank = torch.zeros(n_clips, n_frames, n_nodes, dtype=torch.bool)
    return ViewBatch(torch.cat([view.values, garbage], 1), torch.cat([view.mask, blank], 1),
                     torch.cat([view.times, when], 1), view.duration)  # fmt: skip


@FLOATS
def test_padding_with_masked_garbage_changes_no_output_and_no_gradient(dtype, tolerance):  # I-1
    encoder, views = encoder_of(dtype=dtype), clips(1.3, 0.6, 4.2, dtype=dtype)
    noisy = {name: padded(view, 4, -1e3) for name, view in views.items()}
    assert_same(outcome(encoder, noisy), outcome(encoder, views), tolerance)


@FLOATS
def test_garbage_in_masked_interior_frames_and_nodes_changes_no_output_and_no_gradient(dtype, tolerance):  # I-1, I-2
    encoder, views = encoder_of(dtype=dtype), clips(1.3, 0.6, 4.2, dtype=dtype)
    views["face"].mask[:, 3], views["face"].mask[1, :, 2] = False, False
    views["voice"].mask[0, 1], views["voice"].mask[2, :, 0] = False, False
    noisy = views
    for name, view in views.items():
        values = torch.where(view.mask[..., None], view.values, 1e3 * normal(*view.values.shape, dtype=dtype))
        noisy = changed(noisy, name, values=values)
    zeros = {n: dataclasses.replace(v, values=v.values * v.mask[..., None]) for n, v in views.items()}
    assert_same(outcome(encoder, noisy), outcome(encoder, zeros), tolerance)


@FLOATS
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e30])
def test_nan_and_inf_under_the_mask_never_pass_standardisation(dtype, tolerance, garbage):  # I-1
    encoder, views = encoder_of(dtype=dtype), clips(1.3, 0.6, dtype=dtype)
    noisy = {}
    for name, view in views.items():
        values = torch.where(view.mask[..., None], view.values, torch.full_like(view.values, garbage))
        noisy[name] = padded(dataclasses.replace(view, values=values), 3, garbage)
    shift = {n: 0.1 * normal(1, *shape, dtype=dtype) for n, shape in SHAPES.items()}
    statistics = Statistics(shift, {n: 0.5 + t.abs() for n, t in shift.items()}, {})
    ours = outcome(encoder, standardised(noisy, statistics, 1))
    assert all(torch.isfinite(t).all() for t in ours)
    assert_same(ours, outcome(encoder, standardised(views, statistics, 1)), tolerance)


def test_no_gradient_reaches_a_masked_value_and_some_reaches_every_observed_one():  # I-1, I-2
    encoder, views = encoder_of(), clips(1.3, 0.6)
    values = {n: v.values.clone().requires_grad_() for n, v in views.items()}
    z, _ = embedded(encoder, {n: dataclasses.replace(v, values=values[n]) for n, v in views.items()})
    (z * normal(*z.shape, seed=9)).sum().backward()
    for name, view in views.items():
        assert (values[name].grad[~view.mask] == 0).all()
        assert (values[name].grad[view.mask] != 0).any(-1).all()


@KINDS
def test_a_masked_node_leaves_the_spatial_convolution_of_the_other_nodes_as_if_it_did_not_exist(kind):  # I-1
    whole = generic(lambda: SpatialConvolution(3, joint_graph([2, 2]), 2, kind))
    rest = [0, 2, 3]
    prior = whole.prior[rest][:, rest]
    small = SpatialConvolution(3, prior / prior.sum(1, keepdim=True), 2, kind).double()
    small.load_state_dict({n: t[rest] if n in ("source", "target") else t for n, t in whole.state_dict().items()}
                          | {"prior": small.prior})  # fmt: skip
    mask = torch.ones(1, 5, 4, dtype=torch.bool)
    mask[:, :, 1] = False
    state = normal(1, 5, 4, 3) * mask[..., None]
    torch.testing.assert_close(whole(state, mask)[:, :, rest], small(state[:, :, rest], mask[:, :, rest]),
                               rtol=0, atol=1e-12)  # fmt: skip


def test_an_absent_modality_is_the_same_whatever_its_tensor_holds():  # I-4
    encoder, views = encoder_of(), clips(1.3, 0.6, 2.0)
    absent = changed(views, "voice", mask=torch.zeros_like(views["voice"].mask))
    other = changed(absent, "voice", values=1e3 * normal(*views["voice"].values.shape, seed=3),
                    times=views["voice"].times * 3 - 1)  # fmt: skip
    assert_same(outcome(encoder, absent), outcome(encoder, other), 1e-10)
    assert (embedded(encoder, absent)[0] - embedded(encoder, views)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kept", ["face", "voice"])
def test_an_absent_modality_leaves_the_others_as_if_the_model_had_never_known_it(kept):  # I-4
    encoder, views = encoder_of(), clips(1.3, 0.6, 2.0)
    (gone,) = SHAPES.keys() - {kept}
    small = Encoder({kept: SHAPES[kept]}, STEPS, CONFIG).double()
    nodes = slice(0, 3) if kept == "face" else slice(3, 5)
    weights = {}
    for name, tensor in encoder.state_dict().items():
        if name.startswith("joint.spatial.") and name.rsplit(".")[-1] in ("source", "target"):
            weights[name] = tensor[nodes]
        elif f".{gone}." not in name:
            weights[name] = tensor
    small.load_state_dict(weights | {"joint.spatial.prior": small.joint.spatial.prior})
    hidden = changed(views, gone, mask=torch.zeros_like(views[gone].mask))
    z, disagreement = embedded(encoder, hidden)
    assert_same((z, disagreement), embedded(small, {kept: views[kept]}), 1e-10)
    torch.testing.assert_close(disagreement, torch.zeros_like(disagreement), rtol=0, atol=1e-12)


def test_the_order_of_the_modalities_does_not_matter():  # I-4
    encoder, views = encoder_of(), clips(1.3, 0.6, 2.0)
    swapped = Encoder({n: SHAPES[n] for n in ("voice", "face")}, STEPS, CONFIG).double()
    order = [3, 4, 0, 1, 2]
    weights = {n: t[order] if n.startswith("joint.spatial.") and n.rsplit(".")[-1] in ("source", "target") else t
               for n, t in encoder.state_dict().items()}  # fmt: skip
    swapped.load_state_dict(weights | {"joint.spatial.prior": swapped.joint.spatial.prior})
    torch.testing.assert_close(swapped.joint.spatial.prior, encoder.joint.spatial.prior[order][:, order])
    assert_same(embedded(swapped, views), embedded(encoder, views), 1e-10)
    assert_same(embedded(encoder, dict(reversed(views.items()))), embedded(encoder, views), 0)


def test_a_clip_alone_is_as_it_is_among_longer_clips_and_other_episodes():  # I-13
    encoder, views = encoder_of(), clips(1.3, 0.6, 4.2, 2.0)
    z, disagreement = embedded(encoder, views)
    for clip, n_frames in ((0, 13), (1, 6)):
        alone = {n: ViewBatch(*(t[clip : clip + 1] for t in (v.values, v.mask, v.times, v.duration)))
                 for n, v in views.items()}  # fmt: skip
        view = alone["face"]
        alone = changed(alone, "face", **{n: getattr(view, n)[:, :n_frames] for n in ("values", "mask", "times")})
        assert_same(embedded(encoder, alone), (z[clip : clip + 1], disagreement[clip : clip + 1]), 1e-10)


def test_frames_after_the_declared_end_of_a_clip_count_the_same_alone_and_among_longer_clips():  # I-13
    encoder, views = encoder_of(), clips(1.3, 1.3)
    short = torch.tensor([0.55, 1.3]).double()
    views = {n: dataclasses.replace(v, duration=short) for n, v in views.items()}
    alone = {n: ViewBatch(v.values[:1], v.mask[:1], v.times[:1], v.duration[:1]) for n, v in views.items()}
    together, single = embedded(encoder, views), embedded(encoder, alone)
    assert_same(single, [t[:1] for t in together], 1e-10)


# Time


def test_another_unit_of_time_changes_the_features_and_the_embedding():  # I-3
    times, observed = torch.tensor([[0.0, 0.1, 0.2]]), torch.ones(1, 3, dtype=torch.bool)
    seconds = time_features(times, observed, torch.tensor([0.3]), 0.1)
    other = time_features(times * 1.7, observed, torch.tensor([0.3]) * 1.7, 0.1)
    torch.testing.assert_close(seconds[..., 32], other[..., 32])
    assert ((seconds - other)[:, 1:, :32].abs() > 1e-4).all(1).sum() >= 31
    assert ((seconds - other)[:, 1:, 33].abs() > 0.1).all()
    encoder, views = encoder_of(), clips(1.3, 0.6)
    stretched = {n: dataclasses.replace(v, times=v.times * 1.7, duration=v.duration * 1.7) for n, v in views.items()}
    assert (embedded(encoder, stretched)[0] - embedded(encoder, views)[0]).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize("dilations", [(1, 2), (2, 1)])
def test_a_causal_block_does_not_look_ahead_and_another_does(dilations):  # I-12
    moved, now = normal(1, 12, 3, 6), 6
    state, mask = moved.clone(), torch.rand(1, 12, 3, generator=rng(9)) < 0.8
    mask[:, now - 3 : now + 2] = True
    moved[:, now + 1 :] += 1
    state, moved = state * mask[..., None], moved * mask[..., None]
    for causal in (True, False):
        config = dataclasses.replace(CONFIG, causal=causal, dilations=dilations)
        block = generic(lambda config=config: Block(complete_graph(3), config))
        change = (block(moved, mask) - block(state, mask)).abs()
        assert (change[:, : now + 1].max() == 0) == causal
        assert change[:, now + 1 :].max() > 1e-3


def test_the_mask_of_a_later_frame_does_not_matter_to_a_causal_block():  # I-12
    block = generic(lambda: Block(complete_graph(3), dataclasses.replace(CONFIG, causal=True)))
    mask = torch.ones(1, 9, 3, dtype=torch.bool)
    state = normal(1, 9, 3, 6)
    later = mask.clone()
    later[:, 5:] = False
    assert torch.equal(block(state, mask)[:, :5], block(state * later[..., None], later)[:, :5])


def test_a_block_reaches_three_frames_to_either_side_and_a_causal_one_six_frames_back():
    state, mask = normal(1, 21, 2, 6), torch.ones(1, 21, 2, dtype=torch.bool)
    moved = state.clone()
    moved[:, 10] += 1
    for causal, reached in ((False, range(7, 14)), (True, range(10, 17))):
        block = generic(lambda causal=causal: Block(complete_graph(2), dataclasses.replace(CONFIG, causal=causal)))
        change = (block(moved, mask) - block(state, mask)).abs().amax((0, 2, 3))
        assert change.nonzero()[:, 0].tolist() == list(reached)


# Space


@pytest.mark.parametrize("kind", ["identity", "diffusion"])
def test_with_the_identity_for_a_graph_the_spatial_convolution_is_a_linear_map_per_node(kind):  # I-10
    module = generic(lambda: SpatialConvolution(3, torch.eye(4), 2, kind))
    if kind == "diffusion":  # a steep learned graph is the identity to the last digit
        with torch.no_grad():
            module.source.copy_(torch.eye(4, 8) * 100)
            module.target.copy_(torch.eye(4, 8) * 100)
    state, mask = normal(2, 5, 4, 3), torch.ones(2, 5, 4, dtype=torch.bool)
    weight = module.mix.weight.unflatten(1, (5, 3)).sum(1)
    torch.testing.assert_close(module(state, mask), torch.relu(state @ weight.T + module.mix.bias + state),
                               rtol=0, atol=1e-12)  # fmt: skip


def test_all_kinds_of_graph_have_as_many_weights_and_only_those_that_mix_nodes_do():  # I-10
    counts = [sum(p.numel() for p in encoder_of(spatial=kind).parameters())
              for kind in ("identity", "diffusion", "chebyshev")]  # fmt: skip
    assert len(set(counts)) == 1
    state, mask = normal(1, 5, 4, 6), torch.ones(1, 5, 4, dtype=torch.bool)
    moved = state.clone()
    moved[:, :, 2] += 1
    for spatial, others in (("identity", False), ("diffusion", True), ("chebyshev", True), ("node-mixing", False)):
        config = dataclasses.replace(CONFIG, spatial=spatial)
        block = generic(lambda config=config: Block(complete_graph(4), config))
        change = (block(moved, mask) - block(state, mask)).abs().amax((0, 1, 3))
        assert change[2] > 1e-3
        assert bool((change[[0, 1, 3]] > 1e-6).all()) == others == bool((change[[0, 1, 3]] > 0).any())


def test_permuting_the_nodes_with_their_weights_permutes_the_state_and_leaves_the_embedding():  # I-10
    encoder, views = encoder_of({"face": (4, 2)}), clips(1.3, 0.6, shapes={"face": (4, 2)})
    order = torch.tensor([2, 0, 3, 1])
    per_node = ("source", "target", "level1.face.weight", "level1.face.place", "level1.face.level")
    other = Encoder({"face": (4, 2)}, STEPS, CONFIG).double()
    weights = {n: t[order] if n.endswith(per_node) else t for n, t in encoder.state_dict().items()}
    mix = weights["level.face.mix.weight"].unflatten(1, (4, -1))  # a node's moments lie together
    other.load_state_dict(weights | {"level.face.mix.weight": mix[:, order].flatten(1)})
    view = views["face"]
    permuted = changed(views, "face", values=view.values[:, :, order], mask=view.mask[:, :, order])
    ours, theirs = other(permuted, Dropout()), encoder(views, Dropout())
    assert_same((ours.normed, ours.residual), (theirs.normed[:, :, order], theirs.residual[:, :, order]), 1e-11)
    assert_same(embedded(other, permuted), embedded(encoder, views), 1e-11)
    assert (embedded(encoder, permuted)[0] - embedded(encoder, views)[0]).abs().max() > 1e-3


@KINDS
def test_permuting_the_nodes_with_prior_and_learned_graph_permutes_the_spatial_convolution(kind):  # I-10
    prior = torch.rand(4, 4, generator=rng(3))
    prior, order = prior / prior.sum(1, keepdim=True), torch.tensor([2, 0, 3, 1])
    module = generic(lambda: SpatialConvolution(3, prior, 2, kind))
    other = SpatialConvolution(3, prior, 2, kind).double()
    weights = module.state_dict()
    other.load_state_dict({n: t[order] if n in ("source", "target") else t for n, t in weights.items()}
                          | {"prior": weights["prior"][order][:, order]})  # fmt: skip
    mask = torch.rand(2, 5, 4, generator=rng(4)) < 0.7
    state = normal(2, 5, 4, 3) * mask[..., None]
    torch.testing.assert_close(other(state[:, :, order], mask[:, :, order]), module(state, mask)[:, :, order],
                               rtol=0, atol=1e-12)  # fmt: skip


def test_rows_of_the_learned_graph_sum_to_one_and_a_link_is_never_weaker_than_no_link():
    learned = generic(lambda: SpatialConvolution(3, complete_graph(5), 2)).learned()
    torch.testing.assert_close(learned.sum(1), torch.ones(5, dtype=torch.float64))
    assert (learned > 0).all() and (learned.amin(1) < learned.amax(1)).all()


# Degenerate input, dropout, precision


def degenerate(case):
    views = clips(1.3, 0.6, dtype=torch.float32, observed=1.1)
    face = views["face"]
    if case == "constant":
        return {n: dataclasses.replace(v, values=torch.ones_like(v.values) * v.mask[..., None])
                for n, v in views.items()}  # fmt: skip
    if case == "zero":
        return {n: dataclasses.replace(v, values=torch.zeros_like(v.values)) for n, v in views.items()}
    if case == "one frame":
        return {n: ViewBatch(v.values[:, :1], v.mask[:, :1], v.times[:, :1], v.duration) for n, v in views.items()}
    keep = torch.zeros_like(face.mask)
    if case == "all but one frame masked":
        keep[:, 4] = True
    elif case == "all but one value masked":
        keep[:, 4, 1] = True
    return changed(views, "face", mask=face.mask & keep, values=face.values * keep[..., None])


@pytest.mark.parametrize("case", ["constant", "zero", "one frame", "all but one frame masked",
                                  "all but one value masked", "modality absent", "one node"])  # fmt: skip
def test_degenerate_clips_give_finite_outputs_gradients_and_second_gradients(case):  # I-15
    shapes = {"face": (1, 2)} if case == "one node" else SHAPES
    views = clips(0.05, 0.05, shapes=shapes, dtype=torch.float32) if case == "one node" else degenerate(case)
    encoder = encoder_of(shapes, torch.float32)
    film = [torch.zeros(1, 6, requires_grad=True) for _ in range(2)]
    z, disagreement = encoder.embed(encoder(views, Dropout()), *film)
    loss = (z * normal(*z.shape, seed=9, dtype=z.dtype)).sum() + disagreement.sum()
    weights = [*encoder.parameters()]
    first = torch.autograd.grad(loss, film + weights, create_graph=True, allow_unused=True)
    first = [g for g in first if g is not None]
    second = torch.autograd.grad(sum((g**2).sum() for g in first), film + weights, allow_unused=True)
    second = [g for g in second if g is not None]
    assert len(first) == len(film + weights) and len(second) > 2
    assert all(torch.isfinite(t).all() for t in (z, disagreement, *first, *second))
    assert any(g.abs().max() > 0 for g in second)


def test_dropout_keeps_the_mean_follows_its_generator_and_leaves_the_global_state_alone():
    ones, before = torch.ones(20_000), torch.get_rng_state()
    dropped = Dropout(0.3, rng(1))(ones)
    assert torch.equal(torch.get_rng_state(), before)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(dropped, Dropout(0.3, rng(1))(ones)) and not torch.equal(dropped, Dropout(0.3, rng(2))(ones))
    assert Dropout()(ones) is ones


def test_dropout_reaches_both_levels_of_the_encoder():
    encoder, views = encoder_of(), clips(1.3, 0.6)
    plain, dropped = encoder(views, Dropout()), encoder(views, Dropout(0.5, rng(1)))
    assert (plain.residual != dropped.residual)[plain.mask].any()
    assert ((dropped.normed == 0) & (plain.normed != 0)).double().mean() > 0.2


def test_the_encoder_in_bfloat16_stays_within_a_tenth_of_float32():  # I-35
    config = EncoderConfig(dropout=0.0)
    encoder = generic(lambda: Encoder(SHAPES, STEPS, config), dtype=torch.float32)
    views = clips(1.3, 0.6, 4.2, 2.5, dtype=torch.float32)
    full = encoder(views, Dropout())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(views, Dropout())
    assert torch.equal(full.mask, half.mask)
    half = dataclasses.replace(half, normed=half.normed.float(), residual=half.residual.float())
    zero = torch.zeros(1, config.hidden)
    gap = (encoder.embed(half, zero, zero)[0] - encoder.embed(full, zero, zero)[0]).abs()
    assert 0 < gap.max() < 0.1  # the embedding has unit scale


@pytest.mark.parametrize("name", ["values", "type"])
def test_a_modality_named_like_a_method_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"modality '{name}'; expected a name .*Rename it in the manifest"):
        Encoder({name: (2, 1)}, {name: 0.1}, CONFIG)
