"""What an optimizer knows and doesn't say in public, and what PyTorch's use."""

from __future__ import annotations

from typing import Any

import keras

from fmkit._keras_private._pieces import attribute, piece

__all__ = [
    "count_of_schedules",
    "in_stateless_scope",
    "move_arrays",
    "rate_of_last_step",
    "trainable_variables",
]

in_stateless_scope = piece(
    "keras.src.backend.common.stateless_scope:in_stateless_scope"
)


def count_of_schedules(optimizer: Any) -> Any:
    """Return the count that `optimizer` calls a learning-rate schedule with.

    With gradient accumulation that is of every batch, and `iterations` of the updates.
    """
    return attribute(optimizer, "_iterations")


def rate_of_last_step(optimizer: Any) -> float:
    """Return the learning rate that the latest step of `optimizer` took."""
    rate = attribute(optimizer, "_learning_rate")
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        step = int(keras.ops.convert_to_numpy(count_of_schedules(optimizer)))
        rate = rate(max(step - 1, 0))
    else:
        rate = optimizer.learning_rate
    return float(keras.ops.convert_to_numpy(rate))


def trainable_variables(optimizer: Any) -> list[Any]:
    """Return the weights that an optimizer was built for, in the order of `build`."""
    variables: list[Any] = attribute(optimizer, "_trainable_variables")
    return variables


def move_arrays(held: list[Any], values: list[Any], step_size: Any) -> None:
    """Move PyTorch tensors by a part of their way to `values`.

    By the kernels for lists that its own optimizers use, where it has them: three
    calls, whatever the number of tensors, with the bits of a call for each.
    """
    import torch

    names = ("_foreach_sub", "_foreach_mul_", "_foreach_add_")
    if len(held) > 1 and all(hasattr(torch, name) for name in names):
        subtract, multiply, add = (getattr(torch, name) for name in names)
        gaps = subtract(values, held)
        multiply(gaps, step_size)
        add(held, gaps)
        return
    for array, value in zip(held, values, strict=True):
        array.add_((value.to(array.dtype) - array).mul_(step_size))
