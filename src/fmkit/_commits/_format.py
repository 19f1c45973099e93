"""Commits: the state of a training in one file, written all at once or not at all.

A commit is an uncompressed `.npz` archive: one member per array, and a member
`meta.json` with everything else. The archive carries a CRC-32 of every member,
and `meta.json` names every array with its dtype and shape, so what was cut short
or changed is recognised. It is written under a temporary name, flushed to the
disk, and renamed: the rename is the commit. `numpy.load` opens it as well.

The commit of a job of several processes is such a file too, the list, which names the
parts that the processes have written (`_parts`).
"""

from __future__ import annotations

import io
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from fmkit._commits._archive import (
    DamagedCommitError,
    open_archive,
    read_arrays,
    read_header,
    write_archive,
)
from fmkit._commits._meta import OF_EACH_PROCESS, Meta, check_keys
from fmkit._commits._parts import Shared, assemble, read_parts
from fmkit._files import whole_file

__all__ = [
    "Commit",
    "DamagedCommitError",
    "averages_path",
    "commit_name",
    "commit_number",
    "list_averages",
    "list_commits",
    "number_in",
    "read_commit",
    "read_meta",
    "write_commit",
    "write_list",
]

Array = np.ndarray[Any, Any]

FORMAT = "fmkit commit"
VERSION = 1
# A commit in parts: an fmkit that does not know them says so.
VERSION_OF_LISTS = 2
VERSIONS = (VERSION, VERSION_OF_LISTS)
_NAME = re.compile(r"commit-(\d{8,18})\.npz")
_AVERAGES = re.compile(r"averages-(\d{8,18})\.npz")


@dataclass(frozen=True)
class Commit:
    """One commit as read from its file.

    Attributes:
        path: The file.
        meta: Everything but the arrays.
        arrays: The arrays by name: read-only views, or what reads them from parts.
    """

    path: Path
    meta: Meta
    arrays: dict[str, Any]

    @property
    def number(self) -> int:
        """The running number in the file's name: larger is newer."""
        return commit_number(self.path)


def list_commits(directory: str | os.PathLike[str]) -> list[Path]:
    """Return the commit files in `directory`, oldest first, whether sound or not."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [name for name in names if number_in(name) is not None]
    return [Path(directory, name) for name in sorted(found, key=commit_number)]


def commit_name(number: int) -> str:
    """Return the name of the file of a commit."""
    return f"commit-{number:08d}.npz"


def number_in(name: str) -> int | None:
    """Return the running number in the name of a commit; `None` in another name."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def commit_number(path: str | Path) -> int:
    """Return the running number in the name of a commit's file."""
    number = number_in(Path(path).name)
    assert number is not None
    return number


def list_averages(directory: str | os.PathLike[str]) -> dict[int, Path]:
    """Return the snapshots of averages in `directory`, by how many updates they saw."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    found = {
        int(match[1]): match[0] for match in map(_AVERAGES.fullmatch, names) if match
    }
    return {length: Path(directory, found[length]) for length in sorted(found)}


def averages_path(directory: Path, length: int) -> Path:
    """Return the path of a snapshot of averages that have seen `length` updates."""
    return directory / f"averages-{length:08d}.npz"


# Writing


def write_commit(
    path: str | os.PathLike[str], meta: Meta, arrays: Mapping[str, Array]
) -> None:
    """Write a commit so that `path` is the whole of it or does not change.

    Raises:
        OSError: If the disk is full, the directory cannot be written, and so on.
            What was at `path` before is still there.
    """
    with whole_file(Path(path)) as file:
        _write(file, meta, arrays)


def write_list(shared: Shared, parts: list[dict[str, Any]]) -> None:
    """Write the list of a job's commit, all of whose parts are there.

    Raises:
        OSError: As `write_commit`.
    """
    further = {"version": VERSION_OF_LISTS, "parts": parts, "whole": shared.whole}
    with whole_file(shared.place.list) as file:
        _write(file, shared.meta, shared.arrays, further)


def _write(
    file: IO[bytes],
    meta: Meta,
    arrays: Mapping[str, Array],
    further: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    header = {**vars(meta), "format": FORMAT, "version": VERSION, **further}
    write_archive(file, header, arrays.items())


# Reading


def read_commit(
    path: str | os.PathLike[str], process: int = 0, share: tuple[int, int] = (0, 1)
) -> Commit:
    """Read a commit, and check it.

    Args:
        path: The file.
        process: The process of a job whose own state is read. Those that the job of the
            commit had not have the state of process 0.
        share: Which of its parts are checked, `(0, 1)` for all: see `read_parts`.

    Raises:
        DamagedCommitError: If the file, or a part of it, is not exactly what was
            written.
        OSError: If it cannot be read, or is no regular file.
    """
    with open_archive(path) as archive:
        header = read_header(archive, FORMAT, VERSIONS)
        meta = Meta(**check_keys(header))
        commit = Commit(Path(path), meta, dict(read_arrays(archive, header["arrays"])))
    if header["version"] == VERSION_OF_LISTS:
        return _with_parts(commit, header, process, share)
    return _with_gathered(commit, process)


def _with_parts(
    commit: Commit, header: Mapping[str, Any], process: int, share: tuple[int, int]
) -> Commit:
    try:
        listed, whole = list(header["parts"]), dict(header["whole"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCommitError(f"{commit.path}: it lacks {error}") from error
    parts = read_parts(commit.path, listed, process, share)
    try:
        arrays = {**commit.arrays, **assemble(whole, parts, process)}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCommitError(f"{commit.path}: {error}") from error
    own = parts[process] if 0 < process < len(parts) else None
    if own is None:
        return replace(commit, arrays=arrays)
    return replace(
        commit,
        meta=replace(commit.meta, **own.own),
        arrays={**arrays, **own.arrays},
    )


def _with_gathered(commit: Commit, process: int) -> Commit:
    """Lay a process's part over a commit that process 0 wrote for all, as it once did.

    Raises:
        DamagedCommitError: If the part is not exactly what was packed.
    """
    data = commit.arrays.get(f"process/{process}")
    if data is None:
        return commit
    with open_archive(commit.path, io.BytesIO(data.tobytes())) as archive:
        header = read_header(archive, FORMAT, VERSIONS)
        own = check_keys(header, OF_EACH_PROCESS)
        arrays = {**commit.arrays, **read_arrays(archive, header["arrays"])}
    return Commit(commit.path, replace(commit.meta, **own), arrays)


def read_meta(path: str | os.PathLike[str]) -> Meta:
    """Read only what is in a commit besides its arrays, and check it.

    Raises:
        DamagedCommitError: If the file is not a commit.
        OSError: If it cannot be read, or is no regular file.
    """
    with open_archive(path) as archive:
        return Meta(**check_keys(read_header(archive, FORMAT, VERSIONS)))
