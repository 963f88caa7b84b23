"""Meta-splits and episodes of emotion tasks, as index tensors; drawn vectorised, each a pure function of its number.

Episode i of a stream depends on (seed, split, i) alone: not on batch sizes, on workers or on what was drawn before.
Source of the regimes: METHOD, 'Episodes'.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stf2m_core import seeding
from stf2m_core.config import EpisodeConfig, SplitConfig
from stf2m_core.data.pack import Pack
from stf2m_core.errors import EpisodeError
from stf2m_core.shapes import EpisodeBatch

SPLITS = ("meta_train", "meta_val", "meta_test")
TRIES = 50
MORE_TRIES = 2000
"""At the draw: an episode of rare classes that was found once in 64 x 50 tries must not end a training half-way."""


@dataclass(frozen=True)
class Splits:
    """Rows and labels of each meta-split.

    Attributes:
        rows: split -> (clip,) int64 rows of clips.csv, with a defined label of that split.
        labels: split -> (label,) int64 labels that its episodes use.
        subjects: split -> names.
    """

    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    subjects: dict[str, tuple[str, ...]]


def split_subjects(pack: Pack, config: SplitConfig) -> Splits:
    """Blocks of neighbouring subjects: block `fold` is meta-test, the subjects after it meta-validation.

    Neighbours stay together so that a data set that numbers its subjects by domain gets new domains at meta-test.

    Args:
        pack: the data.
        config: folds, and held-out labels for Regime C.

    Raises:
        EpisodeError: if there are too few subjects or labels; both counts are named.
    """
    names = pack.clips["subject"].to_numpy(str)
    subjects = np.unique(names)
    need = max(config.n_folds, config.n_val_subjects + 2)
    if len(subjects) < need:
        raise EpisodeError(f"{len(subjects)} subjects", expected=f"at least {need} for {config.n_folds} folds and "
                           f"{config.n_val_subjects} validation subjects", where=str(pack.path))  # fmt: skip
    edges = np.linspace(0, len(subjects), config.n_folds + 1).round().astype(int)
    order = np.roll(subjects, -edges[config.fold])
    n_test = edges[config.fold + 1] - edges[config.fold]
    n_train = len(subjects) - n_test - config.n_val_subjects
    if n_train < 1:
        raise EpisodeError(f"{n_train} subjects left for meta-train", expected="at least 1", where=str(pack.path))
    chosen = {
        "meta_test": order[:n_test],
        "meta_val": order[n_test : n_test + config.n_val_subjects],
        "meta_train": order[n_test + config.n_val_subjects :],
    }
    labels = _split_labels(pack, config)
    label = pack.label_ids
    rows = {
        split: np.flatnonzero(np.isin(names, chosen[split]) & np.isin(label, labels[split]) & (label >= 0))
        for split in SPLITS
    }
    _refuse_shared_groups(pack, names, chosen)
    return Splits(rows, labels, {split: tuple(sorted(chosen[split])) for split in SPLITS})


def _refuse_shared_groups(pack: Pack, names: np.ndarray, chosen: dict[str, np.ndarray]) -> None:
    pairs = pd.DataFrame({"group": pack.clips["group"].to_numpy(str), "split": ""})
    for split in SPLITS:
        pairs.loc[np.isin(names, chosen[split]), "split"] = split
    n_splits = pairs.drop_duplicates().groupby("group").size()
    if (n_splits > 1).any():
        group = n_splits.index[n_splits > 1][0]
        both = " and ".join(sorted(set(pairs.loc[pairs["group"] == group, "split"])))
        raise EpisodeError(f"group {group!r} has subjects in {both}", expected="a group in one meta-split only",
                           where=str(pack.path), remedy="Choose folds that keep its subjects together")  # fmt: skip


def _split_labels(pack: Pack, config: SplitConfig) -> dict[str, np.ndarray]:
    every = np.arange(len(pack.labels))
    if config.n_test_labels == 0:
        return dict.fromkeys(SPLITS, every)
    held_out = config.n_test_labels + config.n_val_labels
    if held_out + 2 > len(every):
        raise EpisodeError(f"{held_out} held-out labels of {len(every)}", expected="at least 2 left for meta-train",
                           where=str(pack.path))  # fmt: skip
    order = np.argsort(seeding.uniform(config.label_seed, "held-out labels", every))
    test, val, train = np.split(order, [config.n_test_labels, held_out])
    return {"meta_test": np.sort(test), "meta_val": np.sort(val), "meta_train": np.sort(train)}


class EpisodeSampler:
    """Draws the episodes of one kind from one meta-split.

    Args:
        pack: the data.
        splits: from `split_subjects`.
        split: meta_train, meta_val or meta_test.
        config: regime, way, shot, query.
        seed: of the stream.

    Raises:
        EpisodeError: at construction, if no episode of this kind exists; what there is and what is needed are named.
    """

    def __init__(self, pack: Pack, splits: Splits, split: str, config: EpisodeConfig, seed: int):
        self.config, self.split, self.seed = config, split, seed
        self.where = f"{split} of {pack.path}"
        self.rows = splits.rows[split]
        clips = pack.clips.iloc[self.rows]
        self.classes = splits.labels[split]
        self.label = np.searchsorted(self.classes, pack.label_ids[self.rows])
        self.subjects, self.subject = np.unique(clips["subject"].to_numpy(str), return_inverse=True)
        groups = clips["group"].to_numpy(str)
        if config.regime == "P":  # a dialogue of two people is two groups here: each gives clips of one person
            groups = np.char.add(np.char.add(clips["subject"].to_numpy(str), "\n"), groups)
        _, self.group = np.unique(groups, return_inverse=True)
        owners = pd.DataFrame({"group": self.group, "subject": self.subject}).drop_duplicates()
        self.groups_span_subjects = bool(owners["group"].duplicated().any())
        self.domains, self.domain = np.unique(clips["domain"].to_numpy(str), return_inverse=True)
        self._check_classes()
        self.units = self._personal_units() if config.regime == "P" else self._domain_units()

    def _stream(self, purpose: str) -> str:
        return f"episodes/{self.split}/{self.config.title}/{self.config.n_query}/{purpose}"

    def _uniform(self, purpose: str, *counters: np.ndarray | int) -> np.ndarray:
        return seeding.uniform(self.seed, self._stream(purpose), *counters)

    def _check_classes(self) -> None:
        n_way, found = self.config.n_way, len(self.classes)
        if found < n_way:
            raise EpisodeError(f"{found} classes", expected=f"at least {n_way} for {n_way}-way episodes",
                               where=self.where, remedy="Lower n_way or hold out fewer labels")  # fmt: skip

    def _counts(self, owner: np.ndarray, n_owners: int) -> np.ndarray:
        """(owner, class) int64 clips."""
        counts = np.zeros((n_owners, len(self.classes)), np.int64)
        np.add.at(counts, (owner, self.label), 1)
        return counts

    def _needs(self) -> tuple[int, int]:
        """Support and (balanced) query clips needed per class; a natural query needs one class-free total instead."""
        return self.config.n_shot, self.config.n_query if self.config.query_prior == "balanced" else 0

    def _personal_units(self) -> np.ndarray:
        """(unit, 2) subject and the group that gives its support; only those from which an episode can be drawn."""
        counts = self._counts(self.group, self.group.max() + 1)
        owner = np.zeros(len(counts), np.int64)
        owner[self.group] = self.subject
        total = self._counts(self.subject, len(self.subjects))[owner]
        need_support, need_query = self._needs()
        able = (counts >= need_support) & (total - counts >= need_query)
        feasible = able.sum(1)
        units = np.flatnonzero((feasible >= self.config.n_way) & self._enough_queries(total - counts, able))
        if len(units) == 0:
            best = int(feasible.max(initial=0))
            raise EpisodeError(
                f"{best} classes have {need_support} support clips in one group and {need_query} query clips in other "
                "groups of the same subject", expected=f"{self.config.n_way} for {self.config.title} episodes",
                where=self.where, remedy="Lower n_way, n_shot or n_query",
            )  # fmt: skip
        return np.stack([owner[units], units], 1)

    def _domain_units(self) -> np.ndarray:
        """(unit,) domains with subjects enough for two sides, weighted at the draw by the root of their clips."""
        n_subjects = np.array([len(np.unique(self.subject[self.domain == d])) for d in range(len(self.domains))])
        units = np.flatnonzero(n_subjects >= 2)
        if len(units) == 0:
            raise EpisodeError(f"{int(n_subjects.max(initial=0))} subject in the largest domain",
                               expected="at least 2: support and query come from different subjects",
                               where=self.where, remedy="Use Regime P or other splits")  # fmt: skip
        self._feasible_sides(np.arange(64), units, TRIES)  # raises when one of 64 episodes is not found in 50 tries
        return units

    def sample(self, first: int, n_episodes: int, chunk: int = 64) -> EpisodeBatch:
        """Episodes `first` to `first + n_episodes - 1` of the stream.

        Raises:
            EpisodeError: if an episode stays infeasible after 2000 tries, with the counts.
        """
        starts = range(first, first + n_episodes, chunk)
        parts = [self._sample(np.arange(s, min(s + chunk, first + n_episodes))) for s in starts]
        own = torch.full((n_episodes,), self.config.regime == "P")
        return EpisodeBatch(*(torch.from_numpy(np.concatenate(columns)) for columns in zip(*parts, strict=True)), own)

    def _sample(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        side = (
            self._personal_sides(ids)
            if self.config.regime == "P"
            else self._feasible_sides(ids, self.units, MORE_TRIES)
        )
        classes = self._draw_classes(ids, side)
        support = self._draw(ids, classes, side == 1, self.config.n_shot, "support")
        if self.config.query_prior == "balanced":
            query = self._draw(ids, classes, side == 2, self.config.n_query, "query")
            query_label = np.broadcast_to(np.arange(classes.shape[1])[:, None], query.shape[1:]).reshape(1, -1)
            query_label = np.repeat(query_label, len(ids), 0)
            order = np.argsort(self._uniform("query order", ids[:, None], np.arange(query_label.shape[1])), 1)
            query = np.take_along_axis(query.reshape(len(ids), -1), order, 1)
            query_label = np.take_along_axis(query_label, order, 1)
        else:
            query, query_label = self._draw_natural(ids, classes, side == 2)
        return ids, self.classes[classes], self.rows[support], self.rows[query], query_label

    def _personal_sides(self, ids: np.ndarray) -> np.ndarray:
        """(episode, clip) 1 support side, 2 query side, 0 neither."""
        unit = self.units[(self._uniform("unit", ids) * len(self.units)).astype(np.int64)]
        own = self.subject == unit[:, :1]
        return np.where(own, np.where(self.group == unit[:, 1:], 1, 2), 0)

    def _feasible_sides(self, ids: np.ndarray, units: np.ndarray, tries: int) -> np.ndarray:
        """One bipartition of a domain's subjects per episode, drawn again until the classes suffice."""
        side = np.zeros((len(ids), len(self.rows)), np.int64)
        open_ = np.arange(len(ids))
        best = 0
        for attempt in range(tries):
            side[open_] = self._sides(ids[open_], units, attempt)
            n_feasible = self._feasible(side[open_]).sum(1)
            best = max(best, int(n_feasible.max(initial=0)))
            open_ = open_[n_feasible < self.config.n_way]
            if len(open_) == 0:
                return side
        need_support, need_query = self._needs()
        raise EpisodeError(
            f"at most {best} classes have {need_support} support and {need_query} query clips from different subjects "
            f"after {tries} draws", expected=f"{self.config.n_way} for {self.config.title} episodes", where=self.where,
            remedy="Lower n_way, n_shot or n_query",
        )  # fmt: skip

    def _sides(self, ids: np.ndarray, units: np.ndarray, attempt: int) -> np.ndarray:
        weight = np.sqrt(np.bincount(self.domain, minlength=len(self.domains))[units])
        edges = np.cumsum(weight) / weight.sum()
        domain = units[np.minimum(np.searchsorted(edges, self._uniform("domain", ids, attempt)), len(units) - 1)]
        draw = self._uniform("bipartition", ids[:, None], np.arange(len(self.subjects)), attempt)
        here = np.zeros((len(self.domains), len(self.subjects)), bool)
        here[self.domain, self.subject] = True
        rank = np.argsort(np.argsort(np.where(here[domain], draw, 2.0), 1), 1)
        n_here = here[domain].sum(1)
        # between one subject and all but one on the support side, near the middle more often
        n_support = 1 + ((n_here - 1) * self._uniform("sizes", ids[:, None], attempt, np.arange(3)).mean(1)).astype(int)
        side = np.where(rank < n_support[:, None], 1, 2)[:, self.subject]
        side = np.where(here[domain][:, self.subject] & (self.domain == domain[:, None]), side, 0)
        return self._without_shared_groups(side) if self.groups_span_subjects else side

    def _without_shared_groups(self, side: np.ndarray) -> np.ndarray:
        """A group that gives support gives no query."""
        gives = np.zeros((len(side), self.group.max() + 1), bool)
        episode, clip = np.nonzero(side == 1)
        gives[episode, self.group[clip]] = True
        return np.where((side == 2) & gives[:, self.group], 0, side)

    def _feasible(self, side: np.ndarray) -> np.ndarray:
        """(episode, class) bool."""
        member = np.eye(len(self.classes), dtype=np.int64)[self.label]
        need_support, need_query = self._needs()
        n_support, n_query = (side == 1) @ member, (side == 2) @ member
        able = (n_support >= need_support) & (n_query >= need_query)
        return able & self._enough_queries(n_query, able)[:, None]

    def _enough_queries(self, n_query: np.ndarray, able: np.ndarray) -> np.ndarray:
        """Whether any n_way of the able classes (side, class) hold the queries of an episode: the smallest do."""
        fewest = np.sort(np.where(able, n_query, np.iinfo(np.int64).max // 1024), 1)[:, : self.config.n_way]
        return fewest.sum(1) >= self.config.n_query * self.config.n_way

    def _draw_classes(self, ids: np.ndarray, side: np.ndarray) -> np.ndarray:
        """(episode, way) distinct feasible classes in random order."""
        key = self._uniform("classes", ids[:, None], np.arange(len(self.classes)))
        return np.argsort(np.where(self._feasible(side), key, 2.0), 1, kind="stable")[:, : self.config.n_way]

    def _draw(self, ids: np.ndarray, classes: np.ndarray, side: np.ndarray, n: int, purpose: str) -> np.ndarray:
        """(episode, way, n) positions of clips of each class, without replacement, in random order."""
        key = self._uniform(purpose, ids[:, None], self.rows)
        eligible = side[:, None] & (self.label == classes[..., None])
        order = np.argsort(np.where(eligible, key[:, None], 2.0), -1, kind="stable")
        return order[..., :n]

    def _draw_natural(self, ids: np.ndarray, classes: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """n_way * n_query clips of any class of the episode, as they come."""
        local = (self.label == classes[..., None]) & side[:, None]
        key = np.where(local.any(1), self._uniform("query", ids[:, None], self.rows), 2.0)
        n = self.config.n_query * self.config.n_way
        if (local.any(1).sum(1) < n).any():
            raise EpisodeError(f"{int(local.any(1).sum(1).min())} query clips of an episode's classes",
                               expected=f"at least {n}", where=self.where, remedy="Lower n_query")  # fmt: skip
        query = np.argsort(key, 1, kind="stable")[:, :n]
        label = np.take_along_axis(local.argmax(1), query, 1)
        return query, label


def save_episodes(path: str | os.PathLike[str], batch: EpisodeBatch, pack: Pack, config: EpisodeConfig) -> Path:
    """Write an episode list, by clip id, so that another model can answer the very same episodes."""
    ids = pack.clips["clip_id"].to_numpy(str)
    content = {
        "format": "stf2m-episodes", "version": 1, "pack_digest": pack.digest, "episode": asdict(config),
        "ids": batch.ids.tolist(), "classes": [[pack.labels[c] for c in row] for row in batch.classes.tolist()],
        "support": ids[batch.support.numpy()].tolist(), "query": ids[batch.query.numpy()].tolist(),
        "query_label": batch.query_label.tolist(), "own": batch.own.tolist(),
    }  # fmt: skip
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content))
    os.replace(aside, path)
    return path


def load_episodes(path: str | os.PathLike[str], pack: Pack) -> EpisodeBatch:
    """Read an episode list.

    Raises:
        EpisodeError: if it is no episode list, was drawn from another pack, or names clips the pack lacks.
    """
    try:
        content = json.loads(Path(path).read_text())
        found = content.get("format"), content.get("version")
    except FileNotFoundError as error:
        raise EpisodeError("no such file", expected="an episode list", where=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise EpisodeError(f"not readable as JSON: {error}", expected="an episode list", where=str(path)) from error
    if found != ("stf2m-episodes", 1):
        what = f"format {found[0]} version {found[1]}"
        raise EpisodeError(what, expected="stf2m-episodes version 1", where=str(path))
    missing = {"pack_digest", "ids", "classes", "support", "query", "query_label", "own"} - set(content)
    if missing:
        raise EpisodeError(f"no {', '.join(sorted(missing))}", expected="what save_episodes wrote", where=str(path))
    if content["pack_digest"] != pack.digest:
        raise EpisodeError(f"drawn from pack {content['pack_digest']}", expected=f"pack {pack.digest}", where=str(path))
    lists = [content[name] for name in ("ids", "classes", "support", "query", "query_label")]
    row = {clip: i for i, clip in enumerate(pack.clips["clip_id"])}
    label = {name: i for i, name in enumerate(pack.labels)}
    tables = (None, label, row, row, None)
    try:
        tensors = [
            torch.tensor(_looked_up(names, table, path), dtype=torch.int64)
            for names, table in zip(lists, tables, strict=True)
        ]
        own = torch.tensor(content["own"], dtype=torch.bool)
    except (TypeError, ValueError) as error:
        raise EpisodeError(f"ragged or not numbers: {error}", expected="rectangular lists", where=str(path)) from error
    batch = EpisodeBatch(*tensors, own)
    _check_shapes(batch, path)
    return batch


def _looked_up(names: object, table: dict[str, int] | None, path: str | os.PathLike[str]) -> object:
    if table is None:
        return names
    if isinstance(names, list):
        return [_looked_up(name, table, path) for name in names]
    if names not in table:
        raise EpisodeError(f"unknown name {names!r}", expected="a clip or label of the pack", where=str(path))
    return table[names]


def _check_shapes(batch: EpisodeBatch, path: str | os.PathLike[str]) -> None:
    n = batch.ids.shape[0] if batch.ids.dim() == 1 else -1
    shapes = [tuple(getattr(batch, name).shape) for name in ("classes", "support", "query", "query_label")]
    good = [len(shape) == dims and shape[0] == n for shape, dims in zip(shapes, (2, 3, 2, 2), strict=True)]
    if not all(good) or shapes[0][1] != shapes[1][1] or shapes[2] != shapes[3]:
        raise EpisodeError(f"shapes {shapes} for {n} episodes", where=str(path), expected="(episode, way), "
                           "(episode, way, shot), (episode, query), (episode, query)")  # fmt: skip
    if batch.own.shape != (n,):
        raise EpisodeError(f"own of shape {tuple(batch.own.shape)}", expected=f"({n},)", where=str(path))
    low, high = int(batch.query_label.min()), int(batch.query_label.max())
    if low < 0 or high >= shapes[0][1]:
        raise EpisodeError(f"query labels from {low} to {high}", expected=f"0 to {shapes[0][1] - 1}", where=str(path))
