"""The Bayes reference of SynEmo: clips and episodes enter, the log-probabilities of who knows the laws leave.

No model can do better than this except by chance, and a model that lacks the evidence of a factor can do no better than
this without that factor. A factor that is switched off tells nothing here either. Only for `pure` sets without
ambiguity: gains, dead nodes, subject terms and votes lie outside. Source: ours, docs/METHOD.md section 'Synthetic set'.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from stf2m_core.data.pack import Pack
from stf2m_core.data.synemo import SynEmoConfig
from stf2m_core.data.synemo_laws import EMOTIONS, FACTORS, LAW, PAIR_OF_NODE, triangle
from stf2m_core.errors import ConfigError, EpisodeError
from stf2m_core.shapes import EpisodeBatch

FROZEN = MappingProxyType({"smoke": "49f790867bee", "standard": "9b35613d4e79"})
"""Digests of the pure presets that tables were made of; another digest is another set and another reference."""

N_PHASES = 32
BASELINES = np.linspace(-6, 6, 61)
"""Grid of the domain's baseline where the classes are unknown, in units of the level."""
CHUNK = 8

_AXES = {factor: axis for axis, factor in enumerate(FACTORS)}


@dataclass(frozen=True)
class Evidence:
    """What each clip says of each level of each factor.

    Attributes:
        order: (clip, rate, level) log-likelihood of the contour at each possible rate, phase integrated out.
        synchrony: (clip, level) log-likelihood of the carriers.
        pooled: (clip, level) log-likelihood of the carriers' time means alone: what is left once time is pooled first.
        level: (clip,) the level itself; its likelihood needs the baseline.
        interaction: (clip, level) log-likelihood of tone and text.
        hidden: factors that are switched off; their signals have one law for all emotions and tell nothing.
    """

    order: np.ndarray
    synchrony: np.ndarray
    pooled: np.ndarray
    level: np.ndarray
    interaction: np.ndarray
    hidden: frozenset[str] = frozenset()


def evidence(pack: Pack, config: SynEmoConfig) -> Evidence:
    """The evidence of every clip of a pure pack.

    Args:
        pack: made from `config`.
        config: which factors can be seen at all.

    Raises:
        ConfigError: if the set is not pure, has votes or lacks modalities, or is not of this configuration's size.
    """
    _refuse_impure(pack, config)
    n_clips = len(pack.clips)
    audio, visual = pack.view("audio"), pack.view("visual")
    frames = np.asarray(audio.values, np.float64).reshape(n_clips, LAW.audio_frames, 2)
    carrier = np.asarray(visual.values, np.float64).reshape(n_clips, LAW.visual_frames, 4, 2)
    times = np.asarray(audio.times, np.float64).reshape(n_clips, LAW.audio_frames)
    text = np.asarray(pack.view("text").values, np.float64).reshape(n_clips)
    return Evidence(
        order=contour_likelihood(frames[..., 0], times),
        synchrony=carrier_likelihood(carrier[..., 0]),
        pooled=carrier_likelihood(carrier[..., 0].mean(1, keepdims=True) * LAW.visual_frames**0.5),
        level=carrier[:, 0, 0, 1],
        interaction=pair_likelihood(frames[:, 0, 1], text),
        hidden=frozenset(factor for factor in FACTORS if not getattr(config, factor)),
    )


def _refuse_impure(pack: Pack, config: SynEmoConfig) -> None:
    where = str(pack.path)
    if not config.pure or config.ambiguity_rate > 0 or config.dropout_rate > 0:
        raise ConfigError(f"pure = {config.pure}, ambiguity = {config.ambiguity_rate}, dropout = {config.dropout_rate}",
                          expected="a pure set without ambiguity and dropout", where="SynEmo reference")  # fmt: skip
    expected = config.n_domains * config.n_subjects_per_domain * config.clips_per_class * len(EMOTIONS)
    if len(pack.clips) != expected:
        raise ConfigError(f"{len(pack.clips)} clips", expected=f"{expected}, as the configuration says", where=where)
    if any(pack.view(name).mask is not None for name in ("audio", "visual", "text")):
        raise ConfigError("a mask", expected="a pure set, which has none", where=where)


