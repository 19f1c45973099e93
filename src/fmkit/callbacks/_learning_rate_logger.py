"""The learning rate in the logs."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_one_of
from fmkit._keras_private import callback_list, rate_of_last_step


class LearningRateLogger(keras.callbacks.Callback):
    """Puts the learning rate that was used into the logs, as `learning_rate`.

    At the end of an epoch that is the rate of the epoch's last step, be it a number, a
    schedule, or a number that another callback changes, so that `History`, `CSVLogger`
    and the progress bar show it. (`optimizer.learning_rate` of a schedule is the rate
    of the step to come. `TensorBoard` writes that one itself, as `learning_rate`.)
    In `fit` the callback moves to the front of the list, so that every other one sees
    its entry. Each optimizer of a `MultiOptimizer` has an entry of its own,
    `learning_rate_` and its name.

    Args:
        every: `"epoch"`, or `"step"` for the rate of each step in the logs of the
            batches too, and in `steps` and `learning_rates`. On JAX and on
            accelerators that waits for each step to end.

    Attributes:
        steps: Number of each logged step, the first being 0, if `every="step"`. With
            `steps_per_execution` above 1, the first of each group.
        learning_rates: The rate of each of them.

    Examples:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.25), "mse")
        >>> history = model.fit(
        ...     ops.ones((4, 1)), ops.ones((4, 1)), verbose=0,
        ...     callbacks=[LearningRateLogger()])
        >>> history.history["learning_rate"]
        [0.25]
    """

    def __init__(self, every: str = "epoch"):
        super().__init__()
        self.every = check_one_of("every", every, ["epoch", "step"])
        self.steps: list[int] = []
        self.learning_rates: list[float] = []
        self._now: dict[str, float] = {}
        self._epoch_start = 0
        self._first = self._last = 0
        if self.every == "step":
            # Only here: a class that has this method keeps Keras from running
            # callbacks beside the steps.
            self.on_train_batch_end = self._log_step

    def set_model(self, model: keras.Model) -> None:
        """Take the model, and the first place in the list of callbacks."""
        super().set_model(model)
        move_to_front(self)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Read the rate of the step to come, if every step is logged."""
        if self.every == "step":
            self._first = batch
            self._now = {
                key: float(ops.convert_to_numpy(optimizer.learning_rate))
                for key, optimizer in _named(self.model.optimizer)
            }

    def _log_step(self, batch: int, logs: Any = None) -> None:
        if logs is not None:
            logs.update(self._now)
        self._last = batch
        self.steps.append(self._epoch_start + self._first)
        self.learning_rates.append(next(iter(self._now.values())))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the rate of the epoch's last step to the logs."""
        self._epoch_start += self._last + 1
        if logs is not None:
            for key, optimizer in _named(self.model.optimizer):
                logs[key] = rate_of_last_step(optimizer)

    def get_state(self) -> dict[str, Any]:
        """Return what an exact resume must carry."""
        return {
            "steps": self.steps,
            "learning_rates": self.learning_rates,
            "epoch_start": self._epoch_start,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what `get_state` returned."""
        self.steps = list(state["steps"])
        self.learning_rates = list(state["learning_rates"])
        self._epoch_start = int(state["epoch_start"])


def move_to_front(callback: keras.callbacks.Callback) -> Any:
    """Put `callback` first in the list that calls its `set_model`; return the list.

    The list is being walked: those before the callback move back one place, so that
    the walk goes on with the one after it.
    """
    callbacks = callback_list(callback)
    if callbacks is not None:
        others = [each for each in callbacks.callbacks if each is not callback]
        callbacks.callbacks[:] = [callback, *others]
    return callbacks


def _named(optimizer: Any) -> list[tuple[str, Any]]:
    """Return the log entry of each optimizer that has a rate."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if hasattr(optimizer, "optimizers"):
        return [
            (f"learning_rate_{part.name}", _named(part)[0][1])
            for part in optimizer.optimizers
        ]
    return [("learning_rate", optimizer)]
