"""The outer loop: what is chosen and kept, what is refused and how, and that nothing outside the run is touched."""

import copy
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stf2m_core import training
from stf2m_core.config import RunConfig, TrainConfig
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import LABELS, SynEmoConfig, generate
from stf2m_core.encoding import encode_episodes
from stf2m_core.episodes import EpisodeSampler, load_episodes
from stf2m_core.errors import RunError
from stf2m_core.evaluation import answer, score
from stf2m_core.experiment import config_for
from stf2m_core.model.knowledge import emotion_axes, knowledge
from stf2m_core.training import (
    RATES,
    Trainer,
    Validation,
    first_phase_ends,
    learning_rate,
    load_model,
    naming_loss,
    phase_of,
    read_history,
    resolve_device,
    step_weights,
    train,
)

SETTINGS = {
    "split__n_val_subjects": 3,
    "episodes": [
        {"regime": "D", "n_way": 3, "n_shot": 1, "n_query": 2},
        {"regime": "P", "n_way": 3, "n_shot": 1, "n_query": 1},
    ],
    "encoder__hidden": 8,
    "encoder__embedding": 12,
    "fuzzy__n_rules": 6,
    "fuzzy__n_features": 4,
    "meta_rnn__hidden": 4,
    "meta_rnn__n_layers": 1,
    "meta_rnn__n_orders": 1,
    "inner__steps_train": 1,
    "inner__steps_test": 1,
    "train__device": "cpu",
    "train__meta_batch": 2,
    "train__max_steps": 8,
    "train__validate_every": 2,
    "train__validation_episodes": 2,
    "train__checkpoint_every": 3,
}
TITLES = ["D 3-way 1-shot", "P 3-way 1-shot"]


def settings(**changes):
    return RunConfig().replace(**SETTINGS | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def synthetic():
    return generate(SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=2))


@pytest.fixture(scope="module")
def pack(folder, synthetic):
    return open_pack(write_pack(folder / "pack", *synthetic, LABELS, name="tiny"))


@pytest.fixture(scope="module")
def other_pack(folder, synthetic):
    """The same clips, of which the people of meta-test have other values and other labels."""
    clips, views = synthetic
    mine = clips["domain"].to_numpy() == "d00"
    votes = [name for name in clips.columns if name.startswith("votes_")]
    changed = clips.copy()
    changed.loc[mine, votes] = np.roll(clips.loc[mine, votes].to_numpy(), 1, axis=1)
    shifted = dict(zip(LABELS, np.roll(LABELS, -1), strict=True)) | {"": ""}
    changed.loc[mine, "label"] = [shifted[label] for label in clips.loc[mine, "label"]]
    result = {}
    for name, view in views.items():
        values, frame = view.values.copy(), np.repeat(mine, np.diff(view.offsets))
        values[frame] = values[frame] * 3 + 1
        if view.mask is not None:
            values[view.mask == 0] = 0
        result[name] = dataclasses.replace(view, values=values)
    return open_pack(write_pack(folder / "other", changed, result, LABELS, name="tiny"))


class Script:
    """Stands in for the score: gives the NLLs it was told, in turn, and keeps a copy of the weights it was shown."""

    def __init__(self, *totals, n_settings=2):
        self.totals, self.n_settings, self.calls, self.weights = totals, n_settings, [], []

    def __call__(self, model, data, batch, seed):
        number = len(self.calls) // self.n_settings
        self.calls.append(batch)
        self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return float(self.totals[min(number, len(self.totals) - 1)]), 0.5


@pytest.fixture(scope="module")
def finished(folder, pack):
    """A whole run with the real score."""
    return train(pack, settings(), folder / "finished", validate=score, progress_bar=False)


def assert_same_tensors(one, other):
    """Chosen weights, and the last checkpoint: weights, average and optimiser, whatever was chosen."""
    for name in ("model.safetensors", "checkpoint.safetensors"):
        tensors, others = load_file(one / name), load_file(other / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()), name


# --- a run and its history


def test_the_history_has_a_line_for_each_step_and_one_for_each_setting_of_a_validation(finished):
    steps = [line for line in finished.history if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(8))
    assert [line["setting"] for line in steps] == TITLES * 4
    assert [line["phase"] for line in steps] == ["prototypes"] + ["first order"] * 3 + ["second order"] * 4
    assert all(math.isfinite(line["loss"]) and 0 <= line["accuracy"] <= 1 for line in steps)
    checks = [line for line in finished.history if line["kind"] == "validation"]
    assert [(line["step"], line["setting"]) for line in checks] == [(s, t) for s in (0, 2, 4, 6, 8) for t in TITLES]
    assert finished.history[:2] == checks[:2]  # before the first step
    assert finished.history == read_history(finished.path / "history.jsonl")


