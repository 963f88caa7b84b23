"""Fuzzy fusion of votes: what raters say of voice and face alone enters, what they say of both together leaves.

The fuzzy layer alone is the model. Each rule owns a pattern of votes and answers with a distribution over emotions; the
prediction is the mean of the answers, weighted by firing: p = sum_r phi_r(x) softmax(b_r + A_r u). Source: ours, D-43.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from stf2m_core import seeding
from stf2m_core.config import FuzzyConfig, VoteFusionConfig
from stf2m_core.data.adapters.crema_d_votes import Votes
from stf2m_core.errors import EpisodeError
from stf2m_core.model.antecedents import Antecedents, RuleUse

VOICE, FACE, BOTH = 0, 1, 2
"""Conditions, in the order of the votes."""

State = Mapping[str, Tensor]
"""Weights of many models at once, by name; the first axis is the model."""


@dataclass(frozen=True)
class Examples:
    """Clips as the rules see them.

    Attributes:
        pattern: (clip, 12) centred logarithms of the smoothed shares, voice then face: what antecedents see.
        evidence: (clip, input) logarithms, shares and, if wanted, intensities: what consequents see.
        target: (clip, 6) shares of the votes on both together, never 0; rows sum to one.
        actor: (clip,) int.
    """

    pattern: Tensor
    evidence: Tensor
    target: Tensor
    actor: np.ndarray


def shares(counts: np.ndarray, smoothing: float) -> np.ndarray:
    """(n + a) / (N + E a): votes as a distribution over the last axis of E emotions."""
    counts = np.asarray(counts, np.float64) + smoothing
    return counts / counts.sum(-1, keepdims=True)


def soft_target(counts: np.ndarray, floor: float) -> np.ndarray:
    """(1 - floor) n / N + floor / E over the last axis of E emotions: what is predicted and scored."""
    counts = np.asarray(counts, np.float64)
    return (1 - floor) * counts / counts.sum(-1, keepdims=True) + floor / counts.shape[-1]


def examples(votes: Votes, config: VoteFusionConfig) -> Examples:
    """The clips as the rules see them, float32."""
    share = shares(votes.counts[:, [VOICE, FACE]], config.smoothing)
    log = np.log(share)
    evidence = [log, share]
    if config.inputs == "votes and intensities":
        evidence.append(share * np.nan_to_num(votes.levels[:, [VOICE, FACE]]) / 100)
    pattern = log - log.mean(-1, keepdims=True)
    flat = [torch.tensor(part.reshape(len(share), -1), dtype=torch.float32) for part in (pattern, *evidence)]
    target = torch.tensor(soft_target(votes.counts[:, BOTH], config.floor), dtype=torch.float32)
    return Examples(flat[0], torch.cat(flat[1:], 1), target, np.asarray(votes.actor))


@dataclass(frozen=True)
class ActorFold:
    """Rows of the clips of one fold; the three parts share no actor."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def actor_folds(actor: np.ndarray, n_folds: int) -> tuple[ActorFold, ...]:
    """Blocks of neighbouring actors: one is test, the next one validation, all others train.

    Raises:
        EpisodeError: if there are fewer actors than folds.
    """
    names = np.unique(actor)
    if len(names) < n_folds:
        raise EpisodeError(f"{len(names)} actors", expected=f"at least {n_folds}, one per fold", where="vote fusion")
    blocks = np.array_split(names, n_folds)
    rows = [np.flatnonzero(np.isin(actor, block)) for block in blocks]
    after = [*rows[1:], rows[0]]
    return tuple(
        ActorFold(np.flatnonzero(~np.isin(np.arange(len(actor)), np.concatenate([test, validation]))), validation, test)
        for test, validation in zip(rows, after, strict=True)
    )


