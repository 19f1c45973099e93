"""Run the benchmarks: `python -m benchmarks [--quick] [--only losses] [--against F]`.

Each module beside this one that has a function `rows(quick)` takes part. The results
go to `outputs/benchmarks.json` and, as the table that is printed, to
`outputs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import time
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks._measure import machine


def modules() -> list[str]:
    """Return the names of the modules that measure something."""
    return [
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if not module.name.startswith("_")
    ]


def table(results: dict[str, Any], earlier: dict[str, Any] | None) -> str:
    """Return the results as Markdown, with the earlier ratio where there is one."""
    before = {row["name"]: row["ratio"] for row in (earlier or {}).get("rows", [])}
    lines = [
        "| what | ratio | quartiles | target | of what | detail |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ratio = "not run" if row["ratio"] is None else f"{row['ratio']:.3g}"
        if row["name"] in before and before[row["name"]]:
            ratio += f" (was {before[row['name']]:.3g})"
        spread = row.get("spread")
        quartiles = f"{spread[0]:.3g} to {spread[1]:.3g}" if spread else ""
        lines.append(
            f"| {row['name']} | {ratio} | {quartiles} | {row.get('target', '')} "
            f"| {row.get('unit', '')} | {row.get('detail', '')} |"
        )
    about = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    return "\n".join([*lines, "", f"Measured with `{results['command']}` on {about}."])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: minutes")
    parser.add_argument("--only", choices=modules(), action="append")
    parser.add_argument("--against", type=Path, help="an earlier benchmarks.json")
    parser.add_argument("--folder", type=Path, default=Path("outputs"))
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    for name in options.only or modules():
        start = time.perf_counter()
        rows += importlib.import_module(f"benchmarks.{name}").rows(options.quick)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    results = {
        "command": "python -m benchmarks" + (" --quick" if options.quick else ""),
        "machine": machine(),
        "rows": rows,
    }
    earlier = json.loads(options.against.read_text()) if options.against else None
    text = table(results, earlier)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "benchmarks.json").write_text(json.dumps(results, indent=1))
    (options.folder / "benchmarks.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
