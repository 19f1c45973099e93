"""A check that a loss fits the end of a model and the form of the labels."""

from __future__ import annotations

import inspect
from typing import Any

import keras

# Not all that begin with "categorical": the generalized one takes class numbers.
_OF_ROWS = ("categoricalcrossentropy", "categoricalfocal", "categoricalhinge")


def check_loss(
    model: keras.Model, loss: Any, *, dense: bool | None, check_activation: bool
) -> None:
    """Refuse a loss that expects another activation, or another form of labels.

    Args:
        model: A model with one output.
        loss: A loss as `compile` takes it; None for the one `model` was compiled with.
        dense: Whether the labels are rows, and not class numbers; None for either.
        check_activation: Whether to look at the last activation of `model`.
    """
    loss = _single(getattr(model, "loss", None) if loss is None else loss)
    if loss is None:
        return
    name = getattr(loss, "__name__", type(loss).__name__)
    if check_activation:
        _check_activation(model, loss, name)
    form = name.replace("_", "").lower()
    if dense and form.startswith("sparsecategorical"):
        raise ValueError(
            f"The labels are rows, and {name} takes class numbers. Pass "
            "`labels.argmax(axis=1)`, or use `keras.losses.CategoricalCrossentropy`."
        )
    if dense is False and form.startswith(_OF_ROWS):
        raise ValueError(
            f"The labels are class numbers, and {name} takes rows. Use "
            "`keras.losses.SparseCategoricalCrossentropy`, or "
            "`keras.utils.to_categorical(labels)`."
        )


def _single(loss: Any) -> Any:
    """Return the only loss of what `compile` takes, or None."""
    if isinstance(loss, dict):
        loss = list(loss.values())
    if isinstance(loss, (list, tuple)):
        loss = loss[0] if len(loss) == 1 else None
    return keras.losses.get(loss) if isinstance(loss, str) else loss


def _check_activation(model: keras.Model, loss: Any, name: str) -> None:
    expects_logits = _expects_logits(loss, name)
    ending = last_activation(model)
    unless = "Pass `check_activation=False` if it is meant so."
    if expects_logits and ending in ("softmax", "sigmoid"):
        raise ValueError(
            f"Model {model.name!r} ends in a {ending}, and {name} expects logits: it "
            f"would take the {ending} twice. Leave out the last activation, or use a "
            f"loss with `from_logits=False`. {unless}"
        )
    if expects_logits is False and ending == "linear":
        raise ValueError(
            f"Model {model.name!r} ends in logits, and {name} expects probabilities. "
            "Use `from_logits=True`, a loss of `fmkit.losses` from logits, or a last "
            f"activation of softmax or sigmoid. {unless}"
        )


def _expects_logits(loss: Any, name: str) -> bool | None:
    """Return whether the loss expects logits; None where both are meaningful."""
    if name.replace("_", "").lower().endswith("fromlogits"):
        # The squared error of raw outputs has a meaning, whatever they are.
        squared = name.lower().startswith("mean")
        raw = squared and getattr(loss, "activation", "linear") == "linear"
        return None if raw else True
    if isinstance(loss, keras.losses.Loss):
        expects: bool | None = loss.get_config().get("from_logits")
        return expects
    if inspect.isfunction(loss):
        parameter = inspect.signature(loss).parameters.get("from_logits")
        return None if parameter is None else bool(parameter.default)
    return None


def last_activation(model: keras.Model) -> str | None:
    """Return the name of the activation a model ends in, None if it is not known.

    Layers that only reshape or cast are passed over. The order of the layers of a
    subclassed model says nothing, so of such a model nothing is known.
    """
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        return None
    operations = getattr(model, "operations", None) or model.layers
    for operation in reversed(operations):
        if isinstance(operation, keras.Model):
            return last_activation(operation)
        if type(operation).__name__ in ("Softmax", "Sigmoid"):
            return type(operation).__name__.lower()
        activation = getattr(getattr(operation, "activation", None), "__name__", None)
        idle = isinstance(operation, keras.layers.Activation) and activation == "linear"
        passing = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Identity)
        if not idle and not isinstance(operation, passing):
            return activation
    return None
