"""What happens when: episodes and clips enter, emotions on a regular clock leave.

A run that was trained on segments adapts once per episode, then reads clips of the query side through windows that
slide over real time. All windows of some episodes are one batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stf2m_core.data.pack import Pack
from stf2m_core.data.segments import rows_of, span_labels, spans
from stf2m_core.encoding import encode_clips, encode_episodes, model_statistics
from stf2m_core.errors import ConfigError, EpisodeError, PackError
from stf2m_core.markov import forward_backward, shares_of, transitions
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import cpu_threads, load_model
from stf2m_core.views import ResidentViews

_HELD = 512  # windows encoded at once; changes memory, not results


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSettings:
    """How clips are read over time.

    Attributes:
        window_s: length of the windows, seconds.
        hop_s: from one step of the clock to the next, seconds.

    Raises:
        ConfigError: if a value makes no sense.
    """

    window_s: float = 1.5
    hop_s: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.hop_s <= self.window_s < np.inf:
            raise ConfigError(f"window_s = {self.window_s}, hop_s = {self.hop_s}", where="ClockSettings",
                              expected="0 < hop_s <= window_s")  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Timelines:
    """Some clips on a regular clock; step k is the time from k * hop_s to (k + 1) * hop_s.

    Attributes:
        labels: of the data set.
        clip: (timeline,) int64 row of the clip.
        subject: (timeline,) who is seen.
        settings: of the clock.
        n_steps: (timeline,) int64, steps until the clip ends.
        truth: (timeline, step) int64 label of each step; -1 where unlabelled, tied or beyond the end.
        log_probability: (timeline, step, label); -inf for emotions that were not asked about.
    """

    labels: tuple[str, ...]
    clip: np.ndarray
    subject: np.ndarray
    settings: ClockSettings
    n_steps: np.ndarray
    truth: np.ndarray
    log_probability: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """(step,) seconds, the middle of each step."""
        return (np.arange(self.truth.shape[1]) + 0.5) * self.settings.hop_s

    @property
    def predicted(self) -> np.ndarray:
        """(timeline, step) int64 most probable label; -1 where all that were asked about are equally probable."""
        said, asked = self.log_probability, np.isfinite(self.log_probability)
        least = np.where(asked, said, np.inf).min(-1)
        return np.where(asked.any(-1) & (said.max(-1) > least), said.argmax(-1), -1)


def query_clips(batch: EpisodeBatch, pack: Pack, recordings: Pack, n_clips: int = 1) -> np.ndarray:
    """(episode, clip) int64 rows of the recordings from which an episode's first queries were cut.

    So what keeps support and query apart, by clip, group and subject, also keeps the clips apart from the support.

    Args:
        batch: episodes of the cut pack.
        pack: made by `cut` from `recordings`.
        recordings: the clips.
        n_clips: different clips per episode.

    Raises:
        EpisodeError: if an episode's queries come from fewer clips.
        PackError: if the pack was not cut from these recordings.
    """
    if "x_clip" not in pack.clips:
        raise PackError("column x_clip is missing", expected="a pack of segments", where=str(pack.path))
    rows = rows_of(recordings, pack.clips["x_clip"].to_numpy())[batch.query.numpy()]
    earlier = (rows[:, :, None] == rows[:, None]) & np.tri(rows.shape[1], k=-1, dtype=bool)
    order = np.argsort(earlier.any(2), 1, kind="stable")  # first mentions first
    found = (~earlier.any(2)).sum(1)
    if found.min() < n_clips:
        raise EpisodeError(f"the queries of an episode come from {found.min()} clips", expected=f"at least {n_clips}",
                           where=str(pack.path), remedy="Raise n_query or lower n_clips")  # fmt: skip
    return np.take_along_axis(rows, order, 1)[:, :n_clips]


def blank(recordings: Pack, clip: np.ndarray, settings: ClockSettings) -> Timelines:
    """Timelines with their truth and nothing said yet.

    A step's label is that of most of its labelled time (`span_labels`). A step that two segments share equally has the
    label of its later half; what is tied among raters stays undefined.

    Args:
        recordings: with segments.
        clip: (timeline,) int64 rows.
        settings: of the clock.
    """
    duration, hop = recordings.clips["duration_s"].to_numpy()[clip], settings.hop_s
    n_steps = np.maximum(np.ceil(duration / hop - 1e-6), 1).astype(np.int64)
    step = np.arange(n_steps.max())
    inside = step < n_steps[:, None]
    start = np.broadcast_to(step * hop, inside.shape)[inside]
    owner = np.repeat(clip, n_steps)
    end = np.minimum(start + hop, np.repeat(duration, n_steps))
    share = span_labels(recordings, owner, start, end)
    label = _leading(share)
    tied = (label < 0) & np.isfinite(share).all(1)
    label[tied] = _leading(span_labels(recordings, owner[tied], ((start + end) / 2)[tied], end[tied]))
    truth = np.full(inside.shape, -1)
    truth[inside] = label
    subject = recordings.clips["subject"].to_numpy(str)[clip]
    even = np.full((*inside.shape, len(recordings.labels)), -np.log(len(recordings.labels)))
    return Timelines(recordings.labels, clip, subject, settings, n_steps, truth, even)


def _leading(share: np.ndarray) -> np.ndarray:
    """(span,) label with the largest share; -1 where none leads or nothing is known."""
    told = np.nan_to_num(share, nan=-1.0)
    leads = told >= told.max(1, keepdims=True) - 1e-9  # shares are sums of seconds
    return np.where(leads.sum(1) == 1, told.argmax(1), -1)


def windows(timelines: Timelines, duration_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(timeline, step) starts and ends in seconds: windows around the steps, moved inside where they leave the clip.

    A clip shorter than a window is one window. Beyond a clip's end the last window is repeated.
    """
    duration = duration_s[:, None]
    at = np.minimum(np.arange(timelines.truth.shape[1]), timelines.n_steps[:, None] - 1)
    length = np.minimum(timelines.settings.window_s, duration)
    start = np.clip((at + 0.5) * timelines.settings.hop_s - length / 2, 0, duration - length)
    return start, start + length


