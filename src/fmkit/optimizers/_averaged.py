"""The averages of a model: for a block, as a model of their own, or by optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
from keras import ops

from fmkit._layer_state import copy_state
from fmkit.optimizers._exponential_moving_average import ExponentialMovingAverage
from fmkit.optimizers._swap import swapped, walk


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[keras.Model]:
    """Let `model` hold the averages of its weights for the length of a block.

    At the end of the block, also by an exception or Ctrl-C, every weight has the bits
    it had before; meanwhile they are held aside, which takes the memory of one more
    copy. Weights that the block sets are lost with it. Blocks can be nested: the
    outermost puts in and takes out. Before the first update of the averages the model
    keeps its weights. Statistics of `BatchNormalization` stay as they are.

    Args:
        model: A model compiled with `ExponentialMovingAverage`.

    Yields:
        `model` itself.

    Raises:
        ValueError: If the model's optimizer keeps no averages, or was built for
            another model.
        RuntimeError: If the block trained the model: those steps are undone.
    """
    with swapped(model, find_averages(model)):
        yield model


def averaged_model(model: keras.Model) -> keras.Model:
    """Return a copy of `model`, with no optimizer, whose weights are the averages.

    For serving and export, as TensorFlow 1's `variables_to_restore`. Everything but
    the averaged weights is copied as it is: statistics of `BatchNormalization`, what
    layers have learnt by `adapt`, and what layers of your own save by Keras's hooks
    (`save_own_variables`, `save_assets`).

    Args:
        model: A built model compiled with `ExponentialMovingAverage`.

    Returns:
        A model of the same class that shares nothing with `model`.

    Raises:
        ValueError: If the model's optimizer keeps no averages, or the copy has other
            variables, as a subclassed model's may whose `get_config` is incomplete.
    """
    find_averages(model)
    copy = keras.models.clone_model(model)
    copy.compile(optimizer=None)  # the clone has an averaging optimizer of its own
    shapes = [tuple(v.shape) for v in model.variables]
    if [tuple(v.shape) for v in copy.variables] != shapes:
        raise ValueError(
            f"The copy of {model.name!r} made from its `get_config` has other "
            "variables than the model. Make the copy by hand, and assign to it inside "
            "`with fmkit.optimizers.averaged(model)`."
        )
    with averaged(model):
        for target, source in zip(copy.variables, model.variables, strict=True):
            target.assign(ops.copy(source))
        # Within the block: a layer may make something of its weights.
        copy_state(model, copy)
    return copy


def find_averages(model: keras.Model) -> list[ExponentialMovingAverage]:
    """Return the averaging optimizers of `model`, or say what to write.

    Args:
        model: A compiled model.

    Returns:
        One optimizer, or several inside a `MultiOptimizer`.

    Raises:
        TypeError: If `model` is no model.
        ValueError: If there is none.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a keras.Model that was compiled with "
            f"ExponentialMovingAverage, got {model!r} ({type(model).__name__})."
        )
    optimizer = getattr(model, "optimizer", None)
    found = [
        part for part in walk(optimizer) if isinstance(part, ExponentialMovingAverage)
    ]
    if not found:
        name = getattr(optimizer, "name", None)
        raise ValueError(
            f"The optimizer of model {model.name!r} is {name!r}, which keeps no "
            "averages of the weights. Compile with\n    model.compile(fmkit.optimizers."
            f"ExponentialMovingAverage({name or 'adam'!r}, decay=0.99), ...)"
        )
    return found
