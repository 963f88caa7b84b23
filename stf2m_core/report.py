"""Tables for people: packs, runs and records enter; captioned tables leave, as CSV of numbers and Markdown of words."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from stf2m_core import results
from stf2m_core.config import RunConfig
from stf2m_core.data.pack import Pack
from stf2m_core.experiment import (
    EMBEDDED,
    READINGS,
    VARIANTS,
    WHOLE,
    ablation_rows,
    gain_rows,
    main_rows,
    setting_of,
    table_of,
)
from stf2m_core.results import Record
from stf2m_core.sweeps import modality_rows, over_seeds, seed_rows, shot_rows
from stf2m_core.training import Run, write_text

SYNTHETIC = "The clips are synthetic: these numbers show what a method can learn and are no recognition of emotions."

METRICS = {
    "accuracy": "accuracy", "accuracy_zero_step": "accuracy, zero inner steps",
    "accuracy_no_support": "accuracy, no use of the support",
    "accuracy_prototype": "accuracy, prototypes alone", "uar": "unweighted average recall", "f1_macro": "macro F1",
    "f1_weighted": "weighted F1", "nll": "negative log-likelihood, nat", "ece": "expected calibration error",
    "kl_soft": "KL from the votes, nat", "kl_soft_zero_step": "KL from the votes, zero inner steps, nat",
    "kl_soft_no_support": "KL from the votes, no use of the support, nat",
    "kl_soft_prototype": "KL from the votes, prototypes alone, nat", "js_soft": "JS to the votes, nat",
    "brier_soft": "Brier score on the votes", "ece_soft": "expected calibration error on the votes",
    "entropy_correlation": "correlation of entropies with the raters'", "tied_share": "share of clips with tied votes",
}  # fmt: skip
"""Metrics of a record, in words."""
_WORK = {"encode a clip, M": "encode", "read the support, M": "start", "one inner step, M": "step",
         "answer all queries, M": "answer"}  # fmt: skip


def shown(frame: pd.DataFrame) -> Styler:
    """A table for a notebook: left-aligned, nothing cut off, no running numbers."""
    frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    left = [{"selector": "th, td", "props": "text-align: left; white-space: normal;"}]
    return frame.style.hide(axis="index").set_uuid("table").set_table_styles(left).format(precision=3)


def modality_table(pack: Pack) -> pd.DataFrame:
    """One row per modality: size, rate, frames per clip, and how many clips have it."""
    rows = []
    for name in pack.modalities:
        view = pack.view(name)
        lengths = pd.Series(view.offsets[1:] - view.offsets[:-1])
        seen = lengths[lengths > 0]
        rate = f"{view.rate_hz:g} per second" if view.rate_hz else "uneven, with time stamps"
        rate = "one frame" if seen.max() == 1 else rate
        rows.append({"modality": name, "nodes": len(view.nodes), "channels": len(view.channels), "sampling": rate,
                     "frames per clip (median)": int(seen.median()), "clips that have it": len(seen),
                     "clips without it": len(lengths) - len(seen)})  # fmt: skip
    return pd.DataFrame(rows)


def split_table(pack: Pack, rows: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """One row per meta-split: clips, subjects, domains, labels.

    Args:
        pack: the data.
        rows: of each meta-split, from `episodes.split_subjects`.
    """
    parts = {split: pack.clips.iloc[list(own)] for split, own in rows.items()}
    columns = {"subjects": "subject", "domains": "domain", "labels": "label"}
    counts = [{"split": split, "clips": len(part)} | {name: part[column].nunique() for name, column in columns.items()}
              for split, part in parts.items()]  # fmt: skip
    return pd.DataFrame(counts)


def record_table(records: Sequence[Record]) -> pd.DataFrame:
    """Every metric of some records: one row per method and metric, one column per setting."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        for metric in [name for name in METRICS if name in record.metrics]:
            cell = {setting_of(record): str(record.estimate(metric))}
            rows.setdefault((record.method, METRICS[metric]), {}).update(cell)
    frame = pd.DataFrame([{"method": m, "metric": n} | cells for (m, n), cells in rows.items()]).fillna("–")
    return frame.set_index(["method", "metric"])


def main_table(records: Sequence[Record]) -> pd.DataFrame:
    """Methods by settings, all folds and seeds together; the caption says what a reader must know to trust it."""
    return _captioned(main_rows(records), [r for r in records if r.variant in WHOLE], "method", "Accuracy.")


def ablation_table(records: Sequence[Record]) -> pd.DataFrame:
    """Variants by settings, as differences to the full model."""
    what = "Accuracy of the variant minus that of the full model, on identical episodes."
    others = [r for r in records if r.variant in VARIANTS and r.variant not in WHOLE]
    return _captioned(ablation_rows(records), others, "variant", what, digits=3)


def reading_table(records: Sequence[Record]) -> pd.DataFrame:
    """Other readings of the method by settings, as differences to the full model."""
    what = "Accuracy of the reading minus that of the full model, on identical episodes."
    others = [r for r in records if r.variant in READINGS]
    return _captioned(ablation_rows(records, tuple(READINGS)), others, "variant", what, digits=3)


