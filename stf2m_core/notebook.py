"""The strict notebook runner: a notebook and typed parameters enter, an executed copy and its HTML leave, or one error.

papermill executes; what it tolerates is refused here: unknown or ill-typed parameters, a missing or double `parameters`
tag, error cells, a foreign kernel. Nothing is ever half written.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stf2m_core.errors import KitError, NotebookError

_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
_WARNING = re.compile(r"\b\w*Warning: .*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One line of the `parameters` cell: `name: kind = default  # help`."""

    name: str
    """As the notebook spells it."""
    kind: str
    """The annotation: int, float, bool, str, Literal[...], or one of these `| None`."""
    default: int | float | bool | str | None
    """Used when no value is given."""
    help: str
    """The comment on the same line, or ""."""
    choices: tuple[Any, ...] = ()
    """The values of Literal[...]; empty for the other kinds."""

    def checked(self, value: Any, *, where: str) -> Any:
        """`value` as a plain Python value of this parameter's kind; an int is taken for a float, nothing else is bent.

        Raises:
            NotebookError: if the value is not of the kind.
        """
        value = _plain(value)
        kind, _, optional = self.kind.partition(" | ")
        if value is None and optional:
            return None
        if self.choices:
            fits = any(value == choice and type(value) is type(choice) for choice in self.choices)
        elif kind == "float":
            fits = type(value) in (int, float)
            value = float(value) if fits else value
        else:
            fits = type(value) is _TYPES[kind]
        if not fits:
            raise NotebookError(f"parameter {self.name} is {value!r}", expected=self.kind, where=where)
        return value


def describe(notebook: str | os.PathLike[str]) -> tuple[Parameter, ...]:
    """The parameters of a notebook, in order.

    Raises:
        NotebookError: if the file is no notebook, or has not exactly one cell tagged `parameters` holding nothing but
            annotated literals.
    """
    path = Path(notebook)
    cells = [cell for cell in _read(path)["cells"] if "parameters" in _tags(cell)]
    if len(cells) != 1:
        remedy = "Tag the cell of the parameters `parameters`, and no other"
        raise NotebookError(
            f"{len(cells)} cells are tagged `parameters`", expected="exactly one", where=str(path), remedy=remedy
        )
    source = _source(cells[0])
    try:
        tree = ast.parse(source)
        comments = _comments(source)
    except (SyntaxError, tokenize.TokenError) as error:
        raise NotebookError(f"the parameters cell is not Python: {error}", where=str(path)) from error
    statements = [line for line in tree.body if not (isinstance(line, ast.ImportFrom) and line.module == "typing")]
    parameters = tuple(_parameter(line, comments, str(path)) for line in statements)
    names = [parameter.name for parameter in parameters]
    if len(set(names)) != len(names):
        raise NotebookError(f"the parameters are {', '.join(names)}", expected="each name once", where=str(path))
    return parameters


