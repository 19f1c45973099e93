"""The processes of one job, and how they exchange values.

In a job every process runs the same program, and each training step waits for
all of them: `jax.distributed` under a `keras.distribution`, or
`torch.distributed` with an optimizer that averages the gradients. What is here is
collective: all processes call it at the same place between two steps, or all of
them wait for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import keras
import numpy as np

__all__ = ["Job", "current_job"]

T = TypeVar("T")

# Fewer shapes are fewer programs for XLA to compile.
_SMALLEST = 2**12


@dataclass(frozen=True)
class Job:
    """This process's place in a job.

    Attributes:
        index: Number of this process, from 0.
        count: Number of processes; 1 is a training like any other.
    """

    index: int = 0
    count: int = 1

    def exchange_bytes(self, data: bytes) -> list[bytes]:
        """Return what each process gave, in their order."""
        if self.count == 1:
            return [data]
        if keras.backend.backend() == "jax":
            return _exchange_on_jax(data)
        return _exchange_on_torch(data, self.count)

    def exchange(self, value: Any) -> list[Any]:
        """Return the JSON values that the processes gave, in their order."""
        told = self.exchange_bytes(json.dumps(value).encode())
        return [json.loads(each) for each in told]

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` in every process; when it fails in one, fail in all.

        Raises:
            Exception: What `work` raised here.
            RuntimeError: If it raised in another process only.
        """
        if self.count == 1:
            return work()
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised again when all have met
            error = caught
        failed = self.exchange(error and f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for index, message in enumerate(failed):
            if message is not None:
                raise RuntimeError(
                    f"Process {index} of the {self.count} in this job failed, so "
                    f"process {self.index} can't continue: {message}"
                )
        return result  # type: ignore[return-value]


def current_job() -> Job:
    """Return which process of which job this is."""
    backend = keras.backend.backend()
    if backend == "jax" and keras.distribution.distribution() is not None:
        import jax

        return Job(jax.process_index(), jax.process_count())
    if backend == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return Job(distributed.get_rank(), distributed.get_world_size())
    return Job()


# The engines


def _exchange_on_jax(data: bytes) -> list[bytes]:
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
    room = max(_SMALLEST, 2 ** int(np.max(sizes) - 1).bit_length())
    padded = np.zeros(room, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _exchange_on_torch(data: bytes, count: int) -> list[bytes]:
    from torch import distributed

    told: list[Any] = [None] * count
    distributed.all_gather_object(told, data)
    return told
