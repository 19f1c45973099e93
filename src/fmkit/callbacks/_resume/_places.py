"""Where a training is in its data, for any data that `fit` takes.

A commit holds the place; a later process seeks it. `Batches` have an order that is a
function of seed and epoch. Other data are followed while Keras iterates over them.
With some there is no way back: then a run resumes at the start of an epoch, and why is
said before training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._commits import decode
from fmkit._describe import digest_of_arrays
from fmkit._job import Job
from fmkit.callbacks._resume._held import find_in_data, large_arrays
from fmkit.callbacks._resume._source import Source, has_workers
from fmkit.callbacks._resume._track import Track
from fmkit.callbacks._resume._training_state import values_of
from fmkit.data import Batches

__all__ = ["Place", "batches_of", "place_in"]

Arrays = dict[str, Any]

_DRAWN = "the Python functions of the tf.data.Dataset"


class Place:
    """The place in data that can't be started in the middle.

    Args:
        lost: Why not, and what happens instead.

    Attributes:
        data: What may hold generators and counters; `None` if nothing does.
    """

    data: Any = None

    def __init__(self, lost: str | None = None) -> None:
        self.lost = lost

    @property
    def is_certain(self) -> bool:
        """Whether there is a batch for each step that Keras begins."""
        return True

    def once_certain(self, write: Callable[[], None]) -> None:
        """Call `write` as soon as there is a batch for the step that begins.

        On JAX and TensorFlow Keras begins a step before it looks whether there is
        one. A run resumed there would have an epoch without a batch, and so without
        a loss.
        """
        write()

    def close(self) -> None:
        """Stop whatever still reads from the data: `fit` has ended."""

    def begin_epoch(self) -> None:
        """Note where an epoch begins."""

    def before_step(self, step: int) -> Any:
        """Return the place before a step of the epoch; `None` if it can't be told."""
        return None

    def at_epoch_end(self) -> Any:
        """Return the place at the end of an epoch, as plain values and arrays."""
        return None

    def seek(self, place: Any, step: int, arrays: Arrays) -> None:
        """Let the next epoch begin at a place, which is before `step`."""


class _InBatches(Place):
    """The place in `Batches`."""

    def __init__(self, batches: Batches, feed: Any) -> None:
        super().__init__()
        self._batches = batches
        self._feed = feed

    def before_step(self, step: int) -> Any:
        return list(self._feed.place(step))

    def at_epoch_end(self) -> Any:
        return list(self._batches.position)

    def seek(self, place: Any, step: int, arrays: Arrays) -> None:
        if isinstance(place, list):
            self._batches.seek(*place)
            self._feed.begin_at(step)


class _InOther(Place):
    """The place in data of other kinds."""

    def __init__(self, fit: private.FitCall, source: Source) -> None:
        super().__init__()
        self.data = source.data
        self._track = Track(fit.epoch_iterator, source)
        self._samples = _samples_of(self.data)
        self._values: Any = None
        iterator = fit.epoch_iterator
        unknown = iterator.data_adapter.num_batches is None
        self._is_of_unknown_length = (
            unknown
            and iterator.steps_per_epoch is None
            and keras.backend.backend() != "torch"
        )

    @property
    def is_certain(self) -> bool:
        return not self._is_of_unknown_length or self._track.has_next

    def once_certain(self, write: Callable[[], None]) -> None:
        if self.is_certain:
            write()
        else:
            self._track.after_next_batch(write)

    def close(self) -> None:
        self._track.close()

    def begin_epoch(self) -> None:
        self._values = self._values_now()

    def _values_now(self) -> Any:
        return values_of(find_in_data(self.data)) if self._track.reads_ahead else None

    def before_step(self, step: int) -> Any:
        if self._values != self._values_now():
            self.lost = (
                f"attributes of {type(self.data).__name__} change while batches are "
                "read ahead of the training: resuming at the start of an epoch only"
            )
            return None
        if self._track.has_drawn_ahead():
            self.lost = (
                f"{_DRAWN} draw random numbers ahead of the training: resuming at the "
                "start of an epoch only"
            )
            return None
        return self._changed() or self._track.place(at_epoch_end=False)

    def at_epoch_end(self) -> Any:
        place = self._changed() or self._track.place(at_epoch_end=True)
        # Between two iterators nothing has been drawn for what is to come.
        if place and "taken" in place and self._track.has_drawn_ahead():
            return {"changed": [f"the generators that {_DRAWN} draw from"]}
        return place

    def _changed(self) -> dict[str, Any] | None:
        """Return what has changed in the data that no commit can hold."""
        now = _samples_of(self.data)
        names = [name for name in now if now[name] != self._samples.get(name)]
        return {"changed": names} if names else None

    def seek(self, place: Any, step: int, arrays: Arrays) -> None:
        if isinstance(place, dict) and "changed" in place:
            raise ValueError(
                f"The training had changed {', '.join(place['changed'])}, which a "
                "commit can't hold, so the run can't continue. Shuffle an array of "
                "indices instead, or draw by a seed that comes with each row, and "
                "start in another directory."
            )
        if place is None:  # of an fmkit that could not follow these data
            return
        if not isinstance(place, dict) or not {"earlier", "now"} <= place.keys():
            raise ValueError(
                "The commit does not hold a place in data of this kind. Give `fit` "
                "what it was given before, or use another directory."
            )
        self._track.seek(decode(place, arrays), step)


