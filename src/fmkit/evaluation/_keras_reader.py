"""Reading the `.weights.h5` and `.keras` files of Keras's `ModelCheckpoint`.

Only numbers are taken from them, never a model's description: nothing in a file can
be executed.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
from keras import ops

from fmkit.evaluation._checkpoint import (
    Checkpoint,
    NotReadableError,
    Pairs,
    Target,
    assign,
    averages_of,
    numpy_of,
)
from fmkit.evaluation._listing import CheckpointFile, signature_of

__all__ = ["read_keras_file"]

_WEIGHTS = "model.weights.h5"


def read_keras_file(file: CheckpointFile, target: Target) -> Checkpoint:
    """Read a file of `ModelCheckpoint`, by loading it into the model.

    Raises:
        NotReadableError: If it is damaged, half-written or hostile.
        FileNotFoundError: If it has been deleted.
    """
    with tempfile.TemporaryDirectory(prefix="fmkit-") as folder:
        weights = Path(folder, _WEIGHTS)
        try:
            _copy_weights(file, weights)
            _check_hdf5(weights)
            has_optimizer = _load(weights, target)
        except (FileNotFoundError, NotReadableError):
            raise
        except Exception as error:
            # Arbitrary bytes make zipfile, h5py and Keras raise nearly anything.
            reason = f"{file.path}: {str(error) or type(error).__name__}"
            raise NotReadableError(reason, final=False) from error
    raw = [(v, numpy_of(v)) for v in target.own]
    optimizer = target.model.optimizer
    state: Pairs = target.fresh
    averages: dict[str, Pairs] = {}
    if has_optimizer:
        state = [(v, numpy_of(v)) for v in target.optimizer]
        values = [(v, v.path, value) for v, value in raw]
        entries = [(v.path, value) for v, value in state]
        averages = averages_of(optimizer, values, entries)
    return target.checkpoint(
        raw + state,
        averages,
        name=file.path.name,
        epoch=file.epoch,
        step=int(numpy_of(optimizer.iterations)) if has_optimizer else None,
        finished=False,
    )


def _load(weights: Path, target: Target) -> bool:
    """Load a file into the model; return whether it held the optimizer too."""
    counters = [
        v for v in target.optimizer if "int" in keras.backend.standardize_dtype(v.dtype)
    ]
    for counter in counters:
        # Keras only warns where it leaves the optimizer as it is: a count that
        # can't come out of a file shows it.
        counter.assign(ops.full(counter.shape, -1, counter.dtype))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipping variable loading")
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras's, h5py's
        try:
            target.model.load_weights(weights)
        except Exception:  # noqa: BLE001 - perhaps another optimizer's state
            assign(target.fresh)
            skip = [target.model.optimizer]
            target.model.load_weights(weights, objects_to_skip=skip)
            return False
    return bool(counters) and all(int(numpy_of(c)) >= 0 for c in counters)


def _copy_weights(file: CheckpointFile, target: Path) -> None:
    """Copy a file's weights, whole, to where nobody else reads or writes.

    HDF5 locks a file that it reads: if it were read where it is, the training would
    fail when it writes the next one over it.
    """
    copy = target.with_name("copy")
    shutil.copyfile(file.path, copy)
    if signature_of(file.path) != file.signature:
        raise NotReadableError(f"{file.path}: is being written", final=False)
    if file.path.suffix == ".keras":
        _extract_weights(copy, target)
    else:
        os.rename(copy, target)


def _extract_weights(archive: Path, target: Path) -> None:
    """Write the weights inside a `.keras` file to `target`, checking their CRC-32."""
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(_WEIGHTS)
        # Keras compresses nothing, so no member is larger than the file.
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.file_size > archive.stat().st_size
        ):
            raise ValueError(f"{_WEIGHTS} is not stored as Keras writes it")
        with opened.open(info) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)


def _check_hdf5(path: Path) -> None:
    """Refuse what Keras never writes: links, and arrays larger than the file."""
    import h5py  # type: ignore[import-untyped]

    size = path.stat().st_size
    seen = set()

    def check(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{name!r} is a link to elsewhere")
            item = group[name]
            if isinstance(item, h5py.Group):
                if hash(item.id) in seen:
                    raise ValueError(f"{name!r} is linked twice")
                seen.add(hash(item.id))
                check(item)
                continue
            bytes_needed = math.prod(item.shape or ()) * item.dtype.itemsize
            if item.external or item.is_virtual or bytes_needed > size:
                raise ValueError(f"{name!r} is not stored in this file")

    with h5py.File(path, "r") as file:
        check(file)
