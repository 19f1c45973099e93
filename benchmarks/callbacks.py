"""What ten stopping callbacks, a `Fingerprint` and a `LivePlot` add to `fit`.

Run it alone with `python -m benchmarks.callbacks [--quick] [--live]`; with `--live` it
measures `LivePlot` only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks._measure import Cost, cost, interleave, row
from fmkit import models
from fmkit.callbacks import Fingerprint, LivePlot, ThresholdStopping
from fmkit.data import Batches
from fmkit.datasets import fashion_mnist

BATCH = 128
TARGET = "at most 1.03"


def _model() -> keras.Model:
    """The tutorials' network."""
    layers = [keras.layers.Dense(units, "relu") for units in (256, 128, 64, 32)]
    model = keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _ten(every: str | int) -> list[ThresholdStopping]:
    """Ten callbacks that check and never stop."""
    return [
        ThresholdStopping("loss", -1.0 - i, every=every, name=f"never_{i}")
        for i in range(10)
    ]


class Timed(LivePlot):
    """A `LivePlot` that knows what it took."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.costs: list[Cost] = []
        self.drawings = 0

    def _timed(self, hook: Any, *given: Any) -> None:
        self.costs.append(cost(lambda: hook(*given)))

    def share_of(self, fit: Cost, kind: str) -> float:
        """Return which part of the seconds of `fit` were the callback's."""
        return sum(getattr(each, kind) for each in self.costs) / getattr(fit, kind)

    def on_train_begin(self, logs: Any = None) -> None:
        self._timed(super().on_train_begin, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._timed(super().on_epoch_end, epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._timed(super().on_train_end, logs)

    def _draw(self, names: list[str]) -> None:
        self.drawings += 1
        super()._draw(names)


def live(quick: bool = False) -> list[dict[str, Any]]:
    """Measure which part of a `fit` of 100 epochs a `LivePlot` takes."""
    (x, y), _ = fashion_mnist.load_sample()
    train, validation = Batches(x[:-600], y[:-600], 128), Batches(x[-600:], y[-600:])
    model = models.mlp()
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    def fit(epochs: int, plot: LivePlot) -> None:
        given = {"validation_data": validation, "verbose": 0, "callbacks": [plot]}
        model.fit(train, epochs=epochs, **given)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "curves.png")
        fit(2, LivePlot(file))  # compiles, and loads matplotlib
        plots = [Timed(file) for _ in range(1 if quick else 5)]
        costs = [cost(lambda plot=plot: fit(100, plot)) for plot in plots]
    detail = (
        f"{statistics.median(each.wall for each in costs):.0f} s and "
        f"{statistics.median(plot.drawings for plot in plots):.0f} drawings in each of "
        f"{len(plots)} fits; instead of quartiles the least and the most"
    )
    found = []
    for kind, name in (("wall", ""), ("cpu", ", cpu of all cores")):
        pairs = zip(plots, costs, strict=True)
        shares = [plot.share_of(each, kind) for plot, each in pairs]
        found.append(
            {
                "name": f"LivePlot in a fit of 100 epochs of the sample{name}",
                "ratio": statistics.median(shares),
                "spread": [min(shares), max(shares)],
                "unit": "share of the seconds of fit",
                "detail": detail,
                "target": "at most 0.02",
            }
        )
    return found


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure one epoch of `fit` with and without ten callbacks."""
    steps, rounds = (100, 3) if quick else (300, 15)
    rng = np.random.default_rng(0)
    x = rng.random((steps * BATCH, 784), dtype="float32")
    y = rng.integers(0, 10, steps * BATCH).astype("int32")
    model = _model()

    def epoch(callbacks: list[keras.callbacks.Callback]) -> None:
        model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=callbacks)

    by_epoch, by_batch = _ten("epoch"), _ten(1)
    folder = tempfile.TemporaryDirectory()
    each, hundredth = (
        Fingerprint(Path(folder.name, f"{every}.jsonl"), every) for every in (1, 100)
    )
    contestants = {
        "Fingerprint(every=1)": lambda: epoch([each]),
        "Fingerprint(every=100)": lambda: epoch([hundredth]),
        "ten that check every batch": lambda: epoch(list(by_batch)),
        "ten callbacks": lambda: epoch(list(by_epoch)),
        # Beside "ten callbacks" in either direction; the second shows the noise.
        "no callbacks": lambda: epoch([]),
        "no callbacks again": lambda: epoch([]),
    }
    with folder:
        times = interleave(contestants, rounds, warm_up=2)
    detail = (
        f"{steps} steps of {BATCH} rows through 784-256-128-64-32-10, {rounds} pairs"
    )
    return [
        row(
            "fit with ten ThresholdStopping that check every epoch",
            times,
            "ten callbacks",
            "no callbacks",
            target=TARGET,
            detail=detail,
        ),
        row(
            "fit with ten ThresholdStopping that check every batch",
            times,
            "ten that check every batch",
            "no callbacks",
            detail=detail,
        ),
        *(
            row(
                f"fit with Fingerprint(every={every})",
                times,
                f"Fingerprint(every={every})",
                "no callbacks",
                detail=detail,
            )
            for every in (1, 100)
        ),
        row(
            "fit without callbacks, measured twice: the noise",
            times,
            "no callbacks again",
            "no callbacks",
            detail=detail,
        ),
        *live(quick),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callbacks")
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds")
    parser.add_argument("--live", action="store_true", help="only LivePlot")
    given = parser.parse_args()
    for result in (live if given.live else rows)(given.quick):
        low, high = result["spread"]
        print(
            f"{result['name']}: {result['ratio']:.3f} ({low:.3f} to {high:.3f}), "
            f"target {result['target'] or 'none'}; {result['detail']}"
        )
