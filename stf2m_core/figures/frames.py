"""Figures of frames: clips with and without their time stamps, and signals with gaps, enter; a Figure leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import BLUE, COLOURS, FAINT, INK, RED, SOFT, drawn, finite, sheet, shorts, some


@drawn
def same_frames(values: Any, times: Any, names: Sequence[str]) -> Figure:
    """Some clips drawn twice: by the number of the frame, as without time stamps, and by the second.

    Args:
        values: (clip, time).
        times: (clip, time) seconds.
        names: of the clips.

    Raises:
        ResultError: if sizes differ, there are no clips, or a value is no finite number.

    Source: ours.
    """
    values = finite("values", values, len(names), None)
    times = finite("times", times, *values.shape)
    some("clips", values)
    figure = sheet(8, 3.9)
    above, below = figure.subplots(2, 1, sharey=True)
    for number, (clip, seconds, name) in enumerate(zip(values, times, shorts(names, 44), strict=True)):
        colour, first = COLOURS[(0, 3, 2, 4)[number % 4]], number == 0
        look = {"marker": "o" if first else "x", "markersize": 8 if first else 4, "alpha": 0.45 if first else 1}
        above.plot(clip, color=colour, linewidth=5 if first else 1.2, label=name, **look)
        below.plot(seconds, clip, color=colour, linewidth=1.4, **look)
    above.set_xlabel("number of the frame")
    below.set_xlabel("seconds")
    for axis in (above, below):
        axis.set_ylabel("signal")
        axis.grid(axis="y")
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


@drawn
def gaps(values: Any, observed: Any, whole: Any, answers: Any) -> Figure:
    """A signal with frames missing, and what a mean over time makes of it.

    Args:
        values: (time,) the signal, also where it was not observed.
        observed: (time,) bool.
        whole: (time,) the mean if nothing were missing.
        answers: (2, time) the mean with a mask, and with zeros in place of what is missing.

    Raises:
        ResultError: if sizes differ or a value is no finite number.

    Source: ours.
    """
    values = finite("values", values, None)
    observed = np.array(observed, bool)
    if observed.shape != values.shape:
        raise ResultError(f"observed has shape {observed.shape}", expected=str(values.shape), where="figure")
    whole, answers = finite("whole", whole, len(values)), finite("answers", answers, 2, len(values))
    figure = sheet(8, 3.4)
    axis = figure.subplots()
    frames = np.arange(len(values))
    for frame in frames[~observed]:
        axis.axvspan(frame - 0.5, frame + 0.5, color=FAINT, alpha=0.6, linewidth=0)
    axis.plot(frames, whole, color=SOFT, linewidth=5, alpha=0.45, label="nothing missing")
    axis.plot(frames[observed], values[observed], "o", color=INK, markersize=3, label="observed frames")
    axis.plot(frames, np.where(observed, answers[0], np.nan), color=BLUE, marker=".",
              label="mean of five, with the mask")  # fmt: skip
    axis.plot(frames, answers[1], color=RED, linestyle="--", label="mean of five, zeros in the gaps")
    axis.set_xlabel("number of the frame; grey: not observed")
    axis.set_ylabel("signal")
    axis.set_xlim(-0.5, len(values) - 0.5)
    axis.set_ylim(min(0, values.min()), None)
    figure.legend(loc="outside upper left", ncols=2)
    return figure
