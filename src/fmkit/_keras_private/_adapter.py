"""Data of one's own for `fit`: what Keras calls a data adapter, and how it is asked."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from fmkit._keras_private import _frames
from fmkit._keras_private._pieces import attribute, piece

__all__ = [
    "DataSource",
    "Feed",
    "Request",
    "add_requests",
    "executions",
    "stacks_batches",
    "without_request",
]

DataAdapter: Any = piece("keras.src.trainers.data_adapters.data_adapter:DataAdapter")
partial_batch_list = piece(
    "keras.src.trainers.data_adapters.data_adapter_utils:PartialBatchList"
)


def stacks_batches() -> bool:
    """Whether Keras's JAX trainer has a loop of its own over stacked batches.

    Not asked at import, which works where `DataAdapter` has moved, too.
    """
    make = getattr(DataAdapter, "get_jax_iterator", None)
    return make is not None and "super_batch" in inspect.signature(make).parameters


@dataclasses.dataclass(frozen=True)
class Request:
    """What a call of `fit`, `evaluate` or `predict` asks of its data.

    Attributes:
        model: Whose call it is; `None` outside of them.
        method: `"fit"`, `"evaluate"`, `"predict"`, or `None` outside of them.
        training: Whether these are the batches that weights are trained on.
        initial_epoch: `fit`'s argument; 0 elsewhere.
        steps_in_one_program: How many batches the model takes in one piece. A model
            that takes more than one passes its requests itself.
        arguments: What was passed beside the data: `y`, `sample_weight`,
            `batch_size`, `steps_per_epoch`, `class_weight`.
    """

    model: Any = None
    method: str | None = None
    training: bool = False
    initial_epoch: int = 0
    steps_in_one_program: int = 1
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


class Feed(DataAdapter):
    """The batches of one call, with steps that need not begin at 0."""

    def start_epoch(self) -> tuple[int, int]:
        """Return the first step of the epoch that begins, and the end of its steps."""
        raise NotImplementedError

    def blocks(self) -> Iterator[Any] | None:
        """Return what the train function reads in place of the backend's iterator."""
        return None


class DataSource(DataAdapter):
    """Data that `fit`, `evaluate` and `predict` take as they are.

    A subclass says in `feed` what a call gets, and in `__len__` how many batches an
    epoch has. The first thing that Keras asks of its data is `num_batches`; here, and
    nowhere else, that question is taken as the beginning of a call.
    """

    def feed(self, request: Request) -> Feed:
        """Return the batches for one call.

        Raises:
            ValueError: If the call's arguments don't fit the data.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def num_batches(self) -> int:
        """Number of batches in a whole epoch."""
        making = _frames.iterator_in_the_making()
        if making is not None:
            names = ("y", "sample_weight", "batch_size", "steps_per_epoch")
            arguments = {name: making[name] for name in (*names, "class_weight")}
            request = dataclasses.replace(self._request(), arguments=arguments)
            _connect(making["self"], self.feed(request), request.method)
        return len(self)

    def _request(self) -> Request:
        """Return what is asked, but for the arguments: found in Keras's frames."""
        method, values = _frames.running_call("fit", "evaluate", "predict")
        return Request(
            model=values.get("self"),
            method=method,
            # `fit` makes the iterator of the training data first, and that of the
            # validation data when its own is already there.
            training=method == "fit" and "epoch_iterator" not in values,
            initial_epoch=int(values.get("initial_epoch") or 0),
        )


class _WithRequest(DataSource):
    """A source in the hands of a model that says itself what it asks."""

    def __init__(self, source: DataSource, request: Request) -> None:
        self.source = source
        self.request = request

    def feed(self, request: Request) -> Feed:
        return self.source.feed(request)

    def __len__(self) -> int:
        return len(self.source)

    def _request(self) -> Request:
        return self.request


def add_requests(
    model: Any, method: str, given: dict[str, Any], steps_in_one_program: int
) -> None:
    """Put a request beside each `DataSource` among the arguments of a call.

    For a model that overrides `fit`, `evaluate` and `predict`: its data need not look
    for the call that they are used in.

    Args:
        model: The model.
        method: The name of its method.
        given: The arguments, by name. They are changed in place.
        steps_in_one_program: As in `Request`.
    """
    request = Request(model, method, steps_in_one_program=steps_in_one_program)
    for name in ("x", "validation_data"):
        if isinstance(given.get(name), DataSource):
            if name == "x" and method == "fit":
                start = int(given.get("initial_epoch") or 0)
                own = dataclasses.replace(request, training=True, initial_epoch=start)
            else:
                own = request
            # `fit` passes its validation data, which have a request, to `evaluate`.
            given[name] = _WithRequest(without_request(given[name]), own)


def without_request(data: Any) -> Any:
    """Return what was given to a call in place of `data`."""
    return data.source if isinstance(data, _WithRequest) else data


def executions(blocks: Iterator[Sequence[tuple[Any, Any]]]) -> Iterator[Any]:
    """Return blocks as Keras's JAX trainer takes the batches of one execution.

    It asks for them so, by `get_jax_iterator(super_batch=...)`, if it has a loop over
    the steps of its own. Full batches it takes stacked; with a smaller one among them
    it must get a list.
    """

    def execution(blocks: Sequence[tuple[Any, Any]]) -> Any:
        if len(blocks) == 1 and not _length(blocks[0][1]):
            return blocks[0][0]
        batches = []
        for whole, tail in blocks:
            batches += [
                keras.tree.map_structure(lambda leaf, i=step: leaf[i], whole)
                for step in range(_length(whole))
            ]
            batches += [tail] if _length(tail) else []
        return partial_batch_list(batches)

    return map(execution, blocks)


def _length(arrays: Any) -> int:
    return len(keras.tree.flatten(arrays)[0])


class _OncePerExecution:
    """Blocks as Keras's `predict` on TensorFlow reads the batches of an execution.

    It asks for one after the other until there are no more. Here the first is all.
    """

    def __init__(self, blocks: Iterator[Any]) -> None:
        self._blocks = blocks
        self._is_given = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._is_given:
            self._is_given = False
            raise StopIteration
        block = next(self._blocks)
        self._is_given = True
        return block


def _connect(epoch_iterator: Any, feed: Feed, method: str | None) -> None:
    """Let `epoch_iterator` read `feed`, with the steps that the feed says.

    Keras's own enumeration starts at 0, and makes one more iterator at the end of
    every epoch that it throws away unused.
    """
    stride = epoch_iterator.steps_per_execution

    def enumerate_steps() -> Iterator[tuple[int, int, Any]]:
        epoch_iterator.steps_per_execution = stride
        first, end = feed.start_epoch()
        iterator = feed.blocks()
        if iterator is None:
            iterator = iter(attribute(epoch_iterator, "_get_iterator")())
        elif method == "predict":
            iterator = _OncePerExecution(iterator)
        for step in range(first, end, stride):
            taken = min(stride, end - step)
            # PyTorch's loop takes as many batches as this says, and takes a missing
            # one for the end of the data, ahead of its time.
            epoch_iterator.steps_per_execution = taken
            yield step, step + taken - 1, iterator

    attribute(epoch_iterator, "_enumerate_iterator")  # what Keras asks for its steps
    epoch_iterator.data_adapter = feed
    epoch_iterator._enumerate_iterator = enumerate_steps
