"""A first look at data of one's own: a pack enters; the episodes it can give, and a first result, leave."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from stf2m_core import results, seeding
from stf2m_core.baselines.nearest_prototype import NearestPrototype, clip_features
from stf2m_core.config import EpisodeConfig, RunConfig, SplitConfig
from stf2m_core.data.pack import Pack
from stf2m_core.data.synemo import SynEmoConfig, generate
from stf2m_core.episodes import SPLITS, EpisodeSampler, Splits, split_subjects
from stf2m_core.errors import EpisodeError, RunError
from stf2m_core.evaluation import CONTROLS, evaluate, evaluate_control
from stf2m_core.experiment import config_for, record_file, run_folder, train_run
from stf2m_core.metrics import summarise
from stf2m_core.results import Record

_WAYS = (8, 6, 5, 4, 3, 2)
_SHOTS = (("P", 1, 1), ("P", 2, 1), ("D", 1, 2), ("D", 5, 2))
_FEW_SUBJECTS = 3
_EPISODES = 300


def write_example(folder: str | os.PathLike[str]) -> Path:
    """A folder as somebody's own might be: made-up features of two sensors, and a list as a spreadsheet writes it.

    Twenty-four people of six scenarios, four emotions, 384 clips; the signals are those of the synthetic set, so that
    numbers on them show what a method can learn and are no recognition of emotions.

    Args:
        folder: made if absent; its files are written again.
    """
    config = SynEmoConfig.preset("smoke", n_domains=6, n_subjects_per_domain=4, clips_per_class=4, pure=True)
    clips, views = generate(config)
    labels = sorted(set(clips["label"]))[::7][:4]
    rows = np.flatnonzero(clips["label"].isin(labels).to_numpy())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("audio", "visual"):
        _write_archive(folder / f"{name}.npz", views[name], rows)
    listed = clips.iloc[rows][["clip_id", "subject", "group", "domain", "duration_s", "label"]]
    listed = listed.assign(duration_s=listed["duration_s"].map("{:.3f}".format).str.replace(".", ",", regex=False))
    _write(folder / "clips.csv", listed.to_csv(index=False, sep=";", lineterminator="\r\n").encode("utf-8-sig"))
    return folder


def _write_archive(path: Path, views, rows: np.ndarray) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.npz")
    frames = [np.arange(views.offsets[row], views.offsets[row + 1]) for row in rows]
    frame = np.concatenate(frames)
    np.savez(aside, values=views.values[frame], offsets=np.cumsum([0, *map(len, frames)]), times=views.times[frame],
             nodes=np.array(views.nodes), channels=np.array(views.channels))  # fmt: skip
    os.replace(aside, path)


def _write(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)


def first_look(folder: str | os.PathLike[str], table: str = "clips.csv", n_lines: int = 4) -> str:
    """The first lines of the list of clips as they stand in the file; without a list, the names of the first files."""
    folder = Path(folder)
    if not (folder / table).is_file():
        names = sorted(path.name for path in folder.iterdir())
        return f"{len(names)} files and folders: {', '.join(names[:n_lines])}, …"
    with (folder / table).open("rb") as stream:
        lines = [stream.readline().decode("utf-8-sig", "replace").rstrip("\r\n") for _ in range(n_lines)]
    return "\n".join(lines)


def splits_for(n_subjects: int) -> Iterator[SplitConfig]:
    """Splits to try, the one with most people in meta-test first; none for fewer than three people."""
    if n_subjects >= 12:
        yield SplitConfig(n_folds=4, n_val_subjects=3)
    if 9 <= n_subjects < 12:
        yield SplitConfig(n_folds=3, n_val_subjects=3)
    if n_subjects >= 6:
        yield SplitConfig(n_folds=n_subjects // 2, n_val_subjects=2)
    if n_subjects >= _FEW_SUBJECTS:
        yield SplitConfig(n_folds=n_subjects, n_val_subjects=1)


def settings_for(pack: Pack, profile: str = "smoke") -> RunConfig:
    """Settings that the data can give: splits of people, and the episodes that each part of them has.

    Raises:
        EpisodeError: if there is no split with any kind of episode in all its parts.
    """
    n_subjects = pack.clips["subject"].nunique()
    for split in splits_for(n_subjects):
        splits = split_subjects(pack, split)
        kinds = possible_kinds(pack, splits, SPLITS)
        if kinds:
            config = config_for(pack, profile).replace(episodes=[asdict(kind) for kind in kinds])
            return config.replace(**{f"split__{name}": value for name, value in asdict(split).items()})
    raise EpisodeError(
        f"{n_subjects} subjects with {len(pack)} clips of {len(pack.labels)} labels give no episodes in every part",
        expected="at least three people who each show two emotions in two groups, or six people",
        where=str(pack.path),
        remedy="Record more people, or see how far prototypes alone come with `prototypes_alone`",
    )


def possible_kinds(pack: Pack, splits: Splits, parts: Sequence[str]) -> list[EpisodeConfig]:
    """Of each regime and shot the episode with most ways that every part can give; none where there is none."""
    kinds = []
    for regime, n_shot, n_query in _SHOTS:
        ways = [n for n in dict.fromkeys((len(pack.labels), *_WAYS)) if n <= min(len(pack.labels), _WAYS[0])]
        tried = (EpisodeConfig(regime=regime, n_way=n, n_shot=n_shot, n_query=n_query) for n in ways)
        kinds += [kind for kind in tried if all(_gives(pack, splits, part, kind) for part in parts)][:1]
    return kinds


def _gives(pack: Pack, splits: Splits, part: str, kind: EpisodeConfig) -> bool:
    try:
        EpisodeSampler(pack, splits, part, kind, 0).sample(0, 8)
    except EpisodeError:
        return False
    return True


def first_records(pack: Pack, out: str | os.PathLike[str], profile: str = "smoke", *, progress_bar: bool = True,
                  train: bool = True) -> list[Record]:  # fmt: skip
    """A short training on the first fold, and the controls on the very same episodes of people never met.

    Args:
        pack: the data.
        out: the results folder.
        profile: size of the training.
        progress_bar: on standard error.
        train: False: the controls alone.

    The records are also written to results/records/<data set>.

    Raises:
        EpisodeError: if the data cannot give episodes, see `settings_for`.
    """
    config = settings_for(pack, profile)
    if train:
        train_run(pack, config, out, progress_bar=progress_bar)
    records = []
    for kind in config.episodes:
        records += [evaluate_control(name, pack, config, kind) for name in CONTROLS]
        if train:
            records.append(evaluate(run_folder(out, pack, config, "full"), pack, kind))
    for record in records:
        record.to_json(record_file(out, record))
    return records


def first_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per method, one column per kind of episode, chance in the last row.

    Raises:
        RunError: if there are no records.
    """
    if not records:
        raise RunError("there are no records", expected="some, from first_records")
    cells: dict[str, dict[str, str]] = {}
    for record in records:
        title = EpisodeConfig(**{n: record.episode[n] for n in EpisodeConfig.__dataclass_fields__}).title
        cells.setdefault(record.method, {})[title] = str(results.combine([record], "accuracy"))
        cells.setdefault("chance", {})[title] = f"{1 / record.episode['n_way']:.2f}".lstrip("0")
    table = pd.DataFrame(cells).T
    return table.loc[[*(name for name in table.index if name != "chance"), "chance"]].rename_axis("method")


