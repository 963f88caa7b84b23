"""Sound becomes frames: log-mel bands, and energy, pitch, voicing and the shape of the spectrum.

Sound comes in pieces and is worked off in blocks of some seconds, so that the length of a recording does not matter.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stf2m_core.data.media.pitch import find_pitch
from stf2m_core.data.media.recording import Sound
from stf2m_core.data.media.settings import MediaSettings

PROSODY = ("energy", "pitch", "voicing", "centroid", "bandwidth", "flatness", "rolloff")
_BLOCK = 400  # frames worked off together
_CONTEXT = 25  # frames before and after a block that its pitch is found with
_PITCH_WINDOW_S = 0.064
_SILENT_POWER = 1e-10  # mean square of a frame that has no pitch and no spectrum: -100 dB


def power_spectrum(samples: np.ndarray, settings: MediaSettings) -> np.ndarray:
    """(frame, n_fft / 2 + 1) float64 power of the frames that lie wholly inside `samples`, (sample,).

    Frame t starts at sample t · hop; periodic Hann window, padded with zeros at its end; no scaling.
    """
    if len(samples) < settings.window:
        return np.zeros((0, settings.n_fft // 2 + 1))
    frames = np.lib.stride_tricks.sliding_window_view(samples, settings.window)[:: settings.hop]
    return np.abs(np.fft.rfft(frames * _window(settings.window), settings.n_fft)) ** 2


def log_mel(power: np.ndarray, settings: MediaSettings) -> np.ndarray:
    """(frame, band) float64: natural logarithm of the power in each mel band plus the floor.

    Args:
        power: (frame, n_fft / 2 + 1), as `power_spectrum` gives it.
        settings: states the bands.

    Source: HTK mel scale, triangles of height 1 (librosa: htk=True, norm=None).
    """
    return np.log(power @ _bands(settings) + settings.power_floor)


@lru_cache(maxsize=8)
def _window(length: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@lru_cache(maxsize=8)
def _bands(settings: MediaSettings) -> np.ndarray:
    """(n_fft / 2 + 1, band)."""
    mel = 2595 * np.log10(1 + np.array([settings.band_low_hz, settings.band_high_hz]) / 700)
    edges = 700 * (10 ** (np.linspace(*mel, settings.n_bands + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(settings.n_fft, 1 / settings.sample_rate_hz)[:, None]
    up, down = (hertz - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - hertz) / np.diff(edges)[1:]
    return np.maximum(np.minimum(up, down), 0)


def prosody(samples: np.ndarray, power: np.ndarray, first: int, settings: MediaSettings, *, pitch: bool = True
            ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Energy, pitch, voicing and spectral shape of frames, and which of them are defined.

    Args:
        samples: (sample,) the sound.
        power: (frame, n_fft / 2 + 1) of the frames.
        first: the sample at which the first frame starts; what lies before it only helps to find the pitch.
        settings: states rates and the range of the pitch.
        pitch: whether pitch and voicing are found; else they are undefined.

    Returns:
        (frame, 7) float32: energy dB, pitch octaves above 100 Hz, voicing probability, centroid and bandwidth kHz,
        flatness (natural logarithm, 0 is white), rolloff kHz; and the mask (frame, 7) uint8: pitch only where voiced,
        the spectrum's shape only where there is sound.

    Source: pitch and voicing by pYIN, Mauch & Dixon 2014; the rest as librosa defines it.
    """
    n_frames = len(power)
    values, mask = np.zeros((n_frames, len(PROSODY)), np.float32), np.zeros((n_frames, len(PROSODY)), np.uint8)
    if n_frames == 0:
        return values, mask
    frames = np.lib.stride_tricks.sliding_window_view(samples[first:], settings.window)[:: settings.hop][:n_frames]
    energy = np.square(frames, dtype=np.float64).mean(axis=1)
    sounds = energy > _SILENT_POWER
    values[:, 0], mask[:, 0] = 10 * np.log10(energy + settings.power_floor), 1
    if pitch:
        values[:, 1], values[:, 2], voiced = _pitch(samples, first, n_frames, settings)
        mask[:, 1], mask[:, 2] = voiced & sounds, 1
    values[:, 3:], mask[:, 3:] = _shape(power, settings), sounds[:, None]
    values[mask == 0] = 0
    return values, mask


