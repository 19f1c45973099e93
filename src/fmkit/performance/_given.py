"""What `fit_settings` must know of data: their batches, without reading any."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from fmkit._checks import check_int
from fmkit.data import Batches

__all__ = ["Given", "look_at"]

# Of a number in a table, which may have columns of several types.
_BYTES_AT_MOST = 8


@dataclasses.dataclass(frozen=True)
class Given:
    """The data of a training run.

    Attributes:
        fit: The arguments of `fit` that they are.
        steps: Number of batches of an epoch.
        bytes_of_a_batch: `None` if that can't be told without reading one.
        why: What there is to say of them, in a sentence.
        whole_executions: Whether Keras trains on whole executions only, past the end
            of an epoch if need be.
    """

    fit: dict[str, Any]
    steps: int
    bytes_of_a_batch: int | None
    why: str
    whole_executions: bool = False


def look_at(
    data: Any, y: Any, batch_size: int | None, steps_per_epoch: int | None
) -> Given:
    """Return what is known of data, given as to `fit`.

    Raises:
        ValueError: If an argument is missing, or one too many.
    """
    if steps_per_epoch is not None:
        steps_per_epoch = check_int("steps_per_epoch", steps_per_epoch)
    leaves = [leaf for leaf in keras.tree.flatten((data, y)) if leaf is not None]
    # A DataFrame has no `dtype`, and SciPy's sparse arrays have no `len`.
    if all(hasattr(leaf, "shape") for leaf in leaves):
        return _arrays(data, y, batch_size, steps_per_epoch, leaves)
    for name, value in (("y", y), ("batch_size", batch_size)):
        if value is not None:
            raise ValueError(
                f"`{name}` goes with arrays, and {type(data).__name__} gives whole "
                "batches. Leave it out."
            )
    fit = {"x": data}
    if steps_per_epoch is not None:
        fit["steps_per_epoch"] = steps_per_epoch
    if isinstance(data, Batches):
        batch = keras.tree.flatten(data.peek())
        why = (
            "It gathers and scales ahead of the steps; a prefetch behind it gains "
            "nothing."
        )
        size = sum(map(_bytes_of, batch))
        return Given(fit, steps_per_epoch or len(data), size, why)
    steps = steps_per_epoch or _batches_of(data)
    if steps is None:
        raise ValueError(
            f"{type(data).__name__} does not tell how many batches it has. Give "
            "`fit_settings` and `fit` a `steps_per_epoch`."
        )
    why = "Keras reads its batches as it always does; Batches would be read ahead."
    bytes_of_a_batch = _bytes_of_a_batch(data)
    return Given(fit, steps, bytes_of_a_batch, why, steps_per_epoch is not None)


def _arrays(
    x: Any, y: Any, size: int | None, steps_per_epoch: int | None, leaves: list[Any]
) -> Given:
    first_axes = {tuple(leaf.shape)[:1] for leaf in leaves}
    if len(first_axes) != 1 or not any(rows := first_axes.pop()):
        raise ValueError(
            "Arrays must have rows, all the same number; got the shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}."
        )
    if size is not None:
        size = check_int("batch_size", size)
    else:  # as Keras has it
        size = -(-rows[0] // steps_per_epoch) if steps_per_epoch else 32
    fit: dict[str, Any] = {"x": x, "y": y, "batch_size": size}
    if steps_per_epoch is not None:
        fit["steps_per_epoch"] = steps_per_epoch
    width = sum(map(_bytes_of, leaves)) // rows[0]
    steps = steps_per_epoch or -(-rows[0] // size)
    why = f"Batches(x, y, {size}) takes less time for the same rows, above all on "
    why += "TensorFlow."
    return Given(fit, steps, width * size, why, steps_per_epoch is not None)


def _bytes_of_a_batch(data: Any) -> int | None:
    """Return the size of a batch of a `tf.data.Dataset`, if it says all its shapes.

    After `batch(n)` it does only with `drop_remainder=True`.
    """
    if not (hasattr(data, "cardinality") and hasattr(data, "element_spec")):
        return None
    specs = keras.tree.flatten(data.element_spec)
    shapes = [getattr(spec, "shape", None) for spec in specs]
    if not all(shape is not None and shape.is_fully_defined() for shape in shapes):
        return None
    return sum(map(_bytes_of, specs))


def _bytes_of(leaf: Any) -> int:
    """Return how many bytes the numbers of an array, a tensor or a table take.

    TensorFlow's tensors have neither `nbytes` nor `size`, and PyTorch's `size` is a
    method. What SciPy's sparse arrays count in `size` is what they store.
    """
    count = getattr(leaf, "size", None)
    if not isinstance(count, (int, np.integer)):
        count = math.prod(leaf.shape)
    dtype = getattr(leaf, "dtype", None)
    width = getattr(dtype, "itemsize", None) or getattr(dtype, "size", None)
    return int(count) * int(width or _BYTES_AT_MOST)


def _batches_of(data: Any) -> int | None:
    """Return how many batches data say that they have."""
    if hasattr(data, "cardinality"):  # a tf.data.Dataset: below 0 if it can't tell
        count = int(data.cardinality())
        return count if count > 0 else None
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    try:
        return len(data) or None
    except TypeError:
        return None
