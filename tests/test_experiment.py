"""Which runs answer which question: designs, settings of a run, files, and rows of tables, on a small trained set."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from stf2m_core import evaluation, experiment, open_pack, training
from stf2m_core.config import PROFILES
from stf2m_core.data.manifest import import_dataset
from stf2m_core.errors import ConfigError, ManifestError, PackError, RunError
from stf2m_core.experiment import (
    EMBEDDED,
    NOVEL,
    READINGS,
    STUDIES,
    VARIANTS,
    Design,
    ablation_rows,
    config_for,
    design,
    main_rows,
    table_of,
)
from stf2m_core.metrics import half_width
from stf2m_core.results import Estimate, Record


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return experiment.open_or_make_pack(tmp_path_factory.mktemp("packs") / EMBEDDED, "test")


@pytest.fixture(scope="module")
def results(pack, tmp_path_factory):
    """A results folder with every run of the profile `test`."""
    out = tmp_path_factory.mktemp("results")
    experiment.complete_design(pack, out, "test")
    return out


@pytest.fixture(scope="module")
def records(pack, results):
    return experiment.records_of(pack, results, "test")


def differences(old, new, path=()):
    """Dotted names of the settings in which two mappings differ."""
    if isinstance(old, dict):
        return {name for key in old for name in differences(old[key], new[key], (*path, key))}
    return set() if old == new else {"__".join(path)}


# --- designs and settings


def test_the_smoke_design_is_one_fold_one_seed_and_every_variant():
    found = design(EMBEDDED, "smoke")
    assert (found.folds, found.seeds) == ((0,), (0,))
    assert dict(found.variants) == dict.fromkeys([*VARIANTS, experiment.NOVEL], (0,))


def test_real_data_has_four_folds_in_the_standard_design_and_ablates_on_the_first():
    found = design("ravdess_features", "standard")
    assert found.folds == (0, 1, 2, 3)
    assert dict(found.variants) == {name: found.folds if name == "full" else (0,) for name in VARIANTS}


def test_the_paper_design_has_three_seeds_and_ablates_on_every_fold():
    found = design("ravdess_features", "paper")
    assert found == Design((0, 1, 2, 3), (0, 1, 2), tuple((name, (0, 1, 2, 3)) for name in VARIANTS))


def test_readings_are_made_once_on_the_first_fold_and_compared_with_the_full_model(pack, results):
    found = experiment.complete_readings(pack, results, "test", ("causal", "first-order"))
    assert {(r.variant, r.fold, r.seed) for r in found} == {(v, 0, 0) for v in ("full", "causal", "first-order")}
    again = experiment.complete_readings(pack, results, "test", ("causal", "first-order"))
    assert [r.provenance for r in again] == [r.provenance for r in found]
    rows = ablation_rows(found, ("causal", "first-order"))
    assert [row["variant"] for row in rows] == ["causal"] * 2 + ["first-order"] * 2
    full = next(r for r in found if r.variant == "full" and r.episode["n_shot"] == 5)
    causal = next(r for r in found if r.variant == "causal" and r.episode["n_shot"] == 5)
    row = next(row for row in rows if row["variant"] == "causal" and "5-shot" in row["setting"])
    assert row["difference"] == pytest.approx(causal.accuracy.mean - full.accuracy.mean)


def test_names_of_readings_are_read_from_words():
    assert experiment.read_readings("all") == tuple(READINGS)
    assert experiment.read_readings(" deep-set ,causal") == ("deep-set", "causal")
    with pytest.raises(ConfigError, match="reading 'depset'; expected all, or some of"):
        experiment.read_readings("depset")


@pytest.mark.parametrize("variant", [*VARIANTS, *READINGS])
def test_a_variant_changes_exactly_what_it_names(pack, variant):
    changes = (VARIANTS | READINGS)[variant]
    full, changed = (config_for(pack, "smoke", variant=v) for v in ("full", variant))
    found = differences(full.to_mapping(), changed.to_mapping())
    assert changed == full.replace(**changes)
    assert found <= set(changes)
    assert bool(found) == (variant != "full")


def test_no_reading_is_in_a_design_or_has_the_name_of_an_ablation():
    for dataset in (EMBEDDED, "ravdess_features"):
        for profile in ("smoke", "standard", "paper"):
            assert not {name for name, _ in design(dataset, profile).variants} & set(READINGS)
    assert not set(VARIANTS) & set(READINGS)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_every_study_has_settings_in_every_profile_and_the_profile_has_the_last_word(name, profile):
    study = STUDIES[name]
    variants = [*VARIANTS, *READINGS, *([NOVEL] if study.novel else [])]
    made = {variant: config_for(SimpleNamespace(name=name), profile, variant=variant) for variant in variants}
    assert len({config.digest() for config in made.values()}) == len(variants)
    for key, value in study.profiles.get(profile, {}).items():
        part, _, field = key.partition("__")
        assert getattr(getattr(made["full"], part), field) == value


def test_fold_and_seed_change_nothing_else(pack):
    changed = config_for(pack, "smoke", fold=2, seed=5)
    assert differences(config_for(pack, "smoke").to_mapping(), changed.to_mapping()) == {"split__fold", "train__seed"}
    assert (changed.split.fold, changed.train.seed) == (2, 5)


def test_an_unknown_variant_or_profile_is_refused(pack):
    with pytest.raises(ConfigError, match="variant = 'no-luck'; expected one of full, no-spatial"):
        config_for(pack, "smoke", variant="no-luck")
    with pytest.raises(ConfigError, match="profile = 'huge'"):
        config_for(pack, "huge")


def test_a_pack_the_kit_does_not_know_is_asked_as_many_ways_as_it_has_labels(pack):
    unknown = dataclasses.replace(pack, name="mine", labels=("calm", "angry", "sad"))
    (kind,) = experiment.study_of(unknown).test
    assert (kind.regime, kind.n_way, kind.n_shot) == ("D", 3, 1)
    assert experiment.study_of(dataclasses.replace(pack, name="mine")).test[0].n_way == 5


# the other readings train and answer as the whole model does
PECULIAR = ("node-mixing", "generated-gru", "modulation-only", "recurrent-learner", "zero-order")


@pytest.mark.parametrize("variant", PECULIAR)
def test_a_reading_trains_answers_and_is_recorded_under_its_name(pack, tmp_path, variant):
    config = config_for(pack, "test", variant=variant)
    run = experiment.train_run(pack, config, tmp_path, variant=variant, progress_bar=False)
    made = experiment.evaluate_run(pack, config, tmp_path, variant=variant)
    assert run.summary["steps"] == 4 and np.isfinite(run.summary["best_nll"])
    assert (run.summary["adapted"] == 0) == (config.inner.steps_test == 0)
    assert [record.variant for record in made] == [variant] * len(experiment.study_of(pack).test)
    assert all(0 <= record.metrics["accuracy"]["mean"] <= 1 for record in made)


# --- packs


def test_an_open_pack_is_not_made_again_and_a_missing_one_only_if_it_is_embedded(pack, tmp_path):
    before = (pack.path / "pack.json").stat().st_mtime_ns
    assert experiment.open_or_make_pack(pack.path).digest == pack.digest
    assert (pack.path / "pack.json").stat().st_mtime_ns == before
    with pytest.raises(PackError, match="my_set"):
        experiment.open_or_make_pack(tmp_path / "my_set")
    with pytest.raises(PackError, match="made with .*smoke.*; expected .*standard.*as profile paper.*Run notebook 01"):
        experiment.open_or_make_pack(pack.path, "paper")
    other = import_dataset(EMBEDDED, out=tmp_path / EMBEDDED, preset="smoke", n_domains=3).pack
    assert experiment.open_or_make_pack(other).name == EMBEDDED  # as notebook 02, which is right for any size, opens it
    with pytest.raises(PackError, match="made with .*as profile smoke has it"):
        experiment.open_or_make_pack(other, "smoke")
    with pytest.raises(ManifestError, match="ravdess_features needs a source"):
        experiment.prepare_pack("ravdess_features", tmp_path / "r", "smoke")


def test_preparing_a_pack_twice_gives_an_equal_one(pack, tmp_path):
    shutil.copytree(pack.path, tmp_path / EMBEDDED)
    report = experiment.prepare_pack(EMBEDDED, tmp_path / EMBEDDED, "test")
    assert open_pack(report.pack).digest == pack.digest


# --- runs and records


def test_runs_of_different_settings_never_share_a_folder(pack, tmp_path):
    runs = [(v, f, s) for v in VARIANTS for f in (0, 1) for s in (0, 1)]
    configs = [config_for(pack, "smoke", variant=v, fold=f, seed=s) for v, f, s in runs]
    folders = [experiment.run_folder(tmp_path, pack, c, v) for c, (v, _, _) in zip(configs, runs, strict=True)]
    assert len(set(folders)) == len(runs)
    assert folders[0].parent == tmp_path / "runs" / EMBEDDED
    assert folders[0].name.startswith(f"full-fold0-seed0-{configs[0].digest()}-")


def test_a_finished_run_is_returned_and_not_trained_again(pack, results):
    config = config_for(pack, "test")
    folder = experiment.run_folder(results, pack, config, "full")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    run = experiment.train_run(pack, config, results, progress_bar=False)
    assert run.path == folder
    assert run.summary["steps"] == config.train.max_steps == 4
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_record_lies_where_its_settings_say(pack, results, records):
    for record in records:
        path = experiment.record_file(results, record)
        assert Record.from_json(path) == record
        assert path.name.endswith(f"_fold0_seed0_{record.config_digest}.json")
    assert len({experiment.record_file(results, record) for record in records}) == len(records)


def test_a_complete_design_has_each_variant_in_each_setting_and_the_controls_once(pack, records):
    study = experiment.study_of(pack)
    settings = {kind.title for kind in study.test}
    new = {kind.title for kind in study.settings(experiment.NOVEL)}
    found = sorted((r.method, r.variant, experiment.setting_of(r)) for r in records)
    wanted = [("st-f2m", variant, setting) for variant in VARIANTS for setting in settings]
    wanted += [("st-f2m", experiment.NOVEL, setting) for setting in new]
    wanted += [(control, "full", setting) for control in experiment.CONTROLS for setting in settings | new]
    assert all(setting.startswith("C ") for setting in new) and len(new) == len(settings)
    assert found == sorted(wanted)


def test_a_complete_design_is_left_alone_and_a_lost_record_is_made_again(pack, results, records):
    folder = results / "records" / EMBEDDED
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert experiment.complete_design(pack, results, "test") == records
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    lost = next(r for r in records if r.variant == "no-views")
    experiment.record_file(results, lost).unlink()
    again = experiment.complete_design(pack, results, "test")
    made = next(r for r in again if r.variant == "no-views" and r.episode == lost.episode)
    assert made.per_episode == lost.per_episode
    assert made.run_digest == lost.run_digest


def test_records_of_other_code_are_made_again_and_what_is_no_record_of_the_profile_is_not_read(
    pack, results, records, tmp_path, monkeypatch
):
    config = config_for(pack, "test", variant="no-views")
    before = experiment.complete_run(pack, config, results, "no-views")
    out = shutil.copytree(results, tmp_path / "results")
    (out / "records" / EMBEDDED / "st-f2m_full_torn_fold0_seed0_0123456789ab.json").write_text("torn")
    assert [r.name for r in experiment.records_of(pack, out, "test")] == [r.name for r in records]
    assert {r.provenance["code"] for r in before} == {training.CODE_DIGEST}
    for module in (training, evaluation):
        monkeypatch.setattr(module, "CODE_DIGEST", "abcdef")
    made = experiment.complete_run(pack, config, out, "no-views")
    assert {r.provenance["code"] for r in made} == {"abcdef"}
    assert [r.metrics for r in made] == [r.metrics for r in before]


def test_records_of_another_profile_or_pack_are_not_mixed_in(pack, results):
    with pytest.raises(RunError, match="no record of profile smoke.*notebook 07 first"):
        experiment.records_of(pack, results, "smoke")
    with pytest.raises(RunError, match="no record of profile test"):
        experiment.records_of(dataclasses.replace(pack, digest="0" * 12), results, "test")


# --- rows of tables


def test_main_rows_give_every_method_and_reading_its_own_number(pack, records):
    rows = main_rows(records)
    settings = [kind.title for v in experiment.WHOLE for kind in experiment.study_of(pack).settings(v)]
    metrics = {"ST-F2M, zero steps": "accuracy_zero_step", "ST-F2M, prototypes only": "accuracy_prototype"}
    metrics |= {"ST-F2M, no support": "accuracy_no_support"}
    titles = ["ST-F2M", *metrics, *experiment.CONTROLS]
    assert sorted((r["method"], r["setting"]) for r in rows) == sorted((t, s) for t in titles for s in settings)
    for row in rows:
        method = "st-f2m" if row["method"].startswith("ST-F2M") else row["method"]
        own = [r for r in records if (r.method, experiment.setting_of(r)) == (method, row["setting"])]
        own = [r for r in own if r.variant in experiment.WHOLE]
        estimate = own[0].estimate(metrics.get(row["method"], "accuracy"))
        assert (row["mean"], row["ci95"], row["subject_low"]) == (estimate.mean, estimate.ci95, estimate.subject_low)


def test_ablation_rows_are_paired_differences_to_the_full_model(pack, records):
    rows = ablation_rows(records)
    assert len(rows) == (len(VARIANTS) - 1) * len(experiment.study_of(pack).test)
    for row in rows:
        own, full = (
            next(r for r in records if (r.method, r.variant, experiment.setting_of(r)) == ("st-f2m", v, row["setting"]))
            for v in (row["variant"], "full")
        )
        gap = np.subtract(own.per_episode["accuracy"], full.per_episode["accuracy"])
        assert row["difference"] == row["mean"] == pytest.approx(gap.mean(), abs=1e-12)


def test_a_full_model_against_itself_differs_by_nothing(records):
    full = [r for r in records if r.method == "st-f2m" and r.variant == "full"]
    renamed = [dataclasses.replace(r, variant="no-views") for r in full]
    assert {(row["difference"], row["ci95"]) for row in ablation_rows([*full, *renamed])} == {(0.0, 0.0)}


def test_a_table_keeps_the_order_of_its_rows_and_leaves_no_number_behind():
    cells = {("b", "D"): 0.5, ("b", "P"): 0.25, ("a", "D"): 0.125, ("a", "P"): 1.0}
    blank = {"ci95": 0.01, "subject_low": None, "subject_high": None}
    rows = [{"method": m, "setting": s, "mean": mean} | blank for (m, s), mean in cells.items()]
    table = table_of(rows)
    assert (list(table.index), list(table.columns)) == (["b", "a"], ["D", "P"])
    for (method, setting), mean in cells.items():
        assert table.loc[method, setting] == str(Estimate(mean, 0.01))


def test_confusions_are_those_of_the_variant_in_the_setting_over_all_folds_and_seeds(pack, records):
    setting = STUDIES[EMBEDDED].test[0]
    counts, labels = experiment.confusion_counts(records, setting)
    own = [r for r in records if (r.method, r.variant, experiment.setting_of(r)) == ("st-f2m", "full", setting.title)]
    assert labels == tuple(pack.labels)
    assert (counts == [own[0].confusion[label] for label in labels]).all()
    twice = dataclasses.replace(own[0], seed=1)
    assert (experiment.confusion_counts([*records, twice], setting)[0] == 2 * counts).all()
    ablated, _ = experiment.confusion_counts(records, setting, "no-temporal")
    assert (ablated != counts).any()
    with pytest.raises(RunError, match="no record of no-such in D 5-way 1-shot; expected one at least"):
        experiment.confusion_counts(records, setting, "no-such")
    old = dataclasses.replace(own[0], confusion={})
    with pytest.raises(RunError, match="no confusion; expected counts .*Run notebook 07 for it again"):
        experiment.confusion_counts([*records, old], setting)


def test_gain_rows_are_paired_differences_to_lesser_readings_of_the_same_records(records):
    rows = experiment.gain_rows(records)
    whole = [r for r in records if r.method == "st-f2m" and r.variant in experiment.WHOLE]
    lesser = {"over zero inner steps": "zero_step", "over prototypes only": "prototype"}
    lesser |= {"over no support": "no_support"}
    assert sorted((r["gain"], r["setting"]) for r in rows) == sorted(
        (title, experiment.setting_of(r)) for title in lesser for r in whole
    )
    for row in rows:
        record = next(r for r in whole if experiment.setting_of(r) == row["setting"])
        gap = np.subtract(record.per_episode["accuracy"], record.per_episode[f"accuracy_{lesser[row['gain']]}"])
        assert row["mean"] == pytest.approx(gap.mean(), abs=1e-12)
        assert row["ci95"] == pytest.approx(half_width(gap), abs=1e-12)
