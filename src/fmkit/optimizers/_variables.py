"""The variables that hold averages: which weights have one, and how it starts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from fmkit._swap import path_of, value_of

__all__ = [
    "Untracked",
    "add_copy",
    "add_scalar",
    "are_initialized",
    "assign_to_replicas",
    "check_patterns",
    "is_excluded",
    "outside_of_functions",
    "wide",
]

_HALF_TYPES = ("float16", "bfloat16")


def check_patterns(patterns: Sequence[str], variables: list[Any]) -> None:
    """Check that each of `patterns` matches the path of a variable.

    Raises:
        ValueError: If one does not.
    """
    paths = [path_of(variable) for variable in variables]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"`exclude` has {pattern!r}, which matches no variable. "
                f"The paths are {paths}."
            )


def is_excluded(variable: Any, patterns: Sequence[str]) -> bool:
    """Return whether `variable` has no average."""
    # float8 scales and histories are set by their "gradients", not trained.
    if getattr(variable, "overwrite_with_gradient", False):
        return True
    return any(re.search(pattern, path_of(variable)) for pattern in patterns)


@dataclass(frozen=True)
class Untracked:
    """Weights in a place where Keras does not make them variables of an optimizer."""

    variables: list[Any]


def wide(dtype: Any) -> str:
    """Return the type in which numbers of this type are averaged."""
    name: str = keras.backend.standardize_dtype(dtype)
    return "float32" if name in _HALF_TYPES else name


def add_copy(
    optimizer: Any, variable: Any, suffix: str, *, copy: bool, dtype: str | None = None
) -> Any:
    """Add a variable that follows a weight to `optimizer`.

    It starts as a copy of the weight, or else at 0. Without `dtype` it has that of the
    weight, but at least 32 bits.
    """
    distribution = keras.distribution.distribution()
    path = path_of(variable)
    return optimizer.add_variable(
        variable.shape,
        # A copy: an alias would be donated with the weights on JAX, and be the
        # weights themselves on PyTorch.
        initializer=(lambda shape, dtype: ops.cast(ops.copy(variable), dtype))
        if copy
        else "zeros",
        dtype=dtype or wide(variable.dtype),
        # What lets a replica of tf.distribute assign to it.
        aggregation="only_first_replica",
        layout=distribution and distribution.get_variable_layout(variable),
        name=f"{path.replace('/', '_').replace(':', '_')}{suffix}",
    )


def add_scalar(optimizer: Any, name: str) -> Any:
    """Add a float32 variable that is the same on all replicas to `optimizer`."""
    return optimizer.add_variable(
        (), dtype="float32", aggregation="only_first_replica", name=name
    )


def outside_of_functions() -> contextlib.AbstractContextManager[Any]:
    """Leave `tf.function`, where XLA could not read the initial weights."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def are_initialized(variables: list[Any]) -> bool:
    """Return whether `variables` have values: not while a `tf.function` makes them."""
    values = [value_of(variable) for variable in variables]
    # Only a variable of TensorFlow can be without.
    return all(
        bool(value.is_initialized())
        for value in values
        if hasattr(value, "is_initialized")
    )


def assign_to_replicas(variable: Any, value: Any) -> None:
    """Assign to a weight what each replica of `tf.distribute` has computed alike.

    A plain assignment would average the values, which rounds where there are three.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        if tf.distribute.has_strategy() and replica is not None:
            replica.merge_call(_assign_each, args=(value_of(variable), value))
            return
    variable.assign(value)


def _assign_each(strategy: Any, variable: Any, value: Any) -> None:
    strategy.extended.update(
        variable, lambda part, own: part.assign(own), args=(value,), group=False
    )
