"""One update of averages: when it is due, and the pass over the weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from fmkit import _keras_private as private
from fmkit._tracing import is_tracing
from fmkit.optimizers._variables import wide

__all__ = ["Move", "masks", "move", "normalise"]

# Elements of a weight that PyTorch updates together with others, by fewer calls. Larger
# ones are taken one at a time, so that the step needs little memory.
_SMALL = 2**18


def masks(
    count: Any, changed: Any, start_step: int, update_interval: int
) -> tuple[Any, Any]:
    """Return `due` and `copy` of a `Move`, `count` updates after the start step."""
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
        due: As in `Move`.
        copy: As in `Move`.

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


class Move(NamedTuple):
    """What an update does to one average of all weights.

    `None` stands for a mask that is the same at every step: a plain average then costs
    nothing but its own arithmetic.

    Attributes:
        averages: The variables of the average.
        step_size: By which part of their way to the weights they move: a number or a
            scalar tensor.
        due: Whether they change in this step; `None` for always.
        copy: Whether they become the weights instead; `None` for never.
    """

    averages: list[Any]
    step_size: Any
    due: Any
    copy: Any


def move(weights: list[Any], moves: list[Move]) -> None:
    """Update the averages of `weights`: each weight is read once for all of them."""
    in_place = _may_change_in_place()
    together: dict[Any, list[tuple[Any, Any]]] = {}
    for index, weight in enumerate(weights):
        for number, (averages, step_size, due, copy) in enumerate(moves):
            average = averages[index]
            rounded = wide(average.dtype) != average.dtype
            if not in_place or due is not None or copy is not None or rounded:
                _move(weight, average, step_size, due, copy)
            elif math.prod(weight.shape) <= _SMALL and not is_tracing():
                alike = together.setdefault((number, average.dtype), [])
                alike.append((weight, average))
            else:
                _move_in_place([(weight, average)], step_size)
    for (number, _), pairs in together.items():
        _move_in_place(pairs, moves[number].step_size)


def _move(weight: Any, average: Any, step_size: Any, due: Any, copy: Any) -> None:
    dtype = wide(average.dtype)
    weight, old = ops.cast(weight, dtype), ops.cast(average, dtype)
    new = old + ops.cast(step_size, dtype) * (weight - old)
    if copy is not None:
        new = ops.where(copy, weight, new)
    if due is not None:
        new = ops.where(due, new, old)
    average.assign(ops.cast(new, average.dtype))


def _may_change_in_place() -> bool:
    """Whether variables may be changed in place, which PyTorch does fastest."""
    if keras.backend.backend() != "torch":
        return False
    return is_tracing() or not private.in_stateless_scope()


def _move_in_place(pairs: list[tuple[Any, Any]], step_size: Any) -> None:
    """Move averages to weights; the same bits whether one by one or together."""
    import torch

    with torch.no_grad():
        held = [average.value for _, average in pairs]
        if isinstance(step_size, torch.Tensor):
            step_size = step_size.to(held[0].dtype)
        private.move_arrays(held, [weight.value for weight, _ in pairs], step_size)
