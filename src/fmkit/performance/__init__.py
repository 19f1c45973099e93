"""Settings for `fit`, chosen by rule with the reason, or by measurement on a copy."""

from fmkit.performance._fused_model import FusedModel, fused
from fmkit.performance._measure import Measurement
from fmkit.performance._programs import keep_compiled_programs
from fmkit.performance._range import LearningRateRange, learning_rate_range
from fmkit.performance._settings import FitSettings, fit_settings

__all__ = [
    "FitSettings",
    "FusedModel",
    "LearningRateRange",
    "Measurement",
    "fit_settings",
    "fused",
    "keep_compiled_programs",
    "learning_rate_range",
]
