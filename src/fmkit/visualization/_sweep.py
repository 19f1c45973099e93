"""Results for each value of a setting."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmkit._checks import did_you_mean
from fmkit.visualization._fonts import font_for
from fmkit.visualization._style import (
    COLOURS,
    DASHES,
    MARKERS,
    axes_or_new,
    pick,
    words,
    write_labels,
    write_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep(
    results: Iterable[Mapping[str, Any]],
    x: str,
    y: str,
    *,
    group: str | None = None,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the results for each value of a setting, in one curve per group.

    Rows with the same `x` and `group` (such as several seeds) are drawn as their
    mean, with a bar from the lowest to the highest.

    Args:
        results: One mapping for each run, with its settings and results.
        x: Name of the setting along the axis. Numbers are placed as numbers and
            joined by lines; anything else as named places in order of appearance.
        y: Name of the result; rows where it is `None` are left out.
        group: Name of a second setting, shown by colour, marker and line.
        log: Logarithmic scale of the setting `x`.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes with one curve for each group.

    Raises:
        ValueError: If there are no results, a row lacks a name, or `log` is asked for
            with an `x` that is not above 0.

    Examples:
        >>> rows = [{"units": 16, "accuracy": 0.8}, {"units": 64, "accuracy": 0.9}]
        >>> sweep(rows, "units", "accuracy", log=True).get_xlabel()
        'units'
    """
    rows = _rows(results, y, [x, *([group] if group else [])])
    numeric = all(_is_number(row[x]) for row in rows)
    places = sorted({row[x] for row in rows}) if numeric else _unique(rows, x)
    if numeric and log and places[0] <= 0:
        raise ValueError(
            f"`log=True` needs values of {x!r} above 0, got {places[0]!r}. Leave out "
            "`log`, or those rows."
        )
    ax = axes_or_new(ax, (6.2 if group else 5.0, 3.6))
    groups = _unique(rows, group) if group else [None]
    for index, kind in enumerate(groups):
        chosen = [row for row in rows if group is None or row[group] == kind]
        label = "" if group is None else str(kind)
        shift = 0.0 if numeric else 0.12 * (index - (len(groups) - 1) / 2)
        _draw_group(ax, chosen, (x, y), places, label, index, numeric, shift)
    if numeric and log:
        ax.set_xscale("log")
        ax.set_xticks(places, [f"{place:g}" for place in places])
        ax.minorticks_off()
    elif not numeric:
        texts = [str(place) for place in places]
        ax.set_xticks(range(len(places)), texts, **font_for(texts))
        ax.set_xlim(-0.5, len(places) - 0.5)
    write_labels(ax, words(x), words(y), title)
    write_legend(ax, beside=True, title=words(group) if group else None)
    if not numeric:
        _turn_if_crowded(ax)
    return ax


def _turn_if_crowded(ax: Axes) -> None:
    """Slant the names of places where they would run into each other."""
    # Of axes in a subfigure, too. `get_figure(root=True)` came with Matplotlib 3.10.
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()
    names = ax.get_xticklabels()
    boxes = [name.get_window_extent() for name in names]
    if any(left.x1 > right.x0 for left, right in itertools.pairwise(boxes)):
        for name in names:
            name.set(rotation=30, ha="right", rotation_mode="anchor")


def _rows(
    results: Iterable[Mapping[str, Any]], y: str, settings: list[str]
) -> list[dict[str, Any]]:
    """Return the rows that have a result, with settings that can be looked up."""
    rows = list(results)
    if not rows:
        raise ValueError("`results` is empty: pass one mapping for each run.")
    for number, row in enumerate(rows):
        for key in (y, *settings):
            if key not in row:
                raise ValueError(
                    f"Row {number} of `results` has no {key!r}, it has "
                    f"{list(row)}.{did_you_mean(key, row)}"
                )
    if all(row[y] is None for row in rows):
        raise ValueError(f"No row of `results` has a value of {y!r}: all are None.")
    return [
        {**row, **{key: _place(row[key]) for key in settings}}
        for row in rows
        if row[y] is not None
    ]


def _place(value: Any) -> Any:
    """Return a setting, or as its text if it is a list, such as one of widths."""
    try:
        hash(value)
    except TypeError:
        return str(value)
    return value


def _is_number(value: Any) -> bool:
    # True and False are names of settings, not places on a scale.
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _unique(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _draw_group(
    ax: Axes,
    rows: Sequence[Mapping[str, Any]],
    keys: tuple[str, str],
    places: Sequence[Any],
    label: str,
    index: int,
    numeric: bool,
    shift: float,
) -> None:
    """Draw the mean of each place, and a bar from the lowest to the highest."""
    x, y = keys
    present = [place for place in places if any(row[x] == place for row in rows)]
    runs = [[float(row[y]) for row in rows if row[x] == place] for place in present]
    means = np.array([np.mean(values) for values in runs])
    bars = np.array(
        [means - [min(values) for values in runs], [max(v) for v in runs] - means]
    )
    at = present if numeric else [places.index(place) + shift for place in present]
    line = pick(DASHES, index) if numeric else "none"
    ax.errorbar(
        at,
        means,
        yerr=bars.clip(min=0) if bars.any() else None,
        label=label or "_results",
        color=pick(COLOURS, index),
        marker=pick(MARKERS, index),
        linestyle=line,
        linewidth=1.8,
        markersize=6,
        capsize=3,
    )
