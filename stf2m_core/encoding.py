"""Episodes become encoded support and query: one gather, one standardisation, one pass of the convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stf2m_core import seeding
from stf2m_core.model.encoder import Dropout, Encoded
from stf2m_core.model.st_f2m import STF2M, Support, episode_targets, hard_targets
from stf2m_core.shapes import EpisodeBatch, ViewBatch
from stf2m_core.views import (
    ResidentViews,
    Statistics,
    concatenated,
    kept_modalities,
    random_views,
    standardised,
    without,
)

STATISTICS = ("shift", "scale", "worth")
"""What `Statistics` holds, in its order; with a modality's name each is a buffer of the model."""


@dataclass(frozen=True)
class Encoding:
    """Some episodes, encoded.

    Attributes:
        support: ready for `STF2M.adapt`.
        query: ready for `STF2M.predict`.
        target: (episode, query, way) label distributions.
        weight: (episode, query) how much each query counts.
        label_target: (episode, query, label) distributions over all labels of the data set.
        support_label_target: (episode, way * shot, label) the same of the support.
        has_votes: whether the labels are distributions already.
    """

    support: Support
    query: Encoded
    target: Tensor
    weight: Tensor
    label_target: Tensor
    support_label_target: Tensor
    has_votes: bool = False


@dataclass(frozen=True)
class Disturbance:
    """What training adds: noise, dropout, missing modalities, dropped rules. Source: METHOD, 'Training'."""

    noise: float
    level_noise: float
    dropout: float
    view_drop: float
    drop_rule: float
    generator: torch.Generator


def encode_episodes(
    model: STF2M, data: ResidentViews, batch: EpisodeBatch, *, seed: int, stream: str,
    disturbance: Disturbance | None = None, n_orders: int = 1, keep: Tensor | None = None, n_views: int | None = None,
) -> Encoding:  # fmt: skip
    """Encode support, random views of the support, and query in one pass.

    Args:
        model: the model.
        data: views on the model's device.
        batch: episodes on the same device.
        seed: of the random views, orders and drops; each is a pure function of (seed, stream, episode number).
        stream: name of the purpose.
        disturbance: training only.
        n_orders: random orders in which the recurrent network reads the support.
        n_views: random views of each support clip; None: the config's; 0 where no inner step follows.
        keep: (modality,) bool; modalities that may be seen at all (missing-modality evaluation); None: all.
    """
    n_episodes, n_way, n_shot = batch.support.shape
    rows = batch.support.flatten(1)
    n_support = rows.shape[1]
    n_views = model.config.inner.n_views if n_views is None else n_views
    ids = batch.ids.cpu().numpy()
    clean, query = data.gather(rows.flatten()), data.gather(batch.query.flatten())
    parts = [clean, _views(clean, rows, ids, n_views, model, seed, stream), query] if n_views else [clean, query]
    together = concatenated(parts, n_episodes)
    statistics = data.support_statistics(batch.support, model_statistics(model))
    together = _cast(standardised(together, statistics, n_episodes), model.anchor.dtype)
    dropout = Dropout()
    if disturbance is not None:
        together = _disturbed(together, ids, disturbance, model, seed, stream)
        dropout = Dropout(disturbance.dropout, disturbance.generator)
    if keep is not None:
        together = without(together, keep.expand(len(next(iter(together.values())).duration), -1))
    encoded = model.encode(together, dropout)
    own = encoded.select(slice(0, n_support), n_episodes)
    views = encoded.select(slice(n_support, n_support * (1 + n_views)), n_episodes) if n_views else own
    target, weight = _targets(data, rows, batch, None, model)
    query_target, query_weight = _targets(data, batch.query, batch, batch.query_label, model)
    order = _orders(ids, batch.support, n_orders, seed, stream)
    kept = _kept_rules(ids, model, disturbance, seed, stream, rows)
    support = Support(own, views, target, weight, batch.classes, batch.own, data.subjects[rows], order, kept)
    rest = encoded.select(slice(n_support * (1 + n_views), None), n_episodes)
    labels = (data.soft_labels[some].to(model.anchor.dtype) for some in (batch.query, rows))
    return Encoding(support, rest, query_target, query_weight, *labels, data.has_votes)


def encode_clips(
    model: STF2M, data: ResidentViews, rows: Tensor, statistics: Statistics, keep: Tensor | None = None
) -> Encoded:
    """Encode some clips as queries, episode-major.

    Args:
        model: trained.
        data: views on the model's device.
        rows: (episode * clip,) int64.
        statistics: of the episodes' support, one row per episode.
        keep: (episode * clip, modality) bool, what may be seen; None: all.
    """
    n_episodes = next(iter(statistics.shift.values())).shape[0]
    views = standardised(data.gather(rows), statistics, n_episodes)
    views = _cast(views, model.anchor.dtype)
    return model.encode(views if keep is None else without(views, keep))


def plain_statistics(model: STF2M, data: ResidentViews) -> Statistics:
    """How clips are standardised where there is no support."""
    statistics = model_statistics(model)
    if data.config.normalise != "none":
        return statistics
    return data.support_statistics(torch.zeros(1, 1, 1, dtype=torch.long, device=data.device), statistics)


