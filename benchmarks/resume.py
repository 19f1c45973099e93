"""What exact resume costs: in `fit`, and per commit against the bare disk.

Run it alone with `python -m benchmarks.resume [--quick]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks._measure import interleave, number, row, seconds
from fmkit._commits import Meta, read_commit, write_commit
from fmkit.callbacks import ExactResume
from fmkit.callbacks._resume._program import describe_model
from fmkit.callbacks._resume._training_state import held_by, snapshot
from fmkit.data import Batches


def network() -> keras.Model:
    """The tutorial's network, 244,522 weights, with Adam and Keras's averages."""
    layers = [keras.layers.Dense(units, "relu") for units in (256, 128, 64, 32)]
    model = keras.Sequential(
        [keras.Input((28, 28)), keras.layers.Flatten(), *layers, keras.layers.Dense(10)]
    )
    backend = keras.backend.backend()
    model.compile(
        # On JAX a second `fit` with Keras's own averages fails (a bug of Keras).
        keras.optimizers.Adam(1e-3, use_ema=backend != "jax"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False if backend == "torch" else "auto",
    )
    return model


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure the overhead in `fit`, the copy, and commits of growing size."""
    sizes = [244_522, 10_000_000] + ([] if quick else [100_000_000])
    return [
        fit_row(quick),
        copy_row(),
        start_row(),
        description_row(),
        *(write_row(size, 5 if size > 10**7 else 9) for size in sizes),
    ]


def fit_row(quick: bool) -> dict[str, Any]:
    """`fit` with a commit every 100 steps against the same `fit` without."""
    rng = np.random.RandomState(0)
    count = 128 * (150 if quick else 469)
    x = rng.randint(0, 256, (count, 28, 28), dtype=np.uint8)
    batches = Batches(x, rng.randint(0, 10, count).astype(np.uint8))
    model = network()
    with tempfile.TemporaryDirectory() as folder:

        def fit(*callbacks: keras.callbacks.Callback) -> None:
            model.fit(batches, epochs=2, verbose=0, callbacks=list(callbacks))

        def resumed() -> None:
            # A directory of its own each time, or the run would be finished.
            directory = os.path.join(folder, str(time.perf_counter_ns()))
            fit(ExactResume(directory, every=100, verbose=0))

        contestants = {"a commit every 100 steps": resumed, "no commits": fit}
        times = interleave(contestants, 5 if quick else 9)
    return row(
        "fit with ExactResume, a commit every 100 steps",
        times,
        "a commit every 100 steps",
        "no commits",
        target="at most 1.10",
    )


def copy_row() -> dict[str, Any]:
    """What the training waits for at a commit: the copy of its state."""
    model = network()
    model.optimizer.build(model.trainable_variables)
    times = [1e3 * seconds(lambda: snapshot(model, metrics=True)) for _ in range(21)]
    low, _, high = statistics.quantiles(times, n=4)
    size = sum(array.nbytes for array in snapshot(model, metrics=True)[1].values())
    return {
        "name": "state copied for a commit: what training waits for",
        "ratio": statistics.median(times),
        "spread": [low, high],
        "unit": "ms",
        "detail": f"244,522 weights with their slots: {size / 1e6:.1f} MB",
        "target": "milliseconds",
    }


def start_row() -> dict[str, Any]:
    """What a start spends on describing the program, all bytes of the data too."""
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (60_000, 28, 28), dtype=np.uint8)
    batches = Batches(x, rng.randint(0, 10, len(x)).astype(np.uint8))
    model = network()
    model.fit(batches, verbose=0)

    def describe() -> None:
        held = held_by(model)
        describe_model(model, held)
        batches.describe()

    def epoch() -> None:
        model.fit(batches, verbose=0)

    times = interleave({"description": describe, "an epoch": epoch}, 5)
    name = "describing the program at a start, the tutorials' network"
    return row(name, times, "description", "an epoch")


def description_row() -> dict[str, Any]:
    """The same for a network of many layers, and no data."""
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    times = [
        1e3 * seconds(lambda: describe_model(model, held_by(model))) for _ in range(9)
    ]
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "name": "describing the program at a start, ResNet50",
        "ratio": statistics.median(times),
        "spread": [low, high],
        "unit": "ms",
        "detail": f"{len(model.layers)} layers, {model.count_params():,} weights, "
        "no data",
        "target": "",
    }


def write_row(weights: int, rounds: int) -> dict[str, Any]:
    """A commit of so many float32 weights against the same bytes, bare."""
    arrays = {f"variable/{i}/0": np.ones(weights // 8, np.float32) for i in range(8)}
    payload = memoryview(np.ones(weights, np.float32)).cast("B")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def commit() -> None:
            write_commit(folder / "commit-00000001.npz", Meta(), arrays)

        def bare() -> None:
            with open(folder / "bare", "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())

        times = interleave({"commit": commit, "a bare write and fsync": bare}, rounds)
        read = seconds(lambda: read_commit(folder / "commit-00000001.npz"))
    made = row(
        f"writing a commit of {weights:,} weights",
        times,
        "commit",
        "a bare write and fsync",
    )
    made["detail"] += f", read and checked again {number(1e3 * read)} ms"
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    print("\n".join(map(json.dumps, rows(parser.parse_args().quick))))
