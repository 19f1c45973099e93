"""The GradientTape tutorial on Fashion-MNIST: its loop, and the same run with `fit`.

A network 784-256-128-64-32-10, Adam at 0.001, batches of 128, and the mean squared
error between one-hot labels and raw logits. Both losses are printed every 100 steps,
and the accuracy on the test images after each epoch. The loop and `fit` see the same
batches and start from the same weights, so they train the same network; a third run
trains with the cross-entropy. The tutorial uses `--epochs 20`.

Writes `tf2_gradient_tape.png` and `.md`. It needs no network: it uses the full data set
if this machine has it, and otherwise the sample that ships with fmkit. Keras must run
on TensorFlow.
"""

import argparse
import importlib.util
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from fmkit import data, datasets, losses, models
from fmkit import visualization as draw

LOSSES = {
    "mse": losses.mean_squared_error_from_logits,
    "crossentropy": losses.crossentropy_from_logits,
}


def start() -> tuple[keras.Model, keras.Optimizer]:
    """Return the network and its optimizer, the same at each call."""
    keras.utils.set_random_seed(0)
    return models.mlp(), keras.optimizers.Adam(1e-3)


def say(epoch: int, step: int, values: dict[str, float]) -> None:
    """Print both losses on one line."""
    numbers = "  ".join(f"{name} {values[name]:.4f}" for name in LOSSES)
    print(f"  epoch {epoch + 1:2}  step {step:3}  {numbers}")


def by_hand(
    train: data.Batches, test_batches: data.Batches, labels: np.ndarray, epochs: int
):
    """Train in a loop; return the model, its test accuracies and the printed losses."""
    model, optimizer = start()

    @tf.function  # compiled once; without this line it is the tutorial's eager loop
    def one_step(x, y):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            values = {name: ops.mean(loss(y, logits)) for name, loss in LOSSES.items()}
        gradients = tape.gradient(values["mse"], model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return values

    accuracies, printed = [], []
    for epoch in range(epochs):
        for step, (x, y) in enumerate(train.as_dataset(epoch)):
            values = one_step(x, y)
            if step % 100 == 0:
                say(epoch, step, {name: float(value) for name, value in values.items()})
                at = epoch * len(train) + step
                printed += [
                    {"step": at, "loss": name, "value": float(values[name])}
                    for name in LOSSES
                ]
        predicted = model.predict(test_batches, verbose=0).argmax(-1)
        accuracies.append(float(np.mean(predicted == labels)))
        print(f"epoch {epoch + 1}: {accuracies[-1]:.4f} of the test images\n")
    return model, accuracies, printed


class EveryHundredSteps(keras.callbacks.Callback):
    """Print the losses every 100 steps, as means over the epoch so far."""

    def on_epoch_begin(self, epoch, logs=None):
        """Remember the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Print at the same steps as the tutorial."""
        if batch % 100 == 0:
            say(self.epoch, batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Print the accuracy that `fit` has just measured."""
        print(f"epoch {epoch + 1}: {logs['val_accuracy']:.4f} of the test images\n")


def by_fit(train: data.Batches, test_batches: data.Batches, epochs: int, loss):
    """Train with `fit`; return the model and its test accuracies."""
    model, optimizer = start()
    wrapper = keras.metrics.MeanMetricWrapper
    both = [wrapper(function, name=name) for name, function in LOSSES.items()]
    model.compile(optimizer, loss, metrics=["accuracy", *both])
    train.seek(0)
    history = model.fit(
        train,
        epochs=epochs,
        validation_data=test_batches,
        verbose=0,
        callbacks=[EveryHundredSteps()],
    )
    return model, history.history["val_accuracy"]


def table(columns: dict[str, list[float]]) -> str:
    """Return the test accuracies as a Markdown table, one row per epoch."""
    lines = [
        "| epoch | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for epoch, row in enumerate(zip(*columns.values(), strict=True), start=1):
        lines.append(
            f"| {epoch} | " + " | ".join(f"{value:.4f}" for value in row) + " |"
        )
    return "\n".join(lines) + "\n"


def main(epochs: int = 6, folder: str = "outputs") -> dict[str, list[float]]:
    """Train three times; return the test accuracies after each epoch."""
    if keras.backend.backend() != "tensorflow":
        raise SystemExit("GradientTape needs TensorFlow: set KERAS_BACKEND=tensorflow.")
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    source = datasets.fashion_mnist
    found = source.find()
    (x, y), test = source.load_data() if found else source.load_sample()
    print(f"{len(x)} images from {found or 'the sample that ships with fmkit'}\n")
    train = data.Batches(x, y, batch_size=128, seed=0)
    test_batches = data.Batches(*test, batch_size=1000, shuffle=False)

    print("The loop, with the mean squared error")
    by_loop, looped, printed = by_hand(train, test_batches, test[1], epochs)
    print("`fit`, with the mean squared error")
    fitted, same = by_fit(
        train, test_batches, epochs, losses.MeanSquaredErrorFromLogits()
    )
    gap = np.abs(
        by_loop.predict(test_batches, verbose=0)
        - fitted.predict(test_batches, verbose=0)
    )
    print(f"The logits of the two differ by {gap.max():.2g} at most.\n")
    print("`fit`, with the cross-entropy")
    _, other = by_fit(train, test_batches, epochs, losses.CrossentropyFromLogits())

    columns = {"loop, MSE": looped, "fit, MSE": same, "fit, cross-entropy": other}
    (output / "tf2_gradient_tape.md").write_text(table(columns), encoding="utf-8")
    print(table(columns))
    if importlib.util.find_spec("matplotlib"):
        picture(printed, columns, output / "tf2_gradient_tape.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return columns


def picture(printed: list[dict], columns: dict[str, list[float]], file: Path) -> None:
    """Draw the losses that the loop printed, and each run's accuracies."""
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw.sweep(printed, "step", "value", group="loss", title="the loop", ax=left)
    left.set(yscale="log", ylabel="loss of one batch")
    left.legend(frameon=False, loc="center right")
    runs = [
        {"epoch": epoch, "test accuracy": value, "run": run}
        for run, column in columns.items()
        for epoch, value in enumerate(column, start=1)
    ]
    draw.sweep(runs, "epoch", "test accuracy", group="run", ax=right)
    right.legend(frameon=False, loc="lower right")
    right.xaxis.get_major_locator().set_params(integer=True)
    left.figure.savefig(file, dpi=120)
    plt.close(left.figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6, help="the tutorial uses 20")
    main(**vars(parser.parse_args()))
