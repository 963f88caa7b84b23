"""Nearest prototype on raw features: what the support alone gives, without any learning.

Enters: a pack, or one feature vector per clip, and episodes. Leaves: log-probabilities (episode, query, way).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stf2m_core.errors import ConfigError, RunError
from stf2m_core.shapes import EpisodeBatch

if TYPE_CHECKING:
    from stf2m_core.data.pack import Pack
    from stf2m_core.data.ragged import RaggedViews

_BLOCK = 1 << 16  # frames summarised at once, so that a modality is never held in memory as a whole


@dataclass(frozen=True, slots=True, eq=False)
class ClipFeatures:
    """One vector per clip.

    Attributes:
        values: (clip, feature) float64; NaN where the clip has nothing to say.
        modality: (feature,) int, the modality a feature belongs to, from 0; each modality weighs the same.
        is_presence: (feature,) bool, features that are 1 where the clip has the modality and 0 elsewhere.
    """

    values: np.ndarray
    modality: np.ndarray
    is_presence: np.ndarray


def clip_features(pack: Pack, modalities: Sequence[str] | None = None) -> ClipFeatures:
    """Mean and standard deviation over time of every channel of every node, and whether the modality is there.

    A modality with one frame per clip gives means only; one that every clip has gives no presence.

    Args:
        pack: the data.
        modalities: which, in this order; all if None.

    Raises:
        ConfigError: if no modality is named.
        PackError: if the pack lacks one of them.
    """
    modalities = tuple(pack.modalities if modalities is None else modalities)
    if not modalities:
        raise ConfigError("no modality is named", expected=" or ".join(pack.modalities), where="clip_features")
    values, modality, is_presence = [], [], []
    for number, name in enumerate(modalities):
        views = pack.view(name)
        present = views.lengths > 0
        columns = _moments(views) if present.all() else np.column_stack([_moments(views), present])
        values.append(columns)
        modality += [number] * columns.shape[1]
        is_presence += [False] * (columns.shape[1] - (not present.all())) + [True] * (not present.all())
    return ClipFeatures(np.concatenate(values, 1), np.array(modality), np.array(is_presence))


class NearestPrototype:
    """A class is the mean of its support; a query belongs to the nearest one.

    The logit of a class is minus the squared Euclidean distance per feature, averaged over modalities so that one with
    many features does not outvote the others. Probabilities are of temperature 1 and not calibrated: report accuracy.

    Attributes:
        embedding: (clip, feature) float64, after `fit`.

    Source: Snell et al. 2017 with the identity as embedding; equal weight of modalities is ours, see DECISIONS.md.
    """

    embedding: Tensor | None = None

    def fit(
        self, features: ClipFeatures, labels: ArrayLike, train_rows: ArrayLike, val_rows: ArrayLike
    ) -> NearestPrototype:
        """Standardise with the statistics of meta-train; labels and meta-validation are not looked at.

        Args:
            features: of all clips.
            labels: (clip,) int, unused; here so that all baselines are fitted alike.
            train_rows: (row,) int, clips of meta-train.
            val_rows: (row,) int, unused.
        """
        self.embedding = torch.from_numpy(standardised(features, train_rows))
        return self

    def log_probabilities(self, batch: EpisodeBatch) -> Tensor:
        """(episode, query, way) float64, each query on its own.

        Raises:
            RunError: if the baseline was not fitted.
        """
        return prototype_logits(self.embedding, batch).log_softmax(-1)


def standardised(features: ClipFeatures, train_rows: ArrayLike) -> np.ndarray:
    """Features with mean 0 and variance 1 over meta-train, scaled so that squared distances are those of the logits.

    What a clip lacks becomes the mean of meta-train. Presence is centred but not scaled, because a modality that is
    rarely absent would otherwise weigh more the rarer that is. A feature constant over meta-train is not scaled either.

    Args:
        features: of all clips.
        train_rows: (row,) int, clips of meta-train.

    Returns:
        (clip, feature) float64.
    """
    known = np.isfinite(features.values)
    values = np.where(known, features.values, 0.0)
    train, count = np.asarray(train_rows), np.maximum(known[np.asarray(train_rows)].sum(0), 1)
    mean = values[train].sum(0) / count
    centred = np.where(known, values - mean, 0.0)
    scale = np.sqrt((centred[train] ** 2).sum(0) / count)
    is_constant = scale <= 1e-9 * np.maximum(np.abs(mean), 1.0)
    scale = np.where(is_constant | features.is_presence, 1.0, scale)
    size = np.bincount(features.modality)
    return centred / (scale * np.sqrt(size[features.modality] * size.size))


def prototype_logits(embedding: Tensor | None, batch: EpisodeBatch) -> Tensor:
    """Minus the squared distance of each query to the mean of each class's support: (episode, query, way).

    Args:
        embedding: (clip, feature).
        batch: episodes; rows index the clips.

    Raises:
        RunError: if there is no embedding yet.
    """
    if embedding is None:
        raise RunError("the baseline has no embedding", remedy="Call fit first")
    embedding = embedding.to(batch.query.device)
    prototype = embedding[batch.support].mean(2)
    query = embedding[batch.query]
    product = torch.einsum("eqf,ewf->eqw", query, prototype)
    return 2 * product - query.square().sum(-1)[:, :, None] - prototype.square().sum(-1)[:, None, :]


def _moments(views: RaggedViews) -> np.ndarray:
    """(clip, feature) float64: masked means, then, if any clip has more than one frame, masked standard deviations."""
    blocks = [_block_moments(views, first, last) for first, last in _blocks(views.offsets)]
    mean, deviation = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return mean if views.lengths.max() <= 1 else np.concatenate([mean, deviation], 1)


def _block_moments(views: RaggedViews, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Masked mean and standard deviation over time of clips first..last-1, (clip, node * channel) each."""
    frames = slice(views.offsets[first], views.offsets[last])
    values = views.values[frames].astype(np.float64)
    observed = np.ones(values.shape[:2]) if views.mask is None else views.mask[frames].astype(np.float64)
    observed = observed[..., None]
    lengths = views.lengths[first:last]
    # reduceat gives a frame of the next clip where a slice is empty, so it may see only clips that have frames
    starts, filled = (np.cumsum(lengths) - lengths)[lengths > 0], lengths > 0
    total = np.full((2, last - first, values.shape[1] * values.shape[2]), np.nan)
    if filled.any():
        count = np.add.reduceat(observed, starts)
        count[count == 0] = np.nan
        mean = np.add.reduceat(np.where(observed > 0, values, 0.0), starts) / count
        gap = np.where(observed > 0, values - np.repeat(mean, lengths[filled], axis=0), 0.0)
        deviation = np.sqrt(np.add.reduceat(gap**2, starts) / count)
        total[0, filled], total[1, filled] = (x.reshape(filled.sum(), -1) for x in (mean, deviation))
    return total[0], total[1]


def _blocks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of clips, first and one past the last, of about `_BLOCK` frames."""
    first, n_clips = 0, len(offsets) - 1
    while first < n_clips:
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), n_clips)
        yield first, last
        first = last
