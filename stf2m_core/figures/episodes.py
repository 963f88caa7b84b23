"""The figure of an episode: a pack and an episode enter, a Figure leaves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from stf2m_core.data.pack import Pack
from stf2m_core.errors import ResultError
from stf2m_core.figures.look import COLOURS, SOFT, counted, drawn, fit, sheet, short, shorts, width_of
from stf2m_core.shapes import EpisodeBatch

CELL, SEAM, GAP = 0.96, 0.06, 0.3  # inches: a clip's cell with its seam, room between support and query
MOST_CELLS = 7


@drawn
def episode(pack: Pack, batch: EpisodeBatch, index: int = 0) -> Figure:
    """One episode as a grid: a row per class, its support clips left, its query clips right.

    The colour, and the name in each cell, is the unit that support and query must not share: the subject, or, where
    support and query come from one subject (Regime P), the group.

    Args:
        pack: the data the episode was drawn from.
        batch: episodes.
        index: of the episode in the batch.

    Raises:
        ResultError: if the batch has no such episode.

    Source: ours.
    """
    if not 0 <= index < len(batch):
        raise ResultError(f"episode {index}", expected=f"0 to {len(batch) - 1}", where="figure")
    one = batch[index : index + 1]
    classes, support, query = (getattr(one, name)[0].numpy() for name in ("classes", "support", "query"))
    queries = [query[one.query_label[0].numpy() == way] for way in range(len(classes))]
    unit, title = _sides(pack, support.reshape(-1), query)
    n_support, n_query = _columns(support.shape[1], max(map(len, queries)))
    names = shorts([pack.labels[c] for c in classes], 24)
    margin = 0.25 + max(map(width_of, names))
    width = max(margin + (n_support + n_query) * CELL + GAP, 0.3 + width_of(title, 9.5))
    figure = sheet(width, 1.25 + 0.5 * len(classes))
    axis = figure.subplots()
    known = {name: i for i, name in enumerate(dict.fromkeys(unit[np.concatenate([support.reshape(-1), query])]))}
    clips = _tails(pack, np.concatenate([support.reshape(-1), query]))
    for way in range(len(classes)):
        for rows, start, most in ((support[way], 0.0, n_support), (queries[way], n_support * CELL + GAP, n_query)):
            _cells(axis, rows, start, way, most, unit, known, clips)
    axis.set_xlim(-0.03, width - margin)
    axis.set_ylim(len(classes) - 0.5, -0.85)
    axis.spines[:].set_visible(False)
    axis.set_yticks(np.arange(len(classes)), names)
    axis.set_xticks([])
    axis.tick_params(length=0)
    for at, text in ((0, "support"), (n_support * CELL + GAP, "query")):
        axis.text(at, -0.62, text, fontweight="bold", va="center")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    return figure


def _columns(n_shot: int, n_query: int) -> tuple[int, int]:
    """Cells shown of support and of query; a cell that says how many are left out counts as one."""
    n_support = min(n_shot, max(MOST_CELLS - n_query, MOST_CELLS // 2))
    return n_support, max(min(n_query, MOST_CELLS - n_support), 1)


def _sides(pack: Pack, support: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, str]:
    """The unit of every clip of the pack that must not be shared, and the sentence that says whether."""
    column = {name: pack.clips[name].to_numpy(str) for name in ("subject", "group")}
    people = set(column["subject"][support]) | set(column["subject"][query])
    kind = "group" if len(people) == 1 else "subject"
    unit = column[kind]
    sides = set(unit[support]), set(unit[query])
    n_support, n_query, n_shared = len(sides[0]), len(sides[1]), len(sides[0] & sides[1])
    who = f"subject {short(people.pop(), 16)}: " if kind == "group" else ""
    words = [counted(n, kind) for n in (n_support, n_query)]
    shared = "none shared" if n_shared == 0 else f"{n_shared} SHARED"
    legend = f"colour and upper line: {kind}; lower line: clip"
    return unit, f"{who}support of {words[0]}, query of {words[1]}, {shared}\n{legend}"


def _tails(pack: Pack, rows: np.ndarray) -> dict[int, str]:
    """Clip ids without the subject's name, where all begin or end with it, and without their common first parts."""
    marks = "-_/. "
    names = pack.clips[["clip_id", "subject"]].iloc[rows].astype(str)
    ids, subjects = (dict(zip(rows.tolist(), names[column], strict=True)) for column in names)
    if all(text.startswith(subjects[row]) for row, text in ids.items()):
        ids = {row: text.removeprefix(subjects[row]).lstrip(marks) or text for row, text in ids.items()}
    if all(text.endswith(subjects[row]) for row, text in ids.items()):
        ids = {row: text.removesuffix(subjects[row]).rstrip(marks) or text for row, text in ids.items()}
    first, last = min(ids.values()), max(ids.values())
    n_same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    while n_same > 0 and first[n_same - 1] not in marks:
        n_same -= 1
    return {row: text[n_same:] or text for row, text in ids.items()}


def _cells(
    axis: Axes, rows: np.ndarray, start: float, way: int, most: int, unit: np.ndarray, known: dict[str, int],
    clips: dict[int, str],
) -> None:  # fmt: skip
    shown = rows if len(rows) <= most else rows[: most - 1]
    for number, row in enumerate(shown.tolist()):
        colour = COLOURS[known[unit[row]] % len(COLOURS)]
        at = start + number * CELL
        box = FancyBboxPatch((at, way - 0.42), CELL - SEAM, 0.84, boxstyle="round,pad=0,rounding_size=0.06",
                             facecolor=f"{colour}33", edgecolor=colour, linewidth=1)  # fmt: skip
        axis.add_patch(box)
        middle, room = at + (CELL - SEAM) / 2, CELL - SEAM - 0.06
        for shift, name, weight in ((-0.19, unit[row], "bold"), (0.2, clips[row], "normal")):
            axis.text(middle, way + shift, fit(name, room, weight), ha="center", va="center", fontsize=9, weight=weight)
    if len(rows) > most:
        axis.text(start + (most - 1) * CELL + 0.1, way, f"+ {len(rows) - most + 1}", va="center", color=SOFT)
    if len(rows) == 0:
        axis.text(start + 0.1, way, "none", va="center", color=SOFT)
