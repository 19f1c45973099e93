"""Stop the training when a value is reached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fmkit._checks import check_int, check_number, check_one_of
from fmkit._monitor import greater_is_better
from fmkit.callbacks._batch_counter import BatchCounter
from fmkit.callbacks._saved_settings import check_settings
from fmkit.callbacks._stopping._conditions import (
    Condition,
    NoCondition,
    Reached,
    formula,
)
from fmkit.callbacks._stopping._monitored_names import (
    require_names,
    warn_of_unseen_names,
)
from fmkit.callbacks._stopping._stop import Stopper, StopReason
from fmkit.callbacks._stopping._threshold_check import Check, number

__all__ = ["ThresholdStopping"]

_WEIGHT = "weight_"

_NOT_REACHED: dict[str, Any] = {
    "reached": False,
    "reached_epoch": None,
    "reached_step": None,
    "held": 0,
    "wait": 0,
}

# What has a meaning only if there is something to reach.
_FOR_A_THRESHOLD = (
    "count",
    "consecutive",
    "start_epoch",
    "start_step",
    "patience",
    "min_delta",
    "within",
    "divergence_threshold",
    "restore",
    "progress",
)


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
            name with `val_` is awaited while `fit` has yet to validate.
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
        self.check_finite = _finite_names(check_finite)
        condition = _condition(monitor, threshold, mode, self.check_finite)
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
        self.within = (
            None if within is None else check_int("within", within, minimum=self.count)
        )
        self.on_nonfinite = check_one_of(
            "on_nonfinite", on_nonfinite, ["stop", "error"]
        )
        if restore is not None:
            check_one_of("restore", restore, ["best", "reaching"])
        self.restore = restore
        self.on_missing = check_one_of("on_missing", on_missing, ["error", "warn"])
        self.progress = bool(progress)
        self._refuse_what_has_no_effect()
        self._bind_batch_hook()
        self._reset()

    def _refuse_what_has_no_effect(self) -> None:
        if self.on_nonfinite == "error" and self.check_finite is None:
            raise ValueError(
                "on_nonfinite='error' says what `check_finite` does: add "
                "check_finite=True, or the names to look at."
            )
        if self.condition.monitors:
            return
        defaults = ThresholdStopping.__init__.__kwdefaults__ or {}
        unused = [
            name for name in _FOR_A_THRESHOLD if getattr(self, name) != defaults[name]
        ]
        if unused:
            raise ValueError(
                f"Without a threshold {', '.join(map('`{}`'.format, unused))} would "
                "have no effect: leave it out, or say what is to be reached, as in "
                "ThresholdStopping('val_accuracy', 0.95, check_finite=True)."
            )

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
        self._checks = 0
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
            self._check(logs or {}, batch=batch)
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
        warn_of_unseen_names(self)
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
    ) -> None:
        if self.stop is not None:
            return
        require_names(self, logs, batch)
        values = {
            name: number(name, logs[name])
            for name in self.condition.monitors
            if name in logs
        }
        check = Check(self, logs, values, step, batch)
        if check.not_finite() or not check.has_begun():
            return
        if self.condition.monitors and not check.diverged():
            self._weigh(check)

    def _weigh(self, check: Check) -> None:
        """Count the check for the threshold, for the best value, for patience."""
        holds = self._rule.holds(check.values)
        value = check.values.get(self._leader.monitor, math.nan)
        improved = self._note_best(value)
        if holds is not None:
            self._checks += 1
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
        elif holds is not None and self._checks >= (self.within or math.inf):
            check.stop_on_deadline()

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
            self._known = self.condition.resolved(lambda n: greater_is_better(n, model))
        return self._known

    @property
    def _leader(self) -> Reached:
        return self._rule.leaves()[0]

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
        known = self._known or self.condition
        return {
            **super().get_state(),
            "settings": {**self._settings(), "mode": _signs(known)},
            "written_mode": _signs(self.condition),
            "thresholds": self._thresholds(),
            "reached": self._reached,
            "reached_epoch": self.reached_epoch,
            "reached_step": self.reached_step,
            "best": self.best,
            "to_beat": self._to_beat,
            "checks": self._checks,
            "held": self._held,
            "wait": self._wait,
            **self._counter.get_state(),
            "seen": sorted(self._seen),
            **weights,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, before `fit` or in its first epoch.

        Arguments may be others than before if they leave the counts their meaning.
        With another threshold, whether and how often it was reached is counted anew;
        the best value stays. A stop by `threshold`, `patience`, `within` or
        `divergence_threshold` that the present arguments would not make is forgotten,
        and the run goes on.

        Raises:
            ValueError: If the state was saved with another `monitor`, `mode`, `every`,
                `count`, `consecutive` or `restore`.
        """
        self._check_settings(state)
        super().set_state(state)
        self.best = state["best"]
        self._to_beat = state["to_beat"]
        self._checks = state["checks"]
        self._counter.set_state(state)
        self._seen = set(state["seen"])
        count = sum(name.startswith(_WEIGHT) for name in state)
        weights = [np.asarray(state[f"{_WEIGHT}{i}"]) for i in range(count)]
        self._weights = weights or None
        same = state["thresholds"] == self._thresholds()
        counted = state if same else _NOT_REACHED
        self._reached = counted["reached"]
        self.reached_epoch = counted["reached_epoch"]
        self.reached_step = counted["reached_step"]
        self._held = counted["held"]
        self._wait = counted["wait"]
        if self.restore == "reaching" and not self._reached:
            self._weights = None
        if not self._still_stops():
            self.stop = None

    def _settings(self) -> dict[str, Any]:
        return {
            "monitor": formula(self.condition),
            "every": self.every,
            "count": self.count,
            "consecutive": self.consecutive,
            "restore": self.restore,
        }

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        saved_mode, mode = state["settings"]["mode"], _signs(self.condition)
        # The first check finds out what "auto" means; before it nothing is counted.
        if mode == state["written_mode"] or "auto" in saved_mode:
            mode = saved_mode
        check_settings(self.name, state, {**self._settings(), "mode": mode})

    def _thresholds(self) -> list[float]:
        return [leaf.threshold for leaf in self.condition.leaves()]

    def _still_stops(self) -> bool:
        """Whether the stop of a restored state is one that this callback makes."""
        if self.stop is None:
            return False
        return {
            StopReason.THRESHOLD: self._reached and self.patience == 0,
            StopReason.PLATEAU: self._reached and self._wait >= self.patience,
            StopReason.NOT_REACHED: self._checks >= (self.within or math.inf),
            StopReason.DIVERGENCE: self.stop.threshold == self.divergence_threshold,
        }.get(self.stop.reason, True)


def _signs(condition: Condition) -> str:
    return " ".join(leaf.sign for leaf in condition.leaves())


def _condition(
    monitor: str | Condition | None,
    threshold: float | None,
    mode: str,
    check_finite: tuple[str, ...] | None,
) -> Condition:
    """Return what the first three arguments of `ThresholdStopping` mean."""
    if monitor is None and threshold is None and check_finite is not None:
        monitor = NoCondition()
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
            "pass a condition such as Reached('val_accuracy', 0.95), or look only for "
            "values that are not finite: ThresholdStopping(check_finite=True)."
        )
    return Reached(monitor, threshold, mode)  # type: ignore[arg-type]  # it says why


def _finite_names(check_finite: bool | Iterable[str]) -> tuple[str, ...] | None:
    """Return the names to look at: `None` for none, an empty tuple for all."""
    if isinstance(check_finite, bool):
        return () if check_finite else None
    if isinstance(check_finite, str):
        return (check_finite,)
    return tuple(check_finite) or None
