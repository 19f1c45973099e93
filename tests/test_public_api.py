"""The public surface is what `__all__` says, and nothing about it was forgotten.

For every public name: a docstring, a typed signature, a page of the reference, a test
that mentions it, a line in the changelog.
"""

import importlib
import inspect
import re
import sys
from pathlib import Path

import needs
import pytest

import fmkit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from check_coverage import MODULES

needs.module("keras_tuner")  # every public module is imported below
pytestmark = pytest.mark.backend("tensorflow", "torch")

ROOT = Path(__file__).resolve().parents[1]


# What is in `fmkit` itself.
TOP = [n for n in fmkit.__all__ if not inspect.ismodule(getattr(fmkit, n))]


def public_objects():
    yield from ((name, getattr(fmkit, name)) for name in TOP)
    for module_name in MODULES:
        module = importlib.import_module(f"fmkit.{module_name}")
        for name in module.__all__:
            yield f"{module_name}.{name}", getattr(module, name)


OBJECTS = [
    pytest.param(path, value, id=path)
    for path, value in public_objects()
    if not inspect.ismodule(value)
]
TESTS = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")
)
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


@pytest.mark.parametrize("module_name", MODULES)
def test_all_is_sorted_and_names_what_exists(module_name):
    module = importlib.import_module(f"fmkit.{module_name}")
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__, key=str)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module_name", MODULES)
def test_nothing_public_is_left_out_of_all(module_name):
    module = importlib.import_module(f"fmkit.{module_name}")
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(module.__name__)
    }
    assert own <= set(module.__all__)


@pytest.mark.parametrize("module_name", MODULES)
def test_the_module_has_a_page_in_the_reference(module_name):
    page = ROOT / "docs" / "api" / f"{module_name}.md"
    assert f"::: fmkit.{module_name}" in page.read_text(encoding="utf-8")
    assert f"api/{module_name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", [p for p, v in public_objects() if inspect.ismodule(v)]
)
def test_the_public_module_is_in_the_reference_tested_and_in_the_changelog(path):
    outer, name = path.split(".")
    page = ROOT / "docs" / "api" / f"{outer}.md"
    assert f"::: fmkit.{path}" in page.read_text(encoding="utf-8")
    assert mentions(TESTS, name), f"No test mentions {path}."
    assert mentions(CHANGELOG, path), f"CHANGELOG.md doesn't mention {path}."


@pytest.mark.parametrize(("path", "value"), OBJECTS)
def test_the_public_name_is_documented_tested_and_in_the_changelog(path, value):
    name = path.rpartition(".")[2]
    if callable(value):
        assert inspect.getdoc(value), f"{path} needs a docstring."
    assert mentions(TESTS, name), f"No test mentions {path}."
    assert mentions(CHANGELOG, name), f"CHANGELOG.md doesn't mention {path}."


def signatures(path, value):
    """Yield `(where, signature)` of a function, or of a class's own public methods."""
    if inspect.isfunction(value):
        yield path, inspect.signature(value)
    elif inspect.isclass(value):
        for name, member in vars(value).items():
            if inspect.isfunction(member) and (
                name == "__init__" or not name.startswith("_")
            ):
                yield f"{path}.{name}", inspect.signature(member)


# Methods whose signatures are Keras's, which has no types there.
KERAS_METHODS = re.compile(
    r"\.(call|build|get_config|from_config|result|update_state|reset_state|set_model"
    r"|set_params|on_\w+|apply|assign\w*|stateless_\w+|finalize_\w+|scale_loss"
    r"|save_own_variables|load_own_variables)$"
)


@pytest.mark.parametrize(("path", "value"), OBJECTS)
def test_the_public_signature_is_typed(path, value):
    for where, signature in signatures(path, value):
        if KERAS_METHODS.search(where):
            continue
        for parameter in list(signature.parameters.values()):
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not parameter.empty, (
                    f"{where}: `{parameter.name}` has no type."
                )


def test_the_signature_check_sees_an_untyped_argument():
    # Negative control.
    def untyped(x, y: int):
        return x, y

    with pytest.raises(AssertionError, match="`x` has no type"):
        test_the_public_signature_is_typed("f", untyped)


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {fmkit.__version__}\n" in citation
    assert f"## {fmkit.__version__}" in CHANGELOG
