"""A learning-rate range test: a figure of the guide "Learning-rate schedules".

`python docs/figures/range.py [folder]` draws it: the tutorial's network on the sample
of Fashion-MNIST.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import matplotlib.pyplot as plt

import fmkit
from fmkit import datasets, losses, models, performance, visualization
from fmkit.data import Batches


def main(folder: str | Path = Path(__file__).parent) -> None:
    """Write the PNG file into `folder`."""
    fmkit.set_random_seed(0)
    (x, y), _ = datasets.fashion_mnist.load_sample()
    model = models.mlp()
    model.compile(keras.optimizers.SGD(momentum=0.9), losses.CrossentropyFromLogits())
    found = performance.learning_rate_range(model, Batches(x, y, 128), lowest=1e-5)
    ax = visualization.loss_by_learning_rate(
        found.rates,
        found.losses,
        smoothed=found.smoothed,
        suggestion=found.suggestion,
    )
    # No version of matplotlib in the file, so that equal figures are equal files.
    path = Path(folder, "range.png")
    ax.figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(ax.figure)


if __name__ == "__main__":
    main(*sys.argv[1:2])
