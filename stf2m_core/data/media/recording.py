"""A recording, decoded once from front to back: pictures and stretches of sound come out in time order.

Files are opened as files and by a list of formats, so that no playlist can make the reader open anything else. Only one
picture and a fraction of a second of sound are held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stf2m_core.data.media.extra import library
from stf2m_core.errors import MediaError

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,h264,hevc,ogg,wav,w64,aiff,au,flac,mp3,aac,"
    "ac3,caf,amr,nut,gif,jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,tiff_pipe"
)
_GRAY_FIRST = frozenset(
    "yuv410p yuv411p yuv420p yuv422p yuv440p yuv444p yuvj411p yuvj420p yuvj422p yuvj440p yuvj444p yuva420p yuva422p "
    "yuva444p nv12 nv16 nv21 nv24 nv42 gray".split()
)  # 8-bit formats whose first plane is the brightness
_GAP_S = 0.1  # a longer jump of the audio clock starts a new stretch of sound
_STILL_S = 0.04  # how long a single picture lasts


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One upright picture: (height, width) uint8 brightness, `time` in seconds since the start."""

    time: float
    gray: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """Samples that follow each other without a gap: (sample,) float32 from -1 to 1, the first at `time` seconds."""

    time: float
    samples: np.ndarray
    is_new: bool
    """Whether a new stretch starts here; else it goes on where the last one ended."""


@dataclass(slots=True)
class Recording:
    """What `play` found, filled while it runs."""

    name: str
    has_video: bool = False
    has_audio: bool = False
    stated_s: float = math.nan
    video_end_s: float = 0.0
    audio_end_s: float = 0.0
    n_damaged: int = 0
    n_out_of_order: int = 0
    frame_size: tuple[int, int] = (0, 0)
    remarks: list[str] = field(default_factory=list)

    @property
    def end_s(self) -> float:
        """Seconds from the start to the end of the last picture or sample."""
        return max(self.video_end_s, self.audio_end_s)


def play(
    path: Path, recording: Recording, *, video_rate_hz: float, sample_rate_hz: int, video: bool = True,
    audio: bool = True, start_s: float = 0.0, end_s: float = math.inf,
) -> Iterator[Picture | Sound]:  # fmt: skip
    """Pictures and sound of a file in the order in which they lie in it; each kind is in time order.

    Args:
        path: the file.
        recording: is filled with what is found.
        video_rate_hz: pictures per second at most.
        sample_rate_hz: the sound is resampled to it, and its channels are averaged.
        video: whether pictures are wanted.
        audio: whether sound is wanted.
        start_s: where to begin; times count from there.
        end_s: where to stop, seconds since the start of the file.

    Raises:
        MediaError: if the file cannot be read or holds neither.
    """
    av = library("av")
    try:
        if path.stat().st_size == 0:
            raise MediaError("the file is empty (0 bytes)", expected="a recording", where=recording.name)
        with path.open("rb") as stream, _opened(av, stream) as container:
            wanted = _streams(container, recording, video, audio)
            zero = (container.start_time or 0) / 1e6
            recording.stated_s = _stated(container, start_s, end_s)
            if start_s > 0:
                container.seek(int((zero + start_s) * 1e6), backward=True)
            clock = _Clock(zero + start_s, end_s - start_s, video_rate_hz)
            yield from _decoded(av, container, wanted, recording, clock, sample_rate_hz)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"the file cannot be read: {reason}", expected="audio or video that FFmpeg decodes", where=recording.name,
            remedy="Play it in another program; if that works, convert it to mp4 or wav",
        ) from error  # fmt: skip


class _Nameless:
    """A file without its name, so that its content alone says what it is."""

    def __init__(self, stream: BinaryIO):
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell


def _opened(av: Any, stream: BinaryIO) -> Any:
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    return av.open(_Nameless(stream), mode="r", options=options, metadata_errors="replace")


def _streams(container: Any, recording: Recording, video: bool, audio: bool) -> list[Any]:
    """The first track of each kind; pictures attached to music are no video."""
    av = library("av")
    covers = av.stream.Disposition.attached_pic
    videos = [s for s in container.streams.video if not s.disposition & covers and s.codec_context is not None]
    audios = [s for s in container.streams.audio if s.codec_context is not None]
    recording.has_video, recording.has_audio = bool(videos), bool(audios)
    if not videos and not audios:
        raise MediaError("the file has neither a video nor an audio track", where=recording.name)
    chosen = (videos[:1] if video else []) + (audios[:1] if audio else [])
    for found, word in ((videos, "video"), (audios, "audio")):
        if len(found) > 1:
            recording.remarks.append(f"{len(found)} {word} tracks; the first is read")
    for stream in chosen:
        stream.codec_context.thread_count = 1  # clips are what runs in parallel
    return chosen


