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
from fmkit._swap import Averages, active_swaps, find_averages, swapped
from fmkit.callbacks._evaluation import evaluate_undisturbed
from fmkit.callbacks._saved_settings import check_settings

__all__ = ["EvaluateWithAverages"]


class EvaluateWithAverages(keras.callbacks.Callback):
    """Lets the model hold the averages of its weights while it is evaluated.

    In `fit` the averages are in the model during each validation and each
    `on_epoch_end`, so that `ModelCheckpoint`, Keras Tuner,
    `EarlyStopping(restore_best_weights=True)` and `ThresholdStopping` score and save
    the same weights. Passed to `evaluate` or `predict`, the callback puts the averages
    in for the batches of that call. Afterwards every weight is restored bit for bit,
    also after an early stop, an exception or Ctrl-C, and wherever this callback is in
    the list. Training continues from the raw weights, and the model holds them at the
    end of `fit`: `fmkit.optimizers.averaged` gives the averages.

    Before the first averaging update the model keeps its raw weights.

    What a callback assigns to the model in `on_train_end` stays, such as the best
    averages that `EarlyStopping(restore_best_weights=True)` restores. What it assigns
    in `on_epoch_end` is lost with the averages. `ExactResume` always commits raw
    weights.

    Args:
        batch_norm: Statistics of `BatchNormalization` while the averages are in:
            `"copy"`, the model's own, as in TensorFlow 1; `"average"`, an average of
            them with the same decays as the weights; `"recompute"`, measured on
            `batch_norm_data` by `fmkit.evaluation.update_batch_norm` each time.
            `"average"` reads them after each step, or each group of
            `steps_per_execution` steps, which on JAX and accelerators waits for the
            step to end.
        batch_norm_data: Data for `"recompute"`; part of the training set is enough.
        raw_validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set, on which
            the raw weights are evaluated too at the end of each epoch; the training is
            not affected. The logs have the results as `val_raw_...`, beside the
            `val_...` of the averages.

    Raises:
        ValueError: If `batch_norm` is not one of these, or `batch_norm_data` does not
            go with it; when training or evaluation begins, if the model's optimizer
            keeps no averages.
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
            # On this instance only: with this method on the class, Keras would not
            # run callbacks while the steps run.
            private.bind_hook(self, "on_train_batch_end", self._average_statistics)

    # What Keras calls.

    def set_model(self, model: keras.Model) -> None:
        """Take the model; averages of a different model's statistics are dropped."""
        if private.model_of(self) not in (None, model):
            self._statistics, self._seen_updates = None, 0
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that there are averages, and put them in at the end of every epoch."""
        find_averages(self.model)
        fit = private.running_fit(self)
        if fit is None:
            raise _not_in_a_call("fit")
        private.around_epoch_end(fit.callback_list, self._epoch_end)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Let the model hold the averages during this evaluation."""
        self._put_around_steps("evaluate")

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Let the model hold the averages during this prediction."""
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
            ValueError: If only one of the callback and the state averages statistics
                (`batch_norm="average"`).
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
        averages = find_averages(model)
        if active_swaps(averages) or not any(each.has_averages for each in averages):
            yield
            return
        with swapped(model, averages):
            self._put_in_statistics(model, averages)
            yield

    @contextlib.contextmanager
    def _epoch_end(self, logs: dict[str, Any]) -> Iterator[None]:
        if self.raw_validation_data is not None:
            logs.update(self._evaluate_raw())
        with self._averages_in():
            yield

    def _put_in_statistics(self, model: keras.Model, averages: list[Averages]) -> None:
        if self.batch_norm == "copy":
            return
        statistics = batch_norm_statistics(model)
        active_swaps(averages)[0].save(statistics)
        if self.batch_norm == "recompute":
            update_batch_norm(model, self.batch_norm_data)
        elif self._statistics is not None:
            for variable, value in zip(statistics, self._statistics, strict=True):
                variable.assign(ops.copy(value))

    def _average_statistics(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        model = self.model
        averages = find_averages(model)[0]
        now = averages.updates
        # The share that the old average keeps after all updates since the last call.
        share = math.prod(
            averages.decay_at(update)
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
        results = evaluate_undisturbed(self.model, self.raw_validation_data)
        return {f"val_raw_{name}": value for name, value in results.items()}


def _not_in_a_call(name: str) -> RuntimeError:
    return RuntimeError(
        f"EvaluateWithAverages works inside of Keras: pass it as model.{name}(..., "
        "callbacks=[EvaluateWithAverages()]). In your own loop, write\n"
        "    with fmkit.optimizers.averaged(model):\n        ..."
    )
