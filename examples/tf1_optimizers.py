"""Compare optimizers, batch sizes and steps, as the TensorFlow 1 course asks.

The course's network 784-500-10 on Fashion-MNIST, with the same initial weights in every
run: gradient descent with and without momentum, and Adam, each with three batch sizes.
They are evaluated on images held out of the training set. Writes `tf1_optimizers.png`
and `tf1_optimizers.md`. It needs no network: it uses the full data set if this machine
has it, and otherwise the sample that ships with fmkit.
"""

import importlib.util
from pathlib import Path
from typing import Any

import keras

from fmkit import callbacks, data, datasets, losses, models, preprocessing
from fmkit import visualization as draw

OPTIMIZERS = {
    "SGD, 0.1": {"class_name": "SGD", "config": {"learning_rate": 0.1}},
    "momentum 0.9, 0.1": {
        "class_name": "SGD",
        "config": {"learning_rate": 0.1, "momentum": 0.9},
    },
    "Adam, 0.001": {"class_name": "Adam", "config": {"learning_rate": 0.001}},
}


def train(
    parts: tuple, optimizer: str, batch_size: int, steps: int, every: int
) -> list[dict[str, Any]]:
    """Train one network; return one row per `every` steps."""
    training, (x_val, y_val) = parts
    batches = data.Batches(*training, batch_size=batch_size, seed=0)
    # The images are scaled once here, since they are evaluated many times.
    validation = callbacks.BatchValidation(
        preprocessing.preprocess(x_val, y_val), every=every, batch_size=1000
    )
    model = models.mlp((500,), seed=0)
    model.compile(
        keras.optimizers.get(OPTIMIZERS[optimizer]),
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
    )
    per_epoch = min(len(batches), steps)
    model.fit(
        batches,
        epochs=-(-steps // per_epoch),
        steps_per_epoch=per_epoch,
        callbacks=[validation],
        verbose=0,
    )
    return [
        {
            "optimizer": optimizer,
            "batch_size": batch_size,
            "steps": record["batch"],
            "accuracy": float(record["val_accuracy"]),
        }
        for record in validation.records
        if record["batch"] <= steps
    ]


def main(
    steps: int = 640,
    batch_sizes: tuple[int, ...] = (32, 128, 512),
    folder: str = "outputs",
) -> list[dict[str, Any]]:
    """Train each pair for `steps` steps; return all measurements."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    source = datasets.fashion_mnist
    found = source.find()
    training, _ = source.load_data() if found else source.load_sample()
    print(f"{len(training[0])} images from {found or 'the sample in fmkit'}")
    parts = preprocessing.split(*training, validation_split=0.1, seed=0)

    # So often that runs can be compared after the same number of images, too.
    every = steps * min(batch_sizes) // max(batch_sizes)
    rows = []
    for optimizer in OPTIMIZERS:
        for size in batch_sizes:
            rows += train(parts, optimizer, size, steps, every)
            print(f"{optimizer}, batches of {size}: {rows[-1]['accuracy']:.4f}")

    at = sorted({steps * min(batch_sizes) // size for size in batch_sizes})
    table = report(rows, at)
    print(table)
    (output / "tf1_optimizers.md").write_text(table + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        picture(rows, steps, batch_sizes, output / "tf1_optimizers.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return rows


def report(rows: list[dict[str, Any]], at: list[int]) -> str:
    """Return a table of the accuracy by optimizer, batch size and steps."""
    lines = [
        "| optimizer | batch size | "
        + " | ".join(f"{steps} steps" for steps in at)
        + " |",
        "|---|---:|" + "---:|" * len(at),
    ]
    accuracy = {
        (row["optimizer"], row["batch_size"], row["steps"]): row["accuracy"]
        for row in rows
    }
    runs = dict.fromkeys((row["optimizer"], row["batch_size"]) for row in rows)
    for optimizer, size in runs:
        cells = [f"{accuracy[optimizer, size, steps]:.4f}" for steps in at]
        lines.append(f"| {optimizer} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(
    rows: list[dict[str, Any]], steps: int, batch_sizes: tuple[int, ...], file: Path
) -> None:
    """Plot accuracy by steps, then by batch size at equal steps and equal images."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 3, figsize=(12, 3.8), sharey=True, layout="constrained"
    )
    middle = batch_sizes[len(batch_sizes) // 2]
    images = steps * min(batch_sizes)
    panels = [
        (f"batches of {middle}", "steps", lambda row: row["batch_size"] == middle),
        (f"after {steps} steps", "batch_size", lambda row: row["steps"] == steps),
        (
            f"after {images:,} images",
            "batch_size",
            lambda row: row["steps"] * row["batch_size"] == images,
        ),
    ]
    for ax, (title, setting, wanted) in zip(axes, panels, strict=True):
        draw.sweep(
            [row for row in rows if wanted(row)],
            setting,
            "accuracy",
            group="optimizer",
            log=setting == "batch_size",
            title=title,
            ax=ax,
        )
    for ax in axes[:2]:
        ax.get_legend().remove()
    for ax in axes[1:]:
        ax.set_ylabel("")
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
