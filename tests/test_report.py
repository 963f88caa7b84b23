"""Tables for people: what stands in them, their captions, and the files they are written to."""

import dataclasses

import pandas as pd
import pytest

from stf2m_core import evaluate_control, experiment, report
from stf2m_core.episodes import split_subjects
from stf2m_core.results import Estimate


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return experiment.open_or_make_pack(tmp_path_factory.mktemp("packs") / experiment.EMBEDDED, "test")


@pytest.fixture(scope="module")
def records(pack):
    """Of two controls; one of them also stands in for the full model and for a variant."""
    config = experiment.config_for(pack, "test")
    made = [evaluate_control(c, pack, config, s) for s in experiment.study_of(pack).test for c in experiment.CONTROLS]
    own = [dataclasses.replace(r, method="st-f2m", metrics=r.metrics | readings(r)) for r in made[::2]]
    return [*own, *made, *(dataclasses.replace(r, variant="no-views") for r in own)]


def readings(record):
    names = ("accuracy_zero_step", "accuracy_prototype", "accuracy_no_support")
    return dict.fromkeys(names, record.metrics["accuracy"])


def test_the_modality_table_counts_what_the_pack_holds(pack):
    table = report.modality_table(pack).set_index("modality")
    assert list(table.index) == list(pack.modalities)
    assert (table["clips that have it"] + table["clips without it"] == len(pack)).all()
    assert table["nodes"].to_dict() == {name: len(pack.view(name).nodes) for name in pack.modalities}
    expected = {"audio": "uneven, with time stamps", "visual": "25 per second", "text": "one frame"}
    assert table["sampling"].to_dict() == expected


def test_the_split_table_counts_every_subject_once(pack):
    splits = split_subjects(pack, experiment.config_for(pack, "test").split)
    table = report.split_table(pack, splits.rows).set_index("split")
    assert table["subjects"].sum() == pack.clips["subject"].nunique()
    assert table["clips"].sum() == (pack.label_ids >= 0).sum()
    assert table.loc["meta_test", "subjects"] == len(splits.subjects["meta_test"])


def test_a_record_table_has_every_metric_that_a_record_has(records):
    control = [r for r in records if r.method == "nearest-prototype"]
    table = report.record_table(control)
    assert list(table.columns) == [experiment.setting_of(r) for r in control]
    assert ("nearest-prototype", "accuracy, zero inner steps") not in table.index
    assert table.loc[("nearest-prototype", "accuracy")].tolist() == [str(r.accuracy) for r in control]


def test_the_main_table_has_a_caption_that_lets_a_reader_judge_it(records):
    caption = " ".join(report.main_table(records).attrs["caption"].split())
    facts = ("8 episodes per fold", "folds [0], seeds [0]", "Selection: nearest-prototype: none", "shared subjects 0")
    for fact in facts:
        assert fact in caption
    assert caption.endswith("no recognition of emotions.")


def test_real_data_are_not_called_synthetic(records):
    real = [dataclasses.replace(r, dataset="ravdess_features") for r in records]
    assert "synthetic" not in report.main_table(real).attrs["caption"]


def test_a_variant_that_equals_the_full_model_differs_by_nothing(records):
    table = report.ablation_table(records)
    assert table["variant"].tolist() == ["no-views"]
    assert set(table.iloc[0, 1:]) == {Estimate(0.0, 0.0, 0.0, 0.0).text(3)}
    assert "nearest-prototype" not in table.attrs["caption"]
    assert table.attrs["caption"].startswith("Accuracy of the variant minus that of the full model")


def test_a_table_is_written_as_numbers_and_as_words(records, tmp_path):
    rows, table = experiment.main_rows(records), report.main_table(records)
    written = report.write_table(table, rows, tmp_path / "deep" / "main")
    words = written.read_text(encoding="utf-8")
    assert written == tmp_path / "deep" / "main.md"
    assert all(cell in words for cell in table.iloc[:, 1:].to_numpy().flat)
    assert words.endswith(table.attrs["caption"] + "\n")
    numbers = pd.read_csv(tmp_path / "deep" / "main.csv")
    assert numbers["mean"].tolist() == pytest.approx([row["mean"] for row in rows])
    assert sorted(path.name for path in written.parent.iterdir()) == ["main.csv", "main.md"]


def test_a_shown_table_has_no_running_numbers_and_cuts_nothing_off():
    long = "x" * 300
    page = report.shown(pd.DataFrame({"what": ["a"], "is": [long]})).to_html()
    assert long in page
    assert "row_heading" not in page
    named = report.shown(pd.DataFrame({"n": [1]}, index=pd.Index(["first"], name="part"))).to_html()
    assert "first" in named


def test_a_stamp_names_pack_settings_and_versions(pack):
    config = experiment.config_for(pack, "test")
    facts = report.stamp(pack, config).set_index("what")["is"]
    assert facts["pack"] == f"synemo {pack.digest}"
    assert facts["settings"] == config.digest()
    assert "torch 2." in facts["versions"]
    assert "run folder" not in facts.index
