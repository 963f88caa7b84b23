"""From fuzzy sets to generalised rules, and how firing saturates: made-up points enter the kit's own antecedents.

Three clusters that lie askew show what a rotated rule is for. Points without any clusters show how sure the kinds of
firing are when there is nothing to be sure of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from stf2m_core import figures, metrics, seeding
from stf2m_core.config import FuzzyConfig
from stf2m_core.lessons.slider import PictureSlider
from stf2m_core.lessons.small_reader import first_weights
from stf2m_core.model.antecedents import Antecedents, bell_distance, firing_entropy, membership, squared_distance

KINDS: dict[str, dict[str, object]] = {
    "axis-parallel": {"antecedent": "diagonal", "rank": 0}, "rotated, rank 1": {"antecedent": "low-rank", "rank": 1},
    "full": {"antecedent": "full", "rank": 0},
}  # fmt: skip
"""Of antecedents, as `FuzzyConfig` takes them."""
FIRINGS = {"tsk": "product of memberships (TSK)", "htsk": "mean per feature (HTSK)", "calibrated": "calibrated"}
"""Of the config, and in words."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of features."""
N_STEPS = {"test": 5}
"""Steps of fitting per profile; 300 elsewhere."""


def sets(n: int = 201) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(place,) from -4 to 4, and memberships (place,) of one feature in fuzzy sets around 0, by name."""
    place = torch.linspace(-4, 4, n)
    distance = squared_distance(place[None, :, None], torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 1, 0))
    found = {"Gaussian": membership(distance)}
    for slope in (0.5, 1.0, 3.0):
        found[f"bell, slope {slope:g}"] = membership(bell_distance(distance, torch.tensor([slope]).log()))
    return place.numpy(), {name: values[0, :, 0].numpy() for name, values in found.items()}


def clusters(n_clips: int, seed: int = 0, stream: str = "clusters") -> tuple[Tensor, Tensor]:
    """(clip, 2) points of three long, thin clusters that lie askew, and (clip,) which cluster."""
    draw = seeding.generator(seed, "fuzzy sets", stream)
    owner = torch.arange(n_clips) % 3
    centre = torch.tensor([[-1.2, 0.0], [1.2, 0.0], [0.0, 2.2]])
    angle = torch.tensor([0.9, 0.9, -0.5])
    along = torch.stack([angle.cos(), angle.sin()], -1)
    across = torch.stack([-angle.sin(), angle.cos()], -1)
    rest = torch.randn((n_clips, 2), generator=draw)
    return centre[owner] + 1.1 * rest[:, :1] * along[owner] + 0.22 * rest[:, 1:] * across[owner], owner


@dataclass(frozen=True)
class Shapes:
    """Rules of each kind on the same clusters.

    Attributes:
        points: (clip, 2) new ones.
        owner: (clip,) which cluster.
        centers: kind -> (rule, 2).
        covariances: kind -> (rule, 2, 2) inverse precisions.
        rows: {"antecedents", "numbers", "mean", "ci95"}: log density of the new points, nat.
    """

    points: np.ndarray
    owner: np.ndarray
    centers: dict[str, np.ndarray]
    covariances: dict[str, np.ndarray]
    rows: list[dict[str, object]]


def fitted_shapes(profile: str, seed: int = 0) -> Shapes:
    """Three rules of each kind, fitted to the same points by the likelihood of their Gaussians, scored on new points.

    Args:
        profile: `test` fits hardly at all and only shows that everything runs.
        seed: of points and first places.
    """
    (points, _), (new, owner) = clusters(300, seed), clusters(300, seed, "new clusters")
    centers, covariances, rows = {}, {}, []
    for name, changes in KINDS.items():
        rules = _fitted(points, FuzzyConfig(n_rules=3, n_features=2, **changes), N_STEPS.get(profile, 300), seed)
        with torch.no_grad():
            fit = log_density(rules, new)
            centers[name] = rules.center.numpy().copy()
            covariances[name] = torch.linalg.inv(rules.precision()).numpy()
        used = rules.center.numel() + rules.log_precision.numel() + _rotations(rules)
        rows.append({"antecedents": name, "numbers": used, "mean": fit.mean().item(),
                     "ci95": metrics.half_width(fit.numpy())})  # fmt: skip
    return Shapes(new.numpy(), owner.numpy(), centers, covariances, rows)


def _rotations(rules: Antecedents) -> int:
    """Numbers of the rotated part; of a full one only those below the diagonal count."""
    n_rules, n_features, rank = rules.factor.shape
    per_rule = n_features * (n_features - 1) // 2 if rules.config.antecedent == "full" else n_features * rank
    return n_rules * per_rule


def _fitted(points: Tensor, config: FuzzyConfig, n_steps: int, seed: int) -> Antecedents:
    rules = first_weights(lambda: Antecedents(config), seed, "fuzzy sets", "rules")
    rules.place(points, seeding.generator(seed, "fuzzy sets", "places"))
    weights = [rules.center, rules.log_precision, rules.factor]
    optimiser = torch.optim.Adam(weights, lr=3e-2)
    for _ in range(n_steps):
        loss = -log_density(rules, points).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return rules


def log_density(rules: Antecedents, points: Tensor) -> Tensor:
    """(clip,) log density, nat, of the even mixture of the rules' Gaussians: memberships, scaled to volumes of one."""
    volume = torch.logdet(rules.precision()) / 2 - rules.config.n_features / 2 * np.log(2 * np.pi)
    return torch.logsumexp(volume - rules.distance(points[None])[0] / 2, -1) - np.log(len(volume))


