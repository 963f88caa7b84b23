"""More shots, fewer modalities, other seeds: runs are asked again or made again, and tables' rows leave.

Nothing is chosen here: the runs are those of a profile's design; a model that sees one modality alone, or that began
from another seed, is a run of its own with the same settings. What the clips cannot give is told with its reason.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from stf2m_core import experiment, results
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.pack import Pack
from stf2m_core.errors import ConfigError, EpisodeError
from stf2m_core.evaluation import CONTROLS, evaluate, evaluate_control
from stf2m_core.results import Record

SHOTS = (1, 2, 3, 5, 10)
"""Clips of each emotion."""

READINGS = {
    "accuracy": "ST-F2M", "accuracy_zero_step": "ST-F2M, zero steps", "accuracy_no_support": "ST-F2M, no support",
}  # fmt: skip
"""Readings of the model that a sweep shows, as in the main table."""

_TOGETHER, _HIDDEN, _ALONE = "all modalities", "others hidden", "alone"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Records of a sweep, and what could not be asked.

    Attributes:
        records: one per run, method and setting.
        refused: setting -> why the clips cannot give it.
    """

    records: tuple[Record, ...]
    refused: dict[str, str]


def sweep_shots(pack: Pack, out: str | os.PathLike[str], profile: str, shots: Sequence[int] = SHOTS) -> Sweep:
    """The whole model and the controls with ever more shots, in each regime of the study, on all folds of the design.

    The runs of the first seed are trained if they are missing. A setting that one fold cannot give is left out.

    Args:
        pack: the data.
        out: the results folder; records are kept in its folder sweeps and not made twice.
        profile: size of the whole.
        shots: clips of each emotion.
    """
    made: dict[str, list[Record]] = {}
    refused: dict[str, str] = {}
    for config in _configs(pack, profile):
        run = experiment.train_run(pack, config, out).path
        for setting in _with_shots(experiment.study_of(pack).test, shots):
            if setting.title in refused:
                continue
            try:
                found = [_kept(pack, out, config, setting, run)]
                found += [_control(pack, out, config, setting, name) for name in CONTROLS]
            except EpisodeError as error:
                refused[setting.title] = str(error)
            else:
                made.setdefault(setting.title, []).extend(found)
    return Sweep(tuple(r for title, own in made.items() if title not in refused for r in own), refused)


def read_shots(text: str) -> tuple[int, ...]:
    """Numbers of shots from a notebook's parameter, e.g. "1, 2, 5".

    Raises:
        ConfigError: if one is not a whole number above 0.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise ConfigError(f"shots = {text!r}", expected="whole numbers above 0, separated by commas", where="shots")
    return tuple(sorted({int(word) for word in words}))


def shot_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per reading or control, regime and number of shots: an estimate over all folds.

    Args:
        records: of `sweep_shots`.
    """
    rows = []
    for title in dict.fromkeys(experiment.setting_of(r) for r in records):
        own = [r for r in records if experiment.setting_of(r) == title]
        facts = {"setting": title, "regime": own[0].episode["regime"], "n_shot": own[0].episode["n_shot"]}
        asked = [("st-f2m", metric, name) for metric, name in READINGS.items()]
        asked += [(control, "accuracy", control) for control in CONTROLS]
        for method, metric, name in asked:
            estimate = results.combine([r for r in own if r.method == method], metric)
            rows.append({"method": name} | facts | asdict(estimate))
    return rows


def sweep_modalities(pack: Pack, out: str | os.PathLike[str], profile: str, *, alone: bool = True) -> Sweep:
    """All modalities together, each alone in a model trained with all, and each alone in a model that knows no other.

    The runs of the first seed are trained if they are missing.

    Args:
        pack: the data.
        out: the results folder; records are kept in its folder sweeps and not made twice.
        profile: size of the whole.
        alone: False leaves out the models that know one modality alone, each a training of its own.
    """
    records = []
    for config in _configs(pack, profile):
        run = experiment.train_run(pack, config, out).path
        names = config.views.modalities or pack.modalities
        for setting in experiment.study_of(pack).test:
            records.append(_kept(pack, out, config, setting, run, _TOGETHER))
            records += [_kept(pack, out, config, setting, run, f"{name}, {_HIDDEN}", (name,)) for name in names]
        for name in names if alone else ():
            only = config.replace(views__modalities=(name,))
            own = experiment.train_run(pack, only, out, variant=f"only-{name}").path
            variant = f"{name} {_ALONE}"
            records += [_kept(pack, out, only, s, own, variant) for s in experiment.study_of(pack).test]
    return Sweep(tuple(records), {})


