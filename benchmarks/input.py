"""How fast `Batches` feeds: against the tutorial's pipeline, and against the limit.

Run it alone with `python -m benchmarks.input [--quick]`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._measure import interleave, not_run, row, seconds
from fmkit.augmentation import HorizontalFlip, RandomErasing, Shift
from fmkit.data import Batches
from fmkit.data._order import Order, sorted_order

BATCH = 128
# What tf.data takes to hand over batches that are there, and NumPy to make them.
FLOOR = "tf.data's floor and NumPy's"


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (count, 28, 28), dtype=np.uint8)
    return x, rng.randint(0, 10, count).astype(np.uint8)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Time one epoch of batches of 128 out of 60,000 shuffled uint8 images."""
    x, y = images(12_000 if quick else 60_000)
    rounds = 5 if quick else 11
    return [
        *tensorflow_rows(x, y, rounds),
        numpy_row(x, y, rounds),
        *augmented_rows(x, y, rounds),
        *order_rows(),
    ]


def tensorflow_rows(x: np.ndarray, y: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    try:
        import tensorflow as tf
    except ImportError:
        return [not_run("input: tf.data", "TensorFlow is not installed")]

    def preprocess(image: Any, label: Any) -> tuple[Any, Any]:
        return tf.cast(image, tf.float32) / 255.0, tf.cast(label, tf.int32)

    steps = len(x) // BATCH
    arrays = tf.data.Dataset.from_tensor_slices((x, y))
    (ready,) = Batches(x, y, len(x), shuffle=False)
    cut = [
        part[: steps * BATCH].reshape(steps, BATCH, *part.shape[1:]) for part in ready
    ]
    datasets = {
        "Batches": Batches(x, y, BATCH).as_dataset(),
        "the tutorial's map.shuffle.batch": arrays.map(preprocess)
        .shuffle(1000)
        .batch(BATCH),
        "batches made beforehand": tf.data.Dataset.from_tensor_slices(tuple(cut)),
    }

    @tf.function
    def inside(iterator: Any) -> Any:
        count = tf.constant(0)
        for _ in tf.range(steps):
            count += tf.shape(iterator.get_next()[0])[0]
        return count

    ways: list[tuple[str, Callable[[Any], Any], str]] = [
        ("inside one tf.function", lambda data: inside(iter(data)), "at most 0.025"),
        ("from Python", lambda data: [None for _ in data], "at most 0.05"),
    ]
    found = []
    for where, drain, target in ways:
        contestants = {
            name: lambda data=data, drain=drain: drain(data)
            for name, data in datasets.items()
        }
        contestants["NumPy alone"] = into_reused_buffers(x, y)
        times = interleave(contestants, rounds)
        tutorial, ready_made = list(datasets)[1:]
        times[FLOOR] = [
            sum(pair)
            for pair in zip(times[ready_made], times["NumPy alone"], strict=True)
        ]
        found.append(
            row(f"input read {where}", times, "Batches", tutorial, target=target)
        )
        found.append(
            row(
                f"input read {where}, against ready batches",
                times,
                "Batches",
                ready_made,
            )
        )
        found.append(
            row(f"input read {where}, against both floors", times, "Batches", FLOOR)
        )
    return found


def numpy_row(x: np.ndarray, y: np.ndarray, rounds: int) -> dict[str, Any]:
    """The batches of JAX and PyTorch, against one set of buffers used again."""
    batches = Batches(x, y, BATCH)
    reused = into_reused_buffers(x, y)

    def ours() -> None:
        batches.seek(0)
        for _ in batches:
            pass

    times = interleave({"Batches": ours, "NumPy into reused buffers": reused}, rounds)
    return row(
        "input read as NumPy arrays",
        times,
        "Batches",
        "NumPy into reused buffers",
        target="at most 2",
    )


def augmented_rows(x: np.ndarray, y: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """What augmentation adds to an epoch: in one thread, and in those of `tf.data`."""
    flip, shift, erasing = HorizontalFlip(), Shift(2), RandomErasing()
    plain = "not augmented"
    found: list[dict[str, Any]] = []
    for name, functions, target in (
        ("flipped", [flip], "at most 2"),
        ("shifted", [shift], "at most 2"),
        ("erased", [erasing], "at most 2"),
        ("flipped, shifted and erased", [flip, shift, erasing], ""),
    ):
        batches = {
            name: Batches(x, y, BATCH, augment=functions),
            plain: Batches(x, y, BATCH),
        }
        contestants = {key: lambda b=b: list(map(len, b)) for key, b in batches.items()}
        times = interleave(contestants, rounds)
        found.append(row(f"input read {name}", times, name, plain, target=target))
    if importlib.util.find_spec("tensorflow"):
        # The last of them by `tf.data`, whose threads read ahead.
        datasets = {key: b.as_dataset() for key, b in batches.items()}
        contestants = {
            key: lambda d=d: list(map(len, d)) for key, d in datasets.items()
        }
        times = interleave(contestants, rounds)
        title = f"input read {name}, in threads ahead"
        found.append(row(title, times, name, plain, target="at most 2"))
    return found


def into_reused_buffers(x: np.ndarray, y: np.ndarray) -> Callable[[], None]:
    """Return what gathers, converts and divides an epoch in NumPy, and no more."""
    order = Batches(x, y, BATCH).order(0)
    raw = np.empty((BATCH, *x.shape[1:]), np.uint8)
    out = np.empty(raw.shape, np.float32)

    def epoch() -> None:
        for start in range(0, len(x), BATCH):
            places = order[start : start + BATCH]
            np.take(x, places, axis=0, out=raw[: len(places)], mode="clip")
            np.divide(raw[: len(places)], np.float32(255), out=out[: len(places)])
            y[places].astype(np.int32)

    return epoch


def order_rows() -> list[dict[str, Any]]:
    """The price of the order: sorted for 60,000, enciphered for 100 million."""
    large, places = Order(100_000_000, 0, shuffle=True), np.arange(2048)
    sort = min(seconds(lambda: sorted_order(60_000, 0, 1)) for _ in range(9))
    block = min(seconds(lambda: large.take(3, places)) for _ in range(9))
    common = {"spread": None, "target": ""}
    return [
        {
            "name": "shuffled order of 60,000 samples",
            "ratio": 1e3 * sort,
            "unit": "ms",
            "detail": "once per epoch",
            **common,
        },
        {
            "name": "shuffled order of 100 million samples",
            "ratio": 1e9 * block / len(places),
            "unit": "ns per sample",
            "detail": "2,048 places at a time, nothing kept",
            **common,
        },
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    print("\n".join(map(json.dumps, rows(parser.parse_args().quick))))
