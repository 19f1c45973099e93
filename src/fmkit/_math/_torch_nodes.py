"""Softmax and costs on PyTorch, each one node of the graph of gradients.

PyTorch spends more time on calling an operation than on the arithmetic of a few
thousand numbers, and once more in the backward pass. So float32 logits are computed
in float64: there no difference needs a correction, and few operations are left. A cost
forms its gradient along with its value. What float64 would still lose is `1 - p` of a
class that holds all the mass; it is summed from the others going forward, and is
`-expm1(-surprisal)` going back:

    d(-log p_j) / dz_i = p_i - [i = j],   d p_j / dz_i = p_j ([i = j] - p_i).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = Any

# Elements in float64 at a time: what is kept in it stays small.
_BLOCK = 2**20
# Of more elements, the rules whose plain operations are few take longer in float64.
_SMALL = 2**15
_FEW = ("label", "distribution")


def is_taken(z: Tensor, *given: Any) -> bool:
    """Whether logits can be computed here: float64 must be wider, and known.

    What else is `given` must not need a gradient of its own.
    """
    return (
        z.dtype == torch.float32
        and z.device.type != "mps"
        and not hasattr(z, "device_mesh")  # in pieces on several devices
        and not any(getattr(each, "requires_grad", False) for each in given)
    )


def pays(rule: str, z: Tensor) -> bool:
    """Whether the one operation is faster than plain operations in float32."""
    return rule not in _FEW or z.numel() <= _SMALL


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
    p, nll = _Softmax.apply(_moved(z, axis, -1), plain)
    return _moved(p, -1, axis), _moved(nll, -1, axis)


def cost(
    rule: str,
    plain: Callable[[Tensor], Tensor],
    z: Tensor,
    given: tuple[Any, ...],
    axis: int,
) -> Tensor:
    """Return a cost of `z`: one of `RULES`, computed with what else it is `given`.

    Args:
        rule: The rule's name.
        plain: Computes the same of `z`, by operations that PyTorch differentiates
            twice.
        z: Logits in float32.
        given: Tensors with the axes of `z`, and numbers.
        axis: The class axis, which the cost has with length 1, or as it was where the
            rule is for each logit.
    """
    return _Cost.apply(z, rule, plain, axis, *given)[0]


class _Softmax(torch.autograd.Function):  # type: ignore[misc]
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, plain: Any) -> tuple[Tensor, Tensor]:
        return _by_blocks(_probabilities_and_surprisals, z)

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
            used, by_used = zip(*given, strict=True)
            gradient = _again(lambda z: [ctx.plain(z)[n] for n in used], z, by_used)
            return gradient, None
        (gradient,) = _by_blocks(_gradient, z, nll, by_p, by_nll)
        return gradient, None


class _Cost(torch.autograd.Function):  # type: ignore[misc]
    generate_vmap_rule = True

    @staticmethod
    def forward(
        z: Tensor, rule: str, plain: Any, axis: int, *given: Any
    ) -> tuple[Tensor, Tensor]:
        arrays = [_moved(each, axis, -1) for each in (z, *given)]
        value, gradient = _by_blocks(RULES[rule], *arrays)
        return _moved(value, -1, axis), _moved(gradient, -1, axis)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, _, ctx.plain, _, *given = inputs
        ctx.without = (None,) * (3 + len(given))
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, output[1])

    @staticmethod
    def backward(ctx: Any, by_value: Tensor | None, _: Any) -> tuple[Any, ...]:
        z, gradient = ctx.saved_tensors
        if by_value is None:
            return None, *ctx.without
        if torch.is_grad_enabled():  # a gradient of the gradient may be asked for
            return _again(lambda z: [ctx.plain(z)], z, [by_value]), *ctx.without
        return by_value * gradient, *ctx.without


# PyTorch asks for the signature in each call, and to find it takes many operations.
for _node in (_Softmax, _Cost):
    _forward: Any = _node.forward
    _forward.__signature__ = inspect.signature(_forward)


def _again(function: Any, z: Tensor, by_outputs: Sequence[Tensor]) -> Tensor:
    """Return the gradient in `z`, as a function of it.

    What the gradients `by_outputs` depend on `z` by is not to be followed, so the
    function is given a tensor of its own.
    """
    own = z.view_as(z)
    gradient = torch.autograd.grad(function(own), own, by_outputs, create_graph=True)
    return gradient[0]  # type: ignore[no-any-return]


def _moved(x: Any, axis: int, to: int) -> Any:
    """Return a tensor with its axis moved; a view costs as much as an addition."""
    if not isinstance(x, torch.Tensor) or (axis - to) % x.ndim == 0:
        return x
    return x.movedim(axis, to)


def _by_blocks(function: Callable[..., Any], *arrays: Any) -> Any:
    """Return what `function` makes of the rows, some of them at a time."""
    shape = arrays[0].shape
    rows = max(1, _BLOCK // max(1, shape[-1]))
    if shape.numel() <= _BLOCK:
        return function(*arrays)
    flat = [
        a.reshape(-1, a.shape[-1]) if isinstance(a, torch.Tensor) else a for a in arrays
    ]
    done = [
        function(
            *(
                a[start : start + rows] if isinstance(a, torch.Tensor) else a
                for a in flat
            )
        )
        for start in range(0, flat[0].shape[0], rows)
    ]
    return tuple(
        torch.cat(parts).reshape(*shape[:-1], -1) for parts in zip(*done, strict=True)
    )


def _in_double(z: Tensor) -> Tensor:
    """Return logits in float64, infinite ones as numbers that settle the class."""
    return torch.clamp(z.to(torch.float64), -1e300, 1e300)


def _softmax(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities, their logarithms and the most probable class."""
    log_p = torch.log_softmax(z, -1)
    p = torch.exp(log_p)
    largest = torch.argmax(z, -1, keepdim=True)
    others = torch.sum(p.scatter(-1, largest, 0.0), -1, keepdim=True)
    log_p = log_p.scatter(-1, largest, torch.log1p(-others))
    return p, log_p, largest


