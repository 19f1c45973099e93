"""Epochs of `FusedModel` on each kind of data, and its evaluation and prediction.

    python -m benchmarks.any_data [--quick]

The network of `benchmarks.training`, batches of 128 of 60,000 images; evaluation and
prediction of 10,000. Against a `keras.Model` with Keras's defaults on the same data. An
epoch is one of four in one `fit`, and not the first. On JAX prediction is measured
against its floor too: the same batches through the layers' products and nothing else,
as one program.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from benchmarks._measure import interleave, on_each_backend, print_rows, row
from benchmarks.training import BATCH, RATE, images, loss, network
from fmkit.data import Batches
from fmkit.performance import FusedModel

Way = Callable[[keras.Model], Any]


def made(kind: type) -> keras.Model:
    model = network()
    if kind is FusedModel:
        model = FusedModel(model.inputs, model.outputs)
    fast = kind is FusedModel and keras.backend.backend() != "torch"
    settings = {"jit_compile": True, "steps_per_execution": 50} if fast else {}
    model.compile(keras.optimizers.Adam(RATE), loss(), metrics=["accuracy"], **settings)
    return model


class Times(keras.callbacks.Callback):
    """The seconds of each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._begin)


def data(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what gives `fit` its data, by kind."""

    class Pieces(keras.utils.PyDataset):
        def __len__(self) -> int:
            return -(-len(x) // BATCH)

        def __getitem__(self, index: int) -> Any:
            rows = slice(index * BATCH, (index + 1) * BATCH)
            return x[rows], y[rows]

    def dataset() -> dict[str, Any]:
        import tensorflow as tf

        rows = tf.data.Dataset.from_tensor_slices((x, y))
        return {"x": rows.batch(BATCH).prefetch(4)}

    def loader() -> dict[str, Any]:
        import torch

        rows = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
        return {"x": torch.utils.data.DataLoader(rows, BATCH), "shuffle": False}

    def grain_rows() -> dict[str, Any]:
        import grain

        rows = grain.MapDataset.source(range(len(x))).map(lambda i: (x[i], y[i]))
        return {"x": rows.batch(BATCH).to_iter_dataset()}

    kinds = {
        "arrays": lambda: {"x": x, "y": y, "batch_size": BATCH},
        "`Batches`": lambda: {"x": Batches(x, y, BATCH, map=None)},
        "`PyDataset`": lambda: {"x": Pieces()},
    }
    if importlib.util.find_spec("grain"):
        kinds["Grain"] = grain_rows
    own = {"tensorflow": {"`tf.data`": dataset}, "torch": {"`DataLoader`": loader}}
    return kinds | own.get(keras.backend.backend(), {})


def seconds_of_epochs(
    ways: dict[str, tuple[keras.Model, Callable[[], dict[str, Any]]]], rounds: int
) -> dict[str, list[float]]:
    """Time epochs of one `fit` of each way in turn; the first of each is left out."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (model, given) in ways.items():
            times = Times()
            model.fit(**given(), epochs=4, verbose=0, callbacks=[times])
            found[name] += times.seconds[1:]
    return found


def backend_rows(quick: bool = False) -> list[dict[str, Any]]:
    backend, rounds = keras.backend.backend(), 2 if quick else 5
    pixels, labels = images(6_400 if quick else 60_000)
    x, y = pixels.astype("float32") / 255, labels.astype("int32")
    held_out = slice(0, 1_000 if quick else 10_000)
    models = {"FusedModel": made(FusedModel), "keras.Model": made(keras.Model)}
    found, kinds = [], data(x, y)
    for kind, given in kinds.items():
        ways = {name: (model, given) for name, model in models.items()}
        epochs = seconds_of_epochs(ways, 1 if quick else 2)
        found.append(
            row(f"epoch on {kind}, {backend}", epochs, "FusedModel", "keras.Model")
        )
    both = ("arrays", "`Batches`")
    ways = {kind: (models["FusedModel"], kinds[kind]) for kind in both}
    title = f"epoch of a FusedModel on arrays, {backend}"
    found.append(row(title, seconds_of_epochs(ways, 1 if quick else 3), *both))
    calls: dict[str, Way] = {
        "evaluate": lambda model: model.evaluate(x[held_out], y[held_out], verbose=0),
        "predict": lambda model: model.predict(x[held_out], verbose=0),
    }
    for name, way in calls.items():
        times = interleave(
            {kind: partial(way, model) for kind, model in models.items()}, rounds
        )
        title = f"{name} of {held_out.stop:,} rows, batches of 32, {backend}"
        target = "at most 0.33 (1/3)"
        found.append(row(title, times, "FusedModel", "keras.Model", target=target))
    if keras.backend.backend() == "jax":
        model = models["FusedModel"]
        times = interleave(
            {
                "FusedModel": partial(calls["predict"], model),
                "products": products(model, x[held_out]),
            },
            rounds,
        )
        title = f"predict of {held_out.stop:,} rows, batches of 32, against its floor"
        found.append(row(f"{title}, jax", times, "FusedModel", "products"))
    return found


def products(model: keras.Model, x: np.ndarray, batch: int = 32) -> Callable[[], Any]:
    """Return a program of the products of a dense network, batch after batch."""
    import jax
    from jax import numpy as jnp

    weights = [jnp.array(each.value) for each in model.trainable_variables]
    whole = len(x) // batch * batch

    def layers(rows: Any) -> Any:
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            rows = jax.nn.relu(rows @ kernel + bias)
        return rows @ weights[-2] + weights[-1]

    @jax.jit
    def program(batches: Any, rest: Any) -> Any:
        return jax.lax.map(layers, batches), layers(rest)

    def run() -> Any:
        flat = x.reshape(len(x), -1)
        batches = flat[:whole].reshape(-1, batch, flat.shape[1])
        first, last = program(batches, flat[whole:])
        return np.concatenate([np.reshape(first, (whole, -1)), last])

    return run


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure on each backend, in processes of their own."""
    return on_each_backend("benchmarks.any_data", quick)


if __name__ == "__main__":
    print_rows("benchmarks.any_data", backend_rows)
