"""Records: strict on the way in, whole on the way out, and never mixed."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from stf2m_core import metrics, results
from stf2m_core.errors import ResultError
from stf2m_core.results import Estimate, Record
from stf2m_core.seeding import numpy_generator
from stf2m_core.shapes import EpisodeBatch

EPISODE = {
    "regime": "P", "n_way": 4, "n_shot": 1, "n_query": 5, "query_prior": "balanced", "episodes": 12, "seed": 0,
}  # fmt: skip


def make_record(*, skill: float = 1.0, fold: int = 0, seed: int = 0, **changes) -> Record:
    """A record of 12 episodes of 20 queries; the queries depend on the fold, the noise on skill and seed too."""
    rng = numpy_generator(fold, "queries")
    label, subject = rng.integers(0, 4, (12, 20)), rng.integers(0, 3, (12, 20)) + 10 * fold
    logits = numpy_generator(seed, "answers", fold, str(skill)).normal(size=(12, 20, 4)) + skill * np.eye(4)[label]
    scores = torch.from_numpy(logits).log_softmax(-1)
    summary = metrics.summarise(
        scores, label, np.tile(np.arange(4), (12, 1)), subject,
        n_labels=4, pool_f1=True, rng=numpy_generator(0, "bootstrap"), n_replicates=100,
    )  # fmt: skip
    settings = {
        "name": f"r{fold}{seed}", "dataset": "toy", "pack_digest": "0123456789ab", "method": "st-f2m",
        "variant": "full", "fold": fold, "seed": seed, "split": "meta_test", "episode": EPISODE,
        "metrics": summary.metrics, "selection": "meta-validation NLL",
        "config": {"seed": seed, "split": {"fold": fold}, "steps": (1, 2)},
        "config_digest": "c", "run_digest": "r", "provenance": {"device": "cpu"}, "leaks": {"shared_subjects": 0},
        "per_episode": summary.per_episode, "per_subject": summary.per_subject,
        "confusion": {"calm": [3, 1], "glad": [0, 2]},
    }  # fmt: skip
    return Record(**settings | changes)


@pytest.fixture
def record() -> Record:
    return make_record()


def _edited(record: Record, path, edit) -> str:
    content = json.loads(record.to_json(path).read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return str(path)


def test_a_record_comes_back_from_its_file_equal(record, tmp_path):
    path = record.to_json(tmp_path / "records" / "a.json")
    assert Record.from_json(path) == record
    assert json.loads(path.read_text())["format"] == "stf2m-record"
    assert path.read_bytes() == make_record().to_json(tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(colour="red"), "unknown key colour; expected the keys of a record"),
        (lambda c: c.pop("leaks"), "missing key leaks; expected the keys of a record"),
        (lambda c: c.update(format="other"), 'not a record; expected "format": "stf2m-record"'),
        (lambda c: c.update(version=2), "version 2 is newer than this kit; expected 1 .*Update the kit"),
        (lambda c: c.update(version="x"), "version 'x' is unknown; expected 1"),
        (lambda c: c.update(fold="0"), "fold = '0' is malformed; expected a value of type int"),
        (lambda c: c.update(fold=True), "fold = True is malformed; expected a value of type int"),
        (lambda c: c.update(metrics=[1]), r"metrics = \[1\] is malformed; expected a value of type Mapping"),
        (lambda c: c["metrics"].update(uar=0.5), "metric uar is 0.5; expected a number for mean"),
        (lambda c: c["metrics"]["uar"].update(mean=float("nan")), "cannot be written as JSON.*metrics of record r00"),
        (lambda c: c["episode"].pop("seed"), "episode has keys .*; expected"),
        (lambda c: c["per_episode"]["uar"].pop(), "metric uar has 11 values per episode; expected 12"),
        (lambda c: c["per_subject"]["total"].pop(), "lists of different length"),
        (lambda c: c["per_subject"].pop("total"), "per_subject is incomplete; expected subjects, total"),
        (lambda c: c["confusion"]["glad"].pop(), r"confusion of glad is \[0\]; expected 2 counts of 0 or more"),
        (lambda c: c["confusion"].update(glad=[0, -2]), r"confusion of glad is \[0, -2\]"),
        (lambda c: c["confusion"].update(glad=2), "confusion of glad is 2"),
        (lambda c: c.update(selection="meta-test accuracy"), "selection 'meta-test accuracy' is not allowed"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(record, tmp_path, edit, message):
    path = _edited(record, tmp_path / "r.json", edit)
    with pytest.raises(ResultError, match=message):
        Record.from_json(path)


def test_a_record_from_before_confusions_were_counted_is_read(record, tmp_path):
    path = _edited(record, tmp_path / "r.json", lambda c: c.pop("confusion"))
    assert Record.from_json(path) == make_record(confusion={})


@pytest.mark.parametrize("text", [None, "{", "[]"], ids=["missing", "torn", "list"])
def test_a_file_that_is_no_record_is_refused_by_name(tmp_path, text):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(ResultError, match=r"r\.json"):
        Record.from_json(tmp_path / "r.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(record, tmp_path, monkeypatch):
    path = record.to_json(tmp_path / "r.json")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        make_record(skill=2.0).to_json(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_record_keeps_its_own_copy_of_what_it_was_given():
    config = {"steps": 3}
    kept = make_record(config=config)
    config["steps"] = 4
    assert kept.config == {"steps": 3}


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.734, 0.0149, 0.66, 0.791), ".73 ± .01 [.66, .79]"),
        (Estimate(1.234, 0.02), "1.23 ± .02"),
        (Estimate(-0.05), "-.05"),
        (Estimate(-0.001), ".00"),
        (Estimate(10.5), "10.50"),
        (Estimate(0.999, 0.001), "1.00 ± .00"),
    ],
)
def test_estimates_print_as_in_the_tables(estimate, text):
    assert str(estimate) == text


def test_a_record_knows_its_accuracy_and_refuses_other_names(record):
    assert record.accuracy.mean == pytest.approx(np.mean(record.per_episode["accuracy"]))
    with pytest.raises(ResultError, match="metric 'speed' is unknown; expected accuracy or nll"):
        record.estimate("speed")


def test_provenance_names_versions_machine_and_time():
    told = results.provenance(threads=1, device="cpu", precision="float32")
    assert (
        told["versions"]["torch"] == torch.__version__.split("+")[0] or told["versions"]["torch"] == torch.__version__
    )
    assert (told["threads"], told["device"], told["precision"]) == (1, "cpu", "float32")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["time"])
    assert told["git_revision"] is None or re.fullmatch("[0-9a-f]{40}", told["git_revision"])
    assert json.loads(json.dumps(told)) == told


def test_provenance_tells_revision_and_dirt_and_does_without_git(monkeypatch):
    answers = {"ls-files": "results.py\n", "rev-parse": "f" * 40 + "\n", "status": " M x\n"}

    def git(command, **_):
        return subprocess.CompletedProcess(command, 0, stdout=answers[command[3]])

    platform.platform()  # asks the machine once, by a command of its own
    monkeypatch.setattr(subprocess, "run", git)
    told = results.provenance(threads=1, device="cpu", precision="float32")
    assert (told["git_revision"], told["git_dirty"]) == ("f" * 40, True)

    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    told = results.provenance(threads=1, device="cpu", precision="float32")
    assert (told["git_revision"], told["git_dirty"]) == (None, None)


def _pack(subjects, groups, hashes):
    clips = pd.DataFrame({"subject": subjects, "group": groups})
    return SimpleNamespace(clips=clips, content_hashes=lambda: np.array(hashes))


def test_leak_audit_counts_what_splits_share():
    splits = {"meta_train": np.array([0, 1]), "meta_val": np.array([2]), "meta_test": np.array([3, 4])}
    clean = _pack(["a", "a", "b", "c", "d"], ["", "", "", "", "g"], ["1", "1", "2", "3", "4"])
    assert results.leak_audit(clean, splits) == {"shared_subjects": 0, "shared_groups": 0, "duplicate_content": 0}
    leaky = _pack(["a", "b", "a", "a", "b"], ["g", "h", "i", "g", "j"], ["1", "2", "3", "4", "1"])
    assert results.leak_audit(leaky, splits) == {"shared_subjects": 2, "shared_groups": 1, "duplicate_content": 1}


def test_episode_digest_tells_episodes_apart():
    def batch(query):
        rows = torch.arange(6).reshape(1, 2, 3)
        return EpisodeBatch(
            torch.zeros(1).long(), torch.tensor([[0, 1]]), rows, torch.tensor([[query]]), torch.ones(1, 1)
        )

    assert results.episode_digest(batch(7)) == results.episode_digest(batch(7))
    assert results.episode_digest(batch(7)) != results.episode_digest(batch(8))


def test_one_record_gives_back_its_own_numbers(record):
    assert results.combine([record]) == record.accuracy


def test_folds_pool_their_episodes_and_their_subjects():
    folds = [make_record(fold=0, skill=0.2), make_record(fold=1, skill=2.0)]
    episodes = np.concatenate([record.per_episode["accuracy"] for record in folds])
    combined = results.combine(folds)
    assert combined.mean == pytest.approx(episodes.mean())
    assert combined.ci95 == pytest.approx(metrics.half_width(episodes))
    assert combined.subject_low < combined.mean - combined.ci95, "two unequal folds: new people vary more than episodes"
    assert results.combine(folds, "uar").subject_low is None
    assert results.combine(folds, "ece").ci95 is None


def test_a_subject_queried_in_two_folds_is_drawn_as_one():
    first = make_record(fold=0)
    again = results.combine([first, replace(first, fold=1)])
    alone = metrics.ratio_bootstrap(
        first.per_subject["accuracy"], first.per_subject["total"], numpy_generator(0, "subjects of all folds")
    )
    assert (again.subject_low, again.subject_high) == pytest.approx((alone.low, alone.high))


def test_seeds_of_a_fold_are_averaged_not_counted_as_new_episodes():
    seeds = [make_record(seed=0), make_record(seed=1)]
    mean = np.mean([record.per_episode["accuracy"] for record in seeds], 0)
    assert results.combine(seeds).ci95 == pytest.approx(metrics.half_width(mean))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"fold": 1, "pack_digest": "ba9876543210"},
            "different pack_digest cannot be put together: 0123456789ab and ba9",
        ),
        ({"fold": 1, "variant": "no-fuzzy"}, "different variant"),
        ({"fold": 1, "config": {"steps": 5}}, "different config"),
        ({"fold": 1, "episode": EPISODE | {"seed": 1}}, "different episode settings"),
        ({"fold": 1, "seed": 1}, "different sets of seeds per fold"),
        ({}, "a fold and seed occurs twice"),
    ],
)
def test_what_differs_in_more_than_fold_and_seed_is_not_pooled(record, second, message):
    with pytest.raises(ResultError, match=message):
        results.combine([record, make_record(**second)])


def test_comparison_pairs_identical_episodes():
    a = [make_record(fold=fold, skill=1.5) for fold in (0, 1)]
    b = [make_record(fold=fold, skill=0.5, method="other", selection="none") for fold in (0, 1)]
    values = [np.concatenate([record.per_episode["accuracy"] for record in x]) for x in (a, b)]
    found = results.compare(a, b)
    assert (found.difference.mean, found.difference.ci95) == pytest.approx(metrics.paired_difference(*values))
    assert found.difference.subject_low < found.difference.mean < found.difference.subject_high
    assert results.compare(b, a).difference.mean == pytest.approx(-found.difference.mean)
    assert str(found).endswith("over 24 identical episodes")
    itself = results.compare(a[0], a[0]).difference
    assert (itself.mean, itself.ci95, itself.subject_low, itself.subject_high) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"episode": EPISODE | {"seed": 3}},
        {"episode": EPISODE | {"digest": "abc"}},
        {"pack_digest": "x"},
        {"fold": 1},
        {"split": "meta_val"},
        {"per_subject": {}},
    ],
)
def test_comparison_of_other_episodes_is_refused(record, changes):
    with pytest.raises(ResultError, match="did not answer identical episodes"):
        results.compare(record, make_record(**changes))


def test_comparison_needs_values_per_episode(record):
    with pytest.raises(ResultError, match="metric ece has no values per episode"):
        results.compare(record, record, "ece")


def test_two_readings_of_the_same_records_are_compared_episode_by_episode():
    both = []
    for fold in (0, 1):
        better, worse = make_record(fold=fold, skill=1.5), make_record(fold=fold, skill=0.5)
        changes = {
            field: {**getattr(better, field), "accuracy_zero_step": getattr(worse, field)["accuracy"]}
            for field in ("metrics", "per_episode", "per_subject")
        }
        both.append(replace(better, **changes))
    found = results.compare(both, both, "accuracy", against="accuracy_zero_step")
    one, other = (np.concatenate([r.per_episode[name] for r in both]) for name in ("accuracy", "accuracy_zero_step"))
    assert found.difference.mean == pytest.approx((one - other).mean())
    assert found.difference.ci95 == pytest.approx(metrics.half_width(one - other))
    assert found.difference.subject_low < found.difference.mean < found.difference.subject_high
    assert results.compare(both, both, "accuracy").difference.mean == 0
    with pytest.raises(ResultError, match="metric ece has no values per episode"):
        results.compare(both, both, "accuracy", against="ece")


@pytest.mark.parametrize(
    ("digits", "text"),
    [(1, ".7 ± .0 [.7, .8]"), (2, ".73 ± .01 [.66, .79]"), (3, ".734 ± .015 [.660, .791]")],
)
def test_an_estimate_is_written_with_as_many_decimals_as_asked(digits, text):
    assert Estimate(0.734, 0.0149, 0.66, 0.791).text(digits) == text


def _family():
    other = {"method": "nearest-prototype", "variant": "raw", "selection": "none", "skill": 0.5}
    five = {"episode": EPISODE | {"n_shot": 5}}
    full = [make_record(fold=fold, **shot) for fold in (0, 1) for shot in ({}, five)]
    return full + [make_record(fold=fold, **other) for fold in (0, 1)]


def test_table_has_a_row_per_method_and_a_column_per_shot():
    frame = results.table(_family(), columns=("n_shot",), metrics=("accuracy", "f1_weighted"))
    assert list(frame.columns) == [
        "method", "variant", "accuracy, n_shot 1", "accuracy, n_shot 5",
        "f1_weighted, n_shot 1", "f1_weighted, n_shot 5",
    ]  # fmt: skip
    assert frame["method"].tolist() == ["st-f2m", "nearest-prototype"]
    assert frame.loc[0, "accuracy, n_shot 1"] == str(results.combine([make_record(), make_record(fold=1)]))
    assert frame.loc[1, "accuracy, n_shot 5"] == "–"
    for part in ("toy (pack 0123456789ab)", "12 episodes per fold (seed 0)", "folds [0, 1]", "meta-validation NLL"):
        assert part in frame.attrs["caption"]


def test_a_metric_that_a_method_lacks_is_a_dash():
    records = [make_record(), make_record(method="other", metrics={"nll": {"mean": 1.0}})]
    assert results.table(records, columns=())["accuracy"].tolist()[1] == "–"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pack_digest": "ffffffffffff"}, "different pack digests of toy cannot be put together"),
        ({"dataset": "other"}, "different datasets"),
        ({"episode": EPISODE | {"seed": 7}}, "different episode seed cannot be put together: 0 and 7"),
        ({"method": "st-f2m", "selection": "none"}, "different selections of st-f2m"),
        ({"split": "meta_val"}, "different splits"),
        ({"fold": 1}, "different folds of toy"),
    ],
)
def test_a_table_refuses_mixed_provenance(record, changes, message):
    with pytest.raises(ResultError, match=message):
        results.table([record, make_record(**{"method": "other"} | changes)])


def test_a_table_refuses_different_numbers_of_episodes(record):
    fewer = {name: values[:11] for name, values in record.per_episode.items()}
    with pytest.raises(ResultError, match="different episode episodes cannot be put together: 11 and 12"):
        results.table([record, make_record(method="b", episode=EPISODE | {"episodes": 11}, per_episode=fewer)])


def test_a_table_of_nothing_or_of_unknown_fields_is_refused(record):
    with pytest.raises(ResultError, match="no record was given for the table"):
        results.table([])
    with pytest.raises(ResultError, match="'colour' names no row or column; expected config or"):
        results.table([record], rows=("colour",))


def test_markdown_is_aligned_and_escapes_bars():
    frame = pd.DataFrame({"method": ["a|b", "c"], "accuracy": [".73 ± .01", "–"]})
    frame.attrs["caption"] = "Said below."
    assert results.to_markdown(frame).splitlines() == [
        "| method | accuracy  |",
        "| ------ | --------- |",
        r"| a\|b   | .73 ± .01 |",
        "| c      | –         |",
        "",
        "Said below.",
    ]


def test_folds_whose_episodes_hold_other_clips_share_a_table():
    """The digest of the episodes differs from fold to fold; that is what folds are."""
    records = [make_record(fold=fold, episode=EPISODE | {"digest": f"clips-of-fold-{fold}"}) for fold in (0, 1)]
    assert "folds [0, 1]" in results.table(records, columns=()).attrs["caption"]
