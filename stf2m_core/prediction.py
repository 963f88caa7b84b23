"""The answer about one clip, and why: numbers for programs, tables for spreadsheets, sentences for people."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stf2m_core.calibration import Reference, Source
from stf2m_core.training import write_text

RARE = 0.05
"""A clip of lower typicality is called unusual."""
VAGUE = 0.15
"""A rule whose first emotion is less than this part of the way from an even share to 1 stands for none of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """Overlapping windows of real time, in order; NaN where nothing was observed.

    Attributes:
        spans: (window, 2) seconds.
        probability: (window, way) calibrated.
        typicality: (window,) 0 to 1, as of the whole clip.
        membership: (window,) log membership of the best rule, per feature.
        observed: (window, modality) share of what there is to observe.
    """

    spans: np.ndarray
    probability: np.ndarray
    typicality: np.ndarray
    membership: np.ndarray
    observed: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityReading:
    """What one modality added.

    Attributes:
        name: of the modality.
        observed: share of its nodes and frames; 0 if the clip does not have it.
        change: log-probability of the answer with it minus without it, nat; None if it is absent or the only one.
    """

    name: str
    observed: float
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReading:
    """A rule that fired.

    Attributes:
        number: of the rule, from 1, as in all figures.
        firing: its share of the clip, 0 to 1.
        usual: its mean share in the clips of meta-validation.
        stands_for: label to share, the largest first, they sum to one: for known emotions its firing in the clips of
            each emotion in meta-validation, for new ones its label distribution after the support.
        prior: label to share, what the outer loop itself has learned; even shares where it learned nothing.
        nearest: the support clip that fires it most; "" without support.
    """

    number: int
    firing: float
    usual: float
    stands_for: dict[str, float]
    prior: dict[str, float]
    nearest: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What the model says of one clip.

    Attributes:
        clip: its name.
        duration_s: of it.
        labels: the emotions asked about.
        probability: (way,) of the whole clip, calibrated; sums to one.
        read: "whole", or "mean of windows" for a clip longer than the model reads at once.
        typicality: share of meta-validation that is less typical, times `evidence`; None without rules.
        membership: log membership of the best rule, per feature; None without rules.
        evidence: share of what is usually observed that was there, 0 to 1.
        timeline: the same over time.
        modalities: of the run, in its order.
        rules: that fired most, the strongest first.
        source: whose clips the support has: "own", "others" or "none".
        support: (name, label) of each support clip.
        calibration: what the answers were read against, by name; the first is that of the whole clip.
        words: what is said, with (word,) seconds in `word_times`.
        word_times: of the words.
        remarks: what a user should know.
        facts: run, weights, pack and settings.
        seconds: what took how long; in no file, since it differs from call to call.
    """

    clip: str
    duration_s: float
    labels: tuple[str, ...]
    probability: np.ndarray
    read: str
    typicality: float | None
    membership: float | None
    evidence: float
    timeline: Timeline
    modalities: tuple[ModalityReading, ...]
    rules: tuple[RuleReading, ...]
    source: Source
    support: tuple[tuple[str, str], ...]
    calibration: dict[str, Reference]
    words: tuple[str, ...]
    word_times: tuple[float, ...]
    remarks: tuple[str, ...]
    facts: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The most probable emotion."""
        return self.labels[int(self.probability.argmax())]

    @property
    def carried_by(self) -> str | None:
        """The modality without which the answer would lose most; None where none supports it, or it cannot be told."""
        known = [reading for reading in self.modalities if reading.change is not None]
        best = max(known, key=lambda reading: reading.change, default=None)
        return best.name if best is not None and best.change > 0 else None

    def table(self) -> pd.DataFrame:
        """One row per window: start_s, end_s, p_<label>, typicality, membership, observed_<modality>."""
        line = self.timeline
        columns = {"start_s": line.spans[:, 0], "end_s": line.spans[:, 1]}
        columns |= {f"p_{label}": line.probability[:, way] for way, label in enumerate(self.labels)}
        columns |= {"typicality": line.typicality, "membership": line.membership}
        columns |= {f"observed_{m.name}": line.observed[:, number] for number, m in enumerate(self.modalities)}
        return pd.DataFrame(columns)

    def rule_table(self) -> pd.DataFrame:
        """One row per rule that fired most: firing, usual firing, what it stands for, the nearest support clip."""
        rows = [
            {"rule": rule.number, "fires": f"{rule.firing:.0%}", "usually": f"{rule.usual:.0%}",
             "stands for": ", ".join(f"{label} {share:.0%}" for label, share in list(rule.stands_for.items())[:3]),
             "nearest in the support": rule.nearest}
            for rule in self.rules
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["rule", "fires", "usually", "stands for", "nearest in the support"])

    def to_mapping(self) -> dict[str, Any]:
        """All but the seconds, as JSON can hold it."""
        table = self.table().astype(object)
        rows = table.where(table.notna(), None).to_dict("records")
        known = {
            name: {"temperature": r.temperature, "nll_before": r.nll[0], "nll_after": r.nll[1], "accuracy": r.accuracy,
                   "queries": r.queries, "episodes": list(r.episodes)}
            for name, r in self.calibration.items()
        }  # fmt: skip
        return {
            "format": "stf2m-prediction", "version": 1, "clip": self.clip, "duration_s": self.duration_s,
            "answer": self.answer, "probability": dict(zip(self.labels, self.probability.tolist(), strict=True)),
            "read": self.read, "typicality": self.typicality, "membership": self.membership,
            "evidence": self.evidence,
            "modalities": [{"name": m.name, "observed": m.observed, "change": m.change} for m in self.modalities],
            "carried_by": self.carried_by,
            "rules": [{"number": r.number, "firing": r.firing, "usual": r.usual, "stands_for": r.stands_for,
                       "prior": r.prior, "nearest": r.nearest} for r in self.rules],
            "support": {"source": self.source, "clips": [{"clip": n, "label": label} for n, label in self.support]},
            "calibration": known, "timeline": rows, "words": list(self.words), "word_times": list(self.word_times),
            "remarks": list(self.remarks), **self.facts,
        }  # fmt: skip

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON; the file is whole or absent."""
        return _written(path, json.dumps(self.to_mapping(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the timeline as CSV, empty cells where nothing was observed; the file is whole or absent."""
        return _written(path, self.table().to_csv(index=False, lineterminator="\n", float_format="%.6g"))

    def in_words(self) -> str:
        """A summary of some lines."""
        order = np.argsort(-self.probability, kind="stable")[:3]
        said = ", ".join(f"{self.labels[way]} {self.probability[way]:.0%}" for way in order)
        lines = [f"{self.clip}, {self.duration_s:.1f} s: {said}.", self._support_in_words(), self._source_in_words()]
        lines += [rule_in_words(rule) for rule in self.rules]
        if self.typicality is not None:
            lines.append(typicality_in_words(self.typicality, self.evidence) + ".")
        known = next(iter(self.calibration.values()))
        kinds = f" ({', '.join(known.episodes)})" if known.episodes else ""
        lines.append(f"Calibrated at temperature {known.temperature:.2f} on {known.queries} answers of "
                     f"meta-validation{kinds}, of which {known.accuracy:.0%} were right.")  # fmt: skip
        lines += [f"Note: {remark}." for remark in self.remarks]
        return "\n".join(textwrap.fill(line, 90, subsequent_indent="    ") for line in lines)

    def _support_in_words(self) -> str:
        if self.source == "none":
            return "No support: this is what meta-training knows of the emotions."
        whose = "the same person" if self.source == "own" else "other people"
        return f"Adapted to {len(self.support)} clips of {len(self.labels)} emotions of {whose}."

    def _source_in_words(self) -> str:
        present = [m.name for m in self.modalities if m.observed > 0]
        absent = [m.name for m in self.modalities if m.observed == 0]
        gone = f" The clip has no {' and no '.join(absent)}." if absent else ""
        if len(present) == 1:
            return f"Read from {present[0]} alone.{gone}"
        changes = ", ".join(f"{m.name} {m.change:+.2f}" for m in self.modalities if m.change is not None)
        head = f"Carried by {self.carried_by}" if self.carried_by else "No modality alone carries it"
        return f"{head} (the answer's log-probability with each minus without it: {changes} nat).{gone}"


