"""The outer loop: packs and settings go in, a run folder with weights, history and checkpoints comes out.

Nothing random has a state: every draw is a function of (seed, purpose, step or episode), so a run that was interrupted
and resumed is the same to the bit on the same CPU and thread count.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from stf2m_core import seeding
from stf2m_core.config import EpisodeConfig, RunConfig, TrainConfig
from stf2m_core.data.pack import Pack
from stf2m_core.encoding import Disturbance, Encoding, encode_clips, encode_episodes, model_statistics, set_statistics
from stf2m_core.episodes import EpisodeSampler, Splits, save_episodes, split_subjects
from stf2m_core.errors import EpisodeError, RunError
from stf2m_core.model.encoder import moments
from stf2m_core.model.knowledge import discriminants, emotion_axes, knowledge
from stf2m_core.model.st_f2m import STF2M, FastWeights, Prediction
from stf2m_core.shapes import EpisodeBatch, ViewBatch
from stf2m_core.views import ResidentViews, standardised

RATES = {"weights": 1.0, "knowledge": 3.0, "placed": 0.3, "inner rates": 10.0}
"""Learning rate of each kind of weight, relative to `train.lr`: anchors and scales move far, inner rates over orders of
magnitude, what is placed in closed form moves little. Only plain weights decay."""

KNOWING = 24
"""Meta-batches of each kind of training episode that what is known of the emotions is taken from after a start."""

FAILED = "failed_episodes.json"


class Validation(NamedTuple):
    """What meta-validation says of one setting: NLL at the best temperature, and accuracy, after adaptation."""

    nll: float
    accuracy: float
    temperature: float = 1.0


Validate = Callable[[STF2M, ResidentViews, EpisodeBatch, int], Validation]
"""(model, data, episodes, seed) -> what meta-validation says."""


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its folder.
        config: its settings.
        history: lines of history.jsonl.
        summary: what run.json says: steps, chosen step, meta-validation NLL, weights, seconds.
    """

    path: Path
    config: RunConfig
    history: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass
class Progress:
    """Where the outer loop stands; goes into checkpoints."""

    step: int = 0
    best_nll: float = math.inf
    best_step: int = 0
    worse: int = 0
    seconds: float = 0.0


def _code_digest() -> str:
    """6 hex digits of the source of everything that a run's weights depend on; part of the name of a run's folder."""
    root = Path(__file__).parent
    names = ["config.py", "encoding.py", "episodes.py", "evaluation.py", "seeding.py", "training.py", "views.py"]
    files = [root / name for name in names] + sorted((root / "model").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:6]


CODE_DIGEST = _code_digest()
"""Of the code as it was imported, also if a file is edited while it runs."""


def resolve_device(name: str) -> torch.device:
    """The device of a config: `auto` is cuda if there is one, else cpu; mps was never tried and is used if asked for.

    Convolutions on it keep all digits of float32, as matrix products do; cuDNN would round what enters them to TF32.

    Raises:
        RunError: if the device asked for is not there.
    """
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        raise RunError(f"device = {name!r} is not available", expected="auto or cpu", where="train.device")
    return torch.device(name)


