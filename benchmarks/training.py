"""One epoch of the tutorial's network: the tutorial's way, Keras's, ours, by hand.

    python -m benchmarks.training [--quick]

784-256-128-64-32-10, Adam, batches of 128 of 60,000 images, fully shuffled but in the
tutorial's loop, which shuffles 1,000 at a time. Every contestant computes the mean
loss of the epoch and no other metric. Each backend runs in a process of its own. The
first epoch counts everything: building, tracing, compiling. With --quick an epoch is
that of 12,800 images, 100 steps, for every contestant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks._measure import Cost, cost, on_each_backend, print_rows, row
from fmkit.augmentation import HorizontalFlip, RandomErasing, Shift
from fmkit.data import Batches
from fmkit.performance import FusedModel, fit_settings

BATCH, EPOCHS, RATE = 128, 20, 1e-3
UNITS = (256, 128, 64, 32)

# Trains the epoch with this number and returns its mean loss.
Epoch = Callable[[int], float]


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (count, 28, 28), dtype=np.uint8)
    return x, rng.randint(0, 10, count).astype(np.uint8)


def network() -> keras.Model:
    hidden = [keras.layers.Dense(units, "relu") for units in UNITS]
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            *hidden,
            keras.layers.Dense(10),
        ]
    )


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# Each of these takes a fresh network and the data and returns a way to train an epoch.


def by_fmkit(
    model: keras.Model, x: np.ndarray, y: np.ndarray, augment: Any = None
) -> Epoch:
    batches = Batches(x, y, BATCH, augment=augment)
    settings = fit_settings(model, batches, epochs=EPOCHS)
    model.compile(keras.optimizers.Adam(RATE), loss(), **settings.compile)

    def epoch(number: int) -> float:
        batches.seek(number)
        return model.fit(**settings.fit, verbose=0).history["loss"][0]

    return epoch


def by_augmented(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Epoch:
    """The same, on pictures that are flipped, shifted and erased."""
    return by_fmkit(model, x, y, [HorizontalFlip(), Shift(2), RandomErasing()])


def by_fused(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Epoch:
    """The same, with the steps of an execution in one program, or each as one graph."""
    return by_fmkit(FusedModel(model.inputs, model.outputs), x, y)


def by_fit(
    model: keras.Model, x: np.ndarray, y: np.ndarray, shuffle: bool = True
) -> Epoch:
    """`fit(x, y)` with Keras's defaults."""
    pixels, labels = x.astype("float32") / 255, y.astype("int32")
    model.compile(keras.optimizers.Adam(RATE), loss())

    def epoch(number: int) -> float:
        history = model.fit(
            pixels, labels, batch_size=BATCH, shuffle=shuffle, verbose=0
        )
        return history.history["loss"][0]

    return epoch


def by_tutorial(
    model: keras.Model, x: np.ndarray, y: np.ndarray, shuffle: bool = True
) -> Epoch:
    """The tutorial's loop: eager, a GradientTape, the images mapped one by one."""
    import tensorflow as tf

    def preprocess(image: Any, label: Any) -> tuple[Any, Any]:
        return tf.cast(image, tf.float32) / 255.0, tf.cast(label, tf.int32)

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).map(preprocess)
    dataset = (dataset.shuffle(1000) if shuffle else dataset).batch(BATCH)
    optimizer, criterion = keras.optimizers.Adam(RATE), loss()

    def epoch(number: int) -> float:
        total = 0.0
        for image, label in dataset:
            with tf.GradientTape() as tape:
                value = criterion(label, model(image, training=True))
            gradients = tape.gradient(value, model.trainable_variables)
            pairs = zip(gradients, model.trainable_variables, strict=True)
            optimizer.apply_gradients(pairs)
            total += float(value) * len(label)
        return total / len(x)

    return epoch


def _adam(step: Any, w: Any, m: Any, v: Any, g: Any, sqrt: Any) -> tuple[Any, Any, Any]:
    """Adam as Keras computes it, over lists of arrays."""
    rate = RATE * sqrt(1 - 0.999**step) / (1 - 0.9**step)
    m = [a + (b - a) * 0.1 for a, b in zip(m, g, strict=True)]
    v = [a + (b * b - a) * 0.001 for a, b in zip(v, g, strict=True)]
    w = [p - rate * a / (sqrt(b) + 1e-7) for p, a, b in zip(w, m, v, strict=True)]
    return w, m, v


