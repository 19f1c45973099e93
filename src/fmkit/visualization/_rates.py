"""The loss over the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fmkit._checks import check_number
from fmkit.visualization._style import (
    BLUE,
    GREY,
    VERMILLION,
    axes_or_new,
    write_labels,
    write_legend,
)
from fmkit.visualization._values import as_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_by_learning_rate(
    rates: Any,
    losses: Any,
    *,
    smoothed: Any = None,
    suggestion: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what `performance.learning_rate_range` found.

    Args:
        rates: Learning rates, above 0, shape `(n,)`.
        losses: Loss at each of them, shape `(n,)`.
        smoothed: The same losses smoothed, shape `(n,)`.
        suggestion: A learning rate to mark.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes: losses as grey points, the smoothed ones as a line, the suggestion as
        a dashed one. The axis of rates is logarithmic. That of the loss ends a little
        above the smoothed losses. A loss that is not finite is a gap.

    Raises:
        ValueError: If the numbers don't match one by one, or a rate is not above 0.

    Examples:
        >>> ax = loss_by_learning_rate([0.01, 0.1, 1.0], [2.0, 1.0, 3.0])
        >>> ax.get_xscale()
        'log'
    """
    rates, losses = as_numbers("rates", rates), as_numbers("losses", losses)
    line = losses if smoothed is None else as_numbers("smoothed", smoothed)
    if not len(rates) == len(losses) == len(line):
        raise ValueError(
            "`rates`, `losses` and `smoothed` must have one entry per step, got "
            f"{len(rates)}, {len(losses)} and {len(line)}."
        )
    check_number("rates", float(np.min(rates)), above=0)
    ax = axes_or_new(ax, (5.0, 3.6))
    ax.set_xscale("log")
    if smoothed is not None:
        ax.plot(rates, losses, ".", color=GREY, markersize=4, label="loss of a batch")
    name = "_loss" if smoothed is None else "smoothed"
    ax.plot(rates, line, color=BLUE, linewidth=2.0, label=name)
    if suggestion is not None:
        ax.axvline(
            suggestion, color=VERMILLION, linestyle="--", label=f"{suggestion:.2g}"
        )
    finite = line[np.isfinite(line)]
    if finite.size:
        room = 0.1 * np.ptp(finite) or 0.1
        ax.set_ylim(finite.min() - room, finite.max() + room)
    write_labels(ax, "learning rate", "loss", title)
    write_legend(ax)
    return ax
