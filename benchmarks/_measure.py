"""How everything here is measured: in turn, in one process, as ratios.

Contestants run A B A B ..., so that a machine that slows down slows both. What is
reported is the median of the ratios of neighbouring runs, with the quartiles of those
ratios as their spread. Absolute times are shown for the size of things only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")


def seconds(run: Callable[[], Any]) -> float:
    """Time one call by the wall clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of one run by the wall clock, and of all cores together."""

    wall: float
    cpu: float


def cost(run: Callable[[], Any]) -> Cost:
    """Time one call by the wall clock and by the processor time of this process."""
    before = os.times()
    wall = seconds(run)
    after = os.times()
    return Cost(wall, after.user + after.system - before.user - before.system)


# Seconds that one module may take on one backend; convolutions on JAX take longest.
LONGEST = 1800


def in_backend(module: str, backend: str, quick: bool) -> list[dict[str, Any]]:
    """Run `python -m module --here` on a backend of Keras; return the rows it prints.

    A backend that is not installed, or a run that fails, is a row that says so.
    """
    command = [sys.executable, "-m", module, "--here", *(["--quick"] * quick)]
    name = f"{module.rpartition('.')[2]} on {backend}"
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        return [not_run(name, f"took longer than {LONGEST} s")]
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [not_run(name, why)]
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def on_each_backend(module: str, quick: bool) -> list[dict[str, Any]]:
    """Measure a module on each backend, or with `quick` on this one, in a process."""
    wanted = backends(quick)
    return [row for backend in wanted for row in in_backend(module, backend, quick)]


def backends(quick: bool) -> list[str]:
    """Return what to measure on: with `quick` the backend of this process only."""
    return [keras.backend.backend()] if quick else list(BACKENDS)


def print_rows(module: str, here: Callable[[bool], list[dict[str, Any]]]) -> None:
    """Be the program behind `python -m module [--quick] [--here]`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--here", action="store_true", help="only this KERAS_BACKEND")
    given = parser.parse_args()
    rows = here(given.quick) if given.here else on_each_backend(module, given.quick)
    print("\n".join(map(json.dumps, rows)))


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a page, in the place of what stood there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{page} lacks the marks {begin} and {end}.")
    whole = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    page.write_text(whole, encoding="utf-8", newline="\n")


def number(value: float) -> str:
    """Write three digits of a number, and never an exponent: 1260, not 1.26e+03."""
    return np.format_float_positional(float(f"{value:.3g}"), trim="-")


def not_run(name: str, why: str) -> dict[str, Any]:
    """Return the row of something that could not be measured, with the reason."""
    empty = {"ratio": None, "spread": None, "unit": "", "target": ""}
    return {"name": name, "detail": f"not run: {why}", **empty}


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
            f"{k} {number(1e3 * statistics.median(v))} ms" for k, v in times.items()
        ),
        "target": target,
    }


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    versions = {"python": platform.python_version(), "keras": keras.__version__}
    versions["numpy"] = np.__version__
    backend = keras.backend.backend()
    versions[backend] = importlib.import_module(backend).__version__
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": str(os.cpu_count()),
        "backend": backend,
        **versions,
    }
