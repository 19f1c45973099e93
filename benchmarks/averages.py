"""What averages of the weights cost: by step, by weight, in memory, and to swap.

    python -m benchmarks.averages [--quick]

Contestants take a few training steps each, in turn, in one process for each backend;
XLA is on (on PyTorch the steps are eager).

- The tutorials' network, 784-256-128-64-32-10 in batches of 128: a step with fmkit's
  average, and one with Keras's `use_ema=True`, as multiples of the same step without.
  Target: no more than Keras's.
- A network of 10 million weights: what the average adds to a step, in the same round
  with the same step without, as a multiple of the floor. The floor is a compiled pass
  `a -= c * (a - w)` over as many arrays of the same sizes, and nothing else. It reads
  `a` and `w` and writes `a`. That `w` must be read is part of the floor: the step has
  just written it, but 40 MB do not stay in a cache. The row below it has the stricter
  floor `a *= c`, one read and one write, for comparison. A difference of two times is
  noisy: look at its quartiles. Three averages stand against three such passes.
- Memory: bytes of the variables that the average adds, over those of the weights.
- A swap in and out, over reading and writing every weight twice, once each way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

import fmkit
from benchmarks._measure import (
    interleave,
    number,
    on_each_backend,
    print_rows,
    row,
)
from fmkit import losses, models
from fmkit.optimizers import ExponentialMovingAverage, averaged

DECAY = 0.99
AVERAGE = "ExponentialMovingAverage"
BATCH, LARGE_BATCH = 128, 8
LARGE = (3072, 2432)  # 784-3072-2432-10: 9,908,618 weights


def optimizer(kind: str) -> keras.optimizers.Optimizer:
    """Return plain gradient descent, where an average weighs most, with `kind`."""
    if kind == "Keras":
        return keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=DECAY)
    plain = keras.optimizers.SGD(0.01)
    decays = {"fmkit": DECAY, "three": [0.9, DECAY, 0.999]}
    return ExponentialMovingAverage(plain, decays[kind]) if kind in decays else plain


def network(kind: str, hidden: tuple[int, ...], steps: int = 1) -> keras.Model:
    """Return a compiled network."""
    fmkit.set_random_seed(0)
    model = models.mlp(hidden)
    compiled = keras.backend.backend() != "torch"
    model.compile(
        optimizer(kind),
        losses.CrossentropyFromLogits(),
        jit_compile=compiled,
        steps_per_execution=steps if compiled else 1,
    )
    return model


def training(model: keras.Model, batch: int, steps: int) -> Callable[[], Any]:
    """Return a call that takes `steps` steps on a batch that is there already.

    On TensorFlow it is the function that `fit` calls for each step: `fit` itself would
    add the making of its data pipeline, the same for all contestants.
    """
    rng = np.random.default_rng(0)
    x = ops.convert_to_tensor(rng.random((batch, 28, 28), "float32"))
    y = ops.convert_to_tensor(rng.integers(0, 10, batch).astype("int32"))
    if keras.backend.backend() != "tensorflow":
        return lambda: [model.train_on_batch(x, y) for _ in range(steps)]
    import tensorflow as tf

    model.train_on_batch(x, y)
    model.make_train_function()
    step = model.train_function
    iterator = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    return lambda: float(step(iterator)["loss"])


def floor(shapes: list[Any], reads_weights: bool) -> Callable[[], Any]:
    """Return a compiled pass over arrays of these shapes; see the top of the file."""
    weights = [keras.Variable(np.ones(shape, "float32")) for shape in shapes]
    averages = [keras.Variable(np.ones(shape, "float32")) for shape in shapes]

    def rule(a: Any, w: Any) -> Any:
        return a - 0.01 * (a - w) if reads_weights else a * 0.999

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        both = [[v.value for v in group] for group in (averages, weights)]
        compiled = jax.jit(lambda a, w: list(map(rule, a, w)), donate_argnums=0)

        def run() -> None:
            both[0] = jax.block_until_ready(compiled(*both))

        return run

    def pass_over() -> Any:
        for a, w in zip(averages, weights, strict=True):
            a.assign(rule(a, w))
        return averages[0].value[0, 0]

    if backend == "tensorflow":
        import tensorflow as tf

        compiled_pass = tf.function(pass_over, jit_compile=True, autograph=False)
        return lambda: float(compiled_pass())
    return lambda: float(pass_over())


def small_rows(quick: bool) -> list[dict[str, Any]]:
    """The tutorials' network: with each average over without."""
    rounds, steps = (15, 10) if quick else (300, 10)
    hidden = (256, 128, 64, 32)
    contestants = {
        name: training(network(kind, hidden, steps), BATCH, steps)
        for name, kind in {
            AVERAGE: "fmkit",
            "no averages": "none",
            "use_ema": "Keras",
            "no averages again": "none",
        }.items()
    }
    times = interleave(contestants, rounds, warm_up=3)
    detail = ", ".join(
        f"{name} {1e6 * statistics.median(values) / steps:.0f} µs per step"
        for name, values in times.items()
    )
    step = "step of the tutorials' network"
    return [
        row(f"{step} with {AVERAGE}", times, AVERAGE, "no averages", detail=detail),
        row(f"{step} with use_ema", times, "use_ema", "no averages", detail=detail),
        row(
            f"{step} with {AVERAGE} against use_ema",
            times,
            AVERAGE,
            "use_ema",
            target="at most 1",
            detail=detail,
        ),
        row(
            f"{step} without averages, measured twice: the noise",
            times,
            "no averages again",
            "no averages",
            detail=detail,
        ),
    ]


