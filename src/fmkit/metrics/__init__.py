"""Metrics of predicted distributions: uncertainty, calibration, accuracy.

Each is a function, which documents formula, shapes and options, and a Keras metric with
the same options and Keras's `name` and `dtype`; a dtype narrower than float32 is raised
to float32.
"""

from fmkit.metrics._accuracy import (
    ClassAccuracy,
    TopKAccuracy,
    class_accuracy,
    top_k_accuracy,
)
from fmkit.metrics._calibration import (
    BinaryExpectedCalibrationError,
    ExpectedCalibrationError,
    binary_expected_calibration_error,
    expected_calibration_error,
)
from fmkit.metrics._scores import (
    BinaryBrierScore,
    BrierScore,
    PredictiveEntropy,
    binary_brier_score,
    brier_score,
    predictive_entropy,
)

__all__ = [
    "BinaryBrierScore",
    "BinaryExpectedCalibrationError",
    "BrierScore",
    "ClassAccuracy",
    "ExpectedCalibrationError",
    "PredictiveEntropy",
    "TopKAccuracy",
    "binary_brier_score",
    "binary_expected_calibration_error",
    "brier_score",
    "class_accuracy",
    "expected_calibration_error",
    "predictive_entropy",
    "top_k_accuracy",
]
