"""The shuffled order of an epoch: enciphered place by place, against a sort.

Run it alone with `python -m benchmarks.order [--quick]`. The largest sort takes
16 bytes for each sample: 1.6 GB for 100 million.
"""

from __future__ import annotations

import argparse
import json
import tracemalloc
from typing import Any

import numpy as np

from benchmarks._measure import interleave, number, row
from fmkit.data._order import Order, sorted_order

BLOCK = 2048
# The two ways, as the table names them.
CIPHER, SORT = "enciphering every place", "sorting random numbers"


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Go through the whole order of an epoch in blocks of 2,048 samples."""
    sizes = [10**5, 10**6] if quick else [10**6, 10**7, 10**8]
    return [order_row(size, 3 if size < 10**7 else 1) for size in sizes]


def order_row(size: int, rounds: int) -> dict[str, Any]:
    def cipher() -> None:
        # No part of it is kept: this is what an epoch of `Batches` does.
        order = Order(size, 0, shuffle=True, sort_limit=0)
        for start in range(0, size, BLOCK):
            order.take(1, np.arange(start, min(start + BLOCK, size)))

    def sort() -> None:
        sorted_order(size, 0, 1)

    ways = {CIPHER: cipher, SORT: sort}
    times = interleave(ways, rounds, warm_up=0)
    peaks = {CIPHER: peak_of_block(size)}
    if size <= 10**7:
        peaks[SORT] = peak(sort)
    made = row(f"shuffled order of {size:,} samples", times, CIPHER, SORT)
    seconds = times[CIPHER][0] / size
    made["detail"] += f", {1e9 * seconds:.0f} ns per sample; memory " + ", ".join(
        f"{name} {number(found / 1e6)} MB" for name, found in peaks.items()
    )
    return made


def peak_of_block(size: int) -> int:
    """Every block takes the same memory: look at one in the middle."""
    order = Order(size, 0, shuffle=True, sort_limit=0)
    places = np.arange(size // 2, size // 2 + BLOCK)
    return peak(lambda: order.take(1, places))


def peak(run: Any) -> int:
    tracemalloc.start()
    run()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    print("\n".join(map(json.dumps, rows(parser.parse_args().quick))))
