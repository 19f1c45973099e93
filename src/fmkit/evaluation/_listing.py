"""The checkpoints in a directory, found while a training may still be writing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fmkit._commits import commit_number, list_commits

__all__ = [
    "SUFFIXES",
    "CheckpointFile",
    "Signature",
    "list_checkpoints",
    "signature_of",
    "signature_of_step",
]

Signature = tuple[int, int, int]

# Of the files that Keras writes.
SUFFIXES = (".weights.h5", ".keras")
# "weights.03-0.45", "epoch_3", "03", but not the 0 of "best-0.93".
_EPOCH = re.compile(
    r"(?:(?:epoch|ep|weights|model|ckpt|checkpoint|cp)[-_.=]?)?(\d+)(?=[-_]|$)", re.I
)


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a listing, or one step of Orbax, which is a folder.

    Attributes:
        path: The file.
        signature: Inode, size and time of change: what differs when it was rewritten.
        number: The running number of a commit; `None` for other files.
        epoch: The epoch in the name of a file that is not a commit, if there is one.
        orbax_step: The number that names a step of Orbax; `None` for other files.
    """

    path: Path
    signature: Signature
    number: int | None = None
    epoch: int | None = None
    orbax_step: int | None = None


def list_checkpoints(directory: Path) -> list[CheckpointFile]:
    """Return the checkpoints in `directory`, oldest first, whether sound or not.

    Commits are ordered by their number and come first, steps of Orbax by theirs; other
    files by the epoch in their names if all have one, else by the time they were
    written.
    """
    commits = []
    for path in list_commits(directory):
        signature = signature_of(path)
        if signature is not None:
            commits.append(CheckpointFile(path, signature, number=commit_number(path)))
    files = list(_other_files(directory))
    if all(file.epoch is not None for file in files):
        files.sort(key=lambda f: (f.epoch or 0, f.signature[2], f.path.name))
    else:
        files.sort(key=lambda f: (f.signature[2], f.path.name))
    steps = sorted(_orbax_steps(directory), key=lambda f: f.orbax_step or 0)
    return commits + steps + files


def signature_of_step(path: Path) -> Signature | None:
    """Return what changes when a step of Orbax is rewritten; `None` if it is none.

    A step that is being written has another name, and gets its own by a rename.
    """
    return signature_of(path / "_CHECKPOINT_METADATA")


def _orbax_steps(directory: Path) -> Iterator[CheckpointFile]:
    for name in _names_in(directory):
        if name.isascii() and name.isdigit() and len(name) < 19:
            signature = signature_of_step(directory / name)
            if signature is not None:
                yield CheckpointFile(directory / name, signature, orbax_step=int(name))


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _other_files(directory: Path) -> Iterator[CheckpointFile]:
    for name in _names_in(directory):
        suffix = next((each for each in SUFFIXES if name.endswith(each)), None)
        if suffix is None or name.startswith("."):
            continue
        signature = signature_of(directory / name)
        if signature is not None:
            match = _EPOCH.match(name.removesuffix(suffix))
            epoch = int(match[1]) if match and len(match[1]) < 10 else None
            yield CheckpointFile(directory / name, signature, epoch=epoch)


def signature_of(path: Path) -> Signature | None:
    """Return what changes when a file is rewritten; `None` if it is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not path.is_file():
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
