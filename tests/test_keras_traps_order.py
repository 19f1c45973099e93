"""The traps of `fit(x, y)`: the order in which Keras takes the samples.

Up to 3.15 it follows the seed; from 3.16 on the number of the epoch within this `fit`
and nothing else. On TensorFlow all epochs have one order once a seed is set, up to 3.15
too. Beside each test stands the same run on `Batches`. A Keras that mends one, or has
it earlier, fails here.
"""

import keras
import numpy as np

from fmkit.data import Batches

BACKEND = keras.backend.backend()
# Pull request 23046 of Keras.
OPEN = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 16)
X = np.arange(48, dtype="float32")[:, None]


def mended(what):
    return (
        f"`fit(x, y)` of Keras {keras.__version__} {what}: change OPEN here, and what "
        "docs/comparison.md and docs/guides/data.md say of its order."
    )


class Noting(keras.Model):
    """Notes the samples that each step gets."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.noted = []

    def call(self, x):
        return self.dense(x)

    def train_step(self, *arguments):
        x = keras.ops.convert_to_numpy(arguments[-1][0])
        self.noted.append(np.array(x)[:, 0])
        return super().train_step(*arguments)


def orders(seed, source=None, epochs=3, fits=1):
    """The order of the samples in each epoch, after `set_random_seed(seed)`."""
    keras.utils.set_random_seed(seed)
    model = Noting()
    model.compile("sgd", "mse", run_eagerly=True)
    for _ in range(fits):
        if source is None:
            model.fit(X, X, batch_size=8, epochs=epochs, verbose=0)
        else:
            model.fit(source, epochs=epochs, verbose=0)
    found = np.concatenate(model.noted).reshape(fits * epochs, len(X)).astype(int)
    assert (np.sort(found) == np.arange(len(X))).all()
    return [tuple(order) for order in found.tolist()]


def batches(seed):
    return Batches(X, X, 8, seed=seed, map=None)


def test_the_order_of_fit_does_not_follow_the_seed():
    same = orders(1) == orders(2)
    assert same == OPEN, mended("follows no seed" if same else "follows the seed")
    # That of `Batches` does, and follows its own seed only.
    assert orders(1, batches(1)) == orders(2, batches(1))
    assert orders(1, batches(1)) != orders(1, batches(2))


def test_on_tensorflow_every_epoch_of_a_fit_has_one_order():
    count = len(set(orders(1)))
    expected = 1 if BACKEND == "tensorflow" else 3
    assert count == expected, mended(f"has {count} orders in 3 epochs")
    assert len(set(orders(1, batches(1)))) == 3


def test_a_second_fit_repeats_the_orders_of_the_first():
    found = orders(1, epochs=2, fits=2)
    repeated = found[2:] == found[:2]
    expected = OPEN or BACKEND == "tensorflow"
    assert repeated == expected, mended("repeats them" if repeated else "does not")
    found = orders(1, batches(1), epochs=2, fits=2)
    assert len(set(found)) == 4
