r"""Averages of any length, from snapshots of two: chosen after training.

A power-function average of exponent $\gamma$ and length $t$ gives update $i$ the share

$$p_{\gamma, t}(i) = \frac{i^{\gamma + 1} - (i - 1)^{\gamma + 1}}{t^{\gamma + 1}},
  \qquad 1 \le i \le t,$$

which is what its rule $d_n = (1 - 1/n)^{\gamma + 1}$ unrolls to. A sum of snapshots has
the sum of their shares, so the shares of another width are fitted by those that were
kept, with coefficients that sum to 1; the same sum of the snapshots is the average. The
idea is that of Karras et al. (2023); they fit the continuous profiles.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmkit._batch_norm import update_batch_norm
from fmkit._checks import check_int, check_path
from fmkit._commits import DamagedCommitError, list_averages, read_commit, read_meta
from fmkit._layer_state import refresh
from fmkit._swap import path_of
from fmkit.evaluation._checkpoint import Array, Target, assign
from fmkit.evaluation._commit_reader import is_same_place, read_commit_file
from fmkit.evaluation._described import make_model
from fmkit.evaluation._listing import list_checkpoints
from fmkit.optimizers import PowerRule

__all__ = ["Synthesis", "sweep_widths", "synthesize"]

# Updates whose shares are in memory at a time.
_BLOCK = 65_536


@dataclass(frozen=True)
class Synthesis:
    r"""An average made from snapshots.

    Attributes:
        model: The model, which holds the average.
        width: Relative width $\sigma$ of the average.
        end: Updates of the average at which it ends.
        error: Norm of what its shares differ by from those wanted, relative to the
            norm of these. 0 where a snapshot is the average itself.
        snapshots: How many snapshots it is made of.
    """

    model: keras.Model
    width: float
    end: int
    error: float
    snapshots: int


def synthesize(
    directory: str | os.PathLike[str],
    width: float,
    *,
    end: int | None = None,
    model: keras.Model | None = None,
) -> Synthesis:
    r"""Make the average of a width, and of an end, from the snapshots of a run.

    The run trained with two `fmkit.optimizers.PowerRule` averages, such as widths 0.05
    and 0.1, under `fmkit.callbacks.ExactResume`. The other variables, such as the
    statistics of `BatchNormalization`, are those of the newest commit: measure the
    statistics anew with `update_batch_norm`.

    Args:
        directory: That of the run.
        width: Relative width $0 < \sigma < 0.2886$.
        end: The updates of the averages at which it ends, at most those of the last
            snapshot, which is the default.
        model: What to put the average into; by default the model is made from the
            directory's `model.json`.

    Returns:
        The model with the average, and how close its shares are to those wanted.

    Raises:
        ValueError: If there are no snapshots, their rules have different start steps
            or intervals, `end` is after the last, `width` is outside its range, or the
            model is another one.
        OSError: If a file can't be read.

    References:
        Karras et al., [*Analyzing and improving the training dynamics of diffusion
        models*](https://arxiv.org/abs/2312.02696), 2023, section 3.2.
    """
    gamma = PowerRule(width).gamma
    path = check_path("directory", directory)
    kept = _kept_in(path)
    last = max(each.length for each in kept)
    end = last if end is None else check_int("end", end)
    if end > last:
        raise ValueError(
            f"`end` must be at most {last}, the last snapshot's, got {end}."
        )
    kept = [each for each in kept if each.length <= end]
    if not kept:
        raise ValueError(f"No snapshot in {path} is as early as end={end}.")
    coefficients, error = fit_shares(
        [(each.gamma, each.length) for each in kept], (gamma, end)
    )
    model = _model_of(path) if model is None else model
    _assign_newest(path, model)
    _assign_sum(model, kept, coefficients)
    return Synthesis(model, width, end, error, len({each.path for each in kept}))


def sweep_widths(
    directory: str | os.PathLike[str],
    data: Any,
    widths: Iterable[float] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
    *,
    end: int | None = None,
    model: keras.Model | None = None,
    batch_norm_data: Any = None,
) -> list[dict[str, float]]:
    """Evaluate the averages of several widths: `visualization.sweep` draws the rows.

    Args:
        directory: As in `synthesize`.
        data: `(x, y)`, `(x, y, sample_weight)` or a data set to evaluate on; a
            validation set, since the best width is chosen by it.
        widths: The widths.
        end: As in `synthesize`.
        model: As in `synthesize`; compiled. Holds the last average afterwards.
        batch_norm_data: Data on which `update_batch_norm` measures the statistics of
            `BatchNormalization` for each average.

    Returns:
        For each width a dict of `width`, `error` and the results of `evaluate`.

    Raises:
        ValueError: As `synthesize`.
        OSError: As `synthesize`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    rows = []
    for width in widths:
        made = synthesize(directory, width, end=end, model=model)
        model = made.model
        if batch_norm_data is not None:
            update_batch_norm(model, batch_norm_data)
        results = model.evaluate(
            x, y, sample_weight=sample_weight, verbose=0, return_dict=True
        )
        rows.append({"width": width, "error": made.error, **results})
    return rows


# The shares


def shares(gamma: float, length: int, updates: Array) -> Array:
    """Return the shares that an average of this length gives to some updates."""
    ratio = np.minimum(updates / length, 1.0)
    before = np.minimum((updates - 1) / length, 1.0)
    found: Array = ratio ** (gamma + 1) - before ** (gamma + 1)
    return found


def fit_shares(
    kept: list[tuple[float, int]], wanted: tuple[float, int]
) -> tuple[Array, float]:
    """Fit the shares of an average by those of others, each an exponent and a length.

    Returns:
        Coefficients that sum to 1 with the least sum of squared differences, and the
        norm of these differences relative to that of the wanted shares.
    """
    # Each as its difference from one of them: then any coefficients sum to 1.
    differences = np.zeros((0, len(kept)))
    norm = 0.0
    for start in range(1, wanted[1] + 1, _BLOCK):
        updates = np.arange(start, min(start + _BLOCK, wanted[1] + 1), dtype=float)
        columns = [shares(*each, updates) for each in (*kept[:-1], wanted)]
        own = shares(*kept[-1], updates)
        block = np.stack([column - own for column in columns], axis=1)
        norm += float(np.sum(columns[-1] ** 2))
        # Only the triangle of all rows so far is kept.
        rows = np.concatenate([differences, block])
        differences = np.asarray(np.linalg.qr(rows, mode="r"))
    free, target = differences[:, :-1], differences[:, -1]
    scale = np.linalg.norm(free, axis=0)
    scale[scale == 0] = 1.0
    found = np.linalg.lstsq(free / scale, target, rcond=1e-10)[0] / scale
    residual = target - free @ found
    coefficients = np.append(found, 1.0 - found.sum())
    return coefficients, float(np.linalg.norm(residual) / np.sqrt(norm))


# The files


@dataclass(frozen=True)
class _Kept:
    """One average in one snapshot."""

    path: Path
    name: str
    gamma: float
    length: int
    # Start step and interval; older snapshots do not say them.
    timing: tuple[int, int] | None
    weights: list[tuple[int, str]]


def _kept_in(directory: Path) -> list[_Kept]:
    paths = list(list_averages(directory).values())
    if not paths:
        raise ValueError(
            f"{directory} has no snapshots of averages (averages-*.npz). Train with "
            "fmkit.optimizers.WeightAverages(optimizer, [PowerRule(0.05), "
            "PowerRule(0.1)]) and fmkit.callbacks.ExactResume(directory)."
        )
    kept = []
    for path in paths:
        try:
            told = read_meta(path).program["averages"]
            kept += [
                _Kept(
                    path,
                    str(each["name"]),
                    float(each["gamma"]),
                    int(each["length"]),
                    (int(each["start_step"]), int(each["update_interval"]))
                    if "start_step" in each
                    else None,
                    [(int(place), str(at)) for place, at in each["weights"]],
                )
                for each in told
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedCommitError(f"{path}: {error}. Delete the file.") from error
    _check_timing(directory, kept)
    return [each for each in kept if each.length > 0]


def _check_timing(directory: Path, kept: list[_Kept]) -> None:
    """Refuse averages whose n-th updates are not of the same weights."""
    found = {each.timing: each.name for each in kept if each.timing is not None}
    if len(found) > 1:
        each = " and ".join(
            f"{name!r} start_step={start}, update_interval={interval}"
            for (start, interval), name in found.items()
        )
        raise ValueError(
            f"The averages in {directory} were not updated at the same steps: {each}. "
            "Train with the same start_step and update_interval in each PowerRule."
        )


def _model_of(directory: Path) -> Any:
    path = directory / "model.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} has no model.json to make the model from: give model=."
        )
    return make_model(path)


def _assign_newest(directory: Path, model: Any) -> None:
    """Put the newest commit into the model, if there is one."""
    commits = [each for each in list_checkpoints(directory) if each.number is not None]
    if commits:
        assign(read_commit_file(commits[-1], Target.of(model)).raw)


def _assign_sum(model: Any, kept: list[_Kept], coefficients: Array) -> None:
    """Assign the sum of the averages of all snapshots with these coefficients."""
    variables = _variables_at(model, kept[-1].weights)
    sums = [np.zeros(variable.shape, np.float64) for variable in variables]
    for path in dict.fromkeys(each.path for each in kept):
        arrays = read_commit(path).arrays
        for each, coefficient in zip(kept, coefficients, strict=True):
            if each.path == path:
                for index, whole in enumerate(sums):
                    whole += coefficient * np.asarray(arrays[f"{each.name}/{index}"])
    assign(list(zip(variables, sums, strict=True)))
    refresh(model)


def _variables_at(model: Any, weights: list[tuple[int, str]]) -> list[Any]:
    """Return the weights of `model` that have these places and paths in the run."""
    own = model.trainable_variables
    for place, path in weights:
        if place >= len(own) or not is_same_place(path, path_of(own[place])):
            raise ValueError(
                f"The snapshots are of a different model from {model.name!r}: they "
                f"hold {path!r} as weight {place}. Give the model that the run trains."
            )
    return [own[place] for place, _ in weights]
