"""Views: bin averages, padding, statistics and random views against slow loops; what lies under a mask never counts."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from stf2m_core.config import InnerConfig, ViewConfig
from stf2m_core.data.pack import RaggedViews, open_pack, write_pack
from stf2m_core.errors import PackError
from stf2m_core.shapes import ViewBatch
from stf2m_core.views import (
    ResidentViews,
    Statistics,
    concatenated,
    kept_modalities,
    random_views,
    standardised,
    without,
    worth_in_clips,
)

STEP = 0.1
LABELS = ("calm", "joy", "fear")
N_CLIPS = 18


def table(n_clips):
    numbers = np.arange(n_clips)
    return pd.DataFrame(
        {
            "clip_id": [f"c{i}" for i in numbers],
            "subject": [f"s{i % 6}" for i in numbers],
            "group": [f"s{i % 6}/{i}" for i in numbers],
            "domain": "film",
            "duration_s": 3.0,
            "label": [LABELS[i % 3] for i in numbers],
            "split": "",
            "text": "",
        }
    )


def audio(n_clips, seed=0):
    """Two nodes, three channels; one to three frames near the middle of every bin, some nodes masked, node 1 of clip 4
    masked throughout, clip 2 without frames.

    Returns the views and, for each clip, a list of the frames of each bin, known from how they were made.
    """
    rng = np.random.default_rng(seed)
    times, bins, lengths = [], [], []
    for clip in range(n_clips):
        n_bins = 0 if clip == 2 else 4 + clip % 7
        clip_times, clip_bins = [], []
        for number in range(n_bins):
            parts = np.arange(3 if number == 0 else rng.integers(1, 4)) * 0.1  # share of a bin after its middle
            clip_bins.append(len(clip_times) + np.arange(len(parts)))
            clip_times.extend((number + parts) * STEP)
        times.extend(clip_times), bins.append(clip_bins), lengths.append(len(clip_times))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.normal(2.0, 3.0, (offsets[-1], 2, 3)).astype(np.float32)
    mask = (rng.random((offsets[-1], 2)) < 0.8).astype(np.uint8)
    mask[offsets[:-1][np.array(lengths) > 0]] = 1
    mask[offsets[4] : offsets[5], 1] = 0
    views = RaggedViews(values, offsets, ("low", "high"), ("x", "y", "z"), None, np.float32(times), mask)
    return views, bins


def text(n_clips, seed=1):
    """One node, two channels, uniform at 2 frames per second; every third clip has none."""
    lengths = np.where(np.arange(n_clips) % 3 == 1, 0, 3 + np.arange(n_clips) % 2)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.random.default_rng(seed).normal(0, 1, (offsets[-1], 1, 2)).astype(np.float32)
    return RaggedViews(values, offsets, ("word",), ("x", "y"), 2.0)


def frames(times, n_clips=1, values=None):
    """The same stamps for every clip, one node and channel."""
    times = np.tile(np.float32(times), n_clips)
    values = np.arange(len(times)) if values is None else values
    offsets = np.arange(n_clips + 1) * (len(times) // n_clips)
    return RaggedViews(np.float32(values).reshape(-1, 1, 1), offsets, ("v",), ("x",), None, times)


def packed(folder, views, n_clips=N_CLIPS):
    return open_pack(write_pack(folder / "pack", table(n_clips), views, LABELS, name="small", overwrite=True))


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("views"), {"audio": audio(N_CLIPS)[0], "text": text(N_CLIPS)})


@pytest.fixture(scope="module")
def resident(pack):
    return ResidentViews(pack, ViewConfig(step_s=STEP))


def binned(views, bins):
    """Per clip: (bin, node, channel) means over observed frames, (bin, node) mask, (bin,) times; slowly, in float64."""
    result = []
    for clip, members in enumerate(bins):
        start = int(views.offsets[clip])
        values = np.zeros((len(members), *views.values.shape[1:]))
        mask = np.zeros(values.shape[:2], bool)
        times = np.zeros(len(members))
        for b, part in enumerate(members):
            times[b] = np.mean([float(views.times[start + i]) for i in part])
            for node in range(values.shape[1]):
                observed = [views.values[start + i, node].astype(float) for i in part if views.mask[start + i, node]]
                mask[b, node] = bool(observed)
                values[b, node] = np.mean(observed, 0) if observed else 0
        result.append((values, mask, times))
    return result


def test_values_are_averaged_over_the_observed_frames_of_each_bin(resident):
    modality = resident.modalities["audio"]
    for clip, (values, mask, times) in enumerate(binned(*audio(N_CLIPS))):
        own = slice(int(modality.offsets[clip]), int(modality.offsets[clip + 1]))
        np.testing.assert_array_equal(modality.mask[own].numpy(), mask)
        np.testing.assert_allclose(modality.values[own].numpy(), values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(modality.times[own].numpy(), times, atol=1e-6)


def test_a_modality_coarser_than_the_grid_keeps_its_frames_and_its_own_step(resident):
    modality, views = resident.modalities["text"], text(N_CLIPS)
    assert modality.step_s == pytest.approx(0.5)
    np.testing.assert_array_equal(modality.offsets.numpy(), views.offsets)
    np.testing.assert_array_equal(modality.values.numpy(), views.values)
    assert modality.mask.all()
    expected = np.concatenate([np.arange(length) / 2 for length in views.lengths])
    np.testing.assert_allclose(modality.times.numpy(), expected)


@pytest.mark.parametrize("jitter", [0.0, 0.15, 0.3])
def test_frames_that_jitter_around_the_grid_keep_their_own_bins(tmp_path, jitter):
    shift = np.random.default_rng(0).uniform(-jitter, jitter, 30)
    shift[0] = 0
    views = frames((np.arange(30) + shift) * 0.25)
    modality = ResidentViews(packed(tmp_path, {"a": views}, 1), ViewConfig(step_s=0.06)).modalities["a"]
    np.testing.assert_array_equal(modality.values[:, 0, 0].numpy(), np.arange(30))


@pytest.mark.parametrize("jitter", [0.0, 0.15])
def test_frames_stamped_in_their_middle_keep_their_own_bins(tmp_path, jitter):
    shift = np.random.default_rng(0).uniform(-jitter, jitter, 32)
    views = frames((np.arange(32) + 0.5 + shift) * 0.12)
    modality = ResidentViews(packed(tmp_path, {"a": views}, 1), ViewConfig(step_s=0.06)).modalities["a"]
    np.testing.assert_array_equal(modality.values[:, 0, 0].numpy(), np.arange(32))


def test_a_bin_without_a_frame_stays_on_the_grid_masked(tmp_path):
    views = frames([0, 0.02, 0.04, 0.1, 0.12, 0.6, 0.62])
    modality = ResidentViews(packed(tmp_path, {"a": views}, 1), ViewConfig(step_s=0.1)).modalities["a"]
    np.testing.assert_array_equal(modality.mask[:, 0].numpy(), np.array([1, 1, 0, 0, 0, 0, 1], bool))


def test_clip_moments_equal_those_of_a_loop_over_bins(resident):
    modality = resident.modalities["audio"]
    for clip, (values, mask, _) in enumerate(binned(*audio(N_CLIPS))):
        for node in range(2):
            observed = values[mask[:, node], node]
            assert float(modality.seen[clip, node]) == float(len(observed) > 0)
            mean = observed.mean(0) if len(observed) else np.zeros(3)
            square = (observed**2).mean(0) if len(observed) else np.zeros(3)
            np.testing.assert_allclose(modality.mean[clip, node].numpy(), mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(modality.square[clip, node].numpy(), square, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("garbage", [1e30, -7.0, np.nan, np.inf])
def test_values_under_the_mask_of_the_pack_are_irrelevant(pack, garbage):
    clean = pack.view("audio")
    dirty = np.where(clean.mask[..., None] > 0, clean.values, np.float32(garbage))
    other = dataclasses.replace(
        pack, _views={"audio": dataclasses.replace(clean, values=dirty), "text": pack.view("text")}
    )
    one, two = (ResidentViews(p, ViewConfig(step_s=STEP)).modalities["audio"] for p in (pack, other))
    for name in ("values", "mask", "times", "offsets", "mean", "square", "seen"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.isfinite(one.values).all()


def test_gathered_clips_equal_their_own_frames_and_the_rest_is_masked(resident):
    rows = torch.tensor([5, 2, 17, 0, 5])
    batch = resident.gather(rows)
    for name, modality in resident.modalities.items():
        view = batch[name]
        lengths = (modality.offsets[rows + 1] - modality.offsets[rows]).tolist()
        assert view.values.shape == (5, max(lengths), *modality.values.shape[1:])
        for i, (row, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
            own = slice(int(modality.offsets[row]), int(modality.offsets[row]) + length)
            assert torch.equal(view.values[i, :length], modality.values[own])
            assert torch.equal(view.mask[i, :length], modality.mask[own])
            assert torch.equal(view.times[i, :length], modality.times[own])
            assert not view.mask[i, length:].any()
        assert torch.equal(view.duration, torch.full((5,), 3.0))


def test_a_clip_without_the_modality_is_absent_and_not_zero_filled(resident):
    batch = resident.gather(torch.tensor([2, 1]))
    assert batch["audio"].present.tolist() == [False, True]
    assert batch["text"].present.tolist() == [True, False]
    alone = resident.gather(torch.tensor([2]))["audio"]
    assert alone.values.shape[1] == 1 and not alone.mask.any()
    np.testing.assert_array_equal(resident.present[:, 0].numpy(), np.arange(N_CLIPS) != 2)
    np.testing.assert_array_equal(resident.present[:, 1].numpy(), np.arange(N_CLIPS) % 3 != 1)


def test_a_modality_that_no_clip_has_is_absent_everywhere(tmp_path):
    none = RaggedViews(np.zeros((0, 1, 1), np.float32), np.zeros(4, np.int64), ("v",), ("x",), 10.0)
    resident = ResidentViews(packed(tmp_path, {"a": frames([0, 0.1], 3), "b": none}, 3), ViewConfig())
    assert not resident.modalities["b"].mask.any()
    assert resident.present.tolist() == [[True, False]] * 3


def test_clips_can_be_gathered_when_no_clip_has_one_of_the_modalities(tmp_path):
    none = RaggedViews(np.zeros((0, 1, 1), np.float32), np.zeros(4, np.int64), ("v",), ("x",), 10.0)
    resident = ResidentViews(packed(tmp_path, {"a": frames([0, 0.1], 3), "b": none}, 3), ViewConfig())
    assert not resident.gather(torch.tensor([0, 2]))["b"].mask.any()


def test_an_absent_modality_may_hold_anything(pack, resident):
    batch = resident.gather(torch.arange(N_CLIPS))
    absent = ~batch["audio"].present
    dirty = dataclasses.replace(
        batch["audio"], values=torch.where(absent[:, None, None, None], torch.nan, batch["audio"].values)
    )
    statistics = resident.training_statistics(torch.arange(N_CLIPS))
    one, two = (standardised({"audio": view}, statistics, 1)["audio"] for view in (batch["audio"], dirty))
    assert absent.any()
    assert torch.equal(one.values, two.values) and torch.equal(one.mask, two.mask)


def test_the_order_of_modalities_changes_no_view(pack):
    rows = torch.tensor([3, 1])
    one = ResidentViews(pack, ViewConfig(step_s=STEP, modalities=("audio", "text"))).gather(rows)
    two = ResidentViews(pack, ViewConfig(step_s=STEP, modalities=("text", "audio"))).gather(rows)
    assert list(two) == ["text", "audio"]
    for name in one:
        for key in ("values", "mask", "times", "duration"):
            assert torch.equal(getattr(one[name], key), getattr(two[name], key))


def test_an_unknown_modality_is_refused(pack):
    with pytest.raises(PackError, match="modality 'smell' is unknown; expected audio or text"):
        ResidentViews(pack, ViewConfig(modalities=("audio", "smell")))


def test_a_clip_with_none_of_the_chosen_modalities_is_refused_by_name(pack):
    with pytest.raises(PackError, match="clip c2 has none of the modalities audio; expected at least one"):
        ResidentViews(pack, ViewConfig(modalities=("audio",)))


def test_labels_and_shapes_come_from_the_pack(pack, resident):
    assert resident.labels.tolist() == [i % 3 for i in range(N_CLIPS)]
    np.testing.assert_array_equal(resident.soft_labels.numpy(), np.eye(3)[np.arange(N_CLIPS) % 3])
    assert resident.shapes == {"audio": (2, 3), "text": (1, 2)}
    assert not resident.has_votes


def moments_of(rows_by_class, clips):
    """Mean over classes of class means of clip means, the same of squares, and clips, per node; slowly, in float64.

    `clips` gives (values, mask) of each row. A class or clip without the node takes no part.
    """
    n_nodes, n_channels = clips[0][0].shape[1:]
    mean, square, count = np.zeros((n_nodes, n_channels)), np.zeros((n_nodes, n_channels)), np.zeros(n_nodes)
    for node in range(n_nodes):
        means, squares = [], []
        for rows in rows_by_class:
            own = [clips[row][0][clips[row][1][:, node], node] for row in rows]
            own = [values for values in own if len(values)]
            count[node] += len(own)
            if own:
                means.append(np.mean([values.mean(0) for values in own], 0))
                squares.append(np.mean([(values**2).mean(0) for values in own], 0))
        if means:
            mean[node], square[node] = np.mean(means, 0), np.mean(squares, 0)
    return mean, square - mean**2, count


TRAIN = torch.arange(9, N_CLIPS)
SUPPORT = torch.tensor([[[0, 3, 6], [1, 4, 7]], [[2, 2, 5], [8, 11, 2]], [[4, 4, 4], [4, 4, 4]]])


def test_training_statistics_equal_those_of_a_loop_in_which_each_clip_counts_once(resident):
    clips = [part[:2] for part in binned(*audio(N_CLIPS))]
    mean, variance, _ = moments_of([TRAIN.tolist()], clips)
    statistics = resident.training_statistics(TRAIN)
    assert statistics.shift["audio"].shape == (1, 2, 3)
    np.testing.assert_allclose(statistics.shift["audio"][0].numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.scale["audio"][0].numpy(), np.sqrt(variance), rtol=1e-4)


@pytest.mark.parametrize("k", [0.0, 1.0, 5.0, 40.0])
def test_support_statistics_equal_those_of_a_loop_with_shrinkage(pack, k):
    resident = ResidentViews(pack, ViewConfig(step_s=STEP, shrinkage=k))
    clips = [part[:2] for part in binned(*audio(N_CLIPS))]
    mean_0, variance_0, _ = moments_of([TRAIN.tolist()], clips)
    found = resident.support_statistics(SUPPORT, resident.training_statistics(TRAIN))
    assert found.shift["audio"].shape == found.scale["audio"].shape == (3, 2, 3)
    for episode, support in enumerate(SUPPORT.tolist()):
        mean, variance, n = moments_of(support, clips)
        own = np.where(n > 0, n / np.maximum(n + k, 1e-12), 0.0)[:, None]
        shift, scale = own * mean + (1 - own) * mean_0, np.sqrt(own * variance + (1 - own) * variance_0)
        np.testing.assert_allclose(found.shift["audio"][episode].numpy(), shift, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.scale["audio"][episode].numpy(), scale, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("k", [0.0, 5.0])
def test_a_node_absent_from_the_support_falls_back_to_meta_train(pack, k):
    resident = ResidentViews(pack, ViewConfig(step_s=STEP, shrinkage=k))
    training = resident.training_statistics(TRAIN)
    found = resident.support_statistics(torch.tensor([[[4, 4], [4, 4]]]), training)
    torch.testing.assert_close(found.shift["audio"][:, 1], training.shift["audio"][:, 1])
    torch.testing.assert_close(found.scale["audio"][:, 1], training.scale["audio"][:, 1], rtol=1e-4, atol=0)
    assert not torch.isclose(found.shift["audio"][:, 0], training.shift["audio"][:, 0], rtol=1e-3).all()


def test_endless_shrinkage_gives_the_statistics_of_meta_train(pack):
    resident = ResidentViews(pack, ViewConfig(step_s=STEP, shrinkage=1e9))
    training = resident.training_statistics(TRAIN)
    found = resident.support_statistics(SUPPORT, training)
    for name in ("audio", "text"):
        torch.testing.assert_close(found.shift[name], training.shift[name].expand(3, -1, -1))
        torch.testing.assert_close(found.scale[name], training.scale[name].expand(3, -1, -1), rtol=1e-4, atol=0)


def test_an_unbalanced_support_gives_every_class_the_same_weight(tmp_path):
    # class 0 lacks the modality in two of three clips: its one clip counts as much as the three of class 1
    views = RaggedViews(
        np.float32([9, 1, 2, 3, 7, 7]).reshape(6, 1, 1), np.array([0, 1, 1, 1, 2, 3, 4, 6]), ("v",), ("x",), 1.0
    )
    other = frames([0.0], 7)
    resident = ResidentViews(packed(tmp_path, {"a": views, "b": other}, 7), ViewConfig(shrinkage=0.0))
    found = resident.support_statistics(
        torch.tensor([[[0, 1, 2], [3, 4, 5]]]), resident.training_statistics(torch.tensor([6]))
    )
    assert float(found.shift["a"]) == pytest.approx((9 + 2) / 2)
    assert float(found.scale["a"]) == pytest.approx(np.sqrt((81 + 14 / 3) / 2 - 5.5**2), rel=1e-4)


def test_other_normalisations_do_not_look_at_the_support(pack):
    whole = ResidentViews(pack, ViewConfig(step_s=STEP, normalise="global"))
    training = whole.training_statistics(TRAIN)
    assert whole.support_statistics(SUPPORT, training) is training
    none = ResidentViews(pack, ViewConfig(step_s=STEP, normalise="none")).support_statistics(SUPPORT, training)
    assert all((none.shift[name] == 0).all() and (none.scale[name] == 1).all() for name in ("audio", "text"))


def test_standardised_views_equal_a_loop_over_episodes(resident):
    statistics = resident.support_statistics(SUPPORT, resident.training_statistics(TRAIN))
    rows = torch.tensor([[0, 1], [5, 6], [7, 2]])
    raw = resident.gather(rows.flatten())
    found = standardised(raw, statistics, 3)
    for name in raw:
        for i in range(6):
            expected = (raw[name].values[i] - statistics.shift[name][i // 2]) / statistics.scale[name][i // 2]
            mask = raw[name].mask[i]
            torch.testing.assert_close(found[name].values[i][mask], expected[mask])
            assert (found[name].values[i][~mask] == 0).all()


def test_meta_train_clips_standardised_by_their_own_statistics_have_mean_0_and_variance_1(resident):
    clips = torch.tensor([0, 3, 6, 9, 12, 15])
    found = standardised(resident.gather(clips), resident.training_statistics(clips), 1)["audio"]
    clip_mean = [[view[m[:, v], v].mean(0) for v in range(2)] for view, m in zip(found.values, found.mask, strict=True)]
    clip_square = [
        [(view[m[:, v], v] ** 2).mean(0) for v in range(2)] for view, m in zip(found.values, found.mask, strict=True)
    ]
    means, squares = (torch.stack([torch.stack(row) for row in part]).mean(0) for part in (clip_mean, clip_square))
    torch.testing.assert_close(means, torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(squares, torch.ones(2, 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e38])
def test_standardised_views_ignore_what_lies_under_the_mask_and_so_do_gradients(resident, garbage):
    raw = resident.gather(torch.arange(6))
    statistics = resident.training_statistics(TRAIN)
    results = []
    for dirty in (False, True):
        values = raw["audio"].values.clone()
        values[~raw["audio"].mask] = garbage if dirty else 0.0
        values.requires_grad_()
        view = standardised({"audio": dataclasses.replace(raw["audio"], values=values)}, statistics, 1)["audio"]
        (view.values**2).sum().backward()
        results.append((view.values.detach(), values.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1]) and torch.isfinite(results[1][1]).all()


MANY = 3000


def many(n_frames=50, seed=0):
    """Clips of three modalities, some absent but never all; mod "c" has a single frame."""
    rng = np.random.default_rng(seed)
    present = rng.random((MANY, 3)) < 0.7
    present[np.arange(MANY), rng.integers(0, 3, MANY)] = True
    batch = {}
    for column, (name, length) in enumerate((("a", n_frames), ("b", n_frames // 2), ("c", 1))):
        mask = torch.from_numpy(present[:, column, None, None].repeat(length, 1))
        times = ((torch.arange(length) + 0.5) * 4.0 / length).expand(MANY, -1)
        batch[name] = ViewBatch(torch.full((MANY, length, 1, 1), torch.nan), mask, times, torch.full((MANY,), 4.0))
    return batch, present


def ids(n=MANY):
    return np.stack([np.arange(n) // 10, np.arange(n) % 10, np.full(n, 1)], 1)


def masks(views):
    return [views[name].mask for name in views]


def presence(views):
    return torch.stack([view.present for view in views.values()], 1).numpy()


def test_a_random_view_always_keeps_a_modality_and_never_invents_one():
    batch, present = many()
    config = InnerConfig(modality_drop=0.9)
    kept = presence(random_views(batch, ids(), config, 0, "x"))
    assert kept.any(1).all()
    assert not (kept & ~present).any()
    assert (kept.sum(1) < present.sum(1)).mean() > 0.3


def test_modalities_are_left_out_at_the_configured_rate():
    present = np.ones((40000, 3), bool)
    kept = kept_modalities(present, ids(40000), InnerConfig(modality_drop=0.3, single_modality=0.15), 0, "x")
    expected = 0.15 / 3 + 0.85 * (0.7 + 0.3**3 / 3)
    np.testing.assert_allclose(kept.mean(0), expected, atol=0.015)
    single = 0.15 + 0.85 * (3 * 0.7 * 0.3**2 + 0.3**3)
    assert (kept.sum(1) == 1).mean() == pytest.approx(single, abs=0.015)
    only = kept[kept.sum(1) == 1].mean(0)
    np.testing.assert_allclose(only, 1 / 3, atol=0.015)


def test_modalities_are_left_out_independently_of_each_other():
    kept = kept_modalities(
        np.ones((40000, 3), bool), ids(40000), InnerConfig(modality_drop=0.2, single_modality=0), 0, "x"
    )
    assert np.abs(np.corrcoef(kept.T) - np.eye(3)).max() < 0.03


def test_the_extreme_rates_keep_everything_or_exactly_one():
    batch, present = many()
    whole = random_views(batch, ids(), InnerConfig(modality_drop=0.0, single_modality=0.0, crop=1.0), 0, "x")
    assert all(torch.equal(one, two) for one, two in zip(masks(whole), masks(batch), strict=True))
    single = presence(random_views(batch, ids(), InnerConfig(single_modality=1.0), 0, "x"))
    none = presence(random_views(batch, ids(), InnerConfig(modality_drop=1.0, single_modality=0.0), 0, "x"))
    assert (single.sum(1) == 1).all() and (none.sum(1) == 1).all()


def test_a_random_view_does_not_depend_on_what_is_in_the_batch_with_it():
    batch, _ = many()
    whole = random_views(batch, ids(), InnerConfig(), 0, "x")
    for part in (slice(0, 7), slice(7, 1000), slice(2999, 3000)):
        some = {
            name: ViewBatch(*(getattr(v, k)[part] for k in ("values", "mask", "times", "duration")))
            for name, v in batch.items()
        }
        again = random_views(some, ids()[part], InnerConfig(), 0, "x")
        assert all(torch.equal(one[part], two) for one, two in zip(masks(whole), masks(again), strict=True))


@pytest.mark.parametrize(
    "config",
    [
        InnerConfig(modality_drop=0.0, single_modality=0.0, crop=0.5),
        InnerConfig(modality_drop=0.5, single_modality=0.0, crop=1.0),
        InnerConfig(modality_drop=0.0, single_modality=0.5, crop=1.0),
    ],
    ids=["crop", "drop", "single"],
)
def test_a_random_view_depends_on_seed_stream_and_every_counter(config):
    batch, _ = many()
    first = masks(random_views(batch, ids(), config, 0, "x"))
    shifts = [ids() + np.eye(3, dtype=int)[i] * 1000 for i in range(3)]
    others = [random_views(batch, ids(), config, 1, "x"), random_views(batch, ids(), config, 0, "y")]
    others += [random_views(batch, shift, config, 0, "x") for shift in shifts]
    for other in others:
        assert not torch.equal(first[0], masks(other)[0])


def test_a_crop_never_empties_a_modality():
    batch, present = many(n_frames=2)
    config = InnerConfig(modality_drop=0.0, single_modality=0.0, crop=0.05)
    views = random_views(batch, ids(), config, 0, "x")
    np.testing.assert_array_equal(presence(views), present)
    assert not torch.equal(views["a"].mask, batch["a"].mask)


def test_a_crop_is_one_stretch_of_at_least_the_configured_share_and_the_same_for_all_modalities():
    batch, present = many()
    views = random_views(batch, ids(), InnerConfig(modality_drop=0.0, single_modality=0.0, crop=0.6), 0, "x")
    kept = views["a"].mask[:, :, 0][torch.from_numpy(present[:, 0])].numpy()
    share = kept.sum(1) / 50
    assert share.min() >= 0.6 - 1 / 50 and share.max() > 0.95
    assert share.mean() == pytest.approx(0.8, abs=0.02)
    assert (np.abs(np.diff(kept.astype(int), axis=1)).sum(1) <= 2).all()
    assert kept[:, 0].any() and not kept[:, 0].all() and not kept[:, -1].all()
    both = torch.from_numpy(present[:, 0] & present[:, 1])
    first_a, first_b = (views[name].mask[both][:, :, 0].float().argmax(1) / views[name].mask.shape[1] for name in "ab")
    assert (first_a - first_b).abs().max() <= 1 / 25 + 1e-6


def test_random_views_change_masks_only():
    batch, _ = many()
    views = random_views(batch, ids(), InnerConfig(), 0, "x")
    for name, view in views.items():
        assert view.values is batch[name].values and view.times is batch[name].times
        assert not (view.mask & ~batch[name].mask).any()


def test_hidden_modalities_are_absent_and_the_others_untouched(resident):
    batch = resident.gather(torch.tensor([0, 3, 6]))
    keep = torch.tensor([[True, False], [False, True], [True, True]])
    views = without(batch, keep)
    for column, name in enumerate(batch):
        for i in range(3):
            expected = batch[name].mask[i] if keep[i, column] else torch.zeros_like(batch[name].mask[i])
            assert torch.equal(views[name].mask[i], expected)
        assert torch.equal(views[name].values, batch[name].values)


def test_concatenated_batches_stand_side_by_side_in_each_episode(resident):
    parts = [torch.tensor([[0, 4], [7, 2]]), torch.tensor([[6], [17]]), torch.tensor([[3, 3, 2], [2, 1, 2]])]
    joined = concatenated([resident.gather(rows.flatten()) for rows in parts], 2)
    expected = resident.gather(torch.cat(parts, 1).flatten())
    for name in expected:
        assert torch.equal(joined[name].mask, expected[name].mask)
        assert torch.equal(joined[name].duration, expected[name].duration)
        mask = expected[name].mask
        assert torch.equal(joined[name].values[mask], expected[name].values[mask])
        assert torch.equal(joined[name].times[mask.any(2)], expected[name].times[mask.any(2)])


def slow_worth(value, seen, owner):
    """Variance within over variance between owners, one node and channel at a time."""
    result = np.zeros(value.shape[1:])
    for node, channel in np.ndindex(*result.shape):
        own = [value[(owner == o) & (seen[:, node] > 0), node, channel] for o in np.unique(owner)]
        own = [clips for clips in own if len(clips)]
        within = sum(((clips - clips.mean()) ** 2).sum() for clips in own) / max(1, sum(len(c) - 1 for c in own))
        means = [clips.mean() for clips in own]
        spread = np.var(means, ddof=1) if len(own) > 1 else 0.0
        between = spread - within * np.mean([1 / len(clips) for clips in own]) if own else 0.0
        result[node, channel] = within / between if between > 1e-4 * within else 1e4
    return result.clip(0.01, 1e4)


def owned(n_owners=8, n_nodes=3, between=1.0, within=1.0, seed=0):
    """Clips of people who gave 1, 2, ... clips each; some nodes are not seen, the last one never."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n_owners), 1 + np.arange(n_owners) % 5)
    center = rng.normal(0, between, (n_owners, n_nodes, 2))
    value = center[owner] + rng.normal(0, within, (len(owner), n_nodes, 2))
    seen = (rng.random((len(owner), n_nodes)) < 0.8).astype(np.float32)
    seen[:, -1] = 0
    return value, seen, owner


