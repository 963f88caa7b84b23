"""The factor table: who stands where between ceiling and Bayes, and that a leak is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stf2m_core import factor_table as table_module
from stf2m_core import figures
from stf2m_core.config import PROFILES, EpisodeConfig, RunConfig, SplitConfig
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import open_pack
from stf2m_core.data.synemo import FACTORS, SynEmoConfig
from stf2m_core.data.synemo_bayes import evidence, reference
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.errors import ConfigError, ResultError
from stf2m_core.evaluation import READINGS, answer
from stf2m_core.factor_table import BAYES, CEILING, factor_rows, factor_table, leaks, readers_of
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import build
from stf2m_core.views import ResidentViews

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


@pytest.fixture(scope="module")
def model_world(tmp_path_factory):
    """An untrained model, its data, and some episodes."""
    folder = tmp_path_factory.mktemp("readers") / "synemo"
    import_dataset("synemo", out=folder, pure=True, **SIZE | {"clips_per_class": 2})
    pack = open_pack(folder)
    config = (
        RunConfig().replace(**PROFILES["test"]).replace(split__n_folds=2, split__n_val_subjects=4, train__device="cpu")
    )
    splits, data = split_subjects(pack, config.split), ResidentViews(pack, config.views, "cpu")
    kind = EpisodeConfig(regime="D", n_way=3, n_shot=2, n_query=2)
    return build(data, splits, config), data, EpisodeSampler(pack, splits, "meta_test", kind, 0).sample(0, 4)


@pytest.mark.parametrize("hide", [(), ("text",)])
def test_readers_of_one_model_give_its_readings_in_a_single_pass(model_world, hide, monkeypatch):
    model, data, batch = model_world
    passes = []

    def watched(*facts, **settings):
        passes.append(1)
        return answer(*facts, **settings)

    monkeypatch.setattr(table_module, "answer", watched)
    readers = readers_of(model, data, READINGS, hide=hide, seed=3)
    keep = torch.tensor([name not in hide for name in data.modalities])
    expected = answer(model, data, batch, seed=3, keep=keep)
    said = [reader(batch) for reader in readers]
    assert len(passes) == 1
    for name, part in zip(READINGS, said, strict=True):
        np.testing.assert_array_equal(part, getattr(expected, name).numpy())
    readers[0](batch[:2])
    np.testing.assert_array_equal(readers[1](batch), said[1])
    assert len(passes) == 3, "other episodes are answered anew"
    assert np.abs(said[0] - said[2]).max() > 1e-3


def test_a_reading_or_modality_that_is_not_there_is_refused(model_world):
    model, data, _ = model_world
    with pytest.raises(ConfigError, match="reading 'guess'; expected of .*adapted, zero_step, prototype, no_support"):
        readers_of(model, data, ["adapted", "guess"])
    with pytest.raises(ConfigError, match="modality 'smell'; expected of audio, visual, text"):
        readers_of(model, data, ["adapted"], hide=["smell"])
