"""The figure "Time to accuracy" of the page "Benchmarks".

`python docs/figures/accuracy.py [folder]` draws it from `docs/time_to_accuracy.json`,
where `python -m benchmarks.accuracy` puts its runs: a point for each run of a recipe,
and the tutorial's program epoch by epoch.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter

RESULTS = Path(__file__).resolve().parents[1] / "time_to_accuracy.json"
# Okabe and Ito's colours; marks differ in shape too.
RECIPE = {"color": "#0072B2", "marker": "o", "linestyle": "none", "markersize": 4}
TUTORIAL = {"color": "#D55E00", "marker": ".", "linestyle": "-", "linewidth": 0.8}
# In per cent, by Zhong et al., "Random Erasing Data Augmentation", 2017.
PUBLISHED = 95.98, "ResNet-20 with random erasing, on a GPU"
TICKS = (1, 3, 10, 30, 100, 300, 1000)


def tutorial(ax: Any, runs: list[list[dict[str, float]]]) -> None:
    """Draw each run of the tutorial's program as a line, a mark for each epoch."""
    for number, epochs in enumerate(runs):
        ax.plot(
            [epoch["seconds"] for epoch in epochs],
            [100 * epoch["accuracy"] for epoch in epochs],
            label=None if number else "the tutorial's program, each epoch",
            **TUTORIAL,
        )


def recipe(ax: Any, name: str, runs: list[list[float]], labelled: bool) -> None:
    """Draw each run of a recipe as a mark; its name above the highest, or below."""
    accuracies, seconds = zip(*runs, strict=True)
    label = "a recipe of fmkit's example, each run" if labelled else None
    ax.plot(seconds, [100 * each for each in accuracies], label=label, **RECIPE)
    below = name == "residual_36"  # where another is close
    ax.annotate(
        name.removesuffix(", on JAX"),
        (statistics.median(seconds), 100 * max(accuracies)),
        (0, -12) if below else (0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what `benchmarks/accuracy.py` has measured."""
    figure, ax = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    recipes = {n: runs for n, runs in results.items() if n != "tutorial" and runs}
    tutorial(ax, results.get("tutorial", []))
    for number, (name, runs) in enumerate(recipes.items()):
        recipe(ax, name, runs, labelled=number == 0)
    height, words = PUBLISHED
    ax.axhline(height, color="0.5", linestyle=":", linewidth=1)
    ax.annotate(
        f"{height}: {words}",
        (0.01, height),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
    )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(TICKS))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    slowest = max(seconds for runs in recipes.values() for _, seconds in runs)
    ax.set_xlim(2.5, max(1400, 1.3 * slowest))
    ax.set_xlabel("seconds from the program's first line")
    ax.set_ylabel("test accuracy, %")
    ax.grid(color="0.88", linewidth=0.6)
    ax.spines[["right", "top"]].set_visible(False)
    ax.legend(loc="lower right", frameon=False, fontsize=8)
    # No version of matplotlib in the file, so that equal figures are equal files.
    figure.savefig(path, dpi=240, metadata={"Software": None})
    plt.close(figure)


def main(folder: str | Path = Path(__file__).parent, results: Path = RESULTS) -> None:
    """Write `accuracy.png` into `folder`."""
    found = json.loads(results.read_text(encoding="utf-8"))
    with plt.rc_context({"font.size": 9}):
        draw(found, Path(folder) / "accuracy.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
