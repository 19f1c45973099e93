"""Where Keras on PyTorch makes a generator from a seed."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fmkit._keras_private._pieces import Piece, attribute

__all__ = ["generators_made_by"]

_SEEDED = Piece(
    "`FusedModel` on PyTorch in one graph", "it trains as a `keras.Model` does"
)
_lock = threading.Lock()


@contextlib.contextmanager
def generators_made_by(
    make: Callable[[Callable[[Any], Any], Any], Any],
) -> Iterator[None]:
    """Let `make` give the generators of this thread, from Keras's function and a seed.

    Layers draw from such a generator if they have a seed, and some if they have none;
    Keras makes one for each draw.
    """
    module = importlib.import_module("keras.src.backend.torch.random")
    ours = threading.get_ident()
    with _lock:
        of_keras = attribute(module, "torch_seed_generator", _SEEDED)

        def torch_seed_generator(seed: Any) -> Any:
            if threading.get_ident() != ours:
                return of_keras(seed)
            return make(of_keras, seed)

        vars(module)["torch_seed_generator"] = torch_seed_generator
        try:
            yield
        finally:
            vars(module)["torch_seed_generator"] = of_keras
