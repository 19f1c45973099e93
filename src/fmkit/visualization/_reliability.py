"""How far confidence is from accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fmkit._arrays import as_array
from fmkit._checks import check_int, check_one_of
from fmkit._math import numpy_ops, softmax
from fmkit.visualization._style import (
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    axes_or_new,
    pick,
    write_labels,
    write_legend,
)
from fmkit.visualization._values import as_class_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]


def reliability_diagram(
    labels: Any,
    predictions: Any,
    *,
    form: str = "logits",
    activation: str = "softmax",
    bins: int = 15,
    label: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often predictions of a confidence are right.

    Below the dotted line a model is too confident, above it too little. The area of the
    disc behind a mark is the share of the predictions in its bin. The legend has the
    expected calibration error, that of `fmkit.metrics.expected_calibration_error`, or
    the mean over the labels of `binary_expected_calibration_error`.

    To compare models, or a model before and after its calibration, draw one after the
    other into the same `ax`, each with its `label`.

    Args:
        labels: True class numbers, shape `(n,)`, or one-hot rows; with
            `activation="sigmoid"` 0 or 1 for each label, in the shape of `predictions`.
        predictions: Logits or probabilities, shape `(n, classes)`; with
            `activation="sigmoid"` `(n, labels)`, or `(n,)` for one label. Several
            labels are drawn together.
        form: What `predictions` holds: `"logits"` or `"probabilities"`.
        activation: `"softmax"` for one class out of several; `"sigmoid"` for one yes or
            no, or several labels at once.
        bins: Number of bins of equal width. Empty ones are left out.
        label: Name of the curve in the legend.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes with one more curve.

    Raises:
        ValueError: If `form` or `activation` is unknown, shapes do not fit, or a
            prediction is not finite.

    Examples:
        >>> p = [[0.9, 0.1], [0.8, 0.2]]
        >>> ax = reliability_diagram([0, 1], p, form="probabilities", bins=1)
        >>> ax.lines[-1].get_label()
        'ECE 0.350'
    """
    check_one_of("form", form, ("logits", "probabilities"))
    check_one_of("activation", activation, ("softmax", "sigmoid"))
    check_int("bins", bins)
    read = _classes if activation == "softmax" else _labels
    with np.errstate(invalid="ignore"):  # what comes of it is refused
        p, hit = read(labels, np.asarray(as_array(predictions), "float64"), form)
    if not np.isfinite(p).all():
        wrong = np.flatnonzero(~np.isfinite(p).all(axis=1))
        raise ValueError(
            f"`predictions` must be finite; {len(wrong)} of {len(p)} rows are not, the "
            f"first is row {wrong[0]}. Leave them out, as in "
            "keep = np.isfinite(predictions).all(axis=-1)."
        )
    sums = _bin_sums(p, hit, bins)
    error = np.abs(sums[1] - sums[2]).sum() / p.size
    count, of_p, hits = sums.sum(axis=1)[:, sums[0].any(axis=0)]
    confidence, accuracy = of_p / count, hits / count
    ax = axes_or_new(ax, (4.8, 4.6), fixed=True)
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    index = len(ax.lines) - 1
    colour = pick(COLOURS, index)
    size = 2000.0 * count / count.sum()
    ax.scatter(confidence, accuracy, s=size, color=colour, alpha=0.2, linewidths=0)
    ax.plot(
        confidence,
        accuracy,
        label=f"{label}, ECE {error:.3f}" if label else f"ECE {error:.3f}",
        color=colour,
        linestyle=pick(DASHES, index),
        linewidth=1.8,
        marker=pick(MARKERS, index),
        markersize=5,
    )
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    of_classes = activation == "softmax"
    x, y = ("confidence", "accuracy") if of_classes else ("probability", "share of yes")
    write_labels(ax, f"{x} (discs: share of the predictions)", y, title)
    write_legend(ax)
    return ax


def _classes(labels: Any, scores: Array, form: str) -> tuple[Array, Array]:
    """Return the confidence, and whether the prediction was right, shape (n, 1)."""
    true = as_class_numbers("labels", labels)
    fits = scores.ndim == 2 and scores.shape[1] > 1 and len(true) == len(scores) > 0
    if not fits:
        raise ValueError(
            "`predictions` must have one row of classes for each label, got shape "
            f"{scores.shape} for {len(true)} labels. For one yes or no, or several "
            'labels at once, pass activation="sigmoid".'
        )
    if true.max() >= scores.shape[1]:
        raise ValueError(
            f"`labels` go up to {true.max()}, and `predictions` have "
            f"{scores.shape[1]} columns."
        )
    p = softmax(scores, 1, numpy_ops)[0] if form == "logits" else scores
    right = scores.argmax(axis=1) == true
    return p.max(axis=1, keepdims=True), right[:, None]


def _labels(labels: Any, scores: Array, form: str) -> tuple[Array, Array]:
    """Return the probability of yes, and the labels, shape (n, labels)."""
    true = as_array(labels)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or not len(true) == len(scores) > 0 or true.size != scores.size:
        raise ValueError(
            "`labels` must hold a 0 or 1 for each of the predictions, got shapes "
            f"{true.shape} and {scores.shape}."
        )
    p = np.exp(-np.logaddexp(0.0, -scores)) if form == "logits" else scores
    return p, true.reshape(scores.shape)


def _bin_sums(p: Array, hit: Array, bins: int) -> Array:
    """Return the count, sum of `p` and hits of each bin, shape (3, labels, bins)."""
    labels = p.shape[1]
    index = np.clip(np.ceil(p * bins) - 1, 0, bins - 1).astype(int)
    index = (index + bins * np.arange(labels)).ravel()
    sums = [
        np.bincount(index, weights=values.ravel(), minlength=labels * bins)
        for values in (np.ones_like(p), p, hit)
    ]
    return np.reshape(sums, (3, labels, bins))
