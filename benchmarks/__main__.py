"""Run the benchmarks: `python -m benchmarks [--quick] [--only losses] [--against F]`.

Each module beside this one that has a function `rows(quick)` takes part. The results
go to `outputs/benchmarks.json` and, as the table that is printed, to
`outputs/benchmarks.md`. With `--publish` they also replace those in
`docs/benchmarks.md`, by topic, and the JSON goes beside it; with `--only`, the rows of
the other modules stay. A module that fails is a row that says so; the others run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks._measure import machine, not_run
from benchmarks._page import PAGE, TOPICS, measured, publish, table


def modules() -> list[str]:
    """Return the names of the modules that measure something."""
    names = [
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if not module.name.startswith("_")
    ]
    order = [name for topic in TOPICS.values() for name in topic]
    return sorted(names, key=order.index)


def measure(name: str, quick: bool) -> list[dict[str, Any]]:
    """Return the rows of one module, or one row that says why there are none."""
    try:
        return importlib.import_module(f"benchmarks.{name}").rows(quick)
    except Exception as error:  # noqa: BLE001 - one failure must not cost the rest
        return [not_run(name, f"{type(error).__name__}: {error}".splitlines()[0])]


def gpu_row() -> dict[str, Any]:
    """Say that what was measured was measured on a CPU."""
    return not_run(
        "epoch on a GPU", "needs a GPU; python -m benchmarks.training on such a machine"
    )


def merged(results: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Put the rows of some modules in the place of their earlier ones."""
    new = {row["module"] for row in results["rows"]}
    order = list(dict.fromkeys(row["module"] for row in before["rows"]))
    order += [module for module in new if module not in order]
    rows = [row for row in before["rows"] if row["module"] not in new]
    rows = sorted([*rows, *results["rows"]], key=lambda row: order.index(row["module"]))
    command = f"{before['command']}` and, later, `{results['command']}"
    return {**results, "command": command, "rows": rows}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: minutes")
    parser.add_argument("--only", choices=modules(), action="append")
    parser.add_argument("--against", type=Path, help="an earlier benchmarks.json")
    parser.add_argument("--publish", action="store_true", help="into docs/benchmarks")
    parser.add_argument("--folder", type=Path, default=Path("outputs"))
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    for name in options.only or modules():
        start = time.perf_counter()
        rows += [{"module": name, **row} for row in measure(name, options.quick)]
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    rows.append({"module": "gpu", **gpu_row()})
    print(f"all: {time.perf_counter() - started:.0f} s", flush=True)
    results = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "machine": machine(),
        "rows": rows,
    }
    earlier = json.loads(options.against.read_text()) if options.against else None
    text = f"{table(rows, earlier)}\n\n{measured(results)}"
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "benchmarks.json").write_text(json.dumps(results, indent=1))
    (options.folder / "benchmarks.md").write_text(text + "\n")
    print(text)
    if options.publish:
        if options.only:
            results = merged(results, json.loads(PAGE.with_suffix(".json").read_text()))
        publish(results, earlier)


if __name__ == "__main__":
    main()
