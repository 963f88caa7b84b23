"""One clip: a recording and its transcript enter, its views with real time stamps and masks leave."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stf2m_core.data.media.recording import Picture, Recording, play
from stf2m_core.data.media.settings import MediaSettings
from stf2m_core.data.media.transcript import Transcript, read_transcript, spread
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.errors import MediaError

_SILENT = 1e-4  # a recording whose loudest sample is below this (-80 dB) is silent


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One modality of one clip.

    Attributes:
        values: (frame, node, channel) float32, finite; 0 where masked.
        times: (frame,) float32 seconds since the clip's start, never decreasing.
        mask: (frame, node) uint8, 1 where the node was observed.
        nodes: names of the nodes.
        channels: names of the channels.
        rate_hz: frames per second where frames are uniform, else None.
    """

    values: np.ndarray
    times: np.ndarray
    mask: np.ndarray
    nodes: tuple[str, ...]
    channels: tuple[str, ...]
    rate_hz: float | None = None

    def ragged(self) -> RaggedViews:
        """The same as the views of a data set with one clip."""
        offsets = np.array([0, len(self.values)], np.int64)
        return RaggedViews(self.values, offsets, self.nodes, self.channels, None, self.times, self.mask)


@dataclass(frozen=True, slots=True, eq=False)
class FaceTrack:
    """The followed face in each picture.

    Attributes:
        times: (picture,) float32 seconds.
        boxes: (picture, 4) float32 x, y, width, height in pixels of the upright picture; NaN where there is no face.
        confidence: (picture,) float32 from 0 to 1; 0 where there is no face.
        n_faces: (picture,) int16 faces that the last search of a whole picture found.
        frame_size: width and height of the upright picture.
    """

    times: np.ndarray
    boxes: np.ndarray
    confidence: np.ndarray
    n_faces: np.ndarray
    frame_size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class ClipViews:
    """Everything that was read from one clip.

    Attributes:
        duration_s: from the clip's start to its last picture or sample.
        streams: modality to stream; a modality that the clip does not have is not there.
        track: the followed face; None without video.
        words: one for each frame of the modality text.
        remarks: what a user should know of the clip, in words.
    """

    duration_s: float
    streams: dict[str, Stream]
    track: FaceTrack | None
    words: tuple[str, ...]
    remarks: tuple[str, ...]


def read_clip(
    path: str | os.PathLike[str], settings: MediaSettings | None = None, *, audio_path: str | os.PathLike[str] = "",
    text: str = "", words_path: str | os.PathLike[str] = "", start_s: float = 0.0, end_s: float = math.inf,
) -> ClipViews:  # fmt: skip
    """The views of one clip, decoded once, in this process and thread.

    Args:
        path: a file with video, audio or both.
        settings: of the front end; None: the defaults.
        audio_path: a file whose sound is taken instead, with the same clock.
        text: what is said; its words are spread evenly over the clip.
        words_path: a transcript with times (.srt, .vtt, or .csv with columns word, start_s, end_s); overrides `text`.
        start_s: where in the file the clip begins.
        end_s: where it ends.

    Raises:
        MediaError: if a file cannot be read, is truncated, or nothing was observed in any modality.
    """
    settings = settings or MediaSettings()
    if not (0 <= start_s < end_s):
        raise MediaError(f"the clip lasts from {start_s} to {end_s} s", expected="0 or more, start before end",
                         where=_shown(path))  # fmt: skip
    main = Recording(_shown(path))
    streams, track, heard = _signals(Path(path), audio_path, main, settings, start_s, end_s)
    duration = max(main.end_s, 0.0 if heard is main else heard.end_s)
    remarks = main.remarks + _remarks(main, heard, settings)
    if duration <= 0:
        raise MediaError("no picture and no sample could be decoded", where=main.name)
    _check_complete(main, settings)
    words: tuple[str, ...] = ()
    if "text" in settings.modalities and (text or words_path):
        spoken, words = _text(text, words_path, start_s, duration, settings, remarks)
        streams |= spoken
    _judge(streams, track, remarks, heard, main.name)
    return ClipViews(duration, streams, track, words, tuple(remarks))


