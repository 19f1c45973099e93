"""SplitMix64 by the number of the word: random bits as a pure function, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["mix", "word"]

Words = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(bits: Words) -> Words:
    """Scramble 64 bits: the finalizer of SplitMix64 (wraps modulo 2^64)."""
    bits = bits ^ (bits >> np.uint64(30))
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def word(seeds: Any, number: Any) -> Words:
    """Return word `number`, from 0 up, of the stream of each seed.

    The state of SplitMix64 grows by a constant, so any word is one multiplication away.
    The two arguments broadcast.

    References:
        Steele, Lea and Flood, [*Fast splittable pseudorandom number
        generators*](https://doi.org/10.1145/2660193.2660195), 2014.
    """
    # Arrays, since a scalar of NumPy warns when it wraps.
    seeds = np.atleast_1d(np.asarray(seeds, np.uint64))
    if isinstance(number, int):  # Python's own arithmetic is faster for one
        number = int(np.uint64(number))  # or an OverflowError
        return mix(seeds + np.uint64((number + 1) * int(_GAMMA) % 2**64))
    number = np.atleast_1d(np.asarray(number, np.uint64))
    return mix(seeds + (number + np.uint64(1)) * _GAMMA)
