"""Figures of learning: training history, inner-loop curves and task weights enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import (
    BLUE,
    COLOURS,
    INK,
    MARKERS,
    SIGNED,
    SOFT,
    cells,
    counted,
    drawn,
    finite,
    name_x,
    name_y,
    scale,
    sheet,
    short,
    shorts,
    some,
    width_of,
)  # fmt: skip


@drawn
def history(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss per step; meta-validation NLL and accuracy per setting, with the chosen step marked.

    Args:
        lines: of history.jsonl: {"kind": "train", "step", "loss", "accuracy", "phase", "setting"} and
            {"kind": "validation", "step", "setting", "nll", "accuracy", "best"}, in any order. The chosen step is the
            last one whose `best` is true.

    Raises:
        ResultError: if there are no lines or a line is of another kind.

    Source: ours.
    """
    some("lines of history", lines)
    kinds = {line["kind"] for line in lines}
    if not kinds <= {"train", "validation"}:
        raise ResultError(f"line of kind {sorted(kinds)}", expected="train or validation", where="history")
    train, validation = (
        sorted((line for line in lines if line["kind"] == kind), key=lambda line: line["step"])
        for kind in ("train", "validation")
    )
    n_panels = bool(train) + 2 * bool(validation)
    figure = sheet(8, 1.0 + 1.65 * n_panels)
    axes = list(figure.subplots(n_panels, 1, sharex=True, squeeze=False)[:, 0])
    last = axes[-1]
    if train:
        _training_loss(axes.pop(0), train, list(dict.fromkeys(str(line["setting"]) for line in validation)))
    if validation:
        _validation(axes, validation)
    last.set_xlabel("outer step")
    figure.align_ylabels()
    return figure


