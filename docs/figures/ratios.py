"""The pictures of the page "Benchmarks", one per topic.

`python docs/figures/ratios.py [folder]` draws them from `docs/benchmarks.json`. They
are as narrow as a phone. A bar begins at 1, where both take the same time, so one that
points left is faster. The target is a thick mark and a bar that misses it is hatched,
so that the picture is legible in grey.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks._measure import number  # noqa: E402
from benchmarks._page import by_topic, drawn, picture, target  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers tell apart.
MET, MISSED, NONE = "#56B4E9", "#E69F00", "#BBBBBB"
# Inches. At 4 inches a letter of 9 points is 10 pixels high on a phone.
WIDTH, LINE, LEFT, RIGHT = 4.0, 0.165, 0.08, 1.15
LEGEND = """time relative to another: 1 is the same, left is faster
thin line: quartiles, thick mark: target, hatched: missed"""


def against(row: dict[str, Any]) -> str:
    """Return what the time of a row is divided by."""
    return row["unit"].partition(" / ")[2].removeprefix("time of ")


def lines_of(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return the lines of a picture from the top: headings, names and bars."""
    lines: list[tuple[str, Any]] = []
    for other in dict.fromkeys(map(against, rows)):
        lines += [("space", ""), ("heading", f"relative to {other}")]
        for row in rows:
            if against(row) == other:
                lines += [("name", part) for part in textwrap.wrap(row["name"], 58)]
                lines.append(("bar", row))
    return lines[1:]


def bar(ax: Any, y: float, row: dict[str, Any]) -> None:
    """Draw the ratio of a row, its quartiles, its target, and both as numbers."""
    ratio, (low, high), aim = row["ratio"], row["spread"], target(row)
    missed = aim is not None and ratio > aim
    ax.barh(
        y,
        ratio - 1,
        left=1,
        height=0.72,
        color=NONE if aim is None else MISSED if missed else MET,
        hatch="////" if missed else None,
        edgecolor="black",
        linewidth=0.6,
    )
    ax.plot([low, high], [y, y], color="black", linewidth=1.4, marker="|", markersize=5)
    ax.plot(ratio, y, color="black", marker="o", markersize=3.5)
    numbers = number(ratio)
    if aim is not None:
        ax.plot([aim, aim], [y - 0.62, y + 0.62], color="black", linewidth=2.6)
        numbers += f" {'>' if missed else '≤'} {number(aim)}"
    ax.annotate(
        numbers,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontweight="bold" if missed else "normal",
    )


def scale(ax: Any, rows: list[dict[str, Any]]) -> None:
    """Fit the axis to the rows, in logarithms where the ratios differ greatly."""
    ends = [end for row in rows for end in (*row["spread"], target(row) or 1, 1)]
    low, high = min(ends), max(ends)
    if high / low > 5:
        ax.set_xscale("log")
        steps = (1, 2, 5) if high / low < 200 else (1,)
        ax.set_xlim(low / 1.2, high * 1.2)
        ax.xaxis.set_major_locator(LogLocator(subs=steps))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.06 * (high - low)
        ax.set_xlim(low - room, high + room)
        ax.locator_params(axis="x", nbins=6)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def write(ax: Any, y: float, kind: str, text: str) -> None:
    """Write a heading or a name over the grid."""
    weight = "bold" if kind == "heading" else "normal"
    paper = {"facecolor": "white", "pad": 0.8, "lw": 0}
    place = ax.get_yaxis_transform()
    ax.text(0, y, text, transform=place, va="center", fontweight=weight, bbox=paper)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one topic."""
    lines = lines_of(rows)
    below, above = 0.3, 0.65
    height = len(lines) * LINE + below + above
    figure = plt.figure(figsize=(WIDTH, height))
    across, tall = 1 - (LEFT + RIGHT) / WIDTH, 1 - (below + above) / height
    ax = figure.add_axes((LEFT / WIDTH, below / height, across, tall))
    ax.set_ylim(len(lines) - 0.5, -0.5)
    scale(ax, rows)
    for y, (kind, what) in enumerate(lines):
        if kind == "bar":
            bar(ax, y, what)
        else:
            write(ax, y, kind, what)
    ax.axvline(1, color="0.45", linewidth=0.8, zorder=0)
    ax.grid(axis="x", color="0.88", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_yticks([])
    ax.spines[["right", "left"]].set_visible(False)
    ax.tick_params(top=True, labeltop=True)
    figure.text(LEFT / WIDTH, 1 - 0.05 / height, LEGEND, va="top", fontsize=8.5)
    # No version of matplotlib in the file, so that equal figures are equal files.
    figure.savefig(path, dpi=240, metadata={"Software": None})
    plt.close(figure)


def main(folder: str | Path = Path(__file__).parent) -> None:
    """Write one PNG file per topic into `folder`."""
    results = json.loads((ROOT / "docs" / "benchmarks.json").read_text("utf-8"))
    for topic, rows in by_topic(results["rows"]).items():
        if shown := drawn(rows):
            with plt.rc_context({"font.size": 9}):
                draw(shown, Path(folder) / picture(topic))


if __name__ == "__main__":
    main(*sys.argv[1:2])
