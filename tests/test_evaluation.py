"""Meta-test: chance where nothing can be known, the same numbers from the same seed, whatever the chunk."""

import dataclasses

import numpy as np
import pytest
import torch

from stf2m_core import evaluation
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.pack import open_pack, write_pack
from stf2m_core.data.synemo import LABELS, SynEmoConfig, generate
from stf2m_core.encoding import encode_clips, encode_episodes, model_statistics
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import EpisodeError, RunError
from stf2m_core.evaluation import READINGS, answer, calibrated_nll, confusion, evaluate, evaluate_control, score
from stf2m_core.training import build, load_model, train
from stf2m_core.views import ResidentViews

SETTINGS = {
    "split__n_val_subjects": 3,
    "encoder__hidden": 8,
    "encoder__embedding": 12,
    "fuzzy__n_rules": 6,
    "fuzzy__n_features": 4,
    "meta_rnn__hidden": 4,
    "meta_rnn__n_layers": 1,
    "meta_rnn__n_orders": 2,
    "train__device": "cpu",
}
NOVEL = {
    "split__n_val_labels": 5,
    "split__n_test_labels": 8,
    "inner__label_knowledge": False,
    "episodes": [{"regime": "C", "n_way": 3, "n_shot": 1, "n_query": 2}],
}
D_EPISODE = EpisodeConfig(regime="D", n_way=3, n_shot=2, n_query=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def pure():
    return generate(SynEmoConfig(n_domains=4, n_subjects_per_domain=3, clips_per_class=2, pure=True))


@pytest.fixture(scope="module")
def pack(folder, pure):
    """576 clips of 12 people, without votes and with all modalities."""
    return open_pack(write_pack(folder / "pure", *pure, LABELS, name="pure"))


@pytest.fixture(scope="module")
def constant(folder, pure):
    """The same clips, all with the same content."""
    clips, views = pure
    rates = {"audio": 20.0, "visual": 20.0, "text": 20.0}
    same = {
        name: dataclasses.replace(view, values=np.ones_like(view.values), times=None, rate_hz=rates[name])
        for name, view in views.items()
    }
    return open_pack(write_pack(folder / "constant", clips.assign(duration_s=4.0), same, LABELS, name="constant"))


@pytest.fixture(scope="module")
def run(folder, pack):
    """A run of four steps."""
    short = {"train__max_steps": 4, "train__validate_every": 2, "train__validation_episodes": 2, "train__meta_batch": 2}
    kinds = {"episodes": [dataclasses.asdict(dataclasses.replace(D_EPISODE, n_shot=1))], "inner__steps_train": 1}
    config = RunConfig().replace(**SETTINGS | short | kinds)
    return train(pack, config, folder / "run", validate=score, progress_bar=False)


class World:
    """An untrained model with its data."""

    def __init__(self, pack, **changes):
        self.config = RunConfig().replace(**SETTINGS | changes)
        self.pack, self.splits = pack, split_subjects(pack, self.config.split)
        self.data = ResidentViews(pack, self.config.views, "cpu")
        self.model = build(self.data, self.splits, self.config)

    def episodes(self, config, n, split="meta_test"):
        return EpisodeSampler(self.pack, self.splits, split, config, 0).sample(0, n)


def accuracy(said, batch):
    """Mean over episodes and half of its 95 % interval."""
    values = (said.argmax(-1) == batch.query_label).double().mean(1)
    return float(values.mean()), float(1.96 * values.std() / len(values) ** 0.5)


def with_shuffled_support(batch):
    """The same episodes, the support's clips dealt out to the classes at random."""
    generator = torch.Generator().manual_seed(0)
    rows = batch.support.flatten(1)
    order = torch.stack([torch.randperm(rows.shape[1], generator=generator) for _ in rows])
    return dataclasses.replace(batch, support=rows.gather(1, order).view_as(batch.support))


# --- chance where nothing can be known


def test_shuffled_support_labels_of_new_emotions_leave_chance(pack):  # I-8
    world = World(pack, **NOVEL)
    batch = world.episodes(EpisodeConfig(regime="C", n_way=4, n_shot=1, n_query=2), 300)
    mean, half = accuracy(answer(world.model, world.data, batch, chunk=50).adapted, batch)
    assert mean - half > 0.25, "the true support tells nothing: the control is empty"
    shuffled = answer(world.model, world.data, with_shuffled_support(batch), chunk=50)
    for said in (shuffled.adapted, shuffled.zero_step, shuffled.prototype):
        mean, half = accuracy(said, batch)
        assert abs(mean - 0.25) < half, mean
        assert half < 0.03


def test_constant_clips_score_exactly_chance_in_every_episode(constant):  # I-8
    world = World(constant)
    batch = world.episodes(D_EPISODE, 20)
    said = answer(world.model, world.data, batch)
    for part in (said.adapted, said.zero_step, said.prototype):
        each = (part.argmax(-1) == batch.query_label).double().mean(1)
        torch.testing.assert_close(each, torch.full((20,), 1 / 3, dtype=torch.float64))


class EmptyHead:
    """Starts the inner loop from a head of zeros."""

    def start(self, support, *, conditioned=True):
        theta = super().start(support, conditioned=conditioned)
        return dataclasses.replace(theta, center=theta.center * 0, own=theta.own * 0)


def test_a_task_of_one_emotion_is_learned_without_features_and_an_episode_is_not(constant):
    world = World(constant, inner__label_knowledge=False, inner__n_views=0)  # views would tell clips apart
    world.model.__class__ = type("EmptyHeadModel", (EmptyHead, type(world.model)), {})
    batch = world.episodes(D_EPISODE, 10)
    encoding = encode_episodes(world.model, world.data, batch, seed=0, stream="test")
    one = torch.zeros_like(encoding.support.target)
    one[..., 1] = 1
    share = {}
    for kind, target in (("episode", encoding.support.target), ("one emotion", one)):
        support = dataclasses.replace(encoding.support, target=target)
        theta = world.model.adapt(support, 10)[-1]
        said = world.model.predict(encoding.query, theta, support).log_probability.detach()
        share[kind] = said.exp(), said.argmax(-1)
    probability, label = share["one emotion"]
    assert (label == 1).all(), "the leak: no feature says so, and all are told"
    assert float(probability[..., 1].min()) > 0.4
    probability, label = share["episode"]
    torch.testing.assert_close(probability, torch.full_like(probability, 1 / 3), rtol=0, atol=1e-5)
    assert float((label == batch.query_label).double().mean()) == pytest.approx(1 / 3)


# --- the same numbers


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_chunk_changes_memory_and_not_results(pack, chunk):
    world = World(pack)
    batch = world.episodes(D_EPISODE, 7)
    whole = answer(world.model, world.data, batch, chunk=50)
    parts = answer(world.model, world.data, batch, chunk=chunk)
    for name in ("adapted", "zero_step", "prototype"):
        one, other = getattr(whole, name).exp(), getattr(parts, name).exp()
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
    assert float((whole.adapted - whole.zero_step).abs().max()) > 1e-3


def test_the_same_seed_gives_the_same_record_to_the_bit_and_another_seed_another(pack, run):
    records = [evaluate(run.path, pack, D_EPISODE, episodes=6, seed=seed) for seed in (3, 3, 4)]
    first, again, other = ({**dataclasses.asdict(r), "provenance": None} for r in records)
    assert first == again
    assert first["episode"]["digest"] != other["episode"]["digest"]
    model, data, _ = load_model(run.path, pack)
    batch = World(pack).episodes(D_EPISODE, 6)
    said = [answer(model, data, batch, seed=seed).adapted for seed in (3, 3, 4)]
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])


