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

pytestmark = pytest.mark.backend("tensorflow")

SOURCE = Path(fmkit.__file__).parent

# The floors of DESIGN.md. A module may import from lower floors only.
FLOORS = {
    "_blocks": 0,
    "_checks": 0,
    "_describe": 0,
    "_files": 0,
    "_job": 0,
    "_math": 0,
    "_targets": 0,
    "_keras_private": 0,
    "_batch_norm": 1,
    "_commits": 1,
    "_generators": 1,
    "_layer_state": 1,
    "_monitor": 1,
    "losses": 1,
    "information": 1,
    "metrics": 1,
    "schedules": 1,
    "datasets": 1,
    "preprocessing": 1,
    "visualization": 1,
    "models": 1,
    "data": 2,
    "optimizers": 2,
    "callbacks": 3,
    "evaluation": 4,
    "performance": 4,
    "hypermodels": 4,
}


def imports_of(path: Path) -> set[str]:
    """Names of fmkit's modules that the file at `path` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts == ["fmkit"]:
                found |= {alias.name for alias in node.names}
            elif parts[0] == "fmkit":
                found.add(parts[1])
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("fmkit.")
            }
    return found


def module_files() -> list[tuple[str, Path]]:
    files = []
    for path in sorted(SOURCE.rglob("*.py")):
        top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if top != "__init__":
            files.append((top, path))
    return files


@pytest.mark.parametrize(
    ("name", "path"), module_files(), ids=lambda value: getattr(value, "stem", value)
)
def test_imports_go_down_only(name, path):
    assert name in FLOORS, f"Give {name!r} a floor in tests/test_layout.py."
    for imported in imports_of(path) - {name}:
        assert imported in FLOORS, f"{path.name} imports {imported!r}: not a module."
        assert FLOORS[imported] < FLOORS[name], (
            f"{path.name} (floor {FLOORS[name]}) imports {imported} "
            f"(floor {FLOORS[imported]}); imports must go to a lower floor."
        )


def test_the_floor_check_sees_an_upward_import(tmp_path):
    # Negative control: the reader of imports must find each way of writing one.
    file = tmp_path / "module.py"
    file.write_text(
        "from fmkit import callbacks\n"
        "def f():\n    from fmkit.data import Batches\n    import fmkit.models\n"
    )
    assert imports_of(file) == {"callbacks", "data", "models"}


def test_every_module_imports_by_itself():
    for module in pkgutil.walk_packages(fmkit.__path__, "fmkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


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
