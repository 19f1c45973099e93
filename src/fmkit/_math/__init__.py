"""Accurate softmax arithmetic, shared by losses, metrics and information.

The textbook log-softmax subtracts `log(sum(exp(z)))`. In float32 that sum rounds to
1 as soon as one class holds all but 6e-8 of the mass: the surprisal of that class
and its gradient come out as exactly 0, though both are small and not zero. Here one
class is always kept out of the sum, so that what is added to 1 stays visible to
`log1p`:

    log(sum(exp(z))) - z_k = log1p(exp(top - z_k) * mass),
    top = max over j != k of z_j,   mass = sum over j != k of exp(z_j - top).

`top` is a constant to the gradient, since the value does not depend on it.

Divergences are sums of terms `b - a - a * log(b / a)`, none of which is negative;
near `a = b` they are summed as a power series, so that nothing cancels.

Every function takes the namespace it computes with: `keras.ops` for tensors,
`numpy_ops` for arrays in float64, or what `namespace` finds for a tensor: on PyTorch
its own functions, since an operation of `keras.ops` spends more time there in Python
than in arithmetic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any

# Nats in one unit.
UNITS = {"nats": 1.0, "bits": math.log(2.0), "bans": math.log(10.0)}

_SHARED = (
    "abs all arange equal exp expm1 isfinite log log1p logical_and logical_not "
    "logical_or max min ones_like reshape squeeze sum where zeros_like"
)
numpy_ops = SimpleNamespace(
    **{name: getattr(np, name) for name in _SHARED.split()},
    stop_gradient=lambda x: x,
    softplus=lambda x: np.logaddexp(0.0, x),
)


def namespace(x: Tensor) -> Any:
    """Return the namespace for `x`: PyTorch's own for its tensors, else `keras.ops`."""
    if keras.backend.backend() == "torch" and not isinstance(x, keras.KerasTensor):
        return _torch_ops()
    return ops


@functools.cache
def _torch_ops() -> SimpleNamespace:
    import torch

    from fmkit._math import _torch_nodes

    same = (
        "abs exp expm1 isfinite log log1p logical_and logical_not logical_or "
        "ones_like relu reshape where zeros_like"
    )
    return SimpleNamespace(
        **{name: getattr(torch, name) for name in same.split()},
        all=lambda x, axis, keepdims=False: torch.all(x, axis, keepdims),
        arange=ops.arange,  # on the device that Keras has chosen
        equal=torch.eq,
        expand_dims=torch.unsqueeze,
        maximum=lambda least, x: torch.clamp(x, min=least),
        nodes=_torch_nodes,
        max=lambda x, axis, keepdims=False: torch.amax(x, axis, keepdims),
        min=lambda x, axis, keepdims=False: torch.amin(x, axis, keepdims),
        # Above 40, not 20, the difference to x is lost in float64 too.
        softplus=lambda x: torch.nn.functional.softplus(x, 1.0, 40.0),
        squeeze=torch.squeeze,
        stop_gradient=torch.Tensor.detach,
        sum=lambda x, axis, keepdims=False: torch.sum(x, axis, keepdims),
    )


def positions(size: int, rank: int, axis: int, dtype: str, xp: Any = ops) -> Tensor:
    """Return 0 ... size - 1 along `axis`, of length 1 along the other axes."""
    shape = [1] * rank
    shape[axis] = size
    return xp.reshape(xp.arange(size, dtype=dtype), shape)


def one_hot_mask(index: Tensor, size: int, axis: int, xp: Any = ops) -> Tensor:
    """Return booleans, true where the position along `axis` equals `index`.

    An `index` that no position equals (out of range, not a whole number, NaN)
    marks nothing. `index` has no class axis; the result has.
    """
    dtype = keras.backend.standardize_dtype(index.dtype)
    where = positions(size, len(index.shape) + 1, axis, dtype, xp)
    return xp.equal(xp.expand_dims(index, axis), where)


