"""The settings of the evaluator, checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from fmkit._checks import check_path

__all__ = ["Settings", "check_data", "check_model", "check_output"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `SidecarEvaluator` was given; its docstring has the meaning of each.

    Attributes:
        output_is_given: Whether the caller named `output`, which may then be a link.
    """

    data: dict[str, Any]
    directory: Path
    output: Path
    output_is_given: bool
    checkpoints: str
    weights: str
    monitor: str
    mode: str
    keep_best: bool
    tensorboard: bool
    batch_size: int | None
    max_evaluations: int | None
    idle_seconds: float | None
    stop_with_run: bool
    poll_seconds: float
    max_poll_seconds: float
    verbose: int
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    @property
    def monitored(self) -> tuple[str, str]:
        """The data set and the metric in which the best checkpoint is best."""
        # Names of data sets have no slash; names of metrics might.
        name, slash, metric = self.monitor.partition("/")
        if slash and name in self.data:
            return name, metric
        return next(iter(self.data)), self.monitor


def check_model(model: Any) -> Any:
    """Return a built and compiled model; refuse any other."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model, got {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            "`model` must be built: start it with keras.Input(shape), or call it on "
            "one batch."
        )
    if not model.compiled:
        raise ValueError(
            "`model` must be compiled with the loss and the metrics to evaluate: "
            "model.compile(loss=..., metrics=[...])."
        )
    return model


def check_output(output: str | os.PathLike[str] | None, directory: Path) -> Path:
    """Return the folder for the results, which is not that of the checkpoints."""
    if output is None:
        return directory / "evaluation"
    path = check_path("output", output)
    if path.resolve() == directory.resolve():
        raise ValueError(
            f"`output` must not be `directory` itself ({directory}): best.keras would "
            "be taken for a checkpoint. Omit it, or give another folder."
        )
    return path


def check_data(data: Any) -> dict[str, Any]:
    """Return data sets by name; refuse what can't be evaluated again and again."""
    named = dict(data) if isinstance(data, Mapping) else {"test": data}
    if not named:
        raise ValueError("`data` is an empty dict: give at least one data set.")
    for name, value in named.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                "`data` must be a dict of data sets by name, the names being strings "
                f"without a slash; got the name {name!r}."
            )
        if isinstance(value, list):
            value = named[name] = tuple(value)
        if isinstance(value, tuple) and not 2 <= len(value) <= 3:
            raise ValueError(
                f"`data` {name!r} must be (x, y) or (x, y, sample_weight), got "
                f"{len(value)} parts."
            )
        if hasattr(value, "__next__"):
            raise TypeError(
                f"`data` {name!r} is a {type(value).__name__}, which can be read once "
                "only. Give arrays, fmkit.data.Batches, or a dataset."
            )
    return named