def test_a_finished_run_says_what_was_chosen_and_how(finished, pack):
    best = finished.summary["best_step"]
    means = {s: np.mean([x["nll"] for x in finished.history if x["kind"] == "validation" and x["step"] == s])
             for s in (0, 2, 4, 6, 8)}  # fmt: skip
    assert best == min(means, key=means.get)
    assert finished.summary["best_nll"] == pytest.approx(means[best])
    assert finished.summary["selection"] == "meta-validation NLL, calibrated"
    assert finished.summary["steps"] == 8
    assert finished.summary["pack_digest"] == pack.digest
    subjects = finished.summary["subjects"]
    assert [len(subjects[split]) for split in ("meta_train", "meta_val", "meta_test")] == [6, 3, 3]
    assert json.loads((finished.path / "run.json").read_text()) == finished.summary


def test_a_finished_run_is_returned_without_another_step(finished, pack):
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in finished.path.iterdir()}
    again = train(pack, settings(), finished.path, validate=Script(math.nan), progress_bar=False)
    assert (again.summary, again.history) == (finished.summary, finished.history)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in finished.path.iterdir()} == before


def test_restart_begins_anew_and_gives_the_same_run(finished, pack, tmp_path):
    train(pack, settings(train__seed=1), tmp_path, validate=Script(1.0), progress_bar=False)
    train(pack, settings(), tmp_path, validate=score, progress_bar=False, resume="restart")
    for name in ("model.safetensors", "history.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished.path / name).read_bytes(), name
    assert_same_tensors(tmp_path, finished.path)


def test_another_seed_gives_another_run(finished, pack, tmp_path):
    other = train(pack, settings(train__seed=1), tmp_path, validate=score, progress_bar=False)
    for kind, value in (("train", "loss"), ("validation", "nll")):
        mine, theirs = ([x[value] for x in run.history if x["kind"] == kind][0] for run in (finished, other))
        assert mine != theirs


def test_no_temporary_file_is_left_behind(finished):
    names = {"checkpoint.safetensors", "history.jsonl", "model.safetensors", "run.json"}
    assert {file.name for file in finished.path.iterdir()} == names


# --- what is chosen and kept


def test_the_weights_that_are_kept_are_those_of_the_best_validation(pack, tmp_path):
    script = Script(4.0, 3.0, 1.0, 2.0, 1.5)
    run = train(pack, settings(), tmp_path, validate=script, progress_bar=False)
    assert (run.summary["best_step"], run.summary["best_nll"]) == (4, 1.0)
    kept = load_file(tmp_path / "model.safetensors")
    shown = script.weights[4]  # two settings per validation; the first setting of the third validation, at step 4
    assert set(kept) == set(shown)
    assert all(torch.equal(kept[name], shown[name]) for name in kept)
    last = script.weights[-1]
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    model, _, _ = load_model(tmp_path, pack)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert [line["best"] for line in run.history if line["kind"] == "validation"] == [True] * 6 + [False] * 4


def test_the_start_itself_wins_when_every_step_only_makes_it_worse(pack, tmp_path):
    script = Script(1.0, 2.0, 3.0, 4.0, 5.0)
    run = train(pack, settings(), tmp_path, validate=script, progress_bar=False)
    assert (run.summary["best_step"], run.summary["best_nll"], run.summary["steps"]) == (0, 1.0, 8)
    kept, start = load_file(tmp_path / "model.safetensors"), Trainer(pack, settings()).model.state_dict()
    assert set(kept) == set(start)
    assert all(torch.equal(kept[name], start[name]) for name in kept)
    assert not all(torch.equal(kept[name], script.weights[2][name]) for name in kept)  # at step 2
    model, _, _ = load_model(tmp_path, pack)
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    assert [line["best"] for line in run.history if line["kind"] == "validation"] == [True] * 2 + [False] * 8


def test_training_ends_when_patience_is_spent_and_not_before(pack, tmp_path):
    config = settings(train__max_steps=20, train__validate_every=1, train__patience=3, train__warm_up=0.2)
    script = Script(4, 5, 6, 7, 8, 9, 2, 3, 4, 1, 2, 2, 2)
    run = train(pack, config, tmp_path, validate=script, progress_bar=False)
    # the start comes first; steps 1 to 4 belong to the warm-up and cost no patience; the best is at 9, then three
    # without a better one
    assert (run.summary["steps"], run.summary["best_step"]) == (12, 9)


def test_validation_asks_the_same_episodes_of_every_setting_every_time(pack, tmp_path):
    script = Script(1.0)
    train(pack, settings(), tmp_path, validate=script, progress_bar=False)
    assert len(script.calls) == 10  # at 0, 2, 4, 6 and 8
    for number, batch in enumerate(script.calls):
        first = script.calls[number % 2]
        assert all(torch.equal(getattr(batch, f), getattr(first, f)) for f in ("classes", "support", "query"))
    assert not torch.equal(script.calls[0].support, script.calls[1].support)


def test_no_stream_of_meta_test_is_touched(pack, tmp_path, monkeypatch):
    drawn = []

    class Watched(EpisodeSampler):
        def __init__(self, pack, splits, split, *rest):
            drawn.append(split)
            super().__init__(pack, splits, split, *rest)

    monkeypatch.setattr(training, "EpisodeSampler", Watched)
    train(pack, settings(train__max_steps=2), tmp_path, validate=score, progress_bar=False)
    assert set(drawn) == {"meta_train", "meta_val"}


def test_people_of_meta_test_cannot_change_a_run(finished, pack, other_pack, tmp_path):
    assert finished.summary["subjects"]["meta_test"] == ["d00-s0", "d00-s1", "d00-s2"]
    assert pack.digest != other_pack.digest
    run = train(other_pack, settings(), tmp_path, validate=score, progress_bar=False)
    assert run.history == finished.history
    assert_same_tensors(tmp_path, finished.path)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_validated_weights_are_a_running_average_that_begins_anew_when_rules_are_placed(pack):
    trainer = Trainer(pack, settings(train__max_steps=12, train__warm_up=0.25, train__average=0.8))
    shares = []
    for _ in range(12):
        before = weights(trainer.averaged)
        trainer.step()
        after, new = weights(trainer.averaged), weights(trainer.model)
        way = torch.cat([(new[n] - before[n]).flatten() for n in new]).double()
        gone = torch.cat([(after[n] - before[n]).flatten() for n in new]).double()
        share = float(way @ gone / (way @ way))
        torch.testing.assert_close(gone, share * way, rtol=1e-3, atol=1e-6)
        shares.append(share)
    assert shares[:4] == pytest.approx([1.0] * 4)  # warm-up, and the first step after the rules were placed
    assert all(0.2 - 1e-4 < share < 1 for share in shares[4:])
    assert shares[4:] == sorted(shares[4:], reverse=True)


def test_an_average_with_no_memory_is_the_last_weights(pack):
    trainer = Trainer(pack, settings(train__average=0.0))
    for _ in range(4):
        trainer.step()
    last = weights(trainer.model)
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(trainer.averaged).items())


