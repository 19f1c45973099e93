"""The state of every global generator that a training may draw from."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private

__all__ = ["random_state", "restore_random_state"]


def random_state() -> dict[str, Any]:
    """Return the state of every global generator that Keras may draw from."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, np.array(words, np.uint64), gauss],
        "numpy": list(np.random.get_state()),
    }
    seed = private.global_seed_variable()
    if seed is not None:
        state["keras"] = np.array(keras.ops.convert_to_numpy(seed))
    if keras.backend.backend() == "torch":
        import torch

        state["torch"] = torch.get_rng_state().numpy().copy()
        if torch.cuda.is_available():
            devices = torch.cuda.get_rng_state_all()
            state["torch.cuda"] = [device.numpy().copy() for device in devices]
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to where `random_state` found it."""
    if "keras" in state:
        # Making the generator draws from Python's: before that is restored.
        variable = private.global_seed_variable(create=True)
        assert variable is not None
        variable.assign(state["keras"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    if "torch" in state:
        import torch

        torch.set_rng_state(torch.from_numpy(state["torch"]))
        if "torch.cuda" in state and torch.cuda.is_available():
            devices = [torch.from_numpy(device) for device in state["torch.cuda"]]
            torch.cuda.set_rng_state_all(devices)
