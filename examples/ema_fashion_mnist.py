"""Train at a high, decaying rate and compare the raw weights with their averages.

The TensorFlow 1 tutorials' recipe on real Fashion-MNIST: a staircase learning-rate
decay and averages of the weights. Writes a figure and `best.keras`. It needs no
network: it uses the full data set if this machine has it, and otherwise the sample that
ships with fmkit.
"""

import importlib.util
from pathlib import Path

import keras

from fmkit import callbacks, data, datasets, losses, models, optimizers, preprocessing
from fmkit import visualization as draw
from fmkit.schedules import ExponentialDecay

FIGURE = "averages-fashion-mnist.png"


def accuracy(model: keras.Model, batches: data.Batches, calls: list = ()) -> float:
    """Return the accuracy of `model` on `batches`."""
    logs = model.evaluate(batches, callbacks=list(calls), verbose=0, return_dict=True)
    return logs["accuracy"]


def main(epochs: int = 20, folder: str = "outputs") -> dict[str, list[float]]:
    """Train for `epochs` epochs; return the raw and averaged accuracies of each."""
    (output := Path(folder)).mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    source, found = datasets.fashion_mnist, datasets.fashion_mnist.find()
    training, test = source.load_data() if found else source.load_sample()
    print(f"Fashion-MNIST from {found or 'the sample that ships with fmkit'}")
    train, val = preprocessing.split(*training, validation_split=0.1, seed=0)
    batches = data.Batches(*train, batch_size=128, seed=0)
    validation = data.Batches(*val, batch_size=1000, shuffle=False)
    test_batches = data.Batches(*test, batch_size=1000, shuffle=False)

    # 0.2 is a high rate for this network: the accuracy fluctuates for many epochs.
    rate = ExponentialDecay.from_epochs(
        0.2, 0.95, num_examples=len(train[0]), batch_size=128, staircase=True
    )
    model = models.mlp()
    model.compile(
        optimizers.ExponentialMovingAverage(keras.optimizers.SGD(rate), decay=0.998),
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
    )
    # Validation, the checkpoint's score and the weights it saves all use the averages.
    with_averages = callbacks.EvaluateWithAverages(raw_validation_data=validation)
    best = keras.callbacks.ModelCheckpoint(
        output / "best.keras", monitor="val_accuracy", save_best_only=True
    )
    calls = [with_averages, best, callbacks.LearningRateLogger()]
    seen: dict[str, list[float]] = {"test_raw": [], "test_averaged": []}
    for epoch in range(epochs):
        # One epoch at a time, to test both sets of weights; no state is lost between.
        span = {"initial_epoch": epoch, "epochs": epoch + 1, "callbacks": calls}
        history = model.fit(batches, validation_data=validation, verbose=2, **span)
        for name, values in history.history.items():
            seen.setdefault(name, []).extend(values)
        seen["test_raw"].append(accuracy(model, test_batches))
        seen["test_averaged"].append(accuracy(model, test_batches, [with_averages]))

    raw, averaged = seen["test_raw"], seen["test_averaged"]
    if importlib.util.find_spec("matplotlib"):
        picture(raw, averaged, output / FIGURE)
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    # The epoch is chosen by validation; the test images only measure its accuracy.
    chosen = accuracy(keras.saving.load_model(output / "best.keras"), test_batches)
    print(
        f"\nTest after {epochs} epochs: raw {raw[-1]:.4f}, averaged {averaged[-1]:.4f}"
    )
    print(f"Test of best.keras, chosen by validation: {chosen:.4f}")
    return seen


def picture(raw: list[float], averaged: list[float], file: Path) -> None:
    """Draw both test accuracies over the epochs."""
    import matplotlib.pyplot as plt

    epochs = range(1, len(raw) + 1)
    labels = {"metric": "test accuracy", "xlabel": "epoch"}
    ax = draw.raw_against_averaged(raw, averaged, steps=epochs, **labels)
    ax.set_xticks(range(5, len(raw) + 1, 5))
    ax.figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(ax.figure)


if __name__ == "__main__":
    main()
