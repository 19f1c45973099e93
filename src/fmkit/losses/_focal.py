"""The focal loss of one yes or no, or several labels, under the name it is known by."""

from __future__ import annotations

from typing import Any

import keras

from fmkit._checks import check_number
from fmkit._math import Tensor
from fmkit.losses._base import check_gamma
from fmkit.losses._binary import BinaryLoss, binary_crossentropy_from_logits


@keras.saving.register_keras_serializable(
    "fmkit", "binary_focal_crossentropy_from_logits"
)
def binary_focal_crossentropy_from_logits(
    y_true: Any,
    y_pred: Any,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    ignore_class: int | None = None,
) -> Tensor:
    r"""Focal loss: a binary cross-entropy in which what is right already counts less.

    With $p = \mathrm{sigmoid}(z)$, target $q$ and focusing $\gamma$, one label costs

    $$\ell = -\alpha\, q\, (1 - p)^{\gamma} \log p
        - (1 - \alpha)\, (1 - q)\, p^{\gamma} \log (1 - p),$$

    without $\alpha$ and $1 - \alpha$ if `alpha` is None. It is
    `binary_crossentropy_from_logits` with `focal_gamma`, and as accurate; that one has
    more options.

    Args:
        y_true: 0, 1, or probabilities $q$ between them, of the shape of `y_pred`. A
            last axis of length 1 may be left out.
        y_pred: Logits $z$, shape `(batch, ..., labels)`, or `(batch,)` for one label.
            float16 and bfloat16 are computed in float32.
        gamma: $\gamma$, 0 (off) or at least 1.
        alpha: $\alpha$ in (0, 1), the weight of yes, often 0.25; None for no weights.
        ignore_class: A label (often -1) that marks what is not known. It costs 0.

    Returns:
        The mean over the last axis, shape `(batch, ...)`, as
        `binary_crossentropy_from_logits`.

    Raises:
        ValueError: As `binary_crossentropy_from_logits`.

    Examples:
        >>> loss = binary_focal_crossentropy_from_logits([[1, 0]], [[2.0, -1.0]])
        >>> round(float(loss[0]), 4)
        0.0122

    References:
        Lin et al., [*Focal loss for dense object detection*](
        https://arxiv.org/abs/1708.02002), 2017, eq. 5 (they sum over the labels).
    """
    gamma, alpha = _check_options(gamma, alpha)
    cost = binary_crossentropy_from_logits(
        y_true,
        y_pred,
        positive_weight=1.0 if alpha is None else alpha / (1.0 - alpha),
        ignore_class=ignore_class,
        focal_gamma=gamma,
    )
    return cost if alpha is None else (1.0 - alpha) * cost


def _check_options(gamma: Any, alpha: Any) -> tuple[float, float | None]:
    if alpha is not None:
        alpha = check_number("alpha", alpha, above=0.0, below=1.0)
    return check_gamma("gamma", gamma), alpha


@keras.saving.register_keras_serializable("fmkit")
class BinaryFocalCrossentropyFromLogits(BinaryLoss):
    """`binary_focal_crossentropy_from_logits` as a Keras loss.

    Examples:
        >>> loss = BinaryFocalCrossentropyFromLogits(alpha=0.25)
        >>> round(float(loss([[1, 0]], [[2.0, -1.0]])), 4)
        0.0087
    """

    _function = staticmethod(binary_focal_crossentropy_from_logits)

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float | None = None,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_focal_crossentropy_from_logits",
        dtype: Any = None,
    ):
        gamma, alpha = _check_options(gamma, alpha)
        super().__init__(
            name, reduction, dtype, gamma=gamma, alpha=alpha, ignore_class=ignore_class
        )
