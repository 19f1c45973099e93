"""What `import fmkit` adds to `import keras`, in fresh processes.

python -m benchmarks.imports [--quick]
"""

from __future__ import annotations

import compileall
import json
import os
import statistics
import subprocess
import sys
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


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each backend."""
    # pip compiles what it installs, Keras too; a checkout may run without bytecode
    # (PYTHONDONTWRITEBYTECODE), and would be compiled anew in every process.
    compileall.compile_dir(Path(fmkit.__file__).parent, quiet=1)
    return [import_row(backend, 1 if quick else 3) for backend in backends(quick)]


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


if __name__ == "__main__":
    print("\n".join(map(json.dumps, rows("--quick" in sys.argv))))
