"""Arrays from an npz archive, whose sizes are checked before memory is allocated.

`numpy.load` reads what an archive's headers ask for. Here every size is checked
first, the npy headers are matched and never evaluated, and Python objects
(pickles) are refused by their dtype.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from fmkit._untrusted_files import (
    CHUNK,
    MAX_BYTES,
    MAX_DEFLATE_RATIO,
    DatasetFileError,
    open_file,
)

ZIP_MAGIC = b"PK"
MAX_DIRECTORY_BYTES = 1 << 16
NPY_MAGIC = b"\x93NUMPY\x01\x00"
# As numpy.save writes it; an `L` ends the sizes of files from Python 2.
NPY_HEADER = re.compile(
    rb"\{'descr': '([^']{1,9})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,15}L?, ?){0,8}(?:\d{1,15}L?)?)\), *\} *\n"
)
DTYPE = re.compile(rb"[|<>=][iuf][1248]")
# What zipfile and zlib raise on damaged archives.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    struct.error,
    UnicodeDecodeError,
    ValueError,
)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays `names` of an npz; other members are ignored.

    Args:
        path: The file.
        names: Names of the arrays, without `.npy`.

    Returns:
        The arrays by name: integers or floats, of any shape.

    Raises:
        DatasetFileError: If one is missing, damaged, or promises more than
            `MAX_BYTES`.
        OSError: If the file can't be opened.
    """
    with open_file(path) as file:
        _check_directory(path, file)
        try:
            with zipfile.ZipFile(file) as archive:
                return {name: _read_member(path, archive, name) for name in names}
        except DatasetFileError:
            raise
        except ZIP_ERRORS as error:
            raise DatasetFileError(path, f"is a damaged npz ({error}).") from error


def _check_directory(path: Path, file: BinaryIO) -> None:
    """Refuse an archive whose list of members is long: each entry costs memory."""
    if file.read(2) != ZIP_MAGIC:
        raise DatasetFileError(
            path,
            "is not an npz; expected one, or the folder that holds the four IDX files.",
        )
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) - end < 22:
        raise DatasetFileError(path, "is not a whole npz; it has no list of members.")
    directory_bytes = struct.unpack_from("<I", tail, end + 12)[0]
    # A zip64 locator would point zipfile at another, larger list.
    zip64 = tail[max(0, end - 20) : end].startswith(b"PK\6\7")
    if directory_bytes > MAX_DIRECTORY_BYTES or zip64:
        raise DatasetFileError(
            path,
            f"has a list of members of over {MAX_DIRECTORY_BYTES} bytes; expected "
            "the npz of one data set.",
        )


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array; every size is checked before its bytes are read."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        held = ", ".join(sorted(archive.namelist())[:8])
        raise DatasetFileError(
            path, f"has no array {name!r}; it holds: {held or 'nothing'}."
        ) from None
    most = min(MAX_BYTES, MAX_DEFLATE_RATIO * path.stat().st_size)
    if info.file_size > most:
        raise DatasetFileError(
            path,
            f"{name} promises {info.file_size} bytes; at most {most} are read from a "
            "file of this size.",
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DatasetFileError(
            path, f"{name} is compressed in a way NumPy never writes; expected deflate."
        )
    with archive.open(info) as member:
        dtype, order, shape, offset = _read_npy_header(path, member, name)
        count = math.prod(shape) * dtype.itemsize
        if count != info.file_size - offset:
            raise DatasetFileError(
                path,
                f"{name} promises {dtype} of shape {shape}, {count} bytes, but the "
                f"archive lists {info.file_size - offset}.",
            )
        values = _read_body(path, member, count, name)
    return values.view(dtype).reshape(shape, order="F" if order == b"True" else "C")


def _read_npy_header(
    path: Path, member: IO[bytes], name: str
) -> tuple[np.dtype, bytes, tuple[int, ...], int]:
    """Return dtype, Fortran order, shape and length of the header."""
    prefix = member.read(10)
    if len(prefix) < 10 or not prefix.startswith(NPY_MAGIC):
        raise DatasetFileError(path, f"{name} is not an npy array of version 1.0.")
    length = int.from_bytes(prefix[8:], "little")
    header = NPY_HEADER.fullmatch(member.read(length))
    if not header:
        raise DatasetFileError(path, f"{name} has no npy header of a plain array.")
    descr, order, sizes = header.groups()
    if descr.endswith(b"O"):
        raise DatasetFileError(
            path,
            f"{name} holds pickled Python objects, which are never loaded; "
            "expected numbers.",
        )
    if not DTYPE.fullmatch(descr):
        raise DatasetFileError(
            path, f"{name} has the dtype {descr.decode('latin-1')!r}; expected numbers."
        )
    try:
        dtype = np.dtype(descr.decode())
    except TypeError as error:
        raise DatasetFileError(path, f"{name}: {error}.") from error
    shape = tuple(int(size) for size in re.findall(rb"\d+", sizes))
    return dtype, order, shape, 10 + length


def _read_body(path: Path, member: IO[bytes], count: int, name: str) -> np.ndarray:
    """Return the `count` bytes of an array, and see its checksum verified."""
    out, filled = np.empty(count, np.uint8), 0
    # zipfile compares the CRC when it meets the end, so read up to an empty piece.
    while piece := member.read(CHUNK):
        if filled + len(piece) > count:
            raise DatasetFileError(path, f"{name} is longer than it promises.")
        out[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if filled < count:
        raise DatasetFileError(
            path, f"{name} is cut short at {filled} of {count} bytes."
        )
    return out
