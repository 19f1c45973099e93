"""Cross-entropy from logits, for integer labels and for dense targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit._checks import check_number
from fmkit._math import (
    Tensor,
    in_one_node,
    namespace,
    one_hot_mask,
    split,
    surprisal,
    surprisals,
)
from fmkit._targets import (
    check_labels,
    check_probabilities,
    merge_axes,
    nan_unless,
    read_logits,
    read_targets,
    valid_labels,
)
from fmkit.losses._base import (
    ExactLoss,
    check_gamma,
    check_sum_tolerance,
    check_weights,
    focal,
    weights_along,
)


@keras.saving.register_keras_serializable("fmkit", "crossentropy_from_logits")
def crossentropy_from_logits(
    y_true: Any,
    y_pred: Any,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_class: int | None = None,
    temperature: float = 1.0,
    focal_gamma: float = 0.0,
    z_loss: float = 0.0,
    sum_tolerance: float | None = 1e-3,
    axis: int | Sequence[int] = -1,
) -> Tensor:
    r"""Cross-entropy between integer or dense targets and logits.

    With $p = \mathrm{softmax}(z / T)$, target distribution $q$ (one-hot for a label),
    $K$ classes, smoothing $\varepsilon$, class weights $w$ and focusing $\gamma$:

    $$\ell = -\sum_{j=1}^{K} w_j\, q'_j\, (1 - p_j)^{\gamma} \log p_j
        + \lambda \Bigl(\log \sum_j e^{z_j / T}\Bigr)^2,
      \qquad q' = (1 - \varepsilon)\, q + \varepsilon / K.$$

    Values are in nats. A label without smoothing costs
    $\log(1 + \sum_{j \ne y} e^{z_j - z_y})$, computed so that neither a very small
    cost nor its gradient is lost to rounding.

    Args:
        y_true: Labels $0 \dots K-1$ of the shape of `y_pred` without the class axis
            (or with length 1 there), or probabilities of the shape of `y_pred`.
            The shape decides which.
        y_pred: Logits $z$, shape `(batch, ..., K)`. A logit of `-inf` excludes a
            class. float16 and bfloat16 are computed in float32.
        label_smoothing: $\varepsilon$ in [0, 1).
        class_weights: $w$, one factor per class. They scale the terms and do not
            enter the divisor of a mean.
        ignore_class: A label (often -1 or 255) whose positions cost 0. In the class
            they don't count in a mean either.
        temperature: $T > 0$. The gradient is not rescaled.
        focal_gamma: $\gamma$, 0 (off) or at least 1.
        z_loss: $\lambda \ge 0$, weight of the squared log-partition.
        sum_tolerance: How far from 1 the sum of dense targets may be; None turns
            off the check of dense targets.
        axis: The class axis, or several, which are taken as one.

    Returns:
        The cost of each position, shape of `y_pred` without the class axis.

    Raises:
        ValueError: If an argument is out of range, shapes do not fit, the batch is
            empty, or, where values are known (outside a compiled step), a label is
            out of range or dense targets are not a distribution. Inside a compiled
            step a label out of range costs NaN, with a gradient of NaN.

    Examples:
        >>> logits = [[2.0, 1.0, 0.1]]
        >>> round(float(crossentropy_from_logits([0], logits)[0]), 4)
        0.417
        >>> round(float(crossentropy_from_logits([[1.0, 0.0, 0.0]], logits)[0]), 4)
        0.417

    References:
        Szegedy et al., [*Rethinking the Inception architecture*](
        https://arxiv.org/abs/1512.00567), 2016 (smoothing); Lin et al., [*Focal loss*](
        https://arxiv.org/abs/1708.02002), 2017; Chowdhery et al., [*PaLM*](
        https://arxiv.org/abs/2204.02311), 2022, section 5 (z-loss).
    """
    label_smoothing, temperature, focal_gamma, z_loss = _check_options(
        label_smoothing, temperature, focal_gamma, z_loss, sum_tolerance
    )
    y_true, y_pred, axis = merge_axes(y_true, y_pred, axis)
    logits, axis = read_logits(y_pred, axis)
    targets, integer = read_targets(y_true, logits, axis)
    weights = weights_along("class_weights", class_weights, logits, axis)
    z = logits if temperature == 1.0 else logits / temperature
    options = (axis, weights, label_smoothing, focal_gamma, z_loss)
    if integer:
        checked = check_labels(y_true, logits.shape[axis], ignore_class)
        return _cost_of_labels(targets, z, ignore_class, checked, *options)
    if ignore_class is not None:
        raise ValueError(
            f"`ignore_class` goes with integer labels, got ignore_class="
            f"{ignore_class!r} with dense `y_true` of shape {tuple(targets.shape)}. "
            "Use `sample_weight` or a mask instead."
        )
    check_probabilities(y_true, axis, sum_tolerance)
    return _cost_of_distribution(targets, z, *options)


def _cost_of_labels(
    labels: Tensor,
    z: Tensor,
    ignore_class: int | None,
    checked: bool,
    axis: int,
    weights: Tensor | None,
    label_smoothing: float,
    focal_gamma: float,
    z_loss: float,
) -> Tensor:
    """Cost of integer labels: NaN for one out of range, 0 for the ignored one.

    Labels that were `checked` are all in range.
    """
    size = z.shape[axis]
    valid = None if checked else valid_labels(labels, size)
    ignored = None if ignore_class is None else ops.equal(labels, ignore_class)
    if ignored is not None:
        # Logits of ignored positions may be anything, even NaN.
        labels = ops.where(ignored, 0, labels)
        z = ops.where(ops.expand_dims(ignored, axis), 0.0, z)
        valid = None if valid is None else ops.logical_or(valid, ignored)
    if label_smoothing:
        q = ops.cast(one_hot_mask(labels, size, axis, namespace(z)), z.dtype)
        loss = _cost_of_distribution(
            q, z, axis, weights, label_smoothing, focal_gamma, z_loss
        )
    else:
        loss = _cost_of_one_class(labels, z, axis, weights, focal_gamma, z_loss)
    loss = loss if valid is None else nan_unless(valid, loss)
    return loss if ignored is None else ops.where(ignored, 0.0, loss)


def _cost_of_one_class(
    labels: Tensor,
    z: Tensor,
    axis: int,
    weights: Tensor | None,
    focal_gamma: float,
    z_loss: float,
) -> Tensor:
    """Cost of one label per row."""
    xp = namespace(z)

    def parts(z: Tensor) -> tuple[Tensor, Tensor]:
        picked = one_hot_mask(labels, z.shape[axis], axis, xp)
        return surprisal(*split(z, picked, axis, xp), xp)

    if z_loss:
        loss, partition = parts(z)
    else:
        label = xp.expand_dims(labels, axis)
        loss = in_one_node("label", lambda z: parts(z)[0], z, label, axis=axis)
    loss = focal(loss, focal_gamma)
    if weights is not None:
        picked = one_hot_mask(labels, z.shape[axis], axis, xp)
        weight = ops.where(picked, weights, 0.0)
        # 0 times infinity is 0 here, but a label that is no class stays NaN.
        free = ops.any(ops.logical_and(picked, weights == 0.0), axis, keepdims=True)
        weight = ops.sum(weight, axis=axis, keepdims=True)
        loss = ops.where(free, 0.0, loss) * weight
    if z_loss:
        loss = loss + z_loss * ops.square(partition)
    return xp.squeeze(loss, axis)


def _cost_of_distribution(
    q: Tensor,
    z: Tensor,
    axis: int,
    weights: Tensor | None,
    label_smoothing: float,
    focal_gamma: float,
    z_loss: float,
) -> Tensor:
    """Cost of one distribution over the classes per row."""
    if label_smoothing:
        q = (1.0 - label_smoothing) * q + label_smoothing / z.shape[axis]
    if weights is not None:
        q = q * weights

    def plain(z: Tensor) -> Tensor:
        # 0 log 0 = 0, also for a class that a logit of -inf takes out.
        terms = ops.where(q == 0.0, 0.0, surprisals(z, axis, namespace(z)))
        return ops.sum(q * focal(terms, focal_gamma), axis=axis, keepdims=True)

    if focal_gamma:
        loss = plain(z)
    else:
        loss = in_one_node("distribution", plain, z, q, axis=axis)
    loss = namespace(z).squeeze(loss, axis)
    if z_loss:
        loss = loss + z_loss * ops.square(ops.logsumexp(z, axis=axis))
    return loss


def _check_options(
    label_smoothing: Any,
    temperature: Any,
    focal_gamma: Any,
    z_loss: Any,
    sum_tolerance: Any,
) -> tuple[float, float, float, float]:
    check_sum_tolerance(sum_tolerance)
    return (
        check_number("label_smoothing", label_smoothing, at_least=0.0, below=1.0),
        check_number("temperature", temperature, above=0.0),
        check_gamma("focal_gamma", focal_gamma),
        check_number("z_loss", z_loss, at_least=0.0),
    )


@keras.saving.register_keras_serializable("fmkit")
class CrossentropyFromLogits(ExactLoss):
    """`crossentropy_from_logits` as a Keras loss, its options as attributes.

    Masks and `sample_weight` work as in every Keras loss; positions of `ignore_class`
    count as masked.

    Examples:
        >>> loss = CrossentropyFromLogits()
        >>> round(float(loss([0, 1], [[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]])), 4)
        0.7578
    """

    _function = staticmethod(crossentropy_from_logits)

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        ignore_class: int | None = None,
        temperature: float = 1.0,
        focal_gamma: float = 0.0,
        z_loss: float = 0.0,
        sum_tolerance: float | None = 1e-3,
        axis: int | Sequence[int] = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "crossentropy_from_logits",
        dtype: Any = None,
    ):
        label_smoothing, temperature, focal_gamma, z_loss = _check_options(
            label_smoothing, temperature, focal_gamma, z_loss, sum_tolerance
        )
        if class_weights is not None:
            class_weights = check_weights("class_weights", class_weights)
        super().__init__(
            name,
            reduction,
            dtype,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            ignore_class=ignore_class,
            temperature=temperature,
            focal_gamma=focal_gamma,
            z_loss=z_loss,
            sum_tolerance=sum_tolerance,
            axis=axis,
        )

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        """Return the cost of each position; ignored ones are masked."""
        loss = super().call(y_true, y_pred)
        if self._mask is None:
            return loss
        ignored = ops.equal(y_true, self.ignore_class)
        valid = ops.reshape(ops.logical_not(ignored), ops.shape(loss))
        return self._mask([loss, valid])
