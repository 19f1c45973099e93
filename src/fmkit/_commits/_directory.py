"""A directory of commits: held by one live process, with the old ones deleted."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmkit._commits._format import (
    Commit,
    DamagedCommitError,
    averages_path,
    commit_name,
    commit_number,
    list_averages,
    list_commits,
    read_commit,
    read_meta,
    write_commit,
    write_list,
)
from fmkit._commits._meta import Meta
from fmkit._commits._parts import PartPlace, Shared, is_part, list_of, prefix_of
from fmkit._files import InUseError, Lock, read_regular, whole_file

__all__ = ["CommitDirectory", "warn_of_damage"]

Array = np.ndarray[Any, Any]

_TEMPORARY = re.compile(
    r"\.(?:(?:commit|averages)-\d+\.npz|(?:averages-)?part-[0-9a-z-]+\.npz|model\.json)"
    r"\.[0-9a-f-]+\.tmp"
)


class CommitDirectory:
    """The commits of one run, held by one live process at a time.

    Args:
        path: The directory; made when it is not there.
        keep: How many of the newest commits are kept.
        keep_best: How many of the best commits are kept as well. Best is by
            `meta.score`, lower first; a commit whose score is `None` has none.
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
            is_live: Returns whether the work that the directory is held for is
                still running. If it ended without `release` (an exception that a
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
            self.remove_lone_parts()
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
        self._next = commit_number(existing[-1]) + 1 if existing else 1

    @property
    def is_held(self) -> bool:
        """Whether this object holds the directory."""
        return self._lock is not None and self._lock.is_held

    def release(self) -> None:
        """Let another run use the directory."""
        if self._lock is not None:
            self._lock.release()

    def _remove_temporaries(self) -> None:
        """Remove what a killed run left half-written. The lock is held."""
        for name in os.listdir(self.path):
            if _TEMPORARY.fullmatch(name):
                os.unlink(self.path / name)  # of a link, the link

    def remove_lone_parts(self) -> None:
        """Remove parts whose commit did not come about. The lock is held.

        Nobody may be writing a part.
        """
        names = set(os.listdir(self.path))
        for name in filter(is_part, names):
            if list_of(name) not in names:
                os.unlink(self.path / name)

    def newest(
        self, before: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> Commit | None:
        """Return the newest commit that is sound, or `None` if there never was one.

        Args:
            before: Only those with a smaller number than this.
            share: Which parts of it are checked: see `read_commit`.

        Warns:
            UserWarning: For each newer file that is damaged.

        Raises:
            DamagedCommitError: If there are files and none is sound.
            OSError: If one cannot be read: that is no damage, so none before it is
                taken in its place.
        """
        paths = list_commits(self.path)
        for path in reversed(paths):
            if before is not None and commit_number(path) >= before:
                continue
            try:
                commit = read_commit(path, share=share)
            except DamagedCommitError as error:
                warn_of_damage(str(error))
            except OSError as error:
                raise OSError(
                    f"Commit {path} cannot be read, though it may be sound: {error}. "
                    "Nothing was changed. Start again when the disk answers, or move "
                    "the file away to continue from the commit before it."
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

    def read(self, number: int | None, process: int, count: int) -> Commit | None:
        """Return the commit of this number, which process 0 of a job has found.

        Args:
            number: `None` if it has found none; then only the directory must exist.
            process: This process, which checks its share of the parts.
            count: How many processes share them.

        Raises:
            DamagedCommitError: If a part that this process checks is damaged.
            OSError: If this process does not see what the other one sees.
        """
        path = self._path(number or 0)
        if (self.path / "lock" if number is None else path).exists():
            if number is None:
                return None
            return read_commit(path, process, (process, count))
        raise OSError(
            f"Process 0 of this job keeps its commits in a directory {self.path} that "
            "this process does not see. Give a path on a file system that all of "
            "them share."
        )

    @property
    def next(self) -> int:
        """The number of the next commit."""
        return self._next

    def place(self, number: int, index: int, count: int, token: str) -> PartPlace:
        """Return the place of a process's part of a commit."""
        return PartPlace(self._path(number), index, count, token)

    def place_of_averages(self, length: int, commit: PartPlace) -> PartPlace:
        """Return that of a snapshot of averages, which is written before a commit."""
        return commit._replace(list=averages_path(self.path, length))

    def _path(self, number: int) -> Path:
        return self.path / commit_name(number)

    def _index(self, paths: list[Path]) -> None:
        """Read the scores of older files, for `keep` and `keep_best`."""
        for path in paths:
            # One that can't be read now is left where it is.
            with contextlib.suppress(DamagedCommitError, OSError):
                self._scores[path] = read_meta(path).score

    def describe(self, model: str) -> None:
        """Write `model.json` beside the commits, unless it is there already.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.path / "model.json"
        data = model.encode()
        if not os.path.lexists(path) or read_regular(path) != data:
            with whole_file(path) as file:
                file.write(data)

    def write_averages(
        self, length: int, meta: Meta, arrays: Mapping[str, Array]
    ) -> None:
        """Write a snapshot of averages that have seen `length` updates.

        Raises:
            OSError: If it cannot be written.
        """
        self._write(averages_path(self.path, length), meta, arrays)

    def drop_averages(self, beyond: int) -> list[str]:
        """Delete the snapshots of averages that have seen more than `beyond` updates.

        A run that goes on from before them makes them again. Returns their names.
        """
        found = list_averages(self.path).items()
        dropped = [path for length, path in found if length > beyond]
        for path in dropped:
            os.unlink(path)
            self._remove_parts(path)
        return [path.name for path in dropped]

    def write(self, meta: Meta, arrays: Mapping[str, Array]) -> Path:
        """Write the next commit; when it is durable, delete those not kept.

        Raises:
            OSError: If it cannot be written. Older commits are all still there.
        """
        path = self._path(self._next)
        self._write(path, meta, arrays)
        self._has_written(path, meta)
        return path

    def write_part(self, shared: Shared) -> None:
        """Write this process's part of a commit of a job.

        Raises:
            OSError: If it cannot be written.
        """
        with self._explained(sum(piece.nbytes for piece in shared.pieces)):
            shared.write_part()

    def write_list(self, shared: Shared, parts: list[dict[str, Any]]) -> None:
        """Write the list of a commit of a job or of a snapshot of its averages.

        Of a commit, when it is durable, delete those not kept.

        Raises:
            OSError: If it cannot be written. Older commits are all still there.
        """
        with self._explained(0):
            write_list(shared, parts)
        if shared.place.list == self._path(self._next):
            self._has_written(shared.place.list, shared.meta)

    def _has_written(self, path: Path, meta: Meta) -> None:
        self._next += 1
        self._scores[path] = meta.score
        for old in self._superfluous():
            # Deleting may fail without harm: the next commit tries again.
            with contextlib.suppress(OSError):
                os.unlink(old)
                self._remove_parts(old)
            if not old.exists():
                del self._scores[old]

    def _remove_parts(self, path: Path) -> None:
        """Remove the parts of a list that is gone."""
        prefix = prefix_of(path)
        for name in os.listdir(self.path):
            if name.startswith(prefix) and is_part(name):
                os.unlink(self.path / name)

    def _write(self, path: Path, meta: Meta, arrays: Mapping[str, Array]) -> None:
        with self._explained(sum(array.nbytes for array in arrays.values())):
            write_commit(path, meta, arrays)

    @contextlib.contextmanager
    def _explained(self, size: int) -> Iterator[None]:
        """Say what a failed write means."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"A commit of {size / 1e6:.1f} MB could not be written to "
                f"{self.path}: {error}. {self._what_is_left()}"
            ) from error

    def _what_is_left(self) -> str:
        """Return what the next start will find after a failed write."""
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
        newest_last = sorted(self._scores, key=commit_number)
        scored = [
            (s, -commit_number(p), p) for p, s in self._scores.items() if s is not None
        ]
        stay = set(newest_last[-self.keep :])
        stay |= {path for *_, path in sorted(scored)[: self.keep_best]}
        return [path for path in newest_last if path not in stay]


def warn_of_damage(damage: str) -> None:
    """Warn that a commit is passed over."""
    warnings.warn(
        f"Skipping a damaged commit: {damage}. Using the one before it.", stacklevel=3
    )
