"""Every public name is run by the tests: which lines of which name are not?

    python -m pytest --cov=fmkit --cov-report=
    python scripts/check_coverage.py

A public function or class passes if the tests run at least 95 % of the statements of
its body, methods included. What is missing is named with its lines. (How many lines
ran says nothing of what was asserted; that a line never ran says that nothing was.)
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fmkit

LEAST = 95.0
# Fewer names than this mean that nothing was measured.
FEWEST = 50
ROOT = Path(__file__).resolve().parents[1]
# Not in fmkit.__all__: it loads Keras Tuner.
MODULES = [
    *(name for name in fmkit.__all__ if inspect.ismodule(getattr(fmkit, name))),
    "hypermodels",
]


def report() -> dict[str, Any]:
    """Return what `coverage json` says of every file, by its absolute path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "coverage.json")
        subprocess.run(
            [sys.executable, "-m", "coverage", "json", "-q", "-o", str(path)],
            cwd=ROOT,
            check=True,
        )
        files = json.loads(path.read_text())["files"]
    return {os.path.realpath(ROOT / name): found for name, found in files.items()}


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield the path and the object of each public function and class."""
    for name in ("enable_op_determinism", "set_random_seed"):  # in no public module
        yield name, getattr(fmkit, name)
    for module_name in MODULES:
        module = importlib.import_module(f"fmkit.{module_name}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module_name}.{name}", value


def statements(value: Any, files: dict[str, Any]) -> tuple[int, list[int]]:
    """Return how many statements the body of `value` has, and the lines never run."""
    value = inspect.unwrap(value)
    regions = files[os.path.realpath(inspect.getfile(value))]["functions"]
    name = value.__qualname__
    own = [
        found
        for region, found in regions.items()
        if region == name or region.startswith(f"{name}.")
    ]
    total = sum(found["summary"]["num_statements"] for found in own)
    return total, sorted(line for found in own for line in found["missing_lines"])


def main() -> None:
    """Print the share of each name, and fail for what lies under the least."""
    files = report()
    failed, count = [], 0
    for path, value in public_names():
        total, missing = statements(value, files)
        if not total:  # a data class without a method
            continue
        count += 1
        share = 100 * (1 - len(missing) / total)
        if share < LEAST:
            lines = ", ".join(map(str, missing))
            place = Path(inspect.getfile(inspect.unwrap(value))).resolve()
            told = f"{place.relative_to(ROOT)} {lines}"
            failed.append(f"{path}: {share:.0f} %, never run: {told}")
    if count < FEWEST:
        raise SystemExit(f"Only {count} public names were found: was `--cov` on?")
    if failed:
        told = "\n  ".join(failed)
        raise SystemExit(f"Under {LEAST:.0f} % of their statements ran:\n  {told}")
    print(f"{count} public names, each with at least {LEAST:.0f} % of it run by tests.")


if __name__ == "__main__":
    main()
