"""Squared error between targets and logits, or their softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit._checks import check_number, check_one_of
from fmkit._math import Tensor, in_one_node, namespace, softmax_minus
from fmkit._targets import merge_axes, nan_unless, read_distribution, read_logits
from fmkit.losses._base import ExactLoss, check_sum_tolerance

_ACTIVATIONS = ("linear", "softmax")


@keras.saving.register_keras_serializable("fmkit", "mean_squared_error_from_logits")
def mean_squared_error_from_logits(
    y_true: Any,
    y_pred: Any,
    *,
    activation: str = "linear",
    k: float = 1.0,
    M: float = 1.0,
    sum_tolerance: float | None = 1e-3,
    axis: int | Sequence[int] = -1,
) -> Tensor:
    r"""Mean squared error between integer or dense targets and logits.

    With $f = z$ (`"linear"`, the raw logits) or $f = \mathrm{softmax}(z)$, $C$
    classes and targets $q$ (one-hot for a label):

    $$\ell = \frac{1}{C} \sum_{j=1}^{C} \bigl(1 + (k - 1)\, q_j\bigr)
        \bigl(f_j - M q_j\bigr)^2.$$

    For a label $y$ that is the rescaled square loss of Hui & Belkin,
    $\frac{1}{C}\bigl(k (f_y - M)^2 + \sum_{j \ne y} f_j^2\bigr)$; with $k = M = 1$ it
    is the plain mean squared error, and with `activation="softmax"` the Brier score
    divided by $C$ (Brier's score is the sum over the classes, not the mean).

    Args:
        y_true: Labels $0 \dots C-1$ of the shape of `y_pred` without the class axis
            (or with length 1 there), or dense targets of the shape of `y_pred`.
        y_pred: Logits $z$, shape `(batch, ..., C)`. float16 and bfloat16 are
            computed in float32.
        activation: `"linear"` or `"softmax"`.
        k: Weight $k > 0$ of the true class.
        M: Target value $M > 0$ of the true class.
        sum_tolerance: How far from 1 the sum of dense targets may be; None turns off
            the check, for targets that are not a distribution.
        axis: The class axis, or several, which are taken as one.

    Returns:
        The cost of each position, shape of `y_pred` without the class axis.

    Raises:
        ValueError: If an argument is out of range, shapes do not fit, the batch is
            empty, or, where values are known (outside a compiled step), a label is
            out of range or dense targets are not a distribution. Inside a compiled
            step a label out of range costs NaN, with a gradient of NaN.

    Examples:
        >>> round(float(mean_squared_error_from_logits([1], [[0.5, 2.0]])[0]), 4)
        0.625

    References:
        Hui & Belkin, [*Evaluation of neural architectures trained with square loss
        vs cross-entropy*](https://arxiv.org/abs/2006.07322), 2020, section 2; Brier,
        *Verification of forecasts expressed in terms of probability*, 1950.
    """
    k, M = _check_options(activation, k, M, sum_tolerance)
    y_true, y_pred, axis = merge_axes(y_true, y_pred, axis)
    logits, axis = read_logits(y_pred, axis)
    targets, valid = read_distribution(y_true, logits, axis, sum_tolerance)
    aim = targets if M == 1.0 else M * targets
    weight = 1.0 if k == 1.0 else 1.0 + (k - 1.0) * targets

    def softmax_plain(z: Tensor) -> Tensor:
        squares = weight * ops.square(softmax_minus(aim, z, axis))
        return ops.sum(squares, axis=axis, keepdims=True)

    if activation == "softmax":
        loss = in_one_node("squared", softmax_plain, logits, aim, weight, axis=axis)
        loss = namespace(loss).squeeze(loss, axis)
    else:
        loss = ops.sum(weight * ops.square(logits - aim), axis=axis)
    # Not `ops.mean`: on PyTorch it goes through float32 even for float64.
    loss = loss / logits.shape[axis]
    return loss if valid is None else nan_unless(valid, loss)


def _check_options(
    activation: Any, k: Any, M: Any, sum_tolerance: Any
) -> tuple[float, float]:
    check_one_of("activation", activation, _ACTIVATIONS)
    check_sum_tolerance(sum_tolerance)
    return check_number("k", k, above=0.0), check_number("M", M, above=0.0)


@keras.saving.register_keras_serializable("fmkit")
class MeanSquaredErrorFromLogits(ExactLoss):
    """`mean_squared_error_from_logits` as a Keras loss, its options as attributes.

    The first loss of the tutorials: one-hot targets against raw logits.

    Examples:
        >>> loss = MeanSquaredErrorFromLogits()
        >>> round(float(loss([1, 0], [[0.5, 2.0], [1.0, 0.0]])), 4)
        0.3125
    """

    _function = staticmethod(mean_squared_error_from_logits)

    @property
    def _expects_logits(self) -> bool:  # type: ignore[override]
        # The squared error of raw outputs has a meaning, whatever they are.
        return bool(self.activation == "softmax")

    def __init__(
        self,
        *,
        activation: str = "linear",
        k: float = 1.0,
        M: float = 1.0,
        sum_tolerance: float | None = 1e-3,
        axis: int | Sequence[int] = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "mean_squared_error_from_logits",
        dtype: Any = None,
    ):
        k, M = _check_options(activation, k, M, sum_tolerance)
        super().__init__(
            name,
            reduction,
            dtype,
            activation=activation,
            k=k,
            M=M,
            sum_tolerance=sum_tolerance,
            axis=axis,
        )
