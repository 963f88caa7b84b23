"""From one clip to an answer: a finished run adapts to a few labelled clips, then reads a recording window by window.

`predict` does both. Who asks about many clips of one person calls `adapt` once and `read` for each clip.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stf2m_core.calibration import (
    Asked,
    Reference,
    Source,
    encode_clips,
    evidence,
    plain_statistics,
    recalled,
    reference,
    softened,
    weights_digest,
)
from stf2m_core.clip_features import (
    ClipFeatures,
    media_settings,
    packed,
    reads_recordings,
    recorded,
    resident,
    row_of,
    whole,
    windows,
)
from stf2m_core.data.media import MediaSettings
from stf2m_core.data.pack import Pack, open_pack
from stf2m_core.encoding import encode_episodes, model_statistics
from stf2m_core.episodes import Splits
from stf2m_core.errors import ConfigError, KitError, RunError
from stf2m_core.model.fuzzy import rule_labels
from stf2m_core.model.st_f2m import STF2M, FastWeights, Support
from stf2m_core.prediction import ModalityReading, Prediction, RuleReading, Timeline
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.support_list import Example, SupportList, read_support
from stf2m_core.training import Run, cpu_threads, load_model
from stf2m_core.views import ResidentViews, Statistics

_HELD = 1024  # windows whose frames are held at once
Table = str | os.PathLike[str] | pd.DataFrame | Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSettings:
    """How a clip is read.

    Raises:
        ConfigError: if a value makes no sense.
    """

    window_s: float = 2.0
    """Length of a window in seconds."""
    hop_s: float = 0.25
    """From the start of one window to that of the next."""
    n_rules: int = 4
    """How many rules are told of."""
    chunk: int = 64
    """Windows computed at once; changes memory, not results."""
    seed: int = 0
    """Of the random views of the support and the orders in which it is read."""

    def __post_init__(self) -> None:
        rules = {
            "window_s": (0 < self.window_s < math.inf, "more than 0 seconds"),
            "hop_s": (0 < self.hop_s <= self.window_s, "more than 0, at most window_s"),
            "n_rules": (self.n_rules >= 0, "at least 0"), "chunk": (self.chunk >= 1, "at least 1"),
        }  # fmt: skip
        for name, (fine, expected) in rules.items():
            if not fine:
                raise ConfigError(f"{name} = {getattr(self, name)}", expected=expected, where="PredictionSettings")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Adapted:
    """A run that has seen its support, ready to read clips.

    Attributes:
        run: its folder.
        model: its weights.
        data: the pack on the model's device.
        splits: of the run.
        pack: on which it was trained.
        media: settings of the front end; None if the run reads nothing that recordings give.
        settings: how clips are read.
        source: whose clips the support has.
        labels: of the episode, in order.
        classes: (way,) index of each label among the pack's; 0 for a new emotion.
        theta: fast weights after the last inner step.
        support: encoded; None without.
        statistics: by which clips are standardised.
        names: of the support clips, as they lie in `support`, with labels in `given`.
        given: (name, label) once each.
        remarks: what was noticed.
        seconds: what took how long.
    """

    run: Path
    model: STF2M
    data: ResidentViews
    splits: Splits
    pack: Pack
    media: MediaSettings | None
    settings: PredictionSettings
    source: Source
    labels: tuple[str, ...]
    classes: Tensor
    theta: FastWeights
    support: Support | None
    statistics: Statistics
    names: tuple[str, ...] = ()
    given: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of the run."""
        return tuple(self.data.modalities)


