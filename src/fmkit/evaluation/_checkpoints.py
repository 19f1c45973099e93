"""What a training leaves on disk, found and read while it may still be writing.

Two kinds of files are read: the commits of `callbacks.ExactResume`, and the
`.weights.h5` and `.keras` files of Keras's `ModelCheckpoint`. Of any of them only
numbers are taken, never a model's description: nothing in a file can be executed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit._commits import (
    Commit,
    DamagedCommitError,
    commit_number,
    list_commits,
    read_commit,
)

__all__ = [
    "Checkpoint",
    "CheckpointFile",
    "CheckpointReader",
    "NotReadableError",
    "assign",
    "list_checkpoints",
]

Array = np.ndarray[Any, Any]
Pairs = list[tuple[Any, Array]]

_WEIGHTS = "model.weights.h5"
# "weights.03-0.45", "epoch_3", "03", but not the 0 of "best-0.93".
_EPOCH = re.compile(
    r"(?:(?:epoch|ep|weights|model|ckpt|checkpoint|cp)[-_.=]?)?(\d+)(?=[-_]|$)", re.I
)


class NotReadableError(ValueError):
    """A checkpoint is damaged, half-written, or of another model.

    Args:
        reason: What was found.
        final: Whether the file can't become readable any more.
    """

    def __init__(self, reason: str, *, final: bool):
        super().__init__(reason)
        self.final = final


# Finding


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a listing.

    Attributes:
        path: The file.
        signature: Inode, size and time of change: what differs when it was rewritten.
        number: The running number of a commit; `None` for other files.
        epoch: The epoch in the name of a file that is not a commit, if there is one.
    """

    path: Path
    signature: tuple[int, int, int]
    number: int | None = None
    epoch: int | None = None


def list_checkpoints(directory: Path) -> list[CheckpointFile]:
    """Return the checkpoints in `directory`, oldest first, whether sound or not.

    Commits go by their number and come first; other files by the epoch in their
    names if all have one, else by the time they were written.
    """
    commits = []
    for path in list_commits(directory):
        signature = _signature(path)
        if signature is not None:
            commits.append(CheckpointFile(path, signature, number=commit_number(path)))
    files = list(_other_files(directory))
    if all(file.epoch is not None for file in files):
        files.sort(key=lambda f: (f.epoch or 0, f.signature[2], f.path.name))
    else:
        files.sort(key=lambda f: (f.signature[2], f.path.name))
    return commits + files


def _other_files(directory: Path) -> Iterator[CheckpointFile]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        suffix = _suffix(name)
        if suffix is None or name.startswith("."):
            continue
        signature = _signature(directory / name)
        if signature is not None:
            match = _EPOCH.match(name.removesuffix(suffix))
            epoch = int(match[1]) if match and len(match[1]) < 10 else None
            yield CheckpointFile(directory / name, signature, epoch=epoch)


def _suffix(name: str) -> str | None:
    return next((s for s in (".weights.h5", ".keras") if name.endswith(s)), None)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Tell a file's state; `None` if it is gone, or no plain file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not path.is_file():
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


# Reading


@dataclass(frozen=True)
class Checkpoint:
    """The state of a model that a checkpoint holds, ready to be put into it.

    Attributes:
        name: The file's name.
        epoch: Epochs completed, where known.
        step: Optimizer steps since the beginning, where known.
        finished: Whether the run had ended when it was written.
        raw: Every variable of the model with its value.
        averages: The averaged variables with their averages; empty without any.
        digest: SHA-256 of the weights and the averages, the same for the same bits.
    """

    name: str
    epoch: int | None
    step: int | None
    finished: bool
    raw: Pairs
    averages: Pairs
    digest: str


def assign(pairs: Pairs) -> None:
    """Put the values of a checkpoint into the variables they belong to."""
    for variable, value in pairs:
        # Copied: a backend may keep the array it is given. Averages may be float32
        # where the weights are of a half type.
        variable.assign(ops.cast(np.array(value, copy=True), variable.dtype))


