"""Images with names and predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmkit._arrays import as_array
from fmkit._checks import check_int
from fmkit.visualization._fonts import font_for
from fmkit.visualization._style import VERMILLION, axes_or_new
from fmkit.visualization._values import as_class_numbers, names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Height of a line of a caption, in widths of an image.
LINE = 0.17


def image_grid(
    images: Any,
    labels: Any = None,
    predictions: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    columns: int | None = None,
    cmap: str = "gray_r",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw images in rows, with their names and predictions.

    With `labels` and `predictions`, a correct prediction is marked `✓` under
    the image; a wrong one `✗`, with the true name below it and a thick frame.

    Args:
        images: Shape `(n, height, width)`, or with a last axis of 1 (grey),
            3 (RGB) or 4 (RGBA). Grey images share one scale, from the smallest to
            the largest value.
        labels: True class numbers, shape `(n,)`; or a share of each class, `(n,
            classes)`, as `augmentation.Mixup` makes them, of which the two largest are
            written under an image.
        predictions: Predicted class numbers, shape `(n,)`, or scores of any kind,
            `(n, classes)`, of which the highest counts.
        class_names: Names of the classes; by default their numbers.
        columns: Images in a row; by default about 1.5 times the number of rows.
        cmap: Colour map of grey images; by default 0 is white, as on paper.
        title: Title of the picture.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes, with one `AxesImage` for each image, in order.

    Raises:
        ValueError: If there are no images, if they are flattened, or if `labels` or
            `predictions` don't fit them or the names.

    Examples:
        >>> import numpy as np
        >>> images = np.arange(3 * 4).reshape(3, 2, 2)
        >>> ax = image_grid(images, [0, 1, 1], [0, 1, 0], class_names=["cat", "dog"])
        >>> [text.get_text() for text in ax.texts]
        ['✓ cat', '✓ dog', '✗ cat', 'is dog']
    """
    pictures = _as_images(images)
    names, marks = _captions(len(pictures), labels, predictions, class_names)
    if columns is None:
        columns = min(len(pictures), max(1, round(math.sqrt(1.5 * len(pictures)))))
    columns = min(check_int("columns", columns), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height = pictures.shape[1] / pictures.shape[2]
    # In units of an image's width: the gap beside it, the captions below it.
    lines = max((name.count("\n") + 1 for name in names if name), default=0)
    cell = (1.14, height + 0.12 + LINE * lines)
    ax = axes_or_new(
        ax, (1.15 * columns * cell[0], 1.15 * rows * cell[1] + 0.3), fixed=True
    )
    grey = pictures.ndim == 3
    limits = {"vmin": np.nanmin(pictures), "vmax": np.nanmax(pictures)} if grey else {}
    style = {"cmap": cmap, "interpolation": "nearest", **limits}
    for index, picture in enumerate(pictures):
        left, top = index % columns * cell[0], index // columns * cell[1]
        ax.imshow(picture, extent=(left, left + 1, top + height, top), **style)
        _frame(ax, left, top, height, wrong=marks[index] is False)
    ax.set(xlim=(-0.08, columns * cell[0] - 0.06), ylim=(rows * cell[1], -0.08))
    ax.set_axis_off()
    _write_captions(ax, names, marks, columns, cell, height)
    if title:
        ax.set_title(title, **font_for([title]))
    return ax


def _as_images(images: Any) -> np.ndarray:
    array = as_array(images)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    colour = array.ndim == 4 and array.shape[-1] in (3, 4)
    if (array.ndim != 3 and not colour) or not array.size:
        hint = ""
        if array.ndim == 2 and array.size:
            side = math.isqrt(array.shape[1])
            if side * side == array.shape[1] and side > 1:
                hint = f" Write images.reshape(-1, {side}, {side})."
            else:
                hint = " For one image write images[None]."
        raise ValueError(
            "`images` must have the shape (n, height, width), or with a last axis of "
            f"1, 3 or 4 channels, with n at least 1, got {array.shape}.{hint}"
        )
    return array


def _captions(
    count: int, labels: Any, predictions: Any, class_names: Sequence[str] | None
) -> tuple[list[str], list[bool | None]]:
    """Return the text under each image, and whether its prediction is right."""
    given = {
        name: as_class_numbers(name, values)
        for name, values in (("labels", labels), ("predictions", predictions))
        if values is not None
    }
    for name, numbers in given.items():
        if len(numbers) != count:
            raise ValueError(
                f"`{name}` must have one entry for each of the {count} images, got "
                f"{len(numbers)}."
            )
    if not given:
        return [""] * count, [None] * count
    scores = labels if predictions is None else predictions
    names = names_of(class_names, list(given.values()), scores)
    if len(given) == 1:
        texts = [names[k] for k in next(iter(given.values()))]
        if predictions is None:
            texts = _shares(as_array(labels), texts, names)
        return texts, [None] * count
    pairs = list(zip(given["labels"], given["predictions"], strict=True))
    texts = [
        f"✓ {names[guess]}" if true == guess else f"✗ {names[guess]}\nis {names[true]}"
        for true, guess in pairs
    ]
    return texts, [bool(true == guess) for true, guess in pairs]


def _shares(labels: np.ndarray, texts: list[str], names: Sequence[str]) -> list[str]:
    """Return the names, with the shares of two classes where a label is mixed."""
    if labels.ndim != 2 or labels.shape[1] < 2:
        return texts
    found = []
    for text, row in zip(texts, labels, strict=True):
        first, second = np.argsort(-row, kind="stable")[:2]
        mixed = row[second] >= 0.005  # as two digits show it
        shares = [f"{row[k]:.2f} {names[k]}" for k in (first, second)]
        found.append("\n".join(shares) if mixed else text)
    return found


def _points(ax: Axes) -> float:
    """Return the width of an image in points of 1/72 inch."""
    box = ax.get_window_extent()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    pixels = min(box.width / (right - left), box.height / abs(top - bottom))
    return float(pixels * 72 / ax.figure.dpi)


def _frame(ax: Axes, left: float, top: float, height: float, *, wrong: bool) -> None:
    from matplotlib.patches import Rectangle

    style: dict[str, Any] = {"ec": "#B0B0B0", "lw": 0.6}
    if wrong:
        style = {"ec": VERMILLION, "lw": 2.6}
    ax.add_patch(Rectangle((left, top), 1, height, fill=False, **style))


def _write_captions(
    ax: Axes,
    names: Sequence[str],
    marks: Sequence[bool | None],
    columns: int,
    cell: tuple[float, float],
    height: float,
) -> None:
    """Write each name under its image, as large as the longest name allows."""
    longest = max(len(line) for name in names for line in name.split("\n"))
    size = min(9.0, _points(ax) * min(1.1 / max(0.62 * longest, 1), 0.8 * LINE))
    font = font_for(names)
    for index, (name, right) in enumerate(zip(names, marks, strict=True)):
        wrong = right is False
        for number, line in enumerate(name.split("\n") if name else []):
            ax.text(
                index % columns * cell[0] + 0.5,
                index // columns * cell[1] + height + LINE * (number + 1),
                line,
                ha="center",
                fontsize=size,
                fontweight="bold" if wrong else "normal",
                color=VERMILLION if wrong else "black",
                **font,
            )
