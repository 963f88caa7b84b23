"""What SynEmo generates: its tables, views, presets, switches and nuisances."""

from __future__ import annotations

import itertools
import time
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import (
    EMOTIONS,
    FACTORS,
    LABELS,
    LAW,
    SynEmoConfig,
    domain_table,
    factor_contrast_classes,
    generate,
    label_of,
)
from stf2m_core.errors import ConfigError

MODALITIES = ("audio", "visual", "text")


@pytest.fixture(scope="module")
def smoke():
    return generate(SynEmoConfig.preset("smoke", pure=True))


@pytest.fixture(scope="module")
def full():
    return generate(SynEmoConfig.preset("smoke"))


def _bytes(generated) -> bytes:
    clips, views = generated
    arrays = [array for name in MODALITIES for array in (views[name].values, views[name].offsets, views[name].times)]
    masks = [views[name].mask for name in MODALITIES if views[name].mask is not None]
    return clips.to_csv().encode() + b"".join(array.tobytes() for array in (*arrays, *masks))


def _emotions(clips: pd.DataFrame) -> pd.Series:
    return clips[[f"x_{factor}" for factor in FACTORS]].agg(".".join, axis=1)


@pytest.mark.parametrize("pure", [True, False])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(pure):
    config = SynEmoConfig(n_domains=2, n_subjects_per_domain=2, pure=pure)
    first = _bytes(generate(config))
    assert first == _bytes(generate(config))
    assert first != _bytes(generate(replace(config, seed=1)))


def test_generating_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].tobytes()
    generate(SynEmoConfig(n_domains=1))
    assert np.random.get_state()[1].tobytes() == before


def test_views_of_a_pure_clip_have_the_stated_shapes_nodes_and_channels(smoke):
    clips, views = smoke
    shapes = {"audio": (32, ("contour", "tone"), ("value",)), "text": (1, ("meaning",), ("value",))}
    shapes["visual"] = (60, ("a", "b", "c", "d"), ("carrier", "level"))
    assert tuple(views) == MODALITIES
    for modality, (frames, nodes, channels) in shapes.items():
        view = views[modality]
        assert (view.nodes, view.channels) == (nodes, channels)
        assert view.values.shape == (frames * len(clips), len(nodes), len(channels))
        assert view.values.dtype == np.float32
        assert (view.lengths == frames).all()


def test_stamps_lie_within_the_clip_and_never_decrease(full):
    clips, views = full
    for view in views.values():
        present = np.repeat(np.arange(len(clips)), view.lengths)
        assert (view.times > 0).all()
        assert (view.times < clips["duration_s"].to_numpy()[present]).all()
        falls = np.diff(view.times)[np.diff(present) == 0] <= 0
        assert not falls.any()


def test_the_clips_are_unlike_in_duration_between_domains_and_alike_within(smoke):
    clips, _ = smoke
    durations = clips.groupby("domain")["duration_s"].nunique()
    assert (durations == 1).all()
    assert sorted(clips["duration_s"].unique()) == [pytest.approx(2.56), pytest.approx(3.84)]


def test_subjects_are_sorted_so_that_domains_lie_together(smoke):
    clips, _ = smoke
    assert clips["subject"].is_monotonic_increasing
    assert clips["group"].is_monotonic_increasing
    assert clips["clip_id"].is_unique
    assert (clips["subject"].str.split("-").str[0] == clips["domain"]).all()
    assert (clips["group"].str.split("/").str[0] == clips["subject"]).all()
    assert clips.iloc[0]["subject"] == "d00-s0"


def test_names_keep_their_order_with_many_domains_and_sessions():
    config = SynEmoConfig(n_domains=101, n_subjects_per_domain=1, n_sessions=11, clips_per_class=11, pure=True)
    clips, _ = generate(config)
    assert clips["subject"].is_monotonic_increasing
    assert clips["group"].is_monotonic_increasing
    assert clips["group"].nunique() == 101 * 11


@pytest.mark.parametrize("name", ["smoke", "standard"])
def test_presets_give_every_subject_two_or_more_clips_of_each_emotion_in_each_session(name):
    config = SynEmoConfig.preset(name, n_domains=2)
    clips, _ = generate(config)
    counts = clips.groupby(["group", _emotions(clips)]).size()
    assert len(counts) == 2 * config.n_subjects_per_domain * config.n_sessions * 24
    assert counts.min() >= 2
    assert clips.groupby("subject")["group"].nunique().min() >= 2


def test_with_votes_most_subjects_still_have_two_clips_of_each_label(full):
    clips, _ = full
    counts = clips[clips["label"] != ""].groupby(["subject", "label"]).size().unstack(fill_value=0)
    assert (counts.to_numpy() >= 2).mean() > 0.9


def test_the_position_in_a_session_does_not_tell_the_emotion(smoke):
    clips, _ = smoke
    position = clips.groupby("group").cumcount()
    mean = position.groupby(clips["label"]).mean()
    error = position.std() / np.sqrt(len(clips) / 24)
    assert (np.abs(mean - position.mean()) < 4.5 * error).all()
    assert clips["label"].iloc[:48].tolist() != sorted(clips["label"].iloc[:48])


