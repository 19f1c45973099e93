"""Pairs of images and labels, and the folders and archives that hold them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmkit._npz import read_npz
from fmkit._untrusted_files import DatasetFileError, open_file
from fmkit.datasets._idx import parse_idx, read_idx

Split = tuple[np.ndarray, np.ndarray]
Splits = tuple[Split, Split]

# Names a folder with data sets of the user's own.
DATA_DIR_VARIABLE = "FMKIT_DATA_DIR"
IMAGE_SHAPE = (28, 28)
CLASSES = 10
# The four files of MNIST and of every drop-in replacement for it.
PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")


def keras_cache() -> Path:
    """Return the folder where Keras keeps the data sets that it downloads."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home).expanduser() / "datasets"


def load_shipped(name: str) -> Splits:
    """Load the sample of a data set that comes with fmkit."""
    folder = Path(__file__).parent / "_sample" / name
    return _shipped_pair(folder, "train"), _shipped_pair(folder, "t10k")


def _shipped_pair(folder: Path, part: str) -> Split:
    # Imported here: a Python built without libbz2 can still load the full set.
    import bz2

    arrays = []
    for name, shape in (("images-idx3", IMAGE_SHAPE), ("labels-idx1", ())):
        path = folder / f"{part}-{name}-ubyte.bz2"
        with open_file(path) as file, bz2.open(file) as stream:
            arrays.append(parse_idx(path, stream, shape))
    images, labels = arrays
    check_labels(path, labels)
    return images, labels


def idx_files(folder: Path) -> dict[str, Path]:
    """Return which of the four IDX files lie in `folder`, by the names in `PARTS`."""
    found = {}
    for part in PARTS:
        for path in _spellings(folder, part):
            if path.is_file():
                found[part] = path
                break
    return found


def _spellings(folder: Path, part: str) -> Iterator[Path]:
    kind = "idx3" if part.endswith("images") else "idx1"
    # Plain first: it needs no decompression. Some unpackers write a dot.
    for ending in ("", ".gz"):
        for joint in "-.":
            yield folder / f"{part}{joint}{kind}-ubyte{ending}"


def load_idx_folder(folder: Path) -> Splits:
    """Read the four IDX files of a folder and check that they fit together."""
    files = idx_files(folder)
    missing = [part for part in PARTS if part not in files]
    if missing:
        names = [next(_spellings(folder, part)).name for part in missing]
        raise FileNotFoundError(
            f"{folder} has no {', '.join(names)} (plain or .gz); expected the four "
            "IDX files of the data set."
        )
    return (
        _load_idx_pair(files["train-images"], files["train-labels"]),
        _load_idx_pair(files["t10k-images"], files["t10k-labels"]),
    )


def _load_idx_pair(images_path: Path, labels_path: Path) -> Split:
    images = read_idx(images_path, IMAGE_SHAPE)
    labels = read_idx(labels_path, ())
    if len(images) != len(labels):
        raise DatasetFileError(
            labels_path,
            f"holds {len(labels)} labels; expected {len(images)}, one for each "
            f"image of {images_path.name}.",
        )
    check_labels(labels_path, labels)
    return images, labels


def load_npz(path: Path) -> Splits:
    """Read an npz laid out as Keras's `mnist.npz` and check that its parts fit."""
    arrays = read_npz(path, NPZ_NAMES)
    splits = []
    for end in ("train", "test"):
        images, labels = arrays[f"x_{end}"], arrays[f"y_{end}"]
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE:
            raise DatasetFileError(
                path,
                f"x_{end} is {images.dtype} of shape {images.shape}; expected "
                "uint8 of shape (n, 28, 28).",
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise DatasetFileError(
                path,
                f"y_{end} is {labels.dtype} of shape {labels.shape}; expected "
                f"{len(images)} integers, one for each image of x_{end}.",
            )
        if not len(images):
            raise DatasetFileError(path, f"x_{end} is empty.")
        check_labels(path, labels, f"y_{end}: ")
        splits.append((images, labels.astype(np.uint8, copy=False)))
    return splits[0], splits[1]


def check_labels(path: Path, labels: np.ndarray, where: str = "") -> None:
    """Refuse labels outside 0 to 9, naming the first of them."""
    outside = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if outside.size:
        first = int(outside[0])
        raise DatasetFileError(
            path,
            f"{where}label number {first} is {labels[first]}; expected 0 to "
            f"{CLASSES - 1}.",
        )
