"""Pictures with a part taken out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fmkit._checks import check_int, check_number, check_one_of
from fmkit.augmentation._draws import Draws
from fmkit.augmentation._images import Array, InPlace, as_pixel, fill, sizes

__all__ = ["Cutout", "RandomErasing"]

_TRIALS = 10


@dataclass(frozen=True)
class RandomErasing(InPlace):
    r"""Erase a rectangle of a picture with a probability.

    The share $s$ of the area and the aspect $r$ (height over width) are drawn
    uniformly. In a picture of $h$ by $w$ pixels the rectangle is $\sqrt{s h w r}$ high
    and $\sqrt{s h w / r}$ wide, rounded. Its place is drawn among all that hold it
    whole. One that is too large is drawn again, at most nine times; then the picture
    stays as it is.

    Args:
        probability: Chance that a picture is erased.
        area: Smallest and largest share of the picture, in (0, 1].
        aspect: Smallest and largest aspect.
        value: What the rectangle is filled with, in the units of the pixels, or
            `"random"`: each pixel a whole number from 0 to 255 with equal chances,
            divided by 255 in pictures of floats.

    References:
        Zhong et al., [*Random erasing data
        augmentation*](https://arxiv.org/abs/1708.04896), 2017, algorithm 1.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    value: float | Literal["random"] = 0.0

    def __post_init__(self) -> None:
        check_number("probability", self.probability, at_least=0, at_most=1)
        check_number("area[0]", self.area[0], above=0, at_most=1)
        check_number("area[1]", self.area[1], at_least=self.area[0], at_most=1)
        check_number("aspect[0]", self.aspect[0], above=0)
        check_number("aspect[1]", self.aspect[1], at_least=self.aspect[0])
        if isinstance(self.value, str):
            check_one_of("value", self.value, ["random"])
        else:
            check_number("value", self.value)

    def _change(self, x: Array, draws: Draws) -> None:
        _, height, width = sizes(x)
        chosen = np.flatnonzero(draws.uniform() < self.probability)
        # Only the chosen pictures draw on: the same numbers as if all did.
        draws = draws._of_rows(chosen, calls=0)
        _, down, across = draws.uniform(shape=(3,)).T
        by = self._filling(x, draws)
        high, wide = self._sides(draws.uniform(shape=(2,)), height, width)
        again = np.flatnonzero((high > height) | (wide > width))
        # All nine at once: a loop would take longer, for ever fewer pictures.
        trials = draws._ahead(again, _TRIALS - 1).uniform(shape=(2,))
        h, w = self._sides(trials.reshape(-1, _TRIALS - 1, 2), height, width)
        fits = (h <= height) & (w <= width)
        first = np.arange(len(again)), fits.argmax(axis=1)
        high[again], wide[again] = h[first] * fits[first], w[first] * fits[first]
        top, left = _place(down, height - high), _place(across, width - wide)
        fill(x, chosen, top, left, high, wide, by)

    def _sides(self, units: Array, height: int, width: int) -> tuple[Array, Array]:
        """Return height and width of rectangles from two numbers in [0, 1) each."""
        share = _between(units[..., 0], *self.area) * (height * width)
        aspect = _between(units[..., 1], *self.aspect)
        # Roots are the same on every machine, unlike powers.
        high, wide = np.sqrt(share * aspect), np.sqrt(share / aspect)
        return np.rint(high).astype(np.int64), np.rint(wide).astype(np.int64)

    def _filling(self, x: Array, draws: Draws) -> Array:
        if not isinstance(self.value, str):
            return as_pixel(self.value, x.dtype)
        dtype = x.dtype
        if dtype.kind not in "iuf" or (dtype.kind != "f" and np.iinfo(dtype).max < 255):
            raise ValueError(
                'value="random" needs pixels that can be 0 to 255, or floats, got '
                f"{dtype}: pass a number as `value`."
            )
        count = math.prod(x.shape[1:])
        words = draws.bits((-(-count // 8),)).astype("<u8", copy=False)
        pixels = words.view(np.uint8)[:, :count].reshape(-1, *x.shape[1:])
        if x.dtype.kind == "f":
            return pixels.astype(x.dtype) / x.dtype.type(255)
        return pixels.astype(x.dtype)


def _between(unit: Array, low: float, high: float) -> Array:
    return low + (high - low) * unit


def _place(unit: Array, room: Array) -> Array:
    """Choose a whole number from 0 to `room` with equal chances."""
    return (unit * (room + 1)).astype(np.int64)


@dataclass(frozen=True)
class Cutout(InPlace):
    r"""Erase a square around a random pixel.

    The centre $(i, j)$ is any pixel with equal chances. With side $s$ and $h = \lfloor
    s/2 \rfloor$, lines $i - h$ to $i - h + s - 1$ of columns $j - h$ to $j - h + s - 1$
    are filled, as far as they lie in the picture.

    Args:
        size: Side of the square in pixels.
        value: What it is filled with, in the units of the pixels.

    References:
        DeVries and Taylor, [*Improved regularization of convolutional neural networks
        with cutout*](https://arxiv.org/abs/1708.04552), 2017.
    """

    size: int = 8
    value: float = 0.0

    def __post_init__(self) -> None:
        check_int("size", self.size)
        check_number("value", self.value)

    def _change(self, x: Array, draws: Draws) -> None:
        rows, height, width = sizes(x)
        top = draws.integers(0, height) - self.size // 2
        left = draws.integers(0, width) - self.size // 2
        side = np.full(rows, self.size)
        by = as_pixel(self.value, x.dtype)
        fill(x, np.arange(rows), top, left, side, side, by)
