"""What `ExactResume` runs beside the steps: a writer, two signals, a cell's end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from fmkit import _keras_private as private
from fmkit._commits import CommitDirectory, Shared
from fmkit._job import Job
from fmkit._requirements import ipython_shell

__all__ = ["JobWriter", "Signals", "StartEpoch", "Writer", "close_after_cell"]

_logger = logging.getLogger("fmkit.callbacks")

# Seconds between two looks for the parts of other processes.
_PAUSE = 0.02


class Writer:
    """Does one piece of work at a time, in a thread of its own if allowed."""

    def __init__(self, background: bool) -> None:
        self._background = background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        self.wait()
        if not self._background:
            work()
            return

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again in `wait`
                self._error = error

        # Not a daemon: the interpreter's exit waits for the file to be whole.
        self._thread = threading.Thread(target=run, name="fmkit commit")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the work to end; raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def is_here(self) -> bool:
        """Return whether this is the thread that does the work."""
        return self._thread is threading.current_thread()

    def finish(self) -> None:
        """Wait for the work to end, where nobody is left to raise an error to.

        Raises:
            KeyboardInterrupt: If it came meanwhile, when the work has ended.
        """
        interrupt: BaseException | None = None
        while self._thread is not None and self._thread.is_alive():
            try:
                self._thread.join()
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupt = error
        try:
            Writer.wait(self)
        except BaseException as error:  # noqa: BLE001 - the run has ended already
            _logger.warning("The last commit could not be written: %s", error)
        if interrupt is not None:
            raise interrupt


class JobWriter(Writer):
    """Writes the commits of a job: each process its part, then process 0 the list.

    Nothing collective happens in the thread: process 0's waits for the names of the
    other parts. In `wait` all processes learn whether all have written.
    """

    def __init__(self, job: Job, directory: CommitDirectory, background: bool) -> None:
        super().__init__(background=True)
        self._job = job
        self._directory = directory
        self._beside = background
        self._is_writing = False
        self._given_up = threading.Event()

    def start_job(self, commit: list[Shared]) -> None:
        """Write a commit, and before it a snapshot of averages if there is one.

        Args:
            commit: What is to be written, in this order.
        """
        self._given_up.clear()
        super().start(lambda: self._write(commit))
        self._is_writing = True
        if not self._beside:
            self.wait()

    def _write(self, commit: list[Shared]) -> None:
        for shared in commit:
            self._directory.write_part(shared)
        if self._job.index == 0:
            for shared in commit:
                parts = self._wait_for_parts(shared)
                if parts is None:
                    return
                self._directory.write_list(shared, parts)

    def _wait_for_parts(self, shared: Shared) -> list[dict[str, Any]] | None:
        """Return what is said of the parts when all are there, or `None`."""
        main = threading.main_thread()
        while True:
            # An interpreter that ends waits for this thread.
            last = self._given_up.wait(_PAUSE) or not main.is_alive()
            parts = shared.parts()
            if parts is not None or last:
                return parts

    def wait(self) -> None:
        """Wait for all processes; raise, in all of them, what one has raised.

        Collective: called by all between the same two steps.
        """
        if not self._is_writing:
            return
        self._is_writing = False
        try:
            self._job.together(lambda: self._join(others=True))
            self._job.together(lambda: self._join(others=False))
        except BaseException:
            self.finish()
            if self._job.index == 0:
                with contextlib.suppress(OSError):
                    self._directory.remove_lone_parts()
            raise

    def _join(self, *, others: bool) -> None:
        """Wait for this process's work if it is that of process 0, or of another."""
        if others == (self._job.index > 0):
            super().wait()

    def finish(self) -> None:
        """Wait for this process's own work; give up waiting for that of others."""
        self._is_writing = False
        self._given_up.set()
        super().finish()


class _Epoch(int):
    """Is another object than an equal epoch of another `fit`."""


class StartEpoch:
    """The epoch that `fit` starts from; Keras would keep it for the next `fit`."""

    def __init__(self, model: Any) -> None:
        private.initial_epoch(model)  # a Keras without it is refused before training
        self._model = model
        self._epoch: int | None = None

    def set(self, epoch: int) -> None:
        self._epoch = _Epoch(epoch)
        private.set_initial_epoch(self._model, self._epoch)

    def give_back(self) -> None:
        # A `fit` that broke off may be collected when the next has set its own.
        epoch, self._epoch = self._epoch, None
        if epoch is not None and private.initial_epoch(self._model) is epoch:
            private.set_initial_epoch(self._model, None)


class Signals:
    """Notes SIGTERM and SIGINT instead of dying of them, while `fit` runs."""

    def __init__(self, callback_list: weakref.ref[Any]) -> None:
        self.received: int | None = None
        self._callback_list = callback_list
        self.previous: dict[int, Any] = {}

    def install(self) -> None:
        _installed.add(self)
        # Python lets only the main thread do this.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._handle)

    def give_back(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in list(self.previous.items()):
            # Not while those of a later `fit` are over them, which lead back to here.
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
                del self.previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        in_fit = private.is_in_fit(frame, self._callback_list())
        if self.received is None and in_fit:
            self.received = number
            return
        self.give_back()
        signal.raise_signal(number)


def close_after_cell(close: Callable[[], object], callback_list: Any) -> None:
    """In a notebook, call `close` when the cell ends, unless `fit` is running then.

    IPython keeps the last exception, and with it the frames of a `fit` that it ended:
    nothing there is collected before the next exception.

    Args:
        close: Does nothing if it has been called before.
        callback_list: A weak reference to that of `fit`.
    """
    shell = ipython_shell()
    if shell is None:
        return

    def end_of_cell() -> None:
        if not private.is_running(callback_list()):  # a thread may outlast the cell
            shell.events.unregister("post_execute", end_of_cell)
            close()

    shell.events.register("post_execute", end_of_cell)


# Those whose handlers a forked child would inherit.
_installed: weakref.WeakSet[Signals] = weakref.WeakSet()
_fork = threading.local()


def _before_fork() -> None:
    # What comes to the child before it has its old handlers must wait: Python drops
    # the signals that its own handler has noted meanwhile.
    numbers = {number for signals in _installed for number in signals.previous}
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def _after_fork_in_child() -> None:
    """Let the child die of a signal, as it would without `fit`."""
    for number in {number for signals in _installed for number in signals.previous}:
        handler = signal.getsignal(number)
        # A `fit` that broke off may still have its own under those of the present one.
        while isinstance(owner := getattr(handler, "__self__", None), Signals):
            handler = owner.previous.get(number, signal.SIG_DFL)
        signal.signal(number, handler)
    for signals in _installed:
        signals.previous.clear()
    _after_fork()


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
