"""SynEmo, the embedded synthetic set: a configuration goes in, clips with known laws come out; no file is read.

An emotion is y = (order, synchrony, level, interaction): 2 * 3 * 2 * 2 = 24 fine-grained emotions. Each factor has its
own evidence, independent of that of the other factors given the domain and subject, and can be switched off:

- order: node "contour" of audio is a noisy asymmetric triangle; its two laws are time reversals of each other.
- synchrony: channel "carrier" of visual; which pairs of nodes share a white carrier. Any single node has the same law.
- level: channel "level" of visual, constant in a clip, above or below the domain's baseline.
- interaction: node "tone" of audio, constant in a clip, and text correlate positively or negatively; each alone tells
  nothing.

Source: ours, docs/METHOD.md section 'Synthetic set'.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd

from stf2m_core.data import synemo_laws as laws
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.synemo_laws import EMOTIONS, FACTORS, LABELS, LAW, factor_contrast_classes, label_of
from stf2m_core.errors import ConfigError
from stf2m_core.seeding import numpy_generator

__all__ = ["EMOTIONS", "FACTORS", "LABELS", "LAW", "SynEmoConfig", "domain_table", "factor_contrast_classes"]
__all__ += ["generate", "label_of"]

_NODES = {"audio": ("contour", "tone"), "visual": ("a", "b", "c", "d"), "text": ("meaning",)}
_CHANNELS = {"audio": ("value",), "visual": ("carrier", "level"), "text": ("value",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SynEmoConfig:
    """What to generate. A factor switched off has the same law for all its levels: one drawn afresh for each clip.

    Attributes:
        seed: 0 or more; every draw follows from it.
        n_domains: domains; each has its own baseline level, contour rate and audio sampling step.
        n_subjects_per_domain: subjects in a domain.
        n_sessions: recording sessions of a subject, at least 2.
        clips_per_class: clips of a subject with each emotion, spread evenly over the sessions.
        order, synchrony, level, interaction: whether the factor can be seen in the clips.
        pure: no gains, dead nodes, subject terms or jitter, and by default no ambiguity and no dropout.
        ambiguity: probability that a neighbouring emotion is mixed in; None means 0 in `pure`, else 0.3. Above 0, there
            are votes.
        dropout: modalities are missing at rates drawn from U(0, dropout) per domain and modality; None means 0 in
            `pure`, else 0.5.

    Raises:
        ConfigError: if a value is out of range.
    """

    seed: int = 0
    n_domains: int = 12
    n_subjects_per_domain: int = 4
    n_sessions: int = 2
    clips_per_class: int = 4
    order: bool = True
    synchrony: bool = True
    level: bool = True
    interaction: bool = True
    pure: bool = False
    ambiguity: float | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        least = {"seed": 0, "n_domains": 1, "n_subjects_per_domain": 1, "n_sessions": 2}
        least["clips_per_class"] = self.n_sessions
        for name, bound in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < bound:
                expected = f"an integer of at least {bound}"
                raise ConfigError(f"{name} is {value!r}", expected=expected, where="SynEmoConfig")
        for name in (*FACTORS, "pure"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", expected="True or False", where="SynEmoConfig")
        for name in ("ambiguity", "dropout"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= 1):
                raise ConfigError(f"{name} is {value!r}", expected="a probability or None", where="SynEmoConfig")

    @classmethod
    def preset(cls, name: str, **changes: object) -> SynEmoConfig:
        """The named sizes, "smoke" (4,608 clips) or "standard" (23,040 clips), with single settings changed.

        Raises:
            ConfigError: if there is no such preset or setting, or a value is out of range.
        """
        sizes = {"smoke": {}, "standard": {"n_domains": 30, "clips_per_class": 8}}
        if name not in sizes:
            raise ConfigError(f"preset {name!r} is unknown", expected=" or ".join(sizes), where="SynEmoConfig")
        known = [field.name for field in fields(cls)]
        for key in changes:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ConfigError(f"setting {key!r} is unknown", where="SynEmoConfig", remedy=f"Did you mean {near!r}?")
        return cls(**sizes[name] | changes)

    @property
    def ambiguity_rate(self) -> float:
        """Probability that a neighbouring emotion is mixed in."""
        return float((0.0 if self.pure else 0.3) if self.ambiguity is None else self.ambiguity)

    @property
    def dropout_rate(self) -> float:
        """Largest rate at which a domain lacks a modality."""
        return float((0.0 if self.pure else 0.5) if self.dropout is None else self.dropout)

    def digest(self) -> str:
        """12 hex digits of the settings and of the laws; configurations that generate the same have the same."""
        facts = {**asdict(self), "ambiguity": self.ambiguity_rate, "dropout": self.dropout_rate, "law": asdict(LAW)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def domain_table(config: SynEmoConfig) -> pd.DataFrame:
    """One row per domain: domain, level_offset (unitless), contour_hz (Hz), step_s (seconds between audio frames).

    For references that know the nuisances; a model must never see it.
    """
    size, width = config.n_domains, len(str(config.n_domains - 1))
    return pd.DataFrame(
        {
            "domain": [f"d{number:0{max(2, width)}d}" for number in range(size)],
            "level_offset": _draws(config)("domain level").normal(0, LAW.domain_level_sd, size),
            "contour_hz": _draws(config)("domain rate").choice(LAW.contour_hz, size),
            "step_s": _draws(config)("domain step").choice(LAW.step_s, size),
        }
    )


def generate(config: SynEmoConfig) -> tuple[pd.DataFrame, dict[str, RaggedViews]]:
    """Clips and their views (float32), the same bytes for the same configuration.

    Clips are sorted by subject, so that subjects of a domain are adjacent, then by session; within a session the order
    is random. Columns beyond a pack's own: x_order, x_synchrony, x_level, x_interaction, the factor levels of the
    clip's emotion y. With ambiguity also votes_<label>, x_neighbour (the emotion mixed in, or "") and x_state (the
    emotion the signals show); then `label` is the plurality of the votes, and "", undefined, where labels tie.

    Args:
        config: what to generate.

    Returns:
        clips, one row per clip, and views: "audio" (32 frames; contour, tone), "visual" (60 frames; four nodes;
        carrier, level), "text" (1 frame). Time stamps are seconds from the clip's start. A missing modality is an empty
        slice; dead nodes are zero and masked.

    Source: ours, docs/METHOD.md section 'Synthetic set'.
    """
    design, domains = _design(config), domain_table(config)
    clips, state = _label(config, design["emotion"], _table(config, design, domains))
    times = _times(config, domains["step_s"].to_numpy()[design["domain"]])
    signals = _signals(config, _shown_levels(config, EMOTIONS[state]), design, domains, times["audio"])
    present = _presence(config, design["domain"])
    return clips, {
        modality: _ragged(config, modality, signals[modality], times[modality], present[modality], design["domain"])
        for modality in signals
    }


def _draws(config: SynEmoConfig) -> laws.Draws:
    """One generator per purpose, so that switching one thing off leaves the draws of all others as they are."""
    return lambda purpose: numpy_generator(config.seed, "synemo", purpose)


def _design(config: SynEmoConfig) -> dict[str, np.ndarray]:
    """For each clip, (clip,) int64: domain, subject (over all domains), session (over all subjects) and emotion."""
    n_subjects = config.n_domains * config.n_subjects_per_domain
    grid = np.indices((n_subjects, config.clips_per_class, len(EMOTIONS))).reshape(3, -1)
    subject, take, emotion = grid
    session = subject * config.n_sessions + take % config.n_sessions
    # shuffled within a session: the position of a clip must not tell its emotion
    rows = np.lexsort((_draws(config)("clip order").random(len(subject)), session))
    domain = subject // config.n_subjects_per_domain
    return {"domain": domain[rows], "subject": subject[rows], "session": session[rows], "emotion": emotion[rows]}


def _table(config: SynEmoConfig, design: dict[str, np.ndarray], domains: pd.DataFrame) -> pd.DataFrame:
    """clips.csv without labels."""
    width = len(str(config.n_subjects_per_domain - 1))
    subjects = [f"{domain}-s{i:0{width}d}" for domain in domains["domain"] for i in range(config.n_subjects_per_domain)]
    width = len(str(config.n_sessions - 1))
    sessions = [f"{subject}/{i:0{width}d}" for subject in subjects for i in range(config.n_sessions)]
    position = np.arange(len(design["session"])) - np.searchsorted(design["session"], design["session"])
    width = len(str(position.max()))
    numbers = np.array([f"/{i:0{width}d}" for i in range(position.max() + 1)], object)
    group = np.array(sessions, object)[design["session"]]
    duration = LAW.audio_frames * domains["step_s"].to_numpy()[design["domain"]]
    columns = {
        "clip_id": group + numbers[position],
        "subject": np.array(subjects, object)[design["subject"]],
        "group": group,
        "domain": domains["domain"].to_numpy(object)[design["domain"]],
        "duration_s": duration.round(6),
        "label": np.array(LABELS, object)[design["emotion"]],
        "split": "",
        "text": "",
    }
    levels = zip(FACTORS.items(), EMOTIONS[design["emotion"]].T, strict=True)
    return pd.DataFrame(columns | {f"x_{factor}": np.array(names, object)[level] for (factor, names), level in levels})


def _label(config: SynEmoConfig, emotion: np.ndarray, clips: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The clips with votes and labels, and (clip,) the emotion that the signals show."""
    if config.ambiguity_rate == 0:
        return clips, emotion
    votes, neighbour, state = laws.votes(_draws(config), emotion, config.ambiguity_rate)
    unique = (votes == votes.max(1, keepdims=True)).sum(1) == 1
    names = np.array([*LABELS, ""], object)
    changes = {
        "label": np.where(unique, names[votes.argmax(1)], ""),
        "x_neighbour": names[neighbour],
        "x_state": names[state],
    }
    counts = pd.DataFrame(votes, columns=[f"votes_{label}" for label in LABELS])
    return pd.concat([clips.assign(**changes), counts], axis=1), state


