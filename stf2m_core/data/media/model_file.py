"""A network of the user's own for faces: the facts of its file enter, checked; nothing is downloaded or guessed.

Only ONNX files are read, which hold numbers and no code.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stf2m_core.errors import MediaError

KINDS = ("landmarks", "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """An ONNX file and what must be known to use it.

    The network sees the followed face alone: the square of `regions.cut_out`, upright, scaled to `size` pixels, grey as
    all pictures of the front end; a network of three channels gets the same grey three times. Its only input is (1,
    n_channels, size, size), its first output is taken.

    Raises:
        MediaError: if a fact is missing or makes no sense.
    """

    path: str
    """The file."""
    sha256: str
    """Its hash, 64 hex digits: another file under the same name is refused."""
    licence: str
    """Of the weights, in words; it is repeated wherever the features are reported."""
    kind: str
    """landmarks: 68 pairs x, y in the order of the 300-W annotation, in any unit; embedding: any numbers."""
    size: int = 112
    """Side of the input, pixels."""
    n_channels: int = 3
    """1 or 3."""
    mean: float = 0.0
    """Taken from each pixel, 0 to 255."""
    scale: float = 1 / 255
    """What the difference is multiplied by."""

    def __post_init__(self) -> None:
        hex_digits = isinstance(self.sha256, str) and re.fullmatch(r"[0-9a-f]{64}", self.sha256)
        rules = [
            ("path", isinstance(self.path, str) and self.path != "", "the file's path"),
            ("sha256", bool(hex_digits), "64 hex digits"),
            ("licence", isinstance(self.licence, str) and self.licence.strip() != "", "the licence of the weights"),
            ("kind", self.kind in KINDS, " or ".join(KINDS)),
            ("size", type(self.size) is int and 8 <= self.size <= 1024, "8 to 1024 pixels"),
            ("n_channels", self.n_channels in (1, 3), "1 or 3"),
            ("mean", _is_number(self.mean), "a number"),
            ("scale", _is_number(self.scale) and self.scale != 0, "a number other than 0"),
        ]
        for name, fine, expected in rules:
            if not fine:
                what = f"{name} of the face model is {getattr(self, name)!r}"
                raise MediaError(what, expected=expected, where=str(self.path))

    def facts(self) -> dict[str, Any]:
        """What decides the features: everything but where the file lies and what it may be used for."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("path", "licence")}


def read_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """The facts in a TOML file; a relative `path` in it is taken from the TOML file's folder.

    Raises:
        MediaError: if it cannot be read, or a key is unknown, missing or makes no sense.
    """
    place, what = Path(path), "the face model's file of facts"
    try:
        facts = tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise MediaError(f"{what} cannot be read: {error.strerror}", where=str(place)) from error
    except ValueError as error:
        raise MediaError(f"{what} is not TOML: {error}", where=str(place)) from error
    legal = [item.name for item in fields(ModelFile)]
    needed = ("path", "sha256", "licence", "kind")
    for name in (*(key for key in facts if key not in legal), *(key for key in needed if key not in facts)):
        what = f"key {name!r} is {'unknown' if name in facts else 'missing'}"
        raise MediaError(what, expected=", ".join(legal), where=str(place))
    if isinstance(facts["path"], str) and facts["path"]:
        facts["path"] = str(place.parent / facts["path"])
    return ModelFile(**facts)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
