"""Figures: plain data, packs, episodes and records enter, matplotlib Figures leave; nothing is loaded or trained."""

from stf2m_core.figures.data import episode, label_counts, views
from stf2m_core.figures.learning import adaptation, history, task_weights
from stf2m_core.figures.look import save

__all__ = ["adaptation", "episode", "history", "label_counts", "save", "task_weights", "views"]
