"""The batches of an epoch by their numbers: what every way of reading them shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmkit._blocks import Block, cut
from fmkit.augmentation import augment
from fmkit.data._order import Indices, Order
from fmkit.data._source import Source

__all__ = ["Reader", "Span"]

# Epoch, first batch, and the one after the last. Numbers past the end of an epoch go
# on in the one after it.
Span = tuple[int, int, int]


@dataclass(frozen=True)
class Reader:
    """Arrays, the order to read them in, and how they are cut into batches.

    Attributes:
        source: The arrays and the map.
        order: The order of the samples in each epoch.
        batch_size: Samples per batch of this shard.
        shard: Number of this shard, and how many there are.
        drop_remainder: Whether a last batch that is not full is left out.
        weights: Weight of each class, or `None`.
        functions: What is done to the rows before the map, in sequence.
    """

    source: Source
    order: Order
    batch_size: int
    shard: tuple[int, int]
    drop_remainder: bool
    weights: dict[int, float] | None
    functions: tuple[Callable[..., Any], ...] = ()

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        whole, tail = divmod(self.source.size, self.shard[1] * self.batch_size)
        return whole + (tail > 0 and not self.drop_remainder)

    @property
    def partial_batch_size(self) -> int | None:
        """Samples in the last batch if it is smaller than the others, else `None`."""
        last = len(self._places(len(self) - 1, len(self)))
        return last if last < self.batch_size else None

    def parts(self, epoch: int, first: int, end: int) -> Iterator[Span]:
        """Cut a span where an epoch of the data ends: one span for each."""
        whole = len(self)
        while first < end:
            passed, start = divmod(first, whole)
            stop = min(whole, start + end - first)
            yield epoch + passed, start, stop
            first += stop - start

    def indices(self, epoch: int, first: int, end: int) -> Indices:
        """Return which samples are in batches `first` to `end - 1` of one epoch."""
        return self.order.take(epoch, self._places(first, end))

    def _places(self, first: int, end: int) -> Indices:
        """Return the places, in the order of all samples, of batches `first..end-1`."""
        size, (index, count) = self.batch_size, self.shard
        if count == 1:
            return np.arange(first * size, min(end * size, self.source.size))
        whole, tail = divmod(self.source.size, count * size)
        starts = np.arange(first, min(end, whole)) * (count * size) + index * size
        places = (starts[:, None] + np.arange(size)).ravel()
        if end > whole:
            # The shards share the last, smaller global batch as evenly as can be.
            rest = np.arange(index * tail // count, (index + 1) * tail // count)
            places = np.concatenate([places, whole * count * size + rest])
        return places

    def batches(self, epoch: int, first: int, end: int) -> Iterator[tuple[Any, ...]]:
        """Yield batches `first` to `end - 1`, from `epoch` on, as tuples of arrays."""
        size = self.batch_size
        stride = self.source.rows_per_block(size) // size
        for part, start, stop in self.parts(epoch, first, end):
            for place in range(start, stop, stride):
                block, count = self._rows(part, place, min(place + stride, stop))
                for row in range(0, count, size):
                    rows = slice(row, row + size)
                    yield keras.tree.map_structure(lambda leaf, r=rows: leaf[r], block)

    def blocks(
        self, epoch: int, first: int, end: int, stride: int
    ) -> Iterator[list[Block]]:
        """Yield the same batches, `stride` at a time: a block for each epoch in it.

        A smaller batch is then always the last one of its block.
        """
        for start in range(first, end, stride):
            yield [
                cut(*self._rows(*part), self.batch_size)
                for part in self.parts(epoch, start, min(start + stride, end))
            ]

    def _rows(self, epoch: int, first: int, end: int) -> tuple[tuple[Any, ...], int]:
        """Return the rows of batches `first` to `end - 1`, and how many they are."""
        rows = self.gather(epoch, self.indices(epoch, first, end))
        return self.source.block(rows, self.weights), len(rows[0])

    def gather(self, epoch: int, indices: Indices) -> list[Any]:
        """Return the rows of samples as they are in an epoch, one array per leaf."""

        def augmented(x: Any, y: Any, index: Indices) -> tuple[Any, Any]:
            return augment(
                x,
                y,
                self.functions,
                seed=self.order.seed,
                epoch=epoch,
                index=index,
                read=self.source.samples,
                size=self.source.size,
                overwrite=True,  # the rows have just been copied
            )

        return self.source.gather(indices, augmented if self.functions else None)
