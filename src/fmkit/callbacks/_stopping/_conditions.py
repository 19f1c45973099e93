"""Conditions on the logs that combine with `&` and `|`."""

from __future__ import annotations

import abc
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fmkit._checks import check_number, check_one_of
from fmkit._monitor import greater_is_better
from fmkit.callbacks._stopping._stop import shown

__all__ = ["AllOf", "AnyOf", "Condition", "Reached"]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SIGNS = {"min": "<=", "max": ">="}
_MODES = ["auto", *_SIGNS, *_COMPARISONS]

Logs = Mapping[str, float]


class Condition(abc.ABC):
    """A question about the logs, whose answer is yes, no, or not known yet.

    Conditions are immutable and remember nothing; `ThresholdStopping` counts.
    Combine them with `&` and `|`.
    """

    @abc.abstractmethod
    def leaves(self) -> tuple[Reached, ...]:
        """Return the single conditions, from left to right."""

    @abc.abstractmethod
    def holds(self, logs: Logs) -> bool | None:
        """Return whether the condition holds; `None` if a value is missing.

        Missing values are treated as in three-valued logic: `a & b` is known to
        fail as soon as one of them fails, `a | b` holds as soon as one holds.
        """

    @abc.abstractmethod
    def resolved(self, rises: Callable[[str], bool]) -> Condition:
        """Return the condition with each `mode="auto"` replaced by its meaning."""

    @property
    def monitors(self) -> tuple[str, ...]:
        """The monitored names, each once, from left to right."""
        return tuple(dict.fromkeys(leaf.monitor for leaf in self.leaves()))

    def __and__(self, other: Condition) -> Condition:
        """Return the condition that both hold in the same check."""
        return AllOf(self, other) if isinstance(other, Condition) else NotImplemented

    def __or__(self, other: Condition) -> Condition:
        """Return the condition that at least one of the two holds."""
        return AnyOf(self, other) if isinstance(other, Condition) else NotImplemented


@dataclass(frozen=True)
class Reached(Condition):
    r"""The condition that one logged value has reached a threshold.

    Only a finite value can reach it. A value that is a float32 number, as Keras's
    metrics are, is compared with the float32 number nearest to the threshold:
    19 of 20 right answers reach 0.95, although float32's 0.95 is
    0.949999988 to Python.

    Args:
        monitor: Name in the logs, such as `"val_accuracy"`.
        threshold: Number to be reached, in the units of the value.
        mode: `"max"` ($v \ge t$), `"min"` ($v \le t$), one of `"<"`, `"<="`,
            `">"`, `">="`, or `"auto"`: Keras's own rule, which knows the losses
            and Keras's metrics.

    Raises:
        TypeError: If `monitor` is not a string or `threshold` not a number.
        ValueError: If `threshold` is not finite or `mode` unknown.

    Examples:
        >>> good = Reached("accuracy", 0.9, "max") & Reached("loss", 0.4)
        >>> good.holds({"accuracy": 0.9, "loss": 0.5})
        False
        >>> (good | Reached("loss", 1.0, "<")).holds({"accuracy": 0.9, "loss": 0.5})
        True
    """

    monitor: str
    threshold: float
    mode: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise TypeError(
                "`monitor` must be the name of a value in the logs, got "
                f"monitor={self.monitor!r}."
            )
        check_one_of("mode", self.mode, _MODES)
        object.__setattr__(self, "threshold", check_number("threshold", self.threshold))

    @property
    def sign(self) -> str:
        """The comparison: `"<"`, `"<="`, `">"` or `">="`; of `"auto"`, `"auto"`."""
        return _SIGNS.get(self.mode, self.mode)

    @property
    def rises(self) -> bool:
        """Whether a greater value is a better one."""
        return self.sign.startswith(">")

    def leaves(self) -> tuple[Reached, ...]:
        return (self,)

    def holds(self, logs: Logs) -> bool | None:
        if self.monitor not in logs:
            return None
        value = logs[self.monitor]
        if not math.isfinite(value):
            return False
        if self.mode == "auto":
            return self.resolved(greater_is_better).holds(logs)
        return _COMPARISONS[self.sign](value, in_precision_of(value, self.threshold))

    def resolved(self, rises: Callable[[str], bool]) -> Reached:
        if self.mode != "auto":
            return self
        return replace(self, mode="max" if rises(self.monitor) else "min")

    def distance(self, value: float) -> float:
        """Return how far `value` still is from the threshold, at least 0."""
        threshold = in_precision_of(value, self.threshold)
        gap = threshold - value if self.rises else value - threshold
        return gap if math.isnan(gap) else max(gap, 0.0)

    def explain(self, logs: Logs) -> str:
        """Return the comparison with its numbers: `loss = 0.38 <= 0.4`."""
        value = shown(logs[self.monitor])
        return f"{self.monitor} = {value} {self.sign} {shown(self.threshold)}"


class NoCondition(Condition):
    """No condition at all: it reads nothing, and is never known to hold."""

    def leaves(self) -> tuple[Reached, ...]:
        return ()

    def holds(self, logs: Logs) -> bool | None:
        return None

    def resolved(self, rises: Callable[[str], bool]) -> Condition:
        return self


class _Combination(Condition):
    """Conditions side by side."""

    _word = ""

    def __init__(self, *parts: Condition) -> None:
        for part in parts:
            if not isinstance(part, Condition):
                raise TypeError(
                    f"`{type(self).__name__}` combines conditions such as "
                    f"Reached('loss', 0.4), got {part!r}."
                )
        if not parts:
            raise ValueError(f"`{type(self).__name__}` needs at least one condition.")
        self.parts = parts

    def leaves(self) -> tuple[Reached, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves())

    def resolved(self, rises: Callable[[str], bool]) -> Condition:
        return type(self)(*(part.resolved(rises) for part in self.parts))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.parts == self.parts  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self.parts))

    def __repr__(self) -> str:
        return "(" + f" {self._word} ".join(map(repr, self.parts)) + ")"


class AllOf(_Combination):
    """The condition that all `parts` hold in the same check; `a & b` in short."""

    _word = "&"

    def holds(self, logs: Logs) -> bool | None:
        answers = [part.holds(logs) for part in self.parts]
        if False in answers:
            return False
        return None if None in answers else True


class AnyOf(_Combination):
    """The condition that at least one of `parts` holds; `a | b` in short."""

    _word = "|"

    def holds(self, logs: Logs) -> bool | None:
        answers = [part.holds(logs) for part in self.parts]
        if True in answers:
            return True
        return None if None in answers else False


def formula(condition: Condition) -> str:
    """Return the monitored names and how they combine: `"(val_loss | loss)"`."""
    if isinstance(condition, _Combination):
        return "(" + f" {condition._word} ".join(map(formula, condition.parts)) + ")"
    return " ".join(condition.monitors)


def in_precision_of(value: float, threshold: float) -> float:
    """Return the threshold as float32 writes it, if `value` is a float32 number."""
    with np.errstate(over="ignore"):
        is_single = float(np.float32(value)) == value
        return float(np.float32(threshold)) if is_single else threshold


def signs(condition: Condition) -> str:
    """Return the comparisons of a condition, from left to right: `">= <="`."""
    return " ".join(leaf.sign for leaf in condition.leaves())


def condition_from(
    monitor: str | Condition | None,
    threshold: float | None,
    mode: str,
    *,
    optional: bool,
) -> Condition:
    """Return what the arguments of `ThresholdStopping` mean.

    If it is `optional`, `monitor` and `threshold` may both be omitted.
    """
    if monitor is None and threshold is None and optional:
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