def _stated(container: Any, start_s: float, end_s: float) -> float:
    """The seconds that the file says lie between start and end; NaN if it says nothing."""
    if container.duration is None:
        return math.nan
    return max(0.0, min(end_s, container.duration / 1e6) - start_s)


@dataclass(slots=True)
class _Clock:
    """Times since the start, and which pictures are looked at."""

    zero: float
    length: float
    rate: float
    due: float = 0.0
    last: float = -math.inf

    def takes(self, time: float) -> bool:
        """Whether a picture of that time is taken, so that there are at most `rate` per second in the mean."""
        if time < self.due - 0.25 / self.rate:
            return False
        self.due = max(self.due + 1 / self.rate, time + 0.5 / self.rate)
        return True


def _decoded(av: Any, container: Any, streams: list[Any], recording: Recording, clock: _Clock, rate: int
             ) -> Iterator[Picture | Sound]:  # fmt: skip
    ear, is_over = _Ear(av, rate, recording, clock), set()
    if not streams:
        return
    for packet in container.demux(streams):
        if packet.stream.index in is_over:
            continue
        try:
            frames = packet.decode()
        except (av.error.InvalidDataError, av.error.UndefinedError):
            recording.n_damaged += 1
            continue
        for frame in frames:
            picture = packet.stream.type == "video"
            made = _picture(frame, packet.stream, recording, clock) if picture else ear.hear(frame)
            if made == "over":
                is_over.add(packet.stream.index)
                break
            if made is not None:
                yield made
        if len(is_over) == len(streams):
            break
    last = ear.rest()
    if last is not None:
        yield last


def _picture(frame: Any, stream: Any, recording: Recording, clock: _Clock) -> Picture | str | None:
    step = float(1 / stream.average_rate) if stream.average_rate else _STILL_S
    time = recording.video_end_s if frame.time is None else frame.time - clock.zero
    if time >= clock.length:
        return "over"
    if time < -1e-6:
        return None
    if time <= clock.last:
        recording.n_out_of_order += 1
        return None
    clock.last = time
    recording.video_end_s = min(time + min(step, 1.0), clock.length)
    if not clock.takes(time):
        return None
    gray = _upright(_brightness(frame), frame.rotation, stream.sample_aspect_ratio)
    recording.frame_size = (gray.shape[1], gray.shape[0])
    return Picture(max(time, 0.0), gray)


def _brightness(frame: Any) -> np.ndarray:
    """(height, width) uint8; the first plane itself where that is the brightness, so that nothing is converted."""
    if frame.format.name not in _GRAY_FIRST:
        return frame.reformat(format="gray").to_ndarray()
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _upright(gray: np.ndarray, rotation: int, aspect: Any) -> np.ndarray:
    """The picture with square pixels, turned as its file asks for (degrees, counter-clockwise)."""
    ratio = float(aspect) if aspect else 1.0
    if abs(ratio - 1) > 0.02 and 0.1 < ratio < 10:
        size = (max(1, round(gray.shape[1] * ratio)), gray.shape[0])
        gray = library("cv2").resize(gray, size)
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(gray, turns)) if turns else gray


class _Ear:
    """Resamples sound frame by frame, averages its channels and keeps its clock."""

    def __init__(self, av: Any, rate: int, recording: Recording, clock: _Clock):
        self.av, self.rate, self.recording, self.clock = av, rate, recording, clock
        self.resampler: Any = None
        self.next_s: float | None = None

    def hear(self, frame: Any) -> Sound | str | None:
        """The sound of one decoded frame, "over" after the end, or None while there is none."""
        start = self.next_s if frame.time is None else frame.time - self.clock.zero
        start = 0.0 if start is None else start
        if start >= self.clock.length:
            return "over"
        is_new = self.next_s is None or abs(start - self.next_s) > _GAP_S
        if is_new:
            self.resampler = self.av.AudioResampler(format="fltp", rate=self.rate)
            self.next_s = start
        return self._sound(frame, is_new)

    def rest(self) -> Sound | None:
        """What the resampler still holds."""
        return None if self.resampler is None or self.next_s >= self.clock.length else self._sound(None, False)

    def _sound(self, frame: Any, is_new: bool) -> Sound | None:
        if frame is not None:
            frame.pts = None  # the clock is kept here
        parts = [part.to_ndarray() for part in self.resampler.resample(frame)]
        samples = np.concatenate(parts, axis=1).mean(axis=0) if parts else np.zeros(0, np.float32)
        start, self.next_s = self.next_s, self.next_s + len(samples) / self.rate
        first = max(0, round(-start * self.rate))
        last = len(samples) if math.isinf(self.clock.length) else round((self.clock.length - start) * self.rate)
        samples = samples[first : max(first, last)]
        if not is_new and not len(samples):
            return None
        start = max(start, 0.0)
        self.recording.audio_end_s = max(self.recording.audio_end_s, start + len(samples) / self.rate)
        return Sound(start, np.nan_to_num(samples.astype(np.float32, copy=False)), is_new)
