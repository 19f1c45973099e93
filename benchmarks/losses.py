"""What a training step costs with each loss, against Keras's nearest built-in.

`python -m benchmarks.losses [--quick]` prints the rows, with `--quick` those of every
second loss. Each pair trains the same network on the same data, compiled (XLA on
TensorFlow and JAX), in turn in one process; the ratio is the median over neighbouring
runs. The rows for 100,000 classes take the step of the loss alone (value and gradient
in the logits): once its time, and once its peak memory, in a fresh process each,
counted in arrays of logits' size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import fmkit
from benchmarks._measure import interleave, row
from fmkit import losses

CLASSES, FEATURES, BATCH = 10, 784, 128
MANY, ROWS = 100_000, 128
TARGET = "at most 1.05"
OURS, THEIRS = "fmkit", "Keras's nearest loss"
K = keras.losses


def contestants() -> dict[str, tuple[Any, Any, str, bool]]:
    """Return for each row: our loss, Keras's, the kind of target, softmax at theirs."""
    return {
        "CrossentropyFromLogits, integer labels": (
            losses.CrossentropyFromLogits(),
            K.SparseCategoricalCrossentropy(from_logits=True),
            "labels",
            False,
        ),
        "CrossentropyFromLogits, one-hot targets": (
            losses.CrossentropyFromLogits(),
            K.CategoricalCrossentropy(from_logits=True),
            "one_hot",
            False,
        ),
        "MeanSquaredErrorFromLogits": (
            losses.MeanSquaredErrorFromLogits(),
            K.MeanSquaredError(),
            "one_hot",
            False,
        ),
        "MeanSquaredErrorFromLogits, softmax": (
            losses.MeanSquaredErrorFromLogits(activation="softmax"),
            K.MeanSquaredError(),
            "one_hot",
            True,
        ),
        "KLDivergenceFromLogits": (
            losses.KLDivergenceFromLogits(),
            K.KLDivergence(),
            "one_hot",
            True,
        ),
        "BinaryCrossentropyFromLogits": (
            losses.BinaryCrossentropyFromLogits(),
            K.BinaryCrossentropy(from_logits=True),
            "one_hot",
            False,
        ),
        "BinaryFocalCrossentropyFromLogits": (
            losses.BinaryFocalCrossentropyFromLogits(),
            K.BinaryFocalCrossentropy(from_logits=True),
            "one_hot",
            False,
        ),
        "AsymmetricLossFromLogits": (
            losses.AsymmetricLossFromLogits(),
            K.BinaryFocalCrossentropy(from_logits=True),
            "one_hot",
            False,
        ),
        "BinaryKLDivergenceFromLogits": (
            losses.BinaryKLDivergenceFromLogits(),
            K.BinaryCrossentropy(from_logits=True),
            "one_hot",
            False,
        ),
        # Keras has no entropy loss: its KLDivergence is the nearest sum of p log p.
        "ConfidencePenalty": (
            losses.ConfidencePenalty(),
            K.KLDivergence(),
            "one_hot",
            True,
        ),
        "AsymmetricError": (
            losses.AsymmetricError(under=9.0),
            K.MeanAbsoluteError(),
            "one_hot",
            False,
        ),
        "Pinball": (
            losses.Pinball(quantiles=0.9),
            K.MeanAbsoluteError(),
            "one_hot",
            False,
        ),
    }


def epoch(loss: Any, target: str, softmax: bool, steps: int) -> Callable[[], Any]:
    """Return a call that trains for one epoch of `steps` steps."""
    rng = np.random.default_rng(0)
    x = rng.random((BATCH * steps, FEATURES), "float32")
    y = rng.integers(0, CLASSES, BATCH * steps)
    if target == "one_hot":
        y = np.eye(CLASSES, dtype="float32")[y]
    fmkit.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((FEATURES,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax" if softmax else None),
        ]
    )
    compiled = keras.backend.backend() != "torch"
    model.compile(
        "sgd", loss, jit_compile=compiled, steps_per_execution=steps if compiled else 1
    )
    return lambda: model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False)


