"""Curves over epochs and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmkit._arrays import as_array
from fmkit._checks import check_int, check_one_of, did_you_mean
from fmkit.visualization._history import Curve, read_history
from fmkit.visualization._style import (
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    VERMILLION,
    axes_or_new,
    epoch_axis,
    pick,
    whole_ticks,
    words,
    write_labels,
    write_legend,
)
from fmkit.visualization._values import as_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning_curves(
    history: Any,
    metrics: str | Sequence[str] = "loss",
    *,
    best: str | None = None,
    threshold: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw metrics by epoch, for training and validation.

    Training is a solid line with filled markers; validation (the metric's name with
    `val_` before it, if the history has it) is a dashed line with open markers.
    Epochs count from 1.

    Args:
        history: What `fit` returned; or a `callbacks.LivePlot`; or a mapping of names
            to one value for each epoch, `None` where there is none; or the path of a
            file written by `keras.callbacks.CSVLogger`. If such a file has an epoch
            twice, the later line counts.
        metrics: Name of the metric, or several names to draw together.
        best: `"min"` or `"max"`: ring the best value of the validation curve (of
            the training curve if there is none) and label its epoch.
        threshold: Draw a horizontal line at this value of the metric.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes with the curves.

    Raises:
        TypeError: If `history` is none of these.
        ValueError: If a metric is not in the history, or its values don't match
            the epochs one by one.

    Examples:
        >>> ax = learning_curves({"loss": [0.9, 0.5], "val_loss": [1.0, 0.7]})
        >>> [line.get_label() for line in ax.lines]
        ['training', 'validation']
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    curves = read_history(history, names)
    ax = axes_or_new(ax, (5.0 if len(names) == 1 else 7.0, 3.6))
    for index, name in enumerate(names):
        if name not in curves:
            raise ValueError(
                f"`metrics` must be in the history, got {name!r}; it has "
                f"{sorted(curves)}.{did_you_mean(name, curves)}"
            )
        _draw_training_and_validation(
            ax, curves, name, index, several=len(names) > 1, best=best
        )
    if threshold is not None:
        ax.axhline(threshold, color=GREY, linestyle=":", label=f"goal {threshold:g}")
    write_labels(ax, "epoch", ", ".join(words(name) for name in names), title)
    epoch_axis(ax)
    write_legend(ax, beside=len(names) > 1)
    return ax


def learning_rate_curve(
    schedule: Any,
    steps: int | None = None,
    *,
    steps_per_epoch: int | None = None,
    points: int = 500,
    label: str | None = None,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a learning rate over the course of training.

    To compare schedules, draw one after the other into the same `ax`, each with
    its `label`.

    Args:
        schedule: A `LearningRateSchedule` or another function of the step's number,
            which begins at 0; or the rates themselves, one for each step.
        steps: Number of optimizer steps to draw; required for a function.
        steps_per_epoch: Count in epochs of this many steps along the axis.
        points: Largest number of steps, evenly spread, at which a function is called.
        label: Name of the curve in the legend.
        log: Logarithmic scale of the rate.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes with one more curve.

    Raises:
        ValueError: If `steps` is missing for a function, or there are no rates.

    Examples:
        >>> ax = learning_rate_curve(lambda step: 0.1 * 0.5 ** (step // 2), steps=4)
        >>> ax.lines[0].get_ydata().tolist()
        [0.1, 0.1, 0.05, 0.05]
    """
    if callable(schedule):
        if steps is None:
            raise ValueError(
                "`steps` is required when `schedule` is a function: write "
                "steps=epochs * steps_per_epoch."
            )
        steps = check_int("steps", steps)
        points = min(steps, check_int("points", points))
        at = np.unique(np.linspace(0, steps - 1, points).round().astype(int))
        rates = np.array([float(as_array(schedule(int(step)))) for step in at])
    else:
        rates = as_numbers("schedule", schedule)
        at = np.arange(len(rates))
    ax = axes_or_new(ax, (5.0, 3.2))
    scale = check_int("steps_per_epoch", steps_per_epoch) if steps_per_epoch else 1
    index = len(ax.lines)
    line = ax.plot(at / scale, rates, linewidth=1.8)[0]
    if len(at) == at[-1] + 1:
        # A rate holds until the next step: corners, not slopes.
        line.set_drawstyle("steps-post")
    line.set(color=pick(COLOURS, index), linestyle=pick(DASHES, index))
    if log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    whole_ticks(ax)
    write_labels(ax, "epoch" if steps_per_epoch else "step", "learning rate", title)
    line.set_label(label or f"_rate_{index}")
    write_legend(ax)
    return ax


