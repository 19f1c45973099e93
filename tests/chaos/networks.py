"""The networks of the programs that are killed, each with the data it is trained on.

A function takes the options of the program and returns a `Network`. Together they hold
what a commit could forget: two optimizers, states of recurrent layers, structures of
inputs and outputs, layers with an `adapt`, generators and counters of a user's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmkit.data import Batches
from fmkit.optimizers import ExponentialMovingAverage
from fmkit.performance import FusedModel

BACKEND = keras.backend.backend()
layers = keras.layers


@dataclass
class Network:
    """A compiled model, and what it is trained and validated on.

    Attributes:
        model: The model.
        batches: What `fit` gets.
        held_out: The validation data, or `None`.
        others: Returns the variables that neither the model nor its optimizer lists.
    """

    model: Any
    batches: Batches
    held_out: Any = None
    others: Callable[[], list[Any]] = list


def images(count, seed=0):
    rng = np.random.RandomState(seed)
    x = rng.randint(0, 256, (count, 6, 6, 1), dtype=np.uint8)
    return x, rng.randint(0, 3, count).astype(np.uint8)


def compiled(model, options, *, steps=1, **arguments):
    model.compile(
        keras.optimizers.Adam(0.01),
        steps_per_execution=1 if BACKEND == "torch" else steps,
        jit_compile=False if BACKEND == "torch" else options.get("jit", "auto"),
        **arguments,
    )
    return model


CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Gan(keras.Model):
    """Two networks, each with its optimizer, in an attribute and in a dict.

    `wrap` is what is put around each optimizer.
    """

    def __init__(self, wrap=lambda optimizer: optimizer):
        super().__init__()
        self.wrap = wrap
        self.steps_done = 0
        self.critic = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        self.generator = keras.Sequential(
            [keras.Input((2,)), layers.BatchNormalization(), layers.Dense(4)]
        )
        self.noise = keras.random.SeedGenerator(7)
        self.tracked = [keras.metrics.Mean("critic"), keras.metrics.Mean("loss")]

    def compile(self, **arguments):
        super().compile(**arguments)
        self.critic_optimizer = self.wrap(keras.optimizers.Adam(0.01))
        self.others = {"generator": self.wrap(keras.optimizers.RMSprop(0.01))}

    def held(self):
        """The variables of both optimizers."""
        optimizers = [self.critic_optimizer, self.others["generator"]]
        return [v for each in optimizers for v in each.variables]

    def call(self, x):
        return self.critic(x)

    @property
    def metrics(self):
        return self.tracked

    def train_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        self.steps_done += 1
        z = keras.random.normal((8, 2), seed=self.noise)

        def judge(sample):
            return keras.ops.mean((self.critic(sample) - 1) ** 2)

        def critics_loss():
            fake = self.critic(self.generator(z, training=True))
            return keras.ops.mean(fake**2) + judge(x)

        self.step(critics_loss, self.critic, self.critic_optimizer, 0)
        optimizer = self.others["generator"]
        return self.step(
            lambda: judge(self.generator(z, training=True)),
            self.generator,
            optimizer,
            1,
        )

    def step(self, loss_of, part, optimizer, number):
        weights = part.trainable_weights
        if BACKEND == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = loss_of()
            optimizer.apply(tape.gradient(loss, weights), weights)
        else:
            import torch

            part.zero_grad()
            loss = loss_of()
            loss.backward()
            with torch.no_grad():
                optimizer.apply([w.value.grad for w in weights], weights)
        self.tracked[number].update_state(loss)
        return {m.name: m.result() for m in self.metrics}


def gan(options):
    x = np.random.RandomState(0).rand(88, 4).astype("float32")
    model = Gan(lambda optimizer: ExponentialMovingAverage(optimizer, 0.9))
    model.compile(jit_compile=False)
    return Network(model, Batches(x, batch_size=8, map=None), others=model.held)


def stateful(options):
    x = np.random.RandomState(0).rand(88, 5, 3).astype("float32")
    y = (x.sum((1, 2)) > 7.5).astype("int32")
    recurrent = layers.LSTM(4, stateful=True)
    stack = [keras.Input((5, 3), batch_size=8), recurrent, layers.Dropout(0.2)]
    model = keras.Sequential([*stack, layers.Dense(2)])
    compiled(model, options, loss=CLASSES, metrics=["accuracy"])
    return Network(
        model,
        Batches(x, y, 8, map=None),
        Batches(x[:16], y[:16], 8, map=None),
        lambda: list(recurrent.states),
    )


def dicts(options):
    """Inputs and targets by names, in an order that is not the alphabet's."""
    rng = np.random.RandomState(0)
    x = {"width": rng.rand(90, 3), "age": rng.rand(90, 3)}
    x = {name: value.astype("float32") for name, value in x.items()}
    y = {"size": x["width"].sum(1), "born": (x["age"][:, 0] > 0.5).astype("int32")}
    inputs = {"width": keras.Input((3,)), "age": keras.Input((3,))}
    joined = layers.Concatenate()(list(inputs.values()))
    hidden = layers.Dropout(0.2)(layers.Dense(6, "relu")(joined))
    outputs = {"size": layers.Dense(1)(hidden), "born": layers.Dense(2)(hidden)}
    model = compiled(
        keras.Model(inputs, outputs),
        options,
        steps=options.get("steps", 1),
        loss={"size": "mse", "born": CLASSES},
        metrics={"born": ["accuracy"]},
    )
    held_out = tuple({k: v[:20] for k, v in part.items()} for part in (x, y))
    return Network(model, Batches(x, y, 8, map=None), held_out)


