"""`compare_runs`: the first step and the first variable in which two runs differ."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fmkit._checks import check_path
from fmkit.compare import _of_commits, _of_fingerprints
from fmkit.compare._found import Place

__all__ = ["Comparison", "compare_runs"]


@dataclass(frozen=True)
class Comparison:
    """Where two runs part. All but the counts is `None` or empty if they are equal.

    Attributes:
        compared: At how many steps the two were compared, up to the first difference.
        only_in_one: How many steps only one of the runs has.
        epoch: Index of the epoch, from 0, in which they differ first.
        step: How many steps of that epoch were done by then; 0 is its start.
        variable: The first variable that differs, in the order weights, optimizer,
            metrics, under its name in the first run.
        largest_difference: The largest absolute difference between its elements; `None`
            for fingerprints, which hold no values.
        parts: What differs at that step: of fingerprints any of `"batch"`,
            `"generators"`, `"weights"`, `"optimizer"`, `"metrics"`; of commits
            `"variables"` and `"generators"`.
        settings: Settings of program and machine that the commits say were different,
            each with both values.
    """

    compared: int
    only_in_one: int = 0
    epoch: int | None = None
    step: int | None = None
    variable: str | None = None
    largest_difference: float | None = None
    parts: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing differs at the steps that both runs have."""
        return self.epoch is None

    def __str__(self) -> str:
        """Return the result in words."""
        alone = f" {self.only_in_one} steps are in one of the runs only."
        lines = [self._result() + (alone if self.only_in_one else "")]
        if self.settings:
            lines.append("Settings that differ (first run, second run):")
            lines += [f"  {each}" for each in self.settings]
        return "\n".join(lines)

    def _result(self) -> str:
        if self.epoch is None:
            return f"No difference at {self.compared} steps."
        where = f"after step {self.step}" if self.step else "at the start"
        first = f"The first difference is {where} of epoch {self.epoch + 1}"
        if self.variable is None:
            return f"{first}: {', '.join(self.parts)}."
        largest = self.largest_difference
        by = "" if largest is None else f", by up to {largest:.3g}"
        return (
            f"{first}, in {self.variable}{by}. Different there: "
            f"{', '.join(self.parts)}."
        )


def compare_runs(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Find the first step, and in it the first variable, in which two runs differ.

    Bits are compared: 0.0 and -0.0 differ, equal NaNs don't. Steps that only one of the
    runs has are left out.

    Args:
        a: The directory of an `ExactResume`, or the file of a `Fingerprint`.
        b: The same of the other run.

    Returns:
        What was found; its `equal` is `True` if nothing differs.

    Raises:
        ValueError: If one is a directory and the other a file, one is damaged, or they
            have no step in common.
        OSError: If one is not there or can't be read.
    """
    first, second = check_path("a", a), check_path("b", b)
    reader = _reader(first)
    if reader is not _reader(second):
        raise ValueError(
            "`a` and `b` must both be directories of ExactResume, or both files of "
            f"Fingerprint, got {first} and {second}."
        )
    return _compare(reader, first, second)


def _reader(path: Path) -> ModuleType:
    return _of_commits if path.is_dir() else _of_fingerprints


def _compare(reader: ModuleType, a: Path, b: Path) -> Comparison:
    ours, theirs = reader.places(a), reader.places(b)
    common = sorted(ours.keys() & theirs.keys())
    alone = len(ours.keys() ^ theirs.keys())
    if not common:
        raise ValueError(
            f"The runs have no step in common: {a} has {_span(sorted(ours))}, {b} has "
            f"{_span(sorted(theirs))}. Commit both at the same steps and keep the "
            "commits (ExactResume(every=..., keep=...)), or use "
            "Fingerprint(file, every=1)."
        )
    settings = reader.settings(ours[common[0]], theirs[common[0]])
    for count, place in enumerate(common, 1):
        found = reader.difference(ours[place], theirs[place])
        if found is not None:
            return Comparison(
                count,
                alone,
                epoch=place[0],
                step=place[1],
                variable=found.variable,
                largest_difference=found.largest,
                parts=found.parts,
                settings=settings,
            )
    return Comparison(len(common), alone, settings=settings)


def _span(places: list[Place]) -> str:
    def told(place: Place) -> str:
        return f"epoch {place[0] + 1}, step {place[1]}"

    return f"{len(places)} from {told(places[0])} to {told(places[-1])}"
