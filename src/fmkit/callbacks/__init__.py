"""Callbacks: pass them to `model.fit(callbacks=[...])`."""

from fmkit.callbacks._batch_validation import BatchValidation
from fmkit.callbacks._conditions import AllOf, AnyOf, Condition, Reached
from fmkit.callbacks._evaluate_with_averages import EvaluateWithAverages
from fmkit.callbacks._exact_resume import ExactResume
from fmkit.callbacks._learning_rate_logger import LearningRateLogger
from fmkit.callbacks._stop import Stop, StopReason
from fmkit.callbacks._threshold_stopping import ThresholdStopping
from fmkit.callbacks._time_stopping import TimeStopping

__all__ = [
    "AllOf",
    "AnyOf",
    "BatchValidation",
    "Condition",
    "EvaluateWithAverages",
    "ExactResume",
    "LearningRateLogger",
    "Reached",
    "Stop",
    "StopReason",
    "ThresholdStopping",
    "TimeStopping",
]
