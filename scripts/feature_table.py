"""Make the table of `docs/guides/scaling.md` from what the tests find.

    python scripts/feature_table.py [BACKEND ...]

runs tests/test_strategies.py on each backend, keeps the verdicts in
tests/strategies.json, and writes the table into the page between its two marks. The
same tests, without this script, compare what they find with what is kept. Columns that
the installed Keras does not have stay; that of Keras 3.16 is made by

    make matrix CORNERS=nightly BACKENDS=torch RECORD=no
    .matrix/nightly/bin/python scripts/feature_table.py torch
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guides" / "scaling.md"
KEPT = ROOT / "tests" / "strategies.json"
TESTS = "tests/test_strategies.py"
VARIABLE = "FMKIT_FEATURE_TABLE"
MARKS = "<!-- table: begin -->", "<!-- table: end -->"
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def record(backend: str, strategy: str, verdicts: dict[str, str]) -> None:
    """Add the verdicts of one test to the file that VARIABLE names."""
    path = Path(os.environ[VARIABLE])
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    table.setdefault(backend, {})[strategy] = verdicts
    path.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", "utf-8")


def recorded() -> dict[str, dict[str, dict[str, str]]]:
    """Return the verdicts that are kept: backend, strategy, feature."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


def render(table: dict[str, dict[str, dict[str, str]]]) -> str:
    """Return one table per backend, and the reasons below it."""
    parts = []
    for backend, strategies in table.items():
        reasons: list[str] = []
        lines = [
            f"**{TITLES[backend]}**\n",
            f"| | {' | '.join(strategies)} |",
            "|---" * (len(strategies) + 1) + "|",
        ]
        for row in next(iter(strategies.values())):
            cells = [mark(found[row], reasons) for found in strategies.values()]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        notes = [f"{number}. {reason}." for number, reason in enumerate(reasons, 1)]
        parts.append("\n".join(lines) + "".join(f"\n\n{note}" for note in notes))
    return "\n\n".join(parts)


def mark(verdict: str, reasons: list[str]) -> str:
    """Return the cell of a verdict, its reason numbered among `reasons`."""
    if verdict == "pass":
        return "pass"
    if verdict not in reasons:
        reasons.append(verdict)
    return f"not supported ({reasons.index(verdict) + 1})"


def main(backends: list[str]) -> None:
    """Run the tests on these backends, keep what they find, write the page."""
    table = recorded()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        for backend in backends:
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-k", "each_feature", TESTS],
                cwd=ROOT,
                env=os.environ | {"KERAS_BACKEND": backend, VARIABLE: str(found)},
                check=True,
            )
        for backend, strategies in json.loads(found.read_text("utf-8")).items():
            table[backend] |= strategies
    text = json.dumps(table, ensure_ascii=False, indent=1)
    KEPT.write_text(f"{text}\n", encoding="utf-8")
    write_page()


def write_page() -> None:
    """Put the table of what is kept between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    table = f"{MARKS[0]}\n\n{render(recorded())}\n\n{MARKS[1]}"
    PAGE.write_text(before + table + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(TITLES))
