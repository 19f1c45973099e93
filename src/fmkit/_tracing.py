"""Whether a step on PyTorch is being traced into a graph.

Then the values in tensors are those of an example, and an operation that changes a
tensor in place is noted like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_tracing", "tracing"]

_tracing = ContextVar("tracing", default=False)


def is_tracing() -> bool:
    """Return whether what runs now is played again later with other values."""
    return _tracing.get()


@contextmanager
def tracing() -> Iterator[None]:
    """Say that it is."""
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)
