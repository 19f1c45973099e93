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
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fmkit._files import InUseError, Lock, open_regular, read_regular, write_whole

__all__ = [
    "Commit",
    "CommitDirectory",
    "DamagedCommitError",
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
_TEMPORARY = re.compile(r"\.(?:commit-\d+\.npz|model\.json)\.(\d+)\.tmp")


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
        return _number(self.path)


def list_commits(directory: str | os.PathLike[str]) -> list[Path]:
    """Return the commit files in `directory`, oldest first, whether sound or not."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [name for name in names if _NAME.fullmatch(name)]
    return [Path(directory, name) for name in sorted(found, key=_number)]


def _number(path: str | Path) -> int:
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


# A directory of commits


class CommitDirectory:
    """The commits of one run, held by one live process at a time.

    Args:
        path: The directory; made when it is not there.
        keep: How many of the newest commits stay.
        keep_best: How many of the best commits stay besides. Best is by
            `meta["score"]`, lower first; a commit whose score is `None` has none.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, keep: int = 2, keep_best: int = 0
    ) -> None:
        self.path = Path(path)
        self.keep = keep
        self.keep_best = keep_best
        self._lock: Lock | None = None
        self._scores: dict[Path, float | None] = {}
        self._next = 1

    def acquire(
        self,
        is_live: Callable[[], bool] = lambda: True,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the directory, and hold it until `release` or the end of the process.

        Args:
            is_live: Tells whether the work that the directory is held for still
                goes on. If it ended without `release` (an exception that a
                notebook keeps), the next in this process takes over.
            finish: Called before the next takes over: waits for what this one is
                still writing.

        Raises:
            OSError: If another live process holds it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = Lock(self.path / "lock", "fit", is_live, finish)
            self._lock.acquire()
            self._remove_temporaries()
        except InUseError as error:
            raise OSError(
                f"Directory {self.path} is in use by another live run ({error}). "
                "Wait for it to end, stop it, or use another directory."
            ) from None
        except OSError as error:
            raise OSError(
                f"Directory {self.path} cannot be used for commits: {error}. Give a "
                "directory that this process may write to."
            ) from error
        existing = list_commits(self.path)
        self._next = _number(existing[-1]) + 1 if existing else 1

    def release(self) -> None:
        """Let another run use the directory."""
        if self._lock is not None:
            self._lock.release()

    def _remove_temporaries(self) -> None:
        """Remove what a killed run left half-written. The lock is held."""
        for name in os.listdir(self.path):
            if _TEMPORARY.fullmatch(name):
                os.unlink(self.path / name)  # of a link, the link

    def newest(self) -> Commit | None:
        """Return the newest commit that is sound, or `None` if there never was one.

        Warns:
            UserWarning: For each newer file that is damaged.

        Raises:
            DamagedCommitError: If there are files and none is sound.
            OSError: If one cannot be read: that is no damage, so none before it is
                taken in its place.
        """
        paths = list_commits(self.path)
        for path in reversed(paths):
            try:
                commit = read_commit(path)
            except DamagedCommitError as error:
                warnings.warn(
                    f"Skipping a damaged commit: {error}. Going back to the one "
                    "before it.",
                    stacklevel=2,
                )
            except OSError as error:
                raise OSError(
                    f"Commit {path} cannot be read, though it may be sound: {error}. "
                    "Nothing was changed. Start again when the disk answers, or move "
                    "the file away to go on from the commit before it."
                ) from error
            else:
                self._index(paths)
                return commit
        if paths:
            raise DamagedCommitError(
                f"None of the {len(paths)} commits in {self.path} can be read. "
                "Restore one of the files from a copy, or give an empty directory to "
                "start the training from the beginning."
            )
        return None

    def read(self, number: int | None) -> Commit | None:
        """Return the commit of this number, which another process has found.

        Args:
            number: `None` if it has found none; then only the directory is looked
                for.

        Raises:
            OSError: If this process does not see what the other one sees.
        """
        path = self._path(number or 0)
        if (self.path / "lock" if number is None else path).exists():
            return None if number is None else read_commit(path)
        raise OSError(
            f"Process 0 of this job keeps its commits in a directory {self.path} that "
            "this process does not see. Give a path on a file system that all of "
            "them share."
        )

    def _path(self, number: int) -> Path:
        return self.path / f"commit-{number:08d}.npz"

    def _index(self, paths: list[Path]) -> None:
        """Learn which of the older files count for `keep` and `keep_best`."""
        for path in paths:
            # One that can't be read now is left where it is.
            with contextlib.suppress(DamagedCommitError, OSError):
                self._scores[path] = read_meta(path).get("score")

    def describe(self, model: str) -> None:
        """Write `model.json` beside the commits, unless it says so already.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.path / "model.json"
        data = model.encode()
        if not os.path.lexists(path) or read_regular(path) != data:
            write_whole(path, lambda file: file.write(data))

    def write(self, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> Path:
        """Write the next commit; when it is durable, delete what need not stay.

        Raises:
            OSError: If it cannot be written. Older commits are all still there.
        """
        path = self._path(self._next)
        try:
            write_commit(path, meta, arrays)
        except OSError as error:
            size = sum(array.nbytes for array in arrays.values())
            raise OSError(
                f"A commit of {size / 1e6:.1f} MB could not be written to "
                f"{self.path}: {error}. {self._what_is_left()}"
            ) from error
        self._next += 1
        self._scores[path] = meta.get("score")
        for old in self._superfluous():
            # Deleting may fail without harm: the next commit tries again.
            with contextlib.suppress(OSError):
                os.unlink(old)
            if not old.exists():
                del self._scores[old]
        return path

    def _what_is_left(self) -> str:
        """Say after a failed write what the next start will find."""
        if not self.path.is_dir():
            return (
                "The directory was removed during the run, and its commits with it: "
                "the same program starts from the beginning, or from a copy of the "
                "directory put back in its place."
            )
        paths = list_commits(self.path)
        if not paths:
            return "There is no commit before it: make room, and start again."
        return (
            f"The commits before it are still there, the newest is {paths[-1].name}: "
            "make room, and start the same program again."
        )

    def _superfluous(self) -> list[Path]:
        newest_last = sorted(self._scores, key=_number)
        scored = [(s, -_number(p), p) for p, s in self._scores.items() if s is not None]
        stay = set(newest_last[-self.keep :])
        stay |= {path for *_, path in sorted(scored)[: self.keep_best]}
        return [path for path in newest_last if path not in stay]
