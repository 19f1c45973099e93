"""Relative entropy between probabilities of yes and the sigmoid of logits."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_number, check_one_of
from fmkit._math import (
    Tensor,
    binary_surprisals,
    in_float64,
    in_one_node,
    namespace,
    sigmoids,
)
from fmkit._targets import check_binary, read_binary
from fmkit.losses._base import ExactLoss
from fmkit.losses._binary import mean_of_known
from fmkit.losses._divergence import DIRECTIONS, divergence


@keras.saving.register_keras_serializable("fmkit", "binary_kl_divergence_from_logits")
def binary_kl_divergence_from_logits(
    y_true: Any,
    y_pred: Any,
    *,
    target_form: str = "probabilities",
    direction: str = "forward",
    temperature: float = 1.0,
) -> Tensor:
    r"""Relative entropy of labels that are independent of each other, in nats.

    For each label it is `kl_divergence_from_logits` between $(q, 1 - q)$ and
    $(p, 1 - p)$, where $p = \mathrm{sigmoid}(z / T)$, and as accurate:

    $$\ell = T^2 \Bigl(q \log \frac{q}{p} + (1 - q) \log \frac{1 - q}{1 - p}\Bigr).$$

    Args:
        y_true: Target, shape of `y_pred`. A last axis of length 1 may be left out.
        y_pred: Finite logits $z$, shape `(batch, ..., labels)`, or `(batch,)` for one
            label. float16 and bfloat16 are computed in float32.
        target_form: What `y_true` holds: `"probabilities"` (taken as they are), or
            `"logits"` (of a teacher; divided by the temperature as well).
        direction: `"forward"`, `"reverse"` or `"jensen_shannon"`, as in
            `kl_divergence_from_logits`.
        temperature: $T > 0$.

    Returns:
        The mean over the last axis, shape `(batch, ...)`.

    Raises:
        ValueError: If an argument is out of range, shapes do not fit, the batch is
            empty, or, where values are known (outside a compiled step), a probability
            is below 0 or above 1. Inside a compiled step such a target costs NaN.

    Examples:
        >>> divergence = binary_kl_divergence_from_logits([[0.5, 1.0]], [[1.0, 2.0]])
        >>> round(float(divergence[0]), 4)
        0.1235

    References:
        Hinton et al., [*Distilling the knowledge in a neural network*](
        https://arxiv.org/abs/1503.02531), 2015, section 2.
    """
    temperature = _check_options(target_form, direction, temperature)
    target, z = read_binary(y_true, y_pred)
    if temperature != 1.0:
        z = z / temperature
    if target_form == "probabilities":
        target = check_binary(y_true, target)
    elif temperature != 1.0:
        target = target / temperature

    def plain(z: Tensor, target: Tensor) -> Tensor:
        ratio = _from_probabilities if target_form == "probabilities" else _from_logits
        q, log_p_over_q = ratio(target, z)
        return divergence(direction, q, _both(z), log_p_over_q, -1)

    def wide(z: Tensor) -> Tensor:
        return in_float64(plain, z, target)

    if target_form == "probabilities" and direction == "forward":
        cost = in_one_node("binary_divergence", wide, z, target)
    else:
        cost = wide(z)
    return temperature**2 * mean_of_known(cost, None)


def _both(z: Tensor) -> Tensor:
    """Return the probabilities of yes and no on a new last axis."""
    return ops.stack(sigmoids(z, namespace(z)), axis=-1)


def _from_probabilities(q: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return `q` and `log(p / q)`, both for yes and no."""
    q = ops.stack([q, 1.0 - q], axis=-1)
    nll = ops.stack(binary_surprisals(z, namespace(z)), axis=-1)
    positive = ops.where(q > 0.0, q, 1.0)
    return q, ops.where(q > 0.0, -nll - ops.log(positive), float("inf"))


def _from_logits(w: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return `q = sigmoid(w)` and `log(p / q)`, both for yes and no.

    Where the logits are close, the ratios are formed from their difference d:
    p / q = 1 / (1 + (1 - q) (exp(-d) - 1)), and the same for no with -d.
    """
    q = _both(w)
    d = z - w
    near = ops.abs(d) < 1.0
    d = ops.where(near, d, 0.0)
    close = -ops.log1p(ops.flip(q, -1) * ops.expm1(ops.stack([-d, d], axis=-1)))
    z_nll, w_nll = (ops.stack(binary_surprisals(x, namespace(x)), -1) for x in (z, w))
    return q, ops.where(ops.expand_dims(near, -1), close, w_nll - z_nll)


def _check_options(target_form: Any, direction: Any, temperature: Any) -> float:
    check_one_of("target_form", target_form, ("probabilities", "logits"))
    check_one_of("direction", direction, DIRECTIONS)
    return check_number("temperature", temperature, above=0.0)


@keras.saving.register_keras_serializable("fmkit")
class BinaryKLDivergenceFromLogits(ExactLoss):
    """`binary_kl_divergence_from_logits` as a Keras loss, its options as attributes.

    Examples:
        >>> loss = BinaryKLDivergenceFromLogits(target_form="logits", temperature=2.0)
        >>> round(float(loss([[0.0, 2.0]], [[2.0, 0.0]])), 4)
        0.4621
    """

    _function = staticmethod(binary_kl_divergence_from_logits)

    def __init__(
        self,
        *,
        target_form: str = "probabilities",
        direction: str = "forward",
        temperature: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_kl_divergence_from_logits",
        dtype: Any = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            target_form=target_form,
            direction=direction,
            temperature=_check_options(target_form, direction, temperature),
        )
