"""How much a trained model's words weigh: meta-validation episodes enter, a temperature and what is typical leave.

Answers are softened by one temperature, and how well the best rule fits a clip is read against meta-validation: whole
clips against whole clips, windows against windows of the same length, a clip without a face against clips whose face is
hidden. What was found is kept in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from stf2m_core import seeding
from stf2m_core.clip_features import ClipFeatures, packed, resident, whole
from stf2m_core.config import EpisodeConfig
from stf2m_core.data.pack import Pack
from stf2m_core.encoding import encode_clips, encode_episodes, model_statistics, plain_statistics
from stf2m_core.episodes import EpisodeSampler, Splits
from stf2m_core.errors import EpisodeError, RunError
from stf2m_core.model.fuzzy import Fuzzified
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import write_text
from stf2m_core.views import ResidentViews, Statistics

FILE = "calibration.json"
EPISODES = 32
"""Meta-validation episodes, of all kinds together."""
CLIPS = 1024
"""Meta-validation clips at most, where there is no support."""
_LEAST, _MOST = 0.5, 1e4  # temperatures looked at

Source = Literal["own", "others", "none"]
"""Whose clips the support has: those of the person asked about, other people's, or nobody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How something is asked: meta-validation is read in the same way.

    Attributes:
        source: whose clips the support has.
        n_way: emotions in the support.
        n_shot: clips of each, at most.
        window_s: length of windows; None: whole clips.
        hidden: modalities that are absent in what is asked about.
    """

    source: Source
    n_way: int
    n_shot: int
    window_s: float | None = None
    hidden: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """E.g. "own, 8-way 3-shot, windows of 2 s, without visual"."""
        kind = "" if self.source == "none" else f", {self.n_way}-way {self.n_shot}-shot"
        what = "whole clips" if self.window_s is None else f"windows of {self.window_s:g} s"
        return f"{self.source}{kind}, {what}" + (f", without {' and '.join(self.hidden)}" if self.hidden else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What answers and clips of meta-validation look like.

    Attributes:
        temperature: that log-probabilities are divided by; 1 leaves them as they are.
        nll: mean negative log-likelihood before and after, nat.
        accuracy: share of the queries that were right.
        queries: how many answers it was fitted on.
        episodes: the kinds of episode that were there to ask, e.g. "P 8-way 2-shot"; none without support.
        observed: modality to its usual share of observed nodes and frames.
        membership: 101 quantiles of the log membership of the best rule, per feature, the least typical first.
        rules: (rule, label) mean firing in the queries of each label of the data set; 0 for a label without queries.
    """

    temperature: float
    nll: tuple[float, float]
    accuracy: float
    queries: int
    episodes: tuple[str, ...]
    observed: dict[str, float]
    membership: tuple[float, ...]
    rules: tuple[tuple[float, ...], ...]

    def typicality(self, membership: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """(clip,) the share of meta-validation that is less typical, times the share of the usual that was observed.

        What could not be observed cannot be like anything known: a clip of which half is missing is at most as typical
        as half of all clips. Source: ours, D-58.

        Args:
            membership: (clip,) log membership of the best rule, per feature.
            observed: (clip, modality) shares.
        """
        rank = np.interp(membership, self.membership, np.linspace(0, 1, len(self.membership)), left=0.0, right=1.0)
        return evidence(observed, self.observed) * rank


def evidence(observed: np.ndarray, usual: dict[str, float]) -> np.ndarray:
    """(clip,) what share of the usual was observed, modalities counting alike; never above 1."""
    wanted = np.array(list(usual.values()))
    share = np.where(wanted > 0, observed / np.where(wanted > 0, wanted, 1), 1.0)
    return np.minimum(share, 1).mean(1)


def recalled(model: STF2M, fuzzified: Fuzzified) -> Tensor:
    """(clip, known label) log-probabilities of what meta-training knows, among the labels that it knows."""
    return torch.log_softmax(model.recall(fuzzified)[0][:, model.known], -1)


def weights_digest(run: Path) -> str:
    """12 hex digits of the run's weights.

    Raises:
        RunError: if the run is not finished.
    """
    try:
        return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise RunError("no model.safetensors", expected="a finished run", where=str(run), remedy="Train it first"
                       ) from error  # fmt: skip


def reference(run: Path, model: STF2M, data: ResidentViews, splits: Splits, pack: Pack, asked: Asked
              ) -> tuple[Reference, str]:  # fmt: skip
    """What meta-validation looks like, read in the same way: from the run's folder, or made and kept there.

    Args:
        run: folder of the finished run.
        model: its weights.
        data: the pack on the model's device.
        splits: of the run.
        pack: on which it was trained.
        asked: how.

    Returns:
        the reference, and why it could not be kept, or "".
    """
    weights = weights_digest(run)
    known = _kept(run / FILE, weights, pack)
    if asked.title in known:
        return known[asked.title], ""
    made = _made(_Queries(model, data, splits, pack, asked))
    entries = {name: asdict(entry) for name, entry in (known | {asked.title: made}).items()}
    content = {"format": "stf2m-calibration", "version": 1, "weights": weights, "pack_digest": pack.digest,
               "references": entries}  # fmt: skip
    try:
        write_text(run / FILE, json.dumps(content, indent=1))
    except OSError as error:
        return made, f"the calibration cannot be kept in {run}: {error.strerror}; it is made anew each time"
    return made, ""


def _kept(path: Path, weights: str, pack: Pack) -> dict[str, Reference]:
    """What the file holds for these weights; nothing if it is absent, damaged or of other weights: it is made anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["version"], content["weights"], content["pack_digest"]) != (1, weights, pack.digest):
            return {}
        entries = content["references"].items()
        return {
            key: Reference(**entry | {n: tuple(entry[n]) for n in ("nll", "membership", "episodes")}
                           | {"rules": tuple(map(tuple, entry["rules"]))})
            for key, entry in entries
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """What is asked of meta-validation."""

    model: STF2M
    data: ResidentViews
    splits: Splits
    pack: Pack
    asked: Asked

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities of the run."""
        return tuple(self.data.modalities)

    @property
    def seen(self) -> np.ndarray:
        """(modality,) bool, what is not hidden."""
        return np.array([name not in self.asked.hidden for name in self.names])

    def known_rows(self) -> np.ndarray:
        """Clips of known emotions of meta-validation, evenly chosen where there are many.

        Raises:
            RunError: if there are none.
        """
        rows = self.splits.rows["meta_val"]
        rows = rows[self.model.known.cpu().numpy()[self.pack.label_ids[rows]]]
        if len(rows) == 0:
            raise RunError("meta-validation has no clip of a known emotion", expected="some", where=str(self.pack.path))
        return rows[:: -(-len(rows) // CLIPS)]


@torch.no_grad()
def _made(queries: _Queries) -> Reference:
    model, data, pack = queries.model, queries.data, queries.pack
    samplers = [] if queries.asked.source == "none" else _samplers(queries)
    batches = [sampler.sample(0, max(8, EPISODES // len(samplers))) for sampler in samplers]
    rows = np.unique(torch.cat([b.query.flatten() for b in batches]).numpy()) if batches else queries.known_rows()
    names, window_s = queries.names, queries.asked.window_s
    clips = [packed(row, pack, names) for row in rows]
    spans = [whole(clip) if window_s is None else _window(clip, row, window_s, model.config.train.seed, names)
             for clip, row in zip(clips, rows, strict=True)]  # fmt: skip
    query, place = data, torch.arange(len(pack), device=data.device)
    if window_s is not None:
        query = resident(list(zip(clips, spans, strict=True)), pack, model.config.views, data.device)
        place[torch.from_numpy(rows).to(data.device)] = torch.arange(len(rows), device=data.device)
    parts = _adapted(queries, query, place, batches) if batches else _recalls(queries, query, place, rows)
    said, label, membership, firing, row = (np.concatenate(column) for column in zip(*parts, strict=True))
    shares = np.zeros((len(pack), len(names)))
    shares[rows] = np.concatenate([c.observed(s, names) for c, s in zip(clips, spans, strict=True)])
    fair = (shares[row] * queries.seen).any(1)  # where everything there is is hidden, nothing can be asked
    if not fair.any():
        raise RunError(f"no clip of meta-validation shows anything but {' and '.join(queries.asked.hidden)}",
                       expected="clips with other modalities", where=str(pack.path))  # fmt: skip
    said, label, membership, firing, row = (part[fair] for part in (said, label, membership, firing, row))
    member = np.eye(len(pack.labels))[pack.label_ids[row]]
    temperature = fit_temperature(said, label)
    return Reference(
        temperature=temperature, nll=(_nll(said, label, 1.0), _nll(said, label, temperature)),
        accuracy=float((said.argmax(-1) == label).mean()), queries=len(label),
        episodes=tuple(sampler.config.title for sampler in samplers),
        observed=dict(zip(names, np.median(shares[row], 0).tolist(), strict=True)),
        membership=tuple(np.quantile(membership, np.linspace(0, 1, 101)).tolist()),
        rules=tuple(map(tuple, (firing.T @ member / np.maximum(member.sum(0), 1)).round(6).tolist())),
    )  # fmt: skip


def _window(clip: ClipFeatures, row: int, window_s: float, seed: int, names: tuple[str, ...]) -> np.ndarray:
    """(1, 2) a window of a clip, anywhere; the whole clip where it is short or nothing is observed in the window."""
    room = clip.duration_s - window_s
    start = float(seeding.uniform(seed, "calibration/window", int(row))) * max(room, 0.0)
    span = np.array([[start, min(start + window_s, clip.duration_s)]])
    return span if room > 0 and clip.observed(span, names).any() else whole(clip)


Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""(query, way) log-probabilities, and of each query its label among the ways, membership, firing (query, rule), row."""


def _recalls(queries: _Queries, query: ResidentViews, place: Tensor, rows: np.ndarray) -> Iterator[Part]:
    model, data = queries.model, queries.data
    statistics, theta = plain_statistics(model, data), model.unmodulated(1)
    position = torch.cumsum(model.known, 0) - 1
    for row in torch.from_numpy(rows).to(data.device).split(64):
        encoded = encode_clips(model, query, place[row], statistics, _keep(queries, len(row)))
        said = model.fuzzify(encoded, theta)
        yield (_plain(recalled(model, said)), position[data.labels[row]].cpu().numpy(), _plain(said.typicality[0]),
               _plain(said.firing[0]), row.cpu().numpy())  # fmt: skip


def _adapted(queries: _Queries, query: ResidentViews, place: Tensor, batches: list[EpisodeBatch]) -> Iterator[Part]:
    model, data, config = queries.model, queries.data, queries.model.config
    training = model_statistics(model)
    for batch in batches:
        for first in range(0, len(batch), config.evaluation.chunk):
            some = batch[first : first + config.evaluation.chunk].to(data.device)
            episode = encode_episodes(model, data, some, seed=config.train.seed, stream="evaluation",
                                      n_orders=config.meta_rnn.n_orders)  # fmt: skip
            theta = model.adapt(episode.support, config.inner.steps_test)[-1]
            encoded, row = episode.query, some.query.flatten()
            if query is not data or queries.asked.hidden:
                statistics = data.support_statistics(some.support, training)
                encoded = encode_clips(model, query, place[row], _each(statistics, len(some)), _keep(queries, len(row)))
            said = model.predict(encoded, theta, episode.support)
            # episodes of different kinds have different ways: no probability beyond an episode's own
            room = (0, len(queries.pack.labels) - some.n_way)
            wide = torch.nn.functional.pad(said.log_probability.flatten(0, 1), room, value=-torch.inf)
            yield (_plain(wide), some.query_label.flatten().cpu().numpy(), _plain(said.fuzzified.typicality.flatten()),
                   _plain(said.fuzzified.firing.flatten(0, 1)), row.cpu().numpy())  # fmt: skip


def _keep(queries: _Queries, n_clips: int) -> Tensor | None:
    if not queries.asked.hidden:
        return None
    return torch.from_numpy(queries.seen).to(queries.data.device).expand(n_clips, -1)


def _each(statistics: Statistics, n_episodes: int) -> Statistics:
    """With one row per episode, also where all episodes share theirs."""
    parts = {name: {m: t.expand(n_episodes, -1, -1) for m, t in getattr(statistics, name).items()}
             for name in ("shift", "scale")}  # fmt: skip
    return replace(statistics, **parts)


def _plain(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _samplers(queries: _Queries) -> list[EpisodeSampler]:
    """Of meta-validation episodes with as many ways, and as many shots as there are; else those of training."""
    config, asked = queries.model.config, queries.asked
    regimes = {kind.regime for kind in config.episodes}
    regime = "P" if asked.source == "own" else "C" if "C" in regimes else "D"
    alike = [EpisodeConfig(regime=regime, n_way=asked.n_way, n_shot=n, n_query=2) for n in range(asked.n_shot, 0, -1)]
    able = [sampler for kind in alike if (sampler := _sampler(queries, kind)) is not None][:1]
    if not able:
        able = [sampler for kind in dict.fromkeys(config.episodes) if (sampler := _sampler(queries, kind)) is not None]
    if not able:
        raise RunError("meta-validation gives no episode of any kind of training", expected="some",
                       where=str(queries.pack.path))  # fmt: skip
    return able


def _sampler(queries: _Queries, kind: EpisodeConfig) -> EpisodeSampler | None:
    """None where meta-validation has no such episode."""
    try:
        return EpisodeSampler(queries.pack, queries.splits, "meta_val", kind, queries.model.config.train.seed)
    except EpisodeError:
        return None


def fit_temperature(said: np.ndarray, label: np.ndarray) -> float:
    """The temperature, 1/2 to 10,000, at which the answers are least surprised by the labels (Guo et al. 2017).

    One more answer, of which nothing is known, is put to them: without it answers that are all right would be made
    certain.

    Args:
        said: (query, way) log-probabilities; -inf where a query has fewer ways.
        label: (query,) int64.
    """
    there = np.isfinite(said)

    def surprise(log_temperature: float) -> float:
        soft = softened(said, float(np.exp(log_temperature)))
        unknown = -np.where(there, soft, 0.0).sum(-1) / there.sum(-1)
        return float((-soft[np.arange(len(label)), label]).sum() + unknown.mean())

    found = minimize_scalar(surprise, method="bounded", bounds=(np.log(_LEAST), np.log(_MOST)), options={"xatol": 1e-4})
    return round(float(np.exp(found.x)), 4)


def _nll(said: np.ndarray, label: np.ndarray, temperature: float) -> float:
    return float(-softened(said, temperature)[np.arange(len(label)), label].mean())


def softened(said: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities (..., way) at a temperature."""
    scaled = said / temperature
    top = scaled.max(-1, keepdims=True)
    return scaled - top - np.log(np.exp(scaled - top).sum(-1, keepdims=True))
