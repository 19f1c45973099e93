"""What TensorFlow keeps private: its seed, the steps of a dataset, tensors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

__all__ = [
    "is_seeded",
    "stateful_operations",
    "tensor_interface",
    "tensorflow_unloaded",
    "ways_through",
]


@contextlib.contextmanager
def tensorflow_unloaded() -> Iterator[None]:
    """Let Keras take TensorFlow for missing within a block, if nobody has loaded it.

    Keras asks "is this one of TensorFlow's tensors?" and "is there a generator of
    TensorFlow to seed?" by an import that takes two seconds. As long as nobody has
    loaded TensorFlow, the answer is no. On a Keras that asks in another way, or once
    TensorFlow is loaded, this does nothing.
    """
    module = sys.modules.get("keras.src.utils.module_utils")
    lazy: Any = getattr(module, "tensorflow", None)
    # Not by `getattr`, which would import TensorFlow. `None`: Keras hasn't asked yet.
    unasked = lazy is not None and vars(lazy).get("_available", True) is None
    if not unasked or "tensorflow" in sys.modules:
        yield
        return
    lazy._available = False
    try:
        yield
    finally:
        lazy._available = None


def ways_through(dataset: Any) -> list[list[str]]:
    """Return the steps of a `tf.data.Dataset`, from each of its sources to its end.

    TensorFlow has no public way to ask; where the private one has moved, a step is
    "unknown".
    """
    name = type(dataset).__name__.strip("_").removesuffix("Dataset")
    name = name.rstrip("V1234")
    inputs = getattr(dataset, "_inputs", None)
    if inputs is None:
        return [["unknown"]]
    ways = [way for each in inputs() for way in ways_through(each)]
    return [[*way, name] for way in ways or [[]]]


def stateful_operations(dataset: Any) -> set[str]:
    """Return the operations with a state in the functions of a `tf.data.Dataset`."""
    found = set()
    for function in getattr(dataset, "_functions", list)():
        graph = getattr(getattr(function, "function", None), "graph", None)
        definition = graph.as_graph_def() if graph is not None else None
        bodies = [] if definition is None else [definition.node]
        if definition is not None:
            bodies += [each.node_def for each in definition.library.function]
        found |= {node.op for body in bodies for node in body if _has_state(node.op)}
    for each in getattr(dataset, "_inputs", list)():
        found |= stateful_operations(each)
    return found


def _has_state(operation: str) -> bool:
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(operation)
    return definition is not None and bool(definition.is_stateful)


def is_seeded() -> bool:
    """Whether TensorFlow's random operations were seeded, as far as can be told."""
    try:
        from tensorflow.python.eager import context
    except ImportError:
        return True
    seed = getattr(context, "global_seed", None)
    return seed is None or seed() is not None


def tensor_interface() -> type:
    """Return the class that TensorFlow's operations take for a tensor.

    Where TensorFlow has moved it: `object`, and an operation that asks for a tensor
    says that it was given something else.
    """
    import tensorflow as tf

    types = getattr(getattr(tf, "__internal__", None), "types", None)
    return getattr(types, "Tensor", object)
