"""What the order of data may come from: generators, and sources with a place.

Keras makes the iterators of a training. Which batches they give depends on global
generators of random numbers, on generators and counters that the data hold, and on a
place that the data may tell: `get_state` and `set_state`, or `state_dict` and
`load_state_dict`. Here these are read before each batch and put back.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from fmkit import _keras_private as private
from fmkit._commits import encode
from fmkit._generators import random_state, restore_random_state
from fmkit.callbacks._resume._held import State, find_in_data, state_of

__all__ = ["Source", "has_workers"]


class Source:
    """What `fit` reads its batches from.

    Args:
        epoch_iterator: Keras's `EpochIterator` of the training data.
        data: What `fit` was given as `x`.
        named: What `ExactResume(data=...)` was given: where the place of the data is.

    Attributes:
        kind: As `kind_of_data` returns.
        threaded: Whether threads draw what the data draw, at some later instant.
        named: Whether `ExactResume(data=...)` said where the place is.
        stateful: Whether the place can be told and set.
        runs_python: Whether a `tf.data.Dataset` calls Python, ahead of the training.
    """

    def __init__(self, epoch_iterator: Any, data: Any, named: Any = None) -> None:
        self.data = data
        self.kind = private.kind_of_data(epoch_iterator)
        self.threaded = self.kind == "PyDataset" and has_workers(data)
        if self.threaded:
            private.forget_read_ahead(epoch_iterator)
        self.peeked = private.peeked(epoch_iterator) if self.kind == "generator" else 0
        self._adapter = epoch_iterator.data_adapter
        self._place: State | None = None
        found = named if named is not None else _with_a_place(data)
        if found is not None:
            self._place = _checked(state_of(found), needed=named is not None)
        self.named = named is not None
        self.runs_python = self.kind == "tf.data" and any(
            "PyFunc" in name for name in private.stateful_operations(data)
        )
        self.stateful = self._place is not None
        # What tells the place moves on by itself.
        moving = found if self.stateful else None
        self._generators = find_in_data(data, without=moving).states
        self._generators["epoch"] = State(*private.epoch_counter(epoch_iterator))
        self._names = ["python", "numpy"]
        if "torch" in sys.modules and self.kind in ("DataLoader", "arrays", "grain"):
            self._names.append("torch")

    def states(self) -> dict[str, Any]:
        """Return the states of all generators that the order may come from."""
        own = {place: state.get() for place, state in self._generators.items()}
        return random_state(self._names, storable=False, others=True) | own

    def has_drawn(self, states: dict[str, Any]) -> bool:
        """Whether anybody has drawn from the generators since they had `states`."""
        return bool(self.drawn_from(states, self.states()))

    def drawn_from(self, before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        """Return the names of the generators that differ between two states."""
        return {name for name in after if not _is_equal(after[name], before[name])}

    def put(self, states: dict[str, Any]) -> None:
        """Put every generator back into one of the `states`."""
        restore_random_state(states)
        for place, state in self._generators.items():
            if place in states:
                state.set(states[place])

    def place(self) -> Any:
        """Return the place that the data tell; `None` if they have none."""
        return _copied(self._place.get()) if self._place is not None else None

    def set_place(self, place: Any) -> None:
        """Let the next iterator begin at a place that the data have told."""
        assert self._place is not None
        self._place.set(_with_tensors(place))

    @contextlib.contextmanager
    def skipping(self, iterator: Any) -> Iterator[Iterator[Any]]:
        """Give what is to be taken from, to pass over batches without making them."""
        indices = getattr(iterator, "_sampler_iter", None)
        if self._reads_by_index(iterator) and indices is not None:
            # PyTorch takes a batch by the next of these.
            yield indices
        elif self.kind == "PyDataset" and not has_workers(self.data):
            whole = self._adapter.py_dataset
            self._adapter.py_dataset = _OneBatch(whole)
            try:
                yield iterator
            finally:
                self._adapter.py_dataset = whole
        else:
            yield iterator

    def _reads_by_index(self, iterator: Any) -> bool:
        torch = sys.modules.get("torch")
        if torch is None or self.kind not in ("DataLoader", "arrays"):
            return False
        loaders = torch.utils.data.dataloader
        alone = getattr(loaders, "_SingleProcessDataLoaderIter", ())
        dataset = getattr(self.data, "dataset", None)
        streams = isinstance(dataset, torch.utils.data.IterableDataset)
        return type(iterator) is alone and not streams


class _OneBatch:
    """A PyDataset of which one batch stands for all, while batches are passed over."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole
        self._batch: Any = None

    def __getitem__(self, index: int) -> Any:
        if self._batch is None:
            self._batch = self._whole[index]
        return self._batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def has_workers(data: Any) -> bool:
    """Whether a PyDataset is read by several threads or processes."""
    return bool(data.workers > (0 if data.use_multiprocessing else 1))


def _with_a_place(data: Any) -> Any:
    """Return what tells the place of data; `None` if nothing does."""
    torch = sys.modules.get("torch")
    loads = torch is not None and isinstance(data, torch.utils.data.DataLoader)
    # torchdata's StatefulDataLoader. That of a Hugging Face stream forgets what a
    # shuffle holds, and is not asked.
    return data if loads and state_of(data) is not None else None


def _checked(state: State | None, *, needed: bool) -> State | None:
    """Return `state` if a commit can hold it."""
    try:
        if state is None:
            raise TypeError(
                "`data` must have get_state and set_state, or state_dict and "
                "load_state_dict."
            )
        encode(_copied(state.get()), {}, "data")
    except (TypeError, ValueError):
        if needed:
            raise
        return None
    return state


def _is_equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_is_equal, ours, theirs))
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs)
    return bool(ours == theirs)


_TENSOR = "torch.Tensor"


def _copied(state: Any) -> Any:
    """Copy a state, which may change with its source; say which arrays are tensors."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(state, torch.Tensor):
        return {_TENSOR: state.numpy().copy()}
    if isinstance(state, np.ndarray):
        return state.copy()
    if type(state) in (list, tuple):
        return type(state)(map(_copied, state))
    if type(state) is dict:
        return {key: _copied(item) for key, item in state.items()}
    return state


def _with_tensors(state: Any) -> Any:
    """Undo what `_copied` has made of tensors."""
    if type(state) in (list, tuple):
        return type(state)(map(_with_tensors, state))
    if type(state) is not dict:
        return state
    if state.keys() == {_TENSOR}:
        return sys.modules["torch"].from_numpy(state[_TENSOR])
    return {key: _with_tensors(item) for key, item in state.items()}
