"""Loading: gzipped IDX files, and the memory-mapped copy, beside the plain ways.

    python -m benchmarks.loading [--quick]

Every contestant ends with the same arrays; that is asserted before the clock starts.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import interleave, row
from fmkit.datasets import fashion_mnist
from fmkit.datasets._idx import idx_bytes
from fmkit.datasets._splits import NPZ_NAMES

NAMES = (
    "train-images-idx3",
    "train-labels-idx1",
    "t10k-images-idx3",
    "t10k-labels-idx1",
)
# The contestants, as the table names them.
GZIP, ZLIB = "load_data from gzip", "zlib in one call"
COPY, MAPPED = "load_data from the copy", "numpy.load of the copy"


def one_shot(folder: Path) -> list[np.ndarray]:
    """Each file in one call of zlib, nothing checked but the CRC."""
    return [_array(zlib.decompress((folder / n).read_bytes(), 31)) for n in _gz()]


def gzip_file(folder: Path) -> list[np.ndarray]:
    """As `keras.datasets` reads them."""
    arrays = []
    for name in _gz():
        with gzip.open(folder / name) as file:
            arrays.append(_array(file.read()))
    return arrays


def fmkit_gzip(folder: Path) -> list[np.ndarray]:
    return _flat(fashion_mnist.load_data(folder))


def rows(quick: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        source = fashion_mnist.find()
        note = "" if source else " (no full set here: the sample)"
        folder = source or _gzipped_sample(work / "gz")
        cache = work / "cache"

        def fmkit_copy(folder: Path) -> list[np.ndarray]:
            return _flat(fashion_mnist.load_data(folder, cache=cache))

        def mapped(folder: Path) -> list[np.ndarray]:
            """The copy as `numpy.load` maps it: nothing is read, nothing checked."""
            return [np.load(path, mmap_mode="r") for path in copies]

        fmkit_copy(folder)
        copies = [next(cache.glob(f"*-{name}.npy")) for name in NPZ_NAMES]
        contestants = {
            GZIP: fmkit_gzip,
            ZLIB: one_shot,
            "gzip.GzipFile": gzip_file,
            COPY: fmkit_copy,
            MAPPED: mapped,
        }
        expected = one_shot(folder)
        for name, load in contestants.items():
            for array, wanted in zip(load(folder), expected, strict=True):
                assert np.array_equal(array, wanted), name
        times = interleave(
            {
                name: lambda load=load: load(folder)
                for name, load in contestants.items()
            },
            rounds=5 if quick else 15,
        )
        return [
            row(
                f"load gzipped IDX{note}",
                times,
                GZIP,
                ZLIB,
                target="at most 1",
            ),
            row(
                f"load gzipped IDX, against gzip.GzipFile{note}",
                times,
                GZIP,
                "gzip.GzipFile",
            ),
            row(
                f"load the unpacked copy, SHA-256 checked{note}",
                times,
                COPY,
                ZLIB,
                target="at most 0.02 (6 ms beside 340)",
            ),
            row(
                f"map the unpacked copy, nothing checked{note}",
                times,
                MAPPED,
                ZLIB,
            ),
        ]


def _gz() -> list[str]:
    return [f"{name}-ubyte.gz" for name in NAMES]


def _flat(splits: Any) -> list[np.ndarray]:
    return [array for split in splits for array in split]


def _array(content: bytes) -> np.ndarray:
    shape = tuple(np.frombuffer(content, ">u4", count=content[3], offset=4))
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _gzipped_sample(folder: Path) -> Path:
    folder.mkdir()
    for name, array in zip(_gz(), _flat(fashion_mnist.load_sample()), strict=True):
        (folder / name).write_bytes(gzip.compress(idx_bytes(array)))
    return folder


if __name__ == "__main__":
    print(json.dumps(rows("--quick" in sys.argv), indent=1))
