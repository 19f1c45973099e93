"""Which files of a directory are new, while a training writes and deletes there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fmkit.evaluation._checkpoint import NotReadableError
from fmkit.evaluation._listing import CheckpointFile, Signature, list_checkpoints

__all__ = ["Watch"]

# Seconds after which a file that is unreadable and has not changed is damaged.
_SETTLE = 5.0


class _Seen(NamedTuple):
    """A file in the state in which it was read, or given up."""

    signature: Signature | None = None
    readable: bool = False
    finished: bool = False


class Watch:
    """What has been seen of a directory of checkpoints.

    Args:
        directory: The directory; it need not be there yet.
        newest_only: Whether to take the newest file each time, skipping the others.
        last_number: The number of the commit that was evaluated last, if any.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        newest_only: bool,
        last_number: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._newest_only = newest_only
        self._last_number = last_number
        self._clock = clock
        self._seen: dict[Path, _Seen] = {}
        # Unreadable, and perhaps still being written: signature, time of first look.
        self._unsettled: dict[Path, tuple[Signature, float]] = {}
        self._postponed: set[Path] = set()

    def begin_look(self) -> None:
        """Look again at what was postponed until the next look."""
        self._postponed.clear()

    def next(self) -> CheckpointFile | None:
        """Return the file whose turn it is, or `None` if nothing is new."""
        files = self._in_turn(list_checkpoints(self._directory))
        return next((file for file in files if self._is_new(file)), None)

    def _in_turn(self, files: list[CheckpointFile]) -> Iterator[CheckpointFile]:
        """Yield the files that may be read, in the order of their turns."""
        if not self._newest_only:
            yield from files
            return
        # Commits and other files are two series, each with a newest of its own.
        for commits in (True, False):
            for file in reversed(files):
                if (file.number is not None) == commits:
                    if self._get(file).readable and self.is_settled(file):
                        break
                    yield file

    def _get(self, file: CheckpointFile) -> _Seen:
        return self._seen.get(file.path, _Seen())

    def is_settled(self, file: CheckpointFile) -> bool:
        """Whether the file in this state was read, or given up as damaged."""
        return self._get(file).signature == file.signature

    def _is_new(self, file: CheckpointFile) -> bool:
        if self.is_settled(file) or file.path in self._postponed:
            return False
        signature, since = self._unsettled.get(file.path, (None, 0.0))
        return signature != file.signature or self._clock() - since >= _SETTLE

    def run_has_ended(self) -> bool:
        """Whether the newest commit has been read, and says that the run has ended.

        Not while a file that can't be read yet has its turn still to come: it is read,
        or given up, when it has not changed for some seconds.
        """
        files = list_checkpoints(self._directory)
        if any(file.path in self._unsettled for file in self._in_turn(files)):
            return False
        commits = [file for file in files if file.number is not None]
        return bool(
            commits and self._get(commits[-1]).finished and self.is_settled(commits[-1])
        )

    # What came of a file

    def warn_of_missed(self, file: CheckpointFile) -> None:
        """Warn of the commits before this one that came and went between two looks."""
        if file.number is None:
            return
        last, self._last_number = self._last_number, file.number
        if self._newest_only or last is None or file.number <= last + 1:
            return
        missed = f"{last + 1} to {file.number - 1}"
        if file.number == last + 2:
            missed = str(last + 1)
        warnings.warn(
            f"Missed in {self._directory}: commit {missed}, deleted before it was "
            "evaluated. Give ExactResume a larger `keep`, commit less often, or "
            "evaluate on less data.",
            stacklevel=6,
        )

    def note_read(self, file: CheckpointFile, *, finished: bool) -> None:
        """Note that a file was read, and whether it says that the run has ended."""
        self._unsettled.pop(file.path, None)
        self._seen[file.path] = _Seen(file.signature, True, finished)

    def note_deleted(self, file: CheckpointFile) -> None:
        """Note that a file was gone when its turn came."""
        self._postponed.add(file.path)

    def note_unreadable(self, file: CheckpointFile, error: NotReadableError) -> None:
        """Postpone a file that may be half-written; give up one that is damaged."""
        signature, since = self._unsettled.get(file.path, (None, 0.0))
        if not error.final:
            now = self._clock()
            if signature != file.signature:
                self._unsettled[file.path] = (file.signature, now)
            if signature != file.signature or now - since < _SETTLE:
                self._postponed.add(file.path)
                return
        self._unsettled.pop(file.path, None)
        self._seen[file.path] = _Seen(file.signature)
        warnings.warn(f"Skipping a checkpoint: {error}", stacklevel=6)
