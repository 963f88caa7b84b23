"""Meta-recurrent network: reads each emotion task of the support and generates where adaptation starts.

Per class a recurrent network reads the support clips (embedding, rule firing, label); from the classes' codes come the
task code tau, FiLM for the joint block and a residual of each class's head weights. Source: METHOD, 'Meta-RNN'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stf2m_core.config import MetaRNNConfig
from stf2m_core.model.generated_gru import GeneratedGRU
from stf2m_core.model.recurrent_learner import in_turn


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
    """Reads the shots of each class, and generates from what it read.

    How it reads is `config.kind`:
    * bilstm: a bidirectional LSTM per class, the shots in random orders;
    * gru: a bidirectional GRU in its place, whose weights are generated from the mean of all tokens of the task;
    * deep-set: the mean over shots of a network of as many weights as the LSTM has (control: is recurrence needed?);
    * mmaml: one bidirectional LSTM over the whole support, which generates FiLM and nothing else (Vuorio et al. 2019);
    * constant: learned constants in place of all that is read (ablation).

    Args:
        n_token: token features.
        channels: of the joint block.
        embedding: numbers per clip.
        config: kind and sizes.
    """

    def __init__(self, n_token: int, channels: int, embedding: int, config: MetaRNNConfig):
        super().__init__()
        self.config = config
        code = 2 * config.hidden
        if config.kind == "constant":
            self.tau = nn.Parameter(torch.zeros(config.task_size))
        else:
            self._add_reader(n_token, code)
            # of many classes mean and spread, of the whole support at once the code itself
            n_read = code if config.kind == "mmaml" else 2 * code
            self.summary = nn.Sequential(nn.Linear(n_read, 64), nn.ReLU(), nn.Linear(64, config.task_size), nn.Tanh())
        if config.kind not in ("constant", "mmaml"):
            self.head = _zero(nn.Linear(code, embedding, bias=False))
        self.film = _zero(nn.Linear(config.task_size, 2 * channels))
        if config.kind != "mmaml":
            self.trust = _zero(nn.Linear(config.task_size, 1))

    def _add_reader(self, n_token: int, code: int) -> None:
        config = self.config
        if config.kind == "deep-set":
            width = max(1, round((_lstm_weights(n_token, config) - code) / (n_token + 1 + code)))
            self.shot = nn.Sequential(nn.Linear(n_token, width), nn.ReLU(), nn.Linear(width, code))
        elif config.kind == "gru":
            self.rnn = GeneratedGRU(n_token, config.hidden)
        else:
            size = 2 * n_token if config.kind == "mmaml" else n_token
            self.rnn = nn.LSTM(size, config.hidden, config.n_layers, batch_first=True, bidirectional=True)

    def forward(self, token: Tensor, order: Tensor, classes: Tensor) -> TaskCode:
        """Read the support.

        Args:
            token: (episode, way, shot, token feature).
            order: (draw, episode, way, shot) permutations of the shots; codes are averaged over draws.
            classes: (episode, way) labels of the data set, by which classes take turns where they are read together.
        """
        n_episodes, n_way = token.shape[:2]
        # one zero that broadcasts: a learned residual per class would tie weights to class numbers
        head = token.new_zeros(n_episodes, n_way, 1)
        if self.config.kind == "constant":
            tau = self.tau.expand(n_episodes, -1)
        elif self.config.kind == "mmaml":
            tau = self.summary(self.read_whole(token, order, classes))
        else:
            code = self.read(token, order)
            spread = torch.sqrt(code.var(1, unbiased=False) + 1e-5)
            tau = self.summary(torch.cat([code.mean(1), spread], -1))
            head = self.head(code - code.mean(1, keepdim=True))
        gamma, beta = self.film(tau).chunk(2, -1)
        trust = tau.new_zeros(n_episodes) if self.config.kind == "mmaml" else self.trust(tau)[:, 0]
        return TaskCode(tau, gamma, beta, head, trust)

    def read(self, token: Tensor, order: Tensor) -> Tensor:
        """(episode, way, code) of each class alone, averaged over orders; a set has none."""
        if self.config.kind == "deep-set":
            return self.shot(token).mean(2)
        index = order[..., None].expand(*order.shape, token.shape[-1])
        shuffled = token.expand(order.shape[0], *token.shape).gather(3, index)
        if self.config.kind == "gru":
            return self.rnn(shuffled, token.mean((1, 2))).mean(0)
        return _both_ends(self.rnn, shuffled).mean(0)

    def read_whole(self, token: Tensor, order: Tensor, classes: Tensor) -> Tensor:
        """(episode, code) of the whole support as one sequence, averaged over orders.

        A number of a class says nothing, so the label of a clip is read as the mean token of its class.
        """
        labelled = torch.cat([token, token.mean(2, keepdim=True).expand_as(token)], -1).flatten(1, 2)
        index = in_turn(classes, order)[..., None].expand(-1, -1, -1, labelled.shape[-1])
        return _both_ends(self.rnn, labelled.expand(order.shape[0], *labelled.shape).gather(2, index)).mean(0)


def _both_ends(rnn: nn.LSTM, sequence: Tensor) -> Tensor:
    """Last forward and first backward state of (..., time, feature)."""
    out, _ = rnn(sequence.flatten(0, -3))
    forward, backward = out.chunk(2, -1)
    return torch.cat([forward[:, -1], backward[:, 0]], -1).unflatten(0, sequence.shape[:-2])


def _lstm_weights(n_token: int, config: MetaRNNConfig) -> int:
    """How many weights the bidirectional LSTM of these sizes has."""
    hidden = config.hidden
    inputs = [n_token] + [2 * hidden] * (config.n_layers - 1)
    return sum(2 * 4 * hidden * (size + hidden + 2) for size in inputs)


def _zero(layer: nn.Linear) -> nn.Linear:
    """A generator whose output is zero at first, so that training starts from the unmodulated model."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