def test_pure_clips_have_no_masks_votes_jitter_gains_or_missing_modalities(smoke):
    clips, views = smoke
    assert all(view.mask is None and (view.lengths > 0).all() for view in views.values())
    assert not any(column.startswith("votes_") or column == "x_state" for column in clips.columns)
    assert (clips["label"] == _emotions(clips)).all()
    gaps = np.diff(views["audio"].times.reshape(len(clips), -1), axis=1)
    steps = clips["duration_s"].to_numpy()[:, None] / LAW.audio_frames
    np.testing.assert_allclose(gaps, np.broadcast_to(steps, gaps.shape), atol=1e-5)
    spread = pd.Series(views["text"].values.ravel().astype(float)).groupby(clips["domain"].to_numpy()).std()
    assert spread.between(0.85, 1.15).all()


def test_pure_subjects_of_a_domain_share_their_baseline_and_others_do_not():
    kwargs = {"n_domains": 20, "n_subjects_per_domain": 6, "dropout": 0.0, "ambiguity": 0.0}
    spreads = {}
    for pure in (True, False):
        config = SynEmoConfig(pure=pure, **kwargs)
        clips, views = generate(config)
        level = views["visual"].values[:, :, 1].astype(float).reshape(len(clips), -1).max(1, initial=-np.inf)
        means = pd.Series(level).groupby([clips["domain"], clips["subject"]]).mean()
        spreads[pure] = means.groupby("domain").std().median()
    error = np.sqrt((LAW.level_shift**2 + LAW.level_sd**2) / 96)
    assert spreads[True] < 1.5 * error
    assert spreads[False] > 2 * error


def test_the_full_configuration_has_gains_that_differ_between_domains(full):
    clips, views = full
    present = views["text"].lengths > 0
    values = pd.Series(views["text"].values.ravel().astype(float))
    spread = np.log(values.groupby(clips["domain"].to_numpy()[present]).std())
    assert 0.1 < spread.std() < 0.6


def test_dead_nodes_are_zero_and_masked_in_their_whole_domain_and_never_all_of_a_modality():
    clips, views = generate(SynEmoConfig(n_domains=60, n_subjects_per_domain=1, clips_per_class=2, dropout=0.0))
    dead = {}
    for modality, view in views.items():
        assert (view.values[view.mask == 0] == 0).all()
        assert (view.mask.max(1) == 1).all()
        frames = len(view.mask) // len(clips)
        by_domain = pd.DataFrame(view.mask).groupby(np.repeat(clips["domain"].to_numpy(), frames))
        assert by_domain.min().equals(by_domain.max())
        dead[modality] = 1 - view.mask.mean()
    assert dead["visual"] == pytest.approx(LAW.dead_nodes, abs=0.06)
    assert dead["text"] == 0


def test_dropout_leaves_every_clip_a_modality_and_depends_on_the_domain(full):
    clips, views = full
    present = pd.DataFrame({name: view.lengths > 0 for name, view in views.items()})
    assert present.any(axis=1).all()
    rates = 1 - present.groupby(clips["domain"]).mean()
    assert 0.1 < rates.to_numpy().mean() < 0.4
    assert rates.to_numpy().max() < 0.6
    assert rates.to_numpy().std() > 0.08


def test_certain_dropout_still_leaves_one_modality():
    _, views = generate(SynEmoConfig(n_domains=4, dropout=1.0))
    n_present = sum((view.lengths > 0).astype(int) for view in views.values())
    assert n_present.min() == 1


def test_the_label_is_the_plurality_of_the_votes_and_undefined_for_ties(full):
    clips, _ = full
    votes = clips[[f"votes_{label}" for label in LABELS]].to_numpy()
    assert votes.sum(1).min() == 5
    assert votes.sum(1).max() == 10
    tied = (votes == votes.max(1, keepdims=True)).sum(1) > 1
    assert 0 < tied.mean() < 0.1
    assert (clips["label"][tied] == "").all()
    assert (clips["label"][~tied] == np.array(LABELS)[votes[~tied].argmax(1)]).all()


def test_with_votes_the_signals_show_the_state_and_not_always_the_emotion():
    clips, views = generate(SynEmoConfig(pure=True, ambiguity=1.0))
    state = clips["x_state"].to_numpy()
    emotion = _emotions(clips).to_numpy()
    assert (state == emotion).mean() == pytest.approx(0.7, abs=0.03)
    assert ((state == emotion) | (state == clips["x_neighbour"])).all()
    tone = views["audio"].values[:: LAW.audio_frames, 1, 0].astype(float)
    text = views["text"].values.ravel().astype(float)
    shown = np.char.endswith(state.astype(str), "agree")
    stated = (clips["x_interaction"] == "agree").to_numpy()
    assert (((tone * text) > 0) == shown).mean() == pytest.approx(0.872, abs=0.02)
    assert (((tone * text) > 0) == stated).mean() < 0.86


def test_ambiguity_alone_leaves_the_sensors_pure():
    clips, views = generate(SynEmoConfig(pure=True, ambiguity=0.3, n_domains=2))
    assert (clips["x_neighbour"] != "").mean() == pytest.approx(0.3, abs=0.06)
    assert all(view.mask is None and (view.lengths > 0).all() for view in views.values())


