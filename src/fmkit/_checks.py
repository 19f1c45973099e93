"""Argument checks that more than two modules use.

Every message says which argument, what was received, the rule, and what to
write instead. The checks return the value as a plain Python number, so that
`get_config` can be written to JSON.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")


def check_int(
    name: str, value: Any, *, minimum: int = 1, bits: int | None = None
) -> int:
    """Return `value` as an `int`, or refuse it if it is not one, too small or large.

    `bits`: how many an unsigned number has; `None` for no bound.
    """
    # bool is an int to Python; as a count it is always a mistake.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be an integer, got {name}={value!r} "
            f"({type(value).__name__})."
        )
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {name}={value!r}.")
    if bits is not None and value >= 2**bits:
        raise ValueError(f"`{name}` must be below 2**{bits}, got {name}={value!r}.")
    return int(value)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return `value` as a finite `float` inside the given bounds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number, got {name}={value!r} ({type(value).__name__})."
        )
    number = float(value)
    if not (
        math.isfinite(number)
        and (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
    ):
        limits = zip(
            ("above", "at least", "below", "at most"),
            (above, at_least, below, at_most),
            strict=True,
        )
        rule = " and ".join(f"{word} {x:g}" for word, x in limits if x is not None)
        raise ValueError(
            f"`{name}` must be a finite number{' ' + rule if rule else ''}, "
            f"got {name}={value!r}."
        )
    return number


def check_one_of(name: str, value: Any, options: Iterable[str]) -> str:
    """Return `value` if it is one of `options`; else name the closest of them."""
    options = list(options)
    if value not in options:
        raise ValueError(
            f"`{name}` must be one of {options}, got {name}={value!r}."
            f"{did_you_mean(value, options)}"
        )
    return str(value)


def check_path(name: str, value: Any) -> Path:
    """Return an absolute path, so that `os.chdir` does not change it."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"`{name}` must be a path, as a text or pathlib.Path, got {name}={value!r} "
            f"({type(value).__name__})."
        )
    if not os.fspath(value):
        raise ValueError(
            f"`{name}` must be a path, got an empty text. For the working directory "
            "write '.'."
        )
    return Path(os.path.abspath(value))


def or_none(
    check: Callable[..., _T], name: str, value: Any, **bounds: Any
) -> _T | None:
    """Return `None` for `None`, and for another value what `check` returns."""
    return None if value is None else check(name, value, **bounds)


def did_you_mean(value: Any, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest option, or an empty string."""
    closest = difflib.get_close_matches(str(value), [str(o) for o in options], n=1)
    return f" Did you mean {closest[0]!r}?" if closest else ""
