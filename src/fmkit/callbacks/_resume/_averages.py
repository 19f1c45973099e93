"""Snapshots of power-function averages, at growing distances, beside the commits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fmkit._commits import CommitDirectory, Meta, list_averages
from fmkit._job import Job
from fmkit._swap import Averages, Power, keepers_in, path_of, replicas_of
from fmkit.callbacks._resume._shards import layout_of
from fmkit.callbacks._resume._training_state import arrays_of

__all__ = ["AverageSnapshots", "Snapshot"]


class Snapshot(NamedTuple):
    """What `CommitDirectory.write_averages` writes.

    In a job of several processes it has the layouts of the arrays.
    """

    length: int
    meta: Meta
    arrays: dict[str, Any]


class AverageSnapshots:
    """Takes a snapshot each time the averages have seen `growth` times the updates.

    Args:
        directory: Where they go.
        growth: The factor; `None` for no snapshots.
        job: The processes that train together.
    """

    def __init__(
        self, directory: CommitDirectory, growth: float | None, job: Job
    ) -> None:
        self._directory = directory
        self._job = job
        self._growth = growth

    def start(self, model: Any, *, resumed: bool) -> list[str]:
        """Make the snapshots those of this run.

        Returns:
            The names of those that were dropped, since they are later than the commit:
            the run was killed before the next one.

        Raises:
            ValueError: If a run that starts from the beginning finds several.
        """
        found = list_averages(self._directory.path)
        # The first comes before the first commit: a run may have been killed between.
        if len(found) > 1 and not resumed:
            raise ValueError(
                f"{self._directory.path} has no commit, but {len(found)} snapshots of "
                "averages of another run (averages-*.npz). Move them away, or give "
                "another directory."
            )
        if not found:
            return []
        # With the same bits again, unless the program has changed.
        return self._directory.drop_averages(_length(_powers(model)) if resumed else 0)

    def take(self, model: Any, *, last: bool) -> Snapshot | None:
        """Return a copy of the averages if it is time.

        Args:
            model: The model.
            last: Whether the run ends here.
        """
        powers = _powers(model)
        length = _length(powers)
        if self._growth is None or length < 1:
            return None
        newest = max([*list_averages(self._directory.path), 0])
        if self._job.count > 1:
            newest = self._job.exchange(newest)[0]
        if newest == length or not (last or length >= newest * self._growth):
            return None
        arrays: dict[str, Any] = {}
        told = []
        places = {id(w): place for place, w in enumerate(model.trainable_variables)}
        for name, (average, power) in powers.items():
            own = {f"{name}/{i}": pair for i, pair in enumerate(average.averages)}
            for key, (_, held) in own.items():
                arrays[key] = (
                    layout_of(replicas_of(held)[0], self._job)
                    if self._job.count > 1
                    else np.array(arrays_of(held)[0], copy=True)
                )
            weights = [(places[id(w)], path_of(w)) for w, _ in own.values()]
            told.append({"name": name, **power._asdict(), "weights": weights})
        return Snapshot(length, Meta(program={"averages": told}), arrays)


def _powers(model: Any) -> dict[str, tuple[Averages, Power]]:
    """Return the averages whose width can be chosen later, by name.

    Each with its length so far, which is read from the device.
    """
    return {
        name: (average, power)
        for keeper in keepers_in(model.optimizer)
        for name, average in keeper.kept.items()
        if (power := average.power) is not None
    }


def _length(powers: dict[str, tuple[Averages, Power]]) -> int:
    """Return how many updates the longest of them has seen."""
    return max((power.length for _, power in powers.values()), default=0)
