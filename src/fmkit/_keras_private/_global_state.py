"""Keras's global seed generator, and where Keras prints."""

from __future__ import annotations

from typing import Any

from keras.src.backend.common import global_state
from keras.src.random.seed_generator import (
    GLOBAL_SEED_GENERATOR,
    global_seed_generator,
)
from keras.src.utils.io_utils import print_msg

__all__ = ["forget_global_seed", "global_seed_variable", "print_msg"]


def global_seed_variable(*, create: bool = False) -> Any | None:
    """Return the variable of Keras's global seed generator, if there is one."""
    if global_state.get_global_attribute(GLOBAL_SEED_GENERATOR) is None and not create:
        return None
    return global_seed_generator().state


def forget_global_seed() -> None:
    """Let the global seed generator be made anew when it is next needed."""
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
