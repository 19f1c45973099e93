"""Two classes in the plane and the line between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from fmkit._arrays import as_array
from fmkit._checks import check_int
from fmkit.visualization._style import (
    BLUE,
    VERMILLION,
    axes_or_new,
    write_labels,
    write_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def decision_boundary(
    predict: Any,
    x: Any,
    y: Any,
    *,
    level: float = 0.5,
    extent: tuple[float, float, float, float] | None = None,
    resolution: int = 200,
    class_names: Sequence[str] = ("class 0", "class 1"),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw points of two classes in the plane, and where a score crosses `level`.

    The line is the contour of the score at `level`; the side above it is shaded.
    Class 0 is drawn as open circles, class 1 as filled triangles.

    Args:
        predict: A Keras model, or anything with a method `predict`, or a function:
            takes points `(m, 2)`, gives one score for each, `(m,)` or `(m, 1)`.
        x: Points, shape `(n, 2)`.
        y: Labels 0 or 1, shape `(n,)` or `(n, 1)`.
        level: Score at which the line is drawn: 0.5 for a network trained on the
            numbers 0 and 1 or with a sigmoid, 0 for logits.
        extent: `(x0 min, x0 max, x1 min, x1 max)`; by default around the points.
        resolution: Points of the grid along each side; the score is computed for
            the square of this number.
        class_names: Names of class 0 and class 1.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes. If no score of the grid lies beyond `level`, or none is finite, the
        legend says so and there is no line.

    Raises:
        ValueError: If `x` is not `(n, 2)`, `y` has values other than 0 and 1,
            `class_names` are not two, or `predict` returns more than one score per
            point.

    Examples:
        >>> def score(points):
        ...     return points.sum(axis=1)
        >>> ax = decision_boundary(score, [[0.0, 0.0], [1.0, 1.0]], [0, 1])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['class 0', 'class 1', 'score 0.5']
    """
    points = np.asarray(as_array(x), "float32")
    labels = as_array(y).reshape(-1)
    _check_plane(points, labels)
    if len(class_names) != 2:
        raise ValueError(
            "`class_names` must be the names of class 0 and class 1, got "
            f"{class_names!r}."
        )
    check_int("resolution", resolution, minimum=2)
    grid = _grid(points, extent, resolution)
    scores = _scores(predict, np.stack([axis.ravel() for axis in grid], axis=1))
    tall = float(np.ptp(grid[1]) / np.ptp(grid[0]))
    ax = axes_or_new(ax, (5.6, 0.8 + 3.6 * min(max(tall, 0.4), 2.0)), fixed=True)
    styles: list[dict[str, Any]] = [
        {"edgecolors": BLUE, "facecolors": "none", "marker": "o"},
        {"color": VERMILLION, "marker": "^", "linewidths": 0},
    ]
    for kind, style in enumerate(styles):
        a, b = points[labels == kind].T
        ax.scatter(a, b, s=24, zorder=3, label=class_names[kind], **style)
    _draw_contour(ax, grid, scores.reshape(grid[0].shape), level)
    write_labels(ax, "$x_0$", "$x_1$", title)
    ax.set_aspect("equal")
    write_legend(ax, beside=True)
    return ax


def _check_plane(points: np.ndarray, labels: np.ndarray) -> None:
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(
            f"`x` must be points of the plane, shape (n, 2), got {points.shape}."
        )
    if len(labels) != len(points) or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"`y` must be 0 or 1 for each of the {len(points)} points, got "
            f"{len(labels)} labels with the values {np.unique(labels)[:5].tolist()}."
        )


def _grid(points: np.ndarray, extent: Any, resolution: int) -> list[np.ndarray]:
    """Return the coordinates of a grid over `extent`, or around the points."""
    if extent is None:
        low, high = points.min(axis=0), points.max(axis=0)
        margin = 0.1 * np.where(high > low, high - low, 1.0)
        (a, c), (b, d) = low - margin, high + margin
        extent = (a, b, c, d)
    a, b, c, d = extent
    return list(
        np.meshgrid(np.linspace(a, b, resolution), np.linspace(c, d, resolution))
    )


def _scores(predict: Callable[[Any], Any] | Any, points: np.ndarray) -> np.ndarray:
    """Return one score for each point."""
    points = points.astype("float32")
    if isinstance(predict, keras.Model):
        scores = predict.predict(points, batch_size=4096, verbose=0)
    else:
        scores = getattr(predict, "predict", predict)(points)
    scores = as_array(scores)
    if scores.shape not in ((len(points),), (len(points), 1)):
        raise ValueError(
            f"`predict` must return one score for each of {len(points)} points, got "
            f"shape {scores.shape}. For a network with two outputs write "
            "predict=lambda points: model.predict(points)[:, 1]."
        )
    return scores.reshape(-1).astype("float64")


def _draw_contour(
    ax: Axes, grid: list[np.ndarray], scores: np.ndarray, level: float
) -> None:
    finite = scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if finite.size else (level, level)
    if low < level < high:
        area = ax.contourf(*grid, scores, levels=[level, high], zorder=0)
        line = ax.contour(*grid, scores, levels=[level], linewidths=2)
        # Plain colours, of no colour map: whoever has dark paper can change them.
        area.set(array=None, facecolor=(VERMILLION, 0.2))
        line.set(array=None, edgecolor="black")
        ax.plot([], [], color="black", linewidth=2, label=f"score {level:g}")
    elif finite.size:
        side = "at most" if high <= level else "at least"
        ax.plot([], [], " ", label=f"no boundary:\nall {side} {level:g}")
    else:
        ax.plot([], [], " ", label="no boundary:\nno score is finite")
    ax.set(xlim=(grid[0].min(), grid[0].max()), ylim=(grid[1].min(), grid[1].max()))
