"""What decides the features of a recording: one frozen set of settings with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stf2m_core.data.media.model_file import ModelFile
from stf2m_core.errors import MediaError

VERSION = 2
"""Raised whenever the same settings would give other features, so that features kept on disk are made again."""
MODALITIES = ("visual", "audio", "prosody", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSettings:
    """Settings of the media front end; every field influences the features.

    Raises:
        MediaError: if a value makes no sense, alone or with the others.
    """

    modalities: Sequence[str] = MODALITIES
    """Which of visual, audio, prosody and text are made."""
    video_rate_hz: float = 25.0
    """Frames per second looked at, at most; frames keep their own time stamps."""
    search_height: int = 180
    """Height in pixels of the picture in which faces are searched."""
    face_min: float = 0.13
    """Smallest face that is searched, as a part of the picture's height."""
    face_confidence: float = 0.5
    """Frames whose face is less certain than this are masked; see `face.FaceTracker`."""
    search_every_s: float = 0.2
    """While no face is followed, the whole picture is searched this often; while one is, ten times more rarely."""
    sample_rate_hz: int = 16_000
    """All audio is resampled to this rate and mixed to one channel."""
    window_s: float = 0.025
    """Length of the Hann window."""
    hop_s: float = 0.020
    """From one audio frame to the next."""
    n_fft: int = 512
    """Points of the Fourier transform; the window is padded with zeros at its end."""
    n_bands: int = 40
    """Mel bands (HTK scale, triangles of height 1)."""
    n_groups: int = 8
    """Nodes of the audio modality; each has n_bands / n_groups neighbouring bands."""
    band_low_hz: float = 20.0
    """Lower edge of the first band."""
    band_high_hz: float = 7600.0
    """Upper edge of the last band."""
    power_floor: float = 1e-10
    """Added to a band's power before the logarithm."""
    pitch_low_hz: float = 65.0
    """Lowest F0 looked for."""
    pitch_high_hz: float = 500.0
    """Highest F0 looked for."""
    pitch_step: float = 0.2
    """Step of the F0 grid in semitones; half of it takes three times as long."""
    word_channels: int = 16
    """Channels that letter trigrams are hashed into."""
    complete: float = 0.9
    """A file that gives less than this part of the length it states is refused as truncated."""
    face_model: ModelFile | None = None
    """A network of the user's own; beside visual it makes the modality of its kind, landmarks or embedding."""

    sentence_model: str = ""
    """Folder of a model of the user's own for the package sentence-transformers; beside text it makes the modality
    sentence, a frame for each. "" for none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        if isinstance(self.face_model, dict):  # as it comes to a worker
            object.__setattr__(self, "face_model", ModelFile(**self.face_model))
        for name, fine, expected in self._rules():
            if not fine:
                raise MediaError(
                    f"{name} is {getattr(self, name)!r}", expected=expected, where="the settings of the media front end"
                )

    def check_models(self) -> None:
        """Load the user's own models, once per process, so that what is wrong with them is not said of a clip.

        Raises:
            MediaError: if one is not as stated or cannot be loaded.
        """
        if self.face_model is not None:
            from stf2m_core.data.media.face_network import network_of

            network_of(self.face_model)
        if self.sentence_model:
            from stf2m_core.data.media.sentence import sentence_model

            sentence_model(self.sentence_model)

    def _rules(self) -> list[tuple[str, bool, str]]:
        nyquist = self.sample_rate_hz / 2
        known = bool(self.modalities) and set(self.modalities) <= set(MODALITIES)
        return [
            ("modalities", known and len(set(self.modalities)) == len(self.modalities), f"some of {MODALITIES}"),
            ("video_rate_hz", 0 < self.video_rate_hz <= 1000, "above 0, at most 1000"),
            ("search_height", 60 <= self.search_height <= 2160, "60 to 2160"),
            ("face_min", 0 < self.face_min <= 1, "above 0, at most 1"),
            ("face_confidence", 0 <= self.face_confidence < 1, "0 to 1"),
            ("search_every_s", self.search_every_s > 0, "above 0"),
            ("sample_rate_hz", 8000 <= self.sample_rate_hz <= 192_000, "8000 to 192000"),
            ("hop_s", 0.001 <= self.hop_s <= 1, "0.001 to 1"),
            ("window_s", 1 <= self.window <= self.n_fft, f"at most n_fft = {self.n_fft} samples"),
            ("n_groups", self.n_groups > 0 and self.n_bands % self.n_groups == 0, f"a divisor of {self.n_bands}"),
            ("band_high_hz", 0 <= self.band_low_hz < self.band_high_hz <= nyquist, f"band_low_hz to {nyquist:g}"),
            ("power_floor", self.power_floor > 0, "above 0"),
            ("pitch_high_hz", 30 <= self.pitch_low_hz < self.pitch_high_hz < nyquist / 2, "above pitch_low_hz"),
            ("pitch_step", 0.05 <= self.pitch_step <= 1, "0.05 to 1"),
            ("word_channels", 1 <= self.word_channels <= 256, "1 to 256"),
            ("complete", 0 <= self.complete <= 1, "0 to 1"),
            ("face_model", self.face_model is None or "visual" in self.modalities, "none without visual"),
            ("sentence_model", self.sentence_model == "" or "text" in self.modalities, "none without text"),
        ]

    @property
    def window(self) -> int:
        """Samples of the Hann window."""
        return round(self.window_s * self.sample_rate_hz)

    @property
    def hop(self) -> int:
        """Samples from one audio frame to the next."""
        return round(self.hop_s * self.sample_rate_hz)

    def digest(self) -> str:
        """16 hex digits, the same for the same features on every machine.

        Raises:
            MediaError: if there is no sentence model where there should be one.
        """
        own = ("face_model", "sentence_model")
        facts = {name: value for name, value in asdict(self).items() if name not in own}
        if self.face_model is not None:
            facts["face_model"] = self.face_model.facts()
        if self.sentence_model:
            from stf2m_core.data.media.sentence import folder_digest

            facts["sentence_model"] = folder_digest(self.sentence_model)
        text = json.dumps([VERSION, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
