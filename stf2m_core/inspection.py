"""Looking inside: a trained model and some episodes go in, arrays for tables and figures come out."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from stf2m_core.data.pack import Pack
from stf2m_core.encoding import encode_episodes
from stf2m_core.errors import RunError
from stf2m_core.evaluation import answer
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.views import ResidentViews


@dataclass(frozen=True)
class Firing:
    """What the rules say of the queries of some episodes, at theta_0.

    Attributes:
        firing: (clip, rule) rows sum to one.
        entropy: (clip,) normalised, 0 to 1.
        typicality: (clip,) log membership per feature of the best rule, <= 0.
        label: (clip,) index into the pack's labels.
        row: (clip,) row of clips.csv.
        points: (clip, 2) the antecedents' features in the plane of their two main directions.
        centers: (rule, 2) in the same plane.
        covariances: (rule, 2, 2) each rule's inverse precision, projected.
    """

    firing: np.ndarray
    entropy: np.ndarray
    typicality: np.ndarray
    label: np.ndarray
    row: np.ndarray
    points: np.ndarray
    centers: np.ndarray
    covariances: np.ndarray


@dataclass(frozen=True)
class Adaptation:
    """The inner loop on some episodes.

    Attributes:
        accuracy: (step + 1, episode) of the queries.
        nll: (step + 1, episode) of the queries.
        gamma: (episode, channel) FiLM scale that the recurrent network chose.
        beta: (episode, channel) FiLM shift.
    """

    accuracy: np.ndarray
    nll: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray


@torch.no_grad()
def watch_rules(model: STF2M, data: ResidentViews, batch: EpisodeBatch, *, seed: int = 0) -> Firing:
    """Fire the rules on the queries of some episodes.

    Raises:
        RunError: if the model was trained without rules.
    """
    if not model.has_rules:
        raise RunError("this run has no fuzzy rules", expected="a variant other than no-fuzzy", where="watch_rules")
    batch = batch.to(data.device)
    n_orders = model.config.meta_rnn.n_orders
    episode = encode_episodes(model, data, batch, seed=seed, stream="evaluation", n_orders=n_orders)
    theta = model.start(episode.support)
    said = model.fuzzify(episode.query, theta)
    z, _ = model.encoder.embed(episode.query, theta.gamma, theta.beta)
    features = model.rules.features(z).flatten(0, 1).double().cpu().numpy()
    label = torch.take_along_dim(batch.classes, batch.query_label, 1)
    middle = features.mean(0)
    plane = np.linalg.svd(features - middle, full_matrices=False)[2][:2].T
    spread = plane.T @ covariances(model) @ plane
    flat = [getattr(said, n).flatten(0, 1).cpu().numpy() for n in ("firing", "entropy", "typicality")]
    centers = model.rules.center.double().cpu().numpy()
    return Firing(*flat, label.flatten().cpu().numpy(), batch.query.flatten().cpu().numpy(),
                  (features - middle) @ plane, (centers - middle) @ plane, spread)  # fmt: skip


@torch.no_grad()
def covariances(model: STF2M) -> np.ndarray:
    """(rule, feature, feature) inverse precisions; their diagonals are squared axis widths."""
    return torch.linalg.inv(copy.deepcopy(model.rules).double().precision()).cpu().numpy()


def rule_cards(watched: Firing, pack: Pack, n_clips: int = 3) -> pd.DataFrame:
    """One row per rule: how much it fires, for which emotions, and the clips it owns most clearly.

    Rules are numbered from 1, as in the figures.
    """
    member = np.eye(len(pack.labels))[watched.label]
    weight = watched.firing.T @ member
    share = weight / np.maximum(weight.sum(1, keepdims=True), 1e-12)
    prior = member.mean(0)
    lift = np.argsort(-share / np.maximum(prior, 1e-12), 1)[:, :2]
    names = pack.clips["clip_id"].to_numpy(str)
    best = np.argsort(-watched.firing, 0)
    rows = []
    for rule in range(watched.firing.shape[1]):
        clips = list(dict.fromkeys(names[watched.row[best[:, rule]]]))[:n_clips]
        emotions = ", ".join(f"{pack.labels[e]} {share[rule, e]:.0%}" for e in lift[rule])
        rows.append({"rule": rule + 1, "mean firing": watched.firing[:, rule].mean(), "fires for": emotions,
                     "clearest clips": ", ".join(clips)})  # fmt: skip
    return pd.DataFrame(rows).sort_values("mean firing", ascending=False, ignore_index=True)


def follow_adaptation(
    model: STF2M, data: ResidentViews, batch: EpisodeBatch, *, n_steps: int | None = None, seed: int = 0
) -> Adaptation:
    """Query accuracy and NLL after every inner step."""
    said = answer(model, data, batch, seed=seed, n_steps=n_steps, whole_path=True).path.cpu()
    label = batch.query_label.cpu().expand(len(said), -1, -1)
    accuracy = (said.argmax(-1) == label).double().mean(-1)
    nll = -said.gather(3, label[..., None])[..., 0].mean(-1)
    with torch.no_grad():
        episode = encode_episodes(model, data, batch.to(data.device), seed=seed, stream="evaluation",
                                  n_orders=model.config.meta_rnn.n_orders)  # fmt: skip
        theta = model.start(episode.support)
    return Adaptation(accuracy.numpy(), nll.numpy(), theta.gamma.cpu().numpy(), theta.beta.cpu().numpy())


def weights_of(model: STF2M) -> pd.DataFrame:
    """Numbers of weights per part of the model, and how many adapt."""
    parts = {"encoder": model.encoder, "fuzzy rules": model.rules if model.has_rules else model.plain,
             "meta-RNN": model.task_encoder}  # fmt: skip
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    total = sum(p.numel() for p in model.parameters())
    return pd.DataFrame({"part": [*counts, "anchors, axes, rates and scales", "all"],
                         "weights": [*counts.values(), total - sum(counts.values()), total]})  # fmt: skip
