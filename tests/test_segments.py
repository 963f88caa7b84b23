"""Labels inside clips: segments become clips, windows get labels by overlap, and clips are read over time."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stf2m_core import experiment, over_time, write_pack
from stf2m_core.config import EpisodeConfig
from stf2m_core.data import synemo_markov
from stf2m_core.data.pack import RaggedViews, open_pack
from stf2m_core.data.segments import cut, cut_views, rows_of, span_labels, spans
from stf2m_core.data.synemo_markov import MarkovConfig
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import ConfigError, EpisodeError, PackError
from stf2m_core.evaluation import answer
from stf2m_core.lessons import inside_a_clip
from stf2m_core.markov import shares_of
from stf2m_core.over_time import ClockSettings
from stf2m_core.training import load_model

LABELS = ("calm", "glad", "sad")


def small(tmp_path, segments=None, name="whole", **columns):
    """Two clips of 6 and 4 s: one modality on a regular clock, one with stamps and a mask, absent in the second."""
    clips = pd.DataFrame({
        "clip_id": ["one", "two"], "subject": ["ann", "ben"], "group": ["g1", "g2"], "domain": "here",
        "duration_s": [6.0, 4.0], "label": "", "split": "", "text": "",
    })  # fmt: skip
    frames = np.arange(100, dtype=np.float32).reshape(100, 1, 1)
    steady = RaggedViews(frames, np.array([0, 60, 100]), ("n",), ("c",), 10.0)
    stamps = np.array([0.0, 1.0, 1.5, 3.0, 6.0], np.float32)
    mask = np.array([[1], [0], [1], [1], [0]], np.uint8)
    uneven = RaggedViews(frames[:5], np.array([0, 5, 5]), ("m",), ("c",), None, stamps, mask)
    if segments is None:
        segments = pd.DataFrame({"clip_id": ["two", "one", "one", "one"], "start_s": [0.0, 3.0, 1.0, 4.0],
                                 "end_s": [4.0, 4.0, 3.0, 6.0], "label": ["sad", "glad", "calm", "calm"]})  # fmt: skip
        segments = segments.assign(**columns)
    views = {"steady": steady, "uneven": uneven}
    return open_pack(write_pack(tmp_path / name, clips, views, LABELS, name=name, segments=segments))


# --- segments become clips


def test_segments_are_clips_in_the_order_of_clips_and_of_time(tmp_path):
    pack = open_pack(cut(small(tmp_path), tmp_path / "parts"), verify="full")
    assert pack.clips["clip_id"].tolist() == ["one#0", "one#1", "one#2", "two#0"]
    assert pack.clips["label"].tolist() == ["calm", "glad", "calm", "sad"]
    assert pack.clips["duration_s"].tolist() == [2.0, 1.0, 2.0, 4.0]
    assert pack.clips["x_clip"].tolist() == ["one", "one", "one", "two"]
    assert pack.clips["x_start_s"].astype(float).tolist() == [1.0, 3.0, 4.0, 0.0]
    assert (pack.name, pack.segments) == ("whole-segments", None)


def test_frames_are_those_of_the_segment_with_a_clock_that_starts_with_it(tmp_path):
    pack = open_pack(cut(small(tmp_path), tmp_path / "parts"))
    steady, uneven = pack.view("steady"), pack.view("uneven")
    assert steady.lengths.tolist() == [20, 10, 20, 40]
    assert steady.values[:20, 0, 0].tolist() == list(range(10, 30))  # second 1 to 3 of the first clip
    assert steady.values[-40:, 0, 0].tolist() == list(range(60, 100))
    np.testing.assert_allclose(steady.times[:20], np.arange(20) / 10, atol=1e-6)
    assert uneven.lengths.tolist() == [2, 1, 1, 0]
    assert uneven.values[:, 0, 0].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(uneven.times, [0.0, 0.5, 0.0, 2.0], atol=1e-6)
    assert uneven.mask[:, 0].tolist() == [0, 1, 1, 0]


def test_a_frame_at_an_edge_belongs_to_the_later_segment_and_the_last_one_to_the_clips_end(tmp_path):
    segments = pd.DataFrame({"clip_id": "one", "start_s": [0.0, 1.0, 3.0], "end_s": [1.0, 3.0, 6.0], "label": "calm"})
    pack = open_pack(cut(small(tmp_path, segments), tmp_path / "parts"))
    assert pack.view("uneven").values[:, 0, 0].tolist() == [0, 1, 2, 3, 4]  # each frame once
    assert pack.view("uneven").lengths.tolist() == [1, 2, 2]
    assert pack.view("steady").lengths.tolist() == [10, 20, 30]


def test_votes_and_undefined_labels_travel_with_the_segment(tmp_path):
    votes = {"votes_calm": [0, 1, 2, 5], "votes_glad": [1, 0, 2, 0], "votes_sad": [4, 0, 0, 0]}
    pack = open_pack(cut(small(tmp_path, label=["sad", "calm", "", "calm"], **votes), tmp_path / "parts"))
    assert pack.clips["label"].tolist() == ["", "calm", "calm", "sad"]
    assert pack.label_ids.tolist() == [-1, 0, 0, 2]
    np.testing.assert_allclose(pack.soft_labels[[0, 3]], [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])


def test_a_segment_without_length_is_refused(tmp_path):
    segments = pd.DataFrame({"clip_id": ["one"], "start_s": [2.0], "end_s": [2.0], "label": ["calm"]})
    with pytest.raises(PackError, match="end_s is 2 at row 0"):
        small(tmp_path, segments)
    pack = small(tmp_path)
    with pytest.raises(PackError, match="a span from 2 to 2 s of clip 'one'; expected an end after the start"):
        spans(pack, np.array([0]), np.array([2.0]), np.array([2.0]))
    with pytest.raises(PackError, match="a span from 3 to 2 s of clip 'two'"):
        span_labels(pack, np.array([1]), np.array([3.0]), np.array([2.0]))


def test_a_segment_in_which_nothing_was_recorded_is_refused(tmp_path):
    segments = pd.DataFrame({"clip_id": ["one"], "start_s": [2.01], "end_s": [2.05], "label": ["calm"]})
    with pytest.raises(PackError, match="segment 'one#0' has no frame in any modality"):
        cut(small(tmp_path, segments), tmp_path / "parts")


def test_a_pack_without_segments_and_an_unknown_clip_are_refused(tmp_path):
    pack = small(tmp_path)
    with pytest.raises(PackError, match="the pack has no segments; expected labels inside clips"):
        cut(replace(pack, segments=None), tmp_path / "parts")
    with pytest.raises(PackError, match="the pack has no segments"):
        span_labels(replace(pack, segments=None), np.array([0]), np.array([0.0]), np.array([1.0]))
    with pytest.raises(PackError, match="clip 'three' is unknown"):
        rows_of(pack, np.array(["one", "three"]))


# --- windows get labels by overlap (I-7)


def test_a_window_equal_to_a_segment_has_the_segments_label(tmp_path):
    votes = {"votes_calm": [0, 2, 1, 5], "votes_glad": [1, 2, 0, 0], "votes_sad": [4, 0, 0, 0]}
    pack = small(tmp_path, **votes)
    shares = pack.segments[list(votes)].to_numpy(float)
    start, end = pack.segments[["start_s", "end_s"]].to_numpy().T
    found = span_labels(pack, rows_of(pack, pack.segments["clip_id"]), start, end)
    np.testing.assert_allclose(found, shares / shares.sum(1, keepdims=True), atol=1e-12)


def test_a_window_over_two_segments_has_each_for_its_part(tmp_path):
    found = span_labels(small(tmp_path), np.array([0, 0]), np.array([2.0, 2.5]), np.array([4.0, 4.5]))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])


def test_less_than_half_labelled_is_not_labelled(tmp_path):
    start, end = np.array([0.0, 0.0, 0.0]), np.array([2.0, 1.9, 1.0])  # labelled from second 1 on
    found = span_labels(small(tmp_path), np.zeros(3, int), start, end)
    np.testing.assert_allclose(found[0], [1, 0, 0])
    assert np.isnan(found[1:]).all()


def test_a_segment_without_label_labels_nothing(tmp_path):
    found = span_labels(small(tmp_path, label=["sad", "glad", "", "calm"]), np.zeros(2, int), np.array([1.0, 2.0]),
                        np.array([3.0, 4.0]))  # fmt: skip
    assert np.isnan(found[0]).all() and found[1].tolist() == [0, 1, 0]


def test_overlaps_agree_with_fine_steps_of_time(tmp_path):
    pack, draw = small(tmp_path), np.random.default_rng(0)
    owner, start = draw.integers(2, size=40), draw.random(40) * 2.5
    end = start + 0.2 + draw.random(40) * 1.2
    found = span_labels(pack, owner, start, end)
    for row in range(40):
        middle = start[row] + (np.arange(4000) + 0.5) / 4000 * (end[row] - start[row])
        share = np.zeros(3)
        for part in pack.segments.itertuples():
            if part.clip_id == ("one", "two")[owner[row]]:
                share[LABELS.index(part.label)] += ((middle >= part.start_s) & (middle < part.end_s)).mean()
        if abs(share.sum() - 0.5) > 1e-3:
            wanted = share / share.sum() if share.sum() > 0.5 else np.full(3, np.nan)
            np.testing.assert_allclose(found[row], wanted, atol=1e-3)


# --- reading over time


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """(lesson, run, folder): a small Markov pack, its segments, and a run of a few steps on them."""
    folder = tmp_path_factory.mktemp("time")
    config = MarkovConfig(n_domains=4, clips_per_session=3, words=(2, 3), moving=inside_a_clip.MOVING)
    recordings = open_pack(synemo_markov.write(folder / "whole", config))
    pack = open_pack(cut(recordings, folder / "parts"))
    kind = {"regime": "D", "n_way": 4, "n_shot": 2, "n_query": 1}
    settings = inside_a_clip.run_config("test").replace(episodes=[kind], train__max_steps=2)
    made = inside_a_clip.Lesson(config, recordings, pack, split_subjects(pack, settings.split))
    return made, experiment.train(pack, settings, folder / "run", progress_bar=False)


def sampled(made, regime="D", n_way=4, n_shot=2, n_query=3, n_episodes=3):
    kind = EpisodeConfig(regime=regime, n_way=n_way, n_shot=n_shot, n_query=n_query)
    return EpisodeSampler(made.pack, made.splits, "meta_test", kind, 0).sample(0, n_episodes)


@pytest.mark.parametrize(("regime", "n_way"), [("D", 5), ("P", 2)])
def test_support_and_query_never_share_a_clip(lesson, regime, n_way):
    made, _ = lesson
    batch = sampled(made, regime, n_way, 2, 2, 300)
    clip = rows_of(made.recordings, made.pack.clips["x_clip"].to_numpy())
    support, query = clip[batch.support.flatten(1).numpy()], clip[batch.query.numpy()]
    assert not (support[:, :, None] == query[:, None]).any()
    group = np.unique(made.pack.clips["group"], return_inverse=True)[1]
    assert not (group[batch.support.flatten(1).numpy()][:, :, None] == group[batch.query.numpy()][:, None]).any()


def test_the_clips_to_read_are_those_of_the_first_queries_once_each(lesson):
    made, _ = lesson
    batch = sampled(made, n_query=2)
    found = over_time.query_clips(batch, made.pack, made.recordings, 3)
    clip = rows_of(made.recordings, made.pack.clips["x_clip"].to_numpy())[batch.query.numpy()]
    assert found.tolist() == [list(dict.fromkeys(row))[:3] for row in clip.tolist()]
    with pytest.raises(EpisodeError, match="the queries of an episode come from . clips; expected at least 9"):
        over_time.query_clips(batch, made.pack, made.recordings, 9)
    with pytest.raises(PackError, match="column x_clip is missing"):
        over_time.query_clips(batch, made.recordings, made.recordings)


def test_reading_true_segments_is_answering_queries(lesson):
    made, run = lesson
    batch = sampled(made)
    model, data, _ = load_model(run.path, made.pack)
    wanted = answer(model, data, batch).adapted.double()
    facts = made.pack.clips.iloc[batch.query.numpy().ravel()]
    shape = batch.query.shape
    owner = rows_of(made.recordings, facts["x_clip"].to_numpy()).reshape(shape)
    start = facts["x_start_s"].astype(float).to_numpy().reshape(shape)
    end = start + facts["duration_s"].to_numpy().reshape(shape)
    found = over_time.read_spans(run.path, made.pack, made.recordings, batch, owner, start, end)
    inside = torch.from_numpy(found).gather(2, batch.classes[:, None].expand_as(wanted))
    torch.testing.assert_close(inside, wanted, atol=2e-5, rtol=1e-4)
    assert np.isneginf(found).sum(2).min() == len(made.pack.labels) - batch.n_way  # not asked, not possible


def test_every_window_is_read_alone(lesson):
    made, run = lesson
    batch = sampled(made)
    owner = over_time.query_clips(batch, made.pack, made.recordings, 1) * np.ones((1, 5), int)
    start = np.broadcast_to([0.0, 1.0, 2.0, 3.1, 4.0], owner.shape)
    many = over_time.read_spans(run.path, made.pack, made.recordings, batch, owner, start, start + 2.5)
    one = over_time.read_spans(run.path, made.pack, made.recordings, batch[1:2], owner[1:2, 3:4], start[1:2, 3:4],
                               start[1:2, 3:4] + 2.5)  # fmt: skip
    np.testing.assert_allclose(many[1, 3], one[0, 0], atol=2e-5)
    assert np.abs(np.exp(many[1, 3]) - np.exp(many[1, 0])).max() > 1e-4


def test_where_nothing_was_recorded_nothing_is_said(lesson):
    made, run = lesson
    batch, settings = sampled(made)[:1], ClockSettings(window_s=1, hop_s=0.5)
    clips = over_time.query_clips(batch, made.pack, made.recordings, 1)
    silent = without_frames(made.recordings, clips[0, 0], 4.0, 8.0)
    found = over_time.over_time(run.path, made.pack, silent, batch, clips, settings=settings)
    empty = (found.times > 4.6) & (found.times < 7.4)
    assert (found.predicted[0, empty] == -1).all() and (found.predicted[0, :8] >= 0).all()
    asked = np.isfinite(found.log_probability[0, 0])
    np.testing.assert_allclose(np.exp(found.log_probability[0, empty][:, asked]), 0.25, atol=1e-6)


def without_frames(pack, row, start, end):
    """The pack, of one clip no frame between two seconds."""
    views = {}
    for name in pack.modalities:
        view = pack.view(name)
        owner = np.repeat(np.arange(len(pack)), view.lengths)
        kept = ~((owner == row) & (view.times >= start) & (view.times < end))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(pack)))])
        views[name] = replace(view, values=view.values[kept], times=view.times[kept], offsets=offsets)
    return replace(pack, _views=views)


def test_other_features_are_refused(lesson):
    made, run = lesson
    batch = sampled(made)[:1]
    views = {name: made.recordings.view(name) for name in made.recordings.modalities}
    other = replace(made.recordings, _views=views | {"audio": replace(views["audio"], nodes=("x", "y"))})
    with pytest.raises(PackError, match="audio has nodes"):
        over_time.over_time(run.path, made.pack, other, batch, np.zeros((1, 1), int))


def test_windows_lie_around_their_steps_and_inside_their_clips(lesson):
    made, _ = lesson
    settings = ClockSettings(window_s=2.5, hop_s=0.5)
    lines = over_time.blank(made.recordings, np.arange(6), settings)
    duration = made.recordings.clips["duration_s"].to_numpy()[:6]
    start, end = over_time.windows(lines, duration)
    inside = np.arange(start.shape[1]) < lines.n_steps[:, None]
    assert (start >= 0).all() and (end <= duration[:, None] + 1e-9).all()
    np.testing.assert_allclose(end - start, 2.5)
    at = np.minimum(lines.times, duration[:, None])
    assert (inside <= ((start <= at) & (at <= end))).all()
    middle = inside & (lines.times > 1.25) & (lines.times < duration[:, None] - 1.25)
    np.testing.assert_allclose(((start + end) / 2)[middle], np.broadcast_to(lines.times, start.shape)[middle])
    short = over_time.windows(lines, np.full(6, 1.0))
    np.testing.assert_allclose([short[0], short[1]], [np.zeros_like(start), np.ones_like(end)])


def test_the_truth_of_a_step_is_the_label_of_most_of_it(lesson):
    made, _ = lesson
    lines = over_time.blank(made.recordings, np.array([3, 0]), ClockSettings(hop_s=0.25))
    parts = made.recordings.segments
    for row, clip in ((0, 3), (1, 0)):
        own = parts[parts["clip_id"] == made.recordings.clips["clip_id"].iloc[clip]]
        for step in range(lines.n_steps[row]):
            low, high = step * 0.25, min(step * 0.25 + 0.25, own["end_s"].max())
            share = dict.fromkeys(own["label"], 0.0)
            for part in own.itertuples():
                share[part.label] += max(0.0, min(high, part.end_s) - max(low, part.start_s))
            best = sorted(share.values())
            if len(best) == 1 or best[-1] - best[-2] > 1e-6:
                assert lines.labels[lines.truth[row, step]] == max(share, key=share.get)
        assert (lines.truth[row, lines.n_steps[row] :] == -1).all()


def test_a_step_that_two_segments_share_equally_has_the_later_label_and_a_tie_of_raters_none(tmp_path):
    lines = over_time.blank(small(tmp_path), np.array([0]), ClockSettings(window_s=0.4, hop_s=0.4))
    assert [lines.labels[label] for label in lines.truth[0, 6:9]] == ["calm", "glad", "glad"]  # 3 s is amid step 7
    assert lines.truth[0, :3].tolist() == [-1, -1, 0]  # labels begin with second 1, amid step 2
    votes = {"votes_calm": [0, 1, 2, 5], "votes_glad": [1, 0, 2, 0], "votes_sad": [4, 0, 0, 0]}
    pack = small(tmp_path, name="rated", label=["sad", "calm", "", "calm"], **votes)
    lines = over_time.blank(pack, np.array([0]), ClockSettings(window_s=0.5, hop_s=0.5))
    assert lines.truth[0, 2:6].tolist() == [-1] * 4
    lines = over_time.blank(small(tmp_path, name="late"), np.array([0]), ClockSettings(window_s=1.5, hop_s=1.5))
    assert lines.truth[0].tolist() == [-1, 0, 1, 0]  # a third of the first step is labelled, and that is its end


def test_what_is_known_of_time_is_counted_on_the_given_people_alone(lesson):
    made, _ = lesson
    train = made.splits.subjects["meta_train"]
    step, share = over_time.counted_transitions(made.recordings, train, 0.25)
    np.testing.assert_allclose([*step.sum(1), share.sum()], 1)
    assert step.diagonal().min() > 0.9
    subject = made.recordings.segments["clip_id"].map(made.recordings.clips.set_index("clip_id")["subject"])
    others = ~subject.isin(train)
    assert others.any()
    changed = made.recordings.segments.assign(label=made.recordings.segments["label"].mask(others, made.pack.labels[0]))
    again = over_time.counted_transitions(replace(made.recordings, segments=changed), train, 0.25)
    np.testing.assert_array_equal(again[0], step)
    changed = made.recordings.segments.assign(label=made.pack.labels[0])
    assert shares_of(np.zeros((2, 9), int), 8)[0] > 0.9
    assert over_time.counted_transitions(replace(made.recordings, segments=changed), train, 0.25)[1][0] > 0.9


def lines_of(probability, settings):
    """Timelines of one clip with these (step, label) probabilities."""
    n_steps, n_labels = probability.shape
    return over_time.Timelines(LABELS[:n_labels], np.zeros(1, int), np.array(["ann"]), settings, np.array([n_steps]),
                               np.zeros((1, n_steps), int), np.log(probability)[None])  # fmt: skip


def test_smoothing_takes_a_flicker_away_and_keeps_a_change():
    settings = ClockSettings(window_s=0.25, hop_s=0.25)
    said = np.array([[0.9, 0.1]] * 5 + [[0.3, 0.7]] + [[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 10)
    step = np.array([[0.95, 0.05], [0.05, 0.95]])
    calm = over_time.smoothed(lines_of(said, settings), step, np.array([0.5, 0.5]))
    assert calm.predicted[0].tolist() == [0] * 10 + [1] * 10
    np.testing.assert_allclose(np.exp(calm.log_probability).sum(2), 1)


def test_smoothing_without_knowledge_of_time_changes_nothing():
    said = np.random.default_rng(0).dirichlet([1, 1, 1], 12)
    even = np.full((3, 3), 1 / 3)
    calm = over_time.smoothed(lines_of(said, ClockSettings(window_s=0.5, hop_s=0.5)), even, even[0])
    np.testing.assert_allclose(np.exp(calm.log_probability[0]), said, atol=1e-12)


def test_windows_that_overlap_count_for_their_new_part_only():
    said = np.tile([[0.8, 0.2]], (8, 1))
    once = over_time.smoothed(lines_of(said[:1], ClockSettings(window_s=2, hop_s=2)), np.eye(2), np.full(2, 0.5))
    often = over_time.smoothed(lines_of(said, ClockSettings(window_s=2, hop_s=0.25)), np.eye(2), np.full(2, 0.5))
    np.testing.assert_allclose(often.log_probability[0, 0], once.log_probability[0, 0])


def test_a_clock_that_leaves_gaps_is_refused():
    with pytest.raises(ConfigError, match=r"window_s = 1.0, hop_s = 2.0; expected 0 < hop_s <= window_s"):
        ClockSettings(window_s=1.0, hop_s=2.0)


def test_an_unknown_modality_is_refused(tmp_path):
    with pytest.raises(PackError, match="modality 'smell' is unknown"):
        cut_views(small(tmp_path), "smell", np.array([0]), np.array([0.0]), np.array([1.0]))


# --- 25: the lesson


@pytest.fixture(scope="module")
def asked(lesson):
    """Three episodes of the lesson's kind with two clips each."""
    batch = sampled(lesson[0], n_way=4, n_shot=2, n_query=2)
    return inside_a_clip.Asked(batch, over_time.query_clips(batch, lesson[0].pack, lesson[0].recordings, 2))