def contour_likelihood(contour: np.ndarray, times: np.ndarray, chunk: int = 512) -> np.ndarray:
    """(clip, rate, level): log mean over phases of the product over frames."""
    phases = (np.arange(N_PHASES) + 0.5) / N_PHASES
    rates, rises = np.array(LAW.contour_hz), np.array(LAW.rise)
    parts = []
    for first in range(0, len(contour), chunk):
        some = slice(first, first + chunk)
        phase = rates[:, None, None] * times[some, None, None] + phases[:, None]
        wave = LAW.amplitude * triangle(phase[..., None, :], rises[:, None])  # (clip, rate, phase, level, frame)
        distance = ((contour[some, None, None, None] - wave) ** 2).sum(-1)
        parts.append(logsumexp(-distance / 2, 2) - np.log(N_PHASES))
    return np.concatenate(parts)


def carrier_likelihood(carrier: np.ndarray) -> np.ndarray:
    """(clip, level): log-likelihood of (clip, frame, node) white frames, up to what all levels share."""
    same = PAIR_OF_NODE[:, :, None] == PAIR_OF_NODE[:, None]
    covariance = np.where(same, LAW.pair_correlation, 0.0) + np.eye(4) * (1 - LAW.pair_correlation)
    precision = np.linalg.inv(covariance)
    return -np.einsum("btn,lnm,btm->bl", carrier, precision, carrier, optimize=True) / 2


def pair_likelihood(tone: np.ndarray, text: np.ndarray) -> np.ndarray:
    """(clip, level): log-likelihood of the pair, up to what both levels share."""
    sign = np.array([1, -1]) * LAW.modality_correlation
    return sign * (tone * text)[:, None] / (1 - LAW.modality_correlation**2)


def reference(
    evidence: Evidence,
    batch: EpisodeBatch,
    *,
    classes: Literal["known", "new"] = "known",
    use_support: bool = True,
    without: Collection[str] = (),
    pooled: bool = False,
) -> np.ndarray:
    """Log-probabilities of the queries, (episode, query, way).

    Regime D (`classes="known"`): the emotions' factor levels are known; rate and baseline of the domain follow from the
    support, the baseline by conjugacy. Regime C (`classes="new"`): the levels of each class are summed over all 24.

    Args:
        evidence: of all clips of the pack.
        batch: episodes, whose classes are indices into `LABELS`.
        classes: whether the meaning of the classes is known.
        use_support: False leaves the domain's baseline and rate at their priors (known classes only).
        without: factors whose evidence is not seen: the ceiling of a model that lacks the mechanism.
        pooled: of synchrony, only what the time means of the single nodes say.

    Raises:
        ConfigError: on an unknown factor, or new classes without support.
        EpisodeError: if the episodes are of a pack with other labels.
    """
    unknown = sorted(set(without) - set(FACTORS))
    if unknown:
        raise ConfigError(f"factor {unknown[0]!r} is unknown", expected=" or ".join(FACTORS), where="without")
    if classes == "new" and not use_support:
        raise ConfigError("new classes without support", expected="use_support=True", where="reference")
    if int(batch.classes.max()) >= len(EMOTIONS):
        raise EpisodeError(f"label {int(batch.classes.max())}", expected="the 24 emotions of SynEmo", where="reference")
    facts = evidence.hidden | frozenset(without), pooled
    some = (batch[first : first + CHUNK] for first in range(0, len(batch), CHUNK))
    if classes == "known":
        scores = np.concatenate([_known(evidence, part, use_support, *facts) for part in some])
    else:
        scores = np.concatenate([_new(evidence, part, *facts) for part in some])
    return scores - logsumexp(scores, -1, keepdims=True)


