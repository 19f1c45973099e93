"""MNIST: 70,000 handwritten digits, from any of the file formats it comes in.

References:
    LeCun, Cortes, Burges, [*The MNIST database of handwritten
    digits*](http://yann.lecun.com/exdb/mnist/), 1998.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, overload

from fmkit._checks import check_one_of
from fmkit._npz import ZIP_MAGIC
from fmkit._untrusted_files import GZIP_MAGIC, DatasetFileError, head_of
from fmkit.datasets._json import MODES, read_paddle_json
from fmkit.datasets._splits import Split, Splits, idx_files, load_idx_folder, load_npz

__all__ = ["load_data"]

_ARCHIVES = ("mnist.npz", "mnist.json.gz", "mnist.json")


@overload
def load_data(path: str | os.PathLike[str], mode: None = None) -> Splits: ...


@overload
def load_data(
    path: str | os.PathLike[str], mode: Literal["train", "valid", "eval"]
) -> Split: ...


def load_data(
    path: str | os.PathLike[str],
    mode: Literal["train", "valid", "eval"] | None = None,
) -> Splits | Split:
    """Load MNIST, or a set laid out like it, from IDX, npz or JSON.

    The format of the file is recognised by its first bytes, not by its name:

    - a folder with the four IDX files, plain or gzipped, or with one of the files
      below as `mnist.npz` or `mnist.json.gz`;
    - the npz of `keras.datasets.mnist`;
    - the `mnist.json.gz` of the Paddle tutorial: splits of 50,000, 10,000 and 10,000
      images, each a list of 784 numbers. The values are returned unchanged.

    Nothing read from a file is executed or unpickled. At most 1 GiB is read for an
    array, and 2 GiB of JSON text, of which one row is held at a time.

    Args:
        path: The file or folder.
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
        FileNotFoundError: If there is no such file, or a folder has none of them.
        ValueError: If `mode` is not one of the three.
    """
    if mode is not None:
        check_one_of("mode", mode, MODES)
    source = _file_or_folder(Path(path))
    if not source.is_dir() and head_of(source, 2) != ZIP_MAGIC:
        return _load_json(source, mode)
    splits = load_idx_folder(source) if source.is_dir() else load_npz(source)
    return splits if mode is None else _one_split(splits, mode)


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
