"""Networks, data and arguments of `compile` that a fused step must train as Keras does.

On PyTorch to the bit, on TensorFlow and JAX within the rounding of another program.
"""

import keras
import numpy as np
from bits import state

import fmkit
from fmkit import losses, optimizers, schedules
from fmkit.data import Batches

K = keras.layers

ROWS, SIZE = 46, 4  # eleven whole batches, and one of two rows
rng = np.random.default_rng(0)
IMAGES = rng.random((ROWS, 6, 6, 2), np.float32)
ROWS_OF_6 = rng.random((ROWS, 6), np.float32)
WORDS = rng.integers(0, 5, (ROWS, 4)).astype("int32")
LABELS = rng.integers(0, 3, ROWS).astype("int32")
WEIGHTS = rng.random(ROWS).astype("float32")


def dense(*between, size=6):
    inputs = keras.Input((size,))
    x = inputs
    for layer in (K.Dense(8, "relu"), *between):
        x = layer(x)
    return inputs, K.Dense(3)(x)


def convolutional():
    inputs = keras.Input((6, 6, 2))
    x = K.Conv2D(4, 3, activation="relu", kernel_regularizer="l2")(inputs)
    x = K.BatchNormalization()(x)
    x = K.MaxPooling2D(2)(x)
    x = K.Flatten()(K.SpatialDropout2D(0.3)(x))
    return inputs, K.Dense(3, activity_regularizer="l2")(x)


def pooled():
    inputs = x = keras.Input((12, 12, 2))
    for filters in (4, 8):
        x = K.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = K.Activation("relu")(K.BatchNormalization()(x))
        x = K.MaxPooling2D(2)(K.Conv2D(filters, 3, activation="relu")(x))
        x = K.BatchNormalization()(x)
    return inputs, K.Dense(3)(K.GlobalAveragePooling2D()(x))


def masked():
    inputs = keras.Input((4,), dtype="int32")
    x = K.Embedding(5, 6, mask_zero=True)(inputs)
    return inputs, K.Dense(3)(K.LSTM(4)(x))


def two_outputs():
    inputs = keras.Input((6,), name="rows")
    x = K.Dense(8, "gelu")(inputs)
    return inputs, {
        "kind": K.Dense(3, name="kind")(x),
        "sum": K.Dense(1, name="sum")(x),
    }


def compiled(kind, made=dense, optimizer=None, loss=None, **options):
    """The same network with the same start, whatever `kind` of model it becomes."""
    fmkit.set_random_seed(3)
    model = kind(*made())
    options = {"metrics": ["accuracy"], **options}
    optimizer = optimizer() if optimizer else keras.optimizers.Adam(0.01)
    model.compile(optimizer, loss or losses.CrossentropyFromLogits(), **options)
    return model


def rows(x=ROWS_OF_6, y=LABELS, **options):
    return Batches(x, y, SIZE, map=None, **{"seed": 1, **options})


def trained(kind, data=rows, fit=None, **options):
    model = compiled(kind, **options)
    history = model.fit(**{"x": data(), "epochs": 3, "verbose": 0, **(fit or {})})
    return model, history.history, state(model)


class LooksAtValues(K.Layer):
    def call(self, x):
        return x * 2 if keras.ops.mean(x) > 0.3 else x


CASES = {
    "an `if` over values": {"made": lambda: dense(LooksAtValues())},
    "Adam": {},
    "noise with and without a seed": {
        "made": lambda: dense(
            K.Dropout(0.2), K.GaussianNoise(0.1), K.Dropout(0.2, seed=4)
        )
    },
    "convolutions, regularizers": {
        "made": convolutional,
        "data": lambda: rows(IMAGES),
    },
    "pooling before and after BatchNorm": {
        "made": pooled,
        "data": lambda: rows(np.tile(IMAGES, (1, 2, 2, 1))),
    },
    "masks and a recurrent layer": {"made": masked, "data": lambda: rows(WORDS)},
    "several outputs and losses": {
        "made": two_outputs,
        "data": lambda: rows(ROWS_OF_6, {"kind": LABELS, "sum": WEIGHTS[:, None]}),
        "loss": {"kind": losses.CrossentropyFromLogits(), "sum": "mse"},
        "loss_weights": {"kind": 1.0, "sum": 0.5},
        "metrics": {"kind": ["accuracy"], "sum": ["mae"]},
    },
    "weights of samples": {
        "data": lambda: rows(sample_weight=WEIGHTS),
        "weighted_metrics": ["accuracy"],
    },
    "weights of classes": {"fit": {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}},
    "clipping and a schedule": {
        "optimizer": lambda: keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(0.01, 40, warmup_steps=5),
            global_clipnorm=0.5,
        )
    },
    "accumulation": {
        "optimizer": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3)
    },
    "average": {
        "optimizer": lambda: optimizers.ExponentialMovingAverage(
            keras.optimizers.SGD(schedules.ExponentialDecay(0.1, 5, 0.9), 0.9), 0.95
        )
    },
    "Keras's average": {
        "optimizer": lambda: keras.optimizers.SGD(
            0.1, nesterov=True, momentum=0.9, use_ema=True, ema_overwrite_frequency=5
        )
    },
}
