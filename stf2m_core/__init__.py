"""ST-F2M: few-shot recognition of fine-grained emotions from multi-modal video.

The verbs that notebooks and users call; everything else is imported from its own module.
"""

from stf2m_core import experiment, figures
from stf2m_core.config import EpisodeConfig, RunConfig
from stf2m_core.data.manifest import import_dataset
from stf2m_core.data.pack import Pack, RaggedViews, open_pack, write_pack
from stf2m_core.evaluation import answer, evaluate, evaluate_control, score
from stf2m_core.experiment import train
from stf2m_core.predict import predict
from stf2m_core.results import Record
from stf2m_core.training import Run, load_model

__version__ = "0.1.0"

__all__ = [
    "EpisodeConfig", "Pack", "RaggedViews", "Record", "Run", "RunConfig", "answer", "evaluate", "evaluate_control",
    "experiment", "figures", "import_dataset", "load_model", "open_pack", "predict", "score", "train", "write_pack",
]  # fmt: skip
