"""When in a clip does which emotion happen? A run trained on segments, its readings of whole clips, and who is asked
besides: the most frequent emotion, prototypes of plain features, and who knows the laws.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stf2m_core import experiment, over_time, seeding, segment_metrics
from stf2m_core.baselines.nearest_prototype import clip_features, prototype_logits, standardised
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data import synemo_markov, synemo_markov_bayes
from stf2m_core.data.pack import Pack, open_pack
from stf2m_core.data.segments import cut, rows_of, spans
from stf2m_core.data.synemo_markov import MarkovConfig
from stf2m_core.episodes import EpisodeSampler, Splits, split_subjects
from stf2m_core.markov import forward_backward, shares_of, transitions
from stf2m_core.over_time import ClockSettings, Timelines
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import Run

MOVING = ("order", "level", "interaction")
"""Factors by which the emotions differ: one lives in time, one needs the domain's baseline, one two modalities."""
SIZES: dict[str, dict[str, int]] = {"test": {"n_domains": 4, "clips_per_session": 6}, "smoke": {}}
LARGE = {"n_domains": 30}
STEPS = {"test": 4, "smoke": 100, "standard": 500}
EPISODES = {"test": (3, 3), "smoke": (12, 36), "standard": (40, 120)}
"""Of meta-validation and meta-test."""
WINDOWS = (0.75, 1.5, 3.0)
"""Lengths in seconds of which meta-validation chooses."""
TOLERANCE_S = 1.0
"""How far a predicted change may be from the true one."""
SHOTS = 5


@dataclass(frozen=True)
class Lesson:
    """What is read, and by whom.

    Attributes:
        config: of the generator.
        recordings: the clips, with labels inside.
        pack: their segments.
        splits: of the subjects.
    """

    config: MarkovConfig
    recordings: Pack
    pack: Pack
    splits: Splits


@dataclass(frozen=True)
class Asked:
    """Episodes of segments, and the clips to be read in each.

    Attributes:
        batch: support is of people of the same domain, never of who is read.
        clips: (episode, clip) rows of the recordings.
    """

    batch: EpisodeBatch
    clips: np.ndarray


def prepare(results: str | os.PathLike[str], profile: str, seed: int = 0) -> Lesson:
    """Make both packs in results/packs, the recordings and what is cut from them."""
    config = MarkovConfig(seed=seed, moving=MOVING, **SIZES.get(profile, LARGE))
    folder = Path(results) / "packs"
    folder.mkdir(parents=True, exist_ok=True)
    recordings = open_pack(synemo_markov.write(folder / synemo_markov.NAME, config, overwrite=True))
    pack = open_pack(cut(recordings, folder / f"{synemo_markov.NAME}-segments", overwrite=True))
    return Lesson(config, recordings, pack, split_subjects(pack, run_config(profile, seed).split))


def run_config(profile: str, seed: int = 0) -> RunConfig:
    """The settings of SynEmo, with episodes of all emotions of this set."""
    study, size = experiment.STUDIES["synemo"], len(MarkovConfig(moving=MOVING).labels)
    kinds = [EpisodeConfig(regime="D", n_way=size, n_shot=k, n_query=3) for k in (1, SHOTS)]
    changes = study.changes | study.profiles.get(profile, {})
    changes |= {"train__max_steps": STEPS.get(profile, STEPS["standard"]), "train__seed": seed}
    if profile == "test":
        changes |= {"split__n_val_subjects": 4}
    return RunConfig.preset(profile).replace(episodes=[asdict(kind) for kind in kinds], **changes)


def trained(lesson: Lesson, results: str | os.PathLike[str], profile: str, seed: int = 0) -> Run:
    """Train on segments: an ordinary run on an ordinary pack."""
    return experiment.train_run(lesson.pack, run_config(profile, seed), results)


def episodes_of(lesson: Lesson, split: str, profile: str, seed: int = 0) -> Asked:
    """Episodes of a meta-split and two clips of new people to read in each."""
    n_way, number = len(lesson.pack.labels), EPISODES.get(profile, EPISODES["standard"])[split == "meta_test"]
    kind = EpisodeConfig(regime="D", n_way=n_way, n_shot=SHOTS, n_query=1)
    batch = EpisodeSampler(lesson.pack, lesson.splits, split, kind, seed).sample(0, number)
    return Asked(batch, over_time.query_clips(batch, lesson.pack, lesson.recordings, 2))


