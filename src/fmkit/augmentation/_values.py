"""Pictures with other values in the same places."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmkit._checks import check_number
from fmkit.augmentation._draws import Draws
from fmkit.augmentation._images import Array, per_image, sizes, to_dtype

__all__ = ["Brightness", "Contrast", "GaussianNoise"]


@dataclass(frozen=True)
class Brightness:
    r"""Add one number to all of a picture, drawn uniformly from $[-d, d)$.

    Args:
        delta: $d$, in the units of the pixels: of 255 for bytes. Bytes are rounded and
            cut to 0 to 255, floats are left as they are.

    References:
        Howard, [*Some improvements on deep convolutional neural network based image
        classification*](https://arxiv.org/abs/1312.5402), 2013, section 2.
    """

    delta: float

    def __post_init__(self) -> None:
        check_number("delta", self.delta, at_least=0)

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Any]:
        """Return the pictures, brighter or darker, and the labels."""
        sizes(x)
        change = draws.uniform(-self.delta, self.delta).astype(np.float32)
        return to_dtype(x + per_image(change, x), x.dtype), y


@dataclass(frozen=True)
class Contrast:
    r"""Multiply the distance from a picture's mean by one factor.

    $x \mapsto m + c\,(x - m)$ with the mean $m$ over the picture, channels included,
    and $c$ drawn uniformly.

    Args:
        low: Smallest factor, from 0 up.
        high: Largest factor.

    References:
        Howard, [*Some improvements on deep convolutional neural network based image
        classification*](https://arxiv.org/abs/1312.5402), 2013, section 2.
    """

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        check_number("low", self.low, at_least=0)
        check_number("high", self.high, at_least=self.low)

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Any]:
        """Return the pictures, with more or less contrast, and the labels."""
        rows, *_ = sizes(x)
        # As float32: the order of a sum in float64 may differ between machines.
        flat = x.reshape(rows, math.prod(x.shape[1:]))
        mean = flat.mean(axis=1, dtype=np.float64).astype(np.float32)
        factor = draws.uniform(self.low, self.high).astype(np.float32)
        mean, factor = per_image(mean, x), per_image(factor, x)
        return to_dtype(mean + factor * (x - mean), x.dtype), y


@dataclass(frozen=True)
class GaussianNoise:
    r"""Add a number from $\mathcal N(0, \sigma^2)$ to each pixel.

    Args:
        stddev: $\sigma$, in the units of the pixels. Bytes are rounded and cut to 0 to
            255.

    References:
        Bishop, *Training with noise is equivalent to Tikhonov regularization*, Neural
        Computation 7(1), 1995.
    """

    stddev: float

    def __post_init__(self) -> None:
        check_number("stddev", self.stddev, at_least=0)

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Any]:
        """Return the noisy pictures and the labels."""
        sizes(x)
        noise = draws.normal(stddev=self.stddev, shape=x.shape[1:])
        return to_dtype(x + noise, x.dtype), y