@pytest.fixture(scope="module")
def found(lesson, asked):
    """What all readers of the lesson say; Bayes needs episodes of all emotions and is tested with its laws."""
    made, run = lesson
    settings = ClockSettings(window_s=1.5)
    model = inside_a_clip._model(made, run, asked, settings)
    told = inside_a_clip._told(made, run, asked, model)
    return {"model": model, "prototypes": inside_a_clip._prototypes(made, asked, settings)} | told


def test_all_readers_answer_the_same_steps_of_the_same_clips(found, asked):
    shapes = {name: made.log_probability.shape for name, made in found.items()}
    assert len(set(shapes.values())) == 1
    for made in found.values():
        assert made.clip.tolist() == asked.clips.ravel().tolist()
        np.testing.assert_allclose(np.exp(made.log_probability).sum(2)[:, : made.n_steps.min()], 1, atol=1e-5)


def test_who_is_told_the_segments_says_one_thing_in_each(lesson, found):
    made, _ = lesson
    told = found["ST-F2M, told the segments"]
    for line, clip in enumerate(told.clip[:3]):
        parts = made.recordings.segments
        own = parts[parts["clip_id"] == made.recordings.clips["clip_id"].iloc[clip]]
        for start, end in own[["start_s", "end_s"]].to_numpy():
            said = told.log_probability[line][(told.times >= start) & (told.times < end)]
            assert len(said) >= 2 and (said == said[0]).all()


