"""What the functions on pictures share: the check of a block, and its own dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["fill", "per_image", "sizes", "to_dtype"]

Array = np.ndarray[Any, Any]


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


def fill(x: Array, top: Array, left: Array, high: Array, wide: Array, by: Any) -> Array:
    """Copy pictures with one rectangle each, which may stick out, filled anew.

    Args:
        x: The pictures.
        top: First row of each rectangle.
        left: First column.
        high: Height, 0 for no rectangle.
        wide: Width.
        by: A number, or pictures of the shape of `x` to fill it from.
    """
    rows, height, width = sizes(x)
    found = x.copy()
    lines = found.reshape(rows * height, -1)
    in_rows = _between(top, high, height)
    in_columns = _between(left, wide, width)
    if x.ndim == 4:
        in_columns = np.repeat(in_columns, x.shape[3], axis=1)
    # Only the lines with a part of a rectangle are looked at.
    places = np.flatnonzero(in_rows)
    changed = lines.take(places, axis=0)
    if isinstance(by, np.ndarray):
        by = by.reshape(lines.shape).take(places, axis=0)
    np.copyto(
        changed,
        np.asarray(by, x.dtype),
        where=in_columns.take(places // height, axis=0),
    )
    lines[places] = changed
    return found


def _between(first: Array, count: Array, length: int) -> npt.NDArray[np.bool_]:
    """Return which of 0 to `length` - 1 are among the `count` from `first` on."""
    first, end = (v.astype(np.int32)[:, None] for v in (first, first + count))
    places = np.arange(length, dtype=np.int32)
    return (places >= first) & (places < end)
