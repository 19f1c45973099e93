"""Callbacks for `fit`, `evaluate` and `predict`."""

from fmkit.callbacks._evaluate_with_averages import EvaluateWithAverages
from fmkit.callbacks._learning_rate_logger import LearningRateLogger

__all__ = ["EvaluateWithAverages", "LearningRateLogger"]
