"""Validate inside an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from fmkit._checks import check_int, or_none
from fmkit.callbacks._batch_counter import BatchCounter
from fmkit.callbacks._evaluation import evaluate_undisturbed
from fmkit.callbacks._restored import Restored
from fmkit.callbacks._saved_settings import check_settings

__all__ = ["BatchValidation"]


class BatchValidation(keras.callbacks.Callback):
    """Validates every N batches and puts the values in the logs.

    The values are in the batch's logs under the names that `fit` uses
    (`"val_loss"`, `"val_accuracy"`), for the callbacks that come *after* this one in
    the list and for Keras's progress bar, so a `ThresholdStopping` can stop inside an
    epoch. At the end of an epoch the latest values go into the epoch's logs, unless
    `fit` itself has validated.

    The training is the same as without this callback, bit for bit: the running metrics
    of the epoch are restored, and so are the random generators of Python, NumPy and
    PyTorch. It does make Keras wait for the logs of each step.

    Args:
        validation_data: As in `fit`: a tuple `(x, y)` or `(x, y, sample_weight)`,
            or a data set that can be read more than once.
        every: Batches between two validations, counted across epochs.
        batch_size: Rows per batch, for arrays. Defaults to 32, as in `evaluate`.
        steps: Batches in each validation. Defaults to all of them.
        callbacks: Callbacks for the validation itself, such as
            `EvaluateWithAverages`.

    Attributes:
        records: One dictionary per validation: `"epoch"` (index from 0), `"batch"`
            (batches done in this `fit`) and the values.

    Raises:
        TypeError: If `every` or `batch_size` is not an integer, or
            `validation_data` is a generator, which can be read only once.
        ValueError: If `every`, `batch_size` or `steps` is less than 1.
    """

    def __init__(
        self,
        validation_data: Any,
        every: int,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        super().__init__()
        if isinstance(validation_data, Iterator):
            raise TypeError(
                "`validation_data` is read again at each validation, got "
                f"{type(validation_data).__name__}, which can be read once: pass "
                "arrays, a PyDataset, a tf.data.Dataset or a DataLoader."
            )
        self.validation_data = validation_data
        self.every = check_int("every", every)
        self.batch_size = or_none(check_int, "batch_size", batch_size)
        self.steps = or_none(check_int, "steps", steps)
        self.callbacks = list(callbacks)
        self._restored = Restored()
        self._reset()

    def _reset(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._counter = BatchCounter(self.every)
        self._epoch = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the last run, unless `set_state` has just restored this one."""
        if not self._restored.take(self):
            self._reset()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count the epoch's batches."""
        self._epoch = epoch
        self._counter.begin_epoch()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Validate if it is time to."""
        if self._counter.is_due(batch, self.params):
            values = self._validate()
            if logs is not None:
                logs.update(values)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Put the latest values in the epoch's logs, where `fit` has put none."""
        if logs is not None and self.records:
            for name, value in self.records[-1].items():
                if name.startswith("val_"):
                    logs.setdefault(name, value)

    def _validate(self) -> dict[str, float]:
        values = evaluate_undisturbed(
            self.model,
            self.validation_data,
            callbacks=self.callbacks,
            batch_size=self.batch_size,
            steps=self.steps,
        )
        values = {f"val_{name}": value for name, value in values.items()}
        self.records.append(
            {"epoch": self._epoch, "batch": self._counter.batches, **values}
        )
        return values

    def get_state(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as JSON values."""
        return {
            "settings": {"every": self.every},
            "records": self.records,
            **self._counter.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`, before `fit` or in its first epoch.

        Raises:
            ValueError: If the state was saved with a different `every`.
        """
        check_settings(type(self).__name__, state, {"every": self.every})
        self._restored.note()
        self.records = [dict(record) for record in state["records"]]
        self._counter.set_state(state)