def test_a_prototype_is_the_mean_of_plain_features_of_the_support(lesson, asked, found):
    made, _ = lesson
    line, step = 1, 6
    lines = found["prototypes"]
    start, end = over_time.windows(lines, made.recordings.clips["duration_s"].to_numpy()[lines.clip])

    def features(pack, row, low, high):
        """Mean and deviation of each channel in a span, one list per modality."""
        parts = []
        for name in pack.modalities:
            view = pack.view(name)
            own = slice(view.offsets[row], view.offsets[row + 1])
            inside = (view.times[own] >= low - 1e-6) & (view.times[own] < high - 1e-6)
            values = view.values[own][inside].astype(float).reshape(inside.sum(), -1)
            parts.append(np.concatenate([values.mean(0), values.std(0)]))
        return parts

    train = [features(made.pack, row, 0, 99) for row in made.splits.rows["meta_train"]]
    scale = [np.std([x[m] for x in train], axis=0) for m in range(3)]
    scale = [np.where(s <= 1e-9, 1, s) for s in scale]  # what is constant in every segment is left as it is
    query = features(made.recordings, lines.clip[line], start[line, step], end[line, step])
    episode = line // 2
    logit = []
    for rows in asked.batch.support[episode].tolist():
        support = [features(made.pack, row, 0, 99) for row in rows]
        gaps = [(query[m] - np.mean([x[m] for x in support], 0)) / scale[m] for m in range(3)]
        logit.append(-np.mean([(gap**2).mean() for gap in gaps]))
    wanted = np.array(logit) - np.logaddexp.reduce(logit)
    classes = asked.batch.classes[episode].numpy()
    np.testing.assert_allclose(lines.log_probability[line, step, classes], wanted, atol=1e-4)


