"""The vote-fusion experiment as a table: votes enter; predictions of references and rules, scores and files leave.

Every prediction of a clip comes from fits that never saw its actor. References are plain numpy and scikit-learn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from stf2m_core import results, seeding, soft_metrics
from stf2m_core.config import FuzzyConfig, VoteFusionConfig
from stf2m_core.data.adapters.crema_d_votes import CONDITIONS, Votes, read_votes
from stf2m_core.data.synthetic_votes import synthetic_votes
from stf2m_core.errors import ConfigError
from stf2m_core.metrics import Interval, divergence, ratio_bootstrap
from stf2m_core.training import write_text
from stf2m_core.vote_fusion import (
    BOTH,
    FACE,
    VOICE,
    ActorFold,
    FusedVotes,
    actor_folds,
    cross_validate,
    shares,
    soft_target,
)

Fit = Callable[[Votes, ActorFold, VoteFusionConfig], np.ndarray]
"""From votes and a fold to probabilities (test clip, emotion) before the floor."""

SOFTMAX = "softmax regression on log-votes"
RULES = FuzzyConfig(n_features=12, n_consequents=6, drop_rule=0.0)
"""The rules of the main rows, before a variant changes them."""
FIRST, ZERO = "24 generalised rules, first-order", "24 generalised rules, zero-order"


def _rules(**changes: Any) -> dict[str, Any]:
    return {"rules": replace(RULES, **changes)}


VARIANTS: dict[str, dict[str, Any]] = {
    FIRST: _rules(consequents="first-order"),
    "24 diagonal rules, first-order": _rules(consequents="first-order", antecedent="diagonal", rank=0),
    "24 full rules, first-order": _rules(consequents="first-order", antecedent="full", rank=0),
    "24 bell rules, first-order": _rules(consequents="first-order", antecedent="bell"),
    ZERO: _rules(),
    "24 diagonal rules, zero-order": _rules(antecedent="diagonal", rank=0),
    "24 full rules, zero-order": _rules(antecedent="full", rank=0),
    "24 bell rules, zero-order": _rules(antecedent="bell"),
    "plain TSK, 16 diagonal rules, first-order": _rules(
        n_rules=16, consequents="first-order", antecedent="diagonal", rank=0, firing="tsk"),
    "plain TSK, 16 diagonal rules, zero-order": _rules(n_rules=16, antecedent="diagonal", rank=0, firing="tsk"),
    "HTSK, 16 diagonal rules, zero-order": _rules(n_rules=16, antecedent="diagonal", rank=0, firing="htsk"),
    "24 generalised rules, zero-order, DropRule": _rules(drop_rule=0.1),
    "24 generalised rules, zero-order, re-seeding": _rules(reseed_after=50),
    "24 generalised rules, first-order, with intensities": _rules(consequents="first-order")
    | {"inputs": "votes and intensities"},
}  # fmt: skip
"""What each row of the table changes of the default settings; the last one reads more than votes."""

PROFILES: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[str, ...]]] = {
    "test": ({"n_folds": 3, "max_steps": 4, "validate_every": 2, "entropies": (0.8,)}, (0, 1), (FIRST, ZERO)),
    "smoke": ({"n_folds": 5, "max_steps": 400, "entropies": (0.8,)}, (0,), (FIRST, ZERO)),
    "standard": ({}, (0, 1, 2), tuple(VARIANTS)),
    "paper": ({}, (0, 1, 2, 3, 4), tuple(VARIANTS)),
}
"""Settings, seeds and variants of each size."""


@dataclass(frozen=True)
class Row:
    """Out-of-fold predictions of one method.

    Attributes:
        log_probability: (seed, clip, emotion).
        n_weights: of one fit; 0: nothing is learned.
        fused: the rules behind it, if it has rules.
    """

    log_probability: np.ndarray
    n_weights: int
    fused: FusedVotes | None = None


# --- references


def _prior(votes: Votes, fold: ActorFold, config: VoteFusionConfig) -> np.ndarray:
    mean = shares(votes.counts[fold.train, BOTH], 0).mean(0)
    return np.broadcast_to(mean, (len(fold.test), len(mean)))


def _alone(condition: int) -> Fit:
    return lambda votes, fold, config: shares(votes.counts[fold.test, condition], 0)


def _mean(votes: Votes, fold: ActorFold, config: VoteFusionConfig) -> np.ndarray:
    return shares(votes.counts[fold.test][:, [VOICE, FACE]], 0).mean(1)


def _product(votes: Votes, fold: ActorFold, config: VoteFusionConfig) -> np.ndarray:
    """(voice x face) to the exponent that is best for the training clips."""
    log = np.log(soft_target(votes.counts[:, [VOICE, FACE]], config.floor)).sum(1)
    target = soft_target(votes.counts[fold.train, BOTH], config.floor)

    def power(exponent: float, rows: np.ndarray) -> np.ndarray:
        raised = np.exp(exponent * (log[rows] - log[rows].max(-1, keepdims=True)))
        return raised / raised.sum(-1, keepdims=True)

    costs = {b: divergence(_floored(power(b, fold.train), config), target).mean() for b in np.arange(0.2, 1.3, 0.1)}
    return power(min(costs, key=costs.get), fold.test)


def _log_votes(votes: Votes, smoothing: float) -> np.ndarray:
    return np.log(shares(votes.counts[:, [VOICE, FACE]], smoothing)).reshape(len(votes.counts), -1)


def _repeated(inputs: np.ndarray, votes: Votes, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each clip once per emotion that has votes, weighted by their share: soft labels for a classifier of hard ones."""
    share = shares(votes.counts[rows, BOTH], 0)
    clip, emotion = np.nonzero(share)
    return inputs[rows][clip], emotion, share[clip, emotion]


