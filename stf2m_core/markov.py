"""Hidden Markov chains: log-likelihoods of each step enter, posteriors given the whole chain leave.

All chains are worked on at once; only the steps follow one another. Source: Rabiner 1989, in logarithms.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from stf2m_core.errors import ConfigError


def forward_backward(
    log_likelihood: np.ndarray, transition: np.ndarray, start: np.ndarray, n_steps: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-posteriors of the states of each step, given all steps of their chain.

    Args:
        log_likelihood: (..., step, state) log p(what was seen at the step | state), up to a constant per step.
        transition: (state, state) probability of the column's state after the row's.
        start: (state,) probability of each state at the first step.
        n_steps: (...) steps of each chain, at least 1; what lies beyond is ignored. None: all of them.

    Returns:
        (..., step, state) log-posterior, 0 probability of everything beyond a chain's end as -inf, and (...) the
        log-likelihood of the whole chain.

    Raises:
        ConfigError: if rows of `transition`, or `start`, are no distributions over the states.
    """
    likelihood = np.asarray(log_likelihood, np.float64)
    size, n_states = likelihood.shape[-2:]
    _refuse_no_distributions(np.asarray(transition), np.asarray(start), n_states)
    with np.errstate(divide="ignore"):
        step, first = np.log(transition), np.log(start)
    n_steps = np.full(likelihood.shape[:-2], size) if n_steps is None else np.asarray(n_steps)
    inside = np.arange(size) < n_steps[..., None]
    forward, backward = np.empty_like(likelihood), np.zeros_like(likelihood)
    forward[..., 0, :] = first + likelihood[..., 0, :]
    for t in range(1, size):
        reached = logsumexp(forward[..., t - 1, :, None] + step, -2) + likelihood[..., t, :]
        # beyond its end a chain stands still, so that its last step holds the likelihood of all
        forward[..., t, :] = np.where(inside[..., t, None], reached, forward[..., t - 1, :])
    for t in range(size - 2, -1, -1):
        ahead = logsumexp(step + (likelihood + backward)[..., t + 1, None, :], -1)
        backward[..., t, :] = np.where(inside[..., t + 1, None], ahead, 0.0)
    total = logsumexp(forward[..., -1, :], -1)
    posterior = forward + backward - total[..., None, None]
    return np.where(inside[..., None], posterior, -np.inf), total


def transitions(states: np.ndarray, n_states: int, prior: float = 1.0) -> np.ndarray:
    """(state, state) shares of the states that follow each state, with `prior` spread over all of them.

    Args:
        states: (chain, step) int; -1 is undefined, and neither follows nor is followed.
        n_states: number of states.
        prior: pseudo-count of each row, shared by its cells alike.
    """
    before, after = states[:, :-1], states[:, 1:]
    known = (before >= 0) & (after >= 0)
    cells = before[known] * n_states + after[known]
    counts = np.bincount(cells, minlength=n_states**2).reshape(n_states, n_states) + prior / n_states
    return counts / counts.sum(1, keepdims=True)


def shares_of(states: np.ndarray, n_states: int, prior: float = 1.0) -> np.ndarray:
    """(state,) how often each state comes, with `prior` spread over all; -1 is not counted.

    Args:
        states: (chain, step) int.
        n_states: number of states.
        prior: pseudo-count.
    """
    counts = np.bincount(states[states >= 0], minlength=n_states) + prior / n_states
    return counts / counts.sum()


def _refuse_no_distributions(transition: np.ndarray, start: np.ndarray, n_states: int) -> None:
    if transition.shape != (n_states, n_states) or start.shape != (n_states,):
        raise ConfigError(f"transition {transition.shape} and start {start.shape}", where="forward_backward",
                          expected=f"({n_states}, {n_states}) and ({n_states},)")  # fmt: skip
    rows = np.vstack([transition, start])
    if (rows < 0).any() or not np.allclose(rows.sum(1), 1):
        raise ConfigError(f"probabilities that sum to {rows.sum(1).round(6).tolist()}", expected="1 in every row",
                          where="forward_backward")  # fmt: skip
