"""What each mechanism gives on synthetic truth: readers of SynEmo enter, rows with Bayes, ceiling and intervals leave.

Every reader answers the very same factor-contrast episodes. A model that lacks a mechanism and still beats that
mechanism's ceiling beyond the interval shows a leak. Source: ours, docs/METHOD.md section 'Synthetic set'.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from stf2m_core import experiment
from stf2m_core.contrast import ContrastSampler
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import Pack, open_pack
from stf2m_core.data.synemo import FACTORS, SynEmoConfig
from stf2m_core.data.synemo_bayes import Evidence, evidence, reference
from stf2m_core.episodes import Splits
from stf2m_core.errors import ConfigError, ResultError
from stf2m_core.evaluation import READINGS, Answers, answer
from stf2m_core.metrics import half_width, paired_difference
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import load_model
from stf2m_core.views import ResidentViews

Reader = Callable[[EpisodeBatch], ArrayLike]
"""Episodes in, (episode, query, way) log-probabilities out."""

BAYES, CEILING = "Bayes", "ceiling"

CEILINGS: Mapping[str, dict[str, Any]] = {
    "order": {"without": ("order",)},
    "synchrony": {"pooled": True},
    "level": {"use_support": False},
    "interaction": {"without": ("interaction",)},
}
"""What a model may know at most: the same backwards in time; time pooled before nodes meet (soft: more statistics than
means may be kept); no use of the support; one modality of the two."""


def readers_of(
    model: STF2M, data: ResidentViews, readings: Sequence[str], *, hide: Iterable[str] = (), seed: int = 0
) -> tuple[Reader, ...]:
    """A trained model as one reader per reading; the readings of the same episodes share one pass of the model.

    Args:
        model: trained.
        data: the views it shall answer from; of any pack of the same shapes.
        readings: of `evaluation.READINGS`.
        hide: modalities that it must not see: a model without the evidence of a factor.
        seed: of the random views and orders.

    Raises:
        ConfigError: if there is no such reading or modality.
    """
    hidden = set(hide)
    unknown = [f"modality {name!r}" for name in sorted(hidden - set(data.modalities))]
    unknown += [f"reading {name!r}" for name in readings if name not in READINGS]
    if unknown:
        expected = f"of {', '.join(data.modalities)}; {', '.join(READINGS)}"
        raise ConfigError(unknown[0], expected=expected, where="readers_of")
    keep = torch.tensor([name not in hidden for name in data.modalities], device=data.device) if hidden else None
    last: list[tuple[EpisodeBatch, Answers]] = []

    def read(reading: str, batch: EpisodeBatch) -> np.ndarray:
        if not last or last[0][0] is not batch:
            last[:] = [(batch, answer(model, data, batch, seed=seed, keep=keep))]
        return getattr(last[0][1], reading).cpu().numpy()

    return tuple(partial(read, reading) for reading in readings)


LACKING = {"order": "without temporal convolution", "synchrony": "without spatial convolution",
           "interaction": "text hidden"}  # fmt: skip
"""The reader that lacks what each factor needs; none for the level, because prototypes use the support too."""


def trained_readers(
    pack: Pack, out: str | os.PathLike[str], profile: str = "smoke", *, progress_bar: bool = True
) -> tuple[dict[str, Reader], Splits]:
    """The whole model and those of `LACKING`; runs that are missing are trained first.

    Args:
        pack: a SynEmo pack.
        out: the results folder.
        profile: of the runs.
        progress_bar: of the training.

    Returns:
        readers by name, and the meta-splits that they were trained on.

    Raises:
        RunError: if a folder holds a run of other settings or another pack.
    """
    readers: dict[str, Reader] = {}
    for variant, title in (("full", "full model"), ("no-temporal", LACKING["order"]),
                           ("no-spatial", LACKING["synchrony"])):  # fmt: skip
        config = experiment.config_for(pack, profile, variant=variant)
        run = experiment.train_run(pack, config, out, variant=variant, progress_bar=progress_bar)
        model, data, splits = load_model(run.path, pack)
        readers[title], zero = readers_of(model, data, ["adapted", "zero_step"])
        if variant == "full":
            readers["full model, zero steps"] = zero
            (readers[LACKING["interaction"]],) = readers_of(model, data, ["adapted"], hide=["text"])
    return readers, splits


def negative_rows(
    pack: Pack, config: SynEmoConfig, out: str | os.PathLike[str], profile: str = "smoke", *,
    factors: Iterable[str] = tuple(FACTORS), episodes: int = 200, n_shot: int = 5, n_query: int = 5,
) -> list[dict[str, Any]]:  # fmt: skip
    """The whole model on the same set with the contrasted factor switched off: nothing is left to tell a pair apart.

    More than half of a pair right, beyond the interval, would be a leak of the generator or of the episodes.

    Args:
        pack: that the model was trained on.
        config: that made it.
        out: the results folder; the packs lie in its packs.
        profile: of the run.
        factors: to switch off, one at a time.
        episodes: per factor.
        n_shot: support clips per class.
        n_query: query clips per class.

    Returns:
        rows as of `factor_rows`, of the reader "full model, factor off".

    Raises:
        RunError: if the model is not trained.
    """
    run = experiment.run_folder(out, pack, experiment.config_for(pack, profile), "full")
    model, _, splits = load_model(run, pack)
    rows = []
    for factor in factors:
        folder = Path(out) / "packs" / f"synemo-without-{factor}"
        import_dataset("synemo", out=folder, overwrite=True, **{**asdict(config), factor: False})
        off = open_pack(folder)
        sampler = ContrastSampler(off, splits, "meta_test", factor, n_shot=n_shot, n_query=n_query, seed=0)
        batch = sampler.sample(0, episodes)
        (read,) = readers_of(model, ResidentViews(off, model.config.views), ["adapted"])
        rows.append(_row(factor, "full model, factor off", read(batch), batch))
    return rows


def references(known: Evidence) -> dict[str, Callable[[str, EpisodeBatch], np.ndarray]]:
    """The two readers that know the laws; each is given the factor too.

    Args:
        known: of the pack.
    """
    return {
        BAYES: lambda factor, batch: reference(known, batch),
        CEILING: lambda factor, batch: reference(known, batch, **CEILINGS[factor]),
    }


def factor_rows(
    pack: Pack, config: SynEmoConfig, splits: Splits, readers: Mapping[str, Reader], *,
    factors: Iterable[str] = tuple(FACTORS), split: str = "meta_test", n_shot: int = 5, n_query: int = 5,
    episodes: int = 200, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Accuracy of Bayes, of the ceiling and of every reader where each factor is contrasted.

    Args:
        pack: pure.
        config: that made it.
        splits: its meta-splits.
        readers: by name, as it shall stand in the table.
        factors: to contrast.
        split: of the episodes.
        n_shot: support clips per class.
        n_query: query clips per class.
        episodes: per factor.
        seed: of the episodes.

    Returns:
        {"factor", "reader", "mean", "ci95", "per_episode"}; ci95 is half a 95 % interval over episodes.

    Raises:
        ConfigError: if the pack has no reference.
        EpisodeError: if the split cannot give such episodes.
    """
    known = references(evidence(pack, config))
    rows = []
    for factor in factors:
        sampler = ContrastSampler(pack, splits, split, factor, n_shot=n_shot, n_query=n_query, seed=seed)
        batch = sampler.sample(0, episodes)
        said = {name: read(factor, batch) for name, read in known.items()}
        said |= {name: read(batch) for name, read in readers.items()}
        rows += [_row(factor, name, log_probability, batch) for name, log_probability in said.items()]
    return rows


