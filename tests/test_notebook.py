"""The strict runner refuses what papermill tolerates; and the house rules of the kit's own notebooks."""

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from stf2m_core.errors import NotebookError
from stf2m_core.notebook import check_parameters, describe, main, run_notebook, source_digest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
PARAMETERS = """from typing import Literal
n_way: int = 5  # emotions in an episode
rate: float = 1e-3  # step of the inner loop
is_fast: bool = True
profile: Literal["smoke", "standard"] = "smoke"  # size
fold: int | None = None
pack: str = ""
"""


@pytest.fixture
def notebook(tmp_path, write_notebook):
    return write_notebook(tmp_path / "n.ipynb", PARAMETERS, "n_way")


def test_parameters_are_described_with_kind_default_and_help(notebook):
    told = {item.name: (item.kind, item.default, item.help) for item in describe(notebook)}
    assert told == {
        "n_way": ("int", 5, "emotions in an episode"),
        "rate": ("float", 1e-3, "step of the inner loop"),
        "is_fast": ("bool", True, ""),
        "profile": ("Literal['smoke', 'standard']", "smoke", "size"),
        "fold": ("int | None", None, ""),
        "pack": ("str", "", ""),
    }


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ({"rate": 1}, {"rate": 1.0}),
        ({"rate": np.float64(0.5), "n_way": np.int64(3)}, {"rate": 0.5, "n_way": 3}),
        ({"pack": Path("packs") / "x"}, {"pack": str(Path("packs") / "x")}),
        ({"fold": None, "is_fast": np.bool_(False)}, {"fold": None, "is_fast": False}),
        ({"fold": 2, "profile": "standard"}, {"fold": 2, "profile": "standard"}),
    ],
)
def test_values_arrive_as_plain_python_of_the_declared_kind(notebook, values, plain):
    checked = check_parameters(notebook, values)
    assert checked == plain
    assert [type(value) for value in checked.values()] == [type(value) for value in plain.values()]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n_wy": 3}, r"parameter 'n_wy' is unknown; expected n_way or .*Did you mean 'n_way'\?"),
        ({"rate": "1e-4"}, r"parameter rate is '1e-4'; expected float"),
        ({"n_way": True}, r"parameter n_way is True; expected int"),
        ({"n_way": 3.0}, r"parameter n_way is 3\.0; expected int"),
        ({"is_fast": 1}, r"parameter is_fast is 1; expected bool"),
        ({"is_fast": "no"}, r"parameter is_fast is 'no'; expected bool"),
        ({"profile": "paper"}, r"parameter profile is 'paper'; expected Literal\['smoke', 'standard'\]"),
        ({"n_way": None}, r"parameter n_way is None; expected int"),
        ({"fold": (1, 2)}, r"parameter fold is \(1, 2\); expected int \| None"),
        ({"pack": np.zeros(2)}, r"parameter pack is array\(\[0\., 0\.\]\); expected str"),
    ],
)
def test_an_unknown_or_ill_typed_value_is_refused(notebook, values, sentence):
    with pytest.raises(NotebookError, match=sentence):
        check_parameters(notebook, values)


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("n = 3", r"holds `n = 3`; expected lines `name: type = literal`"),
        ("n: int", r"holds `n: int`; expected lines"),
        ("n: list = []", r"type of n is `list`; expected int, float"),
        ("n: int | str = 3", r"type of n is `int \| str`"),
        ("n: int = 2 * 3", r"n is `2 \* 3`; expected a literal"),
        ("n: int = 'x'", r"parameter n is 'x'; expected int"),
        ("n: int = 1\nn: int = 2", r"the parameters are n, n; expected each name once"),
        ("n: int = = 1", r"is not Python"),
    ],
)
def test_a_parameters_cell_with_anything_but_typed_literals_is_refused(tmp_path, write_notebook, cell, sentence):
    with pytest.raises(NotebookError, match=sentence):
        describe(write_notebook(tmp_path / "n.ipynb", cell))


