"""Frozen settings: one dataclass per concern, composed once in `RunConfig`; a default exists here and nowhere else.

Unknown keys, ill-typed values and pairs that make no sense together are refused, never repaired. `digest()` goes into
every record.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stf2m_core.errors import ConfigError

Regime = Literal["P", "D", "C"]
"""P: known emotions, one new person, own clips. D: known emotions, new people. C: new emotions, permuted labels."""


def _refuse(condition: bool, what: str, expected: str, where: str) -> None:
    if condition:
        raise ConfigError(what, expected=expected, where=where)


def at_least(default: float | None, least: float) -> Any:
    """A number from `least` on."""
    return field(default=default, metadata={"expected": f"at least {least}", "holds": lambda x: x >= least})


def more_than(default: float, least: float) -> Any:
    """A number above `least`."""
    return field(default=default, metadata={"expected": f"more than {least}", "holds": lambda x: x > least})


def between(default: float, least: float, most: float, *, least_open: bool = False, closed: bool = True) -> Any:
    """A number from `least` to `most`, with or without the ends."""
    bounds = f"{'(' if least_open else '['}{least}, {most}{']' if closed else ')'}"

    def holds(x: float) -> bool:
        return (x > least if least_open else x >= least) and (x <= most if closed else x < most)

    return field(default=default, metadata={"expected": f"a number in {bounds}", "holds": holds})


class _Settings:
    """What all settings do when they are made: types and bounds are checked, an int given for a float becomes one."""

    __slots__ = ()

    def __post_init__(self) -> None:
        hints, where = get_type_hints(type(self)), type(self).__name__
        for item in fields(self):
            value = _build(hints[item.name], getattr(self, item.name), f"{where}.{item.name}")
            object.__setattr__(self, item.name, value)
            wrong = isinstance(value, float) and not math.isfinite(value)
            _refuse(wrong, f"{item.name} = {value}", "a finite number", where)
            if "holds" in item.metadata and value is not None:
                wrong = not item.metadata["holds"](value)
                _refuse(wrong, f"{item.name} = {value}", item.metadata["expected"], where)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig(_Settings):
    """How clips become padded views."""

    modalities: tuple[str, ...] = ()
    """Names to use; empty: all of the pack."""
    step_s: float = more_than(0.1, 0)
    """Grid step in seconds; a modality sampled more coarsely keeps its own frames."""
    normalise: Literal["support", "global", "none"] = "support"
    """Which statistics standardise the values (METHOD, 'Support-anchored normalisation')."""
    shrinkage: float | None = at_least(None, 0)
    """Weight of the meta-train statistics, in clips; None: as the clips of meta-train say, per node and channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig(_Settings):
    """Meta-splits: disjoint by subject and group and, in Regime C, by label."""

    fold: int = at_least(0, 0)
    """Which block of subjects is meta-test."""
    n_folds: int = at_least(4, 2)
    """Blocks of neighbouring subjects."""
    n_val_subjects: int = at_least(3, 1)
    """Subjects of meta-validation, the ones that follow the meta-test block."""
    n_val_labels: int = at_least(0, 0)
    """Labels only in meta-validation (Regime C)."""
    n_test_labels: int = at_least(0, 0)
    """Labels only in meta-test (Regime C)."""
    label_seed: int = at_least(0, 0)
    """Chooses those labels; not the seed of the training, so that all trainings answer the same episodes."""

    def __post_init__(self) -> None:
        _Settings.__post_init__(self)
        _refuse(not 0 <= self.fold < self.n_folds, f"fold = {self.fold}", f"0 to {self.n_folds - 1}", "split")
        _refuse((self.n_val_labels == 0) != (self.n_test_labels == 0), "only one of n_val_labels, n_test_labels is 0",
                "both or neither", "split")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeConfig(_Settings):
    """One kind of N-way K-shot episode."""

    regime: Regime = "D"
    """P, D or C; see `Regime`."""
    n_way: int = at_least(5, 2)
    """Classes per episode."""
    n_shot: int = at_least(1, 1)
    """Support clips per class."""
    n_query: int = at_least(5, 1)
    """Query clips per class (natural prior: on average)."""
    query_prior: Literal["balanced", "natural"] = "balanced"
    """Exactly n_query per class, or as the clips come."""

    @property
    def title(self) -> str:
        """As in tables, e.g. "P 8-way 1-shot"."""
        prior = "" if self.query_prior == "balanced" else ", natural prior"
        return f"{self.regime} {self.n_way}-way {self.n_shot}-shot{prior}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(_Settings):
    """Temporal-spatial-temporal convolution, per modality and then on the joint graph."""

    hidden: int = at_least(32, 1)
    """Channels of every node."""
    embedding: int = at_least(64, 1)
    """Numbers per clip after fusion."""
    kernel: int = at_least(3, 1)
    """Taps of a temporal convolution, odd; 1 switches temporal mixing off (ablation)."""
    dilations: tuple[int, int] = (1, 2)
    """Of the two temporal convolutions of a block."""
    causal: bool = False
    """Convolutions, levels and slots look back only, for prediction while a clip runs: the state of a slot is a
    function of what was seen until the slot's centre. Clips longer than max_slots - 1 slots must be over first."""
    positional: bool = True
    """Whether frames and slots carry features of their time; off, only their order and spacing remain (ablation)."""
    hops: int = at_least(2, 0)
    """Powers of each adjacency, or orders of its Chebyshev polynomials."""
    spatial: Literal["diffusion", "identity", "chebyshev", "node-mixing"] = "diffusion"
    """Diffusion over learned and prior graph, no mixing of nodes (ablation; same number of weights), Chebyshev
    polynomials of the graphs' scaled Laplacians, or mixing only after time is pooled (ablation)."""
    slot_s: float = more_than(0.5, 0)
    """Width of a slot of the joint graph, seconds."""
    max_slots: int = at_least(32, 2)
    """Longer clips get wider slots."""
    level_path: bool = True
    """Whether mean and deviation of every input channel also reach the embedding by a linear path of their own."""
    node_read_out: bool = False
    """Whether the read-out also keeps the nodes apart."""
    dropout: float = between(0.1, 0, 1, closed=False)
    """Of block outputs and of the clip embedding."""

    def __post_init__(self) -> None:
        _Settings.__post_init__(self)
        _refuse(self.kernel % 2 == 0, f"kernel = {self.kernel}", "an odd number", "encoder")
        _refuse(min(self.dilations) < 1, f"dilations = {self.dilations}", "at least 1", "encoder")
        _refuse(self.hops == 0 and self.spatial != "identity", f"hops = 0 with spatial = {self.spatial!r}",
                "at least 1: without a hop no node sees another; that is spatial = 'identity'", "encoder")  # fmt: skip
        _refuse(self.causal and self.spatial == "node-mixing", "causal = True with spatial = 'node-mixing'",
                "another spatial: nodes that meet after time is pooled meet when the clip is over",
                "encoder")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzyConfig(_Settings):
    """Generalised fuzzy rules."""

    kind: Literal["rules", "mlp"] = "rules"
    """Rules, or a plain network of as many weights (ablation)."""
    n_rules: int = at_least(24, 2)
    """Rules."""
    n_features: int = at_least(16, 1)
    """Features that the antecedents see."""
    rank: int = at_least(4, 0)
    """Of the rotated part of each precision; 0: axis-parallel ellipsoids."""
    n_consequents: int = at_least(16, 1)
    """Numbers each rule answers with."""
    entropy: float = between(0.7, 0, 1, closed=False, least_open=True)
    """Mean normalised entropy of firing that calibration starts from."""
    drop_rule: float = between(0.1, 0, 1, closed=False)
    """Share of rules left out per training episode; at least two stay."""
    prior_weight: float = more_than(1.0, 0)
    """Clips' worth of prior in a rule's label distribution."""
    antecedent: Literal["low-rank", "bell", "diagonal", "full"] = "low-rank"
    """Ellipsoids of low-rank precision (rank 0: axis-parallel), generalised bells of such a precision, axis-parallel
    ellipsoids, or ellipsoids of full precision."""
    firing: Literal["calibrated", "tsk", "htsk"] = "calibrated"
    """Scale started at the wanted entropy and then learned, plain product of memberships, or its mean per feature."""
    consequents: Literal["zero-order", "first-order"] = "zero-order"
    """Each rule answers with constants, or with a linear function of a few common directions of its features."""
    n_directions: int = at_least(8, 1)
    """Common directions that first-order consequents see."""
    reseed_after: int = at_least(0, 0)
    """Outer steps that a rule may be idle (mean firing below a tenth of its even share) before it is placed anew at
    the least typical clip; 0: never."""

    def __post_init__(self) -> None:
        _Settings.__post_init__(self)
        _refuse(self.antecedent in ("diagonal", "full") and self.rank > 0,
                f"rank = {self.rank} with {self.antecedent} antecedents",
                "rank = 0: only low-rank and bell antecedents have a rotated part of a chosen rank",
                "fuzzy")  # fmt: skip
        _refuse(self.antecedent == "bell" and self.firing == "htsk", "firing = 'htsk' with bell antecedents",
                "calibrated or tsk: a bell of a distance is one membership, with no mean over features to take",
                "fuzzy")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteFusionConfig(_Settings):
    """The fuzzy layer alone as the model: from the votes on voice and face to the votes on both."""

    rules: FuzzyConfig = field(default_factory=lambda: FuzzyConfig(n_features=12, n_consequents=6, drop_rule=0.0))
    """The rules; their entropy is chosen among `entropies`."""
    entropies: tuple[float, ...] = (0.5, 0.8)
    """Entropies of firing to calibrate at; each fold chooses one on its validation actors, with the first seed."""
    inputs: Literal["votes", "votes and intensities"] = "votes"
    """Whether the answers also see how intense the raters found each emotion."""
    smoothing: float = more_than(1.0, 0)
    """Votes added to every emotion before the logarithm."""
    floor: float = between(0.05, 0, 1, least_open=True, closed=False)
    """Share of the target that is spread evenly over the emotions: nobody's votes rule an emotion out."""
    n_folds: int = at_least(10, 3)
    """Blocks of neighbouring actors; one is test, the next validation, the others train."""
    ridge: float = at_least(0.1, 0)
    """Weight of the squared departures of the rules' slopes from their common slope."""
    max_steps: int = at_least(500, 1)
    """Steps of training."""
    batch: int = at_least(256, 1)
    """Clips per step."""
    lr: float = more_than(4e-2, 0)
    """Learning rate of the consequents at its peak."""
    antecedent_rate: float = at_least(0.1, 0)
    """Learning rate of the antecedents as a share of it."""
    average: float = between(0.99, 0, 1, closed=False)
    """Decay of the running average of the weights that is validated and kept."""
    validate_every: int = at_least(50, 1)
    """Steps between validations; the best is kept."""

    def __post_init__(self) -> None:
        _Settings.__post_init__(self)
        _refuse(self.rules.kind != "rules", f"rules.kind = {self.rules.kind!r}", "'rules': there is nothing else",
                "vote fusion")  # fmt: skip
        _refuse((self.rules.n_features, self.rules.n_consequents) != (12, 6),
                f"{self.rules.n_features} features and {self.rules.n_consequents} consequents",
                "12 features, the votes for six emotions twice, and 6 consequents", "vote fusion")  # fmt: skip
        _refuse(not self.entropies, "entropies = ()", "at least one", "vote fusion")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaRNNConfig(_Settings):
    """The recurrent network that reads each emotion task of the support."""

    kind: Literal["bilstm", "constant", "deep-set", "gru", "mmaml", "recurrent"] = "bilstm"
    """LSTM over the shots of each class, learned constants in its place (ablation), mean over shots (control), GRU with
    generated weights, one LSTM over the support that modulates only, or a recurrent learner that answers itself."""
    hidden: int = at_least(40, 1)
    """Per direction."""
    n_layers: int = at_least(2, 1)
    """Stacked recurrent layers."""
    task_size: int = at_least(32, 1)
    """Numbers of the task code tau."""
    n_orders: int = at_least(4, 1)
    """Random orders of the support that are averaged at test."""

    def __post_init__(self) -> None:
        _Settings.__post_init__(self)
        _refuse(self.kind == "gru" and self.n_layers > 1, f"n_layers = {self.n_layers} with kind = 'gru'",
                "1: each of its weights is generated and costs three", "meta_rnn")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerConfig(_Settings):
    """Fast weights and the inner loop."""

    steps_train: int = at_least(3, 0)
    """Inner steps while training."""
    steps_test: int = at_least(5, 0)
    """Inner steps at meta-test."""
    rate: float = more_than(0.1, 0)
    """Learning rate that fast weights start from, a tenth of it for the head's bias; the outer loop learns the rest."""
    center_rate: float = at_least(1.0, 0)
    """Of the head's centers and bias, relative to `rate`; 0: they stay."""
    fuzzy_rate: float = more_than(1.0, 0)
    """Of the rules' fast weights, relative to `rate`."""
    film_rate: float = more_than(1.0, 0)
    """Of FiLM, relative to `rate`."""
    fast: tuple[Literal["head", "fuzzy", "film"], ...] = ("head", "fuzzy", "film")
    """Groups of weights that adapt."""
    left_out: bool = True
    """No support clip votes for itself in the inner loss; False: it does (ablation)."""
    n_views: int = at_least(1, 0)
    """Random views of each support clip in the inner loss; 0: the clean clips (ablation)."""
    modality_drop: float = between(0.3, 0, 1)
    """Chance that a random view leaves a modality out; one always stays."""
    single_modality: float = between(0.15, 0, 1)
    """Chance that a random view keeps exactly one modality."""
    crop: float = between(0.7, 0, 1, least_open=True)
    """Least share of the clip's duration that a random view keeps."""
    clip_norm: float = more_than(5.0, 0)
    """Bound on the norm of an episode's inner gradient."""
    label_knowledge: bool = True
    """Known emotions carry what meta-training learned of them (anchors, rule priors); always off for new emotions."""

    def __post_init__(self) -> None:
        _Settings.__post_init__(self)
        _refuse(not self.fast, "fast = ()", "at least one of head, fuzzy, film", "inner")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(_Settings):
    """The outer loop."""

    seed: int = 0
    """Of everything random in the run."""
    meta_batch: int = at_least(4, 1)
    """Episodes per outer step."""
    chunk: int = at_least(4, 1)
    """Episodes of an outer step computed at once; fewer need less memory. Gradients add up; the even use of rules and
    the noise are then per chunk."""
    max_steps: int = at_least(300, 1)
    """Outer steps."""
    start: float = between(0.0, 0, 1)
    """Share of steps, before all others, in which the encoder learns to name the emotions of meta-train outright."""
    warm_up: float = between(0.1, 0, 1)
    """Share of steps, after the start, with prototypes only (no inner step)."""
    first_order: float = between(0.3, 0, 1)
    """Share of steps, after the warm-up, with first-order gradients; second order after that."""
    second_order: bool = True
    """Whether second order is ever used."""
    lr: float = more_than(2e-3, 0)
    """Outer learning rate at its peak."""
    weight_decay: float = at_least(1e-2, 0)
    """Of AdamW; antecedents have none."""
    clip_norm: float = more_than(2.0, 0)
    """Bound on the norm of the outer gradient."""
    smoothing: float = between(0.05, 0, 1, closed=False)
    """Label smoothing of hard labels; none on votes."""
    knowledge_loss: float = at_least(0.5, 0)
    """Weight of recognising the query from what is known of the emotions alone."""
    fuzzy_loss: float = at_least(0.3, 0)
    """Weight of the fuzzy label distribution's own loss."""
    balance_loss: float = at_least(1.0, 0)
    """Weight of the even use of rules (a tenth of it after the warm-up)."""
    overlap_loss: float = at_least(0.01, 0)
    """Weight of the overlap of rules."""
    noise: float = at_least(0.1, 0)
    """Standard deviation of noise on standardised values, fresh in every frame; training only."""
    level_noise: float = at_least(0.3, 0)
    """Standard deviation of noise that is constant within a clip, as if another person or device; training only."""
    average: float = between(0.97, 0, 1, closed=False)
    """Decay of the running average of the weights that is validated and kept; 0: the last weights themselves."""
    view_drop: float = between(0.5, 0, 1)
    """Chance that a training episode drops modalities at all (missing-modality draws)."""
    validate_every: int = at_least(30, 1)
    """Outer steps between meta-validations."""
    validation_episodes: int = at_least(16, 1)
    """Episodes per setting and meta-validation."""
    patience: int = at_least(6, 1)
    """Meta-validations without a better NLL until the end; counted after the warm-up."""
    checkpoint_every: int = at_least(30, 1)
    """Outer steps between checkpoints."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the encoder; everything fuzzy stays float32 (float64 under float64)."""
    threads: int = at_least(1, 1)
    """CPU threads of one run; changing it changes the order of sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig(_Settings):
    """Meta-test."""

    episodes: int = at_least(600, 1)
    """Episodes per setting."""
    chunk: int = at_least(4, 1)
    """Episodes computed at once; changes memory, not results."""
    seed: int = 0
    """Of the episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(_Settings):
    """All settings of a run. `episodes` are the kinds of training episode, taken in turn, one kind per outer step."""

    views: ViewConfig = field(default_factory=ViewConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    episodes: tuple[EpisodeConfig, ...] = field(default_factory=lambda: (EpisodeConfig(),))
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    fuzzy: FuzzyConfig = field(default_factory=FuzzyConfig)
    meta_rnn: MetaRNNConfig = field(default_factory=MetaRNNConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _Settings.__post_init__(self)
        _refuse(not self.episodes, "episodes = ()", "at least one kind of episode", "config")
        novel = {episode.regime == "C" for episode in self.episodes}
        _refuse(len(novel) > 1, "Regime C beside Regime P or D", "new emotions or known emotions", "episodes")
        _refuse(novel == {False} and self.split.n_test_labels > 0, f"n_test_labels = {self.split.n_test_labels}",
                "0 in Regimes P and D, which are about known emotions", "split")  # fmt: skip
        _refuse(novel == {True} and self.split.n_test_labels == 0, "Regime C without held-out labels",
                "split.n_val_labels and split.n_test_labels > 0", "config")  # fmt: skip
        _refuse(novel == {True} and self.inner.label_knowledge, "label_knowledge = True in Regime C",
                "False: a new emotion has no past", "inner")  # fmt: skip
        _refuse(self.fuzzy.reseed_after > 0, f"reseed_after = {self.fuzzy.reseed_after} in meta-training",
                "0: a rule that moved would leave the label prior and the rates learned for it behind; only vote "
                "fusion re-seeds", "fuzzy")  # fmt: skip
        kind, steps = self.meta_rnn.kind, (self.inner.steps_train, self.inner.steps_test)
        _refuse(kind == "recurrent" and steps != (0, 0), f"steps_train, steps_test = {steps} with a recurrent learner",
                "0 and 0: what it learns of a task is its state, there are no fast weights to step",
                "inner")  # fmt: skip
        _refuse(kind == "mmaml" and "film" in self.inner.fast, f"fast = {self.inner.fast} with meta_rnn.kind = 'mmaml'",
                "no 'film': there the modulation is generated and stays, and what it modulates adapts",
                "inner")  # fmt: skip
        no_rules = self.fuzzy.kind == "mlp" and self.inner.fast == ("fuzzy",)
        _refuse(no_rules, "fast = ('fuzzy',) without rules", "head or film beside it", "inner")

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with changes, by dotted name with a double underscore: `replace(train__seed=1, split__fold=2)`.

        Raises:
            ConfigError: on an unknown name or an ill-typed value.
        """
        mapping = self.to_mapping()
        for name, value in changes.items():
            *path, last = name.split("__")
            target, kind = mapping, RunConfig
            for part in path:
                _known(part, kind)
                target, kind = target[part], get_type_hints(kind)[part]
            _known(last, kind)
            target[last] = _plain(value)
        return RunConfig.from_mapping(mapping)

    def to_mapping(self) -> dict[str, Any]:
        """As nested dicts, lists, strings and numbers."""
        return _plain(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RunConfig:
        """From what `to_mapping` gave.

        Raises:
            ConfigError: on an unknown key (the nearest legal one is named) or an ill-typed value.
        """
        return _build(cls, mapping, "config")

    def digest(self) -> str:
        """12 hex digits of the canonical JSON."""
        text = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def preset(cls, profile: Literal["smoke", "standard", "paper"]) -> RunConfig:
        """The sizes of a profile; what a data set needs besides stands in `experiment.config_for`.

        Raises:
            ConfigError: on an unknown profile.
        """
        _refuse(profile not in PROFILES, f"profile = {profile!r}", f"one of {', '.join(PROFILES)}", "preset")
        return cls().replace(**PROFILES[profile])


PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"train__max_steps": 120, "train__patience": 4, "evaluation__episodes": 100},
    "standard": {},
    "paper": {"train__max_steps": 2000, "train__patience": 15, "evaluation__episodes": 2000},
    "test": {
        "encoder__hidden": 8, "encoder__embedding": 16, "fuzzy__n_rules": 6, "fuzzy__n_features": 8,
        "meta_rnn__hidden": 8, "meta_rnn__n_layers": 1, "meta_rnn__n_orders": 1, "meta_rnn__task_size": 8,
        "inner__steps_train": 1, "inner__steps_test": 2, "train__meta_batch": 2, "train__max_steps": 4,
        "train__validate_every": 2, "train__validation_episodes": 2, "evaluation__episodes": 8,
    },
}  # fmt: skip
"""What differs from the defaults, per profile; `test` learns nothing and only shows that everything runs."""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _known(name: str, kind: type) -> None:
    legal = [f.name for f in fields(kind)] if dataclasses.is_dataclass(kind) else []
    if name not in legal:
        near = difflib.get_close_matches(str(name), legal, 1)
        raise ConfigError(f"unknown setting {name!r}", expected=f"one of {', '.join(legal)}", where=kind.__name__,
                          remedy=f"Did you mean {near[0]}?" if near else None)  # fmt: skip


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as an instance of the annotated `kind`; refuses what does not fit."""
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        _refuse(not isinstance(value, Mapping), f"{where} = {value!r}", "a mapping of settings", where)
        for name in value:
            _known(name, kind)
        hints = get_type_hints(kind)
        return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        _refuse(value not in args, f"{where} = {value!r}", f"one of {', '.join(map(repr, args))}", "config")
        return value
    if origin is tuple:
        _refuse(not isinstance(value, (list, tuple)), f"{where} = {value!r}", "a list", "config")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        _refuse(len(kinds) != len(value), f"{where} has {len(value)} entries", f"{len(kinds)}", "config")
        return tuple(_build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if origin in (Union, types.UnionType):
        return None if value is None else _build(next(a for a in args if a is not type(None)), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    _refuse(wrong, f"{where} = {value!r}", f"a value of type {kind.__name__}", "config")
    return value
