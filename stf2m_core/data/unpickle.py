"""Pickles from outside: numpy arrays and plain containers come out, anything else is refused by name before it runs.

A pickle is a program; the published ones of this field hold arrays, lists and dictionaries and need none of that power.
Source: ours; the way of restricting is the one the Python documentation gives for `pickle.Unpickler.find_class`.
"""

from __future__ import annotations

import codecs
import collections
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stf2m_core.errors import ManifestError


def _text_as_bytes(text: str, encoding: str = "latin1") -> bytes:
    """What old protocols call to write bytes as text; only that one encoding is ever used by them."""
    if not isinstance(text, str) or codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"bytes are written in {encoding!r} and not in latin1")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """What old protocols call for b""; with arguments it could be asked for any amount of memory."""
    return b""


def _numpy_parts() -> dict[tuple[str, str], Callable[..., Any]]:
    """The functions numpy's own pickles name, under their old and new modules."""
    array = np.zeros(1)
    rebuild = array.__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    from_buffer = array.__reduce_ex__(5)[0]
    parts: dict[tuple[str, str], Callable[..., Any]] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core", "numpy._core"):
        parts[f"{core}.multiarray", "_reconstruct"] = rebuild
        parts[f"{core}.multiarray", "scalar"] = scalar
        parts[f"{core}.numeric", "_frombuffer"] = from_buffer
    for name, kind in vars(np.dtypes).items():
        if isinstance(kind, type) and issubclass(kind, np.dtype):
            parts["numpy.dtypes", name] = kind
    return parts


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    **_numpy_parts(),
    ("_codecs", "encode"): _text_as_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("__builtin__", "bytes"): _empty_bytes,
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in {"set": set, "frozenset": frozenset, "bytearray": bytearray, "complex": complex}.items()
    },
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: object) -> object:
        raise _Refused("an object outside the file")


class _Refused(pickle.UnpicklingError):
    """Carries the name of what is not admitted."""


def load_plain_pickle(path: str | Path) -> Any:
    """What a pickle holds, if it holds only numpy arrays, numbers, texts and plain containers.

    Pickles written by Python 2 are read too; their byte texts become str by latin1, which never fails.

    Raises:
        ManifestError: naming what else the pickle asks for, or if it is damaged or cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = _Restricted(stream, encoding="latin1").load()
    except _Refused as refused:
        raise ManifestError(
            f"{path.name} asks for {refused}, which was not run",
            expected="numpy arrays and plain containers only",
            where=str(path),
            remedy="Do not use the file, or ask its makers for one without code",
        ) from refused
    except MemoryError as error:
        raise ManifestError(f"{path.name} asks for more memory than there is", where=str(path)) from error
    except Exception as error:  # a damaged pickle can fail in any way: the format is a program
        reason = str(error) or type(error).__name__
        raise ManifestError(
            f"{path.name} cannot be read: {reason}", expected="a whole pickle", where=str(path)
        ) from error
    _refuse_object_code(content, path)
    return content


def _refuse_object_code(content: Any, path: Path) -> None:
    """A last look: what came out is of admitted kinds, however it was put together."""
    plain = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex, type(None), np.generic)
    seen: set[int] = set()
    todo = [content]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        if isinstance(value, np.ndarray):
            seen.add(id(value))
            todo += value.ravel().tolist() if value.dtype.hasobject else []
        elif isinstance(value, dict):
            seen.add(id(value))
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            seen.add(id(value))
            todo += value
        elif not isinstance(value, plain):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise ManifestError(f"{path.name} holds a {kind}", expected="arrays and plain containers", where=str(path))
