"""The lesson on real votes: two trainings, the same queries, controls that never see the answers."""

import dataclasses

import numpy as np
import pytest
import torch

from stf2m_core import soft_metrics
from stf2m_core.lessons import raters_in_episodes as lesson
from stf2m_core.metrics import divergence


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("raters")


@pytest.fixture(scope="module")
def packs(folder):
    return lesson.packs("", folder / "packs")


@pytest.fixture(scope="module")
def asked(packs, folder):
    return lesson.all_asked(packs, folder, "test")


def test_both_packs_hold_the_same_clips_and_one_of_them_no_votes(packs):
    votes, hard = packs["votes"], packs["hard labels"]
    assert votes.digest != hard.digest
    assert votes.clips["clip_id"].equals(hard.clips["clip_id"]) and (votes.label_ids == hard.label_ids).all()
    assert set(votes.clips) - set(hard.clips) == {f"votes_{e}" for e in votes.labels}


def test_both_trainings_have_the_same_settings_but_for_the_pack(asked):
    runs = [asked.runs[labels] for labels in lesson.LABELS]
    assert runs[0].config == runs[1].config and runs[0].summary["pack_digest"] != runs[1].summary["pack_digest"]
    assert runs[0].summary["subjects"] == runs[1].summary["subjects"]


def test_every_method_answers_every_query_with_a_distribution(asked):
    assert list(asked.said) == [*lesson.READINGS.values(), lesson.HARD, lesson.SOFTENED, lesson.CONTROL,
                                lesson.REGRESSION]  # fmt: skip
    for said in asked.said.values():
        assert said.shape == asked.soft.shape
        torch.testing.assert_close(said.double().exp().sum(-1), torch.ones(said.shape[:2]).double(), atol=1e-5, rtol=0)
    assert bool((asked.weight > 0.99).all())  # all six emotions are asked
    assert asked.label.equal(asked.soft.argmax(-1))  # no query is tied


def test_a_softened_answer_names_the_same_winner(asked):
    assert asked.said[lesson.SOFTENED].argmax(-1).equal(asked.said[lesson.HARD].argmax(-1))
    ratio = (asked.said[lesson.HARD] - asked.said[lesson.HARD][..., :1])[..., 1:]
    other = (asked.said[lesson.SOFTENED] - asked.said[lesson.SOFTENED][..., :1])[..., 1:]
    temperature = (ratio / other)[other.abs() > 0.1]
    assert float(temperature.std()) < 1e-2 and 0.5 <= float(temperature.mean()) <= 8.01


def test_scores_are_those_of_plain_numpy_and_intervals_hold_them(asked):
    rows = {(row["method"], row["setting"]): row for row in lesson.scores(asked, n_replicates=200)}
    said = asked.said[lesson.HARD]
    kl = rows[lesson.HARD, "KL, nat"]
    assert kl["mean"] == pytest.approx(divergence(said, asked.soft).mean(), abs=1e-6)
    assert kl["subject_low"] < kl["mean"] < kl["subject_high"]
    hits = (said.argmax(-1) == asked.label).double().mean()
    assert rows[lesson.HARD, "accuracy"]["mean"] == pytest.approx(float(hits))
    flat = said.flatten(0, 1), asked.soft.flatten(0, 1)
    assert rows[lesson.HARD, "entropy correlation"]["mean"] == pytest.approx(soft_metrics.entropy_correlation(*flat))
    table = lesson.table(list(rows.values()))
    assert table.shape == (8, 7)
    assert [name for name in table.columns[1:] if "[" not in table[name][0]] == ["ECE"]
    shown = lesson.score_of(list(rows.values()))
    assert [row["method"] for row in shown] == list(asked.said) and {r["setting"] for r in shown} == {"D 6-way 5-shot"}


def test_gaps_are_paired_and_against_the_model_that_learned_from_votes(asked):
    table = lesson.gap_table(asked).set_index("method").iloc[:, 0]
    gap = np.mean(divergence(asked.said[lesson.CONTROL], asked.soft) - divergence(asked.said["ST-F2M"], asked.soft))
    assert table[lesson.CONTROL].startswith(f"{gap:.3f} [".replace("-", "−"))
    assert "ST-F2M" not in table.index and len(table) == 7


def test_ties_are_counted_among_the_people_asked_about(asked, packs):
    row = lesson.clip_table(asked).iloc[0]
    own = packs["votes"].clips["subject"].isin(asked.runs["votes"].summary["subjects"]["meta_test"])
    assert row["their clips"] == own.sum()
    assert row["of which tied, in no episode"] == f"{(packs['votes'].label_ids[own] < 0).mean():.1%}"
    assert row["queries"] == 8 * 30


def test_the_figures_pairs_are_shares_said_and_chosen(asked):
    pairs = lesson.said_and_chosen(asked)
    assert list(pairs) == list(lesson.LABELS)
    said, chosen = pairs["votes"]
    assert said.shape == chosen.shape == (8 * 30 * 6,) and said.reshape(-1, 6).sum(1) == pytest.approx(1)


def test_folds_are_put_together_query_by_query(asked, monkeypatch):
    monkeypatch.setattr(lesson, "asked", lambda *_, fold, **__: dataclasses.replace(asked, tied=0.1 * fold))
    monkeypatch.setitem(lesson.SIZES, "test", ({}, 2, 8))
    both = lesson.all_asked({}, "", "test")
    assert both.n_clips == 2 * asked.n_clips and both.tied == pytest.approx(0.05)
    assert both.said["ST-F2M"].shape[0] == both.soft.shape[0] == both.subject.shape[0] == 16
