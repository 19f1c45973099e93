"""Stop the training after a number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmkit import _keras_private as private
from fmkit._checks import check_int
from fmkit.callbacks._stopping._stop import Stop, StopReason, place
from fmkit.callbacks._stopping._stopper import Stopper

__all__ = ["StepStopping"]


class StepStopping(Stopper):
    r"""Stops the training after a number of steps, also inside an epoch.

    A step is one batch that was trained on. With `steps_per_execution` $s > 1$ Keras
    stops between executions only: the run ends with the first one that reaches the
    number, at most $s - 1$ steps later. The steps are known before they are made, so
    nothing waits for the device.

        model.fit(batches, epochs=1000, callbacks=[StepStopping(20_000)])

    Args:
        steps: Steps to train, counted from the beginning of `fit`.
        log_stop: Whether to put `"stopped_by_<name>"`, 0.0 or 1.0, in the logs of
            each epoch.
        name: Name in the record of the stop.
        verbose: 1 to show a message after the stop, 0 for none, `"auto"` to do as
            `fit` does.

    `get_state` and `set_state` carry the count across a resume. A run that was stopped
    and is given more steps continues with the next epoch.

    Raises:
        TypeError: If `steps` is no integer.
        ValueError: If `steps` is less than 1; in `fit`, if Keras doesn't know how many
            steps an epoch has.

    Examples:
        >>> import keras, numpy as np
        >>> from fmkit.callbacks import StepStopping
        >>> from fmkit.data import Batches
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x = np.zeros((10, 2))
        >>> stopping = StepStopping(7)
        >>> history = model.fit(
        ...     Batches(x, x[:, 0], 2, map=None), epochs=9, callbacks=[stopping],
        ...     verbose=0)
        >>> int(model.optimizer.iterations), history.epoch
        (7, [0, 1])
        >>> stopping.stop.message
        'step_stopping stopped the run in epoch 2 at batch 2 (step 7).'
    """

    def __init__(
        self,
        steps: int,
        *,
        log_stop: bool = False,
        name: str = "step_stopping",
        verbose: int | str = "auto",
    ) -> None:
        super().__init__(name, verbose, log_stop)
        self.steps = check_int("steps", steps)
        self._per_epoch = self._per_execution = 1
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self._before = self._in_epoch = 0

    @property
    def done(self) -> int:
        """Steps so far, those of the running execution and before a resume included."""
        return self._before + self._in_epoch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin to count; look how many steps epochs and executions have."""
        super().on_train_begin(logs)
        steps = (self.params or {}).get("steps")
        if steps is None and (fit := private.running_fit(self)) is not None:
            steps = fit.epoch_iterator.num_batches
        if steps is None:
            raise ValueError(
                "StepStopping must know how many steps an epoch has, and these data "
                "don't say: repeat them, and write fit(steps_per_epoch=100, ...)."
            )
        self._per_epoch = int(steps)
        model = private.model_of(self)
        self._per_execution = int(getattr(model, "steps_per_execution", 1))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count the epoch's steps."""
        super().on_epoch_begin(epoch, logs)
        self._in_epoch = 0

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Let the execution that begins be the last one, if it reaches the number."""
        self._in_epoch = min(batch + self._per_execution, self._per_epoch)
        if self.done >= self.steps:
            # Also if a commit made in this very step has restored the stop.
            self._halt(self._record())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the epoch's steps to the count."""
        self._before, self._in_epoch = self.done, 0
        super().on_epoch_end(epoch, logs)

    def _record(self) -> Stop:
        where = place(self._epoch, self.done, self._in_epoch - 1)
        late = (
            f": an execution has {self._per_execution} steps, and {self.steps} were "
            "reached inside one"
            if self.done > self.steps
            else ""
        )
        return Stop(
            callback=self.name,
            reason=StopReason.STEPS,
            monitor=None,
            value=float(self.done),
            threshold=float(self.steps),
            epoch=self._epoch,
            step=self.done,
            message=f"{self.name} stopped the run{where}{late}.",
        )

    def get_state(self) -> dict[str, Any]:
        """Return the steps of the epochs done and the record of a stop."""
        return {**super().get_state(), "steps": self._before}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, before `fit` or in its first epoch.

        `steps` may differ from that of the saved callback. If more are left than when
        the state's run was stopped, the run continues.
        """
        super().set_state(state)
        self._before = int(state["steps"])
        if self.stop is not None and self.steps > (self.stop.value or 0.0):
            self.stop = None
