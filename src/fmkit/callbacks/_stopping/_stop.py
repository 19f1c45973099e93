"""What a stop is: its reason, its record, and the part all stoppers share."""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np

from fmkit._checks import check_one_of

__all__ = ["Stop", "StopReason"]

_logger = logging.getLogger("fmkit.callbacks")


class StopReason(enum.StrEnum):
    """Why a callback stopped the training. Each member is also its own string.

    Examples:
        >>> StopReason.THRESHOLD == "threshold"
        True
        >>> [str(reason) for reason in StopReason]
        ['threshold', 'plateau', 'not-reached', 'divergence', 'non-finite', 'time']
    """

    THRESHOLD = "threshold"
    PLATEAU = "plateau"
    NOT_REACHED = "not-reached"
    DIVERGENCE = "divergence"
    NONFINITE = "non-finite"
    TIME = "time"


@dataclass(frozen=True)
class Stop:
    """The record of one stop, as a callback keeps it in its attribute `stop`.

    Attributes:
        callback: Name of the callback that stopped the run.
        reason: One of `StopReason`.
        monitor: Name of the value that decided, `None` if it was the time.
        value: That value, or the seconds used if it was the time.
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


class Stopper(keras.callbacks.Callback):
    """A callback that can stop the run, say why, and be saved and restored."""

    def __init__(self, name: str, verbose: int | str, log_stop: bool) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"`name` must be a non-empty string, got name={name!r}; it stands "
                "in the record and in the message of the stop."
            )
        if verbose not in (0, 1):
            check_one_of("verbose", verbose, ["auto"])
        self.name = name
        self.verbose = verbose
        self.log_stop = bool(log_stop)
        self.stop: Stop | None = None
        self._epoch: int | None = None
        self._restored = False

    def _reset(self) -> None:
        self.stop = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the last run, unless `set_state` has just restored this one."""
        if not self._restored:
            self._reset()
        self._epoch = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Mark the logs if asked to, and stand by a stop made inside the epoch."""
        if logs is not None and self.log_stop:
            logs[f"stopped_by_{self.name}"] = float(self.stop is not None)
        # A callback that borrows `stop_training` to end an epoch early may have
        # cleared it since.
        if self.stop is not None and self._model is not None:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Show the message, if this callback stopped the run."""
        self._restored = False
        if self.stop is not None:
            self._display(self.stop.message)

    def _display(self, message: str) -> None:
        verbose = self.verbose
        if verbose == "auto":
            verbose = (self.params or {}).get("verbose", 0)
        # Without interactive logging Keras writes to a log; ours has it already.
        if verbose and keras.config.is_interactive_logging_enabled():
            sys.stdout.write(message + "\n")

    def _optimizer_steps(self) -> int | None:
        """Return the optimizer's count of steps; on a device this is a read."""
        if self._model is None:
            return None
        iterations = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        if iterations is None:
            return None
        return int(keras.ops.convert_to_numpy(iterations))

    def _halt(self, stop: Stop) -> None:
        """Stop the run: record it here, in `History.params`, and in the log."""
        self.stop = stop
        if self._model is not None:
            self.model.stop_training = True
        if self.params is not None:
            # One dictionary, shared by all callbacks of a `fit`, so that the
            # `History` it returns has it too; the lists of floats in
            # `History.history` stay what they are.
            self.params.setdefault("stops", []).append(stop.as_dict())
        _logger.info(stop.message)

    def get_state(self) -> dict[str, Any]:
        """Return all that a resumed run needs: JSON values and NumPy arrays."""
        return {"stop": None if self.stop is None else self.stop.as_dict()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, before `fit` or in its first epoch."""
        self._restored = True
        self.stop = None if state["stop"] is None else Stop.from_dict(state["stop"])
