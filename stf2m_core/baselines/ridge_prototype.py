"""Nearest prototype on the outputs of a linear classifier: what ordinary training gives, without meta-learning.

Enters: one feature vector and label per clip, and episodes. Leaves: log-probabilities (episode, query, way).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stf2m_core.baselines.nearest_prototype import ClipFeatures, prototype_logits, standardised
from stf2m_core.errors import RunError
from stf2m_core.shapes import EpisodeBatch

ALPHAS = tuple(10.0**power for power in range(-4, 4))


class RidgePrototype:
    """Ridge regression onto the labels of meta-train; its outputs are the embedding of nearest prototypes.

    Alpha is chosen on meta-validation: the share of its clips that are nearest to the mean of their own class, a clip
    left out of its own mean. So the choice also works where the classes of meta-validation are new (Regime C).
    Probabilities are of temperature 1 and not calibrated: report accuracy.

    Attributes:
        alpha: the chosen penalty, after `fit`.
        val_accuracy: its accuracy on meta-validation, 0..1.
        embedding: (clip, label) float64, outputs of the classifier divided by the square root of their number.

    Source: Hoerl & Kennard 1970 for ridge; a supervised embedding with nearest centroids is the baseline that Chen et
    al. 2019 and Tian et al. 2020 ask for; the choice of alpha is ours, see DECISIONS.md.
    """

    alpha: float | None = None
    val_accuracy: float | None = None
    embedding: Tensor | None = None

    def fit(
        self, features: ClipFeatures, labels: ArrayLike, train_rows: ArrayLike, val_rows: ArrayLike
    ) -> RidgePrototype:
        """Fit on meta-train, choose alpha on meta-validation; clips of label -1 (undefined) are left out.

        Args:
            features: of all clips.
            labels: (clip,) int; -1 where undefined.
            train_rows: (row,) int, clips of meta-train.
            val_rows: (row,) int, clips of meta-validation.

        Raises:
            RunError: if a part has fewer than two classes.
        """
        labels = np.asarray(labels)
        train, val = (
            _labelled(labels, rows, name) for rows, name in ((train_rows, "meta_train"), (val_rows, "meta_val"))
        )
        standard = standardised(features, train_rows)
        n_labels = int(labels.max()) + 1
        outputs = ridge_outputs(standard, train, np.eye(n_labels)[labels[train]] * 2 - 1, ALPHAS)
        scores = [left_out_accuracy(output[val], labels[val]) for output in outputs]
        # among equals the strongest penalty, which depends least on the clips at hand
        best = max(range(len(ALPHAS)), key=lambda i: (scores[i], ALPHAS[i]))
        self.alpha, self.val_accuracy = ALPHAS[best], scores[best]
        self.embedding = torch.from_numpy(outputs[best] / np.sqrt(n_labels))
        return self

    def log_probabilities(self, batch: EpisodeBatch) -> Tensor:
        """(episode, query, way) float64, each query on its own.

        Raises:
            RunError: if the baseline was not fitted.
        """
        return prototype_logits(self.embedding, batch).log_softmax(-1)


def ridge_outputs(
    features: np.ndarray, train_rows: np.ndarray, target: np.ndarray, alphas: tuple[float, ...]
) -> list[np.ndarray]:
    """Outputs (clip, label) of ridge regression with intercept, for each alpha from one decomposition.

    Args:
        features: (clip, feature) float64.
        train_rows: (row,) int, clips fitted on.
        target: (row, label) float64.
        alphas: penalties on squared weights, > 0; the intercept is free.
    """
    center, offset = features[train_rows].mean(0), target.mean(0)
    left, size, right = np.linalg.svd(features[train_rows] - center, full_matrices=False)
    within, projected = (features - center) @ right.T, left.T @ (target - offset)
    return [within @ ((size / (size**2 + alpha))[:, None] * projected) + offset for alpha in alphas]


def left_out_accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of clips nearest to the mean of their own class, each clip left out of its own mean, in 0..1.

    A clip that is alone in its class counts as missed.

    Args:
        outputs: (clip, feature) float64.
        labels: (clip,) int.
    """
    names, code = np.unique(labels, return_inverse=True)
    member = np.eye(names.size)[code]
    count = member.sum(0)
    mean = member.T @ outputs / count[:, None]
    distance = ((outputs[:, None, :] - mean) ** 2).sum(-1)
    own = np.arange(len(code)), code
    # without x the mean moves from m to (n m - x) / (n - 1), so x is n / (n - 1) times as far from it
    factor = np.divide(count, count - 1, out=np.full(count.shape, np.inf), where=count > 1)[code]
    distance[own] = np.where(np.isinf(factor), np.inf, distance[own] * np.where(np.isinf(factor), 0, factor) ** 2)
    return float((distance.argmin(1) == code).mean())


def _labelled(labels: np.ndarray, rows: ArrayLike, name: str) -> np.ndarray:
    rows = np.asarray(rows)
    rows = rows[labels[rows] >= 0]
    n_classes = np.unique(labels[rows]).size
    if n_classes < 2:
        raise RunError(f"{name} has {n_classes} class(es) with labels", expected="at least 2", where="ridge-prototype")
    return rows
