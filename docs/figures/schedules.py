"""The rate of each schedule: the figure of the guide "Learning-rate schedules".

`python docs/figures/schedules.py [folder]` draws it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from fmkit import schedules, visualization

STEPS = 1000
WARM = {"warmup_steps": 100}
SCHEDULES = {
    "CosineDecay": schedules.CosineDecay(1.0, 900, **WARM),
    "CosineDecayRestarts": schedules.CosineDecayRestarts(
        1.0, 130, cycle_factor=2, **WARM
    ),
    "PolynomialDecay": schedules.PolynomialDecay(1.0, 900, **WARM),
    "PolynomialDecay, power 3": schedules.PolynomialDecay(1.0, 900, power=3, **WARM),
    "WarmupStableDecay": schedules.WarmupStableDecay(1.0, 500, 400, **WARM),
    "constant after a warm-up": schedules.WarmupStableDecay(
        1.0, 0, 1, end_value=1.0, **WARM
    ),
    "OneCycle": schedules.OneCycle(1.0, 300, 700),
    "OneCycleMomentum": schedules.OneCycleMomentum(300, 700),
    "InverseSquareRoot": schedules.InverseSquareRoot(1.0, 100, **WARM),
    "ExponentialDecay": schedules.ExponentialDecay(
        1.0, 200, 0.5, staircase=True, **WARM
    ),
    "CyclicDecay": schedules.CyclicDecay(1.0, 0.1, 250),
    "join": schedules.join(
        [1.0, schedules.CosineDecay(1.0, 300, end_value=0.3), 0.3], [400, 700]
    ),
}


def main(folder: str | Path = Path(__file__).parent) -> None:
    """Write the PNG file into `folder`."""
    figure, axes = plt.subplots(4, 3, figsize=(8.4, 8.6), sharex=True, sharey=True)
    for ax, (title, schedule) in zip(axes.flat, SCHEDULES.items(), strict=True):
        visualization.learning_rate_curve(schedule, STEPS + 1, ax=ax)
        ax.set_title(title, fontsize=10)
        ax.label_outer()
    figure.tight_layout()
    # No version of matplotlib in the file, so that equal figures are equal files.
    path = Path(folder, "schedules.png")
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:2])