class VoteRules(Antecedents):
    """Rules over two vote vectors; every rule answers with a distribution over the emotions.

    Zero-order rules answer with constants. First-order answers depend on the evidence u: a common slope A plus each
    rule's own departure from it, which is shrunk.

    Args:
        n_inputs: numbers of evidence.
        config: of the rules.
        floor: share of every prediction that is spread evenly, as in the target.
    """

    def __init__(self, n_inputs: int, config: FuzzyConfig, floor: float):
        super().__init__(config)
        self.floor = floor
        self.bias = nn.Parameter(torch.zeros(config.n_rules, config.n_consequents))
        if config.consequents == "first-order":
            self.common = nn.Parameter(torch.zeros(n_inputs, config.n_consequents))
            self.departure = nn.Parameter(torch.zeros(config.n_rules, n_inputs, config.n_consequents))

    def answers(self, evidence: Tensor) -> Tensor:
        """What each rule answers: (clip, rule, emotion), last axis sums to one; (1, rule, emotion) if zero-order."""
        if self.config.consequents == "zero-order":
            return torch.softmax(self.bias, -1)[None]
        slope = self.common + self.departure
        return torch.softmax(self.bias + torch.einsum("bu,rue->bre", evidence, slope), -1)

    def forward(self, pattern: Tensor, evidence: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities (clip, emotion) and firing (clip, rule).

        Args:
            pattern: (clip, feature) standardised.
            evidence: (clip, input) standardised.
            kept: (rule,) bool of DropRule.
        """
        firing = self.fire(self.distance(pattern[None]), kept)[0]
        mean = (firing[..., None] * self.answers(evidence)).sum(1)
        return torch.log((1 - self.floor) * mean + self.floor / mean.shape[-1]), firing

    @torch.no_grad()
    def start(self, pattern: Tensor, target: Tensor, generator: torch.Generator) -> None:
        """Place the rules on clusters, and let each answer what the clips it fires for say, three clips' worth of the
        mean mixed in."""
        self.place(pattern, generator)
        firing = self.fire(self.distance(pattern[None]))[0]
        mass = firing.sum(0)[:, None]
        self.bias.copy_(torch.log((firing.T @ target + 3 * target.mean(0)) / (mass + 3)))


@dataclass(frozen=True)
class Standard:
    """Statistics of each model's training clips, first axis the model: (x - mean) / scale."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor, folds: Sequence[ActorFold]) -> Standard:
        """From the training clips of the folds."""
        parts = [values[torch.from_numpy(fold.train)] for fold in folds]
        mean, scale = (torch.stack([getattr(part, name)(0) for part in parts])[:, None] for name in ("mean", "std"))
        return cls(mean, scale.clamp(min=1e-6))

    def __call__(self, values: Tensor, rows: Tensor) -> Tensor:
        """(model, clip, feature) for rows (model, clip)."""
        return (values[rows] - self.mean) / self.scale


class Ensemble:
    """Many models, one per fold and seed, computed as one batch over a leading model axis.

    Args:
        data: clips.
        folds: of each model.
        seeds: of each model.
        entropies: that each model's scale is calibrated to.
        config: settings, common to all.
    """

    def __init__(
        self,
        data: Examples,
        folds: Sequence[ActorFold],
        seeds: Sequence[int],
        entropies: Sequence[float],
        config: VoteFusionConfig,
    ):
        self.data, self.folds, self.config = data, list(folds), config
        self.generators = [
            seeding.generator(seed, "vote fusion", int(fold.test[0])) for seed, fold in zip(seeds, folds, strict=True)
        ]
        self.pattern, self.evidence = (Standard.of(values, folds) for values in (data.pattern, data.evidence))
        models = [self._start(number, entropy, seeds[number]) for number, entropy in enumerate(entropies)]
        self.skeleton = models[0]
        params, _ = stack_module_state(models)
        self.params = {name: value.detach().requires_grad_() for name, value in params.items()}
        self.use = [RuleUse(config.rules.n_rules) for _ in models]
        self.n_weights = sum(weight.numel() for weight in models[0].parameters())

    def _start(self, number: int, entropy: float, seed: int) -> VoteRules:
        rules = replace(self.config.rules, entropy=entropy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "vote fusion weights", int(self.folds[number].test[0])))
            model = VoteRules(self.data.evidence.shape[1], rules, self.config.floor)
        rows = torch.from_numpy(self.folds[number].train)
        pattern = (self.data.pattern[rows] - self.pattern.mean[number]) / self.pattern.scale[number]
        model.start(pattern, self.data.target[rows], self.generators[number])
        return model

    def apply(self, state: State, rows: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities (model, clip, emotion) and firing (model, clip, rule) for rows (model, clip)."""

        def one(weights: State, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            return functional_call(self.skeleton, weights, inputs)

        inputs = [self.pattern(self.data.pattern, rows), self.evidence(self.data.evidence, rows)]
        return vmap(one)(dict(state), *inputs, *([] if kept is None else [kept]))

    def train(self) -> Fitted:
        """Adam with a cosine, a running average of the weights, and the best validated average of each model."""
        config = self.config
        antecedents = ("center", "log_precision", "factor", "log_slope", "log_scale")
        rates = {name: config.lr * (config.antecedent_rate if name in antecedents else 1) for name in self.params}
        groups = [{"params": [self.params[name]], "lr": rate} for name, rate in rates.items()]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98))
        shape = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cosine(step, config.max_steps))
        average = {name: value.detach().clone() for name, value in self.params.items()}
        best = Fitted.begin(average, len(self.folds))
        for step in range(1, config.max_steps + 1):
            optimiser.zero_grad()
            firing = self._step()
            optimiser.step()
            shape.step()
            with torch.no_grad():
                self._reseed(firing, average)
                for name, value in self.params.items():
                    average[name].lerp_(value, 1 - config.average)
                if step % config.validate_every == 0 or step == config.max_steps:
                    best = best.better(average, self.validate(average), step)
        return best

    def _step(self) -> Tensor:
        drawn = [
            torch.from_numpy(fold.train)[torch.randint(len(fold.train), (self.config.batch,), generator=own)]
            for fold, own in zip(self.folds, self.generators, strict=True)
        ]
        rows = torch.stack(drawn)
        scores, firing = self.apply(self.params, rows, self._kept())
        loss = -(self.data.target[rows] * scores).sum(-1).mean(1).sum()
        if "departure" in self.params:
            loss = loss + self.config.ridge * (self.params["departure"] ** 2).sum()
        loss.backward()
        return firing.detach()

    def _kept(self) -> Tensor | None:
        """DropRule: (model, rule) bool, one mask per model and step; two rules at least stay."""
        rate, n_rules = self.config.rules.drop_rule, self.config.rules.n_rules
        if rate == 0:
            return None
        draw = torch.stack([torch.rand(n_rules, generator=own) for own in self.generators])
        return draw >= draw.topk(2, -1).values[:, -1:].clamp(max=rate)

    def _reseed(self, firing: Tensor, average: dict[str, Tensor]) -> None:
        """Place dead rules anew among the model's training clips, in the weights and in their average."""
        patience = self.config.rules.reseed_after
        for number, fold in enumerate(self.folds if patience else []):
            dead = self.use[number].observe(firing[number], patience)
            if not dead.any():
                continue
            model = VoteRules(self.data.evidence.shape[1], self.config.rules, self.config.floor)
            model.load_state_dict({name: value[number] for name, value in self.params.items()})
            rows = torch.from_numpy(fold.train)
            model.reseed((self.data.pattern[rows] - self.pattern.mean[number]) / self.pattern.scale[number], dead)
            for name in ("center", "log_precision", "factor"):
                self.params[name][number] = getattr(model, name)
                average[name][number, dead] = getattr(model, name)[dead]

    def validate(self, state: State) -> Tensor:
        """Mean divergence on each model's validation clips, (model,)."""
        return _divergence(self, state, [fold.validation for fold in self.folds])


def _cosine(step: int, n_steps: int) -> float:
    return min(1.0, (step + 1) / 50) * (1 + float(np.cos(np.pi * min(step / n_steps, 1)))) / 2


def _padded(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(model, clip) rows of parts of unequal size, the last row repeated, and where they are no repetition."""
    longest = max(map(len, rows))
    full = np.stack([np.pad(part, (0, longest - len(part)), mode="edge") for part in rows])
    mask = np.arange(longest) < np.array([len(part) for part in rows])[:, None]
    return torch.from_numpy(full), torch.from_numpy(mask)


@torch.no_grad()
def _divergence(ensemble: Ensemble, state: State, parts: Sequence[np.ndarray]) -> Tensor:
    rows, mask = _padded(parts)
    target = ensemble.data.target[rows]
    loss = (target * (torch.log(target) - ensemble.apply(state, rows)[0])).sum(-1)
    return (loss * mask).sum(1) / mask.sum(1)


@dataclass(frozen=True)
class Fitted:
    """The best weights of each model so far.

    Attributes:
        state: weights.
        divergence: (model,) on the validation clips, nats.
        step: (model,) when.
    """

    state: dict[str, Tensor]
    divergence: Tensor
    step: Tensor

    @classmethod
    def begin(cls, state: State, n_models: int) -> Fitted:
        """Before any validation."""
        copied = {name: value.clone() for name, value in state.items()}
        return cls(copied, torch.full((n_models,), torch.inf), torch.zeros(n_models, dtype=torch.int64))

    def better(self, state: State, divergence: Tensor, step: int) -> Fitted:
        """With the weights of those models that have improved."""
        won = divergence < self.divergence
        chosen = {
            name: torch.where(won.view(-1, *[1] * (value.dim() - 1)), value, self.state[name])
            for name, value in state.items()
        }
        return Fitted(chosen, torch.where(won, divergence, self.divergence), torch.where(won, step, self.step))


@dataclass(frozen=True)
class FusedVotes:
    """Predictions for every clip by models that never saw its actor.

    Attributes:
        log_probability: (seed, clip, emotion).
        firing: (seed, clip, rule), each clip's by the model that predicts it; rules of two folds are not the same.
        fold: (clip,) which fold's models predict the clip.
        entropy: (fold,) chosen on validation actors.
        step: (seed, fold) of the weights that are kept.
        validation: (seed, fold) their divergence on the validation actors, nats.
        models: (seed, fold) the models themselves.
        pattern, evidence: statistics that standardise, per fold.
        n_weights: of one model.
        config: settings.
    """

    log_probability: np.ndarray
    firing: np.ndarray
    fold: np.ndarray
    entropy: np.ndarray
    step: np.ndarray
    validation: np.ndarray
    models: tuple[tuple[VoteRules, ...], ...]
    pattern: Standard
    evidence: Standard
    n_weights: int
    config: VoteFusionConfig


def cross_validate(votes: Votes, config: VoteFusionConfig, *, seeds: Sequence[int] = (0, 1, 2)) -> FusedVotes:
    """Predict every clip from people the model has never met; all folds and seeds are trained as one batch.

    The entropy of firing is chosen per fold on its validation actors with the first seed, and so is, per model, the
    step whose weights are kept. Test actors are read once, at the end.

    Raises:
        EpisodeError: if there are fewer actors than folds.
    """
    data = examples(votes, config)
    folds = actor_folds(data.actor, config.n_folds)
    entropy = _choose_entropy(data, folds, seeds[0], config)
    many = [(seed, fold, wanted) for seed in seeds for fold, wanted in zip(folds, entropy, strict=True)]
    ensemble = Ensemble(data, [f for _, f, _ in many], [s for s, _, _ in many], [e for _, _, e in many], config)
    fitted = ensemble.train()
    rows, mask = _padded([fold.test for fold in ensemble.folds])
    with torch.no_grad():
        scores, firing = ensemble.apply(fitted.state, rows)
    shape = (len(seeds), len(folds))
    place = {"scores": np.zeros((shape[0], len(data.actor), 6)),
             "firing": np.zeros((shape[0], len(data.actor), config.rules.n_rules))}  # fmt: skip
    owner = np.zeros(len(data.actor), np.int64)
    for number, fold in enumerate(ensemble.folds):
        seed, block = divmod(number, len(folds))
        place["scores"][seed, fold.test] = scores[number, mask[number]].double().numpy()
        place["firing"][seed, fold.test] = firing[number, mask[number]].double().numpy()
        owner[fold.test] = block
    models = [_model(ensemble, fitted.state, number) for number in range(len(many))]
    return FusedVotes(
        place["scores"], place["firing"], owner, entropy, fitted.step.numpy().reshape(shape),
        fitted.divergence.double().numpy().reshape(shape),
        tuple(tuple(models[start : start + len(folds)]) for start in range(0, len(many), len(folds))),
        Standard.of(data.pattern, folds), Standard.of(data.evidence, folds), ensemble.n_weights, config,
    )  # fmt: skip


def _choose_entropy(
    data: Examples, folds: Sequence[ActorFold], seed: int, config: VoteFusionConfig
) -> np.ndarray:  # fmt: skip
    wanted = np.array(config.entropies)
    if len(wanted) == 1 or config.rules.firing != "calibrated":
        return np.full(len(folds), wanted[0])
    many = [(fold, entropy) for entropy in wanted for fold in folds]
    tried = Ensemble(data, [f for f, _ in many], [seed] * len(many), [e for _, e in many], config).train()
    return wanted[tried.divergence.view(len(wanted), len(folds)).argmin(0).numpy()]


def _model(ensemble: Ensemble, state: State, number: int) -> VoteRules:
    with torch.random.fork_rng(devices=[]):
        model = VoteRules(ensemble.data.evidence.shape[1], ensemble.config.rules, ensemble.config.floor)
    model.load_state_dict({name: value[number] for name, value in state.items()})
    return model.eval()