def _shown_levels(config: SynEmoConfig, levels: np.ndarray) -> dict[str, np.ndarray]:
    """For each factor, (clip,) the level the signals show: its own, or one drawn afresh where the factor is off."""
    shown = dict(zip(FACTORS, levels.T, strict=True))
    for factor, names in FACTORS.items():
        if not getattr(config, factor):
            shown[factor] = _draws(config)(f"{factor} off").integers(len(names), size=len(levels))
    return shown


def _times(config: SynEmoConfig, step: np.ndarray) -> dict[str, np.ndarray]:
    """For each modality, (clip, frame) seconds from the clip's start.

    The law of the audio stamps is the same when time runs backwards, so that stamps alone tell nothing of the order.
    """
    shape = (len(step), LAW.audio_frames)
    jitter = 0.0 if config.pure else _draws(config)("jitter").uniform(-LAW.jitter, LAW.jitter, shape)
    audio = (np.arange(LAW.audio_frames) + 0.5 + jitter) * step[:, None]
    visual = np.tile((np.arange(LAW.visual_frames) + 0.5) / LAW.visual_hz, (len(step), 1))
    return {"audio": audio, "visual": visual, "text": 0.5 * LAW.audio_frames * step[:, None]}


def _signals(
    config: SynEmoConfig,
    shown: dict[str, np.ndarray],
    design: dict[str, np.ndarray],
    domains: pd.DataFrame,
    times: np.ndarray,
) -> dict[str, np.ndarray]:
    """For each modality, (clip, frame, node, channel) before the sensors; `times` are those of audio."""
    draws, domain = _draws(config), design["domain"]
    spread = 0.0 if config.pure else LAW.subject_level_sd
    subject = draws("subject level").normal(0, 1, config.n_domains * config.n_subjects_per_domain) * spread
    baseline = domains["level_offset"].to_numpy()[domain] + subject[design["subject"]]
    contour = laws.contour(draws, shown["order"], domains["contour_hz"].to_numpy()[domain], times)
    tone, text = laws.tone_and_text(draws, shown["interaction"])
    carrier, level = laws.carrier(draws, shown["synchrony"]), laws.level(draws, shown["level"], baseline)
    return {
        "audio": np.stack([contour, np.broadcast_to(tone[:, None], contour.shape)], axis=2)[..., None],
        "visual": np.stack([carrier, np.broadcast_to(level[:, None, None], carrier.shape)], axis=3),
        "text": text[:, None, None, None],
    }