def check_parameters(notebook: str | os.PathLike[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The given values, plain and of the declared kinds.

    Raises:
        NotebookError: for a name the notebook does not have (the nearest is suggested) or a value of another kind.
    """
    known = {parameter.name: parameter for parameter in describe(notebook)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            expected = " or ".join(known) or "no parameters at all"
            remedy = f"Did you mean {near[0]!r}?" if near else None
            raise NotebookError(f"parameter {name!r} is unknown", expected=expected, where=str(notebook), remedy=remedy)
    return {name: known[name].checked(value, where=str(notebook)) for name, value in values.items()}


def source_digest(notebook: str | os.PathLike[str]) -> str:
    """12 hex digits of what a person wrote: kind, text and tags of each cell.

    Opening, saving or running a notebook leaves it as it was; an executed copy has the digest of its source.

    Raises:
        NotebookError: if the file is no notebook.
    """
    cells = _read(Path(notebook))["cells"]
    written = [cell for cell in cells if "injected-parameters" not in _tags(cell)]
    cells = [[cell["cell_type"], _source(cell), sorted(_tags(cell))] for cell in written]
    return hashlib.sha256(json.dumps(cells, ensure_ascii=False).encode()).hexdigest()[:12]


def run_notebook(
    notebook: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    html: bool = True,
    forbid_warnings: bool = False,
) -> Path:
    """Execute a notebook with the running interpreter, in the notebook's own folder, and return the executed copy.

    Args:
        notebook: the source; never changed.
        parameters: name to value; those not given keep their defaults.
        out: the executed copy (.ipynb), replaced only by a whole and successful one; `out` with .html stands beside it.
            When a cell fails, <name>.failed.ipynb is kept beside it instead.
        html: also write the HTML copy.
        forbid_warnings: refuse the executed notebook if a cell printed a warning.

    Raises:
        NotebookError: for a wrong parameter, a failing cell, a kernel that died, or an executed copy with errors in it.
    """
    source, out = Path(notebook), Path(out)
    values = check_parameters(source, parameters)
    if out.suffix != ".ipynb" or out.resolve() == source.resolve():
        raise NotebookError(f"the executed copy is {out}", expected="another file, ending in .ipynb", where=str(source))
    failed = out.with_name(f"{out.stem}.failed.ipynb")
    part = out.with_name(f".{out.stem}.part.ipynb")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        _execute(source, values, part, failed)
        executed = _read(part)
        _refuse_errors(executed, source, failed, part, forbid_warnings=forbid_warnings)
        _settle_streams(executed)
        _still_widgets(executed)
        executed["metadata"].get("papermill", {}).update(input_path=source.name, output_path=out.name)
        part.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if html:
            _write_html(executed, out.with_suffix(".html"), title=out.stem)
        os.replace(part, out)
        failed.unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)
    return out


def _execute(source: Path, values: dict[str, Any], part: Path, failed: Path) -> None:
    import papermill
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from stf2m_core.kernel import LocalKernel

    part.unlink(missing_ok=True)
    folder = tempfile.mkdtemp(prefix="nb")
    log = logging.getLogger("papermill")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it has to say is raised below, in one sentence
    try:
        papermill.execute_notebook(
            *(str(path.resolve()).replace("{", "{{").replace("}", "}}") for path in (source, part)),
            parameters=values,
            kernel_name="python3",
            kernel_manager_class=LocalKernel.within(Path(folder)),
            progress_bar=False,
            start_timeout=300,
            cwd=str(source.resolve().parent),
        )
    except PapermillExecutionError as error:
        _keep(part, failed)
        number = error.cell_index + 1 - bool(values)  # papermill put the given values into a cell of their own
        raise NotebookError(
            f"cell {number} failed with {error.ename}: {error.evalue}", where=str(source), remedy=f"See {failed}"
        ) from error
    except (DeadKernelError, CellExecutionError, RuntimeError) as error:
        said = _last_line(Path(folder, "stderr"))
        _keep(part, failed)
        raise NotebookError(
            f"the kernel died in cell {_unfinished_cell(failed, bool(values))}",
            where=str(source),
            remedy=f"Often memory ran out: close other programs or take a smaller profile; see {failed}{said}",
        ) from error
    finally:
        log.setLevel(level)
        shutil.rmtree(folder, ignore_errors=True)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f". Its last words: {lines[-1]}" if lines else ""


def _unfinished_cell(executed: Path, has_values: bool) -> str:
    if executed.exists():
        for index, cell in enumerate(_read(executed)["cells"]):
            answered = "shell.execute_reply" in cell["metadata"].get("execution", {})
            if cell["cell_type"] == "code" and _source(cell).strip() and not answered:
                return str(index + 1 - has_values)
    return "(before the first)"


def _keep(part: Path, failed: Path) -> None:
    if part.exists():
        os.replace(part, failed)


def _refuse_errors(executed: dict[str, Any], source: Path, failed: Path, part: Path, *, forbid_warnings: bool) -> None:
    for number, cell in enumerate(executed["cells"], start=1):
        for output in cell.get("outputs", []):
            text = "".join(output.get("text", "")) if output.get("name") == "stderr" else ""
            warning = _WARNING.search(text) if forbid_warnings else None
            if output["output_type"] == "error" or warning:
                what = f"{output['ename']}: {output['evalue']}" if not warning else warning.group()
                _keep(part, failed)
                raise NotebookError(
                    f"cell {number} of the executed copy shows {what}", where=str(source), remedy=f"See {failed}"
                )


def _settle_streams(executed: dict[str, Any]) -> None:
    """Join the pieces of each stream; keep what a terminal would show in the end, such as the last state of a bar."""
    for cell in executed["cells"]:
        joined: list[dict[str, Any]] = []
        for output in cell.get("outputs", []):
            is_more = joined and output["output_type"] == "stream" and output["name"] == joined[-1].get("name")
            if is_more:
                joined[-1]["text"] = "".join([*joined[-1]["text"], *output["text"]])
            else:
                joined.append(output)
        for output in joined:
            if output["output_type"] == "stream":
                output["text"] = re.sub(r"[^\n]*\r(?!\n)", "", "".join(output["text"])).splitlines(keepends=True)
        if "outputs" in cell:
            cell["outputs"] = joined


def _still_widgets(executed: dict[str, Any]) -> None:
    """Leave of a widget that has a picture the picture alone: no kernel stands behind a copy, nothing would move."""
    for cell in executed["cells"]:
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "image/png" in data:
                data.pop("application/vnd.jupyter.widget-view+json", None)
    text = json.dumps(executed["cells"])
    if "application/vnd.jupyter.widget-view+json" not in text:
        executed["metadata"].pop("widgets", None)


def _write_html(executed: dict[str, Any], target: Path, *, title: str) -> None:
    import nbformat
    from nbconvert import HTMLExporter

    quiet = logging.getLogger(f"{__name__}.html")
    quiet.setLevel(logging.ERROR)  # nbconvert warns of each picture without alternative text
    text, _ = HTMLExporter(log=quiet).from_notebook_node(
        nbformat.reads(json.dumps(executed), as_version=4), resources={"metadata": {"name": title}}
    )
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotebookError(f"the notebook cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise NotebookError("the file is no notebook: it is not JSON", expected="an .ipynb", where=str(path)) from error
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4 or not isinstance(notebook.get("cells"), list):
        raise NotebookError("the file is no notebook", expected="nbformat 4 with cells", where=str(path))
    return notebook


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _parameter(line: ast.stmt, comments: Mapping[int, str], where: str) -> Parameter:
    if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None):
        raise NotebookError(
            f"the parameters cell holds `{ast.unparse(line)}`", expected="lines `name: type = literal`", where=where
        )
    kind, choices = _kind(line.annotation)
    name = line.target.id
    if not kind:
        legal = "int, float, bool, str, Literal[...] or one of these `| None`"
        raise NotebookError(f"type of {name} is `{ast.unparse(line.annotation)}`", expected=legal, where=where)
    try:
        default = ast.literal_eval(line.value)
    except ValueError as error:
        raise NotebookError(f"{name} is `{ast.unparse(line.value)}`", expected="a literal", where=where) from error
    help_text = comments.get(line.end_lineno or line.lineno, "")
    found = Parameter(name=name, kind=kind, default=default, help=help_text, choices=choices)
    found.checked(default, where=where)
    return found


def _kind(node: ast.expr) -> tuple[str, tuple[Any, ...]]:
    """The annotation in one spelling, and the values of a Literal; ("", ()) if it is none of the allowed."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and ast.unparse(node.right) == "None":
        kind, choices = _kind(node.left)
        return (f"{kind} | None" if kind and " | " not in kind else "", choices)
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return node.id, ()
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if all(isinstance(value, ast.Constant) and type(value.value) in _TYPES.values() for value in values):
            return ast.unparse(node), tuple(value.value for value in values)
    return "", ()


def _plain(value: Any) -> Any:
    """Numpy scalars and paths as the Python values they stand for; papermill would turn them into text unasked."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 else value


def main(arguments: list[str] | None = None) -> int:
    """`python -m stf2m_core.notebook run|describe|digest`; 0 if all went well, 1 with one sentence on stderr if not."""
    parser = argparse.ArgumentParser(prog="python -m stf2m_core.notebook", description="Run notebooks, strictly.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="execute with parameters")
    run.add_argument("--parameters", default="{}", metavar="JSON", help="name to value, or @FILE")
    run.add_argument("--out", required=True, help="the executed copy")
    run.add_argument("--no-html", action="store_true", help="write no HTML copy")
    verbs.add_parser("describe", help="list the parameters")
    verbs.add_parser("digest", help="hash of the source alone")
    for verb in verbs.choices.values():
        verb.add_argument("notebook")
    options = parser.parse_args(arguments)
    handlers = {ending: signal.getsignal(ending) for ending in (signal.SIGTERM, signal.SIGINT)}
    for ending in handlers:  # leaving in order, so that the kernel is shut down and no part file stays
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        sys.stdout.write(_carry_out(options))
    except KitError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
    return 0


def _carry_out(options: argparse.Namespace) -> str:
    if options.verb == "digest":
        return source_digest(options.notebook) + "\n"
    if options.verb == "describe":
        lines = [(f"{item.name}: {item.kind} = {item.default!r}", item.help) for item in describe(options.notebook)]
        return "".join(f"{line}{'  # ' + text if text else ''}\n" for line, text in lines)
    text = options.parameters
    try:
        values = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise NotebookError(f"--parameters is {text!r}", expected="JSON, or @ and a file of JSON") from error
    if not isinstance(values, dict):
        raise NotebookError(f"--parameters is {text!r}", expected="a JSON object of name to value")
    run_notebook(options.notebook, values, options.out, html=not options.no_html)
    return f"{options.out}\n"


if __name__ == "__main__":
    sys.exit(main())
