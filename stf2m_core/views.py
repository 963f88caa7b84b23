"""Packs become tensors on a device: padded, masked views of any set of clips, with real time stamps.

A modality finer than the grid is averaged onto it once, when the pack is loaded; a batch is one gather. Where nothing
was observed the values are zero and the mask says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stf2m_core import seeding
from stf2m_core.config import InnerConfig, ViewConfig
from stf2m_core.data.pack import Pack, RaggedViews
from stf2m_core.errors import PackError
from stf2m_core.shapes import ViewBatch


@dataclass(frozen=True)
class Modality:
    """All clips of one modality, resident on the device, frames of all clips in one row.

    Attributes:
        values: (frame, node, channel) float32, zero where not observed.
        mask: (frame, node) bool.
        times: (frame,) float32 seconds since the start of the clip.
        offsets: (clip + 1,) int64; clip i owns frames offsets[i] to offsets[i + 1].
        mean: (clip, node, channel) float32 over the clip's observed frames.
        square: (clip, node, channel) float32 mean of squares.
        seen: (clip, node) float32, 1 where the clip has the node at all.
        step_s: grid step in seconds, or the median step of the pack where its own frames are kept.
    """

    values: Tensor
    mask: Tensor
    times: Tensor
    offsets: Tensor
    mean: Tensor
    square: Tensor
    seen: Tensor
    step_s: float


@dataclass(frozen=True)
class Statistics:
    """How values are standardised: (episode or 1, node, channel) shift and scale per modality.

    `worth` is what shift and variance weigh against an episode's own, in clips: (2, node, channel) per modality.
    """

    shift: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]
    worth: Mapping[str, Tensor]


class ResidentViews:
    """A pack on the device.

    Args:
        pack: the data.
        config: modalities, grid, normalisation.
        device: where the tensors live.

    Raises:
        PackError: if a modality is unknown, or a clip has none of the chosen ones.
    """

    def __init__(self, pack: Pack, config: ViewConfig, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device(device)
        names = config.modalities or pack.modalities
        self.modalities = {name: _resident(pack.view(name), config.step_s, self.device) for name in names}
        told = {name: pack.edges(name) for name in names}
        self.edges = {name: torch.from_numpy(pairs) for name, pairs in told.items() if pairs is not None}
        duration = pack.clips["duration_s"].to_numpy(np.float32)
        self.duration = torch.from_numpy(duration.copy()).to(self.device)
        self.labels = torch.from_numpy(pack.label_ids.copy()).to(self.device)
        subject = np.unique(pack.clips["subject"].to_numpy(str), return_inverse=True)[1]
        self.subjects = torch.from_numpy(subject).to(self.device)
        self.soft_labels = torch.from_numpy(pack.soft_labels.copy()).to(self.device)
        self.has_votes = any(column.startswith("votes_") for column in pack.clips.columns)
        present = torch.stack([(m.seen.sum(1) > 0) for m in self.modalities.values()])
        if not bool(present.any(0).all()):
            row = int((~present.any(0)).nonzero()[0])
            what = f"clip {pack.clips['clip_id'].iloc[row]} has none of the modalities {', '.join(names)}"
            raise PackError(what, expected="at least one", where=str(pack.path), remedy="Choose more modalities")
        self.present = present.T

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Nodes and channels of each modality."""
        return {name: tuple(m.values.shape[1:]) for name, m in self.modalities.items()}

    def gather(self, rows: Tensor) -> dict[str, ViewBatch]:
        """The views of some clips, padded to the longest of them.

        Args:
            rows: (clip,) int64.
        """
        return {name: self._gather(modality, rows) for name, modality in self.modalities.items()}

    def _gather(self, modality: Modality, rows: Tensor) -> ViewBatch:
        start = modality.offsets[rows]
        length = modality.offsets[rows + 1] - start
        slots = torch.arange(max(1, int(length.max())), device=self.device)
        inside = slots < length[:, None]
        frame = torch.where(inside, start[:, None] + slots, torch.zeros_like(start)[:, None])
        mask = modality.mask[frame] & inside[..., None]
        return ViewBatch(modality.values[frame], mask, modality.times[frame], self.duration[rows])

    def training_statistics(self, rows: Tensor) -> Statistics:
        """Mean and standard deviation over the meta-train clips `rows`, each clip counting once."""
        shift, scale, worth = {}, {}, {}
        for name, modality in self.modalities.items():
            mean, variance, _ = _moments(modality, rows[None], rows.new_zeros(1, len(rows)), 1)
            shift[name], scale[name] = mean, torch.sqrt(variance + 1e-5)
            worth[name] = self._worth(modality, rows)
        return Statistics(shift, scale, worth)

    def _worth(self, modality: Modality, rows: Tensor) -> Tensor:
        if self.config.shrinkage is not None:
            return torch.full_like(modality.mean[:2], self.config.shrinkage)
        own, seen = self.subjects[rows], modality.seen[rows]
        variance = modality.square - modality.mean**2
        return torch.stack([worth_in_clips(value[rows], seen, own) for value in (modality.mean, variance)])

    def support_statistics(self, support: Tensor, training: Statistics) -> Statistics:
        """Statistics of each episode's support, shrunk to those of meta-train.

        mu = (n mu_S + k mu_0) / (n + k), and the same for the variance; mu_S is the mean over classes of class means of
        clip means, k the worth in clips. Source: METHOD, 'Support-anchored normalisation'.

        Args:
            support: (episode, way, shot) int64 rows.
            training: of meta-train, with a leading axis of 1.
        """
        if self.config.normalise == "none":
            zeros = {name: torch.zeros_like(t) for name, t in training.shift.items()}
            return replace(training, shift=zeros, scale={name: torch.ones_like(t) for name, t in zeros.items()})
        if self.config.normalise == "global":
            return training
        n_episodes, n_way, n_shot = support.shape
        way = torch.arange(n_way, device=self.device).repeat_interleave(n_shot).expand(n_episodes, -1)
        shift, scale = {}, {}
        for name, modality in self.modalities.items():
            mean, variance, count = _moments(modality, support.flatten(1), way, n_way)
            mean_0, variance_0 = training.shift[name], training.scale[name] ** 2
            own = count[:, None] / (count[:, None] + training.worth[name]).clamp(min=1e-12)  # nothing seen: no share
            shift[name] = own[:, 0] * mean + (1 - own[:, 0]) * mean_0
            scale[name] = torch.sqrt(own[:, 1] * variance + (1 - own[:, 1]) * variance_0 + 1e-5)
        return replace(training, shift=shift, scale=scale)


