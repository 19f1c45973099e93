"""The place in a `tf.data.Dataset`, which TensorFlow reads in its own programs.

A dataset counts how often an iterator of it has been made, and shuffles differently
each time. The way back is to make as many iterators as before, and to pass over the
batches that had been taken from the last one. The dataset itself notes a fingerprint
of each batch that it gives.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from fmkit import _keras_private as private
from fmkit._generators import storable_state
from fmkit.callbacks._resume._digest import another_batch, fingerprint, too_few
from fmkit.callbacks._resume._source import Source

__all__ = ["OnDevice", "iterators_of", "note_iterators", "pass_over"]

# What reads its input once and in order: a shuffle before it is begun with it.
_ONCE = {
    "Batch",
    "Enumerate",
    "Filter",
    "IgnoreErrors",
    "Map",
    "Options",
    "PaddedBatch",
    "ParallelBatch",
    "ParallelMap",
    "Prefetch",
    "Rebatch",
    "Scan",
    "Shard",
    "Shuffle",
    "Skip",
    "Take",
    "TakeWhile",
    "Unbatch",
    "Zip",
}
_SHUFFLES = {"Shuffle", "Random"}
# Fingerprints of so many batches are kept.
_KEPT = 1024
_END = object()


# How many iterators each dataset has had: the next `fit` on it goes on counting.
_iterators: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def iterators_of(data: Any) -> int:
    """Return how many iterators of data have been made in this process."""
    return _iterators.get(data, 0) if _is_dataset(data) else 0


def note_iterators(data: Any, count: int) -> None:
    """Note how many iterators of data have been made in this process."""
    if _is_dataset(data):
        _iterators[data] = count


def _is_dataset(data: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(data, tensorflow.data.Dataset)


def pass_over(
    dataset: Any, make: Callable[[], Any], earlier: int, *, used_every: int
) -> None:
    """Make as many iterators as an earlier process had, and use them as it did.

    Args:
        dataset: The dataset that the user gave.
        make: Returns what is iterated over.
        earlier: How many.
        used_every: Keras reads the first of so many, and throws the others away.
    """
    orders = [_is_drawn_once(path) for path in private.ways_through(dataset)]
    for number in range(earlier):
        iterator = iter(make())
        if not all(orders) and number % used_every == 0:
            while next(iterator, _END) is not _END:
                continue


def _is_drawn_once(path: list[str]) -> bool:
    """Whether each shuffle on a way through a dataset is begun with its iterator."""
    first = next((i for i, name in enumerate(path) if name in _SHUFFLES), len(path))
    return all(name in _ONCE for name in path[first + 1 :])


class OnDevice:
    """Follows the iterators that TensorFlow reads.

    Args:
        source: What they are read from.
    """

    is_unread = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self.states: list[dict[str, Any]] = []
        self._noting: tuple[Any, Any] = (None, None)
        self._table: Any = None

    def has_read(self, number: int) -> bool:
        """Whether a batch is known to be there: TensorFlow does not tell."""
        return False

    def close(self) -> None:
        """Do nothing: TensorFlow ends its iterators itself."""

    def pass_over(self, make: Callable[[], Any], earlier: int) -> None:
        """Make as many iterators as before; Keras throws every second one away."""
        if self._source.kind == "tf.data":
            pass_over(self._source.data, make, earlier, used_every=2)

    def begin(self, make: Callable[[], Any]) -> Any:
        """Return the dataset that is read in a new epoch."""
        self.states = [self._source.states()]
        return self._noted(make())

    def so_far(self, taken: int) -> dict[str, Any]:
        """Return what the way back to here needs, and a digest to check it by."""
        return {
            "states": list(map(storable_state, self.states)),
            "now": storable_state(self._source.states()),
            "digest": self._digest(taken - 1),
        }

    def go_to(self, make: Callable[[], Any], place: dict[str, Any]) -> Any:
        """Return an iterator from which the batches before a place have been taken.

        Raises:
            ValueError: If the data are others than before, or in another order.
        """
        source, taken = self._source, place["taken"]
        between = source.states()
        source.put(place["states"][0])
        self.states = place["states"]
        iterator = iter(self._noted(make(), max(taken - 1, 0)))
        if taken:
            if next(iterator, _END) is _END:
                raise ValueError(too_few(taken - 1, taken))
            if self._digest(taken - 1) != place["digest"]:
                raise ValueError(another_batch(taken - 1))
        source.put(between if place["between_epochs"] else place["now"])
        return iterator

    def _digest(self, number: int) -> str | None:
        if self._table is None or number < 0:
            return None
        import tensorflow as tf

        found = self._table.lookup(tf.constant(number % _KEPT, tf.int64))
        return f"{int(found) % 2**64:016x}"

    def _noted(self, dataset: Any, first: int = 0) -> Any:
        """Return the dataset from batch `first` on, but noting what it gives."""
        import tensorflow as tf

        if self._noting[0] is dataset and not first:
            return self._noting[1]
        with tf.device("CPU"):
            table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)

            def note(number: Any, batch: Any) -> Any:
                table.insert(number % _KEPT, fingerprint(batch))
                return batch

            # Of what is passed over nothing is noted.
            rest = dataset.skip(first) if first else dataset
            self._table, noting = table, rest.enumerate(first).map(note)
        self._noting = (None if first else dataset, noting)
        return noting