def predict(
    run: Run | str | os.PathLike[str], clip: str | os.PathLike[str], *, support: Table | None = None,
    pack: Pack | str | os.PathLike[str] | None = None, same_person: bool | None = None, text: str = "",
    words_path: str | os.PathLike[str] = "", audio_path: str | os.PathLike[str] = "", start_s: float = 0.0,
    end_s: float = math.inf, settings: PredictionSettings | None = None, media: MediaSettings | None = None,
    device: str | None = None,
) -> Prediction:  # fmt: skip
    """What a trained run says of one clip, over time and as a whole, and why.

    Args:
        run: a finished run or its folder.
        clip: a recording, or the clip_id of a clip of the pack.
        support: labelled clips to adapt to: a folder with one sub-folder per label, or a table (or CSV file) with
            label, path or clip_id, and optionally start_s, end_s, text, words_path, audio_path. None: what
            meta-training knows of the known emotions answers.
        pack: on which the run was trained; None: the one in the results folder that the run lies in.
        same_person: whether the support shows the person of the clip; None: yes if the run was trained so.
        text: what is said in the clip.
        words_path: a transcript with times instead.
        audio_path: a file whose sound is taken instead of the clip's own.
        start_s: where in the recording the clip begins.
        end_s: where it ends.
        settings: windows and the like; None: the defaults.
        media: settings of the front end that made the pack; None: those that the pack states, else the defaults.
        device: None: the run's.

    Raises:
        RunError: if the run is not finished or of another pack, if the clip is not found or has other features than
            the run was trained on, or if there is no support and the run knows no emotions.
        MediaError: if a recording cannot be read or shows nothing.
        ManifestError: if the support is malformed or has an unknown label.
        EpisodeError: if the support has fewer than two labels.
    """
    ready = adapt(run, support, pack=pack, same_person=same_person, settings=settings, media=media, device=device)
    return read(ready, clip, text=text, words_path=words_path, audio_path=audio_path, start_s=start_s, end_s=end_s)


def adapt(
    run: Run | str | os.PathLike[str], support: Table | None = None, *,
    pack: Pack | str | os.PathLike[str] | None = None, same_person: bool | None = None,
    settings: PredictionSettings | None = None, media: MediaSettings | None = None, device: str | None = None,
) -> Adapted:  # fmt: skip
    """Load a run and adapt it to a support; arguments and errors as of `predict`."""
    started = time.perf_counter()
    folder = Path(run.path if isinstance(run, Run) else run)
    pack = pack if isinstance(pack, Pack) else open_pack(pack if pack is not None else _pack_beside(folder))
    model, data, splits = load_model(folder, pack, device)
    knows = bool(model.known.any())
    if support is None and not knows:
        raise RunError("there is no support, and this run knows no emotions beforehand", expected="a support",
                       where=str(folder), remedy="Give labelled clips")  # fmt: skip
    facts = {"run": folder, "model": model, "data": data, "splits": splits, "pack": pack,
             "settings": settings or PredictionSettings()}  # fmt: skip
    names = tuple(data.modalities)
    facts["media"] = media_settings(pack, names, media) if reads_recordings(pack, names, media) else None
    seconds = {"load the run": time.perf_counter() - started}
    if support is None:
        known = torch.nonzero(model.known)[:, 0]
        names = tuple(pack.labels[label] for label in known.tolist())
        return Adapted(**facts, source="none", labels=names, classes=known, theta=model.unmodulated(1), support=None,
                       statistics=plain_statistics(model, data), seconds=seconds)  # fmt: skip
    listed = read_support(support, pack.labels if knows else None)
    trained = any(kind.regime == "P" for kind in model.config.episodes)
    own = trained if same_person is None else same_person
    return _adapted(facts, listed, own, knows, seconds)


def _pack_beside(folder: Path) -> Path:
    """Of results/runs/<data set>/<run>: results/packs/<data set>.

    Raises:
        RunError: if there is none.
    """
    place = folder.resolve()
    if len(place.parents) > 2:
        beside = place.parents[2] / "packs" / place.parent.name
        if (beside / "pack.json").exists():
            return beside
    raise RunError("the pack on which the run was trained is not beside it", expected="results/packs/<data set>",
                   where=str(folder), remedy="Name it with pack=, or --pack")  # fmt: skip


def _adapted(facts: dict[str, Any], listed: SupportList, own: bool, knows: bool, seconds: dict[str, float]) -> Adapted:
    model, data, pack, settings = (facts[name] for name in ("model", "data", "pack", "settings"))
    started = time.perf_counter()
    clips = [_example(example, facts) for example in listed.examples]
    seconds = seconds | {"read the support": time.perf_counter() - started}
    started = time.perf_counter()
    index = _shots(listed)
    pieces = [(clips[i], whole(clips[i])) for i in index.flatten()]
    people = _people(listed, pack)
    views = resident(pieces, pack, model.config.views, data.device, subjects=[people[i] for i in index.flatten()])
    classes = torch.tensor([pack.labels.index(label) if knows else 0 for label in listed.labels], device=data.device)
    rows = torch.arange(index.size, device=data.device).view(1, *index.shape)
    nothing = torch.zeros(1, 1, dtype=torch.long, device=data.device)
    batch = EpisodeBatch(nothing[0], classes[None], rows, nothing, nothing, torch.tensor([own], device=data.device))
    # a class with fewer clips shows them again; together they count as often as they are
    copies = np.bincount(index.flatten(), minlength=len(clips))[index.flatten()]
    with cpu_threads(model.config.train.threads), torch.no_grad():
        episode = encode_episodes(model, views, batch, seed=settings.seed, stream="evaluation",
                                  n_orders=model.config.meta_rnn.n_orders)  # fmt: skip
        weight = episode.support.weight / torch.from_numpy(copies).to(episode.support.weight)
        encoded = replace(episode.support, weight=weight)
        theta = model.adapt(encoded, model.config.inner.steps_test)[-1]
        statistics = views.support_statistics(batch.support, model_statistics(model))
    seconds |= {"adapt": time.perf_counter() - started}
    remarks = (*listed.remarks, *(f"support clip {clip.name}: {remark}" for clip in clips for remark in clip.remarks))
    given = tuple((clip.name, example.label) for clip, example in zip(clips, listed.examples, strict=True))
    return Adapted(**facts, source="own" if own else "others", labels=listed.labels, classes=classes, theta=theta,
                   support=encoded, statistics=statistics, names=tuple(clips[i].name for i in index.flatten()),
                   given=given, remarks=remarks, seconds=seconds)  # fmt: skip


