"""The one place where fmkit touches what Keras keeps private.

- `callback_list`: a callback isn't told which list calls it. `CallbackList` is
  public, the way to it goes through the frame of its `set_model`.
- `all_layers`: `model.layers` leaves out layers inside layers of one's own.
- `rate_of_last_step`: `optimizer.learning_rate` is the rate of the step to come.
"""

from __future__ import annotations

import sys
from typing import Any

import keras

__all__ = ["all_layers", "callback_list", "rate_of_last_step"]

# Frames between a callback's own method and its list: the callback's subclasses.
_DEPTH = 8


def callback_list(callback: keras.callbacks.Callback) -> Any:
    """Return the `CallbackList` that is calling `callback` now, or `None`."""
    frame = sys._getframe(1)
    for _ in range(_DEPTH):
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList) and any(
            each is callback for each in owner.callbacks
        ):
            return owner
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Return every layer of `model`, at any depth."""
    return list(model._flatten_layers())


def rate_of_last_step(optimizer: keras.optimizers.Optimizer) -> float:
    """Return the learning rate that the latest step of `optimizer` took."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        # The raw count: with gradient accumulation schedules see every micro-step.
        step = int(keras.ops.convert_to_numpy(optimizer._iterations))
        return float(keras.ops.convert_to_numpy(rate(max(step - 1, 0))))
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