def _softmax_regression(votes: Votes, fold: ActorFold, config: VoteFusionConfig) -> np.ndarray:
    """Smoothing chosen on the validation actors."""
    found = []
    for smoothing in (0.5, 1.0, 2.0):
        inputs = _log_votes(votes, smoothing)
        values, emotion, weight = _repeated(inputs, votes, fold.train)
        model = LogisticRegression(max_iter=2000).fit(values, emotion, sample_weight=weight)
        found.append((_cost(model.predict_proba(inputs[fold.validation]), votes, fold, config), smoothing, model))
    _, smoothing, model = min(found, key=lambda one: one[0])
    return model.predict_proba(_log_votes(votes, smoothing)[fold.test])


def _plain_regression(votes: Votes, fold: ActorFold, config: VoteFusionConfig) -> np.ndarray:
    """Fitted to the target as it is, one vote added to every emotion of the inputs, and no floor in its answer."""
    inputs = _log_votes(votes, 1.0)
    target = soft_target(votes.counts[fold.train, BOTH], config.floor)
    values, emotion = np.repeat(inputs[fold.train], 6, 0), np.tile(np.arange(6), len(fold.train))
    model = LogisticRegression(max_iter=2000).fit(values, emotion, sample_weight=target.ravel())
    # undone later by the floor that all other methods get
    return (model.predict_proba(inputs[fold.test]) - config.floor / 6) / (1 - config.floor)


def _network(votes: Votes, fold: ActorFold, config: VoteFusionConfig) -> np.ndarray:
    """One hidden layer of 32; the pass over the data after which to stop is chosen on the validation actors."""
    inputs = _log_votes(votes, config.smoothing)
    inputs = (inputs - inputs[fold.train].mean(0)) / inputs[fold.train].std(0)
    values, emotion, weight = _repeated(inputs, votes, fold.train)
    start = seeding.derive(0, "small network", int(fold.test[0])) % 2**32
    model = MLPClassifier((32,), alpha=1e-2, batch_size=200, learning_rate_init=2e-3, random_state=start)
    best, answer = np.inf, None
    for _ in range(30):
        model.partial_fit(values, emotion, classes=np.arange(6), sample_weight=weight)
        cost = _cost(model.predict_proba(inputs[fold.validation]), votes, fold, config)
        if cost < best:
            best, answer = cost, model.predict_proba(inputs[fold.test])
    return answer


