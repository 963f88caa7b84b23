"""Meta-test: a finished run and a kind of episode go in, a record comes out. No outer gradient is ever taken here."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stf2m_core import metrics, seeding, soft_metrics
from stf2m_core.baselines.nearest_prototype import NearestPrototype, clip_features
from stf2m_core.baselines.ridge_prototype import RidgePrototype
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.clips import vote_columns
from stf2m_core.data.pack import Pack
from stf2m_core.encoding import encode_clips, encode_episodes, plain_statistics
from stf2m_core.episodes import EpisodeSampler, Splits, split_subjects
from stf2m_core.errors import RunError
from stf2m_core.model.st_f2m import STF2M, episode_targets
from stf2m_core.results import Record, episode_digest, leak_audit, provenance
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import CODE_DIGEST, Validation, cpu_threads, load_model
from stf2m_core.views import ResidentViews

CONTROLS = {"nearest-prototype": NearestPrototype, "ridge-prototype": RidgePrototype}


READINGS = ("adapted", "zero_step", "prototype", "no_support")
"""The readings of one model, as in `Answers`."""


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the queries, (episode, query, way) each.

    Attributes:
        adapted: after the inner loop.
        zero_step: at theta_0, with what the recurrent network read.
        prototype: prototypes alone, nothing read and nothing adapted.
        no_support: what is known of the emotions, without any use of the support; even for new emotions.
        path: (step + 1, episode, query, way) at every inner step, or None.
    """

    adapted: Tensor
    zero_step: Tensor
    prototype: Tensor
    no_support: Tensor
    path: Tensor | None = None


def answer(
    model: STF2M, data: ResidentViews, batch: EpisodeBatch, *, seed: int = 0, n_steps: int | None = None,
    chunk: int | None = None, keep: Tensor | None = None, whole_path: bool = False,
) -> Answers:  # fmt: skip
    """Adapt to each episode's support and score its queries.

    Args:
        model: trained.
        data: views on the model's device.
        batch: episodes.
        seed: of the random views in the inner loop and of the orders in which the support is read.
        n_steps: inner steps; None: the config's.
        chunk: episodes at once; None: the config's. Changes memory, not results.
        keep: (modality,) bool, modalities that may be seen; None: all.
        whole_path: also answer at every inner step.
    """
    config = model.config
    n_steps = config.inner.steps_test if n_steps is None else n_steps
    chunk = chunk or config.evaluation.chunk
    batch = batch.to(data.device)
    starts = range(0, len(batch), chunk)
    parts = [_answer(model, data, batch[i : i + chunk], seed, n_steps, keep, whole_path) for i in starts]
    path, plain = (torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))
    alone = _unsupported(model, data, batch, keep, chunk * batch.query.shape[1])
    return Answers(path[-1], path[0], plain[0], alone, path if whole_path else None)


@torch.no_grad()
def _answer(
    model: STF2M, data: ResidentViews, batch: EpisodeBatch, seed: int, n_steps: int, keep: Tensor | None, whole: bool
) -> tuple[Tensor, Tensor]:
    """(step, episode, query, way) log-probabilities at every inner step or its ends; (1, ...) of prototypes alone."""
    # where no inner step will follow, no view of the support is needed
    stays = n_steps == 0 or (model.config.inner.left_out and batch.n_shot == 1 and not data.has_votes)
    episode = encode_episodes(model, data, batch, seed=seed, stream="evaluation", keep=keep,
                              n_orders=model.config.meta_rnn.n_orders, n_views=0 if stays else None)  # fmt: skip
    path = model.adapt(episode.support, n_steps)
    plain = model.adapt(episode.support, 0, conditioned=False)
    said = [[model.predict(episode.query, theta, episode.support).log_probability for theta in some]
            for some in (path if whole else (path[0], path[-1]), plain)]  # fmt: skip
    return torch.stack(said[0]), torch.stack(said[1])


@torch.no_grad()
def _unsupported(model: STF2M, data: ResidentViews, batch: EpisodeBatch, keep: Tensor | None, chunk: int) -> Tensor:
    """(episode, query, way) log-probabilities; a clip is recalled once, whatever the number of episodes that ask it."""
    known = model.known[batch.classes].all(1)
    even = model.anchor.new_full((*batch.query.shape, batch.n_way), -math.log(batch.n_way))
    if not bool(known.any()):
        return even
    clips, place = batch.query.unique(return_inverse=True)
    said = torch.cat([_recalled(model, data, rows, keep) for rows in clips.split(chunk)])[place]
    inside = said.gather(2, batch.classes[:, None].expand(-1, said.shape[1], -1))
    return torch.where(known[:, None, None], torch.log_softmax(inside / model.softening[0], -1), even)


