"""Make a notebook of each tutorial's program, in English and in Chinese.

    python scripts/make_notebooks.py            # write notebooks/ and notebooks/zh/
    python scripts/make_notebooks.py --check    # write nothing, say what is out of date

The program is the source: its docstring becomes the head, its imports and each of its
functions a cell, and what `main` does is cut into cells at its blank lines, with its
comments as text and its arguments as a cell of settings. A program that starts itself
in processes stays whole: a cell writes it to a file, and the next imports it.

The Chinese notebook has the same code. Its texts are in `notebooks/zh/texts.json`, by
the English paragraph: one that is new or changed and has no Chinese is an error.
"""

import argparse
import ast
import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    *("quickstart", "tf2_gradient_tape", "tf1_two_layers", "tf1_optimizers"),
    *("tf1_yogurt", "tf1_regularization", "tf1_mnist_ema", "paddle_lenet"),
    "keras_stop_at_threshold",
)
INSTALL = """\
# Installs fmkit where it is missing, and changes nothing else that is there.
import importlib.util

if importlib.util.find_spec("fmkit") is None:
    %pip install --quiet --no-deps fmkit"""
MADE = (
    "Made by `make notebooks` from the program of the same name in `examples/`: edit "
    "that, not this."
)
SETTINGS = "## Settings"
RUN = "## Run"
PIECES = "## The pieces"
FILE = "## The program\n\nIt starts itself as processes, so it has to be a file."
CLOSE = "plt.close("
SETTINGS_TAG = "parameters"  # papermill's word for the cell that one may replace


@dataclass(frozen=True)
class Cell:
    """A cell: a text, or code; settings are a cell of code that one may replace."""

    kind: str
    source: str
    tags: tuple[str, ...] = ()


def text(source: str) -> Cell:
    """Return a cell of prose, a line per paragraph."""
    paragraphs = [unwrapped(part) for part in source.strip().split("\n\n")]
    return Cell("markdown", "\n\n".join(paragraphs))


def unwrapped(paragraph: str) -> str:
    """Return a paragraph on one line, so that it is not cut where a file cuts it."""
    return " ".join(paragraph.split())


def code(source: str, *tags: str) -> Cell:
    """Return a cell of code, without what only linters read."""
    source = re.sub(r"  # noqa.*", "", textwrap.dedent(source).strip("\n"))
    return Cell("code", source, tags)


