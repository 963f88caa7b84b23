"""Votes as labels: learners of one kind are fitted to soft labels and to hard ones, and scored against the votes.

A clip has what its raters said: shares are its soft label; the emotion most voted for is its hard label, which does not
exist where two lead together. Clips are described by the votes on voice and face; labels are the votes on both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from stf2m_core import seeding, soft_metrics
from stf2m_core.config import VoteFusionConfig
from stf2m_core.data.adapters.crema_d_votes import EMOTIONS, Votes
from stf2m_core.data.synthetic_votes import synthetic_votes
from stf2m_core.metrics import divergence, ratio_bootstrap
from stf2m_core.model.st_f2m import episode_targets
from stf2m_core.vote_fusion import BOTH, actor_folds, examples, shares

LABELS = ("soft labels", "hard labels")
"""What is learned from: all clips with their shares, or the untied clips with their leading emotion."""
TEMPERATURES = np.geomspace(0.25, 16, 13)


def made_up_votes(n_actors: int = 40, seed: int = 0) -> Votes:
    """Votes with a known law, 30 clips of each actor."""
    return synthetic_votes(n_actors, 30, seed)


def hard_labels(counts: np.ndarray) -> np.ndarray:
    """(clip,) index of the emotion with most votes, -1, undefined, where two or more lead together."""
    return np.where(soft_metrics.tied(counts), -1, np.argmax(counts, -1))


def tie_table(votes: Votes) -> pd.DataFrame:
    """By number of raters: clips, the share without a hard label, and the share on whose label all raters agree."""
    counts = votes.counts[:, BOTH]
    frame = pd.DataFrame({"raters": counts.sum(-1), "tied": hard_labels(counts) < 0,
                          "unanimous": (counts > 0).sum(-1) == 1})  # fmt: skip
    table = frame.groupby("raters").agg(clips=("tied", "size"), tied=("tied", "mean"), unanimous=("unanimous", "mean"))
    return table.rename(columns={"tied": "share of ties", "unanimous": "share of full agreement"})


def telling_clips(votes: Votes) -> tuple[np.ndarray, np.ndarray]:
    """(clip, emotion) votes of seven clips from full agreement to a tie, by rising entropy, and (clip,) hard labels.

    Of equally undecided clips the first is taken; the last two are the tied clips of least and most entropy.
    """
    counts = votes.counts[:, BOTH]
    label, order = hard_labels(counts), np.argsort(soft_metrics.entropy(shares(counts, 0)), kind="stable")
    clear, tied = order[label[order] >= 0], order[label[order] < 0]
    rows = [*clear[np.linspace(0, len(clear) - 1, 5).astype(int)], *tied[: 1 if len(tied) else 0], *tied[-1:]]
    return counts[rows], label[rows]


def task_table(votes: Votes, emotions: tuple[str, ...] = ("anger", "disgust", "sad")) -> pd.DataFrame:
    """What the votes of some clips become in an episode that asks for a few of the emotions only."""
    counts, _ = telling_clips(votes)
    soft = torch.from_numpy(shares(counts, 0))
    classes = torch.tensor([[EMOTIONS.index(name) for name in emotions]])
    target, weight = episode_targets(soft, torch.arange(len(counts))[None], classes)
    said = [", ".join(f"{n} {e}" for n, e in zip(row, EMOTIONS, strict=True) if n) for row in counts]
    table = pd.DataFrame({"votes": said, "counts for": weight[0].numpy()})
    return table.assign(**{f"share of {name}": target[0, :, i].numpy() for i, name in enumerate(emotions)})


# --- learning from either


@dataclass(frozen=True)
class Learned:
    """Predictions for actors that the learner never saw.

    Attributes:
        log_probability: (clip, emotion).
        counts: (clip, emotion) their votes.
        actor: (clip,).
    """

    log_probability: np.ndarray
    counts: np.ndarray
    actor: np.ndarray


def _weights(counts: np.ndarray, labels: str) -> np.ndarray:
    """(clip, emotion) how much each clip counts for each emotion; a tied clip has no hard label and counts nothing."""
    if labels == LABELS[0]:
        return shares(counts, 0)
    label = hard_labels(counts)
    return np.eye(counts.shape[-1])[label] * (label >= 0)[:, None]


def _regression(values: np.ndarray, weight: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Softmax regression: each clip once per emotion it counts for, so that its loss is the soft cross-entropy."""
    clip, emotion = np.nonzero(weight)
    model = LogisticRegression(max_iter=2000).fit(values[clip], emotion, sample_weight=weight[clip, emotion])
    return model.predict_log_proba(new)


