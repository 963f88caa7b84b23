"""How far raters agree: kappa against worked examples, the tables on made-up votes, the figures, the real votes."""

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from stf2m_core import figures, rater_table
from stf2m_core.data.adapters.crema_d_votes import CONDITIONS, EMOTIONS, read_votes
from stf2m_core.data.synthetic_votes import synthetic_votes
from stf2m_core.errors import ResultError

# the example of Fleiss 1971 as it is commonly retold: ten subjects, fourteen raters, five categories
FLEISS = np.array([
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
])  # fmt: skip


def test_kappa_of_the_worked_example():
    assert rater_table.fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)


def test_kappa_is_one_where_all_agree_and_near_zero_where_they_guess():
    assert rater_table.fleiss_kappa(np.eye(3)[[0, 1, 2, 0]] * 5) == pytest.approx(1)
    rng = np.random.default_rng(0)
    guessed = rng.multinomial(10, [0.5, 0.3, 0.2], size=4000)
    assert abs(rater_table.fleiss_kappa(guessed)) < 0.01


def test_clips_with_one_rater_say_nothing_of_agreement():
    lonely = np.vstack([FLEISS, np.eye(5)[[0, 1, 2]]])
    assert rater_table.fleiss_kappa(lonely) == rater_table.fleiss_kappa(FLEISS)


@pytest.mark.parametrize(
    ("counts", "message"),
    [(np.eye(3), "no clip has two raters"), (np.array([[4, 0], [5, 0]]), "all raters always say the same")],
)
def test_votes_that_have_no_kappa_are_refused(counts, message):
    with pytest.raises(ResultError, match=message):
        rater_table.fleiss_kappa(counts)


def test_the_interval_is_over_actors_and_not_over_clips():
    """Each actor's clips repeated: more clips, no more actors, the same interval."""
    actor = np.arange(10)
    once = rater_table.kappa_interval(FLEISS, actor)
    repeated = rater_table.kappa_interval(np.repeat(FLEISS, 9, axis=0), np.repeat(actor, 9))
    assert once[0] == pytest.approx(repeated[0])
    assert (once[1].low, once[1].high) == pytest.approx((repeated[1].low, repeated[1].high))
    assert once[1].low < once[0] < once[1].high


def test_entropy_counts_bits():
    counts = np.array([[8, 0, 0, 0], [4, 4, 0, 0], [2, 2, 2, 2]])
    assert rater_table.entropy_bits(counts).tolist() == [0, 1, 2]
    assert rater_table.leading_share(counts).tolist() == [1, 0.5, 0.25]


def test_shares_of_what_was_asked_for_are_those_of_a_plain_loop():
    votes = synthetic_votes(n_actors=4, n_clips=12)
    found = rater_table.intended_shares(votes)
    for condition in range(3):
        for emotion in range(6):
            own = votes.counts[votes.intended == emotion, condition]
            assert found[condition, emotion] == pytest.approx((own / own.sum(1, keepdims=True)).mean(0))


def test_a_label_that_all_gave_would_not_change_and_a_tie_would():
    votes = synthetic_votes(n_actors=2, n_clips=6)
    votes.counts[:] = 0
    votes.counts[:, 0, 2], votes.counts[:, 1, :2] = 10, 5
    assert rater_table.noise_floor(votes, 0) == 0
    assert 0.2 < rater_table.noise_floor(votes, 1) < 0.6
    assert rater_table.noise_table(votes, CONDITIONS[:2]).iloc[0].tolist() == ["voice", "0.00"]


def test_the_tables_have_a_row_for_each_condition_and_emotion():
    votes = synthetic_votes()
    assert rater_table.agreement_table(votes)["rated from"].tolist() == list(CONDITIONS)
    assert rater_table.emotion_table(votes)["asked for"].tolist() == list(EMOTIONS)


@pytest.mark.parametrize("n_clips", [1, 40])
def test_the_figures_are_drawn(n_clips):
    votes = synthetic_votes(n_actors=2, n_clips=20)
    drawn = figures.agreement(votes.counts[:n_clips], CONDITIONS, EMOTIONS)
    assert isinstance(drawn, Figure) and len(drawn.axes) == 2
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == list(CONDITIONS)
    taken = figures.taken_for(rater_table.intended_shares(votes), CONDITIONS, EMOTIONS)
    assert [axis.get_title(loc="left") for axis in taken.axes[:3]] == [f"rated from: {name}" for name in CONDITIONS]


def test_figures_without_votes_are_refused():
    with pytest.raises(ResultError, match="no clips; expected at least one"):
        figures.agreement(np.zeros((0, 3, 6)), CONDITIONS, EMOTIONS)
    with pytest.raises(ResultError, match="a clip has no votes"):
        figures.agreement(np.zeros((2, 3, 6)), CONDITIONS, EMOTIONS)


@pytest.mark.realdata
def test_raters_of_the_real_clips_agree_most_when_they_see_and_hear():
    votes = read_votes(Path(os.environ["STF2M_DATA"]) / "crema_d_votes")
    table = rater_table.agreement_table(votes)
    assert table["entropy, bits"].tolist() == ["1.20", "1.01", "0.92"]  # as the data's own index tells
    assert [cell[:4] for cell in table["Fleiss' kappa [95 % over actors]"]] == ["0.28", "0.46", "0.50"]