def clip_table(lesson: Lesson) -> pd.DataFrame:
    """How many clips, segments and changes there are, and how long they are."""
    whole, parts = lesson.recordings, lesson.recordings.segments
    same_clip = parts["clip_id"].eq(parts["clip_id"].shift())
    changes = int((same_clip & parts["label"].ne(parts["label"].shift())).sum())
    length = parts["end_s"] - parts["start_s"]
    rows = {
        "people": whole.clips["subject"].nunique(), "clips": len(whole), "segments": len(parts),
        "segments that begin with a new emotion": changes, "emotions": len(whole.labels),
        "length of a clip, s": _range(whole.clips["duration_s"]), "length of a segment, s": _range(length),
    }  # fmt: skip
    return pd.DataFrame({"what": list(rows), "how many": [str(value) for value in rows.values()]})


def _range(values: pd.Series) -> str:
    return f"{values.min():.1f} to {values.max():.1f}, mean {values.mean():.1f}"


# --- readers


def window_table(lesson: Lesson, run: Run, asked: Asked) -> tuple[pd.DataFrame, float]:
    """Windows of several lengths on meta-validation, and the length of the best frame accuracy after smoothing."""
    rows, best = [], {}
    for window_s in WINDOWS:
        plain = _model(lesson, run, asked, ClockSettings(window_s=window_s))
        calm = _smoothed(lesson, plain)
        scored = [_scores(made) for made in (plain, calm)]
        best[window_s] = scored[1]["frame accuracy"].value
        rows.append({
            "window, s": f"{window_s:g}", "frame accuracy": scored[0]["frame accuracy"].text(),
            "smoothed: frame accuracy": scored[1]["frame accuracy"].text(),
            "smoothed: segment F1@50": scored[1]["segment F1@50"].text(),
            "smoothed: boundary F1": scored[1]["boundary F1"].text(),
        })  # fmt: skip
    return pd.DataFrame(rows), max(WINDOWS, key=lambda window_s: best[window_s])


def readings(lesson: Lesson, run: Run, asked: Asked, window_s: float) -> dict[str, Timelines]:
    """What everybody says of the same clips."""
    settings = ClockSettings(window_s=window_s)
    model = _model(lesson, run, asked, settings)
    plain = _prototypes(lesson, asked, settings)
    found = {
        "most frequent emotion": _majority(lesson, model),
        "nearest prototype": plain, "nearest prototype, smoothed": _smoothed(lesson, plain),
        "ST-F2M": model, "ST-F2M, smoothed": _smoothed(lesson, model),
    }  # fmt: skip
    return found | _told(lesson, run, asked, model) | {
        "Bayes, each segment alone": _bayes(lesson, asked, model, chained=False), "Bayes": _bayes(lesson, asked, model),
    }  # fmt: skip


def _model(lesson: Lesson, run: Run, asked: Asked, settings: ClockSettings) -> Timelines:
    return over_time.over_time(run.path, lesson.pack, lesson.recordings, asked.batch, asked.clips, settings=settings)


def _smoothed(lesson: Lesson, timelines: Timelines) -> Timelines:
    known = over_time.counted_transitions(lesson.recordings, lesson.splits.subjects["meta_train"],
                                          timelines.settings.hop_s)  # fmt: skip
    return over_time.smoothed(timelines, *known)


def _majority(lesson: Lesson, like: Timelines) -> Timelines:
    """Always what is most frequent in meta-train."""
    _, share = over_time.counted_transitions(lesson.recordings, lesson.splits.subjects["meta_train"],
                                             like.settings.hop_s)  # fmt: skip
    return replace(like, log_probability=np.broadcast_to(np.log(share), like.log_probability.shape))


