"""Rule cards of the vote fusion: fitted rules and votes enter; what each rule owns and answers, and clips, leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from stf2m_core.data.adapters.crema_d_votes import EMOTIONS, Votes
from stf2m_core.errors import ResultError
from stf2m_core.vote_fusion import FACE, VOICE, FusedVotes, examples, shares


@dataclass(frozen=True)
class VoteCards:
    """One card per rule of one model, the most used rule first.

    Attributes:
        use: (rule,) mean firing over all clips; sums to one.
        owned: (rule,) number of clips for which the rule fires most.
        voice: (rule, emotion) mean shares of the votes on voice alone, of the clips it owns; NaN where it owns none.
        face: (rule, emotion) the same of the face.
        answer: (rule, emotion) what it answers; of first-order rules the mean over clips, weighted by firing.
        name: of each rule, such as "voice sad, face neutral → sad".
        clips: of each rule up to three clips of actors that the model never saw, the clearest first.
    """

    use: np.ndarray
    owned: np.ndarray
    voice: np.ndarray
    face: np.ndarray
    answer: np.ndarray
    name: tuple[str, ...]
    clips: tuple[tuple[str, ...], ...]


@torch.no_grad()
def vote_cards(votes: Votes, fused: FusedVotes, *, fold: int = 0, seed: int = 0, n_clips: int = 3) -> VoteCards:
    """Describe the rules of one fold and seed (its number, not its value).

    Raises:
        ResultError: if there is no such fold or seed.
    """
    n_seeds, n_folds = fused.step.shape
    if not (0 <= fold < n_folds and 0 <= seed < n_seeds):
        raise ResultError(f"fold {fold}, seed {seed}", expected=f"below {n_folds} and {n_seeds}", where="vote_cards")
    data, model = examples(votes, fused.config), fused.models[seed][fold]
    pattern, evidence = (
        (values - statistics.mean[fold]) / statistics.scale[fold]
        for values, statistics in ((data.pattern, fused.pattern), (data.evidence, fused.evidence))
    )
    firing, answers = (part.double().numpy() for part in (model(pattern, evidence)[1], model.answers(evidence)))
    use = firing.mean(0)
    order = np.argsort(-use)
    answer = (firing[..., None] * answers).mean(0) / use[:, None]
    owner = firing.argmax(1)
    owned = np.bincount(owner, minlength=len(use))
    share = shares(votes.counts[:, [VOICE, FACE]], 0)
    member = np.eye(len(use))[owner]
    mean = np.einsum("br,bme->rme", member, share) / np.where(owned > 0, owned, np.nan)[:, None, None]
    unseen = np.flatnonzero(fused.fold == fold)
    best = unseen[np.argsort(-firing[unseen], 0)[:n_clips]]
    clips = [tuple(map(str, votes.clip_id[best[:, rule]])) for rule in order]
    names = tuple(_name(mean[rule, VOICE], mean[rule, FACE], answer[rule]) for rule in order)
    patterns = (mean[order, VOICE], mean[order, FACE], answer[order])
    return VoteCards(use[order], owned[order], *patterns, names, tuple(clips))


def card_table(cards: VoteCards) -> pd.DataFrame:
    """The cards as words: one row per rule."""
    return pd.DataFrame({
        "rule": np.arange(1, len(cards.name) + 1), "owns → answers": cards.name,
        "use": [f"{use:.1%}" for use in cards.use], "clips owned": cards.owned,
        "three clips of unseen actors": [", ".join(clips) for clips in cards.clips],
    })  # fmt: skip


def _name(voice: np.ndarray, face: np.ndarray, answer: np.ndarray) -> str:
    if np.isnan(voice).any():
        return f"owns no clip → {_leading(answer)}"
    return f"voice {_leading(voice)}, face {_leading(face)} → {_leading(answer)}"


def _leading(share: np.ndarray) -> str:
    """The emotion with the largest share, and after a stroke the next one if it has at least half of that."""
    first, second = np.argsort(-share)[:2]
    both = share[second] >= share[first] / 2
    return f"{EMOTIONS[first]}/{EMOTIONS[second]}" if both else EMOTIONS[first]
