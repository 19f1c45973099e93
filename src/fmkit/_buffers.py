"""Memory for blocks of rows that is used again as soon as nobody looks at it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

__all__ = ["SHARED", "Buffers", "to_tensors"]

# TensorFlow and JAX take an array without a copy if it starts at such an address.
ALIGNMENT = 64
# Below this, malloc has memory at hand that is mapped already.
SMALLEST = 2**16
# What PyTorch has under the same name, in this machine's order of bytes.
SHARED = frozenset(
    map(np.dtype, ("float32", "float64", "uint8", "int8", "int16", "int32", "int64"))
)


class Buffers:
    """A few pieces of memory that are handed out in turn, each to one user at a time.

    What a fresh array of megabytes costs is its memory, page by page, at the first
    touch: more than gathering the rows. A piece comes back when the last view of it
    is gone, whoever held it: NumPy, TensorFlow, JAX and PyTorch all keep a reference
    to the array whose memory they share.

    Args:
        keep: How many unused pieces of one size to keep.
    """

    def __init__(self, keep: int = 4) -> None:
        self.keep = keep
        self._free: dict[int, list[npt.NDArray[np.uint8]]] = {}

    def empty(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> np.ndarray[Any, Any]:
        """Return an array whose content is undefined, like `numpy.empty`."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype)
        piece = np.asarray(_Lease(self, self._take(1 << (size - 1).bit_length())))
        return piece[:size].view(dtype).reshape(shape)

    def rows(self, array: np.ndarray[Any, Any], indices: Any) -> np.ndarray[Any, Any]:
        """Copy the rows of an array at `indices`."""
        # `take` would first copy an array whose rows don't lie side by side.
        if not (array.flags.c_contiguous and array.flags.aligned):
            return array[indices]
        out = self.empty((len(indices), *array.shape[1:]), array.dtype)
        # "clip" writes straight into `out`; every index is in range by construction.
        return array.take(indices, axis=0, out=out, mode="clip")

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        try:
            return self._free.setdefault(size, []).pop()
        except IndexError:
            raw = np.empty(size + ALIGNMENT, np.uint8)
            start = -raw.ctypes.data % ALIGNMENT
            return raw[start : start + size]

    def _give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        free = self._free[memory.size]
        if len(free) < self.keep:
            free.append(memory)


class _Lease:
    """The base of every view of one piece; its end gives the piece back."""

    def __init__(self, buffers: Buffers, memory: npt.NDArray[np.uint8]) -> None:
        self._buffers = buffers
        self._memory = memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        self._buffers._give_back(self._memory)


def to_tensors(batch: Any) -> Any:
    """Return a batch of arrays as tensors of PyTorch."""
    return keras.tree.map_structure(_to_tensor, batch)


def _to_tensor(leaf: Any) -> Any:
    import torch

    # Keras copies every array twice. The memory of a batch is used again only when
    # nobody looks at it, so a tensor may share it.
    forward = all(stride >= 0 for stride in leaf.strides)
    if leaf.dtype in SHARED and leaf.flags.writeable and forward:
        leaf = torch.from_numpy(leaf)
    return keras.ops.convert_to_tensor(leaf)