@pytest.mark.parametrize("pure", [True, False])
def test_a_pack_of_the_clips_can_be_written_and_opened(tmp_path, pure):
    clips, views = generate(SynEmoConfig(n_domains=2, n_subjects_per_domain=2, pure=pure))
    pack = open_pack(write_pack(tmp_path / "synemo", clips, views, LABELS, name="synemo"), verify="full")
    assert pack.labels == LABELS
    assert pack.clips["x_order"].tolist() == clips["x_order"].tolist()
    np.testing.assert_array_equal(pack.view("visual").values, views["visual"].values)
    assert len(set(pack.content_hashes())) == len(clips)


def test_the_smoke_preset_is_quick_and_small(full):
    start = time.process_time()
    clips, views = generate(SynEmoConfig.preset("smoke"))
    assert time.process_time() - start < 10
    size = sum(view.values.nbytes + view.times.nbytes + view.mask.nbytes for view in views.values())
    assert size < 150e6
    assert len(clips) == 12 * 4 * 24 * 4
    assert len(generate(SynEmoConfig.preset("standard"))[0]) > 4 * len(clips)


def test_domains_have_rates_and_steps_from_the_law_and_spread_baselines():
    table = domain_table(SynEmoConfig(n_domains=400))
    assert set(table["contour_hz"]) == set(LAW.contour_hz)
    assert set(table["step_s"]) == set(LAW.step_s)
    assert table["level_offset"].std() == pytest.approx(1.5, abs=0.25)
    ratios = np.diff(np.log(LAW.contour_hz))
    assert (len(LAW.contour_hz), LAW.contour_hz[0], LAW.contour_hz[-1]) == (7, 0.6, 1.6)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)


def test_labels_are_the_24_names_built_from_the_factors():
    assert label_of(0, 0, 1, 0) == "rising.ab-cd.high.agree"
    assert len(set(LABELS)) == 24
    assert LABELS[-1] == "falling.ad-bc.high.oppose"
    assert all(label_of(*levels) == label for levels, label in zip(EMOTIONS.tolist(), LABELS, strict=True))


def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="level 3 of factor 'synchrony' is unknown; expected 0 to 2"):
        label_of(0, 3, 0, 0)
    with pytest.raises(ConfigError, match="level -1 of factor 'order'"):
        label_of(-1, 0, 0, 0)


@pytest.mark.parametrize("factor", FACTORS)
def test_contrast_pairs_differ_in_their_factor_only_and_from_each_other_in_more(factor):
    pairs = factor_contrast_classes(factor)
    axis = list(FACTORS).index(factor)
    levels = [[EMOTIONS[LABELS.index(label)] for label in pair] for pair in pairs]
    assert len({label for pair in pairs for label in pair}) == 6
    for one, two in levels:
        assert np.flatnonzero(one != two).tolist() == [axis]
    for (one, _), (two, _) in itertools.combinations(levels, 2):
        assert (np.delete(one, axis) != np.delete(two, axis)).sum() >= 2


def test_contrast_pairs_of_synchrony_use_every_pair_of_its_levels():
    pairs = factor_contrast_classes("synchrony")
    assert len({frozenset(label.split(".")[1] for label in pair) for pair in pairs}) == 3


def test_an_unknown_factor_is_refused():
    with pytest.raises(ConfigError, match="factor 'tempo' is unknown; expected order or synchrony"):
        factor_contrast_classes("tempo")


def test_the_digest_changes_with_every_setting_and_only_with_them():
    base = SynEmoConfig()
    changes = {"seed": 1, "n_domains": 3, "n_subjects_per_domain": 3, "n_sessions": 3, "clips_per_class": 5}
    changes |= dict.fromkeys(FACTORS, False) | {"pure": True, "ambiguity": 0.1, "dropout": 0.1}
    assert set(changes) == {field.name for field in fields(SynEmoConfig)}
    digests = {base.digest(), *(replace(base, **{name: value}).digest() for name, value in changes.items())}
    assert len(digests) == len(changes) + 1
    assert SynEmoConfig(ambiguity=0.3, dropout=0.5).digest() == base.digest()
    assert len(base.digest()) == 12


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_sessions": 1}, "n_sessions is 1; expected an integer of at least 2"),
        ({"clips_per_class": 1}, "clips_per_class is 1; expected an integer of at least 2"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"n_domains": True}, "n_domains is True; expected an integer of at least 1"),
        ({"n_domains": 2.0}, "n_domains is 2.0; expected an integer"),
        ({"order": 1}, "order is 1; expected True or False"),
        ({"dropout": 1.5}, "dropout is 1.5; expected a probability or None"),
        ({"ambiguity": float("nan")}, "ambiguity is nan; expected a probability or None"),
        ({"n_domain": 3}, "setting 'n_domain' is unknown.*Did you mean 'n_domains'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        SynEmoConfig.preset("smoke", **change)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="preset 'paper' is unknown; expected smoke or standard"):
        SynEmoConfig.preset("paper")
