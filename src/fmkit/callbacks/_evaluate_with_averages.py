"""Evaluation, prediction and checkpoints on the averages of the weights."""

from __future__ import annotations

import functools
import math
import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit._batch_norm import batch_norm_statistics, update_batch_norm
from fmkit._checks import check_one_of
from fmkit.callbacks._learning_rate_logger import move_to_front
from fmkit.optimizers import (
    find_averages,
    holds_averages,
    parts,
    put_in_averages,
    sync,
    take_out_averages,
)


class EvaluateWithAverages(keras.callbacks.Callback):
    """Lets the model hold the averages of its weights while it is judged.

    In `fit` the averages are in the model from the beginning of each validation until
    every callback has seen the end of the epoch, so that `ModelCheckpoint`,
    `EarlyStopping`, `ThresholdStopping` and Keras Tuner score and save the same
    weights. Given to `evaluate` or `predict`, they are in it for that call. Afterwards
    every weight has the bits it had before; so it has after an early stop, an
    exception or Ctrl-C. Training goes on from the raw weights, and the model holds
    them at the end of `fit`: `fmkit.optimizers.averaged` gives the averages.

    The callback moves to the front of the list: at the next epoch and at the end of
    training the others find the raw weights. What a callback puts into the model at
    the end of training, as `EarlyStopping(restore_best_weights=True)` does, stays.

    Until the averages have had their first update the raw weights stay in place.

    Args:
        batch_norm: Statistics of `BatchNormalization` while the averages are in:
            `"copy"`, the model's own, as TensorFlow 1 does; `"average"`, an average of
            them with the decays of the weights; `"recompute"`, measured on
            `batch_norm_data` by `fmkit.evaluation.update_batch_norm` each time.
            `"average"` reads them at each step, which on JAX and accelerators waits
            for the step to end.
        batch_norm_data: Data for `"recompute"`: a part of the training set will do.
        raw_validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set, on which
            the raw weights are evaluated at the end of each epoch too. The results
            stand in the logs with `val_raw_` before their names, beside the `val_` of
            the averages.

    Raises:
        ValueError: If an argument doesn't fit, or, as training or evaluation begins,
            if the model's optimizer keeps no averages.

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
    ):
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
        self._window = _Window()
        self._statistics: list[Any] | None = None
        self._seen_updates = 0
        if self.batch_norm == "average":
            # Only here: a class that has this method keeps Keras from running
            # callbacks beside the steps.
            self.on_train_batch_end = self._average_statistics

    # What Keras calls.

    def set_model(self, model: keras.Model) -> None:
        """Take the model, and the first place in the list of callbacks."""
        super().set_model(model)
        self._window.follow(move_to_front(self), self)

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that there are averages, and watch for exceptions."""
        self._close()
        find_averages(self.model)
        self._window.fit = self._window.calls
        self._watch(self._window.fit(), "on_epoch_end")
        self._watch(self._model, "evaluate")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Give the raw weights back for training."""
        self._close()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Give the raw weights back, if an evaluation within the epoch left them."""
        self._close()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Log the raw weights' results, and show the averages to the others."""
        if self.raw_validation_data is not None and logs is not None:
            self._close()
            logs.update(self._evaluate_raw())
        self._open()

    def on_train_end(self, logs: Any = None) -> None:
        """Give the raw weights back for good."""
        self._close()
        self._window.unwatch()
        self._window.fit = _nothing

    def on_test_begin(self, logs: Any = None) -> None:
        """Put the averages in."""
        self._begin("test_function")

    def on_test_end(self, logs: Any = None) -> None:
        """Give the raw weights back, unless this is `fit`'s validation."""
        self._end()

    def on_predict_begin(self, logs: Any = None) -> None:
        """Put the averages in."""
        self._begin("predict_function")

    def on_predict_end(self, logs: Any = None) -> None:
        """Give the raw weights back."""
        self._end()

    def get_state(self) -> dict[str, Any]:
        """Return what an exact resume must carry: averaged statistics, if any."""
        arrays = [np.asarray(ops.convert_to_numpy(s)) for s in self._statistics or []]
        return {"seen_updates": self._seen_updates, "statistics": arrays}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what `get_state` returned."""
        self._seen_updates = int(state["seen_updates"])
        self._statistics = [
            ops.convert_to_tensor(array) for array in state["statistics"]
        ] or None

    # Averages in, raw weights back.

    def _begin(self, function: str) -> None:
        window = self._window
        if window.in_fit:
            self._open()
            return
        # A call of `evaluate` or `predict` itself, perhaps inside of `fit`.
        window.opened_by_call = not window.is_open
        self._open()
        if window.opened_by_call and window.is_open:
            self._watch(self._model, function)

    def _end(self) -> None:
        window = self._window
        if window.in_fit:
            return
        if window.opened_by_call:
            self._close()
        window.unwatch("test_function", "predict_function")
        window.calls = window.fit

    def _open(self) -> None:
        model = self.model  # on JAX this synchronises
        optimizers = find_averages(model)
        window = self._window
        if window.is_open or holds_averages(optimizers):
            return
        if not any(each.has_averages for each in optimizers):
            return
        window.optimizers = optimizers
        try:
            put_in_averages(optimizers)
            self._put_in_statistics(model)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        window = self._window
        if not window.is_open:
            return
        sync(self._model)
        take_out_averages(window.optimizers)
        for part, value in window.statistics_aside:
            part.assign(value)
        window.statistics_aside = []
        window.optimizers = []

    def _put_in_statistics(self, model: keras.Model) -> None:
        if self.batch_norm == "copy":
            return
        statistics = batch_norm_statistics(model)
        self._window.statistics_aside = [
            (part, ops.copy(part)) for each in statistics for part in parts(each)
        ]
        if self.batch_norm == "recompute":
            update_batch_norm(model, self.batch_norm_data)
        for variable, value in zip(statistics, self._statistics or [], strict=False):
            variable.assign(ops.copy(value))

    def _average_statistics(self, batch: int, logs: Any = None) -> None:
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
        self._statistics = (
            current
            if old is None
            else [
                a + (1.0 - share) * (b - a) for a, b in zip(old, current, strict=True)
            ]
        )

    def _evaluate_raw(self) -> dict[str, Any]:
        x, y, weight = self.raw_validation_data, None, None
        if isinstance(x, (tuple, list)):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(x))
        results = self.model.evaluate(
            x, y, sample_weight=weight, verbose=0, return_dict=True
        )
        return {f"val_raw_{name}": value for name, value in results.items()}

    # Exceptions. Keras tells callbacks nothing of them, so while the averages may be
    # in the model its calls are watched for as long as `fit` or the call lasts.

    def _watch(self, target: Any, name: str) -> None:
        if target is None:
            return
        self._window.watch(target, name, self._close)


class _Window:
    """What is open, in which call, and which calls are watched.

    Not part of the callback's `__dict__`, and empty in a copy: Keras Tuner copies
    callbacks.
    """

    def __init__(self) -> None:
        self.optimizers: list[Any] = []
        self.statistics_aside: list[tuple[Any, Any]] = []
        self.opened_by_call = False
        self.calls: Any = _nothing  # the CallbackList that calls
        self.fit: Any = _nothing  # the one of the running `fit`
        self.watched: list[tuple[Any, str, Any]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _Window:
        return _Window()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Window, ()

    @property
    def is_open(self) -> bool:
        return bool(self.optimizers)

    @property
    def in_fit(self) -> bool:
        return self.fit() is not None and self.calls() is self.fit()

    def watch(self, target: Any, name: str, give_back: Any) -> None:
        """Call `give_back` if `target.name(...)` raises."""
        self.unwatch(name)
        old = vars(target).get(name)
        # No reference from the target to itself: the end of the call must end it.
        method = old or functools.partial(_call_method, weakref.ref(target), name)

        @functools.wraps(old or getattr(type(target), name))
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except BaseException as error:
                if not _is_end_of_data(error):
                    give_back()
                    self.unwatch()
                raise

        setattr(target, name, watched)
        self.watched.append((weakref.ref(target), name, old))

    def unwatch(self, *names: str) -> None:
        """Take the watches off again, those of `names` or all."""
        for entry in list(self.watched):
            reference, name, old = entry
            if names and name not in names:
                continue
            self.watched.remove(entry)
            target = reference()
            if target is not None and name in vars(target):
                if old is None:
                    delattr(target, name)
                else:
                    setattr(target, name, old)

    def follow(self, calls: Any, callback: EvaluateWithAverages) -> None:
        """Note which list calls; give back if it ends in a way nothing saw."""
        self.calls = _nothing if calls is None else weakref.ref(calls)
        if calls is not None:
            end = weakref.finalize(calls, _expire, weakref.ref(callback), self.calls)
            end.atexit = False


def _expire(callback: Any, calls: Any) -> None:
    owner = callback()
    if owner is not None and owner._window.calls is calls:
        owner._close()
        owner._window.unwatch()


def _call_method(reference: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    target = reference()
    return getattr(type(target), name)(target, *args, **kwargs)


def _is_end_of_data(error: BaseException) -> bool:
    # How a data set of unknown length ends: Keras catches these and goes on.
    return isinstance(error, StopIteration) or (
        type(error).__name__ == "OutOfRangeError"
    )


def _nothing() -> None:
    return None
