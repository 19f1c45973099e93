"""What the functions on pictures share: the check of a block, and its own dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fmkit.augmentation._draws import Draws

__all__ = ["InPlace", "as_pixel", "fill", "per_image", "sizes", "to_dtype"]

Array = np.ndarray[Any, Any]


class InPlace:
    """A function that changes some pixels, and copies the pictures first.

    `augment` leaves the copy out where nobody else looks at the pictures.
    """

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Any]:
        """Return the pictures, some of them changed, and the labels."""
        sizes(x)
        copied = x.copy()
        self._change(copied, draws)
        return copied, y

    def _change(self, x: Array, draws: Draws) -> None:
        """Change pictures that lie in memory row by row."""
        raise NotImplementedError

    def _in_place(self, x: Any, draws: Draws) -> bool:
        """Change the pictures themselves if that can be done; return whether it was."""
        if type(self).__call__ is not InPlace.__call__:
            return False  # a subclass with a way of its own
        sizes(x)
        if x.flags.c_contiguous and x.flags.writeable:
            self._change(x, draws)
            return True
        return False


def sizes(x: Any) -> tuple[int, int, int]:
    """Return rows, height and width of a block of pictures, or refuse it."""
    if not isinstance(x, np.ndarray) or x.ndim not in (3, 4):
        raise ValueError(
            "Pictures must come as an array of shape (rows, height, width) or (rows, "
            "height, width, channels), got "
            f"{getattr(x, 'shape', type(x).__name__)}. For other samples, write a "
            "function (x, y, draws) -> (x, y) that changes the pictures in them."
        )
    rows, height, width = x.shape[:3]
    return rows, height, width


def per_image(values: Array, x: Array) -> Array:
    """Give one number per row the axes of pictures, to broadcast."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def to_dtype(values: Array, dtype: npt.DTypeLike) -> Array:
    """Return floats as `dtype`: rounded and cut to its range if it is an integer's."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "iu":
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.rint(values).clip(limits.min, limits.max).astype(dtype)


def as_pixel(value: float, dtype: npt.DTypeLike) -> Array:
    """Return a number as a pixel, or refuse one that these pixels can't have."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if value != int(value) or not limits.min <= value <= limits.max:
            raise ValueError(
                f"`value` must be a whole number from {limits.min} to {limits.max} for "
                f"pictures of {dtype}, got value={value}."
            )
    return np.asarray(value).astype(dtype)


def fill(
    x: Array,
    rows: Array,
    top: Array,
    left: Array,
    high: Array,
    wide: Array,
    by: Any,
) -> None:
    """Fill a rectangle, which may stick out, in some of the pictures.

    Args:
        x: The pictures, which are changed.
        rows: Which of them, shape `(n,)`.
        top: First row of each rectangle, shape `(n,)`.
        left: First column.
        high: Height, 0 for no rectangle.
        wide: Width.
        by: A pixel, or `n` pictures to fill it from.
    """
    _, height, width = sizes(x)
    # As bytes, of which bitwise operations change many at once.
    lines = _bytes_of_lines(x)
    keep = (_between(left, wide, width).view(np.int8) - np.int8(1)).view(np.uint8)
    if lines.shape[1] > width:
        keep = keep.repeat(lines.shape[1] // width, axis=1)
    # Only the lines with a part of a rectangle are looked at.
    inside = np.flatnonzero(_between(top, high, height))
    picture = inside // height
    places = inside + ((rows - np.arange(len(rows))) * height).take(picture)
    keep = keep.take(picture, axis=0)
    changed = lines.take(places, axis=0)
    changed &= keep
    filling = np.asarray(by, x.dtype, order="C")
    if filling.reshape(-1).view(np.uint8).any():
        if filling.ndim:
            filling = _bytes_of_lines(filling).take(inside, axis=0)
        else:
            pixels = lines.shape[1] // x.itemsize
            filling = np.full(pixels, filling).view(np.uint8)
        changed |= filling & ~keep
    # A line is one element then, written at once.
    line = np.dtype((np.void, lines.shape[1]))
    lines.view(line).reshape(-1).put(places, changed.view(line).reshape(-1))


def _bytes_of_lines(x: Array) -> npt.NDArray[np.uint8]:
    rows, height, *line = x.shape
    return x.reshape(rows * height, math.prod(line)).view(np.uint8)


def _between(first: Array, count: Array, length: int) -> npt.NDArray[np.bool_]:
    """Return which of 0 to `length` - 1 are among the `count` from `first` on."""
    first, end = (v.astype(np.int32)[:, None] for v in (first, first + count))
    places = np.arange(length, dtype=np.int32)
    return (places >= first) & (places < end)
