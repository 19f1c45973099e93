"""Validate inside an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from fmkit._checks import check_int
from fmkit.callbacks._batch_counter import BatchCounter
from fmkit.callbacks._saved_settings import check_settings

__all__ = ["BatchValidation"]


class BatchValidation(keras.callbacks.Callback):
    """Validates every N batches and puts the values in the logs.

    The values stand in the batch's logs under the names `fit` uses (`"val_loss"`,
    `"val_accuracy"`), for the callbacks that come *after* this one in the list and
    for Keras's progress bar, so a `ThresholdStopping` can stop inside an epoch. At
    the end of an epoch the latest values go into the epoch's logs, unless `fit`
    has validated itself.

    The training is the same as without it, bit for bit: the running metrics of the
    epoch are put back, and so are the random generators of Python, NumPy and
    PyTorch. It does make Keras wait for each step's logs.

    Args:
        validation_data: As in `fit`: a tuple `(x, y)` or `(x, y, sample_weight)`,
            or a data set that can be read more than once.
        every: Batches between two validations, counted through the epochs.
        batch_size: Rows a batch, for arrays. Defaults to 32, as in `evaluate`.
        steps: Batches of each validation. Defaults to all there are.
        callbacks: Callbacks for the validation itself, such as one that swaps in
            averaged weights.

    The attribute `records` lists one dictionary for each validation: `"epoch"`
    (index from 0), `"batch"` (batches done in this `fit`) and the values.

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
                "`validation_data` is read anew at each validation, got "
                f"{type(validation_data).__name__}, which can be read once: pass "
                "arrays, a PyDataset, a tf.data.Dataset or a DataLoader."
            )
        self.validation_data = validation_data
        self.every = check_int("every", every)
        self.batch_size = (
            None if batch_size is None else check_int("batch_size", batch_size)
        )
        self.steps = None if steps is None else check_int("steps", steps)
        self.callbacks = list(callbacks)
        self._restored = False
        self._reset()

    def _reset(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._counter = BatchCounter(self.every)
        self._epoch = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the last run, unless `set_state` has just restored this one."""
        if not self._restored:
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

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """End the run that `set_state` may have restored."""
        self._restored = False

    def _validate(self) -> dict[str, float]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(self.validation_data)
        model = self.model
        with training_undisturbed(model, self.callbacks):
            values = model.evaluate(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=self.batch_size,
                steps=self.steps,
                callbacks=self.callbacks,
                verbose=0,
                return_dict=True,
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
        """Go on from `state`, before `fit` or in its first epoch.

        Raises:
            ValueError: If the state was saved with another `every`.
        """
        check_settings(type(self).__name__, state, {"every": self.every})
        self._restored = True
        self.records = [dict(record) for record in state["records"]]
        self._counter.set_state(state)


@contextmanager
def training_undisturbed(
    model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]
) -> Iterator[None]:
    """Give back what `evaluate` takes: metrics, parameters, generators, mode."""
    metrics = [variable.numpy() for variable in model.metrics_variables]
    params = [callback.params for callback in callbacks]
    generators = random.getstate(), np.random.get_state()
    try:
        with _torch_undisturbed(model):
            yield
    finally:
        for variable, value in zip(model.metrics_variables, metrics, strict=True):
            variable.assign(value)
        for callback, value in zip(callbacks, params, strict=True):
            callback.set_params(value)
        random.setstate(generators[0])
        np.random.set_state(generators[1])


@contextmanager
def _torch_undisturbed(model: keras.Model) -> Iterator[None]:
    """Give back PyTorch's generator, which each loader draws from, and the mode."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    training = model.training
    # By hand rather than `fork_rng`, which also looks at every device.
    generator = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(generator)
        model.train(training)