def _shown(path: str | os.PathLike[str]) -> str:
    """The path as text that can be written, whatever bytes its name has."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _signals(
    path: Path, audio_path: str | os.PathLike[str], main: Recording, settings: MediaSettings, start_s: float,
    end_s: float,
) -> tuple[dict[str, Stream], FaceTrack | None, Recording]:  # fmt: skip
    """The streams of picture and sound, the face track, and the recording that the sound came from."""
    from stf2m_core.data.media.sound import SoundFrames  # here and below: only what a clip needs is loaded

    sound, eye = SoundFrames(settings), _Eye(settings)
    wants_video = "visual" in settings.modalities
    wants_audio = bool({"audio", "prosody"} & set(settings.modalities))
    span = {"start_s": start_s, "end_s": end_s, "video_rate_hz": settings.video_rate_hz,
            "sample_rate_hz": settings.sample_rate_hz}  # fmt: skip
    for part in play(path, main, video=wants_video, audio=wants_audio and not audio_path, **span):
        eye.see(part) if isinstance(part, Picture) else sound.add(part)
    heard = main
    if audio_path and wants_audio:
        heard = Recording(_shown(audio_path))
        for part in play(Path(audio_path), heard, video=False, **span):
            sound.add(part)
        _check_complete(heard, settings)
    streams, track = {}, None
    if wants_video and main.has_video and eye.times:
        seen, track = eye.streams(main.frame_size)
        streams |= seen
    if not (wants_video or wants_audio) and math.isfinite(main.stated_s):
        main.audio_end_s = main.stated_s  # words need a length and nothing else, so nothing was decoded
    if wants_audio and heard.has_audio:
        streams |= _sound_streams(sound, settings)
        if sound.peak < _SILENT:
            for name in {"audio", "prosody"} & set(streams):
                streams[name].mask[:] = 0
            heard.remarks.append("the audio track is silent; its frames are masked")
    return streams, track, heard


class _Eye:
    """Follows the face and reads its regions, picture by picture."""

    def __init__(self, settings: MediaSettings):
        self.settings = settings
        self.tracker = self.reader = self.network = None
        self.answers: list[tuple[np.ndarray, np.ndarray]] = []
        self.times: list[float] = []
        self.faces: list[tuple[float, ...]] = []

    def see(self, picture: Picture) -> None:
        """Take the next picture."""
        if self.reader is None:
            from stf2m_core.data.media.face import FaceTracker
            from stf2m_core.data.media.regions import RegionReader

            self.tracker, self.reader = FaceTracker(self.settings), RegionReader()
            if self.settings.face_model is not None:
                from stf2m_core.data.media.face_network import network_of

                self.network = network_of(self.settings.face_model)
        face = self.tracker.follow(picture)
        certain = face is not None and face.confidence >= self.settings.face_confidence
        self.reader.read(picture.gray, picture.time, face if certain else None)
        if self.network is not None:
            self.answers.append(self.network.read(picture.gray, face if certain else None))
        self.times.append(picture.time)
        box, confidence = ((math.nan,) * 4, 0.0) if face is None else (face.box, face.confidence)
        self.faces.append((*box, confidence, self.tracker.n_faces))

    def streams(self, frame_size: tuple[int, int]) -> tuple[dict[str, Stream], FaceTrack]:
        """All that was seen: visual, and what the user's network made of it."""
        from stf2m_core.data.media.regions import CHANNELS, NODES

        times, faces = np.array(self.times, np.float32), np.array(self.faces, np.float32)
        track = FaceTrack(times, faces[:, :4], faces[:, 4], faces[:, 5].astype(np.int16), frame_size)
        streams = {"visual": Stream(np.stack(self.reader.values), times, np.stack(self.reader.mask), NODES, CHANNELS)}
        if self.network is not None:
            values, mask = (np.stack(part) for part in zip(*self.answers, strict=True))
            kind = self.network.model.kind
            streams[kind] = Stream(values, times, mask, self.network.nodes, self.network.channels)
        return streams, track


