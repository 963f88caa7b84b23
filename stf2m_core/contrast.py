"""Factor-contrast episodes of SynEmo: three pairs of emotions, those of a pair differ in one factor only.

Random classes differ in several factors at once and dilute what each mechanism gives; here a mechanism that is missing
costs half of every pair. Source: ours, docs/METHOD.md section 'Synthetic set'.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from stf2m_core.config import EpisodeConfig
from stf2m_core.data.pack import Pack
from stf2m_core.data.synemo import factor_contrast_classes
from stf2m_core.episodes import EpisodeSampler, Splits
from stf2m_core.errors import EpisodeError


class ContrastSampler(EpisodeSampler):
    """Regime D episodes of the six emotions that contrast one factor; everything else as in `EpisodeSampler`.

    Args:
        pack: a SynEmo pack.
        splits: its meta-splits.
        split: "meta_train", "meta_val" or "meta_test".
        factor: of `synemo.FACTORS`.
        n_shot: support clips per class.
        n_query: query clips per class.
        seed: of the stream.

    Raises:
        ConfigError: if there is no such factor.
        EpisodeError: if the pack lacks one of the six emotions, or no episode can be drawn.
    """

    def __init__(
        self, pack: Pack, splits: Splits, split: Literal["meta_train", "meta_val", "meta_test"], factor: str, *,
        n_shot: int = 5, n_query: int = 5, seed: int = 0,
    ):  # fmt: skip
        self.factor = factor
        names = [name for pair in factor_contrast_classes(factor) for name in pair]
        missing = [name for name in names if name not in pack.labels]
        if missing:
            raise EpisodeError(f"no label {missing[0]!r}", expected="a SynEmo pack", where=str(pack.path))
        self.contrasted = np.array([pack.labels.index(name) for name in names])
        config = EpisodeConfig(regime="D", n_way=len(names), n_shot=n_shot, n_query=n_query)
        super().__init__(pack, splits, split, config, seed)

    def _stream(self, purpose: str) -> str:
        return f"{super()._stream(purpose)}/contrast/{self.factor}"

    def _feasible(self, side: np.ndarray) -> np.ndarray:
        return super()._feasible(side) & np.isin(self.classes, self.contrasted)
