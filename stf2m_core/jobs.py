"""Jobs: a plan of notebook runs enters, Snakemake orders them, and done-files leave that say what each was made from.

State is files under the results folder, so that anything may be killed at any moment:
  .keys/<job>.json   what the job is made from: notebook source, parameters, package, data; left alone when unchanged
  .done/<job>.json   written last: the key and the needed done-files it was made from, and the identity of what it made
  .made/<job>.json   the same, for when Snakemake has taken the done-file away before it starts the job
  .slots/            file locks: the workflow, each job, each GPU; a lock dies with the process that holds it
  executed/<job>.*   the executed notebook and its HTML; a failing copy is called <job>.failed.ipynb
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from stf2m_core.errors import KitError, RunError
from stf2m_core.locks import end_with_the_workflow, gpu_slot, held, workflow_lock
from stf2m_core.notebook import run_notebook, source_digest

ROOT = Path(__file__).resolve().parent.parent
PLAN = ".keys/plan.json"
# These modules order and run notebooks; they compute nothing that a result depends on.
_ORDERING = {"jobs.py", "kernel.py", "locks.py", "notebook.py", "reproduce.py", "__main__.py"}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One notebook to be run with one set of parameters."""

    id: str
    """Unique; names the executed copy, so it may hold slashes."""
    notebook: str
    """The notebook's file."""
    parameters: Mapping[str, Any]
    """Name to value; those not given keep the notebook's defaults."""
    needs: tuple[str, ...] = ()
    """Ids of the jobs that must have been done before."""
    outputs: tuple[str, ...] = ()
    """What the notebook must have made, relative to the results; a folder with a pack.json is a pack. A job that names
    outputs passes nothing else on: when they come out the same, what needs the job stays up to date."""
    leaves: tuple[str, ...] = ()
    """Patterns, relative to the results, of files that are there after it; if one matches nothing, it runs again."""
    early: bool = False
    """Whether it goes before others that could start as well, since it is long or others wait for it."""
    gpu: int = 0
    """GPUs used, where there are any: 0 or 1."""
    threads: int = 1
    """Threads of tensor and linear algebra; fixed, since their number changes the order of sums."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Facts that identify the data read from outside the results; a parameter called `source` is left to them."""


def package_digest(package: Path | None = None) -> str:
    """12 hex digits of the package's code; comments, layout and the modules that only order runs do not count."""
    package = package or Path(__file__).resolve().parent
    files = sorted(path for path in package.rglob("*.py") if path.name not in _ORDERING)
    code = [[path.relative_to(package).as_posix(), ast.dump(ast.parse(path.read_bytes()))] for path in files]
    return _digest(code)


def reasons(jobs: Sequence[Job], results: Path) -> dict[str, str]:
    """Each job that must run, and why, in plain words; the keys must be up to date.

    Args:
        jobs: the plan, a job after those it needs.
        results: the folder of everything that is made.
    """
    why: dict[str, str] = {}
    for job in jobs:
        made = _load(_file(results, "done", job.id))
        first = next((need for need in job.needs if need in why), None)
        if made is None:
            seen = _file(results, "made", job.id).exists()
            why[job.id] = "it was not finished or its outputs have gone" if seen else "it has not run yet"
        elif first:
            why[job.id] = f"it needs {first}, which runs (if that comes out as before, this is left as it is)"
        elif changed := _changes(made["inputs"], _inputs(job.id, job.needs, results)):
            why[job.id] = f"changed: {', '.join(changed)}"
    return why


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    words = {"notebook": "the notebook", "package": "the code of stf2m_core", "needs": "what it needs"}
    return [words.get(part, part) for part in sorted(old.keys() | new.keys()) if old.get(part) != new.get(part)]


def _write_keys(jobs: Sequence[Job], results: Path, package: str) -> None:
    """Bring the key of each job up to date, and forget that a job is done if its outputs have gone."""
    sources = {job.notebook: source_digest(job.notebook) for job in jobs}
    for job in jobs:
        parameters = {
            name: value.replace(str(results), "<results>") if isinstance(value, str) else value
            for name, value in job.parameters.items()
            if not (job.data and name == "source")
        }
        key = {"notebook": sources[job.notebook], "parameters": parameters, "package": package}
        key |= {"data": job.data, "outputs": job.outputs, "threads": job.threads}
        _write_if_new(_file(results, "keys", job.id), key)
        if not _is_whole(asdict(job), results):
            _file(results, "done", job.id).unlink(missing_ok=True)


