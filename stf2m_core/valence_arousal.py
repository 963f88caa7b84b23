"""Valence and arousal: a head that reads two continuous ratings off the embedding and adapts to a few rated clips.

Embedded episodes with ratings in [-1, 1] go in, ratings of the queries come out. The head's fast weights are those of a
ridge regression on the support around what meta-training knows, in closed form: there is nothing left to step for.
Source: closed-form adaptation after Bertinetto et al. 2019 (R2-D2); the learned prior and its worth are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from stf2m_core import seeding
from stf2m_core.data.pack import Pack
from stf2m_core.encoding import encode_episodes
from stf2m_core.errors import ConfigError, PackError
from stf2m_core.metrics import Statistic, cluster_bootstrap, concordance
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.views import ResidentViews

AXES = ("valence", "arousal")
"""What is rated, in the order of the arrays, and the columns of clips.csv that hold it."""
LEAST_BATCH = 32
"""Ratings that a CCC must at least rest on to be a loss: of fewer, its mean and variance are noise."""
WORTHS = tuple(float(worth) for worth in np.geomspace(0.1, 1000, 13))
"""Penalties that the ridge control is offered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingConfig:
    """How the head is learned.

    Attributes:
        steps: of Adam.
        meta_batch: episodes per step.
        rate: learning rate of the prior; the worth of the prior learns three times as fast.
        ridge: penalty of the regression that the prior starts from.
        worth: of the prior at the start, in clips.
        validate_every: steps between meta-validations; the best is kept.
        seed: of the choice of episodes.
    """

    steps: int = 200
    meta_batch: int = 8
    rate: float = 1e-2
    ridge: float = 10.0
    worth: float = 10.0
    validate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value, least = getattr(self, item.name), 0 if item.name in ("seed", "steps") else 1e-12
            if not value >= least:
                expected = "0 or more" if least == 0 else "more than 0"
                raise ConfigError(f"{item.name} = {value}", expected=expected, where="RatingConfig")


@dataclass(frozen=True)
class RatedEpisodes:
    """Embedded episodes with ratings, NaN where a clip has none.

    Attributes:
        support: (episode, clip, feature).
        support_rating: (episode, clip, 2) valence and arousal.
        query: (episode, query, feature).
        query_rating: (episode, query, 2).
        support_rows: (episode, clip) int64 rows of the pack.
        query_rows: (episode, query) int64.
    """

    support: Tensor
    support_rating: Tensor
    query: Tensor
    query_rating: Tensor
    support_rows: Tensor
    query_rows: Tensor

    def __len__(self) -> int:
        return len(self.support)

    def __getitem__(self, some: Tensor | slice) -> RatedEpisodes:
        return RatedEpisodes(*(getattr(self, item.name)[some] for item in fields(self)))

    def rated(self, rating: np.ndarray) -> RatedEpisodes:
        """The same episodes with other ratings, (clip, 2) of the pack."""
        told = torch.from_numpy(np.asarray(rating, np.float32))
        return replace(self, support_rating=told[self.support_rows], query_rating=told[self.query_rows])


