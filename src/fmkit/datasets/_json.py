"""`mnist.json.gz` of the Paddle tutorial, read one row at a time.

The file is one JSON array of three splits, `[train, valid, eval]`, each
`[images, labels]`; an image is a list of 784 numbers. Read whole, as the tutorial
does, it becomes 55 million Python floats, some 2 GB. Here one row at a time is
parsed into a float32 array; nesting deeper than the format's is never followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fmkit._untrusted_files import CHUNK, DatasetFileError, Stream, open_stream
from fmkit.datasets._splits import Split

MODES = ("train", "valid", "eval")
PIXELS = 784
# Stated maxima: text of the file in all, of one row, and images of one split.
MAX_TEXT_BYTES = 1 << 31
MAX_ROW_BYTES = 1 << 16
MAX_IMAGES = 100_000
_NUMBER_TEXT = b"0123456789+-.eE, \t\r\n"
_SPACE = re.compile(rb"[ \t\r\n]*")


def read_paddle_json(path: Path, modes: tuple[str, ...]) -> dict[str, Split]:
    """Return the splits named in `modes`; the rest of the file is checked too.

    Args:
        path: The file, gzipped or plain.
        modes: Which of "train", "valid", "eval" to keep in memory.

    Returns:
        Images, float32 `(n, 784)`, and labels, uint8 `(n,)`, by mode.

    Raises:
        DatasetFileError: If the file is not exactly of this form.
        OSError: If it can't be opened.
    """
    splits = {}
    with open_stream(path) as stream:
        text = _Text(path, stream)
        text.expect(b"[", "the list of three splits")
        for mode in MODES:
            if mode != MODES[0]:
                text.expect(b",", f"the split {mode!r}")
            split = _read_split(text, mode, mode in modes)
            if mode in modes:
                splits[mode] = split
        text.expect(b"]", "the end of three splits")
        text.expect_end()
    return splits


def _read_split(text: _Text, mode: str, keep: bool) -> Split:
    text.expect(b"[", f"[images, labels] of {mode!r}")
    images, count = _read_images(text, mode, keep)
    text.expect(b",", f"the labels of {mode!r}")
    labels = _read_labels(text, mode, count)
    text.expect(b"]", f"the end of {mode!r} after images and labels")
    return images, labels


def _read_images(text: _Text, mode: str, keep: bool) -> tuple[np.ndarray, int]:
    """Return the images of a split (none if they aren't kept) and their number."""
    images = np.empty((1024 if keep else 0, PIXELS), np.float32)
    count = 0

    def read_row() -> None:
        nonlocal count
        where = f"image {count} of {mode!r}"
        if count >= MAX_IMAGES:
            raise text.error(f"has more than {MAX_IMAGES} images in {mode!r}")
        row = _as_pixels(text, text.numbers(MAX_ROW_BYTES, where), where)
        if keep:
            if count == len(images):
                # In place, so that no second copy of the images is ever held.
                images.resize((2 * count, PIXELS), refcheck=False)
            images[count] = row
        count += 1

    text.each(read_row, f"the images of {mode!r}")
    if keep:
        images.resize((count, PIXELS), refcheck=False)
    return images, count


def _as_pixels(text: _Text, numbers: list[int | float], where: str) -> np.ndarray:
    if len(numbers) != PIXELS:
        raise text.error(f"{where} has {len(numbers)} numbers; expected {PIXELS}")
    try:
        # float64 first: past float32's range the cast alone would only warn.
        row = np.array(numbers, np.float64)
    except OverflowError:
        row = np.array([np.inf])
    if not (np.abs(row) <= np.finfo(np.float32).max).all():
        raise text.error(f"{where} has a value that float32 can't hold")
    return row


def _read_labels(text: _Text, mode: str, count: int) -> np.ndarray:
    where = f"labels of {mode!r}"
    numbers = text.numbers(MAX_ROW_BYTES + 16 * count, where)
    if len(numbers) != count:
        raise text.error(f"has {len(numbers)} {where} for {count} images")
    for index, number in enumerate(numbers):
        if not 0 <= number <= 9 or number != int(number):
            raise text.error(f"label {index} of {mode!r} is {number}; expected 0 to 9")
    return np.array(numbers).astype(np.uint8)


class _Text:
    """A cursor over the text of a file; holds one chunk and one row of it."""

    def __init__(self, path: Path, stream: Stream):
        self.path = path
        self._stream = stream
        self._buffer = b""
        self._at = 0
        self._read = 0

    def error(self, problem: str) -> DatasetFileError:
        """Return the error to raise, which says what the file should be."""
        return DatasetFileError(
            self.path,
            f"{problem}. Expected the JSON of the Paddle tutorial: three splits of "
            f"[images, labels], each image {PIXELS} numbers.",
        )

    def _read_chunk(self) -> bool:
        """Append the next chunk to the buffer, dropping what was consumed."""
        chunk = self._stream.read(CHUNK)
        self._read += len(chunk)
        if self._read > MAX_TEXT_BYTES:
            raise self.error(f"is over {MAX_TEXT_BYTES} bytes long")
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _peek(self) -> bytes:
        """Return the next non-space character without consuming it."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            if not self._read_chunk():
                return b""

    def expect(self, character: bytes, what: str) -> None:
        """Consume the next character, which must be `character`."""
        found = self._peek()
        if found != character:
            shown = repr(found.decode("latin-1")) if found else "its end"
            raise self.error(
                f"has {shown} where {character.decode()!r} ({what}) should be"
            )
        self._at += 1

    def expect_end(self) -> None:
        """Refuse anything but space from here on."""
        if self._peek():
            raise self.error("has data after its third split")

    def each(self, read_item: Callable[[], None], what: str) -> None:
        """Call `read_item` for each item of a list that has at least one."""
        self.expect(b"[", what)
        read_item()
        while self._peek() == b",":
            self._at += 1
            read_item()
        self.expect(b"]", f"the end of {what}")

    def numbers(self, limit: int, what: str) -> list[int | float]:
        """Parse a flat list of numbers whose text takes at most `limit` bytes."""
        self.expect(b"[", what)
        searched = self._at
        while (end := self._buffer.find(b"]", searched)) < 0:
            held = len(self._buffer) - self._at
            if held > limit:
                raise self.error(f"has {what} of over {limit} bytes of text")
            if not self._read_chunk():
                raise self.error(f"ends inside {what}")
            searched = held
        inside = self._buffer[self._at : end]
        self._at = end + 1
        if len(inside) > limit or inside.translate(None, _NUMBER_TEXT):
            raise self.error(f"has something other than numbers in {what}")
        try:
            return json.loads(b"[" + inside + b"]")
        except ValueError as error:
            raise self.error(f"has damaged JSON in {what} ({error})") from error
