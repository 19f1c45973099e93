"""The learning rate in the logs."""

from __future__ import annotations

from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._checks import check_one_of
from fmkit.callbacks._batch_counter import last_index
from fmkit.callbacks._restored import Restored
from fmkit.callbacks._saved_settings import check_settings

__all__ = ["LearningRateLogger"]


class LearningRateLogger(keras.callbacks.Callback):
    """Puts the learning rate that was used into the logs.

    At the end of an epoch that is the rate of the epoch's last step, be it a number, a
    schedule, or a number that another callback changes, so that `History`, `CSVLogger`
    and the progress bar show it. (`optimizer.learning_rate` of a schedule is the rate
    of the step to come.) As training begins the callback moves to the front of the
    list, so that every other one sees its entry. Each optimizer of a `MultiOptimizer`
    has an entry of its own, `learning_rate_` and its name.

    `TensorBoard` shows the rate of each step with `every="step"` and its own
    `update_freq="batch"`. For epochs it replaces an entry named `learning_rate` by the
    rate of the step to come: with `name="rate"` this callback's entry is there too.

    Args:
        every: `"epoch"`, or `"step"` for the rate of each step in the logs of the
            batches too, and in `steps` and `learning_rates`. On JAX and on
            accelerators that waits for each step to end.
        name: Name of the entry.

    Attributes:
        steps: Number of each logged step, the first being 0, if `every="step"`. With
            `steps_per_execution` above 1, the last of each group.
        learning_rates: The rate of each of them; of the first optimizer, if there are
            several.

    Raises:
        ValueError: If `every` is another word.
        RuntimeError: If it is not called by `fit`.

    Examples:
        >>> from keras import ops
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.25), "mse")
        >>> history = model.fit(
        ...     ops.ones((4, 1)), ops.ones((4, 1)), verbose=0,
        ...     callbacks=[LearningRateLogger()])
        >>> history.history["learning_rate"]
        [0.25]
    """

    def __init__(self, every: str = "epoch", *, name: str = "learning_rate") -> None:
        super().__init__()
        self.every = check_one_of("every", every, ["epoch", "step"])
        self.name = name
        self._restored = Restored()
        self._place = 0
        self._reset()
        if self.every == "step":
            # Only here: a class that has this method keeps Keras from running
            # callbacks beside the steps.
            private.bind_hook(self, "on_train_batch_end", self._log_step)

    def _reset(self) -> None:
        self.steps: list[int] = []
        self.learning_rates: list[float] = []
        self._epoch_start = 0
        self._latest: dict[str, float] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the last run, unless `set_state` has just restored this one.

        Then take the first place in the list of callbacks.
        """
        fit = private.running_fit(self)
        if fit is None:
            raise RuntimeError(
                "LearningRateLogger works inside `model.fit`: pass it as "
                "fit(..., callbacks=[LearningRateLogger()])."
            )
        self._place = private.put_first(fit.callback_list, self)
        if not self._restored.take(self):
            self._reset()

    def _log_step(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._latest = self._rates()
        if logs is not None:
            logs.update(self._latest)
        self.steps.append(self._epoch_start + last_index(batch, self.params))
        self.learning_rates.append(next(iter(self._latest.values())))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the rate of the epoch's last step to the logs."""
        if self.steps:
            self._epoch_start = self.steps[-1] + 1
        if logs is not None:
            logs.update(self._latest or self._rates())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Move back to where it was in the list of callbacks."""
        fit = private.running_fit(self)
        if fit is not None:
            private.put_back(fit.callback_list, self, self._place)

    def _rates(self) -> dict[str, float]:
        model = self.model  # on JAX this synchronises
        return {
            name: private.rate_of_last_step(optimizer)
            for name, optimizer in self._named(model.optimizer)
        }

    def _named(self, optimizer: Any) -> list[tuple[str, Any]]:
        """Return the log entry of each optimizer that has a rate."""
        optimizer = _innermost(optimizer)
        if hasattr(optimizer, "optimizers"):
            return [
                (f"{self.name}_{part.name}", _innermost(part))
                for part in optimizer.optimizers
            ]
        return [(self.name, optimizer)]

    def get_state(self) -> dict[str, Any]:
        """Return what an exact resume must carry."""
        return {
            "settings": self._settings(),
            "steps": list(self.steps),
            "learning_rates": list(self.learning_rates),
            "epoch_start": self._epoch_start,
            "latest": dict(self._latest),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what `get_state` returned.

        Raises:
            ValueError: If the state was saved with another `every` or `name`.
        """
        check_settings(type(self).__name__, state, self._settings())
        self._restored.note()
        self.steps = list(state["steps"])
        self.learning_rates = list(state["learning_rates"])
        self._epoch_start = int(state["epoch_start"])
        self._latest = dict(state["latest"])

    def _settings(self) -> dict[str, str]:
        return {"every": self.every, "name": self.name}


def _innermost(optimizer: Any) -> Any:
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer
