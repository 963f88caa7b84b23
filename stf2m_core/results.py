"""Records of evaluations: written, read strictly, audited, combined over folds and seeds, set side by side.

Enters: the scores of one evaluation with everything needed to trust them. Leaves: JSON files and tables of text.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform as host
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stf2m_core import metrics
from stf2m_core.errors import ResultError
from stf2m_core.seeding import numpy_generator
from stf2m_core.shapes import EpisodeBatch

if TYPE_CHECKING:
    from stf2m_core.data.pack import Pack

FORMAT, VERSION = "stf2m-record", 1
_EPISODE_KEYS = {"regime", "n_way", "n_shot", "n_query", "query_prior", "episodes", "seed"}
_METRIC_KEYS = {"mean", "ci95", "subject_low", "subject_high", "subject_reason"}
_PACKAGES = ("torch", "numpy", "scipy", "pandas", "safetensors")


@dataclass(frozen=True, slots=True)
class Estimate:
    """One number with its two 95 % intervals; printed as `.73 ± .01 [.66, .79]`.

    Attributes:
        mean: over episodes.
        ci95: half width over episodes, or None.
        subject_low: lower end over query subjects, or None.
        subject_high: upper end over query subjects, or None.
    """

    mean: float
    ci95: float | None = None
    subject_low: float | None = None
    subject_high: float | None = None

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 2) -> str:
        """In words, with so many decimals."""
        text = _short(self.mean, digits)
        if self.ci95 is not None:
            text += f" ± {_short(self.ci95, digits)}"
        if self.subject_low is not None and self.subject_high is not None:
            text += f" [{_short(self.subject_low, digits)}, {_short(self.subject_high, digits)}]"
        return text


@dataclass(frozen=True, kw_only=True)
class Record:
    """One evaluation of one run (or of a baseline) on one fold; what a file of `results/records` holds.

    Attributes:
        name: of the record.
        dataset: name of the pack.
        pack_digest: of the pack.
        method: "st-f2m", "nearest-prototype", "ridge-prototype", ...
        variant: "full" or the ablation.
        fold: of the split of subjects.
        seed: of the training.
        split: the meta-split that the episodes came from.
        episode: regime, n_way, n_shot, n_query, query_prior, episodes, seed; optionally digest (`episode_digest`).
        metrics: name -> mean, ci95, subject_low, subject_high (the last three may be None), from `metrics.summarise`.
        selection: "none", or "meta-validation ..." and what was compared there.
        config: all settings.
        config_digest: of the settings.
        run_digest: of the trained weights.
        provenance: `provenance(...)`, and of which version of the code (`training.CODE_DIGEST`).
        leaks: `leak_audit(...)`.
        per_episode: metric -> one number per episode.
        per_subject: "subjects", "total" (queries) and, for each metric that is a mean over queries, its sums.
        confusion: true label -> how many of its queries were answered by each label, in the order of the keys; empty in
            a record that did not count them.

    Raises:
        ResultError: if a field is of the wrong type, incomplete, not finite, or the selection looked elsewhere.
    """

    name: str
    dataset: str
    pack_digest: str
    method: str
    variant: str
    fold: int
    seed: int
    split: str
    episode: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    selection: str
    config: Mapping[str, Any]
    config_digest: str
    run_digest: str
    provenance: Mapping[str, Any]
    leaks: Mapping[str, int]
    per_episode: Mapping[str, list[float]]
    per_subject: Mapping[str, list]
    confusion: Mapping[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"str": str, "int": int}
        for item in fields(self):
            kind = kinds.get(str(item.type), Mapping)
            value = getattr(self, item.name)
            if not isinstance(value, kind) or isinstance(value, bool):
                what = f"{item.name} = {value!r} is malformed"
                raise ResultError(what, expected=f"a value of type {kind.__name__}", where="a record")
            if kind is Mapping:
                object.__setattr__(self, item.name, _plain(value, f"{item.name} of record {self.name}"))
        _check_contents(self)

    @property
    def accuracy(self) -> Estimate:
        """Accuracy after adaptation."""
        return self.estimate("accuracy")

    def estimate(self, metric: str) -> Estimate:
        """One metric with its intervals.

        Raises:
            ResultError: if the record has no such metric.
        """
        if metric not in self.metrics:
            raise _unknown_metric(metric, self)
        return Estimate(**{item.name: self.metrics[metric].get(item.name) for item in fields(Estimate)})

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the record; whoever reads `path` meanwhile sees the old file or the new one, whole."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()]
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_aside(path, "{\n" + ",\n".join(lines) + "\n}\n")
        return path

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record.

        Raises:
            ResultError: if the file is missing, not a record, newer than this kit, or has unknown or missing keys.
        """
        content = _read(Path(path))
        known = {f.name for f in fields(cls)}
        for what, keys in (("unknown", set(content) - known), ("missing", known - set(content) - {"confusion"})):
            if keys:
                names = ", ".join(sorted(keys))
                raise ResultError(f"{what} key {names}", expected="the keys of a record", where=str(path))
        return cls(**content)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of two methods on identical episodes.

    Attributes:
        metric: what was compared.
        difference: a - b, with its intervals; the episodes, and the subjects, are paired.
        n_episodes: all episodes of all folds.
    """

    metric: str
    difference: Estimate
    n_episodes: int

    def __str__(self) -> str:
        return f"{self.metric} {self.difference} over {self.n_episodes} identical episodes"


# --- what makes a number trustworthy


def provenance(*, threads: int, device: str, precision: str) -> dict[str, Any]:
    """Versions, machine and revision under which a number was computed; a revision that cannot be told is None."""
    from stf2m_core import __version__  # here, because the package's own front page imports this module

    revision = _git("rev-parse", "HEAD") if _git("ls-files", Path(__file__).name) else None
    return {
        "versions": {"python": host.python_version(), "stf2m_core": __version__}
        | {name: metadata.version(name) for name in _PACKAGES},
        "platform": host.platform(),
        "threads": threads,
        "device": device,
        "precision": precision,
        "git_revision": revision,
        "git_dirty": None if revision is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def leak_audit(pack: Pack, splits: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many subjects, groups and contents occur in more than one split; all three should be 0.

    Args:
        pack: the data.
        splits: name -> rows of the pack's clips, int.
    """
    audited = {
        "shared_subjects": pack.clips["subject"].to_numpy(str),
        "shared_groups": pack.clips["group"].to_numpy(str),
        "duplicate_content": pack.content_hashes(),
    }
    return {name: _n_shared(values, splits) for name, values in audited.items()}