@contextmanager
def cpu_threads(n_threads: int) -> Iterator[None]:
    """`n_threads` CPU threads inside, as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def asked_to_stop() -> Iterator[list[bool]]:
    """A list that fills on the first Ctrl-C, so that a step is never cut in half; the second Ctrl-C stops at once."""
    asked: list[bool] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)

    in_main = threading.current_thread() is threading.main_thread() and callable(before)
    if in_main:
        signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)


def build(data: ResidentViews, splits: Splits, config: RunConfig) -> STF2M:
    """A fresh model with the statistics of meta-train; its first weights come from the run's seed alone.

    Known is an emotion of meta-train of which it has clips.
    """
    known = torch.zeros(data.soft_labels.shape[1], dtype=torch.bool)
    if config.inner.label_knowledge:
        shown = data.labels.cpu()[torch.from_numpy(splits.rows["meta_train"])]
        known[np.intersect1d(shown[shown >= 0], splits.labels["meta_train"])] = True
    steps = {name: modality.step_s or config.views.step_s for name, modality in data.modalities.items()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeding.derive(config.train.seed, "weights"))
        model = STF2M(data.shapes, steps, known, config, data.edges)
    rows = torch.from_numpy(splits.rows["meta_train"]).to(data.device)
    set_statistics(model.to(data.device), data.training_statistics(rows))
    if config.encoder.level_path:
        _place_knowledge(model, data, rows)
    return model.double() if config.train.precision == "float64" else model


@torch.no_grad()
def _place_knowledge(model: STF2M, data: ResidentViews, rows: Tensor) -> None:
    """Start level path, anchors and their worth from the clips of meta-train, a few clips at a time."""
    rows = rows[data.labels[rows] >= 0]
    label = data.labels[rows].cpu()
    person = torch.unique(data.subjects[rows].cpu(), return_inverse=True)[1]
    statistics, names = model_statistics(model), model.encoder.names
    collected = [_each_moments(standardised(data.gather(some), statistics, 1)) for some in rows.split(256)]
    standard = []
    for index, name in enumerate(names):
        level = model.encoder.level[name]
        level.standardise(torch.cat([part[index] for part in collected]))
        standard.append((torch.cat([part[index] for part in collected]) - level.shift) / level.scale)
    # the other half of the embedding is free for the convolutions
    size = model.config.encoder.embedding
    directions = discriminants(torch.cat(standard, 1).cpu(), label, person, size // 2)
    directions = torch.nn.functional.pad(directions, (0, size - size // 2))
    for name, part in zip(names, directions.split([t.shape[1] for t in standard]), strict=True):
        # the fusion takes the mean over modalities, so that their parts add up to the direction
        model.encoder.level[name].mix.weight.copy_(len(names) * part.T)
    if not bool(model.known.any()):
        return
    parts = []
    for some in rows.split(64):
        encoded = encode_clips(model, data, some, statistics)
        parts.append(model.fuzzify(encoded, model.unmodulated(1)).embedding[0])
    model.know(knowledge(torch.cat(parts).cpu(), label, person, len(model.known)))


def _each_moments(views: Mapping[str, ViewBatch]) -> list[Tensor]:
    return [moments(view) for view in views.values()]


class NonFiniteError(FloatingPointError):
    """A loss, its gradient or the NLL of meta-validation is not finite; with the episodes that made it so.

    Args:
        what: is not finite.
        setting: kind of the episodes.
        batch: the episodes.
    """

    def __init__(self, what: str, setting: EpisodeConfig, batch: EpisodeBatch):
        super().__init__(what)
        self.setting, self.batch = setting, batch


Phase = Literal["start", "prototypes", "first order", "second order"]
"""Parts of the schedule: naming the emotions outright, prototypes alone, and the inner loop in two orders."""


def phase_of(step: int, config: TrainConfig) -> Phase:
    """Which part of the schedule a step belongs to."""
    start, prototypes, first_order = phase_ends(config)
    if step < prototypes:
        return "start" if step < start else "prototypes"
    return "second order" if config.second_order and step >= first_order else "first order"


def phase_ends(config: TrainConfig) -> tuple[int, int, int]:
    """The first steps after the start, after the prototypes and after the first-order steps."""
    shares = itertools.accumulate((config.start, config.warm_up, config.first_order))
    return tuple(math.ceil(round(share * config.max_steps, 6)) for share in shares)


def first_phase_ends(config: TrainConfig) -> int:
    """The step at which rules are placed (and, after a start, what is known of the emotions)."""
    start, prototypes, _ = phase_ends(config)
    return start or prototypes


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear for the first twentieth, then a half cosine to a fiftieth."""
    start = max(1, config.max_steps // 20)
    if step < start:
        return config.lr * (step + 1) / start
    share = (step - start) / max(1, config.max_steps - start)
    return config.lr * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


def kind_of_step(step: int, config: RunConfig) -> int:
    """Which kind of episode a step takes: the kinds take turns, after a start with the first alone."""
    return 0 if phase_of(step, config.train) == "start" else step % len(config.episodes)


def episodes_before(step: int, config: RunConfig) -> int:
    """Episodes of a step's kind, named once or more, that earlier steps took; no step sees theirs again (D-93)."""
    n_kinds, start = len(config.episodes), phase_ends(config.train)[0]
    asked = config.episodes[kind_of_step(step, config)]
    steps = min(step, start) if asked == config.episodes[0] else 0
    for kind in [kind for kind in range(n_kinds) if config.episodes[kind] == asked]:
        # of the steps below x, (x - kind + n - 1) // n are at this turn
        steps += (max(step, start) - kind + n_kinds - 1) // n_kinds - (start - kind + n_kinds - 1) // n_kinds
    return steps * config.train.meta_batch


def step_weights(n_steps: int, share: float) -> list[float]:
    """Weight of each inner step in the outer loss: even at first, later the last step, with a tenth kept at zero steps.

    Args:
        n_steps: inner steps k.
        share: of training that has passed, 0 to 1.

    Source: multi-step loss of MAML++ (Antoniou et al. 2019).
    """
    if n_steps == 0:
        return [1.0]
    end = [0.1] + [0.0] * (n_steps - 1) + [0.9]
    anneal = min(1.0, share / 0.6)
    return [(1 - anneal) / (n_steps + 1) + anneal * last for last in end]


def naming_loss(model: STF2M, episode: Encoding) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of a linear classifier on z over all emotions, support and query alike, and its line of history.

    Distances between prototypes are quadratic in what tells two emotions apart, so that what the embedding does not
    carry yet gets no gradient from them; a classifier's is linear (ours, D-56).
    """
    zero = model.anchor.new_zeros(len(episode.target), model.config.encoder.hidden)
    z = torch.cat([model.encoder.embed(clips, zero, zero)[0] for clips in (episode.support.clean, episode.query)], 1)
    target = torch.cat([episode.support_label_target, episode.label_target], 1)
    said = model.name_emotion(z)
    loss = -(target * torch.log_softmax(said, -1)).sum(-1).mean()
    accuracy = (said.argmax(-1) == target.argmax(-1)).cpu().double().mean()
    return loss, {"loss": float(loss.detach()), "accuracy": float(accuracy)}


def outer_loss(
    model: STF2M, episode: Encoding, path: list[FastWeights], share: float, phase: Phase
) -> tuple[Tensor, dict[str, float]]:
    """L_out over the queries, plus what keeps the rules in use and what is learned of the emotions themselves.

    Args:
        model: the model.
        episode: encoded.
        path: theta_0 ... theta_k.
        share: of training that has passed, 0 to 1.
        phase: of the schedule.
    """
    config = model.config.train
    weights = step_weights(len(path) - 1, share)
    loss, last = episode.target.new_zeros(()), None
    for weight, theta in zip(weights, path, strict=True):
        if weight > 0:
            last = model.predict(episode.query, theta, episode.support)
            loss = loss + weight * _cross_entropy(last, episode, config.smoothing)
    accuracy = (last.log_probability.argmax(-1) == episode.target.argmax(-1)).cpu().double().mean()
    if model.has_rules:
        mu = -(episode.target * torch.log(last.label_distribution + 1e-6)).sum(-1)
        loss = loss + config.fuzzy_loss * (episode.weight * mu).sum() / episode.weight.sum().clamp(min=1e-8)
        balance = config.balance_loss * (1.0 if phase == "prototypes" else 0.1)
        loss = loss + balance * model.rules.balance(last.fuzzified.firing) + config.overlap_loss * model.rules.overlap()
    if model.config.inner.label_knowledge and config.knowledge_loss > 0:
        # at theta_0, before the support's gradient: what is known of an emotion is known without it
        recalled = model.recall(model.fuzzify(episode.query, path[0], episode.support.kept))
        loss = loss - config.knowledge_loss * (episode.label_target * recalled).sum(-1).mean()
    return loss, {"loss": float(loss.detach()), "accuracy": float(accuracy)}


def _cross_entropy(prediction: Prediction, episode: Encoding, smoothing: float) -> Tensor:
    target = episode.target
    if not episode.has_votes:  # votes are soft already
        target = (1 - smoothing) * target + smoothing / target.shape[-1]
    losses = -(target * prediction.log_probability).sum(-1)
    return (episode.weight * losses).sum() / episode.weight.sum().clamp(min=1e-8)


def _kind_of(name: str) -> str:
    """Key into `RATES`."""
    placed = ("rules.center", "rules.log_precision", "rules.factor", "rules.log_slope", "encoder.level.", "axes")
    if name.startswith(placed):
        return "placed"
    if name.startswith("rates."):
        return "inner rates"
    known = ("anchor", "log_worth", "log_metric", "log_worth_new", "log_worth_shift", "log_temperature")
    return "knowledge" if name in known else "weights"


class Trainer:
    """The state of one run and its single outer step.

    Args:
        pack: the data.
        config: settings.

    Raises:
        EpisodeError: if no episode of some kind exists.
        RunError: if the device is not there.
    """

    def __init__(self, pack: Pack, config: RunConfig):
        self.pack, self.config = pack, config
        train = config.train
        self.splits = split_subjects(pack, config.split)
        self.data = ResidentViews(pack, config.views, resolve_device(train.device))
        self.model = build(self.data, self.splits, config)
        self.samplers = [EpisodeSampler(pack, self.splits, "meta_train", e, train.seed) for e in config.episodes]
        self.validation = validation_episodes(pack, self.splits, config)
        named = dict(self.model.named_parameters())
        kinds = [_kind_of(name) for name in named]
        self.names = [name for kind in RATES for name, own in zip(named, kinds, strict=True) if own == kind]
        groups = [
            {"params": [named[n] for n in self.names if _kind_of(n) == kind], "factor": factor}
            | ({} if kind == "weights" else {"weight_decay": 0.0})
            for kind, factor in RATES.items() if kind in kinds
        ]  # fmt: skip
        self.optimiser = torch.optim.AdamW(groups, lr=train.lr, weight_decay=train.weight_decay, betas=(0.9, 0.95),
                                           foreach=False)  # fmt: skip
        self.averaged = copy.deepcopy(self.model)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    def batch(self, step: int) -> EpisodeBatch:
        """The episodes of an outer step."""
        first, size = episodes_before(step, self.config), self.config.train.meta_batch
        return self.samplers[self.kind(step)].sample(first, size).to(self.data.device)

    def kind(self, step: int) -> int:
        """Which kind of episode a step takes."""
        return kind_of_step(step, self.config)

    def step(self) -> dict[str, Any]:
        """One outer step.

        Raises:
            NonFiniteError: if the loss or its gradient is not finite; the optimiser has then not moved.
        """
        train, step = self.config.train, self.progress.step
        phase = phase_of(step, train)
        if step == first_phase_ends(train) > 0:
            self.place()
        self.optimiser.zero_grad(set_to_none=True)
        line, setting = {"loss": 0.0, "accuracy": 0.0}, self.samplers[self.kind(step)].config
        batch, generator = self.batch(step), seeding.generator(train.seed, "disturbance", step, device=self.data.device)
        for first in range(0, len(batch), train.chunk):
            some = batch[first : first + train.chunk]
            loss, part = self.loss(some, step, phase, generator)
            (loss * (len(some) / len(batch))).backward()
            line = {name: value + part[name] * len(some) / len(batch) for name, value in line.items()}
        if not math.isfinite(line["loss"]):
            raise NonFiniteError(f"loss {line['loss']} at step {step}", setting, batch)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm, foreach=False)
        if not torch.isfinite(norm):
            raise NonFiniteError(f"gradient norm {float(norm)} at step {step}", setting, batch)
        rate = learning_rate(step, train)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.step()
        self.average(step)
        self.progress.step += 1
        return {"kind": "train", "step": step, "setting": setting.title, "phase": phase} | line

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Running average of the weights; begins anew where the rules are placed."""
        train = self.config.train
        since = step - first_phase_ends(train)
        decay = min(train.average, (1 + since) / (10 + since)) if since > 0 else 0.0
        for mean, new in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)

    def loss(
        self, batch: EpisodeBatch, step: int, phase: Phase, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The outer loss of some episodes of a step, and its line of history."""
        adapts = phase not in ("start", "prototypes")
        episode = self.encoded(batch, step, generator, n_views=None if adapts else 0)
        if phase == "start":
            return naming_loss(self.model, episode)
        path = self.model.adapt(
            episode.support, self.config.inner.steps_train if adapts else 0, second_order=phase == "second order",
            conditioned=adapts, differentiable=True,
        )  # fmt: skip
        return outer_loss(self.model, episode, path, step / self.config.train.max_steps, phase)

    def encoded(
        self, batch: EpisodeBatch, step: int, generator: torch.Generator, n_views: int | None = None
    ) -> Encoding:
        """Episodes of a step, with all that training adds."""
        train = self.config.train
        disturbance = Disturbance(
            train.noise, train.level_noise, self.config.encoder.dropout, train.view_drop, self.config.fuzzy.drop_rule,
            generator,
        )  # fmt: skip
        stream = f"train/{self.kind(step)}"
        return encode_episodes(
            self.model, self.data, batch, seed=train.seed, stream=stream, disturbance=disturbance, n_views=n_views
        )

    @torch.no_grad()
    def place(self) -> None:
        """Start the rules where the first phase's features lie and, after a start, the head where its emotions do."""
        train, model = self.config.train, self.model
        if model.has_rules:
            generator = seeding.generator(train.seed, "rules", device="cpu")
            zero = model.anchor.new_zeros(train.meta_batch, self.config.encoder.hidden)
            parts = []
            for episode, _ in self._undisturbed(4, "rules"):
                z, _ = model.encoder.embed(episode.query, zero, zero)
                parts.append(model.rules.features(z).flatten(0, 1))
            model.rules.place(torch.cat(parts)[:4000], generator)
        if train.start > 0:
            embedding, row, episode = self._embedded()
            label, subject = self.data.labels.cpu()[row], self.data.subjects.cpu()[row]
            axes = emotion_axes(embedding, label, episode)
            model.axes.copy_(axes)
            person = torch.unique(subject, return_inverse=True)[1]
            model.know(knowledge(embedding @ axes, label, person, len(model.known)))
            shown = torch.bincount(label, minlength=len(model.known)).to(model.known.device) > 0
            for each in (model, self.averaged):  # of an emotion that no episode showed nothing is known
                each.known &= shown

    def _embedded(self) -> tuple[Tensor, Tensor, Tensor]:
        """On the CPU, clips of training episodes before axes are placed: embedding (clip, feature), row, episode."""
        parts, rows, episodes = [], [], []
        for episode, batch in self._undisturbed(KNOWING, "knowing"):
            theta, first = self.model.unmodulated(len(batch)), len(batch) * len(rows)
            row = torch.cat([batch.support.flatten(1), batch.query], 1)
            shown = [self.model.fuzzify(clips, theta).embedding for clips in (episode.support.clean, episode.query)]
            parts.append(torch.cat(shown, 1).flatten(0, 1))
            rows.append(row.flatten())
            episodes.append((first + torch.arange(len(batch), device=row.device)).repeat_interleave(row.shape[1]))
        return torch.cat(parts).cpu(), torch.cat(rows).cpu(), torch.cat(episodes).cpu()

    def _undisturbed(self, n_batches: int, purpose: str) -> Iterator[tuple[Encoding, EpisodeBatch]]:
        """Some training episodes of each kind as they are."""
        train = self.config.train
        for index, sampler in enumerate({s.config: s for s in self.samplers}.values()):
            for first in range(n_batches):
                batch = sampler.sample(first * train.meta_batch, train.meta_batch).to(self.data.device)
                yield encode_episodes(self.model, self.data, batch, seed=train.seed, stream=f"{purpose}/{index}",
                                      n_views=0), batch  # fmt: skip

    def validate(self, validate: Validate) -> list[dict[str, Any]]:
        """Meta-validation; keeps the weights if the mean NLL over settings is the best so far."""
        train, step = self.config.train, self.progress.step
        lines, total, softening = [], 0.0, torch.zeros(2, 2)
        for kind, batch in self.validation.items():
            said = Validation(*validate(self.averaged, self.data, batch.to(self.data.device), train.seed))
            if not math.isfinite(said.nll):
                raise NonFiniteError(f"meta-validation NLL {said.nll} at step {step}", kind, batch)
            total += said.nll / len(self.validation)
            softening[int(batch.own[0])] += torch.tensor([math.log(said.temperature), 1.0])
            lines.append({"kind": "validation", "step": step, "setting": kind.title, **said._asdict()})
        better = total < self.progress.best_nll
        if better:
            self.progress.best_nll, self.progress.best_step, self.progress.worse = total, step, 0
            self.best = {n: t.detach().cpu().clone() for n, t in self.averaged.state_dict().items()}
            mean = softening[:, 0] / softening[:, 1].clamp(min=1)
            self.best["softening"] = mean.exp().to(self.best["softening"].dtype)
        elif step > phase_ends(train)[1]:
            self.progress.worse += 1
        return [line | {"best": better} for line in lines]

    @property
    def finished(self) -> bool:
        """Out of steps, or out of patience."""
        return self.progress.step >= self.config.train.max_steps or self.progress.worse >= self.config.train.patience

    def save(self, path: Path) -> None:
        """A checkpoint: weights, best weights, optimiser and progress in one file, so that they cannot come apart."""
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.averaged.state_dict().items()}
        tensors |= {f"best.{n}": t for n, t in self.best.items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{n}": t for n, t in state.items()}
        facts = {"progress": vars(self.progress), "config": self.config.to_mapping(), "pack_digest": self.pack.digest,
                 "optimiser_names": self.names}  # fmt: skip
        write_tensors(path, tensors, facts)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            RunError: if it belongs to other settings or another pack.
        """
        tensors, facts = read_tensors(path)
        if "progress" not in facts:
            raise RunError("no checkpoint", expected="what training saves", where=str(path), remedy="Remove it")
        check_same(path, facts, self.config, self.pack)
        if facts["optimiser_names"] != self.names:
            raise _other_code(path)
        _restore(self.model, _under(tensors, "model."), path)
        _restore(self.averaged, _under(tensors, "average."), path)
        self.best = _under(tensors, "best.")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, "optimiser.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})
        self.progress = Progress(**facts["progress"])


def validation_episodes(pack: Pack, splits: Splits, config: RunConfig) -> dict[EpisodeConfig, EpisodeBatch]:
    """The same meta-validation episodes at every validation: of each kind that meta-validation can give.

    Raises:
        EpisodeError: if it can give none.
    """
    result, reasons = {}, []
    for kind in dict.fromkeys(config.episodes):
        try:
            sampler = EpisodeSampler(pack, splits, "meta_val", kind, config.train.seed)
        except EpisodeError as error:
            reasons.append(error)
            continue
        result[kind] = sampler.sample(0, config.train.validation_episodes)
    if not result:
        raise reasons[0]
    return result


def train(
    pack: Pack, config: RunConfig, run_dir: str | os.PathLike[str], *, validate: Validate,
    resume: Literal["auto", "restart"] = "auto", progress_bar: bool = True,
) -> Run:  # fmt: skip
    """Meta-train, or continue, or return the finished run that is there.

    Args:
        pack: the data.
        config: settings.
        run_dir: folder of the run; made if absent.
        validate: scores the model on meta-validation episodes (`evaluation.score`).
        resume: "auto" continues what is in `run_dir`; "restart" begins anew.
        progress_bar: on standard error.

    Raises:
        RunError: if the folder holds a run of other settings or another pack, or the loss becomes non-finite (the
            episodes are then in failed_episodes.json).
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was saved; says how to continue.
    """
    if resume not in ("auto", "restart"):
        raise RunError(f"resume = {resume!r}", expected="auto or restart", where="train")
    folder = _run_folder(run_dir)
    if resume == "auto" and (folder / "run.json").exists():
        return _finished_run(folder, config, pack)
    with cpu_threads(config.train.threads):
        trainer = Trainer(pack, config)
        if resume == "restart":  # only now that nothing more can be refused; run.json first, it says "finished"
            for name in ("run.json", "model.safetensors", "checkpoint.safetensors", "history.jsonl", FAILED):
                (folder / name).unlink(missing_ok=True)
        checkpoint, history = folder / "checkpoint.safetensors", folder / "history.jsonl"
        if checkpoint.exists():
            trainer.load(checkpoint)
        step = trainer.progress.step
        lines = [line for line in read_history(history) if line["step"] < step
                 or (line["kind"] == "validation" and line["step"] == step > 0)]  # fmt: skip
        write_text(history, "".join(json.dumps(line) + "\n" for line in lines))
        _loop(trainer, folder, lines, validate, progress_bar)
        return _finish(trainer, folder)


def _run_folder(run_dir: str | os.PathLike[str]) -> Path:
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make the folder: {error.strerror}"
        raise RunError(what, expected="a writable folder", where=str(folder)) from error
    return folder


def _loop(trainer: Trainer, folder: Path, lines: list, validate: Validate, progress_bar: bool) -> None:
    train, checkpoint = trainer.config.train, folder / "checkpoint.safetensors"
    bar = tqdm(total=train.max_steps, initial=trainer.progress.step, disable=not progress_bar, desc="meta-train",
               mininterval=2.0)  # fmt: skip
    step_0_counts = train.start == 0  # what is known in closed form stands for election too
    with bar, open(folder / "history.jsonl", "a") as history, asked_to_stop() as stop:
        try:
            while not trainer.finished:
                start = time.perf_counter()
                new = trainer.validate(validate) if step_0_counts and not trainer.best else []
                new += [trainer.step()]
                step = trainer.progress.step
                ready = step >= phase_ends(train)[0]
                if ready and (step % train.validate_every == 0 or step == train.max_steps):
                    new += trainer.validate(validate)
                    bar.set_postfix({"meta-val NLL": f"{trainer.progress.best_nll:.3f}"})
                trainer.progress.seconds += time.perf_counter() - start
                history.writelines(json.dumps(line) + "\n" for line in new)
                history.flush()
                bar.update()
                if step % train.checkpoint_every == 0 or stop:
                    trainer.save(checkpoint)
                if stop:
                    said = f"stopped after {step} steps, saved in {checkpoint}; the same call continues"
                    raise KeyboardInterrupt(said)
        except NonFiniteError as error:
            where = folder / FAILED
            save_episodes(where, error.batch.to("cpu"), trainer.pack, error.setting)
            remedy = f"The episodes are in {where}; lower train.lr or look at these clips"
            raise RunError(f"{error}", expected="a finite loss", where=str(folder), remedy=remedy) from error


def _finish(trainer: Trainer, folder: Path) -> Run:
    best = trainer.best
    progress = trainer.progress
    facts = {"config": trainer.config.to_mapping(), "pack_digest": trainer.pack.digest, "step": progress.best_step}
    write_tensors(folder / "model.safetensors", best, facts)
    summary = {
        "format": "stf2m-run", "version": 1, "pack_digest": trainer.pack.digest, "config": trainer.config.to_mapping(),
        "steps": progress.step, "best_step": progress.best_step, "best_nll": progress.best_nll,
        "selection": "meta-validation NLL, calibrated", "seconds": round(progress.seconds, 1),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "adapted": adapted_numbers(trainer.model, trainer.config.episodes[0].n_way),
        "device": str(trainer.data.device),
        "subjects": {split: list(map(str, names)) for split, names in trainer.splits.subjects.items()},
    }  # fmt: skip
    write_text(folder / "run.json", json.dumps(summary, indent=1))
    return Run(folder, trainer.config, read_history(folder / "history.jsonl"), summary)


def adapted_numbers(model: STF2M, n_way: int) -> int:
    """How many numbers the inner loop changes per episode."""
    theta = model.unmodulated(1)
    sizes = {f.name: getattr(theta, f.name).numel() for f in fields(FastWeights)}
    size = model.config.encoder.embedding
    sizes |= {"center": n_way * size, "metric": size, "bias": n_way}
    return sum(sizes[name] for name in model.adapting)


def _finished_run(folder: Path, config: RunConfig, pack: Pack) -> Run:
    remedy = 'Use resume="restart"'
    try:
        summary = json.loads((folder / "run.json").read_text())
        check_same(folder / "run.json", summary, config, pack)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"unreadable: {error}", expected="a finished run", where=str(folder / "run.json"),
                       remedy=remedy) from error  # fmt: skip
    if not (folder / "model.safetensors").exists():
        raise RunError("run.json without model.safetensors", expected="both", where=str(folder), remedy=remedy)
    return Run(folder, config, read_history(folder / "history.jsonl"), summary)


def check_same(where: Path, facts: dict[str, Any], config: RunConfig, pack: Pack) -> None:
    """Refuse to continue or read what other settings or another pack made.

    Raises:
        RunError: naming both digests.
    """
    found = RunConfig.from_mapping(facts["config"]).digest()
    remedy = 'Use another run_dir, or resume="restart"'
    if found != config.digest():
        raise RunError(f"settings {found}", expected=f"settings {config.digest()}", where=str(where), remedy=remedy)
    if facts["pack_digest"] != pack.digest:
        raise RunError(f"pack {facts['pack_digest']}", expected=f"pack {pack.digest}", where=str(where), remedy=remedy)


def load_model(
    run_dir: str | os.PathLike[str], pack: Pack, device: str | None = None
) -> tuple[STF2M, ResidentViews, Splits]:
    """The chosen weights of a finished run, its data and its splits.

    Raises:
        RunError: if the run is not finished, damaged, or was trained on another pack.
    """
    path = Path(run_dir) / "model.safetensors"
    if not path.exists():
        raise RunError("no model.safetensors", expected="a finished run", where=str(run_dir), remedy="Train it first")
    tensors, facts = read_tensors(path)
    config = RunConfig.from_mapping(facts["config"])
    check_same(path, facts, config, pack)
    data = ResidentViews(pack, config.views, resolve_device(device or config.train.device))
    splits = split_subjects(pack, config.split)
    model = build(data, splits, config)
    _restore(model, tensors, path)
    return model.eval(), data, splits


def _restore(model: STF2M, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # its many lines name every tensor
        raise _other_code(path) from error


def _other_code(path: Path) -> RunError:
    return RunError("weights of other names or sizes", expected="those of this version of the kit", where=str(path),
                    remedy='Train again: another run_dir, or resume="restart"')  # fmt: skip


def read_history(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a history; a last line cut short by a crash is left out.

    Raises:
        RunError: if a whole line is damaged.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise RunError(f"unreadable line: {error}", expected="one JSON object per line", where=str(path),
                       remedy='Use resume="restart"') from error  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write aside, then move into place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Tensors with JSON facts in the header of one safetensors file, written aside and moved into place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = facts | {"sha256": _sha256(tensors)}
    save_file(tensors, aside, {"facts": json.dumps(facts)})
    with open(aside, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        RunError: if the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if facts["sha256"] != _sha256(tensors):
            raise KeyError("the values are not those that were written")
        return tensors, facts
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"damaged: {error}", expected="a file of this kit", where=str(path),
                       remedy='Remove it, or use resume="restart"') from error  # fmt: skip


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