def _prototypes(values: np.ndarray, weight: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Nearest prototype, c_e = sum_i q_ie x_i / sum_i q_ie, at the temperature that suits the labels learned from."""
    center = weight.T @ values / weight.sum(0)[:, None]

    def said(points: np.ndarray, temperature: float) -> np.ndarray:
        return log_softmax(-((points[:, None] - center) ** 2).sum(-1) / temperature, -1)

    best = max(TEMPERATURES, key=lambda temperature: float((weight * said(values, temperature)).sum()))
    return said(new, best)


LEARNERS: dict[str, Callable[..., np.ndarray]] = {"prototypes": _prototypes, "softmax regression": _regression}


def learned(votes: Votes, n_folds: int = 5) -> dict[str, Learned]:
    """Every learner with either kind of label, actors held out in turn: "learner, labels" -> predictions of all clips.

    Raises:
        ConfigError: if there are fewer actors than folds.
    """
    pattern, counts = examples(votes, VoteFusionConfig()).pattern.double().numpy(), votes.counts[:, BOTH]
    found = {}
    for name, fit in LEARNERS.items():
        for labels in LABELS:
            said = np.zeros(counts.shape)
            for fold in actor_folds(votes.actor, n_folds):
                rows = np.concatenate([fold.train, fold.validation])  # nothing is chosen, so nothing is set aside
                said[fold.test] = fit(pattern[rows], _weights(counts[rows], labels), pattern[fold.test])
            found[f"{name}, {labels}"] = Learned(said, counts, np.asarray(votes.actor))
    return found


def table(found: dict[str, Learned]) -> pd.DataFrame:
    """Every soft metric of every learner; brackets are 95 % intervals over actors."""
    return pd.DataFrame([{"learner": name} | _scores(one) for name, one in found.items()])


def _scores(one: Learned) -> dict[str, object]:
    soft = shares(one.counts, 0)
    clip_wise = {"KL, nat": divergence, "JS, nat": soft_metrics.jensen_shannon, "Brier": soft_metrics.brier}
    scores: dict[str, object] = {}
    for name, metric in clip_wise.items():
        mean, low, high = _over_actors(metric(one.log_probability, soft), one.actor)
        scores[name] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    return scores | {
        "soft calibration error": soft_metrics.soft_calibration_error(one.log_probability, soft),
        "entropy correlation": soft_metrics.entropy_correlation(one.log_probability, soft),
        "agreement with hard labels": soft_metrics.plurality_agreement(one.log_probability, one.counts),
    }


def gap_rows(found: dict[str, Learned]) -> list[dict[str, object]]:
    """What hard labels cost each learner: {"learner", "mean", "low", "high"} of KL with hard minus KL with soft labels.

    On the same clips, in nats; 95 % intervals over actors.
    """
    rows = []
    for name in LEARNERS:
        soft, hard = (found[f"{name}, {labels}"] for labels in LABELS)
        truth = shares(soft.counts, 0)
        gap = divergence(hard.log_probability, truth) - divergence(soft.log_probability, truth)
        mean, low, high = _over_actors(gap, soft.actor)
        rows.append({"learner": name, "mean": mean, "low": low, "high": high})
    return rows


def gap_table(found: dict[str, Learned]) -> pd.DataFrame:
    """`gap_rows` in words."""
    what = "KL with hard labels minus KL with soft labels, nat [95 % over actors]"
    rows = gap_rows(found)
    return pd.DataFrame(
        {"learner": [row["learner"] for row in rows],
         what: [f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]".replace("-", "−") for row in rows]}
    )  # fmt: skip


def _over_actors(values: np.ndarray, actor: np.ndarray) -> tuple[float, float, float]:
    owner = np.unique(actor, return_inverse=True)[1]
    found = ratio_bootstrap(np.bincount(owner, values), np.bincount(owner), seeding.numpy_generator(0, "soft labels"))
    return float(values.mean()), found.low, found.high


def said_and_chosen(
    found: dict[str, Learned], learner: str = "softmax regression"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels learned from -> every emotion of every clip: the share that is predicted, and the share of the raters."""
    parts = {labels: found[f"{learner}, {labels}"] for labels in LABELS}
    return {
        labels: (np.exp(one.log_probability).ravel(), shares(one.counts, 0).ravel()) for labels, one in parts.items()
    }
