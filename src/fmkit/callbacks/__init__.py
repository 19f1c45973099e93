"""Callbacks: pass them to `model.fit(callbacks=[...])`."""

from fmkit.callbacks._batch_validation import BatchValidation
from fmkit.callbacks._evaluate_with_averages import EvaluateWithAverages
from fmkit.callbacks._fingerprint import Fingerprint
from fmkit.callbacks._hyperparameter_scheduler import HyperparameterScheduler
from fmkit.callbacks._learning_rate_logger import LearningRateLogger
from fmkit.callbacks._live_plot import LivePlot
from fmkit.callbacks._resume import ExactResume
from fmkit.callbacks._stopping import (
    AllOf,
    AnyOf,
    Condition,
    Reached,
    StepStopping,
    Stop,
    StopReason,
    ThresholdStopping,
    TimeStopping,
)

__all__ = [
    "AllOf",
    "AnyOf",
    "BatchValidation",
    "Condition",
    "EvaluateWithAverages",
    "ExactResume",
    "Fingerprint",
    "HyperparameterScheduler",
    "LearningRateLogger",
    "LivePlot",
    "Reached",
    "StepStopping",
    "Stop",
    "StopReason",
    "ThresholdStopping",
    "TimeStopping",
]
