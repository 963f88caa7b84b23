"""With --smoke: the main job in its smallest real size by its own command, and every notebook that stands apart.

Minutes of work, so that test_notebooks.py runs the same notebooks in a still smaller size in every run of the tests.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from stf2m_core.notebook import source_digest

ROOT = Path(__file__).resolve().parents[1]
BOOKS = {book.stem: book for book in sorted((ROOT / "notebooks").glob("*.ipynb"))}
# what the notebooks that are no part of the main job are given besides its results, the longest first
APART = {
    "26_learn_from_raters": {}, "28_compare_readings": {"readings": "zero-order"}, "23_take_away_the_meta_rnn": {},
    "10_vary_shots_modalities_seeds": {"shots": "1, 5", "alone": False, "seeds": 1}, "22_meta_learn_sine_waves": {},
    "21_catch_a_leaking_task": None, "25_label_inside_a_clip": {}, "24_learn_from_soft_labels": None,
    "27_rate_valence_and_arousal": {}, "20_generalise_fuzzy_rules": None, "19_convolve_on_a_graph": None,
    "18_convolve_over_real_time": None, "15_face_tracks_and_phrases": {},
}  # fmt: skip
WITHOUT_PACK = {"15_face_tracks_and_phrases", "25_label_inside_a_clip", "26_learn_from_raters"}

pytestmark = pytest.mark.smoke


def reproduce(results: Path, *options: str) -> str:
    """`make reproduce` in the smoke profile, and what it said."""
    command = ["make", "reproduce", "PROFILE=smoke", f"RESULTS={results}", *options]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_apart(results: Path, stem: str) -> None:
    given = APART[stem]
    if given is not None:
        given = given | {"results": str(results)}
        given |= {} if stem in WITHOUT_PACK else {"pack": str(results / "packs/synemo")}
    command = [sys.executable, "-m", "stf2m_core", "run-notebook", str(BOOKS[stem])]
    command += ["--parameters", json.dumps(given or {}), "--out", str(results / "executed" / f"{stem}.ipynb")]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Everything that the main job and the notebooks that stand apart have made."""
    folder = tmp_path_factory.mktemp("smoke")
    reproduce(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda stem: run_apart(folder, stem), APART))
    return folder


def test_every_notebook_has_run_with_a_picture_in_every_figure_cell(results):
    copies = {path: json.loads(path.read_text(encoding="utf-8")) for path in (results / "executed").rglob("*.ipynb")}
    numbered = {stem[:2]: stem for stem in BOOKS}  # a job may have a shorter name
    stems = {path: numbered[path.stem[:2]] for path in copies}
    assert set(stems.values()) == set(BOOKS)
    assert [path.name for path, stem in stems.items() if source_digest(path) != source_digest(BOOKS[stem])] == []
    for path, copy in copies.items():
        figures = [cell for cell in copy["cells"] if "figure" in cell["metadata"].get("tags", [])]
        shown = [{kind for out in cell["outputs"] for kind in out.get("data", {})} for cell in figures]
        assert all("image/png" in kinds for kinds in shown), path.name


def test_the_model_stands_clearly_above_chance_and_above_what_needs_no_learning(results):
    """5 emotions: chance .20. The interval over people, and of the paired gains, is above it."""
    table = pd.read_csv(results / "tables/synemo/main.csv")
    ours = table[(table["method"] == "ST-F2M")].set_index("setting")
    assert set(ours.index) == {f"{regime} 5-way {shot}-shot" for regime in "DC" for shot in (1, 5)}
    assert (ours["subject_low"] > 0.4).all()
    for control in ("nearest-prototype", "ridge-prototype", "ST-F2M, no support"):
        other = table[table["method"] == control].set_index("setting")
        assert (ours["subject_low"] > other.loc[ours.index, "subject_high"]).all(), control


def test_the_same_command_again_runs_nothing(results):
    assert "0 of " in reproduce(results, "DRY=1")
