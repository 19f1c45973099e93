"""Binary cross-entropy from logits: one yes or no, or several labels at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit._checks import check_number
from fmkit._math import (
    Tensor,
    binary_surprisals,
    in_float64,
    in_one_node,
    namespace,
    sigmoids,
)
from fmkit._targets import check_binary, read_binary
from fmkit.losses._base import (
    ExactLoss,
    check_gamma,
    check_weights,
    focused,
    weights_along,
)


@keras.saving.register_keras_serializable("fmkit", "binary_crossentropy_from_logits")
def binary_crossentropy_from_logits(
    y_true: Any,
    y_pred: Any,
    *,
    label_smoothing: float = 0.0,
    positive_weight: float | Sequence[float] = 1.0,
    class_weights: Sequence[float] | None = None,
    ignore_class: int | None = None,
    temperature: float = 1.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    r"""Cross-entropy between labels 0 and 1, or probabilities, and logits.

    With $p = \mathrm{sigmoid}(z / T)$, target $q$, smoothing $\varepsilon$, positive
    weight $w_+$, class weight $w$ and focusing $\gamma$, one label costs

    $$\ell = -w\, \bigl(w_+\, q' (1 - p)^{\gamma} \log p
        + (1 - q')\, p^{\gamma} \log (1 - p)\bigr),
      \qquad q' = (1 - \varepsilon)\, q + \varepsilon / 2.$$

    Values are in nats. Neither a very small cost nor its gradient is lost to
    rounding.

    Args:
        y_true: 0, 1, or probabilities $q$ between them, of the shape of `y_pred`. A
            last axis of length 1 may be left out.
        y_pred: Logits $z$, shape `(batch, ..., labels)`, or `(batch,)` for one label.
            float16 and bfloat16 are computed in float32.
        label_smoothing: $\varepsilon$ in [0, 1).
        positive_weight: $w_+$, one factor or one for each label.
        class_weights: $w$, one factor for each label. They do not enter the divisor
            of a mean.
        ignore_class: A label (often -1) that marks what is not known. It costs 0.
        temperature: $T > 0$. The gradient is not rescaled.
        focal_gamma: $\gamma$, 0 (off) or at least 1.

    Returns:
        The mean over the last axis, shape `(batch, ...)`. Ignored labels do not count
        in it. A position that has only ignored labels costs 0, and in the class it
        does not count in a mean either.

    Raises:
        ValueError: If an argument is out of range, shapes do not fit, the batch is
            empty, or, where values are known (outside a compiled step), a target is
            below 0 or above 1. Inside a compiled step such a target costs NaN, with
            a gradient of NaN.

    Examples:
        >>> logits = [[2.0, -1.0, 0.5]]
        >>> round(float(binary_crossentropy_from_logits([[1, 0, 1]], logits)[0]), 4)
        0.3048
        >>> round(float(binary_crossentropy_from_logits([[1, 0, -1]], logits,
        ...                                             ignore_class=-1)[0]), 4)
        0.2201

    References:
        Szegedy et al., [*Rethinking the Inception architecture*](
        https://arxiv.org/abs/1512.00567), 2016 (smoothing); Lin et al., [*Focal loss*](
        https://arxiv.org/abs/1708.02002), 2017, eq. 4, with $\alpha / (1 - \alpha)$
        as the positive weight.
    """
    label_smoothing, temperature, focal_gamma = _check_options(
        label_smoothing, temperature, focal_gamma
    )
    q, logits, known = read_known(y_true, y_pred, ignore_class)
    x = logits if temperature == 1.0 else logits / temperature
    other = 1.0 - q
    if label_smoothing:
        keep, half = 1.0 - label_smoothing, 0.5 * label_smoothing
        q, other = keep * q + half, keep * other + half
    if np.ndim(positive_weight) or positive_weight != 1.0:
        q = q * _positive_weights(positive_weight, logits)
    terms = cost_of_either(x, q, other, focal_gamma, focal_gamma)
    weights = weights_along("class_weights", class_weights, logits, -1)
    if weights is not None:
        # 0 times infinity is 0 here, but a target that is no probability stays NaN.
        free = ops.logical_and(weights == 0.0, ops.isinf(terms))
        terms = ops.where(free, 0.0, terms) * weights
    return mean_of_known(terms, known)


def read_known(
    y_true: Any, y_pred: Any, ignore_class: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return targets, logits, and where the targets are known if some may not be.

    A target outside 0 ... 1 is NaN.
    """
    q, logits = read_binary(y_true, y_pred)
    known = None
    if ignore_class is not None:
        known = ops.not_equal(q, ignore_class)
        # Logits of ignored labels may be anything, even NaN.
        q, logits = ops.where(known, q, 0.0), ops.where(known, logits, 0.0)
    return check_binary(y_true, q, ignore_class), logits, known


def mean_of_known(terms: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean of the known terms along the last axis, 0 without any.

    Not by `ops.mean`, which on PyTorch rounds float64 to float32.
    """
    if known is None:
        return namespace(terms).sum(terms, axis=-1) / terms.shape[-1]
    count = ops.sum(ops.cast(known, terms.dtype), axis=-1)
    return ops.sum(ops.where(known, terms, 0.0), axis=-1) / ops.maximum(count, 1.0)


def cost_of_either(
    z: Tensor, yes: Tensor, no: Tensor, yes_gamma: float, no_gamma: float
) -> Tensor:
    """Return the cost of yes and no, with their weights and focusing, of each logit."""
    power = max(yes_gamma, no_gamma)

    def plain(z: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        xp = namespace(z)
        of_yes, of_no = binary_surprisals(z, xp)
        if power:
            # Not by way of the surprisals: their errors would be raised to the power.
            p, other = sigmoids(z, xp)
            of_yes = focused(of_yes, other, yes_gamma)
            of_no = focused(of_no, p, no_gamma)
        return weigh(yes, of_yes) + weigh(no, of_no)

    def exact(z: Tensor) -> Tensor:
        # A square does not multiply the error of its base by much.
        return in_float64(plain, z, yes, no) if power > 2.0 else plain(z, yes, no)

    if not power:  # few operations as it is
        return exact(z)
    return in_one_node("binary", exact, z, yes, no, yes_gamma, no_gamma)


def weigh(q: Tensor, cost: Tensor) -> Tensor:
    """Return `q * cost`, where 0 times infinity is 0."""
    return q * namespace(cost).where(q == 0.0, 0.0, cost)


def _positive_weights(weight: Any, logits: Tensor) -> Any:
    if np.ndim(weight):
        return weights_along("positive_weight", weight, logits, -1)
    return weight


def _check_options(
    label_smoothing: Any, temperature: Any, focal_gamma: Any
) -> tuple[float, float, float]:
    return (
        check_number("label_smoothing", label_smoothing, at_least=0.0, below=1.0),
        check_number("temperature", temperature, above=0.0),
        check_gamma("focal_gamma", focal_gamma),
    )


def _check_positive_weight(weight: Any) -> float | list[float]:
    if np.ndim(weight):
        return check_weights("positive_weight", weight)
    return check_number("positive_weight", weight, at_least=0.0)


class BinaryLoss(ExactLoss):
    """Base class: a loss of labels of which some may be ignored."""

    ignore_class: int | None

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        """Return the cost of each position; those without a known label are masked."""
        loss = super().call(y_true, y_pred)
        if self._mask is None:
            return loss
        q, _ = read_binary(y_true, y_pred)
        return self._mask([loss, ops.any(ops.not_equal(q, self.ignore_class), axis=-1)])


@keras.saving.register_keras_serializable("fmkit")
class BinaryCrossentropyFromLogits(BinaryLoss):
    """`binary_crossentropy_from_logits` as a Keras loss, its options as attributes.

    Examples:
        >>> loss = BinaryCrossentropyFromLogits(positive_weight=3.0)
        >>> round(float(loss([1, 0], [2.0, -1.0])), 4)
        0.347
    """

    _function = staticmethod(binary_crossentropy_from_logits)

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        positive_weight: float | Sequence[float] = 1.0,
        class_weights: Sequence[float] | None = None,
        ignore_class: int | None = None,
        temperature: float = 1.0,
        focal_gamma: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_crossentropy_from_logits",
        dtype: Any = None,
    ):
        label_smoothing, temperature, focal_gamma = _check_options(
            label_smoothing, temperature, focal_gamma
        )
        positive_weight = _check_positive_weight(positive_weight)
        if class_weights is not None:
            class_weights = check_weights("class_weights", class_weights)
        super().__init__(
            name,
            reduction,
            dtype,
            label_smoothing=label_smoothing,
            positive_weight=positive_weight,
            class_weights=class_weights,
            ignore_class=ignore_class,
            temperature=temperature,
            focal_gamma=focal_gamma,
        )
