"""Averages of the weights where a trial is scored and saved."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from fmkit.optimizers import averaged


class ScoreAverages(keras.callbacks.Callback):
    """Hold the averages from each validation until the epoch has been saved.

    It must be the last callback: it gives the raw weights back at the end of the
    epoch, when the others have had theirs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._open.close()
        self._open.enter_context(averaged(self.model))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._open.close()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._open.close()

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing is carried from one epoch to the next."""
