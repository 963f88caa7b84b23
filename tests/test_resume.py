"""A run killed at any moment and continued ends at the same bits as one that was left alone; the kills are real."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from stf2m_core.config import RunConfig
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import LABELS, SynEmoConfig, generate
from stf2m_core.evaluation import score
from stf2m_core.training import Trainer, read_tensors, train

N_STEPS = 10
SETTINGS = {
    "split__n_val_subjects": 3,
    "episodes": [
        {"regime": "D", "n_way": 3, "n_shot": 1, "n_query": 1},
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
    "train__max_steps": N_STEPS,
    "train__warm_up": 0.3,
    "train__validate_every": 2,
    "train__validation_episodes": 2,
}
RESULTS = ("model.safetensors", "history.jsonl")


def settings(**changes):
    return RunConfig().replace(**SETTINGS | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def pack_path(folder):
    clips, views = generate(SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=2))
    return write_pack(folder / "pack", clips, views, LABELS, name="tiny")


@pytest.fixture(scope="module")
def processes():
    """Starts processes that already know the package, so that a kill costs no second import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "stf2m_core"])
    return context


@pytest.fixture(scope="module")
def whole(folder, pack_path):
    """The results of a run that was left alone, per checkpoint_every."""
    made = {}

    def result(checkpoint_every):
        if checkpoint_every not in made:
            path = folder / f"whole{checkpoint_every}"
            config = settings(train__checkpoint_every=checkpoint_every)
            train(open_pack(pack_path), config, path, validate=score, progress_bar=False)
            made[checkpoint_every] = path
        return made[checkpoint_every]

    return result


def go(pack_path, run_dir, checkpoint_every, validate=score):
    """What a killed process was doing."""
    config = settings(train__checkpoint_every=checkpoint_every)
    train(open_pack(pack_path), config, run_dir, validate=validate, progress_bar=False)


def slow_score(*facts):
    """The score, slowed down so that a run does not end before it is killed, however slow the killer."""
    time.sleep(0.1)
    return score(*facts)


def go_until(pack_path, run_dir, checkpoint_every, moment, name, number=1):
    """As `go`, but dies by SIGKILL just before or just after the `number`-th file of that name moves into place."""
    replace, count = os.replace, [0]

    def deadly(source, target):
        count[0] += Path(target).name == name
        fatal = Path(target).name == name and count[0] == number
        if fatal and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly
    go(pack_path, run_dir, checkpoint_every)


def lines_of(run_dir):
    path = Path(run_dir) / "history.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def without_seconds(run_dir):
    return json.loads((run_dir / "run.json").read_text()) | {"seconds": None}


def assert_same_run(one, other):
    for name in RESULTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert without_seconds(one) == without_seconds(other)
    tensors, facts = read_tensors(one / "checkpoint.safetensors")
    others, other_facts = read_tensors(other / "checkpoint.safetensors")
    assert tensors.keys() == others.keys()
    assert all(tensor.equal(others[name]) for name, tensor in tensors.items())
    assert facts | {"progress": None} == other_facts | {"progress": None}


def kill_in_training(process, run_dir, n_lines, delay):
    """SIGKILL once the history has grown by `n_lines` since the process took over, and `delay` seconds more."""
    process.start()
    deadline, before = time.monotonic() + 60, None
    while process.is_alive() and time.monotonic() < deadline:
        now = lines_of(run_dir)
        before = now if before is None else min(before, now)  # what has no checkpoint is cut off first
        if now >= before + n_lines:
            break
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("checkpoint_every", [1, 2, 3])
def test_a_run_killed_at_three_random_moments_ends_at_the_same_bits(
    processes, whole, pack_path, tmp_path, checkpoint_every
):
    draw, codes, reached = random.Random(checkpoint_every), [], []
    for _ in range(3):
        process = processes.Process(target=go, args=(pack_path, tmp_path / "run", checkpoint_every, slow_score))
        codes.append(kill_in_training(process, tmp_path / "run", draw.randint(1, 3), draw.uniform(0, 0.1)))
        reached.append(lines_of(tmp_path / "run"))
    assert codes == [-signal.SIGKILL] * 3, "a process ended before it was killed: nothing was tested"
    assert not (tmp_path / "run" / "run.json").exists()
    assert 0 < max(reached) < lines_of(whole(checkpoint_every))
    go(pack_path, tmp_path / "run", checkpoint_every)
    assert_same_run(tmp_path / "run", whole(checkpoint_every))