def _prototypes(lesson: Lesson, asked: Asked, settings: ClockSettings) -> Timelines:
    """Windows and support as means and deviations of their channels; the nearest class mean answers."""
    made = over_time.blank(lesson.recordings, asked.clips.ravel(), settings)
    duration = lesson.recordings.clips["duration_s"].to_numpy()
    start, end = over_time.windows(made, duration[made.clip])
    parts = lesson.pack.clips
    own = rows_of(lesson.recordings, parts["x_clip"].to_numpy())
    first = parts["x_start_s"].astype(float).to_numpy()
    place = [np.concatenate(pair) for pair in (
        (own, np.repeat(made.clip, start.shape[1])), (first, start.ravel()),
        (first + parts["duration_s"].to_numpy(), end.ravel()),
    )]  # fmt: skip
    features = clip_features(spans(lesson.recordings, *place))
    embedding = torch.from_numpy(standardised(features, lesson.splits.rows["meta_train"]))
    n_episodes = len(asked.batch)
    query = torch.arange(len(own), len(features.values)).view(n_episodes, -1)
    batch = replace(asked.batch, query=query, query_label=torch.zeros_like(query))
    said = prototype_logits(embedding, batch).log_softmax(-1).numpy()
    found = np.full((*said.shape[:2], len(made.labels)), -np.inf)
    np.put_along_axis(found, np.broadcast_to(asked.batch.classes.numpy()[:, None], said.shape), said, 2)
    return replace(made, log_probability=found.reshape(*made.truth.shape, -1))