def _recalled(model: STF2M, data: ResidentViews, rows: Tensor, keep: Tensor | None) -> Tensor:
    """(clip, label) what is known of all emotions says of clips."""
    hidden = None if keep is None else keep.expand(len(rows), -1)
    query = encode_clips(model, data, rows, plain_statistics(model, data), hidden)
    return model.recall(model.fuzzify(query, model.unmodulated(1)))[0]


def score(model: STF2M, data: ResidentViews, batch: EpisodeBatch, seed: int) -> Validation:
    """What meta-validation compares."""
    said = answer(model, data, batch, seed=seed).adapted
    label, soft = batch.query_label.to(said.device), None
    if data.has_votes:
        soft = episode_targets(data.soft_labels, batch.query.to(data.device), batch.classes.to(data.device))
    nll, temperature = calibrated_nll(said, label, soft)
    return Validation(nll, float((said.argmax(-1) == label).cpu().double().mean()), temperature)


def calibrated_nll(said: Tensor, label: Tensor, soft: tuple[Tensor, Tensor] | None = None) -> tuple[float, float]:
    """NLL at the best single temperature of a grid from 1/2 to 8, and that temperature.

    Training on raises accuracy and confidence together; the plain NLL then prefers the timid model of earlier steps
    (ours, D-15).

    Args:
        said: (episode, query, way) log-probabilities.
        label: (episode, query) int64.
        soft: of clips with votes, (episode, query, way) shares and (episode, query) weights; then the cross-entropy to
            the shares takes the place of the NLL (ours).
    """
    temperature = torch.logspace(-1, 3, 33, base=2, device=said.device, dtype=said.dtype)
    softened = torch.log_softmax(said / temperature.view(-1, 1, 1, 1), -1)
    if soft is None:
        nll = -softened.gather(3, label[None, ..., None].expand(len(temperature), -1, -1, -1)).mean((1, 2, 3))
    else:
        share, weight = (part.to(said.dtype) for part in soft)
        nll = -(weight * (share * softened).sum(-1)).sum((1, 2)) / weight.sum().clamp(min=1e-8)
    return float(nll.min()), float(temperature[nll.argmin()])


def evaluate(
    run_dir: str | os.PathLike[str], pack: Pack, episode: EpisodeConfig, *, episodes: int | None = None, seed: int = 0,
    variant: str = "full", device: str | None = None, modalities: Sequence[str] = (),
) -> Record:  # fmt: skip
    """Meta-test of a finished run.

    Args:
        run_dir: folder of the run.
        pack: what it was trained on.
        episode: kind of episode.
        episodes: how many; None: the config's.
        seed: of the episodes.
        variant: name for tables.
        device: None: the config's.
        modalities: that may be seen, in support and query; none given: all.

    Raises:
        RunError: if the run is not finished, belongs to another pack, or has no such modality.
        EpisodeError: if meta-test cannot give such episodes.
    """
    model, data, splits = load_model(run_dir, pack, device)
    config = model.config
    batch = EpisodeSampler(pack, splits, "meta_test", episode, seed).sample(0, episodes or config.evaluation.episodes)
    keep = _seen(modalities, tuple(data.modalities), data.device)
    with cpu_threads(config.train.threads):
        said = answer(model, data, batch, seed=seed, keep=keep)
    others = {f"accuracy_{name}": getattr(said, name) for name in READINGS[1:]}
    weights = hashlib.sha256((Path(run_dir) / "model.safetensors").read_bytes()).hexdigest()[:12]
    return _record(
        pack, splits, batch, episode, seed, said.adapted, others, config, method="st-f2m", variant=variant,
        selection="meta-validation NLL, calibrated", run_digest=weights, device=str(data.device),
    )  # fmt: skip


def _seen(modalities: Sequence[str], names: tuple[str, ...], device: torch.device) -> Tensor | None:
    """(modality,) bool; None: all."""
    for name in modalities:
        if name not in names:
            raise RunError(f"modality {name!r}", expected=f"one of {', '.join(names)}", where="evaluate")
    return torch.tensor([name in modalities for name in names], device=device) if modalities else None


