"""Votes through the whole path: a model is meta-trained on votes, one on hard labels; both are asked about new people.

Votes on clips enter; answers to the same episodes, and how near they are to what raters said, leave. A clip is what
other raters said of its voice and of its face; its soft label is what a third group said who had both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from stf2m_core import experiment, metrics, seeding, soft_metrics
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.adapters.crema_d_votes import EMOTIONS, voted_clips
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import Pack, open_pack, write_pack
from stf2m_core.data.synthetic_votes import synthetic_votes
from stf2m_core.episodes import EpisodeSampler, Splits
from stf2m_core.evaluation import CONTROLS, answer, calibrated_nll, clip_features
from stf2m_core.model.st_f2m import episode_targets
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import Run, load_model

LABELS = ("votes", "hard labels")
"""What is learned from: the shares of the votes, or the leading emotion alone, where there is one."""
READINGS = {"adapted": "ST-F2M", "zero_step": "ST-F2M, zero steps", "prototype": "ST-F2M, prototypes only",
            "no_support": "ST-F2M, no support"}  # fmt: skip
HARD, SOFTENED = "ST-F2M, hard labels", "ST-F2M, hard labels, softened"
CONTROL, REGRESSION = "nearest prototype, softened", "softmax regression on votes"
SETTING = EpisodeConfig(regime="D", n_way=6, n_shot=5, n_query=5)
"""All six emotions, five clips of each by other people; the classes of clips are their hard labels."""
KINDS = tuple(EpisodeConfig(regime="D", n_way=6, n_shot=k, n_query=q) for k, q in ((5, 3), (1, 4)))
CHANGES = {"split__n_val_subjects": 8, "views__normalise": "global", "inner__rate": 0.01, "train__lr": 3e-3,
           "train__level_noise": 0.0, "train__view_drop": 0.0, "train__validate_every": 20,
           "train__validation_episodes": 40}  # fmt: skip
"""Of the settings; learning rate and noise were chosen on meta-validation of the first fold, with votes."""
SIZES = {
    "test": ({"train__validate_every": 2, "train__validation_episodes": 2}, 1, 8),
    "smoke": ({"train__max_steps": 100}, 1, 100),
    "standard": ({"train__max_steps": 200}, 4, 300),
    "paper": ({"train__max_steps": 1000}, 4, 600),
}
"""Profile -> settings, folds and episodes of meta-test per fold."""


def packs(source: str, folder: str | os.PathLike[str]) -> dict[str, Pack]:
    """The same clips with votes and with hard labels alone: what is learned from -> pack.

    Args:
        source: folder of the CREMA-D votes; "": made-up votes with a known law.
        folder: where the packs are made anew.
    """
    found = {}
    for labels, soft in zip(LABELS, (True, False), strict=True):
        path = Path(folder) / labels.replace(" ", "-")
        if source:
            import_dataset("crema_d_votes", source=source, out=path, overwrite=True, soft=soft)
        else:
            clips, views = voted_clips(synthetic_votes(40, 30), soft=soft)
            write_pack(path, clips, views, EMOTIONS, name="made_up_votes", title="Votes made up", overwrite=True)
        found[labels] = open_pack(path)
    return found


def config(profile: str, fold: int, seed: int = 0) -> RunConfig:
    """Settings of a run; those for votes and for hard labels are the same."""
    kinds = [asdict(kind) for kind in KINDS]
    settings = RunConfig.preset(profile).replace(episodes=kinds, **CHANGES)
    return settings.replace(**SIZES[profile][0], split__fold=fold, train__seed=seed)


@dataclass(frozen=True)
class Asked:
    """What was said of the same queries.

    Attributes:
        said: method -> (episode, query, way) log-probabilities.
        soft: (episode, query, way) shares of the votes within the episode.
        weight: (episode, query) how much each query counts.
        label: (episode, query) the hard label.
        subject: (episode, query) whose clip it is.
        tied: share of the clips of meta-test's people that have no hard label.
        n_clips: of these people.
        runs: what was learned from -> run.
    """

    said: dict[str, Tensor]
    soft: Tensor
    weight: Tensor
    label: Tensor
    subject: np.ndarray
    tied: float
    n_clips: int
    runs: dict[str, Run]


def asked(
    data: Mapping[str, Pack], folder: str | os.PathLike[str], profile: str, *, fold: int = 0, seed: int = 0,
    setting: EpisodeConfig = SETTING,
) -> Asked:  # fmt: skip
    """Train on votes and on hard labels, or read both runs from disk, and ask both, and controls, about new people.

    Args:
        data: from `packs`.
        folder: where runs lie.
        profile: of the runs.
        fold: block of people that are new.
        seed: of the training; the episodes are always the same.
        setting: of the meta-test.
    """
    soft_pack, settings = data[LABELS[0]], config(profile, fold, seed)
    runs, said = {}, {}
    for labels, pack in data.items():
        place = experiment.run_folder(folder, pack, settings, labels.replace(" ", "-"))
        runs[labels] = experiment.train(pack, settings, place)
        model, views, splits = load_model(runs[labels].path, pack)
        test, validation = _episodes(soft_pack, splits, setting, profile)
        found = answer(model, views, test)
        if labels == LABELS[0]:
            said |= {title: getattr(found, reading).cpu() for reading, title in READINGS.items()}
        else:
            said[HARD] = found.adapted.cpu()
            said[SOFTENED] = _softened(found.adapted, answer(model, views, validation).adapted, validation, soft_pack)
    said[CONTROL] = _control(soft_pack, splits, settings, test, validation)
    said[REGRESSION] = _regression(soft_pack, splits, test)
    soft, weight = episode_targets(torch.from_numpy(soft_pack.soft_labels.copy()), test.query, test.classes)
    people = soft_pack.clips["subject"].to_numpy(str)
    own = np.isin(people, splits.subjects["meta_test"])
    tied = soft_metrics.tied(soft_pack.soft_labels[own])
    return Asked(said, soft, weight, test.query_label, people[test.query.numpy()], float(tied.mean()), int(own.sum()),
                 runs)  # fmt: skip


def _episodes(pack: Pack, splits: Splits, setting: EpisodeConfig, profile: str) -> tuple[EpisodeBatch, EpisodeBatch]:
    """Of meta-test, and of meta-validation for temperatures."""
    size = SIZES[profile][2]
    sides = {"meta_test": size, "meta_val": min(size, 60)}
    return tuple(EpisodeSampler(pack, splits, split, setting, 0).sample(0, n) for split, n in sides.items())


def _softened(said: Tensor, known: Tensor, validation: EpisodeBatch, pack: Pack) -> Tensor:
    """At the temperature with which the answers to meta-validation come nearest to the votes."""
    soft = episode_targets(torch.from_numpy(pack.soft_labels.copy()), validation.query, validation.classes)
    temperature = calibrated_nll(known.cpu(), validation.query_label, soft)[1]
    return torch.log_softmax(said.cpu() / temperature, -1)


def _control(
    pack: Pack, splits: Splits, settings: RunConfig, test: EpisodeBatch, validation: EpisodeBatch
) -> Tensor:  # fmt: skip
    features = clip_features(pack, settings.views.modalities or None)
    control = CONTROLS["nearest-prototype"]().fit(features, pack.label_ids, splits.rows["meta_train"], ())
    return _softened(*(control.log_probabilities(batch) for batch in (test, validation)), validation, pack)


def _regression(pack: Pack, splits: Splits, test: EpisodeBatch) -> Tensor:
    """Softmax regression of the votes of meta-train's people on the shares of voice and face, without any support.

    Clips weigh so that all hard labels together weigh the same, as in the episodes.
    """
    values = clip_features(pack, None).values
    rows = splits.rows["meta_train"]
    weight = pack.soft_labels[rows] / np.bincount(pack.label_ids[rows])[pack.label_ids[rows], None]
    clip, emotion = np.nonzero(weight)
    scale = len(rows) / weight.sum()
    model = LogisticRegression(max_iter=3000)
    model.fit(values[rows][clip], emotion, sample_weight=scale * weight[clip, emotion])
    queries = values[test.query.flatten().numpy()]
    said = torch.from_numpy(model.predict_log_proba(queries)).unflatten(0, test.query.shape)
    inside = said.gather(2, test.classes[:, None].expand(-1, said.shape[1], -1))
    return torch.log_softmax(inside, -1)


def all_asked(
    data: Mapping[str, Pack], folder: str | os.PathLike[str], profile: str, *, seed: int = 0,
    setting: EpisodeConfig = SETTING,
) -> Asked:  # fmt: skip
    """`asked` of every fold of the profile, put together: every person is new in one of them in the larger profiles."""
    parts = [asked(data, folder, profile, fold=f, seed=seed, setting=setting) for f in range(SIZES[profile][1])]
    n_clips = sum(part.n_clips for part in parts)
    return Asked(
        {name: torch.cat([part.said[name] for part in parts]) for name in parts[0].said},
        torch.cat([part.soft for part in parts]),
        torch.cat([part.weight for part in parts]),
        torch.cat([part.label for part in parts]),
        np.concatenate([part.subject for part in parts]),
        sum(part.tied * part.n_clips for part in parts) / n_clips,
        n_clips,
        parts[0].runs,
    )


# --- what it comes to

SCORES = {"kl_soft": "KL, nat", "js_soft": "JS, nat", "brier_soft": "Brier", "ece_soft": "ECE",
          "entropy_correlation": "entropy correlation"}  # fmt: skip


def scores(one: Asked, *, n_replicates: int = 1000) -> list[dict[str, object]]:
    """Every soft metric of every method: {"method", "setting" (the metric), "mean", "ci95", "subject_low", ...}."""
    rows = []
    for method, said in one.said.items():
        found = soft_metrics.summarise(said, one.soft, one.weight, one.subject, n_replicates=n_replicates,
                                       rng=seeding.numpy_generator(0, "raters in episodes"))  # fmt: skip
        rows += [{"method": method, "setting": title} | found.metrics[name] for name, title in SCORES.items()]
        hits = (said.argmax(-1) == one.label).double().numpy()
        mean, low, high = _over_people(hits, one.subject)
        rows.append({"method": method, "setting": "accuracy", "mean": mean, "ci95": None, "subject_low": low,
                     "subject_high": high})  # fmt: skip
    return rows


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """`scores` in words; brackets are 95 % intervals over people.

    ECE has none: its bins hold absolute gaps, so people drawn again with replacement make it larger, not as large.
    """
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        ends = (row["mean"], None if row["setting"] == SCORES["ece_soft"] else row["subject_low"], row["subject_high"])
        text = f"{ends[0]:.3f}" + (f" [{ends[1]:.3f}, {ends[2]:.3f}]" if ends[1] is not None else "")
        cells.setdefault(str(row["method"]), {})[str(row["setting"])] = text.replace("-", "−")
    return pd.DataFrame([{"method": name} | row for name, row in cells.items()])


def score_of(rows: list[dict[str, object]], score: str = "KL, nat") -> list[dict[str, object]]:
    """One score of every method, as `figures.results` takes it."""
    return [row | {"setting": SETTING.title} for row in rows if row["setting"] == score]


def clip_table(one: Asked) -> pd.DataFrame:
    """Clips of the people asked about, and how many of them have no hard label and so stand in no episode."""
    facts = {"people": len(np.unique(one.subject)), "their clips": one.n_clips,
             "of which tied, in no episode": f"{one.tied:.1%}", "queries": one.label.numel(),
             "raters' own entropy, nat": f"{soft_metrics.entropy(one.soft.numpy()).mean():.3f}"}  # fmt: skip
    return pd.DataFrame([facts])


def gap_table(one: Asked) -> pd.DataFrame:
    """How much farther from the votes each method is than ST-F2M that learned from votes, on the same queries."""
    rows, best = [], metrics.divergence(one.said[READINGS["adapted"]], one.soft)
    for method, said in one.said.items():
        if method != READINGS["adapted"]:
            mean, low, high = _over_people(metrics.divergence(said, one.soft) - best, one.subject)
            text = f"{mean:.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
            rows.append({"method": method, "KL minus that of ST-F2M on votes, nat [95 % over people]": text})
    return pd.DataFrame(rows)


def said_and_chosen(one: Asked) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What was learned from -> (shares said, shares chosen) of every emotion of every query."""
    chosen = one.soft.double().numpy().ravel()
    pairs = dict(zip(LABELS, (READINGS["adapted"], HARD), strict=True))
    return {labels: (one.said[method].double().exp().numpy().ravel(), chosen) for labels, method in pairs.items()}


def _over_people(values: np.ndarray, subject: np.ndarray) -> tuple[float, float, float]:
    owner = np.unique(subject, return_inverse=True)[1].ravel()
    sums, totals = np.bincount(owner, np.asarray(values).ravel()), np.bincount(owner)
    found = metrics.ratio_bootstrap(sums, totals, seeding.numpy_generator(0, "raters in episodes"))
    return float(np.asarray(values).mean()), found.low, found.high
