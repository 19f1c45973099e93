"""How everything here is measured: in turn, in one process, as ratios.

Contestants run A B A B ..., so that a machine that slows down slows both. What is
reported is the median of the ratios of neighbouring runs, with the quartiles of those
ratios as their spread. Absolute times are shown for the size of things only.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(run: Callable[[], Any]) -> float:
    """Time one call by the wall clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    contestants: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run every contestant once a round, in turn; return their times in seconds."""
    for _ in range(warm_up):
        for run in contestants.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds):
        # Every second round backwards: no contestant always follows the same one.
        names = list(contestants) if round_ % 2 == 0 else list(contestants)[::-1]
        for name in names:
            times[name].append(seconds(contestants[name]))
    return times


def row(
    name: str,
    times: dict[str, list[float]],
    ours: str,
    theirs: str,
    *,
    target: str = "",
    detail: str = "",
) -> dict[str, Any]:
    """Return a row of the table: how long `ours` takes as a multiple of `theirs`."""
    ratios = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "name": name,
        "ratio": statistics.median(ratios),
        "spread": [low, high],
        "unit": f"time of {ours} / time of {theirs}",
        "detail": detail
        or ", ".join(
            f"{k} {1e3 * statistics.median(v):.3g} ms" for k, v in times.items()
        ),
        "target": target,
    }


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    import os

    import keras
    import numpy as np

    versions = {"python": platform.python_version(), "keras": keras.__version__}
    versions["numpy"] = np.__version__
    backend = keras.backend.backend()
    module = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}[backend]
    versions[module] = __import__(module).__version__
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": str(os.cpu_count()),
        "backend": backend,
        **versions,
    }
