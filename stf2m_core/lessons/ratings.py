"""Valence and arousal on SynEmo: its emotions get places on a circle, and every domain of raters turns the circle.

A pack and a trained model enter; what the head and its controls say of new people, and how well they agree, leave. The
coordinates are made up: they show what a head can learn and say nothing of feelings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from stf2m_core import experiment, seeding
from stf2m_core.config import EpisodeConfig
from stf2m_core.data.pack import Pack
from stf2m_core.data.synemo import FACTORS, LABELS, label_of
from stf2m_core.episodes import EpisodeSampler, Splits
from stf2m_core.errors import EpisodeError
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.training import load_model
from stf2m_core.valence_arousal import (
    AXES,
    RatedEpisodes,
    RatingConfig,
    answers,
    ccc_gap,
    ccc_rows,
    chosen_worth,
    embed,
    learn,
)
from stf2m_core.views import ResidentViews

RADIUS = 0.8
"""Of the circle: noise and turns stay within [-1, 1]."""
NOISE = 0.1
"""Standard deviation of what raters add to each rating."""
TURN = 40.0
"""Standard deviation of a domain's turn, degrees, where there is one."""
SIZES = {"test": (8, 8, 4), "smoke": (240, 48, 200), "standard": (480, 96, 400), "paper": (960, 96, 1000)}
"""Profile -> episodes of meta-train, meta-validation and meta-test."""


def coordinates() -> np.ndarray:
    """(label, 2) valence and arousal of SynEmo's 24 emotions, around a circle as in Russell 1980.

    Neighbours on the circle differ in one factor only (a reflected Gray code of the four factors), so that a clip that
    is read almost rightly is rated almost rightly.
    """
    order = [label_of(*levels) for levels in _gray([len(names) for names in FACTORS.values()])]
    angle = 2 * np.pi * np.array([order.index(label) for label in LABELS]) / len(LABELS)
    return RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)


def _gray(sizes: list[int]) -> list[tuple[int, ...]]:
    """All tuples of numbers below `sizes`, each differing from the one before in one place by one."""
    if not sizes:
        return [()]
    rest = _gray(sizes[1:])
    return [(first, *tail) for first in range(sizes[0]) for tail in (rest if first % 2 == 0 else rest[::-1])]


def made_up_ratings(pack: Pack, turn: float, seed: int = 0) -> np.ndarray:
    """(clip, 2) float32: the place of the clip's emotion, turned by its domain's angle, plus noise, within [-1, 1].

    Args:
        pack: SynEmo.
        turn: standard deviation of the domains' angles, degrees; 0: all raters use one circle.
        seed: of angles and noise.

    Raises:
        EpisodeError: if the pack has other labels.
    """
    if tuple(pack.labels) != tuple(LABELS):
        raise EpisodeError(f"a pack of {len(pack.labels)} labels", expected="SynEmo's 24", where=str(pack.path))
    domain = np.unique(pack.clips["domain"].to_numpy(str), return_inverse=True)[1]
    angle = np.deg2rad(turn) * seeding.numpy_generator(seed, "turns").normal(size=domain.max() + 1)[domain]
    place = coordinates()[pack.label_ids]
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.stack([cos * place[:, 0] - sin * place[:, 1], sin * place[:, 0] + cos * place[:, 1]], 1)
    noise = NOISE * seeding.numpy_generator(seed, "rating noise").normal(size=turned.shape)
    known = (pack.label_ids >= 0)[:, None]
    return np.where(known, np.clip(turned + noise, -1, 1), np.nan).astype(np.float32)


@dataclass(frozen=True)
class Reader:
    """A trained model, frozen, and its data."""

    model: STF2M
    data: ResidentViews
    splits: Splits
    run: object


def reader(pack: Pack, results: str | os.PathLike[str], profile: str, *, fold: int = 0, seed: int = 0) -> Reader:
    """The model that names the emotions, trained or read from disk."""
    run = experiment.train_run(pack, experiment.config_for(pack, profile, fold=fold, seed=seed), results)
    return Reader(*load_model(run.path, pack), run)


RATERS = {"one circle for all": 0.0, "a turn per domain": TURN}
"""Kinds of raters, and the standard deviation of their domains' turns."""
SHOTS = (1, 4)
"""Rated clips of each of eight emotions in the support."""


@dataclass(frozen=True)
class Rated:
    """What was said of the queries of new people.

    Attributes:
        raters: a key of `RATERS`.
        n_shot: rated clips of each emotion.
        said: method -> (episode, query, 2).
        episodes: of meta-test.
        rows: of `valence_arousal.ccc_rows`.
        gaps: other method -> `valence_arousal.ccc_gap` of the adapted head to it.
    """

    raters: str
    n_shot: int
    said: dict[str, Tensor]
    episodes: RatedEpisodes
    rows: list[dict[str, object]]
    gaps: dict[str, dict[str, float | None]]


def rated(pack: Pack, known: Reader, profile: str, *, seed: int = 0) -> list[Rated]:
    """For each number of shots and kind of raters: learn the head on meta-train, choose it on meta-validation, and ask
    it and its controls about meta-test.

    Episodes are of Regime D: eight emotions, `n_shot` rated clips of each by people of a domain, and queries by other
    people of the same domain. No domain of meta-test was met before.
    """
    people, found = pack.clips["subject"].to_numpy(str), []
    for n_shot in SHOTS:
        kind = EpisodeConfig(regime="D", n_way=8, n_shot=n_shot, n_query=2)
        plain, sides = made_up_ratings(pack, 0.0, seed), []
        for split, n_episodes in zip(("meta_train", "meta_val", "meta_test"), SIZES[profile], strict=True):
            batch = EpisodeSampler(pack, known.splits, split, kind, seed).sample(0, n_episodes)
            sides.append(embed(known.model, known.data, batch, plain, seed=seed))
        for raters, turn in RATERS.items():
            rating = made_up_ratings(pack, turn, seed)
            train, validation, test = (side.rated(rating) for side in sides)
            head = learn(train, validation, RatingConfig(seed=seed))
            said = answers(test, head, chosen_worth(validation, head))
            own, *others = said
            gaps = {name: ccc_gap(said[own], said[name], test, people, seed=seed) for name in others}
            found.append(Rated(raters, n_shot, said, test, ccc_rows(said, test, people, seed=seed), gaps))
    return found


def _setting(one: Rated) -> str:
    return f"{one.raters}, {one.n_shot} rated clip{'s' if one.n_shot > 1 else ''} of each emotion"


def rows(found: list[Rated]) -> list[dict[str, object]]:
    """Mean CCC of both axes of every method in every setting, as `figures.results` takes it."""
    return [row | {"setting": _setting(one)} for one in found for row in one.rows if row["axis"] == "mean of both"]


def table(found: list[Rated]) -> pd.DataFrame:
    """CCC of each axis, and how far the adapted head is ahead; brackets are 95 % intervals over people."""
    lines = []
    for one in found:
        for method in one.said:
            axes = {str(r["axis"]): _words(r) for r in one.rows if r["method"] == method and r["axis"] in AXES}
            ahead = {"adapted head ahead by": _words(one.gaps[method]) if method in one.gaps else "–"}
            lines.append({"raters and support": _setting(one), "method": method} | axes | ahead)
    return pd.DataFrame(lines)


def _words(row: dict[str, object]) -> str:
    ends = f" [{row['subject_low']:.2f}, {row['subject_high']:.2f}]" if row["subject_low"] is not None else ""
    return f"{row['mean']:.2f}{ends}".replace("-", "−")
