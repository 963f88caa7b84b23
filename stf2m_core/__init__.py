"""ST-F2M: few-shot recognition of fine-grained emotions from multi-modal video.

The verbs that notebooks and users call; everything else is imported from its own module. Each is fetched when it is
first asked for, so that what orders notebooks or prints a help text does not wait for the model's libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stf2m_core import experiment, figures
    from stf2m_core.config import EpisodeConfig, RunConfig
    from stf2m_core.data.manifest import import_dataset
    from stf2m_core.data.pack import Pack, RaggedViews, open_pack, write_pack
    from stf2m_core.evaluation import answer, evaluate, evaluate_control, score
    from stf2m_core.experiment import train
    from stf2m_core.predicting import predict
    from stf2m_core.results import Record
    from stf2m_core.training import Run, load_model

__version__ = "0.1.0"

__all__ = [
    "EpisodeConfig", "Pack", "RaggedViews", "Record", "Run", "RunConfig", "answer", "evaluate", "evaluate_control",
    "experiment", "figures", "import_dataset", "load_model", "open_pack", "predict", "score", "train", "write_pack",
]  # fmt: skip

_HOMES = {
    "config": ("EpisodeConfig", "RunConfig"),
    "data.manifest": ("import_dataset",),
    "data.pack": ("Pack", "RaggedViews", "open_pack", "write_pack"),
    "evaluation": ("answer", "evaluate", "evaluate_control", "score"),
    "experiment": ("train",),
    "predicting": ("predict",),
    "results": ("Record",),
    "training": ("Run", "load_model"),
}


def __getattr__(name: str) -> Any:
    if name in ("experiment", "figures"):
        return import_module(f"{__name__}.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(f"{__name__}.{home}"), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