def _training_loss(axis: Axes, train: Sequence[Mapping[str, Any]], validated: Sequence[str]) -> None:
    # kinds of episode and phases have losses of their own, so each has a line; colours as in the validation below
    kinds = list(dict.fromkeys([*validated, *(str(line.get("setting") or "") for line in train)]))
    for number, kind in enumerate(kinds):
        color = COLOURS[number % len(COLOURS)]
        own = [line for line in train if str(line.get("setting") or "") == kind]
        for phase in dict.fromkeys(line.get("phase") == "start" for line in own):
            lines = [line for line in own if (line.get("phase") == "start") == phase]
            label = short(kind, 34) if kind not in validated and not phase else None  # the others are named below
            step, loss = (np.array([line[name] for line in lines], np.float64) for name in ("step", "loss"))
            reach = max(len(train) // 40 // len(kinds), 1)
            smooth = [np.median(loss[max(0, i - reach) : i + reach + 1]) for i in range(len(loss))]
            axis.plot(step, loss, color=color, alpha=0.3, linewidth=0.8, marker="o" if len(loss) == 1 else None)
            axis.plot(step, smooth, color=color, label=label)
    axis.set_ylabel("training loss\n(nat)")
    if set(kinds) - {*validated, ""}:
        axis.legend(loc="upper right")
    axis.grid(axis="y")
    phases = [str(line.get("phase") or "") for line in train]
    starts = [i for i in range(len(phases)) if i == 0 or phases[i] != phases[i - 1]]
    for i in starts[1:]:
        axis.axvline(train[i]["step"], color=SOFT, linewidth=0.8, linestyle=":")
    if len(starts) > 1:
        path = ", then ".join(f"{phases[i]} from step {train[i]['step']}" for i in starts)
        axis.set_title(short(path, 95), fontsize=9.5, color=SOFT)


def _validation(axes: Sequence[Axes], validation: Sequence[Mapping[str, Any]]) -> None:
    settings = list(dict.fromkeys(str(line["setting"]) for line in validation))
    names = shorts(settings, 34)
    chosen = [line["step"] for line in validation if line.get("best")]
    metrics = {"nll": "validation NLL\n(nat)", "accuracy": "validation\naccuracy"}
    for axis, (metric, name) in zip(axes, metrics.items(), strict=True):
        for number, setting in enumerate(settings):
            mine = [line for line in validation if str(line["setting"]) == setting]
            axis.plot([line["step"] for line in mine], [line[metric] for line in mine], label=names[number],
                      color=COLOURS[number % len(COLOURS)], marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
                      markersize=3.5)  # fmt: skip
        axis.set_ylabel(name)
        axis.grid(axis="y")
        if chosen:
            axis.axvline(chosen[-1], color=INK, linewidth=1, linestyle="--", label=f"chosen: step {chosen[-1]}")
    labels = axes[0].get_legend_handles_labels()[1]
    columns = max(1, min(len(labels), int(6.6 / (max(map(width_of, labels)) + 0.5))))
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


@drawn
def adaptation(accuracy: Any, nll: Any) -> Figure:
    """Query accuracy and NLL over the steps of the inner loop: mean with its 95 % band, and a few episodes, thin.

    Args:
        accuracy: (step, episode) share of query clips; step 0 is before adaptation.
        nll: (step, episode) nat.

    Raises:
        ResultError: if the two differ in shape, are empty or hold a value that is no finite number.

    Source: ours.
    """
    accuracy = finite("accuracy", accuracy, None, None)
    nll = finite("nll", nll, *accuracy.shape)
    some("episodes", accuracy.T)
    figure = sheet(8, 3.1)
    for axis, values, name in zip(figure.subplots(1, 2), (accuracy, nll), ("accuracy", "NLL (nat)"), strict=True):
        steps, n_episodes = np.arange(len(values)), values.shape[1]
        axis.plot(steps, values[:, :12], color=SOFT, alpha=0.3, linewidth=0.8)
        if n_episodes > 1:
            half = 1.96 * values.std(1, ddof=1) / np.sqrt(n_episodes)
            mean = values.mean(1)
            axis.fill_between(steps, mean - half, mean + half, color=BLUE, alpha=0.25, linewidth=0)
        axis.plot(steps, values.mean(1), color=BLUE, marker="o", markersize=4)
        axis.set_xticks(steps[:: max(1, len(steps) // 8)])
        axis.set_xlabel("inner step")
        axis.set_ylabel(f"query {name}")
        axis.grid(axis="y")
    n_thin = min(n_episodes, 12)
    n_drawn = counted(n_episodes, "episode")
    figure.suptitle(f"mean of {n_drawn} with 95 % band; thin: {n_thin} of them" if n_episodes > 1 else n_drawn,
                    x=0.01, ha="left", fontsize=9.5)  # fmt: skip
    return figure


@drawn
def task_weights(gamma: Any, beta: Any) -> Figure:
    """What the meta-RNN does to the joint block in several episodes: FiLM scale and shift per channel, less their mean.

    What all episodes have in common is a constant of the encoder and would hide what tells them apart.

    Args:
        gamma: (episode, channel) change of scale; 0 leaves a channel as it is.
        beta: (episode, channel) shift.

    Raises:
        ResultError: if the two differ in shape, are empty or hold a value that is no finite number.

    Source: ours.
    """
    gamma = finite("gamma", gamma, None, None)
    beta = finite("beta", beta, *gamma.shape)
    some("episodes", gamma)
    some("channels", gamma.T)
    height = float(np.clip(0.2 * len(gamma), 0.6, 4))
    figure = sheet(8, height + 1.5)
    for axis, given, name in zip(figure.subplots(1, 2), (gamma, beta), ("scale γ", "shift β"), strict=True):
        values = given - given.mean(0)
        most = float(np.abs(values).max()) or 1.0
        image = axis.imshow(values, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto")
        cells(axis, *values.shape)
        name_y(axis, [str(i) for i in range(len(values))], height)
        name_x(axis, [str(i) for i in range(values.shape[1])], 2.8, may_turn=False)
        axis.set_xlabel("channel")
        axis.set_ylabel("episode" if name.startswith("scale") else "")
        axis.set_title(f"{name} minus its mean")
        scale(axis, image, height, "")
    return figure
