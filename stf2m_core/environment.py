"""Is this machine ready? The results folder enters; a table of what was found and what was expected leaves."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch
from packaging.requirements import Requirement

from stf2m_core.errors import RunError
from stf2m_core.training import resolve_device

LEAST_FREE_GB = 1.0
"""Room for packs, runs and figures of the embedded set, several times over."""


def look(results: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per requirement: what, found, expected, fine.

    Args:
        results: the folder of everything that is made; made if absent.
    """
    rows = [("Python", platform.python_version(), ">=3.11", sys.version_info >= (3, 11))]
    rows += [_package(Requirement(text)) for text in metadata.requires("stf2m_core") or () if "extra ==" not in text]
    rows.append(("gradient of a gradient", f"{_second_derivative():.1f}", "12.0", _second_derivative() == 12.0))
    rows += _results_folder(Path(results))
    rows.append(("CPU cores", str(os.cpu_count()), "any", True))
    rows.append(("device of `auto`", str(resolve_device("auto")), "cpu or cuda", True))
    return pd.DataFrame(rows, columns=["what", "found", "expected", "fine"])


def require(found: pd.DataFrame) -> str:
    """One sentence if all is fine.

    Raises:
        RunError: naming what is not, with both values.
    """
    wrong = found[~found["fine"]]
    if len(wrong):
        what = "; ".join(f"{row.what}: {row.found}, expected {row.expected}" for row in wrong.itertuples())
        raise RunError(what, where="this machine", remedy="`make` sets up .venv with what the kit needs")
    return f"All {len(found)} requirements are met; the next notebook can be opened."


def _package(requirement: Requirement) -> tuple[str, str, str, bool]:
    expected = str(requirement.specifier) or "any"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return requirement.name, "absent", expected, False
    return requirement.name, version, expected, requirement.specifier.contains(version, prereleases=True)


def _second_derivative() -> float:
    """Of x**3 at 2, through the machinery that the outer loop needs."""
    x = torch.tensor(2.0, requires_grad=True, device=resolve_device("auto"))
    (first,) = torch.autograd.grad(x**3, x, create_graph=True)
    return float(torch.autograd.grad(first, x)[0])


def _results_folder(folder: Path) -> list[tuple[str, str, str, bool]]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        said, free = "yes", shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        said, free = f"no: {error.strerror}", 0.0
    room = ("free disk, GB", f"{free:.0f}", f"at least {LEAST_FREE_GB:.0f}", free >= LEAST_FREE_GB)
    return [("results folder can be written", said, "yes", said == "yes"), room]
