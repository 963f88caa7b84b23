"""Small recordings for the tests: drawn faces, hums, and files that are wrong in one way each."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from stf2m_core.data.media.sample import drawn_face

RATE = 16_000


def pictures(n: int, width: int = 320, height: int = 240, faces: tuple[int, ...] = (), size: int = 140) -> np.ndarray:
    """(n, height, width) uint8: an even ground, with faces whose left edges are at `faces`, each swaying a little."""
    result = np.full((n, height, width), 60, np.uint8)
    face = drawn_face(size)
    for number in range(n):
        for left in faces:
            at = left + round(3 * np.sin(number / 5))
            top = (height - size) // 2
            result[number, top : top + size, at : at + size] = face
    return result


def hum(seconds: float, hertz: float = 150.0, rate: int = RATE) -> np.ndarray:
    """(sample,) float32."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.1 * sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 9))).astype(np.float32)


def write(
    path: Path, frames: np.ndarray | None = None, sound: np.ndarray | None = None, *, rate: int = 25,
    times: list[float] | None = None, codec: str = "mpeg4", pixels: str = "yuv420p", sound_codec: str = "aac",
    options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """A recording with these frames (n, height, width[, channel]) and this sound at 16 kHz; either may be absent."""
    import av

    with av.open(str(path), "w", options=options or {}) as file:
        video = audio = None
        if frames is not None:
            video = file.add_stream(codec, rate=rate)
            video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], pixels
            video.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
        if sound is not None:
            audio = file.add_stream(sound_codec, rate=RATE, layout="mono")
        if video is not None:
            for number, picture in enumerate(frames):
                kind = {2: "gray", 3: "rgba" if picture.shape[-1] == 4 else "rgb24"}[picture.ndim]
                frame = av.VideoFrame.from_ndarray(picture, format=kind).reformat(format=pixels)
                frame.pts = round(1000 * times[number]) if times else number
                frame.time_base = video.codec_context.time_base
                file.mux(video.encode(frame))
            file.mux(video.encode(None))
        if audio is not None:
            kind = "s16" if sound_codec.startswith("pcm") else "fltp"
            samples = (sound * 32767).astype(np.int16) if kind == "s16" else sound
            for start in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format=kind, layout="mono")
                frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), start
                file.mux(audio.encode(frame))
            file.mux(audio.encode(None))
    return path


def turned(path: Path, degrees: int) -> Path:
    """Say in an mp4's track header that its picture is to be turned, as telephones do."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and number, reserved, layer and volume
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = [cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in matrix)
    path.write_bytes(content)
    return path
