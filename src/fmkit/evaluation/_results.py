"""Where results go: a file of JSON lines that survives kills, and TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

from fmkit._files import open_regular, read_regular, sync_directory

__all__ = [
    "ByData",
    "Record",
    "ResultsFile",
    "TensorBoardWriter",
    "is_record",
    "make_folder",
]

Record = dict[str, Any]
ByData = dict[str, dict[str, Any]]  # metrics by data set

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class ResultsFile:
    """One JSON object per line, each flushed to the disk when it is appended.

    A record counts once its whole line is on the disk. A line that does not fit there
    is removed at once; one that a kill cut short, when the file is opened the next
    time. The file must be a regular one: a link is not followed.

    Args:
        path: The file; made when the first record is appended.

    Attributes:
        records: The undamaged records, in the order of the file.

    Raises:
        OSError: If something else is at `path`; the message says what.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        with contextlib.suppress(FileNotFoundError):
            self._read()

    def _read(self) -> None:
        data = read_regular(self.path)
        *lines, rest = data.split(b"\n")
        if rest:
            self._repair(len(data) - len(rest), rest)
            if _parse(rest) is not None:
                lines.append(rest)
        for number, line in enumerate(lines, 1):
            record = _parse(line)
            if record is None:
                warnings.warn(
                    f"{self.path}, line {number}, is damaged and not counted: its "
                    "checkpoint is evaluated again if it still exists.",
                    stacklevel=5,
                )
            else:
                self.records.append(record)

    def _repair(self, start: int, rest: bytes) -> None:
        """End the file with a whole line: complete the last one, or remove it."""
        with os.fdopen(open_regular(self.path, os.O_RDWR), "r+b") as file:
            if _parse(rest) is not None:  # only the end of the line is missing
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(start)
            file.flush()
            os.fsync(file.fileno())

    def append(self, record: Record) -> None:
        """Write one record, and return when it is on the disk.

        Raises:
            OSError: If the disk is full, and so on. The file then ends with its last
                whole line, as before.
        """
        line = json.dumps(_encode(record), allow_nan=False) + "\n"
        new = not self.path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        file = open_regular(self.path, flags)
        try:
            _append_whole(file, line.encode())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path}: the results of {record['checkpoint']} could not be "
                f"written ({error.strerror or error}). Nothing else is lost. Make "
                "room and start again: this checkpoint is then evaluated again",
            ) from error
        finally:
            os.close(file)
        if new:
            sync_directory(self.path.parent)
        self.records.append(record)


def _append_whole(file: int, line: bytes) -> None:
    """Append a line and flush it to the disk, or leave the file as it was."""
    size = os.fstat(file).st_size
    if size and os.lseek(file, size - 1, os.SEEK_SET) and os.read(file, 1) != b"\n":
        line = b"\n" + line  # after a part of a line that could not be removed
    try:
        left = memoryview(line)
        while left:
            # A disk that is nearly full takes a part, and fails at the next call.
            written = os.write(file, left)
            if not written:
                raise OSError(errno.EIO, "nothing was written")
            left = left[written:]
        os.fsync(file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
            os.fsync(file)
        raise


def make_folder(path: Path) -> None:
    """Make a folder if it is not there; follow no link in its place.

    Raises:
        OSError: If `path` is a link, or anything else that is no folder.
    """
    if path.is_symlink():
        raise OSError(
            f"{path} must be a folder, but is a symbolic link to {os.readlink(path)}. "
            "Remove it, or give the folder it leads to as `output`."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OSError(
            f"{path} must be a folder, but something else is there. Move it away, or "
            "give another folder as `output`."
        ) from None


def is_record(value: Any) -> bool:
    """Whether `value` is a record as `SidecarEvaluator` writes them."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("checkpoint"), str)
        and isinstance(value.get("digest"), str)
        and _is_count(value.get("epoch"))
        and _is_count(value.get("step"))
        and _is_best(value.get("best"))
        and isinstance(value.get("results"), dict)
        and all(_is_by_data(by_data) for by_data in value["results"].values())
    )


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_best(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("monitor"), str)
        and isinstance(value.get("weights"), str)
        and isinstance(value.get("value"), float)
    )


def _is_by_data(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(logs, dict) and all(_is_number(v) for v in logs.values())
        for logs in value.values()
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_number(item) for item in value)
    return isinstance(value, float)


def _parse(line: bytes) -> Record | None:
    try:
        # Integers become floats only in results: counts are integers.
        record = _decode(json.loads(line))
    except (ValueError, RecursionError, OverflowError):
        return None
    return record if is_record(record) else None


def _encode(value: Any) -> Any:
    """Name the numbers that JSON has no way to write."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value


class TensorBoardWriter:
    """Writes results as scalars: a run for raw and one for averaged weights.

    Needs the package `tensorboard`, on any backend; TensorFlow is not needed.

    Args:
        folder: Where the event files go.

    Raises:
        ImportError: If `tensorboard` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                "`tensorboard=True` needs the package tensorboard, which is not "
                "installed: `pip install tensorboard`, or omit the argument; the "
                "results are in the JSONL file in any case."
            ) from error
        self._make = Writer
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, step: int, results: dict[str, ByData]) -> None:
        """Write the results of one checkpoint."""
        for weights, by_data in results.items():
            if weights not in self._writers:
                make_folder(self._folder)
                make_folder(self._folder / weights)
                self._writers[weights] = self._make(str(self._folder / weights))
            writer = self._writers[weights]
            for data, logs in by_data.items():
                for name, value in logs.items():
                    if isinstance(value, float):
                        writer.add_scalar(f"{data}/{name}", value, step)
            writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
