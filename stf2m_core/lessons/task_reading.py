"""What the meta-RNN adds: runs with it and without, with several seeds, on identical episodes; and what it wrote.

Runs of the first seed are those of the ablation: made once, then read from disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stf2m_core import experiment, metrics, seeding
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.pack import Pack
from stf2m_core.episodes import EpisodeSampler, Splits
from stf2m_core.evaluation import answer
from stf2m_core.inspection import follow_adaptation
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import Run, load_model
from stf2m_core.views import ResidentViews

READERS = {"full": "with the meta-RNN", "no-meta-rnn": "without it"}
"""Variants of `experiment.VARIANTS`, in words."""
READINGS = {"prototype": "prototypes alone", "zero_step": "zero steps", "adapted": "after the inner loop"}
"""Of `evaluation.Answers`, in words."""


Hits = dict[tuple[str, int], dict[str, np.ndarray]]
"""(Variant, seed) -> reading -> (episode,) share of queries answered rightly."""


@dataclass(frozen=True)
class Readers:
    """Trained models, with what they need to be asked.

    Attributes:
        models: (variant, seed) -> model and its views.
        splits: of the subjects, shared.
        run: of the full model with the first seed.
        config: of the same.
    """

    models: dict[tuple[str, int], tuple[STF2M, ResidentViews]]
    splits: Splits
    run: Run
    config: RunConfig


def trained_readers(
    pack: Pack, results: str | os.PathLike[str], profile: str, *, fold: int = 0, seed: int = 0, seeds: int = 2
) -> Readers:
    """Train every variant with every seed, or read the runs from disk; people held out are the same for all.

    Args:
        pack: the data.
        results: folder of everything that is made.
        profile: of the runs.
        fold: which block of people is held out.
        seed: the first one.
        seeds: how many, at least one.
    """
    models, splits, runs = {}, None, []
    for own in range(seed, seed + seeds):
        for variant in READERS:
            config = experiment.config_for(pack, profile, variant=variant, fold=fold, seed=own)
            runs.append((experiment.train_run(pack, config, results, variant=variant), config))
            model, views, splits = load_model(runs[-1][0].path, pack)
            models[variant, own] = model, views
    return Readers(models, splits, *runs[0])


def episodes_of(pack: Pack, splits: Splits, setting: EpisodeConfig, n_episodes: int, seed: int = 0) -> EpisodeBatch:
    """The first episodes of the meta-test in one setting."""
    return EpisodeSampler(pack, splits, "meta_test", setting, seed).sample(0, n_episodes)


def hits(readers: Readers, batch: EpisodeBatch, seed: int = 0) -> Hits:
    """What every model answers in every reading, on the same episodes."""
    found = {}
    for reader, (model, views) in readers.models.items():
        said, label = answer(model, views, batch, seed=seed), batch.query_label.cpu()
        found[reader] = {
            name: (getattr(said, name).cpu().argmax(-1) == label).double().mean(-1).numpy() for name in READINGS
        }
    return found


def reading_rows(found: Hits) -> list[dict[str, object]]:
    """{"model", "reading", "mean", "ci95"}; intervals over episodes."""
    return [
        {"model": f"{READERS[variant]}, seed {seed}", "reading": READINGS[name], "mean": values.mean(),
         "ci95": metrics.half_width(values)}
        for (variant, seed), readings in found.items()
        for name, values in readings.items()
    ]  # fmt: skip


def gain_rows(found: Hits) -> list[dict[str, object]]:
    """{"what is compared", "difference", "ci95"}: paired differences on identical episodes, 95 % over episodes.

    Trainings with and without the meta-RNN, trainings that differ in nothing but the seed, and two readings of one.
    """
    seeds = sorted({seed for _, seed in found})
    first, full = seeds[0], found["full", seeds[0]]
    pairs = {f"with the meta-RNN − without, seed {s}": (found["full", s], found["no-meta-rnn", s]) for s in seeds}
    pairs |= {f"seed {first} − seed {s}, {name}": (found[variant, first], found[variant, s])
              for s in seeds[1:] for variant, name in READERS.items()}  # fmt: skip
    rows = {name: (a["adapted"], b["adapted"]) for name, (a, b) in pairs.items()}
    rows[f"reading the support − not, seed {first}"] = full["zero_step"], full["prototype"]
    rows[f"inner loop − none, seed {first}"] = full["adapted"], full["zero_step"]
    gaps = {name: metrics.paired_difference(a, b) for name, (a, b) in rows.items()}
    return [{"what is compared": name, "difference": mean, "ci95": half} for name, (mean, half) in gaps.items()]


@dataclass(frozen=True)
class Written:
    """What the meta-RNN wrote for some episodes, ordered by the domain of their support.

    Attributes:
        gamma: (episode, channel) FiLM scale.
        beta: (episode, channel) FiLM shift.
        domain: (episode,) of the first support clip.
        share: of the variance of both between domains.
        chance: the largest such share but one in twenty when domains are dealt out anew.
        size: root mean square of what is written.
        change: root mean square of its changes from support to support.
    """

    gamma: np.ndarray
    beta: np.ndarray
    domain: np.ndarray
    share: float
    chance: float
    size: float
    change: float


def written(readers: Readers, pack: Pack, batch: EpisodeBatch, seed: int = 0) -> Written:
    """FiLM of the first full model for some episodes: does it differ between domains more than chance would have it?"""
    model, views = next(iter(readers.models.values()))
    seen = follow_adaptation(model, views, batch, n_steps=0, seed=seed)
    domain = pack.clips["domain"].to_numpy(str)[batch.support[:, 0, 0].cpu().numpy()]
    order = np.argsort(domain, kind="stable")
    both = np.concatenate([seen.gamma, seen.beta], 1)
    deal = seeding.numpy_generator(seed, "domains dealt anew")
    dealt = [share_between(both, deal.permutation(domain)) for _ in range(200)]
    return Written(seen.gamma[order], seen.beta[order], domain[order], share_between(both, domain),
                   float(np.quantile(dealt, 0.95)), float(np.sqrt((both**2).mean())),
                   float(np.sqrt(((both - both.mean(0)) ** 2).mean())))  # fmt: skip


def written_table(found: Written) -> pd.DataFrame:
    """How large what was written is, how much it changes with the support, and whether it knows the domain."""
    facts = {
        "size of what is written (0: it leaves everything as it is)": f"{found.size:.1e}",
        "size of its changes from support to support": f"{found.change:.1e}",
        "share of these changes that lies between domains": f"{found.share:.2f}",
        "the same where domains are dealt out anew: 95 % of deals stay below": f"{found.chance:.2f}",
    }
    return pd.DataFrame({"what": list(facts), "is": list(facts.values())})


def share_between(values: np.ndarray, group: np.ndarray) -> float:
    """Share, 0 to 1, of the summed variance of (row, column) that lies between groups; 0 if nothing varies."""
    owner = np.unique(group, return_inverse=True)[1]
    count = np.bincount(owner)
    mean = np.stack([np.bincount(owner, column) / count for column in values.T], 1)
    total = ((values - values.mean(0)) ** 2).sum()
    return float((count[:, None] * (mean - values.mean(0)) ** 2).sum() / total) if total > 1e-20 else 0.0
