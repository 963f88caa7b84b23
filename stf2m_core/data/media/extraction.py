"""Many clips: a table of recordings enters, views and a report leave; only what is missing or changed is made.

Each worker is a Python process of its own that this one talks to through pipes. A clip that fails, takes too long or
kills its worker becomes a line of the report, and the others go on. Each clip's views lie in a file of their own,
written aside and moved into place, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stf2m_core.data.folder import locked
from stf2m_core.data.media.joined import join
from stf2m_core.data.media.kept import place_of, read_kept, sweep
from stf2m_core.data.media.settings import MediaSettings
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.errors import MediaError

REPORT = "report.csv"
_COLUMNS = ("clip_id", "status", "reason", "remarks", "duration_s", "seconds", "path")
_OPTIONAL = {"audio_path": "", "words_path": "", "text": "", "start_s": 0.0, "end_s": None}
# The package's own __init__ loads the models; a worker reads clips and needs none of them.
_START = """
import sys, types
for name, path in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from stf2m_core.data.media.worker import main
main()
"""


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """What became of the clips.

    Attributes:
        views: modality to views, memory-mapped, of the clips that were read: those where `kept` is true, in order.
        report: one row per clip of the table, in its order: clip_id, status (made, kept, failed), reason, remarks,
            duration_s, seconds, path.
    """

    views: Mapping[str, RaggedViews]
    report: pd.DataFrame

    @property
    def kept(self) -> np.ndarray:
        """(clip,) bool: which clips have views."""
        return (self.report["status"] != "failed").to_numpy()


def extract(
    clips: pd.DataFrame | Mapping[str, Sequence[Any]], out: str | os.PathLike[str],
    settings: MediaSettings | None = None, *, n_workers: int | None = None, time_limit_s: float = 600.0,
    progress: bool = True,
) -> Extraction:  # fmt: skip
    """The views of many clips, made in parallel and kept in `out`.

    Args:
        clips: a table, one row per clip: clip_id and path; optional audio_path, words_path, text, start_s, end_s, as
            `read_clip` takes them; "" or NaN where there is none.
        out: folder of what was made; the same folder again makes only what is missing or changed.
        settings: of the front end; None: the defaults.
        n_workers: processes; None: one per core that this process may use.
        time_limit_s: a clip that takes longer is given up.
        progress: show a bar.

    Raises:
        MediaError: if the table or a model of the user's own is not as described, or the views cannot be written, as
            when the disk is full. A clip that cannot be read does not raise; it is a row of the report.
    """
    settings, folder = settings or MediaSettings(), Path(out).absolute()
    settings.check_models()  # refused once, and not clip by clip
    requests = _requests(pd.DataFrame(clips), folder, settings)
    n_workers = n_workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    answers: list[dict[str, Any]] = [{} for _ in requests]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, exclusive=True):
            sweep(folder)
            with tqdm(total=len(requests), unit="clip", desc="recordings", disable=not progress) as bar:
                for row, answer in _answers(requests, min(n_workers, len(requests)), time_limit_s):
                    answers[row] = answer
                    bar.update()
            report = _report(requests, answers, folder)
            _write(report, folder / REPORT)
            read = report["status"] != "failed"
            rows = np.flatnonzero(read.to_numpy())
            places = [place_of(folder, requests[row]["clip_id"]) for row in rows]
            return Extraction(join(places, folder / "views"), report)
    except OSError as error:
        raise _unwritable(error.strerror or str(error), folder) from error


def _unwritable(reason: str, folder: Path) -> MediaError:
    return MediaError(
        f"the views cannot be written: {reason}", where=str(folder),
        remedy="Make room or choose another folder, then run it again: it goes on where it was",
    )  # fmt: skip


def _requests(clips: pd.DataFrame, folder: Path, settings: MediaSettings) -> list[dict[str, Any]]:
    where = "the table of clips"
    for column in ("clip_id", "path"):
        if column not in clips.columns:
            raise MediaError(f"column {column!r} is missing", expected="clip_id and path", where=where)
    if len(clips) == 0:
        raise MediaError("there are no clips", expected="at least one", where=where)
    ids = clips["clip_id"].astype(str)
    if ids.duplicated().any():
        twice = ids[ids.duplicated()].iloc[0]
        raise MediaError(f"clip {twice!r} is there twice", expected="different clips", where=where)
    given = {name: clips[name] if name in clips.columns else [None] * len(clips) for name in _OPTIONAL}
    fixed = {"out": str(folder), "settings": asdict(settings)}
    requests = []
    for row, (clip_id, path) in enumerate(zip(ids, clips["path"], strict=True)):
        request = {"clip_id": clip_id, "path": os.fspath(path)} | fixed
        for name, default in _OPTIONAL.items():
            value = given[name][row] if isinstance(given[name], list) else given[name].iloc[row]
            request[name] = default if value is None or value == "" or value != value else _plain(name, value, clip_id)
        requests.append(request)
    return requests


def _plain(name: str, value: Any, clip_id: str) -> str | float:
    if not name.endswith("_s"):
        return os.fspath(value)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise MediaError(f"{name} of clip {clip_id!r} is {value!r}", expected="seconds") from error


def _answers(
    requests: Sequence[dict[str, Any]], n_workers: int, limit_s: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row and answer of each request, in the order in which they are done."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
    for row in range(len(requests)):
        waiting.put(row)
    stop = threading.Event()
    hands = [_Hand(requests, waiting, done, limit_s, stop) for _ in range(n_workers)]
    for hand in hands:
        hand.start()
    try:
        for _ in requests:
            row, answer = done.get()
            if answer["status"] == "stopped":
                raise _unwritable(answer["reason"], Path(requests[row]["out"]))
            yield row, answer
    finally:
        stop.set()
        for hand in hands:
            hand.end()
        for hand in hands:
            hand.join()


class _Hand(threading.Thread):
    """Hands requests to one worker and starts another when it dies."""

    def __init__(self, requests: Sequence[dict[str, Any]], waiting: queue.SimpleQueue, done: queue.SimpleQueue,
                 limit_s: float, stop: threading.Event):  # fmt: skip
        super().__init__(daemon=True)
        self.requests, self.waiting, self.done, self.limit_s, self.stop = requests, waiting, done, limit_s, stop
        self.worker: subprocess.Popen[bytes] | None = None
        self.starting = threading.Lock()

    def run(self) -> None:
        """Work until nothing waits."""
        try:
            while not self.stop.is_set():
                row = self.waiting.get_nowait()
                self.done.put((row, self._ask(self.requests[row])))
        except queue.Empty:
            pass
        except OSError as error:  # no worker can be started
            self.done.put((0, {"status": "stopped", "reason": str(error)}))
        self.end()

    def end(self) -> None:
        """Kill the worker, if there is one; what it was writing is absent then."""
        with self.starting:
            if self.worker is not None:
                self.worker.kill()
                self.worker.wait()
                for pipe in (self.worker.stdin, self.worker.stdout):
                    with contextlib.suppress(BrokenPipeError):  # what the dead worker was still to be asked
                        pipe.close()
                self.worker = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.starting:
            if self.stop.is_set():
                return _failed("the extraction was stopped")
            if self.worker is None or self.worker.poll() is not None:
                self.worker = _start_worker()
            worker = self.worker
        late = threading.Event()
        timer = threading.Timer(self.limit_s, lambda: (late.set(), worker.kill()))
        timer.daemon = True
        timer.start()
        try:
            worker.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except (OSError, ValueError):  # ended while it was asked
            answer = b""
        finally:
            timer.cancel()
        if answer.endswith(b"\n"):
            return json.loads(answer)
        self.end()
        if late.is_set():
            return _failed(f"it took longer than {self.limit_s:g} s and was given up")
        return _failed(f"the process that read it died{_manner(worker.returncode)}; perhaps memory ran out")


def _failed(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "seconds": math.nan}


def _manner(code: int | None) -> str:
    return f" of signal {-code}" if code is not None and code < 0 else f" with status {code}"


def _start_worker() -> subprocess.Popen[bytes]:
    import stf2m_core

    package = Path(stf2m_core.__file__).parent
    stubs = ["stf2m_core", str(package), "stf2m_core.data.media", str(Path(__file__).parent)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return subprocess.Popen(
        [sys.executable, "-c", _START, *stubs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | threads
    )


def _report(requests: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    rows = []
    for request, answer in zip(requests, answers, strict=True):
        kept = None if answer["status"] == "failed" else read_kept(place_of(folder, request["clip_id"]))
        facts = {} if kept is None else kept.facts
        shown = request["path"].encode("utf-8", "backslashreplace").decode("utf-8")
        rows.append({
            "clip_id": request["clip_id"], "status": answer["status"], "reason": answer["reason"],
            "remarks": "; ".join(facts.get("remarks", ())), "duration_s": facts.get("duration_s", math.nan),
            "seconds": round(answer["seconds"], 3), "path": shown,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _write(report: pd.DataFrame, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(report.to_csv(index=False), encoding="utf-8", errors="backslashreplace")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
