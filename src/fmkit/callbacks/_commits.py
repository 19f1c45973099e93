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
    _write_whole(Path(path), lambda file: _write_archive(file, meta, arrays))


def _write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file that stands at `path` once it is whole and durable."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def pack(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return what a commit would hold, as the bytes of its file."""
    file = io.BytesIO()
    _write_archive(file, meta, arrays)
    return file.getvalue()


def _write_archive(
    file: IO[bytes], meta: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    listed = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape)}
        for name, array in arrays.items()
    }
    header = {**meta, "format": FORMAT, "version": VERSION, "arrays": listed}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_array(member, array)
        archive.writestr(_META, json.dumps(header))


def _write_array(member: IO[bytes], array: Array) -> None:
    # Not numpy.save: that copies each array once more on its way into a zip.
    array = np.ascontiguousarray(_plain(array)).reshape(array.shape)
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
    member.write(array.reshape(-1).view(np.uint8).data)


def _plain(array: Array) -> Array:
    """View bfloat16 and its like, which .npy has no name for, as their bits."""
    if array.dtype.isbuiltin == 1:
        return array
    return array.view(f"uint{8 * array.dtype.itemsize}")


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading


def read_commit(path: str | os.PathLike[str]) -> Commit:
    """Read a commit, and check all of it.

    Raises:
        DamagedCommitError: If the file is not exactly what was written.
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
    """
    with _archive(path) as archive:
        return _read_meta(archive)


@contextlib.contextmanager
def _archive(
    path: str | os.PathLike[str], file: IO[bytes] | None = None
) -> Iterator[zipfile.ZipFile]:
    """Open `file`, or the one at `path`; whatever fails then is told of `path`."""
    try:
        with zipfile.ZipFile(path if file is None else file) as archive:
            yield archive
    except FileNotFoundError:
        raise
    except Exception as error:
        # Arbitrary bytes make zipfile, json and numpy raise nearly anything.
        reason = str(error) or type(error).__name__
        raise DamagedCommitError(f"{os.fspath(path)}: {reason}") from error


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


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        # Keras's backends bring it; its import adds bfloat16 and the float8s.
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


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
        self._lock: _Lock | None = None
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
                self._lock = _Lock(self.path / "lock", is_live, finish)
            self._lock.acquire()
        except _InUseError as error:
            raise OSError(
                f"Directory {self.path} is in use by another live run ({error}). "
                "Wait for it to end, stop it, or use another directory."
            ) from None
        except OSError as error:
            raise OSError(
                f"Directory {self.path} cannot be used for commits: {error}. Give a "
                "directory that this process may write to."
            ) from error
        self._forget_the_dead()
        existing = list_commits(self.path)
        self._next = _number(existing[-1]) + 1 if existing else 1

    def release(self) -> None:
        """Let another run use the directory."""
        if self._lock is not None:
            self._lock.release()

    def _forget_the_dead(self) -> None:
        """Remove what a killed run left half-written. The lock is held."""
        for name in os.listdir(self.path):
            if _TEMPORARY.fullmatch(name):
                os.unlink(self.path / name)

    def newest(self) -> Commit | None:
        """Return the newest commit that is sound, or `None` if there never was one.

        Warns:
            UserWarning: For each newer file that is damaged.

        Raises:
            DamagedCommitError: If there are files and none is sound.
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
            with contextlib.suppress(DamagedCommitError):
                self._scores[path] = read_meta(path).get("score")

    def describe(self, model: str) -> None:
        """Write `model.json` beside the commits, unless it says so already.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.path / "model.json"
        data = model.encode()
        if not path.exists() or path.read_bytes() != data:
            _write_whole(path, lambda file: file.write(data))

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
                f"{self.path}: {error}. The commits before it are still there: make "
                "room, and start the same program again."
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

    def _superfluous(self) -> list[Path]:
        newest_last = sorted(self._scores, key=_number)
        scored = [(s, -_number(p), p) for p, s in self._scores.items() if s is not None]
        stay = set(newest_last[-self.keep :])
        stay |= {path for *_, path in sorted(scored)[: self.keep_best]}
        return [path for path in newest_last if path not in stay]


class _InUseError(OSError):
    """Another live process holds the lock."""


class _Lock:
    """A file that at most one live process holds; death of any kind lets go of it."""

    def __init__(
        self, path: Path, is_live: Callable[[], bool], finish: Callable[[], None]
    ) -> None:
        self.path = path
        self.is_live = is_live
        self.finish = finish
        self._file: IO[str] | None = None
        self._process = 0

    @property
    def held(self) -> bool:
        # A forked child has a copy of this object but not the lock.
        return self._file is not None and self._process == os.getpid()

    def acquire(self) -> None:
        if self.held:
            return
        key = os.path.realpath(self.path)
        holder = _held.get(key)
        if holder is not None and holder.held:
            if holder.is_live():
                raise _InUseError("another `fit` of this very process")
            holder.finish()
            # Handed over, not opened again: closing any handle would unlock it.
            self._file, holder._file = holder._file, None
        else:
            self._file = _open_locked(self.path)
        self._process = os.getpid()
        _held[key] = self

    def release(self) -> None:
        if self._file is not None and self.held:
            self._file.close()
            _held.pop(os.path.realpath(self.path), None)
        self._file = None


# Locks held by this process: the system's locks exclude other processes only.
_held: dict[str, _Lock] = {}


def _open_locked(path: Path) -> IO[str]:
    file = open(path, "a+")  # noqa: SIM115 - stays open while it is held
    try:
        _lock_file(file)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise _InUseError(f"process {holder}") from None
    except OSError:
        file.close()
        raise
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _lock_file(file: IO[str]) -> None:
    if os.name == "nt":  # pragma: no cover
        import msvcrt

        # Far beyond the text, which others must be able to read.
        file.seek(2**20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        # A record lock: unlike flock's, it is not inherited by forked children,
        # which may outlive the run.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
