"""Where Keras imports TensorFlow on JAX and PyTorch only to ask whether it is there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["tensorflow_unloaded"]


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