def typicality_in_words(typicality: float, evidence: float) -> str:
    """What a typicality means."""
    rank = typicality / evidence if evidence > 0 else 0.0
    if rank <= 0:
        return "Unlike anything seen: less typical than every clip of meta-validation"
    text = f"More typical than {rank:.0%} of the clips of meta-validation"
    if evidence < 0.995:
        text += f", but only {evidence:.0%} of the usual could be observed: typicality {typicality:.0%}"
    return f"Unusual. {text}" if typicality < RARE else text


def is_vague(rule: RuleReading) -> bool:
    """Whether a rule stands for no emotion in particular."""
    even = 1 / len(rule.stands_for)
    return max(rule.stands_for.values()) < even + VAGUE * (1 - even)


def rule_in_words(rule: RuleReading) -> str:
    """One line about a rule that fired."""
    shares = list(rule.stands_for.items())
    meant = ", ".join(f"{label} {share:.0%}" for label, share in shares[:2])
    near = f"; nearest in the support: {rule.nearest}" if rule.nearest else ""
    usual = f" (usually {rule.usual:.0%})" if rule.usual > 0 else ""
    stands = f"no emotion in particular ({meant})" if is_vague(rule) else meant
    return f"Rule {rule.number} fired {rule.firing:.0%}{usual}: it stands for {stands}{near}."


def _written(path: str | os.PathLike[str], text: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path
