"""Random numbers for the rows of a block, each a pure function of its sample."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fmkit import _splitmix
from fmkit._checks import check_int, check_number
from fmkit.augmentation._quantiles import (
    LARGEST_ALPHA,
    beta_quantiles,
    normal_quantiles,
)

__all__ = ["Draws", "Read"]

# From the indices of samples to their x and y.
Read = Callable[[npt.NDArray[np.int64]], tuple[Any, Any]]


@lru_cache(maxsize=64)
def _key(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    return _splitmix.word(_splitmix.word(0, seed), epoch)


class Draws:
    r"""Random numbers for a block of rows, one stream per sample.

    Row $i$ draws from a stream of its own. Its key is the path (seed, epoch, index of
    the sample, number of the function): each level is one word of SplitMix64, seeded
    with the level above. So a sample gets the same numbers in every block it may be in,
    on every backend and version of NumPy. The first call of a method is draw 0 of each
    row, the next one draw 1; a function must make the same draws in every block.

    `Batches(augment=...)` makes these objects. Elsewhere, make one yourself.

    Args:
        seed: Integer from 0 to $2^{64} - 1$.
        epoch: Epoch, from 0 up.
        index: Index of the sample in each row, shape `(rows,)`.
        number: Number of the function in its sequence.
        read: Returns `(x, y)` of samples by their indices, for `samples`.
        size: How many samples there are.

    Examples:
        >>> draws = Draws(seed=0, epoch=3, index=[7, 8, 9])
        >>> draws.integers(0, 100).tolist()
        [26, 31, 32]
        >>> Draws(seed=0, epoch=3, index=[9]).integers(0, 100).tolist()
        [32]
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        index: Any,
        *,
        number: int = 0,
        read: Read | None = None,
        size: int | None = None,
    ) -> None:
        self.seed = check_int("seed", seed, minimum=0)
        self.epoch = check_int("epoch", epoch, minimum=0)
        self.index = np.atleast_1d(np.asarray(index, np.int64))
        self.number = check_int("number", number, minimum=0)
        self._read, self._size = read, size
        self._samples = _splitmix.word(_key(self.seed, self.epoch), self.index)
        self._begin(self.number)

    def _begin(self, number: int) -> None:
        self.number = number
        self._calls: Any = 0
        self._keys = _splitmix.word(self._samples, number)

    def _of_function(self, number: int, read: Read | None) -> Draws:
        """Return new draws for the same rows and another function of the sequence."""
        found = copy.copy(self)
        found._read = read
        found._begin(number)
        return found

    def _of_rows(self, rows: Any, *, calls: int | None = None) -> Draws:
        """Return the draws of some rows: the next ones, or those after some calls."""
        found = copy.copy(self)
        found.index, found._keys = self.index[rows], self._keys[rows]
        found._samples = self._samples[rows]
        if calls is not None:
            found._calls = calls
        return found

    def _ahead(self, rows: Any, calls: int) -> Draws:
        """Return draws whose next call makes the next `calls` calls of some rows.

        A row each, of which `calls` in sequence belong to one row here.
        """
        found = self._of_rows(np.repeat(rows, calls))
        found._calls = self._calls + np.tile(np.arange(calls), len(rows))
        return found

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)

    def at_epoch(self, epoch: int) -> Draws:
        """Return new draws for the same rows and function at another epoch.

        What is drawn at epoch 0 in every epoch stays with the sample for the whole run.
        """
        return Draws(
            self.seed,
            epoch,
            self.index,
            number=self.number,
            read=self._read,
            size=self._size,
        )

    def bits(self, shape: Sequence[int] = ()) -> npt.NDArray[np.uint64]:
        """Draw 64 random bits per element, shape `(rows, *shape)`."""
        keys = _splitmix.word(self._keys, self._calls)
        self._calls += 1
        if isinstance(shape, tuple) and not shape:
            return _splitmix.word(keys, 0)
        elements = np.arange(math.prod(shape))
        return _splitmix.word(keys[:, None], elements).reshape(len(self), *shape)

    def uniform(
        self, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()
    ) -> npt.NDArray[np.float64]:
        """Draw from `[low, high)`: 53 bits, float64, shape `(rows, *shape)`."""
        unit = (self.bits(shape) >> np.uint64(11)) * 2.0**-53
        return np.asarray(low + (high - low) * unit, np.float64)

    def integers(
        self, low: int, high: int, shape: Sequence[int] = ()
    ) -> npt.NDArray[np.int64]:
        r"""Draw whole numbers from `low` to `high - 1`, shape `(rows, *shape)`.

        With $m$ numbers, the chance of each is $1/m$ to $2^{-32}$.

        Raises:
            ValueError: If there are none to choose from, or more than $2^{32}$.
        """
        count = int(high) - int(low)
        if not 0 < count <= 2**32:
            raise ValueError(
                "`high` must be above `low`, by at most 2**32, "
                f"got low={low}, high={high}."
            )
        upper = self.bits(shape) >> np.uint64(32)
        return ((upper * np.uint64(count)) >> np.uint64(32)).astype(np.int64) + low

    def bernoulli(
        self, probability: float = 0.5, shape: Sequence[int] = ()
    ) -> npt.NDArray[np.bool_]:
        """Draw `True` with a probability, shape `(rows, *shape)`."""
        return self.uniform(shape=shape) < probability

    def normal(
        self, mean: float = 0.0, stddev: float = 1.0, shape: Sequence[int] = ()
    ) -> npt.NDArray[np.float32]:
        r"""Draw from a normal distribution, float32, shape `(rows, *shape)`.

        The numbers are the 65,536 quantiles $\Phi^{-1}((k + 1/2)/2^{16})$ with equal
        chances, so none is more than 4.33 standard deviations away. A table is the same
        everywhere; logarithms and cosines differ between versions of NumPy.
        """
        table = normal_quantiles()
        if (mean, stddev) != (0.0, 1.0):
            table = np.float32(mean) + np.float32(stddev) * table
        return table[self._levels(shape)]

    def beta(
        self, concentration: float, shape: Sequence[int] = ()
    ) -> npt.NDArray[np.float32]:
        r"""Draw from $\text{Beta}(\alpha, \alpha)$, float32, shape `(rows, *shape)`.

        65,536 quantiles with equal chances, as in `normal`.

        Args:
            concentration: $\alpha$, above 0 and up to 500.
            shape: Of what is drawn for each row.
        """
        alpha = check_number(
            "concentration", concentration, above=0, at_most=LARGEST_ALPHA
        )
        return beta_quantiles(alpha)[self._levels(shape)]

    def _levels(self, shape: Sequence[int]) -> npt.NDArray[np.uint16]:
        """Draw 16 bits per element: four elements share a word."""
        count = math.prod(shape)
        words = self.bits((-(-count // 4),)).astype("<u8", copy=False)
        return words.view("<u2")[:, :count].reshape(len(self), *shape)

    def samples(self, index: Any) -> tuple[Any, Any]:
        """Return `(x, y)` of other samples, as they come to this function this epoch.

        The functions before this one have been applied, with the draws of those
        samples. So two pictures can be mixed, whatever batches they are in.

        Raises:
            ValueError: If these draws know no data, or an index is no sample's.
        """
        if self._read is None:
            raise ValueError(
                "`samples` needs data: use Batches(augment=...), or pass `read` and "
                "`size` to augmentation.augment."
            )
        index = np.asarray(index, np.int64)
        size = self._size
        if size is not None and not ((index >= 0) & (index < size)).all():
            raise ValueError(
                f"`index` must be from 0 to {size - 1}, the last sample, got "
                f"{index.min()} to {index.max()}: draws.integers(0, draws.size)."
            )
        return self._read(index)

    @property
    def size(self) -> int:
        """How many samples there are: `samples` takes indices below it.

        Raises:
            ValueError: If these draws know no data.
        """
        if self._size is None:
            raise ValueError(
                "`size` needs data: use Batches(augment=...), or pass `read` and "
                "`size` to augmentation.augment."
            )
        return self._size
