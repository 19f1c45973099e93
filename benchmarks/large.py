"""How step, swap and commit grow with the number of weights, up to 100 million.

Run it alone with `python -m benchmarks.large [--quick] [--weights N]`. A model of 10^8
weights takes about 3 GB here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks._measure import interleave, number, row, seconds
from fmkit._commits import Meta, write_commit
from fmkit.callbacks._resume._training_state import snapshot
from fmkit.optimizers import ExponentialMovingAverage, averaged

INPUTS = 1000


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure models of 10^5 to 10^8 weights (to 10^6 with `quick`)."""
    sizes = [10**5, 10**6] if quick else [10**6, 10**7, 10**8]
    return [each for size in sizes for each in rows_of(size)]


def model_of(weights: int, average: bool) -> keras.Model:
    units = weights // INPUTS
    dense = keras.layers.Dense(units, use_bias=False)
    model = keras.Sequential([keras.Input((INPUTS,)), dense])
    inner = keras.optimizers.SGD(1e-3)
    optimizer = ExponentialMovingAverage(inner) if average else inner
    jit = False if keras.backend.backend() == "torch" else "auto"
    model.compile(optimizer, "mse", jit_compile=jit)
    return model


def rows_of(weights: int) -> list[dict[str, Any]]:
    rounds = 5 if weights < 10**8 else 3
    x = np.ones((8, INPUTS), np.float32)
    y = np.ones((8, weights // INPUTS), np.float32)
    model, others = model_of(weights, average=True), [model_of(weights, average=False)]

    def swap() -> None:
        with averaged(model):
            pass

    ways = {
        "with averages": lambda: model.train_on_batch(x, y),
        "without averages": lambda: others[0].train_on_batch(x, y),
    }
    times = interleave(ways, rounds)
    name = f"training step with averages, {weights:,} weights"
    step = row(name, times, "with averages", "without averages")
    others.clear()  # its memory is needed
    per_weight = {"spread": None, "target": "", "unit": "ns per weight"}
    swapped = statistics.median(seconds(swap) for _ in range(rounds))
    copied = statistics.median(
        seconds(lambda: snapshot(model, metrics=True)) for _ in range(rounds)
    )
    arrays = snapshot(model, metrics=True)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "commit-00000001.npz")
        written = seconds(lambda: write_commit(path, Meta(), arrays))
    costs = {
        "averages swapped in and out": swapped,
        "state copied for a commit": copied,
    }
    costs["commit written and flushed"] = written
    return [step] + [
        {
            "name": f"{name}, {weights:,} weights",
            "ratio": 1e9 * cost / weights,
            "detail": f"{number(1e3 * cost)} ms",
            **per_weight,
        }
        for name, cost in costs.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--weights", type=int)
    options = parser.parse_args()
    found = rows_of(options.weights) if options.weights else rows(options.quick)
    print("\n".join(map(json.dumps, found)))
