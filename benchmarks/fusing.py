"""Where fusing stops paying: one step as it grows, and convolutional networks.

    python -m benchmarks.fusing [--quick]

A `FusedModel` with the settings of `fit_settings` on `Batches`, against a `keras.Model`
with Keras's defaults and `fit(x, y)`. An epoch is of 100 steps, of 20 with convolutions
(4 on JAX), and is not the first of its `fit`. From two hidden layers of 128 units,
batches of 128 and the steps in one program that `fit_settings` chooses, one thing at a
time is made smaller or larger. The hand-written loop around a convolutional network
calls the same layers and nothing of `fit`. The profile counts the calls of Python in a
step, and says which packages they are of and what share of the time they take.
"""

from __future__ import annotations

import cProfile
import pstats
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks._measure import interleave, number, on_each_backend, print_rows, row
from benchmarks.training import BATCH, FUSED, RATE, images, loss
from fmkit import models
from fmkit.data import Batches
from fmkit.performance import fit_settings, fused

FIT, SETTINGS, HAND = "fit(x, y)", "fit_settings", "a loop by hand"
SIZES = {
    "width": (16, 64, 256, 1024),
    "depth": (1, 2, 4, 8, 16),
    "batch": (8, 32, 128, 512),
    "steps in one program": (1, 4, 20, 100),
}
# Two epochs in one `fit`: what a `fit` takes to begin is not the subject.
EPOCHS = 2

Run = Callable[[], Any]


def by_fit(model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int) -> Run:
    pixels, labels = x.astype("float32") / 255, y.astype("int32")
    model.compile(keras.optimizers.Adam(RATE), loss())
    return lambda: model.fit(pixels, labels, batch_size=batch, epochs=EPOCHS, verbose=0)


def by_settings(
    model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int, **own: Any
) -> Run:
    batches = Batches(x, y, batch)
    settings = fit_settings(model, batches, epochs=50)
    model.compile(keras.optimizers.Adam(RATE), loss(), **settings.compile | own)
    return lambda: model.fit(**settings.fit, epochs=EPOCHS, verbose=0)


def by_fused(
    model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int, **own: Any
) -> Run:
    return by_settings(fused(model), x, y, batch, **own)


def by_hand(model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int) -> Run:
    """A loop around the layers of a model; returns the loss of its last epoch."""
    step = STEPS[keras.backend.backend()](model)
    pixels, labels = x.astype("float32") / 255, y.astype("int32")

    def epochs() -> float:
        rng = np.random.RandomState(0)
        for _ in range(EPOCHS):
            order, total = rng.permutation(len(x)), 0.0
            for first in range(0, len(x), batch):
                places = order[first : first + batch]
                total = total + step(pixels[places], labels[places]) * len(places)
            loss_of_epoch = float(total) / len(x)
        return loss_of_epoch

    return epochs


def step_of_tensorflow(model: keras.Model) -> Callable[[Any, Any], Any]:
    import tensorflow as tf

    optimizer, criterion = keras.optimizers.Adam(RATE), loss()
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = criterion(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables))
        return value

    return lambda x, y: step(tf.constant(x), tf.constant(y))


def step_of_jax(model: keras.Model) -> Callable[[Any, Any], Any]:
    import jax

    optimizer, criterion = keras.optimizers.Adam(RATE), loss()
    optimizer.build(model.trainable_variables)
    kept = [
        [jax.numpy.array(each.value) for each in group]
        for group in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    ]

    def objective(weights: Any, others: Any, x: Any, y: Any) -> Any:
        outputs, others = model.stateless_call(weights, others, x, training=True)
        return criterion(y, outputs), others

    @jax.jit
    def step(state: Any, x: Any, y: Any) -> Any:
        weights, others, own = state
        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, others), found = gradient(weights, others, x, y)
        weights, own = optimizer.stateless_apply(own, found, weights)
        return value, [weights, others, own]

    def run(x: Any, y: Any) -> Any:
        value, kept[:] = step(kept, x, y)
        return value

    return run


def step_of_torch(model: keras.Model) -> Callable[[Any, Any], Any]:
    import torch
    from torch.nn import functional

    weights = [each.value for each in model.trainable_variables]
    optimizer = torch.optim.Adam(weights, RATE, eps=1e-7, fused=True)

    def step(x: Any, y: Any) -> Any:
        outputs = model(torch.from_numpy(x), training=True)
        value = functional.cross_entropy(outputs, torch.from_numpy(y).long())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


