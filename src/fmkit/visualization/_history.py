"""Metrics by epoch from Keras's `History` or log file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmkit.visualization._values import as_numbers

Curve = tuple[np.ndarray, np.ndarray]


def read_history(history: Any, metrics: Sequence[str]) -> dict[str, Curve]:
    """Return epochs, counted from 1, and values of each metric.

    Series that are not one number per epoch are left out unless `metrics` has them.
    """
    wanted = {*metrics, *(f"val_{name}" for name in metrics)}
    if isinstance(history, str | Path):
        return _read_log(Path(history), wanted)
    values = getattr(history, "history", history)
    if not isinstance(values, Mapping):
        raise TypeError(
            "`history` must be what `fit` returned, a mapping of names to values, or "
            f"the path of a CSVLogger's file, got {type(history).__name__}."
        )
    lengths = [len(each) for each in values.values() if hasattr(each, "__len__")]
    length = max(lengths, default=0)
    epochs = np.asarray(getattr(history, "epoch", None) or range(length)) + 1
    curves = {}
    for name, series in values.items():
        try:
            numbers = as_numbers(name, series)
        except (TypeError, ValueError):
            if name in wanted:
                raise
            continue  # of several numbers per epoch, such as a score for each class
        if len(numbers) != len(epochs):
            raise ValueError(
                f"The history has {len(numbers)} values of {name!r} for {len(epochs)} "
                "epochs, so it can't be known which epochs they belong to (as under "
                "`validation_freq`). Draw from a keras.callbacks.CSVLogger's file."
            )
        # Of an epoch without a value there is no point; NaN is a point, and a gap.
        given = np.array([value is not None for value in series])
        if given.any():
            curves[name] = (epochs[given], numbers[given])
    return curves


def _read_log(path: Path, wanted: set[str]) -> dict[str, Curve]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if not rows or "epoch" not in (reader.fieldnames or []):
        raise ValueError(
            f"{path} must be a table with a column 'epoch' and at least one line, as "
            f"keras.callbacks.CSVLogger writes it, got columns {reader.fieldnames} and "
            f"{len(rows)} lines."
        )
    curves = {}
    for name in reader.fieldnames or []:
        # CSVLogger writes NA where an epoch has no such metric.
        try:
            points = {
                int(row["epoch"]) + 1: float(row[name])
                for row in rows
                if row[name] not in (None, "", "NA")
            }
        except ValueError:
            if name in wanted or name == "epoch":
                raise
            continue
        if name != "epoch" and points:
            epochs = sorted(points)
            curves[name] = (np.array(epochs), np.array([points[e] for e in epochs]))
    return curves