def large_rows(quick: bool) -> list[dict[str, Any]]:
    """Ten million weights: what the average adds over the floors."""
    rounds, steps = (4, 1) if quick else (60, 2)
    model = network("fmkit", LARGE, steps)
    shapes = [v.shape for v in model.trainable_variables]
    both = "a pass over weights and averages"
    contestants = {
        "with averages": training(model, LARGE_BATCH, steps),
        "without averages": training(network("none", LARGE, steps), LARGE_BATCH, steps),
        "with use_ema": training(network("Keras", LARGE, steps), LARGE_BATCH, steps),
        "with three averages": training(
            network("three", LARGE, steps), LARGE_BATCH, steps
        ),
        both: floor(shapes, True),
        "a pass over the averages only": floor(shapes, False),
    }
    times = interleave(contestants, rounds, warm_up=3)
    thrice = "three such passes"
    times[thrice] = [3 * each for each in times[both]]

    def added(kind: str, over: str, name: str, target: str = "") -> dict[str, Any]:
        added = [
            (a - b) / steps
            for a, b in zip(times[kind], times["without averages"], strict=True)
        ]
        result = row(name, {kind: added, over: times[over]}, kind, over, target=target)
        unit = f"(step {kind} - step without averages) / time of {over}"
        return {**result, "unit": unit}

    weights = f"{model.count_params():,} weights"
    return [
        added("with averages", both, f"{weights}: added by {AVERAGE}", "at most 1.25"),
        added(
            "with averages",
            "a pass over the averages only",
            f"{weights}: added by {AVERAGE}, against the smaller pass",
        ),
        added("with use_ema", both, f"{weights}: added by use_ema"),
        added(
            "with three averages",
            thrice,
            f"{weights}: added by three averages",
            "at most 1.25",
        ),
        row(
            f"{weights}: whole step with {AVERAGE}",
            times,
            "with averages",
            "without averages",
            detail=", ".join(
                f"{name} {number(1e3 * statistics.median(values))} ms"
                for name, values in times.items()
            )
            + f", {steps} steps each, one pass each",
        ),
    ]


def memory_row() -> dict[str, Any]:
    """Count the bytes of the variables that the average adds."""
    with_, without = network("fmkit", LARGE), network("none", LARGE)
    for model in (with_, without):
        model.optimizer.build(model.trainable_variables)
    added = size(with_.optimizer.variables) - size(without.optimizer.variables)
    weights = size(with_.trainable_variables)
    return {
        "name": f"memory that {AVERAGE} adds",
        "ratio": added / weights,
        "spread": None,
        "unit": "bytes added / bytes of the weights",
        "detail": f"{added - weights} bytes, the count of updates, beside one copy of "
        f"{weights:,}",
        "target": "exactly one more copy",
    }


def size(variables: list[Any]) -> int:
    """Return the bytes of the values of `variables`."""
    return sum(
        math.prod(v.shape)
        * np.dtype(v.dtype if v.dtype != "bfloat16" else "int16").itemsize
        for v in variables
    )


def swap_row(quick: bool) -> dict[str, Any]:
    """A swap in and out, over reading and writing every weight twice."""
    model = network("fmkit", LARGE)
    training(model, LARGE_BATCH, 1)()

    def swap() -> None:
        with averaged(model):
            settle([v.value for v in model.trainable_variables])
        settle([v.value for v in model.trainable_variables])

    def copies() -> None:
        for _ in range(2):
            # Not `ops.copy`, which on TensorFlow is an alias.
            settle([ops.negative(v) for v in model.trainable_variables])

    times = interleave(
        {"swapping": swap, "copying every weight twice": copies},
        10 if quick else 60,
        warm_up=2,
    )
    name = f"{model.count_params():,} weights: averages swapped in and out"
    return row(name, times, "swapping", "copying every weight twice")


def settle(arrays: list[Any]) -> None:
    """Wait until the backend, which may work ahead, has computed `arrays`."""
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready(arrays)
    else:
        float(ops.ravel(arrays[-1])[0])


def backend_rows(quick: bool) -> list[dict[str, Any]]:
    """Measure on the backend of this process."""
    found = [*small_rows(quick), *large_rows(quick), memory_row(), swap_row(quick)]
    return [
        {**each, "name": f"{each['name']}, {keras.backend.backend()}"} for each in found
    ]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure on every backend, each in its own process."""
    return on_each_backend("benchmarks.averages", quick)


if __name__ == "__main__":
    print_rows("benchmarks.averages", backend_rows)
