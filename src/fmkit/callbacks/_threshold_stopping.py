"""Stop the training when a value is reached."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fmkit._checks import check_int, check_number, check_one_of, did_you_mean
from fmkit.callbacks._batch_counter import BatchCounter
from fmkit.callbacks._conditions import Condition, Reached, keras_rises
from fmkit.callbacks._stop import Stopper
from fmkit.callbacks._threshold_check import Check, number

__all__ = ["ThresholdStopping"]

_WEIGHT = "weight_"


class ThresholdStopping(Stopper):
    r"""Stops the training when a monitored value reaches a threshold.

    One *check* reads the monitored values from the logs. By default there is one at
    the end of each epoch, and the run stops at the first check in which
    $v \ge t$ (`mode="max"`) or $v \le t$ (`mode="min"`). Only finite values reach
    a threshold: a NaN is neither reached, nor the best, nor an improvement.

    Args:
        monitor: Name of a value in the logs, such as `"val_accuracy"`, or a
            condition made of `Reached` objects with `&` and `|`.
        threshold: Number to be reached. Leave it out with a condition.
        mode: `"max"`, `"min"`, a comparison (`"<"`, `"<="`, `">"`, `">="`), or
            `"auto"`, Keras's own rule for its losses and metrics.
        every: When to check: `"epoch"`, `"validation"` (after each validation, be
            it by `fit` or by a `BatchValidation` before this callback in the
            list), or an integer: a check at each multiple of that many batches.
        count: Number of checks $K$ in which the condition must hold.
        consecutive: Whether those $K$ checks must follow one another.
        start_epoch: Index of the first epoch that is checked, from 0.
        start_step: Optimizer steps before the first check.
        patience: With $P > 0$, don't stop when the threshold is reached but then
            train on until $P$ checks in a row bring no improvement.
        min_delta: An improvement must be greater than this, in the units of the
            value. Only `patience` asks for it.
        divergence_threshold: Stop when the value is worse than this.
        check_finite: Stop when a value is NaN or infinite, from the first check on:
            `True` for every value in the logs, or the names to look at.
        restore: Weights that the model holds after `fit`: `None` for the last,
            `"best"` for those of the check with the best value (also if the
            threshold was never reached), `"reaching"` for those of the check that
            reached the threshold.
        on_missing: `"error"` or `"warn"`, if a monitored name is not in the logs.
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
        ValueError: If an argument is out of its range; at the first check, if a
            monitored name is missing or Keras has no rule for `mode="auto"`.

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
        monitor: str | Condition,
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
        divergence_threshold: float | None = None,
        check_finite: bool | Iterable[str] = False,
        restore: str | None = None,
        on_missing: str = "error",
        progress: bool = False,
        log_stop: bool = False,
        name: str | None = None,
        verbose: int | str = "auto",
    ) -> None:
        condition = _condition(monitor, threshold, mode)
        if name is None:
            name = "_".join(("threshold_stopping", *condition.monitors))
        super().__init__(name, verbose, log_stop)
        self.condition = condition
        self.every = (
            check_one_of("every", every, ["epoch", "validation"])
            if isinstance(every, str)
            else check_int("every", every)
        )
        self.count = check_int("count", count)
        self.consecutive = bool(consecutive)
        self.start_epoch = check_int("start_epoch", start_epoch, minimum=0)
        self.start_step = check_int("start_step", start_step, minimum=0)
        self.patience = check_int("patience", patience, minimum=0)
        self.min_delta = check_number("min_delta", min_delta, at_least=0.0)
        self.divergence_threshold = (
            None
            if divergence_threshold is None
            else check_number("divergence_threshold", divergence_threshold)
        )
        self.check_finite = _finite_names(check_finite)
        if restore is not None:
            check_one_of("restore", restore, ["best", "reaching"])
        self.restore = restore
        self.on_missing = check_one_of("on_missing", on_missing, ["error", "warn"])
        self.progress = bool(progress)
        self._bind_batch_hook()
        self._reset()

    def _bind_batch_hook(self) -> None:
        # Keras looks at each callback for a batch hook of its own, and if it finds
        # one waits for every step's logs. So there is none unless asked for.
        if isinstance(self.every, int):
            self.on_train_batch_end = self._after_batch
        elif self.every == "validation":
            # Without a BatchValidation, which makes Keras wait by itself, the hook
            # reads nothing but names: safe in Keras's threads.
            self.async_safe = True
            self.on_train_batch_end = self._after_batch_validation

    def _reset(self) -> None:
        super()._reset()
        self.reached_epoch: int | None = None
        self.reached_step: int | None = None
        self.best: float | None = None
        self._reached = False
        self._held = 0
        self._wait = 0
        self._to_beat: float | None = None
        self._counter = BatchCounter(self.every if isinstance(self.every, int) else 1)
        self._seen: set[str] = set()
        self._weights: list[np.ndarray] | None = None
        self._validated = False
        self._known: Condition | None = None

    # ------------------------------------------------------------------ hooks

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count the epoch's batches."""
        super().on_epoch_begin(epoch, logs)
        self._counter.begin_epoch()
        self._validated = False

    def _after_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._counter.is_due(batch, self.params):
            self._check(logs or {}, batch=batch, validation_may_follow=True)
            self._show_progress(logs)

    def _after_batch_validation(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if any(name.startswith("val_") for name in logs or {}):
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
        self._warn_of_the_unseen()
        if self._weights is not None:
            self.model.set_weights(self._weights)
            self._weights = None
            self._display(f"{self.name} restored the {self.restore} weights.")

    def _warn_of_the_unseen(self) -> None:
        unseen = [name for name in self.condition.monitors if name not in self._seen]
        if not unseen or self._epoch is None:
            return
        rule = {
            "epoch": "at the end of an epoch",
            "validation": "after a validation: give `fit` its `validation_data`, or "
            "put a BatchValidation before this callback in the list",
        }.get(
            str(self.every), f"every {self.every} batches, on what the logs then hold"
        )
        warnings.warn(
            f"{self.name} never saw {', '.join(map(repr, unseen))}. It checks {rule}.",
            stacklevel=3,
        )

    # ----------------------------------------------------------------- checks

    def check(
        self,
        logs: Mapping[str, Any],
        *,
        epoch: int | None = None,
        step: int | None = None,
    ) -> bool:
        """Do one check now, and return whether to stop: for loops of one's own.

        `every` plays no part: the loop decides when to check. Call `set_model`
        before and `on_train_end` after the loop if weights are to be restored, and
        `on_train_begin` before a second run.

        Args:
            logs: Names and values, numbers or scalar tensors.
            epoch: Index of the epoch from 0, for the record and `start_epoch`.
            step: Steps done, for the record and `start_step`. Defaults to the
                optimizer's count if `set_model` was called.

        Returns:
            `True` at the check that stops the run, and ever after.
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
        validation_may_follow: bool = False,
    ) -> None:
        if self.stop is not None:
            return
        self._require_names(logs, validation_may_follow)
        values = {
            name: number(name, logs[name])
            for name in self.condition.monitors
            if name in logs
        }
        check = Check(self, logs, values, step, batch)
        if check.not_finite() or not check.has_begun():
            return
        if not check.diverged():
            self._weigh(check)

    def _weigh(self, check: Check) -> None:
        """Count the check for the threshold, for the best value, for patience."""
        holds = self._rule.holds(check.values)
        value = check.values.get(self._leader.monitor, math.nan)
        improved = self._note_best(value)
        if holds is not None:
            self._held = (
                self._held + 1 if holds else self._held * (not self.consecutive)
            )
        if self._reached:
            if self._leader.monitor in check.values:
                self._wait = 0 if improved else self._wait + 1
                if self._wait >= self.patience:
                    check.stop_on_plateau()
        elif holds and self._held >= self.count:
            self._reached = True
            self.reached_epoch, self.reached_step = self._epoch, check.step()
            if self.restore == "reaching":
                self._weights = self._copy_weights()
            if self.patience == 0:
                check.stop_on_threshold()

    def _note_best(self, value: float) -> bool:
        """Keep the best value and its weights; return whether `patience` is fed."""
        if not math.isfinite(value):
            return False
        sign = 1.0 if self._leader.rises else -1.0
        if self.best is None or sign * value > sign * self.best:
            self.best = value
            if self.restore == "best":
                self._weights = self._copy_weights()
        improved = (
            self._to_beat is None or sign * (value - self._to_beat) > self.min_delta
        )
        if improved:
            self._to_beat = value
        return improved

    def _copy_weights(self) -> list[np.ndarray]:
        if self._model is None:
            raise ValueError(
                f"restore={self.restore!r} needs the model: call `set_model(model)` "
                "before the loop and `on_train_end()` after it."
            )
        weights: list[np.ndarray] = self.model.get_weights()
        return weights

    @property
    def _rule(self) -> Condition:
        """The condition, with what `mode="auto"` means once a model has metrics."""
        if self._known is None:
            model = None if self._model is None else self.model
            self._known = self.condition.resolved(lambda n: keras_rises(n, model))
        return self._known

    @property
    def _leader(self) -> Reached:
        return self._rule.leaves()[0]

    def _require_names(
        self, logs: Mapping[str, Any], validation_may_follow: bool
    ) -> None:
        """Refuse, or warn of, a name that is missing and was never seen."""
        wanted = dict.fromkeys((*self.condition.monitors, *(self.check_finite or ())))
        self._seen.update(name for name in wanted if name in logs)
        validated = any(name.startswith("val_") for name in logs)
        missing = [
            name
            for name in wanted
            if name not in self._seen
            and not (
                validation_may_follow and name.startswith("val_") and not validated
            )
        ]
        if not missing:
            return
        message = self._missing_message(missing, logs)
        if self.on_missing == "error":
            raise ValueError(message)
        self._seen.update(missing)
        warnings.warn(message, stacklevel=2)

    def _missing_message(self, missing: list[str], logs: Mapping[str, Any]) -> str:
        hint = did_you_mean(missing[0], logs)
        if missing[0].startswith("val_") and not any(
            n.startswith("val_") for n in logs
        ):
            hint = (
                " There are no values of a validation: give `fit` its "
                "`validation_data`; if it validates only in some epochs, use "
                "every='validation'."
            )
        return (
            f"{self.name} monitors {', '.join(map(repr, missing))}, which the logs "
            f"don't have. They have: {', '.join(map(repr, sorted(logs)))}.{hint}"
        )

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
            "reached": self._reached,
            "reached_epoch": self.reached_epoch,
            "reached_step": self.reached_step,
            "best": self.best,
            "to_beat": self._to_beat,
            "held": self._held,
            "wait": self._wait,
            **self._counter.get_state(),
            "seen": sorted(self._seen),
            **weights,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, before `fit` or in its first epoch."""
        super().set_state(state)
        self._reached = state["reached"]
        self.reached_epoch = state["reached_epoch"]
        self.reached_step = state["reached_step"]
        self.best = state["best"]
        self._to_beat = state["to_beat"]
        self._held = state["held"]
        self._wait = state["wait"]
        self._counter.set_state(state)
        self._seen = set(state["seen"])
        count = sum(name.startswith(_WEIGHT) for name in state)
        weights = [np.asarray(state[f"{_WEIGHT}{i}"]) for i in range(count)]
        self._weights = weights or None


def _condition(
    monitor: str | Condition, threshold: float | None, mode: str
) -> Condition:
    """Return what the first three arguments of `ThresholdStopping` mean."""
    if isinstance(monitor, Condition):
        if threshold is not None or mode != "auto":
            raise ValueError(
                "With a condition as `monitor`, its parts carry the numbers: leave "
                f"out `threshold` and `mode`, got threshold={threshold!r}, "
                f"mode={mode!r}."
            )
        return monitor
    if threshold is None:
        raise TypeError(
            "`threshold` is missing: write ThresholdStopping('val_accuracy', 0.95), "
            "or pass a condition such as Reached('val_accuracy', 0.95)."
        )
    return Reached(monitor, threshold, mode)


def _finite_names(check_finite: bool | Iterable[str]) -> tuple[str, ...] | None:
    """Return the names to look at: `None` for none, an empty tuple for all."""
    if isinstance(check_finite, bool):
        return () if check_finite else None
    if isinstance(check_finite, str):
        return (check_finite,)
    return tuple(check_finite) or None
