"""A gated recurrent unit that has no weights of its own: they are generated from what is known of the task.

Source: METHOD, 'Meta-RNN'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

KNOWLEDGE = (16, 2)
"""Hidden numbers between what is known and the weights; two in the end, so that each weight costs three."""


class GeneratedGRU(nn.Module):
    """Bidirectional GRU, one layer, whose weights are [W, U, b, c] = G k + B with k = MLP(what is known of the task).

    r, z = sigmoid(W x + b + U h + c), n = tanh(W_n x + b_n + r * (U_n h + c_n)), h' = (1 - z) n + z h. G starts at
    zero: at first all tasks have the same GRU. Source: meta-recurrent network of ST-MetaNet (Pan et al. 2019), which
    generates from where a traffic sensor stands, also by way of 16 and 2 hidden numbers; gates of Cho et al. 2014.

    Args:
        n_token: input features, and features of what is known.
        hidden: per direction.
    """

    def __init__(self, n_token: int, hidden: int):
        super().__init__()
        self.shapes = [(3 * hidden, n_token), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,)]
        first, last = KNOWLEDGE
        self.knowledge = nn.Sequential(nn.Linear(n_token, first), nn.ReLU(), nn.Linear(first, last), nn.Tanh())
        self.generate = nn.Linear(last, 2 * sum(math.prod(shape) for shape in self.shapes))
        nn.init.zeros_(self.generate.weight)
        nn.init.uniform_(self.generate.bias, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def weights(self, known: Tensor) -> list[tuple[Tensor, ...]]:
        """(episode, feature) to the weights W, U, b, c of each direction, each with a leading episode axis."""
        both = self.generate(self.knowledge(known)).chunk(2, -1)
        sizes = [math.prod(shape) for shape in self.shapes]
        return [
            tuple(part.unflatten(-1, shape) for part, shape in zip(flat.split(sizes, -1), self.shapes, strict=True))
            for flat in both
        ]

    def forward(self, sequence: Tensor, known: Tensor) -> Tensor:
        """Last forward and first backward state: (draw, episode, way, 2 * hidden).

        Args:
            sequence: (draw, episode, way, shot, token).
            known: (episode, token) what is known of each task.
        """
        forward, backward = self.weights(known)
        return torch.cat([_last_state(forward, sequence), _last_state(backward, sequence.flip(3))], -1)


def _last_state(weights: tuple[Tensor, ...], sequence: Tensor) -> Tensor:
    from_input, from_state, input_bias, state_bias = weights
    told = torch.einsum("dewst,eht->dewsh", sequence, from_input) + input_bias[:, None, None]
    state = told.new_zeros(*told.shape[:3], from_state.shape[-1])
    for shot in told.unbind(3):
        kept = torch.einsum("dewk,ehk->dewh", state, from_state) + state_bias[:, None]
        (reset, update, new), (old_reset, old_update, old_new) = shot.chunk(3, -1), kept.chunk(3, -1)
        update = torch.sigmoid(update + old_update)
        state = (1 - update) * torch.tanh(new + torch.sigmoid(reset + old_reset) * old_new) + update * state
    return state
