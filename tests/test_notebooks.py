"""The notebooks: what they promise on paper, and all of them run by the strict runner, each able to stand alone."""

import ast
import base64
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from stf2m_core import experiment, open_pack
from stf2m_core.config import RunConfig
from stf2m_core.errors import NotebookError
from stf2m_core.notebook import check_parameters, describe, run_notebook, source_digest
from stf2m_core.reproduce import Dataset, plan

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
PACK, RUN = ("pack", "results", "profile"), ("fold", "seed")
PARAMETERS = {
    "00_check_environment": ("results",),
    "01_prepare_data": ("dataset", "source", "results", "profile"),
    "02_look_at_views": ("pack", "results"),
    "03_sample_episodes": PACK,
    "04_watch_the_rules_fire": PACK + RUN,
    "05_adapt_to_one_episode": PACK + RUN,
    "06_meta_train": (*PACK, "variant", *RUN),
    "07_evaluate": (*PACK, "variant", *RUN),
    "08_ablate": PACK,
    "09_figures_and_tables": PACK,
    "10_vary_shots_modalities_seeds": (*PACK, "shots", "alone", "seeds"),
    "11_labels_and_raters": ("source", "results"),
    "12_bring_your_own_data": ("dataset", "source", "results", "profile"),
    "13_from_recordings_to_views": ("clip", "text", "words", "results"),
    "14_read_one_clip": (*PACK, *RUN, "run", "clip", "support", "text", "window"),
    "15_face_tracks_and_phrases": ("source", "results", "profile"),
    "16_fuse_votes": ("source", "results", "profile"),
    "17_ablate_on_synthetic_truth": (*PACK, "episodes"),
    "18_convolve_over_real_time": ("profile", "seed"),
    "19_convolve_on_a_graph": ("profile", "seed"),
    "20_generalise_fuzzy_rules": ("profile", "seed"),
    "21_catch_a_leaking_task": ("profile", "seed"),
    "22_meta_learn_sine_waves": (*PACK, "seed"),
    "23_take_away_the_meta_rnn": (*PACK, *RUN, "seeds", "episodes"),
    "24_learn_from_soft_labels": ("seed",),
    "25_label_inside_a_clip": ("results", "profile", "seed"),
    "26_learn_from_raters": ("source", "results", "profile"),
    "27_rate_valence_and_arousal": (*PACK, *RUN),
    "28_compare_readings": (*PACK, "readings"),
}
# 04 comes before 01, so that it has to make the pack and train; 08 has to train five variants; 09 finds everything
ORDER = [
    "00", "04", "01", "02", "03", "05", "06", "07", "08", "09", "10", "11", "12", "13", "14", "15", "16",
    "17", "18", "19", "20", "21", "22", "23", "24", "25", "26", "27", "28",
]  # fmt: skip
LESSONS = {stem for stem in PARAMETERS if stem[:2] in ("10", "15") or "18" <= stem[:2] <= "28"}  # they make no table
FOR_PURE_PACKS = {"17_ablate_on_synthetic_truth"}  # its reference is exact for the pack of the smoke profile alone
each_book = pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])


def cells(book, kind=None):
    """(source, tags, cell) of the cells of a kind."""
    found = json.loads(book.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c["metadata"].get("tags", []), c) for c in found if kind in (None, c["cell_type"])]


def outputs(cell):
    """(kind, content) of everything a cell has shown or printed."""
    found = [out.get("data") or {"text/plain": out.get("text", "")} for out in cell["outputs"]]
    return [part for bundle in found for part in bundle.items()]


def said(cell):
    return "".join("".join(text) for kind, text in outputs(cell) if kind == "text/plain")


# --- on paper


def test_the_notebooks_take_the_agreed_parameters():
    assert {book.stem: tuple(p.name for p in describe(book)) for book in BOOKS} == PARAMETERS


@each_book
def test_every_parameter_is_explained_in_its_own_line(book):
    assert [p.name for p in describe(book) if not p.help] == []
    profiles = [p.default for p in describe(book) if p.name == "profile"]
    assert profiles in ([], ["smoke"])


