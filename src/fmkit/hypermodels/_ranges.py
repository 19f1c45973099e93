"""What a setting of a search space may be: one value, a few values, or a range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras_tuner

from fmkit._checks import check_int, check_number, check_one_of

__all__ = ["Range"]

Value = int | float | str


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, as a setting of a search space.

    Whole numbers if both ends are whole, else real numbers.

    Args:
        low: Smallest value.
        high: Largest value, above `low`.
        step: Distance between values, or with `log` their ratio. `None` for any
            number in between.
        log: Sample evenly on a logarithmic scale, as suits a learning rate.

    Raises:
        TypeError: If an end or the step is not a number.
        ValueError: If `high` is not above `low`, or with `log` an end is not
            positive or the step not above 1.

    Examples:
        >>> Range(32, 512, step=32)
        Range(low=32, high=512, step=32, log=False)
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        check_number("low", self.low)
        check_number("high", self.high, above=self.low)
        if self.log:
            check_number("low", self.low, above=0)
        if self.step is not None:
            check_number("step", self.step, above=1 if self.log else 0)
            if self.is_whole:
                check_int("step", self.step)

    @property
    def is_whole(self) -> bool:
        """Whether the range is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


# What the settings of a space hold once they are read.
Setting = Value | tuple[Value, ...] | Range


def whole(name: str, setting: Any, *, minimum: int = 1) -> Setting:
    """Read a setting of whole numbers, or refuse it."""
    if isinstance(setting, Range) and not setting.is_whole:
        raise TypeError(
            f"`{name}` must be a range of whole numbers, got {setting}. Write "
            f"Range({int(setting.low)}, {int(setting.high)})."
        )
    return _read(name, setting, lambda value: check_int(name, value, minimum=minimum))


def number(name: str, setting: Any, **bounds: float) -> Setting:
    """Read a setting of real numbers."""
    return _read(name, setting, lambda value: check_number(name, value, **bounds))


def word(
    name: str, setting: Any, check: Iterable[str] | Callable[[Any], Any]
) -> Setting:
    """Read a setting of names: one of `check`, or what the function `check` accepts."""
    if isinstance(setting, Range):
        raise TypeError(f"`{name}` must be a name or a list of names, got {setting}.")
    if callable(check):
        return _read(name, setting, check)
    options = list(check)
    return _read(name, setting, lambda value: check_one_of(name, value, options))


def is_tuned(setting: Setting | None) -> bool:
    """Whether a search can give the setting more than one value."""
    return isinstance(setting, tuple | Range)


def values_of(setting: Setting) -> list[int]:
    """List the whole numbers that the setting can take."""
    if isinstance(setting, Range):
        step = 1 if setting.step is None or setting.log else int(setting.step)
        return list(range(int(setting.low), int(setting.high) + 1, step))
    if isinstance(setting, tuple):
        return [int(value) for value in setting]
    return [int(setting)]


def declare(hp: keras_tuner.HyperParameters, name: str, setting: Setting) -> Any:
    """Declare the hyperparameter and return its present value, None if inactive."""
    if isinstance(setting, Range):
        kind = hp.Int if setting.is_whole else hp.Float
        sampling = "log" if setting.log else "linear"
        kind(name, setting.low, setting.high, step=setting.step, sampling=sampling)
    elif isinstance(setting, tuple):
        hp.Choice(name, list(setting))
    else:
        hp.Fixed(name, setting)
    return read(hp, name)


def read(hp: keras_tuner.HyperParameters, name: str) -> Any:
    """Return the value of a declared hyperparameter, None if it is inactive.

    Between a chief and its workers numbers travel as float32: a rate of 0.001
    arrives as 0.0010000000475. Six digits are the same on both sides.
    """
    value = hp.values.get(name) if name in hp else None
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _read(name: str, setting: Any, check: Callable[[Any], Any]) -> Setting:
    if isinstance(setting, Range):
        check(setting.low)
        check(setting.high)
        return setting
    if not isinstance(setting, list | tuple):
        return check(setting)  # type: ignore[no-any-return]
    values = tuple(dict.fromkeys(check(value) for value in setting))
    if not values:
        raise ValueError(
            f"`{name}` is an empty list: pass the values to choose from, a Range, or "
            "one fixed value."
        )
    return values if len(values) > 1 else values[0]  # type: ignore[no-any-return]
