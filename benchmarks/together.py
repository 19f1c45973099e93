"""Everything of fmkit at once against the same `fit` without it.

    python -m benchmarks.together [--quick]

Loss, average, schedule, stop, logger of the rate, and exact resume with one commit an
epoch; against Keras's loss, a constant rate and no callbacks, on the same batches with
the same settings: a `keras.Model`, and a `FusedModel`. The stop never fires. Keras's
own parts of the same purpose run beside it: `use_ema`, its schedule, `EarlyStopping`,
`BackupAndRestore`. Each backend runs in a process of its own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import keras

from benchmarks._measure import cost, on_each_backend, print_rows, row
from benchmarks.training import BATCH, images, loss, network
from fmkit import callbacks, losses, optimizers, schedules
from fmkit.data import Batches
from fmkit.performance import fit_settings, fused

EPOCHS = 3
KERAS, ALL, PLAIN = "Keras's own parts", "everything", "fit with nothing added"
FUSED_ALL, FUSED_PLAIN = "everything, FusedModel", "FusedModel with nothing added"


def extras(folder: Path) -> list[keras.callbacks.Callback]:
    """The callbacks of a careful run; a directory of its own for each run."""
    return [
        callbacks.ThresholdStopping("loss", -1.0),
        callbacks.ExactResume(
            folder / str(time.perf_counter_ns()), every="epoch", verbose=0
        ),
        callbacks.LearningRateLogger(),
    ]


def keras_extras(folder: Path) -> list[keras.callbacks.Callback]:
    """Keras's callbacks of the same purpose."""
    return [
        keras.callbacks.EarlyStopping("loss", patience=1000),
        keras.callbacks.BackupAndRestore(folder / str(time.perf_counter_ns())),
    ]


def contestants(count: int, folder: Path) -> dict[str, Any]:
    """Return ways to train some epochs, with everything and with nothing."""
    x, y = images(count)
    batches = Batches(x, y, BATCH)
    rate = schedules.ExponentialDecay(1e-3, decay_steps=1000, decay_rate=0.96)
    averaged = optimizers.ExponentialMovingAverage(keras.optimizers.Adam(rate), 0.999)
    recipes: dict[str, tuple[Any, Any, Any]] = {
        ALL: (averaged, losses.CrossentropyFromLogits(), extras),
        PLAIN: (keras.optimizers.Adam(1e-3), loss(), lambda folder: []),
    }
    for name, twin in ((ALL, FUSED_ALL), (PLAIN, FUSED_PLAIN)):
        optimizer, criterion, make = recipes[name]
        own = type(optimizer).from_config(optimizer.get_config())
        recipes[twin] = (own, criterion, make)
    if keras.backend.backend() != "jax":  # there a second `fit` with use_ema fails
        theirs = keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(1e-3, 1000, 0.96),
            use_ema=True,
            ema_momentum=0.999,
        )
        recipes[KERAS] = (theirs, loss(), keras_extras)
    ways = {}
    for name, (optimizer, criterion, callbacks_in) in recipes.items():
        model = network()
        if name in (FUSED_ALL, FUSED_PLAIN):
            model = fused(model)
        settings = fit_settings(model, batches, epochs=20)
        model.compile(optimizer, criterion, **settings.compile)

        def train(
            model: Any = model, given: Any = settings, make: Any = callbacks_in
        ) -> None:
            batches.seek(0)
            model.fit(**given.fit, epochs=EPOCHS, verbose=0, callbacks=make(folder))

        ways[name] = train
    return ways


def backend_rows(quick: bool) -> list[dict[str, Any]]:
    """Measure on the backend of this process."""
    count = 6_400 if quick else 60_000
    with tempfile.TemporaryDirectory() as name:
        ways = contestants(count, Path(name))
        if quick:
            ways.pop(KERAS, None)
        costs: dict[str, Any] = {name: [] for name in ways}
        for train in ways.values():
            train()
        slow = keras.backend.backend() == "torch"
        for round_ in range(2 if quick else 4 if slow else 9):
            for way in list(ways)[:: 1 if round_ % 2 == 0 else -1]:
                costs[way].append(cost(ways[way]))
    found = []
    for unit in ("wall", "CPU"):
        where = f"on {keras.backend.backend()}, {unit}"
        times = {
            way: [getattr(one, unit.lower()) for one in of_way]
            for way, of_way in costs.items()
        }
        name = f"everything together {where}"
        found.append(row(name, times, ALL, PLAIN, target="at most 1.10"))
        name = f"everything together {where}, FusedModel"
        found.append(row(name, times, FUSED_ALL, FUSED_PLAIN, target="at most 1.10"))
        if KERAS in times:
            name = f"Keras's own parts together {where}"
            found.append(row(name, times, KERAS, PLAIN))
    return found


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure on every backend, each in its own process."""
    return on_each_backend("benchmarks.together", quick)


if __name__ == "__main__":
    print_rows("benchmarks.together", backend_rows)