def test_only_weights_change_while_training_and_every_weight_that_can(pack):
    trainer = Trainer(pack, settings())
    before = copy.deepcopy(trainer.model.state_dict())
    for _ in range(8):
        trainer.step()
    named = dict(trainer.model.named_parameters())
    for name, tensor in trainer.model.state_dict().items():
        assert name in named or torch.equal(tensor, before[name]), f"buffer {name} changed"
    still = {name for name in named if torch.equal(named[name], before[name])}
    # zero at the start, without a gradient: the same bias for all classes, and for all nodes of a softmax
    assert still <= {"task_encoder.head.bias"}


def test_without_inner_steps_training_learns_all_that_is_left_and_the_order_of_gradients_does_not_matter(pack, folder):
    zero = {"inner__steps_train": 0, "inner__steps_test": 0}
    ends = []
    for second_order in (True, False):
        trainer = Trainer(pack, settings(**zero, train__second_order=second_order))
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        for _ in range(6):
            trainer.step()
        still = {n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])}
        assert still <= {"task_encoder.head.bias"} and not [n for n in before if n.startswith("rates")]
        ends.append(weights(trainer.model))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    run = train(pack, settings(**zero), folder / "zero-order", validate=score, progress_bar=False)
    assert run.summary["adapted"] == 0 and run.summary["steps"] == 8
    answers = answer(*load_model(folder / "zero-order", pack)[:2], Trainer(pack, settings()).batch(0))
    assert torch.equal(answers.adapted, answers.zero_step)


# --- the schedule


def test_phases_follow_their_shares():
    config = settings(train__max_steps=10, train__warm_up=0.2, train__first_order=0.3).train
    assert [phase_of(s, config)[0] for s in range(10)] == list("ppfffsssss")
    never = dataclasses.replace(config, second_order=False)
    assert {phase_of(s, never) for s in range(2, 10)} == {"first order"}


def test_the_learning_rate_rises_then_falls_to_a_fiftieth():
    config = settings(train__max_steps=400, train__lr=0.01).train
    rates = [learning_rate(step, config) for step in range(400)]
    assert rates[0] == pytest.approx(0.01 / 20)
    assert max(rates) == pytest.approx(0.01)
    top = rates.index(max(rates))
    assert 15 <= top <= 25
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.01 / 50, rel=0.05)


