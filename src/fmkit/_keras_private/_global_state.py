"""Keras's global seed generator, and where Keras prints."""

from __future__ import annotations

from typing import Any

from fmkit._keras_private._pieces import piece

__all__ = ["forget_global_seed", "global_seed_variable", "print_msg"]

_get = piece("keras.src.backend.common.global_state:get_global_attribute")
_set = piece("keras.src.backend.common.global_state:set_global_attribute")
_generator = piece("keras.src.random.seed_generator:global_seed_generator")
print_msg = piece("keras.src.utils.io_utils:print_msg")


def _name() -> str:
    # A constant since Keras 3.13; before, its value stood in the function.
    return _generator.__globals__.get("GLOBAL_SEED_GENERATOR", "global_seed_generator")


def global_seed_variable(*, create: bool = False) -> Any | None:
    """Return the variable of Keras's global seed generator, if there is one."""
    if _get(_name()) is None and not create:
        return None
    return _generator().state


def forget_global_seed() -> None:
    """Let the global seed generator be made anew when it is next needed."""
    _set(_name(), None)