def ratings(pack: Pack, scale: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Valence and arousal of the clips, (clip, 2) float32 in [-1, 1]; NaN where a clip is not rated.

    Args:
        pack: with columns valence, arousal or both.
        scale: lowest and highest rating that raters could give; (1, 5) in IEMOCAP.

    Raises:
        PackError: if the pack has neither column, or a rating lies outside the scale.
    """
    low, high = scale
    if not set(AXES) & set(pack.clips.columns):
        raise PackError("no ratings", expected="columns valence and arousal in clips.csv", where=str(pack.path))
    values = pack.clips.reindex(columns=list(AXES)).to_numpy(np.float64)
    outside = np.argwhere((values < low) | (values > high))
    if len(outside):
        clip, axis = outside[0]
        raise PackError(
            f"{AXES[axis]} of clip {pack.clips['clip_id'].iloc[clip]!r} is {values[clip, axis]:g}",
            expected=f"{low:g} to {high:g}",
            where=str(pack.path),
            remedy="Name the scale of the raters, e.g. scale=(1, 5)",
        )
    return (2 * (values - low) / (high - low) - 1).astype(np.float32)


@torch.no_grad()
def embed(
    model: STF2M, data: ResidentViews, batch: EpisodeBatch, rating: np.ndarray, *, seed: int = 0, chunk: int = 8
) -> RatedEpisodes:
    """Episodes as the frozen model embeds them, standardised as their support says; nothing is adapted.

    Args:
        model: trained.
        data: views on the model's device.
        batch: episodes.
        rating: (clip, 2) of the pack.
        seed: of the encoding; without random views nothing depends on it.
        chunk: episodes at once.
    """
    parts, batch = [], batch.to(data.device)
    for first in range(0, len(batch), chunk):
        some = batch[first : first + chunk]
        episode = encode_episodes(model, data, some, seed=seed, stream="ratings", n_views=0)
        theta = model.unmodulated(len(some))
        parts.append([model.fuzzify(clips, theta).embedding.cpu() for clips in (episode.support.clean, episode.query)])
    support, query = (torch.cat(side) for side in zip(*parts, strict=True))
    told, rows = torch.from_numpy(np.asarray(rating, np.float32)), (batch.support.flatten(1).cpu(), batch.query.cpu())
    return RatedEpisodes(support, told[rows[0]], query, told[rows[1]], *rows)


class RatingHead(nn.Module):
    """W = W_0 + D^-1 X'(X D^-1 X' + I)^-1 (Y - X W_0): ridge regression of the support's ratings around a prior.

    D = diag(worth): how strongly each feature's weight is held at the prior. Features are standardised as in
    meta-train, and one more is constant, so that a scale that others use higher or lower is met by the support.

    Args:
        n_features: of the embedding.
        worth: of the prior at the start.
    """

    def __init__(self, n_features: int, worth: float = 10.0):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(n_features + 1, len(AXES)))
        self.log_worth = nn.Parameter(torch.full((n_features + 1,), float(np.log(worth))))
        self.register_buffer("regression", torch.zeros(n_features + 1, len(AXES)))
        self.register_buffer("shift", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def features(self, embedding: Tensor) -> Tensor:
        """Standardised, with a constant at the end: (..., feature) -> (..., feature + 1)."""
        values = (embedding - self.shift) / self.scale
        return torch.cat([values, torch.ones_like(values[..., :1])], -1)

    @torch.no_grad()
    def know(self, embedding: Tensor, rating: Tensor, ridge: float) -> None:
        """Start the prior at the ridge regression over clips of meta-train: (clip, feature) and (clip, 2).

        The regression itself is kept too: the prior is learned for what follows it, not to be read alone.
        """
        self.shift.copy_(embedding.mean(0))
        self.scale.copy_(embedding.std(0).clamp(min=1e-6))
        held = torch.full_like(self.log_worth, float(ridge))
        held[-1] = 1e-6  # the mean rating is free
        found = _ridge(self.features(embedding)[None], rating[None], torch.zeros_like(self.prior), held)[0]
        self.regression.copy_(found)
        self.prior.copy_(found)

    def adapt(self, support: Tensor, rating: Tensor) -> Tensor:
        """Fast weights (episode, feature + 1, 2) from (episode, clip, feature) and (episode, clip, 2)."""
        return _ridge(self.features(support), rating, self.prior, self.log_worth.exp())

    def predict(self, query: Tensor, weights: Tensor) -> Tensor:
        """(episode, query, 2) under fast weights; each query on its own, not clipped."""
        return self.features(query) @ weights

    def forward(self, episodes: RatedEpisodes) -> Tensor:
        """Ratings of the queries after adaptation: (episode, query, 2)."""
        return self.predict(episodes.query, self.adapt(episodes.support, episodes.support_rating))


def _ridge(features: Tensor, rating: Tensor, prior: Tensor, worth: Tensor) -> Tensor:
    """argmin |Y - X W|^2 + sum_f worth_f |W_f - W_0f|^2 per episode and axis; a clip without a rating counts nothing.

    (episode, feature, 2), solved in the smaller of the two sizes, in float64.
    """
    told = ~rating.isnan()
    features, prior, worth = features.double(), prior.double(), worth.double()
    gap = torch.where(told, rating.double() - features @ prior, 0.0)
    moved = []
    for axis in range(rating.shape[-1]):
        x = features * told[..., axis, None]
        if x.shape[1] <= x.shape[2]:
            kernel = (x / worth) @ x.mT + torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            moved.append((x / worth).mT @ torch.linalg.solve(kernel, gap[..., axis, None]))
        else:
            moved.append(torch.linalg.solve(x.mT @ x + torch.diag(worth), x.mT @ gap[..., axis, None]))
    return (prior + torch.cat(moved, -1)).to(rating.dtype)


def ccc_loss(said: Tensor, rating: Tensor) -> Tensor:
    """1 - CCC, mean over valence and arousal, of all rated clips of a meta-batch together: (..., 2) twice -> ().

    Raises:
        ConfigError: if an axis has fewer than `LEAST_BATCH` ratings.

    Source: Lin 1989, as in `metrics.concordance`; as a loss, Trigeorgis et al. 2016.
    """
    losses = []
    for axis, name in enumerate(AXES):
        told = ~rating[..., axis].isnan()
        if int(told.sum()) < LEAST_BATCH:
            raise ConfigError(f"{int(told.sum())} ratings of {name} in a meta-batch", expected=f"{LEAST_BATCH} or more",
                              where="ccc_loss", remedy="Raise meta_batch or n_query")  # fmt: skip
        x, y = said[..., axis][told], rating[..., axis][told]
        apart = (x.mean() - y.mean()) ** 2 + x.var(correction=0) + y.var(correction=0)
        both = ((x - x.mean()) * (y - y.mean())).mean()
        losses.append(1 - 2 * both / apart.clamp(min=1e-12))
    return torch.stack(losses).mean()


def learn(train: RatedEpisodes, validation: RatedEpisodes, config: RatingConfig | None = None) -> RatingHead:
    """A head whose prior and worth are learned over the episodes of meta-train; the best at meta-validation is kept.

    Args:
        train: embedded episodes of meta-train.
        validation: of meta-validation; the mean CCC over axes chooses the step.
        config: settings.

    Raises:
        ConfigError: if a meta-batch holds too few ratings for a CCC.
    """
    config = config or RatingConfig()
    head = RatingHead(train.query.shape[-1], config.worth)
    told = train.query_rating.isfinite().all(-1)
    head.know(train.query[told], train.query_rating[told], config.ridge)
    groups = [{"params": [head.prior], "lr": config.rate}, {"params": [head.log_worth], "lr": 3 * config.rate}]
    optimiser = torch.optim.Adam(groups)
    best, kept = -np.inf, {}
    for step in range(config.steps + 1):
        if step % config.validate_every == 0 or step == config.steps:
            with torch.no_grad():
                found = float(np.mean(_cccs(head(validation), validation.query_rating)))
            if found > best:
                best, kept = found, {name: value.clone() for name, value in head.state_dict().items()}
        draw = seeding.uniform(config.seed, "rated episodes", step, np.arange(config.meta_batch))
        some = train[torch.from_numpy((draw * len(train)).astype(np.int64))]
        optimiser.zero_grad()
        ccc_loss(head(some), some.query_rating).backward()
        optimiser.step()
    head.load_state_dict(kept)
    return head.eval()


# --- controls and scores


def ridge_alone(episodes: RatedEpisodes, head: RatingHead, worth: float) -> Tensor:
    """Ridge regression on the support alone, around its mean rating: (episode, query, 2). Nothing of meta-train but
    the standardisation of the features is used.

    Args:
        episodes: to answer.
        head: whose features are used.
        worth: penalty, e.g. from `chosen_worth`.
    """
    held = torch.full_like(head.log_worth, float(worth))
    held[-1] = 1e-6
    x = head.features(episodes.support)
    return head.features(episodes.query) @ _ridge(x, episodes.support_rating, torch.zeros_like(head.prior), held)


def chosen_worth(validation: RatedEpisodes, head: RatingHead) -> float:
    """The penalty of `WORTHS` with which `ridge_alone` has the best mean CCC at meta-validation."""
    with torch.no_grad():
        found = [np.mean(_cccs(ridge_alone(validation, head, w), validation.query_rating)) for w in WORTHS]
    return WORTHS[int(np.argmax(found))]


def support_mean(episodes: RatedEpisodes) -> Tensor:
    """The mean rating of each episode's support for every query: (episode, query, 2)."""
    return episodes.support_rating.nanmean(1, keepdim=True).expand_as(episodes.query_rating)


