"""What `ExactResume` asks of the other processes of a job."""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fmkit._commits import Box, Piece, cut
from fmkit._job import Job
from fmkit.callbacks._resume._shards import Array, Layout, Shard

__all__ = ["Dealt", "check_agreement", "deal", "new_token"]

# Bytes; what is smaller is not cut.
_SMALL = 2**16

# The number of a shard in the layout of this name.
_Key = tuple[str, int]


class Dealt(NamedTuple):
    """What falls to a process.

    Attributes:
        pieces: What it writes.
        whole: Dtype and shape of each array that the processes write, by name.
        told: What each process had to tell.
    """

    pieces: list[Piece]
    whole: dict[str, dict[str, Any]]
    told: list[Any]


def new_token() -> str:
    """Return what tells a commit from others with its number."""
    return secrets.token_hex(4)


def deal(
    job: Job, layouts: Mapping[str, Layout], *, tell: Any = None, copy: bool = True
) -> Dealt:
    """Deal out the values so that each element is written once.

    A shard that several processes hold is cut into as many pieces, unless it is small.
    Where they hold other values (on PyTorch BatchNorm's statistics, seeds and metrics)
    the first one's count, and each other writes its own besides.

    Args:
        job: The processes, all of which call this together.
        layouts: The values by name, the same names in each process.
        tell: What this process tells the others by the way.
        copy: Whether pieces are copied now, else read when they are written.
    """
    told, different = _compare(job, layouts, tell)
    pieces = []
    shards = [
        ((name, number), shard)
        for name, layout in layouts.items()
        for number, shard in enumerate(layout.shards)
    ]
    for turn, (key, shard) in enumerate(shards):
        layout = layouts[key[0]]
        own = different.get(key, [])
        if key in different:
            boxes = {shard.holders[0]: shard.box} | dict.fromkeys(own, shard.box)
        else:
            boxes = _boxes_by_process(shard, layout.dtype.itemsize, turn)
        if job.index in boxes:
            assert shard.read is not None
            read = functools.partial(_part_of, shard, boxes[job.index])
            if copy:
                read = functools.partial(np.asarray, np.array(read(), copy=True))
            nbytes = _size(boxes[job.index]) * layout.dtype.itemsize
            box, is_own = boxes[job.index], job.index in own
            pieces.append(Piece(key[0], box, is_own, nbytes, read))
    whole = {
        name: {"dtype": layout.dtype.name, "shape": list(layout.shape)}
        for name, layout in layouts.items()
    }
    return Dealt(pieces, whole, told)


def _size(box: Box) -> int:
    return int(np.prod([stop - start for start, stop in box], dtype=np.int64))


def _part_of(shard: Shard, box: Box) -> Array:
    assert shard.read is not None
    pairs = zip(box, shard.box, strict=True)
    inner: Any = tuple(slice(a - origin, b - origin) for (a, b), (origin, _) in pairs)
    return shard.read()[(*inner, ...)]


def _boxes_by_process(shard: Shard, itemsize: int, turn: int) -> dict[int, Box]:
    """Return which process writes which part of a shard."""
    holders = shard.holders
    if _size(shard.box) * itemsize < _SMALL:
        return {holders[turn % len(holders)]: shard.box}
    return dict(zip(holders, cut(shard.box, len(holders)), strict=False))


def _compare(
    job: Job, layouts: Mapping[str, Layout], tell: Any
) -> tuple[list[Any], dict[_Key, list[int]]]:
    """Find shards that are not the same in all processes that hold them.

    Returns:
        What each process tells, and for each such shard the processes that hold another
        value than its first holder.
    """
    shared: dict[str, dict[str, str]] = {}
    holders: dict[str, tuple[_Key, tuple[int, ...]]] = {}
    for name, layout in layouts.items():
        for number, shard in enumerate(layout.shards):
            if len(shard.holders) > 1:
                key = f"{number} {name}"
                holders[key] = (name, number), shard.holders
                if shard.read is not None:
                    group = ",".join(map(str, shard.holders))
                    shared.setdefault(group, {})[key] = _digest(shard.read())
    # Of all that the same processes hold one digest: most often that is enough.
    groups = {
        group: hashlib.blake2b("".join(each.values()).encode()).hexdigest()
        for group, each in shared.items()
    }
    answers = job.exchange([groups, tell])
    found: dict[str, set[str]] = {}
    for of_one, _ in answers:
        for group, digest in of_one.items():
            found.setdefault(group, set()).add(digest)
    unequal = [group for group, digests in found.items() if len(digests) > 1]
    different: dict[_Key, list[int]] = {}
    if unequal:
        mine = {k: v for group in unequal for k, v in shared.get(group, {}).items()}
        each = job.exchange(mine)
        for text, (shard_key, processes) in holders.items():
            first = each[processes[0]].get(text)
            other = [i for i in processes if each[i].get(text) != first]
            if other:
                different[shard_key] = other
    return [told for _, told in answers], different


def _digest(array: Array) -> str:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


def check_agreement(job: Job, epoch: int, last: bool) -> None:
    """Refuse to continue when some processes end here and others do not.

    Raises:
        RuntimeError: In all of them, naming which do what.
    """
    told = job.exchange(bool(last))
    if len(set(told)) > 1:
        raise RuntimeError(
            f"After epoch {epoch + 1}, of the processes of this job "
            f"{[i for i, each in enumerate(told) if each]} end the training and "
            f"{[i for i, each in enumerate(told) if not each]} continue. Give `fit` "
            "the same `epochs` and callbacks everywhere, and the callbacks logs that "
            "are averaged over the processes."
        )
