"""Settings: what is unknown, ill-typed or contradictory is refused; a digest names exactly one configuration."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from stf2m_core.config import (
    EncoderConfig,
    EpisodeConfig,
    FuzzyConfig,
    InnerConfig,
    RunConfig,
    SplitConfig,
    TrainConfig,
    ViewConfig,
)
from stf2m_core.errors import ConfigError

NOVEL = {"split__n_val_labels": 3, "split__n_test_labels": 3, "inner__label_knowledge": False}
PARTS = ("views", "split", "encoder", "fuzzy", "meta_rnn", "inner", "train", "evaluation")


def another(kind, value):
    """A legal value of the annotated kind other than `value`."""
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if kind is bool:
        return not value
    if kind is int:
        return value + 2
    if kind is float:
        return value * 0.9 or 0.1
    return {None: 1.0, (): ["audio"], (1, 2): [1, 4], ("head", "fuzzy", "film"): ["head"]}[value]


def leaves():
    """(dotted name, legal other value) of every setting that can change alone."""
    config = RunConfig()
    for part in PARTS:
        settings = getattr(config, part)
        for name, kind in get_type_hints(type(settings)).items():
            if name not in ("n_val_labels", "n_test_labels", "reseed_after"):
                yield f"{part}__{name}", another(kind, getattr(settings, name))


def test_an_unknown_key_is_refused_and_the_nearest_named():
    with pytest.raises(ConfigError, match=r"setting 'n_rule'; expected one of .*FuzzyConfig.*Did you mean n_rules\?"):
        RunConfig.from_mapping({"fuzzy": {"n_rule": 3}})
    with pytest.raises(ConfigError, match=r"unknown setting 'trian'.*Did you mean train\?"):
        RunConfig.from_mapping({"trian": {}})
    with pytest.raises(ConfigError, match=r"unknown setting 'n_ways'.*EpisodeConfig.*Did you mean n_way\?"):
        RunConfig.from_mapping({"episodes": [{"n_ways": 3}]})


def test_an_unknown_key_near_to_nothing_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match=r"unknown setting 'zzzzzz'") as caught:
        RunConfig.from_mapping({"zzzzzz": 1})
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "word"), [("train__sed", "seed"), ("trian__seed", "train"), ("seed", ""), ("train__seed__x", "")]
)
def test_replace_refuses_an_unknown_name(name, word):
    with pytest.raises(ConfigError, match=rf"unknown setting.*{word}"):
        RunConfig().replace(**{name: 1})


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"train": {"seed": "0"}}, "config.train.seed = '0'.*type int"),
        ({"train": {"seed": 1.0}}, "config.train.seed = 1.0.*type int"),
        ({"train": {"seed": True}}, "config.train.seed = True.*type int"),
        ({"train": {"seed": None}}, "config.train.seed = None.*type int"),
        ({"train": {"lr": "1e-3"}}, "config.train.lr = '1e-3'.*type float"),
        ({"train": {"lr": True}}, "config.train.lr = True.*type float"),
        ({"train": {"second_order": 1}}, "config.train.second_order = 1.*type bool"),
        ({"train": {"device": "gpu"}}, "config.train.device = 'gpu'.*'auto', 'cpu', 'cuda', 'mps'"),
        ({"fuzzy": []}, r"config.fuzzy = \[\].*a mapping"),
        ({"fuzzy": None}, "config.fuzzy = None.*a mapping"),
        ({"encoder": {"dilations": [1, 2, 4]}}, "config.encoder.dilations has 3 entries.*2"),
        ({"encoder": {"dilations": 2}}, "config.encoder.dilations = 2.*a list"),
        ({"encoder": {"dilations": [1, "2"]}}, r"config.encoder.dilations\[1\] = '2'.*type int"),
        ({"views": {"modalities": "audio"}}, "config.views.modalities = 'audio'.*a list"),
        ({"inner": {"fast": ["heads"]}}, r"config.inner.fast\[0\] = 'heads'.*'head', 'fuzzy', 'film'"),
        ({"episodes": {"n_way": 3}}, "config.episodes = .*a list"),
        ({"episodes": [{"regime": "p"}]}, r"config.episodes\[0\].regime = 'p'.*'P', 'D', 'C'"),
    ],
)  # fmt: skip
def test_an_ill_typed_value_is_refused_with_its_place(mapping, expected):
    with pytest.raises(ConfigError, match=expected):
        RunConfig.from_mapping(mapping)


def test_a_configuration_that_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match="config = 3; expected a mapping"):
        RunConfig.from_mapping(3)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (ViewConfig, {"step_s": 0.0}, "step_s = 0.0; expected more than 0"),
        (ViewConfig, {"shrinkage": -1.0}, "shrinkage = -1.0; expected at least 0"),
        (SplitConfig, {"fold": 4}, "fold = 4; expected 0 to 3"),
        (SplitConfig, {"fold": -1}, "fold = -1; expected at least 0"),
        (SplitConfig, {"n_val_subjects": 0}, "n_val_subjects = 0.*at least 1"),
        (EpisodeConfig, {"n_way": 1}, "n_way = 1.*at least 2"),
        (EpisodeConfig, {"n_shot": 0}, "n_shot = 0.*at least 1"),
        (EpisodeConfig, {"n_query": 0}, "n_query = 0.*at least 1"),
        (EncoderConfig, {"kernel": 2}, "kernel = 2.*odd"),
        (EncoderConfig, {"dropout": 1.0}, "dropout = 1.0; expected a number in"),
        (FuzzyConfig, {"n_rules": 1}, "n_rules = 1.*at least 2"),
        (FuzzyConfig, {"entropy": 1.0}, "entropy = 1.0"),
        (FuzzyConfig, {"drop_rule": 1.0}, "drop_rule = 1.0"),
        (FuzzyConfig, {"rank": -1}, "rank = -1"),
        (InnerConfig, {"crop": 0.0}, "crop = 0.0"),
        (InnerConfig, {"steps_test": -1}, "steps_test = -1; expected at least 0"),
        (InnerConfig, {"fast": ()}, r"fast = \(\).*at least one"),
        (TrainConfig, {"meta_batch": 0}, "meta_batch = 0"),
        (TrainConfig, {"lr": 0.0}, "lr = 0.0"),
    ],
)
def test_a_value_out_of_range_is_refused_wherever_it_is_set(kind, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        kind(**settings)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"episodes": ()}, "at least one kind of episode"),
        ({"episodes": (EpisodeConfig(regime="C"), EpisodeConfig(regime="D")), **NOVEL}, "Regime C beside"),
        ({"episodes": (EpisodeConfig(regime="C"),)}, "Regime C without held-out labels"),
        ({"episodes": (EpisodeConfig(regime="C"),), **NOVEL, "inner__label_knowledge": True}, "no past"),
        ({"split__n_val_labels": 2}, "only one of n_val_labels, n_test_labels is 0"),
        ({"split__n_test_labels": 2}, "only one of n_val_labels, n_test_labels is 0"),
        ({"fuzzy__kind": "mlp", "inner__fast": ("fuzzy",)}, r"fast = \('fuzzy',\) without rules"),
        ({"split__fold": 2, "split__n_folds": 2}, "fold = 2; expected 0 to 1"),
        ({"meta_rnn__kind": "recurrent"}, r"steps_train, steps_test = \(3, 5\) with a recurrent.*0 and 0"),
        ({"meta_rnn__kind": "recurrent", "inner__steps_train": 0}, r"\(0, 5\) with a recurrent learner"),
        ({"meta_rnn__kind": "mmaml"}, r"fast = .*'film'.* with meta_rnn.kind = 'mmaml'; expected no 'film'"),
        ({"meta_rnn__kind": "gru"}, "n_layers = 2 with kind = 'gru'; expected 1"),
        ({"encoder__hops": 0}, "hops = 0 with spatial = 'diffusion'; expected at least 1"),
        ({"encoder__hops": 0, "encoder__spatial": "chebyshev"}, "hops = 0 with spatial = 'chebyshev'"),
        ({"encoder__hops": 0, "encoder__spatial": "node-mixing"}, "hops = 0 with spatial = 'node-mixing'"),
        ({"encoder__causal": True, "encoder__spatial": "node-mixing"}, "causal = True with spatial = 'node-mixing'"),
        ({"fuzzy__reseed_after": 50}, "reseed_after = 50 in meta-training; expected 0: a rule that moved"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        RunConfig().replace(**changes)


def test_readings_that_belong_together_are_taken():
    still = RunConfig().replace(meta_rnn__kind="recurrent", inner__steps_train=0, inner__steps_test=0)
    assert (still.inner.steps_train, still.inner.steps_test) == (0, 0)
    assert RunConfig().replace(meta_rnn__kind="mmaml", inner__fast=("head", "fuzzy")).inner.fast == ("head", "fuzzy")
    assert RunConfig().replace(meta_rnn__kind="gru", meta_rnn__n_layers=1).meta_rnn.kind == "gru"
    assert RunConfig().replace(encoder__hops=0, encoder__spatial="identity").encoder.hops == 0


def test_personal_and_domain_episodes_may_be_trained_together_and_new_emotions_alone():
    together = RunConfig().replace(episodes=(EpisodeConfig(regime="P"), EpisodeConfig(regime="D")))
    novel = RunConfig().replace(episodes=(EpisodeConfig(regime="C"),), **NOVEL)
    assert [episode.regime for episode in together.episodes] == ["P", "D"]
    assert novel.split.n_test_labels == 3


def test_replace_changes_what_is_named_and_nothing_else():
    config = RunConfig()
    changed = config.replace(train__seed=7, split__fold=2, views__modalities=("audio",))
    before, after = config.to_mapping(), changed.to_mapping()
    before["train"]["seed"], before["split"]["fold"], before["views"]["modalities"] = 7, 2, ["audio"]
    assert after == before
    assert config == RunConfig(), "the original stays as it was"


def test_replace_takes_whole_parts_and_episode_kinds():
    episodes = (EpisodeConfig(n_way=3), EpisodeConfig(regime="P", n_way=2, query_prior="natural"))
    changed = RunConfig().replace(episodes=episodes, train=TrainConfig(seed=4))
    assert changed.episodes == episodes
    assert changed.train == TrainConfig(seed=4)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError, match="seed"):
        RunConfig().train.seed = 1


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_a_configuration_survives_json(profile):
    config = RunConfig.preset(profile).replace(episodes=(EpisodeConfig(regime="P"), EpisodeConfig(n_shot=5)))
    again = RunConfig.from_mapping(json.loads(json.dumps(config.to_mapping())))
    assert again == config
    assert again.digest() == config.digest()


def test_missing_keys_take_their_defaults():
    assert RunConfig.from_mapping({}) == RunConfig()
    assert RunConfig.from_mapping({"train": {"seed": 3}}) == RunConfig(train=TrainConfig(seed=3))


def test_profiles_differ_and_an_unknown_one_is_refused():
    assert len({RunConfig.preset(profile).digest() for profile in ("smoke", "standard", "paper")}) == 3
    with pytest.raises(ConfigError, match="profile = 'tiny'; expected one of smoke, standard, paper"):
        RunConfig.preset("tiny")


def test_the_digest_is_12_hex_digits_of_canonical_json():
    config = RunConfig()
    text = json.dumps(config.to_mapping(), sort_keys=True, separators=(",", ":"))
    assert config.digest() == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_digest_is_the_same_in_another_process():
    code = "from stf2m_core.config import RunConfig; import sys; sys.stdout.write(RunConfig().digest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == RunConfig().digest()


def test_the_digest_does_not_depend_on_the_order_of_keys():
    mapping = RunConfig().to_mapping()
    turned = {part: mapping[part] for part in reversed(mapping)}
    turned["train"] = {name: mapping["train"][name] for name in reversed(mapping["train"])}
    assert RunConfig.from_mapping(turned).digest() == RunConfig().digest()


def test_every_single_setting_changes_the_digest():
    changes = dict(leaves())
    changed = {name: RunConfig().replace(**{name: value}).digest() for name, value in changes.items()}
    labels = RunConfig().replace(split__n_val_labels=2, split__n_test_labels=2, episodes=(EpisodeConfig(regime="C"),),
                                 inner__label_knowledge=False)  # fmt: skip
    digests = [RunConfig().digest(), labels.digest(), *changed.values()]
    assert len(changes) > 60
    assert len(set(digests)) == len(digests)


def test_every_setting_of_an_episode_and_their_order_change_the_digest():
    kinds = [EpisodeConfig(), EpisodeConfig(regime="P"), EpisodeConfig(n_way=6), EpisodeConfig(n_shot=2),
             EpisodeConfig(n_query=6), EpisodeConfig(query_prior="natural")]  # fmt: skip
    digests = [RunConfig(episodes=(kind,)).digest() for kind in kinds]
    digests += [RunConfig(episodes=tuple(kinds[:2])).digest(), RunConfig(episodes=tuple(kinds[1::-1])).digest()]
    assert len(set(digests)) == len(digests)


def test_an_episode_has_a_title_for_tables():
    assert EpisodeConfig(regime="P", n_way=8, n_shot=1).title == "P 8-way 1-shot"
    assert EpisodeConfig(n_way=3, n_shot=2, query_prior="natural").title == "D 3-way 2-shot, natural prior"


def test_an_ill_typed_value_is_refused_by_the_constructor_too():
    with pytest.raises(ConfigError, match="regime = 'p'"):
        EpisodeConfig(regime="p")


def test_held_out_labels_without_regime_c_are_refused():
    with pytest.raises(ConfigError, match="n_test_labels"):
        RunConfig().replace(split__n_val_labels=3, split__n_test_labels=3)


@pytest.mark.parametrize("name", ["train__lr", "views__step_s", "train__weight_decay", "inner__modality_drop"])
def test_a_number_that_is_not_finite_is_refused(name):
    with pytest.raises(ConfigError, match="nan"):
        RunConfig().replace(**{name: float("nan")})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inner__modality_drop", 1.5),
        ("inner__single_modality", -0.1),
        ("inner__clip_norm", -1.0),
        ("encoder__hidden", 0),
        ("encoder__dilations", (0, 1)),
        ("encoder__hops", -1),
        ("fuzzy__n_features", 0),
        ("fuzzy__prior_weight", -1.0),
        ("meta_rnn__hidden", 0),
        ("meta_rnn__n_orders", 0),
        ("train__smoothing", 2.0),
        ("train__warm_up", 1.5),
        ("train__view_drop", -1.0),
        ("train__noise", -1.0),
        ("train__validation_episodes", 0),
        ("evaluation__episodes", 0),
        ("evaluation__chunk", 0),
        ("split__n_folds", 1),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ConfigError, match=name.partition("__")[2]):
        RunConfig().replace(**{name: value})


def test_equal_configurations_have_equal_digests():
    one, two = RunConfig(train=TrainConfig(clip_norm=2)), RunConfig(train=TrainConfig(clip_norm=2.0))
    assert one == two
    assert one.digest() == two.digest()
