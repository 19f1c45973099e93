"""What a checkpoint holds of a model, and the model it is read for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit._commits import group_variables
from fmkit._swap import evaluation_point

__all__ = [
    "Array",
    "Checkpoint",
    "NotReadableError",
    "Pairs",
    "Target",
    "assign",
    "averages_of",
    "find_averages",
    "numpy_of",
    "schedule_free_average",
]

# Of a commit in parts, a `ShardedArray`, which reads the values when they are needed.
Array = np.ndarray[Any, Any]
Pairs = list[tuple[Any, Array]]


class NotReadableError(ValueError):
    """A checkpoint is damaged, half-written, or of another model.

    Args:
        reason: What was found.
        final: Whether the file can't become readable any more.
    """

    def __init__(self, reason: str, *, final: bool):
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Checkpoint:
    """The state of a model that a checkpoint holds, ready to be put into it.

    Attributes:
        name: The file's name.
        epoch: Epochs completed, where known.
        step: Optimizer steps since the beginning, where known.
        finished: Whether the run had ended when it was written.
        raw: Every variable of the model with its value.
        averages: The averaged variables with their averages, by what the results call
            them: the first is "averaged", others have their own names. Empty without
            any.
        digest: SHA-256 of the weights and the averages, the same for the same bits.
    """

    name: str
    epoch: int | None
    step: int | None
    finished: bool
    raw: Pairs
    averages: dict[str, Pairs]
    digest: str


@dataclass(frozen=True)
class Target:
    """The built and compiled model that checkpoints are read for.

    Attributes:
        model: The model.
        own: Its variables without those of metrics, in the order of a commit.
        optimizer: The optimizer's variables, in the order of a commit.
        fresh: The optimizer's variables with the values of an optimizer that has not
            trained, for checkpoints that hold none for it.
    """

    model: Any
    own: list[Any]
    optimizer: list[Any]
    fresh: Pairs

    @classmethod
    def of(cls, model: Any) -> Target:
        """Return `model` as a target; builds its optimizer."""
        if not hasattr(model, "optimizer"):
            model.optimizer = None  # it was never compiled
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        own, optimizer, _ = group_variables(model)
        return cls(model, own, optimizer, [(v, numpy_of(v)) for v in optimizer])

    def takes(self, variable: Any, value: Array) -> bool:
        """Whether a value has the shape and the dtype of a variable of the model.

        The seeds of dropout, which evaluation does not use, have other dtypes on other
        backends.
        """
        if value.shape != tuple(variable.shape):
            return False
        dtype = keras.backend.standardize_dtype(variable.dtype)
        return value.dtype.name == dtype or self._is_no_weight(variable)

    def _is_no_weight(self, variable: Any) -> bool:
        return all(variable is not weight for weight in self.model.weights)

    def checkpoint(
        self, raw: Pairs, averages: dict[str, Pairs], **where: Any
    ) -> Checkpoint:
        """Return a checkpoint with its digest."""
        weights = {id(variable) for variable in self.model.weights}
        # Without the seeds of dropout, which evaluation does not use.
        counted = [value for variable, value in raw if id(variable) in weights]
        counted += [value for pairs in averages.values() for _, value in pairs]
        return Checkpoint(raw=raw, averages=averages, digest=_digest(counted), **where)


def assign(pairs: Pairs) -> None:
    """Put the values of a checkpoint into the variables they belong to."""
    for variable, value in pairs:
        # Copied: a backend may keep the array it is given. Averages may be float32
        # where the weights are of a half type.
        variable.assign(ops.cast(np.array(value, copy=True), variable.dtype))


def numpy_of(variable: Any) -> Array:
    """Return a copy of a variable's value."""
    return np.array(keras.ops.convert_to_numpy(variable), copy=True)


def _digest(values: list[Array]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value.dtype.name}{list(value.shape)};".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def find_averages(
    places: list[tuple[Any, str]], entries: list[tuple[str, Array]]
) -> dict[str, Pairs]:
    """Pair variables with their averages among an optimizer's variables, by name.

    fmkit's optimizers and Keras's `use_ema` both name the average of `a/b`
    `a_b_average`, and fmkit's any further one `a_b_average.name`. Paths come from one
    process, so the names agree exactly.

    Args:
        places: Variables, each with its path in the process that trained.
        entries: The paths of the optimizer's variables there, with their values.
    """
    by_name: dict[str, list[Array]] = {}
    for path, value in entries:
        by_name.setdefault(path.rpartition("/")[2], []).append(value)
    found: dict[str, Pairs] = {}
    for variable, path in places:
        first = path.replace("/", "_") + "_average"
        for name, candidates in by_name.items():
            which, _, further = name.partition(f"{first}.")
            if not (name == first or (further and not which)):
                continue
            if candidates and candidates[0].shape == tuple(variable.shape):
                # "a/b_c" and "a_b/c" share a name; both lists have the same order.
                pairs = found.setdefault(further or "averaged", [])
                pairs.append((variable, candidates.pop(0)))
    return found


def schedule_free_average(
    values: list[tuple[Any, str, Array]], entries: list[tuple[str, Array]], beta: float
) -> dict[str, Pairs]:
    """Compute the average at which `ScheduleFreeAdamW` is to be evaluated.

    Args:
        values: Variables, each with its path in the process that trained, and its
            value there.
        entries: The paths of the optimizer's variables there, with their values.
        beta: The optimizer's `beta_1`.
    """
    leading = {path.rpartition("/")[2]: value for path, value in entries}
    found = []
    for variable, path, trained in values:
        own = leading.get(path.replace("/", "_") + "_momentum")
        if own is not None and own.shape == tuple(variable.shape):
            y, z = np.asarray(trained), np.asarray(own)
            found.append((variable, evaluation_point(y, z, beta)))
    return {"averaged": found} if found else {}


def averages_of(
    optimizer: Any,
    values: list[tuple[Any, str, Array]],
    entries: list[tuple[str, Array]],
) -> dict[str, Pairs]:
    """Return the averages that a checkpoint of a model with this optimizer holds.

    Args:
        optimizer: The model's.
        values: As in `schedule_free_average`.
        entries: As in `find_averages`.
    """
    if type(optimizer).__name__ == "ScheduleFreeAdamW":
        return schedule_free_average(values, entries, optimizer.beta_1)
    return find_averages([(v, path) for v, path, _ in values], entries)
