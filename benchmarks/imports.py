"""What `import fmkit` adds to `import keras`, and a second start on JAX.

Each in fresh processes. The start is that of the network of `benchmarks.training`:
made, compiled, trained for 50 steps and evaluated, less the time of the same once more.

python -m benchmarks.imports [--quick]
"""

from __future__ import annotations

import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fmkit
from benchmarks._measure import backends, not_run, row

# Both in one process: the difference of two processes of seconds would drown in noise.
PROGRAM = """
import time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import fmkit
print(middle - start, time.perf_counter() - start)
"""

START = """
import sys, time
import keras, numpy as np
import fmkit
from benchmarks.training import BATCH, RATE, loss, network
from fmkit.data import Batches
from fmkit.performance import FusedModel, fit_settings, keep_compiled_programs

def train():
    model.fit(batches, verbose=0)
    model.evaluate(batches, verbose=0)

start = time.perf_counter()
if sys.argv[1:]:
    keep_compiled_programs(sys.argv[1])
plain = network()
model = FusedModel(plain.inputs, plain.outputs)
rows = 50 * BATCH
batches = Batches(np.zeros((rows, 28, 28), "uint8"), np.zeros(rows, "uint8"), BATCH)
settings = fit_settings(model, batches)
adam = keras.optimizers.Adam(RATE)
model.compile(adam, loss(), metrics=["accuracy"], **settings.compile)
train()
middle = time.perf_counter()
train()
print(2 * middle - start - time.perf_counter())
"""


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each backend."""
    # pip compiles what it installs, Keras too; a checkout may run without bytecode
    # (PYTHONDONTWRITEBYTECODE), and would be compiled anew in every process.
    compileall.compile_dir(Path(fmkit.__file__).parent, quiet=1)
    rounds, measured = 1 if quick else 3, backends(quick)
    found = [import_row(backend, rounds) for backend in measured]
    return found + [start_row(rounds)] * ("jax" in measured)


def import_row(backend: str, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {"import keras": [], "import fmkit": []}
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return not_run(f"import fmkit on {backend}", done.stderr.splitlines()[-1])
        for name, found in zip(times, done.stdout.split()[-2:], strict=True):
            times[name].append(float(found))
    entry = row(f"import fmkit on {backend}", times, "import fmkit", "import keras")
    pairs = zip(times["import fmkit"], times["import keras"], strict=True)
    more = statistics.median(ours - theirs for ours, theirs in pairs)
    entry["target"] = "at most 50 ms more"
    entry["detail"] += f": {1e3 * more:.0f} ms more"
    return entry


def start_row(rounds: int) -> dict[str, Any]:
    """Measure starts that compile, and starts that find what an earlier one did."""
    name = "second start, keep_compiled_programs, jax"
    times: dict[str, list[float]] = {"kept": [], "compiled": []}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(rounds + 1):
            for way, arguments in (("kept", [folder]), ("compiled", [])):
                done = subprocess.run(
                    [sys.executable, "-c", START, *arguments],
                    env=os.environ | {"KERAS_BACKEND": "jax"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    return not_run(name, done.stderr.splitlines()[-1])
                if round_:  # the first one fills the folder
                    times[way].append(float(done.stdout.split()[-1]))
    return row(name, times, "kept", "compiled", target="at most 0.5")


if __name__ == "__main__":
    print("\n".join(map(json.dumps, rows("--quick" in sys.argv))))
