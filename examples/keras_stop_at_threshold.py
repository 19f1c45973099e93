"""The Keras tutorial on Fashion-MNIST, and the two goals it ends with.

Its network 784-128-10 is trained until the loss is below 0.4, then until the accuracy
is 95 %, which takes so long that the test images show overfitting at 15 and 30 epochs.
Its experiments follow: unscaled pixels, a wider and a deeper network. Its two mistakes
are refused before training: images that are not flattened, and five outputs for ten
classes.

Writes `keras_stop_at_threshold.png` and `.md`. It needs no network: it uses the full
data set if this machine has it, and otherwise the sample that ships with fmkit.
"""

import importlib.util
from pathlib import Path

import keras

import fmkit
from fmkit import callbacks, data, datasets, losses, models
from fmkit import visualization as draw
from fmkit.preprocessing import Preprocess


def mistakes(labels) -> list[str]:
    """Build two networks that can't learn these labels; return fmkit's messages."""
    layers = [keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
    wrong = {
        "Not flattened": keras.Sequential([keras.Input((28, 28)), *layers]),
        "Five outputs": models.mlp((128,), num_classes=5),
    }
    said = []
    for name, model in wrong.items():
        try:
            models.check_outputs(model, labels)
        except ValueError as error:
            said.append(f"{name}: {error}")
    return said


def train(splits, epochs: int, *stops, units=(128,), scale=fmkit.preprocess):
    """Train a new network until a callback stops it; return the history."""
    (x, y), test = splits
    keras.utils.set_random_seed(0)
    model = models.mlp(units)
    models.check_outputs(model, y)
    model.compile(
        "adam",
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
        steps_per_execution=25,  # the same numbers, in less time
    )
    history = model.fit(
        data.Batches(x, y, batch_size=64, seed=0, map=scale),
        validation_data=data.Batches(*test, batch_size=1000, map=scale),
        epochs=epochs,
        verbose=0,
        callbacks=[*stops],
    )
    # The history records what stopped the run.
    for stop in history.params.get("stops", []):
        print(stop["message"])
    return history


def row(name: str, history: keras.callbacks.History, epoch: int) -> str:
    """Return a row of the table: the values after `epoch` epochs."""
    columns = ("loss", "val_loss", "accuracy", "val_accuracy")
    numbers = " | ".join(f"{history.history[key][epoch - 1]:.4f}" for key in columns)
    return f"| {name} | {epoch} | {numbers} |"


def main(epochs: int = 40, folder: str = "outputs") -> list[callbacks.Stop | None]:
    """Train for at most `epochs` epochs; return the records of the two stops."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    source = datasets.fashion_mnist
    found = source.find()
    splits = source.load_data() if found else source.load_sample()
    print(f"Fashion-MNIST from {found or 'the sample that ships with fmkit'}")
    print(*mistakes(splits[0][1]), sep="\n")

    low_loss = callbacks.ThresholdStopping("loss", 0.4, mode="<")
    accurate = callbacks.ThresholdStopping("accuracy", 0.95)
    short = train(splits, epochs, low_loss)
    long = train(splits, epochs, accurate)
    few = min(5, epochs)
    others = {
        "not normalised": train(splits, few, scale=Preprocess(std=1.0)),
        "wider: 512": train(splits, few, units=(512,)),
        "deeper: 512, 256": train(splits, few, units=(512, 256)),
    }

    last = len(long.epoch)
    seen = [epoch for epoch in (few, 15, 30) if epoch < last]
    rows = [row("loss < 0.4", short, len(short.epoch))]
    rows += [row("128 units", long, epoch) for epoch in seen]
    rows += [row("accuracy 95 %" if accurate.stop else "128 units", long, last)]
    rows += [row(name, history, few) for name, history in others.items()]
    head = "| run | epochs | loss | test loss | accuracy | test accuracy |"
    text = "\n".join([head, "|---" * 6 + "|", *rows])
    (output / "keras_stop_at_threshold.md").write_text(text + "\n", encoding="utf-8")
    print(text)

    if importlib.util.find_spec("matplotlib"):
        stops = [(low_loss, short), (accurate, long)]
        picture(stops, others, seen[1:], output / "keras_stop_at_threshold.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return [low_loss.stop, accurate.stop]


def picture(stops: list[tuple], others: dict, marks: list[int], file: Path) -> None:
    """Draw the two runs that stop, the overfitting, and the networks beside it."""
    import matplotlib.pyplot as plt

    (low_loss, short), (accurate, long) = stops
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
    draw.learning_curves(short, threshold=0.4, title=title(low_loss), ax=axes[0, 0])
    draw.learning_curves(
        long, "accuracy", threshold=0.95, title=title(accurate), ax=axes[0, 1]
    )
    draw.learning_curves(long, best="min", title="overfitting", ax=axes[1, 0])
    for epoch in marks:
        axes[1, 0].axvline(epoch, color="grey", linestyle=":")
    few = min(5, len(long.epoch))
    results = [
        {"network": name, "test accuracy": history.history["val_accuracy"][few - 1]}
        for name, history in {"128 units": long, **others}.items()
    ]
    draw.sweep(
        results, "network", "test accuracy", title=f"{few} epochs", ax=axes[1, 1]
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def title(stopping: callbacks.ThresholdStopping) -> str:
    """Return a plot title that says where the run stopped."""
    if (stop := stopping.stop) is None:
        return "not reached"
    return f"{stop.monitor} {stop.value:.4f} after epoch {stop.epoch + 1}"


if __name__ == "__main__":
    main()