@pytest.mark.parametrize("n_steps", [1, 3, 5])
def test_step_weights_begin_even_and_end_at_the_last_step_with_a_tenth_at_none(n_steps):
    assert step_weights(n_steps, 0.0) == pytest.approx([1 / (n_steps + 1)] * (n_steps + 1))
    assert step_weights(n_steps, 1.0) == pytest.approx([0.1] + [0.0] * (n_steps - 1) + [0.9])
    assert all(sum(step_weights(n_steps, share / 10)) == pytest.approx(1) for share in range(11))
    assert step_weights(0, 0.5) == [1.0]


# --- a start that names emotions


def test_the_naming_loss_is_the_cross_entropy_of_a_linear_classifier_of_support_and_query():
    generator = torch.Generator().manual_seed(0)
    z = {name: torch.randn(2, n, 5, generator=generator) for name, n in (("support", 3), ("query", 4))}
    target = {name: torch.softmax(torch.randn(2, n, 6, generator=generator), -1) for name, n in (("s", 3), ("q", 4))}
    head = torch.nn.Linear(5, 6)
    model = SimpleNamespace(
        anchor=torch.zeros(6, 5), name_emotion=head, config=settings(),
        encoder=SimpleNamespace(embed=lambda clips, gamma, beta: (clips + gamma.sum() + beta.sum(), None)),
    )  # fmt: skip
    episode = SimpleNamespace(
        support=SimpleNamespace(clean=z["support"]), query=z["query"], target=target["q"],
        label_target=target["q"], support_label_target=target["s"],
    )  # fmt: skip
    loss, line = naming_loss(model, episode)
    clips = torch.cat([z["support"].flatten(0, 1), z["query"].flatten(0, 1)])
    labels = torch.cat([target["s"].flatten(0, 1), target["q"].flatten(0, 1)])
    said = clips @ head.weight.T + head.bias
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(said, labels))
    assert line["loss"] == pytest.approx(loss.item())
    assert line["accuracy"] == pytest.approx(float((said.argmax(1) == labels.argmax(1)).double().mean()))


def test_a_start_comes_before_all_other_phases_and_the_first_phase_ends_with_it():
    config = settings(train__max_steps=16, train__start=0.25, train__warm_up=0.125, train__first_order=0.25).train
    phases = [phase_of(step, config) for step in range(16)]
    assert phases == ["start"] * 4 + ["prototypes"] * 2 + ["first order"] * 4 + ["second order"] * 6
    assert first_phase_ends(config) == 4
    assert first_phase_ends(dataclasses.replace(config, start=0.0)) == 2
    odd = dataclasses.replace(config, start=0.3)
    assert first_phase_ends(odd) == [phase_of(step, odd) for step in range(16)].count("start") == 5
    assert phase_of(0, dataclasses.replace(config, start=0.0)) == "prototypes"


START = {"train__start": 0.5, "train__first_order": 0.125, "train__warm_up": 0.125}


@pytest.fixture(scope="module")
def started(folder, pack):
    """A whole run of which the first half names emotions."""
    return train(pack, settings(**START), folder / "started", validate=score, progress_bar=False)


def test_in_the_start_the_first_kind_of_episode_is_alone_and_nothing_is_validated(started):
    steps = [line for line in started.history if line["kind"] == "train"]
    assert [line["phase"] for line in steps[:6]] == ["start"] * 4 + ["prototypes", "first order"]
    assert [line["setting"] for line in steps] == [TITLES[0]] * 4 + TITLES * 2
    assert sorted({line["step"] for line in started.history if line["kind"] == "validation"}) == [4, 6, 8]
    assert started.summary["best_step"] >= 4


def test_rules_axes_and_head_are_placed_when_the_start_ends_and_not_before(pack, monkeypatch):
    trainer = Trainer(pack, settings(**START))
    model, data = trainer.model, trainer.data
    first = model.anchor.detach().clone()
    for _ in range(4):
        trainer.step()
        assert torch.equal(model.anchor, first)
    center = model.rules.center.detach().clone()
    monkeypatch.setattr(training, "learning_rate", lambda step, config: 0.0)
    trainer.step()
    assert not torch.equal(model.rules.center, center)
    axes = model.axes.detach().clone()
    assert float((axes - torch.eye(len(axes))).abs().max()) > 1e-2
    with torch.no_grad():
        model.axes.copy_(torch.eye(len(axes)))
    parts, rows, numbers = [], [], []
    for sampler in trainer.samplers:
        for number in range(training.KNOWING):
            batch = sampler.sample(2 * number, 2)
            with torch.no_grad():
                encoded = encode_episodes(model, data, batch, seed=0, stream="any", n_views=0)
                for clips, row in ((encoded.support.clean, batch.support.flatten(1)), (encoded.query, batch.query)):
                    parts.append(model.fuzzify(clips, model.unmodulated(2)).embedding.flatten(0, 1))
                    rows.append(row.flatten())
                    episode = len(numbers) // 2 * 2 + torch.arange(2)
                    numbers.append(episode[:, None].expand_as(row).flatten())
    embedding, row = torch.cat(parts), torch.cat(rows)
    torch.testing.assert_close(emotion_axes(embedding, data.labels[row], torch.cat(numbers)), axes, rtol=0, atol=1e-3)
    person = torch.unique(data.subjects[row], return_inverse=True)[1]
    expected = knowledge(embedding @ axes, data.labels[row], person, len(model.known))
    torch.testing.assert_close(model.anchor.detach(), expected.anchor, rtol=0, atol=1e-4)
    worth = (expected.clip / expected.emotion).log()
    torch.testing.assert_close(model.log_worth_new.detach(), worth, rtol=0, atol=1e-3)
    assert float((expected.anchor - first).abs().max()) > 1e-2
    averaged = dict(trainer.averaged.named_parameters())
    assert torch.equal(averaged["anchor"], model.anchor), "the average begins anew"


