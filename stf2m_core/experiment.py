"""Which runs answer which question: folds, seeds, variants and settings of each data set, and where their files lie.

The notebooks call these functions, one per cell; `make reproduce` orders the notebooks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stf2m_core import results, training
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.manifest import ImportReport, import_dataset
from stf2m_core.data.pack import Pack, open_pack
from stf2m_core.errors import ConfigError, PackError, RunError
from stf2m_core.evaluation import CONTROLS, evaluate, evaluate_control, score
from stf2m_core.results import Record

EMBEDDED = "synemo"
"""The synthetic set, which needs no files."""

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no-spatial": {"encoder__spatial": "identity"},
    "no-temporal": {"encoder__kernel": 1},
    "no-fuzzy": {"fuzzy__kind": "mlp"},
    "no-meta-rnn": {"meta_rnn__kind": "constant"},
    "no-views": {"inner__n_views": 0, "train__view_drop": 0.0},
}
"""What each ablation changes; everything else is shared."""

READINGS: dict[str, dict[str, Any]] = {
    "chebyshev": {"encoder__spatial": "chebyshev"},
    "node-mixing": {"encoder__spatial": "node-mixing"},
    "causal": {"encoder__causal": True},
    "no-position": {"encoder__positional": False},
    "no-order": {"encoder__kernel": 1, "encoder__positional": False},
    "diagonal": {"fuzzy__antecedent": "diagonal", "fuzzy__rank": 0},
    "full-precision": {"fuzzy__antecedent": "full", "fuzzy__rank": 0},
    "bell": {"fuzzy__antecedent": "bell"},
    "plain-tsk": {"fuzzy__firing": "tsk"},
    "deep-set": {"meta_rnn__kind": "deep-set"},
    "generated-gru": {"meta_rnn__kind": "gru", "meta_rnn__n_layers": 1},
    "modulation-only": {"meta_rnn__kind": "mmaml", "inner__fast": ("head", "fuzzy")},
    # a learner that must learn to learn has no use for steps in which only prototypes are trained
    "recurrent-learner": {
        "meta_rnn__kind": "recurrent", "inner__steps_train": 0, "inner__steps_test": 0, "inner__n_views": 0,
        "train__warm_up": 0.1,
    },
    "zero-order": {"inner__steps_train": 0, "inner__steps_test": 0, "inner__n_views": 0},
    "first-order": {"train__second_order": False},
    "self-voting": {"inner__left_out": False},
}  # fmt: skip
"""Other readings of the paper, and further controls: made like ablations, but in no design. Who needs one for a table
asks for it by name."""

NOVEL = "new-emotions"
"""The variant that meets in meta-test only emotions that it was never trained on."""

WHOLE = ("full", NOVEL)
"""Variants of the whole model, which stand in the main table beside the controls; the others are ablations."""


@dataclass(frozen=True)
class Study:
    """What a data set needs besides the defaults.

    Attributes:
        train: kinds of training episode, in turn.
        test: settings of the tables.
        changes: of the config, as `RunConfig.replace` takes them, in every profile.
        profiles: further changes per profile.
        novel: changes of the whole model's run on new emotions (Regime C, its own training); empty: there is none.
    """

    train: tuple[EpisodeConfig, ...]
    test: tuple[EpisodeConfig, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    novel: dict[str, Any] = field(default_factory=dict)

    def settings(self, variant: str) -> tuple[EpisodeConfig, ...]:
        """The settings that a variant is tested in: those of the tables, on new emotions if it is for them."""
        return tuple(replace(kind, regime="C") for kind in self.test) if variant == NOVEL else self.test


@dataclass(frozen=True)
class Design:
    """Runs of one table.

    Attributes:
        folds: blocks of subjects that are meta-test in turn.
        seeds: of the training.
        variants: (variant, folds) pairs.
    """

    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    variants: tuple[tuple[str, tuple[int, ...]], ...]


def _kinds(n_way: int, *kinds: tuple[str, int, int]) -> tuple[EpisodeConfig, ...]:
    return tuple(EpisodeConfig(regime=r, n_way=n_way, n_shot=k, n_query=q) for r, k, q in kinds)


STUDIES: dict[str, Study] = {
    "ravdess_features": Study(
        train=_kinds(8, ("P", 1, 2), ("D", 1, 4), ("P", 2, 2), ("D", 3, 3)),
        test=_kinds(8, ("P", 1, 2), ("P", 2, 2), ("D", 1, 2), ("D", 5, 2)),
        # the two sentences are spoken in every emotion: their text says nothing and is left out
        # few clips: most is known in closed form before the first step, and steps are small; the person's shift is the
        # head's business, so that the input is standardised alike for all
        changes={
            "views__modalities": ("audio", "visual"),
            "views__normalise": "global",
            "split__n_val_subjects": 3,
            "train__chunk": 2,
            "train__lr": 5e-4,
            "train__validate_every": 20,
            "inner__rate": 0.01,
        },
        profiles={
            "smoke": {"train__max_steps": 20},
            "standard": {"train__max_steps": 80, "evaluation__episodes": 300},
            # the same training, as more steps only overfit nine actors; what is larger is the number of runs
            "paper": {"train__max_steps": 80, "train__patience": 6, "evaluation__episodes": 200},
        },
    ),
    "synemo": Study(
        # first all 24 emotions at once: the support then says what the domain does, and every pair is told apart
        train=_kinds(24, ("D", 1, 1)) + _kinds(5, ("D", 5, 3)),
        test=_kinds(5, ("D", 1, 5), ("D", 5, 5)),
        # the factors live in time, nodes and pairs of modalities: a linear path past the convolutions would read only
        # levels, and a view without a modality lacks the factor that lives there; after the start centers are posterior
        # means already, which steps would only disturb (D-90)
        changes={
            "split__n_val_subjects": 8,
            "views__step_s": 0.02,
            "encoder__level_path": False,
            "encoder__node_read_out": True,
            "inner__modality_drop": 0.0,
            "inner__single_modality": 0.0,
            "inner__rate": 0.3,
            "inner__center_rate": 0.0,
            "inner__fuzzy_rate": 3.0,
            "inner__film_rate": 0.1,
            "train__lr": 4e-3,
            "train__level_noise": 0.0,
            "train__view_drop": 0.0,
            "train__meta_batch": 3,
            "train__chunk": 3,
            "train__start": 0.7,
            "train__validate_every": 55,
            "train__validation_episodes": 6,
        },
        profiles={
            "smoke": {"train__max_steps": 220, "evaluation__episodes": 300},
            "standard": {"train__max_steps": 900, "train__start": 0.5, "train__patience": 16},
        },
        # half of the emotions train, a quarter validates, a quarter is new
        novel={
            "episodes": [asdict(kind) for kind in _kinds(12, ("C", 2, 2)) + 2 * _kinds(5, ("C", 5, 2))],
            "split__n_val_labels": 6,
            "split__n_test_labels": 6,
            "inner__label_knowledge": False,
            "train__validation_episodes": 12,
        },
    ),
}
"""Data sets of which the kit knows what to ask."""


def prepare_pack(dataset: str, path: str | os.PathLike[str], profile: str, *, source: str = "") -> ImportReport:
    """Make, or make again, the pack of a data set; the embedded set is larger in the larger profiles.

    Args:
        dataset: name of the manifest.
        path: the pack's folder.
        profile: size of the whole.
        source: folder of the data set's files; "" for the embedded set.

    Raises:
        ManifestError: if the data set is unknown or its files are not as stated.
    """
    options = _embedded_options(profile) if dataset == EMBEDDED else {}
    return import_dataset(dataset, source=source or None, out=path, overwrite=True, **options)


def open_or_make_pack(path: str | os.PathLike[str], profile: str | None = None) -> Pack:
    """Open a pack; the embedded set is made first if it is not there, so that every notebook works alone.

    Args:
        path: the pack's folder.
        profile: size of the whole; None takes the embedded set in any size, and makes it in that of smoke.

    Raises:
        PackError: if there is no pack and it is not the embedded set, or if it is, in the size of another profile.
    """
    if Path(path).name == EMBEDDED and not (Path(path) / "pack.json").exists():
        prepare_pack(EMBEDDED, path, profile or "smoke")
    pack = open_pack(path)
    if pack.name != EMBEDDED or profile is None:
        return pack
    origin = json.loads((pack.path / "pack.json").read_text(encoding="utf-8"))["made_from"] or {}
    made, wanted = origin.get("options"), _embedded_options(profile)
    if made is not None and any(made.get(name) != wanted[name] for name in wanted):
        raise PackError(f"a pack made with {made}", expected=f"{wanted}, as profile {profile} has it", where=str(path),
                        remedy=f"Run notebook 01 with profile = {profile!r}, or name another pack")  # fmt: skip
    return pack


def _embedded_options(profile: str) -> dict[str, Any]:
    """Of the embedded set: small and pure, or large with gains, dead nodes, missing views and ambiguity."""
    return {"preset": "smoke", "pure": True} if profile in ("smoke", "test") else {"preset": "standard"}


def study_of(pack: Pack) -> Study:
    """The study of a pack; a pack the kit does not know gets up to five ways and one shot.

    In Regime D, or in Regime P where fewer than eight subjects would leave a meta-split with a single one.
    """
    if pack.name in STUDIES:
        return STUDIES[pack.name]
    few = pack.clips["subject"].nunique() < 8
    kinds = _kinds(min(5, len(pack.labels)), ("P" if few else "D", 1, 2))
    return Study(train=kinds, test=kinds, changes={"split__n_val_subjects": 1} if few else {})


def design(dataset: str, profile: str) -> Design:
    """Folds, seeds and variants of a profile: the ablation runs on the first fold only."""
    n_folds = 4 if profile not in ("smoke", "test") and dataset in STUDIES and dataset != "synemo" else 1
    folds = tuple(range(n_folds))
    seeds = (0,) if profile != "paper" else (0, 1, 2)
    names = (*VARIANTS, NOVEL) if dataset in STUDIES and STUDIES[dataset].novel else tuple(VARIANTS)
    variants = tuple((name, folds if name in WHOLE or profile == "paper" else (0,)) for name in names)
    return Design(folds, seeds, variants)


def config_for(pack: Pack, profile: str, *, variant: str = "full", fold: int = 0, seed: int = 0) -> RunConfig:
    """All settings of one run.

    Raises:
        ConfigError: on an unknown profile or variant.
    """
    study = study_of(pack)
    variants = VARIANTS | READINGS | ({NOVEL: study.novel} if study.novel else {})
    if variant not in variants:
        raise ConfigError(f"variant = {variant!r}", expected=f"one of {', '.join(variants)}", where="config_for")
    config = RunConfig.preset(profile).replace(episodes=[asdict(kind) for kind in study.train])
    config = config.replace(**study.changes | study.profiles.get(profile, {}))
    return config.replace(**variants[variant], split__fold=fold, train__seed=seed)


def run_folder(out: str | os.PathLike[str], pack: Pack, config: RunConfig, variant: str) -> Path:
    """Where a run lies: results/runs/<data set>/<variant>-fold<f>-seed<s>-<settings>-<code>.

    Runs of other settings, or of another version of the model's code, never mix.
    """
    name = f"{variant}-fold{config.split.fold}-seed{config.train.seed}-{config.digest()}-{training.CODE_DIGEST}"
    return Path(out) / "runs" / pack.name / name


def train(
    pack: Pack,
    config: RunConfig,
    run_dir: str | os.PathLike[str],
    *,
    resume: Literal["auto", "restart"] = "auto",
    progress_bar: bool = True,
) -> training.Run:
    """Meta-train, or continue, or return the finished run in `run_dir`; selection is by meta-validation NLL.

    Args:
        pack: the data.
        config: settings.
        run_dir: folder of the run; made if absent.
        resume: "auto" continues what is there; "restart" begins anew.
        progress_bar: on standard error.

    Raises:
        RunError: if the folder holds a run of other settings or another pack, or the loss becomes non-finite.
    """
    return training.train(pack, config, run_dir, validate=score, resume=resume, progress_bar=progress_bar)


def train_run(pack: Pack, config: RunConfig, out: str | os.PathLike[str], *, variant: str = "full",
              progress_bar: bool = True) -> training.Run:  # fmt: skip
    """Train a run, continue it, or return it if it is finished.

    Args:
        pack: the data.
        config: from `config_for`, or your own.
        out: the results folder.
        variant: name for tables.
        progress_bar: on standard error.
    """
    return train(pack, config, run_folder(out, pack, config, variant), progress_bar=progress_bar)


def evaluate_run(pack: Pack, config: RunConfig, out: str | os.PathLike[str], *, variant: str = "full") -> list[Record]:
    """Records of one run in every setting of its study; with the whole model also the controls, same episodes.

    The records are written to results/records/<data set>/.

    Raises:
        RunError: if the run is not finished.
    """
    made = []
    for setting in study_of(pack).settings(variant):
        made.append(evaluate(run_folder(out, pack, config, variant), pack, setting, variant=variant,
                             seed=config.evaluation.seed))  # fmt: skip
        if variant in WHOLE and config.train.seed == 0:
            made += [evaluate_control(c, pack, config, setting, seed=config.evaluation.seed) for c in CONTROLS]
    for record in made:
        record.to_json(record_file(out, record))
    return made


def complete_design(pack: Pack, out: str | os.PathLike[str], profile: str) -> list[Record]:
    """The records of a profile's design; runs that have none are trained and evaluated first, each with a progress bar.

    Raises:
        RunError: if a folder holds a run of other settings or another pack.
    """
    plan = design(pack.name, profile)
    for variant, folds in plan.variants:
        for config in [config_for(pack, profile, variant=variant, fold=f, seed=s) for f in folds for s in plan.seeds]:
            complete_run(pack, config, out, variant)
    return records_of(pack, out, profile)


def read_readings(text: str) -> tuple[str, ...]:
    """Names of readings from a notebook's parameter, e.g. "deep-set, causal"; "all" for every one.

    Raises:
        ConfigError: on an unknown reading.
    """
    names = tuple(READINGS) if text.strip() == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in READINGS:
            raise ConfigError(f"reading {name!r}", expected=f"all, or some of {', '.join(READINGS)}", where="readings")
    return names


def complete_readings(
    pack: Pack, out: str | os.PathLike[str], profile: str, readings: Sequence[str] = tuple(READINGS)
) -> list[Record]:  # fmt: skip
    """The records of other readings of the method and of the whole model, on the first fold and with the first seed.

    Args:
        pack: the data.
        out: the results folder; what has no record yet is trained and evaluated first, each with a progress bar.
        profile: size of the whole.
        readings: names in `READINGS`.

    Raises:
        ConfigError: on an unknown reading.
        RunError: if a folder holds a run of other settings or another pack.
    """
    plan, records = design(pack.name, profile), []
    for variant in ("full", *readings):
        config = config_for(pack, profile, variant=variant, fold=plan.folds[0], seed=plan.seeds[0])
        records += complete_run(pack, config, out, variant)
    return records


def complete_run(pack: Pack, config: RunConfig, out: str | os.PathLike[str], variant: str) -> list[Record]:
    """The model's records of one run, which is trained and evaluated first if it has none."""
    if not _is_evaluated(pack, config, out, variant):
        train_run(pack, config, out, variant=variant)
        evaluate_run(pack, config, out, variant=variant)
    return [r for r in _present_records(pack, config, out) if r.method == "st-f2m"]


