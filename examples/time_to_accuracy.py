"""Time to reach a test accuracy: small networks, one recipe each.

    KERAS_BACKEND=jax python time_to_accuracy.py short   # seconds
    python time_to_accuracy.py dense
    python time_to_accuracy.py residual_36      # minutes

Every recipe was chosen on 5,000 validation images held out of the training set. Here it
trains on all 60,000 training images for a fixed number of epochs, and the test images
are used once, at the end. The clock starts on the next line.
"""

import time

START = time.perf_counter()

import argparse  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

from fmkit import (  # noqa: E402
    augmentation,
    data,
    datasets,
    losses,
    models,
    performance,
)


@dataclass(frozen=True)
class Recipe:
    """The training settings of a network."""

    epochs: int
    batch_size: int
    rate: float  # the peak of the one cycle
    compiled: bool = False  # by XLA: worth it for matrix products, not convolutions
    decay: float = 0.0  # of the weights; 0 means Adam, otherwise SGD with momentum
    smoothing: float = 0.0  # of the labels
    mirrored: bool = False  # each image every other epoch, and both sides at the end
    moved: bool = False  # and partly erased; at the end, moved by a pixel as well
    bfloat16: bool = False  # in the layers: sooner where the processor multiplies it


RECIPES = {
    "short": Recipe(epochs=6, batch_size=256, rate=0.02, compiled=True),
    "dense": Recipe(epochs=6, batch_size=256, rate=0.01, compiled=True),
    "two_strided": Recipe(epochs=3, batch_size=256, rate=0.01),
    "three_strided": Recipe(epochs=5, batch_size=256, rate=0.01),
    "mirrored": Recipe(20, batch_size=256, rate=0.01, smoothing=0.1, mirrored=True),
    "moved": Recipe(
        40, 256, rate=0.2, decay=0.005, smoothing=0.1, mirrored=True, moved=True
    ),
    "wide": Recipe(
        40,
        256,
        rate=0.2,
        decay=0.005,
        smoothing=0.1,
        mirrored=True,
        moved=True,
        bfloat16=True,
    ),
    "residual_8": Recipe(8, batch_size=128, rate=0.1, decay=0.005, smoothing=0.1),
    "residual_16": Recipe(16, batch_size=128, rate=0.1, decay=0.005, smoothing=0.1),
    "residual_36": Recipe(36, batch_size=128, rate=0.1, decay=0.005, smoothing=0.1),
}


def strided(filters: tuple[int, ...], first: int, seed: int) -> keras.Model:
    """Return convolutions with BatchNorm, each of which halves the image."""
    network = keras.Sequential([keras.Input((28, 28, 1))], name="strided")
    for index, count in enumerate(filters):
        side = 3 if index else first
        start = keras.initializers.HeNormal(seed=seed + index)
        network.add(
            layers.Conv2D(
                count,
                side,
                strides=2,
                padding="same",
                use_bias=False,
                kernel_initializer=start,
            )
        )
        network.add(layers.BatchNormalization(momentum=0.9))
        network.add(layers.Activation("relu"))
    network.add(layers.Flatten())
    network.add(layers.Dense(10))
    return network