def evaluate_control(
    name: str, pack: Pack, config: RunConfig, episode: EpisodeConfig, *, episodes: int | None = None, seed: int = 0
) -> Record:
    """A control on the very episodes that `evaluate` uses.

    Raises:
        RunError: on an unknown control.
        EpisodeError: if meta-test cannot give such episodes.
    """
    if name not in CONTROLS:
        raise RunError(f"control {name!r}", expected=f"one of {', '.join(CONTROLS)}", where="evaluate_control")
    splits = split_subjects(pack, config.split)
    batch = EpisodeSampler(pack, splits, "meta_test", episode, seed).sample(0, episodes or config.evaluation.episodes)
    features = clip_features(pack, config.views.modalities or None)
    control = CONTROLS[name]().fit(features, pack.label_ids, splits.rows["meta_train"], splits.rows["meta_val"])
    said = control.log_probabilities(batch)
    selection = "none" if name == "nearest-prototype" else "meta-validation accuracy"
    return _record(pack, splits, batch, episode, seed, said, {}, config, method=name, variant="full",
                   selection=selection, run_digest="none", device="cpu")  # fmt: skip


def _record(
    pack: Pack, splits: Splits, batch: EpisodeBatch, episode: EpisodeConfig, seed: int, said: Tensor,
    others: dict[str, Tensor], config: RunConfig, *, method: str, variant: str, selection: str, run_digest: str,
    device: str,
) -> Record:  # fmt: skip
    subject = pack.clips["subject"].to_numpy(str)[batch.query.numpy()]
    summary = metrics.summarise(
        said.cpu(), batch.query_label, batch.classes, subject, n_labels=len(pack.labels),
        pool_f1=episode.regime != "C", rng=seeding.numpy_generator(seed, "bootstrap"),
        accuracies={name: other.cpu() for name, other in others.items()},
    )  # fmt: skip
    soft = soft_scores(pack, splits, batch, said, others, seed)
    summary = metrics.Summary(*(getattr(summary, part) | getattr(soft, part) for part in summary.__slots__))
    fold, train = config.split.fold, config.train
    facts = asdict(episode) | {"episodes": len(batch), "seed": seed, "digest": episode_digest(batch)}
    return Record(
        name=f"{method}/{variant}/{episode.title}/fold{fold}-seed{train.seed}", dataset=pack.name,
        pack_digest=pack.digest, method=method, variant=variant, fold=fold, seed=train.seed, split="meta_test",
        episode=facts, metrics=summary.metrics, selection=selection, config=config.to_mapping(),
        config_digest=config.digest(), run_digest=run_digest,
        provenance=provenance(threads=train.threads, device=device, precision=train.precision) | {"code": CODE_DIGEST},
        leaks=leak_audit(pack, splits.rows), per_episode=summary.per_episode, per_subject=summary.per_subject,
        confusion=dict(zip(pack.labels, confusion(pack, batch, said).tolist(), strict=True)),
    )  # fmt: skip


def soft_scores(
    pack: Pack, splits: Splits, batch: EpisodeBatch, said: Tensor, others: dict[str, Tensor], seed: int
) -> metrics.Summary:
    """What a record says of soft labels, and `tied_share`: of the clips of meta-test's people that were voted on, those
    whose votes tie. They have no hard label, so that accuracy never sees them; nothing if the pack has no votes.

    Args:
        pack: the data.
        splits: of the run.
        batch: episodes of meta-test.
        said: (episode, query, way) log-probabilities.
        others: accuracy_<reading> -> log-probabilities of other readings.
        seed: of the bootstrap.
    """
    columns = vote_columns(pack.clips, pack.labels)
    if not columns:
        return metrics.Summary({}, {}, {})
    soft, weight = episode_targets(torch.from_numpy(pack.soft_labels.copy()), batch.query, batch.classes)
    names = pack.clips["subject"].to_numpy(str)
    found = soft_metrics.summarise(
        said.cpu(), soft, weight, names[batch.query.numpy()], rng=seeding.numpy_generator(seed, "soft bootstrap"),
        others={name.removeprefix("accuracy_"): other.cpu() for name, other in others.items()},
    )  # fmt: skip
    counts = pack.clips[columns].to_numpy(np.float64)
    rows = np.flatnonzero(np.isin(names, splits.subjects["meta_test"]) & (counts.sum(1) > 0))
    draws = seeding.numpy_generator(seed, "tied votes")
    ties = {"tied_share": soft_metrics.tied_share(counts[rows], names[rows], draws)} if len(rows) else {}
    return metrics.Summary(found.metrics | ties, found.per_episode, found.per_subject)


def confusion(pack: Pack, batch: EpisodeBatch, said: Tensor) -> np.ndarray:
    """(label, label) counts of true against predicted, by the data set's labels."""
    classes = batch.classes.numpy()
    true = np.take_along_axis(classes, batch.query_label.numpy(), 1)
    predicted = np.take_along_axis(classes, said.argmax(-1).cpu().numpy(), 1)
    matrix = np.zeros((len(pack.labels),) * 2, np.int64)
    np.add.at(matrix, (true, predicted), 1)
    return matrix