def _shots(listed: SupportList) -> np.ndarray:
    """(way, shot) indices of examples; classes with fewer clips than the largest begin again."""
    own = [[i for i, e in enumerate(listed.examples) if e.label == label] for label in listed.labels]
    return np.stack([np.resize(some, max(map(len, own))) for some in own])


def _people(listed: SupportList, pack: Pack) -> list[str]:
    """Whose clip each example is: as the list or the pack says, else somebody of whom no other clip is (D-75)."""
    found = []
    for number, example in enumerate(listed.examples):
        row = row_of(example.clip_id, pack) if example.clip_id and not example.subject else None
        found.append(example.subject or (f"clip {number}" if row is None else str(pack.clips["subject"].iloc[row])))
    return found


def _example(example: Example, facts: dict[str, Any]) -> ClipFeatures:
    span = {"start_s": example.start_s, "end_s": example.end_s}
    more = {name: getattr(example, name) for name in ("text", "words_path", "audio_path")}
    return _features(example.path or example.clip_id, facts["pack"], tuple(facts["data"].modalities), facts["media"],
                     more | span, "support")  # fmt: skip


def _features(
    clip: str | os.PathLike[str], pack: Pack, modalities: tuple[str, ...], media: MediaSettings | None,
    more: dict[str, Any], role: str,
) -> ClipFeatures:  # fmt: skip
    """The features of a recording, or of a clip of the pack where there is no such file."""
    if Path(clip).is_file():
        features = recorded(clip, pack, media_settings(pack, modalities, media), **more)
    else:
        row = row_of(os.fspath(clip), pack)
        if row is None:
            raise RunError(f"there is neither a file nor a clip of the pack called {os.fspath(clip)!r}",
                           expected="a recording, or a clip_id", where=role)  # fmt: skip
        features = packed(row, pack, modalities)
    if not features.observed(whole(features), modalities).any():
        there = ", ".join(features.streams) or "nothing"
        raise RunError(f"{features.name} shows {there}, none of it observed", where=role,
                       expected=f"some of what the run reads: {', '.join(modalities)}")  # fmt: skip
    return features


def read(
    ready: Adapted, clip: str | os.PathLike[str], *, text: str = "", words_path: str | os.PathLike[str] = "",
    audio_path: str | os.PathLike[str] = "", start_s: float = 0.0, end_s: float = math.inf,
) -> Prediction:  # fmt: skip
    """Read one clip with an adapted run; arguments and errors as of `predict`."""
    seconds, started = dict(ready.seconds), time.perf_counter()
    more = {"text": text, "words_path": words_path, "audio_path": audio_path, "start_s": start_s, "end_s": end_s}
    features = _features(clip, ready.pack, ready.modalities, ready.media, more, "predict")
    seconds["read the clip"] = time.perf_counter() - started
    started = time.perf_counter()
    with cpu_threads(ready.model.config.train.threads):
        made = _read(ready, features)
    seconds |= made.seconds | {"answer": time.perf_counter() - started - sum(made.seconds.values())}
    return replace(made, seconds={name: round(value, 3) for name, value in seconds.items()})


