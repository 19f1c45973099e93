"""Which way a monitored value improves."""

from __future__ import annotations

from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._swap import keepers_in

__all__ = ["greater_is_better"]


def greater_is_better(monitor: str, model: Any = None, mode: str = "auto") -> bool:
    """Return whether a greater value of `monitor` is better.

    A `mode` of "max" or "min" says so; "auto" follows Keras's own rule.

    The model's own metrics and losses come first, under their names in the logs, which
    begin with an output's name if there are several. For any other name
    `EarlyStopping` has the rule: it is given the values 0 and 1, and the one that it
    keeps as the best is the answer. All of its methods called here are public.

    Raises:
        ValueError: If Keras has no rule for that name.
    """
    if mode != "auto":
        return mode == "max"
    directions = {} if model is None else private.metric_directions(model)
    name = monitor.removeprefix("val_")
    if name not in directions:
        # What `EvaluateWithAverages` writes for the raw weights and further averages.
        prefixes = [f"{each}_" for each in ("raw", *_averages_of(model))]
        found = next((each for each in prefixes if name.startswith(each)), "")
        if found:
            monitor = name = name.removeprefix(found)
    if name in directions:
        return directions[name] == "up"
    early_stopping = keras.callbacks.EarlyStopping(monitor, patience=10)
    if model is not None:
        early_stopping.set_model(model)
    try:
        early_stopping.on_epoch_end(0, {monitor: 0.0})
    except ValueError as error:
        raise ValueError(
            f"mode='auto' follows Keras's rule, and Keras has none for {monitor!r}: "
            "it knows the losses and its own metrics of a compiled model, with the "
            "names that the logs of `fit` give them. Say "
            "mode='max' if a greater value is better, mode='min' if a smaller one is."
        ) from error
    early_stopping.on_epoch_end(1, {monitor: 1.0})
    return bool(early_stopping.best == 1.0)


def _averages_of(model: Any) -> list[str]:
    """Return the names of the averages that a model's optimizer keeps."""
    keepers = keepers_in(getattr(model, "optimizer", None))
    return [name for keeper in keepers for name in keeper.kept]
