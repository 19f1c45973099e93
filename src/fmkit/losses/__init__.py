"""Losses on logits, accurate to the last digit, each as a function and a Keras class.

The function documents formula, shapes, options and errors. The class takes the same
options, which are its attributes, and Keras's `reduction`, `name` and `dtype`; a dtype
narrower than float32 is raised to float32.
"""

from fmkit.losses._asymmetric import (
    AsymmetricLossFromLogits,
    asymmetric_loss_from_logits,
)
from fmkit.losses._binary import (
    BinaryCrossentropyFromLogits,
    binary_crossentropy_from_logits,
)
from fmkit.losses._binary_divergence import (
    BinaryKLDivergenceFromLogits,
    binary_kl_divergence_from_logits,
)
from fmkit.losses._crossentropy import CrossentropyFromLogits, crossentropy_from_logits
from fmkit.losses._divergence import KLDivergenceFromLogits, kl_divergence_from_logits
from fmkit.losses._focal import (
    BinaryFocalCrossentropyFromLogits,
    binary_focal_crossentropy_from_logits,
)
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
    "AsymmetricLossFromLogits",
    "BinaryCrossentropyFromLogits",
    "BinaryFocalCrossentropyFromLogits",
    "BinaryKLDivergenceFromLogits",
    "ConfidencePenalty",
    "ConfidenceRegularizer",
    "CrossentropyFromLogits",
    "KLDivergenceFromLogits",
    "MeanSquaredErrorFromLogits",
    "Pinball",
    "asymmetric_error",
    "asymmetric_loss_from_logits",
    "binary_crossentropy_from_logits",
    "binary_focal_crossentropy_from_logits",
    "binary_kl_divergence_from_logits",
    "confidence_penalty",
    "crossentropy_from_logits",
    "kl_divergence_from_logits",
    "mean_squared_error_from_logits",
    "pinball",
]
