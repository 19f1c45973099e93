"""The best weights so far, in a file that is replaced by one rename."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fmkit._checks import did_you_mean
from fmkit._files import open_regular, whole_file
from fmkit._monitor import greater_is_better
from fmkit.evaluation._results import ByData, Record
from fmkit.evaluation._settings import Settings

__all__ = ["BestModel"]


class BestModel:
    """The file of the best model, and the value that it reached.

    Args:
        path: The file.
        settings: The monitored value and its direction.
        records: What has been evaluated already.

    Attributes:
        entry: What the best checkpoint's record says of it, a dict of `monitor`,
            `value` and `weights`; `None` before there is one.

    Raises:
        OSError: If something else than a regular file is in its place.
    """

    def __init__(self, path: Path, settings: Settings, records: list[Record]) -> None:
        self._path = path
        self._settings = settings
        self._monitor = "/".join(settings.monitored)
        self._rises: bool | None = None
        _clear_place(path)
        self.entry = self._recorded(records) if path.exists() else None

    def _recorded(self, records: list[Record]) -> dict[str, Any] | None:
        """Return the last best of the same monitor."""
        bests = [record["best"] for record in reversed(records) if record.get("best")]
        return next((best for best in bests if best["monitor"] == self._monitor), None)

    def offer(self, model: Any, weights: str, by_data: ByData) -> dict[str, Any] | None:
        """Save the model if it is the best so far; return what to record of it then.

        Args:
            model: The model.
            weights: Which weights it holds: "raw", "averaged", or the name of one of
                several averages.
            by_data: Its results, by data set and metric.
        """
        value = self._value_in(by_data)
        if self._rises is None:
            _, metric = self._settings.monitored
            self._rises = greater_is_better(metric, model, self._settings.mode)
        if np.isnan(value) or (self.entry and not self._is_better(value)):
            return None
        with whole_file(self._path, suffix=".keras") as file:
            model.save(file.name)
        self.entry = {"monitor": self._monitor, "value": value, "weights": weights}
        return self.entry

    def _is_better(self, value: float) -> bool:
        assert self.entry is not None
        best = self.entry["value"]
        return bool(value > best if self._rises else value < best)

    def _value_in(self, by_data: ByData) -> float:
        name, metric = self._settings.monitored
        value = by_data[name].get(metric)
        if not isinstance(value, float):
            options = [
                key if len(by_data) == 1 else f"{data}/{key}"
                for data, found in by_data.items()
                for key, number in found.items()
                if isinstance(number, float)
            ]
            monitor = self._settings.monitor
            raise ValueError(
                f"monitor={monitor!r} is not among the results, which are {options}."
                f"{did_you_mean(monitor, options)}"
            )
        return value


def _clear_place(path: Path) -> None:
    """Remove what a kill left behind; refuse what can't be a model's file."""
    for each in [path, *path.parent.glob(f".{path.stem}.*{path.suffix}")]:
        with suppress(FileNotFoundError, PermissionError):
            os.close(open_regular(each, os.O_RDONLY))
        if each != path:
            each.unlink()
