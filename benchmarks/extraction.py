"""Speed and memory of the media front end beside a plain OpenCV + librosa script that does the same work.

    python benchmarks/extraction.py [--seconds N] [--video FILE.mp4] [--rounds N]

Both read the same 720p file with one thread, look at the same pictures, and give the same features: one face per
picture, nine regions, log-mel, energy, pitch, spectral shape. The plain script is what one writes first: OpenCV frames
in colour, the detector on each whole picture (at the same search size), the sound held whole. OpenCV cannot read sound,
so that script gets the sound as a wav file beside. Each runs in a process of its own, alternating; read ratios. Seconds
are those of the processor, all threads of the process together, so that a busy machine counts less; "wall" is the
clock. Memory is that of the whole process at its peak, as Linux counts it; "libraries" is what it takes before the
clip is opened, with all that it needs loaded, and "own" is the rest.
Without --video a clip is made: a picture of a face or, without one, moving noise, at 25 frames/s, h264, with a hum.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np


def make_clip(path: Path, seconds: float, photo: Path | None) -> None:
    """Write 720p video with sound: a face that sways over a textured ground, and a voice-like hum."""
    import av
    import cv2

    noise = np.random.default_rng(0)
    ground = cv2.resize(noise.integers(40, 200, (90, 160, 3), np.uint8), (1280, 720), interpolation=cv2.INTER_CUBIC)
    face = None if photo is None else cv2.resize(cv2.imread(str(photo)), (480, 480), interpolation=cv2.INTER_AREA)
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=25)
        video.width, video.height, video.pix_fmt, video.options = 1280, 720, "yuv420p", {"crf": "21", "preset": "fast"}
        audio = container.add_stream("aac", rate=44_100, layout="mono")
        for number in range(round(25 * seconds)):
            picture = np.roll(ground, 2 * number, axis=1)
            if face is not None:
                x, y = 400 + int(40 * np.sin(number / 12)), 120 + int(20 * np.sin(number / 17))
                picture[y : y + 480, x : x + 480] = face
            grain = noise.integers(0, 6, picture.shape, np.uint8)  # as a camera has; a clean picture decodes too fast
            frame = av.VideoFrame.from_ndarray(cv2.add(picture, grain), format="bgr24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        time_s = np.arange(round(44_100 * seconds)) / 44_100
        pitch = np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time_s)) / 44_100
        hum = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 12)) * 0.1 * (np.sin(2 * np.pi * time_s) > -0.5)
        frame = av.AudioFrame.from_ndarray(hum.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 44_100, Fraction(1, 44_100)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def make_wav(video: Path, wav: Path) -> None:
    """The sound of the video as 16 kHz wav, for the plain script."""
    import soundfile

    from stf2m_core.data.media.recording import Recording, play

    parts = play(video, Recording(video.name), video_rate_hz=25, sample_rate_hz=16_000, video=False)
    soundfile.write(wav, np.concatenate([part.samples for part in parts]), 16_000)


def plain(video: Path, wav: Path) -> dict[str, float]:
    """The plain script: seconds of each stage."""
    import cv2
    import librosa

    from stf2m_core.data.media.face import Face
    from stf2m_core.data.media.regions import RegionReader

    cv2.setNumThreads(1)
    spent, reader = dict.fromkeys(("decode", "face", "regions", "sound"), 0.0), RegionReader()
    detector = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    while True:
        start = time.process_time()
        there, frame = capture.read()
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if there else None
        decoded = time.process_time()
        spent["decode"] += decoded - start
        if not there:
            break
        scale = 180 / min(gray.shape)
        small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        box = max(detector.detectMultiScale(small, 1.1, 3, 0, (23, 23)), key=lambda box: box[2], default=None)
        seen = time.process_time()
        face = None if box is None else Face(tuple(float(x) / scale for x in box), 1.0, False)
        reader.read(gray, len(reader.values) / 25, face)
        spent["face"] += seen - decoded
        spent["regions"] += time.process_time() - seen
    start = time.process_time()
    sound, rate = librosa.load(wav, sr=16_000)
    mel = librosa.feature.melspectrogram(
        y=sound, sr=rate, n_fft=512, win_length=400, hop_length=320, n_mels=40, fmin=20, fmax=7600, htk=True, norm=None
    )
    np.log(mel + 1e-10)
    librosa.pyin(sound, fmin=65, fmax=500, sr=rate, frame_length=1024, hop_length=320, resolution=0.2)
    shape = {"n_fft": 512, "hop_length": 320, "win_length": 400}
    for feature in ("spectral_centroid", "spectral_bandwidth", "spectral_flatness", "spectral_rolloff"):
        extra = {} if feature == "spectral_flatness" else {"sr": rate}
        getattr(librosa.feature, feature)(y=sound, **shape, **extra)
    librosa.feature.rms(y=sound, frame_length=400, hop_length=320)
    spent["sound"] = time.process_time() - start
    return spent


def ours(video: Path, _: Path) -> dict[str, float]:
    """`read_clip`: seconds of each stage; decoding is what the others leave."""
    from stf2m_core.data.media import face, regions, sound
    from stf2m_core.data.media.clip import read_clip

    spent = dict.fromkeys(("decode", "face", "regions", "sound"), 0.0)
    _timed(face.FaceTracker, "follow", spent, "face")
    _timed(regions.RegionReader, "read", spent, "regions")
    for name in ("add", "finish"):
        _timed(sound.SoundFrames, name, spent, "sound")
    start = time.process_time()
    read_clip(video)
    spent["decode"] = time.process_time() - start - sum(spent.values())
    return spent


def _timed(owner: type, name: str, spent: dict[str, float], stage: str) -> None:
    whole = getattr(owner, name)

    def measured(*args: object, **kwargs: object) -> object:
        start = time.process_time()
        try:
            return whole(*args, **kwargs)
        finally:
            spent[stage] += time.process_time() - start

    setattr(owner, name, measured)


def one(name: str, video: Path, wav: Path) -> dict[str, float]:
    """Run one of the two in a fresh process without torch: seconds of each stage, peak memory, the libraries warm."""
    command = [sys.executable, __file__, "--only", name, "--video", str(video), "--wav", str(wav)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _resident() -> int:
    """Bytes of this process that are in memory now, as Linux counts them."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _only(name: str, video: Path, wav: Path) -> None:
    import types

    package = Path(__file__).resolve().parents[1] / "stf2m_core"
    for module, path in (("stf2m_core", package), ("stf2m_core.data.media", package / "data/media")):
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].__path__ = [str(path)]
    import cv2

    if name == "plain":
        import librosa

        librosa.pyin(np.zeros(16_000, np.float32), fmin=65, fmax=500, sr=16_000)  # numba compiles or loads once
    else:
        import av

        from stf2m_core.data.media import clip, face, regions, sound

        del av, clip, face, regions, sound
    del cv2
    peak, over = [0], threading.Event()
    before = _resident()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    spent = {"ours": ours, "plain": plain}[name](video, wav)
    wall = time.perf_counter() - start
    over.set()
    watcher.join()
    memory = {"libraries, MB": before, "peak, MB": peak[0], "own, MB": peak[0] - before}
    print(json.dumps(spent | {"wall": wall} | {key: value / 2**20 for key, value in memory.items()}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="length of the clip that is made")
    parser.add_argument("--photo", type=Path, help="a picture of a face for the clip that is made")
    parser.add_argument("--video", type=Path, help="measure this file instead")
    parser.add_argument("--rounds", type=int, default=3, help="each is run so often; the median counts")
    parser.add_argument("--only", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--wav", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        return _only(options.only, options.video, options.wav)
    with tempfile.TemporaryDirectory() as folder:
        video, wav = options.video or Path(folder) / "clip.mp4", Path(folder) / "clip.wav"
        if options.video is None:
            make_clip(video, options.seconds, options.photo)
        make_wav(video, wav)
        import soundfile

        seconds = soundfile.info(wav).duration
        runs = [(one("ours", video, wav), one("plain", video, wav)) for _ in range(options.rounds)]
        medians = [{key: float(np.median([run[side][key] for run in runs])) for key in runs[0][0]} for side in (0, 1)]
    for row in medians:
        row["whole"] = sum(row[stage] for stage in ("decode", "face", "regions", "sound"))
        row["times real time"] = seconds / row["whole"]
    print(f"{video.name}: {seconds:.1f} s, one thread, median of {options.rounds} rounds; processor seconds, MB")
    print(f"{'':18s}{'ours':>10s}{'plain':>10s}{'ratio':>10s}")
    for key in medians[0]:
        mine, other = medians[0][key], medians[1][key]
        print(f"{key:18s}{mine:10.2f}{other:10.2f}{mine / other if other else float('nan'):10.2f}")


if __name__ == "__main__":
    main()
