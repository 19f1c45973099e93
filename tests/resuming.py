"""A small training that is broken off and resumed, for several test files."""

import keras
import numpy as np

import fmkit
from fmkit.callbacks import ExactResume
from fmkit.data import Batches


class StopError(Exception):
    """Ends a `fit` from inside, like an error of the user's own."""


class Stateless(keras.callbacks.Callback):
    """Resumes without a word, though it carries something from step to step."""

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise StopError


class Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append((self.epoch, batch))


X = np.random.RandomState(0).rand(40, 3).astype("float32")
Y = (X.sum(1) > 1.5).astype("int32")


def build(units=4, optimizer=None, learning_rate=0.01, steps=1):
    fmkit.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps,
    )
    return model


def data(**options):
    return Batches(X, Y, **{"batch_size": 8, "map": None, **options})


def fit(directory, *callbacks, epochs=2, model=None, batches=None, **options):
    model = model or build()
    resume = ExactResume(directory, **{"every": 2, "verbose": 0, **options})
    history = model.fit(
        batches or data(), epochs=epochs, verbose=0, callbacks=[resume, *callbacks]
    )
    return model, resume, history


def broken_and_resumed(directory, train, at=(1, 3)):
    """Break `train(directory, *callbacks)` off at a step, and run it again."""
    try:
        train(directory, StopAt(*at))
    except StopError:
        return train(directory)
    raise AssertionError(f"the training never came to {at}")
