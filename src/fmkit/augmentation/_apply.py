"""A sequence of functions over a block of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fmkit.augmentation._draws import Draws, Read
from fmkit.augmentation._images import InPlace

__all__ = ["augment"]

# From x, y and the draws of their rows to x and y.
Augmentation = Callable[[Any, Any, Draws], tuple[Any, Any]]


def augment(
    x: Any,
    y: Any,
    functions: Augmentation | Sequence[Augmentation],
    *,
    seed: int,
    epoch: int,
    index: Any,
    read: Read | None = None,
    size: int | None = None,
    overwrite: bool = False,
) -> tuple[Any, Any]:
    """Augment a block of rows: what `Batches(augment=...)` does, for other pipelines.

    Args:
        x: Samples, rows in axis 0. A single picture is a block of one row.
        y: Labels, likewise, or `None`.
        functions: A function `(x, y, draws) -> (x, y)`, or several in sequence. Each
            treats every row by itself, and leaves what it was given unchanged.
        seed: Integer from 0 to 2**64 - 1.
        epoch: Epoch, from 0 up.
        index: Index of the sample in each row.
        read: `index -> (x, y)`: other samples, which mixup and CutMix need.
        size: How many samples there are.
        overwrite: Whether `x` may be changed, which saves a copy of it.

    Returns:
        `(x, y)`.

    Raises:
        ValueError: If `index` has not one number per row, or if a function doesn't
            return a pair.

    Examples:
        >>> import numpy as np
        >>> noise = lambda x, y, draws: (x + draws.integers(0, 10)[:, None], y)
        >>> x = np.zeros((4, 1), int)
        >>> augment(x, None, noise, seed=0, epoch=0, index=range(4))[0].ravel().tolist()
        [7, 5, 0, 6]
        >>> augment(x[:1], None, noise, seed=0, epoch=0, index=[2])[0].tolist()
        [[0]]
    """
    if callable(functions):
        functions = [functions]
    draws = Draws(seed, epoch, index, size=size)
    for leaf in keras.tree.flatten(x):
        if len(leaf) != len(draws):
            raise ValueError(
                f"`index` must hold the index of the sample in each row of `x`: got "
                f"{len(draws)} for {len(leaf)} rows. A single picture is a block of "
                "one row: augment(picture[None], ..., index=[7])."
            )
    for number, function in enumerate(functions):
        others = read and _after(functions[:number], read, seed, epoch, size)
        draws = draws._of_function(number, others)
        if overwrite and isinstance(function, InPlace) and function._in_place(x, draws):
            continue
        pair = function(x, y, draws)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(
                "A function of `augment` must return a pair (x, y); "
                f"{function!r} returned {type(pair).__name__}."
            )
        # A function of somebody else's may have kept what it was given or returns.
        ours = type(function).__module__.startswith("fmkit.")
        overwrite = ours and (overwrite or pair[0] is not x)
        x, y = pair
    return x, y


def _after(
    functions: Sequence[Augmentation],
    read: Read,
    seed: int,
    epoch: int,
    size: int | None,
) -> Read:
    def augmented(index: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        return augment(
            *read(index),
            functions,
            seed=seed,
            epoch=epoch,
            index=index,
            read=read,
            size=size,
        )

    return augmented
