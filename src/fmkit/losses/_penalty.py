"""The entropy of the predicted distribution, as a loss and as a regularizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit import _keras_private as private
from fmkit._checks import check_number
from fmkit._math import Tensor, entropy_from_logits, namespace
from fmkit._targets import merge_axes, read_logits
from fmkit.losses._base import ExactLoss


@keras.saving.register_keras_serializable("fmkit", "confidence_penalty")
def confidence_penalty(
    y_pred: Any, *, weight: float = 0.1, axis: int | Sequence[int] = -1
) -> Tensor:
    r"""Negative entropy of the softmax of logits.

    With $p = \mathrm{softmax}(z)$ and weight $\beta$, in nats:

    $$\ell = -\beta\, H(p) = \beta \sum_j p_j \log p_j.$$

    A positive $\beta$ penalizes confident predictions; a negative one penalizes
    uncertain predictions (entropy minimization on unlabelled data).

    Args:
        y_pred: Logits $z$, shape `(batch, ..., K)`. A logit of `-inf` excludes a
            class. float16 and bfloat16 are computed in float32.
        weight: $\beta$, of either sign.
        axis: The class axis, or several, which are taken as one.

    Returns:
        The penalty of each position, shape of `y_pred` without the class axis.

    Raises:
        ValueError: If `weight` is not finite, or the logits are empty or have fewer
            than two classes.

    Examples:
        >>> round(float(confidence_penalty([[0.0, 0.0]], weight=1.0)[0]), 4)
        -0.6931

    References:
        Pereyra et al., [*Regularizing neural networks by penalizing confident output
        distributions*](https://arxiv.org/abs/1701.06548), 2017; Grandvalet & Bengio,
        *Semi-supervised learning by entropy minimization*, 2004.
    """
    weight = check_number("weight", weight)
    _, y_pred, axis = merge_axes(None, y_pred, axis)
    logits, axis = read_logits(y_pred, axis)
    return -weight * entropy_from_logits(logits, axis, namespace(logits))


@keras.saving.register_keras_serializable("fmkit")
class ConfidencePenalty(ExactLoss):
    """`confidence_penalty` as a Keras loss, its options as attributes.

    Targets are ignored. Use it on a separate output or on unlabelled data. To add the
    penalty to another loss on the same output, pass a `ConfidenceRegularizer` to the
    last layer.

    Examples:
        >>> loss = ConfidencePenalty(weight=1.0)
        >>> round(float(loss([0, 0], [[0.0, 0.0], [200.0, 0.0]])), 4)
        -0.3466
    """

    def __init__(
        self,
        *,
        weight: float = 0.1,
        axis: int | Sequence[int] = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "confidence_penalty",
        dtype: Any = None,
    ):
        weight = check_number("weight", weight)
        super().__init__(name, reduction, dtype, weight=weight, axis=axis)

    @staticmethod
    def _function(y_true: Any, y_pred: Any, **options: Any) -> Tensor:
        return confidence_penalty(y_pred, **options)


@keras.saving.register_keras_serializable("fmkit")
class ConfidenceRegularizer(keras.regularizers.Regularizer):
    r"""Negative entropy as the `activity_regularizer` of the layer that outputs logits.

    It adds the mean of `confidence_penalty` over all positions to the model's loss,
    and takes the same options. Keras passes no masks or sample weights to a
    regularizer. Called directly it returns that mean; since Keras 3.14, which divides
    by the batch size, that mean times the batch size.

    Examples:
        >>> import keras
        >>> layer = keras.layers.Dense(
        ...     10, activity_regularizer=ConfidenceRegularizer(0.1)
        ... )
    """

    def __init__(self, weight: float = 0.1, axis: int = -1):
        self.weight = check_number("weight", weight)
        self.axis = axis
        # Here, since a layer can't be tried while a step is compiled.
        self._is_divided = private.divides_activity_losses()

    def __call__(self, x: Any) -> Tensor:
        """Return the mean penalty, times what Keras then divides by."""
        penalty = confidence_penalty(x, weight=self.weight, axis=self.axis)
        each = ops.mean(penalty, axis=list(range(1, len(penalty.shape))))
        return ops.sum(each) if self._is_divided else ops.mean(each)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {"weight": self.weight, "axis": self.axis}
