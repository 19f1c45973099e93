"""Arrays in, mapped blocks of rows out: what all three backends share."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from fmkit._arrays import as_array
from fmkit._buffers import Buffers
from fmkit.data._order import Indices
from fmkit.preprocessing import Preprocess, preprocess

__all__ = ["Augment", "Source", "class_weights"]

# From x, y and the indices of their rows to x and y.
Augment = Callable[[Any, Any, Indices], tuple[Any, Any]]

# A block is gathered and mapped in one go, then cut into batches. 2,048 images
# of 28 x 28 are 6 MB as float32; larger rows make smaller blocks.
BLOCK_ROWS = 2048
BLOCK_BYTES = 8 * 2**20


class Source:
    """The arrays of one `Batches`, and the map over their rows.

    Args:
        x: Array, or nested structure of arrays, with the samples in axis 0.
        y: Labels, likewise, or `None`.
        sample_weight: One weight per sample, or `None`.
        transform: `(x, y) -> (x, y)` on a block of rows, or `None`.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        transform: Callable[..., Any] | None,
    ) -> None:
        self.x = _to_arrays("x", x)
        self.y = None if y is None else _to_arrays("y", y)
        self.weight = (
            None
            if sample_weight is None
            else _to_arrays("sample_weight", sample_weight)
        )
        self.size = _common_length(
            {"x": self.x, "y": self.y, "sample_weight": self.weight}
        )
        if self.weight is not None and self.y is None:
            raise ValueError("`sample_weight` needs labels `y`, got y=None.")
        self._numbers, self._order = _number((self.x, self.y, self.weight))
        self.transform = transform
        self._buffers = Buffers()
        # A `Preprocess` of plain arrays is mapped by `gather`, in NumPy and into
        # memory used before, also inside `tf.data`. The bits are the same.
        self._maps = (
            _numpy_maps(transform)
            if isinstance(self.x, np.ndarray)
            and (self.y is None or isinstance(self.y, np.ndarray))
            else None
        )
        self.takes_labels = transform is None or _takes_labels(transform)
        if self.y is not None and not self.takes_labels:
            raise ValueError(
                "`map` must take (x, y) and return (x, y) when there are labels; "
                f"got map={transform!r}, which takes x only."
            )

    @property
    def leaves(self) -> list[np.ndarray[Any, Any]]:
        """All arrays, in the order in which `gather` returns their rows."""
        return keras.tree.flatten((self.x, self.y, self.weight))  # type: ignore[no-any-return]

    def rows_per_block(self, batch_size: int) -> int:
        """Rows that are gathered at once: whole batches, a bounded memory."""
        row_bytes = sum(
            int(np.prod(leaf.shape[1:], dtype=np.int64)) * max(leaf.itemsize, 4)
            for leaf in self.leaves
            if leaf is not None
        )
        rows = min(BLOCK_ROWS, BLOCK_BYTES // max(row_bytes, 1))
        return max(1, rows // batch_size) * batch_size

    def samples(self, indices: Indices) -> tuple[Any, Any]:
        """Copy the rows of `x` and `y` at `indices`."""
        return self.pack(self._copied(indices))[:2]

    def gather(
        self, indices: Indices, augment: Augment | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Copy the rows at `indices` out of every array; map them if NumPy can.

        The list matches `leaves`. What is augmented is not yet mapped.
        """
        rows = self._copied(indices)
        if augment is not None:
            x, y, weight = self.pack(rows)
            rows = self._unpack(*augment(x, y, indices), weight, rows)
        if self._maps is not None:
            map_x, map_y = self._maps
            rows[0] = map_x(rows[0], self._buffers.empty(rows[0].shape, "float32"))
            if self.y is not None:
                rows[1] = _mapped_rows(map_y, rows[1])
        return rows

    def _copied(self, indices: Indices) -> list[np.ndarray[Any, Any]]:
        return [
            self._buffers.rows(leaf, indices)
            for leaf in self.leaves
            if leaf is not None
        ]

    def _unpack(
        self, x: Any, y: Any, weight: Any, rows: list[np.ndarray[Any, Any]]
    ) -> list[np.ndarray[Any, Any]]:
        """Return the leaves of what `augment` returned, in place of `rows`."""
        found = [
            leaf for leaf in keras.tree.flatten((x, y, weight)) if leaf is not None
        ]
        lengths = [len(leaf) for leaf in found]
        if lengths != [len(row) for row in rows]:
            raise ValueError(
                "`augment` must return (x, y) with the arrays and rows it was given: "
                f"{len(rows)} arrays of {len(rows[0])} rows; it returned arrays of "
                f"{lengths} rows."
            )
        return found

    def pack(self, rows: list[Any]) -> tuple[Any, Any, Any]:
        """Undo the flattening of `gather`: `(x, y, sample_weight)`."""
        by_number = dict(zip(self._order, rows, strict=True))
        packed = keras.tree.map_structure(
            lambda number: None if number is None else by_number[number],
            self._numbers,
        )
        return packed[0], packed[1], packed[2]

    def apply(self, x: Any, y: Any, zeros: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Map a block; `zeros(x)` makes labels for a map that insists on them."""
        if self.transform is None or self._maps is not None:  # `gather` has done it
            return x, y
        if y is None:
            if not self.takes_labels:
                return self.transform(x), None
            return self._pair(self.transform(x, zeros(x)))[0], None
        return self._pair(self.transform(x, y))

    def _pair(self, mapped: Any) -> tuple[Any, Any]:
        if not isinstance(mapped, (tuple, list)) or len(mapped) != 2:
            raise ValueError(
                "`map` must return a pair (x, y); "
                f"{self.transform!r} returned {type(mapped).__name__}."
            )
        return mapped[0], mapped[1]

    def block(
        self, rows: list[Any], weights: dict[int, float] | None
    ) -> tuple[Any, ...]:
        """Map what was gathered: `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""
        x, y, weight = self.pack(rows)
        x, y = self.apply(x, y, lambda _: np.zeros(len(rows[0]), np.int32))
        x, y = keras.tree.map_structure(_numpy, (x, y))
        if weights is not None:
            weight = class_weights(y, weights)
        parts = (x, y, weight)
        return parts[: 1 + (y is not None) + (weight is not None)]


def _numpy_maps(
    transform: Any,
) -> tuple[Callable[..., Any], Callable[[Any], Any]] | None:
    """Return what a `Preprocess` does to `x` and to `y`, or `None` for other maps."""
    if transform is preprocess:
        transform = Preprocess()
    # A subclass may map otherwise.
    is_known = type(transform) is Preprocess
    return (transform.map_x, transform.map_y) if is_known else None


def _mapped_rows(map_y: Callable[[Any], Any], y: np.ndarray[Any, Any]) -> Any:
    """Map labels whose first axis is that of the rows, however many there are."""
    # Alone, as many floats as there are classes are the shares of one sample.
    return map_y(y[:, None])[:, 0] if y.ndim == 1 and len(y) > 1 else map_y(y)


def class_weights(y: Any, weights: dict[int, float]) -> np.ndarray[Any, Any]:
    """Weight of each sample by its class, 1 for a class that is not listed."""
    labels = np.asarray(y)
    if labels.ndim > 1:
        one_hot = labels.shape[-1] != 1
        labels = labels.argmax(-1) if one_hot else labels[..., 0]
    classes = np.array(sorted(weights), dtype=np.int64)
    values = np.array([weights[int(c)] for c in classes], dtype=np.float32)
    labels = np.rint(labels).astype(np.int64)
    place = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    return np.where(classes[place] == labels, values[place], np.float32(1))


def _number(structure: Any) -> tuple[Any, list[int]]:
    """Number the leaves: the structure of numbers, and they as `flatten` has them.

    `flatten` sorts a dict by its keys on every backend, and `map_structure` does so
    too, except on PyTorch, where it goes by the order in which the keys were put in.
    """
    numbers = itertools.count()
    numbered = keras.tree.map_structure(
        lambda leaf: None if leaf is None else next(numbers), structure
    )
    flat = keras.tree.flatten(numbered)
    return numbered, [number for number in flat if number is not None]


def _numpy(value: Any) -> Any:
    if value is None or isinstance(value, np.ndarray):
        return value
    return keras.ops.convert_to_numpy(value)


def _to_arrays(name: str, value: Any) -> Any:
    """Turn leaves into arrays; what is mapped from disk stays there."""

    def to_array(leaf: Any) -> Any:
        array = as_array(leaf)
        if array.dtype == object or array.ndim == 0:
            raise TypeError(
                f"`{name}` must be an array (or a dict or tuple of arrays) with the "
                f"samples in its first axis, got {type(leaf).__name__} of dtype "
                f"{array.dtype} and shape {array.shape}."
            )
        return array

    # A list is rows to NumPy but a structure to Keras: here it is rows.
    if isinstance(value, list):
        return to_array(value)
    return keras.tree.map_structure(to_array, value)


def _common_length(parts: dict[str, Any]) -> int:
    lengths = {
        name: sorted({len(leaf) for leaf in keras.tree.flatten(part)})
        for name, part in parts.items()
        if part is not None
    }
    sizes = {size for found in lengths.values() for size in found}
    if len(sizes) != 1:
        told = ", ".join(
            f"{name}: {' and '.join(map(str, found))}"
            for name, found in lengths.items()
        )
        raise ValueError(
            f"All arrays must hold the same number of samples, got {told}."
        )
    size = sizes.pop()
    if size == 0:
        raise ValueError("`x` must hold at least one sample, got none.")
    return size


def _takes_labels(transform: Callable[..., Any]) -> bool:
    if not callable(transform):
        raise TypeError(
            f"`map` must be a function of (x, y) or None, got {transform!r}."
        )
    try:
        parameters = inspect.signature(transform).parameters.values()
    except ValueError:  # some callables written in C have none
        return True
    kinds = inspect.Parameter
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        return True
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional for p in parameters) >= 2
