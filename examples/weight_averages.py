"""Which average of the weights to use: all of them, side by side, in one training.

Real Fashion-MNIST, the network of the first tutorial, five seeds, each with a constant
learning rate and with one that falls. One `fit` keeps six averages. The length of the
last is chosen after training: `synthesize` makes it from the snapshots of two, and the
validation images choose. The test images are looked at once, at the end. Writes a
figure and a table. It needs no network: it uses the full data set if this machine has
it, and otherwise the sample that ships with fmkit.
"""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

import fmkit
from fmkit import callbacks, data, datasets, losses, models, preprocessing
from fmkit import visualization as draw
from fmkit.evaluation import sweep_widths, synthesize
from fmkit.optimizers import EqualRule, PowerRule, WeightAverages, averaged
from fmkit.performance import fit_settings, fused
from fmkit.schedules import ExponentialDecay

FIGURE = "weight_averages.png"
WIDTHS = (0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25)
RATE = 0.001
BATCH = 128


def optimizer(rate: Any, steps: int) -> WeightAverages:
    """Adam with six averages; the equal one begins after three quarters of `steps`."""
    swa = EqualRule(start_step=steps * 3 // 4, update_interval=20)
    rules = [0.99, 0.998, 0.9995, swa, PowerRule(0.05), PowerRule(0.15)]
    return WeightAverages(keras.optimizers.Adam(rate), rules)


def one_run(
    seed: int, falls: bool, epochs: int, splits: tuple, folder: Path
) -> list[dict[str, Any]]:
    """Train once; return the test accuracy of each kind of weights."""
    train, validation, test = splits
    fmkit.set_random_seed(seed)
    batches = data.Batches(*train, batch_size=BATCH, seed=seed)
    steps = epochs * len(batches)
    # To a hundredth of the rate in the end.
    rate = ExponentialDecay(RATE, steps, 0.01) if falls else RATE
    model = fused(models.mlp((256, 128)))
    settings = fit_settings(model, batches, epochs=epochs)
    model.compile(
        optimizer(rate, steps),
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
        **settings.compile,
    )
    resume = callbacks.ExactResume(folder, every=100, verbose=0)
    model.fit(**settings.fit, epochs=epochs, verbose=0, callbacks=[resume])

    def accuracy(model: keras.Model) -> float:
        return model.evaluate(test, verbose=0, return_dict=True)["accuracy"]

    found = {"raw": accuracy(model)}
    for name in ("ema_0.99", "ema_0.998", "ema_0.9995", "swa"):
        with averaged(model, name):
            found[name] = accuracy(model)
    # The images of the validation set choose the width.
    widths = sweep_widths(folder, validation, WIDTHS, model=model)
    best = max(widths, key=lambda row: row["accuracy"])["width"]
    found["chosen width"] = accuracy(synthesize(folder, best, model=model).model)
    kind = "falling rate" if falls else "constant rate"
    print(f"{kind}, seed {seed}: width {best}, " + ", ".join(map(str, found.items())))
    return [
        {"weights": name, "test accuracy": value, "rate": kind, "width": best}
        for name, value in found.items()
    ]


def main(
    epochs: int = 20, seeds: int = 5, folder: str = "outputs"
) -> list[dict[str, Any]]:
    """Train `2 * seeds` times; return the accuracies, and draw them."""
    (output := Path(folder)).mkdir(parents=True, exist_ok=True)
    source, found = datasets.fashion_mnist, datasets.fashion_mnist.find()
    training, test = source.load_data() if found else source.load_sample()
    print(f"Fashion-MNIST from {found or 'the sample that ships with fmkit'}")
    train, held_out = preprocessing.split(*training, validation_split=1 / 12, seed=0)
    fixed = [
        data.Batches(*each, batch_size=1000, shuffle=False) for each in (held_out, test)
    ]
    rows = []
    for falls in (False, True):
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as own:
                splits = (train, *fixed)
                rows += one_run(seed, falls, epochs, splits, Path(own))
    text = table(rows)
    (output / "weight_averages.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")
    if importlib.util.find_spec("matplotlib"):
        picture(rows, output / FIGURE)
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the mean accuracy of each kind of weights, and its range, in Markdown."""
    lines = ["| rate | weights | mean | lowest | highest |", "|---|---|---:|---:|---:|"]
    for rate, weights in dict.fromkeys((r["rate"], r["weights"]) for r in rows):
        values = [
            row["test accuracy"]
            for row in rows
            if (row["rate"], row["weights"]) == (rate, weights)
        ]
        numbers = (np.mean(values), min(values), max(values))
        told = " | ".join(f"{number:.4f}" for number in numbers)
        lines.append(f"| {rate} | {weights} | {told} |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the accuracies: a mark for the mean, a bar from lowest to highest."""
    import matplotlib.pyplot as plt

    ax = draw.sweep(rows, "weights", "test accuracy", group="rate")
    ax.figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(ax.figure)


if __name__ == "__main__":
    main()
