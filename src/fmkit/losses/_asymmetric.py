"""The asymmetric loss, for several labels at once of which most are 0."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from fmkit._checks import check_number
from fmkit._math import (
    Tensor,
    binary_surprisals,
    in_float64,
    in_one_node,
    namespace,
    sigmoids,
)
from fmkit.losses._base import check_gamma, focused
from fmkit.losses._binary import (
    BinaryLoss,
    cost_of_either,
    mean_of_known,
    read_known,
    weigh,
)


@keras.saving.register_keras_serializable("fmkit", "asymmetric_loss_from_logits")
def asymmetric_loss_from_logits(
    y_true: Any,
    y_pred: Any,
    *,
    positive_gamma: float = 1.0,
    negative_gamma: float = 4.0,
    margin: float = 0.05,
    ignore_class: int | None = None,
) -> Tensor:
    r"""Cross-entropy of several labels in which easy negatives cost little or nothing.

    With $p = \mathrm{sigmoid}(z)$, target $q$, focusing $\gamma_+$ and $\gamma_-$ and
    margin $m$, one label costs

    $$\ell = -q\, (1 - p)^{\gamma_+} \log p
        - (1 - q)\, p_m^{\gamma_-} \log (1 - p_m),
      \qquad p_m = \max(p - m, 0).$$

    The gradient passes through the factors, too. The difference $p - m$ is computed
    without cancellation. Below the margin a negative label has no gradient; that is
    the meaning of the margin.

    Args:
        y_true: 0, 1, or probabilities $q$ between them, of the shape of `y_pred`. A
            last axis of length 1 may be left out.
        y_pred: Logits $z$, shape `(batch, ..., labels)`, or `(batch,)` for one label.
            float16 and bfloat16 are computed in float32.
        positive_gamma: $\gamma_+$, 0 (off) or at least 1.
        negative_gamma: $\gamma_-$, 0 (off) or at least 1.
        margin: $m$ in [0, 1), a probability; 0 turns it off.
        ignore_class: A label (often -1) that marks what is not known. It costs 0.

    Returns:
        The mean over the last axis, shape `(batch, ...)`. Ignored labels do not count
        in it. A position that has only ignored labels costs 0, and in the class it
        does not count in a mean either.

    Raises:
        ValueError: As `binary_crossentropy_from_logits`.

    Examples:
        >>> logits = [[2.0, -1.0, -3.0]]
        >>> round(float(asymmetric_loss_from_logits([[1, 0, 0]], logits)[0]), 4)
        0.0052

    References:
        Ridnik et al., [*Asymmetric loss for multi-label classification*](
        https://arxiv.org/abs/2009.14119), 2021, eq. 7. Their code sums over the labels
        where this loss takes the mean.
    """
    positive_gamma, negative_gamma, margin = _check_options(
        positive_gamma, negative_gamma, margin
    )
    q, z, known = read_known(y_true, y_pred, ignore_class)
    gammas, not_q = (positive_gamma, negative_gamma), 1.0 - q

    def plain(z: Tensor, q: Tensor, not_q: Tensor) -> Tensor:
        xp = namespace(z)
        p, other = sigmoids(z, xp)
        yes = focused(binary_surprisals(z, xp)[0], other, positive_gamma)
        no = _shifted_cost(z, p, other, negative_gamma, margin)
        return weigh(q, yes) + weigh(not_q, no)

    def wide(z: Tensor) -> Tensor:
        return in_float64(plain, z, q, not_q)

    if margin:
        terms = in_one_node("asymmetric", wide, z, q, not_q, *gammas, margin)
    else:
        terms = cost_of_either(z, q, not_q, *gammas)
    return mean_of_known(terms, known)


def _shifted_cost(
    z: Tensor, p: Tensor, other: Tensor, gamma: float, margin: float
) -> Tensor:
    """Return `-p_m^gamma log(1 - p_m)`, where p is the sigmoid and `other` 1 - p.

    Where z is above the logit c of the margin, p - m is (1 - m) p (1 - exp(c - z)):
    a product, so that nothing cancels near z = c. Where there is no float64, c must be
    known to more digits than z has: it is a float32 number plus a rest. The rest is
    kept out of the exponent, where XLA would add it to the number at once and lose it.
    """
    c = math.log(margin) - math.log1p(-margin)
    coarse = float(np.float32(c))
    rest = c - coarse
    scale = (1.0 - margin) * math.exp(rest)
    xp = namespace(z)
    apart = xp.maximum(-1.0, z - coarse)  # where `expm1` can't overflow
    near = apart < 1.0
    # The derivative of `expm1`, which is formed from its value, vanishes far out.
    rise = xp.where(
        near,
        -scale * xp.expm1(-xp.where(near, apart, 0.0))
        - (1.0 - margin) * math.expm1(rest),
        (1.0 - margin) - scale * xp.exp(-apart),
    )
    above = rise > 0.0
    # An untaken branch is given a harmless operand, since its gradient counts.
    p = p * xp.where(above, rise, 0.5)
    low = p < 0.5
    nll = -xp.where(
        low,
        xp.log1p(-xp.where(low, p, 0.0)),
        xp.log(other + margin),
    )
    return xp.where(above, focused(nll, p, gamma), 0.0)


def _check_options(
    positive_gamma: Any, negative_gamma: Any, margin: Any
) -> tuple[float, float, float]:
    return (
        check_gamma("positive_gamma", positive_gamma),
        check_gamma("negative_gamma", negative_gamma),
        check_number("margin", margin, at_least=0.0, below=1.0),
    )


@keras.saving.register_keras_serializable("fmkit")
class AsymmetricLossFromLogits(BinaryLoss):
    """`asymmetric_loss_from_logits` as a Keras loss, its options as attributes.

    Examples:
        >>> loss = AsymmetricLossFromLogits(positive_gamma=0.0)
        >>> round(float(loss([[1, 0, 0]], [[2.0, -1.0, -3.0]])), 4)
        0.0425
    """

    _function = staticmethod(asymmetric_loss_from_logits)

    def __init__(
        self,
        *,
        positive_gamma: float = 1.0,
        negative_gamma: float = 4.0,
        margin: float = 0.05,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "asymmetric_loss_from_logits",
        dtype: Any = None,
    ):
        positive_gamma, negative_gamma, margin = _check_options(
            positive_gamma, negative_gamma, margin
        )
        super().__init__(
            name,
            reduction,
            dtype,
            positive_gamma=positive_gamma,
            negative_gamma=negative_gamma,
            margin=margin,
            ignore_class=ignore_class,
        )
