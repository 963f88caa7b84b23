"""What a model costs: weights, numbers that adapt, and multiply-adds of each part of an answer.

Weights are counted, multiply-adds are those of all matrix products while one episode is encoded, read, adapted to and
answered; element-wise work is left out, as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stf2m_core.config import EpisodeConfig
from stf2m_core.data.pack import Pack
from stf2m_core.encoding import encode_episodes
from stf2m_core.episodes import EpisodeSampler, split_subjects
from stf2m_core.experiment import READINGS, VARIANTS, config_for, study_of
from stf2m_core.model.st_f2m import STF2M
from stf2m_core.shapes import EpisodeBatch
from stf2m_core.training import adapted_numbers, build
from stf2m_core.views import ResidentViews

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """Of one model.

    Attributes:
        parameters: learned numbers.
        adapted: numbers that the inner loop changes per episode.
        encode: multiply-adds of the convolutions, per clip, padded as in the episode.
        start: of reading the support and finding the first fast weights, per episode.
        step: of one inner step with its gradient, first order, per episode; 0 without inner steps.
        answer: of answering all queries under given fast weights, per episode.
    """

    parameters: int
    adapted: int
    encode: int
    start: int
    step: int
    answer: int


class _Products(TorchDispatchMode):
    """Adds up the operations of matrix products by torch's formulas.

    Torch's own counter also follows modules, with hooks that cannot stand the gradients of an inner step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mkldnn_rnn_layer.default:  # the CPU's fused recurrent network, of which torch
            n_time, n_sequences, _ = args[0].shape  # has no formula
            self.operations += 2 * n_time * n_sequences * (args[1].numel() + args[2].numel())
        elif function.overloadpacket in flop_registry:
            self.operations += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def multiply_adds(compute: Callable[[], Result]) -> tuple[int, Result]:
    """Multiply-adds of all matrix products in a computation on the CPU and its gradients, and what it gave."""
    with _Products() as products:
        result = compute()
    return products.operations // 2, result


def cost_of(model: STF2M, data: ResidentViews, batch: EpisodeBatch) -> Cost:
    """Cost of a model on the clips of some episodes; the weights' values do not matter.

    Args:
        model: on the CPU.
        data: views on the CPU.
        batch: episodes of one kind.
    """
    config, n_episodes = model.config, len(batch)
    n_orders = config.meta_rnn.n_orders
    with torch.no_grad():
        encode, episode = multiply_adds(
            lambda: encode_episodes(model, data, batch, seed=0, stream="cost", n_orders=n_orders)
        )
        start, path = multiply_adds(lambda: model.adapt(episode.support, 0))
        answer, _ = multiply_adds(lambda: model.predict(episode.query, path[0], episode.support))
        step = multiply_adds(lambda: model.adapt(episode.support, 1))[0] - start if model.adapting else 0
    n_clips = batch.support[0].numel() * (1 + config.inner.n_views) + batch.query.shape[1]
    parameters = sum(p.numel() for p in model.parameters())
    shares = (encode // (n_episodes * n_clips), start // n_episodes, step // n_episodes, answer // n_episodes)
    return Cost(parameters, adapted_numbers(model, batch.n_way), *shares)


def cost_rows(
    pack: Pack, profile: str, *, variants: Sequence[str] = tuple(VARIANTS | READINGS),
    setting: EpisodeConfig | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per variant, untrained, on one episode of meta-test: its name and its cost.

    Args:
        pack: the data.
        profile: size of the models.
        variants: names of ablations or readings.
        setting: kind of episode; None: the last of the data set's study (with one shot there is no inner step).

    Raises:
        ConfigError: on an unknown profile or variant.
        EpisodeError: if meta-test cannot give such an episode.
    """
    setting, rows = setting or study_of(pack).test[-1], []
    for variant in variants:
        config = config_for(pack, profile, variant=variant).replace(train__device="cpu")
        splits = split_subjects(pack, config.split)
        data = ResidentViews(pack, config.views, "cpu")
        batch = EpisodeSampler(pack, splits, "meta_test", setting, 0).sample(0, 1)
        rows.append({"variant": variant} | asdict(cost_of(build(data, splits, config), data, batch)))
    return rows
