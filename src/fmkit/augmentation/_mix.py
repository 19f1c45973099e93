"""Two pictures in one, and labels to match."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmkit._checks import check_int, check_number
from fmkit.augmentation._draws import Draws
from fmkit.augmentation._images import Array, fill, per_image, sizes, to_dtype
from fmkit.augmentation._quantiles import LARGEST_ALPHA

__all__ = ["CutMix", "Mixup"]


@dataclass(frozen=True)
class Mixup:
    r"""Average each sample with another one, and their labels too.

    With $\lambda$ from $\text{Beta}(\alpha, \alpha)$ and one-hot labels $y$,

    $$\tilde x = \lambda x + (1 - \lambda)\, x', \qquad
      \tilde y = \lambda y + (1 - \lambda)\, y'.$$

    The other sample is drawn from all samples, not from the batch, so that it doesn't
    depend on the batch size. It comes as the functions before this one make it in this
    epoch. `map=Preprocess(num_classes=...)` keeps the dense labels and makes those of
    validation data one-hot.

    Args:
        num_classes: Length of a label.
        alpha: $\alpha$, above 0 and up to 500. Values below 1 mostly leave one of the
            two samples alone.

    References:
        Zhang et al., [*mixup: Beyond empirical risk
        minimization*](https://arxiv.org/abs/1710.09412), 2017.
    """

    num_classes: int
    alpha: float = 0.2

    def __post_init__(self) -> None:
        check_int("num_classes", self.num_classes)
        check_number("alpha", self.alpha, above=0, at_most=LARGEST_ALPHA)

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Array]:
        """Return the mixed samples and their dense labels."""
        if not isinstance(x, np.ndarray):
            raise ValueError(
                f"Mixup takes samples in one array, got {type(x).__name__}. Write a "
                "function (x, y, draws) -> (x, y) that mixes the arrays in it."
            )
        share = draws.beta(self.alpha)
        other, other_y = draws.samples(draws.integers(0, draws.size))
        weight = per_image(share, x)
        mixed = weight * x + (1 - weight) * other
        return to_dtype(mixed, x.dtype), _mixed_labels(
            y, other_y, share, self.num_classes
        )


@dataclass(frozen=True)
class CutMix:
    r"""Put a rectangle of another picture in, and mix the labels by area.

    With $\lambda$ from $\text{Beta}(\alpha, \alpha)$ the rectangle is
    $\sqrt{1 - \lambda}$ as high and as wide as the picture, around any pixel with equal
    chances, and cut off at the edges. The label is $\tilde y = \lambda' y + (1 -
    \lambda')\, y'$ with the share $1 - \lambda'$ that the rectangle really covers. The
    other picture is chosen as in `Mixup`.

    Args:
        num_classes: Length of a label.
        alpha: $\alpha$, above 0 and up to 500; 1 makes $\lambda$ uniform.

    References:
        Yun et al., [*CutMix: Regularization strategy to train strong classifiers with
        localizable features*](https://arxiv.org/abs/1905.04899), 2019.
    """

    num_classes: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_int("num_classes", self.num_classes)
        check_number("alpha", self.alpha, above=0, at_most=LARGEST_ALPHA)

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Array]:
        """Return the pictures in pictures and their dense labels."""
        rows, height, width = sizes(x)
        side = np.sqrt(1 - draws.beta(self.alpha))
        high = np.rint(side * height).astype(np.int64)
        wide = np.rint(side * width).astype(np.int64)
        top = draws.integers(0, height) - high // 2
        left = draws.integers(0, width) - wide // 2
        other, other_y = draws.samples(draws.integers(0, draws.size))
        covered = _overlap(top, high, height) * _overlap(left, wide, width)
        share = 1 - covered / (height * width)
        labels = _mixed_labels(y, other_y, share, self.num_classes)
        found = x.copy()
        fill(found, np.arange(rows), top, left, high, wide, other)
        return found, labels


def _overlap(first: Array, count: Array, length: int) -> Array:
    """Return how many of the pixels from `first` on are in 0 to `length` - 1."""
    return (first + count).clip(max=length) - first.clip(min=0)


def _mixed_labels(y: Any, other: Any, share: Array, num_classes: int) -> Array:
    share = share.astype(np.float32)[:, None]
    return share * _dense(y, num_classes) + (1 - share) * _dense(other, num_classes)


def _dense(y: Any, num_classes: int) -> Array:
    """Return labels as float32 rows: whole numbers become one-hot."""
    if y is None:
        raise ValueError("Mixed samples need labels, got y=None: Batches(x, y, ...).")
    y = np.asarray(y)
    if y.ndim == 0:
        raise ValueError("Mixed samples need labels in one array.")
    if y.ndim == 2 and y.shape[1] == num_classes and num_classes > 1:
        return y.astype(np.float32)
    y = y.reshape(len(y), math.prod(y.shape[1:]))
    whole = y.shape[1] == 1 and y.dtype.kind in "iu"
    if not whole or (y.size and (y.min() < 0 or y.max() >= num_classes)):
        values = f" from {y.min()} to {y.max()}" if y.size else ""
        raise ValueError(
            f"Labels must be whole numbers from 0 to {num_classes - 1} (num_classes="
            f"{num_classes}) or rows of {num_classes} numbers, got {y.dtype}{values}, "
            f"shape {y.shape}."
        )
    return np.eye(num_classes, dtype=np.float32)[y[:, 0]]
