"""The optimizer to wrap, made from what the user gave."""

from __future__ import annotations

from typing import Any

import keras

from fmkit._checks import did_you_mean

__all__ = ["to_optimizer"]


def to_optimizer(given: Any) -> Any:
    """Return the Keras optimizer that `given` is, names or describes.

    Raises:
        TypeError: If it is nothing of the kind.
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
    """Tell what was given, and what to type instead."""
    if isinstance(given, type) and issubclass(given, keras.optimizers.Optimizer):
        return f"the class {given.__name__}. Write {given.__name__}(), with brackets."
    return (
        f"optimizer={given!r} ({type(given).__name__}). Write for instance "
        "ExponentialMovingAverage('adam'), or give keras.optimizers.Adam(0.001)."
    )


def _names() -> list[str]:
    found = vars(keras.optimizers).items()
    return [
        name.lower()
        for name, value in found
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    ]
