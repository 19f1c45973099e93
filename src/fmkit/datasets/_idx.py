"""IDX files, the format of MNIST: a magic number, the sizes, the bytes."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from fmkit._untrusted_files import (
    MAX_BYTES,
    DatasetFileError,
    Stream,
    open_stream,
    read_exactly,
    refuse_more,
)

# The third byte of the magic number says what the values are.
DTYPES = {
    0x08: "unsigned bytes",
    0x09: "signed bytes",
    0x0B: "16-bit integers",
    0x0C: "32-bit integers",
    0x0D: "32-bit floats",
    0x0E: "64-bit floats",
}
UNSIGNED_BYTES = 0x08


def read_idx(path: Path, item_shape: tuple[int, ...]) -> np.ndarray:
    """Return the uint8 array of an IDX file, plain or gzipped.

    Args:
        path: The file.
        item_shape: Shape of one item: `(28, 28)` for images, `()` for labels.

    Returns:
        uint8 array of shape `(n, *item_shape)`.

    Raises:
        DatasetFileError: If the file is not exactly that.
        OSError: If it can't be opened.
    """
    with open_stream(path) as stream:
        return parse_idx(path, stream, item_shape)


def parse_idx(path: Path, stream: Stream, item_shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file from an open stream; see `read_idx`."""
    shape = _read_header(path, stream, item_shape)
    what = _describe(shape)
    # Python's integers: a product of header fields must not wrap around.
    count = math.prod(shape)
    if count > MAX_BYTES:
        raise DatasetFileError(
            path, f"promises {what}; at most {MAX_BYTES} bytes are read."
        )
    values = read_exactly(path, stream, count, what)
    refuse_more(path, stream, what)
    return values.reshape(shape)


def idx_bytes(array: np.ndarray) -> bytes:
    """Return the bytes of the IDX file that holds a uint8 array."""
    if array.dtype != np.uint8:
        raise TypeError(f"`array` must be uint8, got {array.dtype}.")
    header = struct.pack(
        f">HBB{array.ndim}I", 0, UNSIGNED_BYTES, array.ndim, *array.shape
    )
    return header + array.tobytes()


def _read_header(
    path: Path, stream: Stream, item_shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape that the header promises, if it is `(n, *item_shape)`."""
    ndim = 1 + len(item_shape)
    magic = read_exactly(path, stream, 4, "an IDX magic number").tobytes()
    if magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        raise DatasetFileError(
            path,
            f"starts with the bytes {magic.hex(' ')}; expected an IDX file, "
            f"{bytes([0, 0, UNSIGNED_BYTES, ndim]).hex(' ')}.",
        )
    if magic[2] != UNSIGNED_BYTES:
        raise DatasetFileError(
            path, f"holds {DTYPES[magic[2]]}; expected {DTYPES[UNSIGNED_BYTES]}."
        )
    if magic[3] != ndim:
        raise DatasetFileError(
            path,
            f"has {magic[3]} dimensions; expected {ndim} "
            f"({'images' if item_shape else 'labels'}).",
        )
    sizes = read_exactly(path, stream, 4 * ndim, "the sizes of an IDX file")
    shape = struct.unpack(f">{ndim}I", sizes.tobytes())
    if shape[1:] != item_shape or shape[0] == 0:
        expected = f"(n, {str(item_shape)[1:-1]})" if item_shape else "(n,)"
        raise DatasetFileError(
            path, f"promises the shape {shape}; expected {expected} with n > 0."
        )
    return shape


def _describe(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"{shape[0]} labels"
    return f"{shape[0]} images of {' x '.join(map(str, shape[1:]))}"
