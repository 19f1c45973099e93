"""Stop the training when the loss is below 0.4, then when accuracy reaches 95 %.

The two wishes at which the Keras tutorial on Fashion-MNIST ends, on its network.
Writes `stop_at_threshold.png`. No network: the full data set if this machine has it,
else the sample in the package.
"""

from pathlib import Path

import keras
import matplotlib.pyplot as plt

from fmkit import callbacks, data, datasets, losses, models
from fmkit import visualization as draw


def train(batches: data.Batches, epochs: int, stop: callbacks.ThresholdStopping):
    """Train the tutorial's network anew until `stop` says so; return the history."""
    keras.utils.set_random_seed(0)
    model = models.mlp()
    model.compile("adam", losses.CrossentropyFromLogits(), metrics=["accuracy"])
    history = model.fit(batches, epochs=epochs, verbose=2, callbacks=[stop])
    # What stopped the run stands in the history too, for programs to read.
    print(history.params.get("stops", "no callback stopped this run"), "\n")
    return history


def main(epochs: int = 40, folder: str = "outputs") -> list[callbacks.Stop | None]:
    """Train twice, for at most `epochs` epochs; return the records of the stops."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    source = datasets.fashion_mnist
    found = source.find()
    (x, y), _ = source.load_data() if found else source.load_sample()
    print(f"{len(x)} images from {found or 'the sample that ships with fmkit'}")
    batches = data.Batches(x, y, batch_size=128, seed=0)

    low_loss = callbacks.ThresholdStopping("loss", 0.4, mode="<")
    accurate = callbacks.ThresholdStopping("accuracy", 0.95)
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    history = train(batches, epochs, low_loss)
    draw.learning_curves(history, threshold=0.4, title=title(low_loss), ax=left)
    history = train(batches, epochs, accurate)
    draw.learning_curves(
        history, "accuracy", threshold=0.95, title=title(accurate), ax=right
    )
    left.figure.savefig(output / "stop_at_threshold.png", dpi=120)
    plt.close(left.figure)
    return [low_loss.stop, accurate.stop]


def title(stop: callbacks.ThresholdStopping) -> str:
    """Say in a picture's title where the run was stopped."""
    if stop.stop is None:
        return "not reached"
    return (
        f"{stop.stop.monitor} {stop.stop.value:.4f} after epoch {stop.stop.epoch + 1}"
    )


if __name__ == "__main__":
    main()
