"""Softmax and surprisals on PyTorch, as one node of the graph of gradients.

PyTorch spends more time on calling an operation than on the arithmetic of a few
thousand numbers, and once more in the backward pass. So float32 logits are computed
in float64: there no difference needs a correction, and few operations are left. What
float64 would still lose is `1 - p` of a class that holds all the mass; it is summed
from the others going forward, and is `-expm1(-surprisal)` going back:

    d(-log p_j) / dz_i = p_i - [i = j],   d p_j / dz_i = p_j ([i = j] - p_i).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensor = Any

# Elements in float64 at a time: what is kept in it stays small.
_BLOCK = 2**20


def is_taken(z: Tensor) -> bool:
    """Whether the logits can be computed here: float64 must be wider, and known."""
    return (
        z.dtype == torch.float32
        and z.device.type != "mps"
        and not hasattr(z, "device_mesh")  # in pieces on several devices
    )


def softmax(
    z: Tensor, axis: int, plain: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the softmax of `z`, and its surprisals.

    Args:
        z: Logits in float32.
        axis: The class axis.
        plain: Computes the same of logits whose last axis is that of the classes, by
            operations that PyTorch differentiates twice.
    """
    p, nll = _Softmax.apply(z.movedim(axis, -1), plain)
    return p.movedim(-1, axis), nll.movedim(-1, axis)


class _Softmax(torch.autograd.Function):  # type: ignore[misc]
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, plain: Any) -> tuple[Tensor, Tensor]:
        return _by_blocks(_values, z)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, ctx.plain = inputs
        ctx.save_for_backward(z, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, by_p: Tensor | None, by_nll: Tensor | None
    ) -> tuple[Tensor | None, None]:
        z, nll = ctx.saved_tensors
        given = [(n, g) for n, g in enumerate((by_p, by_nll)) if g is not None]
        if not given:
            return None, None
        if torch.is_grad_enabled():  # a gradient of the gradient may be asked for
            outputs = ctx.plain(z)
            costs = [torch.sum(outputs[n] * g) for n, g in given]
            return torch.autograd.grad(sum(costs), z, create_graph=True)[0], None
        (gradient,) = _by_blocks(_gradient, z, nll, by_p, by_nll)
        return gradient, None


def _by_blocks(function: Callable[..., Any], *arrays: Tensor | None) -> Any:
    """Return what `function` makes of the rows, some of them at a time."""
    shape = arrays[0].shape  # type: ignore[union-attr]
    rows = max(1, _BLOCK // max(1, shape[-1]))
    if shape.numel() <= _BLOCK:
        return function(*arrays)
    flat = [None if a is None else a.reshape(-1, shape[-1]) for a in arrays]
    count = flat[0].shape[0]  # type: ignore[union-attr]
    done = [
        function(*(None if a is None else a[start : start + rows] for a in flat))
        for start in range(0, count, rows)
    ]
    return tuple(torch.cat(parts).reshape(shape) for parts in zip(*done, strict=True))


def _in_double(z: Tensor) -> Tensor:
    """Return logits in float64, one of +inf as a number that settles the class."""
    return torch.clamp(z.to(torch.float64), max=1e300)


def _values(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and surprisals."""
    log_p = torch.log_softmax(_in_double(z), -1)
    p = torch.exp(log_p)
    largest = torch.argmax(z, -1, keepdim=True)
    others = torch.sum(p.scatter(-1, largest, 0.0), -1, keepdim=True)
    log_p = log_p.scatter(-1, largest, torch.log1p(-others))
    return p.to(z.dtype), torch.neg(log_p).to(z.dtype)


def _gradient(
    z: Tensor, nll: Tensor, by_p: Tensor | None, by_nll: Tensor | None
) -> tuple[Tensor]:
    """Return the gradient in `z` of what has these gradients in `p` and `nll`."""
    p = torch.softmax(_in_double(z), -1)
    g = torch.zeros_like(p) if by_nll is None else by_nll.to(p.dtype)
    if by_p is not None:  # d p_j = -p_j d(-log p_j)
        g = g - by_p * p
    # For each class the sum of the other classes' g: nothing may cancel for the
    # largest, whose p is near 1, nor need it for one whose p is at most a half.
    largest = torch.argmax(z, -1, keepdim=True)
    rest = torch.sum(g.scatter(-1, largest, 0.0), -1, keepdim=True)
    others = (rest + g.gather(-1, largest) - g).scatter(-1, largest, rest)
    return (torch.addcmul(g * torch.expm1(-nll), p, others).to(z.dtype),)