def _known(
    evidence: Evidence, batch: EpisodeBatch, use_support: bool, without: frozenset[str], pooled: bool
) -> np.ndarray:
    """(episode, query, way) unnormalised."""
    levels = dict(zip(FACTORS, np.moveaxis(EMOTIONS[batch.classes.numpy()], -1, 0), strict=True))
    support, query = batch.support.numpy(), batch.query.numpy()
    said = {
        "synchrony": (evidence.pooled if pooled else evidence.synchrony)[query],
        "interaction": evidence.interaction[query],
        "order": _rate_integrated(evidence.order, levels["order"], support, query, use_support),
    }
    score = np.zeros((*query.shape, batch.n_way))
    for name in sorted(set(said) - without):
        score += np.take_along_axis(said[name], levels[name][:, None], 2)
    if "level" not in without:
        score += _level(evidence.level, levels["level"], support, query, use_support)
    return score


def _rate_integrated(
    order: np.ndarray, level: np.ndarray, support: np.ndarray, query: np.ndarray, use_support: bool
) -> np.ndarray:
    """(episode, query, level of order), the rate weighted by what the support says of it."""
    weight = np.zeros((len(query), order.shape[1]))
    if use_support:
        shown = np.moveaxis(order[support], -1, 0)  # (level, episode, way, shot, rate)
        weight = np.where(level[..., None, None] == 0, *shown).sum((1, 2))
    weight -= logsumexp(weight, 1, keepdims=True)
    return logsumexp(weight[:, None, :, None] + order[query], 2)


def _level(
    value: np.ndarray, above: np.ndarray, support: np.ndarray, query: np.ndarray, use_support: bool
) -> np.ndarray:
    """(episode, query, way), the baseline integrated over its posterior N(mean, variance) by conjugacy."""
    sign = LAW.level_shift * (2 * above - 1)
    precision, total = 1 / LAW.domain_level_sd**2, np.zeros(len(query))
    if use_support:
        total = (value[support] - sign[..., None]).sum((1, 2)) / LAW.level_sd**2
        precision += support[0].size / LAW.level_sd**2
    gap = value[query][..., None] - (total / precision)[:, None, None] - sign[:, None]
    return -(gap**2) / (2 * (1 / precision + LAW.level_sd**2))


def _new(evidence: Evidence, batch: EpisodeBatch, without: frozenset[str], pooled: bool) -> np.ndarray:
    """(episode, query, way): classes are any of the 24 emotions, independently; baseline and rate are on grids."""
    support = _tuples(evidence, batch.support.flatten(1).numpy(), without, pooled)
    # (episode, way, emotion, rate, baseline)
    own = support.reshape(len(batch), batch.n_way, batch.n_shot, *support.shape[2:]).sum(2)
    total = logsumexp(own, 2, keepdims=True)
    grid = total[:, :, 0].sum(1) - BASELINES**2 / (2 * LAW.domain_level_sd**2)  # (episode, rate, baseline)
    weight = grid - logsumexp(grid, (1, 2), keepdims=True)
    joint = (own - total) + weight[:, None, None]
    query = _tuples(evidence, batch.query.numpy(), without, pooled)
    scores = [logsumexp(joint[:, None, way] + query, (2, 3, 4)) for way in range(batch.n_way)]
    return np.stack(scores, -1)


def _tuples(evidence: Evidence, rows: np.ndarray, without: frozenset[str], pooled: bool) -> np.ndarray:
    """(episode, clip, emotion, rate, baseline) log-likelihood."""
    fixed = np.zeros((*rows.shape, len(EMOTIONS)))
    for name in {"synchrony", "interaction"} - without:
        said = evidence.pooled if pooled and name == "synchrony" else getattr(evidence, name)
        fixed += said[rows][..., EMOTIONS[:, _AXES[name]]]
    result = fixed[..., None, None] + np.zeros((len(LAW.contour_hz), len(BASELINES)))
    if "order" not in without:
        result += np.moveaxis(evidence.order[rows][..., EMOTIONS[:, _AXES["order"]]], 2, 3)[..., None]
    if "level" not in without:
        sign = LAW.level_shift * (2 * EMOTIONS[:, _AXES["level"]] - 1)
        gap = evidence.level[rows][..., None, None] - sign[:, None] - BASELINES
        result += (-(gap**2) / (2 * LAW.level_sd**2))[..., None, :]
    return result