def episode_digest(batch: EpisodeBatch) -> str:
    """12 hex digits of the clips of the episodes; equal if and only if the episodes are identical."""
    digest = hashlib.sha256()
    for name in ("classes", "support", "query", "query_label"):
        rows = getattr(batch, name).cpu().numpy().astype("<i8")
        digest.update(f"{name}{rows.shape}".encode() + rows.tobytes())
    return digest.hexdigest()[:12]


# --- records together


def combine(records: Sequence[Record], metric: str = "accuracy") -> Estimate:
    """One number for several folds and seeds of one method.

    Seeds of a fold answer the same episodes, so they are averaged first; the spread over seeds is not in the intervals.
    Then ci95 is over the episodes of all folds, and the subject interval over the query subjects of all folds; it is
    known for metrics that are means over queries. One record gives back its own numbers.

    Raises:
        ResultError: if the records differ in more than fold and seed, or a fold misses a seed that another has.
    """
    folds = _by_fold(records)
    if len(records) == 1:
        return records[0].estimate(metric)
    mean = float(np.mean([record.estimate(metric).mean for record in records]))
    if not all(metric in record.per_episode for record in records):
        return Estimate(mean)
    ci95 = metrics.half_width(np.concatenate([_episodes(fold, metric) for fold in folds]))
    if not all(metric in record.per_subject for record in records):
        return Estimate(mean, ci95)
    interval = _subject_interval([_subjects(fold, metric) for fold in folds])
    return Estimate(mean, ci95, interval.low, interval.high)