class CheckpointReader:
    """Reads checkpoints into one built and compiled model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        of_metrics = {id(variable) for variable in model.metrics_variables}
        # In the order in which a commit lists them.
        self._variables = [v for v in model.variables if id(v) not in of_metrics]
        optimizer = model.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._optimizer = [] if optimizer is None else list(optimizer.variables)
        self._fresh = [(v, _numpy(v)) for v in self._optimizer]

    def read(self, file: CheckpointFile) -> Checkpoint:
        """Read a checkpoint, and check all that its format allows to check.

        Raises:
            NotReadableError: If it is damaged, half-written or hostile.
            FileNotFoundError: If it has been deleted.
            ValueError: If it is a sound commit of another model.
        """
        if file.number is not None:
            return self._read_commit(file)
        return self._read_file(file)

    def _make(self, file: CheckpointFile, raw: Pairs, averages: Pairs, **where: Any):  # type: ignore[no-untyped-def]
        weights = {id(variable) for variable in self.model.weights}
        # Without the seeds of dropout, which evaluation does not use.
        counted = [value for variable, value in raw if id(variable) in weights]
        counted += [value for _, value in averages]
        return Checkpoint(
            name=file.path.name,
            raw=raw,
            averages=averages,
            digest=_digest(counted),
            **where,
        )

    # Commits of ExactResume

    def _read_commit(self, file: CheckpointFile) -> Checkpoint:
        try:
            commit = read_commit(file.path)
        except DamagedCommitError as error:
            # A commit appears whole, by a rename: it is not being written.
            raise NotReadableError(str(error), final=True) from error
        except FileNotFoundError:
            raise
        except OSError as error:  # a link, say, or a disk that is away
            raise NotReadableError(str(error), final=False) from error
        try:
            entries = [
                (
                    str(entry["path"]),
                    _whole([commit.arrays[n] for n in entry["arrays"]]),
                )
                for entry in commit.meta["variables"]
            ]
            where = {
                "epoch": int(commit.meta["epoch"]),
                "step": int(commit.meta["steps_before"]) + int(commit.meta["step"]),
                "finished": bool(commit.meta["finished"]),
            }
            described = list(commit.meta["program"]["model"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"{file.path}: not what ExactResume writes ({error!r})"
            raise NotReadableError(reason, final=True) from error
        self._check_model(file, entries, described)
        count = len(self._variables)
        raw = [(v, entries[i][1]) for i, v in enumerate(self._variables)]
        averages = _find_averages(
            [(v, entries[i][0]) for i, v in enumerate(self._variables)], entries[count:]
        )
        raw += self._optimizer_pairs(commit, entries[count:])
        # Before the first step there is nothing to average; Keras's own averages
        # are zeros then.
        return self._make(file, raw, averages if where["step"] else [], **where)

    def _check_model(
        self,
        file: CheckpointFile,
        entries: list[tuple[str, Array]],
        described: list[str],
    ) -> None:
        """Refuse a commit of another model, naming what differs."""
        weights = self.model.weights
        differences = []
        if len(described) != len(weights):
            differences.append(
                f"{len(described)} weights in the commit, {len(weights)} here"
            )
        if len(entries) < len(self._variables):
            differences.append(
                f"{len(entries)} variables in the commit with the optimizer's, "
                f"{len(self._variables)} of the model alone here"
            )
        for (path, value), variable in zip(entries, self._variables, strict=False):
            here = _tell(variable.path, variable.dtype, variable.shape)
            there = _tell(path, value.dtype.name, value.shape)
            if not _same_place(path, variable.path) or here[1:] != there[1:]:
                differences.append(f"{' '.join(there)} there, {' '.join(here)} here")
        if differences:
            told = "\n".join(f"  {line}" for line in differences[:5])
            raise ValueError(
                f"{file.path} is a commit of another model than {self.model.name!r}:\n"
                f"{told}\nGive the model that the run trains."
            )

    def _optimizer_pairs(
        self, commit: Commit, entries: list[tuple[str, Array]]
    ) -> Pairs:
        """Return the optimizer's state if the model has the same optimizer.

        It plays no part in the results; the best model is saved with it.
        """
        there = commit.meta["program"].get("optimizer") or {}
        shapes = [tuple(variable.shape) for variable in self._optimizer]
        values = [value for _, value in entries[: len(shapes)]]
        if (
            there.get("class") != type(self.model.optimizer).__name__
            or [value.shape for value in values] != shapes
        ):
            return list(self._fresh)
        return list(zip(self._optimizer, values, strict=True))

    # Files of Keras's ModelCheckpoint

    def _read_file(self, file: CheckpointFile) -> Checkpoint:
        with tempfile.TemporaryDirectory(prefix="fmkit-") as folder:
            weights = Path(folder, _WEIGHTS)
            try:
                _copy_weights(file, weights)
                _check_hdf5(weights)
                has_optimizer = self._load(weights)
            except (FileNotFoundError, NotReadableError):
                raise
            except Exception as error:
                # Arbitrary bytes make zipfile, h5py and Keras raise nearly anything.
                reason = f"{file.path}: {str(error) or type(error).__name__}"
                raise NotReadableError(reason, final=False) from error
        raw = [(v, _numpy(v)) for v in self._variables]
        state = [(v, _numpy(v)) for v in self._optimizer]
        averages = []
        if has_optimizer:
            places = [(v, v.path) for v in self._variables]
            averages = _find_averages(places, [(v.path, a) for v, a in state])
        return self._make(
            file,
            raw + (state if has_optimizer else list(self._fresh)),
            averages,
            epoch=file.epoch,
            step=self._steps() if has_optimizer else None,
            finished=False,
        )

    def _load(self, weights: Path) -> bool:
        """Load a file into the model; tell whether it held the optimizer too."""
        counters = [
            v
            for v in self._optimizer
            if "int" in keras.backend.standardize_dtype(v.dtype)
        ]
        for counter in counters:
            # Keras only warns where it leaves the optimizer as it is: a count that
            # can't come out of a file shows it.
            counter.assign(ops.full(counter.shape, -1, counter.dtype))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Skipping variable loading")
            warnings.simplefilter("ignore", DeprecationWarning)  # Keras's, h5py's
            try:
                self.model.load_weights(weights)
            except Exception:  # noqa: BLE001 - perhaps another optimizer's state
                assign(self._fresh)
                skip = [self.model.optimizer]
                self.model.load_weights(weights, objects_to_skip=skip)
                return False
        return bool(counters) and all(int(_numpy(c)) >= 0 for c in counters)

    def _steps(self) -> int:
        return int(_numpy(self.model.optimizer.iterations))


def _numpy(variable: Any) -> Array:
    return np.array(keras.ops.convert_to_numpy(variable), copy=True)


def _whole(parts: list[Array]) -> Array:
    """Make one value of the copies that the replicas of a run had."""
    first = parts[0]
    if all(part.tobytes() == first.tobytes() for part in parts[1:]):
        return first
    # Statistics of BatchNormalization differ from replica to replica.
    return np.mean(np.stack(parts), axis=0).astype(first.dtype)


def _digest(values: list[Array]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value.dtype.name}{list(value.shape)};".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _tell(path: str, dtype: str, shape: Any) -> tuple[str, str, str]:
    return path, str(dtype), str([int(size) for size in shape])


def _same_place(one: str, other: str) -> bool:
    """Whether two paths name the same variable of a model built twice.

    Keras counts layers of a kind through a whole process (dense_1, dense_2), and a
    model made from its config has paths without the name of the model.
    """
    one, other = (re.sub(r"_[0-9]+(?=/|$)", "", path) for path in (one, other))
    return one == other or one.endswith("/" + other) or other.endswith("/" + one)


def _find_averages(
    places: list[tuple[Any, str]], entries: list[tuple[str, Array]]
) -> Pairs:
    """Pair variables with their averages among an optimizer's variables, by name.

    fmkit's optimizer and Keras's `use_ema` both name the average of `a/b`
    `a_b_average`. Paths come from one process, so the names agree exactly.
    """
    by_name: dict[str, list[Array]] = {}
    for path, value in entries:
        by_name.setdefault(path.rpartition("/")[2], []).append(value)
    found = []
    for variable, path in places:
        candidates = by_name.get(path.replace("/", "_") + "_average")
        if candidates and candidates[0].shape == tuple(variable.shape):
            # "a/b_c" and "a_b/c" share a name; both lists have the same order.
            found.append((variable, candidates.pop(0)))
    return found


def _copy_weights(file: CheckpointFile, target: Path) -> None:
    """Copy a file's weights, whole, to where nobody else reads or writes.

    HDF5 locks a file that it reads: read where it stands, the training would fail
    when it comes to write the next one over it.
    """
    copy = target.with_name("copy")
    shutil.copyfile(file.path, copy)
    if _signature(file.path) != file.signature:
        raise NotReadableError(f"{file.path}: is being written", final=False)
    if file.path.suffix == ".keras":
        _take_weights(copy, target)
    else:
        os.rename(copy, target)


def _take_weights(archive: Path, target: Path) -> None:
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
