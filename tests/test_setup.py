"""Set-up: one source of dependencies, a lock that installs anywhere, and a Makefile that makes .venv once and whole."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import test_smoke
import yaml

import stf2m_core
from stf2m_core import predicting
from stf2m_core.reproduce import Dataset, plan

ROOT = Path(__file__).resolve().parent.parent
CORE = (
    "torch==2.13.0 numpy pandas scipy scikit-learn matplotlib seaborn safetensors pooch papermill jupyterlab "
    "ipywidgets tqdm snakemake pytest"
).split()


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (pin.split("==") for pin in pins)}


def test_the_core_libraries_are_the_agreed_ones():
    assert _project()["dependencies"] == CORE
    assert _project()["requires-python"] == ">=3.11"
    assert set(_project()["optional-dependencies"]) == {"media", "slurm", "dev"}


def test_the_conda_environment_says_the_same_as_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, last = environment["dependencies"]
    assert conda == [f"python{_project()['requires-python']}", "pip"]
    assert last["pip"] == [*_project()["dependencies"], "-e .[media]"]  # notebook 13 reads recordings


def test_the_lock_pins_all_direct_dependencies_and_names_no_place():
    locked = _locked()
    extras = _project()["optional-dependencies"]
    direct = CORE + extras["dev"] + extras["media"] + ["setuptools"]
    assert [name for name in direct if re.split("[<=]", name)[0] not in locked] == []
    assert locked["torch"] == "2.13.0"
    assert int(locked["opencv-python-headless"].partition(".")[0]) < 5


def test_the_citation_file_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert [author["family-names"] for author in citation["references"][0]["authors"]] == [
        "Wang", "Qiang", "Zheng", "Sun",
    ]  # fmt: skip
    assert "2412.13541" in citation["references"][0]["url"]


FAKE_PYTHON = """#!/bin/sh
# Stands in for python: -c is the version check, -m venv makes a .venv whose python is this file; calls are noted down.
echo "$*" >> "{log}"
case "$*" in
  *"sys.exit(sys.version_info"*) exit {is_old} ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip install"*lock) test ! -e "{broken}" ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the Makefile with stand-ins for python; returns (run make, the lines noted down so far)."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    log, broken = tmp_path / "calls.log", tmp_path / "network-down"
    for name, is_old in (("python", 0), ("old-python", 1)):
        text = FAKE_PYTHON.format(log=log, is_old=is_old, broken=broken)
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)

    def make(*arguments: str, python: str = "python") -> subprocess.CompletedProcess:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        command = ["make", *arguments, f"PYTHON=./{python}"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return make, lambda: log.read_text(encoding="utf-8").splitlines(), broken


def test_make_makes_the_environment_once_and_then_only_runs(project):
    make, calls, _ = project
    assert make("test").returncode == 0
    assert make("reproduce").returncode == 0
    assert [call for call in calls() if "venv" in call] == ["-m venv .venv"]
    assert sum("pip install" in call for call in calls()) == 2
    assert calls()[-1].startswith("-m stf2m_core.reproduce --profile smoke")


def test_an_interrupted_environment_is_made_anew(project):
    make, calls, broken = project
    broken.touch()
    assert make("test").returncode != 0
    broken.unlink()
    assert make("test").returncode == 0
    assert calls().count("-m venv .venv") == 2


def test_new_pins_are_installed_into_the_environment_that_is_there(project, tmp_path):
    make, calls, _ = project
    assert make("test").returncode == 0
    stamp = (tmp_path / ".venv" / ".whole").stat().st_mtime
    os.utime(tmp_path / "requirements.lock", (stamp + 5, stamp + 5))
    assert make("test").returncode == 0
    assert calls().count("-m venv .venv") == 1
    assert sum("-r requirements.lock" in call for call in calls()) == 2


@pytest.mark.parametrize("python", ["old-python", "not-there"])
def test_a_python_that_is_too_old_or_missing_is_one_clear_line(project, python):
    make, _, _ = project
    outcome = make("test", python=python)
    assert outcome.returncode != 0
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith("make: ")]
    assert lines == [
        f"Python 3.11 or newer is needed, but './{python}' is older or is not there; "
        "name one: make PYTHON=/path/to/python3.11"
    ]


def test_the_data_folder_may_have_a_space_in_its_name(project):
    make, calls, _ = project
    assert make("reproduce", "DATA=../my data", "PROFILE=standard", "JOBS=3", "DRY=1").returncode == 0
    assert calls()[-1].endswith("--profile standard --cores 3 --results results --data ../my data --dry-run")


def test_make_help_names_each_command_and_needs_nothing(project, tmp_path):
    make, _, _ = project
    told = make("help", python="not-there").stdout
    assert [word for word in ("reproduce", "test", "lab", "bench") if f"make {word}" not in told] == []
    assert not (tmp_path / ".venv").exists()


def test_the_ci_script_runs_the_tests_and_with_them_every_notebook_in_the_smoke_profile():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "\nmake test SMOKE=1\n" in script
    assert test_smoke.pytestmark.name == "smoke"
    apart = {Path(job.notebook).stem for job in plan([Dataset(name="synemo")], "smoke")} ^ set(test_smoke.BOOKS)
    assert apart == set(test_smoke.APART)


def test_what_orders_the_notebooks_does_not_wait_for_the_libraries_of_the_model():
    code = "import sys, stf2m_core.jobs; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "[]\n"


def test_the_package_offers_every_verb_it_names_and_nothing_else():
    assert {name: getattr(stf2m_core, name) for name in stf2m_core.__all__}.keys() <= set(dir(stf2m_core))
    assert stf2m_core.predict is predicting.predict
    assert stf2m_core.experiment.train is stf2m_core.train
    with pytest.raises(AttributeError, match="module 'stf2m_core' has no attribute 'nonsense'"):
        _ = stf2m_core.nonsense