def _present_records(pack: Pack, config: RunConfig, out: str | os.PathLike[str]) -> list[Record]:
    """Those of a run that this pack and this version of the code gave, by file name."""
    files = sorted((Path(out) / "records" / pack.name).glob(f"*_{config.digest()}.json"))
    present = pack.digest, training.CODE_DIGEST
    return [r for r in map(Record.from_json, files) if (r.pack_digest, r.provenance.get("code")) == present]


def _is_evaluated(pack: Pack, config: RunConfig, out: str | os.PathLike[str], variant: str) -> bool:
    found = {(r.method, setting_of(r)) for r in _present_records(pack, config, out)}
    methods = ("st-f2m", *CONTROLS) if variant in WHOLE and config.train.seed == 0 else ("st-f2m",)
    return found >= {(method, setting.title) for method in methods for setting in study_of(pack).settings(variant)}


def record_file(out: str | os.PathLike[str], record: Record) -> Path:
    """Where a record lies; the settings are in the name, so that records of other settings never mix in."""
    setting = EpisodeConfig(**{n: record.episode[n] for n in EpisodeConfig.__dataclass_fields__}).title
    facts = [record.method, record.variant, setting, f"fold{record.fold}", f"seed{record.seed}", record.config_digest]
    name = "_".join(facts)
    return Path(out) / "records" / record.dataset / (name.replace(" ", "-").replace(",", "") + ".json")


