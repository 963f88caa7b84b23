"""One clip's features as a trained model reads them: a recording or a row of a pack enters, spans of it leave as views.

A recording is decoded once; windows are cut from its features. Features that are not those of the pack on which the
model was trained, node for node and channel for channel, are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stf2m_core.config import ViewConfig
from stf2m_core.data.head import read_head
from stf2m_core.data.media import MODALITIES, MediaSettings, Stream, read_clip
from stf2m_core.data.media.transcript import read_transcript, spread
from stf2m_core.data.pack import Pack
from stf2m_core.errors import RunError
from stf2m_core.views import ResidentViews


@dataclass(frozen=True, slots=True, eq=False)
class ClipFeatures:
    """What a model can see of one clip.

    Attributes:
        name: of the clip.
        duration_s: of the clip.
        streams: modality to its frames; a modality that the clip does not have is not there.
        words: what is said, and (word,) seconds when.
        word_times: of the words.
        remarks: what was noticed while reading.
        path: the recording; None for a row of a pack.
        start_s: where in the recording the clip begins.
        end_s: where it ends.
    """

    name: str
    duration_s: float
    streams: dict[str, Stream]
    words: tuple[str, ...] = ()
    word_times: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()
    path: Path | None = None
    start_s: float = 0.0
    end_s: float = math.inf

    def observed(self, spans: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
        """(span, modality) share of the nodes and frames there that were observed; 0 where there is no frame.

        Of a stream with a known rate, frames that should be there and are not count as not observed.
        """
        shares = np.zeros((len(spans), len(modalities)))
        for column, name in enumerate(modalities):
            if name in self.streams:
                stream = self.streams[name]
                first, last = _frames(stream, spans, self.duration_s)
                total = np.concatenate([[0.0], np.cumsum(stream.mask.mean(1))])
                due = np.floor((spans[:, 1] - spans[:, 0]) * (stream.rate_hz or 0) + 1e-6) - 1
                shares[:, column] = (total[last] - total[first]) / np.maximum(np.maximum(last - first, due), 1)
        return shares


def whole(clip: ClipFeatures) -> np.ndarray:
    """(1, 2): the span of the whole clip."""
    return np.array([[0.0, clip.duration_s]])


def windows(duration_s: float, window_s: float, hop_s: float) -> np.ndarray:
    """(window, 2) starts and ends in seconds; the last window ends with the clip, a short clip is one window.

    Example:
        >>> windows(3.2, 2.0, 1.0).tolist()
        [[0.0, 2.0], [1.0, 3.0], [1.2000000000000002, 3.2]]
    """
    if duration_s <= window_s:
        return np.array([[0.0, duration_s]])
    starts = np.arange(0.0, duration_s - window_s + 1e-9, hop_s)
    if starts[-1] + window_s < duration_s - 1e-6:
        starts = np.append(starts, duration_s - window_s)
    return np.stack([starts, starts + window_s], 1)


def media_settings(pack: Pack, modalities: Sequence[str], settings: MediaSettings | None) -> MediaSettings:
    """The settings of the front end for a model's modalities: those that made the pack.

    A pack says them as `media` of its `made_from`, as every import of recordings does; where it says nothing they are
    the caller's, or else the defaults. The caller's may name another place of the same face model.

    Raises:
        RunError: if no recording can give any of the modalities, or the caller's settings are not those of the pack.
    """
    made = _made_with(pack)
    if not reads_recordings(pack, modalities, settings):
        raise RunError(
            f"the run reads {', '.join(modalities)}", expected=f"some of {', '.join(MODALITIES)}, as recordings give",
            where=str(pack.path), remedy="Name a clip of the pack instead of a file",
        )  # fmt: skip
    asked = [_only(some, modalities) for some in (settings, made) if some is not None]
    if len(asked) == 2 and asked[0].digest() != asked[1].digest():
        raise RunError(f"settings {asked[0].digest()} of the front end", where=str(pack.path),
                       expected=f"{asked[1].digest()}, which made the pack", remedy="Leave media out")  # fmt: skip
    return asked[0] if asked else _only(MediaSettings(), modalities)


def reads_recordings(pack: Pack, modalities: Sequence[str], settings: MediaSettings | None) -> bool:
    """Whether a recording can give any of the modalities; arguments as of `media_settings`."""
    made = _made_with(pack) or settings or MediaSettings()
    return bool(set(modalities) & {*MODALITIES, *_of_own_models(made)})


def _of_own_models(settings: MediaSettings) -> dict[str, str]:
    """Modality that a model of the user's own gives, to the one it needs."""
    face = {} if settings.face_model is None else {settings.face_model.kind: "visual"}
    return face | ({"sentence": "text"} if settings.sentence_model else {})


