"""Whether `set_state` was called for the run that begins next, or in one that runs."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import keras

from fmkit import _keras_private as private

__all__ = ["Restored"]


class Restored:
    """Remembers for a callback that `set_state` has restored it before a run.

    `ExactResume` calls `set_state` in the run, after `on_train_begin`. Such a call must
    say nothing about the next run, and a run may break off without `on_train_end`.
    """

    def __init__(self) -> None:
        self._before_run = False
        self._callback_list: weakref.ref[Any] | None = None

    def note(self) -> None:
        """Note a call of `set_state`."""
        of_run = self._callback_list
        self._before_run = of_run is None or not private.is_running(of_run())

    def take(self, callback: keras.callbacks.Callback) -> bool:
        """Return, as a run begins, whether its state has been set before it."""
        restored, self._before_run, self._callback_list = self._before_run, False, None
        with contextlib.suppress(private.MissingPieceError):
            fit = private.running_fit(callback)
            if fit is not None:
                self._callback_list = weakref.ref(fit.callback_list)
        return restored
