"""The `tf.data` pipeline of a reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fmkit._requirements import require
from fmkit.data._reader import Reader, Span
from fmkit.data._source import class_weights

__all__ = ["assert_cardinality", "dataset", "empty_dataset"]


def dataset(reader: Reader, span: Span | Callable[[], Span]) -> Any:
    """Build the dataset of batches `first..end-1`, from an epoch on.

    `span` is `(epoch, first, end)`. Given as a function it is asked each time an
    iterator starts, so that one dataset, traced once, serves every epoch; it may then
    end in a later epoch. NumPy gathers the rows: that is as fast as `tf.gather`, leaves
    memory-mapped arrays on disk, and needs no second copy of the data inside
    TensorFlow.
    """
    tf = require("tensorflow", "`Batches.as_dataset`")

    # Each block costs a call into Python, so they are twice as long as NumPy's own.
    stride = 2 * reader.source.rows_per_block(reader.batch_size)
    stride //= reader.batch_size

    # The parallel map works three blocks ahead; a prefetch behind it gained nothing
    # in `fit` and cost a quarter when nothing else runs.
    def batches(blocks: Any) -> Any:
        full = reader.partial_batch_size is None
        return blocks.map(_read_block(reader), num_parallel_calls=3).rebatch(
            reader.batch_size, drop_remainder=full
        )

    # The blocks come as one table: a `map` that made them one by one would cost
    # half a millisecond a block, more than gathering its rows.
    if callable(span):

        def ask(_: Any) -> Any:
            parts = tf.numpy_function(
                lambda: np.array([*reader.parts(*span())], np.int64).reshape(-1, 3),
                [],
                tf.int64,
            )
            return tf.ensure_shape(parts, [None, 3])

        def one_epoch(part: Any) -> Any:
            table = tf.numpy_function(
                lambda epoch, first, end: _blocks(
                    int(epoch), int(first), int(end), stride
                ),
                tf.unstack(part),
                tf.int64,
            )
            blocks = tf.ensure_shape(table, [None, 3])
            return batches(tf.data.Dataset.from_tensor_slices(blocks))

        # One after the other: `rebatch` would fill up a smaller batch between them.
        parts = tf.data.Dataset.range(1).map(ask).unbatch()
        dataset = parts.flat_map(one_epoch)
    else:
        table = _blocks(*span, stride)
        dataset = batches(tf.data.Dataset.from_tensor_slices(table))

    # Autotuning costs up to 2.5 s when an iterator of a vectorised pipeline is
    # deleted, and ends iterations on powers of two of 10 ms.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    if reader.shard[1] > 1:
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.OFF
        )
    return dataset.with_options(options)


def _blocks(epoch: int, first: int, end: int, stride: int) -> np.ndarray[Any, Any]:
    """Return one row `(epoch, first, end)` for each block of at most `stride` batches.

    The first ones are shorter: nothing can be used before they are there.
    """
    halves = [first, first + stride // 4, first + stride // 2]
    starts = np.union1d(halves, np.arange(first + stride, end, stride))
    starts = starts[starts < end].astype(np.int64)
    ends = np.append(starts, end)[1:]
    return np.stack([np.full_like(starts, epoch), starts, ends], axis=1)


def _read_block(reader: Reader) -> Callable[..., Any]:
    import tensorflow as tf

    source, weights = reader.source, reader.weights
    samples = reader.gather(0, np.zeros(1, np.int64))
    dtypes = [tf.as_dtype(sample.dtype) for sample in samples]

    def gather(block: Any) -> list[Any]:
        epoch, first, end = map(int, block)
        return reader.gather(epoch, reader.indices(epoch, first, end))

    def weights_of(y: Any) -> Any:
        assert weights is not None
        return class_weights(y, weights)

    def read(block: Any) -> Any:
        rows = tf.numpy_function(gather, [block], dtypes)
        for row, sample in zip(rows, samples, strict=True):
            row.set_shape([None, *sample.shape[1:]])
        x, y, weight = source.pack(rows)
        x, y = source.apply(x, y, lambda _: tf.zeros(tf.shape(rows[0])[:1], tf.int32))
        if weights is not None:
            weight = tf.ensure_shape(
                tf.numpy_function(weights_of, [y], tf.float32), [None]
            )
        if y is None and weight is None:
            return (x,) if isinstance(x, tuple) else x
        return (x, y) if weight is None else (x, y, weight)

    return read


def empty_dataset() -> Any:
    """Return a dataset without elements."""
    import tensorflow as tf

    return tf.data.Dataset.range(0)


def assert_cardinality(count: int) -> Any:
    """Return the dataset transformation that states the number of batches."""
    import tensorflow as tf

    return tf.data.experimental.assert_cardinality(count)