def residual(seed: int) -> keras.Model:
    """Return the residual network behind random mirroring and erasing."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.RandomFlip("horizontal", seed=seed),
            layers.RandomErasing(
                0.5, scale=(0.02, 0.2), value_range=(0, 1), fill_value=0.0, seed=seed
            ),
            models.small_resnet(input_shape=(28, 28, 1), seed=seed),
        ]
    )


def blocks(filters: tuple[int, ...], first: int, seed: int) -> keras.Model:
    """Return pairs of convolutions with BatchNorm, each pair at half the size.

    Without a `first` convolution at the full size, four pixels of the image become one
    with four channels, which takes less time.
    """
    draws = iter(range(100 * seed, 100 * seed + 100))
    network = keras.Sequential([keras.Input((28, 28, 1))], name="blocks")

    def convolution(count: int, *, pools: bool) -> None:
        start = keras.initializers.HeNormal(seed=next(draws))
        network.add(
            layers.Conv2D(
                count, 3, padding="same", use_bias=False, kernel_initializer=start
            )
        )
        if pools:
            network.add(layers.MaxPooling2D(2))
        network.add(layers.BatchNormalization(momentum=0.9))
        network.add(layers.Activation("relu"))

    if first:
        convolution(first, pools=False)
    else:
        network.add(layers.Reshape((14, 2, 14, 2)))
        network.add(layers.Permute((1, 3, 2, 4)))
        network.add(layers.Reshape((14, 14, 4)))
    for index, count in enumerate(filters):
        convolution(count, pools=index > 0 or first > 0)
        convolution(count, pools=False)
    network.add(layers.GlobalAveragePooling2D())
    network.add(layers.Dense(10, dtype="float32"))  # logits to be averaged
    return network


def moved(model: keras.Model) -> keras.Model:
    """Return a model that averages the logits of an image and of four moved ones.

    Up, down, left and right by a pixel; the image itself counts twice.
    """
    image = keras.Input(model.input_shape[1:])
    around = keras.ops.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    logits = 2 * model(image)
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        logits = logits + model(around[:, down : down + 28, right : right + 28])
    return keras.Model(image, logits / 6)


def both_sides(model: keras.Model) -> keras.Model:
    """Return a model that averages the logits of an image and its mirror image."""
    image = keras.Input(model.input_shape[1:])
    logits = (model(image) + model(keras.ops.flip(image, axis=2))) / 2
    return keras.Model(image, logits)


def augmentations(recipe: Recipe) -> list[Callable[..., Any]]:
    """Return what is done to the images of each epoch."""
    found: list[Callable[..., Any]] = []
    if recipe.mirrored:
        found += [augmentation.AlternatingFlip()]
    if recipe.moved:
        erasing = augmentation.RandomErasing(0.25, area=(0.02, 0.2))
        found += [augmentation.Shift(1), erasing]
    return found


def build(name: str, seed: int) -> keras.Model:
    """Return the network of a recipe."""
    if name in ("short", "dense"):
        units = (128,) if name == "short" else (512,)
        # Drawn by NumPy: JAX would compile one generator per shape, over a second.
        generator = np.random.default_rng(seed)

        def he_normal(shape: tuple[int, ...], dtype: str) -> np.ndarray:
            return generator.normal(0, (2 / shape[0]) ** 0.5, shape).astype(dtype)

        return models.mlp(
            units,
            input_shape=(28, 28, 1),
            batch_norm=True,
            kernel_initializer=he_normal,
            seed=seed,
        )
    if name.startswith("residual"):
        return residual(seed)
    if name == "moved":
        return blocks((32, 48, 56), 0, seed)
    if name == "wide":
        return blocks((32, 64, 128), 16, seed)
    if name == "two_strided":
        return strided((32, 64), 5, seed)
    return strided((32, 64, 64), 4, seed)


def main(
    name: str = "dense",
    seed: int = 0,
    epochs: int | None = None,
    *,
    validation: bool = False,
) -> tuple[float, float]:
    """Train with a recipe; return the accuracy and the seconds since the first line.

    With `validation=True` the last 5,000 training images are held out and evaluated
    instead of the test images: this is how the recipes were chosen.
    """
    recipe = RECIPES[name]
    epochs = epochs or recipe.epochs
    # Each part below gets the seed: keras.utils.set_random_seed would import
    # TensorFlow on any backend, which takes two seconds.
    source = datasets.fashion_mnist
    loaded = source.load_data() if source.find() else source.load_sample()
    (x, y), (x_test, y_test) = loaded
    if validation:
        x, y, x_test, y_test = x[:-5000], y[:-5000], x[-5000:], y[-5000:]
    train = data.Batches(
        x[..., None],
        y,
        batch_size=recipe.batch_size,
        drop_remainder=recipe.compiled,  # one program to compile, not two
        seed=seed,
        augment=augmentations(recipe),
    )
    held_out = data.Batches(x_test[..., None], batch_size=1000)

    steps = epochs * len(train)
    slow_start = steps // 5 if recipe.decay else steps // 4
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.rate / 10,
        steps - slow_start,
        warmup_target=recipe.rate,
        warmup_steps=slow_start,
    )
    if recipe.decay:
        optimizer = keras.optimizers.SGD(
            rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay
        )
    else:
        optimizer = keras.optimizers.Adam(rate, beta_2=0.98)
    if recipe.bfloat16:
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = build(name, seed)
    eager = keras.backend.backend() == "torch"
    if recipe.compiled and keras.backend.backend() == "tensorflow":
        # On JAX its program takes longer to compile than it saves in so few epochs.
        model = performance.FusedModel(model.inputs, model.outputs)
    model.compile(
        optimizer,
        losses.CrossentropyFromLogits(label_smoothing=recipe.smoothing),
        jit_compile=recipe.compiled and not eager,
        steps_per_execution=1 if eager else 20,
    )
    model.fit(train, epochs=epochs, verbose=0)
    if recipe.mirrored or name.startswith("residual"):  # it has seen mirror images
        model = both_sides(model)
    if recipe.moved:
        model = moved(model)
    predicted = model.predict(held_out, verbose=0).argmax(axis=-1)
    return float((predicted == y_test).mean()), time.perf_counter() - START


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=RECIPES, nargs="?", default="dense")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--validation", action="store_true")
    given = parser.parse_args()
    accuracy, seconds = main(**vars(given))
    kind = "validation" if given.validation else "test"
    print(f"{given.name}: {kind} accuracy {accuracy:.4f} after {seconds:.1f} s")
