"""What is known of the emotions before any episode: clips of meta-train go in, closed-form first values come out.

Gradient steps from random weights need thousands of clips to find what a linear discriminant reads off a few hundred.
So the level path starts as discriminant directions, and anchors and their worth start as the moments of a two-level
Gaussian: a clip = emotion + person + what this person does with this emotion + clip noise. Source: linear discriminant
analysis (Fisher 1936), two-covariance model (Brummer & de Villiers 2010); their use as a start is ours, D-22. Where the
encoder first learns to name emotions, the same moments place the axes of its embedding afterwards (D-90).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Knowledge:
    """Moments of an embedding over the clips of meta-train, per feature.

    Attributes:
        anchor: (label, feature) mean of each emotion, every person counting once; zero for a label without clips.
        emotion: (feature,) variance of emotions.
        clip: (feature,) variance of the clips of one person and emotion.
        habit: (feature,) variance of what a person does with an emotion, beyond the emotion and the person.
        person: (feature,) variance of persons.
        n_persons: persons of meta-train.
    """

    anchor: Tensor
    emotion: Tensor
    clip: Tensor
    habit: Tensor
    person: Tensor
    n_persons: int


def discriminants(moments: Tensor, label: Tensor, person: Tensor, n_directions: int, shrinkage: float = 0.2) -> Tensor:
    """Directions (moment, direction) that tell emotions apart, then those in which persons differ in an emotion.

    Clips are centred per person; the variance within emotions is 1 along every direction, and the means of persons are
    uncorrelated between directions. Directions beyond the rank of
    what is there are zero.

    Args:
        moments: (clip, moment) standardised.
        label: (clip,) int64.
        person: (clip,) int64.
        n_directions: how many.
        shrinkage: of the covariance within emotions towards a multiple of the identity.
    """
    cells, member, _ = _cells(moments.double(), label, person)
    emotion, center = _additive(cells, member)
    whiten = _whitening(moments.double() - center[person] - emotion[label], shrinkage)
    between = emotion[member.any(0)] @ whiten
    own = _row_space(between - between.mean(0), float(between.norm()))
    habits = ((cells - center[:, None] - emotion) @ whiten)[member]
    habits = habits - habits @ own.T @ own
    # what is left of nothing is rounding, small against the emotions
    chosen = torch.cat([own, _row_space(habits, float(between.norm()))])[:n_directions]
    # turned so that persons differ along single directions: what is kept per direction then tells their covariance
    persons = (center - center.mean(0)) @ whiten @ chosen.T
    chosen = torch.linalg.svd(persons, full_matrices=True).Vh @ chosen
    result = torch.zeros(moments.shape[1], n_directions, dtype=whiten.dtype)
    result[:, : len(chosen)] = whiten @ chosen.T
    return result.to(moments.dtype)


def emotion_axes(embedding: Tensor, label: Tensor, episode: Tensor, shrinkage: float = 0.05) -> Tensor:
    """Axes (feature, axis) along which clips of an emotion vary by 1 and alike, and emotions without correlation.

    The axis in which emotions differ most comes first. Distances, shrinkage and metric, which all are per feature, are
    then those of a Gaussian with full covariances. Source: linear discriminant analysis (Fisher 1936); D-90.

    Args:
        embedding: (clip, feature).
        label: (clip,) int64.
        episode: (clip,) int64, of which support the clip was standardised by; what its clips share is taken off.
        shrinkage: of the covariance within emotions towards a multiple of the identity.
    """
    values = embedding.double()
    cells, member, _ = _cells(values, label, episode)
    emotion, center = _additive(cells, member)
    whiten = _whitening(values - center[episode] - emotion[label], shrinkage)
    means = emotion[member.any(0)] @ whiten
    means = means - means.mean(0)
    return (whiten @ torch.linalg.eigh(means.T @ means).eigenvectors.flip(1)).to(embedding.dtype)


def knowledge(embedding: Tensor, label: Tensor, person: Tensor, n_labels: int) -> Knowledge:
    """Means and variance components of an embedding by the method of moments; no variance is below 2 % of the clips'.

    Args:
        embedding: (clip, feature).
        label: (clip,) int64.
        person: (clip,) int64.
        n_labels: labels of the data set.
    """
    values = embedding.double()
    cells, member, count = _cells(values, label, person, n_labels)
    inside = values - cells[person, label]
    n_cells = int(member.sum())
    clip = (inside**2).sum(0) / max(1, len(values) - n_cells)
    # a feature in which clips hardly differ carries nothing; its variance must not blow it up
    clip = clip.clamp(min=max(1e-6, 0.25 * float(clip.max())))
    anchor, center = _additive(cells, member)
    per_cell = float(count[member].double().mean())
    habits = (cells - center[:, None] - anchor)[member]
    n_free = max(1, n_cells - member.shape[0] - int(member.any(0).sum()) + 1)
    habit = ((habits**2).sum(0) / n_free - clip / per_cell).clamp(min=0.02 * clip)
    n_way = float(member.sum(1).double().mean())
    spread = center.var(0) if len(center) > 1 else torch.zeros_like(clip)
    person_ = (spread - (habit + clip / per_cell) / n_way).clamp(min=0.02 * clip)
    there = member.any(0)
    emotion = (anchor[there].var(0) if int(there.sum()) > 1 else torch.zeros_like(clip)).clamp(min=1e-3 * clip)
    anchor = torch.where(there[:, None], anchor, torch.zeros_like(anchor))
    # a few persons say little of each single feature: towards the mean of all features, in units of the clips' variance
    habit, person_ = (clip * ((1 - s) * v / clip + s * (v / clip).mean()) for v, s in ((habit, 0.2), (person_, 0.3)))
    moments = (anchor, emotion, clip, habit, person_)
    return Knowledge(*(t.to(embedding.dtype) for t in moments), n_persons=len(center))


def _whitening(within: Tensor, shrinkage: float) -> Tensor:
    """(feature, axis) that makes the covariance of (clip, feature), shrunk, the identity."""
    covariance = within.T @ within / max(1, len(within) - 1)
    ridge = covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    variance, axes = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * ridge)
    return axes / variance.clamp(min=1e-9).sqrt()


def _cells(values: Tensor, label: Tensor, person: Tensor, n_labels: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Means (person, label, feature), which cells have clips, and how many."""
    n_labels = max(n_labels, int(label.max()) + 1)
    owner, n_cells = person * n_labels + label, (int(person.max()) + 1) * n_labels
    count = values.new_zeros(n_cells).index_add_(0, owner, torch.ones_like(values[:, 0]))
    total = values.new_zeros(n_cells, values.shape[1]).index_add_(0, owner, values)
    cells = (total / count.clamp(min=1)[:, None]).unflatten(0, (-1, n_labels))
    count = count.unflatten(0, (-1, n_labels))
    return cells, count > 0, count


def _additive(cells: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Emotions (label, feature) and persons (person, feature, mean zero) whose sums fit the cells best.

    Least squares, so that nobody's emotions look different because the others showed another choice of them. Where
    people and emotions do not overlap at all the two cannot be told apart, and the least departures are taken.
    """
    person, label = member.nonzero(as_tuple=True)
    design = torch.cat([one_hot(person, len(member)), one_hot(label, member.shape[1])], 1).to(cells.dtype)
    values = cells[member]
    grand = values.mean(0)
    # through the normal equations: persons + labels are few, cells may be many
    found = torch.linalg.pinv(design.T @ design, hermitian=True, rtol=1e-10) @ (design.T @ (values - grand))
    persons, emotions = found.split([len(member), member.shape[1]])
    return emotions + persons.mean(0) + grand, persons - persons.mean(0)


def _row_space(rows: Tensor, size: float) -> Tensor:
    """(rank, feature) orthonormal, the direction of most variance first; below 1e-8 of `size` is rounding."""
    _, strength, axes = torch.linalg.svd(rows, full_matrices=False)
    return axes[strength > 1e-8 * size]
