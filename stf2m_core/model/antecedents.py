"""IF parts of fuzzy rules: features of clips go in; distances, memberships and firing come out.

By default a rule's antecedent is one multivariate Gaussian with a full inverse covariance of low-rank form, so its
ellipsoid may be rotated. Source: generalised Takagi-Sugeno rules (Lughofer et al. 2015); METHOD, 'Fuzzy rules'.
"""

from __future__ import annotations

import math

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


def full_distance(features: Tensor, center: Tensor, log_precision: Tensor, factor: Tensor) -> Tensor:
    """Mahalanobis distances m_r = |L_r' d|^2 with d = x - c_r and any precision P_r = L_r L_r': (episode, clip, rule).

    Args:
        features: (episode, clip, feature).
        center: (episode or 1, rule, feature).
        log_precision: (rule, feature) logarithms of the diagonal of L.
        factor: (rule, feature, feature) of which L takes what lies below the diagonal.
    """
    difference = features[:, :, None] - center[:, None]
    return (torch.einsum("ebrf,rfg->ebrg", difference, lower_triangle(log_precision, factor)) ** 2).sum(-1)


def lower_triangle(log_precision: Tensor, factor: Tensor) -> Tensor:
    """L of a full precision, (rule, feature, feature), with a positive diagonal."""
    return torch.diag_embed(log_precision.clamp(WIDEST, NARROWEST).exp()) + torch.tril(factor, -1)


def bell_distance(distance: Tensor, log_slope: Tensor) -> Tensor:
    """2 log(1 + m^b), so that its membership exp(-distance / 2) is the generalised bell 1 / (1 + m^b).

    At m = 0 the slope of m^b is none or infinite for b < 1, so m is kept above 1e-9 there.

    Args:
        distance: (episode, clip, rule) m >= 0.
        log_slope: (rule,) log b.

    Source: the bell of ANFIS (Jang 1993), of a rotated distance instead of single features (ours, D-41).
    """
    return 2 * torch.log1p(distance.clamp(min=1e-9) ** log_slope.clamp(-2, 2).exp())


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
    return normalised(-distance * log_scale.clamp(-3, 5).exp() / (2 * n_features), kept)


def normalised(score: Tensor, kept: Tensor | None = None) -> Tensor:
    """Softmax over the rules that DropRule leaves; a rule left out fires with 0."""
    if kept is not None:
        score = torch.where(kept, score, torch.full_like(score, -torch.inf))
    return torch.softmax(score, -1)


def firing_entropy(firing: Tensor) -> Tensor:
    """Normalised entropy of firing in [0, 1]."""
    log = torch.log(firing.clamp(min=1e-12))
    return -(firing * log).sum(-1) / math.log(firing.shape[-1])


