"""What differs between two runs at one step."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Found", "Place"]

# Epochs completed, and steps done of the next one.
Place = tuple[int, int]


class Found(NamedTuple):
    """A difference between two runs at one step.

    Attributes:
        parts: What differs, such as `"batch"` or `"weights"`.
        variable: The first variable that differs, if one does.
        largest: The largest difference between its elements, where it is known.
    """

    parts: tuple[str, ...]
    variable: str | None = None
    largest: float | None = None
