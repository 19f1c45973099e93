"""The `fit`, `evaluate` or `predict` that calls a callback, and what it was given."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from fmkit._keras_private import _frames
from fmkit._keras_private._adapter import without_request
from fmkit._keras_private._pieces import attribute

__all__ = [
    "FitCall",
    "initial_epoch",
    "running_fit",
    "running_iterator",
    "set_initial_epoch",
]


@dataclasses.dataclass(frozen=True)
class FitCall:
    """The `fit` that runs now.

    Attributes:
        epoch_iterator: Keras's `EpochIterator` of the training data.
        callback_list: Its callbacks.
        initial_epoch: The argument.
        epochs: The argument.
        arguments: Other arguments, by name. What `validation_split` cuts off is under
            `validation_data`, and no longer in `x` and `y`.
    """

    epoch_iterator: Any
    callback_list: Any
    initial_epoch: int
    epochs: int
    arguments: dict[str, Any]

    @property
    def validation_freq(self) -> int | list[int] | None:
        """The argument, or `None` if there is nothing to validate on."""
        validates = self.arguments["validation_data"] is not None
        return self.arguments["validation_freq"] if validates else None

    def validates_after(self, epoch: int) -> bool:
        """Return whether a later epoch than `epoch`, counted from 0, validates."""
        every = self.validation_freq
        if every is None:
            return False
        if isinstance(every, int):
            return self.epochs // every > (epoch + 1) // every
        return any(epoch + 1 < number <= self.epochs for number in every)


_ARGUMENTS = (
    "x",
    "y",
    "sample_weight",
    "batch_size",
    "shuffle",
    "class_weight",
    "validation_data",
    "validation_split",
    "validation_steps",
    "validation_batch_size",
    "validation_freq",
)


def running_fit(callback: keras.callbacks.Callback) -> FitCall | None:
    """Return the `fit` that calls `callback`, or `None` outside of one."""
    _, values = _frames.running_call("fit", model=attribute(callback, "_model"))
    if "epoch_iterator" not in values:
        return None
    return FitCall(
        epoch_iterator=values["epoch_iterator"],
        callback_list=values["callbacks"],
        initial_epoch=int(values["initial_epoch"]),
        epochs=int(values["epochs"]),
        arguments={name: without_request(values.get(name)) for name in _ARGUMENTS},
    )


def running_iterator(callback: keras.callbacks.Callback) -> Any | None:
    """Return the `EpochIterator` of the `fit`, `evaluate` or `predict` that calls."""
    model = attribute(callback, "_model")
    _, values = _frames.running_call("fit", "evaluate", "predict", model=model)
    return values.get("epoch_iterator")


def initial_epoch(model: Any) -> int | None:
    """Return what `set_initial_epoch` has set."""
    return attribute(model, "_initial_epoch")  # type: ignore[no-any-return]


def set_initial_epoch(model: Any, epoch: int | None) -> None:
    """Set the epoch that the running `fit` starts from; `None` for its argument."""
    attribute(model, "_initial_epoch")  # `fit` would not read one that we make
    model._initial_epoch = epoch
