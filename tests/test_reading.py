"""What adapters build: tables of clips, words spread over time, views of one frame."""

import numpy as np
import pytest

from stf2m_core.data.clips import CLIP_COLUMNS
from stf2m_core.data.ragged import check_views
from stf2m_core.data.reading import clip_table, one_frame, spread_words
from stf2m_core.data.words import hash_words


def test_a_table_of_clips_has_the_columns_of_a_pack_in_order():
    table = clip_table({"label": ["joy"], "clip_id": ["a"], "subject": ["s"], "group": ["g"]}, x_own=["1"])
    assert tuple(table.columns) == (*CLIP_COLUMNS, "x_own")
    assert (table["domain"][0], table["split"][0], table["text"][0]) == ("", "", "")


def test_words_are_spread_evenly_over_each_clip():
    views = spread_words(["we won", "", "oh"], np.array([2.0, 1.0, 4.0]))
    check_views("text", views, 3, where="here")
    assert views.lengths.tolist() == [2, 0, 1]
    assert views.times.tolist() == [0.5, 1.5, 2.0]
    assert np.array_equal(views.values[:2, 0], hash_words(["we", "won"]))


def test_the_same_sentence_has_the_same_vectors_wherever_it_stands():
    views = spread_words(["hello there", "no", "Hello, there!"], np.ones(3))
    assert np.array_equal(views.values[:2], views.values[3:])


def test_one_frame_views_have_a_frame_for_every_clip():
    views = one_frame(np.arange(6.0).reshape(2, 3, 1), ["a", "b", "c"], ["x"], np.array([0.5, 0.25]))
    check_views("votes", views, 2, where="here")
    assert (views.lengths.tolist(), views.times.tolist()) == ([1, 1], [0.5, 0.25])
    assert views.values[1, :, 0] == pytest.approx([3, 4, 5])
