"""An uncompressed copy of a data set, checked and memory-mapped.

Beside the four `.npy` files lies a manifest: the size and time of each source file,
the shape and SHA-256 of each array. A copy that doesn't match is written again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fmkit._files import whole_file
from fmkit._untrusted_files import open_file
from fmkit.datasets._splits import NPZ_NAMES, Splits

_LOGGER = logging.getLogger(__name__)
_MAX_MANIFEST_BYTES = 1 << 16
_PIECE_BYTES = 1 << 22


def load(sources: Sequence[Path], folder: Path, read: Callable[[], Splits]) -> Splits:
    """Return the memory-mapped copy of a data set, writing it first if necessary.

    Args:
        sources: The files that `read` reads.
        folder: Where the copy is; created if it doesn't exist.
        read: Reads the sources.

    Returns:
        What `read` returns, as read-only memory-mapped uint8 arrays.
    """
    identity = [_identity(path) for path in sources]
    # One folder can hold the copies of several sources.
    key = hashlib.sha256(json.dumps([name for name, *_ in identity]).encode())
    stem = key.hexdigest()[:16]
    arrays = _open_copy(folder, stem, identity)
    if arrays is None:
        (x_train, y_train), (x_test, y_test) = splits = read()
        _write_copy(folder, stem, identity, (x_train, y_train, x_test, y_test))
        arrays = _open_copy(folder, stem, identity)
        if arrays is None:  # the sources or the copy changed while we wrote
            return splits
    x_train, y_train, x_test, y_test = arrays
    return (x_train, y_train), (x_test, y_test)


def _identity(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _open_copy(
    folder: Path, stem: str, identity: list[list[Any]]
) -> list[np.ndarray] | None:
    """Map the copy; `None` if there is none, or if it is stale or damaged."""
    try:
        with open_file(folder / f"{stem}.json") as file:
            manifest = json.loads(file.read(_MAX_MANIFEST_BYTES))
        if manifest["sources"] != identity:
            return None
        return [
            _map_array(folder / f"{stem}-{name}.npy", manifest["arrays"][name])
            for name in NPZ_NAMES
        ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _LOGGER.warning("Writing the copy in %s again: %s", folder, error)
        return None


def _map_array(path: Path, entry: dict[str, Any]) -> np.ndarray:
    """Map one array; it must match the manifest to the byte."""
    shape = tuple(entry["shape"])
    header = _npy_header(shape)
    with open_file(path) as file:
        mapped = np.memmap(file, np.uint8, "r")
    if len(mapped) != len(header) + math.prod(shape):
        raise ValueError(f"{path.name} has {len(mapped)} bytes")
    # Mapped first and hashed after: what was checked is what is returned.
    array = mapped[len(header) :].reshape(shape)
    if mapped[: len(header)].tobytes() != header or _digest(array) != entry["sha256"]:
        raise ValueError(f"{path.name} is not what was written")
    return array


def _write_copy(
    folder: Path,
    stem: str,
    identity: list[list[Any]],
    arrays: Sequence[np.ndarray],
) -> None:
    """Write the arrays, then the manifest that makes them valid."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, array in zip(NPZ_NAMES, arrays, strict=True):
        flat = np.ascontiguousarray(array)
        with whole_file(folder / f"{stem}-{name}.npy") as file:
            file.write(_npy_header(array.shape))
            file.write(flat.data)
        entries[name] = {"shape": array.shape, "sha256": _digest(flat)}
    manifest = {"sources": identity, "arrays": entries}
    with whole_file(folder / f"{stem}.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _digest(array: np.ndarray) -> str:
    """Return the SHA-256 of the SHA-256s of 4 MiB pieces, taken on all cores."""
    data = array.data.cast("B", (array.size,))
    starts = range(0, len(data), _PIECE_BYTES)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(
            lambda at: hashlib.sha256(data[at : at + _PIECE_BYTES]).digest(), starts
        )
        return hashlib.sha256(b"".join(digests)).hexdigest()
