"""The laws of SynEmo: names, numbers and a generator go in, the signals of the four factors come out.

Source: ours, docs/METHOD.md section 'Synthetic set'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from types import MappingProxyType

import numpy as np

from stf2m_core.errors import ConfigError

Draws = Callable[[str], np.random.Generator]
"""Gives the generator of a named purpose: each signal has its own draws, whatever else is switched on or off."""

FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "order": ("rising", "falling"),
        "synchrony": ("ab-cd", "ac-bd", "ad-bc"),
        "level": ("low", "high"),
        "interaction": ("agree", "oppose"),
    }
)
"""Names of the four factors and of their levels, in the order in which they make up an emotion."""

EMOTIONS = np.array(list(product(*(range(len(levels)) for levels in FACTORS.values()))))
"""(emotion, factor) int64: the levels of each of the 24 emotions."""

_DISTANCE = (EMOTIONS[:, None] != EMOTIONS[None]).sum(2)
NEIGHBOURS = np.nonzero(_DISTANCE == 1)[1].reshape(len(EMOTIONS), -1)
"""(emotion, neighbour) int64: the 5 emotions that differ from each in one factor."""

for _table in (EMOTIONS, NEIGHBOURS):
    _table.setflags(write=False)

PAIR_OF_NODE = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])  # by level of synchrony, in the order of its names


@dataclass(frozen=True, slots=True, kw_only=True)
class SynEmoLaw:
    """The numbers of the laws; part of every digest, so a changed law never passes for the old one."""

    audio_frames: int = 32
    visual_frames: int = 60
    visual_hz: float = 25.0
    amplitude: float = 1.0  # of the triangle, whose variance is 1, in units of the noise
    rise: tuple[float, float] = (0.9, 0.1)  # share of the period, by level of order
    contour_hz: tuple[float, ...] = tuple(np.geomspace(0.6, 1.6, 7).round(6).tolist())
    step_s: tuple[float, float] = (0.08, 0.12)
    jitter: float = 0.15  # largest shift of a time stamp, in steps
    pair_correlation: float = 0.175
    level_shift: float = 0.5
    level_sd: float = 0.3
    domain_level_sd: float = 1.5
    subject_level_sd: float = 0.2
    modality_correlation: float = 0.92
    log_gain_sd: float = 0.3
    dead_nodes: float = 0.1
    blend: float = 0.7  # share of the emotion itself where a neighbour is mixed in
    rater_error: float = 0.05
    raters: tuple[int, int] = (5, 10)


LAW = SynEmoLaw()


def label_of(a: int, b: int, c: int, x: int) -> str:
    """Name of the emotion with these levels of order, synchrony, level and interaction, as "rising.ab-cd.high.agree".

    Raises:
        ConfigError: if a factor has no such level.
    """
    for level, (factor, levels) in zip((a, b, c, x), FACTORS.items(), strict=True):
        if not 0 <= level < len(levels):
            raise ConfigError(f"level {level} of factor {factor!r} is unknown", expected=f"0 to {len(levels) - 1}")
    return ".".join(levels[level] for level, levels in zip((a, b, c, x), FACTORS.values(), strict=True))


LABELS = tuple(label_of(*levels) for levels in EMOTIONS.tolist())
"""Names of the 24 emotions, in the order of `EMOTIONS`."""


def factor_contrast_classes(factor: str) -> tuple[tuple[str, str], ...]:
    """Three pairs of emotions; those of a pair differ in `factor` only, those of different pairs in much else.

    Raises:
        ConfigError: if there is no such factor.
    """
    if factor not in FACTORS:
        raise ConfigError(f"factor {factor!r} is unknown", expected=" or ".join(FACTORS))
    axis = list(FACTORS).index(factor)
    contexts = np.flatnonzero(EMOTIONS[:, axis] == 0)

    def spread(rows: tuple[int, ...]) -> tuple[int, int]:
        distances = [int(_DISTANCE[pair]) for pair in combinations(rows, 2)]
        return min(distances), sum(distances)

    rows = max(combinations(contexts.tolist(), 3), key=spread)
    levels = list(combinations(range(len(FACTORS[factor])), 2))
    pairs = []
    for number, row in enumerate(rows):
        pair = np.tile(EMOTIONS[row], (2, 1))
        pair[:, axis] = levels[number % len(levels)]
        pairs.append(tuple(label_of(*emotion) for emotion in pair.tolist()))
    return tuple(pairs)


def triangle(phase: np.ndarray, rise: np.ndarray | float) -> np.ndarray:
    """Asymmetric triangle wave of period 1, mean 0 and variance 1 that rises for the share `rise` of its period.

    triangle(-phase, rise) equals triangle(phase, 1 - rise): reversing time exchanges the two levels of order.

    Args:
        phase: in periods, any real number.
        rise: strictly between 0 and 1.
    """
    phase = np.mod(phase, 1)
    return np.sqrt(3) * (2 * np.where(phase < rise, phase / rise, (1 - phase) / (1 - rise)) - 1)


def contour(draws: Draws, order: np.ndarray, rate: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(clip, frame) triangle of random phase plus white noise of variance 1.

    Args:
        draws: the generator of each purpose.
        order: (clip,) level of order.
        rate: (clip,) Hz.
        times: (clip, frame) seconds.
    """
    phase = draws("phase").random(len(order))
    wave = triangle(rate[:, None] * times + phase[:, None], np.array(LAW.rise)[order][:, None])
    return LAW.amplitude * wave + draws("contour noise").standard_normal(times.shape)


