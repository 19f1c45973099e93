"""One check of a `ThresholdStopping`: its numbers, its place, how it ends a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from fmkit.callbacks._stopping._conditions import in_precision_of
from fmkit.callbacks._stopping._stop import Stop, StopReason, place, shown

if TYPE_CHECKING:
    from fmkit.callbacks._stopping._threshold_stopping import ThresholdStopping


class Check:
    """One check: its numbers, its place, and the ways in which it can end a run."""

    def __init__(
        self,
        owner: ThresholdStopping,
        logs: Mapping[str, Any],
        values: dict[str, float],
        step: int | None,
        batch: int | None,
    ) -> None:
        self.owner = owner
        self.logs = logs
        self.values = values
        self.batch = batch
        self._step = step

    def step(self) -> int | None:
        """Return the step, read from the optimizer if the caller didn't say."""
        if self._step is None:
            self._step = self.owner._optimizer_steps()
        return self._step

    def has_begun(self) -> bool:
        owner = self.owner
        if (owner._epoch or 0) < owner.start_epoch:
            return False
        if owner.start_step == 0:
            return True
        step = self.step()
        if step is None:
            raise ValueError(
                f"start_step={owner.start_step} needs the count of steps: pass "
                "`step=` to `check`, or call `set_model` with a compiled model."
            )
        return step >= owner.start_step

    def not_finite(self) -> bool:
        names = self.owner.check_finite
        if names is None:
            return False
        for name in self.logs if names == () else names:
            if name in self.logs:
                value = number(name, self.logs[name])
                if not math.isfinite(value):
                    what = f"{name} = {value} is not finite"
                    stop = self._halt(StopReason.NONFINITE, name, value, None, what)
                    if self.owner.on_nonfinite == "error":
                        raise FloatingPointError(stop.message)
                    return True
        return False

    def diverged(self) -> bool:
        leader, limit = self.owner._leader, self.owner.divergence_threshold
        value = self.values.get(leader.monitor, math.nan)
        if limit is None or math.isnan(value):
            return False
        exact = in_precision_of(value, limit)
        worse = value < exact if leader.rises else value > exact
        if worse:
            sign = "<" if leader.rises else ">"
            what = f"{leader.monitor} = {shown(value)} {sign} {shown(limit)}: diverged"
            self._halt(StopReason.DIVERGENCE, leader.monitor, value, limit, what)
        return worse

    def stop_on_threshold(self) -> None:
        holding = [
            leaf for leaf in self.owner._rule.leaves() if leaf.holds(self.values)
        ]
        what = " and ".join(leaf.explain(self.values) for leaf in holding)
        if self.owner.count > 1:
            what += f", {self._times()}"
        first = holding[0]
        value = self.values[first.monitor]
        self._halt(StopReason.THRESHOLD, first.monitor, value, first.threshold, what)

    def stop_on_deadline(self) -> None:
        known = [
            leaf for leaf in self.owner._rule.leaves() if leaf.monitor in self.values
        ]
        what = "the threshold was not reached"
        if self.owner.count > 1:
            what += f" {self._times()}"
        wanted = "; ".join(
            f"{leaf.monitor} = {shown(self.values[leaf.monitor])}, wanted "
            f"{leaf.sign} {shown(leaf.threshold)}"
            for leaf in known
        )
        what += f" within {_checks(self.owner._checks)} ({wanted})"
        first = known[0]
        value = self.values[first.monitor]
        self._halt(StopReason.NOT_REACHED, first.monitor, value, first.threshold, what)

    def _times(self) -> str:
        row = " in a row" if self.owner.consecutive else ""
        return f"in {_checks(self.owner.count)}{row}"

    def stop_on_plateau(self) -> None:
        owner, leader = self.owner, self.owner._leader
        value = self.values[leader.monitor]
        reached = place(owner.reached_epoch, owner.reached_step)
        what = (
            f"{leader.monitor} = {shown(value)}, no improvement in "
            f"{_checks(owner.patience)} after the threshold was reached{reached}"
        )
        self._halt(StopReason.PLATEAU, leader.monitor, value, leader.threshold, what)

    def _halt(
        self,
        reason: StopReason,
        monitor: str,
        value: float,
        threshold: float | None,
        what: str,
    ) -> Stop:
        owner = self.owner
        where = place(owner._epoch, self.step(), self.batch)
        message = f"{owner.name} stopped the run{where}: {what}."
        stop = Stop(
            callback=owner.name,
            reason=reason,
            monitor=monitor,
            value=value,
            threshold=threshold,
            epoch=owner._epoch,
            step=self.step(),
            message=message,
            values=self.values,
        )
        owner._halt(stop)
        return stop


def number(name: str, value: Any) -> float:
    """Return a logged value as a float; a tensor must be a scalar."""
    if isinstance(value, int | float):
        return float(value)
    array = np.asarray(keras.ops.convert_to_numpy(value))
    if array.size != 1:
        raise TypeError(
            f"The value of {name!r} must be one number, got shape {array.shape}: "
            "monitor a scalar metric, or log its mean."
        )
    return float(array.reshape(()))


def _checks(number: int) -> str:
    return "1 check" if number == 1 else f"{number} checks"