def _only(settings: MediaSettings, modalities: Sequence[str]) -> MediaSettings:
    """The settings with what these modalities need and nothing else."""
    own = {name: needs for name, needs in _of_own_models(settings).items() if name in modalities}
    wanted = tuple(name for name in MODALITIES if name in (*modalities, *own.values()))
    face = settings.face_model if "visual" in own.values() else None
    sentence = settings.sentence_model if "sentence" in own else ""
    return replace(settings, modalities=wanted, face_model=face, sentence_model=sentence)


def _made_with(pack: Pack) -> MediaSettings | None:
    """The settings that the pack says it was made with; None if it says none."""
    made = read_head(pack.path).get("made_from")
    said = made.get("media") if isinstance(made, dict) else None
    if said is None:
        return None
    try:
        return MediaSettings(**said)
    except TypeError as error:
        raise RunError(f"made_from.media is {said!r}", expected="settings of the front end of this version",
                       where=str(pack.path / "pack.json")) from error  # fmt: skip


def recorded(
    path: str | os.PathLike[str], pack: Pack, settings: MediaSettings, *, audio_path: str | os.PathLike[str] = "",
    text: str = "", words_path: str | os.PathLike[str] = "", start_s: float = 0.0, end_s: float = math.inf,
) -> ClipFeatures:  # fmt: skip
    """The features of a recording, decoded once.

    Args:
        path: the file.
        pack: on which the model was trained; its nodes, channels and clock are the measure.
        settings: of the front end, as from `media_settings`.
        audio_path: a file whose sound is taken instead.
        text: what is said.
        words_path: a transcript with times.
        start_s: where in the file the clip begins.
        end_s: where it ends.

    Raises:
        MediaError: if the file cannot be read, is truncated, or shows nothing.
        RunError: if its features have other nodes or channels than those of the pack.
    """
    read = read_clip(path, settings, audio_path=audio_path, text=text, words_path=words_path, start_s=start_s,
                     end_s=end_s)  # fmt: skip
    name = Path(path).name if start_s == 0 and math.isinf(end_s) else f"{Path(path).name} from {start_s:g} s"
    streams = {modality: _on_clock(stream, pack, modality, settings) for modality, stream in read.streams.items()}
    words, times = _words(text, words_path, start_s, read.duration_s)
    clip = ClipFeatures(name, read.duration_s, streams, words, times, read.remarks, Path(path), start_s, end_s)
    check_features(clip, pack)
    return clip


def _words(text: str, words_path: str | os.PathLike[str], start_s: float, duration_s: float
           ) -> tuple[tuple[str, ...], tuple[float, ...]]:  # fmt: skip
    """What is said and when, for people to read; also where the model does not read it."""
    if words_path:
        script = read_transcript(Path(words_path), start_s=start_s, end_s=start_s + duration_s)
    else:
        script = spread(text, 0.0, duration_s)
    return script.words, tuple(map(float, script.times))


def _on_clock(stream: Stream, pack: Pack, modality: str, settings: MediaSettings) -> Stream:
    """Where the pack counts frames from 0 s, frames are stamped where their window begins and not at its middle."""
    if modality not in pack.modalities:
        return stream
    view = pack.view(modality)
    if view.times is None and stream.rate_hz is not None and stream.rate_hz == view.rate_hz:
        return replace(stream, times=np.maximum(stream.times - np.float32(settings.window_s / 2), 0))
    return stream


def check_features(clip: ClipFeatures, pack: Pack) -> None:
    """Refuse a clip whose features are not those of the pack, by name and in order.

    Raises:
        RunError: naming the modality and both lists.
    """
    for modality, stream in clip.streams.items():
        if modality not in pack.modalities:
            continue
        view = pack.view(modality)
        for what in ("nodes", "channels"):
            own, wanted = getattr(stream, what), getattr(view, what)
            if own != tuple(wanted):
                raise RunError(
                    f"{modality} of {clip.name} has {what} {_listed(own)}",
                    expected=f"{_listed(wanted)}, on which the run was trained", where=str(pack.path),
                    remedy="Read the clip with the settings that made the pack, or train a run on features of "
                    "recordings",
                )  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, … ({len(names)} of them)"