def _cost(probability: np.ndarray, votes: Votes, fold: ActorFold, config: VoteFusionConfig) -> float:
    target = soft_target(votes.counts[fold.validation, BOTH], config.floor)
    return float(divergence(_floored(probability, config), target).mean())


def _floored(probability: np.ndarray, config: VoteFusionConfig) -> np.ndarray:
    """Log-probabilities with the floor of the target, which every method may know."""
    return np.log((1 - config.floor) * probability + config.floor / probability.shape[-1])


REFERENCES: dict[str, tuple[Fit, int]] = {
    "prior": (_prior, 6),
    "voice alone": (_alone(VOICE), 0),
    "face alone": (_alone(FACE), 0),
    "mean of both": (_mean, 0),
    "product of experts, best exponent": (_product, 1),
    "softmax regression without a floor": (_plain_regression, 78),
    SOFTMAX: (_softmax_regression, 78),
    "small network, 32 hidden": (_network, 614),
}
"""Fit and number of weights of each."""


def reference_rows(votes: Votes, config: VoteFusionConfig) -> dict[str, Row]:
    """Every reference, predicted fold by fold: one seed each."""
    rows = {}
    for name, (fit, n_weights) in REFERENCES.items():
        scores = np.zeros((1, len(votes.actor), 6))
        for fold in actor_folds(votes.actor, config.n_folds):
            scores[0, fold.test] = _floored(fit(votes, fold, config), config)
        rows[name] = Row(scores, n_weights)
    return rows


# --- the experiment


def settings(profile: str, variant: str = ZERO) -> VoteFusionConfig:
    """Settings of one row.

    Raises:
        ConfigError: on an unknown profile or variant.
    """
    for name, known, value in (("profile", PROFILES, profile), ("variant", VARIANTS, variant)):
        if value not in known:
            raise ConfigError(f"{name} = {value!r}", expected=f"one of {', '.join(known)}", where="vote fusion")
    return VoteFusionConfig(**PROFILES[profile][0], **VARIANTS[variant])


def with_ensemble(name: str, row: Row) -> dict[str, Row]:
    """The row and, if there are several seeds, the mean of their predictions beside it."""
    if len(row.log_probability) == 1:
        return {name: row}
    mean = np.log(np.exp(row.log_probability).mean(0, keepdims=True))
    return {name: row, f"{name}; mean of {len(row.log_probability)} seeds": Row(mean, row.n_weights)}


def sampling_noise(votes: Votes, row: Row, floor: float, *, n_draws: int = 20) -> float:
    """What the divergence would be if the first seed's predictions were the truth: votes drawn anew from them, nats."""
    rng = seeding.numpy_generator(0, "sampling noise")
    truth = np.clip((np.exp(row.log_probability[0]) - floor / 6) / (1 - floor), 0, None)
    truth /= truth.sum(-1, keepdims=True)
    n_raters = votes.counts[:, BOTH].sum(-1)
    draws = [soft_target(rng.multinomial(n_raters, truth), floor) for _ in range(n_draws)]
    return float(np.mean([divergence(row.log_probability[0], drawn).mean() for drawn in draws]))


def score_rows(votes: Votes, rows: Mapping[str, Row], floor: float) -> list[dict[str, Any]]:
    """One mapping of numbers per method: means over seeds and clips, and intervals over actors."""
    counts = votes.counts[:, BOTH]
    base = _clip_divergence(rows[SOFTMAX], counts, floor) if SOFTMAX in rows else None
    return [{"method": name} | _scores(row, votes, floor, base) for name, row in rows.items()]