@dataclass(frozen=True)
class Saturation:
    """How sure each kind of firing is of points that hold nothing.

    Attributes:
        sizes: numbers of features.
        entropy: kind -> (size,) mean normalised entropy of firing.
        largest: kind -> (size,) mean firing of the strongest rule.
        firing: size -> kind -> (clip, rule) of a few points.
        wanted: the entropy that the calibrated kind was set to.
    """

    sizes: Sequence[int]
    entropy: dict[str, np.ndarray]
    largest: dict[str, np.ndarray]
    firing: dict[int, dict[str, np.ndarray]]
    wanted: float


@torch.no_grad()
def saturation(sizes: Sequence[int] = SIZES, n_rules: int = 8, seed: int = 0, n_shown: int = 40) -> Saturation:
    """Place each rule on one of 400 points of pure noise, one wide everywhere, and fire them at 400 new points.

    Args:
        sizes: numbers of features.
        n_rules: rules.
        seed: of points and places.
        n_shown: points whose firing is kept.
    """
    entropy, largest = ({kind: np.zeros(len(sizes)) for kind in FIRINGS} for _ in range(2))
    shown: dict[int, dict[str, np.ndarray]] = {size: {} for size in sizes}
    wanted = 0.0
    for number, size in enumerate(sizes):
        points = torch.randn((800, size), generator=seeding.generator(seed, "saturation", size))
        for kind in FIRINGS:
            config = FuzzyConfig(n_rules=n_rules, n_features=size, firing=kind, rank=0, antecedent="diagonal")
            rules = first_weights(lambda c=config: Antecedents(c), seed, "saturation")
            rules.center.copy_(points[:n_rules])
            rules.calibrate(points[:400])
            firing = rules.fire(rules.distance(points[None, 400:]))[0]
            entropy[kind][number] = firing_entropy(firing).mean()
            largest[kind][number] = firing.amax(-1).mean()
            shown[size][kind] = firing[:n_shown].numpy()
            wanted = config.entropy
    return Saturation(tuple(sizes), entropy, largest, shown, wanted)


def entropy_table(found: Saturation) -> pd.DataFrame:
    """Entropy of firing by kind and number of features; 1: all rules alike, 0: one rule takes all."""
    columns = {f"{size} feature{'s' if size > 1 else ''}": [found.entropy[kind][number] for kind in FIRINGS]
               for number, size in enumerate(found.sizes)}  # fmt: skip
    return pd.DataFrame({"entropy of firing": list(FIRINGS.values())} | columns)


def explore(found: Saturation, start: int = 16) -> PictureSlider:
    """A slider over the numbers of features: what the rules say of the same few points under each kind of firing."""

    def draw(size: int) -> Figure:
        title = f"{size} feature{'s' if size > 1 else ''} that hold nothing; each row is a clip"
        return figures.firing_side_by_side(found.firing[size], FIRINGS, title)

    return PictureSlider(draw, found.sizes, start, "features")
