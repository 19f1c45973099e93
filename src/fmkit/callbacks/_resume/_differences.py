"""What differs between the program in a commit and this one, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from fmkit._describe import ABSENT, differences

__all__ = [
    "Difference",
    "as_in_this_job",
    "check_job",
    "check_machine",
    "check_program",
]

_SHOWN = 8


class Difference(NamedTuple):
    """One setting that is another than in the commit.

    Attributes:
        name: The way to it, such as `"optimizer.learning_rate"`.
        old: Its value in the commit.
        new: Its value here.
    """

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """Return the difference as one line."""
        if self.old in (None, ABSENT):
            return f"{self.name}: only here, {_short(self.new)}"
        if self.new in (None, ABSENT):
            return f"{self.name}: only in the commit, {_short(self.old)}"
        return f"{self.name}: {_short(self.old)} in the commit, {_short(self.new)} here"

    def is_named_in(self, names: Iterable[str]) -> bool:
        """Whether one of `names` is this setting, or what it is a part of."""
        return any(
            self.name == name or self.name.startswith((f"{name}.", f"{name}["))
            for name in names
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_program(
    saved: dict[str, Any],
    program: dict[str, Any],
    directory: str,
    allowed: Iterable[str] = (),
    *,
    kerases: tuple[str, str] = ("", ""),
    defaults: Callable[[], dict[str, Any]] = dict,
) -> list[Difference]:
    """Refuse what another program saved, naming what differs.

    Args:
        saved: The description in the commit.
        program: That of this program.
        directory: Where the commit is, for the message.
        allowed: Names of settings that may differ.
        kerases: The versions of Keras that described them. If they are two, the newer
            may have settings that the other has not.
        defaults: Returns such settings at the values that nobody has set.

    Returns:
        The differences that are allowed.

    Raises:
        ValueError: If there are others.
    """
    found = [Difference(*each) for each in differences(saved, program)]
    if found and kerases[0] != kerases[1]:
        unset = defaults()
        found = [
            each
            for each in found
            if each.old != ABSENT or unset.get(each.name, ABSENT) != each.new
        ]
    refused = [each for each in found if not each.is_named_in(allowed)]
    if refused:
        raise ValueError(_refusal(refused, directory, kerases))
    return found


def _refusal(
    refused: list[Difference], directory: str, kerases: tuple[str, str]
) -> str:
    lines = "\n".join(f"  {each}" for each in refused[:_SHOWN])
    more = len(refused) - _SHOWN
    two = kerases[0] != kerases[1]
    named = refused if two else refused[:_SHOWN]
    return (
        f"The commits in {directory} were made by another program, so this one "
        f"cannot continue from them exactly:\n{lines}\n"
        + (f"  and {more} more\n" if more > 0 else "")
        + (
            f"They were written under Keras {kerases[0]}, and this is {kerases[1]}: "
            "some of these may be settings that only one of the two has.\n"
            if two
            else ""
        )
        + _hint(refused)
        + "Set these as before, or give another directory. If you changed them on "
        "purpose, name them: ExactResume(..., allow_changes="
        f"{sorted({each.name for each in named})})."
    )


def _hint(refused: list[Difference]) -> str:
    shards = [each for each in refused if each.name == "data.shard[1]"]
    if not shards:
        return ""
    return (
        f"The data were cut into {shards[0].old} shards, and are into {shards[0].new} "
        "here: another number of processes can continue if a step has the same "
        "samples, Batches(..., batch_size=samples // count, shard=(index, count)).\n"
    )


def as_in_this_job(saved: Any, program: Any) -> Any:
    """Return the description in a commit as this number of processes would give it.

    Data that are cut into shards are the same if all shards together have the same
    samples in each step.

    Args:
        saved: The description in the commit, or a part of it.
        program: The same part of this program's.
    """
    if isinstance(saved, list) and isinstance(program, list):
        if len(saved) != len(program):
            return saved
        return [as_in_this_job(*each) for each in zip(saved, program, strict=True)]
    if not isinstance(saved, dict) or not isinstance(program, dict):
        return saved
    found = {key: as_in_this_job(saved[key], program.get(key)) for key in saved}
    if "processes" in found:
        found["processes"] = program.get("processes")
    if {"batch_size", "shard"} <= found.keys() & program.keys() and (
        _samples_of_a_step(saved) == _samples_of_a_step(program)
    ):
        found |= {name: program[name] for name in ("batch_size", "shard")}
    return found


def _samples_of_a_step(batches: dict[str, Any]) -> int:
    return int(batches["batch_size"] * batches["shard"][1])


def check_job(
    saved: tuple[int, str | None], here: tuple[int, str | None], *, strict: bool
) -> str | None:
    """Return what is not exact if other processes, or another mesh, continue.

    Args:
        saved: How many processes made the commit, and their distribution.
        here: The same of this job.
        strict: Whether it is refused.

    Raises:
        ValueError: If it is.
    """
    if saved == here:
        return None
    (before, layout), (now, layout_here) = saved, here
    changes = []
    if before != now:
        changes.append(
            f"the commit was made by {_processes(before)}, and continues in "
            f"{_processes(now)}"
        )
    if layout != layout_here:
        changes.append(f"the distribution was {layout}, and is {layout_here}")
    told = "; ".join(changes)
    if strict:
        raise ValueError(
            f"With strict=True this is refused: {told}. Sums over other parts may "
            "differ in the last bits. Start as many processes with the same "
            "distribution, or leave out `strict`."
        )
    return (
        f"{told}: sums over other parts may differ in the last bits{_own(before, now)}"
    )


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def _own(before: int, now: int) -> str:
    """Tell what becomes of the state that each process has for itself."""
    if now > before:
        return (
            f"; processes {before} to {now - 1} begin with the generators and "
            "callbacks of process 0"
        )
    if now < before:
        return (
            f"; the generators and callbacks of processes {now} to {before - 1} are "
            "left out"
        )
    return ""


def check_machine(saved: dict[str, str], here: dict[str, str], *, strict: bool) -> None:
    """Warn of other versions or another processor; refuse them if `strict`.

    Raises:
        ValueError: If `strict`, and anything differs.
    """
    told = "; ".join(str(Difference(*each)) for each in differences(saved, here))
    if not told:
        return
    if strict:
        raise ValueError(
            f"The commit was written elsewhere, and strict=True: {told}. Use "
            "the same, or leave out `strict`: the last bits may then differ."
        )
    warnings.warn(
        f"The commit was written elsewhere: {told}. The run continues, but its "
        "last bits may differ from those of a run on one machine.",
        stacklevel=2,
    )