def found_worth(value, seen, owner):
    return worth_in_clips(torch.from_numpy(value), torch.from_numpy(seen), torch.from_numpy(owner)).numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("between, within", [(1.0, 1.0), (0.3, 1.0), (3.0, 1.0)])
def test_the_worth_in_clips_is_variance_within_over_variance_between_owners(between, within, seed):
    facts = owned(between=between, within=within, seed=seed)
    np.testing.assert_allclose(found_worth(*facts), slow_worth(*facts), rtol=1e-5)
    assert (found_worth(*facts)[-1] == 1e4).all(), "a node that nobody has tells nothing"
    value, seen, owner = facts
    garbage = np.where(seen[..., None] > 0, value, 77.0)
    np.testing.assert_allclose(found_worth(garbage, seen, owner), found_worth(*facts), rtol=1e-5)
    np.testing.assert_array_equal(found_worth(value, seen, 100 - 3 * owner), found_worth(*facts))


def test_many_clips_give_back_the_worth_that_made_them():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(3000), 3)
    value = rng.normal(0, 0.5, (3000, 1, 1))[owner] + rng.normal(0, 1, (9000, 1, 1))
    assert found_worth(value, np.ones((9000, 1)), owner) == pytest.approx(4, rel=0.15)


def test_owners_alike_make_the_worth_largest_and_clips_alike_smallest():
    owner, ones = np.repeat(np.arange(4), 3), np.ones((12, 1), np.float32)
    alike = np.tile([-1.0, 0.0, 1.0], 4).reshape(-1, 1, 1)
    assert found_worth(alike, ones, owner).item() == 1e4
    assert found_worth(owner.reshape(-1, 1, 1) * 2.0, ones, owner).item() == pytest.approx(0.01)
    assert found_worth(alike, ones, np.zeros(12, np.int64)).item() == 1e4, "one person does not differ from others"