def test_a_missing_or_double_tag_is_refused(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "n.ipynb", None, "n: int = 1")
    with pytest.raises(NotebookError, match="0 cells are tagged `parameters`; expected exactly one"):
        describe(path)
    write_notebook(path, "n: int = 1", "m: int = 2")
    path.write_text(path.read_text(encoding="utf-8").replace('"tags": []', '"tags": ["parameters"]'), encoding="utf-8")
    with pytest.raises(NotebookError, match="2 cells are tagged `parameters`"):
        describe(path)


@pytest.mark.parametrize(
    ("text", "sentence"), [("{", "not JSON"), ("[]", "nbformat 4"), ('{"nbformat": 3}', "nbformat 4")]
)
def test_a_file_that_is_no_notebook_is_refused(tmp_path, text, sentence):
    path = tmp_path / "n.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NotebookError, match=sentence):
        source_digest(path)


def test_the_digest_sees_what_a_person_wrote_and_nothing_else(notebook):
    before = source_digest(notebook)
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["metadata"]["language_info"] = {"name": "python"}
    content["cells"][1] |= {"execution_count": 7, "id": "other", "source": "n_way"}
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "5"}]
    notebook.write_text(json.dumps(content), encoding="utf-8")
    assert source_digest(notebook) == before
    content["cells"][1]["source"] = "n_way + 1"
    notebook.write_text(json.dumps(content), encoding="utf-8")
    assert source_digest(notebook) != before


