"""What it costs to find the place in data again, for each kind that `fit` takes.

`python -m benchmarks.places [--quick] [--publish]` takes 10, 1,000 and 100,000 batches
of 4 rows of 10 numbers from each kind, asks for the place as a commit does, and goes
back to it as a new process does: seconds until the next batch is there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks._measure import BACKENDS, in_backend, machine, number, put_between
from fmkit._commits import decode, encode
from fmkit.callbacks._resume._source import Source
from fmkit.callbacks._resume._track import Track

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [DOCS / "guides" / "any-data.md", DOCS / "zh" / "guides" / "any-data.md"]
BEGIN, END = "<!-- costs: begin -->", "<!-- costs: end -->"
SIZE, FEATURES = 4, 10
KINDS = {
    "arrays, `fit(x, y)`": ("arrays", ("tensorflow", "jax", "torch")),
    "`PyDataset`": ("pieces", ("tensorflow", "jax", "torch")),
    "`DataLoader`, a data set with indices": ("loader", ("torch",)),
    "`DataLoader`, a stream": ("stream", ("torch",)),
    "`StatefulDataLoader`": ("stateful", ("torch",)),
    "Grain `MapDataset`": ("grain_map", ("jax",)),
    "`tf.data`, shuffled": ("dataset", ("tensorflow",)),
    "a generator with `data=`": ("own", ("torch",)),
}


class Data:
    """The kinds, all over the same rows."""

    def __init__(self, batches: int) -> None:
        count = batches * SIZE
        self.x = np.random.default_rng(0).random((count, FEATURES), np.float32)
        self.y = np.zeros(count, np.int32)

    def arrays(self) -> dict[str, Any]:
        return {"x": self.x, "y": self.y, "batch_size": SIZE, "shuffle": True}

    def pieces(self) -> dict[str, Any]:
        x, y = self.x, self.y

        class Pieces(keras.utils.PyDataset):
            def __len__(self) -> int:
                return len(x) // SIZE

            def __getitem__(self, index: int) -> Any:
                rows = slice(index * SIZE, (index + 1) * SIZE)
                return x[rows], y[rows]

        return {"x": Pieces(), "shuffle": True}

    def _rows(self) -> Any:
        import torch

        return torch.utils.data.TensorDataset(
            torch.tensor(self.x), torch.tensor(self.y)
        )

    def loader(self) -> dict[str, Any]:
        import torch

        loader = torch.utils.data.DataLoader
        return {"x": loader(self._rows(), batch_size=SIZE, shuffle=True)}

    def stream(self) -> dict[str, Any]:
        import torch

        rows = self._rows()

        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self) -> Any:
                return iter(rows)

        return {"x": torch.utils.data.DataLoader(Stream(), batch_size=SIZE)}

    def stateful(self) -> dict[str, Any]:
        from torchdata.stateful_dataloader import StatefulDataLoader

        return {"x": StatefulDataLoader(self._rows(), batch_size=SIZE, shuffle=True)}

    def grain_map(self) -> dict[str, Any]:
        import grain

        x, y = self.x, self.y

        class Rows:
            def __len__(self) -> int:
                return len(x)

            def __getitem__(self, index: int) -> Any:
                return x[index], y[index]

        return {"x": grain.MapDataset.source(Rows()).seed(1).shuffle().batch(SIZE)}

    def dataset(self) -> dict[str, Any]:
        import tensorflow as tf

        rows = tf.data.Dataset.from_tensor_slices((self.x, self.y))
        return {"x": rows.shuffle(10_000, seed=1).batch(SIZE).prefetch(2)}

    def own(self) -> dict[str, Any]:
        return {"x": Own(self.x, self.y)}


class Own:
    """Batches that know their place."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y, self.at = x, y, 0

    def __iter__(self) -> Any:
        while True:
            rows = slice(self.at * SIZE, (self.at + 1) * SIZE)
            self.at += 1
            yield self.x[rows], self.y[rows]

    def get_state(self) -> dict[str, int]:
        return {"at": self.at}

    def set_state(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def epoch_iterator(given: dict[str, Any]) -> Any:
    """Return what `fit` makes of its data on this backend."""
    backend = keras.backend.backend()
    name = {"tensorflow": "TF", "jax": "JAX", "torch": "Torch"}[backend]
    trainer = importlib.import_module(f"keras.src.backend.{backend}.trainer")
    if backend == "tensorflow":
        import tensorflow as tf

        given = {**given, "distribute_strategy": tf.distribute.get_strategy()}
    return getattr(trainer, f"{name}EpochIterator")(**given)


def followed(given: dict[str, Any]) -> tuple[Any, Track]:
    """Make Keras's iterator of data, and follow it as `ExactResume` does."""
    named = given["x"] if isinstance(given["x"], Own) else None
    x = iter(named) if named else given["x"]
    iterator = epoch_iterator({**given, "x": x})
    return iterator, Track(iterator, Source(iterator, x, named))


def steps(iterator: Any) -> Any:
    """Yield once for each batch that has been taken."""
    for _, _, batches in iterator._enumerate_iterator():
        yield next(batches)


def measure(name: str, counts: list[int]) -> list[dict[str, Any]]:
    """Go back to the place after each of `counts` batches."""
    data, found = Data(max(counts) + 2), []
    for count in counts:
        keras.utils.set_random_seed(1)
        iterator, track = followed(getattr(data, name)())
        walk = steps(iterator)
        for _ in range(count + 1):
            next(walk)
        begin = time.perf_counter()
        arrays: dict[str, Any] = {}
        place = encode(track.place(at_epoch_end=False), arrays, "data")
        asked = time.perf_counter() - begin
        size = len(json.dumps(place)) + sum(each.nbytes for each in arrays.values())
        walk.close()
        keras.utils.set_random_seed(1)
        iterator, track = followed(getattr(data, name)())
        begin = time.perf_counter()
        track.seek(decode(place, arrays), count)
        next(steps(iterator))
        back = time.perf_counter() - begin
        found.append({"batches": count, "bytes": size, "asked": asked, "back": back})
    return found


def backend_rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure the kinds of this backend."""
    counts = [10, 1_000] if quick else [10, 1_000, 100_000]
    backend = keras.backend.backend()
    return [
        {"kind": kind, "backend": backend, "costs": measure(name, counts)}
        for kind, (name, backends) in KINDS.items()
        if backend in backends
    ]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row of the suite for each kind: the way back to the last place."""
    return [
        {
            "name": f"back after {costs[-1]['batches']:,} batches, {each['kind']}",
            "ratio": 1e3 * costs[-1]["back"],
            "spread": None,
            "unit": "ms",
            "detail": f"{each['backend']}, {costs[-1]['bytes']:,} bytes in a commit",
            "target": "",
        }
        for each in measured(quick)
        if (costs := each.get("costs"))
    ]


def measured(quick: bool) -> list[dict[str, Any]]:
    """Measure on each backend, in processes of their own."""
    return [
        row
        for backend in BACKENDS
        for row in in_backend("benchmarks.places", backend, quick)
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    counts = [cost["batches"] for cost in rows[0]["costs"]]
    head = " | ".join(f"back after {count:,}" for count in counts)
    lines = [
        f"| kind | backend | bytes in a commit | time to ask | {head} |",
        "|---" * (4 + len(counts)) + "|",
    ]
    for row in rows:
        costs = row["costs"]
        back = " | ".join(f"{number(cost['back'])} s" for cost in costs)
        asked = number(1e3 * costs[-1]["asked"])
        size = f"{costs[-1]['bytes']:,}"
        lines.append(
            f"| {row['kind']} | {row['backend']} | {size} | {asked} ms | {back} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,000 batches")
    parser.add_argument("--publish", action="store_true", help="into docs/guides")
    parser.add_argument("--here", action="store_true", help="on this backend, as JSON")
    options = parser.parse_args()
    if options.here:
        print("\n".join(map(json.dumps, backend_rows(options.quick))))
        return
    rows = measured(options.quick)
    print(table(rows))
    if options.publish:
        facts = {key: what for key, what in machine().items() if key != "backend"}
        where = ", ".join(f"{key} {value}" for key, value in facts.items())
        for page in PAGES:
            put_between(page, BEGIN, END, f"{table(rows)}\n\n({where})")


if __name__ == "__main__":
    main()
