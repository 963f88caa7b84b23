"""Packs with votes: records carry soft scores, ties stand in no episode, and meta-validation asks about the votes."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.adapters.crema_d_votes import EMOTIONS, voted_clips
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synthetic_votes import synthetic_votes
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.evaluation import answer, calibrated_nll, evaluate, evaluate_control, score
from stf2m_core.results import Record, combine, compare
from stf2m_core.training import load_model, train

SOFT = {"kl_soft", "js_soft", "brier_soft", "ece_soft", "entropy_correlation", "tied_share"}
SIX = EpisodeConfig(regime="D", n_way=6, n_shot=2, n_query=2)
THREE = EpisodeConfig(regime="D", n_way=3, n_shot=2, n_query=3)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Made-up votes of 24 people, with votes and with hard labels alone."""
    folder, votes = tmp_path_factory.mktemp("packs"), synthetic_votes(24, 30)
    return {s: open_pack(write_pack(folder / str(s), *voted_clips(votes, soft=s), EMOTIONS, name="made up"))
            for s in (True, False)}  # fmt: skip


@pytest.fixture(scope="module")
def run(packs, tmp_path_factory):
    """A run of four steps on votes."""
    kinds = [dataclasses.asdict(dataclasses.replace(SIX, n_query=1))]
    config = RunConfig.preset("test").replace(episodes=kinds, train__device="cpu", inner__rate=0.01)
    return train(packs[True], config, tmp_path_factory.mktemp("run"), validate=score, progress_bar=False)


@pytest.fixture(scope="module")
def records(packs, run):
    return {kind.n_way: evaluate(run.path, packs[True], kind, episodes=12) for kind in (SIX, THREE)}


def answered(run, pack, kind):
    model, data, splits = load_model(run.path, pack)
    batch = EpisodeSampler(pack, splits, "meta_test", kind, 0).sample(0, 12)
    return answer(model, data, batch).adapted, batch


def test_a_record_of_voted_clips_has_every_soft_metric_with_its_intervals(records, tmp_path):
    metrics = records[6].metrics
    assert set(metrics) >= SOFT | {"kl_soft_zero_step", "kl_soft_prototype", "kl_soft_no_support", "accuracy", "nll"}
    for name in ("kl_soft", "js_soft", "brier_soft"):
        assert metrics[name]["ci95"] > 0 and metrics[name]["subject_low"] < metrics[name]["mean"]
    for name in ("ece_soft", "entropy_correlation", "tied_share"):
        assert metrics[name]["ci95"] is None and metrics[name]["subject_low"] <= metrics[name]["subject_high"]
    assert Record.from_json(records[6].to_json(tmp_path / "r.json")) == records[6]


def test_where_all_emotions_are_asked_the_divergence_is_scipys_mean(records, run, packs):
    said, batch = answered(run, packs[True], SIX)
    soft = np.take_along_axis(packs[True].soft_labels[batch.query.numpy()], batch.classes.numpy()[:, None], 2)
    pairs = zip(soft.reshape(-1, 6), said.exp().numpy().reshape(-1, 6), strict=True)
    expected = np.mean([entropy(q, p) for q, p in pairs])
    assert records[6].metrics["kl_soft"]["mean"] == pytest.approx(expected, abs=1e-5)


def test_among_three_emotions_labels_are_rescaled_and_clips_of_other_emotions_weigh_less(records, run, packs):
    said, batch = answered(run, packs[True], THREE)
    total = mass = 0.0
    for episode in range(len(batch)):
        for query in range(batch.query.shape[1]):
            inside = packs[True].soft_labels[batch.query[episode, query]][batch.classes[episode].numpy()]
            if inside.sum() >= 0.5:
                total += inside.sum() * entropy(inside, said[episode, query].exp().numpy())
                mass += inside.sum()
    assert records[3].metrics["kl_soft"]["mean"] == pytest.approx(total / mass, abs=1e-5)
    assert mass < batch.query.numel() - 1


def test_no_episode_holds_a_tied_clip_and_the_record_counts_them(records, packs):
    pack = packs[True]
    config = RunConfig.from_mapping(records[6].config)
    splits = split_subjects(pack, config.split)
    counts = pack.clips[[f"votes_{e}" for e in EMOTIONS]].to_numpy()
    ties = (counts == counts.max(1, keepdims=True)).sum(1) > 1
    own = np.isin(pack.clips["subject"], splits.subjects["meta_test"])
    assert records[6].metrics["tied_share"]["mean"] == pytest.approx(ties[own].mean()) and ties[own].any()
    batch = EpisodeSampler(pack, splits, "meta_test", THREE, 0).sample(0, 200)
    assert not ties[torch.cat([batch.support.flatten(), batch.query.flatten()])].any()


def test_controls_answer_for_the_votes_too(packs, run):
    record = evaluate_control("ridge-prototype", packs[True], run.config, SIX, episodes=12)
    assert set(record.metrics) >= SOFT and record.metrics["kl_soft"]["mean"] > 0


def test_without_votes_nothing_is_said_of_them(packs, run):
    record = evaluate_control("nearest-prototype", packs[False], run.config, SIX, episodes=4)
    assert not (SOFT | {"tied_share"}) & set(record.metrics)


def test_soft_scores_can_be_combined_and_compared_like_any_other(packs, run, records):
    control = evaluate_control("nearest-prototype", packs[True], run.config, SIX, episodes=12)
    gap = compare(control, records[6], "kl_soft").difference
    expected = control.metrics["kl_soft"]["mean"] - records[6].metrics["kl_soft"]["mean"]
    assert gap.mean == pytest.approx(expected, abs=1e-9)
    assert gap.subject_low < gap.mean < gap.subject_high
    assert combine([control], "kl_soft").mean == control.metrics["kl_soft"]["mean"]


def test_meta_validation_asks_how_near_the_votes_are_and_softens_towards_them(packs, run):
    model, data, splits = load_model(run.path, packs[True])
    batch = EpisodeSampler(packs[True], splits, "meta_val", SIX, 0).sample(0, 6)
    said = answer(model, data, batch, seed=0).adapted
    soft = torch.from_numpy(packs[True].soft_labels[batch.query.numpy()]).gather(
        2, batch.classes[:, None].expand(-1, batch.query.shape[1], -1)
    )
    grid = torch.logspace(-1, 3, 33, base=2)
    costs = [-(soft * torch.log_softmax(said / t, -1)).sum(-1).mean() for t in grid]
    found = score(model, data, batch, 0)
    assert found.nll == pytest.approx(float(min(costs)), abs=1e-5)
    assert found.temperature == pytest.approx(float(grid[int(np.argmin(costs))]))
    assert found.nll > calibrated_nll(said, batch.query_label)[0]  # the votes' own doubt is in it


def test_one_hot_shares_give_the_nll_and_weights_leave_queries_out():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    label = torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(1))
    share = torch.nn.functional.one_hot(label, 5)
    assert calibrated_nll(logits, label, (share, torch.ones(3, 4))) == pytest.approx(calibrated_nll(logits, label))
    some = torch.zeros(3, 4)
    some[:2] = 1
    expected = calibrated_nll(logits[:2], label[:2])
    assert calibrated_nll(logits, label, (share, some)) == pytest.approx(expected)
