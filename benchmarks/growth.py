"""How the time of `fit` grows with batch size, width, depth (weights), and data.

    python -m benchmarks.growth [--quick]

Each row doubles or quadruples one thing and keeps the rest: a network of two equal
hidden layers on Batches with fit_settings. The ratio says how many times longer the
run takes; what a proportional cost would give stands in the target column.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import keras

from benchmarks._measure import interleave, row
from benchmarks.training import images, loss
from fmkit.data import Batches
from fmkit.performance import fit_settings


def run(
    *, samples: int, batch: int = 128, width: int = 128, layers: int = 2
) -> Callable[[], Any]:
    """Return one epoch of training with these sizes."""
    hidden = [keras.layers.Dense(width, "relu") for _ in range(layers)]
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            *hidden,
            keras.layers.Dense(10),
        ]
    )
    # Whole batches: no second compilation for a smaller one.
    batches = Batches(*images(samples), batch, drop_remainder=True)
    settings = fit_settings(model, batches, epochs=10)
    # The same for all: what is measured here is growth, not the choice.
    given = {**settings.compile, "jit_compile": "auto"}
    model.compile(keras.optimizers.Adam(1e-3), loss(), **given)
    return lambda: model.fit(**settings.fit, verbose=0)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each neighbouring pair of sizes."""
    base = 8_192 if quick else 16_384
    cases: dict[str, list[tuple[int, dict[str, int], str]]] = {
        "{:,} samples": [
            (n, {"samples": n}, "4 in proportion") for n in (base, 4 * base)
        ],
        "batch size {:,}": [
            (b, {"samples": base, "batch": b}, "at most 1: fewer steps")
            for b in (32, 128, 512)
        ],
        "width {:,}": [
            (w, {"samples": base, "width": w}, "4 to 16 in proportion")
            for w in (64, 256, 1024)[: 2 if quick else 3]
        ],
        "depth {:,}": [
            (n, {"samples": base, "layers": n}, "at most 4") for n in (1, 4)
        ],
    }
    found = []
    for what, sizes in cases.items():
        ways = {what.format(size): run(**given) for size, given, _ in sizes}
        times = interleave(ways, 3 if quick else 5)
        for (smaller, larger), (_, _, target) in zip(
            itertools.pairwise(ways), sizes[1:], strict=True
        ):
            name = f"epoch with {larger} instead of {smaller}"
            found.append(row(name, times, larger, smaller, target=target))
    return found


if __name__ == "__main__":
    print("\n".join(map(json.dumps, rows("--quick" in sys.argv))))
