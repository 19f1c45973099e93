"""The first tutorial's program, as it runs today: its own pipeline and eager loop.

    python benchmarks/_tutorial_program.py [--epochs 20] [--seed 0]

Prints the accuracy on the 10,000 test images after each epoch, with the seconds since
the first line. Nothing of fmkit is in it but the function that finds the files, which
the tutorial downloads.
"""

import time

START = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402

import tensorflow as tf  # noqa: E402
from tensorflow import keras  # noqa: E402

from fmkit.datasets import fashion_mnist  # noqa: E402


def preprocess(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale one image, cast one label."""
    return tf.cast(x, tf.float32) / 255.0, tf.cast(y, tf.int32)


def main(epochs: int, seed: int) -> None:
    """Train and test, epoch by epoch."""
    keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = fashion_mnist.load_data()
    train = tf.data.Dataset.from_tensor_slices((x, y))
    train = train.map(preprocess).shuffle(10000).batch(128)
    test = tf.data.Dataset.from_tensor_slices((x_test, y_test))
    test = test.map(preprocess).batch(128)

    widths = (256, 128, 64, 32)
    model = keras.Sequential(
        [keras.layers.Dense(width, activation="relu") for width in widths]
        + [keras.layers.Dense(10)]
    )
    model.build((None, 784))
    optimizer = keras.optimizers.Adam(learning_rate=1e-3)
    for epoch in range(epochs):
        for images, labels in train:
            flat = tf.reshape(images, (-1, 784))
            with tf.GradientTape() as tape:
                logits = model(flat)
                targets = tf.one_hot(labels, depth=10)
                squared = tf.reduce_mean(tf.square(targets - logits))
                crossed = tf.reduce_mean(
                    keras.losses.categorical_crossentropy(
                        targets, logits, from_logits=True
                    )
                )
            grads = tape.gradient(crossed, model.trainable_variables)
            optimizer.apply_gradients(
                zip(grads, model.trainable_variables, strict=True)
            )
        right = 0
        for images, labels in test:
            logits = model(tf.reshape(images, (-1, 784)))
            guess = tf.cast(tf.argmax(tf.nn.softmax(logits, axis=1), axis=1), tf.int32)
            right += int(tf.reduce_sum(tf.cast(tf.equal(guess, labels), tf.int32)))
        told = {
            "epoch": epoch + 1,
            "accuracy": right / len(x_test),
            "seconds": time.perf_counter() - START,
            "losses": [float(crossed), float(squared)],
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
