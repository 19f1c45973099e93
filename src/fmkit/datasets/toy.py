r"""The small synthetic sets of the TensorFlow 1 tutorials, bit for bit.

Each function draws from `numpy.random.RandomState(seed)`, whose stream NumPy has
frozen, in the tutorials' order, so that their printed tables can be reproduced.
Values are drawn and labels are computed in float64, then rounded once to float32.
"""

from __future__ import annotations

import numpy as np

from fmkit._checks import check_int

__all__ = ["circle", "half_plane", "yogurt_sales"]


def half_plane(n: int = 32, *, seed: int = 23455) -> tuple[np.ndarray, np.ndarray]:
    """Points of the unit square, labelled by the side of a line they lie on.

    The label is 1 where $x_0 + x_1 < 1$ and 0 elsewhere: "parts whose volume and
    weight together pass".

    Args:
        n: Number of points.
        seed: Seed of `numpy.random.RandomState`.

    Returns:
        `x`, float32 `(n, 2)` in [0, 1), and `y`, int32 `(n, 1)`, 0 or 1.

    Raises:
        ValueError: If `n` is less than 1 or `seed` is negative.

    Examples:
        >>> x, y = half_plane()
        >>> [round(float(value), 4) for value in x[0]], int(y[0, 0])
        ([0.8349, 0.1148], 1)
    """
    points = _generator(n, seed).rand(n, 2)
    return _labelled(points, points.sum(axis=1) < 1)


def yogurt_sales(n: int = 32, *, seed: int = 23455) -> tuple[np.ndarray, np.ndarray]:
    r"""Daily sales of yogurt from two factors, with a little noise.

    $y = x_0 + x_1 + u$ with $u$ uniform in $[-0.05, 0.05)$, drawn after all of `x`.
    The tutorials use the seeds 23455 and 234555.

    Args:
        n: Number of days.
        seed: Seed of `numpy.random.RandomState`.

    Returns:
        `x`, float32 `(n, 2)` in [0, 1), and `y`, float32 `(n, 1)`.

    Raises:
        ValueError: If `n` is less than 1 or `seed` is negative.

    Examples:
        >>> x, y = yogurt_sales()
        >>> bool((abs(y[:, 0] - x.sum(axis=1)) <= 0.0501).all())
        True
    """
    generator = _generator(n, seed)
    factors = generator.rand(n, 2)
    noise = generator.rand(n) / 10.0 - 0.05
    sales = factors[:, 0] + factors[:, 1] + noise
    return factors.astype(np.float32), sales.astype(np.float32)[:, np.newaxis]


def circle(n: int = 300, *, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Normally distributed points, labelled by whether they lie in a circle.

    The label is 1 where $x_0^2 + x_1^2 < 2$ and 0 elsewhere.

    Args:
        n: Number of points.
        seed: Seed of `numpy.random.RandomState`.

    Returns:
        `x`, float32 `(n, 2)`, and `y`, int32 `(n, 1)`, 0 or 1.

    Raises:
        ValueError: If `n` is less than 1 or `seed` is negative.

    Examples:
        >>> x, y = circle()
        >>> [round(float(value), 4) for value in x[0]], int(y[0, 0])
        ([-0.4168, -0.0563], 1)
    """
    points = _generator(n, seed).randn(n, 2)
    return _labelled(points, (points * points).sum(axis=1) < 2)


def _generator(n: int, seed: int) -> np.random.RandomState:
    check_int("n", n)
    return np.random.RandomState(check_int("seed", seed, minimum=0))


def _labelled(points: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return points.astype(np.float32), inside.astype(np.int32)[:, np.newaxis]