def _clip_divergence(row: Row, counts: np.ndarray, floor: float) -> np.ndarray:
    return divergence(row.log_probability, np.broadcast_to(soft_target(counts, floor), row.log_probability.shape))


def _scores(row: Row, votes: Votes, floor: float, base: np.ndarray | None) -> dict[str, Any]:
    counts = votes.counts[:, BOTH]
    target, raw = soft_target(counts, floor), shares(counts, 0)
    loss = _clip_divergence(row, counts, floor)
    seeds = row.log_probability
    interval = _over_actors(loss.mean(0), votes.actor)
    scores = {
        "kl": loss.mean(), "kl_low": interval.low, "kl_high": interval.high,
        "kl_seed_sd": loss.mean(1).std(ddof=1) if len(seeds) > 1 else None, "n_seeds": len(seeds),
        "kl_raw": divergence(seeds, np.broadcast_to(raw, seeds.shape)).mean(),
        "js": np.mean([soft_metrics.jensen_shannon(s, target).mean() for s in seeds]),
        "brier": np.mean([soft_metrics.brier(s, target).mean() for s in seeds]),
        "ece": np.mean([soft_metrics.soft_calibration_error(s, target) for s in seeds]),
        "entropy_correlation": np.mean([soft_metrics.entropy_correlation(s, target) for s in seeds]),
        "agreement": np.mean([soft_metrics.plurality_agreement(s, counts) for s in seeds]),
        "n_weights": row.n_weights,
    }  # fmt: skip
    if base is not None:
        gap = loss.mean(0) - base.mean(0)
        between = _over_actors(gap, votes.actor)
        scores |= {"gap": gap.mean(), "gap_low": between.low, "gap_high": between.high}
    return {name: value if value is None else float(value) for name, value in scores.items()}


def _over_actors(values: np.ndarray, actor: np.ndarray) -> Interval:
    _, code = np.unique(actor, return_inverse=True)
    rng = seeding.numpy_generator(0, "actors")
    return ratio_bootstrap(np.bincount(code, values), np.bincount(code), rng, n_replicates=2000)


def open_votes(source: str) -> Votes:
    """The real votes of a folder, or made-up ones if no folder is named.

    Raises:
        ManifestError: if the folder does not hold the votes.
    """
    return read_votes(source) if source else synthetic_votes()


def condition_table(votes: Votes) -> pd.DataFrame:
    """One row per rating condition: raters, how undecided they are, how often the intended emotion wins."""
    rows = []
    for number, condition in enumerate(CONDITIONS):
        counts = votes.counts[:, number]
        share = shares(counts, 0)
        hit = (counts == counts.max(-1, keepdims=True)) & (np.eye(6)[votes.intended] > 0)
        rows.append({"rated from": condition, "clips": len(counts), "raters per clip": f"{counts.sum(-1).mean():.1f}",
                     "mean entropy, nat": f"{soft_metrics.entropy(share).mean():.2f}",
                     "share of votes for the intended emotion": f"{share[np.eye(6)[votes.intended] > 0].mean():.2f}",
                     "intended emotion leads or ties": f"{hit.any(-1).mean():.2f}"})  # fmt: skip
    return pd.DataFrame(rows)


def fuse(votes: Votes, profile: str, *, variants: Sequence[str] | None = None) -> dict[str, Row]:
    """All rows of the table: references first, then the rules.

    Args:
        votes: of the clips.
        profile: test, smoke, standard or paper.
        variants: names in VARIANTS; the profile's own if None.

    Raises:
        ConfigError: on an unknown profile or variant.
        EpisodeError: if there are fewer actors than folds.
    """
    config = settings(profile)
    _, seeds, own = PROFILES[profile]
    rows = reference_rows(votes, config)
    for name in own if variants is None else variants:
        fused = cross_validate(votes, settings(profile, name), seeds=seeds)
        row = Row(fused.log_probability, fused.n_weights, fused)
        rows |= with_ensemble(name, row) if name in (FIRST, ZERO) else {name: row}
    return rows


