"""Stop the training when its time is used up."""

from __future__ import annotations

import datetime
import numbers
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from fmkit._checks import check_number
from fmkit._job import Job, current_job
from fmkit.callbacks._stopping._stop import Stop, StopReason, place
from fmkit.callbacks._stopping._stopper import Stopper

__all__ = ["TimeStopping"]


class TimeStopping(Stopper):
    r"""Stops the training before a budget of wall-clock time is used up.

    With budget $T$ and margin $m$, the run stops at the first step that would begin
    at or after $T - m$ seconds of training, or at the end of an epoch after that.
    The margin must leave time for what `fit` still does then: the step already begun,
    the validation, callbacks that save.

    In a job of several processes (`jax.distributed`, `torch.distributed`), whose
    clocks differ, all stop together: at the end of the first epoch at which one of
    them is out of time.

    The clock is read before each step, in `on_train_batch_begin`, which needs no value
    from the device. Steps that a device has queued but not done are therefore not
    seen; the margin must leave time for them too.

    Args:
        budget: Seconds of training, or a `datetime.timedelta`.
        margin: Seconds, or a `timedelta`, kept free for what comes after the last
            step; less than `budget`.
        log_stop: Whether to put `"stopped_by_<name>"`, 0.0 or 1.0, in the logs of
            each epoch.
        name: Name in the record of the stop.
        verbose: 1 to show a message after the stop, 0 for none, `"auto"` to do as
            `fit` does.
        clock: Function that returns seconds.

    The time counts from the beginning of `fit`. `get_state` and `set_state` carry
    what was used across a resume, so that all parts of a run share one budget; what
    a killed process did after its last save is not counted.

    Raises:
        TypeError: If a duration is neither a number nor a `timedelta`.
        ValueError: If `budget` is not positive or `margin` not in [0, budget).

    Examples:
        >>> import datetime
        >>> stopping = TimeStopping(datetime.timedelta(hours=8), margin=600)
        >>> stopping.budget, stopping.margin
        (28800.0, 600.0)
    """

    def __init__(
        self,
        budget: float | datetime.timedelta,
        *,
        margin: float | datetime.timedelta = 0.0,
        log_stop: bool = False,
        name: str = "time_stopping",
        verbose: int | str = "auto",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, verbose, log_stop)
        self.budget = check_number("budget", _seconds("budget", budget), above=0.0)
        self.margin = check_number(
            "margin", _seconds("margin", margin), at_least=0.0, below=self.budget
        )
        self._clock = clock
        self._began: float | None = None
        self._job = Job()
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self._carried = 0.0

    @property
    def used(self) -> float:
        """Seconds of training so far, those before a resume included."""
        running = 0.0 if self._began is None else self._clock() - self._began
        return self._carried + running

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        super().on_train_begin(logs)
        self._began = self._clock()
        self._job = current_job()

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Check the clock before the step."""
        if self._job.count == 1:
            self._check_clock(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the clock after the validation."""
        self._check_clock(None)
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop the clock and show the message, if this callback stopped the run."""
        self._carried, self._began = self.used, None
        super().on_train_end(logs)

    def check(self, *, epoch: int | None = None, step: int | None = None) -> bool:
        """Return whether the time is up: for custom training loops.

        Call `on_train_begin` before the loop: it starts the clock.

        Args:
            epoch: Index of the epoch from 0, for the record.
            step: Steps done, for the record.
        """
        if epoch is not None:
            self._epoch = epoch
        self._check_clock(None, step)
        return self.stop is not None

    def _check_clock(self, batch: int | None, step: int | None = None) -> None:
        if self.stop is not None:
            if batch is not None:
                # A commit made in this very step has restored the stop.
                self.model.stop_training = True
            return
        used = max(self._job.exchange(self.used))
        if used + self.margin < self.budget:
            return
        step = self._optimizer_steps() if step is None else step
        limit = self.budget - self.margin
        spare = f" (a margin of {self.margin:g} s is kept)" if self.margin else ""
        self._halt(
            Stop(
                callback=self.name,
                reason=StopReason.TIME,
                monitor=None,
                value=used,
                threshold=limit,
                epoch=self._epoch,
                step=step,
                message=(
                    f"{self.name} stopped the run{place(self._epoch, step, batch)}: "
                    f"{used:.1f} s of {self.budget:g} s are used{spare}."
                ),
            )
        )

    def get_state(self) -> dict[str, Any]:
        """Return the seconds used and the record of a stop, as JSON values."""
        return {**super().get_state(), "used": self.used}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, before `fit` or in its first epoch.

        `budget` and `margin` may differ from those of the saved callback. If more time
        is left than when the state's run was stopped, the run continues.
        """
        super().set_state(state)
        self._carried = float(state["used"])
        limit = self.budget - self.margin
        if self.stop is not None and limit > (self.stop.threshold or 0.0):
            self.stop = None


def _seconds(name: str, duration: float | datetime.timedelta) -> float:
    if isinstance(duration, datetime.timedelta):
        return duration.total_seconds()
    if not isinstance(duration, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number of seconds or a datetime.timedelta, got "
            f"{name}={duration!r} ({type(duration).__name__}). Write for example "
            f"{name}={_as_timedelta(str(duration))}."
        )
    return duration


def _as_timedelta(text: str) -> str:
    """Return the expression that a text such as "6:00:00" means, or an example."""
    units = ("days", "hours", "minutes", "seconds")
    clock = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", text)
    words = re.fullmatch(
        r"(\d+) ?(?:(d|days?)|(h|hours?)|(m|min|minutes?)|(s|sec|seconds?))", text
    )
    amounts = [0, 6, 0, 0]
    if clock:
        amounts = [int(amount or 0) for amount in clock.groups()]
    elif words:
        amounts = [int(words[1]) * bool(unit) for unit in words.groups()[1:]]
    given = zip(units, amounts, strict=True)
    arguments = ", ".join(f"{unit}={amount}" for unit, amount in given if amount)
    return f"datetime.timedelta({arguments})"
