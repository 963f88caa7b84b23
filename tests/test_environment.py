"""The check of the machine: it says what is there, and stops with one sentence where something is not."""

import importlib.metadata

import pytest

from stf2m_core import environment
from stf2m_core.errors import RunError


def test_this_machine_is_ready_and_every_library_of_the_package_is_a_row(tmp_path):
    found = environment.look(tmp_path / "results")
    assert found["fine"].all()
    assert {"Python", "torch", "numpy", "snakemake", "gradient of a gradient"} <= set(found["what"])
    assert not {"librosa", "ruff"} & set(found["what"])  # extras are not required
    assert (tmp_path / "results").is_dir()
    assert list((tmp_path / "results").iterdir()) == []
    assert environment.require(found).startswith(f"All {len(found)} requirements are met")


def test_a_missing_or_wrong_library_is_named_with_both_values(tmp_path, monkeypatch):
    wanted = ["torch==0.0.1", "no-such-library>=2", 'ruff; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = environment.look(tmp_path)
    assert found.loc[~found["fine"], "what"].tolist() == ["torch", "no-such-library"]
    with pytest.raises(RunError, match=r"torch: 2\..*, expected ==0.0.1; no-such-library: absent, expected >=2"):
        environment.require(found)


def test_a_results_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    found = environment.look(tmp_path / "file" / "results")
    with pytest.raises(RunError, match="results folder can be written: no: .*expected yes"):
        environment.require(found)