def worth_in_clips(value: Tensor, seen: Tensor, owner: Tensor) -> Tensor:
    """How many clips of somebody new the mean of all weighs: variance within over variance between owners.

    (node, channel), by the method of moments, from .01 to 10,000; where nobody was seen twice nothing is known, and
    the worth is the largest. Source: empirical Bayes, as James-Stein shrinkage (Efron & Morris 1973); D-56.

    Args:
        value: (clip, node, channel).
        seen: (clip, node) 1 where the clip has the node, else 0.
        owner: (clip,) int64.
    """
    home, owner = value.device, torch.unique(owner.cpu(), return_inverse=True)[1]
    seen, value = seen.cpu().double(), value.cpu().double()
    n_owners = int(owner.max()) + 1
    count = seen.new_zeros(n_owners, seen.shape[1]).index_add_(0, owner, seen)
    total = value.new_zeros(n_owners, *value.shape[1:]).index_add_(0, owner, value * seen[..., None])
    mean = total / count.clamp(min=1)[..., None]
    there = (count > 0).double()
    n_there = there.sum(0)[:, None]
    inside = (seen[..., None] * (value - mean[owner]) ** 2).sum(0)
    within = inside / (count.sum(0)[:, None] - n_there).clamp(min=1)
    grand = (there[..., None] * mean).sum(0) / n_there.clamp(min=1)
    spread = (there[..., None] * (mean - grand) ** 2).sum(0) / (n_there - 1).clamp(min=1)
    between = spread - within * (there / count.clamp(min=1)).sum(0)[:, None] / n_there.clamp(min=1)
    known = (count > 1).any(0)[:, None] & (between > 1e-4 * within)
    return torch.where(known, within / between.clamp(min=1e-30), 1e4).clamp(0.01, 1e4).float().to(home)


