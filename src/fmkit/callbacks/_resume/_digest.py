"""A digest of each batch, by which a run knows again where it was in its data."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from fmkit._describe import digest_of_arrays

__all__ = ["another_batch", "digest_of_batch", "fingerprint", "too_few"]

# Of larger arrays every second, third, ... element is digested.
_WHOLE = 2**18


def digest_of_batch(batch: Any) -> str:
    """Return a digest of a batch; of its large arrays, of a part of them."""
    arrays = []
    for leaf in keras.tree.flatten(batch):
        if leaf is not None:
            array = np.asarray(keras.ops.convert_to_numpy(leaf))
            part = array.reshape(-1)[:: max(1, array.size // _WHOLE)]
            arrays += [np.array(array.shape, np.int64), part]
    return digest_of_arrays(arrays, whole=True)


def another_batch(number: int) -> str:
    """Return the message of data whose last batch before a commit is another one."""
    return (
        f"Batch {number} of the epoch is not the one it was when the commit was made: "
        "the data came in another order, or they have changed. So the run can't "
        "continue exactly. Seed what shuffles them before `fit` "
        "(fmkit.set_random_seed, Dataset.shuffle(seed=...), a generator for the "
        "sampler) and start in another directory, or use fmkit.data.Batches."
    )


def too_few(number: int, taken: int) -> str:
    """Return the message of data that have ended before a commit's place in them."""
    return (
        f"The data ended after {number} batches; when the commit was made, {taken} had "
        "been taken from them. Give `fit` the same data, or another directory."
    )


def fingerprint(batch: Any) -> Any:
    """Return a number for the content of a batch, inside a TensorFlow program."""
    import tensorflow as tf

    found = []
    for leaf in tf.nest.flatten(batch, expand_composites=True):
        if leaf.dtype == tf.string:
            leaf = tf.strings.to_hash_bucket_fast(leaf, 2**62)
        elif leaf.dtype == tf.bool:
            leaf = tf.cast(leaf, tf.uint8)
        found.append(tf.fingerprint(tf.reshape(leaf, [1, -1])))
    return tf.bitcast(tf.fingerprint(tf.concat(found, 1))[0], tf.int64)