def _parts(lesson: Lesson, made: Timelines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the segments of each timeline, (timeline, segment), padded with the last; their number; (timeline, step)
    the segment in which the middle of each step lies.
    """
    owner = rows_of(lesson.recordings, lesson.pack.clips["x_clip"].to_numpy())
    count = np.bincount(owner, minlength=len(lesson.recordings))[made.clip]
    rows = np.searchsorted(owner, made.clip)[:, None] + np.minimum(np.arange(count.max()), count[:, None] - 1)
    start = lesson.pack.clips["x_start_s"].astype(float).to_numpy()[rows]
    at = (made.times[:, None] >= start[:, None]).sum(2) - 1
    return rows, count, np.minimum(at, count[:, None] - 1)


def _told(lesson: Lesson, run: Run, asked: Asked, like: Timelines) -> dict[str, Timelines]:
    """The run reads every true segment as a whole: each alone, and with how segments follow one another."""
    rows, count, at = _parts(lesson, like)
    start, length = lesson.pack.clips[["x_start_s", "duration_s"]].astype(float).to_numpy()[rows].transpose(2, 0, 1)
    place = np.broadcast_to(like.clip[:, None], rows.shape), start, start + length
    shape = len(asked.batch), -1
    said = over_time.read_spans(run.path, lesson.pack, lesson.recordings, asked.batch,
                                *(x.reshape(shape) for x in place))  # fmt: skip
    said = said.reshape(*rows.shape, -1)
    chained, _ = forward_backward(said, *_segment_chain(lesson), count)
    names = ("ST-F2M, told the segments", "ST-F2M, told the segments, chained")
    return {
        name: replace(like, log_probability=np.take_along_axis(told, at[..., None], 1))
        for name, told in zip(names, (said, chained), strict=True)
    }


def _segment_chain(lesson: Lesson) -> tuple[np.ndarray, np.ndarray]:
    """How the segments of meta-train follow one another, (label, label), and how often each label comes, (label,)."""
    rows = np.flatnonzero(np.isin(lesson.pack.clips["subject"], lesson.splits.subjects["meta_train"]))
    clip = np.unique(lesson.pack.clips["x_clip"].to_numpy(str)[rows], return_inverse=True)[1]
    states = np.full((clip.max() + 1, np.bincount(clip).max()), -1)
    states[clip, np.arange(len(rows)) - np.searchsorted(clip, clip)] = lesson.pack.label_ids[rows]
    return transitions(states, len(lesson.pack.labels)), shares_of(states, len(lesson.pack.labels))


def _bayes(lesson: Lesson, asked: Asked, like: Timelines, *, chained: bool = True) -> Timelines:
    rows, count, at = _parts(lesson, like)
    evidence = synemo_markov_bayes.evidence(lesson.pack)
    n_clips = asked.clips.shape[1]
    support, classes = (np.repeat(x.numpy(), n_clips, 0) for x in (asked.batch.support, asked.batch.classes))
    said = synemo_markov_bayes.reference(evidence, lesson.config, support, classes, rows, count, chained=chained)
    return replace(like, log_probability=np.take_along_axis(said, at[..., None], 1))


# --- tables and figures


def _counts(made: Timelines) -> np.ndarray:
    return segment_metrics.counts(made.predicted, made.truth, made.settings.hop_s, TOLERANCE_S)


def _scores(made: Timelines) -> dict[str, segment_metrics.Score]:
    return segment_metrics.scores(_counts(made), made.subject, seeding.numpy_generator(0, "inside a clip"))


def score_rows(found: Mapping[str, Timelines]) -> dict[str, dict[str, segment_metrics.Score]]:
    """Every metric of every reader."""
    return {name: _scores(made) for name, made in found.items()}


def what_table(rows: Mapping[str, Mapping[str, segment_metrics.Score]]) -> pd.DataFrame:
    """Is it the right emotion? Brackets are 95 % intervals over people."""
    return pd.DataFrame(segment_metrics.in_words(rows))[["method", *segment_metrics.METRICS[:4]]]


def when_table(rows: Mapping[str, Mapping[str, segment_metrics.Score]]) -> pd.DataFrame:
    """Are the changes where they are? Brackets are 95 % intervals over people."""
    return pd.DataFrame(segment_metrics.in_words(rows))[["method", *segment_metrics.METRICS[4:]]]


def gap_table(found: Mapping[str, Timelines]) -> pd.DataFrame:
    """Differences on the same clips, with 95 % intervals over people."""
    pairs = {
        "smoothing: ST-F2M": ("ST-F2M, smoothed", "ST-F2M"),
        "smoothed ST-F2M minus smoothed prototypes": ("ST-F2M, smoothed", "nearest prototype, smoothed"),
        "being told the segments": ("ST-F2M, told the segments, chained", "ST-F2M, smoothed"),
        "what neighbours tell Bayes": ("Bayes", "Bayes, each segment alone"),
        "Bayes minus smoothed ST-F2M": ("Bayes", "ST-F2M, smoothed"),
    }  # fmt: skip
    metrics, rows = ("frame accuracy", "segment F1@50", "boundary F1"), []
    for name, (one, other) in pairs.items():
        gaps = segment_metrics.differences(_counts(found[one]), _counts(found[other]), found[one].subject,
                                           seeding.numpy_generator(0, "inside a clip"))  # fmt: skip
        rows.append({"difference": name} | {metric: gaps[metric].text() for metric in metrics})
    return pd.DataFrame(rows)


def picture(found: Mapping[str, Timelines], lesson: Lesson) -> dict[str, object]:
    """Arguments of `figures.clip_segments` for the clip in which the emotion changes most often."""
    shown = {"ST-F2M": "ST-F2M, window by window", "ST-F2M, smoothed": "ST-F2M, smoothed", "Bayes": "Bayes reference"}
    made = found["ST-F2M"]
    changes = ((made.truth[:, 1:] != made.truth[:, :-1]) & (made.truth[:, 1:] >= 0)).sum(1)
    which = int(changes.argmax())
    steps = slice(0, int(made.n_steps[which]))
    clip = lesson.recordings.clips["clip_id"].iloc[made.clip[which]]
    own = lesson.recordings.segments["clip_id"] == clip
    return {
        "truth": made.truth[which, steps], "labels": plain_names(lesson.pack.labels), "hop_s": made.settings.hop_s,
        "readings": {name: np.exp(found[key].log_probability[which, steps]) for key, name in shown.items()},
        "starts_s": lesson.recordings.segments.loc[own, "start_s"].tolist(),
        "title": f"How probable is each emotion, when? Clip {clip}",
    }  # fmt: skip


def plain_names(labels: tuple[str, ...]) -> list[str]:
    """Names of emotions without the parts that all of them share."""
    parts = [label.split(".") for label in labels]
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return [" ".join(part for part, told in zip(name, differ, strict=True) if told) for name in parts]
