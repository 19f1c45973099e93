"""The batches that Keras takes for a step, and a digest of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from fmkit._arrays import as_array
from fmkit._describe import digest_of_arrays

__all__ = ["BatchesSeen", "digest_of_batches"]


class BatchesSeen:
    """Holds the batches that Keras takes for a step, and changes none of them."""

    def __init__(self) -> None:
        self._batches: list[Any] = []
        self._dataset: tuple[Any, Any] = (None, None)

    def take(self, count: int) -> list[Any]:
        """Return the last `count` batches, each as its leaves, and forget all."""
        last, self._batches = self._batches[-count:], []
        return last

    def wrap(self, data: Any) -> Any:
        """Return the same batches as `data`, which is what Keras reads."""
        if keras.backend.backend() == "tensorflow":
            return self._wrap_dataset(data)
        # `map` calls `iter` at once, as Keras would: some data draw numbers then.
        return map(self._pass_on, data)

    def _pass_on(self, batch: Any) -> Any:
        self._batches.append(keras.tree.flatten(batch))
        return batch

    def _wrap_dataset(self, dataset: Any) -> Any:
        """Let a dataset call back with each of its elements."""
        import tensorflow as tf

        if not isinstance(dataset, tf.data.Dataset):  # of several replicas
            return dataset
        if self._dataset[0] is not dataset:
            options = tf.data.Options()
            # Else an element might be made before the step that takes it.
            options.experimental_optimization.inject_prefetch = False
            noting = dataset.map(self._noting(type(dataset.element_spec) is tuple))
            self._dataset = dataset, noting.with_options(options)
        return self._dataset[1]

    def _noting(self, is_tuple: bool) -> Any:
        import tensorflow as tf

        def note(*leaves: Any) -> np.int64:
            self._batches.append(leaves)
            return np.int64(0)

        @tf.autograph.experimental.do_not_convert
        def pass_on(*batch: Any) -> Any:
            leaves = tf.nest.flatten(batch, expand_composites=True)
            leaves = [leaf for leaf in leaves if leaf is not None]
            tf.numpy_function(note, leaves, tf.int64)
            return batch if is_tuple else batch[0]

        return pass_on


def digest_of_batches(batches: list[Any]) -> str | None:
    """Return a digest; `None` if there are none, or if they can't be read whole."""
    leaves = [leaf for batch in batches for leaf in batch if leaf is not None]
    # Of several processes on JAX, each has a part of the batch.
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    arrays = map(as_array, leaves)
    return digest_of_arrays(arrays, whole=True)[:16] if leaves else None
