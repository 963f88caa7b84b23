"""Looking inside a trained model: laws of the firing, the ellipsoids, the path of adaptation and the cards."""

import numpy as np
import pytest
import torch

from stf2m_core import answer, experiment, load_model
from stf2m_core.episodes import EpisodeSampler
from stf2m_core.errors import RunError
from stf2m_core.inspection import Firing, covariances, follow_adaptation, rule_cards, watch_rules, weights_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def pack(folder):
    return experiment.open_or_make_pack(folder / "packs" / experiment.EMBEDDED, "test")


@pytest.fixture(scope="module")
def trained(pack, folder):
    """(model, views, episodes of the meta-test) of a short run."""
    run = experiment.train_run(pack, experiment.config_for(pack, "test"), folder, progress_bar=False)
    model, views, splits = load_model(run.path, pack)
    setting = experiment.study_of(pack).test[-1]  # with one shot no inner step is taken
    return model, views, EpisodeSampler(pack, splits, "meta_test", setting, 0).sample(0, 12)


@pytest.fixture(scope="module")
def watched(trained):
    return watch_rules(*trained)


def test_firing_of_every_clip_sums_to_one_over_the_rules(trained, watched):
    model, _, batch = trained
    assert watched.firing.shape == (batch.query.numel(), model.config.fuzzy.n_rules)
    np.testing.assert_allclose(watched.firing.sum(1), 1, atol=1e-5)
    assert watched.firing.min() >= 0


def test_entropy_is_that_of_the_firing_and_typicality_never_positive(watched):
    n_rules = watched.firing.shape[1]
    expected = -(watched.firing * np.log(np.maximum(watched.firing, 1e-12))).sum(1) / np.log(n_rules)
    np.testing.assert_allclose(watched.entropy, expected, atol=1e-5)
    assert watched.typicality.max() <= 0


def test_label_and_row_belong_to_the_query_clips(pack, trained, watched):
    assert watched.row.tolist() == trained[2].query.flatten().tolist()
    assert watched.label.tolist() == pack.label_ids[watched.row].tolist()


def test_covariances_are_the_inverses_that_numpy_finds(trained):
    rules = trained[0].rules
    scale, factor = (tensor.detach().double().numpy() for tensor in (rules.log_precision, rules.factor))
    for found, diagonal, low_rank in zip(covariances(trained[0]), scale, factor, strict=True):
        expected = np.linalg.inv(np.diag(np.exp(2 * diagonal)) + low_rank @ low_rank.T)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)  # float32 weights


def test_the_plane_is_a_projection_that_stretches_nothing(trained, watched):
    whole = covariances(trained[0])
    assert watched.covariances.shape == (len(whole), 2, 2)
    own, projected = (np.linalg.eigvalsh(each) for each in (whole, watched.covariances))
    assert (projected > 0).all()
    assert (projected[:, -1] <= own[:, -1] * (1 + 1e-9)).all()
    np.testing.assert_allclose(watched.points.mean(0), 0, atol=1e-9)
    spread = np.cov(watched.points.T)
    assert spread[0, 0] >= spread[1, 1]
    assert abs(spread[0, 1]) < 1e-9 * max(1.0, spread[0, 0])


def test_adaptation_starts_at_the_zero_step_answer_and_ends_at_the_adapted_one(trained):
    model, views, batch = trained
    said, path = answer(model, views, batch), follow_adaptation(model, views, batch)
    n_steps = model.config.inner.steps_test
    assert path.accuracy.shape == path.nll.shape == (n_steps + 1, len(batch))
    for step, part in ((0, said.zero_step), (-1, said.adapted)):
        right = (part.argmax(-1) == batch.query_label).double().mean(1)
        nll = -torch.gather(part, 2, batch.query_label[..., None])[..., 0].mean(1)
        np.testing.assert_allclose(path.accuracy[step], right.numpy(), atol=1e-12)
        np.testing.assert_allclose(path.nll[step], nll.numpy(), atol=1e-6)
    assert np.abs(path.nll[0] - path.nll[-1]).max() > 1e-4


def test_without_inner_steps_the_path_is_one_point_and_the_task_weights_are_the_same(trained):
    still, moved = (follow_adaptation(*trained, n_steps=n) for n in (0, None))
    assert len(still.nll) == 1
    # views of the support that no step needs are not encoded, so sums may be taken in another order
    np.testing.assert_allclose(still.nll[0], moved.nll[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(still.gamma, moved.gamma, rtol=0, atol=1e-6)
    assert moved.gamma.shape == moved.beta.shape == (len(trained[2]), trained[0].config.encoder.hidden)


def test_a_rule_card_names_the_emotion_and_the_clip_for_which_the_rule_fires(pack):
    rows = np.array([next(i for i, label in enumerate(pack.label_ids) if label == e) for e in (3, 3, 5, 5)])
    rows[1], rows[3] = (np.flatnonzero(pack.label_ids == e)[1] for e in (3, 5))
    firing = np.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [1.0, 0.0]])
    blank = dict.fromkeys(("entropy", "typicality", "points", "centers", "covariances"), np.zeros(0))
    cards = rule_cards(Firing(firing=firing, label=pack.label_ids[rows], row=rows, **blank), pack, n_clips=1)
    names = pack.clips["clip_id"]
    assert cards["rule"].tolist() == [1, 2]  # by mean firing, .5 each
    assert cards["mean firing"].tolist() == pytest.approx([0.5, 0.5])
    assert cards["clearest clips"].tolist() == [names[rows[3]], names[rows[0]]]
    assert cards["fires for"][0].startswith(f"{pack.labels[5]} 85%")
    assert cards["fires for"][1].startswith(f"{pack.labels[3]} 85%")


def test_there_is_one_card_per_rule(pack, trained, watched):
    cards = rule_cards(watched, pack)
    assert sorted(cards["rule"]) == list(range(1, trained[0].config.fuzzy.n_rules + 1))
    assert cards["mean firing"].sum() == pytest.approx(1, abs=1e-5)


def test_the_weights_of_the_parts_add_up_to_all(trained):
    counts = weights_of(trained[0]).set_index("part")["weights"]
    assert counts["all"] == sum(p.numel() for p in trained[0].parameters())
    assert counts.drop("all").sum() == counts["all"]
    assert counts.min() > 0


def test_a_model_without_rules_is_refused(pack, trained, folder):
    config = experiment.config_for(pack, "test", variant="no-fuzzy")
    run = experiment.train_run(pack, config, folder, variant="no-fuzzy", progress_bar=False)
    model, views, _ = load_model(run.path, pack)
    with pytest.raises(RunError, match="this run has no fuzzy rules; expected a variant other than no-fuzzy"):
        watch_rules(model, views, trained[2])
