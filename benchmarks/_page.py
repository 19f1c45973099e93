"""The page of the benchmarks: one picture per topic, then one folded table per topic.

The pictures are drawn from `docs/benchmarks.json` when the site is built, by
`docs/figures/ratios.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks._measure import number, put_between

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
# The topics in the order of the page, each with the modules that measure it.
TOPICS = {
    "Training": ("training", "any_data", "accuracy", "gpu"),
    "Input": ("input", "memory", "order", "loading"),
    "Everything together": ("together", "callbacks"),
    "Losses": ("losses",),
    "Averages": ("averages",),
    "Resume and the evaluator": ("resume", "places", "evaluator"),
    "Size": ("growth", "fusing", "large", "sharded", "imports"),
}
AT_MOST = re.compile(r"at most ([\d.]+)(?=$|:| \()")


def by_topic(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each topic that has any."""
    found = {
        topic: [row for row in rows if row["module"] in modules]
        for topic, modules in TOPICS.items()
    }
    return {topic: some for topic, some in found.items() if some}


def drawn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that the picture of bars shows: ratios of times on the clock.

    Rows with a size are points of lines, drawn by `docs/figures/fusing.py`.
    """
    return [
        row for row in rows if row.get("spread") and "/" in row["unit"]
        and ", cpu" not in row["name"].lower() and "size" not in row
    ]  # fmt: skip


def target(row: dict[str, Any]) -> float | None:
    """Return the ratio that a row must not exceed, if it has such a target."""
    found = AT_MOST.match(row["target"])
    return float(found[1]) if found else None


def picture(topic: str) -> str:
    """Return the name of a topic's picture."""
    return f"benchmarks-{TOPICS[topic][0]}.png"


def alternative(topic: str, rows: list[dict[str, Any]]) -> str:
    """Say in words what the picture of a topic shows."""
    aimed = [row for row in rows if target(row) is not None]
    met = sum(row["ratio"] <= target(row) for row in aimed)
    return (
        f"{topic}: {len(rows)} ratios as bars from 1, with their quartiles. "
        f"{met} of {len(aimed)} targets are met. The table below has the numbers."
    )


def table(rows: list[dict[str, Any]], earlier: dict[str, Any] | None = None) -> str:
    """Return rows as a table in Markdown, with the earlier ratio where there is one."""
    before = {row["name"]: row["ratio"] for row in (earlier or {}).get("rows", [])}
    lines = [
        "| what | ratio | quartiles | target | of what | detail |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "not run" if row["ratio"] is None else number(row["ratio"])
        if before.get(row["name"]):
            ratio += f" (was {number(before[row['name']])})"
        spread = row.get("spread")
        quartiles = " to ".join(map(number, spread)) if spread else ""
        lines.append(
            f"| {row['name']} | {ratio} | {quartiles} | {row.get('target', '')} "
            f"| {row.get('unit', '')} | {row.get('detail', '')} |"
        )
    return "\n".join(lines)


def measured(results: dict[str, Any]) -> str:
    """Say how and where the results were measured."""
    about = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    return f"Measured with `{results['command']}` on {about}."


def text(results: dict[str, Any], earlier: dict[str, Any] | None = None) -> str:
    """Return what is published: the pictures, then the folded tables."""
    pictures, tables = [], ["## All numbers", measured(results)]
    for topic, rows in by_topic(results["rows"]).items():
        if shown := drawn(rows):
            image = f"![{alternative(topic, shown)}](figures/{picture(topic)})"
            pictures += [f"## {topic}", image]
        tables += [
            f'<details markdown="1">\n<summary>{topic}: {len(rows)} rows</summary>',
            f"{table(rows, earlier)}\n\n</details>",
        ]
    return "\n\n".join(pictures + tables)


def publish(
    results: dict[str, Any], earlier: dict[str, Any] | None = None, page: Path = PAGE
) -> None:
    """Put the results between the marks of the page, and the JSON beside the page."""
    put_between(page, BEGIN, END, text(results, earlier))
    page.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
