"""Pictures that are moved, turned or scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from fmkit._checks import check_int, check_number, check_one_of
from fmkit.augmentation._draws import Draws
from fmkit.augmentation._images import Array, as_pixel, sizes, to_dtype

__all__ = ["RotateScale", "Shift"]

_AT_ONCE = 64
_LARGEST_TABLE = 2**20  # bytes
_MODES = ("constant", "edge", "reflect", "wrap")


@dataclass(frozen=True)
class Shift:
    r"""Move a picture by whole pixels, up or down and left or right.

    With $d_y, d_x$ drawn from $-p, \dots, p$ with equal chances, pixel $(i, j)$ of the
    result is pixel $(i - d_y, j - d_x)$ of the picture. It is the same as to pad by $p$
    pixels on each side and to cut a picture of the old size out at a random place: the
    random crop of He et al.

    Args:
        pixels: $p$, below height and width.
        mode: What comes in at the sides, in the words of `numpy.pad`: `"constant"`,
            `"edge"` (the last pixel again), `"reflect"` (the picture mirrored at its
            last pixel) or `"wrap"` (what went out on the other side).
        value: What a constant side is filled with, in the units of the pixels.

    References:
        He et al., [*Deep residual learning for image
        recognition*](https://arxiv.org/abs/1512.03385), 2015, section 4.2.
    """

    pixels: int = 4
    mode: Literal["constant", "edge", "reflect", "wrap"] = "constant"
    value: float = 0.0

    def __post_init__(self) -> None:
        check_int("pixels", self.pixels)
        check_one_of("mode", self.mode, _MODES)
        check_number("value", self.value)

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Any]:
        """Return the moved pictures and the labels."""
        rows, height, width = sizes(x)
        if self.pixels >= min(height, width):
            raise ValueError(
                f"`pixels` must be below height and width, {height} and {width}, "
                f"got pixels={self.pixels}."
            )
        down, across = draws.integers(-self.pixels, self.pixels + 1, (2,)).T
        if self.mode == "constant":
            return self._filled(x, down, across), y
        # Every picture of the old size in a padded one, of which one per row is copied.
        p = self.pixels
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0))[: x.ndim], self.mode)
        windows = np.lib.stride_tricks.as_strided(
            padded,
            (rows, 2 * p + 1, 2 * p + 1, *x.shape[1:]),
            (*padded.strides[:3], *padded.strides[1:]),
            writeable=False,
        )
        return windows[np.arange(rows), p - down, p - across], y

    def _filled(self, x: Array, down: Array, across: Array) -> Array:
        """Move all pixels in a row of memory, then overwrite what came around a side.

        Four times as fast as windows of two axes, which copy line by line.
        """
        rows, height, width = sizes(x)
        pixel = math.prod(x.shape[3:])
        most = (self.pixels * width + self.pixels) * pixel
        count = height * width * pixel
        outside = as_pixel(self.value, x.dtype)
        padded = np.empty((rows, count + 2 * most), x.dtype)
        padded[:, :most] = padded[:, -most:] = outside
        padded[:, most:-most] = x.reshape(rows, count)
        windows = np.lib.stride_tricks.as_strided(
            padded,
            (rows, 2 * most + 1, count),
            (*padded.strides, padded.itemsize),
            writeable=False,
        )
        starts = most - (down * width + across) * pixel
        moved = windows[np.arange(rows), starts].reshape(x.shape)
        # As whole numbers, of which bitwise operations change many at once: whole
        # pictures of small ones, lines of large ones.
        kind = np.dtype(f"u{min(x.itemsize, 8)}")
        side = np.full(pixel, outside).view(kind)
        small = (2 * self.pixels + 1) * count * x.itemsize <= _LARGEST_TABLE
        lines = height if small else 1
        inside = _inside(self.pixels, lines, width, len(side), kind)
        inside = inside.take(across + self.pixels, axis=0)[:, None]
        numbers = moved.reshape(rows, height // lines, lines * width * pixel).view(kind)
        numbers &= inside
        if side.any():
            np.bitwise_not(inside, out=inside)
            inside &= np.tile(side, lines * width)
            numbers |= inside
        return moved


@lru_cache(maxsize=8)
def _inside(pixels: int, lines: int, width: int, pixel: int, kind: Any) -> Array:
    """Return masks of what doesn't come around a side, for each move across.

    Args:
        pixels: The longest move $p$.
        lines: How many lines of a picture.
        width: Width of the picture.
        pixel: Whole numbers per pixel.
        kind: Their dtype.

    Returns:
        All bits or none, shape `(2 * pixels + 1, lines * width * pixel)`, for the
        moves from $-p$ up.
    """
    column = np.arange(width) - np.arange(-pixels, pixels + 1)[:, None]
    line = np.where((column >= 0) & (column < width), np.iinfo(kind).max, kind.type(0))
    return np.tile(line.astype(kind).repeat(pixel, axis=1), lines)


@dataclass(frozen=True)
class RotateScale:
    r"""Turn and scale a picture around its centre by small amounts.

    The result at offset $(u, v)$ from the centre, to the right and down, is the picture
    at

    $$\frac{1}{s}\,(u \cos\theta - v \sin\theta,\; u \sin\theta + v \cos\theta),$$

    interpolated between four pixels. A positive $\theta$ turns to the left, $s > 1$
    enlarges. $\tan(\theta/2)$ is drawn uniformly, from which sine and cosine follow by
    divisions alone, the same on every machine; up to 30 degrees the chances of the
    angles differ by at most 8 %.

    Args:
        degrees: Largest angle to either side, from 0 to 45.
        scale: Smallest and largest $s > 0$.
        value: What is outside of the picture, in the units of the pixels.

    References:
        Simard, Steinkraus and Platt, *Best practices for convolutional neural networks
        applied to visual document analysis*, 2003, section 2: affine distortions,
        interpolated between four pixels.
    """

    degrees: float = 10.0
    scale: tuple[float, float] = (1.0, 1.0)
    value: float = 0.0

    def __post_init__(self) -> None:
        check_number("degrees", self.degrees, at_least=0, at_most=45)
        low, high = self.scale
        check_number("scale[0]", low, above=0)
        check_number("scale[1]", high, at_least=low)
        check_number("value", self.value)

    def __call__(self, x: Array, y: Any, draws: Draws) -> tuple[Array, Any]:
        """Return the turned pictures and the labels."""
        rows, height, width = sizes(x)
        # As float32, the last digit of a machine's tangent is gone.
        limit = float(np.float32(math.tan(math.radians(self.degrees) / 2)))
        t = draws.uniform(-limit, limit)
        scale = draws.uniform(*self.scale) * (1 + t * t)
        cosine = ((1 - t * t) / scale).astype(np.float32)[:, None, None]
        sine = (2 * t / scale).astype(np.float32)[:, None, None]
        v = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2))[
            :, None
        ]
        u = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
        found, outside = np.empty_like(x), as_pixel(self.value, x.dtype)
        # A few pictures at a time stay in the cache.
        for start in range(0, rows, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            across = u * cosine[part] - v * sine[part] - u[0]
            down = u * sine[part] + v * cosine[part] - v[0]
            found[part] = _interpolated(x[part], down, across, outside)
        return found, y


def _interpolated(x: Array, down: Array, across: Array, outside: Array) -> Array:
    """Read pictures between their pixels; outside of them is one pixel's value."""
    rows, height, width = sizes(x)
    around = ((0, 0), (1, 2), (1, 2), (0, 0))[: x.ndim]
    padded = np.pad(x, around, constant_values=outside)
    down, across = down.clip(-1, height), across.clip(-1, width)
    top, left = np.floor(down), np.floor(across)
    below, right = down - top, across - left
    if x.ndim == 4:
        below, right = below[..., None], right[..., None]
    line = width + 3
    # Floats have no numbers for all pixels of a large picture.
    corner = (top.astype(np.int64) + 1) * line + (left.astype(np.int64) + 1)
    corner += (np.arange(rows) * (line * (height + 3)))[:, None, None]
    kind = np.float64 if x.dtype == np.float64 else np.float32
    flat = padded.reshape(-1, *x.shape[3:]).astype(kind)

    def pixels(offset: int) -> Array:
        return flat.take(corner + offset, axis=0)

    upper = (1 - right) * pixels(0) + right * pixels(1)
    lower = (1 - right) * pixels(line) + right * pixels(line + 1)
    return to_dtype((1 - below) * upper + below * lower, x.dtype)