def test_evaluation_leaves_global_random_states_and_the_number_of_threads_as_they_were(pack, run):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate(run.path, pack, D_EPISODE, episodes=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


# --- what answers mean


def test_no_inner_step_is_the_zero_step_answer_and_the_path_runs_from_it_to_the_adapted_one(pack):
    world = World(pack)
    batch = world.episodes(D_EPISODE, 4)
    said = answer(world.model, world.data, batch, n_steps=3, whole_path=True)
    assert said.path.shape == (4, 4, 6, 3)
    assert torch.equal(said.path[0], said.zero_step)
    assert torch.equal(said.path[-1], said.adapted)
    none = answer(world.model, world.data, batch, n_steps=0)
    assert torch.equal(none.adapted, none.zero_step)
    torch.testing.assert_close(none.zero_step, said.zero_step, rtol=0, atol=1e-6)
    assert answer(world.model, world.data, batch).path is None


def test_the_prototype_answer_reads_nothing_with_the_recurrent_network(pack):
    world = World(pack)
    batch = world.episodes(D_EPISODE, 4)
    before = answer(world.model, world.data, batch)
    with torch.no_grad():
        for parameter in world.model.task_encoder.parameters():
            parameter.add_(0.3)
    after = answer(world.model, world.data, batch)
    assert torch.equal(after.prototype, before.prototype)
    assert float((after.zero_step - before.zero_step).abs().max()) > 1e-4


def test_a_hidden_modality_changes_answers_and_hiding_none_does_not(pack):
    world = World(pack)
    batch = world.episodes(D_EPISODE, 4)
    plain = answer(world.model, world.data, batch).adapted
    full = answer(world.model, world.data, batch, keep=torch.tensor([True, True, True])).adapted
    part = answer(world.model, world.data, batch, keep=torch.tensor([True, False, True])).adapted
    assert torch.equal(plain, full)
    assert float((plain - part).abs().max()) > 1e-3


def test_the_score_is_the_nll_at_the_best_temperature_and_accuracy_after_adaptation(pack):
    world = World(pack)
    batch = world.episodes(D_EPISODE, 5, "meta_val")
    nll, share, temperature = score(world.model, world.data, batch, 2)
    said = answer(world.model, world.data, batch, seed=2).adapted
    pairs = [(said[e, q], int(batch.query_label[e, q])) for e in range(5) for q in range(6)]
    grid = np.logspace(-1, 3, 33, base=2)
    softened = [np.mean([-float((p / t).log_softmax(0)[y]) for p, y in pairs]) for t in grid]
    assert nll == pytest.approx(min(softened), abs=1e-6)
    assert temperature == pytest.approx(grid[np.argmin(softened)])
    assert nll <= np.mean([-float(p[y]) for p, y in pairs])
    assert share == pytest.approx(np.mean([int(p.argmax()) == y for p, y in pairs]))


def test_calibration_forgives_confidence_but_not_errors():
    label = torch.tensor([[0, 1, 2, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 1]]), 3).double()
    bold, timid = ((scale * logits).log_softmax(-1) for scale in (6.0, 3.0))
    assert calibrated_nll(bold, label)[0] == pytest.approx(calibrated_nll(timid, label)[0], rel=1e-3)
    assert calibrated_nll(bold, label)[1] == pytest.approx(2 * calibrated_nll(timid, label)[1])
    worse = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 1]]), 3).double().mul(3).log_softmax(-1)
    assert calibrated_nll(worse, label)[0] > calibrated_nll(bold, label)[0] + 0.1


