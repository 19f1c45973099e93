"""The archive that a commit or a part of one is: a header, and arrays."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from fmkit._commits._members import (
    describe_array,
    member_info,
    read_array,
    read_member,
    write_array,
)
from fmkit._files import open_regular

__all__ = [
    "DamagedCommitError",
    "open_archive",
    "read_arrays",
    "read_header",
    "write_archive",
]

Array = np.ndarray[Any, Any]

_META = "meta.json"


class DamagedCommitError(ValueError):
    """A file that should hold a commit does not."""


def write_archive(
    file: Any, header: Mapping[str, Any], arrays: Iterable[tuple[str, Array]]
) -> None:
    """Write arrays, one after the other, and then the header, which describes them."""
    listed = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            listed[name] = describe_array(array)
            write_array(archive, name, array)
            del array  # not while the next one is read
        written = json.dumps({**header, "arrays": listed})
        archive.writestr(member_info(_META), written)


@contextlib.contextmanager
def open_archive(
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


def read_header(
    archive: zipfile.ZipFile, kind: str, versions: Sequence[int]
) -> dict[str, Any]:
    """Return the header of an archive, which must be of this kind."""
    header = json.loads(read_member(archive, _META))
    if not isinstance(header, dict) or header.get("format") != kind:
        raise ValueError(f"not a {kind}")
    version = header.get("version")
    if version not in versions:
        known = " and ".join(map(str, versions))
        raise ValueError(f"version {version!r} of the format; this fmkit reads {known}")
    return header


def read_arrays(
    archive: zipfile.ZipFile, specs: Mapping[str, dict[str, Any]]
) -> dict[str, Array]:
    """Return the arrays with these descriptions."""
    return {name: read_array(archive, name, spec) for name, spec in specs.items()}
