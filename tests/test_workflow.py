"""The workflow runs what is not up to date, and nothing else; it survives failing notebooks and kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stf2m_core import reproduce
from stf2m_core.errors import NotebookError, RunError
from stf2m_core.jobs import Job, _write_keys, execute, package_digest, reasons
from stf2m_core.locks import gpu_slot, workflow_lock
from stf2m_core.notebook import check_parameters, describe
from stf2m_core.reproduce import Dataset, plan, report

NOTE = """from pathlib import Path
with Path(results, "runs.log").open("a") as log:
    log.write(name + "\\n")
"""
PARAMETERS = 'results: str = ""\nname: str = ""\nvalue: int = 1'
MAKE = "Path(results, name + '.txt').write_text(str(value % 10))"


@dataclass(frozen=True, kw_only=True)
class Design:
    """A stand-in for the design of the experiment."""

    folds: tuple = (0, 1)
    seeds: tuple = (0,)
    variants: tuple = (("full", (0, 1)), ("no-fuzzy", (0,)))


class World:
    """Notebooks a -> b -> c in one folder, their results in another."""

    def __init__(self, folder: Path, write_notebook):
        self.results = folder / "results"
        self.results.mkdir(parents=True)
        self.folder, self._write = folder, write_notebook
        for name in "abc":
            self.write(name, MAKE)

    def write(self, name: str, *codes: str) -> Path:
        return self._write(self.folder / f"{name}.ipynb", PARAMETERS, NOTE, *codes)

    def jobs(self, **values: int) -> list[Job]:
        needs = {"a": (), "b": ("x/a",), "c": ("x/b",)}
        settings = {"outputs": ("a.txt",)}
        return [
            Job(
                id=f"x/{name}",
                notebook=str(self.folder / f"{name}.ipynb"),
                parameters={"results": str(self.results), "name": name, "value": values.get(name, 1)},
                needs=needs[name],
                **(settings if name == "a" else {}),
            )
            for name in "abc"
        ]

    def run(self, **values: int) -> int:
        return execute(self.jobs(**values), self.results, cores=2, package="p")

    def why(self, jobs: list[Job] | None = None, package: str = "p") -> dict[str, str]:
        jobs = jobs or self.jobs()
        _write_keys(jobs, self.results, package)
        return reasons(jobs, self.results)

    def ran(self) -> str:
        """The names of the notebooks that ran since the last call."""
        log = self.results / "runs.log"
        names = "".join(sorted(log.read_text(encoding="utf-8").split())) if log.exists() else ""
        log.unlink(missing_ok=True)
        return names


@pytest.fixture
def world(tmp_path, write_notebook):
    return World(tmp_path, write_notebook)


def _save_as_jupyter_would(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metadata"]["language_info"] = {"name": "python", "version": "3.99"}
    for number, cell in enumerate(content["cells"]):
        cell |= {"id": f"new-{number}", "execution_count": number + 40}
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["new\n"]}]
    path.write_text(json.dumps(content), encoding="utf-8")


def test_only_what_changed_and_what_depends_on_it_runs_again(world):
    assert world.run() == 0
    assert world.ran() == "abc"
    assert sorted(path.name for path in (world.results / "executed" / "x").iterdir()) == [
        f"{name}.{ending}" for name in "abc" for ending in ("html", "ipynb")
    ]
    for name in "abc":
        _save_as_jupyter_would(world.folder / f"{name}.ipynb")
    assert world.why() == {}
    assert world.run() == 0
    assert world.ran() == ""
    world.write("b", MAKE, "2 + 2")
    assert world.why() == {
        "x/b": "changed: the notebook",
        "x/c": "it needs x/b, which runs (if that comes out as before, this is left as it is)",
    }
    assert world.run() == 0
    assert world.ran() == "bc"


def test_a_job_whose_outputs_come_out_as_before_does_not_stir_the_others(world):
    assert world.run() == 0
    assert world.ran() == "abc"
    assert world.run(a=11) == 0
    assert world.ran() == "a"
    (world.results / "a.txt").unlink()
    assert world.why(world.jobs(a=11))["x/a"] == "it was not finished or its outputs have gone"
    assert world.run(a=12) == 0
    assert world.ran() == "abc"


def test_what_was_made_and_has_gone_is_made_again_and_stirs_nothing_else(world):
    def jobs():
        return [replace(job, leaves=("c.*",)) if job.id == "x/c" else job for job in world.jobs()]

    for gone in ("c.txt", "executed/x/c.ipynb"):
        assert execute(jobs(), world.results, cores=2, package="p") == 0
        world.ran()
        assert world.why(jobs()) == {}
        (world.results / gone).unlink()
        assert world.why(jobs()) == {"x/c": "it was not finished or its outputs have gone"}
        assert execute(jobs(), world.results, cores=2, package="p") == 0
        assert world.ran() == "c"
        assert (world.results / gone).exists()


def test_a_failing_notebook_stops_only_what_needs_it(world, capfd, monkeypatch):
    world.write("b", "1 / 0")
    free = Job(
        id="x/free", notebook=str(world.write("free", MAKE)), parameters={"results": str(world.results), "name": "free"}
    )
    monkeypatch.setattr(reproduce, "find_datasets", lambda folder: [])
    monkeypatch.setattr(reproduce, "plan", lambda *_, **__: [*world.jobs(), free])
    assert reproduce.main(["--results", str(world.results), "--cores", "2"]) == 1
    assert world.ran() == "abfree"
    told = capfd.readouterr()
    assert "FAILED  x/b: cell 3 failed with ZeroDivisionError" in told.out
    assert f"Failed: x/b; see {world.results / 'executed' / 'x' / 'b.failed.ipynb'}" in told.out
    assert "2 of 4 notebooks are not done; the same command goes on from here." in told.out
    assert told.err == ""
    world.write("b", MAKE)
    (world.results / "tables" / "x").mkdir(parents=True)
    (world.results / "tables" / "x" / "main.md").write_text("| accuracy |\n", encoding="utf-8")
    assert reproduce.main(["--results", str(world.results), "--cores", "2"]) == 0
    assert world.ran() == "bc"
    told = capfd.readouterr().out
    assert told.endswith("\n\n| accuracy |\n")
    assert "Failed" not in told
    assert not (world.results / "executed" / "x" / "b.failed.ipynb").exists()


KILLED = """
import sys
from pathlib import Path
from stf2m_core.jobs import Job, execute
jobs = [Job(**facts) for facts in {jobs!r}]
sys.exit(execute(jobs, Path({results!r}), cores=2, package="p"))
"""


def _is_alive(process: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return state != "" and not state.startswith("Z")


def test_a_killed_workflow_leaves_nobody_behind_and_goes_on_where_it_was(world):
    begin = "import os, time\nPath(results, 'b.begun').write_text(str(os.getpid()))\ntime.sleep(value)\n"
    world.write("b", begin + MAKE)
    facts = [
        {
            "id": job.id,
            "notebook": job.notebook,
            "parameters": job.parameters,
            "needs": job.needs,
            "outputs": job.outputs,
        }
        for job in world.jobs(b=120)
    ]
    script = KILLED.format(jobs=facts, results=str(world.results))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as workflow:
        deadline = time.monotonic() + 60
        while not (world.results / "b.begun").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(workflow.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert world.ran() == "ab"
    assert not (world.results / ".done" / "x" / "b.json").exists()
    world.write("b", MAKE)
    assert world.run() == 0
    assert world.ran() == "bc"
    assert time.monotonic() - killed < 90  # and not the 120 seconds of the notebook that was left behind
    assert not _is_alive(int((world.results / "b.begun").read_text(encoding="utf-8")))
    assert list(world.results.rglob("*.part*")) == []


def test_a_job_that_goes_early_starts_before_others_that_could(world):
    jobs = [replace(job, needs=(), outputs=(), early=job.id == "x/a") for job in world.jobs()]
    assert execute(jobs, world.results, cores=1, package="p") == 0
    assert (world.results / "runs.log").read_text(encoding="utf-8").split()[0] == "a"


def test_a_dry_run_tells_the_reasons_and_runs_nothing(world, capfd):
    assert execute(world.jobs(), world.results, dry_run=True, package="p") == 0
    told = capfd.readouterr().out
    assert told.startswith("3 of 3 notebooks would run.\n  x/a: it has not run yet\n")
    assert world.ran() == ""


def test_two_runs_on_the_same_results_are_refused(tmp_path):
    with workflow_lock(tmp_path):
        with pytest.raises(RunError, match=f"process {os.getpid()} is at work on .*; expected one at a time"):
            with workflow_lock(tmp_path, patience=0.1):
                pass
    with workflow_lock(tmp_path, patience=0.1) as (_, token):
        assert token.startswith(f"{os.getpid()} ")


def test_each_gpu_slot_holds_one_job_and_no_gpu_means_no_slot(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    with gpu_slot(tmp_path, []):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "all"
    with gpu_slot(tmp_path, ["3", "5"]):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        with gpu_slot(tmp_path, ["3", "5"]):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    with gpu_slot(tmp_path, ["3", "5"]):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_package_counts_by_its_code_alone(tmp_path):
    (tmp_path / "encoder.py").write_text("x = 1\n", encoding="utf-8")
    before = package_digest(tmp_path)
    (tmp_path / "encoder.py").write_text("# why\nx  =  1\n", encoding="utf-8")
    (tmp_path / "reproduce.py").write_text("y = 1\n", encoding="utf-8")
    assert package_digest(tmp_path) == before
    (tmp_path / "encoder.py").write_text("x = 2\n", encoding="utf-8")
    assert package_digest(tmp_path) != before


def test_a_key_does_not_depend_on_where_the_results_and_the_data_lie(tmp_path, write_notebook):
    notebook = write_notebook(tmp_path / "a.ipynb", PARAMETERS)
    keys = []
    for place in ("one", "two"):
        parameters = {"results": str(tmp_path / place), "source": f"/somewhere/{place}"}
        job = Job(id="a", notebook=str(notebook), parameters=parameters, data={"files": {"x.csv": [3, 4]}})
        _write_keys([job], tmp_path / place, "p")
        keys.append((tmp_path / place / ".keys" / "a.json").read_text(encoding="utf-8"))
    assert keys[0] == keys[1]
    assert "somewhere" not in keys[0]


def _plan(tmp_path: Path, design: Design | None = None, **settings) -> list[Job]:
    datasets = [Dataset(name="synemo"), Dataset(name="faces", source="/data/faces", facts={"files": {}})]
    return plan(datasets, "smoke", results=tmp_path, design=lambda name, profile: design or Design(), **settings)


def test_the_plan_trains_each_run_once_and_orders_every_notebook(tmp_path):
    jobs = _plan(tmp_path)
    ids = [job.id for job in jobs]
    assert len(set(ids)) == len(ids) == 5 + 2 * (6 + 2 * 3 + 2)
    for number, job in enumerate(jobs):
        assert set(job.needs) <= set(ids[:number])
    found = {job.id: job for job in jobs}
    assert found["faces/07_evaluate-no-fuzzy-fold0-seed0"].needs == ("faces/06_meta_train-no-fuzzy-fold0-seed0",)
    assert found["faces/05_adapt_to_one_episode"].needs == ("faces/06_meta_train-full-fold0-seed0",)
    assert sorted(found["synemo/08_ablate"].needs) == sorted(id for id in ids if id.startswith("synemo/07"))
    assert found["synemo/09_figures_and_tables"].needs == ("synemo/08_ablate",)
    assert found["faces/06_meta_train-full-fold1-seed0"].parameters == {
        "pack": str(tmp_path / "packs" / "faces"),
        "results": str(tmp_path),
        "profile": "smoke",
        "variant": "full",
        "fold": 1,
        "seed": 0,
    }


def test_the_contrast_of_factors_is_planned_where_its_pack_and_its_runs_are(tmp_path):
    whole = Design(variants=tuple((name, (0,)) for name in ("full", "no-temporal", "no-spatial")))
    last = {job.id: job for job in _plan(tmp_path, whole)}["synemo/17_ablate_on_synthetic_truth"]
    assert last.needs == tuple(f"synemo/06_meta_train-{name}-fold0-seed0" for name, _ in whole.variants)
    assert last.parameters["episodes"] == 30
    others = _plan(tmp_path) + plan([Dataset(name="synemo")], "standard", results=tmp_path, design=lambda *_: whole)
    assert [job.id for job in others if "17_" in job.id] == []


def test_votes_are_fused_that_lie_in_the_folder_and_made_up_ones_otherwise(tmp_path):
    table = tmp_path / "data" / "crowd" / "upstream" / "tabulatedVotes.csv"
    table.parent.mkdir(parents=True)
    table.write_text("fileName\n", encoding="utf-8")
    for folder, source, files in (
        (tmp_path / "data", str(table.parents[1]), ["upstream/tabulatedVotes.csv"]),
        (table.parent, str(table.parent), ["tabulatedVotes.csv"]),
        (tmp_path, "", []),
        (None, "", []),
    ):
        votes = reproduce.find_votes(folder and str(folder))
        job = next(job for job in plan([], "smoke", results=tmp_path, votes=votes) if "16_" in job.id)
        assert (job.parameters["source"], list(job.data.get("files", {}))) == (source, files)


def test_data_sets_without_a_study_are_named_and_do_not_run(tmp_path, capfd):
    source = tmp_path / "data"
    for name in ("votes/tabulatedVotes.csv", "talk/dev_sent_emo.csv"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text("fileName\n", encoding="utf-8")
    assert reproduce.find_others(str(source), []) == (
        "Found, but not part of this, as the kit has no study for it: "
        f"meld in {source / 'talk'}. Notebook 12 imports it.\n"
    )
    assert reproduce.find_others(str(source), [Dataset(name="meld")]) == reproduce.find_others(None, []) == ""
    (tmp_path / "empty").mkdir()
    assert reproduce.find_others(str(tmp_path / "empty"), []) == ""
    assert reproduce.main(["--data", str(source), "--results", str(tmp_path / "results"), "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert said.startswith("Found, but not part of this") and "\n5 of 5 notebooks would run." in said


def test_a_folder_with_votes_alone_is_good_for_the_fusion(tmp_path, capfd):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tabulatedVotes.csv").write_text("fileName\n", encoding="utf-8")
    command = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results"), "--dry-run"]
    assert reproduce.main(command) == 0
    assert capfd.readouterr().out.startswith("5 of 5 notebooks would run.")


def test_a_design_without_the_full_model_is_refused(tmp_path):
    with pytest.raises(RunError, match="expected the variant full on its first fold"):
        _plan(tmp_path, Design(variants=(("no-fuzzy", (0,)),)))


def test_the_plan_gives_each_notebook_only_parameters_it_has(tmp_path):
    there = [job for job in _plan(tmp_path) if Path(job.notebook).exists()]
    for job in there:
        given = check_parameters(job.notebook, job.parameters)
        assert given.keys() == job.parameters.keys() <= {item.name for item in describe(job.notebook)}


def test_a_plan_with_a_wrong_parameter_would_be_noticed(tmp_path, write_notebook):
    write_notebook(tmp_path / "00_check_environment.ipynb", 'result: str = ""')
    job = _plan(tmp_path / "r", notebooks=tmp_path)[0]
    with pytest.raises(NotebookError, match="parameter 'results' is unknown.*Did you mean 'result'"):
        check_parameters(job.notebook, job.parameters)


def test_the_report_names_each_folder_that_was_made(tmp_path):
    jobs = [Job(id="faces/01", notebook="n.ipynb", parameters={})]
    (tmp_path / ".done" / "faces").mkdir(parents=True)
    (tmp_path / ".done" / "faces" / "01.json").write_text("{}", encoding="utf-8")
    (tmp_path / "figures" / "faces").mkdir(parents=True)
    assert report(jobs, tmp_path) == f"faces: what was made\n  {tmp_path / 'figures' / 'faces'}  figures\n"


def test_the_command_refuses_a_folder_without_data_in_one_sentence(tmp_path, capsys):
    assert reproduce.main(["--data", str(tmp_path / "none"), "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"there is no folder {tmp_path / 'none'}")
