"""Layers, variables, and the arguments of `compile` of a model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from fmkit._keras_private._pieces import attribute

__all__ = [
    "all_layers",
    "attributes_of_every_layer",
    "build_variables",
    "compile_arguments",
    "divides_activity_losses",
    "is_activated",
    "is_masked",
    "marks_masks",
    "metric_directions",
    "synchronize",
    "train_step_replaced",
]


def build_variables(model: Any, peek: Callable[[], Any]) -> None:
    """Make every variable of model, metrics and optimizer, without a step.

    `peek` returns a batch; it is asked only if something needs its shapes.
    """
    if isinstance(model, keras.Sequential) and not model.built:
        # As its first call does. Keras's symbolic build can't make the states of
        # stateful recurrent layers.
        model.build(tuple(keras.tree.flatten(peek())[0].shape))

    def steps() -> Iterator[tuple[int, int, list[Any]]]:
        yield 0, 0, [keras.tree.map_structure(_strings_as_tensors, peek())]

    attribute(model, "_symbolic_build")(iterator=steps())


def _strings_as_tensors(leaf: Any) -> Any:
    """Return a tensor for NumPy's strings, whose dtype, as "<U21", Keras refuses."""
    kind = getattr(getattr(leaf, "dtype", None), "kind", None)
    return keras.ops.convert_to_tensor(leaf) if kind in ("U", "S") else leaf


def compile_arguments(model: Any) -> dict[str, Any]:
    """Return the arguments that `compile` was given; none if it is a user's own."""
    config = _of_compile(model, "_compile_config")
    return dict(config.config) if config is not None else {}


def _of_compile(model: Any, name: str) -> Any | None:
    """Return an attribute that `compile` makes; `None` if the model has none."""
    found = getattr(model, name, None)
    if found is None:
        attribute(_examples()[0], name)  # none because of the model, not of Keras
    return found


def all_layers(model: Any) -> list[Any]:
    """Return every layer of `model`, at any depth, each once."""
    return list(attribute(model, "_flatten_layers")())


def metric_directions(model: Any) -> dict[str, str]:
    """Return "up" or "down" for each name in the logs whose metric says which.

    The names are those that Keras gives the metrics of `compile`, with the output's
    name before them if there are several outputs, and the losses of the outputs.
    """
    compiled: Any = _of_compile(model, "_compile_metrics")
    losses = getattr(_of_compile(model, "_compile_loss"), "metrics", [])
    metrics: dict[str, Any] = {}
    for metric in getattr(model, "metrics", []):
        if metric is not compiled:
            metrics[metric.name] = metric
        elif metric.built:
            # One result for each metric in the same order, unless two share a name.
            names, parts = list(metric.result()), metric.metrics
            if len(names) == len(parts):
                metrics.update(zip(names, parts, strict=True))
    directions = {name: getattr(m, "_direction", None) for name, m in metrics.items()}
    if None in directions.values():
        attribute(_example_metric(), "_direction")  # some metrics have none
    directions.update((metric.name, "down") for metric in losses)
    return {name: direction for name, direction in directions.items() if direction}


@functools.cache
def _example_metric() -> Any:
    return keras.metrics.MeanAbsoluteError(name="fmkit_example")


@functools.cache
def divides_activity_losses() -> bool:
    """Return whether Keras divides what an activity regularizer returns by the batch.

    It does since 3.14, as Keras 2 did; before, the value is a part of the loss as it
    is. No page says so: a layer with two rows is asked.
    """
    layer = keras.layers.Identity(
        activity_regularizer=lambda outputs: keras.ops.sum(outputs),
        name="fmkit_example",
    )
    layer(keras.ops.ones((2, 1)))
    (loss,) = layer.losses
    return float(keras.ops.convert_to_numpy(loss)) == 1.0


@contextlib.contextmanager
def train_step_replaced(model: Any, step: Any, function: Any) -> Iterator[Any]:
    """Let `fit` make another step within a block, which begins while `fit` runs.

    The trainers read `model.train_function` anew for each execution, and that of
    PyTorch `model.train_step`.

    Args:
        model: The model.
        step: What is called in place of `model.train_step`.
        function: What the block before this one was given: compiled already; or `None`.

    Yields:
        The train function of the block.
    """
    before, own = model.train_function, vars(model).get("train_step")
    vars(model)["train_step"] = step
    try:
        if function is None:
            model.make_train_function(force=True)
        else:
            model.train_function = function
        yield model.train_function
    finally:
        model.train_function = before
        del vars(model)["train_step"]
        if own is not None:
            vars(model)["train_step"] = own


def synchronize(model: Any) -> None:
    """Let the variables of `model` hold its state, also within `fit` on JAX.

    Keras's JAX trainer keeps the state outside of the variables during an epoch; once
    synchronised it reads them again before the next step.
    """
    if keras.backend.backend() == "jax" and isinstance(model, keras.Model):
        attribute(model, "jax_state_sync")()


@functools.cache
def _examples() -> list[Any]:
    """Return one compiled model of each kind that Keras has."""
    inputs = keras.Input((1,), name="fmkit_example")
    # Before Keras 3.15 an input that is an output too is refused.
    outputs = keras.layers.Identity(name="fmkit_identity")(inputs)
    functional = keras.Model(inputs, outputs, name="fmkit_example")
    sequential = keras.Sequential([inputs], name="fmkit_example")
    subclassed = keras.Model(name="fmkit_example")
    models = [functional, sequential, subclassed]
    for model in models:
        model.compile(optimizer=None)
    return models


@functools.cache
def attributes_of_every_layer() -> frozenset[str]:
    """Return the names of the attributes that every layer or model of Keras has."""
    layer = keras.layers.Layer(name="fmkit_example")
    names = {name for each in (layer, *_examples()) for name in vars(each)}
    return frozenset(names | {"history", "_eval_epoch_iterator", "_initial_epoch"})


def is_activated(outputs: Any) -> bool:
    """Whether a softmax or a sigmoid of Keras's has made a tensor.

    Keras marks what they return, for its own losses. On JAX tensors take no mark.
    """
    return hasattr(outputs, "_keras_logits")


@functools.cache
def marks_masks() -> bool:
    """Return whether Keras keeps a tensor's mask where `is_masked` looks for it."""
    masking = keras.layers.Masking(name="fmkit_example")
    return is_masked(masking(keras.ops.zeros((1, 1, 1))))


def is_masked(outputs: Any) -> bool:
    """Whether a tensor has a mask, where `marks_masks`."""
    return getattr(outputs, "_keras_mask", None) is not None