def execute(
    jobs: Sequence[Job],
    results: Path,
    *,
    cores: int = 1,
    dry_run: bool = False,
    where: Literal["local", "slurm"] = "local",
    package: str | None = None,
) -> int:
    """Run what is not up to date, and return 0 if all of it succeeded.

    Args:
        jobs: the plan.
        results: the folder of everything that is made.
        cores: notebooks at the same time (where="slurm": jobs in the queue at the same time).
        dry_run: only tell what would run, and why.
        where: on this machine, or through Slurm.
        package: digest of the code, if not this package's own.

    Raises:
        RunError: if another run is at work on these results, or the workflow's files are not there.
        NotebookError: if a notebook cannot be read.
    """
    snakefile = ROOT / "workflow" / "Snakefile"
    if not snakefile.is_file():
        raise RunError(f"{snakefile} is not there", expected="the whole project", remedy="Run from a clone of it")
    results = results.resolve()
    with workflow_lock(results) as (lock, token):
        _write_keys(jobs, results, package or package_digest())
        why = reasons(jobs, results)
        if dry_run:
            _say(f"{len(why)} of {len(jobs)} notebooks would run.")
            for name, reason in why.items():
                _say(f"  {name}: {reason}")
            return 0
        for name in why:
            _file(results, "done", name).unlink(missing_ok=True)
        gpus = _gpus() if where == "local" else []
        facts = {"results": str(results), "token": token if where == "local" else "", "gpus": gpus}
        facts |= {"python": sys.executable, "where": where, "jobs": {job.id: asdict(job) for job in jobs}}
        _write_if_new(results / PLAN, facts)
        command = [sys.executable, "-m", "stf2m_core.jobs", "order", "--snakefile", str(snakefile)]
        command += ["--directory", str(results), "--configfile", str(results / PLAN), "--workflow-profile", "none"]
        command += ["--profile", str(snakefile.parent / "profiles" / where)]
        command += ["--cores" if where == "local" else "--jobs", str(cores)]
        command += ["--runtime-source-cache-path", str(results / ".snakemake" / "sources")]
        command += ["--resources", f"gpu={len(gpus)}"] if gpus else []
        command += ["--quiet", "all"]
        with subprocess.Popen(command, pass_fds=[lock.fileno()]) as ordering:
            try:
                return ordering.wait()
            except KeyboardInterrupt:  # Snakemake has got it too, and ends its jobs
                ordering.wait()
                raise


def run_job(name: str, plan: Path) -> bool:
    """Run one job of the plan: notebook, check of the outputs, and last its done-file.

    Returns:
        False if nothing was run, since all it is made from came out as before.

    Raises:
        RunError: if an output was not made.
        NotebookError: if the notebook failed.
    """
    facts = json.loads(plan.read_text(encoding="utf-8"))
    job, results = facts["jobs"][name], Path(facts["results"])
    os.environ.update(dict.fromkeys(_THREADS, str(job["threads"])))
    if facts["token"]:
        end_with_the_workflow(results, facts["token"])
    record, executed = _file(results, "made", name), results / "executed" / f"{name}.ipynb"
    inputs, outputs = _inputs(name, job["needs"], results), [results / output for output in job["outputs"]]
    with held(results / ".slots" / "jobs" / f"{name}.lock"):
        made = _load(record)
        is_new = made is None or made["inputs"] != inputs or not _is_whole(job, results)
        if is_new:
            record.unlink(missing_ok=True)  # from here on the old outputs may be half replaced
            with gpu_slot(results, facts["gpus"] if job["gpu"] else []):
                run_notebook(job["notebook"], job["parameters"], executed)
            for path in outputs:
                if not path.exists():
                    raise RunError(f"{path} was not made", expected="it among the outputs", where=job["notebook"])
            identity = _digest([_identity(path) for path in outputs] or inputs)
            made = {"job": name, "threads": job["threads"], "inputs": inputs, "identity": identity}
            _write_if_new(record, made)
        _write_if_new(_file(results, "done", name), made)
    return is_new


def _is_whole(job: Mapping[str, Any], results: Path) -> bool:
    """Whether the executed notebook and all that a job has made are still there."""
    made = [f"executed/{job['id']}.ipynb", *job["outputs"]]
    return all((results / path).exists() for path in made) and all(any(results.glob(p)) for p in job["leaves"])


def _file(results: Path, kind: Literal["keys", "done", "made"], name: str) -> Path:
    return results / f".{kind}" / f"{name}.json"


def _inputs(name: str, needs: Sequence[str], results: Path) -> dict[str, Any]:
    """All that a job is made from: its key, and what the jobs it needs have made."""
    made = {need: (_load(_file(results, "done", need)) or {}).get("identity") for need in needs}
    return {**json.loads(_file(results, "keys", name).read_text(encoding="utf-8")), "needs": made}


def _load(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _identity(path: Path) -> str:
    """The content of an output in 12 hex digits; the digest of a pack does not change when it is made again."""
    if (path / "pack.json").is_file():
        from stf2m_core.data.pack import open_pack

        return open_pack(path).digest
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return _digest([[str(file.relative_to(path)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _write_if_new(path: Path, value: Any) -> None:
    """Write JSON aside and move it into place, unless it is there already: an unchanged file keeps its time."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _order(arguments: list[str]) -> NoReturn:
    """Snakemake, ending when the process that started it does."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(143)  # its jobs notice by the lock, which ends with this process; what they did not finish runs again

    threading.Thread(target=watch, daemon=True).start()
    from snakemake.cli import args_to_api, parse_args

    with redirect_stderr(io.StringIO()):  # it would tell which profile it uses
        parser, options = parse_args(arguments)
    sys.exit(0 if args_to_api(options, parser) else 1)


def main(arguments: list[str] | None = None) -> int:
    """`python -m stf2m_core.jobs run JOB PLAN`, for the Snakefile; one line when a job starts, ends or fails."""
    verb, *rest = sys.argv[1:] if arguments is None else arguments
    if verb == "order":
        _order(rest)
    name, plan = rest
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    start = time.monotonic()
    _say(f"start   {name}")
    try:
        is_new = run_job(name, Path(plan))
    except KitError as error:
        _say(f"FAILED  {name}: {error}")
        return 1
    _say(f"done    {name} ({time.monotonic() - start:.0f} s)" if is_new else f"as was  {name}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
