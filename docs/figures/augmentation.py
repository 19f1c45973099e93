"""What each augmentation does to a picture: the figure of the guide "Data".

`python docs/figures/augmentation.py [folder]` draws two of the sample's pictures of
clothes, as they are and as they are in six epochs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from fmkit import augmentation, datasets

EPOCHS = 6
FUNCTIONS = [
    augmentation.HorizontalFlip(),
    augmentation.AlternatingFlip(),
    augmentation.Shift(4),
    augmentation.RotateScale(15, (0.85, 1.15)),
    augmentation.RandomErasing(),
    augmentation.Cutout(12),
    augmentation.Brightness(80),
    augmentation.Contrast(0.3, 1.7),
    augmentation.GaussianNoise(30),
    augmentation.Mixup(10, 1.0),
    augmentation.CutMix(10),
]


def main(folder: str | Path = Path(__file__).parent) -> None:
    """Write the PNG file into `folder`."""
    (x, y), _ = datasets.fashion_mnist.load_sample()
    index = np.array([int(np.flatnonzero(y == label)[0]) for label in (9, 3)])
    figure, axes = plt.subplots(len(FUNCTIONS), 2 * (EPOCHS + 1), figsize=(10.5, 9))
    for function, line in zip(FUNCTIONS, axes, strict=True):
        shown = [x[index]]
        for epoch in range(EPOCHS):
            found, _ = augmentation.augment(
                x[index],
                y[index],
                function,
                seed=1,
                epoch=epoch,
                index=index,
                read=lambda places: (x[places], y[places]),
                size=len(x),
            )
            shown.append(found)
        for ax, picture in zip(
            line, [p[i] for i in (0, 1) for p in shown], strict=True
        ):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
        name = type(function).__name__
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right")
    for ax, label in zip(axes[0], ["as it is", *range(EPOCHS)] * 2, strict=True):
        ax.set_title(label if isinstance(label, str) else f"epoch {label}", fontsize=8)
    figure.subplots_adjust(0.15, 0.01, 0.99, 0.96, 0.06, 0.06)
    # No version of matplotlib in the file, so that equal figures are equal files.
    path = Path(folder, "augmentation.png")
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:2])
