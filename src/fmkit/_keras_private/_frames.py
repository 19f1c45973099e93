"""The frames of Keras's `fit`, `evaluate` and `predict`, where nothing public tells.

The only module that looks at frames. Everything else asks `_calls`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import keras

from fmkit._keras_private._pieces import missing, piece

__all__ = ["is_in_fit", "is_running", "iterator_in_the_making", "running_call"]

# Between an adapter and the `fit` that asks it are EpochIterator.__init__, the
# backend's subclass of it, and the wrappers around `fit`. Callbacks are a little
# further down.
_DEPTH = 14

_init = piece("keras.src.trainers.epoch_iterator:EpochIterator.__init__")

Values = dict[str, Any]


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def iterator_in_the_making() -> Values | None:
    """Return the variables of the `EpochIterator.__init__` that the caller is in."""
    for frame in _callers():
        if frame.f_code is _init.__code__:
            return frame.f_locals
    return None


def running_call(*methods: str, model: Any = None) -> tuple[str | None, Values]:
    """Return the name and the variables of the nearest call of one of `methods`.

    `None` and no variables if there is none.

    Args:
        methods: Among `"fit"`, `"evaluate"`, `"predict"`.
        model: Whose call it must be; `None` for any.
    """
    for frame in _callers():
        code = frame.f_code
        if (
            code.co_name in methods
            and "epoch_iterator" in code.co_varnames
            and (model is None or frame.f_locals.get("self") is model)
        ):
            return code.co_name, frame.f_locals
    for method in methods:
        code = inspect.unwrap(getattr(keras.Model, method)).__code__
        if "epoch_iterator" not in code.co_varnames:
            raise missing(f"{method}(epoch_iterator)")
    return None, {}


def is_running(callback_list: Any) -> bool:
    """Return whether the `fit` with this list of callbacks runs in any thread."""
    frames = sys._current_frames().values()
    return any(is_in_fit(frame, callback_list) for frame in frames)


def is_in_fit(frame: FrameType | None, callback_list: Any) -> bool:
    """Return whether the `fit` with this list of callbacks is below `frame`."""
    while frame is not None and callback_list is not None:
        if (
            frame.f_code.co_name == "fit"
            and frame.f_locals.get("callbacks") is callback_list
        ):
            return True
        frame = frame.f_back
    return False
