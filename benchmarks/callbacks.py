"""What ten stopping callbacks, and a `Fingerprint`, add to the steps of `fit`.

Run it alone with `python -m benchmarks.callbacks [--quick]`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks._measure import interleave, row
from fmkit.callbacks import Fingerprint, ThresholdStopping

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
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callbacks")
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds")
    for result in rows(parser.parse_args().quick):
        low, high = result["spread"]
        print(
            f"{result['name']}: {result['ratio']:.3f} ({low:.3f} to {high:.3f}), "
            f"target {result['target'] or 'none'}; {result['detail']}"
        )
