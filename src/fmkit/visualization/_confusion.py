"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmkit.visualization._fonts import font_for
from fmkit.visualization._style import GREY, axes_or_new, write_labels
from fmkit.visualization._values import as_class_numbers, names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def confusion_matrix(
    labels: Any,
    predictions: Any,
    *,
    class_names: Sequence[str] | None = None,
    normalize: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often each true class (row) was taken for each class (column).

    Args:
        labels: True class numbers, shape `(n,)`.
        predictions: Predicted class numbers, shape `(n,)`, or scores of any kind,
            `(n, classes)`, of which the highest counts.
        class_names: Names of the classes; by default their numbers.
        normalize: Write percentages of each true class instead of counts.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes; their image holds the matrix.

    Raises:
        ValueError: If `labels` and `predictions` differ in length, are empty or
            negative, or have more classes than there are names.

    Examples:
        >>> ax = confusion_matrix([0, 0, 1], [0, 1, 1], class_names=["cat", "dog"])
        >>> ax.images[0].get_array().tolist()
        [[1, 1], [0, 1]]
    """
    true = as_class_numbers("labels", labels)
    guess = as_class_numbers("predictions", predictions)
    if len(true) != len(guess) or not len(true):
        raise ValueError(
            "`labels` and `predictions` must have one entry for each example, got "
            f"{len(true)} and {len(guess)}."
        )
    names = names_of(class_names, [true, guess], predictions)
    counts = np.bincount(true * len(names) + guess, minlength=len(names) ** 2)
    matrix = counts.reshape(len(names), len(names))
    if normalize:
        matrix = 100.0 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 1.8 + 0.46 * len(names)
    ax = axes_or_new(ax, (side, side), fixed=True)
    from matplotlib.colors import PowerNorm

    # The square root makes the few wrong ones visible beside the many right ones.
    shade = PowerNorm(0.5, vmin=0, vmax=max(matrix.max(), 1))
    ax.imshow(matrix, cmap="Blues", norm=shade)
    _write_cells(ax, matrix, shade(matrix))
    font = font_for(names)
    turn: dict[str, Any] = {}
    if max(map(len, names)) > 3:
        turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(names)), names, **turn, **font)
    ax.set_yticks(range(len(names)), names, **font)
    ax.tick_params(length=0)
    write_labels(
        ax, "predicted", "true (percent of each row)" if normalize else "true", title
    )
    return ax


def _write_cells(ax: Axes, matrix: np.ndarray, shade: np.ndarray) -> None:
    """Write the numbers, light on dark, and frame the right predictions."""
    from matplotlib.patches import Rectangle

    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        colour = "white" if shade[row, column] > 0.6 else "black" if value else GREY
        ax.text(
            column,
            row,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            fontweight="bold" if row == column else "normal",
        )
    for k in range(len(matrix)):
        ax.add_patch(Rectangle((k - 0.5, k - 0.5), 1, 1, fill=False, ec="black", lw=1))