def compare(
    a: Record | Sequence[Record], b: Record | Sequence[Record], metric: str = "accuracy", against: str | None = None
) -> Comparison:
    """How much better a is than b on identical episodes; either may be one record or all folds and seeds of a method.

    Args:
        a: what is compared.
        b: what it is compared with.
        metric: of a.
        against: metric of b; None: the same. With another one, two readings of the same records can be compared.

    Raises:
        ResultError: if the episodes are not identical, or a record lacks per-episode values of the metric.
    """
    folds_a, folds_b = (_by_fold([x] if isinstance(x, Record) else x) for x in (a, b))
    answered = [[_answered(fold[0]) for fold in folds] for folds in (folds_a, folds_b)]
    if answered[0] != answered[1]:
        raise ResultError(
            f"{folds_a[0][0].name} and {folds_b[0][0].name} did not answer identical episodes",
            expected="the same pack, split, folds, episode settings and query subjects",
        )
    other = against or metric
    values_a = np.concatenate([_episodes(fold, metric) for fold in folds_a])
    values_b = np.concatenate([_episodes(fold, other) for fold in folds_b])
    mean, half = metrics.paired_difference(values_a, values_b)
    interval = metrics.Interval(None, None)
    told = [name in r.per_subject for folds, name in ((folds_a, metric), (folds_b, other)) for f in folds for r in f]
    if all(told):
        pairs = [(_subjects(x, metric), _subjects(y, other)) for x, y in zip(folds_a, folds_b, strict=True)]
        interval = _subject_interval([x.assign(sum=x["sum"] - y["sum"]) for x, y in pairs])
    return Comparison(metric, Estimate(mean, half, interval.low, interval.high), values_a.size)


def table(
    records: Sequence[Record],
    *,
    rows: Sequence[str] = ("method", "variant"),
    columns: Sequence[str] = ("regime", "n_way", "n_shot"),
    metrics: Sequence[str] = ("accuracy",),
) -> pd.DataFrame:
    """Records side by side, one cell per `rows` x `columns` x metric, as text like `.73 ± .01 [.66, .79]`.

    Args:
        records: all that belong into the table; those of one cell may differ in fold and seed only.
        rows: fields of a record, or of its episode settings, that name a row.
        columns: fields that name a column.
        metrics: names of metrics; one that a cell's records lack is shown as a dash.

    Returns:
        Columns of text; `attrs["caption"]` says what a reader must know to trust the numbers.

    Raises:
        ResultError: if the records differ in pack, split, number or seed of episodes, folds, or a method's selection.
    """
    records = list(records)
    _refuse_mixtures(records, (*rows, *columns))
    cells: dict[tuple, dict[str, str]] = {}
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        key = tuple(_field(record, name) for name in rows), tuple(_field(record, name) for name in columns)
        groups.setdefault(key, []).append(record)
    for metric in metrics:
        for (row, column), group in sorted(groups.items(), key=lambda item: item[0][1]):
            label = ", ".join([metric, *(f"{name} {value}" for name, value in zip(columns, column, strict=True))])
            has = all(metric in record.metrics for record in group)
            cells.setdefault(row, {})[label] = str(combine(group, metric)) if has else "–"
    ordered = {row: cells[row] for row, _ in groups}
    named = [dict(zip(rows, map(str, row), strict=True)) | values for row, values in ordered.items()]
    labels = list(dict.fromkeys([*rows, *(label for values in cells.values() for label in values)]))
    frame = pd.DataFrame(named, columns=labels).fillna("–")
    frame.attrs["caption"] = _caption(records)
    return frame


def to_markdown(frame: pd.DataFrame) -> str:
    """A table as Markdown, columns aligned, with its caption below; the index is left out."""
    cells = [[str(name) for name in frame.columns], *([str(x) for x in row] for row in frame.itertuples(index=False))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(frame.columns))]
    cells.insert(1, ["-" * width for width in widths])
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    caption = frame.attrs.get("caption")
    return "\n".join(lines) + "\n" + (f"\n{caption}\n" if caption else "")


# --- folds and seeds


