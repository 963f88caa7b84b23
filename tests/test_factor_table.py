"""The factor table: who stands where between ceiling and Bayes, and that a leak is found."""

from __future__ import annotations

import numpy as np
import pytest

from stf2m_core import figures
from stf2m_core.config import SplitConfig
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import open_pack
from stf2m_core.data.synemo import FACTORS, SynEmoConfig
from stf2m_core.data.synemo_bayes import evidence, reference
from stf2m_core.episodes import split_subjects
from stf2m_core.errors import ResultError
from stf2m_core.factor_table import BAYES, CEILING, factor_rows, factor_table, leaks
from stf2m_core.shapes import EpisodeBatch

SIZE = {"seed": 5, "n_domains": 4, "n_subjects_per_domain": 4, "clips_per_class": 4}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factors") / "synemo"
    import_dataset("synemo", out=folder, pure=True, **SIZE)
    pack, config = open_pack(folder), SynEmoConfig(pure=True, **SIZE)
    known = evidence(pack, config)

    def guess(batch: EpisodeBatch) -> np.ndarray:
        return np.random.default_rng(0).random((*batch.query.shape, batch.n_way))

    readers = {
        "guessing": guess,
        "without order": lambda batch: reference(known, batch, without=["order"]),
        "all-knowing": lambda batch: reference(known, batch),
    }
    splits = split_subjects(pack, SplitConfig(n_folds=2, n_val_subjects=4))
    return factor_rows(pack, config, splits, readers, episodes=30)


def _mean(rows, factor, reader):
    return next(row["mean"] for row in rows if (row["factor"], row["reader"]) == (factor, reader))


def test_every_reader_answers_every_factor_on_the_same_episodes(rows):
    assert len(rows) == len(FACTORS) * 5
    for factor in FACTORS:
        assert _mean(rows, factor, "all-knowing") == _mean(rows, factor, BAYES) > _mean(rows, factor, CEILING)
        assert _mean(rows, factor, "guessing") == pytest.approx(1 / 6, abs=0.05)
    assert _mean(rows, "order", "without order") == _mean(rows, "order", CEILING)


def test_a_model_above_its_ceiling_is_a_leak_and_one_at_it_is_none(rows):
    assert leaks(rows, {"order": "without order", "level": "guessing"}) == []
    found = leaks(rows, {"order": "all-knowing"})
    assert [(leak["factor"], leak["reader"]) for leak in found] == [("order", "all-knowing")]
    assert found[0]["difference"] - found[0]["ci95"] > 0.3
    with pytest.raises(ResultError, match="no row of 'nobody'"):
        leaks(rows, {"order": "nobody"})


def test_the_table_has_a_line_per_factor_and_an_interval_in_every_cell(rows):
    table = factor_table(rows)
    assert list(table.index) == list(FACTORS)
    assert list(table.columns)[:2] == [BAYES, CEILING]
    assert table.map(lambda cell: " ± " in cell).to_numpy().all()


def test_the_figure_draws_every_reader_between_its_references(rows):
    figure = figures.factors(rows)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(FACTORS)
    assert sum(line.get_marker() not in ("None", None) for line in axis.lines) == 3 * len(FACTORS)
    with pytest.raises(ResultError, match="'order' lacks a reference"):
        figures.factors([row for row in rows if row["reader"] != CEILING])
    with pytest.raises(ResultError, match="no rows of factors"):
        figures.factors([])
