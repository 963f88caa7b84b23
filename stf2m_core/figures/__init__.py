"""Figures: plain data, packs, episodes and rows of results enter, matplotlib Figures leave; nothing is loaded."""

from stf2m_core.figures.data import label_counts, views
from stf2m_core.figures.episodes import episode
from stf2m_core.figures.fuzzy import firing, rules
from stf2m_core.figures.learning import adaptation, history, task_weights
from stf2m_core.figures.look import save
from stf2m_core.figures.overview import method
from stf2m_core.figures.scores import ablation, confusion, results

__all__ = [
    "ablation",
    "adaptation",
    "confusion",
    "episode",
    "firing",
    "history",
    "label_counts",
    "method",
    "results",
    "rules",
    "save",
    "task_weights",
    "views",
]
