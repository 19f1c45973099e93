"""The list of callbacks of a running call, and what may be done to it meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from fmkit._keras_private._calls import running_iterator
from fmkit._keras_private._pieces import attribute

__all__ = [
    "around_epoch_end",
    "around_steps",
    "bind_hook",
    "model_of",
    "put_back",
    "put_first",
    "put_last",
    "remove_later",
    "take_out",
]

Context = contextlib.AbstractContextManager[Any]


def model_of(callback: keras.callbacks.Callback) -> Any | None:
    """Return the model of a callback without a synchronisation, or `None`.

    On JAX the public `callback.model` waits for the running step and copies its state
    into the model's variables.
    """
    return attribute(callback, "_model")


def bind_hook(
    callback: keras.callbacks.Callback, name: str, method: Callable[..., None]
) -> None:
    """Give one callback a hook that its class does not have.

    Keras looks at each callback for a hook of a batch other than `Callback`'s own, and
    if it finds one waits for the logs of every step. So the class has none, and the
    callbacks that need it get it as they are made.
    """
    setattr(callback, name, method)


def put_first(callback_list: Any, callback: keras.callbacks.Callback) -> int:
    """Move `callback` to the front, while Keras goes through the list.

    Those before it move back a place, so that the next in turn is still the one after
    it.

    Returns:
        The place where it was.
    """
    callbacks = attribute(callback_list, "callbacks")
    place: int = callbacks.index(callback)
    callbacks.insert(0, callbacks.pop(place))
    return place


def put_back(
    callback_list: Any, callback: keras.callbacks.Callback, place: int
) -> None:
    """Move `callback` back to its place, while Keras goes through the list."""
    take_out(callback_list, callback)
    attribute(callback_list, "callbacks").insert(place, callback)


def put_last(callback_list: Any, callback: keras.callbacks.Callback) -> None:
    """Add `callback` at the end, while Keras goes through the list.

    Its turn comes last: in this event and in every other, all others have seen it.
    """
    attribute(callback_list, "callbacks").append(callback)


def remove_later(callback_list: Any, callback: keras.callbacks.Callback) -> None:
    """Take `callback` out of a list in which its turn is still to come."""
    # In place: Keras goes through this list.
    attribute(callback_list, "callbacks").remove(callback)


def take_out(callback_list: Any, callback: keras.callbacks.Callback) -> None:
    """Take `callback` out of a list that Keras may be going through."""
    # A new list: the one that Keras goes through would skip a callback.
    callbacks = attribute(callback_list, "callbacks")
    others = [each for each in callbacks if each is not callback]
    callback_list.callbacks = others


def around_epoch_end(
    callback_list: Any, context: Callable[[dict[str, Any]], Context]
) -> None:
    """Let all of `callback_list` be called at an epoch's end within `context(logs)`.

    Around the whole list, not first and last in it: an exception in any callback
    leaves through here, and the order of the callbacks doesn't matter. Asked again
    with the same `context`, as in a second `fit` with one list, it does nothing.
    """
    kind = type(callback_list)
    if not hasattr(callback_list, "epoch_end_contexts"):

        class WithContexts(kind):  # type: ignore[misc, valid-type]
            def on_epoch_end(
                self, epoch: int, logs: dict[str, Any] | None = None
            ) -> None:
                logs = {} if logs is None else logs
                with contextlib.ExitStack() as stack:
                    for context in reversed(self.epoch_end_contexts):
                        stack.enter_context(context(logs))
                    super().on_epoch_end(epoch, logs)

        callback_list.__class__ = WithContexts
        callback_list.epoch_end_contexts = []
    if context not in callback_list.epoch_end_contexts:
        callback_list.epoch_end_contexts.append(context)


def around_steps(
    callback: keras.callbacks.Callback, context: Callable[[], Context]
) -> bool:
    """Let the steps of what begins run within `context()`.

    To be called in `on_epoch_begin`, `on_test_begin` or `on_predict_begin`. However the
    steps end, also by an exception or Ctrl-C, the context is left before the call is.

    Returns:
        Whether there is such a call.
    """
    epoch_iterator = running_iterator(callback)
    if epoch_iterator is None:
        return False
    kind = type(epoch_iterator)

    class Around(kind):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[Any]:
            # For these steps only: `fit` keeps its iterators for the next epoch.
            self.__class__ = kind
            return _within(context, self)

    epoch_iterator.__class__ = Around
    return True


def _within(
    context: Callable[[], contextlib.AbstractContextManager[Any]], steps: Any
) -> Iterator[Any]:
    """Yield the steps of a loop, and leave the context when the loop is left.

    Only the loop refers to this generator. Python drops it as soon as the loop ends,
    breaks or raises, even while a traceback keeps the frame, and so closes it.
    """
    with context():
        yield from steps
