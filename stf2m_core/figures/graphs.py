"""Figures of graphs one can see: places of nodes and what lies on nodes and edges enter, a Figure leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stf2m_core.errors import ResultError
from stf2m_core.figures.look import AMOUNT, BLUE, FAINT, INK, RED, SOFT, drawn, finite, sheet, short, some


@drawn
def spread(places: Mapping[str, tuple[float, float]], edges: Any, amount: Any, observed: Any) -> Figure:
    """What a value at one node becomes over hops of diffusion; one row per pattern of observed nodes.

    Args:
        places: name -> where the node is drawn.
        edges: (edge, 2) int.
        amount: (row, hop, node) not negative.
        observed: (row, node) bool; a node that is not observed is drawn as a cross.

    Raises:
        ResultError: if sizes differ or a value is no finite number.

    Source: ours.
    """
    amount = finite("amount", amount, None, None, len(places))
    some("rows", amount)
    observed = np.array(observed, bool)
    if observed.shape != amount[:, 0].shape:
        raise ResultError(f"observed has shape {observed.shape}", expected=str(amount[:, 0].shape), where="figure")
    n_rows, n_hops = amount.shape[:2]
    figure = sheet(2.4 * n_hops + 0.6, 2.6 * n_rows)
    axes = figure.subplots(n_rows, n_hops, sharex=True, sharey=True, squeeze=False)
    image = None
    for row in range(n_rows):
        for hop in range(n_hops):
            title = f"after {hop} hop" + "s" * (hop != 1) if row == 0 else ""
            image = _face(axes[row, hop], places, edges, amount[row, hop], observed[row], title)
    for name, (x, y) in places.items():
        side = -1 if x < 0 else 1
        axes[0, 0].annotate(short(name, 10), (x, y), xytext=(13 * side, 0), textcoords="offset points", va="center",
                            ha="right" if side < 0 else "left", fontsize=9, color=SOFT)  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40, ticks=[0, 0.25, 0.5])
    bar.ax.set_yticklabels(["0", ".25", "≥ .5"])
    bar.outline.set_visible(False)
    bar.set_label("value at the node")
    return figure


def _face(axis: Axes, places: Mapping[str, tuple[float, float]], edges: Any, amount: np.ndarray, observed: np.ndarray,
          title: str) -> Any:  # fmt: skip
    at = np.array(list(places.values()))
    for a, b in np.asarray(edges, int):
        cut = not (observed[a] and observed[b])
        axis.plot(*at[[a, b]].T, color=FAINT if cut else SOFT, linewidth=1, linestyle=":" if cut else "-", zorder=0)
    image = axis.scatter(*at[observed].T, c=amount[observed], cmap=AMOUNT, vmin=0, vmax=0.5, s=440, edgecolor=INK,
                         linewidth=0.9)  # fmt: skip
    axis.scatter(*at[~observed].T, marker="x", color=RED, s=90, linewidth=2)
    for (x, y), value in zip(at[observed], amount[observed], strict=True):
        if value > 0:
            axis.text(x, y, f"{value:.2f}".lstrip("0").replace("1.00", "1"), ha="center", va="center", fontsize=9,
                      color="white" if value > 0.3 else INK)  # fmt: skip
    _bare(axis, at, title, 1.05)
    return image


def _bare(axis: Axes, at: np.ndarray, title: str, room: float = 0.55) -> None:
    axis.set_aspect("equal")
    axis.set_xlim(at[:, 0].min() - room, at[:, 0].max() + room)
    axis.set_ylim(at[:, 1].min() - 0.5, at[:, 1].max() + 0.5)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.axis("off")
    if title:
        axis.set_title(title, loc="center")


@drawn
def weighted_graphs(
    places: Mapping[str, tuple[float, float]], graphs: Sequence[Any], titles: Sequence[str], *,
    even: float | None = None,
) -> Figure:  # fmt: skip
    """Graphs on the same nodes, both directions of an edge written beside it.

    Args:
        places: name -> where the node is drawn.
        graphs: of each, (node, node) weights; row i is what node i takes from each node.
        titles: of each.
        even: a weight whose excess and lack are coloured; None: all edges are alike.

    Raises:
        ResultError: if sizes differ, there is no graph, or a weight is no finite number.

    Source: ours.
    """
    some("graphs", graphs)
    if len(titles) != len(graphs):
        raise ResultError(f"{len(titles)} titles", expected=f"{len(graphs)}, one for each graph", where="figure")
    at = np.array(list(places.values()))
    figure = sheet(3.7 * len(graphs), 3.6)
    for axis, graph, title in zip(figure.subplots(1, len(graphs), squeeze=False)[0], graphs, titles, strict=True):
        graph = finite("graph", graph, len(at), len(at))
        for a in range(len(at)):
            for b in range(len(at)):
                if a != b:
                    _arrow(axis, at[b], at[a], graph[a, b], even)
        axis.scatter(*at.T, s=420, color="white", edgecolor=INK, linewidth=1.1, zorder=3)
        for (x, y), name in zip(at, places, strict=True):
            axis.text(x, y, short(name, 8), ha="center", va="center", zorder=4)
        _bare(axis, at, short(title, 44))
    return figure


def _arrow(axis: Axes, start: np.ndarray, end: np.ndarray, weight: float, even: float | None) -> None:
    """From the node that gives to the node that takes, a little to the right of the straight line."""
    along = (end - start) / np.linalg.norm(end - start)
    aside = 0.11 * np.array([along[1], -along[0]])
    colour = SOFT if even is None or abs(weight - even) < 1e-3 else BLUE if weight > even else RED
    axis.annotate("", end - 0.3 * along + aside, start + 0.3 * along + aside,
                  arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 6 * weight, "shrinkA": 0, "shrinkB": 0,
                              "mutation_scale": 9})  # fmt: skip
    reach = 1.9 + 0.9 * abs(along[1])  # beside an upright arrow a number needs its width, not its height
    spot = start + 0.36 * (end - start) + reach * aside
    axis.text(*spot, f"{weight:.2f}".lstrip("0"), ha="center", va="center", fontsize=9, color=colour, zorder=2,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