MOMENTS = [
    ("before", "history.jsonl"),
    ("before", "checkpoint.safetensors"),
    ("after", "checkpoint.safetensors"),
    ("before", "model.safetensors"),
    ("before", "run.json"),
]


def test_a_run_killed_around_each_of_its_writes_ends_at_the_same_bits(processes, whole, pack_path, tmp_path):
    run = tmp_path / "run"
    for moment, name in MOMENTS:
        process = processes.Process(target=go_until, args=(pack_path, run, 3, moment, name))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, (moment, name)
    assert (run / "model.safetensors").exists()
    assert not (run / "run.json").exists()
    go(pack_path, run, 3)
    assert_same_run(run, whole(3))


def test_a_line_that_a_crash_cut_short_is_written_anew(processes, whole, pack_path, tmp_path):
    facts = (pack_path, tmp_path / "run", 2, "after", "checkpoint.safetensors")
    process = processes.Process(target=go_until, args=facts)
    process.start()
    process.join(60)
    with open(tmp_path / "run" / "history.jsonl", "a") as history:
        history.write('{"kind": "train", "step": 99')
    go(pack_path, tmp_path / "run", 2)
    assert_same_run(tmp_path / "run", whole(2))


def test_a_resume_before_the_first_checkpoint_says_the_start_only_once(whole, pack_path, tmp_path):
    run, calls = tmp_path / "run", []

    def cut(*facts):
        calls.append(1)
        if len(calls) > 2:  # two settings at the start, then step 2; the first checkpoint is after step 3
            raise OSError("power cut")
        return score(*facts)

    def steps_of(kind):
        lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line["kind"] == kind]

    with pytest.raises(OSError, match="power cut"):
        go(pack_path, run, 3, cut)
    assert (steps_of("validation"), steps_of("train")) == ([0, 0], [0])
    assert not (run / "checkpoint.safetensors").exists()
    go(pack_path, run, 3)
    assert steps_of("validation") == [step for step in range(0, N_STEPS + 1, 2) for _ in range(2)]
    assert_same_run(run, whole(3))


def test_a_run_that_patience_ended_is_resumed_to_the_same_end(pack_path, tmp_path):
    config = settings(train__checkpoint_every=2, train__validate_every=1, train__patience=2, train__warm_up=0.1)
    nll = dict(enumerate([6.0, 5.0, 4.0, 4.5, 3.0, 3.5, 3.6, 1.0, 1.0, 1.0]))

    def scripted(stop_at, first):  # first: the step of the first validation it is asked for
        calls = [0]

        def validate(model, data, batch, seed):
            step = first + calls[0] // 2
            calls[0] += 1
            if step == stop_at:
                raise OSError("power cut")
            return nll[step], 0.5

        return validate

    pack = open_pack(pack_path)
    whole = train(pack, config, tmp_path / "whole", validate=scripted(None, 0), progress_bar=False)
    assert (whole.summary["steps"], whole.summary["best_step"]) == (6, 4)
    for stop_at, first in ((4, 0), (6, 3)):
        with pytest.raises(OSError, match="power cut"):
            train(pack, config, tmp_path / "cut", validate=scripted(stop_at, first), progress_bar=False)
    train(pack, config, tmp_path / "cut", validate=scripted(None, 5), progress_bar=False)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("step", [1, 5])
def test_a_checkpoint_brings_back_everything_a_step_depends_on(pack_path, tmp_path, step):
    pack = open_pack(pack_path)
    one, other = Trainer(pack, settings()), Trainer(pack, settings())
    for _ in range(step):
        one.step()
    one.validate(score)
    one.save(tmp_path / "checkpoint.safetensors")
    other.load(tmp_path / "checkpoint.safetensors")
    other.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "checkpoint.safetensors").read_bytes()
    for _ in range(2):
        assert one.step() == other.step()
    assert one.validate(score) == other.validate(score)
    for kind in ("model", "averaged"):
        tensors = getattr(other, kind).state_dict()
        assert all(tensor.equal(tensors[name]) for name, tensor in getattr(one, kind).state_dict().items())
