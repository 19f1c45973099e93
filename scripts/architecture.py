"""Draw the floors of the package from its imports: the picture on the page.

    python scripts/architecture.py [FILE.svg]

The floors are those that `tests/test_layout.py` enforces; the lines are the imports
that stand in the files. A line that follows from others is left out.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fmkit"
WIDTH, HEIGHT, GAP, FLOOR = 118, 34, 12, 92
WHAT = {
    0: "shared checks, private Keras",
    1: "arrays, formulas, networks",
    2: "what a step reads and updates",
    3: "what stands around a run",
    4: "what stands beside a run",
}
STYLE = """
svg { font: 13px system-ui, sans-serif; color-scheme: light dark; }
rect { fill: #e8eaf6; stroke: #3f51b5; } .own rect { fill: #f5f5f5; stroke: #9e9e9e; }
path { fill: none; stroke: #9e9e9e; stroke-width: 1; } text { fill: #212121; }
.floor { font-size: 11px; fill: #757575; }
@media (prefers-color-scheme: dark) {
  rect { fill: #283593; } .own rect { fill: #424242; } text { fill: #fafafa; }
  .floor { fill: #bdbdbd; }
}
"""


def floors() -> dict[str, int]:
    """Return the floor of each module, as the test of the layout has it."""
    tree = ast.parse((ROOT / "tests" / "test_layout.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            found: dict[str, int] = ast.literal_eval(node.value)
            return {name: floor for name, floor in found.items() if files(name)}
    raise RuntimeError("tests/test_layout.py assigns no FLOORS")


def files(module: str) -> list[Path]:
    """Return the files of a module or package."""
    single = SOURCE / f"{module}.py"
    return [single] if single.exists() else sorted((SOURCE / module).glob("*.py"))


def imports(module: str, known: set[str]) -> set[str]:
    """Return the other modules that one imports, anywhere in its files."""
    found: set[str] = set()
    for file in files(module):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts == ["fmkit"]:
                    found |= {alias.name for alias in node.names}
                elif parts[0] == "fmkit":
                    found.add(parts[1])
    return (found & known) - {module}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every line that a longer way already tells."""

    def below(name: str) -> set[str]:
        return set().union(*({other} | below(other) for other in graph[name]))

    return {
        name: {
            other
            for other in others
            if not any(other in below(between) for between in others - {other})
        }
        for name, others in graph.items()
    }


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Return a line from the bottom of one box to the top of another."""
    (x, y), (u, v) = start, end
    return f'<path d="M{x} {y + HEIGHT} C{x} {y + FLOOR} {u} {v - 40} {u} {v}"/>'


def picture() -> str:
    """Return the picture as SVG."""
    floor_of = floors()
    lines = reduced({name: imports(name, set(floor_of)) for name in floor_of})
    rows = {
        floor: [name for name in floor_of if floor_of[name] == floor]
        for floor in sorted(set(floor_of.values()), reverse=True)
    }
    width = max(len(row) for row in rows.values()) * (WIDTH + GAP) + GAP
    height = len(rows) * FLOOR
    places: dict[str, tuple[float, float]] = {}
    shapes: list[str] = []
    for level, (floor, row) in enumerate(rows.items()):
        top = level * FLOOR + 26
        left = (width - len(row) * (WIDTH + GAP) + GAP) / 2
        shapes.append(
            f'<text class="floor" x="{GAP}" y="{top - 8}">{floor} {WHAT[floor]}</text>'
        )
        for place, name in enumerate(row):
            x = left + place * (WIDTH + GAP)
            places[name] = (x + WIDTH / 2, top)
            kind = "own" if name.startswith("_") else "public"
            shapes.append(
                f'<g class="{kind}"><rect x="{x}" y="{top}" width="{WIDTH}" '
                f'height="{HEIGHT}" rx="5"/><text x="{x + WIDTH / 2}" y="{top + 22}" '
                f'text-anchor="middle">{name}</text></g>'
            )
    curves = [
        _curve(places[name], places[other])
        for name, others in lines.items()
        for other in sorted(others)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f"<title>The floors of fmkit</title><style>{STYLE}</style>"
        f"{''.join(curves)}{''.join(shapes)}</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
    else:
        print(picture())
