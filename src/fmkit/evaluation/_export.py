"""A checkpoint of a run as a plain file of Keras's: weights, or a whole model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from fmkit._checks import check_path, did_you_mean
from fmkit._commits import group_variables
from fmkit._describe import library_of
from fmkit._files import whole_file
from fmkit._layer_state import refresh
from fmkit.evaluation._checkpoint import Checkpoint, NotReadableError, Target, assign
from fmkit.evaluation._described import find_description, make_model
from fmkit.evaluation._listing import SUFFIXES, CheckpointFile, list_checkpoints
from fmkit.evaluation._session import read_checkpoint

__all__ = ["ExportedCheckpoint", "export_checkpoint"]


@dataclass(frozen=True)
class ExportedCheckpoint:
    """What `export_checkpoint` wrote.

    Attributes:
        checkpoint: Name of the checkpoint.
        epoch: Completed epochs; `None` where the checkpoint does not hold them.
        step: Optimizer steps; `None` where the checkpoint does not hold them.
        weights: `"raw"`, `"averaged"`, or the name of one of several averages.
    """

    checkpoint: str
    epoch: int | None
    step: int | None
    weights: str


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    weights: str = "raw",
    model: keras.Model | None = None,
    overwrite: bool = False,
) -> ExportedCheckpoint:
    """Write a checkpoint as a `.keras` or `.weights.h5` file that plain Keras loads.

    The file holds the model and its weights, and nothing of the training: no
    optimizer, loss or metrics. `keras.saving.load_model` needs fmkit only if the model
    has layers of fmkit's, and `model.load_weights` never does. The backend may be
    another than the run's. Nothing in a checkpoint is executed.

    The file appears whole or not at all, by one rename.

    Args:
        checkpoint: The directory of a run, of which the newest intact checkpoint is
            taken; or one checkpoint in it: a commit of `callbacks.ExactResume`, a step
            of Keras's `OrbaxCheckpoint`, or a file of its `ModelCheckpoint`.
        path: The file to write; it ends in `.keras` or `.weights.h5`.
        weights: `"raw"`, `"averaged"`, or the name of one of several averages.
        model: The model that the run trains; its values are overwritten. By default it
            is made from what the run has written. For averages in a file of
            `ModelCheckpoint` it must be compiled with the run's optimizer.
        overwrite: Whether to replace a file that is there.

    Returns:
        Which checkpoint it was, and which of its weights.

    Raises:
        FileExistsError: If `path` exists, without `overwrite`.
        OSError: If a file can't be read or written.
        ValueError: If there is no intact checkpoint, it has no such weights, or it is
            of another model.

    Examples:
        >>> import keras, numpy as np, tempfile
        >>> from fmkit.callbacks import ExactResume
        >>> from fmkit.evaluation import export_checkpoint
        >>> x = np.ones((8, 2), "float32")
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as run:
        ...     resume = ExactResume(run, verbose=0)
        ...     history = model.fit(x, x[:, 0], callbacks=[resume], verbose=0)
        ...     written = export_checkpoint(run, f"{run}/model.keras")
        ...     loaded = keras.saving.load_model(f"{run}/model.keras")
        >>> written.step
        1
        >>> all(np.array_equal(a, b) for a, b in
        ...     zip(model.get_weights(), loaded.get_weights()))
        True
    """
    source, target = check_path("checkpoint", checkpoint), check_path("path", path)
    suffix = next((each for each in SUFFIXES if target.name.endswith(each)), None)
    if suffix is None:
        raise ValueError(f"`path` must end in .keras or .weights.h5, got {path!r}.")
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(
            f"{target} exists already. Give another path, or replace it with "
            "overwrite=True (in the command: --overwrite)."
        )
    files = _files(source)
    if model is None:
        model = _model_of(files[0].path.parent)
    found = _read(files, model, source)
    # Of a commit in parts, what is not assigned is not read: not the optimizer's state.
    own = {id(variable) for variable in group_variables(model).model}
    raw = [pair for pair in found.raw if id(pair[0]) in own]
    assign(raw + _chosen(found, weights))
    refresh(model)
    with whole_file(target, suffix=suffix) as file, _plain(model) as plain:
        (plain.save if suffix == ".keras" else plain.save_weights)(file.name)
    return ExportedCheckpoint(found.name, found.epoch, found.step, weights)


def _files(source: Path) -> list[CheckpointFile]:
    """Return what is to be read: the first that is intact counts."""
    one = [file for file in list_checkpoints(source.parent) if file.path == source]
    if one:
        return one
    files = list_checkpoints(source)
    if not files:
        raise ValueError(
            f"{source} is no checkpoint, and holds none. Give the directory of a run, "
            "or in it a commit-*.npz, a .keras or .weights.h5 file, or a step of "
            "OrbaxCheckpoint."
        )
    # Commits are a series of their own; the newest of all others is the last.
    return [file for file in files if file.number is not None][::-1] or files[::-1]


def _model_of(run: Path) -> Any:
    description = find_description(run)
    if description is None:
        raise ValueError(
            f"Nothing in {run} describes the model. Give `model` (in the command: "
            "--model FILE.keras)."
        )
    return make_model(description)


def _read(files: list[CheckpointFile], model: Any, source: Path) -> Checkpoint:
    target = Target.of(model)
    for file in files:
        try:
            return read_checkpoint(file, target)
        except (NotReadableError, FileNotFoundError) as error:
            if len(files) == 1:
                raise
            warnings.warn(
                f"Skipping a checkpoint that cannot be read: {error}. Taking the one "
                "before it.",
                stacklevel=3,
            )
    raise ValueError(
        f"None of the {len(files)} checkpoints in {source} can be read. Restore one of "
        "them from a copy."
    )


def _chosen(found: Checkpoint, weights: str) -> list[Any]:
    if weights == "raw":
        return []
    if weights not in found.averages:
        options = ["raw", *found.averages]
        raise ValueError(
            f"weights={weights!r}, but {found.name} holds {options}."
            f"{did_you_mean(weights, options)}"
        )
    return found.averages[weights]


@contextmanager
def _plain(model: Any) -> Iterator[Any]:
    """Lend the model as one that was not compiled, so that only the model is saved."""
    if library_of(model) == "fmkit" and model.inputs:
        # A class of fmkit's, which Keras alone would not know.
        yield keras.Model(model.inputs, model.outputs, name=model.name)
        return
    compiled, optimizer = model.compiled, model.optimizer
    model.compiled, model.optimizer = False, None
    try:
        yield model
    finally:
        model.compiled, model.optimizer = compiled, optimizer
