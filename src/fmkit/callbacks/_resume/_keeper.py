"""What `ExactResume` does within one `fit`: find the place, restore, commit."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._commits import (
    Commit,
    CommitDirectory,
    DamagedCommitError,
    Meta,
    Shared,
    decode,
    encode,
    warn_of_damage,
)
from fmkit._describe import describe
from fmkit._generators import random_state, restore_random_state
from fmkit._job import current_job
from fmkit._layer_state import refresh
from fmkit._swap import raw_weights
from fmkit.callbacks._resume import _callback_state, _program, _training_state
from fmkit.callbacks._resume._averages import AverageSnapshots, Snapshot
from fmkit.callbacks._resume._background import (
    JobWriter,
    Signals,
    StartEpoch,
    Writer,
    close_after_cell,
)
from fmkit.callbacks._resume._differences import (
    Difference,
    as_in_this_job,
    check_job,
    check_machine,
    check_program,
)
from fmkit.callbacks._resume._held import Held
from fmkit.callbacks._resume._parts import check_agreement, deal, new_token
from fmkit.callbacks._resume._places import Place, batches_of, place_in
from fmkit.callbacks._resume._shards import Layout
from fmkit.callbacks._stopping._stopper import Stopper

__all__ = ["Keeper", "Outcome"]

_logger = logging.getLogger("fmkit.callbacks")

# If one of these changes, metrics start from zero.
_IN_METRICS = ("metrics", "weighted_metrics", "loss", "loss_weights")


@dataclass
class Outcome:
    """What became of one `fit`, for the `ExactResume` that began it.

    Attributes:
        resumed_from: `(epoch, step)` that it continued from, or `None`.
        finished: Whether it found a finished run, or ended as one.
        has_trained: Whether it ended the run itself.
        follows_a_run: Whether the same program has ended a run in the directory before.
    """

    resumed_from: tuple[int, int] | None = None
    finished: bool = False
    has_trained: bool = False
    follows_a_run: bool = False


class Keeper(keras.callbacks.Callback):
    """The part of `ExactResume` that lives for one `fit`, last of all callbacks.

    Args:
        settings: The `ExactResume`, whose attributes are read.
        fit: The call of `fit`.
        outcome: Receives the result.
    """

    def __init__(self, settings: Any, fit: private.FitCall, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome
        # Without a synchronisation, which `self.model` makes on JAX.
        self.network: Any = private.model_of(settings)
        self.set_model(self.network)
        self.settings = settings
        self.epochs = fit.epochs
        self.arguments = fit.arguments
        self.batches = batches_of(fit)
        self.epoch_iterator = fit.epoch_iterator
        self.steps = fit.epoch_iterator.num_batches
        self.callback_list = weakref.ref(fit.callback_list)
        self.directory = CommitDirectory(
            settings.directory, keep=settings.keep, keep_best=settings.keep_best
        )
        self.signals = Signals(self.callback_list)
        self.job = current_job()
        self.writer = (
            JobWriter(self.job, self.directory, settings.background)
            if self.job.count > 1
            else Writer(settings.background)
        )
        self.snapshots = AverageSnapshots(
            self.directory, settings.snapshot_growth, self.job
        )
        self.place = place_in(fit, self.job, settings.data)
        self.start_epoch = StartEpoch(self.network)
        self.signal: int | None = None
        # Runs when `fit` ends by an exception too: then Keras calls nothing, but
        # lets go of its list of callbacks.
        self.close = weakref.finalize(
            fit.callback_list,
            _close,
            self.signals,
            self.writer,
            self.directory,
            self.place,
            self.start_epoch,
        )
        close_after_cell(self.close, self.callback_list)
        self.restoring: Commit | None = None
        self.restored: Commit | None = None
        self.changes: list[Difference] = []
        self.other_job: str | None = None
        self.warned_of: set[str] = set()
        self.saved: tuple[int, int] | None = None
        self.at_signal: tuple[int, int] | None = None
        self.epoch = fit.initial_epoch
        self.steps_before = 0
        self.committed_steps = 0
        self.committed_epoch = 0
        self.committed_time = time.monotonic()

    # Events

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find where to start, and restore what can be restored by now."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        settings = self.settings
        if self.job.count > 1 and settings.unit == "second":
            raise ValueError(
                "`every` must count steps or epochs when several processes train "
                "together, since their clocks differ: write every=100 or 'epoch'."
            )
        self.job.together(self._hold)
        commit = self._find()
        self.job.together(lambda: self._prepare(commit))
        if commit is None:
            self.job.together(lambda: self._start_snapshots(resumed=False))
            self._say(f"no commit in {settings.directory}: starting from the beginning")
            self._commit_the_start()
        else:
            self._go_to(commit)
            self.job.together(lambda: self._start_snapshots(resumed=True))
        self._say_what_is_not_exact()
        if settings.stop_on_signal:
            self.signals.install()

    def _hold(self) -> None:
        """Let the first process hold the directory."""
        if self.job.index == 0:
            self.directory.acquire(
                lambda: private.is_running(self.callback_list()), self.writer.finish
            )

    def _find(self) -> Commit | None:
        """Return the newest commit that is sound, the same in all processes.

        Each checks its share of a commit's parts.
        """
        before = None
        while True:
            commit, damage, before = self._candidate(before)
            if damage is None:
                return commit
            if self.job.index == 0:
                warn_of_damage(damage)

    def _candidate(
        self, before: int | None
    ) -> tuple[Commit | None, str | None, int | None]:
        """Return the newest commit before one, what a process finds damaged, and its
        number.
        """
        job = self.job
        found = job.together(lambda: self._newest(before))
        if job.count == 1:
            return found, None, None
        number = job.exchange(found and found.number)[0]
        commit, damage = job.together(lambda: self._read(found, number))
        told = [each for each in job.exchange(damage) if each is not None]
        return commit, next(iter(told), None), number

    def _newest(self, before: int | None) -> Commit | None:
        if self.job.index > 0:
            return None
        return self.directory.newest(before, (0, self.job.count))

    def _read(
        self, commit: Commit | None, number: int | None
    ) -> tuple[Commit | None, str | None]:
        """Return the commit that the first process has found, or what is damaged."""
        if self.job.index == 0:
            return commit, None
        try:
            return self.directory.read(number, self.job.index, self.job.count), None
        except DamagedCommitError as error:
            return None, str(error)

    def _prepare(self, commit: Commit | None) -> None:
        """Make the variables; look whether the commit is of this program."""
        self._build()
        _callback_state.note_files(self._others())
        _callback_state.check_states(self._others())
        held = _training_state.held_by(self.network, self.place.data)
        self.unreadable = held.unreadable
        self.values_at_start = _training_state.values_of(held)
        self.program, self.machine = self._describe(held), _program.machine()
        if (distribution := _program.distribution()) is not None:
            self.machine["distribution"] = distribution
        if commit is not None:
            self._check(commit)
        if self.job.index == 0:
            self._describe_model()

    def _start_snapshots(self, *, resumed: bool) -> None:
        if self.job.index > 0:
            return
        dropped = self.snapshots.start(self.network, resumed=resumed)
        if dropped:
            self._say(
                f"removed {', '.join(dropped)}: no sound commit covers such snapshots "
                "of averages; the run makes them again"
            )

    def _check(self, commit: Commit) -> None:
        """Refuse a commit of another program; warn of another machine."""
        settings, meta = self.settings, commit.meta
        saved, machine = meta.program, dict(meta.machine)
        made_by = (saved.get("processes", 1), machine.pop("distribution", None))
        if made_by[0] != self.job.count:
            saved = as_in_this_job(saved, self.program)
        self.changes = check_program(
            saved,
            self.program,
            settings.directory,
            settings.allow_changes,
            kerases=(meta.machine.get("keras", ""), self.machine["keras"]),
            defaults=lambda: _program.unset_settings(self.network),
        )
        here = dict(self.machine)
        present = (self.job.count, here.pop("distribution", None))
        self.other_job = check_job(made_by, present, strict=settings.strict)
        check_machine(machine, here, strict=settings.strict)

    def _commit_the_start(self) -> None:
        """Commit what the run starts from, if a later start could not know it."""
        continued = _callback_state.continued_files(self._others())
        if any(self.job.exchange(continued)):
            # Rows of a run that was killed before its first commit look like those
            # that were in the file before it.
            place = self.place.at_epoch_end()
            where = {"epoch": self.epoch, "step": 0, "data": place}
            self._commit(where, at_epoch_end=True)

    def _commit_again(self, commit: Commit) -> None:
        """Commit what was restored, now that callbacks go on in other files."""
        opened = _callback_state.opens_files(self._others())
        if any(self.job.exchange(opened)):
            meta = commit.meta
            place = decode(meta.data, commit.arrays)
            where = {"epoch": meta.epoch, "step": meta.step, "data": place}
            self._commit(where, at_epoch_end=meta.moment == "epoch")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note which epoch starts."""
        self.start_epoch.give_back()
        self.epoch = epoch
        self.place.begin_epoch()

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Restore at the first step of a resumed epoch; commit when it is time."""
        if self.restoring is not None:
            commit, self.restoring = self.restoring, None
            if batch != commit.meta.step:
                raise RuntimeError(
                    f"The data start at step {batch}, the commit is of step "
                    f"{commit.meta.step}. Another callback or thread has called "
                    "`seek` on the Batches; only ExactResume may."
                )
            self.job.together(lambda: self._restore(commit))
            self._commit_again(commit)
        elif not self._has_saved_at_signal() and (
            self._is_signalled() or self._is_due(batch)
        ):
            self._commit_inside(batch)
            here = (self.epoch, batch)
            if self._is_signalled() and self.saved != here and not self.place.lost:
                # It is written once this step has had its batch.
                self.at_signal = here
                return
        self._stop_on_signal(batch)

    def _has_saved_at_signal(self) -> bool:
        return self.saved is not None and self.saved == self.at_signal

    def _commit_inside(self, step: int) -> None:
        if self.place.lost:
            return
        place = self.place.before_step(step)
        if place is not None:
            self._commit({"epoch": self.epoch, "step": step, "data": place})
        elif self.place.lost:
            self._say(self.place.lost)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Commit the end of the epoch, after all callbacks have had theirs."""
        stopped = bool(self.network.stop_training)
        last = stopped or epoch + 1 >= self.epochs
        self.epoch, self.steps_before = epoch + 1, self.steps_before + self._length()
        if self.job.count > 1:
            check_agreement(self.job, epoch, last)
        if last or self.settings.keep_best or self._is_signalled() or self._is_due(0):
            self._commit(
                {
                    "epoch": epoch + 1,
                    "step": 0,
                    "data": self.place.at_epoch_end(),
                    "finished": last,
                    "stopped": stopped,
                    "score": self._score(logs or {}),
                    "logs": _numbers(logs or {}),
                },
                at_epoch_end=True,
            )
        self.outcome.finished = self.outcome.has_trained = last
        if not last:
            self._stop_on_signal(0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last commit; give back signals, lock and list."""
        self.writer.wait()
        callback_list = self.callback_list()
        if callback_list is not None:
            private.take_out(callback_list, self)
        self.close()
        if self.signal is None:
            self.signal = self.signals.received  # no other process waits any more
        self._stop_on_signal(0)

    # Start

    def _build(self) -> None:
        """Make all variables, which TensorFlow leaves to the first step."""
        model = self.network
        if self.batches is not None and keras.backend.backend() == "tensorflow":
            private.build_variables(model, self.batches.peek)
        elif private.reads_on_device(self.epoch_iterator):
            private.build_variables(
                model, lambda: private.symbolic_batch(self.epoch_iterator)
            )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)

    @private.tensorflow_unloaded()
    def _describe(self, held: Held) -> dict[str, Any]:
        """Describe all that must be the same for the same bits to come out."""
        data = (
            self.batches.describe()
            if self.batches is not None
            else _program.describe_training_data(self.arguments)
        )
        return {
            **_program.describe_model(self.network, held),
            "backend": keras.backend.backend(),
            "data": {**data, "steps_per_epoch": describe(self.steps)},
            "fit": _program.describe_fit(self.arguments),
            "processes": self.job.count,
        }

    @private.tensorflow_unloaded()
    def _describe_model(self) -> None:
        """Write what an evaluator beside the run can make the model from."""
        described = _training_state.model_as_json(self.network)
        try:
            if described is not None:
                self.directory.describe(described)
        except OSError as error:
            # The training itself does not need it; a commit that fails will tell.
            _logger.warning("model.json could not be written: %s", error)

    def _go_to(self, commit: Commit) -> None:
        meta = commit.meta
        epoch, step = meta.epoch, meta.step
        self.outcome.resumed_from = self.saved = (epoch, step)
        self.steps_before = meta.steps_before
        self.committed_steps = self.steps_before + step
        self.committed_epoch = epoch
        if meta.moment == "step" and self.place.lost and epoch < self.epochs:
            raise ValueError(
                f"{commit.path} is of step {step} inside epoch {epoch + 1}, where this "
                f"run can't continue: {self.place.lost}. Give `fit` what it was given "
                "before, or use another directory."
            )
        self.place.seek(meta.data, step, commit.arrays)
        self.job.together(lambda: self._restore(commit))
        where = f"(from {commit.path.name})"
        stopped = meta.stopped and not self._is_stop_withdrawn(commit)
        if stopped or epoch >= self.epochs:
            self._end_at_once(epoch, where, stopped=stopped)
            return
        of = f" of {self.steps}" if self.steps else ""
        self._say(f"resuming in epoch {epoch + 1}, at step {step}{of} {where}")
        self.start_epoch.set(epoch)
        if meta.moment == "step":
            # What Keras and the callbacks do between here and that step, they
            # had done before the commit: restore once more, at the same point.
            self.restoring = commit
        else:
            self._commit_again(commit)

    def _is_stop_withdrawn(self, commit: Commit) -> bool:
        """Whether the callbacks that stopped the run would no longer do so.

        Those of fmkit forget a stop that their present arguments would not make: a
        larger budget of time, another threshold.
        """
        states = decode(commit.meta.callbacks, commit.arrays)
        stops = [
            callback.stop
            for name, callback in _callback_state.named(self._others())
            if isinstance(callback, Stopper)
            and states.get(name, {}).get("own", {}).get("stop") is not None
        ]
        return bool(stops) and all(stop is None for stop in stops)

    def _end_at_once(self, epoch: int, where: str, *, stopped: bool) -> None:
        """Let `fit` end before its first step: all of the run is done."""
        settings = self.settings
        self.outcome.finished = True
        how = "was stopped" if stopped else "is finished"
        self._say(f"this run {how} after {epoch} epochs {where}: nothing is trained")
        self.start_epoch.set(self.epochs)
        if stopped:
            self.network.stop_training = True  # as it was at the end of the run
        if self.outcome.follows_a_run:
            warnings.warn(
                f"This `fit` trains nothing: the run in {settings.directory} {how} "
                f"after {epoch} epochs, by an earlier `fit` of this program. In a "
                "loop, write fit(..., initial_epoch=i, epochs=i + 1, callbacks="
                "[resume]) for i = 0, 1, 2, ...; else give more `epochs`, or "
                "another directory.",
                stacklevel=2,
            )

    def _restore(self, commit: Commit) -> None:
        meta, arrays = commit.meta, commit.arrays
        data = self.place.data
        held = _training_state.restore_held(self.model, meta.held, arrays, data)
        _training_state.restore_variables(
            self.model,
            meta.variables,
            arrays,
            metrics=meta.moment == "step" and not self._has_changed(*_IN_METRICS),
            held=held,
            keep=self._kept_variables(held),
        )
        if any(each.name.endswith(".adapted") for each in self.changes):
            refresh(self.network)  # what layers make of their variables
        states = decode(meta.callbacks, arrays)
        new = _callback_state.set_states(self._others(), states)
        if new and commit is not self.restored:
            self._say(f"no saved state for {', '.join(new)}: they start from scratch")
        self.restored = commit
        restore_random_state(decode(meta.random, arrays))

    def _has_changed(self, *names: str) -> bool:
        return any(each.is_named_in(names) for each in self.changes)

    def _kept_variables(self, held: Held) -> list[Any]:
        """Return the variables that keep the value which this program gives them."""
        optimizers = {f"optimizers.{k}": each for k, each in held.optimizers.items()}
        optimizers["optimizer"] = self.network.optimizer
        return [
            rate
            for place, optimizer in optimizers.items()
            for name, part in _parts(optimizer, place)
            if self._has_changed(f"{name}.learning_rate")
            and isinstance(rate := part.learning_rate, keras.Variable)
        ]

    def _say_what_is_not_exact(self) -> None:
        if self.other_job is not None and self.outcome.resumed_from is not None:
            self._say(self.other_job)
        if self.changes and self.outcome.resumed_from is not None:
            self._say(f"with changes: {'; '.join(map(str, self.changes))}")
        if self.unreadable:
            held = [f"{place} ({kind})" for place, kind in self.unreadable.items()]
            self._say(
                f"not restored, if training changes it: {', '.join(held)} (give it "
                "get_state and set_state)"
            )
        lost = _callback_state.without_state(self._others())
        if lost:
            self._say(
                f"not restored: the attributes of {', '.join(lost)} (give it "
                "get_state and set_state)"
            )
        if self.place.lost:
            self._say(self.place.lost)

    def _others(self) -> list[Any]:
        callback_list = self.callback_list()
        assert callback_list is not None
        return [
            callback
            for callback in callback_list.callbacks
            if callback is not self and callback is not self.settings
        ]

    def _say(self, message: str) -> None:
        if self.settings.verbose:
            private.print_msg(f"ExactResume: {message}.")

    # Commits

    def _length(self) -> int:
        # Keras learns the length of some data at the end of an epoch.
        return int(self.steps or self.epoch_iterator.num_batches or 0)

    def _is_due(self, step: int) -> bool:
        every = self.settings.every
        if self.settings.unit == "step":
            if self.place.lost and self.steps is None:  # every end of an epoch
                return step == 0
            return self.steps_before + step - self.committed_steps >= every
        if self.settings.unit == "epoch":
            return step == 0 and self.epoch - self.committed_epoch >= every
        return time.monotonic() - self.committed_time >= every

    def _commit(self, where: dict[str, Any], *, at_epoch_end: bool = False) -> None:
        """Copy the state now; write it beside the training if that is allowed."""
        self.writer.wait()
        with raw_weights(self.model):  # whatever another callback shows at present
            self._commit_raw(where, at_epoch_end)

    def _commit_raw(self, where: dict[str, Any], at_epoch_end: bool) -> None:
        model = self.model  # on JAX this synchronises
        held = _training_state.held_by(model, self.place.data)
        self._warn_of_lost(held)
        arrays: dict[str, Any] = {}
        # At the end of an epoch metrics are about to be reset.
        wanted: dict[str, Any] = {"metrics": not at_epoch_end, "held": held}
        if self.job.count == 1:
            listed, arrays = _training_state.snapshot(model, **wanted)
        else:
            listed, layouts = _training_state.layouts(model, self.job, **wanted)
        states = _callback_state.get_states(self._others())
        where = {**where, "data": encode(where["data"], arrays, "the data")}
        meta = Meta(
            **where,
            moment="epoch" if at_epoch_end else "step",
            steps_before=self.steps_before,
            epochs=self.epochs,
            variables=listed,
            held=_training_state.held_state(model, held, self.values_at_start, arrays),
            callbacks={
                name: {
                    part: encode(value, arrays, name) for part, value in each.items()
                }
                for name, each in states.items()
            },
            random=encode(random_state(), arrays, "random"),
            program=self.program,
            machine=self.machine,
            time=time.time(),
        )
        self.committed_steps = self.steps_before + where["step"]
        self.committed_epoch = where["epoch"]
        self.committed_time = time.monotonic()

        averages = self.snapshots.take(model, last=where.get("finished", False))

        if self.job.count > 1:
            # Its data are `Batches`, or this is the end of an epoch: it is certain.
            self._commit_in_parts(meta, arrays, layouts, averages)
            self.saved = (where["epoch"], where["step"])
            return

        def to_disk() -> None:
            # First: one without its commit is made again, the reverse would be missing.
            if averages is not None:
                self.directory.write_averages(*averages)
            self.directory.write(meta, arrays)

        def write() -> None:
            self.saved = (where["epoch"], where["step"])
            self.writer.start(to_disk)

        if at_epoch_end:
            write()
        else:
            self.place.once_certain(write)

    def _warn_of_lost(self, held: Held) -> None:
        """Warn of what training has made too long to be read, or of such a kind."""
        # Only of what commits held so far: Keras too makes attributes as it trains.
        new = held.unreadable.keys() & self.values_at_start.keys() - self.warned_of
        self.warned_of |= new
        if new:
            named = [f"{place} ({held.unreadable[place]})" for place in sorted(new)]
            warnings.warn(
                f"Training has made {', '.join(named)} what no commit can hold, so a "
                "resumed run would be without it. A list or dict may have fewer than "
                "4,096 elements. Keep what grows in a file, or in an object with "
                "get_state and set_state.",
                stacklevel=2,
            )

    def _commit_in_parts(
        self,
        meta: Meta,
        arrays: dict[str, Any],
        layouts: dict[str, Layout],
        averages: Snapshot | None,
    ) -> None:
        """Let each process write its part of a commit; learn of signals elsewhere."""
        assert isinstance(self.writer, JobWriter)
        job, copy = self.job, self.settings.background
        tell = [self.directory.next, new_token(), self.signals.received]
        dealt = deal(job, layouts, tell=tell, copy=copy)
        number, token, _ = dealt.told[0]
        signals = [received for *_, received in dealt.told]
        self.signal = next((each for each in signals if each is not None), None)
        place = self.directory.place(number, job.index, job.count, token)
        commit = [Shared(place, meta, arrays, dealt.pieces, dealt.whole)]
        if averages is not None:
            of_them = deal(job, averages.arrays, copy=copy)
            place = self.directory.place_of_averages(averages.length, place)
            # First: one without its commit is made again.
            commit.insert(
                0, Shared(place, averages.meta, {}, of_them.pieces, of_them.whole)
            )
        self.writer.start_job(commit)

    def _score(self, logs: dict[str, Any]) -> float | None:
        """Return the monitored value, lower for better; `None` without one."""
        value = logs.get(self.settings.monitor)
        if value is None:
            if self.settings.keep_best:
                raise ValueError(
                    f"`keep_best` needs monitor={self.settings.monitor!r} in the "
                    f"logs of each epoch; there are {sorted(logs)}."
                )
            return None
        if not math.isfinite(value):
            return None
        return float(value) if self.settings.mode == "min" else -float(value)

    def _is_signalled(self) -> bool:
        # Several processes learn of each other's signals when they commit, all at
        # the same step: one that committed by itself would wait for the others.
        return self.job.count == 1 and self.signals.received is not None

    def _stop_on_signal(self, step: int) -> None:
        number = self.signals.received if self.job.count == 1 else self.signal
        if number is None:
            return
        self.writer.wait()
        name = signal.Signals(number).name
        self._say(f"{name} received: {self._what_is_saved(step)}, stopping")
        self.close()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _what_is_saved(self, step: int) -> str:
        if self.saved == (self.epoch, step):
            return "state saved"
        if self.saved is None:
            return "nothing is saved yet, the next run starts from the beginning"
        epoch, step = self.saved
        return (
            f"the next start continues from epoch {epoch + 1}, step {step}, and trains "
            "again what came after it"
        )


def _parts(optimizer: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield an optimizer, and those inside it, by their names in a description."""
    if optimizer is None:
        return
    yield place, optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    for name in ("optimizer", "inner_optimizer"):  # of fmkit's wrappers, of Keras's
        yield from _parts(inner, f"{place}.{name}")


def _close(
    signals: Signals,
    writer: Writer,
    directory: CommitDirectory,
    place: Place,
    start_epoch: StartEpoch,
) -> None:
    if writer.is_here():
        # Python may collect a broken `fit` in any thread. This one can't wait for
        # itself.
        parts = (signals, writer, directory, place, start_epoch)
        threading.Thread(target=_close, args=parts).start()
        return
    start_epoch.give_back()
    signals.give_back()
    with contextlib.ExitStack() as stack:  # all of it, though Ctrl-C may come again
        # The directory is free when nothing is being written there any more.
        stack.callback(directory.release)
        stack.callback(writer.finish)
        place.close()


def _numbers(logs: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, (int, float, np.number))
    }
