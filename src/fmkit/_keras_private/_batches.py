"""The batches that Keras reads from any data, and who may stand between.

For each epoch Keras makes an iterator of its data. On JAX and PyTorch, and for what
Python reads on TensorFlow, the batches pass through Python, one by one; a
`tf.data.Dataset`, and arrays on TensorFlow, are read inside TensorFlow's programs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from fmkit._keras_private import _frames
from fmkit._keras_private._adapter import partial_batch_list
from fmkit._keras_private._pieces import OTHER_DATA, Piece, attribute

__all__ = [
    "add_to_steps_seen",
    "epoch_counter",
    "forget_read_ahead",
    "gather_arrays",
    "is_used_up",
    "kind_of_data",
    "peeked",
    "reads_on_device",
    "replicas",
    "symbolic_batch",
    "watch",
    "wrap_batches",
]

Read = Callable[[Callable[[], Iterable[Any]]], Iterator[Any]]
Steps = Callable[[Callable[[], Iterator[Any]]], Iterator[Any]]

# Where an adapter has the function that makes an iterator, or the iterable itself.
_MAKERS = {"PyDatasetAdapter": "_get_iterator", "GeneratorDataAdapter": "generator"}
_ITERABLES = {"TorchDataLoaderAdapter": "_dataloader"}
_KINDS = {
    "ArrayDataAdapter": "arrays",
    "GeneratorDataAdapter": "generator",
    "GrainDatasetAdapter": "grain",
    "PyDatasetAdapter": "PyDataset",
    "TFDatasetAdapter": "tf.data",
    "TorchDataLoaderAdapter": "DataLoader",
}


def kind_of_data(epoch_iterator: Any) -> str:
    """Return what kind of data an iterator of Keras's is over; "" if unknown."""
    return _KINDS.get(type(epoch_iterator.data_adapter).__name__, "")


