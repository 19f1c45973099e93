"""How far a run has come towards its threshold, and when a check ends the run.

Nothing here knows of Keras, of callbacks or of logs: `Progress.step` takes numbers and
returns what `ThresholdStopping` has to remember, and whether it has to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from fmkit.callbacks._stopping._conditions import Condition, Reached, in_precision_of
from fmkit.callbacks._stopping._settings import Settings
from fmkit.callbacks._stopping._stop import Stop, StopReason, place, shown

Values = Mapping[str, float]


@dataclass(frozen=True)
class Moment:
    """When a check takes place.

    The step is read only if something asks for it: on a device this is a transfer.
    """

    epoch: int | None = None
    batch: int | None = None
    read_step: Callable[[], int | None] = lambda: None

    @cached_property
    def step(self) -> int | None:
        """Optimizer steps done, or `None` if nobody counts them."""
        return self.read_step()

    def __str__(self) -> str:
        return place(self.epoch, self.step, self.batch)


@dataclass(frozen=True)
class Verdict:
    """Why a check ends the run: the value that decided, and the reason in words."""

    reason: StopReason
    monitor: str
    value: float
    threshold: float | None
    explanation: str


@dataclass(frozen=True)
class Progress:
    """All that a `ThresholdStopping` has counted, and the best value.

    Attributes:
        reached: Whether the threshold has been reached.
        reached_epoch: Index of the epoch in which it was reached.
        reached_step: Optimizer steps done when it was reached.
        best: The best value of the leading name.
        to_beat: The last value that was an improvement.
        checks: Checks with the values to tell whether the condition holds.
        held: Those in which it held; with `consecutive`, since it last failed.
        wait: Checks without an improvement after the threshold was reached.
    """

    reached: bool = False
    reached_epoch: int | None = None
    reached_step: int | None = None
    best: float | None = None
    to_beat: float | None = None
    checks: int = 0
    held: int = 0
    wait: int = 0

    def step(
        self, values: Values, rule: Condition, settings: Settings, moment: Moment
    ) -> tuple[Progress, Verdict | None]:
        """Return the progress after one more check, and why the run ends, if it does.

        Args:
            values: The monitored values that are known.
            rule: What is to be reached, without `mode="auto"`. Its leftmost name
                leads: `best`, `patience` and `divergence_threshold` follow it.
            settings: How to count.
            moment: When the check takes place.
        """
        leader = rule.leaves()[0]
        verdict = _divergence(values, leader, settings.divergence_threshold)
        if verdict is not None:
            return self, verdict
        holds = rule.holds(values)
        after = self._count(holds, values, leader, settings)
        if self.reached:
            return after, after._plateau(values, leader, settings.patience)
        if holds and after.held >= settings.count:
            after = replace(
                after,
                reached=True,
                reached_epoch=moment.epoch,
                reached_step=moment.step,
            )
            if settings.patience == 0:
                verdict = _reached(values, rule, settings)
        elif holds is not None and after.checks >= (settings.within or math.inf):
            verdict = _not_reached(values, rule, settings, after.checks)
        return after, verdict

    def _count(
        self, holds: bool | None, values: Values, leader: Reached, settings: Settings
    ) -> Progress:
        value = values.get(leader.monitor, math.nan)
        improves = _is_better(value, self.to_beat, leader, by=settings.min_delta)
        broken = holds is False and settings.consecutive
        wait = self.wait
        if self.reached and leader.monitor in values:
            wait = 0 if improves else wait + 1
        return Progress(
            self.reached,
            self.reached_epoch,
            self.reached_step,
            best=value if _is_better(value, self.best, leader) else self.best,
            to_beat=value if improves else self.to_beat,
            checks=self.checks + (holds is not None),
            held=0 if broken else self.held + bool(holds),
            wait=wait,
        )

    def _plateau(
        self, values: Values, leader: Reached, patience: int
    ) -> Verdict | None:
        if leader.monitor not in values or self.wait < patience:
            return None
        explanation = (
            f"{leader.monitor} = {shown(values[leader.monitor])}, no improvement in "
            f"{_checks(patience)} after the threshold was reached"
            f"{place(self.reached_epoch, self.reached_step)}"
        )
        return _verdict(StopReason.PLATEAU, leader, values, explanation)

    def for_another_threshold(self) -> Progress:
        """Return what remains if the threshold changes: the best value, the checks."""
        return Progress(best=self.best, to_beat=self.to_beat, checks=self.checks)

    def still_ends(self, stop: Stop, settings: Settings) -> bool:
        """Return whether a run with this progress and `stop` ends with `settings`."""
        return {
            StopReason.THRESHOLD: self.reached and settings.patience == 0,
            StopReason.PLATEAU: self.reached and self.wait >= settings.patience,
            StopReason.NOT_REACHED: self.checks >= (settings.within or math.inf),
            StopReason.DIVERGENCE: stop.threshold == settings.divergence_threshold,
        }.get(stop.reason, True)


def has_begun(settings: Settings, moment: Moment) -> bool:
    """Return whether `start_epoch` and `start_step` have come.

    Raises:
        ValueError: If `start_step` is set and nobody counts the steps.
    """
    if (moment.epoch or 0) < settings.start_epoch:
        return False
    if settings.start_step == 0:
        return True
    if moment.step is None:
        raise ValueError(
            f"start_step={settings.start_step} needs the count of steps: pass "
            "`step=` to `check`, or call `set_model` with a compiled model."
        )
    return moment.step >= settings.start_step


def first_nonfinite(values: Iterable[tuple[str, float]]) -> Verdict | None:
    """Return the verdict on the first value that is NaN or infinite, if there is one.

    Args:
        values: Names and values, looked at one by one up to that value.
    """
    for name, value in values:
        if not math.isfinite(value):
            explanation = f"{name} = {value} is not finite"
            return Verdict(StopReason.NONFINITE, name, value, None, explanation)
    return None


def _is_better(
    value: float, than: float | None, leader: Reached, by: float = 0.0
) -> bool:
    """Return whether `value` is finite and better than a former one by more than `by`.

    The first finite value is better than none.
    """
    if than is None or not math.isfinite(value):
        return math.isfinite(value)
    return (value - than if leader.rises else than - value) > by


def _divergence(values: Values, leader: Reached, limit: float | None) -> Verdict | None:
    value = values.get(leader.monitor, math.nan)
    if limit is None or math.isnan(value):
        return None
    exact = in_precision_of(value, limit)
    if not (value < exact if leader.rises else value > exact):
        return None
    sign = "<" if leader.rises else ">"
    explanation = f"{leader.monitor} = {shown(value)} {sign} {shown(limit)}: diverged"
    return Verdict(StopReason.DIVERGENCE, leader.monitor, value, limit, explanation)


def _reached(values: Values, rule: Condition, settings: Settings) -> Verdict:
    holding = [leaf for leaf in rule.leaves() if leaf.holds(values)]
    explanation = " and ".join(leaf.explain(values) for leaf in holding)
    if settings.count > 1:
        explanation += f", {_times(settings)}"
    return _verdict(StopReason.THRESHOLD, holding[0], values, explanation)


def _not_reached(
    values: Values, rule: Condition, settings: Settings, checks: int
) -> Verdict:
    known = [leaf for leaf in rule.leaves() if leaf.monitor in values]
    times = f" {_times(settings)}" if settings.count > 1 else ""
    wanted = "; ".join(
        f"{leaf.monitor} = {shown(values[leaf.monitor])}, wanted "
        f"{leaf.sign} {shown(leaf.threshold)}"
        for leaf in known
    )
    explanation = (
        f"the threshold was not reached{times} within {_checks(checks)} ({wanted})"
    )
    return _verdict(StopReason.NOT_REACHED, known[0], values, explanation)


def _verdict(
    reason: StopReason, leaf: Reached, values: Values, explanation: str
) -> Verdict:
    value = values[leaf.monitor]
    return Verdict(reason, leaf.monitor, value, leaf.threshold, explanation)


def _times(settings: Settings) -> str:
    row = " in a row" if settings.consecutive else ""
    return f"in {_checks(settings.count)}{row}"


def _checks(number: int) -> str:
    return "1 check" if number == 1 else f"{number} checks"