def test_a_run_cut_in_its_start_and_continued_ends_at_the_same_bits(started, pack, tmp_path):
    def cut(*facts):
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):  # at the first validation, when step 4 is due
        train(pack, settings(**START), tmp_path, validate=cut, progress_bar=False)
    assert training.read_tensors(tmp_path / "checkpoint.safetensors")[1]["progress"]["step"] == 3
    train(pack, settings(**START), tmp_path, validate=score, progress_bar=False)
    for name in ("model.safetensors", "history.jsonl"):
        assert (tmp_path / name).read_bytes() == (started.path / name).read_bytes(), name
    assert_same_tensors(tmp_path, started.path)


# --- calibration


def test_saved_weights_soften_answers_by_the_temperatures_of_the_best_validation(pack, tmp_path):
    kinds = [*SETTINGS["episodes"], {"regime": "D", "n_way": 2, "n_shot": 1, "n_query": 1}]
    told = {0: (4.0, (1.0, 1.0, 1.0)), 2: (1.0, (2.0, 3.0, 8.0)), 4: (2.0, (7.0, 7.0, 7.0))}
    calls = []

    def validate(model, data, batch, seed):
        step, kind = divmod(len(calls), 3)
        calls.append(batch)
        nll, temperature = told[2 * step]
        return Validation(nll, 0.5, temperature[kind])

    config = settings(episodes=kinds, train__max_steps=4)
    run = train(pack, config, tmp_path, validate=validate, progress_bar=False)
    assert run.summary["best_step"] == 2
    model, data, _ = load_model(tmp_path, pack)
    assert model.softening.tolist() == pytest.approx([4.0, 3.0])  # of other people's clips: between 2 and 8
    for batch, temperature in ((calls[0], 4.0), (calls[1], 3.0)):
        softened = answer(model, data, batch)
        model.softening.fill_(1.0)
        plain = answer(model, data, batch)
        model.softening.copy_(torch.tensor([4.0, 3.0]))
        for name in ("adapted", "zero_step", "prototype"):
            one, other = getattr(plain, name), getattr(softened, name)
            torch.testing.assert_close(other, torch.log_softmax(one / temperature, -1))
            assert torch.equal(one.argmax(-1), other.argmax(-1))
            assert float((one - other).abs().max()) > 1e-2


# --- learning rates


KIND = {
    "placed": ("rules.center", "rules.log_precision", "rules.factor", "rules.log_slope", "encoder.level.", "axes"),
    "inner rates": ("rates.",),
    "knowledge": ("anchor", "log_worth", "log_metric", "log_worth_shift", "log_temperature"),
}


@pytest.mark.parametrize("changes", [{}, START, {"inner__steps_train": 0, "inner__steps_test": 0}])
def test_every_weight_learns_at_the_rate_of_its_kind_and_only_plain_weights_decay(pack, changes):
    trainer = Trainer(pack, settings(**changes))
    name_of = {id(p): name for name, p in trainer.model.named_parameters()}
    grouped = [(name_of[id(p)], group) for group in trainer.optimiser.param_groups for p in group["params"]]
    assert sorted(name for name, _ in grouped) == sorted(name_of.values())
    assert trainer.names == [name for name, _ in grouped]
    for name, group in grouped:
        kind = next((kind for kind, starts in KIND.items() if name.startswith(starts)), "weights")
        assert group["factor"] == RATES[kind], name
        assert group["weight_decay"] == (trainer.config.train.weight_decay if kind == "weights" else 0), name
    assert trainer.config.train.weight_decay > 0
    trainer.step()
    rate = learning_rate(0, trainer.config.train)
    assert all(group["lr"] == pytest.approx(rate * group["factor"]) for group in trainer.optimiser.param_groups)