def _by_fold(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each fold, folds and seeds in order; refused where pooling them would mix different things."""
    if not records:
        raise ResultError("no record was given", expected="at least one")
    for what in ("dataset", "pack_digest", "method", "variant", "split", "selection"):
        _refuse_two({getattr(record, what) for record in records}, what)
    _refuse_two({_canonical(_without(record.episode, ["digest"])) for record in records}, "episode settings")
    _refuse_two({_canonical(_without(record.config, ["fold", "seed"])) for record in records}, "config")
    runs = sorted((record.fold, record.seed) for record in records)
    if len(set(runs)) < len(runs):
        raise ResultError("a fold and seed occurs twice", expected="each once", where=f"(fold, seed) = {runs}")
    folds = [sorted((r for r in records if r.fold == fold), key=lambda r: r.seed) for fold in dict(runs)]
    _refuse_two({str([record.seed for record in fold]) for fold in folds}, "sets of seeds per fold")
    for fold in folds:
        _refuse_two({_canonical(_answered(record)) for record in fold}, f"episodes within fold {fold[0].fold}")
    return folds


def _answered(record: Record) -> dict[str, Any]:
    """What tells whether two records answered identical episodes."""
    same = {name: getattr(record, name) for name in ("dataset", "pack_digest", "split", "fold", "episode")}
    return same | {name: record.per_subject.get(name) for name in ("subjects", "total")}


def _episodes(fold: Sequence[Record], metric: str) -> np.ndarray:
    """(episode,) mean over the seeds of a fold."""
    for record in fold:
        if metric not in record.per_episode:
            raise ResultError(f"metric {metric} has no values per episode", where=f"record {record.name}")
    return np.mean([record.per_episode[metric] for record in fold], axis=0)


def _subjects(fold: Sequence[Record], metric: str) -> pd.DataFrame:
    """Query subjects of a fold: their sum, averaged over seeds, and number of queries."""
    sums = np.mean([record.per_subject[metric] for record in fold], axis=0)
    return pd.DataFrame({"sum": sums, "total": fold[0].per_subject["total"]}, index=fold[0].per_subject["subjects"])


def _subject_interval(folds: Sequence[pd.DataFrame]) -> metrics.Interval:
    """Over the subjects of all folds; a subject queried in several folds is one subject."""
    subjects = pd.concat(folds).groupby(level=0).sum()
    return metrics.ratio_bootstrap(subjects["sum"], subjects["total"], numpy_generator(0, "subjects of all folds"))


def _without(value: Any, keys: Sequence[str]) -> Any:
    """A setting without the named keys, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


# --- refusals and captions of tables


def _refuse_mixtures(records: Sequence[Record], shown: Iterable[str]) -> None:
    if not records:
        raise ResultError("no record was given for the table", expected="at least one")
    if "dataset" not in shown:
        _refuse_two({record.dataset for record in records}, "datasets")
    for dataset in {record.dataset for record in records}:
        _refuse_two({r.pack_digest for r in records if r.dataset == dataset}, f"pack digests of {dataset}")
        folds: dict[tuple, set[int]] = {}
        for record in (r for r in records if r.dataset == dataset):
            setting = {name: value for name, value in record.episode.items() if name != "digest"}  # it names the clips
            folds.setdefault((record.method, record.variant, _canonical(setting)), set()).add(record.fold)
        _refuse_two({str(sorted(found)) for found in folds.values()}, f"folds of {dataset}")
    for what in ("episodes", "seed"):
        _refuse_two({str(record.episode[what]) for record in records}, f"episode {what}")
    _refuse_two({record.split for record in records}, "splits")
    for method in {record.method for record in records}:
        _refuse_two({r.selection for r in records if r.method == method}, f"selections of {method}")


def _refuse_two(found: set[str], what: str) -> None:
    if len(found) > 1:
        first, second = sorted(found)[:2]
        raise ResultError(
            f"records with different {what} cannot be put together: {first} and {second}",
            remedy="Evaluate them alike, or make separate tables",
        )


def _caption(records: Sequence[Record]) -> str:
    first = records[0]
    datasets = ", ".join(sorted({f"{record.dataset} (pack {record.pack_digest})" for record in records}))
    selections = ", ".join(sorted({f"{record.method}: {record.selection}" for record in records}))
    leaks = {name: max(record.leaks.get(name, 0) for record in records) for name in sorted(first.leaks)}
    audit = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in leaks.items()) or "not made"
    return (
        f"{datasets}, {first.split}; {first.episode['episodes']} episodes per fold (seed {first.episode['seed']}); "
        f"folds {sorted({record.fold for record in records})}, seeds {sorted({record.seed for record in records})}. "
        "Mean ± half width of the 95 % interval over episodes [95 % interval over query subjects]. "
        f"Selection: {selections}. Between splits: {audit}."
    )