def packed(row: int, pack: Pack, modalities: Sequence[str]) -> ClipFeatures:
    """The features of a row of a pack.

    Args:
        row: of clips.csv.
        pack: the data.
        modalities: of the model.
    """
    facts, streams = pack.clips.iloc[row], {}
    for name in modalities:
        view = pack.view(name)
        first, last = view.offsets[row], view.offsets[row + 1]
        if last > first:
            values = np.asarray(view.values[first:last], np.float32)
            count = np.arange(last - first)
            times = count / view.rate_hz if view.times is None else np.asarray(view.times[first:last])
            mask = np.ones(values.shape[:2], np.uint8) if view.mask is None else np.asarray(view.mask[first:last])
            streams[name] = Stream(values, times.astype(np.float32), mask, tuple(view.nodes), tuple(view.channels),
                                   view.rate_hz)  # fmt: skip
    words = tuple(facts["text"].split())
    times = tuple((np.arange(len(words)) + 0.5) / max(len(words), 1) * facts["duration_s"])
    return ClipFeatures(str(facts["clip_id"]), float(facts["duration_s"]), streams, words, times)


def row_of(clip_id: str, pack: Pack) -> int | None:
    """The row of a clip of the pack; None if there is none of that name."""
    row = np.flatnonzero((pack.clips["clip_id"] == clip_id).to_numpy())
    return int(row[0]) if row.size else None


def resident(
    pieces: Sequence[tuple[ClipFeatures, np.ndarray]], pack: Pack, config: ViewConfig, device: torch.device | str,
    labels: Sequence[str] | None = None, subjects: Sequence[str] | None = None,
) -> ResidentViews:  # fmt: skip
    """Spans of clips as views on the device: one row per span, piece by piece; each has its own clock from 0.

    Args:
        pieces: clips and (span, 2) seconds in them; in every span something must be observed.
        pack: on which the model was trained.
        config: of the run.
        device: where the tensors live.
        labels: of the rows; None: undefined.
        subjects: of the rows; None: another one each.
    """
    names = tuple(config.modalities or pack.modalities)
    n_rows = sum(len(spans) for _, spans in pieces)
    length = np.concatenate([spans[:, 1] - spans[:, 0] for _, spans in pieces])
    rows = [str(row) for row in range(n_rows)]
    clips = pd.DataFrame({"clip_id": rows, "subject": rows if subjects is None else list(subjects),
                          "duration_s": length, "label": "" if labels is None else list(labels)})  # fmt: skip
    views = {name: _ragged(name, pieces, pack) for name in names}
    return ResidentViews(replace(pack, clips=clips, segments=None, modalities=names, _views=views), config, device)


def _ragged(name: str, pieces: Sequence[tuple[ClipFeatures, np.ndarray]], pack: Pack) -> object:
    """The spans' frames of one modality, one after the other."""
    view = pack.view(name)
    shape = (0, len(view.nodes), len(view.channels))
    values, times, masks, lengths = [np.zeros(shape, np.float32)], [np.zeros(0)], [np.zeros(shape[:2], np.uint8)], [[0]]
    for clip, spans in pieces:
        if name not in clip.streams:
            lengths.append(np.zeros(len(spans), np.int64))
            continue
        stream = clip.streams[name]
        first, last = _frames(stream, spans, clip.duration_s)
        count = last - first
        owner = np.repeat(np.arange(len(spans)), count)
        frame = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[owner]
        values.append(stream.values[frame])
        times.append(np.maximum(stream.times[frame] - spans[owner, 0], 0))
        masks.append(stream.mask[frame])
        lengths.append(count)
    return replace(view, values=np.concatenate(values), offsets=np.cumsum(np.concatenate(lengths)), rate_hz=None,
                   times=np.concatenate(times).astype(np.float32), mask=np.concatenate(masks))  # fmt: skip


def _frames(stream: Stream, spans: np.ndarray, duration_s: float) -> tuple[np.ndarray, np.ndarray]:
    """First frame of each span and the one after its last; the clip's end belongs to the span that reaches it."""
    times = stream.times.astype(np.float64)
    end = np.where(spans[:, 1] >= duration_s - 1e-6, np.inf, spans[:, 1] - 1e-6)
    return np.searchsorted(times, spans[:, 0] - 1e-6), np.searchsorted(times, end)
