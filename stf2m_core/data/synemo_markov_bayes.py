"""The Bayes reference of Markov clips: segments and supports enter, log-probabilities of every segment's emotion leave.

Level, tone and text are constant in a segment and jump where the next begins, so who knows the laws sees every
boundary; what is left to infer is each segment's emotion, by forward-backward over the clip's segments. No model can do
better except by chance. Source: ours, docs/METHOD.md section 'Synthetic set'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from stf2m_core.data.pack import Pack
from stf2m_core.data.synemo_bayes import carrier_likelihood, contour_likelihood, pair_likelihood
from stf2m_core.data.synemo_laws import EMOTIONS, FACTORS, LAW
from stf2m_core.data.synemo_markov import MarkovConfig
from stf2m_core.errors import ConfigError
from stf2m_core.markov import forward_backward

N_BASELINES = 9
"""Gauss-Hermite nodes for what the support leaves open of the domain's baseline."""
CHUNK = 8


@dataclass(frozen=True)
class SegmentEvidence:
    """What each segment says of each level of each factor.

    Attributes:
        order: (segment, rate, level) log-likelihood of the contour at each possible rate, phase integrated out.
        synchrony: (segment, level) log-likelihood of the carriers.
        level: (segment,) the level itself; its likelihood needs the baseline.
        interaction: (segment, level) log-likelihood of tone and text.
    """

    order: np.ndarray
    synchrony: np.ndarray
    level: np.ndarray
    interaction: np.ndarray


def evidence(segments: Pack) -> SegmentEvidence:
    """The evidence of every segment.

    Args:
        segments: the cut pack, whose clips are whole segments.

    Raises:
        ConfigError: if a modality has masked frames, or a segment lacks one.
    """
    audio, visual, text = (segments.view(name) for name in ("audio", "visual", "text"))
    for view in (audio, visual, text):
        if view.mask is not None or (view.lengths == 0).any():
            raise ConfigError("masked or missing frames", expected="a pure set", where=str(segments.path))
    carrier = carrier_likelihood(np.asarray(visual.values[..., 0], np.float64)[:, None])
    first = audio.offsets[:-1]
    tone, meaning = audio.values[first, 1, 0].astype(np.float64), text.values[text.offsets[:-1], 0, 0]
    return SegmentEvidence(
        order=_order(segments), synchrony=np.add.reduceat(carrier, visual.offsets[:-1]),
        level=visual.values[visual.offsets[:-1], 0, 1].astype(np.float64),
        interaction=pair_likelihood(tone, meaning.astype(np.float64)),
    )  # fmt: skip


def _order(segments: Pack) -> np.ndarray:
    """(segment, rate, level), segments of equal length together."""
    view = segments.view("audio")
    found = np.zeros((len(segments), len(LAW.contour_hz), 2))
    for length in np.unique(view.lengths):
        rows = np.flatnonzero(view.lengths == length)
        frames = view.offsets[rows, None] + np.arange(length)
        times = np.asarray(view.times, np.float64)[frames]
        found[rows] = contour_likelihood(view.values[frames, 0, 0].astype(np.float64), times)
    return found


def reference(
    evidence: SegmentEvidence, config: MarkovConfig, support: np.ndarray, classes: np.ndarray, clip: np.ndarray,
    n_segments: np.ndarray, *, chained: bool = True,
) -> np.ndarray:  # fmt: skip
    """Log-probabilities of each segment's emotion, given its whole clip and the support: (episode, segment, label).

    Args:
        evidence: of all segments.
        config: which emotions there are and how they follow one another.
        support: (episode, way, shot) rows of labelled segments of the same domain.
        classes: (episode, way) labels.
        clip: (episode, segment) rows of a clip's segments in order, padded with any row.
        n_segments: (episode,) segments of each clip.
        chained: False reads each segment on its own, as if its neighbours told nothing.
    """
    parts = []
    for first in range(0, len(support), CHUNK):
        some = slice(first, first + CHUNK)
        parts.append(_reference(evidence, config, support[some], classes[some], clip[some], n_segments[some], chained))
    return np.concatenate(parts)


def _reference(
    evidence: SegmentEvidence, config: MarkovConfig, support: np.ndarray, classes: np.ndarray, clip: np.ndarray,
    n_segments: np.ndarray, chained: bool,
) -> np.ndarray:  # fmt: skip
    levels = dict(zip(FACTORS, EMOTIONS[config.emotions].T, strict=True))
    shown = {name: level[classes] for name, level in levels.items()}  # (episode, way)
    rate = _rate(evidence.order[support], shown["order"])
    baseline, weight = _baseline(evidence.level[support], shown["level"])
    fixed = evidence.synchrony[clip][..., levels["synchrony"]] + evidence.interaction[clip][..., levels["interaction"]]
    order = np.moveaxis(evidence.order[clip][..., levels["order"]], 2, 1)  # (episode, rate, segment, label)
    sign = LAW.level_shift * (2 * levels["level"] - 1)
    gap = evidence.level[clip][:, None, :, None] - baseline[..., None, None] - sign
    level = -(gap**2) / (2 * LAW.level_sd**2)  # (episode, baseline, segment, label)
    likelihood = fixed[:, None, None] + order[:, :, None] + level[:, None]
    n_labels = len(config.emotions)
    even = np.full(n_labels, 1 / n_labels)
    transition = config.transition if chained else np.tile(even, (n_labels, 1))
    steps = np.broadcast_to(n_segments[:, None, None], likelihood.shape[:3])
    posterior, total = forward_backward(likelihood, transition, even, steps)
    said = rate[:, :, None] + weight + total
    said -= logsumexp(said, (1, 2), keepdims=True)
    return logsumexp(said[..., None, None] + posterior, (1, 2))


def _rate(order: np.ndarray, level: np.ndarray) -> np.ndarray:
    """(episode, rate) log-likelihood of the support's contours, whose levels (episode, way) are known."""
    shown = np.take_along_axis(order, level[:, :, None, None, None], -1)[..., 0]
    return shown.sum((1, 2))


def _baseline(value: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(episode, node) baselines that stand for its normal posterior given the support, and (node,) log-weights."""
    sign = LAW.level_shift * (2 * above - 1)
    precision = 1 / LAW.domain_level_sd**2 + value[0].size / LAW.level_sd**2
    mean = (value - sign[..., None]).sum((1, 2)) / LAW.level_sd**2 / precision
    node, weight = np.polynomial.hermite_e.hermegauss(N_BASELINES)
    return mean[:, None] + node / precision**0.5, np.log(weight)
