"""What the callbacks that can stop a run have in common."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import keras

from fmkit._checks import check_one_of
from fmkit.callbacks._restored import Restored
from fmkit.callbacks._stopping._stop import Stop

__all__ = ["Stopper"]

_logger = logging.getLogger("fmkit.callbacks")


class Stopper(keras.callbacks.Callback):
    """A callback that can stop the run, say why, and be saved and restored."""

    def __init__(self, name: str, verbose: int | str, log_stop: bool) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"`name` must be a non-empty string, got name={name!r}; it "
                "appears in the record and in the message of the stop."
            )
        if verbose not in (0, 1):
            check_one_of("verbose", verbose, ["auto"])
        self.name = name
        self.verbose = verbose
        self.log_stop = bool(log_stop)
        self.stop: Stop | None = None
        self._epoch: int | None = None
        self._restored = Restored()

    def _reset(self) -> None:
        self.stop = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the last run, unless `set_state` has just restored this one."""
        if not self._restored.take(self):
            self._reset()
        self._epoch = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Mark the logs if asked to, and repeat a stop made inside the epoch."""
        if logs is not None and self.log_stop:
            logs[f"stopped_by_{self.name}"] = float(self.stop is not None)
        # A callback that borrows `stop_training` to end an epoch early may have
        # cleared it since.
        if self.stop is not None and self.model is not None:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Show the message, if this callback stopped the run."""
        if self.stop is not None:
            self._display(self.stop.message)

    def _display(self, message: str) -> None:
        verbose = self.verbose
        if verbose == "auto":
            verbose = (self.params or {}).get("verbose", 0)
        # Without interactive logging Keras writes to a log; ours has it already.
        if verbose and keras.config.is_interactive_logging_enabled():
            sys.stdout.write(message + "\n")

    def _optimizer_steps(self) -> int | None:
        """Return the optimizer's count of steps; on a device this is a read."""
        iterations = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        if iterations is None:
            return None
        return int(keras.ops.convert_to_numpy(iterations))

    def _halt(self, stop: Stop) -> None:
        """Stop the run: record it here, in `History.params`, and in the log."""
        self.stop = stop
        if self.model is not None:
            self.model.stop_training = True
        if self.params is not None:
            # One dictionary, shared by all callbacks of a `fit`, so that the
            # `History` it returns has it too; the lists of floats in
            # `History.history` stay what they are.
            self.params.setdefault("stops", []).append(stop.as_dict())
        _logger.info(stop.message)

    def get_state(self) -> dict[str, Any]:
        """Return all that a resumed run needs: JSON values and NumPy arrays."""
        return {"stop": None if self.stop is None else self.stop.as_dict()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, before `fit` or in its first epoch."""
        self._restored.note()
        self.stop = None if state["stop"] is None else Stop.from_dict(state["stop"])
