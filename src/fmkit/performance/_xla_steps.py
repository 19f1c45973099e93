"""The steps of one execution as one XLA program, on TensorFlow and on JAX.

A program takes `steps_per_execution` batches in one piece, and its loop over them is
inside. `Batches` come so, cut by a thread while the program before runs. Of other data
the batches are taken from Keras's iterator as Keras's own loop takes them, none ahead,
and stacked.

Which program takes a batch must not depend on where a run was killed, since XLA rounds
each in its own way. So several batches of one shape go to the loop; one that is alone
in its execution, or smaller at the end of it, goes to a program of one step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._blocks import Block, Blocks

__all__ = ["for_jax", "for_tensorflow", "predict_on_tensorflow"]

Tensor = Any
Stack = Callable[[Sequence[Any]], Any]


def for_tensorflow(step: Callable[..., Any], most: int, of_keras: Any) -> Any:
    """Return what Keras calls on TensorFlow for each execution of `fit` or `evaluate`.

    Args:
        step: The model's `train_step` or `test_step`.
        most: How many batches an execution has, if the data don't end before.
        of_keras: What Keras would call; for data that have no stack.
    """
    import tensorflow as tf

    # No `reduce_retracing`: it traces every size after the first one as "any size", and
    # XLA rounds that program differently. A run resumed at its smaller last batch would
    # then have other programs than the run that was never killed.
    single = tf.function(step, autograph=False, jit_compile=True)

    @tf.function(autograph=False, jit_compile=True)
    def many(whole: Any, steps: Tensor) -> Any:
        def one(place: Tensor, logs: Any) -> tuple[Tensor, Any]:
            del logs
            return place + 1, traced(_at(whole, place))

        # The loop needs logs to start with, and a traced step tells their shapes.
        traced = single.get_concrete_function(_at(whole, 0))
        start = keras.tree.map_structure(
            lambda told: tf.zeros(told.shape, told.dtype), traced.structured_outputs
        )
        return tf.while_loop(
            lambda place, logs: place < steps, one, (tf.constant(0), start)
        )[1]

    @tf.function(autograph=False)
    def read(iterator: Any) -> tuple[list[Any], list[Tensor]]:
        batches = [iterator.get_next_as_optional() for _ in range(most)]
        return batches, [batch.has_value() for batch in batches]

    @tf.function(autograph=False)
    def values(batches: list[Any]) -> list[Any]:
        return [batch.get_value() for batch in batches]

    def blocks(iterator: Any) -> list[Block]:
        if isinstance(iterator, Blocks):
            return keras.tree.map_structure(_tensor, next(iterator))
        batches, there = read(iterator)
        count = sum(map(bool, there))
        return _blocks(values(batches[:count]) if count else [], tf.stack)

    def execution(iterator: Any) -> Any:
        if not isinstance(iterator, Blocks) and not _have_a_stack(iterator):
            return of_keras(iterator)
        logs = None
        for data, steps in _pieces(blocks(iterator)):
            if steps:
                logs = many(_padded(data, most - steps), tf.constant(steps))
            else:
                logs = single(data)
        return logs

    return execution


def predict_on_tensorflow(step: Any, most: int, of_keras: Any) -> Any:
    """Return what Keras calls on TensorFlow with the batches of each execution.

    Args:
        step: The model's `predict_step`.
        most: As in `for_tensorflow`.
        of_keras: What Keras would call; for data that are no `Batches`.
    """
    import tensorflow as tf

    single = tf.function(step, autograph=False, jit_compile=True)

    @tf.function(autograph=False, jit_compile=True)
    def many(whole: Any, steps: Tensor) -> Any:
        def one(place: Tensor, outputs: Any) -> tuple[Tensor, Any]:
            each = keras.tree.map_structure(
                lambda rows, out: rows.write(place, out),
                outputs,
                traced(_at(whole, place)),
            )
            return place + 1, each

        traced = single.get_concrete_function(_at(whole, 0))
        start = keras.tree.map_structure(
            lambda told: tf.TensorArray(told.dtype, most, element_shape=told.shape),
            traced.structured_outputs,
        )
        _, outputs = tf.while_loop(
            lambda place, outputs: place < steps, one, (tf.constant(0), start)
        )
        return keras.tree.map_structure(lambda rows: rows.stack(), outputs)

    def execution(batches: list[Any]) -> Any:
        if not isinstance(batches[0], list):
            return of_keras(batches)
        outputs = []
        for data, steps in _pieces(keras.tree.map_structure(_tensor, batches[0])):
            if steps:
                found = many(_padded(data, most - steps), tf.constant(steps))
                outputs.append(_rows(found, steps))
            else:
                outputs.append(single(data))
        return keras.tree.map_structure(lambda *leaves: tf.concat(leaves, 0), *outputs)

    return execution


def _tensor(leaf: Any) -> Tensor:
    import tensorflow as tf

    # `tf.constant` copies. What starts where XLA wants it can be shared.
    plain = leaf.dtype.kind in "fiu" and leaf.dtype.isnative
    aligned = leaf.ctypes.data % 64 == 0
    if plain and aligned and leaf.size and leaf.flags.writeable:
        return tf.experimental.dlpack.from_dlpack(leaf.__dlpack__())
    return tf.constant(leaf)


def _have_a_stack(iterator: Any) -> bool:
    import tensorflow as tf

    if not isinstance(iterator, tf.data.Iterator):
        return False
    specs = keras.tree.flatten(iterator.element_spec)
    return all(isinstance(spec, tf.TensorSpec) for spec in specs)


def for_jax(step: Callable[..., Any], most: int, of_keras: Any) -> Any:
    """Return what Keras calls on JAX for each execution of `fit` or `evaluate`.

    Args:
        step: The model's `train_step` or `test_step`.
        most: How many batches an execution has, if the data don't end before.
        of_keras: What Keras would call; for data of which it makes its own stacks.
    """
    import jax

    single = jax.jit(step, donate_argnums=0)
    traced = jax.jit(step, inline=True)  # in the loop, not called by it

    def many_steps(state: Any, whole: Any, steps: Tensor) -> Any:
        def one(place: Tensor, carried: Any) -> Any:
            return traced(carried[1], _at(whole, place))

        # The loop needs logs to start with, and a traced step tells their shapes.
        told, _ = jax.eval_shape(traced, state, _at(whole, 0))
        start = jax.tree.map(lambda t: jax.numpy.zeros(t.shape, t.dtype), told)
        return jax.lax.fori_loop(0, steps, one, (start, state))

    many = jax.jit(many_steps, donate_argnums=0)

    def execution(state: Any, iterator: Iterator[Any]) -> Any:
        if not isinstance(iterator, Blocks) and private.stacks_batches():
            return of_keras(state, iterator)
        logs = None
        for data, steps in _pieces(_read(iterator, most)):
            if steps:
                logs, state = many(state, _padded(data, most - steps), steps)
            else:
                logs, state = single(state, data)
        return logs, state

    return execution


def _read(iterator: Any, most: int) -> list[Block]:
    if isinstance(iterator, Blocks):
        return next(iterator)
    return _blocks(list(itertools.islice(iterator, most)), _stack_of_jax)


def _stack_of_jax(leaves: Sequence[Any]) -> Any:
    import jax

    first = leaves[0]
    if isinstance(first, jax.Array) and first.device.platform != "cpu":
        return jax.numpy.stack(leaves)
    return np.stack(leaves)  # on a CPU it reads their memory


def _blocks(batches: list[Any], stack: Stack) -> list[Block]:
    """Return the batches of one execution, with those of one shape stacked.

    Raises:
        StopIteration: If there are none.
    """
    if not batches:
        raise StopIteration
    flat = [keras.tree.flatten(batch) for batch in batches]
    shapes = [[getattr(leaf, "shape", None) for leaf in leaves] for leaves in flat]
    same = len(batches) - (shapes[-1] != shapes[0])
    sparse = any(hasattr(leaf, "todense") for leaf in flat[0])  # on JAX
    if same == 1 or sparse or any(shape != shapes[0] for shape in shapes[:same]):
        return [Block(None, batch) for batch in batches]
    leaves = [
        None if each[0] is None else stack(each)
        for each in zip(*flat[:same], strict=True)
    ]
    whole = keras.tree.pack_sequence_as(batches[0], leaves)
    return [Block(whole, None if same == len(batches) else batches[-1])]


def _pieces(blocks: list[Block]) -> Iterator[tuple[Any, int]]:
    """Yield what a program takes: batches and how many, or one batch and 0."""
    for block in blocks:
        steps = _length(block.whole)
        if steps:
            yield block.whole, steps
        if _length(block.tail):
            yield block.tail, 0


def _length(arrays: Any) -> int:
    leaves = (leaf for leaf in keras.tree.flatten(arrays) if leaf is not None)
    return next(map(len, leaves), 0)


def _at(whole: Any, place: Any) -> Any:
    """Return one batch of the stacked ones."""
    return _each(lambda leaf: leaf[place], whole)


def _padded(whole: Any, missing: int) -> Any:
    """Fill up the last block of an epoch, so that it needs no program of its own."""
    if not missing:
        return whole

    def fill(leaf: Tensor) -> Tensor:
        return keras.ops.pad(leaf, [(0, missing)] + [(0, 0)] * (len(leaf.shape) - 1))

    return _each(fill, whole)


def _rows(outputs: Any, steps: int) -> Any:
    """Return the outputs for `steps` stacked batches as those for one batch."""

    def rows(leaf: Tensor) -> Tensor:
        return keras.ops.reshape(leaf[:steps], (-1, *leaf.shape[2:]))

    return _each(rows, outputs)


def _each(function: Callable[[Any], Any], structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else function(leaf), structure
    )
