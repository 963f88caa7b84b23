"""Speed and memory of the hot paths: `make bench`. Prints a table; read ratios, not seconds: machines differ.

    python benchmarks/run.py [--pack FOLDER] [--steps N]

Without a pack, the embedded synthetic set is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

import stf2m_core as stf2m
from stf2m_core.config import RunConfig
from stf2m_core.episodes import EpisodeSampler
from stf2m_core.training import Trainer, cpu_threads

PHASES = {"prototypes": 0.0, "first order": 0.2, "second order": 0.6}


def seconds_per_step(trainer: Trainer, share: float, n_steps: int) -> float:
    """Wall seconds of an outer step in the part of the schedule that `share` lies in, after one step to warm up."""
    trainer.progress.step = int(share * trainer.config.train.max_steps)
    trainer.step()
    start = time.perf_counter()
    for _ in range(n_steps):
        trainer.step()
    return (time.perf_counter() - start) / n_steps


def outside_tensor_work(trainer: Trainer, n_steps: int) -> float:
    """Share of wall time that is not spent inside tensor operations: sampling, drawing, Python, one CPU thread."""
    trainer.progress.step = int(0.6 * trainer.config.train.max_steps)
    trainer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        for _ in range(n_steps):
            trainer.step()
        wall = time.perf_counter() - start
    inside = sum(event.self_cpu_time_total for event in profile.key_averages()) / 1e6
    return max(0.0, 1 - inside / wall)


def drawing(trainer: Trainer, n_episodes: int = 600) -> float:
    """Seconds to draw episodes as index tensors."""
    start = time.perf_counter()
    for sampler in trainer.samplers:
        sampler.sample(0, n_episodes)
    return (time.perf_counter() - start) / len(trainer.samplers)


def evaluation(trainer: Trainer, config: RunConfig, n_episodes: int) -> float:
    """Wall seconds per episode of meta-test: encode, read, adapt, answer."""
    kind = config.episodes[-1]
    batch = EpisodeSampler(trainer.pack, trainer.splits, "meta_test", kind, 0).sample(0, n_episodes)
    stf2m.answer(trainer.averaged, trainer.data, batch[:8])
    start = time.perf_counter()
    stf2m.answer(trainer.averaged, trainer.data, batch)
    return (time.perf_counter() - start) / n_episodes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", help="folder of a pack (default: the embedded synthetic set)")
    parser.add_argument("--steps", type=int, default=8, help="outer steps per measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cpu_threads(1):
        pack = stf2m.experiment.open_or_make_pack(options.pack or Path(folder) / "synemo", "smoke")
        config = stf2m.experiment.config_for(pack, "standard")
        trainer = Trainer(pack, config)
        size = config.train.meta_batch
        speed = {phase: size / seconds_per_step(trainer, share, options.steps) for phase, share in PHASES.items()}
        rows = {f"training, {phase}: episodes/s": value for phase, value in speed.items()}
        rows["second order : prototypes, time"] = speed["prototypes"] / speed["second order"]
        rows["meta-test: episodes/s"] = 1 / evaluation(trainer, config, 32)
        rows["drawing 600 episodes: s"] = drawing(trainer)
        rows["share of a step outside tensor work"] = outside_tensor_work(trainer, options.steps)
        rows["peak memory: MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kinds = ", ".join(kind.title for kind in config.episodes)
    print(f"{pack.name}, {size} episodes per outer step ({kinds}), 1 CPU thread")
    for name, value in rows.items():
        print(f"{name:42s} {value:10.3f}")


if __name__ == "__main__":
    main()
