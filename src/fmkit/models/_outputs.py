"""A check that labels fit the outputs of a model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def check_outputs(model: keras.Model, labels: Any) -> None:
    """Refuse labels that don't fit the outputs of `model`.

    Call it before training: a loss inside a compiled graph reports the same mistake
    as a long traceback, as NaN, or on some devices not at all.

    Args:
        model: A model with one output of shape `(batch, outputs)`.
        labels: Class numbers, shape `(n,)` or `(n, 1)`, or one row of
            probabilities (one-hot or soft) for each example, `(n, outputs)`.
            For a model with one output: any numbers, `(n,)` or `(n, 1)`.

    Raises:
        TypeError: If class numbers are not whole numbers.
        ValueError: If there are no labels, or they don't fit the outputs; the
            message says how many outputs to ask for.

    Examples:
        >>> from fmkit import models
        >>> check_outputs(models.mlp(), [0, 9])
        >>> check_outputs(models.mlp(num_classes=5), [0, 9])
        Traceback (most recent call last):
            ...
        ValueError: The labels go up to 9, which needs 10 outputs, and model 'mlp'
        has 5. Build it with `num_classes=10`, or correct the labels.
    """
    values = np.asarray(labels)
    outputs = _count_outputs(model)
    if values.size == 0:
        raise ValueError(
            f"`labels` has no elements, got shape {values.shape}: pass one label "
            "for each example."
        )
    if values.ndim == 2 and values.shape[1] > 1:
        _check_columns(model, values.shape, outputs)
    elif values.ndim in (1, 2):
        if outputs > 1:
            _check_class_numbers(model, values.reshape(-1), outputs)
    else:
        raise ValueError(
            "`labels` must have the shape (n,) for class numbers or (n, outputs) "
            f"for rows of probabilities, got {values.shape}."
        )


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
