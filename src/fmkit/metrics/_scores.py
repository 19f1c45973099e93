"""Entropy of predictions, and the squared error of their probabilities."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_one_of
from fmkit._math import (
    UNITS,
    Tensor,
    entropy_from_logits,
    namespace,
    sigmoids,
    softmax_minus,
)
from fmkit._targets import (
    check_binary,
    nan_unless,
    read_binary,
    read_distribution,
    read_logits,
)
from fmkit.metrics._base import FORMS, OfPredictions


def predictive_entropy(
    y_pred: Any, *, form: str = "logits", unit: str = "nats", axis: int = -1
) -> Tensor:
    r"""Entropy of each predicted distribution, $-\sum_j p_j \log p_j$.

    Args:
        y_pred: Logits, or probabilities, shape `(batch, ..., K)`.
        form: What `y_pred` holds: `"logits"` or `"probabilities"`.
        unit: `"nats"`, `"bits"` or `"bans"` (base 10).
        axis: The class axis.

    Returns:
        The entropy of each position, shape of `y_pred` without the class axis.

    Raises:
        ValueError: If `unit` is unknown, or `y_pred` is empty or has fewer than two
            classes.

    Examples:
        >>> round(float(predictive_entropy([[0.0, 0.0]], unit="bits")[0]), 4)
        1.0
    """
    check_one_of("form", form, FORMS)
    check_one_of("unit", unit, UNITS)
    y_pred, axis = read_logits(y_pred, axis)
    if form == "logits":
        return entropy_from_logits(y_pred, axis) / UNITS[unit]
    positive = ops.where(y_pred > 0.0, y_pred, 1.0)
    return -ops.sum(y_pred * ops.log(positive), axis=axis) / UNITS[unit]


def brier_score(
    y_true: Any,
    y_pred: Any,
    *,
    form: str = "logits",
    sum_tolerance: float | None = 1e-3,
    axis: int = -1,
) -> Tensor:
    r"""Brier score $\sum_j (p_j - q_j)^2$ of each prediction, from 0 to 2.

    As a loss, divided by the number of classes: `fmkit.losses.
    MeanSquaredErrorFromLogits(activation="softmax")`.

    Args:
        y_true: Labels of the shape of `y_pred` without the class axis (or with
            length 1 there), or probabilities of the shape of `y_pred`.
        y_pred: Logits, or probabilities, shape `(batch, ..., K)`.
        form: What `y_pred` holds: `"logits"` or `"probabilities"`.
        sum_tolerance: How far from 1 dense targets may sum; None turns the check off.
        axis: The class axis.

    Returns:
        The score of each position, shape of `y_pred` without the class axis.

    Raises:
        ValueError: If shapes do not fit, or, where values are known, a label is out
            of range or targets are not a distribution. Inside a compiled step a label
            out of range scores NaN.

    Examples:
        >>> score = brier_score([0], [[0.6, 0.4]], form="probabilities")
        >>> round(float(score[0]), 4)
        0.32

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, 1950.
    """
    check_one_of("form", form, FORMS)
    y_pred, axis = read_logits(y_pred, axis)
    targets, valid = read_distribution(y_true, y_pred, axis, sum_tolerance)
    if form == "logits":
        residual = softmax_minus(targets, y_pred, axis)
    else:
        residual = y_pred - targets
    score = ops.sum(ops.square(residual), axis=axis)
    return score if valid is None else nan_unless(valid, score)


def binary_brier_score(y_true: Any, y_pred: Any, *, form: str = "logits") -> Tensor:
    r"""Brier score $(p - q)^2$ of one yes or no, or of several labels, from 0 to 1.

    Args:
        y_true: 0, 1, or probabilities $q$ between them, of the shape of `y_pred`. A
            last axis of length 1 may be left out.
        y_pred: Logits, or probabilities $p$, shape `(batch, ..., labels)`, or
            `(batch,)` for one label.
        form: What `y_pred` holds: `"logits"` or `"probabilities"`.

    Returns:
        The mean over the last axis, shape `(batch, ...)`.

    Raises:
        ValueError: If `form` is unknown, shapes do not fit, or, where values are known,
            a target is below 0 or above 1. Inside a compiled step it scores NaN.

    Examples:
        >>> score = binary_brier_score([[1, 0]], [[0.6, 0.2]], form="probabilities")
        >>> round(float(score[0]), 4)
        0.1

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, 1950
        (who sums over yes and no: twice as much).
    """
    check_one_of("form", form, FORMS)
    q, y_pred = read_binary(y_true, y_pred)
    q = check_binary(y_true, q)
    residual = y_pred - q
    if form == "logits":
        # From the smaller probability, which has all its digits.
        p, other = sigmoids(y_pred, namespace(y_pred))
        residual = ops.where(q > 0.5, (1.0 - q) - other, p - q)
    return ops.sum(ops.square(residual), axis=-1) / y_pred.shape[-1]


@keras.saving.register_keras_serializable("fmkit")
class PredictiveEntropy(OfPredictions):
    """Mean of `predictive_entropy` over all positions, as a Keras metric.

    Examples:
        >>> metric = PredictiveEntropy(unit="bits")
        >>> metric.update_state([0, 1], [[0.0, 0.0], [500.0, 0.0]])
        >>> round(float(metric.result()), 4)
        0.5
    """

    def __init__(
        self,
        *,
        form: str = "logits",
        unit: str = "nats",
        axis: int = -1,
        name: str | None = "predictive_entropy",
        dtype: Any = None,
    ):
        check_one_of("unit", unit, UNITS)
        super().__init__(
            lambda y_true, y_pred, **options: predictive_entropy(y_pred, **options),
            name,
            dtype,
            form=form,
            unit=unit,
            axis=axis,
        )


@keras.saving.register_keras_serializable("fmkit")
class BrierScore(OfPredictions):
    """Mean of `brier_score` over all positions, as a Keras metric.

    Examples:
        >>> metric = BrierScore(form="probabilities")
        >>> metric.update_state([0, 1], [[0.6, 0.4], [0.0, 1.0]])
        >>> round(float(metric.result()), 4)
        0.16
    """

    def __init__(
        self,
        *,
        form: str = "logits",
        sum_tolerance: float | None = 1e-3,
        axis: int = -1,
        name: str | None = "brier_score",
        dtype: Any = None,
    ):
        options = {"form": form, "sum_tolerance": sum_tolerance, "axis": axis}
        super().__init__(brier_score, name, dtype, **options)


@keras.saving.register_keras_serializable("fmkit")
class BinaryBrierScore(OfPredictions):
    """Mean of `binary_brier_score` over all positions, as a Keras metric.

    Examples:
        >>> metric = BinaryBrierScore(form="probabilities")
        >>> metric.update_state([1, 0], [0.6, 0.2])
        >>> round(float(metric.result()), 4)
        0.1
    """

    def __init__(
        self,
        *,
        form: str = "logits",
        name: str | None = "binary_brier_score",
        dtype: Any = None,
    ):
        super().__init__(binary_brier_score, name, dtype, form=form)
