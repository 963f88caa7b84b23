"""The command line says what it did, and what it cannot do, in one sentence."""

import pytest

from stf2m_core.__main__ import main


def test_a_data_set_is_imported_verified_trained_and_evaluated_by_commands_alone(tmp_path, capsys):
    pack, results = str(tmp_path / "synemo"), str(tmp_path / "results")
    assert main(["import", "synemo", "--out", pack]) == 0
    assert main(["verify", pack]) == 0
    assert "is whole" in capsys.readouterr().out
    assert main(["train", pack, "--results", results, "--profile", "test"]) == 0
    assert "4 steps" in capsys.readouterr().out
    assert main(["evaluate", pack, "--results", results, "--profile", "test"]) == 0
    said = capsys.readouterr().out
    assert "st-f2m/full/D 5-way 5-shot/fold0-seed0: accuracy ." in said
    assert "ridge-prototype/full" in said


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["verify", "nowhere"], "there is no pack at"),
        (["import", "nosuchset", "--out", "pack"], "nosuchset"),
        (["train", "nowhere"], "there is no pack at"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path, monkeypatch, capsys, command, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_evaluating_before_training_names_the_missing_run(tmp_path, capsys):
    pack = str(tmp_path / "synemo")
    main(["import", "synemo", "--out", pack])
    assert main(["evaluate", pack, "--results", str(tmp_path), "--profile", "test"]) == 2
    assert "Train it first" in capsys.readouterr().err
