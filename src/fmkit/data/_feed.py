"""One use of a `Batches` by one call of `fit`, `evaluate` or `predict`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fmkit import _keras_private as private
from fmkit._blocks import Blocks
from fmkit._buffers import to_tensors
from fmkit.data import _pipeline
from fmkit.data._reader import Reader, Span

__all__ = ["Feed"]

# Epoch of the data, and step in it.
Place = tuple[int, int]


class Feed(private.Feed):
    """The batches of one call.

    Args:
        source: The `Batches`, for who looks for it (`ExactResume`).
        reader: Reads them in the order of this call.
        steps: Number of batches per epoch of this call.
        begin_epoch: Returns the place in the data, and moves it on by so many batches;
            by `None`, to the next epoch of the data.
        step_back: Takes what `begin_epoch` returned, and undoes it.
        steps_in_one_program: How many batches the model takes in one piece.
        goes_on: Whether an epoch begins in the data where the one before ended, and not
            with an epoch of the data.
    """

    def __init__(
        self,
        source: Any,
        reader: Reader,
        steps: int,
        begin_epoch: Callable[[int | None], Place] = lambda count: (0, 0),
        step_back: Callable[[Place], None] = lambda place: None,
        steps_in_one_program: int = 1,
        goes_on: bool = False,
    ) -> None:
        self.source = source
        self._reader = reader
        self._steps = steps
        self._begin_epoch = begin_epoch
        self._step_back = step_back
        self._place: Place | None = None
        self._steps_in_one_program = steps_in_one_program
        self._goes_on = goes_on
        self._first = 0
        self._span: Span = (0, 0, steps)

    def start_epoch(self) -> tuple[int, int]:
        """Take the next epoch; return its first step and the end of its steps."""
        count = self._steps - self._first if self._goes_on else None
        self._place = epoch, start = self._begin_epoch(count)
        if not self._goes_on:
            self._first = start
        first, self._first = self._first, 0
        self._span = (epoch, start, start + self._steps - first)
        return first, self._steps

    def begin_at(self, step: int) -> None:
        """Number the first step of the next epoch `step`: the ones before are done."""
        self._first = step

    def place(self, step: int) -> Place:
        """Return where in the data step number `step` of the running epoch is."""
        epoch, _, end = self._span
        passed, place = divmod(end - self._steps + step, len(self._reader))
        return epoch + passed, place

    def on_epoch_end(self) -> None:
        """Step back: Keras has looked at a batch to build the model, or stopped."""
        # Called by EpochIterator.reset() before the first epoch, and when data
        # ran out; never at the end of an epoch that `start_epoch` numbered.
        if self._place is not None:
            self._step_back(self._place)

    def blocks(self) -> Blocks | None:
        """Return the epoch in pieces of as many batches as the model takes at once."""
        steps = self._steps_in_one_program
        return Blocks(self._reader.blocks(*self._span, steps)) if steps > 1 else None

    def get_numpy_iterator(self) -> Iterator[Any]:
        return self._reader.batches(*self._span)

    def get_jax_iterator(self, super_batch: int | None = None) -> Iterator[Any]:
        # `super_batch` is given by a Keras that has its own loop over the steps of an
        # execution on JAX, and wants them in one piece.
        if not super_batch:
            return self.get_numpy_iterator()
        return private.executions(self._reader.blocks(*self._span, super_batch))

    def get_torch_dataloader(self) -> Iterator[Any]:
        # Not a torch DataLoader: each of its iterators draws from torch's
        # generator, which a resumed run would have to repeat.
        return map(to_tensors, self.get_numpy_iterator())

    def get_tf_dataset(self) -> Any:
        if self._steps_in_one_program > 1:
            # Keras asks for one in any case; what is read are the blocks.
            return _pipeline.empty_dataset()
        return _pipeline.dataset(self._reader, lambda: self._span)

    @property
    def num_batches(self) -> int:
        return self._steps

    @property
    def batch_size(self) -> int:
        return self._reader.batch_size

    @property
    def has_partial_batch(self) -> bool:
        return self.partial_batch_size is not None

    @property
    def partial_batch_size(self) -> int | None:
        return self._reader.partial_batch_size
