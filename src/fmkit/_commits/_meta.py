"""What is in a commit besides its arrays: the keys of `meta.json` as a type."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args, get_origin

__all__ = ["OF_EACH_PROCESS", "Meta", "VariableEntry", "check_keys"]

# What each process of a job has for itself; the rest is common to all of them.
OF_EACH_PROCESS = ("callbacks", "held", "random", "program", "machine")


class VariableEntry(TypedDict):
    """One variable of a commit.

    Attributes:
        path: Its path, or its place if the model merely holds it.
        held: Its place if the model merely holds it, else `None`.
        metric: Whether it is a metric's.
        arrays: The names of its arrays, one per replica.
    """

    path: str
    held: str | None
    metric: bool
    arrays: list[str]


@dataclass(frozen=True)
class Meta:
    """Everything in a commit but the arrays, as plain JSON values.

    Attributes:
        epoch: Epochs completed.
        step: Steps done of the epoch after them.
        data: Epoch and step of the `Batches`, or the place in what Keras iterates
            itself; `None` if there is no way back to it.
        moment: Whether it was made before a step, or at the end of an epoch, where
            metrics start again.
        finished: Whether the run had ended.
        stopped: Whether a callback had ended it.
        score: The monitored value, lower is better; `None` without one.
        logs: The logs of the epoch that ended.
        steps_before: Optimizer steps before the epoch.
        epochs: The `epochs` of `fit`.
        variables: The variables, in the order of `list_variables`; then those that the
            model merely holds.
        held: What the model holds besides variables.
        callbacks: The states of the callbacks, by name.
        random: The states of the random generators.
        program: What must be the same for the same bits to come out.
        machine: What may change the bits on another machine.
        time: When it was made, in seconds since 1970.
    """

    epoch: int = 0
    step: int = 0
    data: Sequence[int] | dict[str, Any] | None = None
    moment: Literal["step", "epoch"] = "epoch"
    finished: bool = False
    stopped: bool = False
    score: float | None = None
    logs: dict[str, float] = field(default_factory=dict)
    steps_before: int = 0
    epochs: int = 0
    variables: list[VariableEntry] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    program: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0


_TYPES = typing.get_type_hints(Meta)


def check_keys(
    values: dict[str, Any], names: Iterable[str] = tuple(_TYPES)
) -> dict[str, Any]:
    """Return the values of these keys of a `Meta`, as JSON has them.

    Raises:
        ValueError: If one is missing, or is not of its type.
    """
    for name in names:
        if name not in values:
            raise ValueError(f"meta.json lacks {name!r}")
        if not _is_of(_TYPES[name], values[name]):
            kind = Meta.__annotations__[name]
            raise ValueError(f"{name!r} in meta.json is not of type {kind}")
    return {name: values[name] for name in names}


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value from JSON is of a type, looking into lists and dicts."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        return isinstance(value, dict) and all(
            name in value and _is_of(each, value[name]) for name, each in hints.items()
        )
    if origin is types.UnionType:
        return any(_is_of(each, value) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_of(inner[1], each) for each in value.values()
        )
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_is_of(inner[0], v) for v in value)
    # JSON may have written 1.0 as 1; a bool is no number.
    return type(value) is kind or (kind is float and type(value) is int)
