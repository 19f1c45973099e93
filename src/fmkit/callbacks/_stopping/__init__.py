"""Callbacks that stop a run: at a threshold, after some steps, or out of time."""

from fmkit.callbacks._stopping._conditions import AllOf, AnyOf, Condition, Reached
from fmkit.callbacks._stopping._step_stopping import StepStopping
from fmkit.callbacks._stopping._stop import Stop, StopReason
from fmkit.callbacks._stopping._threshold_stopping import ThresholdStopping
from fmkit.callbacks._stopping._time_stopping import TimeStopping

__all__ = [
    "AllOf",
    "AnyOf",
    "Condition",
    "Reached",
    "StepStopping",
    "Stop",
    "StopReason",
    "ThresholdStopping",
    "TimeStopping",
]
