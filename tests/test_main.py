"""The command line says what it did, and what it cannot do, in one sentence."""

import pytest

from stf2m_core.__main__ import main
from stf2m_core.data.pack import open_pack
from stf2m_core.own_data import write_example
from stf2m_core.results import Record


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


def test_options_of_an_import_are_typed_on_the_command_line(tmp_path, capsys):
    order = ["import", "synemo", "--out", str(tmp_path / "p"), "--set", "pure=true", "--set"]
    assert main([*order, "n_domains=2"]) == 0
    assert open_pack(tmp_path / "p").clips["domain"].nunique() == 2
    assert main([*order, "n_domain=2", "--overwrite"]) == 2
    assert "option 'n_domain' is unknown" in capsys.readouterr().err


def test_one_command_goes_from_files_to_a_first_result(tmp_path, capsys):
    source, out, results = write_example(tmp_path / "data"), tmp_path / "pack", tmp_path / "results"
    command = ["import", "features", "--source", str(source), "--out", str(out), "--set", "modalities=audio",
               "--first-result", str(results), "--profile"]  # fmt: skip
    assert main([*command, "tiny"]) == 2
    assert "tiny" in capsys.readouterr().err and not out.exists(), "refused before any work"
    assert main([*command, "test"]) == 0
    said = capsys.readouterr().out
    assert "audio: " in said and "visual: " not in said
    rows = [line.split()[0] for line in said.splitlines()[-4:]]
    assert rows == ["nearest-prototype", "ridge-prototype", "st-f2m", "chance"]
    records = [Record.from_json(path) for path in (results / "records" / "features").iterdir()]
    assert {record.method for record in records} == {"nearest-prototype", "ridge-prototype", "st-f2m"}
    assert {record.pack_digest for record in records} == {open_pack(out).digest}


def test_evaluating_before_training_names_the_missing_run(tmp_path, capsys):
    pack = str(tmp_path / "synemo")
    main(["import", "synemo", "--out", pack])
    assert main(["evaluate", pack, "--results", str(tmp_path), "--profile", "test"]) == 2
    assert "Train it first" in capsys.readouterr().err