def carrier(draws: Draws, synchrony: np.ndarray) -> np.ndarray:
    """(clip, frame, node) white noise of variance 1; nodes of a pair correlate, nodes of different pairs do not.

    Args:
        draws: the generator of each purpose.
        synchrony: (clip,) level of synchrony.
    """
    shape = (len(synchrony), LAW.visual_frames)
    shared = draws("carriers").standard_normal((*shape, 2), dtype=np.float32)
    own = draws("node noise").standard_normal((*shape, 4), dtype=np.float32)
    common = np.take_along_axis(shared, PAIR_OF_NODE[synchrony][:, None, :], axis=2)
    return np.float32(LAW.pair_correlation**0.5) * common + np.float32((1 - LAW.pair_correlation) ** 0.5) * own


def level(draws: Draws, above: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """(clip,) a level below or above the clip's own baseline.

    Args:
        draws: the generator of each purpose.
        above: (clip,) level of level, 0 or 1.
        baseline: (clip,) what is neither low nor high where the clip comes from.
    """
    return baseline + LAW.level_shift * (2 * above - 1) + draws("level noise").normal(0, LAW.level_sd, len(above))


def tone_and_text(draws: Draws, interaction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(clip,) twice, each standard normal; correlated positively for "agree" and negatively for "oppose".

    Args:
        draws: the generator of each purpose.
        interaction: (clip,) level of interaction.
    """
    text, rest = draws("tone and text").standard_normal((2, len(interaction)))
    sign = np.where(interaction == 0, 1, -1)
    return LAW.modality_correlation * sign * text + (1 - LAW.modality_correlation**2) ** 0.5 * rest, text


def votes(draws: Draws, emotion: np.ndarray, ambiguity: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What raters say of clips, some of which mix their emotion with a neighbour.

    Args:
        draws: the generator of each purpose.
        emotion: (clip,) index into `EMOTIONS`.
        ambiguity: probability that a neighbour is mixed in.

    Returns:
        (clip, emotion) counts of votes; (clip,) the neighbour mixed in, or -1; (clip,) the emotion the signals show.
    """
    size, one = len(emotion), np.eye(len(EMOTIONS))
    share = np.where(draws("ambiguity").random(size) < ambiguity, LAW.blend, 1.0)
    neighbour = NEIGHBOURS[emotion, draws("neighbour").integers(NEIGHBOURS.shape[1], size=size)]
    state = np.where(draws("state").random(size) < share, emotion, neighbour)
    target = share[:, None] * one[emotion] + (1 - share[:, None]) * one[neighbour]
    seen = (1 - LAW.rater_error) * target + LAW.rater_error / len(EMOTIONS)
    raters = draws("raters").integers(LAW.raters[0], LAW.raters[1] + 1, size=size)
    return draws("votes").multinomial(raters, seen), np.where(share < 1, neighbour, -1), state