class Antecedents(nn.Module):
    """The IF part of the rules: what is near which rule, and which rule fires.

    Args:
        config: kind of antecedent, kind of firing, sizes.
    """

    def __init__(self, config: FuzzyConfig):
        super().__init__()
        self.config = config
        self._make_antecedents()

    def _make_antecedents(self) -> None:
        config = self.config
        n_rules, n_features = config.n_rules, config.n_features
        rank = n_features if config.antecedent == "full" else config.rank
        self.center = nn.Parameter(torch.randn(n_rules, n_features))
        self.log_precision = nn.Parameter(torch.zeros(n_rules, n_features))
        self.factor = nn.Parameter(torch.randn(n_rules, n_features, rank) * 0.05)
        if config.antecedent == "bell":
            self.log_slope = nn.Parameter(torch.zeros(n_rules))
        self.log_scale = nn.Parameter(torch.zeros(())) if config.firing == "calibrated" else None

    def distance(self, features: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """-2 log Psi of every clip and rule, (episode, clip, rule) >= 0: Gaussians have their Mahalanobis distance.

        Args:
            features: (episode, clip, feature).
            shift: (episode or 1, rule, feature) of the centres.
        """
        kind = self.config.antecedent
        measure = full_distance if kind == "full" else squared_distance
        center = self.center + shift
        center = center if center.dim() == 3 else center[None]
        distance = measure(features, center, self.log_precision, self.factor)
        return bell_distance(distance, self.log_slope) if kind == "bell" else distance

    def fire(self, distance: Tensor, kept: Tensor | None = None) -> Tensor:
        """phi, (episode, clip, rule), of the configured kind; sums to one over rules.

        tsk: proportional to the memberships themselves. htsk: to their mean per feature (Cui, Wu & Xu 2021).
        calibrated: as `firing_strength`.
        """
        n_features = self.config.n_features
        if self.log_scale is not None:
            return firing_strength(distance, self.log_scale, n_features, kept)
        return normalised(-distance / (2 if self.config.firing == "tsk" else 2 * n_features), kept)

    def precision(self) -> Tensor:
        """(rule, feature, feature) P = diag(exp(2 lambda)) + U U', or L L' if full; positive definite either way."""
        if self.config.antecedent == "full":
            lower = lower_triangle(self.log_precision, self.factor)
            return lower @ lower.transpose(1, 2)
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
        close = torch.exp(-distance * self._sharpness() / 4)
        n_rules = self.center.shape[0]
        return (close.sum() - close.diagonal().sum()) / (n_rules * (n_rules - 1))

    def _sharpness(self) -> Tensor | float:
        if self.log_scale is not None:
            return self.log_scale.clamp(-3, 5).exp() / self.center.shape[1]
        return 1.0 if self.config.firing == "tsk" else 1 / self.center.shape[1]

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
        """Set the scale by bisection so that the mean normalised entropy of firing is the configured one.

        Plain TSK and HTSK have no scale and stay as they are.
        """
        if self.log_scale is None:
            return
        distance = self.distance(features[None])
        low, high = torch.full_like(self.log_scale, -3.0), torch.full_like(self.log_scale, 5.0)
        for _ in range(40):
            middle = (low + high) / 2
            flat = firing_entropy(firing_strength(distance, middle, features.shape[1])).mean() > self.config.entropy
            low, high = torch.where(flat, middle, low), torch.where(flat, high, middle)
        self.log_scale.copy_((low + high) / 2)

    @torch.no_grad()
    def reseed(self, features: Tensor, dead: Tensor) -> None:
        """Place dead rules anew, each at the clip least typical of the rules there are by then.

        A rule takes the mean widths of the living rules, without rotation; its consequents stay. Source: ours, D-42.

        Args:
            features: (clip, feature) of some clips.
            dead: (rule,) bool; if all are dead, widths stay as they are.
        """
        alive = ~dead
        for rule in dead.nonzero()[:, 0].tolist():
            if alive.any():
                nearest = self.distance(features[None])[0][:, alive].amin(-1)
                self.log_precision[rule] = self.log_precision[alive].mean(0)
            else:
                nearest = -((features - features.mean(0)) ** 2).sum(-1)
            self.center[rule] = features[nearest.argmax()]
            self.factor[rule] = 0
            alive[rule] = True


class RuleUse:
    """Counts for how long each rule has been idle; the counts are the caller's to keep in a checkpoint.

    Attributes:
        idle: (rule,) int64 outer steps in a row with a mean firing below a tenth of the even share.
    """

    def __init__(self, n_rules: int):
        self.idle = torch.zeros(n_rules, dtype=torch.int64)

    def observe(self, firing: Tensor, patience: int) -> Tensor:
        """(rule,) bool, the rules now idle for `patience` steps; their count begins anew.

        Args:
            firing: (..., rule) of the clips of one outer step.
            patience: `reseed_after` of the config; 0: no rule is ever dead.
        """
        use = firing.detach().flatten(0, -2).mean(0).cpu()
        self.idle = torch.where(use < 0.1 / len(use), self.idle + 1, 0)
        dead = (self.idle >= patience) & (patience > 0)
        self.idle = torch.where(dead, 0, self.idle)
        return dead


def _distances(points: Tensor, centers: Tensor) -> Tensor:
    return torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")


def k_means(points: Tensor, n_clusters: int, generator: torch.Generator, n_rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Centres (cluster, feature) and owner (point,) by Lloyd's rounds from spread-out first centres.

    Source: k-means++ (Arthur & Vassilvitskii 2007). Here and not from a library because the rest of the run must be the
    same to the bit after a resume, on whatever device, from the run's own generator.
    """
    home, points = points.device, points.cpu()  # in float64, which not every device has
    draw = torch.rand(n_clusters, generator=generator, device=generator.device, dtype=torch.float64).cpu()
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
    return centers.to(home), _distances(points, centers).argmin(1).to(home)
