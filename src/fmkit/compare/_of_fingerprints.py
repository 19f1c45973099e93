"""Two runs by the files of their `Fingerprint`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmkit._describe import without_numbers
from fmkit._files import open_regular
from fmkit.compare._found import Found, Place

__all__ = ["difference", "places", "settings"]

# In the order in which one leads to the next.
PARTS = ("batch", "generators", "weights", "optimizer", "metrics")
_GROUPS = ("weights", "optimizer", "metrics")  # as a line lists their variables
_LONGEST = 2**26  # bytes of one line
_DIGEST = re.compile(r"[0-9a-f]{8,128}")


class Line(NamedTuple):
    """The digests of one step.

    Attributes:
        parts: By part; `None` where it is not known.
        names: Of the variables.
        variables: A digest of each.
    """

    parts: dict[str, str | None]
    names: list[str]
    variables: list[str]


def places(path: Path) -> dict[Place, Line]:
    """Return the lines of a file by the step that they are of.

    Raises:
        ValueError: If there are none, or a line is not what `Fingerprint` writes.
    """
    found: dict[Place, Line] = {}
    names: list[str] = []
    for number, values in _json_lines(path):
        try:
            if number == 1:
                _check_header(values)
            elif "names" in values:
                names = [name for each in _GROUPS for name in values["names"][each]]
            else:
                found[_place(values)] = _line(values, names)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(_refusal(path, number, repr(error))) from None
    if not found:
        raise ValueError(f"There is no step in {path}. Give the file of a Fingerprint.")
    return found


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            if not line.endswith(b"\n"):
                raise ValueError(_refusal(path, number, "it is cut short"))
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(_refusal(path, number, str(error))) from None


def _refusal(path: Path, number: int, why: str) -> str:
    return (
        f"Line {number} of {path} is not what Fingerprint writes: {why}. Give the file "
        "as it was written; if its end is damaged, delete the lines from this one on."
    )


def _check_header(values: Any) -> None:
    if values["format"] != "fmkit fingerprint" or values["version"] != 1:
        raise ValueError("not the first line of a fingerprint of version 1")


def _place(values: Any) -> Place:
    epoch, step = values["epoch"], values["step"]
    if not (type(epoch) is type(step) is int and epoch >= 0 and step >= 0):
        raise ValueError("epoch and step must be counts")
    return epoch, step


def _line(values: Any, names: list[str]) -> Line:
    parts, variables = {part: values[part] for part in PARTS}, values["variables"]
    digests = [*(each for each in parts.values() if each is not None), *variables]
    if not all(map(_DIGEST.fullmatch, digests)):
        raise ValueError("a digest is none")
    if len(variables) != len(names):
        raise ValueError(f"{len(variables)} variables, {len(names)} names")
    return Line(parts, names, variables)


def settings(a: Line, b: Line) -> tuple[str, ...]:
    """Return no settings: a fingerprint has none."""
    return ()


def difference(a: Line, b: Line) -> Found | None:
    """Return what differs between two lines of the same step."""
    parts = tuple(
        part
        for part in PARTS
        if None not in (a.parts[part], b.parts[part]) and a.parts[part] != b.parts[part]
    )
    return Found(parts, _first_variable(a, b)) if parts else None


def _first_variable(a: Line, b: Line) -> str | None:
    ours = zip(a.names, a.variables, strict=True)
    theirs = zip(b.names, b.variables, strict=True)
    for (name, digest), (other, their_digest) in zip(ours, theirs, strict=False):
        if without_numbers(name) != without_numbers(other) or digest != their_digest:
            return name
    return None
