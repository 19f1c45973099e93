"""Reading the commits of `callbacks.ExactResume` for another model than the run's."""

from __future__ import annotations

from typing import Any

import numpy as np

from fmkit._commits import Commit, DamagedCommitError, read_commit
from fmkit._describe import uncounted
from fmkit.evaluation._checkpoint import (
    Array,
    Checkpoint,
    NotReadableError,
    Pairs,
    Target,
    find_averages,
    schedule_free_average,
)
from fmkit.evaluation._listing import CheckpointFile

__all__ = ["is_same_place", "read_commit_file"]

Entries = list[tuple[str, Array]]


def read_commit_file(file: CheckpointFile, target: Target) -> Checkpoint:
    """Read a commit, and check all of it.

    Raises:
        NotReadableError: If it is damaged.
        FileNotFoundError: If it has been deleted.
        ValueError: If it is a sound commit of another model.
    """
    commit = _read(file)
    meta = commit.meta
    try:
        entries = [
            (entry["path"], _whole([commit.arrays[name] for name in entry["arrays"]]))
            for entry in meta.variables
        ]
        described = list(meta.program["model"])
        optimizer = dict(meta.program["optimizer"] or {})
        is_schedule_free = optimizer.get("class") == "ScheduleFreeAdamW"
        beta = float(optimizer["beta_1"]) if is_schedule_free else None
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{file.path}: not what ExactResume writes ({error!r})"
        raise NotReadableError(reason, final=True) from error
    _check_model(file, entries, described, target)
    own, others = entries[: len(target.own)], entries[len(target.own) :]
    places = [(v, path) for v, (path, _) in zip(target.own, own, strict=True)]
    raw = [(v, value) for v, (_, value) in zip(target.own, own, strict=True)]
    step = meta.steps_before + meta.step
    averages: dict[str, Pairs] = {}
    if step:  # Before the first one there are none; Keras's own are zeros then.
        averages = find_averages(places, others)
        if beta is not None:
            values = [(v, *entry) for v, entry in zip(target.own, own, strict=True)]
            averages = schedule_free_average(values, others, beta)
    return target.checkpoint(
        raw + _optimizer_pairs(optimizer.get("class"), others, target),
        averages,
        name=file.path.name,
        epoch=meta.epoch,
        step=step,
        finished=meta.finished,
    )


def _read(file: CheckpointFile) -> Commit:
    try:
        return read_commit(file.path)
    except DamagedCommitError as error:
        # A commit appears whole, by a rename: it is not being written.
        raise NotReadableError(str(error), final=True) from error
    except FileNotFoundError:
        raise
    except OSError as error:  # a link, say, or a disk that is away
        raise NotReadableError(str(error), final=False) from error


def _whole(copies: list[Array]) -> Array:
    """Make one value of the copies that the replicas of a run had."""
    first = copies[0]
    if all(copy.tobytes() == first.tobytes() for copy in copies[1:]):
        return first
    # Statistics of BatchNormalization differ from replica to replica.
    return np.mean(np.stack(copies), axis=0).astype(first.dtype)


def _check_model(
    file: CheckpointFile, entries: Entries, described: list[str], target: Target
) -> None:
    """Refuse a commit of another model, naming what differs."""
    weights, own = target.model.weights, target.own
    differences = []
    if len(described) != len(weights):
        differences.append(
            f"{len(described)} weights in the commit, {len(weights)} here"
        )
    if len(entries) < len(own):
        differences.append(
            f"{len(entries)} variables in the commit with the optimizer's, "
            f"{len(own)} of the model alone here"
        )
    for (path, value), variable in zip(entries, own, strict=False):
        if not (is_same_place(path, variable.path) and target.takes(variable, value)):
            here = _kind(variable.dtype, variable.shape)
            there = _kind(value.dtype.name, value.shape)
            differences.append(f"{path} {there} there, {variable.path} {here} here")
    if differences:
        listed = "\n".join(f"  {line}" for line in differences[:5])
        raise ValueError(
            f"{file.path} is a commit of a different model from "
            f"{target.model.name!r}:\n{listed}\nGive the model that the run trains."
        )


def _kind(dtype: str, shape: Any) -> str:
    return f"{dtype} {[int(size) for size in shape]}"


def is_same_place(one: str, other: str) -> bool:
    """Whether two paths name the same variable of a model built twice.

    Keras counts layers of a kind through a whole process (dense_1, dense_2), and a
    model made from its config has paths without the name of the model.
    """
    one, other = uncounted(one), uncounted(other)
    return one == other or one.endswith("/" + other) or other.endswith("/" + one)


def _optimizer_pairs(trained_by: str | None, entries: Entries, target: Target) -> Pairs:
    """Return the optimizer's state if the model has the same optimizer.

    It plays no part in the results; the best model is saved with it.
    """
    shapes = [tuple(variable.shape) for variable in target.optimizer]
    values = [value for _, value in entries[: len(shapes)]]
    if (
        trained_by != type(target.model.optimizer).__name__
        or [value.shape for value in values] != shapes
    ):
        return list(target.fresh)
    return list(zip(target.optimizer, values, strict=True))
