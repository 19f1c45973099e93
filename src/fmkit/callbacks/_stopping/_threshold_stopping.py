"""Stop the training when a value is reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._monitor import greater_is_better
from fmkit.callbacks._batch_counter import BatchCounter
from fmkit.callbacks._saved_settings import check_settings
from fmkit.callbacks._stopping._conditions import (
    Condition,
    condition_from,
    formula,
    signs,
)
from fmkit.callbacks._stopping._monitored_names import (
    MonitoredNames,
    fit_has_yet_to_validate,
    has_validation,
)
from fmkit.callbacks._stopping._progress import (
    Moment,
    Progress,
    Verdict,
    first_nonfinite,
    has_begun,
)
from fmkit.callbacks._stopping._settings import Settings, finite_names
from fmkit.callbacks._stopping._stop import Stop, StopReason
from fmkit.callbacks._stopping._stopper import Stopper

__all__ = ["ThresholdStopping"]

_WEIGHT = "weight_"
_COUNTED = [field.name for field in fields(Progress)]


def _setting(name: str) -> Any:
    """Return an attribute that reads and changes one of the settings."""

    def get(stopping: ThresholdStopping) -> Any:
        return getattr(stopping._settings, name)

    def put(stopping: ThresholdStopping, value: Any) -> None:
        stopping._settings = replace(stopping._settings, **{name: value})

    return property(get, put)


class ThresholdStopping(Stopper):
    r"""Stops the training when a monitored value reaches a threshold.

    One *check* reads the monitored values from the logs. By default there is one at
    the end of each epoch, and the run stops at the first check in which
    $v \ge t$ (`mode="max"`) or $v \le t$ (`mode="min"`). Only finite values reach
    a threshold: a NaN is neither reached, nor the best, nor an improvement.

    Args:
        monitor: Name of a value in the logs, such as `"val_accuracy"`, or a
            condition made of `Reached` objects with `&` and `|`. Omit it, and the
            threshold, to check only that values are finite.
        threshold: Number to be reached. Omit it with a condition.
        mode: `"max"`, `"min"`, a comparison (`"<"`, `"<="`, `">"`, `">="`), or
            `"auto"`, Keras's own rule for its losses and metrics.
        every: When to check: `"epoch"`, `"validation"` (after each validation,
            whether by `fit` or by a `BatchValidation` before this callback in the
            list), or an integer: a check at each multiple of that many batches.
        count: Number of checks $K$ in which the condition must hold.
        consecutive: Whether those $K$ checks must follow one another.
        start_epoch: Index of the first epoch that is checked, from 0.
        start_step: Optimizer steps before the first check.
        patience: With $P > 0$, don't stop when the threshold is reached, but
            continue until $P$ checks in a row bring no improvement.
        min_delta: An improvement must be greater than this, in the units of the
            value. Only `patience` uses it.
        within: Number of checks $N \ge K$ in which the threshold must be reached, or
            the run stops. Checks count from `start_epoch` and `start_step` on, and
            only if they have the values to tell whether the condition holds.
        divergence_threshold: Stop when the value is worse than this.
        check_finite: Stop when a value is NaN or infinite, from the first check on:
            `True` for every value in the logs, or the names to look at.
        on_nonfinite: What `check_finite` does then: `"stop"` ends the run, `"error"`
            raises a `FloatingPointError` with the message of the stop.
        restore: Weights that the model holds after `fit`: `None` for the last,
            `"best"` for those of the check with the best value (also if the
            threshold was never reached), `"reaching"` for those of the check that
            reached the threshold.
        on_missing: `"error"` or `"warn"`, if a monitored name is not in the logs. A
            name that begins with `val_` may be missing until `fit` has validated.
        progress: Whether to put the distance to the threshold in the logs, as
            `"<monitor>_to_go"`, and so in Keras's progress bar.
        log_stop: Whether to put `"stopped_by_<name>"` in the logs of each epoch,
            0.0 or, in the epoch in which this callback stopped the run, 1.0.
        name: Name in the record of the stop. Defaults to one with the monitors.
        verbose: 1 to show a message after the stop, 0 for none, `"auto"` to do as
            `fit` does.

    `patience`, `divergence_threshold` and `restore="best"` follow the leftmost
    name of a condition. The attribute `stop` is the `Stop` record of the last run,
    or `None`; `History.params["stops"]` lists the records of all such callbacks.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range, or would have no effect
            without a threshold; at the first check, if a monitored name is missing
            or Keras has no rule for `mode="auto"`.
        FloatingPointError: At a check, if `on_nonfinite="error"` and a value is NaN
            or infinite.

    Examples:
        >>> import keras
        >>> stopping = ThresholdStopping("loss", 0.4)
        >>> [stopping.check({"loss": loss}) for loss in (0.9, float("nan"), 0.4)]
        [False, False, True]
        >>> stopping.stop.message
        'threshold_stopping_loss stopped the run: loss = 0.4 <= 0.4.'
    """

    def __init__(
        self,
        monitor: str | Condition | None = None,
        threshold: float | None = None,
        *,
        mode: str = "auto",
        every: str | int = "epoch",
        count: int = 1,
        consecutive: bool = True,
        start_epoch: int = 0,
        start_step: int = 0,
        patience: int = 0,
        min_delta: float = 0.0,
        within: int | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool | Iterable[str] = False,
        on_nonfinite: str = "stop",
        restore: str | None = None,
        on_missing: str = "error",
        progress: bool = False,
        log_stop: bool = False,
        name: str | None = None,
        verbose: int | str = "auto",
    ) -> None:
        names = finite_names(check_finite)
        self.condition = condition_from(
            monitor, threshold, mode, optional=names is not None
        )
        if name is None:
            name = "_".join(("threshold_stopping", *self.condition.monitors))
        super().__init__(name, verbose, log_stop)
        self._settings = Settings(
            every=every,
            count=count,
            consecutive=consecutive,
            start_epoch=start_epoch,
            start_step=start_step,
            patience=patience,
            min_delta=min_delta,
            within=within,
            divergence_threshold=divergence_threshold,
            check_finite=names,
            on_nonfinite=on_nonfinite,
            restore=restore,
            on_missing=on_missing,
            progress=progress,
        )
        if not self.condition.monitors:
            self._settings.refuse_what_needs_a_threshold()
        self._bind_batch_hook()
        self._reset()

    every: str | int = _setting("every")
    count: int = _setting("count")
    consecutive: bool = _setting("consecutive")
    start_epoch: int = _setting("start_epoch")
    start_step: int = _setting("start_step")
    patience: int = _setting("patience")
    min_delta: float = _setting("min_delta")
    within: int | None = _setting("within")
    divergence_threshold: float | None = _setting("divergence_threshold")
    check_finite: tuple[str, ...] | None = _setting("check_finite")
    on_nonfinite: str = _setting("on_nonfinite")
    restore: str | None = _setting("restore")
    on_missing: str = _setting("on_missing")
    progress: bool = _setting("progress")

    @property
    def best(self) -> float | None:
        """The best value so far of the leftmost monitored name."""
        return self._progress.best

    @property
    def reached_epoch(self) -> int | None:
        """Index of the epoch in which the threshold was reached, or `None`."""
        return self._progress.reached_epoch

    @property
    def reached_step(self) -> int | None:
        """Optimizer steps done when the threshold was reached, or `None`."""
        return self._progress.reached_step

    def _bind_batch_hook(self) -> None:
        if isinstance(self.every, int):
            private.bind_hook(self, "on_train_batch_end", self._after_batch)
        elif self.every == "validation":
            # Without a BatchValidation, which makes Keras wait by itself, the hook
            # reads nothing but names: safe in Keras's threads.
            self.async_safe = True
            private.bind_hook(self, "on_train_batch_end", self._after_batch_validation)

    def _reset(self) -> None:
        super()._reset()
        self._progress = Progress()
        self._counter = BatchCounter(self.every if isinstance(self.every, int) else 1)
        wanted = (*self.condition.monitors, *(self.check_finite or ()))
        self._names = MonitoredNames(self.name, wanted)
        self._weights: list[np.ndarray] | None = None
        self._validated = False
        self._resolved: Condition | None = None

    # ------------------------------------------------------------------ hooks

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count the epoch's batches."""
        super().on_epoch_begin(epoch, logs)
        self._counter.begin_epoch()
        self._validated = False

    def _after_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._counter.is_due(batch, self.params):
            self._check(logs or {}, batch=batch)
            self._show_progress(logs)

    def _after_batch_validation(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if has_validation(logs or {}):
            self._check(logs or {}, batch=batch)
            self._show_progress(logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Remember that `fit` has validated in this epoch."""
        self._validated = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check, if an epoch's end is a time to check."""
        self._epoch = epoch
        if self.every == "epoch" or (self.every == "validation" and self._validated):
            self._check(logs or {})
        self._show_progress(logs)
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Show the message and put back the weights asked for."""
        super().on_train_end(logs)
        if self._epoch is not None:
            self._names.warn_of_unseen(self.every)
        if self._weights is not None:
            self.model.set_weights(self._weights)
            self._weights = None
            self._display(f"{self.name} restored the {self.restore} weights.")

    # ----------------------------------------------------------------- checks

    def check(
        self,
        logs: Mapping[str, Any],
        *,
        epoch: int | None = None,
        step: int | None = None,
    ) -> bool:
        """Do one check now, and return whether to stop: for custom training loops.

        `every` is ignored: the loop decides when to check. Call `set_model`
        before and `on_train_end` after the loop if weights are to be restored, and
        `on_train_begin` before a second run.

        Args:
            logs: Names and values, numbers or scalar tensors.
            epoch: Index of the epoch from 0, for the record and `start_epoch`.
            step: Steps done, for the record and `start_step`. Defaults to the
                optimizer's count if `set_model` was called.

        Returns:
            `True` at the check that stops the run, and from then on.
        """
        if epoch is not None:
            self._epoch = epoch
        self._check(logs, step=step)
        return self.stop is not None

    def _check(
        self,
        logs: Mapping[str, Any],
        *,
        step: int | None = None,
        batch: int | None = None,
    ) -> None:
        if self.stop is not None:
            return
        self._names.require(
            logs,
            on_missing=self.on_missing,
            awaits_validation=lambda: self._awaits_validation(logs, batch),
        )
        monitors = self.condition.monitors
        values = dict(_numbers(logs, monitors))
        read_step = self._optimizer_steps if step is None else lambda: step
        moment = Moment(self._epoch, batch, read_step)
        # An empty tuple of names stands for all of them.
        finite = () if self.check_finite is None else self.check_finite or logs
        verdict = first_nonfinite(_numbers(logs, finite))
        if verdict is None and monitors:
            verdict = self._step(values, moment)
        if verdict is not None:
            self._end(verdict, values, moment)

    def _step(self, values: dict[str, float], moment: Moment) -> Verdict | None:
        """Count the check, and keep the weights it asks for."""
        if not has_begun(self._settings, moment):
            return None
        before = self._progress
        self._progress, verdict = before.step(
            values, self._rule, self._settings, moment
        )
        keep = {
            "best": self._progress.best != before.best,
            "reaching": self._progress.reached and not before.reached,
        }
        if self.restore is not None and keep[self.restore]:
            self._weights = self._copy_weights()
        return verdict

    def _end(self, verdict: Verdict, values: dict[str, float], moment: Moment) -> None:
        message = f"{self.name} stopped the run{moment}: {verdict.explanation}."
        self._halt(
            Stop(
                callback=self.name,
                reason=verdict.reason,
                monitor=verdict.monitor,
                value=verdict.value,
                threshold=verdict.threshold,
                epoch=moment.epoch,
                step=moment.step,
                message=message,
                values=values,
            )
        )
        if (verdict.reason, self.on_nonfinite) == (StopReason.NONFINITE, "error"):
            raise FloatingPointError(message)

    def _copy_weights(self) -> list[np.ndarray]:
        model = self.model
        if model is None:
            raise ValueError(
                f"restore={self.restore!r} needs the model: call `set_model(model)` "
                "before the loop and `on_train_end()` after it."
            )
        weights: list[np.ndarray] = model.get_weights()
        return weights

    @property
    def _rule(self) -> Condition:
        """The condition, with what `mode="auto"` means once a model has metrics."""
        if self._resolved is None:
            model = self.model
            self._resolved = self.condition.resolved(
                lambda name: greater_is_better(name, model)
            )
        return self._resolved

    def _awaits_validation(self, logs: Mapping[str, Any], batch: int | None) -> bool:
        if batch is not None:
            return not has_validation(logs)
        if self._validated or self._epoch is None:
            return False
        return fit_has_yet_to_validate(self, self._epoch)

    def _show_progress(self, logs: dict[str, Any] | None) -> None:
        if not self.progress or not logs:
            return
        for leaf in self._rule.leaves():
            if leaf.monitor in logs:
                logs[f"{leaf.monitor}_to_go"] = leaf.distance(logs[leaf.monitor])

    # ------------------------------------------------------------------ state

    def get_state(self) -> dict[str, Any]:
        """Return all that a resumed run needs: JSON values and NumPy arrays."""
        weights = {f"{_WEIGHT}{i}": w for i, w in enumerate(self._weights or [])}
        return {
            **super().get_state(),
            "settings": self._counted_with(signs(self._resolved or self.condition)),
            "written_mode": signs(self.condition),
            "thresholds": self._thresholds(),
            **asdict(self._progress),
            **self._counter.get_state(),
            "seen": sorted(self._names.seen),
            **weights,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, before `fit` or in its first epoch.

        Arguments may differ from those of the saved callback if the counts keep their
        meaning. With another threshold, how often it was reached is counted anew, and
        the best value is kept. A stop by `threshold`, `patience`, `within` or
        `divergence_threshold` that the present arguments would not make is discarded,
        and the run continues.

        Raises:
            ValueError: If the state was saved with another `monitor`, `mode`, `every`,
                `count`, `consecutive` or `restore`.
        """
        self._check_settings(state)
        super().set_state(state)
        self._counter.set_state(state)
        self._names.seen = set(state["seen"])
        count = sum(name.startswith(_WEIGHT) for name in state)
        weights = [np.asarray(state[f"{_WEIGHT}{i}"]) for i in range(count)]
        progress = Progress(**{name: state[name] for name in _COUNTED})
        if state["thresholds"] != self._thresholds():
            progress = progress.for_another_threshold()
        if self.restore == "reaching" and not progress.reached:
            weights = []
        if self.stop and not progress.still_ends(self.stop, self._settings):
            self.stop = None
        self._progress, self._weights = progress, weights or None

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        saved_mode, mode = state["settings"]["mode"], signs(self.condition)
        # The first check finds out what "auto" means; before it nothing is counted.
        if mode == state["written_mode"] or "auto" in saved_mode:
            mode = saved_mode
        check_settings(self.name, state, self._counted_with(mode))

    def _counted_with(self, mode: str) -> dict[str, Any]:
        """Return the settings without which the counts mean something else."""
        return {
            "monitor": formula(self.condition),
            "every": self.every,
            "count": self.count,
            "consecutive": self.consecutive,
            "restore": self.restore,
            "mode": mode,
        }

    def _thresholds(self) -> list[float]:
        return [leaf.threshold for leaf in self.condition.leaves()]


def _numbers(
    logs: Mapping[str, Any], names: Iterable[str]
) -> Iterator[tuple[str, float]]:
    """Return the names that the logs have, with their values, one by one."""
    return ((name, _number(name, logs[name])) for name in names if name in logs)


def _number(name: str, value: Any) -> float:
    """Return a logged value as a float, or refuse a tensor that is not a scalar."""
    if isinstance(value, int | float):
        return float(value)
    array = np.asarray(keras.ops.convert_to_numpy(value))
    if array.size != 1:
        raise TypeError(
            f"The value of {name!r} must be one number, got shape {array.shape}: "
            "monitor a scalar metric, or log its mean."
        )
    return float(array.reshape(()))
