"""Evaluation, prediction and checkpoints on the averages of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit import _keras_private as private
from fmkit._batch_norm import batch_norm_statistics, update_batch_norm
from fmkit._checks import check_one_of
from fmkit.callbacks._batch_validation import training_undisturbed
from fmkit.callbacks._saved_settings import check_settings
from fmkit.optimizers._averaged import find_averages
from fmkit.optimizers._swap import holds_averages, swapped

__all__ = ["EvaluateWithAverages"]


class EvaluateWithAverages(keras.callbacks.Callback):
    """Lets the model hold the averages of its weights while it is judged.

    In `fit` the averages are in the model during each validation, and while the
    callbacks are told of the end of an epoch: what `ModelCheckpoint`, Keras Tuner,
    `EarlyStopping(restore_best_weights=True)` or `ThresholdStopping` then score and
    save are the same weights. Given to `evaluate` or `predict`, they are in it for the
    batches of that call. Afterwards every weight has the bits it had before, also after
    an early stop, an exception or Ctrl-C, and wherever in the list of callbacks this
    one stands. Training goes on from the raw weights, and the model holds them at the
    end of `fit`: `fmkit.optimizers.averaged` gives the averages.

    Until the averages have had their first update the raw weights stay in place.

    What a callback puts into the model when training ends stays, as the best averages
    that `EarlyStopping(restore_best_weights=True)` restores. What it puts in when an
    epoch ends is lost with the averages. `ExactResume` always commits raw weights.

    Args:
        batch_norm: Statistics of `BatchNormalization` while the averages are in:
            `"copy"`, the model's own, as TensorFlow 1 does; `"average"`, an average of
            them with the decays of the weights; `"recompute"`, measured on
            `batch_norm_data` by `fmkit.evaluation.update_batch_norm` each time.
            `"average"` reads them after each step, or group of steps with
            `steps_per_execution`, which on JAX and accelerators waits for its end.
        batch_norm_data: Data for `"recompute"`: a part of the training set will do.
        raw_validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set, on which
            the raw weights are evaluated at the end of each epoch too, without a trace
            in the training. The results stand in the logs with `val_raw_` before their
            names, beside the `val_` of the averages.

    Raises:
        ValueError: If an argument doesn't fit, or, as training or evaluation begins,
            if the model's optimizer keeps no averages.
        RuntimeError: If it is not called by `fit`, `evaluate` or `predict`.

    Examples:
        >>> from fmkit.optimizers import ExponentialMovingAverage
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(ExponentialMovingAverage("sgd", decay=0.99), "mse")
        >>> x, y = ops.ones((8, 1)), ops.ones((8, 1))
        >>> history = model.fit(
        ...     x, y, validation_data=(x, y), verbose=0,
        ...     callbacks=[EvaluateWithAverages(raw_validation_data=(x, y))])
        >>> sorted(history.history)
        ['loss', 'val_loss', 'val_raw_loss']
    """

    def __init__(
        self,
        *,
        batch_norm: str = "copy",
        batch_norm_data: Any = None,
        raw_validation_data: Any = None,
    ) -> None:
        super().__init__()
        self.batch_norm = check_one_of(
            "batch_norm", batch_norm, ["copy", "average", "recompute"]
        )
        if (batch_norm_data is not None) != (batch_norm == "recompute"):
            raise ValueError(
                "`batch_norm_data` goes with batch_norm='recompute', and only with it; "
                f"got batch_norm={batch_norm!r} and batch_norm_data of type "
                f"{type(batch_norm_data).__name__}."
            )
        self.batch_norm_data = batch_norm_data
        self.raw_validation_data = raw_validation_data
        self._statistics: list[Any] | None = None
        self._seen_updates = 0
        if self.batch_norm == "average":
            # Only here: a class that has this method keeps Keras from running
            # callbacks beside the steps.
            private.bind_hook(self, "on_train_batch_end", self._average_statistics)

    # What Keras calls.

    def set_model(self, model: keras.Model) -> None:
        """Take the model; averages of another model's statistics are forgotten."""
        if private.model_of(self) not in (None, model):
            self._statistics, self._seen_updates = None, 0
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that there are averages, and take part in the end of every epoch."""
        find_averages(self.model)
        fit = private.running_fit(self)
        if fit is None:
            raise _not_in_a_call("fit")
        private.around_epoch_end(fit.callback_list, self._epoch_end)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Let the batches of this evaluation see the averages."""
        self._put_around_steps("evaluate")

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Let the batches of this prediction see the averages."""
        self._put_around_steps("predict")

    def _put_around_steps(self, name: str) -> None:
        find_averages(self.model)
        if not private.around_steps(self, self._averages_in):
            raise _not_in_a_call(name)

    def get_state(self) -> dict[str, Any]:
        """Return what an exact resume must carry: averaged statistics, if any."""
        arrays = [np.asarray(ops.convert_to_numpy(s)) for s in self._statistics or []]
        return {
            "settings": {"batch_norm": self.batch_norm},
            "seen_updates": self._seen_updates,
            "statistics": arrays,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what `get_state` returned.

        Raises:
            ValueError: If either of both averages statistics (`batch_norm="average"`)
                and the other doesn't.
        """
        own = {"batch_norm": self.batch_norm}
        # The other policies carry nothing from step to step.
        if "average" in (*state.get("settings", {}).values(), self.batch_norm):
            check_settings(type(self).__name__, state, own)
        self._seen_updates = int(state["seen_updates"])
        self._statistics = [
            ops.convert_to_tensor(array) for array in state["statistics"]
        ] or None

    # Averages in, raw weights back.

    @contextlib.contextmanager
    def _averages_in(self) -> Iterator[None]:
        model = self.model  # on JAX this synchronises
        optimizers = find_averages(model)
        held_already = holds_averages(optimizers)
        if held_already or not any(each.has_averages for each in optimizers):
            yield
            return
        with swapped(model, optimizers):
            self._put_in_statistics(model, optimizers)
            yield

    @contextlib.contextmanager
    def _epoch_end(self, logs: dict[str, Any]) -> Iterator[None]:
        if self.raw_validation_data is not None:
            logs.update(self._evaluate_raw())
        with self._averages_in():
            yield

    def _put_in_statistics(self, model: keras.Model, optimizers: list[Any]) -> None:
        if self.batch_norm == "copy":
            return
        statistics = batch_norm_statistics(model)
        swap = next(each._swap for each in optimizers if each._swap.aside is not None)
        swap.hold(statistics)
        if self.batch_norm == "recompute":
            update_batch_norm(model, self.batch_norm_data)
        elif self._statistics is not None:
            for variable, value in zip(statistics, self._statistics, strict=True):
                variable.assign(ops.copy(value))

    def _average_statistics(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        model = self.model
        optimizer = find_averages(model)[0]
        now = optimizer.updates
        # The share that the old average keeps after all updates since the last look.
        share = math.prod(
            optimizer.decay_at(update)
            for update in range(self._seen_updates + 1, now + 1)
        )
        self._seen_updates = now
        current = [ops.copy(each) for each in batch_norm_statistics(model)]
        old = self._statistics
        if old is None:
            self._statistics = current
            return
        self._statistics = [
            a + (1.0 - share) * (b - a) for a, b in zip(old, current, strict=True)
        ]

    def _evaluate_raw(self) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(
            self.raw_validation_data
        )
        model = self.model
        with training_undisturbed(model, ()):
            results = model.evaluate(
                x, y, sample_weight=sample_weight, verbose=0, return_dict=True
            )
        return {f"val_raw_{name}": value for name, value in results.items()}


def _not_in_a_call(name: str) -> RuntimeError:
    return RuntimeError(
        f"EvaluateWithAverages works inside of Keras: pass it as model.{name}(..., "
        "callbacks=[EvaluateWithAverages()]). In a loop of your own write\n"
        "    with fmkit.optimizers.averaged(model):\n        ..."
    )