STEPS = {
    "tensorflow": step_of_tensorflow,
    "jax": step_of_jax,
    "torch": step_of_torch,
}


def dense(what: str, size: int, steps: int) -> dict[str, Run]:
    """Return both contestants with one thing of another size."""
    width = size if what == "width" else 128
    depth = size if what == "depth" else 2
    batch = size if what == "batch" else BATCH
    own = {"steps_per_execution": size} if what == "steps in one program" else {}
    x, y = images(steps * batch)
    made = [models.mlp((width,) * depth, input_shape=(28, 28)) for _ in range(2)]
    return {
        FUSED: by_fused(made[0], x, y, batch, **own),
        FIT: by_fit(made[1], x, y, batch),
    }


def growth_rows(quick: bool) -> list[dict[str, Any]]:
    """Return a row for each size; the picture is drawn from its last three fields."""
    backend, steps = keras.backend.backend(), 20 if quick else 100
    found = []
    for what, sizes in SIZES.items():
        if backend == "torch" and what == "steps in one program":
            continue  # Keras refuses more than one
        for size in sizes[:1] if quick else sizes:
            times = interleave(dense(what, size, steps), 2 if quick else 5)
            each = {
                name: [second / steps / EPOCHS for second in of_one]
                for name, of_one in times.items()
            }
            one = row(f"a step at {what} {size}, {backend}", each, FUSED, FIT)
            found.append({**one, "what": what, "size": size, "backend": backend})
    return found


def convolutional_rows(quick: bool) -> list[dict[str, Any]]:
    """Return rows for two convolutional networks against `fit(x, y)` and by hand."""
    backend = keras.backend.backend()
    # On a CPU, XLA takes seconds for a step of a residual network.
    steps = 4 if quick or backend == "jax" else 20
    pixels, y = images(steps * BATCH)
    x = pixels[..., None]
    found = []
    for make in (models.simple_cnn, models.small_resnet)[: 1 if quick else 2]:
        ways = {FUSED: by_fused, SETTINGS: by_settings, FIT: by_fit, HAND: by_hand}
        times = interleave(
            {
                name: way(make(input_shape=(28, 28, 1)), x, y, BATCH)
                for name, way in ways.items()
            },
            2 if quick else 5,
        )
        for ours, theirs in ((FUSED, FIT), (SETTINGS, FIT), (FUSED, HAND)):
            name = f"{make.__name__}, {ours} against {theirs}, {backend}"
            found.append(row(name, times, ours, theirs))
    return found


def profile_of(run: Run, steps: int) -> tuple[float, str]:
    """Return the calls of Python in a step, and the packages that take the time."""
    run()
    with cProfile.Profile() as profile:
        run()
    calls, seconds = 0, Counter[str]()
    # What is written in C has no file: its time is its caller's.
    for (file, _, _), (_, count, own, _, callers) in pstats.Stats(
        profile
    ).stats.items():
        if file == "~":
            for (caller, _, _), (*_, spent, _) in callers.items():
                seconds[package(caller)] += spent
        else:
            calls += count
            seconds[package(file)] += own
    whole = sum(seconds.values())
    shares = [f"{name} {each / whole:.0%}" for name, each in seconds.most_common(3)]
    return calls / steps, ", ".join(shares)


def package(file: str) -> str:
    parts = Path(file).parts
    for mark in ("site-packages", "src"):
        if mark in parts[:-1]:
            return parts[parts.index(mark) + 1]
    return "the standard library"


def profile_rows(quick: bool) -> list[dict[str, Any]]:
    """Return a row with the profile of a step, plain and fused."""
    steps = 20 if quick else 100
    calls, detail = {}, []
    for name, run in dense("width", 128, steps).items():
        calls[name], shares = profile_of(run, steps * EPOCHS)
        detail.append(f"{name} {number(calls[name])} calls, time in {shares}")
    name = f"calls of Python in a step, {keras.backend.backend()}"
    one = row(name, {k: [v] for k, v in calls.items()}, FUSED, FIT)
    unit = f"calls of {FUSED} / calls of {FIT}"
    return [{**one, "unit": unit, "detail": "; ".join(detail)}]


def backend_rows(quick: bool) -> list[dict[str, Any]]:
    """Measure on the backend of this process."""
    return [*growth_rows(quick), *convolutional_rows(quick), *profile_rows(quick)]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure on every backend, each in its own process."""
    return on_each_backend("benchmarks.fusing", quick)


if __name__ == "__main__":
    print_rows("benchmarks.fusing", backend_rows)
