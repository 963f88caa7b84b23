"""Meta-recurrent network: reads each emotion task of the support and generates where adaptation starts.

Per class a bidirectional LSTM reads the support clips (embedding, rule firing, label); from the classes' codes come the
task code tau, FiLM for the joint block and a residual of each class's head weights. Source: METHOD, 'Meta-RNN'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stf2m_core.config import MetaRNNConfig


@dataclass(frozen=True)
class TaskCode:
    """What was read of the support.

    Attributes:
        tau: (episode, task feature).
        gamma: (episode, channel) FiLM scale, zero at the start of training.
        beta: (episode, channel) FiLM shift, zero at the start of training.
        head: (episode, way, embedding) residual of the head weights, zero at the start of training.
        trust: (episode,) log of how many support clips a known emotion's anchor is worth.
    """

    tau: Tensor
    gamma: Tensor
    beta: Tensor
    head: Tensor
    trust: Tensor


def tokens(
    embedding: Tensor, firing: Tensor, target: Tensor, entropy: Tensor, disagreement: Tensor, duration: Tensor,
    present: Tensor,
) -> Tensor:  # fmt: skip
    """What the recurrent network reads of each support clip: (episode, way, shot, token feature).

    [embedding; firing; own label share; label entropy; firing entropy; disagreement; log duration; presence]: the
    label's share, not its number, so that renaming the classes changes nothing.

    Args:
        embedding: (episode, way * shot, embedding).
        firing: (episode, way * shot, rule).
        target: (episode, way * shot, way) label distributions.
        entropy: (episode, way * shot) of firing.
        disagreement: (episode, way * shot).
        duration: (episode, way * shot) seconds.
        present: (episode, way * shot, modality) bool.
    """
    n_way = target.shape[-1]
    n_shot = target.shape[1] // n_way
    own = torch.arange(n_way, device=target.device).repeat_interleave(n_shot)
    share = target[:, torch.arange(n_way * n_shot, device=target.device), own]
    doubt = -(target * torch.log(target.clamp(min=1e-12))).sum(-1) / math.log(n_way)
    scalars = torch.stack([share, doubt, entropy, disagreement, torch.log(duration)], -1)
    token = torch.cat([embedding, firing, scalars, present.to(embedding.dtype)], -1)
    return token.unflatten(1, (n_way, n_shot))


class TaskEncoder(nn.Module):
    """Bidirectional LSTM over the shots of each class, and the generators.

    Args:
        n_token: token features.
        channels: of the joint block.
        embedding: numbers per clip.
        config: sizes; `constant` replaces all that is read by learned constants (ablation).
    """

    def __init__(self, n_token: int, channels: int, embedding: int, config: MetaRNNConfig):
        super().__init__()
        self.config = config
        code = 2 * config.hidden
        if config.kind == "bilstm":
            self.rnn = nn.LSTM(n_token, config.hidden, config.n_layers, batch_first=True, bidirectional=True)
            self.summary = nn.Sequential(nn.Linear(2 * code, 64), nn.ReLU(), nn.Linear(64, config.task_size), nn.Tanh())
            self.head = _zero(nn.Linear(code, embedding, bias=False))
        else:
            self.tau = nn.Parameter(torch.zeros(config.task_size))
        self.film = _zero(nn.Linear(config.task_size, 2 * channels))
        self.trust = _zero(nn.Linear(config.task_size, 1))

    def forward(self, token: Tensor, order: Tensor) -> TaskCode:
        """Read the support.

        Args:
            token: (episode, way, shot, token feature).
            order: (draw, episode, way, shot) permutations of the shots; codes are averaged over draws.
        """
        n_episodes, n_way = token.shape[:2]
        if self.config.kind == "constant":
            tau = self.tau.expand(n_episodes, -1)
            # one zero that broadcasts: a learned residual per class would tie weights to class numbers
            head = token.new_zeros(n_episodes, n_way, 1)
        else:
            code = self.read(token, order)
            spread = torch.sqrt(code.var(1, unbiased=False) + 1e-5)
            tau = self.summary(torch.cat([code.mean(1), spread], -1))
            head = self.head(code - code.mean(1, keepdim=True))
        gamma, beta = self.film(tau).chunk(2, -1)
        return TaskCode(tau, gamma, beta, head, self.trust(tau)[:, 0])

    def read(self, token: Tensor, order: Tensor) -> Tensor:
        """(episode, way, code): last forward and first backward state, averaged over orders."""
        index = order[..., None].expand(*order.shape, token.shape[-1])
        shuffled = token.expand(order.shape[0], *token.shape).gather(3, index)
        out, _ = self.rnn(shuffled.flatten(0, 2))
        forward, backward = out.chunk(2, -1)
        code = torch.cat([forward[:, -1], backward[:, 0]], -1)
        return code.unflatten(0, order.shape[:3]).mean(0)


def _zero(layer: nn.Linear) -> nn.Linear:
    """A generator whose output is zero at first, so that training starts from the unmodulated model."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
