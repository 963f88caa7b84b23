"""A learner without gradients: a recurrent network reads labelled support clips, then a query, and answers.

What it has learned of a task is its state. Source: METHOD, 'Meta-RNN'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stf2m_core.config import MetaRNNConfig


def facts(
    embedding: Tensor, firing: Tensor, entropy: Tensor, typicality: Tensor, duration: Tensor, present: Tensor
) -> Tensor:
    """What the learner reads of a clip besides its label: (episode, clip, fact).

    Args:
        embedding: (episode, clip, embedding) fuzzy-enriched.
        firing: (episode, clip, rule).
        entropy: (episode, clip) of firing.
        typicality: (episode, clip) of the clip for its nearest rule.
        duration: (episode, clip) seconds.
        present: (episode, clip, modality) bool.
    """
    scalars = torch.stack([entropy, typicality, torch.log(duration)], -1)
    return torch.cat([embedding, firing, scalars, present.to(embedding.dtype)], -1)


def in_turn(classes: Tensor, order: Tensor) -> Tensor:
    """In which order the support is read where classes are not read apart: (draw, episode, shot * way) of way * shot.

    Rounds of one clip of each class. The classes take turns by their number in the data set, another one first in each
    round and draw, so that renaming the classes of the episode changes nothing.

    Args:
        classes: (episode, way) labels of the data set.
        order: (draw, episode, way, shot) in which the shots of each class are read.
    """
    n_draws, _, n_way, n_shot = order.shape
    count = [torch.arange(n, device=order.device) for n in (n_draws, n_shot, n_way)]
    turn = (count[0][:, None, None] + count[1][:, None] + count[2]) % n_way
    way = classes.argsort(-1)[:, turn].transpose(0, 1)
    return (way * n_shot + order.transpose(2, 3).gather(3, way)).flatten(2)


class RecurrentLearner(nn.Module):
    """LSTM over support and query that scores one class; all classes share it, so renaming them renames the answer.

    For class e it reads what is known of the emotion, then every support clip with e's share of its label, then the
    query without a label, and says how much the query is of e. Each query is read alone. Source: Hochreiter et al.
    2001, Santoro et al. 2016 and RL2 (Duan et al. 2016), which read the number of the class instead.

    Args:
        n_token: numbers read of each clip, of which two are the label's share and whether it is asked for.
        channels: unused; the joint block is not modulated.
        embedding: numbers per clip.
        config: sizes.
    """

    def __init__(self, n_token: int, channels: int, embedding: int, config: MetaRNNConfig):
        super().__init__()
        self.rnn = nn.LSTM(n_token, config.hidden, config.n_layers, batch_first=True)
        self.score = nn.Linear(config.hidden, 1, bias=False)

    def forward(
        self, support: Tensor, target: Tensor, anchor: Tensor, query: Tensor, classes: Tensor, order: Tensor
    ) -> Tensor:
        """Scores (episode, query, way), averaged over orders.

        Args:
            support: (episode, way * shot, fact).
            target: (episode, way * shot, way) label distributions.
            anchor: (episode, way, embedding) what is known of each emotion; zero for a new one.
            query: (episode, query, fact).
            classes: (episode, way) labels of the data set.
            order: (draw, episode, way, shot).
        """
        (n_draws, n_episodes, n_way, _), n_query = order.shape, query.shape[1]
        index = in_turn(classes, order)[..., None]
        clips = support.expand(n_draws, -1, -1, -1).gather(2, index.expand(-1, -1, -1, support.shape[-1]))
        share = target.expand(n_draws, -1, -1, -1).gather(2, index.expand(-1, -1, -1, n_way))
        shown = _labelled(clips[:, :, None].expand(-1, -1, n_way, -1, -1), share.transpose(2, 3), asked=False)
        first = pad(anchor, (0, support.shape[-1] - anchor.shape[-1]))[:, :, None]
        first = _labelled(first, torch.ones_like(first[..., 0]), asked=False).expand(n_draws, -1, -1, -1, -1)
        _, state = self.rnn(torch.cat([first, shown], 3).flatten(0, 2))
        asked = _labelled(query, torch.zeros_like(query[..., 0]), asked=True)
        asked = asked[None, :, None].expand(n_draws, -1, n_way, -1, -1).flatten(0, 3)[:, None]
        last, _ = self.rnn(asked, tuple(part.repeat_interleave(n_query, 1) for part in state))
        scores = self.score(last[:, 0]).view(n_draws, n_episodes, n_way, n_query)
        return scores.mean(0).transpose(1, 2)


def _labelled(fact: Tensor, share: Tensor, *, asked: bool) -> Tensor:
    """Facts with the label's share, and whether the label is asked for."""
    flag = torch.full_like(share, float(asked))
    return torch.cat([fact, torch.stack([share, flag], -1)], -1)
