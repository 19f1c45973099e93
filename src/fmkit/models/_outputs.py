"""A check that labels fit the outputs of a model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from fmkit.models._loss import check_loss


def check_outputs(
    model: keras.Model, labels: Any, loss: Any = None, *, check_activation: bool = True
) -> None:
    """Refuse labels that don't fit the outputs of `model`, and a loss that doesn't.

    Call it before training: a loss inside a compiled graph reports the same mistake
    as a long traceback, as NaN, or on some devices not at all.

    Args:
        model: A model with one output of shape `(batch, outputs)`.
        labels: Class numbers, shape `(n,)` or `(n, 1)`, or one row of
            probabilities (one-hot or soft) for each example, `(n, outputs)`.
            For a model with one output: any numbers, `(n,)` or `(n, 1)`.
        loss: A loss as `compile` takes it. By default the one `model` was compiled
            with, if there is one.
        check_activation: Whether to compare the last activation, which is read from
            the layers, with what the loss expects. A softmax or sigmoid before a loss
            from logits, or logits before a loss from probabilities, trains without
            an error, only worse.

    Raises:
        TypeError: If the labels are texts, or class numbers are not whole numbers.
        ValueError: If there are no labels, they don't fit the outputs (the message
            says how many outputs to ask for) or the loss (class numbers or rows), or
            the loss expects another activation.

    Examples:
        >>> from fmkit import models
        >>> check_outputs(models.mlp(), [0, 9])
        >>> check_outputs(models.mlp(num_classes=5), [0, 9])
        Traceback (most recent call last):
            ...
        ValueError: The labels go up to 9, which needs 10 outputs, and model 'mlp'
        has 5. Build it with `num_classes=10`, or correct the labels.
        >>> check_outputs(models.mlp(output_activation="softmax"), [0, 9],
        ...               keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        Traceback (most recent call last):
            ...
        ValueError: Model 'mlp' ends in a softmax, and SparseCategoricalCrossentropy
        expects logits: it would take the softmax twice. Leave out the last
        activation, or use a loss with `from_logits=False`. Pass
        `check_activation=False` if it is meant so.
    """
    values = np.asarray(labels)
    outputs = _count_outputs(model)
    if values.size == 0:
        raise ValueError(
            f"`labels` has no elements, got shape {values.shape}: pass one label "
            "for each example."
        )
    rows = values.ndim == 2 and values.shape[1] > 1
    if values.dtype.kind in "USO":
        raise TypeError(
            f"`labels` must be numbers, got dtype {values.dtype} with "
            f"{values.reshape(-1)[:3].tolist()}... For names, number them first: "
            "`names, labels = np.unique(labels, return_inverse=True)`."
        )
    if rows:
        _check_columns(model, values.shape, outputs)
    elif values.ndim in (1, 2):
        if outputs > 1:
            _check_class_numbers(model, values.reshape(-1), outputs)
    else:
        raise ValueError(
            "`labels` must have the shape (n,) for class numbers or (n, outputs) "
            f"for rows of probabilities, got {values.shape}."
        )
    # One column of one output is both: a row and a number.
    dense = rows if outputs > 1 else None
    check_loss(model, loss, dense=dense, check_activation=check_activation)


def _count_outputs(model: keras.Model) -> int:
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[-1] is None:
        # A dense layer works on the last axis and keeps the others, so an image
        # that wasn't flattened comes out as an image.
        images = isinstance(shape, tuple) and len(shape) > 2
        raise ValueError(
            "`model` must have one output of shape (batch, outputs), got "
            f"output_shape={shape!r}. "
            + (
                "Put `keras.layers.Flatten()` before its first dense layer."
                if images
                else "Pass the part of the model that has one."
            )
        )
    return int(shape[-1])


def _check_columns(model: keras.Model, shape: tuple[int, ...], outputs: int) -> None:
    if shape[1] != outputs:
        raise ValueError(
            f"`labels` has {shape[1]} columns and model {model.name!r} has {outputs} "
            f"output{'s' if outputs > 1 else ''}. Build it with "
            f"`num_classes={shape[1]}`, or pass labels of shape "
            f"({shape[0]}, {outputs})."
        )


def _check_class_numbers(model: keras.Model, values: np.ndarray, outputs: int) -> None:
    if not np.issubdtype(values.dtype, np.number) or np.any(values != np.round(values)):
        raise TypeError(
            f"Model {model.name!r} has {outputs} outputs, so its labels are the whole "
            f"numbers 0 to {outputs - 1}, got dtype {values.dtype} with "
            f"{values[:3].tolist()}... For a quantity, build the model with "
            "`num_classes=1`; for names, number them first."
        )
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0:
        raise ValueError(
            f"Class numbers start at 0, got {lowest}. Renumber the labels to "
            f"0 to {outputs - 1}, or leave those examples out."
        )
    if highest >= outputs:
        raise ValueError(
            f"The labels go up to {highest}, which needs {highest + 1} outputs, and "
            f"model {model.name!r} has {outputs}. Build it with "
            f"`num_classes={highest + 1}`, or correct the labels."
        )