def fusion_table(scores: Sequence[Mapping[str, Any]], caption: str) -> pd.DataFrame:
    """Scores as a table of words for people."""
    rows = []
    for one in scores:
        spread = "" if one["kl_seed_sd"] is None else f" ± {_short(max(one['kl_seed_sd'], 1e-4), 4)}"
        gap = f"{one['gap']:+.3f} [{one['gap_low']:+.3f}, {one['gap_high']:+.3f}]" if "gap" in one else "–"
        rows.append({
            "method": one["method"],
            "KL, nat": f"{_short(one['kl'])}{spread} [{_short(one['kl_low'])}, {_short(one['kl_high'])}]",
            "minus softmax regression": gap.replace("-", "−").replace("0.", "."),
            "KL to raw votes": _short(one["kl_raw"]), "JS": _short(one["js"]), "Brier": _short(one["brier"]),
            "ECE": _short(one["ece"]), "entropy r": _short(one["entropy_correlation"], 2),
            "agreement": _short(one["agreement"]), "weights": f"{int(one['n_weights']):,}",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs["caption"] = caption
    return table


def _short(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def targets(source: str) -> dict[str, float]:
    """What the rules were to reach on the real votes, KL in nats, settled beforehand; nothing on made-up ones."""
    return {"target, first-order rules": 0.217, "target, zero-order rules": 0.224} if source else {}


def fusion_caption(votes: Votes, rows: Mapping[str, Row], profile: str, *, is_synthetic: bool) -> str:
    """What a reader must know to trust the table."""
    config, (_, seeds, _) = settings(profile), PROFILES[profile]
    learned = {name: row for name, row in rows.items() if name in VARIANTS}
    noise = sampling_noise(votes, next(iter(learned.values())), config.floor) if learned else None
    spread = f" and seeds ± standard deviation over seeds {list(seeds)}, .0001 at least" if len(seeds) > 1 else ""
    parts = [
        f"{'Made-up votes, no emotion of anybody' if is_synthetic else 'CREMA-D votes'}:"
        f" {len(votes.actor)} clips of {len(np.unique(votes.actor))} actors."
        f" KL from the votes on voice and face together, (1 − {config.floor:g}) n/N + {config.floor:g}/6, to"
        " predictions made from the votes on voice alone and face alone, for actors that the fit never saw",
        f"{config.n_folds} blocks of neighbouring actors: one is test, the next chooses (step to keep, entropy to"
        f" calibrate at, smoothing of the regression), the others train. Mean over clips{spread}, [95 % interval over"
        " actors, bootstrap]",
        "Raw votes: the same predictions against n/N. ECE per emotion; agreement with the most voted emotion, ties left"
        " out",
    ]
    if noise is not None:
        parts.append(f"If the first rules' predictions were the truth, the votes' own chance would cost {noise:.3f}")
    return ". ".join(parts) + "."


def write_fusion(
    scores: Sequence[Mapping[str, Any]], table: pd.DataFrame, path: str | os.PathLike[str], profile: str
) -> Path:
    """Write <path>.csv, the numbers with their provenance, and <path>.md, the words; each whole or not at all.

    Returns:
        The Markdown file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = results.provenance(threads=1, device="cpu", precision="float32")
    facts = {"profile": profile, "git_revision": made["git_revision"], "git_dirty": made["git_dirty"]}
    facts |= {name: made["versions"][name] for name in ("stf2m_core", "torch", "numpy")}
    write_text(path.with_suffix(".csv"), pd.DataFrame([{**one, **facts} for one in scores]).to_csv(
        index=False, lineterminator="\n"))  # fmt: skip
    written = table.copy()
    written.attrs["caption"] = f"{table.attrs['caption']}\n\nProfile {profile}, revision {made['git_revision']}."
    write_text(path.with_suffix(".md"), results.to_markdown(written))
    return path.with_suffix(".md")
