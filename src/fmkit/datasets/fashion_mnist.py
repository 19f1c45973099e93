"""Fashion-MNIST: 70,000 grey images of clothes, 28 by 28 pixels, ten classes.

`load_data` finds the full set on this machine, or downloads it as Keras does.
`load_sample` needs no files: 7,000 of the real images come with fmkit.

References:
    Xiao, Rasul, Vollgraf, [*Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms*](https://arxiv.org/abs/1708.07747), 2017. Copyright
    2017 Zalando SE, MIT licence.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import keras
import numpy as np

from fmkit._untrusted_files import DatasetFileError
from fmkit.datasets import _cache
from fmkit.datasets._splits import (
    DATA_DIR_VARIABLE,
    PARTS,
    Splits,
    idx_files,
    keras_cache,
    load_idx_folder,
    load_npz,
    load_shipped,
)

__all__ = ["CLASS_NAMES", "DATA_DIR_VARIABLE", "find", "load_data", "load_sample"]

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_SUBFOLDER = "fashion-mnist"
# Where keras.datasets.fashion_mnist gets its files.
_ORIGIN = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_FULL_COUNTS = (60_000, 10_000)
# MNIST's files have the same names; only the labels tell the two apart cheaply.
_LABELS_SHA256 = "8ab940a680640f36c0bf1d2549cb2f3b3d4068c12547116cc7b1161b1d26663d"


def load_data(
    path: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
) -> Splits:
    """Load Fashion-MNIST in full, as `keras.datasets.fashion_mnist` returns it.

    Without `path`, the first of these places that has the files is read:

    1. the folder in the environment variable `FMKIT_DATA_DIR`, or `fashion-mnist`
       inside it;
    2. Keras's cache, `datasets/fashion-mnist` under `KERAS_HOME` or `~/.keras`;
    3. `/usr/share/datasets/fashion-mnist`, where Debian's package
       `dataset-fashion-mnist` puts them;
    4. else they are downloaded into Keras's cache.

    The files found there must be the full set. Nothing read from a file is executed
    or unpickled, and no array over 1 GiB is read.

    Args:
        path: Folder with the four IDX files (plain or gzipped), or one npz file with
            `x_train`, `y_train`, `x_test`, `y_test`. Any number of images is
            accepted, and no other place is searched.
        cache: Folder for an uncompressed copy. The first call writes it; later ones
            check it (sizes, SHA-256) and return read-only memory-mapped arrays,
            which several processes share. It is written again when the source's size
            or time has changed, or when the copy is damaged.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: uint8 images `(60000, 28, 28)` and
        `(10000, 28, 28)` in 0 to 255, uint8 labels `(60000,)` and `(10000,)` in 0 to
        9, indices into `CLASS_NAMES`.

    Raises:
        DatasetFileError: If a file is damaged, cut short or not what it should be; a
            `ValueError` that names the file and what was expected.
        FileNotFoundError: If the files were not found and could not be downloaded, or
            `path` or `FMKIT_DATA_DIR` doesn't exist.
    """
    source = Path(path) if path is not None else find() or _download()
    if cache is None:
        splits = _load(source)
    else:
        splits = _cache.load(_sources(source), Path(cache), lambda: _load(source))
    if path is None:
        _check_full(source, splits)
    return splits


def find() -> Path | None:
    """Return the folder `load_data()` would read, or `None` if it would download.

    Checks only for the names of the four files, without network access.

    Returns:
        The folder, or `None` if the full set is not on this machine.

    Raises:
        FileNotFoundError: If `FMKIT_DATA_DIR` names no folder, or one that has some
            of the four files but not all.

    Examples:
        >>> source = find()
        >>> train, test = load_data(source) if source else load_sample()
    """
    chosen = os.environ.get(DATA_DIR_VARIABLE)
    if chosen:
        folder = _find_in_chosen(Path(chosen).expanduser())
        if folder:
            return folder
    for folder in (keras_cache() / _SUBFOLDER, _DEBIAN_FOLDER):
        if len(idx_files(folder)) == len(PARTS):
            return folder
    return None


def load_sample() -> Splits:
    """Load 7,000 real images that come with fmkit, for work without a network.

    They are the first 600 training images and the first 100 test images of each
    class, in the order of the full files; `scripts/make_sample.py` makes them.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: uint8 images `(6000, 28, 28)` and
        `(1000, 28, 28)`, uint8 labels `(6000,)` and `(1000,)`.

    Examples:
        >>> (x_train, y_train), (x_test, y_test) = load_sample()
        >>> x_train.shape, x_test.shape
        ((6000, 28, 28), (1000, 28, 28))
        >>> CLASS_NAMES[y_train[0]]
        'Ankle boot'
    """
    return load_shipped("fashion_mnist")


def _find_in_chosen(chosen: Path) -> Path | None:
    """Return the folder in `FMKIT_DATA_DIR` that has the files, if one has."""
    if not chosen.is_dir():
        raise FileNotFoundError(
            f"The environment variable {DATA_DIR_VARIABLE} names {chosen}, which is "
            "not a folder. Name one that holds the Fashion-MNIST files, or unset it."
        )
    for folder in (chosen, chosen / _SUBFOLDER):
        files = idx_files(folder)
        if len(files) == len(PARTS):
            return folder
        if files:
            missing = sorted(set(PARTS) - set(files))
            raise FileNotFoundError(
                f"{folder} (from the environment variable {DATA_DIR_VARIABLE}) has "
                f"only some of the Fashion-MNIST files; missing: {', '.join(missing)}."
            )
    return None


def _download() -> Path:
    """Get the four files with Keras's downloader; return the folder they are in."""
    try:
        files = [
            keras.utils.get_file(
                name,
                origin=_ORIGIN + name,
                cache_subdir=os.path.join("datasets", _SUBFOLDER),
            )
            for part in PARTS
            for name in [f"{part}-idx{3 if 'images' in part else 1}-ubyte.gz"]
        ]
    except Exception as error:  # Keras raises a plain Exception when a fetch fails
        raise FileNotFoundError(
            "The Fashion-MNIST files are not on this machine, and the download "
            f"failed ({error}). Do one of these:\n"
            "  apt-get install dataset-fashion-mnist    (Debian, Ubuntu)\n"
            f"  export {DATA_DIR_VARIABLE}=/folder/with/the/four/files\n"
            "  fashion_mnist.load_sample()              (7,000 images, in fmkit)"
        ) from error
    return Path(files[0]).parent


def _load(source: Path) -> Splits:
    return load_idx_folder(source) if source.is_dir() else load_npz(source)


def _sources(source: Path) -> list[Path]:
    return list(idx_files(source).values()) if source.is_dir() else [source]


def _check_full(folder: Path, splits: Splits) -> None:
    """Refuse a found set that is not all of Fashion-MNIST."""
    counts = tuple(len(labels) for _, labels in splits)
    if counts != _FULL_COUNTS:
        raise DatasetFileError(
            folder,
            f"holds {counts[0]} + {counts[1]} images; the full set has "
            f"{_FULL_COUNTS[0]} + {_FULL_COUNTS[1]}. Pass the folder as `path` to "
            "load a part.",
        )
    labels = np.concatenate([labels for _, labels in splits])
    if hashlib.sha256(labels.data).hexdigest() != _LABELS_SHA256:
        raise DatasetFileError(
            folder,
            "has labels that are not Fashion-MNIST's (MNIST's files have the same "
            "names). Pass the folder as `path` to load them anyway.",
        )
