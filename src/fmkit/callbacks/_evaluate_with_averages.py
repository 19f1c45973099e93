"""Evaluation, prediction and checkpoints on the averages of the weights."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit import _keras_private as private
from fmkit._batch_norm import batch_norm_statistics, update_batch_norm
from fmkit._checks import check_one_of, check_path, or_none
from fmkit._files import whole_file
from fmkit._monitor import greater_is_better
from fmkit._swap import Averages, active_swaps, find_averages, find_keepers, swapped
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
        which: The name of the average, where the optimizer keeps several; by default
            the first.
        batch_norm: Statistics of `BatchNormalization` while the averages are in:
            `"copy"`, the model's own, as in TensorFlow 1; `"average"`, an average of
            them with the same decays as the weights'; `"recompute"`, measured on
            `batch_norm_data` by `fmkit.evaluation.update_batch_norm` each time.
            `"average"` reads them after each step, or each group of
            `steps_per_execution` steps, which on JAX and accelerators waits for the
            step to end.
        batch_norm_data: Data for `"recompute"`; part of the training set is enough.
        raw_validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set, on which
            the raw weights and the other averages are evaluated too at the end of each
            epoch; the training is not affected. The logs have the results as
            `val_raw_...` and, for an average named `swa`, `val_swa_...`, beside the
            `val_...` of `which`.
        best: A `.keras` file, which holds the model with the best weights of all
            epochs so far, raw or averaged: those whose result in the logs is best. They
            are the model's weights there. The file is replaced by one rename.
        monitor: By which result `best` judges: `"val_loss"` stands for `val_raw_loss`
            and its like too. The first of equals stays.
        mode: `"min"`, `"max"`, or `"auto"` for Keras's rule.

    Attributes:
        best_weights: The name of the weights in `best`, `"raw"` or an average's;
            `None` before the first epoch.
        best_value: Their result.

    Raises:
        ValueError: If `batch_norm` is not one of these, or `batch_norm_data` does not
            go with it; when training or evaluation begins, if the model's optimizer
            keeps no averages, or none of this name; at the end of an epoch, if
            `monitor` is not in the logs.
        OSError: If `best` can't be written.
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
        which: str | None = None,
        batch_norm: str = "copy",
        batch_norm_data: Any = None,
        raw_validation_data: Any = None,
        best: str | os.PathLike[str] | None = None,
        monitor: str = "val_loss",
        mode: str = "auto",
    ) -> None:
        super().__init__()
        self.which = which
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
        self.best = or_none(check_path, "best", best)
        if self.best is not None and self.best.suffix != ".keras":
            raise ValueError(f"`best` must end with '.keras', got best={str(best)!r}.")
        self.monitor = monitor
        self.mode = check_one_of("mode", mode, ["auto", "min", "max"])
        self.best_weights: str | None = None
        self.best_value = math.nan
        # By the name of the average; "" is the one that is evaluated.
        self._statistics: dict[str, list[Any]] = {}
        self._seen_updates = 0
        if self.batch_norm == "average":
            # On this instance only: with this method on the class, Keras would not
            # run callbacks while the steps run.
            private.bind_hook(self, "on_train_batch_end", self._average_statistics)

    # What Keras calls.

    def set_model(self, model: keras.Model) -> None:
        """Take the model; averages of a different model's statistics are dropped."""
        if private.model_of(self) not in (None, model):
            self._statistics, self._seen_updates = {}, 0
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that there are averages, and put them in at the end of every epoch."""
        find_averages(self.model, self.which)
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
        find_averages(self.model, self.which)
        if not private.around_steps(self, self._averages_in):
            raise _not_in_a_call(name)

    def get_state(self) -> dict[str, Any]:
        """Return what an exact resume must carry: statistics, and the best so far."""
        arrays = {
            name: [np.asarray(ops.convert_to_numpy(s)) for s in statistics]
            for name, statistics in self._statistics.items()
        }
        best = {} if self.best is None else {"best": self._best_so_far()}
        return {
            "settings": {"batch_norm": self.batch_norm},
            "seen_updates": self._seen_updates,
            # Under this name they stood alone before there were several averages.
            "statistics": arrays.pop("", []),
            **({"statistics_of_others": arrays} if arrays else {}),
            **best,
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
        arrays = {"": state["statistics"], **state.get("statistics_of_others", {})}
        self._statistics = {
            name: [ops.convert_to_tensor(array) for array in of_one]
            for name, of_one in arrays.items()
            if of_one
        }
        best = state.get("best") or {"weights": None, "value": math.nan}
        self.best_weights, self.best_value = best["weights"], float(best["value"])

    def _best_so_far(self) -> dict[str, Any]:
        return {"weights": self.best_weights, "value": self.best_value}

    # Averages in, raw weights back.

    @contextlib.contextmanager
    def _averages_in(self, name: str = "") -> Iterator[None]:
        """Let the model hold an average, by default the one that is evaluated."""
        model = self.model  # on JAX this synchronises
        averages = find_averages(model, name or self.which)
        if active_swaps(averages) or not any(each.has_averages for each in averages):
            yield
            return
        with swapped(model, averages):
            self._put_in_statistics(model, averages, name)
            yield

    @contextlib.contextmanager
    def _epoch_end(self, logs: dict[str, Any]) -> Iterator[None]:
        if self.raw_validation_data is not None:
            logs.update(self._evaluate("raw"))
            for name in self._names[1:]:
                with self._averages_in(name):
                    logs.update(self._evaluate(name))
        if self.best is not None:
            self._keep_best(logs)
        with self._averages_in():
            yield

    @property
    def _names(self) -> list[str]:
        """The names of the averages, that of `which` first."""
        names = list(find_keepers(self.model)[0].kept)
        return sorted(names, key=lambda name: name != (self.which or names[0]))

    def _put_in_statistics(
        self, model: keras.Model, averages: list[Averages], name: str
    ) -> None:
        if self.batch_norm == "copy":
            return
        statistics = batch_norm_statistics(model)
        active_swaps(averages)[0].save(statistics)
        if self.batch_norm == "recompute":
            update_batch_norm(model, self.batch_norm_data)
        elif name in self._statistics:
            for variable, value in zip(statistics, self._statistics[name], strict=True):
                variable.assign(ops.copy(value))

    def _average_statistics(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        current = [ops.copy(each) for each in batch_norm_statistics(self.model)]
        others = self._names[1:] if self.raw_validation_data is not None else []
        now = find_averages(self.model, self.which)[0].updates
        for name in ("", *others):
            averages = find_averages(self.model, name or self.which)[0]
            # The share that the old average keeps after all updates since the last
            # call.
            share = math.prod(
                averages.decay_at(update)
                for update in range(self._seen_updates + 1, now + 1)
            )
            old = self._statistics.get(name, current)
            self._statistics[name] = [
                a + (1.0 - share) * (b - a) for a, b in zip(old, current, strict=True)
            ]
        self._seen_updates = now

    def _evaluate(self, name: str) -> dict[str, Any]:
        results = evaluate_undisturbed(self.model, self.raw_validation_data)
        return {f"val_{name}_{metric}": value for metric, value in results.items()}

    # The best weights of all

    def _keep_best(self, logs: dict[str, Any]) -> None:
        metric = self.monitor.removeprefix("val_")
        results: dict[str, Any] = {"": logs.get(self.monitor)}
        if self.raw_validation_data is not None:
            names = ("raw", *self._names[1:])
            results |= {name: logs.get(f"val_{name}_{metric}") for name in names}
        if not all(isinstance(each, (int, float)) for each in results.values()):
            raise ValueError(
                f"`best` needs monitor={self.monitor!r} in the logs of each epoch, as "
                f"one number; there are {sorted(logs)}."
            )
        rises = greater_is_better(self.monitor, self.model, self.mode)
        for name, value in results.items():
            value = float(value)
            better = value > self.best_value if rises else value < self.best_value
            if better or (math.isnan(self.best_value) and not math.isnan(value)):
                self._save(name)
                self.best_value = value
                self.best_weights = name or self._names[0]

    def _save(self, name: str) -> None:
        assert self.best is not None
        put_in = contextlib.nullcontext() if name == "raw" else self._averages_in(name)
        with put_in, whole_file(self.best, suffix=".keras") as file:
            self.model.save(file.name)


def _not_in_a_call(name: str) -> RuntimeError:
    return RuntimeError(
        f"EvaluateWithAverages works inside of Keras: pass it as model.{name}(..., "
        "callbacks=[EvaluateWithAverages()]). In your own loop, write\n"
        "    with fmkit.optimizers.averaged(model):\n        ..."
    )
