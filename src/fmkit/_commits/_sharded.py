"""Arrays that lie in pieces in several files, read a box at a time.

A box is a part of an array: where it starts and stops along each axis.
"""

from __future__ import annotations

import io
import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmkit._files import open_regular

__all__ = ["Box", "PartFile", "Piece", "ShardedArray", "StoredPiece", "box_of", "cut"]

Array = np.ndarray[Any, Any]
Box = tuple[tuple[int, int], ...]

BLOCK = 2**24  # bytes that are read at once
_SHORT = 2**18  # bytes for which a read of their own does not pay


class Piece(NamedTuple):
    """A piece of an array, on its way into a file.

    Attributes:
        array: The name of the whole array.
        box: Which part of it this is.
        own: Whether only the process that writes it has these values.
        nbytes: Its size in bytes.
        read: Returns the values.
    """

    array: str
    box: Box
    own: bool
    nbytes: int
    read: Callable[[], Array]


class PartFile:
    """A file that stays readable when its name is deleted.

    Raises:
        OSError: If it cannot be read, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = io.FileIO(open_regular(path, os.O_RDONLY), "rb")
        weakref.finalize(self, self.file.close)

    def read_into(self, offset: int, data: memoryview) -> None:
        """Fill `data` with the bytes at `offset`."""
        self.file.seek(offset)
        while data:
            count = self.file.readinto(data)
            if not count:
                raise ValueError(f"{self.path} ends too early")
            data = data[count:]


class StoredPiece(NamedTuple):
    """A piece of an array in a file, its rows one after the other from `offset` on."""

    box: Box
    file: PartFile
    offset: int


class ShardedArray:
    """An array that lies in pieces, of which nothing is read before it is asked for.

    Args:
        dtype: Its dtype.
        shape: Its shape.
        pieces: They cover it. Where two overlap, the later one counts.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        pieces: Sequence[StoredPiece],
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self._pieces = pieces

    @property
    def nbytes(self) -> int:
        """The bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, index: tuple[slice, ...] = ()) -> Array:
        """Return the part of the array that `index` selects, as a new array.

        Raises:
            OSError: If a file cannot be read.
            ValueError: If a file is shorter than it was.
        """
        box = box_of(index, self.shape)
        found = np.empty([stop - start for start, stop in box], self.dtype)
        for piece in self._pieces:
            common = _common(box, piece.box)
            if common is not None:
                target = found[_slices(common, box)]
                shape = [stop - start for start, stop in piece.box]
                _fill(target, piece, piece.offset, shape, _shifted(common, piece.box))
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return the whole array: NumPy's protocol."""
        found = self.read()
        return found if dtype is None else found.astype(dtype, copy=False)

    def tobytes(self) -> bytes:
        """Return the bytes of the whole array."""
        return self.read().tobytes()

    def astype(self, dtype: Any) -> Array:
        """Return the whole array in another dtype."""
        return self.read().astype(dtype)


def box_of(index: tuple[slice, ...], shape: Sequence[int]) -> Box:
    """Return the box that an index of slices selects; axes it lacks are whole."""
    whole = (*index, *[slice(None)] * (len(shape) - len(index)))
    return tuple(
        (each.indices(size)[0], each.indices(size)[1])
        for each, size in zip(whole, shape, strict=True)
    )


def cut(box: Box, count: int) -> list[Box]:
    """Cut a box across its longest axis into `count` boxes, as even as can be.

    There are fewer if the axis is shorter than `count`.
    """
    sizes = [stop - start for start, stop in box]
    if not sizes:
        return [box]
    axis = int(np.argmax(sizes))
    start, size = box[axis][0], sizes[axis]
    count = max(1, min(count, size))
    ends = [start + size * i // count for i in range(count + 1)]
    return [
        (*box[:axis], (ends[i], ends[i + 1]), *box[axis + 1 :]) for i in range(count)
    ]


def _common(a: Box, b: Box) -> Box | None:
    """Return the box that two boxes have in common, if any."""
    both = [(max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True)]
    return None if any(start >= stop for start, stop in both) else tuple(both)


def _shifted(box: Box, origin: Box) -> Box:
    pairs = zip(box, origin, strict=True)
    return tuple((start - o, stop - o) for (start, stop), (o, _) in pairs)


def _slices(box: Box, origin: Box) -> tuple[Any, ...]:
    # The ellipsis keeps an array of no axes an array.
    return (*(slice(*each) for each in _shifted(box, origin)), ...)


def _fill(
    target: Array, piece: StoredPiece, offset: int, shape: Sequence[int], box: Box
) -> None:
    """Fill `target` with a box of the array of this shape at `offset`.

    No more than a block is held besides, and not much more than the box is read.
    """
    if not box:
        data = np.empty((), target.dtype)
        piece.file.read_into(offset, _bytes_of(data))
        target[...] = data
        return
    (start, stop), rest = box[0], box[1:]
    row = math.prod(shape[1:]) * target.dtype.itemsize
    whole = all(each == (0, size) for each, size in zip(rest, shape[1:], strict=True))
    if row > (BLOCK if whole else _SHORT):
        for i in range(start, stop):
            _fill(target[i - start, ...], piece, offset + i * row, shape[1:], rest)
        return
    rows = max(1, BLOCK // row)
    for i in range(start, stop, rows):
        data = np.empty((min(rows, stop - i), *shape[1:]), target.dtype)
        piece.file.read_into(offset + i * row, _bytes_of(data))
        inner = tuple(slice(*each) for each in rest)
        target[i - start : i - start + len(data)] = data[(slice(None), *inner)]


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
