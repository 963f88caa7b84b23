"""The drawn sample, a glance at it, and the figure of a recording."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from stf2m_core import figures
from stf2m_core.data.media import MediaSettings, read_clip
from stf2m_core.data.media.glance import Glance, glance, stream_table
from stf2m_core.data.media.sample import SAMPLE_TEXT, write_sample
from stf2m_core.figures.strip import draw_strip, strip_height

for _name in ("av", "cv2", "librosa"):
    pytest.importorskip(_name, reason="needs the extra `media`")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "deep" / "drawn.mp4")


@pytest.fixture(scope="module")
def clip(sample):
    return read_clip(sample, text=SAMPLE_TEXT)


def test_the_face_of_the_sample_is_seen_until_it_leaves(sample, clip):
    visual = clip.streams["visual"]
    assert visual.mask[:75].all()
    assert not visual.mask[75:].any()
    assert clip.duration_s == pytest.approx(4.0, abs=0.1)
    assert [path.name for path in sample.parent.iterdir()] == ["drawn.mp4"]


def test_the_mouth_of_the_sample_moves_more_than_its_eyes(clip):
    visual = clip.streams["visual"]
    speed = visual.values[:75, :, visual.channels.index("flow_speed")].mean(0)
    assert speed[visual.nodes.index("mouth")] > 1.5 * speed[visual.nodes.index("eye_left")]


def test_a_glance_shows_pictures_at_their_times_and_the_outline_of_the_sound(sample, clip):
    seen = glance(sample, clip.duration_s, n_pictures=4)
    assert seen.times.tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.05)
    assert [picture.shape for picture in seen.pictures] == [(160, 213)] * 4
    assert seen.pictures[0].std() > 10 > seen.pictures[3].std()
    loud = seen.outline[:, 1] - seen.outline[:, 0]
    assert loud[(seen.sound_times > 0.2) & (seen.sound_times < 0.4)].min() > 0.2
    assert loud[seen.sound_times > 3.4].max() < 0.01


def test_the_table_of_streams_says_how_much_was_observed(clip):
    table = stream_table(clip).set_index("modality")
    assert table.loc["visual", "observed"] == "75%"
    assert table.loc["audio", ["channels", "observed"]].tolist() == [5, "100%"]


def test_the_figure_has_a_row_for_what_the_clip_has_on_one_time_axis(sample, clip):
    figure = figures.recording(clip, glance(sample, clip.duration_s), "a drawn clip")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert [title.split(" ·")[0] for title in titles if title] == [
        "pictures and the followed face", "visual", "sound", "audio", "text",
    ]  # fmt: skip
    rows = [axis for axis in figure.axes if axis.get_title(loc="left")]
    np.testing.assert_allclose([axis.get_xlim() for axis in rows], [(0, clip.duration_s)] * 5)
    left = [axis.get_position().x0 for axis in rows]
    right = [axis.get_position().x1 for axis in rows]
    assert np.ptp(left) < 1e-6 and np.ptp(right) < 1e-6, "a moment stands above itself in all rows"
    assert [text.get_text() for text in rows[-1].texts] == SAMPLE_TEXT.split()


def test_pictures_stand_at_even_distances_unless_their_times_do_not():
    pictures = tuple(np.zeros((30, 40), np.uint8) for _ in range(4))
    for times, places in (([0.5, 1.54, 2.5, 3.5], [0.5, 1.5, 2.5, 3.5]), ([0.5, 1.5, 2.8, 3.5], [0.5, 1.5, 2.8, 3.5])):
        seen = Glance(np.array(times), pictures, 1.0, np.zeros(0), np.zeros((0, 2), np.float32))
        drawn = draw_strip(Figure().subplots(), seen, 4.0, 6.0)
        assert [time for time, _ in drawn] == times
        assert [left + width / 2 for _, (left, _, width, _) in drawn] == pytest.approx(places)
    assert strip_height(seen, 2.0) == pytest.approx(2.0 / 4 * 0.96 * 30 / 40)
    assert strip_height(seen, 6.0) == 0.95, "no higher than that"
    assert strip_height(None, 6.0) == 0.0


def test_rows_that_a_clip_does_not_have_are_left_out(sample):
    clip = read_clip(sample, MediaSettings(modalities=("audio",)))
    figure = figures.recording(clip, glance(sample, clip.duration_s))
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]
    assert titles == ["pictures and the followed face", "sound", "audio · log-mel bands"]