def _sound_streams(sound: object, settings: MediaSettings) -> dict[str, Stream]:
    from stf2m_core.data.media.sound import PROSODY

    bands, prosody, mask, times = sound.finish()
    rate, streams = settings.sample_rate_hz / settings.hop, {}
    if len(times) == 0:
        return streams
    if "audio" in settings.modalities:
        n_groups, size = settings.n_groups, settings.n_bands // settings.n_groups
        nodes = tuple(f"mel{first:02d}-{first + size - 1:02d}" for first in range(0, settings.n_bands, size))
        channels = tuple(f"band{band}" for band in range(size))
        observed = np.ones((len(times), n_groups), np.uint8)
        streams["audio"] = Stream(bands.reshape(-1, n_groups, size), times, observed, nodes, channels, rate)
    if "prosody" in settings.modalities:
        streams["prosody"] = Stream(prosody[..., None], times, mask, PROSODY, ("value",), rate)
    return streams


def _text(
    text: str, words_path: str | os.PathLike[str], start_s: float, duration: float, settings: MediaSettings,
    remarks: list[str],
) -> tuple[dict[str, Stream], tuple[str, ...]]:  # fmt: skip
    from stf2m_core.data.words import hash_words

    if words_path:
        script = read_transcript(Path(words_path), start_s=start_s, end_s=start_s + duration)
    else:
        script = spread(text, 0.0, duration)
        script = Transcript(script.words, script.times, ("the transcript has no times; its words are spread evenly",))
    remarks.extend(script.remarks)
    values = hash_words(script.words, settings.word_channels)[:, None, :]
    channels = tuple(f"hash{channel:02d}" for channel in range(settings.word_channels))
    mask = np.ones((len(values), 1), np.uint8)
    streams = {"text": Stream(values, script.times, mask, ("word",), channels)}
    if settings.sentence_model and script.words:
        streams["sentence"] = _sentences(text, script, bool(words_path), settings.sentence_model)
    return streams, script.words


def _sentences(text: str, script: Transcript, timed: bool, model: str) -> Stream:
    from stf2m_core.data.media.sentence import embed, pieces_of

    pieces, times = pieces_of(text, script, timed)
    values = embed(model, pieces)[:, None, :]
    channels = tuple(f"emb{number:0{len(str(values.shape[2] - 1))}d}" for number in range(values.shape[2]))
    return Stream(values, times, np.ones((len(values), 1), np.uint8), ("sentence",), channels)


def _check_complete(recording: Recording, settings: MediaSettings) -> None:
    stated, found = recording.stated_s, recording.end_s
    if math.isfinite(stated) and found < settings.complete * stated - 0.1 and found > 0:
        raise MediaError(
            f"the file ends after {found:.2f} s", expected=f"{stated:.2f} s, as it states", where=recording.name,
            remedy="It is truncated or damaged; get it again, or lower `complete` in the settings to use what is there",
        )  # fmt: skip


def _remarks(main: Recording, heard: Recording, settings: MediaSettings) -> list[str]:
    remarks = [] if heard is main else list(heard.remarks)
    if not heard.has_audio and {"audio", "prosody"} & set(settings.modalities):
        remarks.append("no audio track")
    if not main.has_video and "visual" in settings.modalities:
        remarks.append("no video track")
    damaged = main.n_damaged + (0 if heard is main else heard.n_damaged)
    if damaged:
        remarks.append(f"{damaged} damaged packets were left out")
    if main.n_out_of_order:
        remarks.append(f"{main.n_out_of_order} pictures with a time stamp out of order were left out")
    return remarks


def _judge(
    streams: dict[str, Stream], track: FaceTrack | None, remarks: list[str], heard: Recording, name: str
) -> None:
    """Say what of the faces was seen, drop empty streams, and refuse a clip in which nothing was observed."""
    if track is not None:
        n, n_seen = len(track.times), int(streams["visual"].mask[:, 0].sum())
        if n_seen == 0:
            remarks.append(f"no face was found in any of {n} pictures")
        elif n_seen < n:
            remarks.append(f"a face was found in {n_seen} of {n} pictures; the others are masked")
        n_several = int((track.n_faces > 1).sum())
        if n_several:
            remarks.append(f"several faces in {n_several} of {n} pictures; one is followed, at first the largest")
    for modality in [key for key, stream in streams.items() if len(stream.values) == 0]:
        del streams[modality]
    if not any(stream.mask.any() for stream in streams.values()):
        raise MediaError(
            f"nothing was observed: {'; '.join(remarks) or 'the clip is too short for a frame'}",
            expected="a face, a sound or words", where=name,
        )  # fmt: skip
