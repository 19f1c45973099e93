"""The order of an epoch: a pure function of seed, epoch and number of samples."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fmkit._splitmix import mix

__all__ = ["SORT_LIMIT", "Order"]

Indices = npt.NDArray[np.int64]

# Up to here an epoch's permutation is sorted out in one piece (4 ms for 60,000,
# half a second and 100 MB at the limit); beyond, each index is enciphered by
# itself. The limit is part of the order's definition: moving it changes runs.
SORT_LIMIT = 2**22
_ROUNDS = 10


class Order:
    """The visiting order of `size` samples in every epoch.

    Args:
        size: Number of samples.
        seed: Any 64-bit unsigned integer.
        shuffle: `False` gives 0, 1, 2, ... in every epoch.
        sort_limit: Largest `size` whose permutation is made in one piece.
    """

    def __init__(
        self, size: int, seed: int, *, shuffle: bool, sort_limit: int = SORT_LIMIT
    ) -> None:
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.sort_limit = sort_limit
        self._last: tuple[int, Indices] | None = None

    def take(self, epoch: int, places: Indices) -> Indices:
        """Return the samples that stand at `places` of the order of `epoch`."""
        if not self.shuffle:
            return places
        if self.size > self.sort_limit:
            return feistel(places, self.size, self.seed, epoch)
        # Several threads may ask at once: read the pair in one piece.
        last = self._last
        if last is None or last[0] != epoch:
            last = self._last = (epoch, sorted_order(self.size, self.seed, epoch))
        return last[1][places]


def _philox(seed: int, epoch: int) -> np.random.Philox:
    # NumPy keeps the stream of a bit generator fixed for ever; it promises
    # nothing of the kind for `Generator.permutation`.
    return np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))


def sorted_order(size: int, seed: int, epoch: int) -> Indices:
    """Sort the samples by 64 random bits each: a full, unbiased shuffle.

    Two equal keys come up once in 2^65 / size^2 epochs; the stable sort keeps
    even those the same on every platform.
    """
    keys = _philox(seed, epoch).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def feistel(places: Indices, size: int, seed: int, epoch: int) -> Indices:
    r"""Permute 0..size-1 one place at a time, in no memory but that of `places`.

    A place is written as two digits $(l, r)$ in mixed radix $a \cdot b \ge n$.
    Rounds add a keyed hash of one digit to the other, which is invertible
    whatever the hash; a result outside the range goes through again
    (cycle-walking), which keeps the whole a permutation of 0..size-1.

    References:
        Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, 2002.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    keys = _philox(seed, epoch).random_raw(_ROUNDS)
    result = _rounds(places.astype(np.uint64), a, b, keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = _rounds(result[outside], a, b, keys)
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def _rounds(
    values: npt.NDArray[np.uint64], a: int, b: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    radix_a, radix_b = np.uint64(a), np.uint64(b)
    left, right = values // radix_b, values % radix_b
    for number, key in enumerate(keys):
        if number % 2 == 0:
            left = (left + mix(right ^ key) % radix_a) % radix_a
        else:
            right = (right + mix(left ^ key) % radix_b) % radix_b
    return left * radix_b + right
