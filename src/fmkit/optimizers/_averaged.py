"""The averages of a model: in it for a block, or as a model of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from fmkit._batch_norm import update_batch_norm
from fmkit._layer_state import copy_state
from fmkit._swap import find_averages, swapped


@contextlib.contextmanager
def averaged(model: keras.Model, which: str | None = None) -> Iterator[keras.Model]:
    """Let `model` hold the averages of its weights for the length of a block.

    At the end of the block, also by an exception or Ctrl-C, every weight is restored
    bit for bit. A copy is kept meanwhile, which takes the memory of the weights once
    more. Weights assigned within the block are lost at its end. Blocks can be nested;
    only the outermost swaps. Before the first averaging update the model keeps its
    weights. Statistics of `BatchNormalization` are not touched.

    Args:
        model: A model compiled with `WeightAverages`, `ExponentialMovingAverage` or
            Keras's `ScheduleFreeAdamW`.
        which: The name of the average, where several are kept; by default the first.

    Yields:
        `model` itself.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If the model's optimizer keeps no averages, none of this name, or
            was built for a different model.
        RuntimeError: If the block trained the model: those steps are undone.
    """
    with swapped(model, find_averages(model, which)):
        yield model


def averaged_model(
    model: keras.Model, which: str | None = None, *, batch_norm_data: Any = None
) -> keras.Model:
    """Return a copy of `model`, with no optimizer, whose weights are the averages.

    For serving and export, like TensorFlow 1's `variables_to_restore`. All else is
    copied as it is: statistics of `BatchNormalization`, what layers have learnt in
    `adapt`, and what your own layers save through Keras's hooks
    (`save_own_variables`, `save_assets`).

    Args:
        model: As in `averaged`; built.
        which: As in `averaged`.
        batch_norm_data: Data on which `fmkit.evaluation.update_batch_norm` measures the
            statistics of `BatchNormalization` anew; part of the training set is enough.

    Returns:
        A model of the same class that shares nothing with `model`.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If the model's optimizer keeps no averages, or the copy has
            different variables, as when the `get_config` of a subclass is incomplete.
    """
    find_averages(model, which)
    copy = keras.models.clone_model(model)
    copy.compile(optimizer=None)  # the clone has an averaging optimizer of its own
    shapes = [tuple(v.shape) for v in model.variables]
    if [tuple(v.shape) for v in copy.variables] != shapes:
        raise ValueError(
            f"The copy of {model.name!r} made from its `get_config` has different "
            "variables from the model's. Make the copy by hand, and assign to it in "
            "`with fmkit.optimizers.averaged(model)`."
        )
    with averaged(model, which):
        for target, source in zip(copy.variables, model.variables, strict=True):
            target.assign(ops.copy(source))
        # Within the block: a layer may compute with values made from its weights.
        copy_state(model, copy)
    if batch_norm_data is not None:
        update_batch_norm(copy, batch_norm_data)
    return copy