def split(
    z: Tensor, picked: Tensor, axis: int, xp: Any = ops
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `z` of the picked class, `top` and `mass` of the others.

    All keep `axis` with length 1. `picked` marks one class per row.
    """
    chosen = xp.sum(xp.where(picked, z, 0.0), axis=axis, keepdims=True)
    rest = xp.where(picked, -float("inf"), z)
    top = xp.stop_gradient(xp.max(rest, axis=axis, keepdims=True))
    # All others at -inf, or one at +inf: any finite shift will do.
    spare = xp.stop_gradient(xp.where(xp.isfinite(chosen), chosen, 0.0))
    top = xp.where(xp.isfinite(top), top, spare)
    return chosen, top, sum_of_positive(xp.exp(rest - top), axis, xp)


def sum_of_positive(x: Tensor, axis: int, xp: Any = ops) -> Tensor:
    """Sum along `axis`, keeping it with length 1; in two stages if it is long.

    Added one by one, 100,000 float32 numbers lose a relative 5e-6. The absolute
    value changes nothing; it keeps XLA from folding both stages into one.
    """
    size = x.shape[axis]
    block = 1 if xp is numpy_ops else _block(size)
    if block > 1:
        shape = list(ops.shape(x))
        parts = ops.reshape(
            x, [*shape[:axis], block, size // block, *shape[axis + 1 :]]
        )
        x = ops.abs(ops.sum(parts, axis=axis + 1))
    return xp.sum(x, axis=axis, keepdims=True)


@functools.cache
def _block(size: int) -> int:
    """Return the divisor of a large `size` next to its square root, else 1."""
    if size < 4096:
        return 1
    return max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)


def exact_difference(a: Tensor, b: Tensor, xp: Any = ops) -> tuple[Tensor, Tensor]:
    """Return `a - b` rounded, and what the rounding lost (Knuth's two-sum)."""
    difference = a - b
    part = a - difference
    lost = (a - (difference + part)) + (part - b)
    # Of an infinite difference nothing was lost.
    known = xp.abs(difference) < float("inf")
    return difference, xp.stop_gradient(xp.where(known, lost, 0.0))


def exp_of_difference(a: Tensor, b: Tensor, xp: Any = ops) -> Tensor:
    """Return `exp(a - b)` as if the difference had not been rounded.

    A difference near -80 is rounded by 4e-6, which `exp` would turn into a relative
    error of 4e-6.
    """
    difference, lost = exact_difference(a, b, xp)
    return xp.exp(difference) * (1.0 + lost)


def surprisal(
    chosen: Tensor, top: Tensor, mass: Tensor, xp: Any = ops
) -> tuple[Tensor, Tensor]:
    """Return `-log p` of the picked class, and the log-partition, from `split`."""
    behind = top > chosen
    # With one operand of each `where` a constant, the gradient of a confident row
    # comes from `ratio` alone; nothing is added to it that would have to cancel.
    gap = xp.where(behind, top - chosen, 0.0)
    ahead = xp.where(behind, top, chosen)
    ratio = mass * xp.where(behind, 1.0, exp_of_difference(top, ahead, xp))
    inner = xp.log1p(ratio + (xp.exp(-gap) - 1.0))
    return gap + inner, ahead + inner


def binary_surprisals(x: Tensor, xp: Any = ops) -> tuple[Tensor, Tensor]:
    """Return `-log p` and `-log(1 - p)` for `p = sigmoid(x)`.

    The gradient of the smaller one comes from the exponential alone, so it is not
    lost; at 0, too, it is one half, where those of `abs` and `relu` are 0.
    """
    if xp is not ops:  # one operation, and as accurate
        return xp.softplus(-x), xp.softplus(x)
    ahead = x > 0.0
    small = xp.log1p(xp.exp(xp.where(ahead, -x, x)))
    return xp.where(ahead, 0.0, -x) + small, xp.where(ahead, x, 0.0) + small


def sigmoids(x: Tensor, xp: Any = ops) -> tuple[Tensor, Tensor]:
    """Return `p = sigmoid(x)` and `1 - p`, both with all their digits.

    So have their gradients: that of a backend's `sigmoid` is p (1 - p), where the
    rounded 1 - p may be 0.
    """
    ahead = x > 0.0
    small = xp.exp(xp.where(ahead, -x, x))
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    return xp.where(ahead, larger, smaller), xp.where(ahead, smaller, larger)


def _largest(z: Tensor, axis: int, xp: Any) -> Tensor:
    """Return booleans, true at the first of the largest classes."""
    size = z.shape[axis]
    where = positions(size, len(z.shape), axis, "int32", xp)
    largest = xp.max(xp.stop_gradient(z), axis=axis, keepdims=True)
    # The smallest index at the maximum: two plain reductions are faster than argmax.
    index = xp.min(xp.where(z == largest, where, size), axis=axis, keepdims=True)
    return xp.equal(where, index)


def _dominance(z: Tensor, axis: int, xp: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a class holds most of the mass, the shift, and log-sum minus shift.

    The class kept out of the sum is the largest. Where it holds more than half of
    the mass, the shift carries its gradient, so that the gradient is arranged as for
    `p - 1 = -(sum of the others)`.
    """
    picked = _largest(z, axis, xp)
    chosen, top, mass = split(z, picked, axis, xp)
    constant = xp.stop_gradient(chosen)
    dominant = xp.stop_gradient(xp.exp(top - constant) * mass) < 1.0
    shift = xp.where(dominant, chosen, constant)
    own = xp.where(dominant, 0.0, xp.exp(chosen - constant) - 1.0)
    inner = xp.log1p(exp_of_difference(top, shift, xp) * mass + own)
    return xp.logical_and(picked, dominant), shift, inner


def _nodes(xp: Any, z: Tensor, *given: Any) -> Any:
    """Return the module that computes with `z` in one operation, None without."""
    nodes = getattr(xp, "nodes", None)
    return nodes if nodes is not None and nodes.is_taken(z, *given) else None


def in_one_node(
    rule: str, plain: Callable[[Tensor], Tensor], z: Tensor, *given: Any, axis: int = -1
) -> Tensor:
    """Return `plain(z)`: on PyTorch by one operation in float64, where it pays.

    Args:
        rule: The name of the operation, of those in `_torch_nodes.RULES`.
        plain: The same by plain operations: a cost with `axis` of length 1 (rules of
            the softmax), or one of each logit.
        z: Logits.
        given: What else the rule takes: tensors with the axes of `z`, and numbers.
        axis: The class axis.
    """
    nodes = _nodes(namespace(z), z, *given)
    if nodes is None or not nodes.pays(rule, z):
        return plain(z)
    return nodes.cost(rule, plain, z, given, axis)  # type: ignore[no-any-return]


def in_float64(plain: Callable[..., Tensor], z: Tensor, *given: Tensor) -> Tensor:
    """Return `plain(z, *given)`, computed in float64 and rounded to the dtype of `z`.

    For powers of probabilities and for their differences, which multiply the errors
    that float32 has before them. Where a device has no float64 (a TPU, an Apple GPU)
    it is computed in the dtype of `z`.

    Args:
        plain: Computes each element of the result from those of its arguments.
        z: Logits.
        given: What else `plain` takes, tensors of the shape of `z`.
    """
    if isinstance(z, keras.KerasTensor) or "float64" in str(z.dtype):
        return plain(z, *given)
    if keras.backend.backend() == "jax":
        from fmkit._math import _jax_float64

        return _jax_float64.compute(plain, z, *given)
    if not _device_has_float64(z):
        return plain(z, *given)
    wide = [ops.cast(each, "float64") for each in (z, *given)]
    return ops.cast(plain(*wide), keras.backend.standardize_dtype(z.dtype))


def _device_has_float64(z: Tensor) -> bool:
    if keras.backend.backend() == "torch":
        return z.device.type not in ("mps", "xla")
    import tensorflow as tf

    return "TPU" not in type(tf.distribute.get_strategy()).__name__


def surprisals(z: Tensor, axis: int, xp: Any = ops) -> Tensor:
    """Return `-log softmax(z)`, each entry right to its own last digits."""
    nodes = _nodes(xp, z)
    if nodes is not None and nodes.pays("distribution", z):
        return softmax(z, axis, xp)[1]
    dominant, shift, inner = _dominance(z, axis, xp)
    return inner - xp.where(dominant, 0.0, z - shift)


def softmax(z: Tensor, axis: int, xp: Any = ops) -> tuple[Tensor, Tensor]:
    """Return `softmax(z)` and `surprisals(z)`.

    The probabilities are not the exponential of the rounded surprisals: near 1e-17
    that would already cost a relative error of 2e-6.
    """
    nodes = _nodes(xp, z)
    if nodes is not None:
        return nodes.softmax(z, axis, _softmax_of_rows)  # type: ignore[no-any-return]
    return _softmax(z, *_dominance(z, axis, xp), xp)


def _softmax_of_rows(z: Tensor) -> tuple[Tensor, Tensor]:
    axis, xp = len(z.shape) - 1, namespace(z)
    return _softmax(z, *_dominance(z, axis, xp), xp)


def _softmax(
    z: Tensor, dominant: Tensor, shift: Tensor, inner: Tensor, xp: Any
) -> tuple[Tensor, Tensor]:
    x, lost = exact_difference(z, shift, xp)
    x = xp.where(dominant, 0.0, x)
    return xp.exp(x) * (1.0 + lost) * xp.exp(-inner), inner - x


def softmax_minus(aim: Tensor, z: Tensor, axis: int) -> Tensor:
    """Return `softmax(z) - aim`, without losing 1 - p where p is near 1."""
    xp = namespace(z)
    if _nodes(xp, z):
        p, nll = softmax(z, axis, xp)
        near_1 = xp.logical_and(p > 0.5, aim > 0.5)
        return xp.where(near_1, xp.expm1(-nll) + (1.0 - aim), p - aim)
    dominant, shift, inner = _dominance(z, axis, xp)
    p, _ = _softmax(z, dominant, shift, inner, xp)
    near_1 = xp.logical_and(dominant, aim > 0.5)
    return xp.where(near_1, xp.expm1(-inner) + (1.0 - aim), p - aim)


def log_ratio(
    z: Tensor, w: Tensor, z_nll: Tensor, w_nll: Tensor, axis: int, xp: Any = ops
) -> tuple[Tensor, Tensor]:
    """Return `log(softmax(z) / softmax(w))`, and which rows were taken as close.

    In a close row the differences `z - w` lie within 1 of each other. There the
    ratio is formed from the differences, which are exact, and not from two
    log-softmaxes of size log K, whose rounding would hide it.
    """
    out = xp.logical_and(z == -float("inf"), w == -float("inf"))
    apart, lost = exact_difference(z, w, xp)
    apart = xp.where(out, 0.0, apart)
    largest = xp.max(
        xp.where(out, -float("inf"), xp.stop_gradient(apart)), axis=axis, keepdims=True
    )
    inside = xp.logical_and(xp.abs(apart - largest) < 1.0, xp.isfinite(apart))
    close = xp.all(xp.where(out, True, inside), axis=axis, keepdims=True)
    # Relative to the class that weighs most: of a confident row its own ratio is then
    # the sum of the others, and not one minus almost one.
    heaviest = _largest(w, axis, xp)
    shift = xp.sum(xp.where(heaviest, apart, 0.0), axis=axis, keepdims=True)
    lost = lost - xp.sum(xp.where(heaviest, lost, 0.0), axis=axis, keepdims=True)
    # Where a branch is not taken, its operand is made harmless, not its result:
    # the gradient of an untaken branch is 0 times its derivative.
    keep = xp.logical_and(close, xp.logical_not(xp.logical_or(out, heaviest)))
    apart = xp.where(keep, (apart - xp.where(close, shift, 0.0)) + lost, 0.0)
    mean = xp.sum(xp.exp(-w_nll) * xp.expm1(apart), axis=axis, keepdims=True)
    far = xp.where(out, 0.0, w_nll - z_nll)
    return xp.where(close, xp.where(out, 0.0, apart - xp.log1p(mean)), far), close


def divergence_terms(a: Tensor, b: Tensor, log_b_over_a: Tensor, xp: Any = ops) -> Any:
    """Return `a log(a / b) - a + b` for each entry: not negative, 0 only at a = b.

    Their sum is the relative entropy of two distributions, as the sums of a and b
    cancel. Unlike `a log(a / b)` alone, small terms are never hidden by large ones.
    """
    close = xp.abs(log_b_over_a) < 1.0
    near = xp.where(close, log_b_over_a, 0.0)
    # 0 log 0 = 0.
    weighs = xp.logical_and(a > 0.0, xp.abs(log_b_over_a) >= 1.0)
    far = xp.where(weighs, log_b_over_a, 0.0)
    return xp.where(close, a * _excess(near), (b - a) - a * far)


def _excess(t: Tensor) -> Tensor:
    """Return `exp(t) - 1 - t` for |t| < 1, by its series."""
    # The first term left out is below half a unit in the last place.
    last = 18 if "float64" in str(t.dtype) else 11
    series = t / math.factorial(last + 1) + 1.0 / math.factorial(last)
    for n in range(last - 1, 1, -1):
        series = series * t + 1.0 / math.factorial(n)
    return t * t * series


def log_half_sum(t: Tensor, xp: Any = ops) -> Tensor:
    """Return `log((1 + exp(t)) / 2)`, exact near 0 too."""
    close = xp.abs(t) < 1.0
    near = xp.log1p(0.5 * xp.expm1(xp.where(close, t, 0.0)))
    return xp.where(close, near, xp.softplus(t) - math.log(2.0))


def jensen_shannon(
    p: Tensor, q: Tensor, log_p_over_q: Tensor, axis: int, xp: Any = ops
) -> Tensor:
    """Return the Jensen-Shannon divergence in nats, without `axis`.

    Distributions that hardly overlap are taken by what they lack to log 2, without
    which their gradient would be the difference of two times log 2.
    """
    middle = 0.5 * (p + q)
    terms = divergence_terms(q, middle, log_half_sum(log_p_over_q, xp), xp)
    terms = terms + divergence_terms(p, middle, log_half_sum(-log_p_over_q, xp), xp)
    near = 0.5 * xp.sum(terms, axis=axis)
    shared = p * xp.softplus(-xp.where(p > 0.0, log_p_over_q, 0.0))
    shared = shared + q * xp.softplus(xp.where(q > 0.0, log_p_over_q, 0.0))
    lack = 0.5 * xp.sum(shared, axis=axis)
    return xp.where(lack < 0.25, math.log(2.0) - lack, near)


def entropy_from_logits(z: Tensor, axis: int, xp: Any = ops) -> Tensor:
    """Return the entropy of `softmax(z)` in nats, without `axis`."""
    plain = functools.partial(_entropy, axis=axis, xp=xp)
    entropy = (
        plain(z) if xp is numpy_ops else in_one_node("entropy", plain, z, axis=axis)
    )
    return xp.squeeze(entropy, axis=axis)


def _entropy(z: Tensor, axis: int, xp: Any) -> Tensor:
    """Return the entropy, with `axis` of length 1.

    Near the uniform distribution it is log K minus a divergence: the same value,
    but a gradient that does not vanish in the rounding.
    """
    p, nll = softmax(z, axis, xp)
    plain = xp.sum(p * xp.where(p > 0.0, nll, 0.0), axis=axis, keepdims=True)
    # The uniform distribution over the classes that -inf has not taken out.
    alive = z > -float("inf")
    flat = xp.where(alive, xp.zeros_like(z), -float("inf"))
    count = xp.sum(xp.where(alive, xp.ones_like(z), 0.0), axis=axis, keepdims=True)
    flat_nll = xp.where(alive, xp.log(count), float("inf"))
    ratio, close = log_ratio(z, flat, nll, flat_nll, axis, xp)
    terms = divergence_terms(
        p, xp.exp(-flat_nll), -xp.where(close, ratio, xp.zeros_like(z)), xp
    )
    near = xp.log(count) - xp.sum(terms, axis=axis, keepdims=True)
    return xp.where(close, near, plain)
