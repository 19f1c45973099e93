"""The global random generators that a training may draw from."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Collection, Iterator
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._checks import check_int

__all__ = [
    "random_state",
    "restore_random_state",
    "set_random_seed",
    "storable_state",
    "undisturbed",
]

# PyTorch's are read only where it is Keras's backend.
GENERATORS = ("python", "numpy", "keras", "torch", "torch.cuda")


def set_random_seed(seed: int) -> None:
    """Seed every generator as `keras.utils.set_random_seed` does, without its wait.

    Python's, NumPy's, Keras's and PyTorch's (where it is the backend) draw the same
    numbers after either. On JAX and PyTorch Keras's function also imports TensorFlow
    wherever it is installed, which takes seconds, to seed it. This one seeds TensorFlow
    if it is in use: on its own backend, or loaded already.

    Args:
        seed: From 0 to 4,294,967,295, which is as far as NumPy goes.

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If it is out of range. No generator has been touched.

    Examples:
        >>> import keras, fmkit
        >>> fmkit.set_random_seed(7)
        >>> first = keras.random.uniform(())
        >>> fmkit.set_random_seed(7)
        >>> bool(keras.random.uniform(()) == first)
        True
    """
    seed = check_int("seed", seed, minimum=0)
    if seed >= 2**32:
        raise ValueError(
            f"`seed` must be below 2**32, got seed={seed}. Take seed % 2**32."
        )
    with private.tensorflow_unloaded():
        keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def undisturbed(*generators: str) -> Iterator[None]:
    """Put global generators back, at the end of a block, to where they were before it.

    Args:
        generators: Which ones, among `GENERATORS`; all of them if none is named, with
            PyTorch's also where it is not the backend, for its `DataLoader`. The state
            of Keras's and of each CUDA device is read from the device.
    """
    names = generators or GENERATORS
    state = random_state(names, others=not generators)
    try:
        yield
    finally:
        if "keras" in names and "keras" not in state:
            # There was none yet: whoever needs one next draws its start anew.
            private.forget_global_seed()
        restore_random_state(state)


def random_state(
    names: Collection[str] = GENERATORS,
    *,
    storable: bool = True,
    others: bool = False,
) -> dict[str, Any]:
    """Return the state of every global generator, or of those with these `names`.

    Args:
        names: Among `GENERATORS`.
        storable: Whether as a commit holds it; else `storable_state` makes it so.
        others: Whether PyTorch's is read where it is not the backend too.
    """
    state: dict[str, Any] = {}
    if "python" in names:
        state["python"] = random.getstate()
    if "numpy" in names:
        state["numpy"] = np.random.get_state()
    seed = private.global_seed_variable() if "keras" in names else None
    if seed is not None:
        state["keras"] = np.array(keras.ops.convert_to_numpy(seed))
    torch: Any = sys.modules.get("torch")
    is_backend = keras.backend.backend() == "torch"
    if torch is not None and "torch" in names and (is_backend or others):
        state["torch"] = torch.get_rng_state().numpy().copy()
    if is_backend and "torch.cuda" in names and torch.cuda.is_available():
        devices = torch.cuda.get_rng_state_all()
        state["torch.cuda"] = [device.numpy().copy() for device in devices]
    return storable_state(state) if storable else state


def storable_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return states of generators as a commit holds them: the many words in arrays."""
    state = dict(state)
    if "python" in state:
        version, words, gauss = state["python"]
        state["python"] = [version, np.array(words, np.uint64), gauss]
    if "numpy" in state:
        state["numpy"] = list(state["numpy"])
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator in `state` back to where `random_state` found it."""
    if "keras" in state:
        # Making the generator draws from Python's: before that is restored.
        variable = private.global_seed_variable(create=True)
        assert variable is not None
        variable.assign(state["keras"])
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(int(word) for word in words), gauss))
    if "numpy" in state:
        np.random.set_state(tuple(state["numpy"]))
    if "torch" in state:
        import torch

        torch.set_rng_state(torch.from_numpy(state["torch"]))
        if "torch.cuda" in state and torch.cuda.is_available():
            devices = [torch.from_numpy(device) for device in state["torch.cuda"]]
            torch.cuda.set_rng_state_all(devices)
