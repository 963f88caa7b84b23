"""The libraries of the extra `media`: imported when first needed, with a sentence that helps where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from stf2m_core.errors import MediaError

_EXTRA = "Install the extra with: pip install 'stf2m_core[media]'"
_PACKAGES = {
    "av": ("av", _EXTRA), "cv2": ("opencv-python-headless<5", _EXTRA),
    "sentence_transformers": ("sentence-transformers", "Install it with: pip install sentence-transformers"),
}  # fmt: skip


def library(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        MediaError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, remedy = _PACKAGES[name]
        what = f"recordings cannot be read so without the Python package {package!r}"
        raise MediaError(what, where=f"this Python: {error}", remedy=remedy) from error
