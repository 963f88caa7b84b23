"""The libraries of the extra `media`: imported when first needed, with a sentence that helps where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from stf2m_core.errors import MediaError

_PACKAGES = {"av": "av", "cv2": "opencv-python-headless<5", "librosa": "librosa"}


def library(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        MediaError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MediaError(
            f"recordings cannot be read without the Python package {_PACKAGES[name]!r}",
            where=f"this Python: {error}",
            remedy="Install the extra with: pip install 'stf2m_core[media]'",
        ) from error
