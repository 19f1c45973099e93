"""What `ExactResume` asks of the other processes of a job."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from fmkit._commits import Meta, pack_part
from fmkit._job import Job

__all__ = ["check_agreement", "gather_parts"]

Array = np.ndarray[Any, Any]


def gather_parts(
    job: Job, meta: Meta, arrays: dict[str, Array], signal: int | None
) -> int | None:
    """Add to the first process's commit what is different in the other ones.

    Generators and callbacks are each process's own, and on PyTorch so are
    BatchNorm's statistics, seeds and metrics; weights and averages are common.

    Args:
        job: The processes.
        meta: The commit's meta, as it is in this process.
        arrays: Its arrays; the first process gets a `process/i` for each other.
        signal: The signal that this process has received, if any.

    Returns:
        A signal that some process has received, the same in all of them.
    """
    hashes = {
        name: hashlib.blake2b(array.tobytes()).hexdigest()
        for name, array in arrays.items()
        if name.startswith("variable/")
    }
    told = job.exchange([hashes, signal])
    common, _ = told[0]
    own = {
        name: array
        for name, array in arrays.items()
        if name not in hashes or hashes[name] != common[name]
    }
    parts = job.exchange_bytes(pack_part(meta, own) if job.index else b"")
    for index, part in enumerate(parts[1:], 1):
        arrays[f"process/{index}"] = np.frombuffer(part, np.uint8)
    return next((each for _, each in told if each is not None), None)


def check_agreement(job: Job, epoch: int, last: bool) -> None:
    """Refuse to go on when some processes end here and others do not.

    Raises:
        RuntimeError: In all of them, naming which do what.
    """
    told = job.exchange(bool(last))
    if len(set(told)) > 1:
        raise RuntimeError(
            f"After epoch {epoch + 1}, of the processes of this job "
            f"{[i for i, each in enumerate(told) if each]} end the training and "
            f"{[i for i, each in enumerate(told) if not each]} go on. Give `fit` the "
            "same `epochs` and callbacks everywhere, and the callbacks logs that are "
            "averaged over the processes."
        )
