"""File locks under <results>/.slots: they die with the process that holds them, so a kill -9 leaves none behind."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stf2m_core.errors import RunError


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock, waiting for it: an interrupted run's job needs a moment to end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def gpu_slot(results: Path, gpus: Sequence[str]) -> Iterator[None]:
    """Hold one of the GPUs, and let the notebook see only that one; does nothing without GPUs."""
    if not gpus:
        yield
        return
    (results / ".slots").mkdir(parents=True, exist_ok=True)
    while True:
        for number, name in enumerate(gpus):
            with open(results / ".slots" / f"gpu{number}", "a") as file:
                if _try_lock(file):
                    os.environ["CUDA_VISIBLE_DEVICES"] = name
                    yield
                    return
        time.sleep(1.0)


@contextmanager
def workflow_lock(results: Path, patience: float = 15.0) -> Iterator[tuple[IO[str], str]]:
    """Hold these results; the lock, and a token by which jobs know their own workflow.

    Raises:
        RunError: if another process holds them, after `patience` seconds.
    """
    path = results / ".slots" / "workflow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        deadline = time.monotonic() + patience  # what an interrupted run left over ends within seconds
        while not _try_lock(file):
            if time.monotonic() > deadline:
                holder = path.read_text().partition(" ")[0]
                what = f"process {holder} is at work on {results}"
                raise RunError(what, expected="one at a time", remedy="Wait for it or stop it")
            time.sleep(0.2)
        token = f"{os.getpid()} {time.time_ns()}"
        file.truncate(0)
        file.write(token)
        file.flush()
        yield file, token


def end_with_the_workflow(results: Path, token: str) -> None:
    """End this process soon after its workflow was killed, so that no other job meets it in the same folder."""
    path = results / ".slots" / "workflow"

    def orphaned() -> bool:
        with open(path) as file:
            return file.read() != token or _try_lock(file)

    def watch() -> None:
        while not orphaned():
            time.sleep(1.0)
        end_this_process()

    threading.Thread(target=watch, daemon=True).start()


def end_this_process() -> None:
    """SIGTERM, so that kernels and part files are put away; after 10 s without asking."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10.0)
    os._exit(143)