@each_book
def test_a_source_notebook_carries_no_outputs_and_names_no_machine(book):
    whole = json.loads(book.read_text(encoding="utf-8"))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    assert whole["metadata"]["kernelspec"]["name"] == "python3"
    assert whole["metadata"]["language_info"] == {"name": "python"}
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for _, _, cell in cells(book, "code"))
    assert not re.search(r'"(/|~|[A-Z]:\\)', "".join(text for text, _, _ in cells(book, "code")))


@each_book
def test_a_notebook_is_short_and_follows_the_skeleton(book):
    texts = [text for text, _, _ in cells(book, "markdown")]
    assert len(cells(book)) <= 24
    codes = [text.splitlines() for text, _, _ in cells(book, "code")]
    assert max(map(len, codes)) <= 15
    assert [line for lines in codes for line in lines if len(line) > 105] == []  # wider ones are cut off on a page
    assert texts[0].startswith(f"# {book.stem[:2]} · ")
    assert all(word in texts[0] for word in ("**Question.**", "**What the paper says.**", "**Time.**"))
    heads = [text.splitlines()[0] for text in texts[1:] if text.startswith("## ")]
    steps = [head for head in heads if re.match(r"## \d · ", head)]
    assert [int(head[3]) for head in steps] == list(range(1, len(steps) + 1))
    assert 3 <= len(steps) <= 6
    assert heads[-2:] == ["## What we see", "## Provenance"]
    assert [tags for _, tags, _ in cells(book, "code")][:2] == [["parameters"], []]


