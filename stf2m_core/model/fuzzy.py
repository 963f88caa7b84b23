"""Generalised fuzzy rules: clip embeddings go in; firing, typicality, consequents and label distributions come out.

A rule's antecedent is one multivariate Gaussian with a full inverse covariance of low-rank form, so its ellipsoid may
be rotated. Source: generalised Takagi-Sugeno rules (Lughofer et al. 2015); METHOD, 'Fuzzy rules'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stf2m_core.config import FuzzyConfig

WIDEST, NARROWEST = -4.0, 4.0


def squared_distance(features: Tensor, center: Tensor, log_precision: Tensor, factor: Tensor) -> Tensor:
    """Mahalanobis distances m_r = |exp(lambda_r) d|^2 + |U_r' d|^2 with d = x - c_r: (episode, clip, rule), >= 0.

    The difference is taken first: the expanded form x'Px - 2c'Px + c'Pc loses its digits in float32.

    Args:
        features: (episode, clip, feature).
        center: (episode or 1, rule, feature).
        log_precision: (rule, feature) lambda; the precision is diag(exp(2 lambda)) + U U'.
        factor: (rule, feature, rank) U.
    """
    difference = features[:, :, None] - center[:, None]
    axes = difference * log_precision.clamp(WIDEST, NARROWEST).exp()
    rotated = torch.einsum("ebrf,rfq->ebrq", difference, factor)
    return (axes**2).sum(-1) + (rotated**2).sum(-1)


def membership(distance: Tensor) -> Tensor:
    """Psi = exp(-m / 2), in (0, 1], 1 at the centre: how typical a clip is of a rule."""
    return torch.exp(-distance / 2)


def firing_strength(distance: Tensor, log_scale: Tensor, n_features: int, kept: Tensor | None = None) -> Tensor:
    """phi = softmax_r(-m_r s / (2 F)): how strongly each rule claims each clip; sums to one over rules.

    Averaging over the F features instead of summing keeps phi from collapsing onto one rule (HTSK, Cui et al. 2021);
    how flat is right depends on the data, so the scale s is calibrated and then learned (ours, D-09).

    Args:
        distance: (episode, clip, rule).
        log_scale: () log s.
        n_features: F.
        kept: (episode, 1, rule) bool, rules that DropRule leaves; None: all.
    """
    score = -distance * log_scale.clamp(-3, 5).exp() / (2 * n_features)
    if kept is not None:
        score = torch.where(kept, score, torch.full_like(score, -torch.inf))
    return torch.softmax(score, -1)


def firing_entropy(firing: Tensor) -> Tensor:
    """Normalised entropy of firing in [0, 1]."""
    log = torch.log(firing.clamp(min=1e-12))
    return -(firing * log).sum(-1) / math.log(firing.shape[-1])


def rule_labels(firing: Tensor, target: Tensor, weight: Tensor, prior: Tensor, prior_weight: float) -> Tensor:
    """Pi_re = (sum_i w_i phi_ri q_ie + a pi_re) / (sum_i w_i phi_ri + a): each rule's label distribution.

    Args:
        firing: (episode, clip, rule) of the support.
        target: (episode, clip, way) label distributions of the support.
        weight: (episode, clip) reliability.
        prior: (episode, rule, way) rows sum to one.
        prior_weight: a, in clips.
    """
    mass = weight[..., None] * firing
    votes = torch.einsum("esr,esw->erw", mass, target)
    return (votes + prior_weight * prior) / (mass.sum(1)[..., None] + prior_weight)


def rule_labels_left_out(
    firing: Tensor, target: Tensor, weight: Tensor, prior: Tensor, prior_weight: float
) -> Tensor:
    """As `rule_labels`, for each support clip without that clip: (episode, clip, rule, way)."""
    mass = weight[..., None] * firing
    votes = torch.einsum("esr,esw->erw", mass, target)[:, None] - mass[..., None] * target[:, :, None]
    total = mass.sum(1)[:, None] - mass
    return (votes.clamp(min=0) + prior_weight * prior[:, None]) / (total.clamp(min=0)[..., None] + prior_weight)


@dataclass(frozen=True)
class Fuzzified:
    """What the rules say of some clips.

    Attributes:
        firing: (episode, clip, rule) phi, sums to one over rules.
        entropy: (episode, clip) normalised entropy of firing.
        typicality: (episode, clip) log of the best membership per feature, <= 0; low: unlike anything seen.
        embedding: (episode, clip, embedding) fuzzy-enriched.
    """

    firing: Tensor
    entropy: Tensor
    typicality: Tensor
    embedding: Tensor


class FuzzyRules(nn.Module):
    """The rule layer with its zero-order consequents.

    Args:
        embedding: numbers per clip.
        n_labels: labels of the data set, for what each rule has learned of known emotions.
        config: sizes.
    """

    def __init__(self, embedding: int, n_labels: int, config: FuzzyConfig):
        super().__init__()
        self.config = config
        n_rules, n_features = config.n_rules, config.n_features
        self.reduce = nn.Linear(embedding, n_features)
        self.norm = nn.LayerNorm(n_features)
        self.center = nn.Parameter(torch.randn(n_rules, n_features))
        self.log_precision = nn.Parameter(torch.zeros(n_rules, n_features))
        self.factor = nn.Parameter(torch.randn(n_rules, n_features, config.rank) * 0.05)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.consequent = nn.Parameter(torch.randn(n_rules, config.n_consequents) * 0.1)
        self.label_score = nn.Parameter(torch.zeros(n_rules, n_labels))
        self.enrich = nn.Linear(config.n_consequents + 3, embedding, bias=False)
        self.out = nn.LayerNorm(embedding)

    def features(self, embedding: Tensor) -> Tensor:
        """x = LN(W z): what the antecedents see, (episode, clip, feature), never below float32."""
        return self.norm(self.reduce(embedding.to(self.reduce.weight.dtype)))

    def prior(self, classes: Tensor, known: Tensor) -> Tensor:
        """(episode, rule, way) what each rule has learned of the episode's classes; uniform if one of them is new.

        Args:
            classes: (episode, way) labels of the data set.
            known: (label,) bool.
        """
        learned = torch.softmax(self.label_score[:, classes].transpose(0, 1), -1)
        uniform = torch.full_like(learned, 1 / classes.shape[1])
        return torch.where(known[classes].all(1)[:, None, None], learned, uniform)

    def forward(
        self, embedding: Tensor, disagreement: Tensor, consequent: Tensor, shift: Tensor, kept: Tensor | None = None
    ) -> Fuzzified:
        """Fire the rules.

        Args:
            embedding: (episode, clip, embedding).
            disagreement: (episode, clip) of the modalities.
            consequent: (episode, rule, consequent) fast.
            shift: (episode, rule, feature) fast shift of the centres.
            kept: (episode, 1, rule) bool of DropRule.
        """
        features = self.features(embedding)
        n_features = features.shape[-1]
        distance = squared_distance(features, self.center + shift, self.log_precision, self.factor)
        firing = firing_strength(distance, self.log_scale, n_features, kept)
        entropy = firing_entropy(firing)
        typicality = -distance.amin(-1) / (2 * n_features)
        answer = torch.einsum("ebr,erg->ebg", firing, consequent)
        extra = torch.stack([entropy, typicality.clamp(min=-10), disagreement.to(entropy.dtype)], -1)
        enriched = self.out(embedding + self.enrich(torch.cat([answer, extra], -1)))
        return Fuzzified(firing, entropy, typicality, enriched)

    def precision(self) -> Tensor:
        """(rule, feature, feature) P = diag(exp(2 lambda)) + U U', positive definite by construction."""
        scale = self.log_precision.clamp(WIDEST, NARROWEST).mul(2).exp()
        return torch.diag_embed(scale) + self.factor @ self.factor.transpose(1, 2)

    def balance(self, firing: Tensor) -> Tensor:
        """Uneven use of rules over a meta-batch: sum_r (mean phi_r - 1/R)^2, zero if and only if the use is even."""
        return ((firing.flatten(0, 1).mean(0) - 1 / firing.shape[-1]) ** 2).sum()

    def overlap(self) -> Tensor:
        """Mean similarity of pairs of rules, in [0, 1]."""
        difference = self.center[:, None] - self.center[None]
        precision = self.precision()
        both = precision[:, None] + precision[None]
        distance = torch.einsum("abf,abfg,abg->ab", difference, both, difference)
        scale = self.log_scale.clamp(-3, 5).exp() / self.center.shape[1]
        close = torch.exp(-distance * scale / 4)
        n_rules = self.center.shape[0]
        return (close.sum() - close.diagonal().sum()) / (n_rules * (n_rules - 1))

    @torch.no_grad()
    def place(self, features: Tensor, generator: torch.Generator) -> None:
        """Start the rules on clusters of the warm-up's features, and the scale at the wanted entropy.

        Args:
            features: (clip, feature) of meta-train clips.
            generator: for the choice of first centres.
        """
        centers, owner = k_means(features, self.config.n_rules, generator)
        spread = features.std(0).clamp(min=1e-3)
        for rule in range(self.config.n_rules):
            mine = features[owner == rule]
            width = mine.std(0).nan_to_num(0) if len(mine) > 1 else torch.zeros_like(spread)
            self.log_precision[rule] = -torch.log(torch.maximum(width, 0.2 * spread)).clamp(WIDEST, NARROWEST)
        self.center.copy_(centers)
        self.calibrate(features)

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Set the scale by bisection so that the mean normalised entropy of firing is the configured one."""
        distance = squared_distance(features[None], self.center[None], self.log_precision, self.factor)
        low, high = torch.full_like(self.log_scale, -3.0), torch.full_like(self.log_scale, 5.0)
        for _ in range(40):
            middle = (low + high) / 2
            flat = firing_entropy(firing_strength(distance, middle, features.shape[1])).mean() > self.config.entropy
            low, high = torch.where(flat, middle, low), torch.where(flat, high, middle)
        self.log_scale.copy_((low + high) / 2)


class PlainNetwork(nn.Module):
    """What stands in for the rules in the ablation: a network of as many weights that says nothing of labels."""

    def __init__(self, embedding: int, n_weights: int):
        super().__init__()
        width = max(1, round(n_weights / (2 * embedding + 1)))
        self.net = nn.Sequential(nn.Linear(embedding + 1, width), nn.ReLU(), nn.Linear(width, embedding, bias=False))
        self.out = nn.LayerNorm(embedding)

    def forward(self, embedding: Tensor, disagreement: Tensor) -> Tensor:
        """(episode, clip, embedding) to the same."""
        return self.out(embedding + self.net(torch.cat([embedding, disagreement[..., None]], -1)))


def _distances(points: Tensor, centers: Tensor) -> Tensor:
    return torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")


def k_means(points: Tensor, n_clusters: int, generator: torch.Generator, n_rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Centres (cluster, feature) and owner (point,) by Lloyd's rounds from spread-out first centres.

    Source: k-means++ (Arthur & Vassilvitskii 2007). Here and not from a library because the rest of the run must be the
    same to the bit after a resume, on whatever device, from the run's own generator.
    """
    draw = torch.rand(n_clusters, generator=generator, device=generator.device, dtype=torch.float64).to(points.device)
    centers = points[(draw[0] * len(points)).long()][None]
    for step in range(1, n_clusters):
        gap = _distances(points, centers).amin(1).double() ** 2
        edge = torch.cumsum(gap, 0)
        chosen = torch.searchsorted(edge, draw[step] * edge[-1]).clamp(max=len(points) - 1)
        centers = torch.cat([centers, points[chosen][None]])
    for _ in range(n_rounds):
        owner = _distances(points, centers).argmin(1)
        member = torch.nn.functional.one_hot(owner, n_clusters).to(points.dtype)
        count = member.sum(0)[:, None]
        centers = torch.where(count > 0, member.T @ points / count.clamp(min=1), centers)
    return centers, _distances(points, centers).argmin(1)
