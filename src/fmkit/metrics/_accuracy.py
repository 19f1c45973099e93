"""Accuracy among the k highest, and of each class; with what a tie is worth."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_int, check_one_of
from fmkit._math import Tensor, one_hot_mask
from fmkit._targets import nan_unless, read_classes, read_logits, read_targets
from fmkit.metrics._base import OfPredictions, Sums, sums_by, weights_of


def top_k_accuracy(y_true: Any, y_pred: Any, k: int = 5, *, axis: int = -1) -> Tensor:
    r"""Whether the true class is among the $k$ highest, where ties share the places.

    With $a$ classes above the true one, and $t$ as high as it (itself included),

    $$\mathrm{hit} = \min\Bigl(1, \max\Bigl(0, \frac{k - a}{t}\Bigr)\Bigr),$$

    the probability that it is among the $k$ if ties are broken by lot. So equal scores
    for all classes hit with probability $k / K$. (Keras counts a tie as a hit: it gives
    1.) With $k = 1$ it is the accuracy.

    Args:
        y_true: Labels, or dense targets (their largest entry is the label).
        y_pred: Logits, or any scores, shape `(batch, ..., K)`. A NaN counts as higher
            than every other class, and as a true class it is not hit.
        k: How many places there are, at most $K$.
        axis: The class axis.

    Returns:
        The hit of each position, from 0 to 1, shape of `y_pred` without the class axis.

    Raises:
        ValueError: If `k` is not in 1 ... K, shapes do not fit, or, where values are
            known, a label is out of range. Inside a compiled step it scores NaN.

    Examples:
        >>> scores = [[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]
        >>> [round(float(hit), 4) for hit in top_k_accuracy([1, 0], scores, k=2)]
        [1.0, 0.6667]
    """
    k = check_int("k", k)
    y_pred, axis = read_logits(y_pred, axis)
    size = y_pred.shape[axis]
    if k > size:
        raise ValueError(
            f"`k` must be at most the {size} classes of the predictions, got k={k!r}."
        )
    targets, valid = read_classes(y_true, y_pred, axis)
    picked = one_hot_mask(targets, size, axis)
    own = ops.sum(ops.where(picked, y_pred, 0.0), axis=axis, keepdims=True)
    below = ops.sum(ops.cast(y_pred < own, y_pred.dtype), axis=axis)
    level = ops.sum(ops.cast(ops.equal(y_pred, own), y_pred.dtype), axis=axis)
    above = size - below - level
    hit = ops.clip((k - above) / ops.maximum(level, 1.0), 0.0, 1.0)
    return hit if valid is None else nan_unless(valid, hit)


def class_accuracy(y_true: Any, y_pred: Any, *, axis: int = -1) -> Tensor:
    r"""Accuracy on the examples of each class, which is its recall.

    With ties as in `top_k_accuracy`, $k = 1$.

    Args:
        y_true: Labels, or dense targets (their largest entry is the label).
        y_pred: Logits, or any scores, shape `(batch, ..., K)`.
        axis: The class axis.

    Returns:
        The accuracy of each class, shape `(K,)`; NaN for a class without examples.

    Raises:
        ValueError: If shapes do not fit, or, where values are known, a label is out of
            range. Inside a compiled step all accuracies are then NaN.

    Examples:
        >>> scores = [[3.0, 1.0], [0.0, 2.0], [0.0, 2.0]]
        >>> [float(each) for each in class_accuracy([0, 0, 1], scores)]
        [0.5, 1.0]
    """
    outcomes = _label_and_hit(y_true, y_pred, axis=axis)
    size = read_logits(y_pred, axis)[0].shape[axis]
    return _accuracies(_class_sums(outcomes, None, size))


def _label_and_hit(
    y_true: Any, y_pred: Any, *, axis: int, num_classes: int | None = None
) -> Tensor:
    """Return the true class, and whether it was hit, shape (..., 1, 2)."""
    y_pred, axis = read_logits(y_pred, axis)
    if num_classes not in (None, y_pred.shape[axis]):
        raise ValueError(
            f"The predictions have {y_pred.shape[axis]} classes, and the metric was "
            f"made for num_classes={num_classes}. Pass `num_classes="
            f"{y_pred.shape[axis]}`."
        )
    targets, integer = read_targets(y_true, y_pred, axis)
    if not integer:
        targets = ops.argmax(targets, axis=axis)
    hit = top_k_accuracy(y_true, y_pred, 1, axis=axis)
    label = ops.cast(targets, hit.dtype)
    return ops.expand_dims(ops.stack([label, hit], axis=-1), -2)


def _class_sums(outcomes: Tensor, sample_weight: Any, size: int) -> Tensor:
    """Return weight and hits summed for each class, shape (2, size)."""
    label, hit = outcomes[..., 0], outcomes[..., 1]
    weight = weights_of(hit, sample_weight)
    return sums_by(label, [weight, weight * hit], size)[:, 0]


def _accuracies(sums: Tensor) -> Tensor:
    weight, hits = sums[0], sums[1]
    share = hits / ops.where(weight > 0.0, weight, 1.0)
    return ops.where(weight > 0.0, share, float("nan"))


@keras.saving.register_keras_serializable("fmkit")
class TopKAccuracy(OfPredictions):
    """Mean of `top_k_accuracy` over all positions, as a Keras metric.

    Examples:
        >>> metric = TopKAccuracy(k=2)
        >>> metric.update_state([1, 0], [[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
        >>> round(float(metric.result()), 4)
        0.8333
    """

    def __init__(
        self,
        k: int = 5,
        *,
        axis: int = -1,
        name: str | None = "top_k_accuracy",
        dtype: Any = None,
    ):
        k = check_int("k", k)
        super().__init__(top_k_accuracy, name, dtype, k=k, axis=axis)


@keras.saving.register_keras_serializable("fmkit")
class ClassAccuracy(OfPredictions, Sums):
    """`class_accuracy` over all batches, as a Keras metric.

    Args:
        num_classes: $K$.
        average: `"macro"` for the mean over the classes that have examples (balanced
            accuracy), or None for the accuracies of all classes, shape `(K,)`, NaN
            for a class without examples.
        axis: The class axis.

    Examples:
        >>> metric = ClassAccuracy(num_classes=2)
        >>> metric.update_state([0, 0, 1], [[3.0, 1.0], [0.0, 2.0], [0.0, 2.0]])
        >>> float(metric.result())
        0.75
    """

    def __init__(
        self,
        num_classes: int,
        *,
        average: str | None = "macro",
        axis: int = -1,
        name: str | None = "class_accuracy",
        dtype: Any = None,
    ):
        num_classes = check_int("num_classes", num_classes, minimum=2)
        if average is not None:
            check_one_of("average", average, ("macro",))
        options = {"num_classes": num_classes, "axis": axis}
        super().__init__(_label_and_hit, name, dtype, **options)
        self.average = average
        shape = (2, num_classes)
        self.sums = self.add_variable(shape, "zeros", self.dtype, name="sums")

    def _sums_of(self, values: Tensor, sample_weight: Any) -> Tensor:
        return _class_sums(values, sample_weight, self.options["num_classes"])

    def result(self) -> Tensor:
        """Return the mean over the classes with examples, or the accuracy of each."""
        if self.average is None:
            return _accuracies(self.sums)
        weight, hits = self.sums[0], self.sums[1]
        seen = weight > 0.0
        share = hits / ops.where(seen, weight, 1.0)
        count = ops.sum(ops.cast(seen, share.dtype))
        return ops.divide_no_nan(ops.sum(share), count)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "average": self.average}