def _samples_of(data: Any) -> dict[str, str]:
    """Return a digest of some 4,096 elements of each large array that data hold."""
    return {
        name: digest_of_arrays([array.reshape(-1)[:: max(1, array.size // 4096)]])
        for name, array in large_arrays(data).items()
        if array.flags.c_contiguous
    }


def batches_of(fit: private.FitCall) -> Batches | None:
    """Return the `Batches` that `fit` trains on, if it does."""
    found = getattr(fit.epoch_iterator.data_adapter, "source", None)
    return found if isinstance(found, Batches) else None


def place_in(fit: private.FitCall, job: Job, named: Any = None) -> Place:
    """Follow the data of a `fit`.

    Args:
        fit: The call.
        job: The processes that train together.
        named: What tells the place of data that can't be asked themselves.
    """
    batches = batches_of(fit)
    if batches is not None:
        return _InBatches(batches, fit.epoch_iterator.data_adapter)
    reason = _why_lost(fit, job, named)
    if reason is None:
        try:
            source = Source(fit.epoch_iterator, fit.arguments["x"], named)
            return _InOther(fit, source)
        except private.MissingPieceError as error:
            reason = str(error)
    return Place(
        f"{reason.rstrip('.')}: resuming at the start of an epoch, in whatever order "
        "the data then come. fmkit.data.Batches resume inside an epoch"
    )


def _why_lost(fit: private.FitCall, job: Job, named: Any) -> str | None:
    """Return why a training can't be resumed inside an epoch, or `None`."""
    data, iterator = fit.arguments["x"], fit.epoch_iterator
    kind = private.kind_of_data(iterator)
    on_tensorflow = keras.backend.backend() == "tensorflow"
    if job.count > 1:
        return "several processes train on data that are not fmkit.data.Batches"
    if kind == "generator" and named is None:
        return (
            "a Python generator can't be started in the middle (use a "
            "keras.utils.PyDataset, or name what knows its place: "
            "ExactResume(data=...))"
        )
    if on_tensorflow and private.replicas(iterator) > 1:
        return "TensorFlow hands these data to several replicas"
    if kind == "PyDataset" and has_workers(data) and iterator.steps_per_epoch:
        return "a PyDataset with workers and steps_per_epoch reads across epochs"
    if kind == "DataLoader" and data.num_workers > 0 and data.persistent_workers:
        return "the generators of persistent workers can't be restored"
    if kind == "arrays" and on_tensorflow and _is_unseeded(fit):
        return (
            "TensorFlow shuffles arrays by a seed that nobody set (call "
            "fmkit.set_random_seed before `fit`)"
        )
    return _why_lost_in_dataset(data) if kind == "tf.data" else None


def _is_unseeded(fit: private.FitCall) -> bool:
    epoch, _ = private.epoch_counter(fit.epoch_iterator)
    by_seed = bool(fit.arguments["shuffle"]) and epoch() is None
    return by_seed and not private.is_seeded()


def _why_lost_in_dataset(dataset: Any) -> str | None:
    random = [
        name
        for name in private.stateful_operations(dataset)
        if any(word in name for word in ("Random", "Stateful", "Multinomial"))
    ]
    if random:
        return (
            f"the data draw random numbers that can't be drawn again "
            f"({', '.join(sorted(random))}: use tf.random.stateless_..., "
            "tf.image.stateless_random_..., or layers of Keras in the model)"
        )
    if dataset.options().deterministic is False:
        return "options().deterministic is False, so the batches come in any order"
    return None
