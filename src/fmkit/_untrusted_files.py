"""Bytes from untrusted files, read in bounded steps.

Every reader of data files goes through here. A damaged file ends in one
`DatasetFileError` that names the file and what was expected of it; the memory
used is what the file's header promises, at most `MAX_BYTES`, plus one chunk.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

# The most bytes one array may take: 1.3 million images of 28 by 28.
MAX_BYTES = 1 << 30
CHUNK = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"
# Deflate can't shrink anything to less than a 1032nd (zlib's technical notes).
MAX_DEFLATE_RATIO = 1032


class Stream(Protocol):
    """What the readers ask of an open file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill `buffer` from its start; return how many bytes came."""


class DatasetFileError(ValueError):
    """A data file is damaged, cut short, too long, or not what it should be.

    The message names the file and what was expected of it.

    Args:
        path: The file.
        problem: What was found and what was expected.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str):
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = Path(path)
        self.problem = problem

    def __reduce__(self) -> tuple[type[DatasetFileError], tuple[Path, str]]:
        # Errors cross process boundaries by pickle; `args` holds the joined text.
        return type(self), (self.path, self.problem)


@contextmanager
def open_file(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading; a folder, pipe or device is refused."""
    # Looked at before opening: opening a pipe waits for a writer.
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist; expected a data file, or a folder of them."
        ) from None
    if stat.S_ISDIR(mode):
        raise DatasetFileError(path, "is a folder; expected a file.")
    if not stat.S_ISREG(mode):
        raise DatasetFileError(path, "is not a regular file.")
    with path.open("rb") as file:
        yield file


def head_of(path: Path, count: int) -> bytes:
    """Return the first `count` bytes as the file's reader will see them."""
    with open_stream(path) as stream:
        return stream.read(count)


@contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
    """Open a file, plain or gzipped (by its first bytes, not its name)."""
    with open_file(path) as file:
        gzipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        yield GunzipReader(path, file) if gzipped else file


def _most_bytes(path: Path, stream: Stream) -> int:
    """Return how many bytes `stream` can give at most, going by the file's size."""
    if isinstance(stream, io.BufferedReader):
        return path.stat().st_size
    if isinstance(stream, GunzipReader):
        return path.stat().st_size * MAX_DEFLATE_RATIO
    return MAX_BYTES


def read_exactly(path: Path, stream: Stream, count: int, what: str) -> np.ndarray:
    """Return the next `count` bytes; refuse a file that ends before them.

    Args:
        path: Named in the error.
        stream: Where the bytes come from.
        count: Bytes, already checked against a maximum.
        what: Named in the error: "60000 images of 28 x 28".
    """
    short = DatasetFileError(path, f"is cut short; expected {what} ({count} bytes).")
    if count > _most_bytes(path, stream):
        raise short  # before taking memory for bytes that can't come
    out = np.empty(count, np.uint8)
    filled, view = 0, out.data
    while filled < count:
        got = stream.readinto(view[filled:])
        if not got:
            raise short
        filled += got
    return out


def refuse_more(path: Path, stream: Stream, what: str) -> None:
    """Refuse a file with data after its last expected byte."""
    if stream.read(1):
        raise DatasetFileError(path, f"has data after {what}, where it should end.")


class GunzipReader:
    """One gzip member, decompressed a chunk at a time.

    Faster than `gzip.GzipFile`, since one C call makes each chunk and checks its
    CRC, and stricter: a second member or any byte after the first is refused,
    where `GzipFile` would read on.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self._path = path
        self._file = file
        self._decoder = zlib.decompressobj(wbits=31)

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, fewer only at the end; all without `size`."""
        pieces, left = [], size
        while left and (piece := self._next(min(CHUNK, left) if left > 0 else CHUNK)):
            pieces.append(piece)
            left -= len(piece) if left > 0 else 0
        return b"".join(pieces)

    def readinto(self, buffer: memoryview, /) -> int:
        """Write the next chunk to the start of `buffer`; return its length."""
        if not len(buffer):
            return 0  # to zlib a limit of 0 means no limit
        piece = self._next(min(CHUNK, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)

    def _next(self, limit: int) -> bytes:
        """Return up to `limit` bytes, none only at the proper end of the file."""
        decoder = self._decoder
        while not decoder.eof:
            data = decoder.unconsumed_tail or self._file.read(CHUNK)
            try:
                piece = decoder.decompress(data, limit)
            except zlib.error as error:
                raise DatasetFileError(
                    self._path, f"is damaged gzip data ({error})."
                ) from error
            if piece:
                return piece
            # No input left may still have meant output waiting inside zlib; no
            # output either means that the file ended before its gzip trailer.
            if not data and not decoder.eof:
                raise DatasetFileError(
                    self._path, "is gzip data cut short; get the file again."
                )
        if decoder.unused_data or self._file.read(1):
            raise DatasetFileError(
                self._path,
                "has data after the end of its gzip data; expected one gzip member "
                "and nothing after it.",
            )
        return b""
