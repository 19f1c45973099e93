"""The rule of the averages: how far each moves towards its weight."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit import _keras_private as private
from fmkit._math import namespace
from fmkit._tracing import is_tracing

__all__ = ["decay_at", "masks", "move", "normalise", "step_size"]


def decay_at(n: int, decay: float, num_updates: str | None) -> float:
    """Return the decay of averaging update `n`, the first being 1."""
    if num_updates is None:
        return decay
    n -= num_updates == "before"
    return min(decay, (1 + n) / (10 + n))


def step_size(n: Any, decay: float, num_updates: str | None) -> Any:
    """Return `1 - decay_at(n)` for a tensor, rounded as in TensorFlow 1.

    The bound `1 - decay` is taken in float64: in float32, 1 - 0.9999 is off by 3e-5 of
    itself. Where `n` is not positive the result is not used, but is finite.
    """
    if num_updates is None:
        return 1.0 - decay
    xp = namespace(n)
    n = ops.cast(n, "float32")
    if num_updates == "before":
        n = n - 1.0
    n = xp.relu(n)
    return xp.maximum(1.0 - decay, 1.0 - (1.0 + n) / (10.0 + n))


def masks(
    count: Any, changed: Any, start_step: int, update_interval: int
) -> tuple[Any, Any]:
    """Return `due` and `copy` of `move`, for `count` updates from the start step on."""
    due, copy = changed, None
    if update_interval > 1:
        in_turn = ops.equal(count % update_interval, 0)
        due = in_turn if due is None else ops.logical_and(due, in_turn)
    if start_step:
        copy = count <= 0
        due = None if due is None else ops.logical_or(due, copy)
    return due, copy


def normalise(weight_sum: Any, step_size: Any, due: Any, copy: Any) -> tuple[Any, Any]:
    r"""Turn the step size into one that gives the initial weights no part.

    With $c$ the sum of the weights given so far, $c \leftarrow c + a(1 - c)$ for
    step size $a$, the average of a sequence without its start moves by $a/c$.

    Args:
        weight_sum: The variable that holds $c$, which is updated.
        step_size: $a$.
        due: As in `move`.
        copy: As in `move`.

    Returns:
        The step size $a/c$, and whether this is the first step.
    """
    old = ops.convert_to_tensor(weight_sum) + 0.0
    new = old + step_size * (1.0 - old)
    first = ops.equal(old, 0.0)
    kept = new if due is None else ops.where(due, new, old)
    if copy is not None:
        kept = ops.where(copy, ops.zeros_like(old), kept)
    weight_sum.assign(kept)
    return step_size / ops.where(new > 0, new, ops.ones_like(new)), first


def move(pairs: list[tuple[Any, Any]], step_size: Any, due: Any, copy: Any) -> None:
    """Move each average by `step_size` of its way to its weight.

    `None` stands for a mask that is the same at every step: a plain average then costs
    nothing but its own arithmetic.

    Args:
        pairs: Weights and their averages.
        step_size: A number or a scalar tensor.
        due: Whether the averages change in this step; `None` for always.
        copy: Whether they become the weights instead; `None` for never.
    """
    if due is None and copy is None and _may_change_in_place():
        _move_in_place(pairs, step_size)
        return
    for weight, average in pairs:
        weight = ops.cast(weight, average.dtype)
        size = ops.cast(step_size, average.dtype)
        new = average + size * (weight - average)
        if copy is not None:
            new = ops.where(copy, weight, new)
        if due is not None:
            new = ops.where(due, new, ops.convert_to_tensor(average))
        average.assign(new)


def _may_change_in_place() -> bool:
    """Whether variables may be changed in place, which PyTorch does fastest."""
    if keras.backend.backend() != "torch":
        return False
    return is_tracing() or not private.in_stateless_scope()


def _move_in_place(pairs: list[tuple[Any, Any]], step_size: Any) -> None:
    import torch

    with torch.no_grad():
        for weight, average in pairs:
            held = average.value
            gap = weight.value.to(held.dtype) - held
            if isinstance(step_size, torch.Tensor):
                step_size = step_size.to(held.dtype)
            held.add_(gap.mul_(step_size))