@torch.no_grad()
def answers(episodes: RatedEpisodes, head: RatingHead, worth: float) -> dict[str, Tensor]:
    """What the head and its controls say of the same queries, (episode, query, 2) each."""
    return {
        "adapted head": head(episodes),
        "regression, no support": head.predict(episodes.query, head.regression),
        "ridge on the support alone": ridge_alone(episodes, head, worth),
        "mean of the support": support_mean(episodes),
    }


def ccc_rows(
    said: Mapping[str, Tensor], episodes: RatedEpisodes, subject: np.ndarray, *, seed: int = 0, n_replicates: int = 1000
) -> list[dict[str, object]]:
    """CCC over all queries of each method, per axis and their mean, with 95 % intervals over the query subjects.

    Args:
        said: method -> (episode, query, 2).
        episodes: that were answered.
        subject: (clip,) subject of each clip of the pack.
        seed: of the bootstrap.
        n_replicates: of the bootstrap.

    Returns:
        {"method", "axis", "mean", "ci95", "subject_low", "subject_high"}, as figures take them: ci95 is None, for a
        CCC has no number per episode; the other two are None with a single subject.
    """
    statistics = {method: ccc_statistics(values, episodes) for method, values in said.items()}
    return [
        {"method": method, "axis": axis} | _interval(statistic, episodes, subject, seed, n_replicates)
        for method, axes in statistics.items()
        for axis, statistic in axes.items()
    ]