def _moments(modality: Modality, rows: Tensor, way: Tensor, n_way: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class-balanced mean, variance (both (episode, node, channel)) and number of clips (episode, node, 1)."""
    member = torch.nn.functional.one_hot(way, n_way).to(modality.mean.dtype)
    seen = modality.seen[rows]
    count = torch.einsum("esw,esv->ewv", member, seen)
    share = member[..., None] * seen[:, :, None] / count.clamp(min=1)[:, None]
    weight = share.sum(2) / (count > 0).sum(1).clamp(min=1)[:, None]
    mean = torch.einsum("esv,esvc->evc", weight, modality.mean[rows])
    square = torch.einsum("esv,esvc->evc", weight, modality.square[rows])
    return mean, (square - mean**2).clamp(min=0), count.sum(1)[..., None]


def standardised(batch: Mapping[str, ViewBatch], statistics: Statistics, n_episodes: int) -> dict[str, ViewBatch]:
    """Views with each episode's shift and scale applied; clips are ordered by episode.

    Args:
        batch: views of episode * clip clips.
        statistics: with a leading axis of `n_episodes` or 1.
        n_episodes: episodes in the batch.
    """
    result = {}
    for name, view in batch.items():
        shift, scale = (t.expand(n_episodes, -1, -1)[:, None, None] for t in _pair(statistics, name))
        values = (view.values.unflatten(0, (n_episodes, -1)) - shift) / scale
        # where, not multiplication: what lies under the mask may be NaN
        values = torch.where(view.mask[..., None], values.flatten(0, 1), torch.zeros((), device=values.device))
        result[name] = ViewBatch(values, view.mask, view.times, view.duration)
    return result


def _pair(statistics: Statistics, name: str) -> tuple[Tensor, Tensor]:
    return statistics.shift[name], statistics.scale[name]


def random_views(
    batch: Mapping[str, ViewBatch], ids: np.ndarray, config: InnerConfig, seed: int, stream: str
) -> dict[str, ViewBatch]:
    """Random views of clips: some modalities left out, time cropped; done by masks alone.

    A clip's draw is a pure function of (seed, stream, ids), so it is the same however episodes are batched. At least
    one modality that the clip has always stays, and a crop that would leave nothing of a modality is not applied.

    Args:
        batch: views of clips.
        ids: (clip, counter) int64; what tells this draw from others: episode, position, draw.
        config: rates.
        seed: of the run.
        stream: name of the purpose.
    """
    device = next(iter(batch.values())).values.device
    present = torch.stack([view.present for view in batch.values()], 1)
    keep = kept_modalities(present.cpu().numpy(), ids, config, seed, stream)
    draw = seeding.uniform(seed, f"{stream}/crop", *ids.T, np.arange(2)[:, None])
    share = config.crop + (1 - config.crop) * draw[0]
    start = torch.from_numpy(((1 - share) * draw[1]).astype(np.float32)).to(device)
    stop = start + torch.from_numpy(share.astype(np.float32)).to(device)
    result = {}
    for column, (name, view) in enumerate(batch.items()):
        relative = view.times / view.duration[:, None]
        inside = (relative >= start[:, None]) & (relative <= stop[:, None])
        cropped = view.mask & inside[..., None]
        usable = cropped.flatten(1).any(1)[:, None, None]
        kept = torch.from_numpy(keep[:, column].copy()).to(device)[:, None, None]
        result[name] = ViewBatch(view.values, torch.where(usable, cropped, view.mask) & kept, view.times, view.duration)
    return result


def kept_modalities(
    present: np.ndarray, ids: np.ndarray, config: InnerConfig, seed: int, stream: str, rate: np.ndarray | None = None
) -> np.ndarray:
    """Which modalities a random view keeps: (clip, modality) bool, at least one that is present in every row.

    Args:
        present: (clip, modality) bool.
        ids: (clip, counter) int64.
        config: rates.
        seed: of the run.
        stream: name of the purpose.
        rate: (clip, 1) chance of leaving a modality out, in place of the configured one and without single views.
    """
    columns = np.arange(present.shape[1])
    draw = seeding.uniform(seed, f"{stream}/drop", *ids[:, None].transpose(2, 0, 1), columns)
    rank = np.where(present, seeding.uniform(seed, f"{stream}/rank", *ids[:, None].transpose(2, 0, 1), columns), 2.0)
    single = seeding.uniform(seed, f"{stream}/single", *ids.T) < (config.single_modality if rate is None else 0)
    first = rank == rank.min(1, keepdims=True)
    keep = present & np.where(single[:, None], first, draw >= (config.modality_drop if rate is None else rate))
    return np.where(keep.any(1, keepdims=True), keep, present & first)


def without(batch: Mapping[str, ViewBatch], keep: Tensor) -> dict[str, ViewBatch]:
    """Views with modalities hidden: `keep` is (clip, modality) bool in the order of `batch`."""
    return {
        name: ViewBatch(view.values, view.mask & keep[:, column, None, None], view.times, view.duration)
        for column, (name, view) in enumerate(batch.items())
    }


def concatenated(batches: Sequence[Mapping[str, ViewBatch]], n_episodes: int) -> dict[str, ViewBatch]:
    """Several batches of the same episodes side by side: episode-major, padded to the longest."""
    result = {}
    for name in batches[0]:
        views = [batch[name] for batch in batches]
        longest = max(view.values.shape[1] for view in views)
        parts = [_padded(view, longest) for view in views]
        result[name] = ViewBatch(
            *(
                torch.cat([getattr(view, key).unflatten(0, (n_episodes, -1)) for view in parts], 1).flatten(0, 1)
                for key in ("values", "mask", "times", "duration")
            )
        )
    return result


def _padded(view: ViewBatch, length: int) -> ViewBatch:
    extra = length - view.values.shape[1]
    if extra == 0:
        return view
    pad = torch.nn.functional.pad
    return ViewBatch(
        pad(view.values, (0, 0, 0, 0, 0, extra)), pad(view.mask, (0, 0, 0, extra)), pad(view.times, (0, extra)),
        view.duration,
    )  # fmt: skip


def _resident(views: RaggedViews, step_s: float, device: torch.device) -> Modality:
    """Bin averages on the modality's grid, and each clip's moments."""
    lengths = np.diff(views.offsets)
    clip = np.repeat(np.arange(len(lengths)), lengths)
    times = _times(views, lengths)
    mask = np.ones(views.values.shape[:2], bool) if views.mask is None else np.asarray(views.mask) > 0
    values = np.where(mask[..., None], np.asarray(views.values, np.float32), 0)
    own_step = _median_step(times, clip)
    keeps_frames = own_step >= step_s or lengths.max(initial=0) <= 1
    # a frame belongs to the bin whose centre is nearest; a bin without a frame stays, masked
    index = np.arange(len(times)) - views.offsets[clip] if keeps_frames else np.floor(times / step_s + 0.5).astype(int)
    n_bins = np.zeros(len(lengths), np.int64)
    np.maximum.at(n_bins, clip, index + 1)
    offsets = np.concatenate([[0], np.cumsum(n_bins)])
    n_all = max(1, offsets[-1])  # a modality that no clip has still needs a frame to read when padding
    bin_of, owner = offsets[clip] + index, np.repeat(np.arange(len(lengths)), n_bins)
    count = _sum_by(bin_of, mask, n_all)
    binned = _sum_by(bin_of, values, n_all) / np.maximum(count, 1)[..., None]
    n_frames = np.bincount(bin_of, minlength=n_all)
    at = np.bincount(bin_of, weights=times, minlength=n_all) / np.maximum(n_frames, 1)
    at = np.where(n_frames > 0, at, (np.arange(n_all) - np.resize(offsets[owner], n_all)) * step_s)
    filled = slice(0, len(owner))
    seen = _sum_by(owner, count[filled] > 0, len(lengths))
    mean = _sum_by(owner, binned[filled], len(lengths)) / np.maximum(seen, 1)[..., None]
    square = _sum_by(owner, binned[filled] ** 2, len(lengths)) / np.maximum(seen, 1)[..., None]
    arrays = (binned, count > 0, at, offsets, mean, square, seen > 0)
    kinds = (np.float32, bool, np.float32, np.int64, np.float32, np.float32, np.float32)
    tensors = (torch.from_numpy(np.ascontiguousarray(a, k)).to(device) for a, k in zip(arrays, kinds, strict=True))
    return Modality(*tensors, step_s=max(own_step, step_s))


def _times(views: RaggedViews, lengths: np.ndarray) -> np.ndarray:
    if views.times is not None:
        return np.asarray(views.times, np.float64)
    if not views.rate_hz:
        return np.zeros(lengths.sum())
    return (np.arange(lengths.sum()) - np.repeat(views.offsets[:-1], lengths)) / views.rate_hz


def _median_step(times: np.ndarray, clip: np.ndarray) -> float:
    step = np.diff(times)[np.diff(clip) == 0]
    step = step[step > 0]
    return float(np.median(step)) if len(step) else 0.0


def _sum_by(owner: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Sums of the rows of `values` by `owner`, which never decreases."""
    result = np.zeros((n, *values.shape[1:]))
    if len(owner):
        first = np.flatnonzero(np.r_[True, np.diff(owner) > 0])
        result[owner[first]] = np.add.reduceat(values.astype(np.float64), first, axis=0)
    return result
