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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fmkit._files import open_regular, write_whole

__all__ = [
    "Commit",
    "DamagedCommitError",
    "commit_number",
    "list_commits",
    "pack",
    "read_commit",
    "read_meta",
    "with_part",
    "write_commit",
]

Array = np.ndarray[Any, Any]

FORMAT = "fmkit commit"
VERSION = 1
_META = "meta.json"
_NAME = re.compile(r"commit-(\d{8,})\.npz")


class DamagedCommitError(ValueError):
    """A file that should hold a commit does not."""


@dataclass(frozen=True)
class Commit:
    """One commit as read from its file.

    Attributes:
        path: The file.
        meta: Everything but the arrays, as plain JSON values.
        arrays: The arrays by name (read-only views).
    """

    path: Path
    meta: dict[str, Any]
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
    found = [name for name in names if _NAME.fullmatch(name)]
    return [Path(directory, name) for name in sorted(found, key=commit_number)]


def commit_number(path: str | Path) -> int:
    """Return the running number in the name of a commit file."""
    match = _NAME.fullmatch(Path(path).name)
    assert match is not None
    return int(match[1])


# Writing


def write_commit(
    path: str | os.PathLike[str], meta: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    """Write a commit so that `path` is the whole of it or does not change.

    Raises:
        OSError: If the disk is full, the directory cannot be written, and so on.
            What stood at `path` before still stands there.
    """
    write_whole(Path(path), lambda file: _write_archive(file, meta, arrays))


def pack(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return what a commit would hold, as the bytes of its file."""
    file = io.BytesIO()
    _write_archive(file, meta, arrays)
    return file.getvalue()


def _write_archive(
    file: IO[bytes], meta: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    listed = {
        name: {"dtype": _dtype_name(array.dtype), "shape": list(array.shape)}
        for name, array in arrays.items()
    }
    header = {**meta, "format": FORMAT, "version": VERSION, "arrays": listed}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = _info(f"{name}.npy")
            with archive.open(info, "w", force_zip64=True) as member:
                _write_array(member, array)
        archive.writestr(_info(_META), json.dumps(header))


def _info(name: str) -> zipfile.ZipInfo:
    # Always of one date: zip files know none before 1980, where a clock may stand.
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o600 << 16
    return info


def _write_array(member: IO[bytes], array: Array) -> None:
    # Not numpy.save: that copies each array once more on its way into a zip.
    array = np.ascontiguousarray(_plain(array)).reshape(array.shape)
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
    member.write(array.reshape(-1).view(np.uint8).data)


def _plain(array: Array) -> Array:
    """View bfloat16 and its like, which .npy has no name for, as their bits."""
    if array.dtype.isbuiltin == 2:  # made outside of NumPy
        return array.view(f"uint{8 * array.dtype.itemsize}")
    return array


def _dtype_name(dtype: np.dtype[Any]) -> Any:
    """Name a dtype as JSON can: "float32", ">f8", or a list of the fields."""
    if dtype.isbuiltin == 2 or (dtype.isnative and dtype.kind in "biufc"):
        return dtype.name
    return np.lib.format.dtype_to_descr(dtype)


# Reading


def read_commit(path: str | os.PathLike[str]) -> Commit:
    """Read a commit, and check all of it.

    Raises:
        DamagedCommitError: If the file is not exactly what was written.
        OSError: If it cannot be read, or is no regular file.
    """
    with _archive(path) as archive:
        return Commit(Path(path), *_read_all(archive))


def with_part(commit: Commit, data: Array) -> Commit:
    """Return `commit` with what `pack` made of another meta and arrays laid over it.

    Raises:
        DamagedCommitError: If `data` are not exactly what was packed.
    """
    with _archive(commit.path, io.BytesIO(data.tobytes())) as archive:
        meta, arrays = _read_all(archive)
    return Commit(commit.path, {**commit.meta, **meta}, {**commit.arrays, **arrays})


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read only what stands beside the arrays, and check it.

    Raises:
        DamagedCommitError: If the file is not a commit.
        OSError: If it cannot be read, or is no regular file.
    """
    with _archive(path) as archive:
        return _read_meta(archive)


@contextlib.contextmanager
def _archive(
    path: str | os.PathLike[str], file: IO[bytes] | None = None
) -> Iterator[zipfile.ZipFile]:
    """Open `file`, or the one at `path`; whatever fails then is told of `path`."""
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


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    size = archive.fp.seek(0, os.SEEK_END)  # type: ignore[union-attr]
    # Nothing is compressed, so no member is larger than the file.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
        raise ValueError(f"member {name!r} is not stored as it was written")
    return archive.read(info)  # checks the CRC-32


def _read_all(archive: zipfile.ZipFile) -> tuple[dict[str, Any], dict[str, Array]]:
    meta = _read_meta(archive)
    arrays = {
        name: _read_array(archive, name, spec) for name, spec in meta["arrays"].items()
    }
    return meta, arrays


def _read_meta(archive: zipfile.ZipFile) -> dict[str, Any]:
    meta = json.loads(_member(archive, _META))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}")
    if meta.get("version") != VERSION:
        raise ValueError(
            f"version {meta.get('version')!r} of the format; this fmkit reads {VERSION}"
        )
    return meta


def _read_array(archive: zipfile.ZipFile, name: str, spec: dict[str, Any]) -> Array:
    data = _member(archive, f"{name}.npy")
    start = io.BytesIO(data[: 2**16])
    version = np.lib.format.read_magic(start)
    if version != (1, 0):
        raise ValueError(f"array {name!r} has a header of another kind")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(start)
    wanted = _dtype(spec["dtype"])
    if fortran or list(shape) != spec["shape"] or dtype.itemsize != wanted.itemsize:
        raise ValueError(f"array {name!r} is not {spec['dtype']}{spec['shape']}")
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(data, dtype, count, offset=start.tell())
    return array.view(wanted).reshape(shape)


def _dtype(name: Any) -> np.dtype[Any]:
    """Undo `_dtype_name`."""
    if isinstance(name, list):
        return np.lib.format.descr_to_dtype(_fields(name))
    try:
        return np.dtype(name)
    except TypeError:
        # Keras's backends bring it; its import adds bfloat16 and the float8s.
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def _fields(descr: Any) -> Any:
    """Give a description of fields the tuples that JSON has made lists of."""
    if isinstance(descr, str):
        return descr
    return [
        (
            tuple(name) if isinstance(name, list) else name,
            _fields(kind),
            *(tuple(shape) for shape in rest),
        )
        for name, kind, *rest in descr
    ]