def ccc_gap(
    a: Tensor, b: Tensor, episodes: RatedEpisodes, subject: np.ndarray, *, seed: int = 0, n_replicates: int = 1000
) -> dict[str, float | None]:
    """Mean CCC of both axes of a minus that of b on the same queries; arguments and keys as of `ccc_rows`."""
    first, second = (ccc_statistics(said, episodes)["mean of both"] for said in (a, b))
    return _interval(lambda weight: first(weight) - second(weight), episodes, subject, seed, n_replicates)


def ccc_statistics(said: Tensor, episodes: RatedEpisodes) -> dict[str, Statistic]:
    """Axis -> its CCC as a function of query weights (replicate, episode, query); the last is the mean of both axes."""
    told = episodes.query_rating.isfinite().numpy()
    x, y = (np.where(told, part.double().numpy(), 0.0) for part in (said, episodes.query_rating))

    def of(axis: int) -> Statistic:
        return lambda weight: concordance(x[..., axis], y[..., axis], weight * told[..., axis])

    single = {name: of(axis) for axis, name in enumerate(AXES)}
    return single | {"mean of both": lambda weight: sum(statistic(weight) for statistic in single.values()) / len(AXES)}


def _interval(
    statistic: Statistic, episodes: RatedEpisodes, subject: np.ndarray, seed: int, n_replicates: int
) -> dict[str, float | None]:
    people = np.asarray(subject)[episodes.query_rows.numpy()]
    found = cluster_bootstrap(statistic, people, seeding.numpy_generator(seed, "ratings"), n_replicates=n_replicates)
    mean = float(statistic(np.ones((1, *people.shape)))[0])
    return {"mean": mean, "ci95": None, "subject_low": found.low, "subject_high": found.high}


def _cccs(said: Tensor, rating: Tensor) -> list[float]:
    told = rating.isfinite()
    return [concordance(said[..., a][told[..., a]], rating[..., a][told[..., a]]) for a in range(len(AXES))]
