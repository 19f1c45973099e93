"""`evaluate` from within `fit`, which leaves the training as it found it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from fmkit._generators import undisturbed

__all__ = ["evaluate_undisturbed"]


def evaluate_undisturbed(
    model: keras.Model,
    data: Any,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **arguments: Any,
) -> dict[str, Any]:
    """Evaluate `model` as if nothing had happened to the training that runs.

    Put back are the running metrics, the parameters of `callbacks`, the random
    generators of Python, NumPy and PyTorch, and the mode of a PyTorch module.

    Args:
        model: A model in `fit`.
        data: `(x, y)`, `(x, y, sample_weight)` or a data set.
        callbacks: Callbacks of the evaluation.
        **arguments: Other arguments of `evaluate`.

    Returns:
        The value of each metric by its name.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with (
        _metrics_kept(model),
        _params_kept(callbacks),
        # Not the generators that are read from a device: this runs inside an epoch.
        undisturbed("python", "numpy", "torch"),
        _mode_kept(model),
    ):
        results: dict[str, Any] = model.evaluate(
            x,
            y,
            sample_weight=sample_weight,
            callbacks=list(callbacks),
            verbose=0,
            return_dict=True,
            **arguments,
        )
    return results


@contextlib.contextmanager
def _metrics_kept(model: keras.Model) -> Iterator[None]:
    values = [variable.numpy() for variable in model.metrics_variables]
    try:
        yield
    finally:
        for variable, value in zip(model.metrics_variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def _params_kept(callbacks: Sequence[keras.callbacks.Callback]) -> Iterator[None]:
    params = [callback.params for callback in callbacks]
    try:
        yield
    finally:
        for callback, value in zip(callbacks, params, strict=True):
            callback.set_params(value)


@contextlib.contextmanager
def _mode_kept(model: keras.Model) -> Iterator[None]:
    """Only on PyTorch is a model a module, in training mode or not."""
    if keras.backend.backend() != "torch":
        yield
        return
    training = model.training
    try:
        yield
    finally:
        model.train(training)