def test_who_knows_the_laws_reads_the_right_segments_at_the_right_time(lesson):
    made, _ = lesson
    batch = sampled(made, n_way=8, n_shot=1, n_query=1, n_episodes=6)
    asked = inside_a_clip.Asked(batch, over_time.query_clips(batch, made.pack, made.recordings, 2))
    lines = over_time.blank(made.recordings, asked.clips.ravel(), ClockSettings())
    said = inside_a_clip._bayes(made, asked, lines)
    inside = lines.truth >= 0
    assert (said.predicted == lines.truth)[inside].mean() > 0.6
    assert (said.predicted == np.roll(lines.truth, 12, axis=1))[inside].mean() < 0.6  # three seconds late


def test_the_picture_is_of_the_clip_with_most_changes(lesson, found):
    made, _ = lesson
    readers = {"ST-F2M": found["model"], "ST-F2M, smoothed": found["model"], "Bayes": found["prototypes"]}
    facts = inside_a_clip.picture(readers, made)
    pairs = zip(found["model"].truth, found["model"].n_steps, strict=True)
    most = max(np.count_nonzero(np.diff(truth[:n_steps])) for truth, n_steps in pairs)
    assert np.count_nonzero(np.diff(facts["truth"])) == most
    assert {len(values) for values in facts["readings"].values()} == {len(facts["truth"])}
    assert facts["starts_s"][0] == 0


def test_how_segments_follow_one_another_is_close_to_the_law(lesson):
    made, _ = lesson
    step, share = inside_a_clip._segment_chain(made)
    assert abs(step.diagonal().mean() - made.config.stay) < 0.1
    np.testing.assert_allclose([*step.sum(1), share.sum()], 1)