def _pulled_back(p: Tensor, log_p: Tensor, largest: Tensor, g: Tensor) -> Tensor:
    """Return the gradient in the logits of what has the gradient `g` in `-log_p`."""
    # For each class the sum of the other classes' g: nothing may cancel for the
    # largest, whose p is near 1, nor need it for one whose p is at most a half.
    rest = torch.sum(g.scatter(-1, largest, 0.0), -1, keepdim=True)
    others = (rest + g.gather(-1, largest) - g).scatter(-1, largest, rest)
    return torch.addcmul(g * torch.expm1(log_p), p, others)


def _probabilities_and_surprisals(z: Tensor) -> tuple[Tensor, Tensor]:
    p, log_p, _ = _softmax(_in_double(z))
    # A class that is taken out has no probability, to the end of float64's range.
    nll = torch.where(z == -float("inf"), float("inf"), torch.neg(log_p))
    return p.to(z.dtype), nll.to(z.dtype)


def _gradient(
    z: Tensor, nll: Tensor, by_p: Tensor | None, by_nll: Tensor | None
) -> tuple[Tensor]:
    """Return the gradient in `z` of what has these gradients in `p` and `nll`."""
    p = torch.softmax(_in_double(z), -1)
    g = torch.zeros_like(p) if by_nll is None else by_nll.to(p.dtype)
    if by_p is not None:  # d p_j = -p_j d(-log p_j)
        g = g - by_p * p
    largest = torch.argmax(z, -1, keepdim=True)
    return (_pulled_back(p, torch.neg(nll), largest, g).to(z.dtype),)


# The rules: each returns a cost and its gradient in the logits, both in float32.


