"""Stratified train/validation splits that depend only on the labels and the seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fmkit._checks import check_int, check_number

Pair = tuple[np.ndarray, np.ndarray]


def split(
    x: Any, y: Any, validation_split: float = 0.1, *, seed: int = 0
) -> tuple[Pair, Pair]:
    r"""Split into training and validation parts with the classes in equal shares.

    Class $c$ with $n_c$ samples gives $\lfloor f n_c \rfloor$ or one more to the
    validation part, so that the part has `round(f * n)` samples in all: the extra ones
    go to the classes with the largest remainders. Which samples go is a
    pure function of `seed` and the labels, the same on every platform and NumPy
    version. Both parts keep the order of `x`.

    Args:
        x: Samples, shape `(n, ...)`.
        y: Integer labels, shape `(n,)`.
        validation_split: Fraction of the samples, in (0, 1), as in `Model.fit`.
        seed: Integer from 0 to 2**64 - 1.

    Returns:
        `(x_train, y_train), (x_val, y_val)`: copies, `x` first, as
        `keras.datasets` returns its own two parts.

    Raises:
        ValueError: If the lengths differ, the labels are not a vector of integers,
            or one of the parts would be empty.

    Examples:
        >>> import numpy as np
        >>> x, y = np.arange(10), np.repeat([0, 1], 5)
        >>> (x_train, y_train), (x_val, y_val) = split(x, y, 0.4)
        >>> np.bincount(y_train).tolist(), np.bincount(y_val).tolist()
        ([3, 3], [2, 2])
    """
    x, y = np.asarray(x), np.asarray(y)
    fraction = check_number("validation_split", validation_split, above=0, below=1)
    seed = check_int("seed", seed, minimum=0, bits=64)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            "`y` must be a vector of integer labels, shape (n,), got shape "
            f"{y.shape} of {y.dtype}. For one-hot labels pass y.argmax(-1)."
        )
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(
            "`x` and `y` must have the same length, got "
            f"{x.shape[:1] or 'a scalar'} and {y.shape}."
        )
    if not len(y):
        raise ValueError("There is nothing to split: `x` and `y` are empty.")
    chosen = np.zeros(len(y), bool)
    chosen[_stratified_indices(y, fraction, seed)] = True
    if chosen.all() or not chosen.any():
        raise ValueError(
            f"validation_split={fraction} of {len(y)} samples leaves one part empty."
        )
    return (x[~chosen], y[~chosen]), (x[chosen], y[chosen])


def _stratified_indices(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    classes, counts = np.unique(y, return_counts=True)
    shares = fraction * counts
    taken = np.floor(shares).astype(int)
    left_over = round(fraction * len(y)) - taken.sum()
    taken[np.argsort(taken - shares, kind="stable")[: max(left_over, 0)]] += 1
    # Raw Philox words are part of NumPy's compatibility promise; what
    # Generator.permutation draws from them is not.
    words = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(len(y))
    order = np.argsort(words, kind="stable")
    return np.concatenate(
        [
            order[y[order] == label][:count]
            for label, count in zip(classes, taken, strict=True)
        ]
    )
