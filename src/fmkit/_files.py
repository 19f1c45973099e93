"""Files opened as what they are: regular files, never links, pipes or devices."""

from __future__ import annotations

import contextlib
import os
import stat

__all__ = ["open_regular"]

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

    Nothing else is opened, so nothing is waited for: a named pipe would block until
    its other end is opened. Of the path only the last part is looked at; folders
    above it may be links.

    Args:
        path: The file.
        flags: As for `os.open`, for instance `os.O_RDONLY`.
        mode: Permissions of a file that is made.

    Raises:
        OSError: If something else is at `path`; the message says what was found. Else
            what `os.open` raises.
    """
    with contextlib.suppress(FileNotFoundError):
        # Looked at first: to open a device can be to start it.
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
