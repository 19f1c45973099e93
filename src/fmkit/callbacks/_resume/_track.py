"""The place in data that Keras iterates itself, and the way back to it.

`Batches` can start anywhere. Of other data Keras makes an iterator for each epoch, and
most of them can't be asked where they are. But the same program makes the same
iterators again: a `Track` counts them and the batches taken from the newest, and keeps
the states of the generators in which it was made. The way back is to make it anew in
the same states, and to pass over as many batches: by their indices where it has any,
else by reading them; or, where the data tell their place, by setting that. The last
batch is always read again: a digest of it shows whether the way led to the same order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras

from fmkit import _keras_private as private
from fmkit._generators import storable_state
from fmkit.callbacks._resume._datasets import (
    OnDevice,
    iterators_of,
    note_iterators,
    pass_over,
)
from fmkit.callbacks._resume._digest import another_batch, digest_of_batch, too_few
from fmkit.callbacks._resume._source import Source

__all__ = ["Track"]

# As many batches may have been read ahead of the one that is trained on.
_AHEAD = 256
_END = object()


class _Record(NamedTuple):
    """What is kept of a batch that was read.

    Attributes:
        number: The batch's number in its iterator.
        before: The states of the generators before it was read.
        place: The place that the data told before it was read.
        digest: Returns its digest.
    """

    number: int
    before: dict[str, Any]
    place: Any
    digest: Callable[[], str]


class Track:
    """Follows the iterators of one `fit`.

    Args:
        epoch_iterator: Keras's `EpochIterator` of the training data.
        source: What they are read from.
    """

    def __init__(self, epoch_iterator: Any, source: Source) -> None:
        self._epoch_iterator = epoch_iterator
        self._source = source
        self._on_device = OnDevice(source)
        self._newest: Any = None  # what the newest iterator is read by
        # A dataset may have been used before.
        self._made = iterators_of(source.data)
        self._iterator: Any = None
        self._at = self._passed = 0
        self._first = self._before = 0
        self._resumed: dict[str, Any] | None = None
        self._noted: dict[str, Any] | None = None
        self._between_epochs: dict[str, Any] = {}
        self._after_next: Callable[[], None] | None = None
        self._others: set[str] = set()
        by_python = private.watch(epoch_iterator, self._read, self._make, self._steps)
        # TensorFlow lets a thread read ahead.
        self.reads_ahead = by_python and keras.backend.backend() == "tensorflow"
        # JAX may be given the next execution's batches early.
        steps = epoch_iterator.steps_per_execution
        self._kept = _AHEAD if self.reads_ahead or steps > 1 else 4

    @property
    def _continues(self) -> bool:
        """Whether an epoch continues where the one before it ended."""
        return self._epoch_iterator.steps_per_epoch is not None

    def place(self, *, at_epoch_end: bool) -> dict[str, Any] | None:
        """Return where the training is in its data: plain values and arrays.

        `None` before the first batch of an iterator: the end of the epoch before has
        been committed.
        """
        newest, taken = self._newest, self._at
        unread = newest is not None and newest.is_unread
        on_device = newest is self._on_device
        if at_epoch_end:
            # Keras makes the next iterator as soon as one is used up.
            used_up = private.is_used_up(self._epoch_iterator, self._iterator)
            taken = 0 if used_up else self._passed
            if newest is None or not self._continues or (used_up and not unread):
                return self._between(self._made - (self._continues and on_device))
        elif not taken:
            return None
        return {
            "earlier": self._made - (not unread),
            "taken": taken,
            "between_epochs": at_epoch_end,
            **newest.so_far(taken),
        }

    @property
    def has_next(self) -> bool:
        """Whether the batch of the step that begins has been read already."""
        return self._newest is not None and self._newest.has_read(self._at)

    def after_next_batch(self, call: Callable[[], None]) -> None:
        """Call `call` when the step that begins has had its batch."""
        self._after_next = call

    def close(self) -> None:
        """Read no more, and let nobody draw random numbers ahead of a next `fit`."""
        if self._newest is not None:
            self._newest.close()

    def has_drawn_ahead(self) -> bool:
        """Whether Python called by TensorFlow has drawn for batches still to come."""
        if self._newest is None or not self._source.runs_python:
            return False
        return self._source.has_drawn(self._newest.states[0])

    def _between(self, earlier: int) -> dict[str, Any]:
        """Return the place before the first batch of an iterator still to be made."""
        now = storable_state(self._source.states())
        place = self._source.place() if self._source.named else None
        return {"earlier": earlier, "now": now, "place": place}

    def seek(self, place: dict[str, Any], step: int) -> None:
        """Let the next epoch begin at `step`, which was at `place`."""
        self._resumed, self._first = place, step
        if "taken" in place:
            self._before = place["taken"] - step
            return
        self._source.put(place["now"])
        if place["place"] is not None:
            self._source.set_place(place["place"])

    def _steps(self, enumerate_steps: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Yield the steps of an epoch, from the first one on."""
        first, resumed = self._first, self._resumed
        self._between_epochs = self._source.states()
        if self._source.threaded:
            # Its threads may draw from here on.
            if resumed is not None and not resumed.get("between_epochs", True):
                self._source.put(resumed["states"][0])
            self._noted = self._source.states()
        for step in enumerate_steps():
            if step[2] is not self._iterator:
                self._iterator, self._passed = step[2], self._before
                if self._before:
                    # Keras counts what it takes of an iterator that lasts for epochs.
                    private.add_to_steps_seen(self._epoch_iterator, self._before)
                self._before = 0
            self._at = self._passed
            self._passed += step[1] - step[0] + 1
            if step[0] >= first:
                self._first = 0
                self._after_next = None
                yield step
                # Keras comes back for another one only if there was a batch.
                if self._after_next is not None:
                    self._after_next()

    def _read(self, make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """Return what Keras reads an epoch from, or the rest of one."""
        place, self._resumed = self._resumed, None
        noted, self._noted = self._noted, None
        others = self._others if self.reads_ahead else None
        reading = _Reading(self._source, self._counted, self._kept, others)
        self._newest = reading
        if place is None:
            return reading.begin(make, noted)
        if self._source.kind == "tf.data":
            data = self._source.data
            missing = place["earlier"] - self._made
            pass_over(data, lambda: data, missing, used_every=1)
        self._made = place["earlier"]
        if "taken" not in place:
            return reading.begin(make, noted)
        return reading.go_to(make, place, self._between_epochs)

    def _counted(self) -> None:
        self._made += 1
        note_iterators(self._source.data, self._made)

    def _make(self, make: Callable[[], Any]) -> Any:
        """Return the dataset or iterator that TensorFlow reads an epoch from."""
        place, self._resumed = self._resumed, None
        self._newest = self._on_device
        if place is None:
            self._counted()
            return self._on_device.begin(make)
        self._on_device.pass_over(make, place["earlier"] - self._made)
        self._made = place["earlier"]
        self._counted()
        if "taken" not in place:
            return self._on_device.begin(make)
        return self._on_device.go_to(make, place)


class _Reading:
    """The batches of one iterator as Python reads them.

    Args:
        source: What they are read from.
        started: Is called when the first one is read.
        kept: How many are remembered; of many, only their digests.
        others: If a thread reads ahead: the names of the generators that somebody else
            draws from, such as a callback. They are noted here when they are seen.
    """

    def __init__(
        self,
        source: Source,
        started: Callable[[], None],
        kept: int,
        others: set[str] | None,
    ) -> None:
        self._source = source
        self._started = started
        self.states: list[dict[str, Any]] = []
        self._start: Any = None  # the place that the data told before the first batch
        self._being_read: tuple[int, dict[str, Any]] | None = None
        self._records: deque[_Record] = deque(maxlen=kept)
        self.is_unread = True
        self._lock = threading.RLock()
        self._closed = False
        self._others = others
        self._after: dict[str, Any] | None = None  # the states after the newest batch

    def has_read(self, number: int) -> bool:
        """Whether a batch is among those that were read last."""
        return any(record.number == number for record in list(self._records))

    def close(self) -> None:
        """Stop a thread of TensorFlow's that may read ahead, and wait for it."""
        self._closed = True
        # A stream may wait for its next batch without an end.
        if self._lock.acquire(timeout=5):
            self._lock.release()

    def begin(
        self, make: Callable[[], Iterable[Any]], noted: dict[str, Any] | None
    ) -> Iterator[Any]:
        """Make the iterator of a new epoch."""
        self.states = [noted or self._source.states()]
        return self._batches(iter(make()))

    def so_far(self, taken: int) -> dict[str, Any]:
        """Return what the way back to here needs, and a digest to check it by."""
        records = {record.number: record for record in list(self._records)}
        last = records.get(taken - 1)
        following = records[taken].before if taken in records else self._now(taken)
        following = following | self._of_others()
        found: dict[str, Any] = {
            "states": list(map(storable_state, self.states)),
            "now": storable_state(following),
            "start": self._start,
        }
        if last is not None:
            before = storable_state(last.before)
            found |= {"last": before, "place": last.place, "digest": last.digest()}
        return found

    def _now(self, number: int) -> dict[str, Any]:
        """Return the states before a batch that is not there yet."""
        while True:
            reading = self._being_read
            if reading is not None and reading[0] == number:
                return reading[1]
            states = self._source.states()
            if self._being_read is reading:  # no other thread has begun with it
                return states

    def _of_others(self) -> dict[str, Any]:
        """Return the states of the generators that not the data draw from.

        Those are as they are now, and not as they were when a thread read ahead.
        """
        if self._others is None:
            return {}
        is_idle = self._lock.acquire(blocking=False)
        try:
            now = self._source.states()
            if is_idle:
                self._note_others(now)
            return {name: now[name] for name in list(self._others) if name in now}
        finally:
            if is_idle:
                self._lock.release()

    def _note_others(self, now: dict[str, Any]) -> None:
        """Note which generators moved on between two batches that were read."""
        if self._others is not None and self._after is not None:
            self._others |= self._source.drawn_from(self._after, now)

    def go_to(
        self,
        make: Callable[[], Iterable[Any]],
        place: dict[str, Any],
        between_epochs: dict[str, Any],
    ) -> Iterator[Any]:
        """Make an iterator again, and pass over what had been taken from it.

        Args:
            make: Makes it.
            place: Where to go.
            between_epochs: The states of the generators before Keras made it again.

        Raises:
            ValueError: If the data are others than before, or in another order.
        """
        source = self._source
        self.states, self._start = place["states"], place["start"]
        batches = self._reach(make, place)
        if not source.threaded:
            source.put(between_epochs if place["between_epochs"] else place["now"])
        return batches

    def _reach(
        self, make: Callable[[], Iterable[Any]], place: dict[str, Any]
    ) -> Iterator[Any]:
        source, taken = self._source, place["taken"]
        if not taken:
            return self._batches(self._made_again(make))
        if place["place"] is not None and taken > source.peeked:
            iterator = self._at_place(make, place["place"], taken)
            batches = self._batches(iterator, taken - 1, place["last"])
            same = digest_of_batch(next(batches, ())) == place["digest"]
            if same or source.peeked:
                if not same:
                    raise ValueError(another_batch(taken - 1))
                return batches
            # What tells its place may still not come back to it: a buffer that
            # shuffles is lost. Then from the start.
        if source.stateful and self._start is not None and not source.peeked:
            source.set_place(self._start)
        iterator = self._made_again(make)
        with source.skipping(iterator) as skipped:
            _pass_over(skipped, taken - 1, taken)
        batches = self._batches(iterator, taken - 1, place["last"])
        batch = next(batches, _END)
        if batch is _END:
            raise ValueError(too_few(taken - 1, taken))
        if digest_of_batch(batch) != place["digest"]:
            raise ValueError(another_batch(taken - 1))
        return batches

    def _made_again(self, make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """Make an iterator in the states in which it was made, and first read."""
        if self._source.threaded:  # its threads have drawn their order by now
            return iter(make())
        self._source.put(self.states[0])
        iterator = iter(make())
        self._source.put(self.states[-1])
        return iterator

    def _at_place(
        self, make: Callable[[], Iterable[Any]], place: Any, taken: int
    ) -> Iterator[Any]:
        """Make an iterator that begins at a place which the data have told."""
        if self._source.stateful and not self._source.peeked:
            self._source.set_place(place)
        iterator = self._made_again(make)
        if self._source.peeked:
            _pass_over(iterator, self._source.peeked, taken)
            self._source.set_place(place)
        elif not self._source.stateful:
            iterator.set_state(place)  # type: ignore[attr-defined]
        return iterator

    def _batches(
        self,
        iterator: Iterator[Any],
        number: int = 0,
        states: dict[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Yield batches from `number` on, the generators put into `states` before."""
        source, own = self._source, getattr(iterator, "get_state", None)
        if states is None:
            self.states = [*self.states[:1], source.states()]
        elif not source.threaded:
            source.put(states)
        self._started()
        self.is_unread = False
        while True:
            with self._lock:
                if self._closed:
                    return
                before = source.states()
                self._note_others(before)
                place = own() if own is not None else source.place()
                if number == 0:
                    self._start = place
                self._being_read = (number, before)
                batch = next(iterator, _END)
                if self._others is not None:
                    self._after = source.states()
            if batch is _END:
                return
            self._records.append(_Record(number, before, place, self._digest(batch)))
            number += 1
            yield batch

    def _digest(self, batch: Any) -> Callable[[], str]:
        if self._records.maxlen == _AHEAD:  # too many to be held
            found = digest_of_batch(batch)
            return lambda: found
        return lambda: digest_of_batch(batch)


def _pass_over(iterator: Iterator[Any], count: int, taken: int) -> None:
    for number in range(count):
        if next(iterator, _END) is _END:
            raise ValueError(too_few(number, taken))
