"""Numbers, class numbers and names of classes, from what a plot is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fmkit._arrays import as_array


def as_numbers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(as_array(values), "float64")
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"`{name}` must be a sequence of at least one number, got shape "
            f"{array.shape}."
        )
    return array


def as_class_numbers(name: str, values: Any) -> np.ndarray:
    """Return class numbers; of scores, the class with the highest."""
    array = as_array(values)
    if array.dtype.kind in "OSU":
        raise ValueError(
            f"`{name}` must be class numbers from 0 or scores, got dtype {array.dtype}."
            f" For names write [class_names.index(name) for name in {name}]."
        )
    if array.ndim == 2:
        array = array.argmax(axis=1) if array.shape[1] > 1 else array[:, 0]
    if array.ndim != 1 or np.any(array != np.round(array)) or np.any(array < 0):
        raise ValueError(
            f"`{name}` must be class numbers from 0, shape (n,), or scores, shape "
            f"(n, classes), got shape {array.shape} and dtype {array.dtype}."
        )
    return array.astype(int)


def names_of(
    class_names: Sequence[str] | None, numbers: Sequence[np.ndarray], scores: Any
) -> list[str]:
    """Return a name for each class, or refuse class numbers without a name."""
    count = max((int(array.max()) + 1 for array in numbers if array.size), default=0)
    if class_names is None:
        shape: tuple[int, ...] = ()
        if scores is not None:
            shape = as_array(scores).shape
        return [str(k) for k in range(max(count, shape[1] if len(shape) == 2 else 0))]
    if count > len(class_names):
        raise ValueError(
            f"`class_names` has {len(class_names)} names, but class number {count - 1} "
            f"occurs: it must have at least {count}."
        )
    return [str(name) for name in class_names]
