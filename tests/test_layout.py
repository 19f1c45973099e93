"""The shape of the package: imports go down only, nothing heavy loads by itself."""

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fmkit

pytestmark = pytest.mark.backend("torch")

SOURCE = Path(fmkit.__file__).parent

# The floors of docs/architecture.md. A module may import from lower floors only.
FLOORS = {
    "_arrays": 0,
    "_blocks": 0,
    "_buffers": 0,
    "_checks": 0,
    "_describe": 0,
    "_determinism": 0,
    "_files": 0,
    "_job": 0,
    "_math": 0,
    "_requirements": 0,
    "_splitmix": 0,
    "_tracing": 0,
    "_untrusted_files": 0,
    "_versions": 0,
    "_keras_private": 0,
    "_targets": 1,
    "_commits": 1,
    "_generators": 1,
    "_layer_state": 1,
    "_npz": 1,
    "_swap": 1,
    "augmentation": 1,
    "schedules": 1,
    "preprocessing": 1,
    "visualization": 1,
    "models": 1,
    "losses": 2,
    "information": 2,
    "metrics": 2,
    "_batch_norm": 2,
    "_monitor": 2,
    "data": 2,
    "datasets": 2,
    "optimizers": 3,
    "callbacks": 3,
    "compare": 4,
    "evaluation": 4,
    "performance": 4,
    "hypermodels": 4,
}


@pytest.fixture(scope="module")
def imports_of(program):
    """The reader of imports, with which the picture of the floors is drawn too."""
    return program("scripts/architecture.py").imports_of


def module_files() -> list[tuple[str, Path]]:
    files = []
    for path in sorted(SOURCE.rglob("*.py")):
        top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if top not in ("__init__", "__main__"):  # nobody imports a command
            files.append((top, path))
    return files


@pytest.mark.parametrize(
    ("name", "path"), module_files(), ids=lambda value: getattr(value, "stem", value)
)
def test_imports_go_down_only(name, path, imports_of):
    assert name in FLOORS, f"Give {name!r} a floor in tests/test_layout.py."
    for imported in imports_of(path) - {name}:
        assert imported in FLOORS, f"{path.name} imports {imported!r}: not a module."
        assert FLOORS[imported] < FLOORS[name], (
            f"{path.name} (floor {FLOORS[name]}) imports {imported} "
            f"(floor {FLOORS[imported]}); imports must go to a lower floor."
        )


def test_the_floor_check_sees_an_upward_import(tmp_path, imports_of):
    # Negative control: the reader of imports must find each way of writing one.
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "import fmkit, fmkit as all_of_it, fmkit.optimizers._swap as swap\n"
        "from fmkit import callbacks\n"
        "if TYPE_CHECKING:\n    from fmkit.evaluation._session import Session\n"
        "def f():\n    from fmkit.data import Batches\n    import fmkit.models\n"
        "    swap.exchange(fmkit.losses.pinball, all_of_it.metrics)\n"
    )
    assert imports_of(file) == {
        *("callbacks", "data", "evaluation", "losses", "metrics", "models"),
        "optimizers",
    }


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imported_modules(text: str, known: set[str]) -> set[str]:
    """Return the modules among `known` that a source imports, also for types only."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else str(node.module))
    return found & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other around, or nothing."""
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                found = walk(other, (*way, name))
                if found:
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, ()))), [])


def graph_of_the_package() -> dict[str, set[str]]:
    texts = {
        module_name(path): path.read_text("utf-8") for path in SOURCE.rglob("*.py")
    }
    return {
        # `fmkit` itself is asked for its version only: the floors see to it.
        name: imported_modules(text, set(texts)) - {"fmkit", name}
        for name, text in texts.items()
    }


def test_no_modules_import_each_other_around_also_not_for_types():
    assert circle(graph_of_the_package()) == []


def foreign_private(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports of a private module that is another package's own."""
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if other.split(".")[1] != (name + ".").split(".")[1]
        and any(part.startswith("_") for part in other.split(".")[2:])
    ]


def test_nobody_imports_a_private_module_of_another_package():
    assert foreign_private(graph_of_the_package()) == []


def test_circles_and_foreign_private_modules_are_seen():
    known = {"fmkit.a", "fmkit.b", "fmkit.b._c"}
    text = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from fmkit.b._c import Thing\n"
    )
    graph = {"fmkit.a": imported_modules(text, known), "fmkit.b": {"fmkit.b._c"}}
    assert graph["fmkit.a"] == {"fmkit.b._c"}
    assert imported_modules("from fmkit.b import _c", known) == {"fmkit.b._c"}
    assert foreign_private(graph) == ["fmkit.a imports fmkit.b._c"]
    assert circle(graph | {"fmkit.b._c": set()}) == []
    around = circle(graph | {"fmkit.b._c": {"fmkit.a"}})
    assert around == ["fmkit.a", "fmkit.b._c", "fmkit.a"]


def test_every_module_imports_by_itself():
    for module in pkgutil.walk_packages(fmkit.__path__, "fmkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


@pytest.mark.long  # starts Python four times
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_import_fmkit_loads_nothing_heavy_that_keras_does_not(backend):
    code = (
        "import sys, fmkit; "
        "heavy = {'tensorflow', 'keras_tuner', 'matplotlib.pyplot', 'scipy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    baseline = subprocess.run(
        [sys.executable, "-c", code.replace("fmkit", "keras")],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output == baseline