def test_the_training_clips_alone_say_what_the_statistics_are_worth_unless_a_number_does(pack):
    told = ResidentViews(pack, ViewConfig(step_s=STEP, shrinkage=3.0)).training_statistics(TRAIN).worth
    assert all((worth == 3).all() and worth.shape[0] == 2 for worth in told.values())
    resident = ResidentViews(pack, ViewConfig(step_s=STEP))
    found, modality = resident.training_statistics(TRAIN).worth["audio"], resident.modalities["audio"]
    owner, variance = np.arange(N_CLIPS)[TRAIN] % 6, modality.square - modality.mean**2
    for row, value in enumerate((modality.mean, variance)):
        expected = slow_worth(value[TRAIN].double().numpy(), modality.seen[TRAIN].numpy(), owner)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-3)
    assert not torch.equal(found[0], found[1])


def test_support_worth_nothing_beside_it_speaks_alone_and_beside_much_it_is_not_heard(pack):
    resident = ResidentViews(pack, ViewConfig(step_s=STEP))
    training, support = resident.training_statistics(TRAIN), SUPPORT[:1]

    def of(mean, variance):
        worth = {
            n: torch.stack([torch.full_like(t[0], w) for w in (mean, variance)]) for n, t in training.worth.items()
        }
        return resident.support_statistics(support, Statistics(training.shift, training.scale, worth))

    clips = [part[:2] for part in binned(*audio(N_CLIPS))]
    mean, variance, _ = moments_of(support[0].tolist(), clips)
    alone, unheard, mixed = of(0.0, 0.0), of(1e12, 1e12), of(0.0, 1e12)
    for some in (alone, mixed):
        np.testing.assert_allclose(some.shift["audio"][0].numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone.scale["audio"][0].numpy(), np.sqrt(variance), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(unheard.shift["audio"], training.shift["audio"])
    for some in (unheard, mixed):
        torch.testing.assert_close(some.scale["audio"], training.scale["audio"], rtol=1e-4, atol=0)


def test_where_nobody_was_seen_twice_the_mean_of_all_weighs_most():
    values = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    assert (worth_in_clips(values, torch.ones(5, 2), torch.arange(5)) == 1e4).all()
