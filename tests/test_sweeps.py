"""Sweeps over shots and modalities, on small trained runs: what is asked, kept and refused, and the rows it gives."""

import numpy as np
import pytest
import torch
from scipy import stats

from stf2m_core import experiment, report, sweeps
from stf2m_core.errors import ConfigError, RunError
from stf2m_core.evaluation import evaluate

SHOTS = (1, 2, 400)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return experiment.open_or_make_pack(tmp_path_factory.mktemp("packs") / experiment.EMBEDDED, "test")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def by_shots(pack, out):
    return sweeps.sweep_shots(pack, out, "test", SHOTS)


@pytest.fixture(scope="module")
def by_modality(pack, out):
    return sweeps.sweep_modalities(pack, out, "test")


def test_shots_that_the_clips_cannot_give_are_refused_with_both_counts_and_the_others_asked(by_shots):
    assert list(by_shots.refused) == ["D 5-way 400-shot"]
    assert "expected 5 for D 5-way 400-shot episodes" in by_shots.refused["D 5-way 400-shot"]
    asked = {(record.method, experiment.setting_of(record)) for record in by_shots.records}
    methods = ("st-f2m", "nearest-prototype", "ridge-prototype")
    assert asked == {(method, f"D 5-way {k}-shot") for method in methods for k in (1, 2)}


def test_a_row_of_shots_is_the_estimate_of_its_reading(by_shots):
    rows = {(row["method"], row["n_shot"]): row for row in sweeps.shot_rows(by_shots.records)}
    assert len(rows) == 2 * 5
    for metric, name in sweeps.READINGS.items():
        one = [r for r in by_shots.records if r.method == "st-f2m" and r.episode["n_shot"] == 2]
        assert rows[name, 2]["mean"] == one[0].estimate(metric).mean
        assert rows[name, 2]["regime"] == "D"
    control = next(r for r in by_shots.records if (r.method, r.episode["n_shot"]) == ("ridge-prototype", 1))
    assert rows["ridge-prototype", 1]["ci95"] == control.accuracy.ci95 > 0


def test_shots_are_read_from_words():
    assert sweeps.read_shots("5, 1,2, 5") == (1, 2, 5)
    for wrong in ("", "0", "1; 2", "-3"):
        with pytest.raises(ConfigError, match="expected whole numbers above 0, separated by commas"):
            sweeps.read_shots(wrong)


def test_seeds_are_trainings_of_their_own_that_answer_the_same_questions(pack, out):
    records = sweeps.sweep_seeds(pack, out, "test", (0, 1)).records
    settings = list(dict.fromkeys(experiment.setting_of(record) for record in records))
    assert {title[0] for title in settings} == {"D", "C"}
    for title in settings:
        own = [record for record in records if experiment.setting_of(record) == title]
        assert [record.seed for record in own] == [0, 1]
        assert own[0].run_digest != own[1].run_digest
        assert own[0].episode["digest"] == own[1].episode["digest"], "also where emotions are new"
    rows = {(row["setting"], row["seed"]): row for row in sweeps.seed_rows(records)}
    assert len(rows) == len(records)
    for record in records:
        row = rows[experiment.setting_of(record), record.seed]
        assert row["mean"] == record.accuracy.mean
        assert row["gain_mean"] == pytest.approx(record.accuracy.mean - record.estimate("accuracy_zero_step").mean)
    table = report.seed_table(records)
    assert table["setting"].tolist() == settings
    assert [cell.count("±") for cell in table["seed by seed"]] == [2] * len(settings)
    assert "seeds [0, 1]" in " ".join(table.attrs["caption"].split())


def test_the_interval_over_seeds_is_that_of_student(pack):
    mean, spread, half = sweeps.over_seeds([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (mean, mean - half, mean + half) == pytest.approx((7 / 3, low, high))
    assert spread == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert np.isnan(sweeps.over_seeds([1.0])[1:]).all()


def test_a_sweep_is_kept_and_not_asked_again(pack, out, by_shots):
    folder = out / "sweeps" / f"{pack.name}-{pack.digest}"
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = sweeps.sweep_shots(pack, out, "test", SHOTS)
    assert [r.metrics for r in again.records] == [r.metrics for r in by_shots.records]
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_modalities_are_together_hidden_and_alone(pack, out, by_modality):
    kinds = {record.variant for record in by_modality.records}
    seen = [f"{name}{kind}" for kind in (", others hidden", " alone") for name in pack.modalities]
    assert kinds == {"all modalities", *seen}
    rows = sweeps.modality_rows(by_modality.records)
    assert len(rows) == len(kinds) * len(experiment.study_of(pack).test)
    assert rows[0]["reader"] == "all modalities"
    alone = [r for r in by_modality.records if r.variant == f"{pack.modalities[0]} alone"]
    assert {tuple(r.config["views"]["modalities"]) for r in alone} == {(pack.modalities[0],)}
    few = sweeps.sweep_modalities(pack, out, "test", alone=False)
    assert {r.variant for r in few.records} == {kind for kind in kinds if not kind.endswith(" alone")}
    hidden = [r for r in by_modality.records if r.variant.endswith("others hidden")]
    whole = [r for r in by_modality.records if r.variant == "all modalities"]
    assert {r.run_digest for r in hidden} == {r.run_digest for r in whole} != {r.run_digest for r in alone}


def test_what_is_hidden_cannot_matter_and_what_is_seen_does(pack, out, by_modality):
    """A record with one modality is that of a pack in which the others hold anything else."""
    config = experiment.config_for(pack, "test")
    run = experiment.run_folder(out, pack, config, "full")
    setting = experiment.study_of(pack).test[0]
    name = pack.modalities[0]
    seen = evaluate(run, pack, setting, modalities=(name,), episodes=4)
    every = evaluate(run, pack, setting, modalities=pack.modalities, episodes=4)
    plain = evaluate(run, pack, setting, episodes=4)
    assert every.metrics == plain.metrics
    assert seen.metrics["nll"] != plain.metrics["nll"]
    with pytest.raises(RunError, match="modality 'smell'; expected one of"):
        evaluate(run, pack, setting, modalities=("smell",), episodes=4)
    assert torch.is_grad_enabled()
