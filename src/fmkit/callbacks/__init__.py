"""Callbacks: pass them to `model.fit(callbacks=[...])`."""

from fmkit.callbacks._conditions import AllOf, AnyOf, Condition, Reached
from fmkit.callbacks._stop import Stop, StopReason
from fmkit.callbacks._threshold_stopping import ThresholdStopping

__all__ = [
    "AllOf",
    "AnyOf",
    "Condition",
    "Reached",
    "Stop",
    "StopReason",
    "ThresholdStopping",
]
