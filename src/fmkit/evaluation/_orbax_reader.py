"""Reading what Keras's `OrbaxCheckpoint` writes: a folder of arrays for each step.

Orbax's own reader is used, which knows arrays and JSON, and has no pickle: nothing in a
folder can be executed. All arrays are read as NumPy's, so that the devices and the
backend of the run are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmkit._commits import group_variables
from fmkit._describe import without_numbers
from fmkit._requirements import require
from fmkit.evaluation._checkpoint import (
    Array,
    Checkpoint,
    NotReadableError,
    Pairs,
    Target,
    averages_of,
    numpy_of,
)
from fmkit.evaluation._listing import CheckpointFile, signature_of_step

__all__ = ["read_model_config", "read_orbax_step"]

# A variable, its path in the process that trained, and its value there.
Values = list[tuple[Any, str, Array]]


def read_orbax_step(file: CheckpointFile, target: Target) -> Checkpoint:
    """Read a step.

    Raises:
        NotReadableError: If it is damaged.
        FileNotFoundError: If it has been deleted.
        ModuleNotFoundError: If Orbax is not installed.
        ValueError: If it is a sound step of another model.
    """
    tree = _read(file)
    weights, entries = (
        dict(entry for group in groups for entry in _flat(tree.get(group, {})))
        for groups in (
            ("trainable_variables", "non_trainable_variables"),
            ("optimizer_variables",),
        )
    )
    values = _pair(target.own, weights, target)
    if values is None:
        raise ValueError(_another_model(file, weights, target.model))
    optimizer = _pair(target.optimizer, entries, target)
    state: Pairs = target.fresh
    if entries and optimizer is not None:
        state = [(variable, value) for variable, _, value in optimizer]
    counts = [int(v) for path, v in entries.items() if path.endswith("/iteration")]
    return target.checkpoint(
        [(variable, value) for variable, _, value in values] + state,
        averages_of(target.model.optimizer, values, list(entries.items())),
        name=file.path.name,
        epoch=None,  # the name may count epochs or batches
        step=max(counts, default=None),
        finished=False,
    )


def read_model_config(step: Path) -> str:
    """Return the JSON that describes the model of a step.

    Raises:
        ModuleNotFoundError: If Orbax is not installed.
        ValueError: If it cannot be read.
    """
    orbax = _orbax(step)
    try:
        found = orbax.load_checkpointables(step, {"model_config": None})
        return str(found["model_config"]["config"])
    except Exception as error:
        raise ValueError(f"{step}: {str(error) or type(error).__name__}") from error


def _orbax(step: Path) -> Any:
    orbax = require("orbax.checkpoint", f"To read {step}, fmkit.evaluation")
    if not hasattr(orbax, "v1"):
        raise ImportError(
            f"{step} was written by a newer orbax-checkpoint than {orbax.__version__}. "
            "Type: pip install --upgrade orbax-checkpoint"
        )
    return orbax.v1


def _read(file: CheckpointFile) -> dict[str, Any]:
    orbax = _orbax(file.path)
    try:
        saved = orbax.checkpointables_metadata(file.path).metadata["pytree"]
        like = {group: _as_numpy(tree) for group, tree in saved.items()}
        tree: dict[str, Any] = orbax.load_checkpointables(file.path, {"pytree": like})
    except Exception as error:
        _check_there(file)
        # Arbitrary bytes make Orbax and TensorStore raise nearly anything.
        reason = f"{file.path}: {str(error) or type(error).__name__}"
        raise NotReadableError(reason, final=False) from error
    _check_there(file)
    return tree["pytree"]


def _check_there(file: CheckpointFile) -> None:
    """Refuse a step that `max_to_keep` has deleted, perhaps while it was read."""
    if signature_of_step(file.path) != file.signature:
        raise FileNotFoundError(f"{file.path} has been deleted")


def _as_numpy(saved: Any) -> Any:
    """Ask for NumPy's arrays, whatever devices an array was on."""
    if isinstance(saved, dict):
        return {name: _as_numpy(value) for name, value in saved.items()}
    if getattr(saved, "shape", None) is None:
        return saved  # a number
    return np.broadcast_to(np.zeros((), saved.dtype), saved.shape)


def _flat(tree: dict[str, Any], start: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the paths of variables with their values."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{start}{name}/")
        else:
            yield start + name, np.asarray(value)


# The places of variables


def _pair(
    variables: list[Any], entries: dict[str, Array], target: Target
) -> Values | None:
    """Pair variables with the entries of the same places; `None` if they have others.

    A tree has no order of its own, and Keras counts layers of a kind through a whole
    process: the first `dense` here is the first `dense` there. A model made from its
    config may have paths without the name of the model.
    """
    here = {variable.path: variable for variable in variables}
    if set(here) == set(entries):
        return _checked([(here[p], p, entries[p]) for p in here], target)
    ours, theirs = _in_order(here, entries), _in_order(entries, here)
    if [place for place, *_ in ours] != [place for place, *_ in theirs]:
        return None
    there = {our[-1]: their[-1] for our, their in zip(ours, theirs, strict=True)}
    return _checked([(here[p], there[p], entries[there[p]]) for p in here], target)


def _in_order(paths: Iterable[str], others: Iterable[str]) -> list[Any]:
    """Return the paths with their places, in the order of places, then of numbers."""
    known = {without_numbers(other) for other in others}

    def place(path: str) -> str:
        whole = without_numbers(path)
        rest = whole.partition("/")[2]
        return rest if whole not in known and rest in known else whole

    return sorted((place(path), _natural(path), path) for path in paths)


def _natural(path: str) -> list[Any]:
    """Order dense_2 before dense_10."""
    return [int(p) if p.isdigit() else p for p in re.split("([0-9]+)", path)]


def _checked(values: Values, target: Target) -> Values | None:
    """Give numbers the dtypes of their variables; `None` if an array is another one."""
    # Except on JAX, Keras gives Orbax single numbers as Python's.
    checked = [
        (v, path, value if value.ndim else value.astype(numpy_of(v).dtype))
        for v, path, value in values
    ]
    same = all(target.takes(variable, value) for variable, _, value in checked)
    return checked if same else None


def _another_model(file: CheckpointFile, entries: dict[str, Array], model: Any) -> str:
    """Name what differs from the model."""
    there = {f"{p} {v.dtype.name} {list(v.shape)}" for p, v in entries.items()}
    here = {
        f"{v.path} {keras.backend.standardize_dtype(v.dtype)} {list(v.shape)}"
        for v in group_variables(model).model
    }
    listed = [f"  {line} there" for line in sorted(there - here)[:5]]
    listed += [f"  {line} here" for line in sorted(here - there)[:5]]
    return (
        f"{file.path} is of a different model from {model.name!r}:\n"
        + "\n".join(listed)
        + "\nGive the model that the run trains."
    )