def modality_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per kind of reader and setting: an estimate over all folds.

    Args:
        records: of `sweep_modalities`.
    """
    rows = []
    for variant in dict.fromkeys(r.variant for r in records):
        for title in dict.fromkeys(experiment.setting_of(r) for r in records):
            own = [r for r in records if (r.variant, experiment.setting_of(r)) == (variant, title)]
            rows.append({"reader": variant, "setting": title} | asdict(results.combine(own)))
    return rows


def sweep_seeds(pack: Pack, out: str | os.PathLike[str], profile: str, seeds: Sequence[int] = (0, 1, 2)) -> Sweep:
    """The whole model, also of new emotions where the study has them, trained from several seeds on all folds.

    A seed is other first weights, training episodes and random views; the questions of meta-test stay the same.

    Args:
        pack: the data.
        out: the results folder; what has no record yet is trained and evaluated first.
        profile: size of the whole.
        seeds: of the trainings.
    """
    plan, records = experiment.design(pack.name, profile), []
    for variant, folds in plan.variants:
        for fold, seed in [(f, s) for f in folds for s in seeds if variant in experiment.WHOLE]:
            config = experiment.config_for(pack, profile, variant=variant, fold=fold, seed=seed)
            records += experiment.complete_run(pack, config, out, variant)
    return Sweep(tuple(records), {})


def seed_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per setting and seed: accuracy, and what inner steps add on the same episodes; estimates over all folds.

    Args:
        records: of `sweep_seeds`.
    """
    rows = []
    for title in dict.fromkeys(experiment.setting_of(r) for r in records):
        for seed in dict.fromkeys(r.seed for r in records):
            own = [r for r in records if (experiment.setting_of(r), r.seed) == (title, seed)]
            gain = results.compare(own, own, against="accuracy_zero_step").difference
            more = {f"gain_{name}": value for name, value in asdict(gain).items()}
            rows.append({"setting": title, "seed": seed} | asdict(results.combine(own)) | more)
    return rows


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, standard deviation, and half width of the 95 % interval of the mean over trainings (Student's t).

    With one seed the last two are not defined and NaN.
    """
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    factor = stats.t.ppf(0.975, len(values) - 1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return mean, spread, float(spread * factor)


def _configs(pack: Pack, profile: str) -> list[RunConfig]:
    """The whole model's runs of the first seed."""
    plan = experiment.design(pack.name, profile)
    folds = dict(plan.variants)["full"]
    return [experiment.config_for(pack, profile, fold=fold, seed=plan.seeds[0]) for fold in folds]


def _with_shots(settings: Sequence[EpisodeConfig], shots: Sequence[int]) -> list[EpisodeConfig]:
    regimes = {s.regime: s for s in settings}
    return [replace(kind, n_shot=k) for kind in regimes.values() for k in sorted(shots)]


def _kept(
    pack: Pack, out: str | os.PathLike[str], config: RunConfig, setting: EpisodeConfig, run: Path,
    variant: str = "full", modalities: tuple[str, ...] = (),
) -> Record:  # fmt: skip
    """The record of a run in a setting, read if it is there."""
    file = _file(pack, out, config, f"st-f2m-{variant}-{setting.title}-{run.name.rpartition('-')[2]}")
    if file.exists():
        return Record.from_json(file)
    record = evaluate(run, pack, setting, variant=variant, seed=config.evaluation.seed, modalities=modalities)
    record.to_json(file)
    return record


def _control(
    pack: Pack, out: str | os.PathLike[str], config: RunConfig, setting: EpisodeConfig, name: str
) -> Record:  # fmt: skip
    file = _file(pack, out, config, f"{name}-{setting.title}")
    if file.exists():
        return Record.from_json(file)
    record = evaluate_control(name, pack, config, setting, seed=config.evaluation.seed)
    record.to_json(file)
    return record


def _file(pack: Pack, out: str | os.PathLike[str], config: RunConfig, name: str) -> Path:
    """Other settings, another pack or another version of the model never meet here."""
    safe = name.replace(" ", "-").replace(",", "")
    return Path(out) / "sweeps" / f"{pack.name}-{pack.digest}" / f"{safe}-{config.digest()}.json"