def _shape(power: np.ndarray, settings: MediaSettings) -> np.ndarray:
    """Centroid and bandwidth (of the amplitude, kHz), logarithm of flatness, and where 85 % of the amplitude lie."""
    khertz = np.fft.rfftfreq(settings.n_fft, 1 / settings.sample_rate_hz) / 1e3
    power = np.maximum(power, 1e-20)
    amplitude = np.sqrt(power)
    share = amplitude / amplitude.sum(axis=1, keepdims=True)
    centroid = share @ khertz
    bandwidth = np.sqrt((share * (khertz - centroid[:, None]) ** 2).sum(axis=1))
    flatness = np.log(power).mean(axis=1) - np.log(power.mean(axis=1))
    reached = np.cumsum(amplitude, axis=1)
    rolloff = khertz[(reached >= 0.85 * reached[:, -1:]).argmax(axis=1)]
    return np.stack([centroid, bandwidth, flatness, rolloff], axis=1)


def _pitch(samples: np.ndarray, first: int, n_frames: int, settings: MediaSettings
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Pitch (octaves above 100 Hz), voicing probability and whether voiced, (frame,) each.

    The windows of pitch are longer than those of the spectrum and share their centres.
    """
    rate, hop = settings.sample_rate_hz, settings.hop
    length = 2 * round(_PITCH_WINDOW_S * rate / 2)
    before = min(_CONTEXT, first // hop)
    start = first - before * hop - (length - settings.window) // 2
    after = min(_CONTEXT, max(0, (len(samples) - start - length) // hop + 1 - before - n_frames))
    need = start + (before + n_frames + after - 1) * hop + length
    padded = np.pad(samples[max(start, 0) : need], (max(-start, 0), max(need - len(samples), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]
    hertz, probability, voiced = (part[before : before + n_frames] for part in find_pitch(frames, settings))
    return np.log2(hertz / 100), probability, voiced


class SoundFrames:
    """Collects sound and gives the frames of a whole recording.

    Args:
        settings: of the front end.
    """

    def __init__(self, settings: MediaSettings):
        self.settings = settings
        self.start_s, self.samples, self.first = 0.0, np.zeros(0, np.float32), 0
        self.pieces: list[np.ndarray] = []
        self.n_waiting, self.peak, self.n_samples = 0, 0.0, 0
        self.bands: list[np.ndarray] = []
        self.prosody: list[tuple[np.ndarray, np.ndarray]] = []
        self.times: list[np.ndarray] = []

    def add(self, sound: Sound) -> None:
        """Take the next piece; whole blocks are worked off at once."""
        if sound.is_new:
            self._work(is_last=True)
            self.start_s, self.samples, self.first = sound.time, np.zeros(0, np.float32), 0
        if len(sound.samples):
            self.peak = max(self.peak, float(np.abs(sound.samples).max()))
        self.pieces.append(sound.samples)
        self.n_waiting += len(sound.samples)
        self.n_samples += len(sound.samples)
        if self.n_waiting >= (_BLOCK + 4 * _CONTEXT) * self.settings.hop:
            self._work(is_last=False)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Bands (frame, band), prosody (frame, 7), its mask, and times (frame,) of the frames' centres, seconds."""
        self._work(is_last=True)
        values = [np.zeros((0, len(PROSODY)), np.float32), *(part for part, _ in self.prosody)]
        mask = [np.zeros((0, len(PROSODY)), np.uint8), *(part for _, part in self.prosody)]
        bands = [np.zeros((0, self.settings.n_bands), np.float32), *self.bands]
        times = [np.zeros(0, np.float32), *self.times]
        return np.concatenate(bands), np.concatenate(values), np.concatenate(mask), np.concatenate(times)

    def _work(self, *, is_last: bool) -> None:
        """Work off what has come; unless it is the last of its stretch, the end waits for what it lies before."""
        self.samples = np.concatenate([self.samples, *self.pieces])
        self.pieces, self.n_waiting = [], 0
        hop, settings = self.settings.hop, self.settings
        n_frames = (len(self.samples) - self.first - settings.window) // hop + 1
        n_frames -= 0 if is_last else 2 * _CONTEXT
        while n_frames > 0:
            n_block = min(n_frames, _BLOCK)
            self._block(n_block)
            n_frames -= n_block
        n_old = max(0, self.first // hop - 2 * _CONTEXT) * hop
        self.samples, self.first = self.samples[n_old:], self.first - n_old
        self.start_s += n_old / settings.sample_rate_hz

    def _block(self, n_frames: int) -> None:
        settings, hop = self.settings, self.settings.hop
        reach = (n_frames - 1) * hop + settings.window
        power = power_spectrum(self.samples[self.first : self.first + reach], settings)
        if "audio" in settings.modalities:
            self.bands.append(log_mel(power, settings).astype(np.float32))
        if "prosody" in settings.modalities:
            self.prosody.append(prosody(self.samples, power, self.first, settings))
        centre = self.first + settings.window / 2 + hop * np.arange(n_frames)
        self.times.append((self.start_s + centre / settings.sample_rate_hz).astype(np.float32))
        self.first += n_frames * hop
