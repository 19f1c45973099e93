"""How far confidence is from accuracy, in bins of equal confidence."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_int, check_one_of
from fmkit._math import Tensor, namespace, sigmoids
from fmkit._targets import (
    check_binary,
    read_binary,
    read_classes,
    read_logits,
)
from fmkit.metrics._base import FORMS, OfPredictions, Sums, sums_by, weights_of

_NORMS = ("l1", "l2", "max")


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
        ValueError: If `bins` is below 1, `norm` is unknown, shapes do not fit, or,
            where values are known, a label is out of range. Inside a compiled step
            the error is then NaN.

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
    check_one_of("form", form, FORMS)
    check_one_of("norm", norm, _NORMS)
    bins = check_int("bins", bins)
    outcomes = _confidence_and_hit(y_true, y_pred, form=form, axis=axis)
    return _calibration_error(_bin_sums(outcomes, None, bins), norm)[0]


def binary_expected_calibration_error(
    y_true: Any,
    y_pred: Any,
    *,
    bins: int = 15,
    norm: str = "l1",
    form: str = "logits",
) -> Tensor:
    r"""Expected calibration error of one yes or no, or of each of several labels.

    As `expected_calibration_error`, of each label by itself, with its predicted
    probability $p$ of yes in place of the confidence, and the share of yes in place of
    the accuracy:

    $$\mathrm{ECE} = \sum_{m=1}^{M} \frac{n_m}{n}
        \bigl|\overline{q}_m - \overline{p}_m\bigr|.$$

    Of one-hot targets and $p = \mathrm{softmax}(z)$ the mean of the result is the
    class-wise calibration error.

    Args:
        y_true: 0, 1, or probabilities $q$ between them, of the shape of `y_pred`. A
            last axis of length 1 may be left out.
        y_pred: Logits, or probabilities $p$, shape `(batch, ..., labels)`, or
            `(batch,)` for one label.
        bins: $M$, of equal width, $((m-1)/M, m/M]$.
        norm: `"l1"`, `"l2"` or `"max"`, as in `expected_calibration_error`.
        form: What `y_pred` holds: `"logits"` or `"probabilities"`.

    Returns:
        One number from 0 to 1 for each label, shape `(labels,)`.

    Raises:
        ValueError: If `bins` is below 1, `norm` or `form` is unknown, shapes do not
            fit, or, where values are known, a target is below 0 or above 1. Inside a
            compiled step the error is then NaN.

    Examples:
        >>> p = [[0.9, 0.5], [0.8, 0.5]]
        >>> error = binary_expected_calibration_error(
        ...     [[1, 1], [0, 0]], p, bins=1, form="probabilities")
        >>> [round(float(each), 4) for each in error]
        [0.35, 0.0]

    References:
        Guo et al., [*On calibration of modern neural networks*](
        https://arxiv.org/abs/1706.04599), 2017, section 2; Kull et al., [*Beyond
        temperature scaling*](https://arxiv.org/abs/1910.12656), 2019, section 2
        (class-wise).
    """
    check_one_of("form", form, FORMS)
    check_one_of("norm", norm, _NORMS)
    bins = check_int("bins", bins)
    outcomes = _probability_and_target(y_true, y_pred, form=form)
    return _calibration_error(_bin_sums(outcomes, None, bins), norm)


def _confidence_and_hit(y_true: Any, y_pred: Any, *, form: str, axis: int) -> Tensor:
    """Return confidence, and 1 where the prediction is right: shape (..., 1, 2)."""
    y_pred, axis = read_logits(y_pred, axis)
    targets, valid = read_classes(y_true, y_pred, axis)
    p = ops.softmax(y_pred, axis=axis) if form == "logits" else y_pred
    guess = ops.cast(ops.argmax(y_pred, axis=axis), targets.dtype)
    hit = ops.cast(ops.equal(guess, targets), p.dtype)
    if valid is not None:
        # Not by `nan_unless`: of a product with a cast boolean XLA makes 0, not NaN.
        hit = ops.where(valid, hit, float("nan"))
    return ops.expand_dims(ops.stack([ops.max(p, axis=axis), hit], axis=-1), -2)


def _probability_and_target(
    y_true: Any, y_pred: Any, *, form: str, num_labels: int | None = None
) -> Tensor:
    """Return the probability of yes, and the target, shape (..., labels, 2)."""
    q, p = read_binary(y_true, y_pred)
    if num_labels not in (None, p.shape[-1]):
        raise ValueError(
            f"The predictions have {p.shape[-1]} labels, and the metric was made for "
            f"num_labels={num_labels}. Pass `num_labels={p.shape[-1]}`."
        )
    q = check_binary(y_true, q)
    if form == "logits":
        p, _ = sigmoids(p, namespace(p))
    return ops.stack([p, q], axis=-1)


def _bin_sums(outcomes: Tensor, sample_weight: Any, bins: int) -> Tensor:
    """Return weight, confidence and hits of each bin, shape (3, labels, bins)."""
    confidence, hit = outcomes[..., 0], outcomes[..., 1]
    weight = weights_of(confidence, sample_weight)
    index = ops.clip(ops.ceil(confidence * bins) - 1.0, 0.0, bins - 1.0)
    return sums_by(index, [weight, weight * confidence, weight * hit], bins)


def _calibration_error(sums: Tensor, norm: str) -> Tensor:
    """Return the error of each label."""
    weight, gap = sums[0], ops.abs(sums[1] - sums[2])
    total = ops.sum(weight, axis=-1)
    if norm == "l1":
        return ops.divide_no_nan(ops.sum(gap, axis=-1), total)
    mean_gap = ops.divide_no_nan(gap, weight)
    if norm == "max":
        return ops.max(mean_gap, axis=-1)
    return ops.sqrt(ops.divide_no_nan(ops.sum(gap * mean_gap, axis=-1), total))


class _Binned(Sums):
    """Sums per label and bin."""

    # In the order of inheritance `MeanMetricWrapper` comes before this class: it joins
    # the mask with the weights and passes both on.

    def _make_bins(self, bins: Any, norm: Any, labels: int = 1) -> None:
        self.bins = check_int("bins", bins)
        self.norm = check_one_of("norm", norm, _NORMS)
        shape = (3, labels, self.bins)
        self.sums = self.add_variable(shape, "zeros", self.dtype, name="sums")

    def _sums_of(self, values: Tensor, sample_weight: Any) -> Tensor:
        return _bin_sums(values, sample_weight, self.bins)

    def result(self) -> Tensor:
        errors = _calibration_error(self.sums, self.norm)
        return ops.sum(errors) / errors.shape[0]


@keras.saving.register_keras_serializable("fmkit")
class ExpectedCalibrationError(OfPredictions, _Binned):
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
        options = {"form": form, "axis": axis}
        super().__init__(_confidence_and_hit, name, dtype, **options)
        self._make_bins(bins, norm)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "bins": self.bins, "norm": self.norm}


@keras.saving.register_keras_serializable("fmkit")
class BinaryExpectedCalibrationError(OfPredictions, _Binned):
    """`binary_expected_calibration_error` over all batches, its mean over the labels.

    The bins are filled batch by batch, so the result is that of the whole set.

    Args:
        num_labels: How many labels the predictions have. The other options are those
            of the function.

    Examples:
        >>> metric = BinaryExpectedCalibrationError(bins=1, form="probabilities")
        >>> metric.update_state([1], [0.9])
        >>> metric.update_state([0], [0.8])
        >>> round(float(metric.result()), 4)
        0.35
    """

    def __init__(
        self,
        num_labels: int = 1,
        *,
        bins: int = 15,
        norm: str = "l1",
        form: str = "logits",
        name: str | None = "binary_expected_calibration_error",
        dtype: Any = None,
    ):
        num_labels = check_int("num_labels", num_labels)
        options = {"form": form, "num_labels": num_labels}
        super().__init__(_probability_and_target, name, dtype, **options)
        self._make_bins(bins, norm, num_labels)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "bins": self.bins, "norm": self.norm}