def records_of(pack: Pack, out: str | os.PathLike[str], profile: str) -> list[Record]:
    """The records of a profile's design, as far as they exist.

    Raises:
        RunError: if there is none.
    """
    wanted = {
        config_for(pack, profile, variant=variant, fold=fold, seed=seed).digest()
        for variant, folds in design(pack.name, profile).variants
        for fold in folds
        for seed in design(pack.name, profile).seeds
    }
    folder = Path(out) / "records" / pack.name
    files = [file for file in sorted(folder.glob("*.json")) if file.stem.rpartition("_")[2] in wanted]
    found = [r for r in map(Record.from_json, files) if r.pack_digest == pack.digest]
    if not found:
        raise RunError(f"no record of profile {profile}", expected="evaluated runs", where=str(folder),
                       remedy=f"Run `make reproduce PROFILE={profile}` or notebook 07 first")  # fmt: skip
    return found


def setting_of(record: Record) -> str:
    """As in tables, e.g. "P 8-way 1-shot"."""
    return EpisodeConfig(**{n: record.episode[n] for n in EpisodeConfig.__dataclass_fields__}).title


def main_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Accuracy of each method in each setting over all folds and seeds, with both intervals.

    Four readings of ST-F2M stand apart: adapted, zero inner steps, prototypes alone, no use of the support at all.
    """
    rows = []
    readings = {"accuracy": "ST-F2M", "accuracy_zero_step": "ST-F2M, zero steps"}
    readings |= {"accuracy_prototype": "ST-F2M, prototypes only", "accuracy_no_support": "ST-F2M, no support"}
    for method in ("st-f2m", *CONTROLS):
        for metric, title in (readings if method == "st-f2m" else {"accuracy": method}).items():
            chosen = [r for r in records if r.method == method and r.variant in WHOLE]
            for setting in dict.fromkeys(setting_of(r) for r in chosen):
                estimate = results.combine([r for r in chosen if setting_of(r) == setting], metric)
                rows.append({"method": title, "setting": setting} | asdict(estimate))
    return rows


def gain_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What adaptation adds: accuracy minus that of the same model's lesser readings, paired by episode (D-60)."""
    lesser = {"accuracy_zero_step": "over zero inner steps", "accuracy_prototype": "over prototypes only",
              "accuracy_no_support": "over no support"}  # fmt: skip
    rows = []
    for metric, title in lesser.items():
        chosen = [r for r in records if r.method == "st-f2m" and r.variant in WHOLE]
        for setting in dict.fromkeys(setting_of(r) for r in chosen):
            own = [r for r in chosen if setting_of(r) == setting and metric in r.per_episode]
            if own:
                gap = results.compare(own, own, against=metric).difference
                rows.append({"gain": title, "setting": setting} | asdict(gap))
    return rows