def cost_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Weights and multiply-adds of variants, in words.

    Args:
        rows: of `costs.cost_rows`.
    """
    table = pd.DataFrame({
        "variant": [row["variant"] for row in rows],
        "weights": [f"{row['parameters']:,}" for row in rows],
        "adapted per episode": [f"{row['adapted']:,}" for row in rows],
        **{name: [f"{row[key] / 1e6:.1f}" for row in rows] for name, key in _WORK.items()},
    })  # fmt: skip
    table.attrs["caption"] = "Learned numbers, numbers that adapt, millions of multiply-adds in matrix products."
    return table


def gain_table(records: Sequence[Record]) -> pd.DataFrame:
    """What adaptation adds to the same model's lesser readings, by settings."""
    what = "What adaptation adds: accuracy minus that of the same model without it, on identical episodes."
    return _captioned(gain_rows(records), [r for r in records if r.variant in WHOLE], "gain", what, digits=3)


def shot_table(records: Sequence[Record]) -> pd.DataFrame:
    """Readings and controls by number of shots, from the records of `sweeps.sweep_shots`."""
    return _captioned(shot_rows(records), records, "method", "Accuracy with ever more clips of each emotion.")


def reader_table(records: Sequence[Record]) -> pd.DataFrame:
    """All modalities, and each of them alone, by settings, from the records of `sweeps.sweep_modalities`."""
    return _captioned(modality_rows(records), records, "reader", "Accuracy by what is seen.")


def seed_table(records: Sequence[Record]) -> pd.DataFrame:
    """How much the seed of the training matters, by settings, from the records of `sweeps.sweep_seeds`."""
    rows, lines = seed_rows(records), []
    for title in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == title]
        mean, spread, _ = over_seeds([row["mean"] for row in own])
        gain, _, half = over_seeds([row["gain_mean"] for row in own])
        lines.append({
            "setting": title, "accuracy": f"{mean:.3f}", "between seeds": f"± {spread:.3f}" if len(own) > 1 else "–",
            "over zero inner steps": f"{gain:+.4f} ± {half:.4f}" if len(own) > 1 else f"{gain:+.4f}",
            "seed by seed": "  ".join(f"{row['gain_mean']:+.4f} ± {row['gain_ci95']:.4f}" for row in own),
        })  # fmt: skip
    table = pd.DataFrame(lines)
    what = (f"Trainings: {len({r.seed for r in records})}. Accuracy: mean over seeds; between seeds: standard "
            "deviation. Over zero inner steps: mean of the paired gains ± half width of its 95 % interval over seeds "
            "(Student's t); then each seed's gain ± half width over its episodes.")  # fmt: skip
    table.attrs["caption"] = _told(what, records)
    return table


def _told(what: str, records: Sequence[Record]) -> str:
    """The caption of a table of these records."""
    synthetic = f" {SYNTHETIC}" if records[0].dataset == EMBEDDED else ""
    caption = f"{what} {results.table(records).attrs['caption']}{synthetic}"
    return textwrap.fill(caption, 100, break_long_words=False, break_on_hyphens=False)


def _captioned(
    rows: Sequence[Mapping[str, Any]], records: Sequence[Record], index: str, what: str, digits: int = 2
) -> pd.DataFrame:
    table = table_of(rows, index=index, digits=digits).fillna("–").reset_index()
    table.columns.name = None
    table.attrs["caption"] = _told(what, records)
    return table


def write_table(table: pd.DataFrame, rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Write <path>.csv, the numbers, and <path>.md, the words with their caption; each whole or not at all.

    Args:
        table: from `main_table` or `ablation_table`.
        rows: what it was made from.
        path: without suffix; the folder is made.

    Returns:
        The Markdown file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".csv"), pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    write_text(path.with_suffix(".md"), results.to_markdown(table))
    return path.with_suffix(".md")


def stamp(pack: Pack | None = None, config: RunConfig | None = None, run: Run | None = None) -> pd.DataFrame:
    """Where the numbers of a notebook come from: pack, settings, run, versions, machine."""
    facts: dict[str, Any] = {}
    if pack is not None:
        facts |= {"pack": f"{pack.name} {pack.digest}", "pack folder": str(pack.path)}
    if config is not None:
        facts |= {"settings": config.digest()}
    if run is not None:
        facts |= {"run folder": str(run.path), "chosen step": run.summary["best_step"],
                  "minutes of training": round(run.summary["seconds"] / 60, 1)}  # fmt: skip
    train = (config or RunConfig()).train
    made = results.provenance(threads=train.threads, device=train.device, precision=train.precision)
    facts |= {"versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items())}
    facts |= {name.replace("_", " "): made[name] for name in ("platform", "git_revision", "git_dirty", "time")}
    return pd.DataFrame({"what": list(facts), "is": [str(value) for value in facts.values()]})
