"""Several batches in one piece, for a model that trains on them in one program."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import keras

__all__ = ["Block", "Blocks", "cut"]


class Block(NamedTuple):
    """Batches that follow one another, the last of which may be smaller.

    Attributes:
        whole: The full batches, stacked: `(batches, batch_size, ...)` in each array.
        tail: The samples of a last, smaller batch, `(samples, ...)`; often none.
    """

    whole: Any
    tail: Any


def cut(rows: Any, count: int, size: int) -> Block:
    """Cut `count` rows into a `Block`. Nothing is copied: they lie side by side."""
    full = count // size * size

    def whole(leaf: Any) -> Any:
        return leaf[:full].reshape(-1, size, *leaf.shape[1:])

    return Block(
        keras.tree.map_structure(whole, rows),
        keras.tree.map_structure(lambda leaf: leaf[full:], rows),
    )


class Blocks:
    """The executions of one epoch, each read in a thread while the last is in use.

    Args:
        blocks: Reads the blocks of one execution for each `next`.
    """

    def __init__(self, blocks: Iterator[list[Block]]) -> None:
        self._blocks = blocks
        # Its thread ends when nobody holds it any more: `fit` may stop in between.
        self._thread = ThreadPoolExecutor(1, "fmkit blocks")
        self._next = self._thread.submit(next, blocks, None)

    def __iter__(self) -> Iterator[list[Block]]:
        return self

    def __next__(self) -> list[Block]:
        blocks = self._next.result()
        if blocks is None:
            raise StopIteration
        self._next = self._thread.submit(next, self._blocks, None)
        return blocks
