"""Relative entropy between a target distribution and the softmax of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit._checks import check_number, check_one_of
from fmkit._math import (
    Tensor,
    divergence_terms,
    in_one_node,
    jensen_shannon,
    log_ratio,
    namespace,
    softmax,
)
from fmkit._targets import (
    check_probabilities,
    merge_axes,
    read_logits,
    read_targets,
)
from fmkit.losses._base import ExactLoss, check_sum_tolerance

_FORMS = ("probabilities", "log_probabilities", "logits")
DIRECTIONS = ("forward", "reverse", "jensen_shannon")


@keras.saving.register_keras_serializable("fmkit", "kl_divergence_from_logits")
def kl_divergence_from_logits(
    y_true: Any,
    y_pred: Any,
    *,
    target_form: str = "probabilities",
    direction: str = "forward",
    temperature: float = 1.0,
    sum_tolerance: float | None = 1e-3,
    axis: int | Sequence[int] = -1,
) -> Tensor:
    r"""Relative entropy between targets and the softmax of logits, in nats.

    With $p = \mathrm{softmax}(z / T)$ and target distribution $q$:

    - `"forward"`: $T^2 D(q \,\|\, p) = T^2 \sum_j q_j \log (q_j / p_j)$,
    - `"reverse"`: $T^2 D(p \,\|\, q)$,
    - `"jensen_shannon"`: $\frac{T^2}{2} D(p \,\|\, m) + \frac{T^2}{2} D(q \,\|\, m)$
      with $m = (p + q) / 2$.

    The factor $T^2$ keeps the size of the gradient when the temperature changes, as
    in distillation. Each $D(a \| b)$ is summed as $a \log(a/b) - a + b$: the same
    if both sum to 1, never negative, and accurate to the last digits for
    distributions that are almost equal.

    Args:
        y_true: Target, shape of `y_pred`.
        y_pred: Logits $z$, shape `(batch, ..., K)`. A logit of `-inf` excludes a
            class. float16 and bfloat16 are computed in float32.
        target_form: What `y_true` holds: `"probabilities"` or `"log_probabilities"`
            (both taken as they are, whatever the temperature), or `"logits"` (of a
            teacher; divided by the temperature as well).
        direction: `"forward"`, `"reverse"` or `"jensen_shannon"`.
        temperature: $T > 0$.
        sum_tolerance: How far from 1 the sum of target probabilities may be; None
            turns the check off.
        axis: The class axis, or several, which are taken as one.

    Returns:
        The divergence of each position, shape of `y_pred` without the class axis. It
        is infinite where the second distribution is 0 and the first is not.

    Raises:
        ValueError: If an argument is out of range, the targets are integer labels,
            shapes do not fit, the batch is empty, or, where values are known
            (outside a compiled step), the targets are not a distribution. Inside
            a compiled step such targets are not noticed: the sum above is returned.

    Examples:
        >>> round(float(kl_divergence_from_logits([[1.0, 0.0]], [[0.0, 200.0]])[0]), 4)
        200.0
        >>> teacher, student = [[1.0, 2.0, 3.0]], [[1.0, 2.0, 4.0]]
        >>> loss = kl_divergence_from_logits(teacher, student, target_form="logits")
        >>> round(float(loss[0]), 4)
        0.097

    References:
        Kullback & Leibler, *On information and sufficiency*, 1951; Hinton et al.,
        [*Distilling the knowledge in a neural network*](
        https://arxiv.org/abs/1503.02531), 2015, section 2; Lin, *Divergence measures
        based on the Shannon entropy*, 1991.
    """
    temperature = _check_options(target_form, direction, temperature, sum_tolerance)
    y_true, y_pred, axis = merge_axes(y_true, y_pred, axis)
    logits, axis = read_logits(y_pred, axis)
    targets, integer = read_targets(y_true, logits, axis)
    if integer:
        raise ValueError(
            "`y_true` must be a distribution of the shape of the logits "
            f"{tuple(logits.shape)}, got integer labels of shape "
            f"{tuple(targets.shape)}. For a label the divergence is the cross-entropy:"
            " use `fmkit.losses.CrossentropyFromLogits()`, or `keras.ops.one_hot`."
        )
    if temperature != 1.0:
        logits = logits / temperature
        if target_form == "logits":
            targets = targets / temperature
    q = targets
    if target_form == "log_probabilities":
        q = ops.exp(targets)
        check_probabilities(q, axis, sum_tolerance)
    elif target_form == "probabilities":
        check_probabilities(y_true, axis, sum_tolerance)

    def plain(z: Tensor) -> Tensor:
        ratio = _from_target(target_form, targets, q, z, axis)
        return ops.expand_dims(divergence(direction, *ratio, axis), axis)

    if target_form == "probabilities" and direction == "forward":
        cost = in_one_node("divergence", plain, logits, targets, axis=axis)
    else:
        cost = plain(logits)
    cost = namespace(cost).squeeze(cost, axis)
    return cost if temperature == 1.0 else temperature**2 * cost


def _from_target(
    form: str, target: Tensor, q: Tensor, z: Tensor, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target distribution, `p = softmax(z)` and `log(p / q)`.

    `q` is the distribution, unless the target is of logits.
    """
    xp = namespace(z)
    p, z_nll = softmax(z, axis, xp)
    if form == "logits":
        q, w_nll = softmax(target, axis, xp)
        return q, p, log_ratio(z, target, z_nll, w_nll, axis, xp)[0]
    if form == "log_probabilities":
        some = target > -float("inf")
        log_q = xp.where(some, target, 0.0)
        return q, p, xp.where(some, -z_nll - log_q, float("inf"))
    some = q > 0.0
    log_q = xp.log(xp.where(some, q, 1.0))
    return q, p, xp.where(some, -z_nll - log_q, float("inf"))


def divergence(
    direction: str, q: Tensor, p: Tensor, log_p_over_q: Tensor, axis: int
) -> Tensor:
    """Return the divergence between `q` and `p` in nats, without `axis`."""
    xp = namespace(p)
    if direction == "forward":
        return xp.sum(divergence_terms(q, p, log_p_over_q, xp), axis=axis)
    if direction == "reverse":
        return xp.sum(divergence_terms(p, q, -log_p_over_q, xp), axis=axis)
    return jensen_shannon(p, q, log_p_over_q, axis, xp)


def _check_options(
    target_form: Any, direction: Any, temperature: Any, sum_tolerance: Any
) -> float:
    check_one_of("target_form", target_form, _FORMS)
    check_one_of("direction", direction, DIRECTIONS)
    check_sum_tolerance(sum_tolerance)
    return check_number("temperature", temperature, above=0.0)


@keras.saving.register_keras_serializable("fmkit")
class KLDivergenceFromLogits(ExactLoss):
    """`kl_divergence_from_logits` as a Keras loss, its options as attributes.

    Examples:
        >>> loss = KLDivergenceFromLogits(target_form="logits", temperature=2.0)
        >>> round(float(loss([[0.0, 2.0]], [[2.0, 0.0]])), 4)
        1.8485
    """

    _function = staticmethod(kl_divergence_from_logits)

    def __init__(
        self,
        *,
        target_form: str = "probabilities",
        direction: str = "forward",
        temperature: float = 1.0,
        sum_tolerance: float | None = 1e-3,
        axis: int | Sequence[int] = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "kl_divergence_from_logits",
        dtype: Any = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            target_form=target_form,
            direction=direction,
            temperature=_check_options(
                target_form, direction, temperature, sum_tolerance
            ),
            sum_tolerance=sum_tolerance,
            axis=axis,
        )
