"""SynEmo, the embedded synthetic set: settings enter, clips and three modalities leave; no file is read."""

from __future__ import annotations

from typing import Any

import pandas as pd

from stf2m_core.data.manifest_file import Manifest
from stf2m_core.data.ragged import RaggedViews
from stf2m_core.data.synemo import SynEmoConfig, generate

SETTINGS = SynEmoConfig
"""Its fields are options, besides the preset."""


def read(
    source: None, manifest: Manifest, *, preset: str = "smoke", **settings: Any
) -> tuple[pd.DataFrame, dict[str, RaggedViews]]:
    """The generated clips and their views.

    Args:
        source: nothing; the set is generated.
        manifest: not needed; what is generated is checked against it by the import.
        preset: "smoke" or "standard".
        settings: fields of SynEmoConfig that differ from the preset.

    Raises:
        ConfigError: if the preset or a setting is unknown or out of range.
    """
    return generate(SynEmoConfig.preset(preset, **settings))
