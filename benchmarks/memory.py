"""How much memory `Batches` takes for data on disk that is larger than the memory.

    python -m benchmarks.memory [--quick] [--gigabytes 10]

The file is sparse (it takes no room on disk, its pages read as zeros) and mapped with
NumPy. A part of a shuffled epoch is read from it, at random places over the whole
file. What is reported is the growth of the process's private memory, which leaves out
the pages of the file that the system may drop at any time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import not_run
from fmkit.data import Batches

SHAPE = (28, 28)


def private_bytes() -> int:
    """Resident memory that belongs to no file (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon")


def peak_growth(gigabytes: float, steps: int) -> tuple[float, int]:
    """Return the peak of private memory beyond the start, in bytes, and the rows."""
    count = int(gigabytes * 1e9) // (SHAPE[0] * SHAPE[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images.raw")
        with path.open("wb") as file:
            file.truncate(count * SHAPE[0] * SHAPE[1])
        images = np.memmap(path, np.uint8, "r", shape=(count, *SHAPE))
        start, peaks, done = private_bytes(), [0], threading.Event()

        def watch() -> None:
            while not done.is_set():
                peaks.append(private_bytes() - start)
                time.sleep(0.002)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for step, _ in enumerate(Batches(images), start=1):
                peaks.append(private_bytes() - start)
                if step == steps:
                    break
        finally:
            done.set()
            watcher.join()
        del images
    return max(peaks), count


def rows(quick: bool = False, gigabytes: float | None = None) -> list[dict[str, Any]]:
    """Return one row: megabytes of memory for so many gigabytes of data."""
    gigabytes = gigabytes or (1.0 if quick else 10.0)
    steps = 200 if quick else 1000
    name = f"memory of Batches over a file of {gigabytes:g} GB"
    try:
        peak, count = peak_growth(gigabytes, steps)
    except OSError as error:
        return [not_run(name, str(error))]
    return [
        {
            "name": name,
            "ratio": peak / 1e6,
            "spread": None,
            "unit": "MB of private memory at most",
            "detail": f"{count:,} mapped images, {steps} shuffled batches of 128",
            "target": "bounded: at most 100",
        }
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gigabytes", type=float)
    options = parser.parse_args()
    print("\n".join(map(json.dumps, rows(options.quick, options.gigabytes))))