def test_confusion_counts_pairs_of_true_and_predicted_labels(pack):
    world = World(pack)
    batch = world.episodes(D_EPISODE, 4)
    said = answer(world.model, world.data, batch).adapted
    expected = np.zeros((24, 24), int)
    for e in range(4):
        for q in range(6):
            true = pack.labels.index(pack.clips["label"].iloc[int(batch.query[e, q])])
            expected[true, int(batch.classes[e, said[e, q].argmax()])] += 1
    assert (confusion(pack, batch, said) == expected).all()


# --- without any support


def test_without_support_known_emotions_are_recalled_whatever_the_support_holds(pack):
    world = World(pack)
    model, data, batch = world.model, world.data, world.episodes(D_EPISODE, 4)
    model.softening.copy_(torch.tensor([2.0, 5.0]))
    said = answer(model, data, batch)
    moved = dataclasses.replace(batch, support=batch.support.flip(0))
    other = answer(model, data, moved)
    assert torch.equal(other.no_support, said.no_support)
    assert float((other.adapted - said.adapted).abs().max()) > 1e-3
    for e, q in np.ndindex(4, 6):
        encoded = encode_clips(model, data, batch.query[e, q : q + 1], model_statistics(model))
        with torch.no_grad():
            recalled = model.recall(model.fuzzify(encoded, model.unmodulated(1)))[0, 0].exp()
        inside = recalled[batch.classes[e]] ** 0.5  # softened by 2, as other people's clips are
        torch.testing.assert_close(said.no_support[e, q].exp(), inside / inside.sum(), rtol=0, atol=1e-5)
    assert float(said.no_support.std()) > 1e-2


def test_without_support_a_clip_is_encoded_once_whatever_the_number_of_episodes_that_ask_it(pack, monkeypatch):
    world, seen = World(pack), []

    def watched(model, data, rows, statistics, keep):
        seen.append(rows)
        return encode_clips(model, data, rows, statistics, keep)

    monkeypatch.setattr(evaluation, "encode_clips", watched)
    batch = world.episodes(D_EPISODE, 40)
    said = answer(world.model, world.data, batch, chunk=3).no_support
    rows = torch.cat(seen)
    assert len(rows) == len(rows.unique()) == len(batch.query.unique()) < batch.query.numel()
    assert max(map(len, seen)) == 3 * 6
    alone = answer(world.model, world.data, batch[17:18]).no_support
    torch.testing.assert_close(said[17:18], alone, rtol=0, atol=1e-5)