def ablation_rows(records: Sequence[Record], variants: Sequence[str] = tuple(VARIANTS)) -> list[dict[str, Any]]:
    """Paired differences to the full model on identical episodes, folds and seeds that both have.

    Args:
        records: of the full model and of others.
        variants: names of the others, ablations or readings.
    """
    full = {(setting_of(r), r.fold, r.seed): r for r in records if r.method == "st-f2m" and r.variant == "full"}
    rows = []
    for variant in [v for v in variants if v != "full"]:
        for setting in dict.fromkeys(key[0] for key in full):
            own = [r for r in records if r.variant == variant and setting_of(r) == setting]
            pairs = [(r, full[key]) for r in own if (key := (setting, r.fold, r.seed)) in full]
            if pairs:
                gap = results.compare([a for a, _ in pairs], [b for _, b in pairs]).difference
                rows.append({"variant": variant, "setting": setting, "difference": gap.mean} | asdict(gap))
    return rows


def confusion_counts(
    records: Sequence[Record], setting: EpisodeConfig, variant: str = "full"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(label, label) counts of true against answered labels in a setting, over all folds and seeds, and the labels.

    Args:
        records: among others, of the variant of ST-F2M in this setting.
        setting: kind of episode.
        variant: name of the ablation.

    Raises:
        RunError: if there is none, or one that did not count them.
    """
    own = [r for r in records if (r.method, r.variant, setting_of(r)) == ("st-f2m", variant, setting.title)]
    if not own:
        raise RunError(f"no record of {variant} in {setting.title}", expected="one at least", where="confusion_counts")
    for record in own:
        if not record.confusion:
            raise RunError("no confusion", expected="counts of answers", where=f"record {record.name}",
                           remedy="Run notebook 07 for it again")  # fmt: skip
    return np.sum([list(r.confusion.values()) for r in own], 0), tuple(own[0].confusion)


def table_of(rows: Sequence[dict[str, Any]], *, index: str = "method", digits: int = 2) -> pd.DataFrame:
    """Rows by method and columns by setting; each cell is an estimate in words, with so many decimals."""
    parts = [f.name for f in fields(results.Estimate)]
    cells = [results.Estimate(**{name: row[name] for name in parts}).text(digits) for row in rows]
    frame = pd.DataFrame([{index: r[index], "setting": r["setting"]} for r in rows]).assign(cell=cells)
    order = list(dict.fromkeys(frame[index])), list(dict.fromkeys(frame["setting"]))
    return frame.pivot(index=index, columns="setting", values="cell").loc[order[0], order[1]]
