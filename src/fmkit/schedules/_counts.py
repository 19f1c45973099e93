"""Counts of steps: integers of any width, and lengths in epochs."""

from __future__ import annotations

import inspect
import math
import numbers
from fractions import Fraction
from typing import Any, Self

import keras
from keras import ops

from fmkit._checks import check_number

__all__ = [
    "LARGEST_DENOMINATOR",
    "InEpochs",
    "integer_tensor",
    "is_before",
    "is_beyond",
    "not_negative",
    "place_in_cycle",
    "steps_since",
]

# Two fractions with denominators up to this differ by at least its inverse square,
# 2.3e-10: still more than the spacing of floats around a million steps.
LARGEST_DENOMINATOR = 65_536


class InEpochs:
    """A schedule that can be made from lengths in epochs."""

    @classmethod
    def from_epochs(cls, *arguments: Any, steps_per_epoch: float, **named: Any) -> Self:
        """Make the schedule from lengths in epochs instead of steps.

        The arguments are those of the class; a name that ends in `_steps` there ends in
        `_epochs` here. An epoch may be cut: each length is rounded up to whole steps,
        so several may end a step or two after the epochs that they add up to.

            CosineDecay.from_epochs(0.1, 40, warmup_epochs=0.5, steps_per_epoch=469)

        Args:
            *arguments: As in the class.
            steps_per_epoch: Optimizer steps of one epoch: `len(batches)`.
            **named: As in the class.

        Returns:
            The schedule, counted in steps.

        Raises:
            ValueError: If an argument is outside its range.
            TypeError: If an argument is missing, unknown or not a number.
        """
        steps = Fraction(check_number("steps_per_epoch", steps_per_epoch, above=0))
        of_class = inspect.signature(cls)
        names = {_in_epochs(name): name for name in of_class.parameters}
        parameters = [
            each.replace(name=_in_epochs(name))
            for name, each in of_class.parameters.items()
        ]
        given = inspect.Signature(parameters).bind(*arguments, **named).arguments
        for name, value in given.items():
            if names[name] != name or name == "timescale":
                epochs = Fraction(check_number(name, value, at_least=0))
                length = epochs.limit_denominator(LARGEST_DENOMINATOR) * steps
                given[name] = math.ceil(length.limit_denominator(LARGEST_DENOMINATOR))
        make: Any = cls
        return make(**{names[name]: value for name, value in given.items()})


def _in_epochs(name: str) -> str:
    head, end = name[:-6], name[-6:]
    return f"{head}_epochs" if end == "_steps" else name


def integer_tensor(step: Any) -> Any:
    # An optimizer's counter is a keras.Variable.
    step = ops.convert_to_tensor(step)
    dtype = keras.backend.standardize_dtype(step.dtype)
    if "int" not in dtype:
        raise TypeError(
            "A schedule counts whole optimizer steps: `step` must be an integer or an "
            f"integer tensor, got dtype {dtype}."
        )
    if dtype in ("int32", "int64"):
        return step
    # Subtracting from a narrow or an unsigned counter would wrap around.
    wide = dtype in ("uint32", "uint64") and keras.backend.backend() != "jax"
    return ops.cast(step, "int64" if wide else "int32")


def is_beyond(steps: int, count: Any) -> bool:
    """Whether a counter never comes so far: its dtype could not hold `steps`."""
    is_narrow = keras.backend.standardize_dtype(count.dtype) == "int32"
    return steps >= 2 ** (31 if is_narrow else 63)


def is_before(step: Any, start: int) -> Any:
    """Return `step < start`, also of a start that a counter never reaches."""
    is_number = isinstance(step, numbers.Integral)
    return step == step if not is_number and is_beyond(start, step) else step < start


def steps_since(step: Any, start: int) -> Any:
    """Return `max(step - start, 0)`, also of a start that a counter never reaches."""
    if isinstance(step, numbers.Integral):
        return max(int(step) - start, 0)
    if is_beyond(start, step):
        return ops.zeros_like(step)
    return not_negative(step - start)


def place_in_cycle(step: Any, steps: int) -> Any:
    """Return `step % steps`, for a counter that may never end its first cycle."""
    is_number = isinstance(step, numbers.Integral)
    return step if not is_number and is_beyond(steps, step) else step % steps


def not_negative(count: Any) -> Any:
    """Return `max(count, 0)`, by operators: on PyTorch `ops.maximum` gives int32."""
    if keras.backend.backend() == "torch":
        return count.clamp(min=0)
    return count * ops.cast(count > 0, count.dtype)
