"""What the teaching notebooks rest on: the small experiments obey their laws, and a slider leaves a picture."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from stf2m_core import metrics, soft_metrics
from stf2m_core.config import EpisodeConfig
from stf2m_core.data.synemo_laws import LAW, PAIR_OF_NODE
from stf2m_core.data.synemo_markov import WORD
from stf2m_core.errors import ConfigError
from stf2m_core.lessons import fuzzy_sets, leak, node_graph, sines, soft_labels, tables, task_reading, time_stamps
from stf2m_core.lessons.inside_a_clip import TOLERANCE_S, WINDOWS, plain_names
from stf2m_core.lessons.slider import PictureSlider
from stf2m_core.lessons.small_reader import first_weights, fit
from stf2m_core.model.antecedents import Antecedents
from stf2m_core.notebook import run_notebook
from stf2m_core.vote_fusion import BOTH, shares

WIDGET = "application/vnd.jupyter.widget-view+json"


# --- 18: time


def test_a_slow_clip_and_a_fast_one_have_the_same_frames_and_other_seconds():
    values, times, names = time_stamps.twins()
    np.testing.assert_allclose(values[0], values[1], atol=2e-6)
    assert times[0, -1] / times[1, -1] == pytest.approx(1.5)
    assert names == ["0.8 Hz, a frame each 0.12 s", "1.2 Hz, a frame each 0.08 s"]


def test_every_speed_is_recorded_at_every_rate_equally_often():
    made = time_stamps.waves(401)
    kinds, count = torch.unique(torch.stack([made.speed, made.step], 1), dim=0, return_counts=True)
    assert kinds.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]] and count.tolist() == [100] * 4


def test_without_time_stamps_a_convolution_stays_at_the_ceiling_and_with_them_it_passes():
    rows = {row["reader"]: row for row in time_stamps.reader_rows("smoke")}
    assert abs(rows["single frames"]["mean"] - 0.5) <= rows["single frames"]["ci95"]
    frames, stamps = rows["convolution"], rows["convolution, stamps"]
    assert 0.7 <= frames["mean"] <= time_stamps.CEILING + frames["ci95"]
    assert stamps["mean"] - stamps["ci95"] > time_stamps.CEILING + 0.1


def test_the_reach_of_a_convolution_is_that_of_its_taps():
    table = time_stamps.reach_table().set_index("convolution")
    assert table.loc["kernel 1", ["frames back", "frames ahead"]].tolist() == [0, 0]
    assert table.loc["kernel 3, dilation 2", ["frames back", "frames ahead"]].tolist() == [2, 2]
    assert table.loc["both kernels of a block", ["frames back", "frames ahead"]].tolist() == [3, 3]
    assert table.loc["both, causal", ["frames back", "frames ahead"]].tolist() == [6, 0]
    assert table.loc["both, causal", "seconds back at 0.12 s a frame"] == "0.72"


def test_a_mask_keeps_the_answer_where_zeros_in_the_gaps_do_not():
    _, observed, whole, (masked, zeros) = time_stamps.gap_answers()
    assert 10 < observed.sum() < 45
    inside = observed.copy()
    inside[:2] = inside[-2:] = False  # where taps fall off the clip all three answer alike
    assert np.abs(masked - whole)[inside].max() < 0.35
    assert np.abs(zeros - whole)[inside].max() > 0.8


def test_a_number_and_its_interval_stand_in_one_column():
    rows = [{"reader": "a", "mean": -0.25, "ci95": 0.1251, "group": 3}]
    table = tables.estimates(rows, "accuracy", digits=2)
    assert table.to_dict("list") == {"reader": ["a"], "accuracy": ["−0.25 ± 0.13"], "group": [3]}


# --- 19: graphs


def test_diffusion_with_all_nodes_is_a_power_of_the_graph():
    graph = node_graph.walk(node_graph.face_edges(), len(node_graph.FACE))
    amount = torch.rand(len(graph), generator=torch.Generator().manual_seed(0))
    hops = node_graph.hop_by_hop(graph, amount, torch.ones(len(graph), dtype=torch.bool), 3)
    for hop in range(4):
        torch.testing.assert_close(hops[hop], torch.linalg.matrix_power(graph, hop) @ amount)


def test_what_is_alike_everywhere_stays_so_whoever_is_missing():
    graph = node_graph.walk(node_graph.face_edges(), len(node_graph.FACE))
    observed = torch.tensor([True, False, True, True, False, True, True, True])
    hops = node_graph.hop_by_hop(graph, torch.full((len(graph),), 0.7), observed, 2)
    torch.testing.assert_close(hops, (0.7 * observed).expand(3, -1))


def test_without_the_nose_nothing_reaches_the_eyes():
    amount, observed = node_graph.spread_on_face()
    eyes = [list(node_graph.FACE).index(name) for name in ("eye r", "eye l", "brow r", "brow l")]
    assert (amount[0, -1, eyes] > 0).all() and (amount[1, :, eyes] == 0).all()
    assert observed.sum(1).tolist() == [8, 7]


def test_the_best_guess_is_that_of_the_laws_own_densities():
    values, _ = node_graph.carriers(60, seed=3)
    together = PAIR_OF_NODE[:, :, None] == PAIR_OF_NODE[:, None]
    covariances = LAW.pair_correlation * together + (1 - LAW.pair_correlation) * np.eye(4)
    density = [multivariate_normal(cov=c).logpdf(values[..., 0].double().numpy()).sum(1) for c in covariances]
    assert node_graph.best_guess(values).tolist() == np.argmax(density, 0).tolist()


def test_only_a_reader_of_neighbours_finds_out_who_moves_together():
    (values, label), (new, truth) = node_graph.carriers(900), node_graph.carriers(600, seed=1)
    hits = {}
    for kind in ("identity", "diffusion"):
        reader = first_weights(lambda k=kind: node_graph.NodeReader(k), 0, "node reader")
        fit(reader, (values,), label, n_steps=150, seed=0)
        hits[kind] = (reader(new).argmax(-1) == truth).double().mean().item()
    assert abs(hits["identity"] - 1 / 3) < 0.06
    assert hits["diffusion"] > 0.6


# --- 20: fuzzy sets


def test_a_membership_is_one_at_the_centre_and_a_bell_one_half_at_its_width():
    place, sets = fuzzy_sets.sets(201)
    assert place[100] == pytest.approx(0, abs=1e-6) and place[125] == pytest.approx(1)
    for name, values in sets.items():
        assert values[100] == pytest.approx(1, abs=1e-4) and values.max() <= 1
        assert values[125] == pytest.approx(np.exp(-0.5) if name == "Gaussian" else 0.5, abs=1e-5)


@pytest.mark.parametrize("kind", fuzzy_sets.KINDS)
def test_the_density_of_rules_of_every_kind_has_volume_one(kind):
    config = fuzzy_sets.FuzzyConfig(n_rules=3, n_features=2, **fuzzy_sets.KINDS[kind])
    rules = first_weights(lambda: Antecedents(config), 0, "volume")
    with torch.no_grad():
        rules.factor.mul_(20)
        line = torch.linspace(-8, 8, 321)
        density = fuzzy_sets.log_density(rules, torch.cartesian_prod(line, line)).exp()
    assert float(density.sum() * (line[1] - line[0]) ** 2) == pytest.approx(1, abs=0.01)


def test_rotated_rules_describe_clusters_that_lie_askew_better():
    shapes = fuzzy_sets.fitted_shapes("smoke")
    straight, rotated, full = (row["mean"] for row in shapes.rows)
    assert min(rotated, full) > straight + 0.3
    assert [row["numbers"] for row in shapes.rows] == [12, 18, 15]
    assert all(np.linalg.eigvalsh(c).min() > 0 for c in shapes.covariances.values())


def test_plain_firing_saturates_the_mean_goes_flat_and_calibration_holds():
    found = fuzzy_sets.saturation()
    assert found.entropy["tsk"][-1] < 0.2 and found.largest["tsk"][-1] > 0.8
    assert found.entropy["htsk"][-1] > 0.95
    np.testing.assert_allclose(found.entropy["calibrated"], found.wanted, atol=0.05)
    assert all(np.allclose(f.sum(1), 1, atol=1e-5) for kinds in found.firing.values() for f in kinds.values())


def test_a_slider_draws_what_it_is_moved_to_and_carries_its_first_picture():
    slider = fuzzy_sets.explore(fuzzy_sets.saturation((2, 8), n_shown=10), start=2)
    bundle, sizes = slider._repr_mimebundle_()
    assert WIDGET in bundle and bundle["image/png"] == slider.picture(2) and sizes["image/png"]["width"] > 300
    choose, picture = slider.widget().children
    choose.value = 8
    assert picture.value == slider.picture(8) != slider.picture(2)


def test_a_slider_that_starts_nowhere_is_refused():
    with pytest.raises(ConfigError, match="start = 3; expected one of 2, 8"):
        PictureSlider(lambda size: None, (2, 8), 3, "features")


def test_a_slider_in_a_copy_is_a_still_picture(tmp_path, write_notebook):
    code = "from stf2m_core.lessons import fuzzy_sets\nfuzzy_sets.explore(fuzzy_sets.saturation((2,), n_shown=5), 2)"
    book = write_notebook(tmp_path / "a.ipynb", 'profile: str = "test"  # size', code)
    copy = run_notebook(book, {}, tmp_path / "out" / "a.ipynb", forbid_warnings=True)
    executed = json.loads(copy.read_text(encoding="utf-8"))
    (output,) = executed["cells"][1]["outputs"]
    assert "image/png" in output["data"] and WIDGET not in output["data"]
    assert "widgets" not in executed["metadata"]
    page = copy.with_suffix(".html").read_text(encoding="utf-8")
    assert WIDGET not in page and output["data"]["image/png"].strip()[:80] in page


# --- 21: the leak


def test_the_bias_of_a_one_emotion_task_learns_what_the_formula_says():
    for row in leak.bias_table((0.5, 1.0, 5.0)).to_dict("records"):
        step = row["size of the step"]
        assert row["query cross-entropy, nat"] == pytest.approx(np.log1p(4 * np.exp(-step)), rel=1e-5)
        assert row["accuracy"] == 1


def test_noise_and_bias_are_right_on_one_emotion_and_guess_on_five():  # I-9
    paths = leak.accuracy_paths()
    know, noise, bias = leak.FEATURES
    one, five = (paths[kind] for kind in leak.KINDS)
    assert (one[bias][1:] == 1).all() and one[noise][-1].mean() > 0.8
    np.testing.assert_allclose(five[bias], 1 / leak.N_WAY)
    assert abs(five[noise][-1].mean() - 0.2) < 2 * metrics.half_width(five[noise][-1])
    assert five[know][-1].mean() > 0.7


def test_tasks_of_one_emotion_hold_one_label_and_those_of_five_all_of_them():
    one, five = (leak.tasks(kind, 6, 0) for kind in leak.KINDS)
    assert (one.label == one.label[0, :, :1]).all() and len(one.label.unique()) > 1
    assert one.clips.shape == five.clips.shape
    assert torch.bincount(five.label[1, 0]).tolist() == [leak.N_SHOT] * leak.N_WAY
    with pytest.raises(ConfigError, match="kind = 'two'; expected one of one emotion, five emotions"):
        leak.tasks("two", 1, 0)


def test_tasks_adapt_apart_from_each_other():
    given = leak.tasks("five emotions", 4, 0)
    together = leak.adapted(given.clips, given.label, 3)[-1]
    alone = leak.adapted(given.clips[:, 2:3], given.label[:, 2:3], 3)[-1]
    torch.testing.assert_close(together[2:3], alone)


def test_one_emotion_tasks_teach_an_encoder_to_read_the_person():
    rows = {(row["encoder"], row["scored on"]): row for row in leak.encoder_rows("smoke")}
    one, five = (rows[f"trained on {kind}", "five emotions"] for kind in leak.KINDS)
    assert one["weights on person"] > 0.3 and five["weights on person"] < 0.05
    assert five["mean"] - five["ci95"] > one["mean"] + one["ci95"]
    assert rows["trained on one emotion", "one emotion"]["mean"] > 0.99


def test_the_kit_refuses_an_episode_of_one_emotion():
    assert leak.refusal().startswith("n_way = 1; expected at least 2")
    assert EpisodeConfig(n_way=2).n_way == 2


# --- 22: sine waves


def test_an_inner_step_is_gradient_descent_with_a_bounded_gradient():
    learner = first_weights(lambda: sines.Learner(rates=True), 0, "step")
    given = sines.waves(1, 0, "step")
    weights = [part.detach().clone().requires_grad_() for part in learner.start]
    said = given.x[0, : sines.N_SHOT]
    for layer in range(0, 6, 2):
        said = said @ weights[layer] + weights[layer + 1]
        said = said.relu() if layer < 4 else said
    slopes = torch.autograd.grad(((said - given.y[0, : sines.N_SHOT]) ** 2).mean(), weights)
    norm = torch.sqrt(sum((slope**2).sum() for slope in slopes))
    moved = learner.adapt(given, 1)[1]
    for weight, slope, fast in zip(weights, slopes, moved, strict=True):
        torch.testing.assert_close(fast[0], weight - sines.FIRST_RATE * slope * min(1.0, 5.0 / norm.item()))


def test_waves_adapt_apart_from_each_other_and_read_their_support_alone():
    learner = first_weights(lambda: sines.Learner(rates=False), 0, "apart")
    given = sines.waves(3, 0, "apart")
    changed = sines.Waves(given.x, torch.cat([given.y[:, : sines.N_SHOT], 0 * given.y[:, sines.N_SHOT :]], 1))
    both = [learner.adapt(one, 2)[-1] for one in (given, changed)]
    alone = learner.adapt(sines.Waves(given.x[1:2], given.y[1:2]), 2)[-1]
    for fast, other, single in zip(*both, alone, strict=True):
        assert torch.equal(fast, other)
        torch.testing.assert_close(fast[1:2], single)


def test_only_the_learner_of_rates_learns_rates():
    assert [p.requires_grad for p in sines.Learner(rates=False).rates] == [False] * 6
    assert [p.requires_grad for p in sines.Learner(rates=True).rates] == [True] * 6


def test_a_meta_learned_start_needs_three_steps_where_joint_training_does_not_move(monkeypatch):  # I-36
    monkeypatch.setitem(sines.N_OUTER, "short", 400)
    learners = {name: sines.train(name, "short") for name in (sines.LEARNERS[0], sines.LEARNERS[2])}
    joint, meta = (path.mean(1) for path in sines.error_paths(learners).values())
    assert meta[3] / meta[0] < 0.5
    assert joint[3] / joint[0] > 0.7


# --- 23: the meta-RNN


def test_the_share_between_groups_is_one_where_they_decide_and_nothing_where_they_do_not():
    group = np.repeat(["a", "b", "c"], 4)
    values = np.random.default_rng(0).normal(size=(12, 5))
    between = np.repeat(values[:3], 4, 0)
    assert task_reading.share_between(between, group) == pytest.approx(1)
    within = values - np.repeat(values.reshape(3, 4, 5).mean(1), 4, 0)
    assert task_reading.share_between(within, group) == pytest.approx(0, abs=1e-12)
    assert task_reading.share_between(np.ones((12, 5)), group) == 0


def test_gains_are_paired_on_identical_episodes():
    rng = np.random.default_rng(0)
    models = [(variant, seed) for seed in (3, 4) for variant in task_reading.READERS]
    found = {model: {name: rng.random(30) for name in task_reading.READINGS} for model in models}
    found["no-meta-rnn", 3]["adapted"] = found["full", 3]["adapted"] - 0.1
    found["full", 4]["adapted"] = found["full", 3]["adapted"] + 0.2
    rows = {row["what is compared"]: (row["difference"], row["ci95"]) for row in task_reading.gain_rows(found)}
    assert len(rows) == 6
    assert rows["with the meta-RNN − without, seed 3"] == pytest.approx((0.1, 0), abs=1e-12)
    assert rows["seed 3 − seed 4, with the meta-RNN"] == pytest.approx((-0.2, 0), abs=1e-12)
    read = metrics.paired_difference(found["full", 3]["zero_step"], found["full", 3]["prototype"])
    assert rows["reading the support − not, seed 3"] == read
    assert {row["model"] for row in task_reading.reading_rows(found)} == {
        "with the meta-RNN, seed 3", "without it, seed 3", "with the meta-RNN, seed 4", "without it, seed 4",
    }  # fmt: skip


# --- 24: soft labels


def test_a_tie_has_no_hard_label():  # I-7
    assert soft_labels.hard_labels(np.array([[3, 3, 1], [0, 4, 3], [1, 1, 1], [0, 0, 9]])).tolist() == [-1, 1, -1, 2]


def test_the_telling_clips_run_from_full_agreement_to_ties():
    counts, label = soft_labels.telling_clips(soft_labels.made_up_votes())
    assert (counts[0] > 0).sum() == 1 and (label[:5] >= 0).all() and (label[5:] == -1).all()
    doubt = soft_metrics.entropy(shares(counts, 0))
    assert (np.diff(doubt[:5]) >= 0).all() and doubt[6] >= doubt[5]


def test_an_episode_counts_a_clip_for_what_it_holds_of_its_emotions():
    table = soft_labels.task_table(soft_labels.made_up_votes())
    shares_said = table.filter(like="share of").to_numpy()
    assert table.shape == (7, 5)
    assert all(weight == 0 or 0.5 <= weight <= 1 for weight in table["counts for"])
    np.testing.assert_allclose(shares_said[table["counts for"] > 0].sum(1), 1)


def test_a_prediction_never_saw_the_votes_of_its_own_actor():
    votes = soft_labels.made_up_votes(10)
    first = soft_labels.learned(votes)
    own = votes.actor == votes.actor[0]
    votes.counts[own, BOTH] = votes.counts[own, BOTH][:, ::-1]
    again = soft_labels.learned(votes)
    for name, one in first.items():
        np.testing.assert_array_equal(one.log_probability[own], again[name].log_probability[own])
        assert not np.array_equal(one.log_probability, again[name].log_probability)
        np.testing.assert_allclose(np.exp(one.log_probability).sum(1), 1, atol=1e-9)


def test_hard_labels_cost_divergence_and_are_told_from_soft_ones_by_it():
    rows = soft_labels.gap_rows(soft_labels.learned(soft_labels.made_up_votes()))
    assert [row["learner"] for row in rows] == list(soft_labels.LEARNERS)
    assert all(row["low"] > 0 for row in rows)


def test_ties_are_counted_by_the_number_of_raters():
    votes = soft_labels.made_up_votes(10)
    table = soft_labels.tie_table(votes)
    counts = votes.counts[:, BOTH]
    assert table["clips"].sum() == len(counts)
    tied = (table["clips"] * table["share of ties"]).sum()
    assert tied == pytest.approx((soft_labels.hard_labels(counts) < 0).sum()) and tied > 0


# --- 25: labels inside clips


def test_names_lose_what_all_of_them_share():
    assert plain_names(("rising.ab-cd.low", "rising.ab-cd.high")) == ["low", "high"]
    assert plain_names(("calm.a", "glad.b")) == ["calm a", "glad b"]


def test_a_change_counts_as_found_within_less_than_the_shortest_segment():
    shortest = 3 * WORD * min(LAW.step_s)
    assert TOLERANCE_S < shortest and min(WINDOWS) < shortest < max(WINDOWS)
