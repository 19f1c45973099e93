"""Two runs by the commits of their `ExactResume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmkit._commits import (
    Commit,
    DamagedCommitError,
    decode,
    list_commits,
    read_commit,
    read_meta,
)
from fmkit._describe import describe, differences, without_numbers
from fmkit.compare._found import Found, Place

__all__ = ["difference", "places", "settings"]

Array = np.ndarray[Any, Any]


class _Variable(NamedTuple):
    name: str
    replicas: list[Array]

    @property
    def kind(self) -> Any:
        """What must be the same for two variables to be compared by value."""
        shapes = [(each.dtype, each.shape) for each in self.replicas]
        return without_numbers(self.name), shapes


def places(directory: Path) -> dict[Place, Path]:
    """Return the commits of a run by the step that they were made at.

    Raises:
        ValueError: If there are none, or one is damaged.
    """
    metas = [(read_meta(path), path) for path in list_commits(directory)]
    if not metas:
        raise ValueError(
            f"There are no commits in {directory}. Give the directory of an "
            "ExactResume, or a file of Fingerprint."
        )
    return {(meta.epoch, meta.step): path for meta, path in metas}


def settings(a: Path, b: Path) -> tuple[str, ...]:
    """Return the settings of program and machine that differ, one line each."""
    ours, theirs = read_meta(a), read_meta(b)
    found = [
        *differences(ours.program, theirs.program),
        *differences(ours.machine, theirs.machine),
    ]
    return tuple(f"{name}: {old!r}, {new!r}" for name, old, new in found)


def difference(a: Path, b: Path) -> Found | None:
    """Return what differs between two commits of the same step."""
    ours, theirs = read_commit(a), read_commit(b)
    # At the end of an epoch a commit holds none: they start again.
    metrics = ours.meta.moment == theirs.meta.moment
    pair = _first_pair(_variables(ours, metrics), _variables(theirs, metrics))
    parts = ["variables"] if pair else []
    if _generators(ours) != _generators(theirs):
        parts.append("generators")
    if not parts:
        return None
    return Found(tuple(parts), *(pair or ()))


def _variables(commit: Commit, metrics: bool) -> list[_Variable]:
    try:
        return [
            _Variable(entry["path"], [commit.arrays[name] for name in entry["arrays"]])
            for entry in commit.meta.variables
            if metrics or not entry["metric"]
        ]
    except KeyError as error:
        raise DamagedCommitError(
            f"{commit.path}: it has no array {error}, which a variable should hold."
        ) from None


def _first_pair(
    ours: list[_Variable], theirs: list[_Variable]
) -> tuple[str, float | None] | None:
    """Return the first variable that differs, and by how much."""
    for a, b in zip(ours, theirs, strict=False):
        if a.kind != b.kind:
            return a.name, None
        pairs = list(zip(a.replicas, b.replicas, strict=True))
        if any(x.tobytes() != y.tobytes() for x, y in pairs):
            return a.name, max(_largest(x, y) for x, y in pairs)
    if len(ours) != len(theirs):
        more = max(ours, theirs, key=len)
        return more[min(len(ours), len(theirs))].name, None
    return None


def _largest(a: Array, b: Array) -> float:
    """Return the largest absolute difference between elements that differ."""
    with np.errstate(all="ignore"):
        a, b = a.astype(np.float64), b.astype(np.float64)
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        return float(np.max(np.abs(a - b)[differ], initial=0.0))


def _generators(commit: Commit) -> Any:
    return describe(decode(commit.meta.random, commit.arrays))
