"""Imports point one way, nothing is executed or printed at import, and every module has its tests."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "stf2m_core"
# A module imports only from earlier rows, or from its own where the row is a folder.
ROWS = [
    ("errors", "shapes", "seeding", "config", "markov"),
    ("data",),
    ("views", "episodes", "clip_features", "support_list"),
    ("model",),
    ("encoding", "baselines", "metrics", "soft_metrics", "segment_metrics", "contrast"),
    ("results", "training"),
    ("evaluation", "calibration", "prediction", "over_time", "valence_arousal"),
    (
        "vote_fusion",
        "vote_cards",
        "vote_table",
        "rater_table",
        "experiment",
        "inspection",
        "figures",
        "predicting",
        "factor_table",
    ),
    ("lessons",),
    ("own_data", "costs", "sweeps"),
    ("environment", "report", "kernel", "locks", "notebook"),
    ("jobs",),
    ("reproduce", "__main__"),
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> set[str]:
    """Parts of the package that a module imports when it is imported itself."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stf2m_core"):
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            found.update(names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_earlier_rows(path):
    own = part(path)
    assert own in ROW, f"{own} stands in no row"
    for name in imported(ast.parse(path.read_text())) - {own}:
        assert ROW[name] <= ROW[own], f"{path.name} imports {name}, which stands in a later row"


def test_the_three_parts_of_the_model_never_import_each_other():
    parts = {"encoder", "fuzzy", "meta_rnn"}
    for name in parts:
        text = (PACKAGE / "model" / f"{name}.py").read_text()
        assert not [other for other in parts - {name} if f"model.{other}" in text], name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_and_public_function_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_longer_than_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            n_lines = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert n_lines <= 60, f"{path.name}: {node.name} has {n_lines} lines"


def test_every_invariant_of_the_method_that_is_built_is_named_by_a_test():
    """I-24 speaks of interval type-2 rules, which are not built (DECISIONS, 'Invariants')."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    named = {int(number) for number in re.findall(r"\bI-(\d+)\b", text)}
    assert named == set(range(1, 42)) - {24}