def why_not(ready: Adapted, clip: str | os.PathLike[str]) -> str:
    """The sentence with which a clip would be refused; "" if it would be read.

    Args:
        ready: an adapted run.
        clip: a recording, or the clip_id of a clip of the pack.
    """
    try:
        _features(clip, ready.pack, ready.modalities, ready.media, {}, "predict")
    except KitError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """Answers about some views: (clip, way) log-probabilities, (clip, rule) firing, (clip,) membership."""

    log_probability: np.ndarray
    firing: np.ndarray
    membership: np.ndarray


@torch.no_grad()
def _say(ready: Adapted, clip: ClipFeatures, spans: np.ndarray, keep: Tensor | None = None) -> _Said:
    """Answer some spans of a clip; what is held at once does not grow with the clip.

    Args:
        ready: adapted.
        clip: its features.
        spans: (span, 2) seconds; in each something is observed.
        keep: (modality,) bool, what may be seen; None: all.
    """
    parts = []
    for part in np.split(spans, range(_HELD, len(spans), _HELD)):
        views = resident([(clip, part)], ready.pack, ready.model.config.views, ready.data.device)
        for row in torch.arange(len(part), device=views.device).split(ready.settings.chunk):
            hidden = None if keep is None else keep.expand(len(row), -1)
            encoded = encode_clips(ready.model, views, row, ready.statistics, hidden)
            if ready.support is None:
                said = ready.model.fuzzify(encoded, ready.theta)
                parts.append((recalled(ready.model, said), said.firing[0], said.typicality[0]))
            else:
                told = ready.model.predict(encoded, ready.theta, ready.support)
                parts.append((told.log_probability[0], told.fuzzified.firing[0], told.fuzzified.typicality[0]))
    return _Said(*(torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True)))


class _Judge:
    """Answers spans of a clip, each read against meta-validation read in the same way; keeps what was used.

    Attributes:
        used: name to reference.
        remarks: why one could not be kept.
        seconds: spent on references.
    """

    def __init__(self, ready: Adapted, clip: ClipFeatures):
        self.ready, self.clip = ready, clip
        self.used: dict[str, Reference] = {}
        self.remarks: list[str] = []
        self.seconds = 0.0

    def reference(self, window_s: float | None, hidden: tuple[str, ...]) -> Reference:
        """Of spans without the hidden modalities."""
        ready, started = self.ready, time.perf_counter()
        n_shot = len(ready.names) // len(ready.labels)
        asked = Asked(source=ready.source, n_way=len(ready.labels), n_shot=n_shot, window_s=window_s, hidden=hidden)
        if asked.title not in self.used:
            made, remark = reference(ready.run, ready.model, ready.data, ready.splits, ready.pack, asked)
            self.used[asked.title] = made
            self.remarks += [remark] if remark else []
        self.seconds += time.perf_counter() - started
        return self.used[asked.title]

    def answers(self, spans: np.ndarray, observed: np.ndarray, window_s: float | None) -> _Answers:
        """Of some spans, with (span, modality) shares observed."""
        said = _say(self.ready, self.clip, spans)
        probability, facts = np.empty_like(said.log_probability), np.empty((2, len(spans)))
        for pattern in np.unique(observed > 0, axis=0):
            some = ((observed > 0) == pattern).all(1)
            hidden = tuple(n for n, there in zip(self.ready.modalities, pattern, strict=True) if not there)
            known = self.reference(window_s, hidden)
            probability[some] = np.exp(softened(said.log_probability[some], known.temperature))
            facts[0, some] = known.typicality(said.membership[some], observed[some])
            facts[1, some] = evidence(observed[some], known.observed)
        return _Answers(probability, facts[0], said.membership, facts[1], said.firing)


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """(span, way) probabilities, (span,) typicality, membership and evidence, (span, rule) firing."""

    probability: np.ndarray
    typicality: np.ndarray
    membership: np.ndarray
    evidence: np.ndarray
    firing: np.ndarray


