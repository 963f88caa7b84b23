"""Sound frames: golden against the supplied log-mel and librosa, pitch of known tones, blocks that leave no seam."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stf2m_core.data.media import MediaSettings, read_clip
from stf2m_core.data.media.pitch import find_pitch
from stf2m_core.data.media.recording import Sound
from stf2m_core.data.media.sound import PROSODY, SoundFrames, log_mel, power_spectrum, prosody
from stf2m_core.errors import MediaError

librosa = pytest.importorskip("librosa", reason="needs the extra `media`")
soundfile = pytest.importorskip("soundfile", reason="needs the extra `media`")
pytest.importorskip("av", reason="needs the extra `media`")
SETTINGS = MediaSettings()
RATE = SETTINGS.sample_rate_hz


def voice(seconds: float, hertz: float = 150.0) -> np.ndarray:
    """A hum with eleven harmonics and a little noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 12))
    return (0.1 * hum + 1e-3 * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)


def frames_of(samples: np.ndarray, piece: int) -> tuple[np.ndarray, ...]:
    """What SoundFrames gives for samples that come in pieces."""
    frames = SoundFrames(SETTINGS)
    for start in range(0, len(samples), piece):
        frames.add(Sound(start / RATE, samples[start : start + piece], start == 0))
    return frames.finish()


def test_log_mel_agrees_with_librosa():
    samples = voice(2.0).astype(np.float64)
    ours = log_mel(power_spectrum(samples, SETTINGS), SETTINGS)
    # librosa puts the window into the middle of its 512 points: 56 zeros in front give the same samples per window
    power = librosa.feature.melspectrogram(
        y=np.pad(samples, (56, 56)), sr=RATE, n_fft=512, win_length=400, hop_length=320, center=False, n_mels=40,
        fmin=20, fmax=7600, htk=True, norm=None, dtype=np.float64,
    )  # fmt: skip
    assert ours.shape == power.T.shape == (99, 40)
    np.testing.assert_allclose(ours, np.log(power.T + 1e-10), rtol=0, atol=1e-5)


@pytest.mark.realdata
def test_log_mel_agrees_with_the_supplied_one_within_the_rounding_of_both():
    """The supplied features were made before the sound was rounded to 16 bits; quiet bands show that rounding.

    Rounding to steps of 2^-15 adds noise of variance 2^-30 / 12; its power in a band is known, and moves the logarithm
    of a band of power P by some sqrt(noise / P). What is left must lie within float16's own rounding. That this is the
    cause and no other: over three decades of power the differences have no mean and just that size.
    """
    folder = Path(os.environ["STF2M_DATA"]) / "ravdess"
    index = pd.read_csv(folder / "index.csv", keep_default_na=False)
    index = index[index["wav_file"] != ""].iloc[::24]
    assert len(index) == 10
    with np.load(folder / "features.npz", allow_pickle=False) as archive:
        bands, offsets = archive["audio_logmel"], archive["audio_offsets"]
    window = np.hanning(401)[:400]
    noise = np.full((1, 257), 2.0**-30 / 12 * np.square(window).sum())
    noise = np.exp(log_mel(noise, SETTINGS))[0]
    n_loud, by_decade = 0, {10**2: [], 10**3: [], 10**4: []}
    for row, wav in zip(index["row"], index["wav_file"], strict=True):
        ours = read_clip(folder / wav, MediaSettings(modalities=("audio",))).streams["audio"]
        theirs = bands[offsets[row] : offsets[row + 1]].astype(np.float64)
        assert len(ours.values) == len(theirs)
        ours = ours.values.reshape(-1, 40).astype(np.float64)
        half_step = np.abs(np.spacing(theirs.astype(np.float16)).astype(np.float64)) / 2
        loud = np.exp(theirs) > 1e4 * noise
        n_loud += int(loud.sum())
        for power, found in by_decade.items():
            inside = (np.exp(theirs) > power * noise) & (np.exp(theirs) <= 10 * power * noise)
            found.append(np.stack([(ours - theirs)[inside], np.sqrt(noise / np.exp(theirs))[inside]]))
        quantised = 8 * np.sqrt(noise / np.exp(theirs))
        assert (np.abs(ours - theirs)[loud] <= (1.01 * half_step + quantised)[loud]).all()
        assert np.median((np.abs(ours - theirs) / half_step)[np.exp(theirs) > 1e6 * noise]) < 1.0
    assert n_loud > 10_000
    for found in by_decade.values():
        difference, expected = np.concatenate(found, axis=1)
        assert abs(difference.mean()) < 1e-3 and 0.7 < (difference / expected).std() < 0.9


