"""Memory and time of a commit that every process of a job writes its part of.

    python -m benchmarks.sharded [--quick] [--weights N] [--processes N]

A model whose layers are cut over the processes (JAX, `ModelParallel`, one device each)
is committed and restored as `ExactResume` does it. Memory is the operating system's:
the highest resident size of a process (`VmHWM`) beyond what it had before, in parts of
the bytes of its shards. It needs about four times the model's size in memory.

`docs/figures/sharded.py` draws how both grow, from the rows that `python -m benchmarks
--only sharded --publish` keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._measure import number

LONGEST = 1800


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure models of 10^7 to 10^9 weights in 4 processes, and one in 1, 2 and 8."""
    counts, sizes = ((1, 2, 4, 8), (10**7, 10**8, 10**9))
    if quick:
        counts, sizes = (1, 2), (10**5, 10**6)
    # Each number of processes with one size, and each size with one number.
    processes, weights = counts[-2], sizes[-2]
    cases = [(count, weights) for count in counts]
    cases += [(processes, size) for size in sizes if size != weights]
    return [row for case in cases for row in rows_of(*case)]


def rows_of(processes: int, weights: int) -> list[dict[str, Any]]:
    """Measure one job."""
    found = measured(processes, weights)
    where = f"{weights:,} weights in {processes} process{'es' * (processes > 1)}"
    made = []
    for name in ("committed at once", "committed beside the training", "restored"):
        most = max(each[name]["memory"] / each["shards"] for each in found)
        slowest = max(each[name]["seconds"] for each in found)
        total = sum(each["shards"] for each in found)
        made.append(
            {
                "name": f"memory while {where} are {name}",
                "ratio": most,
                "unit": "of a process's shards",
                "target": "",
                "spread": None,
                "detail": f"{number(slowest)} s, {number(1e9 * slowest / total)} "
                "ns per byte",
                "what": name,
                "processes": processes,
                "weights": weights,
                "nanoseconds": 1e9 * slowest / total,
            }
        )
    return made


def measured(processes: int, weights: int) -> list[dict[str, Any]]:
    """Return what each process of a job has measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.sharded", "--folder", folder]
        command += ["--processes", str(processes), "--weights", str(weights)]
        command += ["--port", str(port), "--worker"]
        workers = [
            subprocess.Popen(
                [*command, str(rank)],
                env=os.environ | {"KERAS_BACKEND": "jax"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        ends = [worker.communicate(timeout=LONGEST) for worker in workers]
    for worker, (_, errors) in zip(workers, ends, strict=True):
        if worker.returncode:
            raise RuntimeError((errors.strip().splitlines() or ["no message"])[-1])
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


# One process


def work(rank: int, processes: int, weights: int, port: int, folder: Path) -> Any:
    """Commit and restore a model; return bytes and seconds."""
    import keras
    import numpy as np

    from fmkit import _keras_private as private
    from fmkit._commits import CommitDirectory, Meta, Shared, read_commit
    from fmkit._job import Job
    from fmkit.callbacks._resume import _training_state
    from fmkit.callbacks._resume._background import JobWriter
    from fmkit.callbacks._resume._parts import deal

    with private.tensorflow_unloaded():  # which takes 0.5 GB
        if processes > 1:
            keras.distribution.initialize(f"127.0.0.1:{port}", processes, rank)
        model = _model(weights, processes)
    job = Job(rank, processes)
    shards = sum(
        shard.data.nbytes
        for variable in model.variables
        for shard in variable.value.addressable_shards
    )
    directory = CommitDirectory(folder)
    if rank == 0:
        directory.acquire()
    numbers = iter(range(1, 100))

    def commit(*, beside: bool) -> Callable[[], None]:
        """Copy what is to be written, or not; return what writes it."""
        listed, layouts = _training_state.layouts(model, job, metrics=True)
        dealt = deal(job, layouts, tell=None, copy=beside)
        place = directory.place(next(numbers), rank, processes, "0" * 8)
        shared = Shared(place, Meta(variables=listed), {}, dealt.pieces, dealt.whole)
        writer = JobWriter(job, directory, background=True)
        writer.start_job([shared])
        return writer.wait

    def restore() -> None:
        path = directory.place(1, rank, processes, "0" * 8).list
        read = read_commit(path, rank, (rank, processes))
        _training_state.restore_variables(
            model, read.meta.variables, read.arrays, metrics=True
        )

    found = {
        "shards": shards,
        "committed at once": _cost(lambda: commit(beside=False)()),
        "committed beside the training": _cost(lambda: commit(beside=True)()),
        "restored": _cost(restore),
    }
    value = model.variables[0].value.addressable_shards[0].data
    assert np.asarray(value).reshape(-1)[:8].tobytes() == np.ones(8, "f4").tobytes()
    return found


def _model(weights: int, processes: int) -> Any:
    import keras

    width = min(4096, int((weights / 4) ** 0.5) // processes * processes)
    layers = max(1, round(weights / width**2))
    mesh = keras.distribution.DeviceMesh((1, processes), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
        )
    )
    kind = {"use_bias": False, "kernel_initializer": "ones"}
    stack = [keras.layers.Dense(width, **kind) for _ in range(layers)]
    model = keras.Sequential([keras.Input((width,)), *stack])
    model.compile(keras.optimizers.SGD(), "mse")
    return model


def _cost(run: Callable[[], None]) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present size
    before, started = _memory(), time.perf_counter()
    run()
    return {
        "seconds": time.perf_counter() - started,
        "memory": _memory() - before,
    }


def _memory() -> int:
    """Return the highest resident size so far, in bytes."""
    text = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--weights", type=int)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--worker", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.worker is not None:
        sizes = given.processes, given.weights
        print(json.dumps(work(given.worker, *sizes, given.port, given.folder)))
    elif given.weights:
        print("\n".join(map(json.dumps, rows_of(given.processes, given.weights))))
    else:
        print("\n".join(map(json.dumps, rows(given.quick))))