@each_book
def test_a_notebook_holds_no_logic_and_imports_only_the_kit_and_pathlib(book):
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.For, ast.If, ast.Try, ast.With, ast.AsyncFor)
    for number, (text, _, _) in enumerate(cells(book, "code")):
        nodes = list(ast.walk(ast.parse(text)))  # a magic would not be Python
        assert [ast.unparse(node) for node in nodes if isinstance(node, forbidden)] == []
        modules = [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
        modules += [name.name for n in nodes if isinstance(n, ast.Import) for name in n.names]
        assert {module.partition(".")[0] for module in modules} <= {"stf2m_core", "pathlib"}
        assert not modules or number == 1


@each_book
def test_figures_are_drawn_in_cells_tagged_figure_and_nowhere_else(book):
    draws = re.compile(r"\bfigures\.(?!save)\w+\(")
    assert [tags for text, tags, _ in cells(book, "code") if bool(draws.search(text)) != ("figure" in tags)] == []


@each_book
def test_the_text_can_be_read_without_a_network(book):
    text = "\n".join(text for text, _, _ in cells(book, "markdown"))
    assert not re.search(r"\$|\\\(|!\[|<img|<script", text)


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
@pytest.mark.parametrize("dataset", ["synemo", "ravdess_features"])
def test_the_plan_of_every_profile_hands_over_parameters_that_the_notebooks_take(dataset, profile, tmp_path):
    jobs = plan([Dataset(name=dataset, source="files")], profile, results=tmp_path)
    for job in jobs:
        assert check_parameters(job.notebook, job.parameters) == job.parameters
    left_out = set() if (dataset, profile) == ("synemo", "smoke") else FOR_PURE_PACKS
    assert {Path(job.notebook).stem for job in jobs} == set(PARAMETERS) - left_out - LESSONS
    assert RunConfig.preset(profile).digest() != RunConfig.preset("test").digest()


def test_a_parameter_of_the_wrong_kind_is_refused():
    with pytest.raises(NotebookError, match="parameter fold is '0'; expected int"):
        check_parameters(FOLDER / "07_evaluate.ipynb", {"fold": "0"})


# --- executed


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """All notebooks in one results folder: (folder, stem -> executed copy, digests of the pack before and after 01)."""
    results = tmp_path_factory.mktemp("results")
    given = {"pack": str(results / "packs/synemo"), "results": str(results), "profile": "test", "episodes": 8,
             "readings": "deep-set, zero-order"}  # fmt: skip
    executed, digests = {}, []
    for number in ORDER:
        book = next(book for book in BOOKS if book.stem.startswith(number))
        if number in ("01", "02"):
            digests.append(open_pack(given["pack"]).digest)
        values = {name: value for name, value in given.items() if name in PARAMETERS[book.stem]}
        out = results / "executed" / book.name
        executed[book.stem] = run_notebook(book, values, out, html=number == "09", forbid_warnings=True)
    return results, executed, digests


def test_every_notebook_runs_without_a_warning_and_keeps_its_source(chain):
    _, executed, _ = chain
    assert set(executed) == set(PARAMETERS)
    assert [book.stem for book in BOOKS if source_digest(executed[book.stem]) != source_digest(book)] == []


def test_of_a_progress_bar_only_the_end_is_kept(chain):
    copy = chain[1]["04_watch_the_rules_fire"]
    shown = [out for _, _, cell in cells(copy, "code") for out in cell["outputs"]]
    bars = ["".join(out["text"]) for out in shown if out.get("name") == "stderr"]
    assert len(bars) == 1
    assert re.fullmatch(r"meta-train: 100%[^\r\n]* 4/4 [^\r\n]*\n", bars[0])


def test_preparing_the_same_data_again_leaves_an_equal_pack(chain):
    _, _, (before, after) = chain
    assert before == after


def test_every_figure_cell_shows_a_picture(chain):
    _, executed, _ = chain
    shown = [
        [kind for kind, _ in outputs(cell)]
        for copy in executed.values()
        for _, tags, cell in cells(copy, "code")
        if "figure" in tags
    ]
    assert len(shown) >= 15
    assert all("image/png" in kinds for kinds in shown)


def test_episodes_drawn_again_and_read_back_are_the_same(chain):
    texts = [said(cell) for _, _, cell in cells(chain[1]["03_sample_episodes"], "code")]
    pairs = [re.findall(r"\b[0-9a-f]{12}\b", text) for text in texts if "drawn alone" in text]
    pairs += [re.findall(r"\b[0-9a-f]{12}\b", text) for text in texts if "read back" in text]
    assert len(pairs) == 2
    assert [first for first, again in pairs if first != again] == []


def test_the_last_notebook_shows_the_main_table_that_it_wrote_with_its_caption(chain):
    results, executed, _ = chain
    written = (results / "tables/synemo/main.md").read_text(encoding="utf-8")
    table, told = written.strip().split("\n\n", 1)
    codes = [cell for _, _, cell in cells(executed["09_figures_and_tables"], "code")]
    assert any(told in said(cell) for cell in codes)
    shown = ["".join(o.get("data", {}).get("text/html", "")) for cell in codes for o in cell["outputs"]]
    numbers = [part.strip() for line in table.splitlines()[2:] for part in line.strip("|").split("|")]
    assert any(all(number in html for number in numbers) for html in shown)
    assert all(name in written for name in ("ST-F2M", "zero steps", "nearest-prototype", "ridge-prototype"))
    caption = " ".join(written.split())
    facts = ("8 episodes per fold", "folds [0]", "seeds [0]", "Selection:", "shared subjects 0", "no recognition of")
    for fact in facts:
        assert fact in caption


def test_the_tables_hold_the_numbers_of_the_records(chain):
    results, _, _ = chain
    pack = open_pack(results / "packs/synemo")
    records = experiment.records_of(pack, results, "test")
    table = pd.read_csv(results / "tables/synemo/main.csv")
    for record in (r for r in records if r.variant == "full"):
        title = "ST-F2M" if record.method == "st-f2m" else record.method
        row = table[(table["method"] == title) & (table["setting"] == experiment.setting_of(record))]
        assert row["mean"].item() == pytest.approx(record.accuracy.mean)
    gaps = pd.read_csv(results / "tables/synemo/ablation.csv")
    assert set(gaps["variant"]) == set(experiment.VARIANTS) - {"full"}


def test_the_last_notebook_leaves_five_figures_and_a_page_to_read(chain):
    results, executed, _ = chain
    drawn = {path.name: path.read_bytes()[:4] for path in (results / "figures/synemo").iterdir()}
    names = ["ablation", "confusion", "history", "method", "results"]
    assert drawn == dict.fromkeys([f"{name}.png" for name in names], b"\x89PNG")
    page = executed["09_figures_and_tables"].with_suffix(".html").read_text(encoding="utf-8")
    first = (results / "figures/synemo/results.png").read_bytes()
    assert base64.b64encode(first).decode() in page.replace("\n", "")