def _read(ready: Adapted, clip: ClipFeatures) -> Prediction:
    spans = windows(clip.duration_s, ready.settings.window_s, ready.settings.hop_s)
    observed, share = (clip.observed(some, ready.modalities) for some in (spans, whole(clip)))
    seen = observed.any(1)
    judge = _Judge(ready, clip)
    longest = ready.model.config.encoder.slot_s * (ready.model.config.encoder.max_slots - 1)
    is_short = clip.duration_s <= longest
    main = (whole(clip), share) if is_short else (spans[seen], observed[seen])
    answer = judge.answers(*main, None if is_short else ready.settings.window_s)
    over_time = judge.answers(spans[seen], observed[seen], ready.settings.window_s) if is_short else answer
    known = next(iter(judge.used.values()))
    probability, has_rules = answer.probability.mean(0), ready.model.has_rules
    remarks = [] if is_short else [f"longer than {longest:g} s, so the whole is the mean of its windows"]
    remarks = [*clip.remarks, *remarks, *ready.remarks, *judge.remarks]
    return Prediction(
        clip=clip.name, duration_s=clip.duration_s, labels=ready.labels, probability=probability,
        read="whole" if is_short else "mean of windows",
        typicality=float(np.median(answer.typicality)) if has_rules else None,
        membership=float(np.median(answer.membership)) if has_rules else None, evidence=float(answer.evidence.mean()),
        timeline=_timeline(spans, observed, seen, over_time, has_rules),
        modalities=_modalities(ready, clip, *main, probability, known),
        rules=_rules(ready, answer.firing.mean(0), known) if has_rules else (), source=ready.source,
        support=ready.given, calibration=judge.used, words=clip.words, word_times=clip.word_times,
        remarks=tuple(dict.fromkeys(remarks)), facts=_facts(ready), seconds={"calibrate (once)": judge.seconds},
    )  # fmt: skip


def _timeline(
    spans: np.ndarray, observed: np.ndarray, seen: np.ndarray, answers: _Answers, has_rules: bool
) -> Timeline:
    probability = np.full((len(spans), answers.probability.shape[1]), np.nan)
    typicality, membership = np.full(len(spans), np.nan), np.full(len(spans), np.nan)
    probability[seen] = answers.probability
    if has_rules:
        typicality[seen], membership[seen] = answers.typicality, answers.membership
    return Timeline(spans, probability, typicality, membership, observed)


def _modalities(
    ready: Adapted, clip: ClipFeatures, spans: np.ndarray, observed: np.ndarray, probability: np.ndarray,
    known: Reference,
) -> tuple[ModalityReading, ...]:  # fmt: skip
    """Each modality with what the answer would lose without it, at one temperature."""
    top, share, readings = int(probability.argmax()), clip.observed(whole(clip), ready.modalities)[0], []
    for column, name in enumerate(ready.modalities):
        others = spans[np.delete(observed, column, 1).any(1)]  # where something is left to read
        change = None
        if share[column] > 0 and len(others):
            keep = torch.arange(len(ready.modalities), device=ready.data.device) != column
            pair = [softened(_say(ready, clip, others, k).log_probability, known.temperature) for k in (None, keep)]
            kept, left = (np.logaddexp.reduce(said[:, top]) for said in pair)
            change = float(kept - left)
        readings.append(ModalityReading(name=name, observed=float(share[column]), change=change))
    return tuple(readings)


@torch.no_grad()
def _rules(ready: Adapted, firing: np.ndarray, known: Reference) -> tuple[RuleReading, ...]:
    """The rules that fired most, with what they stand for."""
    model, nearest = ready.model, None
    prior = torch.softmax(model.rules.label_score[:, ready.classes], -1)[None]
    by_label = np.array(known.rules)[:, ready.classes.cpu().numpy()]
    means = by_label / np.maximum(by_label.sum(1, keepdims=True), 1e-12)
    if ready.support is not None:
        clean = model.fuzzify(ready.support.clean, ready.theta).firing
        nearest = clean[0].argmax(0).tolist()
        prior = model.rules.prior(ready.classes[None], model.known)
        if not bool(model.known[ready.classes].all()):
            facts = (clean, ready.support.target, ready.support.weight, prior, model.config.fuzzy.prior_weight)
            means = rule_labels(*facts)[0].double().cpu().numpy()
    usual, prior = np.array(known.rules).mean(1), prior[0].double().cpu().numpy()
    return tuple(
        RuleReading(
            number=int(rule) + 1, firing=float(firing[rule]), usual=float(usual[rule]),
            stands_for=_ranked(ready.labels, means[rule]), prior=_ranked(ready.labels, prior[rule]),
            nearest="" if nearest is None else ready.names[nearest[rule]],
        )
        for rule in np.argsort(-firing, kind="stable")[: ready.settings.n_rules]
    )  # fmt: skip


def _ranked(labels: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    return {labels[way]: float(shares[way]) for way in np.argsort(-shares, kind="stable")}


def _facts(ready: Adapted) -> dict[str, Any]:
    return {
        "run": str(ready.run), "weights": weights_digest(ready.run), "pack": ready.pack.name,
        "pack_digest": ready.pack.digest, "settings": asdict(ready.settings),
        "front_end": ready.media.digest() if ready.media else None,
    }  # fmt: skip