def epoch_counter(
    epoch_iterator: Any,
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Return how to read and set the number by which Keras 3.16 shuffles arrays.

    Other Kerases, and other data, have none: `None` is read.
    """
    adapter = epoch_iterator.data_adapter

    def put(epoch: int | None) -> None:
        if epoch is not None:
            adapter._epoch = epoch

    return lambda: getattr(adapter, "_epoch", None), put


def is_used_up(epoch_iterator: Any, iterator: Any) -> bool:
    """Whether Keras has done with an iterator, and made the one after it."""
    current = attribute(epoch_iterator, "_current_iterator", OTHER_DATA)
    return current is not None and current is not iterator


def peeked(epoch_iterator: Any) -> int:
    """Return how many batches of a generator Keras has taken to look at them."""
    return len(attribute(epoch_iterator.data_adapter, "_first_batches", OTHER_DATA))


def forget_read_ahead(epoch_iterator: Any) -> None:
    """Drop what the workers of a PyDataset read when Keras looked at a first batch.

    To build a model Keras starts an epoch and breaks it off. What its workers had read
    by then it would train on first, ahead of the epoch's own batches: how much that is
    depends on the threads' timing.
    """
    enqueuer = attribute(epoch_iterator.data_adapter, "enqueuer", OTHER_DATA)
    queue = attribute(enqueuer, "ready_queue", OTHER_DATA)
    while not queue.empty():
        queue.get_nowait()


def gather_arrays(
    model: Any, make: Callable[[list[Any]], Callable[[Any], list[Any]] | None]
) -> None:
    """Let others gather the rows of the arrays of the running `fit`, on PyTorch.

    Keras's own `DataLoader` says which rows, as before. Called outside of `fit`, or of
    one on other data, nothing happens.

    Args:
        model: Whose `fit` it is.
        make: Is given the arrays; returns a function from indices to tensors of these
            rows of each, or `None` to leave it to Keras.
    """
    iterator = _frames.running_call("fit", model=model)[1].get("epoch_iterator")
    if iterator is None or kind_of_data(iterator) != "arrays":
        return
    adapter = iterator.data_adapter
    inputs = getattr(adapter, "_inputs", None)
    gather = make(keras.tree.flatten(inputs))
    if gather is None:
        return
    of_keras = adapter.get_torch_dataloader

    def rows(indices: Any) -> Any:
        return keras.tree.pack_sequence_as(inputs, gather(indices))

    def get_torch_dataloader() -> Any:
        loader = of_keras()
        dataset: Any = getattr(loader, "dataset", None)
        if hasattr(dataset, "__getitems__"):
            dataset.__getitems__ = rows  # which PyTorch asks for a whole batch
        return loader

    adapter.get_torch_dataloader = get_torch_dataloader


def replicas(epoch_iterator: Any) -> int:
    """Return to how many replicas TensorFlow hands each batch; 1 elsewhere."""
    strategy = getattr(epoch_iterator, "_distribute_strategy", None)
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def reads_on_device(epoch_iterator: Any) -> bool:
    """Whether it gives a `tf.data.Dataset` to one replica of TensorFlow's."""
    on_tensorflow = keras.backend.backend() == "tensorflow"
    return on_tensorflow and replicas(epoch_iterator) == 1


def symbolic_batch(epoch_iterator: Any) -> Any:
    """Return what a batch looks like to TensorFlow: symbolic tensors.

    Raises:
        ValueError: If the data don't say how many dimensions they have.
    """
    dataset = attribute(epoch_iterator, "_distributed_dataset", OTHER_DATA)

    def symbolic(spec: Any) -> Any:
        if spec.shape.rank is None:
            raise ValueError(
                "ExactResume makes the variables of metrics before the first step, "
                "and the data don't say how many dimensions a batch has. Give "
                "`from_generator` an `output_signature` with shapes; unknown sizes "
                "may be None."
            )
        return keras.KerasTensor(tuple(spec.shape), spec.dtype.name)

    return keras.tree.map_structure(symbolic, dataset.element_spec)


def watch(epoch_iterator: Any, read: Read, make: Read, steps: Steps) -> bool:
    """Let others read the batches of a `fit`, and choose among an epoch's steps.

    Args:
        epoch_iterator: Keras's `EpochIterator`, before its first epoch.
        read: Is given the function that makes an iterable of the batches, each time
            that Keras wants an iterator; returns what is read in its place.
        make: The same, where TensorFlow's own programs read a `tf.data.Dataset`.
        steps: Is given the function that enumerates an epoch: triples of the first
            and last step of an execution, and the iterator that it will read.

    Returns:
        Whether it is Python that reads, so that `read` is used and `make` is not.
    """
    enumerate_steps = attribute(epoch_iterator, "_enumerate_iterator", OTHER_DATA)
    for name in ("_steps_seen", "_current_iterator"):
        attribute(epoch_iterator, name, OTHER_DATA)
    by_python = _let_read(epoch_iterator, read, make)
    epoch_iterator._enumerate_iterator = lambda: steps(enumerate_steps)
    return by_python


def wrap_batches(epoch_iterator: Any, wrap: Callable[[Any], Any]) -> None:
    """Let `wrap` see what Keras reads the batches of each epoch from.

    To be called before the first epoch. Blocks for a fused program don't come by.

    Args:
        epoch_iterator: Keras's `EpochIterator`.
        wrap: Returns what Keras reads in place of its argument, which is a
            `tf.data.Dataset` on TensorFlow, and elsewhere an iterable of batches.
    """
    what = Piece("digests of batches in `Fingerprint`", "train without it")
    make = attribute(epoch_iterator, "_get_iterator", what)
    epoch_iterator._get_iterator = lambda: wrap(make())


def _let_read(epoch_iterator: Any, read: Read, make: Read) -> bool:
    adapter = epoch_iterator.data_adapter
    backend, kind = keras.backend.backend(), type(adapter).__name__
    if kind in _MAKERS:
        of_keras = attribute(adapter, _MAKERS[kind], OTHER_DATA)
        setattr(adapter, _MAKERS[kind], lambda: read(of_keras))
    elif kind in _ITERABLES:
        whole = attribute(adapter, _ITERABLES[kind], OTHER_DATA)
        setattr(adapter, _ITERABLES[kind], _Iterable(whole, read))
    elif backend == "torch" and kind in ("GrainDatasetAdapter", "TFDatasetAdapter"):
        adapter._dataset = _Iterable(attribute(adapter, "_dataset", OTHER_DATA), read)
    elif backend == "torch":
        of_keras = adapter.get_torch_dataloader
        adapter.get_torch_dataloader = lambda: read(of_keras)
    elif backend == "jax":
        _watch_jax(adapter, read)
    elif kind == "GrainDatasetAdapter":
        _read_by_tensorflow(epoch_iterator, _grain_dataset(adapter, read))
        return True
    else:
        of_keras = attribute(epoch_iterator, "_get_iterator", OTHER_DATA)
        epoch_iterator._get_iterator = lambda: make(of_keras)
        return False
    if backend == "tensorflow":
        # The dataset that is there has the function that it was made with.
        _read_by_tensorflow(epoch_iterator, adapter.get_tf_dataset())
    return True


class _Iterable:
    """Data that are read another way, and in all else the same."""

    def __init__(self, whole: Any, read: Read) -> None:
        self._whole = whole
        self._read = read

    def __iter__(self) -> Iterator[Any]:
        return self._read(lambda: self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def _watch_jax(adapter: Any, read: Read) -> None:
    of_keras = adapter.get_jax_iterator

    def get_jax_iterator(super_batch: int | None = None) -> Iterator[Any]:
        batches = read(of_keras)
        if not super_batch:
            return batches
        # As Keras stacks them where it has a loop over an execution's steps.
        return _stacked(batches, super_batch)

    adapter.get_jax_iterator = get_jax_iterator


def _stacked(batches: Iterator[Any], count: int) -> Iterator[Any]:
    import jax.numpy as jnp

    def stack(*leaves: Any) -> Any:
        return None if leaves[0] is None else jnp.stack(leaves)

    while block := list(itertools.islice(batches, count)):
        shapes = [keras.tree.map_structure(jnp.shape, each) for each in block]
        if len(block) == count and all(each == shapes[0] for each in shapes):
            yield keras.tree.map_structure(stack, *block)
        else:
            yield partial_batch_list(block)


def _read_by_tensorflow(epoch_iterator: Any, dataset: Any) -> None:
    strategy = attribute(epoch_iterator, "_distribute_strategy", OTHER_DATA)
    attribute(epoch_iterator, "_distributed_dataset", OTHER_DATA)
    distributed = strategy.experimental_distribute_dataset(dataset)
    epoch_iterator._distributed_dataset = distributed


def _grain_dataset(adapter: Any, read: Read) -> Any:
    """Return the dataset that Keras makes of Grain's, read by `read`."""
    import tensorflow as tf

    spec = adapter.get_tf_dataset().element_spec

    def as_tensors(batch: Any) -> Any:
        empty = tf.experimental.Optional.empty
        return keras.tree.map_structure(
            lambda leaf: empty(None) if leaf is None else leaf,
            keras.tree.lists_to_tuples(batch),
        )

    def batches() -> Iterator[Any]:
        return map(as_tensors, read(adapter.get_numpy_iterator))

    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def add_to_steps_seen(epoch_iterator: Any, count: int) -> None:
    """Count batches that were taken from the iterator of an earlier process."""
    seen = attribute(epoch_iterator, "_steps_seen", OTHER_DATA)
    epoch_iterator._steps_seen = seen + count