def test_what_the_statistics_are_worth_travels_with_the_weights(finished, pack):
    kept, trainer = load_file(finished.path / "model.safetensors"), Trainer(pack, settings())
    found = trainer.data.training_statistics(torch.from_numpy(trainer.splits.rows["meta_train"])).worth
    for name, worth in found.items():
        assert torch.equal(kept[f"worth_{name}"], worth)
    assert torch.cat([worth.flatten() for worth in found.values()]).unique().numel() > 5


# --- nothing outside the run is touched


@pytest.fixture
def hears_ctrl_c():
    """As in a terminal; a shell lets what it runs in the background ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_training_leaves_global_states_and_the_number_of_threads_as_they_were(pack, tmp_path, hears_ctrl_c):
    torch_state, numpy_state, before = torch.get_rng_state(), np.random.get_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(pack, settings(train__max_steps=3), tmp_path, validate=score, progress_bar=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_leaves_the_random_state_of_cuda_as_it_was(pack, tmp_path):
    torch.cuda.manual_seed_all(7)
    before = torch.cuda.get_rng_state_all()
    train(pack, settings(train__max_steps=2), tmp_path, validate=score, progress_bar=False)
    assert all(torch.equal(a, b) for a, b in zip(torch.cuda.get_rng_state_all(), before, strict=True))


def test_global_random_states_do_not_change_a_run(finished, pack, tmp_path):
    state = torch.get_rng_state()
    torch.manual_seed(12345)
    try:
        run = train(pack, settings(), tmp_path, validate=score, progress_bar=False)
    finally:
        torch.set_rng_state(state)
    assert run.history == finished.history


# --- what goes wrong


def poison(monkeypatch, value):
    """Make the loss of step 3 not finite."""
    true = training.outer_loss

    def poisoned(model, episode, path, share, phase):
        loss, line = true(model, episode, path, share, phase)
        return (loss * value, line | {"loss": value}) if share == 3 / 8 else (loss, line)

    monkeypatch.setattr(training, "outer_loss", poisoned)


def test_a_loss_that_is_not_finite_leaves_its_episodes_and_stops(pack, tmp_path, monkeypatch):
    poison(monkeypatch, math.nan)
    where = tmp_path / "failed_episodes.json"
    with pytest.raises(RunError, match=f"loss nan at step 3; expected a finite loss .*{where}"):
        train(pack, settings(), tmp_path, validate=score, progress_bar=False)
    assert [line["step"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"] == [0, 1, 2]
    failed, expected = load_episodes(where, pack), Trainer(pack, settings()).batch(3)
    assert all(torch.equal(getattr(failed, f), getattr(expected, f)) for f in failed.__dataclass_fields__)
    assert not (tmp_path / "run.json").exists()


def test_weights_are_as_before_a_step_whose_loss_is_not_finite(pack, monkeypatch):
    trainer = Trainer(pack, settings())
    for _ in range(3):
        trainer.step()
    before = weights(trainer.model)
    poison(monkeypatch, math.inf)
    with pytest.raises(FloatingPointError, match="loss inf at step 3"):
        trainer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trainer.model).items())
    assert trainer.progress.step == 3


def test_a_learning_rate_beyond_all_bounds_ends_in_one_sentence(pack, tmp_path):
    with pytest.raises(RunError, match=r"loss (nan|inf) at step \d; expected a finite loss .* lower train.lr"):
        train(pack, settings(train__lr=1e30), tmp_path, validate=score, progress_bar=False)
    assert len(load_episodes(tmp_path / "failed_episodes.json", pack)) == 2


def test_a_meta_validation_that_is_not_finite_leaves_its_own_episodes(pack, tmp_path):
    with pytest.raises(RunError, match="meta-validation NLL nan at step"):
        train(pack, settings(), tmp_path, validate=lambda *facts: (math.nan, 0.5, 1.0), progress_bar=False)
    failed = load_episodes(tmp_path / "failed_episodes.json", pack)
    people = set(pack.clips["subject"].iloc[failed.query.flatten().tolist()])
    assert people <= set(Trainer(pack, settings()).splits.subjects["meta_val"])


def test_weights_and_checkpoints_of_other_code_are_refused_in_one_sentence(pack, tmp_path):
    train(pack, settings(), tmp_path, validate=score, progress_bar=False)
    path = tmp_path / "model.safetensors"
    tensors, facts = training.read_tensors(path)
    del facts["sha256"]
    training.write_tensors(path, {n: t for n, t in tensors.items() if n != "anchor"}, facts)
    with pytest.raises(RunError, match="weights of other names or sizes; expected those of this version .*Train again"):
        load_model(tmp_path, pack)
    trainer = Trainer(pack, settings())
    trainer.names = [name if name != "anchor" else "anchors" for name in trainer.names]
    trainer.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(RunError, match="weights of other names or sizes"):
        Trainer(pack, settings()).load(tmp_path / "checkpoint.safetensors")


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_an_emotion_that_nobody_of_meta_train_shows_is_not_known(pack, folder, synthetic, start):
    clips, views = synthetic
    hidden, of_meta_train = LABELS[0], clips["subject"].isin(Trainer(pack, settings()).splits.subjects["meta_train"])
    fewer = clips.assign(label=clips["label"].mask(of_meta_train & (clips["label"] == hidden), ""))
    rare = open_pack(write_pack(folder / f"rare{start}", fewer, views, LABELS, name="rare"))
    trainer = Trainer(rare, settings(train__start=start))
    for _ in range(8):
        trainer.step()
    known = trainer.model.known
    assert not known[LABELS.index(hidden)]
    assert known.any()
    assert int(known.sum()) == len(LABELS) - 1 or start > 0  # few episodes of a start do not show every emotion
    assert torch.equal(trainer.averaged.known, trainer.model.known)


@pytest.fixture
def half_done(pack, tmp_path):
    """A folder with a checkpoint after three steps and no finished run."""
    seen = []

    def stop(*facts):
        seen.append(1)
        if len(seen) > 4:  # the third validation, at step 4, after the checkpoint
            raise OSError("power cut")
        return 1.0, 0.5

    with pytest.raises(OSError, match="power cut"):
        train(pack, settings(), tmp_path, validate=stop, progress_bar=False)
    assert (tmp_path / "checkpoint.safetensors").exists()
    return tmp_path


def test_a_checkpoint_of_other_settings_is_refused_with_both_digests(half_done, pack):
    config = settings(train__lr=0.5)
    said = f"settings {settings().digest()}; expected settings {config.digest()} .*checkpoint.*Use another run_dir"
    with pytest.raises(RunError, match=said):
        train(pack, config, half_done, validate=score, progress_bar=False)


def test_a_checkpoint_of_another_pack_is_refused_with_both_digests(half_done, pack, other_pack):
    with pytest.raises(RunError, match=f"pack {pack.digest}; expected pack {other_pack.digest} .*checkpoint"):
        train(other_pack, settings(), half_done, validate=score, progress_bar=False)


def test_a_finished_run_of_other_settings_or_another_pack_is_refused_with_both_digests(finished, pack, other_pack):
    config = settings(train__seed=9)
    with pytest.raises(RunError, match=f"settings {settings().digest()}; expected settings {config.digest()}"):
        train(pack, config, finished.path, validate=score, progress_bar=False)
    with pytest.raises(RunError, match=f"pack {pack.digest}; expected pack {other_pack.digest}"):
        train(other_pack, settings(), finished.path, validate=score, progress_bar=False)


def cut_in_half(data):
    return data[: len(data) // 2]


def without_facts(data):
    return data.replace(b'"facts"', b'"fakts"')


def overwritten(data):
    return b"\x00" * len(data)


def emptied(data):
    return b""


@pytest.mark.parametrize("damage", [without_facts, overwritten, emptied, cut_in_half])
def test_a_damaged_checkpoint_is_refused_in_one_sentence_and_restart_helps(half_done, pack, damage):
    file = half_done / "checkpoint.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError, match=r'^damaged: .*checkpoint.safetensors\). Remove it, or use resume="restart"\.$'):
        train(pack, settings(), half_done, validate=score, progress_bar=False)
    if damage is cut_in_half:
        again = train(pack, settings(), half_done, validate=Script(1.0), progress_bar=False, resume="restart")
        assert again.summary["steps"] == 8


@pytest.mark.parametrize("text", ["", "{", '{"format": "stf2m-run"}'])
def test_a_damaged_summary_is_refused_in_one_sentence(finished, pack, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match='unreadable: .*; expected a finished run .*Use resume="restart"'):
        train(pack, settings(), tmp_path, validate=score, progress_bar=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_convolutions_keep_all_digits_of_float32_on_every_device():
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # as PyTorch starts
    assert resolve_device("cpu") == torch.device("cpu")
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def test_a_device_that_is_not_there_is_refused(pack, tmp_path):
    with pytest.raises(RunError, match="device = 'cuda' is not available; expected auto or cpu .in train.device"):
        train(pack, settings(train__device="cuda"), tmp_path, validate=score, progress_bar=False)


# --- Ctrl-C

CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[3])
from test_training import settings
from stf2m_core.data.pack import open_pack
from stf2m_core.evaluation import score
from stf2m_core.training import train
train(open_pack(sys.argv[1]), settings(train__max_steps=12), sys.argv[2], validate=score, progress_bar=False)
"""


