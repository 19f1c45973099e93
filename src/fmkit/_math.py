"""Softmax arithmetic that keeps its digits, shared by losses, metrics, information.

The textbook log-softmax subtracts `log(sum(exp(z)))`. In float32 that sum rounds to
1 as soon as one class holds all but 6e-8 of the mass: the surprisal of that class
and its gradient come out as exactly 0, though both are small and not zero. Here one
class is always kept out of the sum, so that what is added to 1 stays visible to
`log1p`:

    log(sum(exp(z))) - z_k = log1p(exp(top - z_k) * mass),
    top = max over j != k of z_j,   mass = sum over j != k of exp(z_j - top).

`top` is a constant to the gradient, since the value does not depend on it.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def at_least_float32(x: Any) -> Tensor:
    """Return `x` as a tensor of float32 or float64; halves and integers are cast."""
    x = ops.convert_to_tensor(x)
    if keras.backend.standardize_dtype(x.dtype) in ("float32", "float64"):
        return x
    return ops.cast(x, "float32")


def positions(size: int, rank: int, axis: int, dtype: str) -> Tensor:
    """Return 0 ... size - 1 along `axis`, of length 1 along the other axes."""
    shape = [1] * rank
    shape[axis] = size
    return ops.reshape(ops.arange(size, dtype=dtype), shape)


def one_hot_mask(index: Tensor, size: int, axis: int) -> Tensor:
    """Return booleans, true where the position along `axis` equals `index`.

    An `index` that no position equals (out of range, not a whole number, NaN)
    marks nothing. `index` has no class axis; the result has.
    """
    dtype = keras.backend.standardize_dtype(index.dtype)
    where = positions(size, len(index.shape) + 1, axis, dtype)
    return ops.equal(ops.expand_dims(index, axis), where)


def split(z: Tensor, picked: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `z` of the picked class, `top` and `mass` of the others.

    All keep `axis` with length 1. `picked` marks one class a row.
    """
    chosen = ops.sum(ops.where(picked, z, 0.0), axis=axis, keepdims=True)
    rest = ops.where(picked, -float("inf"), z)
    top = ops.stop_gradient(ops.max(rest, axis=axis, keepdims=True))
    # All others at -inf, or one at +inf: any finite shift will do.
    spare = ops.stop_gradient(ops.where(ops.isfinite(chosen), chosen, 0.0))
    top = ops.where(ops.isfinite(top), top, spare)
    mass = ops.sum(ops.exp(rest - top), axis=axis, keepdims=True)
    return chosen, top, mass


def exp_of_difference(a: Tensor, b: Tensor) -> Tensor:
    """Return `exp(a - b)` as if the difference had not been rounded.

    A difference near -80 is rounded by 4e-6, which `exp` would turn into a relative
    error of 4e-6. Knuth's two-sum gives that rounding error exactly.
    """
    difference = a - b
    part = a - difference
    lost = (a - (difference + part)) + (part - b)
    lost = ops.stop_gradient(ops.where(ops.isfinite(lost), lost, 0.0))
    return ops.exp(difference) * (1.0 + lost)


def surprisal(chosen: Tensor, top: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return `-log p` of the picked class, and the log-partition, from `split`."""
    behind = top > chosen
    # With one operand of each `where` a constant, the gradient of a confident row
    # comes from `ratio` alone; nothing is added to it that would have to cancel.
    gap = ops.where(behind, top - chosen, 0.0)
    ratio = mass * ops.where(
        behind, 1.0, exp_of_difference(top, ops.where(behind, top, chosen))
    )
    inner = ops.log1p(ratio + (ops.exp(-gap) - 1.0))
    return gap + inner, ops.where(behind, top, chosen) + inner


def surprisals(z: Tensor, axis: int) -> Tensor:
    """Return `-log softmax(z)`, each entry right to its own last digits.

    The class kept out of the sum is the largest. Where it holds more than half of
    the mass, the gradient is arranged as for `p - 1 = -(sum of the others)`.
    """
    size = z.shape[axis]
    where = positions(size, len(z.shape), axis, "int32")
    largest = ops.max(ops.stop_gradient(z), axis=axis, keepdims=True)
    # The smallest index at the maximum: two plain reductions are faster than argmax.
    index = ops.min(ops.where(z == largest, where, size), axis=axis, keepdims=True)
    picked = where == index
    chosen, top, mass = split(z, picked, axis)
    constant = ops.stop_gradient(chosen)
    dominant = ops.stop_gradient(ops.exp(top - constant) * mass) < 1.0
    shift = ops.where(dominant, chosen, constant)
    own = ops.where(dominant, 0.0, ops.exp(chosen - constant) - 1.0)
    inner = ops.log1p(exp_of_difference(top, shift) * mass + own)
    return inner - ops.where(ops.logical_and(picked, dominant), 0.0, z - shift)
