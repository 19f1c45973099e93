"""Tables of quantiles: what a draw of 16 bits picks from."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST_ALPHA", "beta_quantiles", "normal_quantiles"]

# Beyond it the powers are zero in float64, long after all shares are nearly 1/2.
LARGEST_ALPHA = 500.0

_LEVELS = 2**16
_CELLS = 2**14


@functools.cache
def normal_quantiles() -> npt.NDArray[np.float32]:
    # Rounded to float32, the last digit of a machine's logarithm is gone.
    inverse = statistics.NormalDist().inv_cdf
    return _frozen([inverse((k + 0.5) / _LEVELS) for k in range(_LEVELS)])


@functools.cache
def beta_quantiles(alpha: float) -> npt.NDArray[np.float32]:
    r"""Invert the distribution function of Beta(alpha, alpha) on a grid.

    With $s = t^\beta$, $\beta = \min(\alpha, 1)$, the integral of $t^{\alpha-1}
    (1-t)^{\alpha-1}$ over $t$ is that of $t^{\alpha-\beta} (1-t)^{\alpha-1}$ over $s$,
    which is finite up to the middle, $t = 1/2$. The other half is its mirror image.
    """
    power = min(alpha, 1.0)
    s = np.linspace(0.0, 0.5**power, _CELLS + 1)
    t = ((s[1:] + s[:-1]) / 2) ** (1 / power)
    mass = np.append(0.0, np.cumsum(t ** (alpha - power) * (1 - t) ** (alpha - 1)))
    chances = (np.arange(_LEVELS // 2) + 0.5) / _LEVELS
    lower = np.interp(chances, mass / (2 * mass[-1]), s) ** (1 / power)
    return _frozen(np.append(lower, 1 - lower[::-1]))


def _frozen(values: Any) -> npt.NDArray[np.float32]:
    table = np.array(values, np.float32)
    table.flags.writeable = False
    return table