def over_time(
    run_dir: str | os.PathLike[str], pack: Pack, recordings: Pack, batch: EpisodeBatch, clips: np.ndarray, *,
    settings: ClockSettings | None = None, seed: int = 0, device: str | None = None,
) -> Timelines:  # fmt: skip
    """Class probabilities over time of clips that a run has not seen.

    Args:
        run_dir: a finished run, trained on `pack`.
        pack: of segments.
        recordings: from which it was cut.
        batch: episodes of `pack`; of each only classes and support are used.
        clips: (episode, clip) rows of `recordings`, as from `query_clips`.
        settings: of the clock.
        seed: of the random views of the support.
        device: None: the run's.

    Returns:
        One timeline per episode and clip, episode-major.

    Raises:
        RunError: if the run is not finished or of another pack.
        PackError: if the recordings have other modalities, nodes or channels than the pack.
    """
    made = blank(recordings, clips.ravel(), settings or ClockSettings())
    start, end = windows(made, recordings.clips["duration_s"].to_numpy()[made.clip])
    owner = np.broadcast_to(made.clip[:, None], start.shape)
    shape = len(batch), -1
    said = read_spans(run_dir, pack, recordings, batch, *(x.reshape(shape) for x in (owner, start, end)), seed=seed,
                      device=device)  # fmt: skip
    return replace(made, log_probability=said.reshape(*made.truth.shape, -1))


