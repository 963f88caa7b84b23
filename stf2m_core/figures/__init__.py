"""Figures: plain data, packs, episodes and rows of results enter, matplotlib Figures leave; nothing is loaded."""

from stf2m_core.figures.data import label_counts, views
from stf2m_core.figures.episodes import episode
from stf2m_core.figures.fuzzy import firing, rules
from stf2m_core.figures.learning import adaptation, history, task_weights
from stf2m_core.figures.look import save
from stf2m_core.figures.media import recording
from stf2m_core.figures.overview import method
from stf2m_core.figures.raters import agreement, face_graph, taken_for
from stf2m_core.figures.rule_cards import fusion, rule_cards
from stf2m_core.figures.scores import ablation, confusion, results
from stf2m_core.figures.synthetic import factors

__all__ = [
    "ablation",
    "adaptation",
    "agreement",
    "confusion",
    "episode",
    "face_graph",
    "factors",
    "firing",
    "fusion",
    "history",
    "label_counts",
    "method",
    "recording",
    "results",
    "rule_cards",
    "rules",
    "save",
    "taken_for",
    "task_weights",
    "views",
]
