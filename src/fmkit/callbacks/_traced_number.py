"""A number in a program that is traced once, for many values."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import keras

from fmkit import _keras_private as private

__all__ = ["TracedNumber"]


class TracedNumber:
    """A scalar tensor where code written for a Python number expects one.

    TensorFlow and JAX compute with it as with the tensor. What Python decides, such as
    `if momentum != 0`, is decided as for `number`, since a tensor that is being traced
    has no value yet.

    Args:
        number: What Python sees.
        tensor: What the program computes with.
    """

    def __new__(cls, number: float, tensor: Any) -> TracedNumber:
        """Make what TensorFlow takes for a tensor, where that is the backend."""
        on_tensorflow = keras.backend.backend() == "tensorflow"
        return super().__new__(_for_tensorflow() if on_tensorflow else cls)

    def __init__(self, number: float, tensor: Any) -> None:
        self.number, self.tensor = number, tensor

    @property
    def dtype(self) -> Any:
        return self.tensor.dtype

    @property
    def shape(self) -> Any:
        return self.tensor.shape

    def get_shape(self) -> Any:
        return self.tensor.shape

    def __jax_array__(self) -> Any:
        return self.tensor

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        import tensorflow as tf

        return self.tensor if dtype is None else tf.cast(self.tensor, dtype, name)

    def __neg__(self) -> Any:
        return -self.tensor

    def __bool__(self) -> bool:
        return bool(self.number)

    def __float__(self) -> float:
        raise TypeError(
            "The step needs a Python number here, which is compiled in and can't "
            "follow a schedule."
        )


@functools.cache
def _for_tensorflow() -> type[TracedNumber]:
    # Some operations look for a number or a tensor, and refuse everything else.
    return type("TracedNumber", (TracedNumber, private.tensor_interface()), {})


def _computed(function: Callable[..., Any], *, swap: bool = False) -> Any:
    def method(self: TracedNumber, other: Any) -> Any:
        if isinstance(other, TracedNumber):
            other = other.tensor
        return function(other, self.tensor) if swap else function(self.tensor, other)

    return method


def _decided(function: Callable[..., bool]) -> Any:
    def method(self: TracedNumber, other: Any) -> bool:
        return function(self.number, other)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(TracedNumber, f"__{_name}__", _computed(getattr(operator, _name)))
    _swapped = _computed(getattr(operator, _name), swap=True)
    setattr(TracedNumber, f"__r{_name}__", _swapped)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(TracedNumber, f"__{_name}__", _decided(getattr(operator, _name)))