def _label(z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Surprisal of a label: log(1 + exp(gap)) where the others are ahead by the gap."""
    wide = _in_double(z)
    label = torch.clamp(label.long(), 0, z.shape[-1] - 1)
    rest = wide.scatter(-1, label, -float("inf"))
    p = torch.softmax(rest, -1)  # of the others; the largest is 1 / sum(exp(z - top))
    others = torch.amax(rest, -1, True) - torch.log(torch.amax(p, -1, True))
    gap = others - wide.gather(-1, label)
    lacks = torch.sigmoid(gap)
    gradient = (p * lacks).scatter(-1, label, -lacks)
    return _softplus(gap).to(z.dtype), gradient.to(z.dtype)


def _distribution(z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a distribution."""
    p, log_p, largest = _softmax(_in_double(z))
    q = q.to(p.dtype)
    value = 0.0 - torch.sum(q * log_p, -1, keepdim=True)
    return value.to(z.dtype), _pulled_back(p, log_p, largest, q).to(z.dtype)


def _divergence(z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Relative entropy of `q` to the softmax."""
    p, log_p, largest = _softmax(_in_double(z))
    q = q.to(p.dtype)
    value = torch.sum(_divergence_terms(q, p, log_p), -1, keepdim=True)
    return value.to(z.dtype), _pulled_back(p, log_p, largest, q).to(z.dtype)


def _squared(z: Tensor, aim: Tensor, weight: Tensor | float) -> tuple[Tensor, Tensor]:
    """Sum of the weighted squares of softmax minus aim."""
    p, log_p, largest = _softmax(_in_double(z))
    aim = aim.to(p.dtype)
    near_1 = (p > 0.5) & (aim > 0.5)
    residual = torch.where(near_1, torch.expm1(log_p) + (1.0 - aim), p - aim)
    weighted = residual * weight
    value = torch.sum(residual * weighted, -1, keepdim=True)
    gradient = _pulled_back(p, log_p, largest, -2.0 * p * weighted)
    return value.to(z.dtype), gradient.to(z.dtype)


def _entropy(z: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of the softmax."""
    p, log_p, largest = _softmax(_in_double(z))
    terms = p * log_p
    value = 0.0 - torch.sum(terms, -1, keepdim=True)
    return value.to(z.dtype), _pulled_back(p, log_p, largest, terms).to(z.dtype)


def _binary(
    z: Tensor, yes: Tensor, no: Tensor, yes_gamma: float, no_gamma: float
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, with the weights of yes and no, and focusing."""
    wide = _in_double(z)
    minus = torch.neg(wide)
    p, other = torch.sigmoid(wide), torch.sigmoid(minus)
    first = _focused(_softplus(minus), other, p, yes_gamma)
    return _either(z, (yes, no), first, _focused(_softplus(wide), p, other, no_gamma))


def _asymmetric(
    z: Tensor, yes: Tensor, no: Tensor, yes_gamma: float, no_gamma: float, margin: float
) -> tuple[Tensor, Tensor]:
    """The same, where the probability of yes counts for no by what passes a margin."""
    wide = _in_double(z)
    minus = torch.neg(wide)
    p, other = torch.sigmoid(wide), torch.sigmoid(minus)
    first = _focused(_softplus(minus), other, p, yes_gamma)
    rise = torch.relu(p - margin)
    lacks = other + margin
    nll = torch.where(rise < 0.5, -torch.log1p(-rise), -torch.log(lacks))
    slope = p * other  # of `rise`
    if no_gamma:
        raised = rise**no_gamma
        by_nll = no_gamma * rise ** (no_gamma - 1) * nll
        second = raised * nll, slope * (raised / lacks + by_nll)
    else:
        second = nll, slope / lacks * (rise > 0.0)
    return _either(z, (yes, no), first, second)


def _either(
    z: Tensor,
    weights: tuple[Tensor, Tensor],
    yes: tuple[Tensor, Tensor],
    no: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of two costs, of which that of yes falls with z."""
    of_yes, of_no = (each.to(torch.float64) for each in weights)
    value = torch.addcmul(of_yes * yes[0], of_no, no[0])
    gradient = torch.addcmul(of_no * no[1], of_yes, yes[1], value=-1)
    return value.to(z.dtype), gradient.to(z.dtype)


def _binary_divergence(z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Relative entropy of `q` to the sigmoid, of yes and no together."""
    wide, q = _in_double(z), q.to(torch.float64)
    minus, not_q = torch.neg(wide), 1.0 - q
    p, other = torch.sigmoid(wide), torch.sigmoid(minus)
    value = _divergence_terms(q, p, torch.neg(_softplus(minus)))
    value = value + _divergence_terms(not_q, other, torch.neg(_softplus(wide)))
    return value.to(z.dtype), torch.addcmul(p * not_q, q, other, value=-1).to(z.dtype)


RULES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "label": _label,
    "distribution": _distribution,
    "divergence": _divergence,
    "squared": _squared,
    "entropy": _entropy,
    "binary": _binary,
    "asymmetric": _asymmetric,
    "binary_divergence": _binary_divergence,
}


def _softplus(x: Tensor) -> Tensor:
    # Above 40, not 20, the difference to x is lost in float64 too.
    return torch.nn.functional.softplus(x, 1.0, 40.0)


def _focused(nll: Tensor, p: Tensor, other: Tensor, gamma: float) -> tuple[Any, Any]:
    """Return `p^gamma nll`, p = 1 - exp(-nll), and its slope in the logit of p."""
    if not gamma:
        return nll, p
    raised = p**gamma
    return raised * nll, raised * torch.addcmul(p, other, nll, value=gamma)


def _divergence_terms(q: Tensor, p: Tensor, log_p: Tensor) -> Tensor:
    """Return `q log(q / p) - q + p`, from p and its logarithm."""
    t = log_p - torch.log(q)
    return torch.where(q > 0.0, q * (torch.expm1(t) - t), p)
