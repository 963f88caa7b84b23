"""What all tests share: real data only on demand, one thread, no windows, and a writer of small notebooks."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="also run every notebook in the smoke profile (minutes)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, tests marked realdata unless STF2M_DATA names a folder, and smoke without --smoke."""
    folder, skipped = os.environ.get("STF2M_DATA", ""), {}
    if not (folder and Path(folder).is_dir()):
        needs = "needs real data: set STF2M_DATA to its folder"
        skipped["realdata"] = f"STF2M_DATA is {folder!r}, no folder" if folder else needs
    if not config.getoption("--smoke"):
        skipped["smoke"] = "takes minutes: make test SMOKE=1 runs it"
    for item in items:
        for marker in skipped.keys() & item.keywords.keys():
            item.add_marker(pytest.mark.skip(reason=skipped[marker]))


@pytest.fixture
def write_notebook() -> Callable[..., Path]:
    """`write_notebook(path, parameters, *codes)`: a stripped notebook; no cell is tagged if `parameters` is None."""

    def write(path: Path, parameters: str | None, *codes: str) -> Path:
        texts = [(code, []) for code in codes]
        if parameters is not None:
            texts.insert(0, (parameters, ["parameters"]))
        cells = [
            {"cell_type": "code", "id": f"cell-{number}", "metadata": {"tags": tags}}
            | {"source": text.splitlines(keepends=True), "outputs": [], "execution_count": None}
            for number, (text, tags) in enumerate(texts)
        ]
        kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        return path

    return write