def value_and_gradient(loss: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    """Return a compiled call: the mean loss over many classes, and its gradient."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((ROWS, MANY), "float32")
    y = rng.integers(0, MANY, ROWS).astype("int32")
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        step = jax.jit(jax.value_and_grad(lambda z, y: loss(y, z)))
        z, y = jax.device_put(z), jax.device_put(y)
        return lambda: jax.block_until_ready(step(z, y))
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True, autograph=False)
        def taped(z, y):
            with tf.GradientTape() as tape:
                tape.watch(z)
                value = loss(y, z)
            return value, tape.gradient(value, z)

        z, y = tf.constant(z), tf.constant(y)
        return lambda: float(taped(z, y)[0])
    import torch

    z, y = torch.tensor(z, requires_grad=True), torch.tensor(y)
    return lambda: torch.autograd.grad(loss(y, z), z)


def over_many_classes() -> dict[str, Any]:
    return {
        OURS: losses.CrossentropyFromLogits(),
        THEIRS: K.SparseCategoricalCrossentropy(from_logits=True),
    }


def peak_in_arrays(which: str) -> float:
    """Return the peak memory of two steps beyond the logits, in arrays of their size.

    Must run in a process of its own: the kernel keeps one high-water mark.
    """
    run = value_and_gradient(over_many_classes()[which])
    before = _status("VmRSS")
    run()
    run()
    return (_status("VmHWM") - before) / (4 * ROWS * MANY)


def _status(field: str) -> int:
    """Return a size of this process in bytes, as Linux reports it.

    Not `ru_maxrss`: a child starts with the mark of the parent that forked it.
    """
    with open("/proc/self/status") as file:
        return next(
            1024 * int(line.split()[1]) for line in file if line.startswith(field)
        )


def memory_row() -> dict[str, Any]:
    peaks = {}
    for which in over_many_classes():
        command = [sys.executable, "-m", "benchmarks.losses", "--peak", which]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[which] = float(output.stdout.split()[-1])
    return {
        "name": f"CrossentropyFromLogits, {MANY:,} classes: peak memory",
        "ratio": peaks[OURS] / peaks[THEIRS],
        "spread": None,
        "unit": f"peak of {OURS} / peak of {THEIRS}",
        "detail": ", ".join(
            f"{k} {v:.2f} arrays of the logits' size" for k, v in peaks.items()
        ),
        "target": "no more arrays than Keras",
    }


def rows(quick: bool) -> list[dict[str, Any]]:
    """Measure everything; see the top of the file."""
    steps, rounds = (10, 3) if quick else (100, 25)
    table = []
    # What takes its time is compiling each pair: --quick takes every second one.
    chosen = list(contestants().items())[:: 2 if quick else 1]
    for name, (ours, theirs, target, softmax) in chosen:
        pair = {
            OURS: epoch(ours, target, False, steps),
            THEIRS: epoch(theirs, target, softmax, steps),
        }
        times = interleave(pair, rounds, warm_up=1 if quick else 2)
        table.append(row(name, times, OURS, THEIRS, target=TARGET))
    pair = {k: value_and_gradient(v) for k, v in over_many_classes().items()}
    times = interleave(pair, rounds, warm_up=1 if quick else 2)
    name = f"CrossentropyFromLogits, {MANY:,} classes: the loss alone"
    table.append(row(name, times, OURS, THEIRS))
    if os.path.exists("/proc/self/status"):
        table.append(memory_row())
    backend = keras.backend.backend()
    return [{**each, "name": f"{each['name']}, {backend}"} for each in table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds")
    parser.add_argument("--peak", choices=[OURS, THEIRS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_in_arrays(arguments.peak))
        return
    for entry in rows(arguments.quick):
        spread = entry["spread"]
        between = f" [{spread[0]:.3f}, {spread[1]:.3f}]" if spread else ""
        print(f"{entry['name']}: {entry['ratio']:.3f}{between} ({entry['detail']})")


if __name__ == "__main__":
    main()
