"""One clip: what is read from good recordings, and what is said of bad ones."""

import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from stf2m_core.data.media import MediaSettings, read_clip
from stf2m_core.data.ragged import check_views
from stf2m_core.errors import MediaError

for _name in ("av", "cv2", "librosa"):
    pytest.importorskip(_name, reason="needs the extra `media`")

from media_files import RATE, hum, pictures, turned, write  # noqa: E402

VISUAL = MediaSettings(modalities=("visual",))
AUDIO = MediaSettings(modalities=("audio",))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Two seconds with a face and a hum."""
    return write(tmp_path_factory.mktemp("media") / "good.mp4", pictures(50, faces=(90,)), hum(2.0))


def test_a_clip_gives_all_modalities_on_one_time_axis(good):
    clip = read_clip(good, text="It is eleven o'clock, isn't it?")
    shapes = {name: stream.values.shape for name, stream in clip.streams.items()}
    assert shapes["visual"] == (50, 9, 9)
    assert shapes["text"] == (6, 1, 16)
    assert shapes["audio"][1:] == (8, 5)
    assert shapes["prosody"][1:] == (7, 1)
    assert shapes["audio"][0] == shapes["prosody"][0] >= 98
    assert clip.duration_s == pytest.approx(2.0, abs=0.15)
    np.testing.assert_allclose(clip.streams["visual"].times, np.arange(50) / 25, atol=1e-3)
    assert clip.words == ("it", "is", "eleven", "oclock", "isnt", "it")
    for name, stream in clip.streams.items():
        check_views(name, stream.ragged(), 1, where=name)
        assert stream.times.max() < clip.duration_s


def test_the_face_is_found_where_it_is_and_its_motion_is_small(good):
    clip = read_clip(good, VISUAL)
    centre = clip.track.boxes[:, :2] + clip.track.boxes[:, 2:] / 2
    assert np.abs(centre - (160, 120)).max() < 20
    assert clip.track.confidence.min() > 0.5
    assert clip.track.n_faces.tolist() == [1] * 50
    visual = clip.streams["visual"]
    assert visual.mask.all()
    assert np.abs(visual.values[:, :, 6:]).max() < 1.0  # face widths per second: the face sways by 15 pixels per second
    brightness = {node: visual.values[:, k, visual.channels.index("brightness")] for k, node in enumerate(visual.nodes)}
    assert (brightness["eye_left"] < brightness["nose"]).all()
    assert (brightness["mouth"] < brightness["nose"]).all()


def test_exposure_does_not_change_appearance(tmp_path):
    bright = pictures(5, faces=(90,))
    dim = (bright * 0.6 + 20).astype(np.uint8)
    settings = {"codec": "ffv1", "pixels": "gray"}
    one, two = (read_clip(write(tmp_path / f"{k}.mkv", frames, **settings), VISUAL).streams["visual"]
                for k, frames in enumerate((bright, dim)))  # fmt: skip
    assert one.mask.all() and two.mask.all()
    assert np.abs(one.values[..., :6] - two.values[..., :6]).mean() < 0.05


def test_pictures_keep_their_own_times(tmp_path):
    times = [0.0, 0.04, 0.2, 0.28, 0.9, 1.5]
    path = write(tmp_path / "vfr.mkv", pictures(6, faces=(90,)), times=times, codec="ffv1")
    assert read_clip(path, VISUAL).streams["visual"].times.tolist() == pytest.approx(times, abs=2e-3)


@pytest.mark.parametrize(("rate", "n"), [(60, 25), (50, 25), (30, 25), (25, 25), (12, 12)])
def test_at_most_so_many_pictures_per_second_are_looked_at(tmp_path, rate, n):
    path = write(tmp_path / "fast.mp4", pictures(rate, faces=(90,)), rate=rate)
    clip = read_clip(path, VISUAL)
    assert abs(len(clip.streams["visual"].times) - n) <= 1
    assert clip.duration_s == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_respected(tmp_path, degrees):
    upright = pictures(4, width=240, height=320, faces=(50,))
    stored = np.ascontiguousarray(np.rot90(upright, degrees // 90, axes=(1, 2)))
    path = turned(write(tmp_path / "turned.mp4", stored), degrees)
    clip = read_clip(path, VISUAL)
    assert clip.track.frame_size == (240, 320)
    assert clip.track.confidence.min() > 0.5
    assert clip.streams["visual"].mask.all()


def test_a_part_of_a_file_has_its_own_clock(good):
    clip = read_clip(good, start_s=0.8, end_s=1.4)
    assert clip.duration_s == pytest.approx(0.6, abs=0.01)
    assert clip.streams["visual"].times.tolist() == pytest.approx(np.arange(15) * 0.04, abs=2e-3)
    assert len(clip.streams["audio"].times) == pytest.approx(28.75, abs=1)
    whole = read_clip(good, AUDIO).streams["audio"]
    np.testing.assert_allclose(clip.streams["audio"].times[5] + 0.8, whole.times[45], atol=0.02)


def test_sound_may_come_from_another_file(tmp_path):
    video = write(tmp_path / "v.mp4", pictures(25, faces=(90,)))
    wav = write(tmp_path / "a.wav", sound=hum(1.0), sound_codec="pcm_s16le")
    clip = read_clip(video, audio_path=wav)
    assert set(clip.streams) == {"visual", "audio", "prosody"}
    assert clip.remarks == ()


def test_timed_words_override_the_text(tmp_path, good):
    srt = tmp_path / "a.srt"
    srt.write_bytes("1\r\n00:00:00,500 --> 00:00:01,500\r\n<i>Déjà</i> vu\r\n\r\n".encode("cp1252"))
    clip = read_clip(good, MediaSettings(modalities=("text",)), text="not this", words_path=srt)
    assert clip.words == ("déjà", "vu")
    assert clip.streams["text"].times.tolist() == pytest.approx([0.75, 1.25])
    assert clip.remarks == ("a.srt is not UTF-8; it was read as Windows-1252, check its accents",)
    table = tmp_path / "a.csv"
    table.write_text("word,start_s,end_s\nworld,1.0,1.2\nhello,0.2,0.4\n")
    clip = read_clip(good, MediaSettings(modalities=("text",)), words_path=table)
    assert (clip.words, clip.streams["text"].times.tolist()) == (("hello", "world"), pytest.approx([0.3, 1.1]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "hello", "the transcript is called 'a.txt'; expected a name that ends in .srt, .vtt or .csv"),
        ("a.vtt", "WEBVTT\n\nhello", "a.vtt holds no cue; expected lines like"),
        ("a.csv", "word,start_s\nhello,1\n", "the transcript cannot be read: column 'end_s' is missing"),
        ("a.csv", "word,start_s,end_s\nhello,2,1\n", "row 2 lasts from 2.0 to 1.0; expected seconds"),
    ],
)
def test_a_bad_transcript_is_refused(tmp_path, good, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(MediaError, match=message):
        read_clip(good, MediaSettings(modalities=("text",)), words_path=tmp_path / name)


# --- bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"this is no recording at all\n" * 400, "the file cannot be read: Invalid data"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "the file cannot be read: Invalid data"),
        (b"ffconcat version 1.0\nfile good.mp4\n", "the file cannot be read: Invalid"),
        (b"\0" * 5000, "the file cannot be read: Invalid data"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, content, message):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=message):
        read_clip(tmp_path / "clip.mp4")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(MediaError, match="the file cannot be read: No such file"):
        read_clip(tmp_path / "none.mp4")
    with pytest.raises(MediaError, match="the file cannot be read: Is a directory"):
        read_clip(tmp_path)


def test_a_truncated_file_is_refused_whether_its_index_is_lost_or_not(tmp_path, good):
    whole = good.read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="the file cannot be read: Invalid data"):
        read_clip(tmp_path / "no_index.mp4")
    front = write(tmp_path / "front.mp4", pictures(50, faces=(90,)), hum(2.0), options={"movflags": "faststart"})
    whole = front.read_bytes()
    front.write_bytes(whole[: int(0.6 * len(whole))])
    with pytest.raises(MediaError, match=r"the file ends after \d.\d\d s; expected 2.\d\d s, as it states"):
        read_clip(front)
    assert read_clip(front, MediaSettings(complete=0.0)).duration_s < 1.9


def test_a_wrong_extension_does_not_matter(tmp_path, good):
    for name in ("clip.wav", "clip.txt", "clip%03d.jpg", "http:clip", "-clip"):
        (tmp_path / name).write_bytes(good.read_bytes())
        assert set(read_clip(tmp_path / name).streams) == {"visual", "audio", "prosody"}, name


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_not_utf8_is_read(tmp_path, good):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4")
    with open(path, "wb") as file:
        file.write(good.read_bytes())
    assert read_clip(os.fsdecode(path), VISUAL).streams["visual"].mask.all()
    with open(path, "wb"):
        pass
    with pytest.raises(MediaError, match=r"empty \(0 bytes\).*caf\\xe9|empty \(0 bytes\).*caf\\udce9"):
        read_clip(os.fsdecode(path))


def test_no_audio_track_and_no_video_track_are_remarks(tmp_path):
    clip = read_clip(write(tmp_path / "mute.mp4", pictures(10, faces=(90,))))
    assert (set(clip.streams), clip.remarks) == ({"visual"}, ("no audio track",))
    clip = read_clip(write(tmp_path / "voice.wav", sound=hum(0.5), sound_codec="pcm_s16le"))
    assert (set(clip.streams), clip.remarks) == ({"audio", "prosody"}, ("no video track",))
    assert clip.track is None
    with pytest.raises(MediaError, match="no picture and no sample could be decoded"):
        read_clip(tmp_path / "voice.wav", VISUAL)


def test_silence_is_masked_and_said(tmp_path):
    clip = read_clip(write(tmp_path / "silent.mp4", pictures(10, faces=(90,)), np.zeros(RATE // 2, np.float32)))
    assert not clip.streams["audio"].mask.any()
    assert not clip.streams["prosody"].mask.any()
    assert clip.streams["visual"].mask.all()
    assert clip.remarks == ("the audio track is silent; its frames are masked",)


def test_no_face_is_masked_and_said(tmp_path):
    clip = read_clip(write(tmp_path / "wall.mp4", pictures(12), hum(0.5)))
    assert clip.streams["visual"].values.shape == (12, 9, 9)
    assert not clip.streams["visual"].mask.any()
    assert np.isnan(clip.track.boxes).all()
    assert clip.remarks == ("no face was found in any of 12 pictures",)


def test_a_clip_in_which_nothing_was_observed_is_refused(tmp_path):
    path = write(tmp_path / "black.mp4", np.zeros((10, 96, 128), np.uint8))
    with pytest.raises(MediaError, match="nothing was observed: no audio track; no face was found in any of 10 pict"):
        read_clip(path)


def test_frames_without_a_face_in_the_middle_are_masked(tmp_path):
    frames = pictures(45, faces=(90,))
    frames[15:30] = 60
    visual = read_clip(write(tmp_path / "away.mp4", frames), VISUAL).streams["visual"]
    seen = visual.mask.all(axis=1)
    assert seen[:15].all()
    assert not visual.mask[15:30].any()
    assert not visual.values[15:30].any()
    assert seen[36:].all(), "it is found again within the search interval of 0.2 s"


def test_of_two_faces_one_is_followed(tmp_path):
    frames = pictures(20, width=480, faces=(30,))
    frames[:, 70:170, 330:430] = pictures(20, width=100, height=100, faces=(3,), size=94)
    clip = read_clip(write(tmp_path / "two.mp4", frames), VISUAL)
    assert clip.track.n_faces.max() == 2
    assert (clip.track.boxes[:, 0] < 200).all(), "the larger one, from the first picture to the last"
    assert clip.remarks == ("several faces in 20 of 20 pictures; one is followed, at first the largest",)


def test_a_face_that_jumps_is_still_the_same_when_a_larger_one_appears(tmp_path):
    frames = pictures(12, width=480, faces=(60,), size=90)
    jumped, larger = (pictures(12, width=480, faces=(left,), size=size) for left, size in ((86, 90), (280, 130)))
    frames[6:] = np.where(np.arange(480) < 240, jumped, larger)[6:]  # too far for the search nearby, yet no other face
    clip = read_clip(write(tmp_path / "jump.mkv", frames, codec="ffv1", pixels="gray"), VISUAL)
    assert (clip.track.boxes[:, 0] < 150).all()
    assert clip.track.n_faces[6:].tolist() == [2] * 6
    assert clip.streams["visual"].mask.all(), "it was never lost, so its motion is known throughout"


def test_one_picture_has_appearance_and_no_motion(tmp_path):
    visual = read_clip(write(tmp_path / "one.mp4", pictures(1, faces=(90,))), VISUAL).streams["visual"]
    assert dict(zip(visual.nodes, visual.mask[0].tolist(), strict=True)) == dict.fromkeys(visual.nodes[:-1], 1) | {
        "motion": 0
    }


@pytest.mark.parametrize("size", [(321, 241), (318, 242), (1, 1), (17, 400)])
def test_odd_sizes_are_read(tmp_path, size):
    frames = np.full((3, size[1], size[0]), 60, np.uint8)
    if size[1] > 200 and size[0] > 200:
        frames[:, 50:190, 90:230] = pictures(3, width=140, height=140, faces=(0,), size=134)
    clip = read_clip(write(tmp_path / "odd.mkv", frames, hum(0.3), codec="ffv1", pixels="gray"))
    assert clip.track.frame_size == size
    assert clip.streams["visual"].mask.any() == (size[0] > 200)


def test_an_alpha_channel_is_left_out(tmp_path):
    gray = pictures(3, faces=(90,))
    frames = np.stack([gray, gray, gray, np.full_like(gray, 7)], axis=-1)
    path = write(tmp_path / "alpha.mov", frames, codec="qtrle", pixels="argb")
    assert read_clip(path, VISUAL).streams["visual"].mask.all()


@pytest.mark.parametrize(
    ("codec", "pixels", "name"),
    [
        ("ffv1", "yuv444p", "a.mkv"),
        ("ffv1", "yuv420p10le", "a.mkv"),
        ("ffv1", "bgr0", "a.mkv"),
        ("png", "rgb24", "a.mov"),
    ],
)
def test_other_pixel_formats_are_read(tmp_path, codec, pixels, name):
    path = write(tmp_path / name, pictures(3, faces=(90,)), codec=codec, pixels=pixels)
    assert read_clip(path, VISUAL).streams["visual"].mask.all()


def test_a_long_file_is_read_in_bounded_memory(tmp_path):
    """Ten minutes at one picture per second: what is held grows with the features, not with the recording."""
    path = write(tmp_path / "long.mkv", np.zeros((600, 64, 64), np.uint8), hum(600.0), rate=1, sound_codec="pcm_s16le")
    tracemalloc.start()
    clip = read_clip(path, MediaSettings(modalities=("visual", "audio")))
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert len(clip.streams["audio"].times) == pytest.approx(30_000, abs=60)
    held = sum(part.nbytes for stream in clip.streams.values() for part in (stream.values, stream.mask)) / 2**20
    assert peak < 2 * held + 20, "MB; the sound alone has 37"


def test_three_hours_keep_their_times_to_the_end(tmp_path):
    at = [60.0 * minute for minute in range(180)] + [10_799.96, 10_800.0]
    path = write(tmp_path / "long.mkv", np.zeros((len(at), 64, 64), np.uint8), times=at)
    whole = MediaSettings(modalities=("visual", "text"), complete=0.0)
    visual = read_clip(path, whole, text="a word").streams["visual"]
    assert visual.times[-2:] == pytest.approx(at[-2:], abs=2e-3)
    assert len(visual.times) == len(at)
    part = read_clip(path, MediaSettings(modalities=("visual", "text")), text="a word", start_s=10_790.0)
    assert part.streams["visual"].times == pytest.approx([9.96, 10.0], abs=2e-3)


def test_a_span_that_makes_no_sense_is_refused(good):
    with pytest.raises(MediaError, match="the clip lasts from 2.0 to 1.0 s; expected 0 or more, start before end"):
        read_clip(good, start_s=2.0, end_s=1.0)
    with pytest.raises(MediaError, match="no picture and no sample could be decoded"):
        read_clip(good, start_s=50.0)


# --- real recordings


@pytest.mark.realdata
def test_where_the_real_face_has_left_frames_are_masked():
    folder = Path(os.environ["STF2M_DATA"]) / "face_media"
    clip = read_clip(folder / "face_noface.mov")
    visual = clip.streams["visual"]
    seen = visual.mask[:, 0] > 0
    last = visual.times[seen].max()
    assert seen[visual.times <= last].all(), "the face is there from the start until it leaves"
    assert 2.2 < last < 2.5  # seen in the recording
    assert not visual.mask[visual.times > last].any()
    assert not visual.values[visual.times > last].any()
    assert clip.streams["audio"].times[0] > 2.4, "its sound starts late, and its time stamps say so"


@pytest.mark.realdata
def test_real_recordings_with_and_without_a_face():
    folder = Path(os.environ["STF2M_DATA"]) / "face_media"
    assert read_clip(folder / "single_face.mp4").streams["visual"].mask.all()
    assert not read_clip(folder / "no_face.mp4").streams["visual"].mask.any()
    photo = read_clip(folder / "single_face.jpg").streams["visual"]
    assert photo.values.shape == (1, 9, 9)
    assert photo.mask[0, :-1].all()
