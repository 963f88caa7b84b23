"""Options of an import: an adapter and words typed on a command line enter, checked values of the right kinds leave.

What an adapter may be told stands in the signature of its `read`: its keyword arguments with their annotations. Of an
adapter that takes any further settings, these are the fields of its `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from inspect import Parameter, signature
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from stf2m_core.data.manifest_file import nearest
from stf2m_core.errors import ManifestError

WORK = "work"
"""The argument of `read` that takes the folder of what is costly to make; no option."""

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def legal_options(adapter: ModuleType) -> dict[str, Any]:
    """Option to its annotation, in the order of the signature.

    Args:
        adapter: a module with `read`, and `SETTINGS`, a dataclass, if `read` takes any keyword.
    """
    hints = get_type_hints(adapter.read)
    parameters = signature(adapter.read).parameters.values()
    legal = {p.name: hints.get(p.name, str) for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name != WORK}
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        kinds = get_type_hints(adapter.SETTINGS)
        legal |= {item.name: kinds[item.name] for item in fields(adapter.SETTINGS)}
    return legal


def check_options(adapter: ModuleType, options: Iterable[str], name: str) -> None:
    """Refuse options that the adapter does not have.

    Args:
        adapter: a module with `read`.
        options: their names.
        name: of the data set.

    Raises:
        ManifestError: naming the first unknown one, those there are, and the nearest.
    """
    legal = legal_options(adapter)
    for option in options:
        if option not in legal:
            raise ManifestError(
                f"option {option!r} is unknown",
                expected=", ".join(legal) or "no options",
                where=f"import of {name}",
                remedy=nearest(option, legal),
            )


def typed_options(adapter: ModuleType, words: Sequence[str], name: str) -> dict[str, Any]:
    """The options in words such as "modalities=audio,text" or "n_workers=2".

    A list is written with commas, and a truth as true or false; none stands for nothing where the adapter allows it.

    Args:
        adapter: a module with `read`.
        words: one "name=value" for each option.
        name: of the data set.

    Raises:
        ManifestError: naming the option, if it has no "=", is unknown, is there twice, or its value is of another kind.
    """
    where, given = f"import of {name}", {}
    for word in words:
        option, equals, value = word.partition("=")
        option = option.strip()
        if not equals or option in given:
            what = "is there twice" if equals else "has no value"
            raise ManifestError(f"option {option!r} {what}", expected="name=value, once for each name", where=where)
        given[option] = value.strip()
    check_options(adapter, given, name)
    legal = legal_options(adapter)
    return {option: _value(option, text, legal[option], where) for option, text in given.items()}


def _value(option: str, text: str, hint: Any, where: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if get_origin(kind) is not None and issubclass(get_origin(kind), Sequence):
        return tuple(_one(option, part.strip(), get_args(kind)[0], where) for part in text.split(",") if part.strip())
    return _one(option, text, kind, where)


def _one(option: str, text: str, kind: type, where: str) -> Any:
    truths: Mapping[str, bool] = {"true": True, "false": False}
    try:
        return truths[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise ManifestError(f"option {option} is {text!r}", expected=_WORDS[kind], where=where) from error