def test_a_notebook_runs_in_this_interpreter_with_its_parameters(tmp_path, write_notebook):
    (tmp_path / "odd {name}").mkdir()
    codes = [
        "import os, sys",
        "print(sys.executable, os.getcwd())",
        "rate * n_way",
        "import warnings",
        "warnings.warn('x')",
    ]
    source = write_notebook(tmp_path / "odd {name}" / "n.ipynb", PARAMETERS, *codes)
    before = source.read_bytes()
    out = run_notebook(source, {"n_way": 3, "rate": 2}, tmp_path / "made" / "x.ipynb")
    executed = json.loads(out.read_text(encoding="utf-8"))
    cells = {"".join(cell["source"]): cell["outputs"] for cell in executed["cells"]}
    assert "".join(cells[codes[1]][0]["text"]).split(maxsplit=1) == [sys.executable, f"{source.parent}\n"]
    assert "".join(cells[codes[2]][0]["data"]["text/plain"]) == "6.0"
    assert source_digest(out) == source_digest(source)
    assert source.read_bytes() == before
    assert str(tmp_path) not in json.dumps(executed["metadata"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["x.html", "x.ipynb"]
    assert "6.0" in out.with_suffix(".html").read_text(encoding="utf-8")
    with pytest.raises(NotebookError, match="cell 6 .* UserWarning: x"):
        run_notebook(source, {}, out, html=False, forbid_warnings=True)
    assert out.exists()


def test_a_failing_cell_is_named_and_the_failing_copy_kept(tmp_path, write_notebook, capsys):
    source = write_notebook(tmp_path / "n.ipynb", "n: int = 0", "m = n + 1", "m / n")
    out = tmp_path / "made" / "n.ipynb"
    sentence = r"cell 3 failed with ZeroDivisionError: division by zero \(in .*n\.ipynb\)\. See .*n\.failed\.ipynb\."
    for values in ({}, {"n": 0}):
        with pytest.raises(NotebookError, match=sentence):
            run_notebook(source, values, out)
    assert [path.name for path in out.parent.iterdir()] == ["n.failed.ipynb"]
    assert capsys.readouterr() == ("", "")
    run_notebook(source, {"n": 1}, out, html=False)
    assert [path.name for path in out.parent.iterdir()] == ["n.ipynb"]


def test_a_kernel_that_dies_is_an_error_and_not_a_hang(tmp_path, write_notebook):
    source = write_notebook(tmp_path / "n.ipynb", "n: int = 0", "n", "import os, signal\nos.kill(os.getpid(), 9)")
    with pytest.raises(NotebookError, match="the kernel died in cell 3"):
        run_notebook(source, {}, tmp_path / "n2.ipynb")
    assert (tmp_path / "n2.failed.ipynb").exists()
    assert not (tmp_path / "n2.ipynb").exists()


def test_an_executed_copy_with_an_error_in_it_is_refused(tmp_path, write_notebook):
    source = write_notebook(tmp_path / "n.ipynb", "n: int = 0", "1 / n")
    content = json.loads(source.read_text(encoding="utf-8"))
    content["cells"][1]["metadata"]["tags"] = ["raises-exception"]
    source.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(NotebookError, match="cell 2 .*ZeroDivisionError"):
        run_notebook(source, {}, tmp_path / "n2.ipynb")
    assert not (tmp_path / "n2.ipynb").exists()


def test_the_source_is_never_overwritten(notebook):
    with pytest.raises(NotebookError, match="expected another file, ending in .ipynb"):
        run_notebook(notebook, {}, notebook)


def test_the_command_line_describes_and_refuses_in_one_sentence(notebook, tmp_path, capsys):
    assert main(["describe", str(notebook)]) == 0
    assert "n_way: int = 5  # emotions in an episode\n" in capsys.readouterr().out
    assert main(["run", str(notebook), "--out", str(tmp_path / "o.ipynb"), "--parameters", '{"x": 1}']) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["run", str(notebook), "--out", str(tmp_path / "o.ipynb"), "--parameters", "[1]"]) == 1
    assert "expected a JSON object" in capsys.readouterr().err


def faults(path: Path) -> list[str]:
    """What breaks the house rules in a notebook; each in a few words."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell | {"source": "".join(cell["source"])} for cell in content["cells"]]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = []
    if not re.fullmatch(r"\d\d_[a-z][a-z_]*\.ipynb", path.name):
        found.append("name is not NN_verb_object.ipynb")
    if content["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("kernelspec is not python3")
    if len(cells) > 24:
        found.append(f"{len(cells)} cells")
    if sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) != 1:
        found.append("not exactly one parameters cell")
    for number, cell in enumerate(cells, start=1):
        if cell in code:
            found += [f"cell {number}: {fault}" for fault in _code_faults(cell)]
    return found


def _code_faults(cell: dict) -> list[str]:
    source, found = cell["source"], []
    if cell["outputs"] or cell["execution_count"] is not None:
        found.append("not stripped")
    if len(source.splitlines()) > 15:
        found.append("more than 15 lines")
    if re.search(r"^\s*[%!?]", source, re.MULTILINE):
        return [*found, "magic"]
    if re.search(r"""["'](/|~/|[A-Za-z]:\\)""", source):
        found.append("absolute path")
    allowed = {"stf2m_core", "pathlib"} | ({"typing"} if "parameters" in cell["metadata"].get("tags", []) else set())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.While):
            found.append(type(node).__name__)
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import of {module}" for module in modules if module.partition(".")[0] not in allowed]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_keeps_the_house_rules(path):
    assert faults(path) == []
    assert describe(path) is not None


def test_the_house_rules_notice_what_they_forbid(tmp_path, write_notebook):
    bad = [
        "def f(): pass",
        "import numpy as np",
        "%matplotlib inline",
        "x = 1\n" * 16,
        "while False: pass",
        "p = '/data'",
    ]
    path = write_notebook(tmp_path / "Bad.ipynb", "from typing import Literal\nn: int = 1", *bad)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["cells"][0]["execution_count"] = 1
    content["metadata"] = {}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert faults(path) == [
        "name is not NN_verb_object.ipynb",
        "kernelspec is not python3",
        "cell 1: not stripped",
        "cell 2: FunctionDef",
        "cell 3: import of numpy",
        "cell 4: magic",
        "cell 5: more than 15 lines",
        "cell 6: While",
        "cell 7: absolute path",
    ]