def raw_against_averaged(
    raw: Any,
    averaged: Any,
    *,
    steps: Any = None,
    metric: str = "accuracy",
    xlabel: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric under the raw weights and under their averages.

    Args:
        raw: Values under the raw weights, shape `(n,)`.
        averaged: Values under the averaged weights, shape `(n,)`.
        steps: Optimizer steps (or epochs) of the values, shape `(n,)`; by default
            1, 2, and so on.
        metric: Name of the metric.
        xlabel: What `steps` counts; by default `"step"` with `steps` and
            `"evaluation"` without.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes with both curves: raw weights thin and dotted, averages thick.

    Raises:
        ValueError: If the three differ in length.

    Examples:
        >>> ax = raw_against_averaged([0.7, 0.8], [0.75, 0.85], steps=[100, 200])
        >>> [line.get_label() for line in ax.lines]
        ['raw weights', 'averaged weights']
    """
    raw, averaged = as_numbers("raw", raw), as_numbers("averaged", averaged)
    at = np.arange(1, len(raw) + 1) if steps is None else as_numbers("steps", steps)
    if not len(raw) == len(averaged) == len(at):
        raise ValueError(
            "`raw`, `averaged` and `steps` must have one entry for each evaluation, "
            f"got {len(raw)}, {len(averaged)} and {len(at)}."
        )
    ax = axes_or_new(ax, (5.0, 3.6))
    style: dict[str, Any] = {"markevery": max(1, len(at) // 15), "markersize": 5}
    thin = {"color": VERMILLION, "linestyle": ":", "linewidth": 1.2, "marker": "x"}
    bold = {"color": BLUE, "linestyle": "-", "linewidth": 2.4, "marker": "o"}
    ax.plot(at, raw, label="raw weights", **style | thin)
    ax.plot(at, averaged, label="averaged weights", **style | bold)
    counted = "evaluation" if steps is None else "step"
    write_labels(ax, xlabel or counted, metric, title)
    write_legend(ax)
    return ax


def _draw_training_and_validation(
    ax: Axes,
    curves: Mapping[str, Curve],
    name: str,
    index: int,
    *,
    several: bool,
    best: str | None,
) -> None:
    """Draw a metric of training and, where there is one, of validation."""
    pair = [(name, "training"), (f"val_{name}", "validation")]
    if name.startswith("val_"):
        pair = [(name, "validation")]
    present = [(key, role) for key, role in pair if key in curves]
    for key, role in present:
        epochs, values = curves[key]
        held_out = role == "validation"
        colour = COLOURS[(2 * index + held_out) % len(COLOURS)]
        ax.plot(
            epochs,
            values,
            label=f"{words(name)}, {role}" if several else role,
            color=colour,
            linestyle="--" if held_out else "-",
            linewidth=1.8,
            marker=pick(MARKERS, 2 * index + held_out),
            markersize=5,
            markerfacecolor="white" if held_out else colour,
            markevery=max(1, len(epochs) // 15),
        )
    if best is not None:
        check_one_of("best", best, ("min", "max"))
        _mark_best(ax, *curves[present[-1][0]], best)


def _mark_best(ax: Axes, epochs: np.ndarray, values: np.ndarray, best: str) -> None:
    """Mark the best value; NaN is never the best."""
    if np.isnan(values).all():
        return
    at = int(np.nanargmin(values) if best == "min" else np.nanargmax(values))
    point = (epochs[at], values[at])
    ax.plot(*point, "o", ms=12, mfc="none", mec="black", mew=1.4, label="_best")
    ax.annotate(
        f"{values[at]:.4g} at epoch {epochs[at]}",
        point,
        xytext=(0, 12 if best == "min" else -12),
        textcoords="offset points",
        ha="center",
        va="bottom" if best == "min" else "top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
    )
