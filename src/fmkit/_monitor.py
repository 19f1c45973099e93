"""Which way a monitored value improves."""

from __future__ import annotations

from typing import Any

import keras

from fmkit import _keras_private as private

__all__ = ["greater_is_better"]


def greater_is_better(monitor: str, model: Any = None) -> bool:
    """Return whether Keras wants `monitor` to be great; asks Keras itself.

    The model's own metrics and losses come first, under their names in the logs, which
    begin with an output's name if there are several. For any other name `EarlyStopping`
    holds the rule. It is shown the values 0 and 1; which of them it keeps as the best
    is the answer, through public methods alone.

    Raises:
        ValueError: If Keras has no rule for that name.
    """
    directions = {} if model is None else private.metric_directions(model)
    name = monitor.removeprefix("val_")
    if name not in directions and name.startswith("raw_"):
        # What `EvaluateWithAverages` writes for the raw weights.
        monitor = name = name.removeprefix("raw_")
    if name in directions:
        return directions[name] == "up"
    judge = keras.callbacks.EarlyStopping(monitor, patience=10)
    if model is not None:
        judge.set_model(model)
    try:
        judge.on_epoch_end(0, {monitor: 0.0})
    except ValueError as error:
        raise ValueError(
            f"mode='auto' follows Keras's rule, and Keras has none for {monitor!r}: "
            "it knows the losses and its own metrics of a compiled model, with the "
            "names that the logs of `fit` give them. Say "
            "mode='max' if a greater value is better, mode='min' if a smaller one is."
        ) from error
    judge.on_epoch_end(1, {monitor: 1.0})
    return bool(judge.best == 1.0)
