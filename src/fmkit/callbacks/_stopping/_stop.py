"""What a stop is: its reason, its record, and how its numbers are written."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["Stop", "StopReason"]


class StopReason(enum.StrEnum):
    """Why a callback stopped the training. Each member is also its own string.

    Examples:
        >>> StopReason.THRESHOLD == "threshold"
        True
        >>> print(*StopReason)
        threshold plateau not-reached divergence non-finite time steps
    """

    THRESHOLD = "threshold"
    PLATEAU = "plateau"
    NOT_REACHED = "not-reached"
    DIVERGENCE = "divergence"
    NONFINITE = "non-finite"
    TIME = "time"
    STEPS = "steps"


@dataclass(frozen=True)
class Stop:
    """The record of one stop, as a callback keeps it in its attribute `stop`.

    Attributes:
        callback: Name of the callback that stopped the run.
        reason: One of `StopReason`.
        monitor: Name of the value that decided, `None` if it was time or steps.
        value: That value, or the seconds used, or the steps done.
        threshold: What `value` was compared with; `None` if it was not finite.
        epoch: Index of the epoch, from 0 as in `History.epoch`, or `None`.
        step: Optimizer steps done when the callback stopped, or `None`.
        message: The same in one English sentence; epochs count from 1 there, as
            in Keras's progress bar.
        values: All monitored values of the check that stopped the run.
    """

    callback: str
    reason: StopReason
    monitor: str | None
    value: float | None
    threshold: float | None
    epoch: int | None
    step: int | None
    message: str
    values: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain Python values that JSON can hold."""
        return {**asdict(self), "reason": str(self.reason)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Stop:
        """Return the record that `as_dict` wrote."""
        return cls(**{**record, "reason": StopReason(record["reason"])})


def shown(value: float) -> str:
    """Return the shortest digits that tell `value` from its neighbours.

    Metrics are float32 numbers inside Python floats; 0.39999998 must not be
    printed as 0.4, and 0.949999988079071 is only float32's way to say 0.95.
    """
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return str(single) if float(single) == value else repr(value)


def place(epoch: int | None, step: int | None, batch: int | None = None) -> str:
    """Return " in epoch 3 (step 1407)" or as much of it as is known."""
    where = ""
    if epoch is not None and batch is None:
        where = f" in epoch {epoch + 1}"
    elif epoch is not None and batch is not None:
        where = f" in epoch {epoch + 1} at batch {batch + 1}"
    return where + ("" if step is None else f" (step {step})")