def by_hand_tensorflow(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Epoch:
    """The whole epoch as one XLA loop over uint8 images that stay on the device."""
    import tensorflow as tf

    whole, tail = divmod(len(x), BATCH)
    pixels, labels = tf.constant(x.reshape(len(x), -1)), tf.constant(y.astype("int32"))

    def step(state: Any, places: Any) -> tuple[Any, Any]:
        count, w, m, v, total = state
        image = tf.cast(tf.gather(pixels, places), tf.float32) / 255.0
        label = tf.gather(labels, places)
        with tf.GradientTape() as tape:
            tape.watch(w)
            hidden = image
            for layer in range(0, len(w) - 2, 2):
                hidden = tf.nn.relu(hidden @ w[layer] + w[layer + 1])
            value = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    label, hidden @ w[-2] + w[-1]
                )
            )
        gradients = tape.gradient(value, w)
        w, m, v = _adam(count + 1, w, m, v, gradients, tf.sqrt)
        size = tf.cast(tf.size(places), tf.float32)
        return count + 1, w, m, v, total + value * size

    @tf.function(jit_compile=True)
    def run(state: Any, order: Any) -> Any:
        def body(number: Any, *state: Any) -> Any:
            places = tf.slice(order, [number * BATCH], [BATCH])
            return number + 1, *step(state, places)

        _, *state = tf.while_loop(
            lambda number, *_: number < whole, body, (tf.constant(0), *state)
        )
        return step(state, order[whole * BATCH :]) if tail else tuple(state)

    weights = [tf.convert_to_tensor(w.value) for w in model.trainable_variables]
    zeros = [tf.zeros_like(w) for w in weights]
    state = [tf.constant(0.0), weights, zeros, zeros]
    batches = Batches(x, y, BATCH)

    def epoch(number: int) -> float:
        order = tf.constant(batches.order(number).astype("int32"))
        *state[:], total = run((*state, tf.constant(0.0)), order)
        assign(model, [w.numpy() for w in state[1]])
        return float(total) / len(x)

    return epoch


