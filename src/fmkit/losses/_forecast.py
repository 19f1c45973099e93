"""Costs of forecasts that are too low or too high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit._checks import check_number
from fmkit._math import Tensor
from fmkit._targets import at_least_float32, may_be_equal
from fmkit.losses._base import ExactLoss


@keras.saving.register_keras_serializable("fmkit", "asymmetric_error")
def asymmetric_error(
    y_true: Any, y_pred: Any, *, under: float = 1.0, over: float = 1.0
) -> Tensor:
    r"""Absolute error that costs differently below and above the truth.

    $$\ell = \frac1d \sum_{i=1}^{d} \begin{cases}
        u\,(y_i - \hat y_i) & \hat y_i < y_i \quad\text{(too low)}\\
        o\,(\hat y_i - y_i) & \hat y_i \ge y_i \quad\text{(too high)}\end{cases}$$

    The forecast of least expected cost is the quantile $u / (u + o)$ of the truth.
    At $\hat y = y$ the gradient is that of the upper side, $o$, as for a pinball loss
    in the limit from above.

    Args:
        y_true: Targets, shape `(batch, ..., d)`, or `(batch, ...)` if $d = 1$.
        y_pred: Forecasts, shape `(batch, ..., d)`. float16 and bfloat16 are computed
            in float32.
        under: $u \ge 0$, cost of one unit of forecast too low, for instance the
            lost profit.
        over: $o \ge 0$, cost of one unit of forecast too high, for instance the
            cost of an unsold piece.

    Returns:
        Mean over the last axis, shape `(batch, ...)`.

    Raises:
        ValueError: If `under` or `over` is negative, or both are 0, or the shapes
            differ or are empty.

    Examples:
        >>> cost = asymmetric_error([[10.0], [10.0]], [[8.0], [12.0]], under=9, over=1)
        >>> [round(float(c), 4) for c in cost]
        [18.0, 2.0]

    References:
        Christoffersen & Diebold, *Optimal prediction under asymmetric loss*, 1997
        (there: "linlin").
    """
    under, over = _check_costs(under, over)
    y_true, y_pred = _same_shape(y_true, y_pred)
    shortage = y_true - y_pred
    return _mean(ops.where(shortage > 0.0, under * shortage, -over * shortage))


@keras.saving.register_keras_serializable("fmkit", "pinball")
def pinball(
    y_true: Any, y_pred: Any, *, quantiles: float | Sequence[float] = 0.5
) -> Tensor:
    r"""Pinball loss, whose minimum is a quantile of the truth.

    For level $\tau$ one forecast costs $\max(\tau (y - \hat y), (\tau - 1)(y - \hat
    y))$: `asymmetric_error` with $u = \tau$ and $o = 1 - \tau$. With $\tau = 1/2$ it
    is half the absolute error.

    Args:
        y_true: Targets. With one level: shape of `y_pred` (or without a last axis of
            length 1). With $Q$ levels: shape `(batch, ...)` or `(batch, ..., 1)`.
        y_pred: Forecasts, shape `(batch, ..., d)`; with several levels `(batch, ...,
            Q)`, one forecast per level. float16 and bfloat16 are computed in float32.
        quantiles: One level, or a sequence of $Q$ levels, each in (0, 1).

    Returns:
        Mean over the last axis, shape `(batch, ...)`.

    Raises:
        ValueError: If a level is not inside (0, 1), or shapes do not fit.

    Examples:
        >>> cost = pinball([10.0], [[8.0, 12.0]], quantiles=[0.1, 0.9])
        >>> round(float(cost[0]), 4)
        0.2

    References:
        Koenker & Bassett, *Regression quantiles*, 1978.
    """
    levels = _check_quantiles(quantiles)
    if isinstance(levels, float):
        y_true, y_pred = _same_shape(y_true, y_pred)
    else:
        y_true, y_pred = _one_target_per_level(y_true, y_pred, len(levels))
    tau = ops.convert_to_tensor(levels, y_pred.dtype)
    shortage = y_true - y_pred
    cost = ops.where(shortage > 0.0, tau * shortage, (tau - 1.0) * shortage)
    return _mean(cost)


def _mean(cost: Tensor) -> Tensor:
    # Not `ops.mean`: on PyTorch it goes through float32 even for float64.
    return ops.sum(cost, axis=-1) / ops.cast(ops.shape(cost)[-1], cost.dtype)


def _read_forecast(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    y_pred = at_least_float32(y_pred)
    y_true = ops.cast(ops.convert_to_tensor(y_true), y_pred.dtype)
    if len(y_pred.shape) == 0 or 0 in tuple(y_pred.shape):
        raise ValueError(
            f"`y_pred` must not be empty or a scalar, got shape {tuple(y_pred.shape)}."
        )
    return y_true, y_pred


def _same_shape(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    y_true, y_pred = _read_forecast(y_true, y_pred)
    true, pred = tuple(y_true.shape), tuple(y_pred.shape)
    # (batch,) minus (batch, 1) would broadcast to (batch, batch), without an error.
    if len(true) == len(pred) - 1 and pred[-1] == 1:
        y_true, true = ops.expand_dims(y_true, -1), (*true, 1)
    elif len(true) - 1 == len(pred) and true[-1] == 1:
        y_true, true = ops.squeeze(y_true, axis=-1), true[:-1]
    if not may_be_equal(true, pred):
        raise ValueError(
            f"`y_true` and `y_pred` must have the same shape, got {true} and {pred}."
        )
    return y_true, y_pred


def _one_target_per_level(
    y_true: Any, y_pred: Any, levels: int
) -> tuple[Tensor, Tensor]:
    y_true, y_pred = _read_forecast(y_true, y_pred)
    true, pred = tuple(y_true.shape), tuple(y_pred.shape)
    if len(true) == len(pred) - 1:
        y_true, true = ops.expand_dims(y_true, -1), (*true, 1)
    if pred[-1] != levels or not may_be_equal(true, (*pred[:-1], 1)):
        raise ValueError(
            f"With {levels} `quantiles`, `y_pred` must have shape (..., {levels}) and "
            f"`y_true` (...) or (..., 1), got {pred} and {true}."
        )
    return y_true, y_pred


def _check_costs(under: Any, over: Any) -> tuple[float, float]:
    under = check_number("under", under, at_least=0.0)
    over = check_number("over", over, at_least=0.0)
    if under == over == 0.0:
        raise ValueError(
            "At least one of `under` and `over` must be positive, got 0 for both: "
            "every forecast would cost nothing."
        )
    return under, over


def _check_quantiles(quantiles: Any) -> float | list[float]:
    if not isinstance(quantiles, Sequence):
        return check_number("quantiles", quantiles, above=0.0, below=1.0)
    if len(quantiles) == 0:
        raise ValueError("`quantiles` must name at least one level, got none.")
    return [check_number("quantiles", q, above=0.0, below=1.0) for q in quantiles]


@keras.saving.register_keras_serializable("fmkit")
class AsymmetricError(ExactLoss):
    """`asymmetric_error` as a Keras loss, its options as attributes.

    The yogurt lesson's loss, which sums over a batch, is
    `AsymmetricError(under=profit, over=cost, reduction="sum")`.

    Examples:
        >>> loss = AsymmetricError(under=9.0, over=1.0)
        >>> round(float(loss([[10.0], [10.0]], [[8.0], [12.0]])), 4)
        10.0
    """

    _function = staticmethod(asymmetric_error)
    _expects_logits = False

    def __init__(
        self,
        *,
        under: float = 1.0,
        over: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "asymmetric_error",
        dtype: Any = None,
    ):
        under, over = _check_costs(under, over)
        super().__init__(name, reduction, dtype, under=under, over=over)


@keras.saving.register_keras_serializable("fmkit")
class Pinball(ExactLoss):
    """`pinball` as a Keras loss, its option as an attribute.

    Examples:
        >>> loss = Pinball(quantiles=0.9)
        >>> round(float(loss([[10.0], [10.0]], [[8.0], [12.0]])), 4)
        1.0
    """

    _function = staticmethod(pinball)
    _expects_logits = False

    def __init__(
        self,
        *,
        quantiles: float | Sequence[float] = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "pinball",
        dtype: Any = None,
    ):
        super().__init__(name, reduction, dtype, quantiles=_check_quantiles(quantiles))