def test_ctrl_c_saves_says_how_to_go_on_and_the_next_call_ends_at_the_same_bits(pack, tmp_path):
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", CHILD, str(pack.path), str(tmp_path / "cut"), here]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=os.path.dirname(here))
    history = tmp_path / "cut" / "history.jsonl"
    deadline = time.monotonic() + 60
    while len(read_history(history)) < 8 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode != 0
    done = [line["step"] for line in read_history(history) if line["kind"] == "train"]
    assert 4 <= len(done) < 12, "the interrupt came too late to test anything"
    checkpoint = tmp_path / "cut" / "checkpoint.safetensors"
    last = said.strip().splitlines()[-1]
    assert last == f"KeyboardInterrupt: stopped after {len(done)} steps, saved in {checkpoint}; the same call continues"
    assert training.read_tensors(checkpoint)[1]["progress"]["step"] == len(done)
    for name in ("cut", "whole"):
        train(pack, settings(train__max_steps=12), tmp_path / name, validate=score, progress_bar=False)
    for name in ("model.safetensors", "history.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert_same_tensors(tmp_path / "cut", tmp_path / "whole")


def test_ctrl_c_in_the_middle_of_a_step_lets_the_step_end_and_a_second_one_does_not(pack, tmp_path, hears_ctrl_c):
    def once_at(number):
        calls = []

        def once(*facts):
            calls.append(1)
            if len(calls) == number:
                signal.raise_signal(signal.SIGINT)
            return 1.0, 0.5

        return once

    config = settings(episodes=SETTINGS["episodes"][:1])
    for number, steps in ((1, 1), (1, 2)):  # at the validation of the start; then, continued, at that of step 2
        said = f"stopped after {steps} steps, saved in .*; the same call continues"
        with pytest.raises(KeyboardInterrupt, match=said):
            train(pack, config, tmp_path, validate=once_at(number), progress_bar=False)
    said = "stopped after 2 steps, saved in .*; the same call continues"
    with pytest.raises(KeyboardInterrupt, match=said):  # the same without a stop at the start
        train(pack, config, tmp_path, validate=once_at(2), progress_bar=False, resume="restart")
    checks = [line["step"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "validation"]
    assert checks == [0, 2]

    def twice(*facts):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return 1.0, 0.5

    with pytest.raises(KeyboardInterrupt, match="^$"):
        train(pack, config, tmp_path, validate=twice, progress_bar=False)
    assert [line["step"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"] == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("start, max_steps", [(0.07, 100), (0.28, 100), (0.7, 220), (0.5, 900), (0.0, 80)])
def test_the_first_phase_ends_where_the_next_one_begins(start, max_steps):
    config = TrainConfig(start=start, max_steps=max_steps)
    end = first_phase_ends(config)
    assert phase_of(end, config) != phase_of(end - 1, config)


@pytest.mark.parametrize(("variant", "start"), [("full", 0.7), ("new-emotions", 0.7), ("full", 0.0)])
def test_no_step_sees_the_episodes_of_another_again(variant, start):
    config = config_for(SimpleNamespace(name="synemo"), "smoke", variant=variant).replace(train__start=start)
    seen = set()
    for step in range(config.train.max_steps):
        kind, first = config.episodes[training.kind_of_step(step, config)], training.episodes_before(step, config)
        own = {(kind, number) for number in range(first, first + config.train.meta_batch)}
        assert not seen & own
        seen |= own
    for kind in set(config.episodes):  # none is left out either
        numbers = sorted(number for asked, number in seen if asked == kind)
        assert numbers == list(range(len(numbers)))


def test_without_a_start_the_kinds_take_turns_and_episodes_follow_one_another():
    config = config_for(SimpleNamespace(name="ravdess_features"), "smoke")
    n_kinds, size = len(config.episodes), config.train.meta_batch
    for step in range(40):
        assert training.kind_of_step(step, config) == step % n_kinds
        assert training.episodes_before(step, config) == step // n_kinds * size


@pytest.mark.parametrize("changes", [{"meta_rnn__kind": "constant"}, {"fuzzy__kind": "mlp"}, {"inner__n_views": 0}])
def test_a_start_is_the_same_whatever_a_variant_takes_away_later(pack, changes):
    """So that what is taken away, and not another start, makes the difference between two trainings (D-94)."""
    encoders = []
    for variant in ({}, changes):
        trainer = Trainer(pack, settings(train__start=0.5, **variant))
        for _ in range(training.phase_ends(trainer.config.train)[0]):
            trainer.step()
        encoders.append(weights(trainer.model.encoder) | weights(trainer.model.name_emotion))
    assert all(torch.equal(tensor, encoders[1][name]) for name, tensor in encoders[0].items())
