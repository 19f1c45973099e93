"""Metrics of predicted distributions: uncertainty, calibration, accuracy.

Each is a function, which documents formula, shapes and options, and a Keras metric with
the same options and Keras's `name` and `dtype`; a dtype narrower than float32 is raised
to float32.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_int, check_one_of
from fmkit._math import UNITS, Tensor, entropy_from_logits, one_hot_mask, softmax_minus
from fmkit._targets import (
    check_labels,
    check_probabilities,
    float32_or_float64,
    nan_unless,
    read_logits,
    read_targets,
    valid_labels,
)

__all__ = [
    "BrierScore",
    "ExpectedCalibrationError",
    "PredictiveEntropy",
    "brier_score",
    "expected_calibration_error",
    "predictive_entropy",
]

_FORMS = ("logits", "probabilities")
_NORMS = ("l1", "l2", "max")


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
    check_one_of("form", form, _FORMS)
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
    check_one_of("form", form, _FORMS)
    y_pred, axis = read_logits(y_pred, axis)
    targets, integer = read_targets(y_true, y_pred, axis)
    size = y_pred.shape[axis]
    valid: Any = None
    if integer:
        check_labels(y_true, size)
        valid = valid_labels(targets, size)
        targets = ops.cast(one_hot_mask(targets, size, axis), y_pred.dtype)
    else:
        check_probabilities(y_true, axis, sum_tolerance)
    if form == "logits":
        residual = softmax_minus(targets, y_pred, axis)
    else:
        residual = y_pred - targets
    score = ops.sum(ops.square(residual), axis=axis)
    return score if valid is None else nan_unless(valid, score)


def expected_calibration_error(
    y_true: Any,
    y_pred: Any,
    *,
    bins: int = 15,
    norm: str = "l1",
    form: str = "logits",
    axis: int = -1,
) -> Tensor:
    r"""Expected calibration error of a set of predictions.

    Predictions are sorted by confidence $\max_j p_j$ into $M$ bins of equal width,
    $((m-1)/M, m/M]$. With $n_m$ predictions in bin $m$, $n$ in all:

    $$\mathrm{ECE} = \sum_{m=1}^{M} \frac{n_m}{n}
        \bigl|\mathrm{accuracy}_m - \mathrm{confidence}_m\bigr|.$$

    Args:
        y_true: Labels, or dense targets (their largest entry is the label).
        y_pred: Logits, or probabilities, shape `(batch, ..., K)`.
        bins: $M$.
        norm: `"l1"` for the sum above, `"l2"` for the root of the same sum of squared
            differences, or `"max"` for the largest difference (of bins that are not
            empty).
        form: What `y_pred` holds: `"logits"` or `"probabilities"`.
        axis: The class axis.

    Returns:
        A scalar from 0 to 1.

    Raises:
        ValueError: If `bins` is below 1, `norm` is unknown, or shapes do not fit.

    Examples:
        >>> p = [[0.9, 0.1], [0.8, 0.2]]
        >>> error = expected_calibration_error([0, 1], p, bins=1, form="probabilities")
        >>> round(float(error), 4)
        0.35

    References:
        Guo et al., [*On calibration of modern neural networks*](
        https://arxiv.org/abs/1706.04599), 2017, section 2; Kumar et al., [*Verified
        uncertainty calibration*](https://arxiv.org/abs/1909.10155), 2019 (the second
        norm).
    """
    check_one_of("form", form, _FORMS)
    check_one_of("norm", norm, _NORMS)
    bins = check_int("bins", bins)
    outcomes = _confidence_and_hit(y_true, y_pred, form=form, axis=axis)
    return _calibration_error(_bin_sums(outcomes, None, bins), norm)


def _confidence_and_hit(y_true: Any, y_pred: Any, *, form: str, axis: int) -> Tensor:
    """Return confidence, and 1 where the prediction is right, on a new last axis."""
    y_pred, axis = read_logits(y_pred, axis)
    targets, integer = read_targets(y_true, y_pred, axis)
    if integer:
        check_labels(y_true, y_pred.shape[axis])
    else:
        targets = ops.argmax(targets, axis=axis)
    p = ops.softmax(y_pred, axis=axis) if form == "logits" else y_pred
    guess = ops.cast(ops.argmax(y_pred, axis=axis), targets.dtype)
    hit = ops.cast(ops.equal(guess, targets), p.dtype)
    return ops.stack([ops.max(p, axis=axis), hit], axis=-1)


def _bin_sums(outcomes: Tensor, sample_weight: Any, bins: int) -> Tensor:
    """Return weight, confidence and hits summed in each bin, shape (3, bins)."""
    confidence, hit = outcomes[..., 0], outcomes[..., 1]
    weight = ops.ones_like(confidence)
    if sample_weight is not None:
        sample_weight = ops.cast(sample_weight, weight.dtype)
        if len(sample_weight.shape) == len(weight.shape) + 1:
            sample_weight = ops.squeeze(sample_weight, axis=-1)
        while len(sample_weight.shape) < len(weight.shape):
            sample_weight = ops.expand_dims(sample_weight, -1)
        weight = weight * sample_weight
    index = ops.clip(ops.ceil(confidence * bins) - 1.0, 0.0, bins - 1.0)
    member = ops.one_hot(ops.cast(ops.reshape(index, (-1,)), "int32"), bins)
    columns = ops.stack([weight, weight * confidence, weight * hit])
    return ops.matmul(ops.reshape(columns, (3, -1)), ops.cast(member, confidence.dtype))


def _calibration_error(sums: Tensor, norm: str) -> Tensor:
    weight, gap = sums[0], ops.abs(sums[1] - sums[2])
    if norm == "l1":
        return ops.divide_no_nan(ops.sum(gap), ops.sum(weight))
    mean_gap = ops.divide_no_nan(gap, weight)
    if norm == "max":
        return ops.max(mean_gap)
    return ops.sqrt(ops.divide_no_nan(ops.sum(gap * mean_gap), ops.sum(weight)))


class _OfPredictions(keras.metrics.MeanMetricWrapper):
    """A mean over positions, weighted and masked as Keras does it."""

    def __init__(self, fn: Any, name: str | None, dtype: Any, **options: Any):
        check_one_of("form", options["form"], _FORMS)
        super().__init__(fn, name, float32_or_float64(dtype), **options)
        self.options = options

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {"name": self.name, "dtype": self.dtype, **self.options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _OfPredictions:
        """Make the metric from what `get_config` returned."""
        return cls(**config)


@keras.saving.register_keras_serializable("fmkit")
class PredictiveEntropy(_OfPredictions):
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
class BrierScore(_OfPredictions):
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


class _BinnedMean(keras.metrics.Mean):
    """Sums per bin; `MeanMetricWrapper` passes it the weights."""

    def update_state(self, values: Tensor, sample_weight: Any = None) -> None:
        sums = _bin_sums(values, sample_weight, self.bins)
        self.sums.assign_add(ops.cast(sums, self.sums.dtype))

    def reset_state(self) -> None:
        # `Mean` resets its own two variables only.
        super().reset_state()
        self.sums.assign(ops.zeros((3, self.bins)))

    def result(self) -> Tensor:
        return _calibration_error(self.sums, self.norm)


@keras.saving.register_keras_serializable("fmkit")
class ExpectedCalibrationError(_OfPredictions, _BinnedMean):
    """`expected_calibration_error` over all batches, as a Keras metric.

    The bins are filled batch by batch, so the result is that of the whole set, not a
    mean over batches.

    Examples:
        >>> metric = ExpectedCalibrationError(bins=1, form="probabilities")
        >>> metric.update_state([0], [[0.9, 0.1]])
        >>> metric.update_state([1], [[0.8, 0.2]])
        >>> round(float(metric.result()), 4)
        0.35
    """

    def __init__(
        self,
        *,
        bins: int = 15,
        norm: str = "l1",
        form: str = "logits",
        axis: int = -1,
        name: str | None = "expected_calibration_error",
        dtype: Any = None,
    ):
        # In the order of inheritance `MeanMetricWrapper` comes before `_BinnedMean`:
        # it joins the mask with the weights and passes both on.
        options = {"form": form, "axis": axis}
        super().__init__(_confidence_and_hit, name, dtype, **options)
        self.bins = check_int("bins", bins)
        self.norm = check_one_of("norm", norm, _NORMS)
        self.sums = self.add_variable((3, self.bins), "zeros", self.dtype, name="sums")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "bins": self.bins, "norm": self.norm}