def _field(record: Record, name: str) -> Any:
    if name in record.episode:
        return record.episode[name]
    if name not in record.__dataclass_fields__:
        legal = sorted({*record.__dataclass_fields__, *_EPISODE_KEYS})
        raise ResultError(f"{name!r} names no row or column", expected=" or ".join(legal), where="the table")
    return getattr(record, name)


def _short(value: float, digits: int = 2) -> str:
    """Decimals without the zero in front: .73, -.05, 1.20."""
    text = f"{value:.{digits}f}"
    return re.sub(r"^(-?)0\.", r"\1.", text.lstrip("-") if float(text) == 0 else text)


# --- checks and files


def _check_contents(record: Record) -> None:
    def refuse(wrong: bool, what: str, expected: str) -> None:
        if wrong:
            raise ResultError(what, expected=expected, where=f"record {record.name}")

    keys, n_episodes = sorted(set(record.episode) - {"digest"}), record.episode.get("episodes")
    refuse(set(keys) != _EPISODE_KEYS, f"episode has keys {keys}", str(sorted(_EPISODE_KEYS)))
    allowed = record.selection == "none" or record.selection.startswith("meta-validation")
    refuse(not allowed, f"selection {record.selection!r} is not allowed", "'none' or 'meta-validation ...'")
    for metric, entry in record.metrics.items():
        sound = isinstance(entry, dict) and isinstance(entry.get("mean"), int | float) and not set(entry) - _METRIC_KEYS
        refuse(not sound, f"metric {metric} is {entry!r}", f"a number for mean, and keys of {sorted(_METRIC_KEYS)}")
    for metric, values in record.per_episode.items():
        refuse(len(values) != n_episodes, f"metric {metric} has {len(values)} values per episode", str(n_episodes))
    subjects = record.per_subject
    refuse(
        bool(subjects) and not {"subjects", "total"} <= set(subjects), "per_subject is incomplete", "subjects, total"
    )
    refuse(len({len(x) for x in subjects.values()}) > 1, "per_subject has lists of different length", "equal lengths")
    for label, row in record.confusion.items():
        sound = isinstance(row, list) and len(row) == len(record.confusion)
        sound = sound and all(type(n) is int and n >= 0 for n in row)
        refuse(not sound, f"confusion of {label} is {row!r}", f"{len(record.confusion)} counts of 0 or more")


def _plain(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same as JSON would give it back: no tuples, no array scalars, nothing infinite, shared with nobody."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        what = f"a value cannot be written as JSON: {error}"
        raise ResultError(what, expected="finite plain values", where=where) from error


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"record cannot be read: {error}", expected="a JSON file", where=str(path)) from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ResultError("this is not a record", expected=f'"format": "{FORMAT}"', where=str(path))
    version = content.pop("version", None)
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        what = f"record version {version!r} is {'newer than this kit' if newer else 'unknown'}"
        raise ResultError(what, expected=str(VERSION), where=str(path), remedy="Update the kit" if newer else None)
    return content


def _write_aside(path: Path, text: str) -> None:
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _n_shared(values: np.ndarray, splits: Mapping[str, np.ndarray]) -> int:
    """How many values, unknown ones aside, occur in more than one split."""
    found = np.concatenate([np.unique(values[np.asarray(rows, np.int64)]) for rows in splits.values()])
    names, counts = np.unique(found[found != ""], return_counts=True)
    return int((counts > 1).sum())


def _git(*arguments: str) -> str | None:
    """What git says about the folder of this file, or None if it says nothing."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def _unknown_metric(metric: str, record: Record) -> ResultError:
    return ResultError(
        f"metric {metric!r} is unknown", expected=" or ".join(record.metrics) or "none", where=f"record {record.name}"
    )