def _presence(config: SynEmoConfig, domain: np.ndarray) -> dict[str, np.ndarray]:
    """For each modality, (clip,) whether the clip has it; every clip has at least one."""
    rate = _draws(config)("dropout rate").uniform(0, 1, (config.n_domains, len(_NODES))) * config.dropout_rate
    draw = _draws(config)("dropout").random((len(domain), len(_NODES)))
    present = (draw >= rate[domain]) | (draw == draw.max(1, keepdims=True))
    return dict(zip(_NODES, present.T, strict=True))


def _ragged(
    config: SynEmoConfig, modality: str, signal: np.ndarray, times: np.ndarray, present: np.ndarray, domain: np.ndarray
) -> RaggedViews:
    """The modality as each domain's sensors give it, with a gain for each node and channel and some nodes dead."""
    signal, times, domain = signal[present], times[present], domain[present]
    frames, n_nodes, n_channels = signal.shape[1:]
    mask = None
    if not config.pure:
        shape = (config.n_domains, n_nodes, n_channels)
        gain = np.exp(_draws(config)(f"{modality} gain").normal(0, LAW.log_gain_sd, shape))
        draw = _draws(config)(f"{modality} nodes").random(shape[:2])
        # at least one node lives: a modality without any would be a missing one, and dropout decides on those
        alive = (draw >= LAW.dead_nodes) | (draw == draw.max(1, keepdims=True))
        signal = signal * (gain * alive[..., None])[domain][:, None]
        mask = np.repeat(alive[domain].astype(np.uint8), frames, axis=0)
    return RaggedViews(
        values=signal.reshape(-1, n_nodes, n_channels).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(present * frames)]).astype(np.int64),
        nodes=_NODES[modality],
        channels=_CHANNELS[modality],
        rate_hz=LAW.visual_hz if modality == "visual" else None,
        times=times.reshape(-1).astype(np.float32),
        mask=mask,
    )
