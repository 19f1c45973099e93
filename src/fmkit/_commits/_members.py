"""Members of a commit's archive: arrays as `.npy`, whatever their dtype.

Nothing is compressed, and nothing is pickled.
"""

from __future__ import annotations

import io
import os
import zipfile
from typing import Any

import numpy as np

__all__ = [
    "describe_array",
    "dtype_of",
    "member_info",
    "read_array",
    "read_member",
    "write_array",
]

Array = np.ndarray[Any, Any]


def member_info(name: str) -> zipfile.ZipInfo:
    """Return the entry of a new member, the same on every day."""
    # Zip files know no date before 1980, which is what a wrong clock may say.
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o600 << 16
    return info


def write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    """Add an array to an archive."""
    # Not numpy.save: that copies each array once more on its way into a zip.
    array = np.ascontiguousarray(_plain(array)).reshape(array.shape)
    header = np.lib.format.header_data_from_array_1_0(array)
    with archive.open(member_info(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
        member.write(array.reshape(-1).view(np.uint8).data)


def _plain(array: Array) -> Array:
    """View bfloat16 and its like, which .npy has no name for, as their bits."""
    if array.dtype.isbuiltin == 2:  # made outside of NumPy
        return array.view(f"uint{8 * array.dtype.itemsize}")
    return array


def describe_array(array: Array) -> dict[str, Any]:
    """Return dtype and shape as JSON values."""
    return {"dtype": _dtype_name(array.dtype), "shape": list(array.shape)}


def _dtype_name(dtype: np.dtype[Any]) -> Any:
    """Name a dtype as JSON can: "float32", ">f8", or a list of the fields."""
    if dtype.isbuiltin == 2 or (dtype.isnative and dtype.kind in "biufc"):
        return dtype.name
    return np.lib.format.dtype_to_descr(dtype)


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of a member, its checksum verified."""
    info = archive.getinfo(name)
    size = archive.fp.seek(0, os.SEEK_END)  # type: ignore[union-attr]
    # Nothing is compressed, so no member is larger than the file.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
        raise ValueError(f"member {name!r} is not stored as it was written")
    return archive.read(info)  # checks the CRC-32


def read_array(archive: zipfile.ZipFile, name: str, spec: dict[str, Any]) -> Array:
    """Read an array that must be what `describe_array` said of it, as a view.

    Raises:
        ValueError: If it is something else.
    """
    data = read_member(archive, f"{name}.npy")
    start = io.BytesIO(data[: 2**16])
    version = np.lib.format.read_magic(start)
    if version != (1, 0):
        raise ValueError(f"array {name!r} has a header of another kind")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(start)
    wanted = dtype_of(spec["dtype"])
    if fortran or list(shape) != spec["shape"] or dtype.itemsize != wanted.itemsize:
        raise ValueError(f"array {name!r} is not {spec['dtype']}{spec['shape']}")
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(data, dtype, count, offset=start.tell())
    return array.view(wanted).reshape(shape)


def dtype_of(name: Any) -> np.dtype[Any]:
    """Return the dtype that `describe_array` has named."""
    if isinstance(name, list):
        return np.lib.format.descr_to_dtype(_fields(name))
    try:
        return np.dtype(name)
    except TypeError:
        # Keras's backends bring it; its import adds bfloat16 and the float8s.
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def _fields(descr: Any) -> Any:
    """Give a description of fields the tuples that JSON has made lists of."""
    if isinstance(descr, str):
        return descr
    return [
        (
            tuple(name) if isinstance(name, list) else name,
            _fields(kind),
            *(tuple(shape) for shape in rest),
        )
        for name, kind, *rest in descr
    ]
