"""Colours, axes and labels that the plots share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmkit._requirements import require
from fmkit.visualization._fonts import font_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito, "Color universal design", 2008; in order of decreasing contrast.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
GREY = "#6B6B6B"


def axes_or_new(
    ax: Axes | None, size: tuple[float, float], *, fixed: bool = False
) -> Axes:
    """Return `ax`, or the axes of a new figure of `size` inches.

    `fixed` is for plots whose two axes share one scale: matplotlib's usual layout
    lets what is beside such axes run out of the figure.
    """
    if ax is not None:
        return ax
    plt = require("matplotlib.pyplot", "fmkit.visualization")
    return plt.subplots(figsize=size, layout="compressed" if fixed else "constrained")[
        1
    ]


def write_labels(ax: Axes, x: str, y: str, title: str | None) -> None:
    ax.set_xlabel(x, **font_for([x]))
    ax.set_ylabel(y, **font_for([y]))
    if title:
        ax.set_title(title, **font_for([title]))
    if not ax.images:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E0E0E0", linewidth=0.6)
        ax.set_axisbelow(True)


def write_legend(ax: Axes, *, beside: bool = False, title: str | None = None) -> None:
    """Write a legend if there is something to name, in the axes or beside them."""
    labels = ax.get_legend_handles_labels()[1]
    if labels:
        # Handles long enough to show a dash pattern.
        place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if beside else {}
        legend = ax.legend(frameon=False, handlelength=3.0, title=title, **place)
        for text in legend.get_texts():
            text.set(**font_for(labels))


def whole_ticks(ax: Axes) -> None:
    """Mark whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_locator(locator)


def epoch_axis(ax: Axes) -> None:
    """Mark whole epochs only, and begin shortly before the first."""
    whole_ticks(ax)
    first, last = ax.dataLim.intervalx
    if first > last:  # no point that is a number
        return
    margin = min(0.03 * (last - first) + 0.05, 0.9)
    ax.set_xlim(first - margin, last + margin)


def words(name: str) -> str:
    return name.replace("_", " ")


def pick(options: Sequence[Any], index: int) -> Any:
    return options[index % len(options)]
