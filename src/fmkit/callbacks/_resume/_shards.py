"""Which process of a job holds which part of a value.

Under `keras.distribution` a value may be cut into shards, each held by one process or
by several. On PyTorch each process holds all of every value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from fmkit._commits import Box, ShardedArray, box_of, dtype_of
from fmkit._job import Job

__all__ = ["Layout", "Shard", "assign_shards", "layout_of"]

Array = np.ndarray[Any, Any]


class Shard(NamedTuple):
    """A part of a value.

    Attributes:
        box: Which part.
        holders: The processes that hold it, in order.
        read: Returns it, perhaps as a view of what the next step overwrites; `None` if
            this process does not hold it.
    """

    box: Box
    holders: tuple[int, ...]
    read: Callable[[], Array] | None


class Layout(NamedTuple):
    """A value and the shards that it consists of, the same list in every process."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    shards: list[Shard]


def layout_of(part: Any, job: Job) -> Layout:
    """Return how a variable, or one replica of it, lies in the processes of a job."""
    value = getattr(part, "value", part)
    if keras.backend.backend() == "jax" and not value.is_fully_addressable:
        return _layout_on_jax(value)

    def read() -> Array:
        return np.asarray(keras.ops.convert_to_numpy(part))

    dtype = dtype_of(keras.backend.standardize_dtype(value.dtype))
    shape = tuple(value.shape)
    whole = Shard(box_of((), shape), tuple(range(job.count)), read)
    return Layout(dtype, shape, [whole])


def _layout_on_jax(value: Any) -> Layout:
    boxes = _boxes(value.sharding, value.shape)
    if value.is_fully_replicated:
        # JAX 0.10 has raised at listing the shards of such a value, after an epoch.
        here = {boxes[0][0]: value}
    else:
        here = {
            box_of(shard.index, value.shape): shard.data
            for shard in value.addressable_shards
        }
    shards = [
        Shard(
            box,
            holders,
            functools.partial(np.asarray, here[box]) if box in here else None,
        )
        for box, holders in boxes
    ]
    return Layout(value.dtype, tuple(value.shape), shards)


@functools.lru_cache(4096)
def _boxes(sharding: Any, shape: tuple[int, ...]) -> list[tuple[Box, tuple[int, ...]]]:
    """Return the boxes of a sharding, each with the processes that hold it."""
    holders: dict[Box, set[int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        holders.setdefault(box_of(index, shape), set()).add(device.process_index)
    return sorted((box, tuple(sorted(found))) for box, found in holders.items())


def assign_shards(part: Any, saved: ShardedArray) -> None:
    """Assign a saved array, of which each device gets its shard."""
    if keras.backend.backend() != "jax":
        part.assign(saved.read())
        return
    import jax

    value = getattr(part, "value", part)
    part.assign(jax.make_array_from_callback(value.shape, value.sharding, saved.read))
