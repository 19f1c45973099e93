"""Losses on logits, right to the last digit: a function and a Keras class each."""

from fmkit.losses._crossentropy import CrossentropyFromLogits, crossentropy_from_logits
from fmkit.losses._divergence import KLDivergenceFromLogits, kl_divergence_from_logits
from fmkit.losses._forecast import AsymmetricError, Pinball, asymmetric_error, pinball
from fmkit.losses._penalty import (
    ConfidencePenalty,
    ConfidenceRegularizer,
    confidence_penalty,
)
from fmkit.losses._squared import (
    MeanSquaredErrorFromLogits,
    mean_squared_error_from_logits,
)

__all__ = [
    "AsymmetricError",
    "ConfidencePenalty",
    "ConfidenceRegularizer",
    "CrossentropyFromLogits",
    "KLDivergenceFromLogits",
    "MeanSquaredErrorFromLogits",
    "Pinball",
    "asymmetric_error",
    "confidence_penalty",
    "crossentropy_from_logits",
    "kl_divergence_from_logits",
    "mean_squared_error_from_logits",
    "pinball",
]
