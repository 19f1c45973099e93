"""A copy of a model to try something on."""

from __future__ import annotations

from typing import Any

import keras

from fmkit._layer_state import copy_state

__all__ = ["copy_of"]


def copy_of(model: keras.Model, what: str, **settings: Any) -> keras.Model:
    """Return a clone of the same state and a new optimizer of the same settings.

    Args:
        model: The model, compiled.
        what: What needs the copy, for the message.
        settings: Arguments of `compile` to replace.

    Raises:
        ValueError: If the model isn't compiled, or can't be made from its config as
            a model of the same class.
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
    # Keras makes plain models of a Sequential of one's own, and of a functional model
    # with other arguments: their `call` and `train_step` would be lost.
    if type(clone) is not type(model):
        raise ValueError(
            f"{what} needs a model that can be copied from its config; the copy of "
            f"{model.name!r} is a {type(clone).__name__}, not a "
            f"{type(model).__name__}. Give the class a `get_config` and `from_config` "
            "of its own, on a base of keras.Model, or make the model of "
            "keras.Sequential or keras.Model itself."
        )
    if not clone.compiled:
        raise ValueError(
            f"{what} compiles a copy of the model, and {type(model).__name__} has a "
            "`compile` of its own: give it `get_compile_config` and "
            "`compile_from_config` too."
        )
    if model.built:
        clone.set_weights(model.get_weights())
    elif model.weights:  # of an adapted layer, or of another model's
        raise ValueError(
            f"{what} needs a built model, and only some layers of {model.name!r} are: "
            "call it on a few rows before, as in model(x[:2])."
        )
    copy_state(model, clone)
    return clone