def by_steps_tensorflow(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Epoch:
    """One XLA program a step in a loop of TensorFlow's, as in `fit`, and no more.

    The same batch each time, no metric, no callback: what no input and no setting of
    `fit` can be faster than.
    """
    import tensorflow as tf

    steps = -(-len(x) // BATCH)
    images = tf.constant(x[:BATCH] / np.float32(255))
    labels = tf.constant(y[:BATCH].astype("int32"))
    optimizer, criterion = keras.optimizers.Adam(RATE), loss()
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=True)
    def step(image: Any, label: Any) -> Any:
        with tf.GradientTape() as tape:
            value = criterion(label, model(image, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients)
        return value

    @tf.function
    def run() -> Any:
        total = tf.constant(0.0)
        for _ in tf.range(steps):
            total += step(images, labels)
        return total / steps

    return lambda number: float(run())


def by_steps_torch(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Epoch:
    """Keras's `train_step` in a loop, on the same batch each time, and no more."""
    steps = -(-len(x) // BATCH)
    images = keras.ops.convert_to_tensor(x[:BATCH] / np.float32(255))
    labels = keras.ops.convert_to_tensor(y[:BATCH].astype("int32"))
    model.compile(keras.optimizers.Adam(RATE), loss())

    def epoch(number: int) -> float:
        model.reset_metrics()
        for _ in range(steps):
            logs = model.train_step((images, labels))
        return float(logs["loss"])

    return epoch


def by_hand_jax(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Epoch:
    """The epoch as one `lax.scan` over uint8 images that stay on the device."""
    import jax
    import jax.numpy as jnp

    whole = len(x) // BATCH * BATCH
    pixels, labels = jnp.asarray(x.reshape(len(x), -1)), jnp.asarray(y.astype("int32"))

    def objective(w: Any, image: Any, label: Any) -> Any:
        hidden = image
        for layer in range(0, len(w) - 2, 2):
            hidden = jax.nn.relu(hidden @ w[layer] + w[layer + 1])
        logs = jax.nn.log_softmax(hidden @ w[-2] + w[-1])
        return -jnp.take_along_axis(logs, label[:, None], axis=1).mean()

    def step(state: Any, places: Any) -> tuple[Any, Any]:
        count, w, m, v = state
        image = pixels[places].astype(jnp.float32) / 255.0
        value, g = jax.value_and_grad(objective)(w, image, labels[places])
        w, m, v = _adam(count + 1, w, m, v, g, jnp.sqrt)
        return (count + 1, w, m, v), value * len(places)

    @jax.jit
    def run(state: Any, order: Any) -> Any:
        state, values = jax.lax.scan(step, state, order[:whole].reshape(-1, BATCH))
        total = values.sum()
        if whole < len(x):
            state, value = step(state, order[whole:])
            total += value
        return state, total

    weights = [jnp.array(w.value) for w in model.trainable_variables]
    zeros = [jnp.zeros_like(w) for w in weights]
    kept = [(jnp.float32(0), weights, zeros, zeros)]
    batches = Batches(x, y, BATCH)

    def epoch(number: int) -> float:
        kept[0], total = run(kept[0], jnp.asarray(batches.order(number)))
        assign(model, [np.asarray(w) for w in kept[0][1]])
        return float(total) / len(x)

    return epoch


def by_hand_torch(
    model: keras.Model, x: np.ndarray, y: np.ndarray, optimizer_of: Any = None
) -> Epoch:
    """A plain PyTorch loop over uint8 images in one tensor, PyTorch's own Adam."""
    import torch
    from torch.nn import functional

    pixels = torch.from_numpy(x.reshape(len(x), -1))
    labels = torch.from_numpy(y.astype("int64"))
    weights = [
        torch.nn.Parameter(w.value.detach().clone()) for w in model.trainable_variables
    ]
    if optimizer_of is None:
        optimizer = torch.optim.Adam(weights, RATE, eps=1e-7, fused=True)
    else:
        optimizer = optimizer_of(weights)
    batches = Batches(x, y, BATCH)

    def epoch(number: int) -> float:
        order, total = torch.from_numpy(batches.order(number)), torch.zeros(())
        for places in order.split(BATCH):
            hidden = pixels[places].float() / 255.0
            for layer in range(0, len(weights) - 2, 2):
                hidden = torch.relu(hidden @ weights[layer] + weights[layer + 1])
            logits = hidden @ weights[-2] + weights[-1]
            value = functional.cross_entropy(logits, labels[places])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.detach() * len(places)
        assign(model, [w.detach().numpy() for w in weights])
        return float(total) / len(x)

    return epoch


def by_hand_torch_as_keras(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Epoch:
    """The same loop with Keras's update, whose bits PyTorch's own Adam doesn't have."""
    import torch

    class Adam(torch.optim.Optimizer):
        def __init__(self, weights: Any) -> None:
            super().__init__(weights, {})
            self.weights, self.count = weights, 0
            self.m = [torch.zeros_like(w) for w in weights]
            self.v = [torch.zeros_like(w) for w in weights]

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            self.count += 1
            gradients = [w.grad for w in self.weights]
            rate = RATE * (1 - 0.999**self.count) ** 0.5 / (1 - 0.9**self.count)
            torch._foreach_mul_(self.m, 0.9)
            torch._foreach_add_(self.m, gradients, alpha=0.1)
            torch._foreach_mul_(self.v, 0.999)
            squares = torch._foreach_mul(gradients, gradients)
            torch._foreach_add_(self.v, squares, alpha=0.001)
            roots = torch._foreach_sqrt(self.v)
            torch._foreach_add_(roots, 1e-7)
            torch._foreach_addcdiv_(self.weights, self.m, roots, -rate)

    return by_hand_torch(model, x, y, Adam)


def assign(model: keras.Model, weights: list[np.ndarray]) -> None:
    """Put the result where the others leave theirs: 1 MB, once an epoch."""
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)


BY_HAND = {
    "tensorflow": by_hand_tensorflow,
    "jax": by_hand_jax,
    "torch": by_hand_torch,
}
# What no input and no setting of `fit` can be faster than, by what it runs.
BY_STEPS = {
    "tensorflow": ("one XLA program per step", by_steps_tensorflow),
    "torch": ("Keras's train_step", by_steps_torch),
}
FUSED = "FusedModel"
AUGMENTED = "fmkit on pictures flipped, shifted and erased"
HAND_NAMES = {
    "tensorflow": "one XLA loop by hand",
    "jax": "one lax.scan by hand",
    "torch": "a hand-written loop",
}
AS_KERAS = "a hand-written loop with Keras's Adam"


def backend_rows(quick: bool) -> list[dict[str, Any]]:
    """Measure on the backend of this process."""
    backend = keras.backend.backend()
    x, y = images(12_800 if quick else 60_000)
    hand = HAND_NAMES[backend]
    makers = {"fmkit": by_fmkit, "fit(x, y)": by_fit, hand: BY_HAND[backend]}
    makers |= {FUSED: by_fused, AUGMENTED: by_augmented}
    steps, by_steps = BY_STEPS.get(backend, ("", None))
    if by_steps:
        makers[steps] = by_steps
    if backend == "torch":
        makers[AS_KERAS] = by_hand_torch_as_keras
    first: dict[str, list[Cost]] = {name: [] for name in makers}
    epochs: dict[str, Epoch] = {}
    for _ in range(1 if quick else 2):
        for name, make in makers.items():

            def start(name: str = name, make: Any = make) -> None:
                epochs[name] = make(network(), x, y)
                epochs[name](0)

            first[name].append(cost(start))
    later: dict[str, list[Cost]] = {name: [] for name in makers}
    # An epoch on PyTorch takes four times as long as on the others.
    rounds = 3 if quick else 5 if backend == "torch" else 11
    for round_ in range(rounds):
        for name in list(epochs)[:: 1 if round_ % 2 == 0 else -1]:
            later[name].append(cost(lambda name=name, n=round_: epochs[name](n + 1)))
    found = _rows(f"epoch of {len(x):,} images on {backend}", first, later, hand, steps)
    if backend == "tensorflow":
        found[:0] = tutorial_rows(epochs["fmkit"], epochs[FUSED], x, y, quick)
    return found


def _rows(
    what: str,
    first: dict[str, list[Cost]],
    later: dict[str, list[Cost]],
    hand: str,
    steps: str,
) -> list[dict[str, Any]]:
    walls = {name: [one.wall for one in costs] for name, costs in later.items()}
    cpus = {name: [one.cpu for one in costs] for name, costs in later.items()}
    firsts = {name: [one.wall for one in costs] for name, costs in first.items()}
    # Keras's own fit on JAX stands at 0.7 of the scan: there is no factor to win.
    target = {"tensorflow": "at most 0.4", "torch": "at most 0.5"}.get(
        what.rpartition(" ")[2], ""
    )
    found = [
        row(f"{what}, wall", walls, "fmkit", "fit(x, y)", target=target),
        row(f"{what}, CPU", cpus, "fmkit", "fit(x, y)", target=target),
        row(
            f"{what}, wall, against the limit",
            walls,
            "fmkit",
            hand,
            target="at most 1.18",
        ),
        row(f"{what}, CPU, against the limit", cpus, "fmkit", hand),
    ]
    for unit, costs in (("wall", walls), ("CPU", cpus)):
        name = f"{what}, {unit}, {FUSED}"
        found.append(row(name, costs, FUSED, "fit(x, y)", target=target))
    name = f"{what}, wall, flipped, shifted and erased"
    found.append(row(name, walls, AUGMENTED, "fmkit", target="at most 1.15"))
    limit = "at most 1.18" if what.endswith("torch") else "at most 1.10"
    for unit, costs in (("wall", walls), ("CPU", cpus)):
        name = f"{what}, {unit}, {FUSED} against the limit"
        found.append(row(name, costs, FUSED, hand, target=limit))
    if AS_KERAS in walls:
        name = f"{what}, wall, {FUSED} against the limit with Keras's Adam"
        found.append(row(name, walls, FUSED, AS_KERAS))
    name = f"first {what}, wall, {FUSED}"
    found.append(row(name, firsts, FUSED, "fit(x, y)"))
    if steps:
        name = f"{what}, wall, {steps} without fit"
        found.append(row(name, walls, steps, hand))
    found.append(row(f"first {what}, wall", firsts, "fmkit", "fit(x, y)"))
    return found


def tutorial_rows(
    ours: Epoch, fused: Epoch, x: np.ndarray, y: np.ndarray, quick: bool
) -> list[dict[str, Any]]:
    """Pair our epochs with the tutorial's loop, run for real and in full."""
    tutorial = "the tutorial's loop"
    names = ("fmkit", FUSED, tutorial)
    by_tutorial(network(), x[: 2 * BATCH], y[: 2 * BATCH])(0)
    theirs = by_tutorial(network(), x, y)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for number in range(1 if quick else 3):
        for name, epoch in zip(names, (ours, fused, theirs), strict=True):
            costs[name].append(cost(lambda e=epoch, n=number: e(n)))
    what = f"epoch of {len(x):,} images on tensorflow"
    walls = {name: [one.wall for one in of_one] for name, of_one in costs.items()}
    cpus = {name: [one.cpu for one in of_one] for name, of_one in costs.items()}
    found = []
    for name in (FUSED, "fmkit"):
        way = f"{FUSED} against" if name == FUSED else "against"
        found += [
            row(
                f"{what}, wall, {way} the tutorial",
                walls,
                name,
                tutorial,
                target="at most 0.05",
            ),
            row(f"{what}, CPU, {way} the tutorial", cpus, name, tutorial),
        ]
    return found


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure on every backend, each in its own process."""
    return on_each_backend("benchmarks.training", quick)


if __name__ == "__main__":
    print_rows("benchmarks.training", backend_rows)