def adapted(options):
    rng = np.random.RandomState(0)
    x = rng.rand(90, 4).astype("float32") * 50 + 10
    y = (x.sum(1) > 140).astype("int32")
    scale, bins = layers.Normalization(), layers.Discretization(num_bins=4)
    scale.adapt(x)
    bins.adapt(x)
    inputs = keras.Input((4,))
    found = layers.Flatten()(layers.Embedding(4, 2)(bins(inputs)))
    joined = layers.Concatenate()([scale(inputs), found])
    outputs = layers.Dense(2)(layers.Dropout(0.2)(joined))
    # Discretization of TensorFlow has no XLA kernel.
    options = {**options, "jit": False}
    model = compiled(keras.Model(inputs, outputs), options, loss=CLASSES)
    return Network(model, Batches(x, y, 8, map=None), (x[:20], y[:20]))


class Restless(layers.Layer):
    """Noise from a generator of its own, and a count of steps in a list."""

    def __init__(self):
        super().__init__()
        self.draws = keras.random.SeedGenerator(11)
        self.counts = [self.add_weight(shape=(), initializer="zeros", trainable=False)]

    def call(self, x, training=False):
        if not training:
            return x
        self.counts[0].assign_add(1.0)
        noise = keras.random.normal(keras.ops.shape(x), seed=self.draws)
        return x + noise / (10 + self.counts[0])


def fused(options):
    """Convolution, BatchNorm and GRU in one XLA program; the last batch is alone."""
    x, y = images(9 * 16 - 11)
    inputs = keras.Input((6, 6, 1))
    maps = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(inputs))
    rows = Restless()(layers.Reshape((4, 16))(maps))
    outputs = layers.Dense(3)(layers.Dropout(0.3)(layers.GRU(5)(rows)))
    model = FusedModel(inputs, outputs)
    model.compile(
        ExponentialMovingAverage("adam", 0.9),
        CLASSES,
        metrics=["accuracy"],
        steps_per_execution=1 if BACKEND == "torch" else 4,
        jit_compile=BACKEND != "torch",
    )
    return Network(model, Batches(x, y, 16), (x[:20] / np.float32(255), y[:20]))


# Stateful layers can't be trained on PyTorch, nor two optimizers on JAX, by Keras.
NETWORKS = {
    "tensorflow": [gan, stateful, dicts, adapted, fused],
    "jax": [stateful, dicts, adapted, fused],
    "torch": [gan, dicts, adapted, fused],
}


def network(options):
    """Make the network that the option `network` names."""
    return {each.__name__: each for each in NETWORKS[BACKEND]}[options["network"]](
        options
    )