def read_spans(
    run_dir: str | os.PathLike[str], pack: Pack, recordings: Pack, batch: EpisodeBatch, owner: np.ndarray,
    start_s: np.ndarray, end_s: np.ndarray, *, seed: int = 0, device: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Log-probabilities (episode, span, label) of any spans of clips, after one adaptation per episode.

    Where no modality has a frame, all emotions asked about are equally probable.

    Args:
        owner: (episode, span) rows of `recordings`.
        start_s: (episode, span) seconds.
        end_s: (episode, span) seconds.

    Other arguments and errors as of `over_time`.
    """
    _refuse_other_features(pack, recordings)
    model, data, _ = load_model(run_dir, pack, device)
    n_together = model.config.evaluation.chunk
    parts = []
    with cpu_threads(model.config.train.threads):
        for first in range(0, len(batch), n_together):
            some = slice(first, first + n_together)
            spoken = [array[some] for array in (owner, start_s, end_s)]
            parts.append(_read(model, data, recordings, batch[some].to(data.device), spoken, seed))
    return np.concatenate(parts)


@torch.no_grad()
def _read(
    model: STF2M, data: ResidentViews, recordings: Pack, batch: EpisodeBatch, place: Sequence[np.ndarray], seed: int
) -> np.ndarray:
    """(episode, span, label) of the episodes of one chunk."""
    small = replace(batch, query=batch.query[:, :1], query_label=batch.query_label[:, :1])
    episode = encode_episodes(model, data, small, seed=seed, stream="evaluation",
                              n_orders=model.config.meta_rnn.n_orders)  # fmt: skip
    theta = model.adapt(episode.support, model.config.inner.steps_test)[-1]
    statistics = data.support_statistics(batch.support, model_statistics(model))
    width = max(1, _HELD // len(batch))
    said = []
    for first in range(0, place[0].shape[1], width):
        owner, start, end = (array[:, first : first + width] for array in place)
        views, seen = _views(recordings, owner.ravel(), start.ravel(), end.ravel(), data)
        encoded = encode_clips(model, views, torch.arange(owner.size, device=data.device), statistics)
        told = model.predict(encoded, theta, episode.support).log_probability
        even = torch.full_like(told, -float(np.log(batch.n_way)))
        said.append(torch.where(seen.view(len(batch), -1, 1), told, even))
    found = _by_label(torch.cat(said, 1), batch.classes, len(data.soft_labels[0]))
    return found.double().cpu().numpy()


def _views(
    recordings: Pack, owner: np.ndarray, start: np.ndarray, end: np.ndarray, data: ResidentViews
) -> tuple[ResidentViews, Tensor]:
    """The spans on the device, and (span,) whether anything is there; of an empty span the whole clip stands in."""
    names = tuple(data.modalities)
    made = spans(recordings, owner, start, end)
    seen = np.any([made.view(name).lengths > 0 for name in names], axis=0)
    if not seen.all():
        whole = recordings.clips["duration_s"].to_numpy()[owner]
        made = spans(recordings, owner, np.where(seen, start, 0.0), np.where(seen, end, whole))
    return ResidentViews(made, data.config, data.device), torch.from_numpy(seen).to(data.device)


def _by_label(said: Tensor, classes: Tensor, n_labels: int) -> Tensor:
    """(episode, span, way) -> (episode, span, label)."""
    empty = said.new_full((*said.shape[:2], n_labels), -torch.inf)
    return empty.scatter(2, classes[:, None].expand_as(said), said)


def _refuse_other_features(pack: Pack, recordings: Pack) -> None:
    for name in pack.modalities:
        own, other = pack.view(name), recordings.view(name)
        if (own.nodes, own.channels) != (other.nodes, other.channels):
            raise PackError(f"{name} has nodes {other.nodes} and channels {other.channels}", where=str(recordings.path),
                            expected=f"{own.nodes} and {own.channels}, as the pack of segments")  # fmt: skip


# --- what is known of time


def counted_transitions(recordings: Pack, subjects: Sequence[str], hop_s: float) -> tuple[np.ndarray, np.ndarray]:
    """How labels follow one another on the clock in the clips of some subjects, and how often each comes.

    Args:
        recordings: with segments.
        subjects: of meta-train.
        hop_s: step of the clock.

    Returns:
        (label, label) and (label,), rows sum to one.
    """
    rows = np.flatnonzero(np.isin(recordings.clips["subject"].to_numpy(str), list(subjects)))
    truth = blank(recordings, rows, ClockSettings(window_s=hop_s, hop_s=hop_s)).truth
    n_labels = len(recordings.labels)
    return transitions(truth, n_labels), shares_of(truth, n_labels)


def smoothed(timelines: Timelines, transition: np.ndarray, share: np.ndarray) -> Timelines:
    """The timelines with what comes before and after each step taken into account, by forward-backward.

    The model answers episodes in which all emotions come equally often, so p(label | window) is the likelihood up to a
    constant, as in hybrid recognisers of speech (Bourlard & Morgan 1994). Windows overlap, and a frame lies in
    window_s / hop_s of them, so each counts by the part hop_s / window_s.

    Args:
        timelines: as read by the model.
        transition: (label, label) of one step of the clock.
        share: (label,) how often each label comes.
    """
    part = timelines.settings.hop_s / timelines.settings.window_s
    asked = np.isfinite(timelines.log_probability)
    likelihood = np.where(asked, part * timelines.log_probability, -np.inf)
    posterior, _ = forward_backward(likelihood, transition, share, timelines.n_steps)
    return replace(timelines, log_probability=posterior)
