"""Draw the floors of the package from its imports: the picture on the page.

    python scripts/architecture.py [FILE.svg]

The floors are those that `tests/test_layout.py` enforces; the lines are the imports
that the files contain. A line that follows from others is left out.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fmkit"
# What is public is drawn larger: (width, height, boxes per row).
PUBLIC, PRIVATE = (116, 34, 5), (106, 24, 6)
WIDTH, GAP, LABEL, BETWEEN_FLOORS = 720, 10, 24, 40
WHAT = {
    0: "shared ground",
    1: "arrays, formulas, networks",
    2: "what a step reads and updates",
    3: "what acts on a run",
    4: "what runs beside one, or tries many",
}
STYLE = """
svg { font: 14px system-ui, sans-serif; }
.paper { fill: #fff; } .floor { fill: #f3f4fa; } .level { fill: #616161; }
text { fill: #212121; } g.public rect { fill: #dfe3f6; stroke: #3f51b5; }
g.private rect { fill: #eee; stroke: #9e9e9e; }
g.private text, .level { font-size: 12px; }
path { fill: none; stroke: #424242; stroke-opacity: .7; }
path.private { stroke-opacity: .4; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #1c1e26; } .floor { fill: #262936; } .level { fill: #bdbdbd; }
  text { fill: #fafafa; } g.public rect { fill: #303f9f; stroke: #9fa8da; }
  g.private rect { fill: #3a3d48; stroke: #757575; } path { stroke: #bdbdbd; }
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
    return [single] if single.exists() else sorted((SOURCE / module).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Return the names of fmkit's modules that a file imports, anywhere in it.

    `import fmkit` imports what is then read from it: `fmkit.losses.pinball`.
    """
    found, package = set(), set()
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            top, _, rest = (node.module or "").partition(".")
            if top == "fmkit":
                names = [rest] if rest else [alias.name for alias in node.names]
                found |= {name.split(".")[0] for name in names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == "fmkit":
                    found |= {rest.split(".")[0]} - {""}
                    if not (rest and alias.asname):
                        package.add(alias.asname or "fmkit")
    return found | {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in package
        and not node.attr.startswith("__")  # __version__ is no module
    }


def imports(module: str, known: set[str]) -> set[str]:
    """Return the other modules that one imports."""
    found = set().union(*(imports_of(path) for path in files(module)))
    return (found & known) - {module}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every line that a longer way already shows."""

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


def rows(names: list[str]) -> list[tuple[tuple[int, int, int], list[str]]]:
    """Cut a floor into rows: the public modules, then fmkit's own."""
    cut = []
    for size, style in ((PUBLIC, "public"), (PRIVATE, "private")):
        some = [name for name in names if kind(name) == style]
        count = -(-len(some) // size[2])  # as few as possible, and equally full
        cut += [
            (size, some[len(some) * i // count : len(some) * (i + 1) // count])
            for i in range(count)
        ]
    return cut


def placed(floor_of: dict[str, int]) -> tuple[dict[str, tuple], list[tuple], int]:
    """Return the box of each module, the band of each floor, and the height."""
    boxes: dict[str, tuple] = {}
    bands, y = [], GAP
    for floor in sorted(set(floor_of.values()), reverse=True):
        top, y = y, y + LABEL
        here = [name for name in floor_of if floor_of[name] == floor]
        for (width, height, _), row in rows(here):
            left = (WIDTH - len(row) * (width + GAP) + GAP) / 2
            for place, name in enumerate(row):
                boxes[name] = (left + place * (width + GAP), y, width, height)
            y += height + GAP
        bands.append((floor, top, y - top))
        y += BETWEEN_FLOORS
    return boxes, bands, y - BETWEEN_FLOORS + GAP


def kind(name: str) -> str:
    """Return the style of a module."""
    return "private" if name.startswith("_") else "public"


def curve(style: str, start: tuple, end: tuple) -> str:
    """Return a line from the bottom of one box to the top of another."""
    x, y = start[0] + start[2] / 2, start[1] + start[3]
    u, v = end[0] + end[2] / 2, end[1]
    bend = min(60, (v - y) / 2)
    return (
        f'<path class="{style}" d="M{x} {y} C{x} {y + bend} {u} {v - bend} {u} {v}"/>'
    )


def box(name: str, place: tuple) -> str:
    """Return a module's rectangle with its name."""
    x, y, width, height = place
    size = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    middle = f'x="{x + width / 2}" y="{y + height / 2 + 5}" text-anchor="middle"'
    return (
        f'<g class="{kind(name)}"><rect {size} rx="5"/><text {middle}>{name}</text></g>'
    )


def picture() -> str:
    """Return the picture as SVG."""
    floor_of = floors()
    lines = reduced({name: imports(name, set(floor_of)) for name in floor_of})
    boxes, bands, height = placed(floor_of)
    shapes = [f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>']
    for floor, top, tall in bands:
        shapes.append(
            f'<rect class="floor" x="4" y="{top}" width="{WIDTH - 8}" '
            f'height="{tall}" rx="8"/>'
            f'<text class="level" x="12" y="{top + 17}">'
            f"{floor} {WHAT.get(floor, '')}</text>"
        )
    shapes += [
        curve(kind(other), boxes[name], boxes[other])
        for name, others in lines.items()
        for other in sorted(others)
    ]
    shapes += [box(name, place) for name, place in boxes.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}"><title>The floors of fmkit</title><style>{STYLE}</style>'
        f"{''.join(shapes)}</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
    else:
        print(picture())