def first_result(
    pack: Pack, out: str | os.PathLike[str], profile: str = "smoke", *, progress_bar: bool = True
) -> pd.DataFrame:
    """A first table of the data: of new people after a short training, or, of one or two people, prototypes alone.

    Args:
        pack: the data.
        out: the results folder.
        profile: size of the training.
        progress_bar: on standard error.

    Raises:
        EpisodeError: if the data give no episodes.
    """
    if pack.clips["subject"].nunique() < _FEW_SUBJECTS:
        return prototypes_alone(pack)
    return first_table(first_records(pack, out, profile, progress_bar=progress_bar))


def episode_table(pack: Pack) -> pd.DataFrame:
    """One row per part of the first fold: people, clips and the episodes that it can give."""
    n_subjects = pack.clips["subject"].nunique()
    if n_subjects < _FEW_SUBJECTS:
        splits, parts = _all_clips(pack), ("meta_test",)
    else:
        splits, parts = split_subjects(pack, settings_for(pack).split), SPLITS
    rows = []
    for part in parts:
        titles = ", ".join(kind.title for kind in possible_kinds(pack, splits, [part]))
        name = "all clips" if len(parts) == 1 else part.replace("_", "-")
        rows.append({"part": name, "people": len(splits.subjects[part]), "clips": len(splits.rows[part]),
                     "episodes": titles or "none"})  # fmt: skip
    return pd.DataFrame(rows)


def prototypes_alone(pack: Pack, n_episodes: int = _EPISODES) -> pd.DataFrame:
    """Nearest prototypes on episodes of all clips, for data with too few people to hold any out.

    Features are scaled by all clips; labels are looked at only in the support. With one person there is no interval
    over people, and nothing is said of anybody else.

    Raises:
        EpisodeError: if the data give no episode at all.
    """
    splits = _all_clips(pack)
    every = splits.rows["meta_test"]
    kinds = possible_kinds(pack, splits, ("meta_test",))
    if not kinds:
        raise EpisodeError(f"{len(pack)} clips give no episodes", expected="two emotions in two groups of one person",
                           where=str(pack.path))  # fmt: skip
    rows = []
    for kind in kinds:
        batch = EpisodeSampler(pack, splits, "meta_test", kind, 0).sample(0, n_episodes)
        row: dict[str, str] = {"episodes": kind.title}
        for name in pack.modalities:
            control = NearestPrototype().fit(clip_features(pack, [name]), pack.label_ids, every, every)
            row[name] = _accuracy(pack, batch, control.log_probabilities(batch))
        rows.append(row | {"chance": f"{1 / kind.n_way:.2f}".lstrip("0")})
    return pd.DataFrame(rows).set_index("episodes")


def _all_clips(pack: Pack) -> Splits:
    """Every part is everything: only for methods that learn nothing."""
    every = np.flatnonzero(pack.label_ids >= 0)
    people = tuple(sorted(set(pack.clips["subject"])))
    labels = np.arange(len(pack.labels))
    return Splits(dict.fromkeys(SPLITS, every), dict.fromkeys(SPLITS, labels), dict.fromkeys(SPLITS, people))


def _accuracy(pack: Pack, batch, said) -> str:
    subject = pack.clips["subject"].to_numpy(str)[batch.query.numpy()]
    summary = summarise(said, batch.query_label, batch.classes, subject, n_labels=len(pack.labels), pool_f1=False,
                        rng=seeding.numpy_generator(0, "bootstrap"))  # fmt: skip
    found = summary.metrics["accuracy"]
    return f"{found['mean']:.2f} ± {found['ci95']:.2f}".replace("0.", ".")
