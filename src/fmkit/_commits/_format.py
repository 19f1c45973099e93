"""Commits: the state of a training in one file, written all at once or not at all.

A commit is an uncompressed `.npz` archive: one member per array, and a member
`meta.json` with everything else. The archive carries a CRC-32 of every member,
and `meta.json` names every array with its dtype and shape, so what was cut short
or changed is recognised. It is written under a temporary name, flushed to the
disk, and renamed: the rename is the commit. `numpy.load` opens it as well.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from fmkit._commits._members import (
    describe_array,
    member_info,
    read_array,
    read_member,
    write_array,
)
from fmkit._commits._meta import OF_EACH_PROCESS, Meta, check_keys
from fmkit._files import open_regular, whole_file

__all__ = [
    "Commit",
    "DamagedCommitError",
    "averages_path",
    "commit_name",
    "commit_number",
    "list_averages",
    "list_commits",
    "number_in",
    "pack_part",
    "read_commit",
    "read_meta",
    "with_part",
    "write_commit",
]

Array = np.ndarray[Any, Any]

FORMAT = "fmkit commit"
VERSION = 1
_META = "meta.json"
_NAME = re.compile(r"commit-(\d{8,18})\.npz")
_AVERAGES = re.compile(r"averages-(\d{8,18})\.npz")


class DamagedCommitError(ValueError):
    """A file that should hold a commit does not."""


@dataclass(frozen=True)
class Commit:
    """One commit as read from its file.

    Attributes:
        path: The file.
        meta: Everything but the arrays.
        arrays: The arrays by name (read-only views).
    """

    path: Path
    meta: Meta
    arrays: dict[str, Array]

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
        _write_archive(file, vars(meta), arrays)


def pack_part(meta: Meta, arrays: Mapping[str, Array]) -> bytes:
    """Return what `with_part` lays over the commit of another process."""
    file = io.BytesIO()
    own = {name: getattr(meta, name) for name in OF_EACH_PROCESS}
    _write_archive(file, own, arrays)
    return file.getvalue()


def _write_archive(
    file: IO[bytes], meta: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    listed = {name: describe_array(array) for name, array in arrays.items()}
    header = {**meta, "format": FORMAT, "version": VERSION, "arrays": listed}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            write_array(archive, name, array)
        archive.writestr(member_info(_META), json.dumps(header))


# Reading


def read_commit(path: str | os.PathLike[str]) -> Commit:
    """Read a commit, and check all of it.

    Raises:
        DamagedCommitError: If the file is not exactly what was written.
        OSError: If it cannot be read, or is no regular file.
    """
    with _archive(path) as archive:
        header = _read_header(archive)
        return Commit(
            Path(path), Meta(**check_keys(header)), _read_arrays(archive, header)
        )


def with_part(commit: Commit, data: Array) -> Commit:
    """Return `commit` with what `pack_part` made in another process laid over it.

    Raises:
        DamagedCommitError: If `data` are not exactly what was packed.
    """
    with _archive(commit.path, io.BytesIO(data.tobytes())) as archive:
        header = _read_header(archive)
        own = check_keys(header, OF_EACH_PROCESS)
        arrays = {**commit.arrays, **_read_arrays(archive, header)}
    return Commit(commit.path, replace(commit.meta, **own), arrays)


def read_meta(path: str | os.PathLike[str]) -> Meta:
    """Read only what is in a commit besides its arrays, and check it.

    Raises:
        DamagedCommitError: If the file is not a commit.
        OSError: If it cannot be read, or is no regular file.
    """
    with _archive(path) as archive:
        return Meta(**check_keys(_read_header(archive)))


@contextlib.contextmanager
def _archive(
    path: str | os.PathLike[str], file: IO[bytes] | None = None
) -> Iterator[zipfile.ZipFile]:
    """Open `file`, or the one at `path`; errors name `path`."""
    if file is None:
        file = open(open_regular(path, os.O_RDONLY), "rb")  # noqa: SIM115
    reader = _Reader(file)
    try:
        with file, zipfile.ZipFile(reader) as archive:  # type: ignore[arg-type]
            yield archive
    except Exception as error:
        if reader.failed is not None:
            raise reader.failed from None  # no word on what is in the file
        # Arbitrary bytes make zipfile, json and numpy raise nearly anything.
        reason = str(error) or type(error).__name__
        raise DamagedCommitError(f"{os.fspath(path)}: {reason}") from error


class _Reader:
    """A file that remembers that the disk failed, which zipfile takes for damage."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.failed: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self.failed = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _read_header(archive: zipfile.ZipFile) -> dict[str, Any]:
    header = json.loads(read_member(archive, _META))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}")
    version = header.get("version")
    if version != VERSION:
        raise ValueError(
            f"version {version!r} of the format; this fmkit reads {VERSION}"
        )
    return header


def _read_arrays(archive: zipfile.ZipFile, header: dict[str, Any]) -> dict[str, Array]:
    return {
        name: read_array(archive, name, spec) for name, spec in header["arrays"].items()
    }
