"""Notice when another N batches are done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def last_index(batch: int, params: Mapping[str, Any] | None) -> int:
    """Return the index of the last batch that is done, given that of a batch hook.

    Keras gives the last execution of an epoch the index it would end on if it were
    full; `params` says how many batches the epoch has, if it is known.
    """
    steps = (params or {}).get("steps")
    return batch if steps is None else min(batch, steps - 1)


class BatchCounter:
    """Counts batches through the epochs, from the indices Keras gives its hooks.

    With several steps per execution a hook sees only the last index of each
    execution, so a multiple of `every` is noticed at the first index at or after
    it.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.batches = 0
        self.last = -1

    def begin_epoch(self) -> None:
        """Expect the indices to begin at 0 again."""
        self.last = -1

    def is_due(self, batch: int, params: dict[str, Any] | None = None) -> bool:
        """Count up to the index `batch`; return whether a multiple was passed."""
        batch = last_index(batch, params)
        if batch <= self.last:  # a restored run may begin at 0 inside an epoch
            self.last = -1
        before = self.batches // self.every
        self.batches += batch - self.last
        self.last = batch
        return self.batches // self.every > before

    def get_state(self) -> dict[str, int]:
        """Return the count and the last index seen in the epoch."""
        return {"batches": self.batches, "last_batch": self.last}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        A run that is resumed inside an epoch continues with the indices, too. Where it
        begins the epoch again, `begin_epoch` or the first lower index shows it.
        """
        self.batches = int(state["batches"])
        self.last = int(state["last_batch"])
