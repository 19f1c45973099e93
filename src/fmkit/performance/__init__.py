"""Settings that make `fit` fast: chosen by rule with the reason, or by measurement."""

from fmkit.performance._fused_model import FusedModel, fused
from fmkit.performance._measure import Measurement
from fmkit.performance._programs import keep_compiled_programs
from fmkit.performance._settings import FitSettings, fit_settings

__all__ = [
    "FitSettings",
    "FusedModel",
    "Measurement",
    "fit_settings",
    "fused",
    "keep_compiled_programs",
]