class Program:
    """A program of `examples/`, in the parts that its notebook is made of."""

    def __init__(self, path: Path):
        self.name, self.source = path.stem, path.read_text(encoding="utf-8")
        # A figure that is closed isn't shown.
        lines = self.source.splitlines()
        self.lines = [line for line in lines if not line.strip().startswith(CLOSE)]
        self.tree = ast.parse("\n".join(self.lines))
        body = [node for node in self.tree.body[1:] if not is_start(node)]
        functions = (node for node in body if isinstance(node, ast.FunctionDef))
        self.main = next(node for node in functions if node.name == "main")
        self.imports = [node for node in body if is_import(node)]
        rest = [n for n in body if n not in self.imports and n is not self.main]
        last = self.imports[-1].lineno
        self.between = [node for node in rest if node.lineno < last]  # the imports
        self.others = [node for node in rest if node.lineno > last]

    def cells(self) -> list[Cell]:
        """Return the cells of the English notebook."""
        title, *rest = (ast.get_docstring(self.tree) or "").split("\n\n")
        head = [f"# {unwrapped(title).rstrip('.')}", *rest]
        head.append(MADE)
        whole = "__file__" in self.source
        parts = self._as_file() if whole else self._unrolled()
        return [text("\n\n".join(head)), code(INSTALL), *parts]

    def _as_file(self) -> list[Cell]:
        """Return the cells of a program that starts itself in processes."""
        arguments = [each.arg for each in self.main.args.args]
        given = ", ".join(f"{name}={name}" for name in arguments)
        show = (
            "from IPython.display import Image, Markdown, display\n\n"
            f'display(Markdown(filename=f"{{folder}}/{self.name}.md"))\n'
            f'display(Image(filename=f"{{folder}}/{self.name}.png"))'
        )
        return [
            text(FILE),
            code(f"%%writefile {self.name}.py\n{self.source}"),
            text(SETTINGS),
            self._settings(),
            text(RUN),
            code(f"import {self.name}\n\nresult = {self.name}.main({given})"),
            code(show),
        ]

    def _unrolled(self) -> list[Cell]:
        """Return the cells of a program whose `main` is run piece by piece."""
        self._check_names()
        cells = [code(self._imports())]
        if self.others:
            cells.append(text(PIECES))
            cells += [code(self._with_comments(node)) for node in self.others]
        cells += [text(SETTINGS), self._settings(), text(RUN)]
        for paragraph in self._paragraphs():
            cells += paragraph_cells(paragraph)
        return cells

    def _imports(self) -> str:
        """Return the imports, without what only the command line needs."""
        using = [*self.between, *self.others, self.main]
        used = {name for name, _ in names_in(using)}
        lines = dict(enumerate(self.lines, start=1))
        for node in self.imports:
            if bound_by(node) and not bound_by(node) & used:
                for number in range(node.lineno, (node.end_lineno or 0) + 1):
                    del lines[number]
        first, last = self.imports[0].lineno, self.imports[-1].end_lineno or 0
        return "\n".join(lines[n] for n in range(first, last + 1) if n in lines)

    def _with_comments(self, node: ast.stmt) -> str:
        """Return a statement with its decorators and the comments right above it."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(each.lineno for each in decorators)])
        while self.lines[first - 2].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first - 1 : node.end_lineno])

    def _settings(self) -> Cell:
        """Return the arguments of `main` as assignments of their defaults."""
        arguments = self.main.args
        pairs = zip(arguments.args, arguments.defaults, strict=True)
        lines = [f"{name.arg} = {literal(value)}" for name, value in pairs]
        return code("\n".join(lines), SETTINGS_TAG)

    def _paragraphs(self) -> list[str]:
        """Return what `main` does, cut at its blank lines, without its ends."""
        body = self.main.body[1:]  # without the docstring
        if isinstance(body[-1], ast.Return):
            body = body[:-1]
        for node in body:
            if any(isinstance(each, ast.Return) for each in ast.walk(node)):
                raise ValueError(
                    f"`main` of {self.name} returns at line {node.lineno}: a notebook "
                    "can't. Let it return at its end only."
                )
        docstring = self.main.body[0].end_lineno or 0
        kept = self.lines[docstring : body[-1].end_lineno]
        return re.split(r"\n\n(?=    \S)", "\n".join(kept).strip("\n"))

    def _check_names(self) -> None:
        """Refuse a `main` that, run at the top level, would hide a function."""
        assigned = {name for name, stored in names_in([self.main]) if stored}
        arguments = {each.arg for each in self.main.args.args}
        defined = {getattr(node, "name", "") for node in self.others}
        constants = [node for node in self.others if isinstance(node, ast.Assign)]
        defined |= {name for name, stored in names_in(constants) if stored}
        defined |= {name for node in self.imports for name in bound_by(node)}
        if hidden := (assigned | arguments) & defined:
            raise ValueError(
                f"`main` of {self.name} uses {sorted(hidden)} for something else than "
                "the program does: in a notebook there is one name. Rename it."
            )


def is_start(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def is_import(node: ast.stmt) -> bool:
    """Whether a statement imports, also under a condition."""
    if isinstance(node, (ast.If, ast.Try)):
        return any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(node))
    return isinstance(node, (ast.Import, ast.ImportFrom))


def names_in(nodes: list[ast.stmt]) -> set[tuple[str, bool]]:
    """Return each name in some statements, and whether it is assigned to there."""
    walked = [each for node in nodes for each in ast.walk(node)]
    names = [each for each in walked if isinstance(each, ast.Name)]
    return {(name.id, isinstance(name.ctx, ast.Store)) for name in names}


def bound_by(node: ast.stmt) -> set[str]:
    """Return the names that an import gives."""
    aliases = [each for each in ast.walk(node) if isinstance(each, ast.alias)]
    return {(each.asname or each.name).partition(".")[0] for each in aliases}


def literal(value: ast.expr) -> str:
    """Return a default as ruff would write it."""
    return ast.unparse(value).replace("'", '"')


def paragraph_cells(paragraph: str) -> list[Cell]:
    """Return the cells of a paragraph; the comment that it begins with is its text."""
    lines = textwrap.dedent(paragraph).splitlines()
    comments = 0
    while lines[comments].startswith("#"):
        comments += 1
    said = " ".join(line.lstrip("# ") for line in lines[:comments])
    cells = [text(said)] if said else []
    return [*cells, code("\n".join(lines[comments:]))]


def in_chinese(cells: list[Cell], texts: dict[str, str]) -> list[Cell]:
    """Return the cells with their texts in Chinese.

    Raises:
        LookupError: If a paragraph has none.
    """
    changed = []
    for cell in cells:
        if cell.kind == "markdown":
            paragraphs = cell.source.split("\n\n")
            missing = [each for each in paragraphs if not texts.get(each)]
            if missing:
                raise LookupError(f"notebooks/zh/texts.json has no {missing[0]!r}.")
            cell = text("\n\n".join(texts[each] for each in paragraphs))
        changed.append(cell)
    return changed


def as_json(cells: list[Cell]) -> str:
    """Return a notebook of these cells, without outputs, the same at each call."""
    listed = []
    for number, cell in enumerate(cells):
        entry = {
            "cell_type": cell.kind,
            "id": f"cell-{number}",
            "metadata": {"tags": list(cell.tags)} if cell.tags else {},
            "source": cell.source.splitlines(keepends=True),
        }
        if cell.kind == "code":
            entry |= {"execution_count": None, "outputs": []}
        listed.append(dict(sorted(entry.items())))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": listed,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def paragraphs_of(root: Path = ROOT) -> set[str]:
    """Return each English paragraph of the notebooks."""
    cells = [c for name in NAMES for c in Program(program(name, root)).cells()]
    sources = [cell.source for cell in cells if cell.kind == "markdown"]
    return {paragraph for source in sources for paragraph in source.split("\n\n")}


def program(name: str, root: Path) -> Path:
    """Return the file of a program."""
    return root / "examples" / f"{name}.py"


def notebooks(root: Path = ROOT) -> dict[Path, str]:
    """Return each notebook's file and what belongs into it."""
    folder = root / "notebooks"
    texts = json.loads((folder / "zh" / "texts.json").read_text(encoding="utf-8"))
    made = {}
    for name in NAMES:
        cells = Program(program(name, root)).cells()
        made[folder / f"{name}.ipynb"] = as_json(cells)
        made[folder / "zh" / f"{name}.ipynb"] = as_json(in_chinese(cells, texts))
    return made


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    made = notebooks()
    outdated = [
        path
        for path, wanted in made.items()
        if not path.exists() or path.read_bytes() != wanted.encode()
    ]
    if options.check:
        for path in outdated:
            print(f"{path.relative_to(ROOT)} is out of date: run `make notebooks`.")
        sys.exit(bool(outdated))
    for path, wanted in made.items():
        path.write_bytes(wanted.encode())
    print(f"{len(outdated)} notebooks changed")


if __name__ == "__main__":
    main()