def model_statistics(model: STF2M) -> Statistics:
    """The meta-train statistics that travel with the weights."""
    names = model.encoder.names
    return Statistics(*({name: getattr(model, f"{kind}_{name}") for name in names} for kind in STATISTICS))


def set_statistics(model: STF2M, statistics: Statistics) -> None:
    """Store the meta-train statistics with the weights."""
    for kind in STATISTICS:
        for name, value in getattr(statistics, kind).items():
            getattr(model, f"{kind}_{name}").copy_(value)


def _views(
    clean: Mapping[str, ViewBatch], rows: Tensor, ids: np.ndarray, n_views: int, model: STF2M, seed: int, stream: str
) -> dict[str, ViewBatch]:
    """`n_views` random views of each support clip, episode by episode.

    A draw belongs to (episode, clip), not to a place in the support, so renaming the classes changes no view.
    """
    n_support = rows.shape[1]
    once = np.arange(len(ids) * n_support).reshape(len(ids), 1, n_support)
    index = np.repeat(once, n_views, 1).reshape(-1)
    clip = np.repeat(rows.cpu().numpy()[:, None], n_views, 1)
    draw = np.broadcast_to(np.arange(n_views)[:, None], clip.shape)
    counters = np.stack([np.repeat(ids, n_views * n_support), clip.reshape(-1), draw.reshape(-1)], 1)
    pick = torch.from_numpy(index).to(next(iter(clean.values())).values.device)
    repeated = {
        name: ViewBatch(view.values[pick], view.mask[pick], view.times[pick], view.duration[pick])
        for name, view in clean.items()
    }
    return random_views(repeated, counters, model.config.inner, seed, f"{stream}/views")


def _cast(views: Mapping[str, ViewBatch], dtype: torch.dtype) -> dict[str, ViewBatch]:
    return {name: replace(view, values=view.values.to(dtype)) for name, view in views.items()}


def _disturbed(
    views: Mapping[str, ViewBatch], ids: np.ndarray, disturbance: Disturbance, model: STF2M, seed: int, stream: str
) -> dict[str, ViewBatch]:
    """Noise on every value and every clip, and in some episodes modalities missing at a rate between 0 and 1/2."""
    noisy = {}
    for name, view in views.items():
        shape, facts = view.values.shape, {"generator": disturbance.generator, "device": view.values.device}
        noise = disturbance.noise * torch.randn(shape, **facts)
        noise = noise + disturbance.level_noise * torch.randn((shape[0], 1, *shape[2:]), **facts)
        noisy[name] = replace(view, values=view.values + noise.to(view.values.dtype) * view.mask[..., None])
    present = torch.stack([view.present for view in views.values()], 1)
    n_clips = len(present) // len(ids)
    draw = seeding.uniform(seed, f"{stream}/missing", ids[:, None], np.arange(2))
    rate = np.where(draw[:, 0] < disturbance.view_drop, draw[:, 1] / 2, 0.0)
    counters = np.stack([np.repeat(ids, n_clips), np.tile(np.arange(n_clips), len(ids))], 1)
    rates = np.repeat(rate, n_clips)[:, None]
    keep = kept_modalities(present.cpu().numpy(), counters, model.config.inner, seed, f"{stream}/missing", rates)
    return without(noisy, torch.from_numpy(keep).to(present.device))


def _targets(
    data: ResidentViews, rows: Tensor, batch: EpisodeBatch, label: Tensor | None, model: STF2M
) -> tuple[Tensor, Tensor]:
    dtype = model.anchor.dtype
    if data.has_votes:
        target, weight = episode_targets(data.soft_labels, rows, batch.classes)
        return target.to(dtype), weight.to(dtype)
    if label is None:
        label = torch.arange(batch.n_way, device=rows.device).repeat_interleave(batch.n_shot).expand(len(rows), -1)
    return hard_targets(label, batch.n_way, dtype), torch.ones(rows.shape, dtype=dtype, device=rows.device)


def _orders(ids: np.ndarray, support: Tensor, n_orders: int, seed: int, stream: str) -> Tensor:
    """(draw, episode, way, shot) random orders of the shots; they belong to the clips, as the views do."""
    counters = np.arange(n_orders)[:, None, None, None], ids[:, None, None], support.cpu().numpy()
    return torch.from_numpy(np.argsort(seeding.uniform(seed, f"{stream}/order", *counters), -1)).to(support.device)


def _kept_rules(
    ids: np.ndarray, model: STF2M, disturbance: Disturbance | None, seed: int, stream: str, like: Tensor
) -> Tensor | None:
    """DropRule: one mask per episode, the same in all inner steps, support and query; at least two rules stay."""
    if disturbance is None or disturbance.drop_rule == 0 or not model.has_rules:
        return None
    draw = seeding.uniform(seed, f"{stream}/rules", ids[:, None], np.arange(model.config.fuzzy.n_rules))
    second = np.sort(draw, 1)[:, -2:-1]
    return torch.from_numpy((draw >= disturbance.drop_rule) | (draw >= second)).to(like.device)[:, None]
