"""Figures: plain data, packs, episodes and rows of results enter, matplotlib Figures leave; nothing is loaded."""

from stf2m_core.figures.data import label_counts, views
from stf2m_core.figures.episodes import episode
from stf2m_core.figures.faces import face_clip, face_graph, face_tracks
from stf2m_core.figures.frames import gaps, same_frames
from stf2m_core.figures.fuzzy import firing, rules
from stf2m_core.figures.graphs import spread, weighted_graphs
from stf2m_core.figures.learning import adaptation, history, task_weights
from stf2m_core.figures.look import save
from stf2m_core.figures.media import recording
from stf2m_core.figures.memberships import firing_side_by_side, fuzzy_sets, rule_shapes, saturation
from stf2m_core.figures.overview import method
from stf2m_core.figures.prediction import prediction
from stf2m_core.figures.raters import agreement, taken_for
from stf2m_core.figures.readers import readers
from stf2m_core.figures.rule_cards import fusion, rule_cards
from stf2m_core.figures.scores import ablation, confusion, results
from stf2m_core.figures.segments import clip_segments
from stf2m_core.figures.shots import shots
from stf2m_core.figures.synthetic import factors
from stf2m_core.figures.tasks import inner_paths, one_wave
from stf2m_core.figures.votes import said_and_chosen, vote_bars

__all__ = [
    "ablation",
    "adaptation",
    "agreement",
    "clip_segments",
    "confusion",
    "episode",
    "face_clip",
    "face_graph",
    "face_tracks",
    "factors",
    "firing",
    "firing_side_by_side",
    "fusion",
    "fuzzy_sets",
    "gaps",
    "history",
    "inner_paths",
    "label_counts",
    "method",
    "one_wave",
    "prediction",
    "readers",
    "recording",
    "results",
    "rule_cards",
    "rule_shapes",
    "rules",
    "said_and_chosen",
    "same_frames",
    "saturation",
    "save",
    "shots",
    "spread",
    "taken_for",
    "task_weights",
    "views",
    "vote_bars",
    "weighted_graphs",
]