@pytest.mark.parametrize("hertz", [80.0, 150.0, 310.0])
def test_pitch_of_a_hum_is_found_where_it_sounds(hertz):
    samples = np.concatenate([voice(1.0, hertz), np.zeros(RATE // 2, np.float32)])
    values, mask = prosody(samples, power_spectrum(samples, SETTINGS), 0, SETTINGS)
    pitch, voiced = 100 * 2.0 ** values[:, PROSODY.index("pitch")], mask[:, PROSODY.index("pitch")] > 0
    assert voiced[5:44].all()
    assert not voiced[52:].any()
    np.testing.assert_allclose(pitch[5:44], hertz, rtol=0.012)  # a fifth of a semitone is 1.2 %
    assert values[5:44, PROSODY.index("voicing")].min() > 0.4


def test_a_gliding_pitch_is_found_at_the_time_of_its_frame():
    time = np.arange(2 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(120 * 2.0**time) / RATE  # an octave per second
    samples = (0.1 * sum(np.sin(k * phase) / k for k in range(1, 9))).astype(np.float32)
    values, mask = prosody(samples, power_spectrum(samples, SETTINGS), 0, SETTINGS)
    centre = 0.0125 + 0.02 * np.arange(len(values))
    inside = (mask[:, 1] > 0) & (centre > 0.1) & (centre < 1.9)
    late = values[inside, 1] - (np.log2(1.2) + centre[inside])
    assert inside.sum() > 80
    assert abs(np.median(late)) < 0.006  # octaves, so 6 ms


def assert_pitch_is_that_of_librosa(samples: np.ndarray) -> None:
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::320]
    hertz, voicing, voiced = find_pitch(frames, SETTINGS)
    found, is_voiced, probability = librosa.pyin(
        samples, fmin=65, fmax=500, sr=RATE, frame_length=1024, hop_length=320, resolution=0.2, center=False,
        fill_na=None,
    )  # fmt: skip
    sounds = np.square(frames).mean(axis=1) > 1e-10
    assert voiced.tolist() == is_voiced.tolist()
    assert 0.1 < voiced.mean() < 0.95
    np.testing.assert_allclose(hertz, found, rtol=1e-9)
    np.testing.assert_allclose(voicing[sounds], probability[sounds], rtol=0, atol=1e-6)


def test_pitch_and_voicing_agree_with_librosa_to_the_bin_through_glides_leaps_noise_and_silence():
    time, noise = np.arange(3 * RATE) / RATE, np.random.default_rng(1).standard_normal(4 * RATE)
    octave = np.where(time < 1.5, 0.8 * np.sin(4 * time), 1.2 - 0.3 * time)
    hum = sum(np.sin(k * 2 * np.pi * np.cumsum(120 * 2.0**octave) / RATE) / k for k in range(1, 9))
    hum[2 * RATE :] *= np.linspace(1, 0, RATE)
    samples = np.concatenate([hum, np.zeros(RATE)]) + np.linspace(0, 1, 4 * RATE) * noise
    samples[-RATE // 2 :] = 0
    assert_pitch_is_that_of_librosa((0.1 * samples).astype(np.float32))


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["03-01-03-01-01-01-01", "03-01-05-02-02-01-02", "03-01-06-02-01-02-03"])
def test_pitch_and_voicing_of_real_voices_agree_with_librosa(name):
    path = Path(os.environ["STF2M_DATA"]) / "ravdess" / "wav16k" / f"{name}.wav"
    assert_pitch_is_that_of_librosa(soundfile.read(path, dtype="float32")[0])


def test_silence_has_energy_but_no_pitch_and_no_spectrum():
    samples = np.zeros(RATE, np.float32)
    values, mask = prosody(samples, power_spectrum(samples, SETTINGS), 0, SETTINGS)
    assert values[:, 0] == pytest.approx(-100.0)
    assert dict(zip(PROSODY, mask.mean(0).tolist(), strict=True)) == {
        "energy": 1, "pitch": 0, "voicing": 1, "centroid": 0, "bandwidth": 0, "flatness": 0, "rolloff": 0,
    }  # fmt: skip
    assert (values[mask == 0] == 0).all()


def test_spectral_shape_agrees_with_librosa():
    samples = voice(1.0).astype(np.float64)
    values, _ = prosody(samples, power_spectrum(samples, SETTINGS), 0, SETTINGS)
    spectrum = {"n_fft": 512, "hop_length": 320, "win_length": 400, "center": False}
    y = np.pad(samples, (56, 56))
    for column, name in ((3, "centroid"), (4, "bandwidth"), (6, "rolloff")):
        theirs = getattr(librosa.feature, f"spectral_{name}")(y=y, sr=RATE, **spectrum)[0] / 1e3
        assert values[:, column] == pytest.approx(theirs, abs=1e-4), name
    theirs = librosa.feature.spectral_flatness(y=y, **{k: v for k, v in spectrum.items() if k != "sr"}, amin=1e-20)[0]
    assert values[:, 5] == pytest.approx(np.log(theirs), abs=1e-4)
    louder, _ = prosody(4 * samples, power_spectrum(4 * samples, SETTINGS), 0, SETTINGS)
    np.testing.assert_allclose(louder[:, 3:], values[:, 3:], atol=1e-3)  # the shape does not know how loud it is
    np.testing.assert_allclose(louder[:, 0] - values[:, 0], 20 * np.log10(4), atol=1e-3)


def test_pieces_and_blocks_leave_no_seam():
    samples = np.concatenate([voice(9.0, 120.0), voice(9.0, 180.0), voice(8.0, 140.0)])
    whole = log_mel(power_spectrum(samples, SETTINGS), SETTINGS)
    in_one, in_many = frames_of(samples, len(samples)), frames_of(samples, 1024)
    np.testing.assert_allclose(in_many[0], whole, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(in_one[0], in_many[0])
    np.testing.assert_allclose(in_many[3], 0.0125 + 0.02 * np.arange(len(whole)), atol=1e-5)
    values, mask = prosody(samples, power_spectrum(samples, SETTINGS), 0, SETTINGS)
    np.testing.assert_allclose(in_many[1][:, 3:], values[:, 3:], rtol=0, atol=1e-5)
    both = (mask[:, 1] > 0) & (in_many[2][:, 1] > 0)
    assert (mask[:, 1] == in_many[2][:, 1]).mean() > 0.99
    assert np.abs(in_many[1][both, 1] - values[both, 1]).max() < 0.5 / 12


def test_a_gap_in_the_sound_is_a_gap_in_the_times():
    frames = SoundFrames(SETTINGS)
    frames.add(Sound(0.0, voice(1.0), True))
    frames.add(Sound(3.0, voice(0.5), True))
    bands, values, _, times = frames.finish()
    assert (len(bands), len(values), len(times)) == (49 + 24, 73, 73)
    assert times[48:50].tolist() == pytest.approx([0.9725, 3.0125])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": ("visual", "smell")}, "modalities is .*smell.*; expected some of"),
        ({"modalities": ()}, r"modalities is \(\)"),
        ({"n_groups": 7}, "n_groups is 7; expected a divisor of 40"),
        ({"band_high_hz": 9000.0}, "band_high_hz is 9000.0; expected band_low_hz to 8000"),
        ({"window_s": 0.05}, "window_s is 0.05; expected at most n_fft = 512 samples"),
        ({"power_floor": 0.0}, "power_floor is 0.0; expected above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(MediaError, match=message):
        MediaSettings(**change)


def test_every_setting_changes_the_digest():
    seen = {SETTINGS.digest()}
    for name, value in {"video_rate_hz": 10.0, "n_bands": 48, "pitch_step": 0.1, "modalities": ["audio"]}.items():
        seen.add(MediaSettings(**{name: value}).digest())
    assert len(seen) == 5
    assert MediaSettings(modalities=["audio"]).digest() == MediaSettings(modalities=("audio",)).digest()
