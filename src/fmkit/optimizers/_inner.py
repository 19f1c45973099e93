"""The optimizer to wrap: made from the argument, and checked."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import did_you_mean
from fmkit._swap import keeper_of, leaves, walk

__all__ = ["check_inner", "counts_differ", "to_optimizer", "update_counts"]


def to_optimizer(given: Any) -> Any:
    """Return the Keras optimizer that `given` is, names or describes.

    Raises:
        TypeError: If it is not an optimizer, nor the name or config of one.
        ValueError: If there is no optimizer of that name or config.
    """
    if isinstance(given, keras.optimizers.Optimizer):
        return given
    if not isinstance(given, (str, dict)):
        raise TypeError(
            "`optimizer` must be a Keras optimizer, its name or its config, got "
            f"{_describe(given)}"
        )
    try:
        return keras.optimizers.get(given)
    except (KeyError, TypeError, ValueError) as error:
        hint = did_you_mean(given, _names()) if isinstance(given, str) else ""
        raise ValueError(
            "`optimizer` must be the name or config of a Keras optimizer, such as "
            f"'adam', got optimizer={given!r}.{hint} Keras says: {error}"
        ) from error


def _describe(given: Any) -> str:
    """Return what was given, and what to type instead."""
    if isinstance(given, type) and issubclass(given, keras.optimizers.Optimizer):
        return f"the class {given.__name__}. Write {given.__name__}(), with brackets."
    return (
        f"optimizer={given!r} ({type(given).__name__}). Write for instance "
        "ExponentialMovingAverage('adam'), or pass keras.optimizers.Adam(0.001)."
    )


def _names() -> list[str]:
    found = vars(keras.optimizers).items()
    return [
        name.lower()
        for name, value in found
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    ]


def check_inner(optimizer: Any) -> Any:
    """Return `optimizer`, if it can be wrapped.

    Raises:
        ValueError: If it can't be.
    """
    for part in walk(optimizer):
        name = part.name
        if keeper_of(part) is not None:
            raise ValueError(
                f"`optimizer` must not average already, got {optimizer.name!r} around "
                f"{name!r}. Wrap once."
            )
        if isinstance(part, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "`optimizer` must not be a LossScaleOptimizer. Write "
                "LossScaleOptimizer(ExponentialMovingAverage(optimizer)): then a step "
                "skipped for its infinite gradients leaves the averages alone too."
            )
        if part.use_ema:
            raise ValueError(
                f"`optimizer` must not use Keras's own averages, which replace the "
                f"weights at the end of `fit`: make {name!r} without "
                "use_ema=True."
            )
        if part.built:
            raise ValueError(
                f"`optimizer` must not be built, but {name!r} has done "
                f"{int(part.iterations)} steps on variables of its own. Pass a new "
                "one, for instance type(optimizer).from_config(optimizer.get_config())."
            )
    return optimizer


def update_counts(optimizer: Any) -> list[Any]:
    """Return how often each part updated its weights, if any accumulates gradients."""
    parts = leaves(optimizer)
    if not any(part.gradient_accumulation_steps for part in parts):
        return []
    # The quotient is a fresh tensor; a bare counter would change in place.
    return [part.iterations + 0 for part in parts]


def counts_differ(before: list[Any], after: list[Any]) -> Any:
    """Return whether a step changed weights; `None` where every step does."""
    changed = None
    for old, new in zip(before, after, strict=True):
        differs = ops.not_equal(old, new)
        changed = differs if changed is None else ops.logical_or(changed, differs)
    return changed
