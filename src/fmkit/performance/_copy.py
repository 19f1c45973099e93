"""A copy of a model to try something on."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["copy_of"]


def copy_of(model: keras.Model, what: str, **settings: Any) -> keras.Model:
    """Return a clone with the same weights and a new optimizer of the same settings.

    Args:
        model: The model, compiled.
        what: What needs the copy, for the message.
        settings: Arguments of `compile` to replace.

    Raises:
        ValueError: If the model isn't compiled, or can't be made from its config.
    """
    config = model.get_compile_config() if model.compiled else None
    if not config:
        raise ValueError(
            f"{what} trains a copy of the model with its own loss and optimizer, so it "
            "must be compiled: call model.compile(optimizer, loss) before, and again "
            "with what you found after."
        )
    try:
        clone = keras.models.clone_model(model)
        clone.compile_from_config({**config, **settings})
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{what} needs a model that can be copied from its config, with its loss "
            f"and metrics; {model.name!r} cannot: {error} Register its parts with "
            "keras.saving.register_keras_serializable."
        ) from error
    if model.built:
        clone.set_weights(model.get_weights())
    return clone
