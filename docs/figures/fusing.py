"""The figure "Where fusing stops paying" of the guide "Speed".

`python docs/figures/fusing.py [folder]` draws it from `docs/benchmarks.json`, where
`python -m benchmarks --only fusing --publish` puts its rows. Lines differ by their
dashes and marks too, so that they can be told apart without colour.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks.json"
# Okabe and Ito's colours, which colour-blind readers tell apart.
STYLES = {
    "tensorflow": {"color": "#D55E00", "linestyle": "-", "marker": "o"},
    "jax": {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    "torch": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
}
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def panel(ax: Any, what: str, rows: list[dict[str, Any]]) -> None:
    """Draw how the ratio changes with one thing, a line for each backend."""
    for backend, style in STYLES.items():
        points = [row for row in rows if row["backend"] == backend]
        sizes, ratios = ([row[key] for row in points] for key in ("size", "ratio"))
        ax.plot(sizes, ratios, markersize=4, linewidth=1.4, **style)
    ax.axhline(1, color="0.45", linewidth=0.8, zorder=0)
    sizes = sorted({row["size"] for row in rows})
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title(what, loc="left", fontsize=9)
    ax.grid(color="0.88", linewidth=0.6)
    ax.spines[["right", "top"]].set_visible(False)


def main(folder: str | Path = Path(__file__).parent) -> None:
    """Write `fusing.png` into `folder`, if there are rows for it."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    rows = [row for row in found if "size" in row]
    if not rows:
        return
    with plt.rc_context({"font.size": 9}):
        figure, axes = plt.subplots(
            2, 2, figsize=(5.2, 4.6), sharey=True, layout="constrained"
        )
        for ax, what in zip(
            axes.flat, dict.fromkeys(row["what"] for row in rows), strict=True
        ):
            panel(ax, what, [row for row in rows if row["what"] == what])
        axes[0, 0].set_ylim(0, None)
        measured = {row["backend"] for row in rows}
        lines = dict(zip(STYLES, axes[0, 0].lines, strict=False))
        lines = {
            backend: line for backend, line in lines.items() if backend in measured
        }
        figure.legend(
            list(lines.values()),
            [NAMES[backend] for backend in lines],
            loc="outside upper center",
            ncols=3,
            frameon=False,
        )
        figure.supylabel("time of FusedModel / time of fit(x, y)", fontsize=9)
        # No version of matplotlib in the file, so that equal figures are equal files.
        path = Path(folder) / "fusing.png"
        figure.savefig(path, dpi=240, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:2])
