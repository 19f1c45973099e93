"""The figure "What a commit of a job costs" of the guide "When one machine ...".

`python docs/figures/sharded.py [folder]` draws it from `docs/benchmarks.json`, where
`python -m benchmarks --only sharded --publish` puts its rows: memory and time, against
the number of processes and against the number of weights.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, LogFormatterMathtext, NullLocator

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks.json"
# Okabe and Ito's colours; lines differ by dashes and marks too.
STYLES = {
    "committed at once": {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    "committed beside the training": {
        "color": "#D55E00",
        "linestyle": "-",
        "marker": "o",
    },
    "restored": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
}
NAMES = ("commit, background=False", "commit, background=True", "restore")
HEIGHTS = {
    "ratio": "memory / own shards",
    "nanoseconds": "ns per byte",
}


def along(rows: list[dict[str, Any]], key: str, fixed: str) -> tuple[int, list[Any]]:
    """Return the rows that differ in `key` only, and the `fixed` one that they share.

    Of the values of the other one, it is that with the most rows.
    """
    found = defaultdict(list)
    for row in rows:
        found[row[fixed]].append(row)
    shared = max(found, key=lambda value: len({row[key] for row in found[value]}))
    return shared, sorted(found[shared], key=lambda row: row[key])


def panel(ax: Any, rows: list[dict[str, Any]], key: str, height: str) -> None:
    """Draw how one cost grows with one thing, a line for each kind of work."""
    for what, style in STYLES.items():
        points = [row for row in rows if row["what"] == what]
        sizes, costs = ([row[name] for row in points] for name in (key, height))
        ax.plot(sizes, costs, markersize=4, linewidth=1.4, **style)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sorted({row[key] for row in rows})))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(
        "{x:g}" if key == "processes" else LogFormatterMathtext()
    )
    ax.grid(color="0.88", linewidth=0.6)
    ax.spines[["right", "top"]].set_visible(False)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the rows that `benchmarks/sharded.py` has measured."""
    figure, axes = plt.subplots(
        2, 2, figsize=(5.2, 4.2), sharex="col", sharey="row", layout="constrained"
    )
    for column, (key, fixed) in zip(
        axes.T, (("processes", "weights"), ("weights", "processes")), strict=True
    ):
        shared, points = along(rows, key, fixed)
        for ax, height in zip(column, HEIGHTS, strict=True):
            panel(ax, points, key, height)
        column[0].set_title(f"{shared:,} {fixed}", loc="left", fontsize=9)
        column[-1].set_xlabel(key)
    for ax, words in zip(axes[:, 0], HEIGHTS.values(), strict=True):
        ax.set_ylabel(words, fontsize=9)
        ax.set_ylim(0, None)  # of the row, once it is drawn
    lines = axes[0, 0].lines
    figure.legend(lines, NAMES, loc="outside upper center", ncols=2, frameon=False)
    # No version of matplotlib in the file, so that equal figures are equal files.
    figure.savefig(path, dpi=240, metadata={"Software": None})
    plt.close(figure)


def main(folder: str | Path = Path(__file__).parent, results: Path = RESULTS) -> None:
    """Write `sharded.png` into `folder`, if there are rows for it."""
    found = json.loads(results.read_text(encoding="utf-8"))["rows"]
    rows = [row for row in found if "processes" in row]
    if rows:
        with plt.rc_context({"font.size": 9}):
            draw(rows, Path(folder) / "sharded.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