def test_without_support_new_emotions_are_guessed_and_one_makes_its_episode_new(pack):
    novel = World(pack, **NOVEL)
    batch = novel.episodes(EpisodeConfig(regime="C", n_way=4, n_shot=1, n_query=1), 3)
    said = answer(novel.model, novel.data, batch).no_support
    torch.testing.assert_close(said, torch.full((3, 4, 4), -np.log(4.0), dtype=said.dtype))
    world = World(pack)
    batch = world.episodes(D_EPISODE, 4)
    model, before = world.model, answer(world.model, world.data, batch).no_support
    model.known[batch.classes[0, 0]] = False
    new = (batch.classes == batch.classes[0, 0]).any(1)
    assert bool(new[0]) and not bool(new.all()), "the draw left nothing to compare"
    after = answer(model, world.data, batch).no_support
    torch.testing.assert_close(after[new], torch.full_like(after[new], -np.log(3.0)))
    torch.testing.assert_close(after[~new], before[~new])
    assert float((before[new] - after[new]).abs().max()) > 1e-3


# --- records and refusals


def test_a_record_holds_all_metrics_what_chose_the_weights_and_a_clean_audit(pack, run):
    record = evaluate(run.path, pack, D_EPISODE, episodes=6, seed=3, variant="short")
    named = {"accuracy", *(f"accuracy_{reading}" for reading in READINGS[1:])}
    named |= {"uar", "f1_weighted", "f1_macro", "nll", "ece"}
    assert named <= set(record.metrics)
    assert (record.method, record.variant, record.selection) == ("st-f2m", "short", "meta-validation NLL, calibrated")
    assert record.pack_digest == pack.digest
    assert record.config_digest == run.config.digest()
    assert set(record.leaks) == {"shared_subjects", "shared_groups", "duplicate_content"}
    assert set(record.leaks.values()) == {0}
    assert len(record.per_episode["accuracy"]) == 6
    assert record.metrics["accuracy"]["mean"] == pytest.approx(np.mean(record.per_episode["accuracy"]))
    model, data, splits = load_model(run.path, pack)
    batch = EpisodeSampler(pack, splits, "meta_test", D_EPISODE, 3).sample(0, 6)
    said = answer(model, data, batch, seed=3)
    for name, part in (("", said.adapted), ("_zero_step", said.zero_step), ("_prototype", said.prototype)):
        assert record.metrics["accuracy" + name]["mean"] == pytest.approx(accuracy(part, batch)[0])


def test_a_record_counts_what_the_adapted_model_confuses(pack, run):
    record = evaluate(run.path, pack, D_EPISODE, episodes=4, seed=1)
    model, data, splits = load_model(run.path, pack)
    batch = EpisodeSampler(pack, splits, "meta_test", D_EPISODE, 1).sample(0, 4)
    counts = confusion(pack, batch, answer(model, data, batch, seed=1).adapted)
    assert tuple(record.confusion) == tuple(pack.labels)
    assert (np.array(list(record.confusion.values())) == counts).all()
    assert np.trace(counts) / counts.sum() == pytest.approx(record.accuracy.mean)


@pytest.mark.parametrize("name", ["nearest-prototype", "ridge-prototype"])
def test_a_control_answers_the_very_episodes_of_the_model(pack, run, name):
    record = evaluate(run.path, pack, D_EPISODE, episodes=4, seed=1)
    control = evaluate_control(name, pack, run.config, D_EPISODE, episodes=4, seed=1)
    assert control.episode == record.episode
    assert control.per_subject["subjects"] == record.per_subject["subjects"]
    assert control.method == name


def test_an_unknown_control_is_refused_with_the_known_ones(pack, run):
    with pytest.raises(RunError, match="control 'svm'; expected one of nearest-prototype, ridge-prototype"):
        evaluate_control("svm", pack, run.config, D_EPISODE)


def test_an_unfinished_run_is_refused(pack, tmp_path):
    with pytest.raises(RunError, match="no model.safetensors; expected a finished run"):
        evaluate(tmp_path, pack, D_EPISODE)


def test_another_pack_is_refused_with_both_digests(constant, pack, run):
    with pytest.raises(RunError, match=f"pack {pack.digest}; expected pack {constant.digest}"):
        evaluate(run.path, constant, D_EPISODE)


def test_episodes_that_meta_test_cannot_give_are_refused(pack, run):
    with pytest.raises(EpisodeError, match="24 classes; expected at least 25"):
        evaluate(run.path, pack, dataclasses.replace(D_EPISODE, n_way=25))
