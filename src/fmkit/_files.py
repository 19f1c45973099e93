"""Files of a run: regular ones only, written whole, and a lock for one process."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

__all__ = [
    "InUseError",
    "Lock",
    "open_regular",
    "read_regular",
    "sync_directory",
    "whole_file",
]

_KINDS = [
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
]


def open_regular(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """Open a regular file without following a link; return its descriptor.

    Nothing else is opened, so this never blocks: opening a named pipe would, until its
    other end is opened. Only the last part of the path is checked; folders above it may
    be links.

    Args:
        path: The file.
        flags: As for `os.open`, for instance `os.O_RDONLY`.
        mode: Permissions of a file that is made.

    Raises:
        OSError: If something else is at `path`; the message says what was found. Else
            what `os.open` raises.
    """
    with contextlib.suppress(FileNotFoundError):
        # Checked first: opening a device can start it.
        _check_regular(path, os.lstat(path).st_mode)
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)  # not every system has each of them
    descriptor = os.open(path, flags, mode)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    found = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise OSError(
        f"{os.fspath(path)} must be a regular file, but {found} was found there. Move "
        "it away, or give another folder."
    )


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file; refuse anything else, as `open_regular`."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


@contextlib.contextmanager
def whole_file(
    path: Path, suffix: str = ".tmp", final: Callable[[], Path] | None = None
) -> Iterator[IO[bytes]]:
    """Open a new file for writing that appears at `path` once it is whole and durable.

    It has the permissions of the file that it replaces. A crash at any instant leaves
    the old file or the new one at `path`, and at most a temporary file beside it.

    Args:
        path: Where the file appears when the block ends without an exception.
        suffix: How the temporary name ends.
        final: Returns, when all is written, the path that it appears at instead.

    Raises:
        OSError: If it cannot be written. What was at `path` before is still there.
    """
    # The process number alone would not do: threads may write the same file, and a
    # process with the same number may have been killed here before.
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{unique}{suffix}")
    # "x" makes the file, and neither opens nor follows what is there already.
    with open(temporary, "xb") as file:
        try:
            with contextlib.suppress(FileNotFoundError):
                replaced = os.lstat(path).st_mode
                if stat.S_ISREG(replaced):
                    os.chmod(temporary, stat.S_IMODE(replaced))
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()  # Windows does not rename an open file
            os.replace(temporary, final() if final is not None else path)
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable, where the system can."""
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class InUseError(OSError):
    """Another live process, or this one, holds the lock."""


class Lock:
    """A file that at most one live process holds, until it releases it or dies.

    Args:
        path: The file; it is made, and holds the number of the process.
        kind: The method that holds it, for the message to another one.
        is_live: Returns whether the work that the lock is held for still runs. If it
            ended without `release` (an exception that a notebook keeps), the next in
            this process takes over.
        finish: Called before the next takes over: waits for what this one is still
            writing.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        is_live: Callable[[], bool] = lambda: True,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.is_live = is_live
        self.finish = finish
        # One or none. Whoever pops it owns it: a run that broke off may be collected,
        # and so release its lock, in any thread and while the next takes over.
        self._descriptors: list[int] = []

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return bool(self._descriptors)

    def acquire(self) -> None:
        """Hold the lock until `release` or the end of the process.

        Raises:
            InUseError: If it is held already; the message says by whom.
            OSError: If the file cannot be used.
        """
        if self.is_held:
            return
        key = os.path.realpath(self.path)
        holder = _locks.get(key)
        descriptor = None
        if holder is not None and holder.is_held:
            if holder.is_live():
                raise InUseError(f"another `{self.kind}` of this very process")
            holder.finish()
            descriptor = holder._pop()
        if descriptor is None:
            descriptor = self._open(retry=holder is not None)
        self._descriptors.append(descriptor)
        _locks[key] = self

    def _open(self, *, retry: bool) -> int:
        try:
            return _open_locked(self.path)
        except InUseError:
            if not retry:
                raise
        time.sleep(0.1)  # another thread may be about to close it
        return _open_locked(self.path)

    def _pop(self) -> int | None:
        try:
            return self._descriptors.pop()
        except IndexError:
            return None

    def release(self) -> None:
        """Let another process hold the lock."""
        descriptor = self._pop()
        if descriptor is not None:
            os.close(descriptor)


# The latest lock of each file in this process, so that one of its runs can take over
# another's.
_locks: weakref.WeakValueDictionary[str, Lock] = weakref.WeakValueDictionary()


def _let_go_in_child() -> None:
    # A forked child shares the open files, and with them the locks, and it may outlive
    # the run. When it closes its copies, the locks stay with the parent.
    for lock in list(_locks.values()):
        lock.release()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _open_locked(path: Path) -> int:
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except (BlockingIOError, PermissionError):
        os.lseek(descriptor, 0, os.SEEK_SET)  # `_lock` may have left it elsewhere
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise InUseError(f"process {holder}") from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int) -> None:
    """Lock an open file, for as long as it is open.

    Not a POSIX record lock: the process would lose it as soon as any of its code opens
    and closes the file, as a callback that copies the folder of the run does.
    """
    if os.name == "nt":  # pragma: no cover
        import msvcrt

        # Far beyond the text, which others must be able to read.
        os.lseek(descriptor, 2**20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        os.lseek(descriptor, 0, os.SEEK_SET)
        return
    import fcntl

    if sys.platform == "linux":
        # Over NFS too, where flock would become a record lock.
        request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    else:  # pragma: no cover
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
