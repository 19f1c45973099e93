"""Statistics of BatchNormalization: finding them, and measuring them again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit._checks import check_int
from fmkit._generators import undisturbed
from fmkit._keras_private import all_layers

__all__ = ["batch_norm_statistics", "update_batch_norm"]


def update_batch_norm(
    model: keras.Model, data: Any, *, batch_size: int = 128, steps: int | None = None
) -> None:
    r"""Measure the statistics of every `BatchNormalization` layer on `data`.

    Averaged weights give different activations from the raw weights, so the moving
    mean and variance gathered in training don't fit them. This function passes
    `data` through the model once, in training mode, and sets for each channel

    $$\mu = \frac1N \sum_b n_b \mu_b, \qquad
      \sigma^2 = \frac1N \sum_b n_b \bigl(\sigma_b^2 + (\mu_b - \mu)^2\bigr)$$

    over batches $b$ of $n_b$ examples: in the first such layer the mean and variance of
    its inputs, with no momentum and no part of the old statistics. Later layers see
    inputs normalised batch by batch, as in training, so large batches are better.

    Nothing else in the model changes: weights, other state and random seeds are as
    before. Layers that are frozen (`trainable=False`) keep their statistics.
    Dropout is active during the pass, as in training. The batches run eagerly.

    Args:
        model: A built model.
        data: An array or a list or dict of arrays, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, or an iterable of batches. Of a batch that is a
            tuple the first entry is used, so it may contain targets.
        batch_size: Examples per batch, if `data` is arrays.
        steps: Number of batches to use; `None` for all. Needed for endless data.

    Raises:
        ValueError: If `data` holds no batch.

    Examples:
        >>> model = keras.Sequential([
        ...     keras.Input((1,)), keras.layers.BatchNormalization()])
        >>> update_batch_norm(model, np.array([[1.0], [3.0]]))
        >>> [round(float(v[0]), 4) for v in model.non_trainable_variables]
        [2.0, 1.0]

    References:
        Izmailov et al., [*Averaging weights leads to wider optima and better
        generalization*](https://arxiv.org/abs/1803.05407), 2018, section 3.2.
    """
    check_int("batch_size", batch_size)
    if steps is not None:
        check_int("steps", steps)
    layers = _measured_layers(model)
    if not layers:
        return
    pooled = [(layer, _Pooled(), _Pooled()) for layer in layers]
    examples = 0
    with _measuring(model, layers):
        for number, batch in enumerate(_batches(data, batch_size)):
            if number == steps:
                break
            count = int(ops.shape(keras.tree.flatten(batch)[0])[0])
            model(batch, training=True)
            examples += count
            for layer, mean, spread in pooled:
                mean.add(_float64(layer.moving_mean), count)
                spread.add(_float64(layer.moving_variance), count)
    if not examples:
        raise ValueError(
            "`data` held no batch, so there is nothing to measure. An iterator that "
            "was used before is at its end: give the data set itself."
        )
    for layer, mean, spread in pooled:
        layer.moving_mean.assign(mean.mean)
        layer.moving_variance.assign(spread.mean + mean.squares / examples)


def batch_norm_statistics(model: keras.Model) -> list[Any]:
    """Return the moving means and variances that training would update."""
    return [
        variable
        for layer in _measured_layers(model)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


class _Pooled:
    """Mean and sum of squared deviations of weighted vectors, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, value: np.ndarray, count: int) -> None:
        # Chan's update: no difference of large squares, so equal values give 0.
        self.count += count
        delta = value - self.mean
        self.mean = self.mean + delta * (count / self.count)
        self.squares = self.squares + count * delta * (value - self.mean)


def _measured_layers(model: keras.Model) -> list[Any]:
    return [
        layer
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


@contextlib.contextmanager
def _measuring(model: keras.Model, layers: list[Any]) -> Iterator[None]:
    """Let the layers show each batch's own statistics; put the rest back after."""
    ours = {id(variable) for variable in batch_norm_statistics(model)}
    kept = [
        (v, ops.copy(v)) for v in model.non_trainable_variables if id(v) not in ours
    ]
    old = [(v, ops.copy(v)) for v in batch_norm_statistics(model)]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
            # Zero times an infinite old statistic would not be zero.
            layer.moving_mean.assign(ops.zeros(layer.moving_mean.shape))
            layer.moving_variance.assign(ops.ones(layer.moving_variance.shape))
        with _without_gradients(), undisturbed("torch", "torch.cuda"):
            yield
    except BaseException:
        _assign(old)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        _assign(kept)


def _without_gradients() -> contextlib.AbstractContextManager[Any]:
    """Record no gradients, which only PyTorch does by itself."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def _assign(pairs: Iterable[tuple[Any, Any]]) -> None:
    for variable, value in pairs:
        variable.assign(value)


def _float64(variable: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(variable), "float64")


def _batches(data: Any, batch_size: int) -> Iterator[Any]:
    """Yield the inputs of each batch."""
    if isinstance(data, keras.utils.PyDataset):
        data = map(data.__getitem__, range(data.num_batches))
    elif _is_arrays(data):
        arrays = data
        length = len(keras.tree.flatten(arrays)[0])
        data = (
            keras.tree.map_structure(
                lambda array, start=start: array[start : start + batch_size], arrays
            )
            for start in range(0, length, batch_size)
        )
    for batch in data:
        inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
        yield keras.tree.map_structure(ops.convert_to_tensor, inputs)


def _is_arrays(data: Any) -> bool:
    leaves = keras.tree.flatten(data)
    return bool(leaves) and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves
    )