def _row(factor: str, reader: str, said: ArrayLike, batch: EpisodeBatch) -> dict[str, Any]:
    right = (np.asarray(said).argmax(-1) == batch.query_label.numpy()).mean(1)
    return {"factor": factor, "reader": reader, "mean": float(right.mean()), "ci95": half_width(right),
            "per_episode": right.tolist()}  # fmt: skip


def leaks(rows: Sequence[Mapping[str, Any]], lacking: Mapping[str, str]) -> list[dict[str, Any]]:
    """The readers that lack a mechanism and still beat its ceiling beyond the paired interval.

    Args:
        rows: from `factor_rows`.
        lacking: factor -> reader that lacks what the factor needs.

    Returns:
        {"factor", "reader", "difference", "ci95"}, one per leak; empty if all is well.

    Raises:
        ResultError: if a reader or its ceiling has no row.
    """
    found = []
    for factor, reader in lacking.items():
        own, ceiling = (_episodes(rows, factor, name) for name in (reader, CEILING))
        difference, half = paired_difference(own, ceiling)
        if difference - half > 0:
            found.append({"factor": factor, "reader": reader, "difference": difference, "ci95": half})
    return found


def _episodes(rows: Sequence[Mapping[str, Any]], factor: str, reader: str) -> list[float]:
    for row in rows:
        if row["factor"] == factor and row["reader"] == reader:
            return row["per_episode"]
    raise ResultError(f"no row of {reader!r} where {factor!r} is contrasted", expected="rows of factor_rows",
                      where="leaks")  # fmt: skip


def factor_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Factors by readers, each cell an accuracy with its interval, as "0.87 ± 0.01"."""
    cells = pd.DataFrame([{"factor": r["factor"], "reader": r["reader"]} for r in rows])
    cells["cell"] = [f"{row['mean']:.3f} ± {row['ci95']:.3f}" for row in rows]
    order = list(dict.fromkeys(cells["factor"])), list(dict.fromkeys(cells["reader"]))
    return cells.pivot(index="factor", columns="reader", values="cell").loc[order[0], order[1]]
