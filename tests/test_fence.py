"""What is private to Keras is touched in `_keras_private`, and nowhere else."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import keras
import needs
import pytest

import fmkit
from fmkit import _keras_private as private

needs.module("keras_tuner")  # every module of fmkit is imported below
pytestmark = pytest.mark.backend("torch")

SOURCE = Path(fmkit.__file__).parent
FENCE = SOURCE / "_keras_private"
# Private by what Keras says of it, though the name has no underscore.
WITHOUT_UNDERSCORE = {"jax_state_sync", "jax_state"}
HOOK = re.compile(r"on_(train|test|predict|epoch|batch)\w*|(make_)?\w+_function")
# Python's own, and what PyTorch calls an operation and its signature.
OF_PYTHON = {"_replace", "_asdict", "_fields", "_getframe", "_current_frames"}
OF_PYTHON |= {"_foreach_addcdiv_", "_local_scalar_dense", "_schema", "_unsafe_view"}

NAMES_OF_KERAS = {
    name
    for path in Path(keras.src.__file__).parent.rglob("*.py")
    for name in re.findall(r"\bself\.(_[a-z]\w+)", path.read_text("utf-8"))
} | WITHOUT_UNDERSCORE


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def names_used(tree: ast.AST) -> list[tuple[int, str]]:
    """Return the line and name of each attribute, also those in a string.

    `self.` is put before what a method asks of its own object.
    """
    found, ends = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            ends |= set(map(id, node.values))
        if isinstance(node, ast.Attribute):
            own = ast.unparse(node.value) in ("self", "cls", "super()")
            found.append((node.lineno, f"self.{node.attr}" if own else node.attr))
        elif (
            isinstance(node, ast.Constant)
            and node.value in NAMES_OF_KERAS
            and id(node) not in ends
        ):
            # For `getattr` and its like, in whichever way it gets there.
            found.append((node.lineno, node.value))
    return found


def names_defined(tree: ast.AST) -> set[str]:
    """Return the names that classes give to what they have."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    found.add(part.name)
                targets = part.targets if isinstance(part, ast.Assign) else []
                targets = [part.target] if isinstance(part, ast.AnnAssign) else targets
                found |= {t.id for t in targets if isinstance(t, ast.Name)}
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            found.add(node.attr)
    return found


def breaches(text: str, own: set[str]) -> list[str]:
    """Return what in a source touches something private to Keras.

    Args:
        text: The source.
        own: Private names that fmkit's own sources define.
    """
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            modules = [ast.unparse(node)]
        for module in modules:
            if re.match(r"(keras|keras_tuner)\.(src|engine)\b", module):
                found.append(f"{node.lineno}: {module}")
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and re.fullmatch(HOOK, target.attr):
                name = ast.unparse(target)
                if name not in ("self.train_function",):  # of `keras.Model`, public
                    found.append(f"{node.lineno}: {name} replaced on an instance")
    for line, way in names_used(tree):
        name = way.removeprefix("self.")
        # On its own object a class may use a name that Keras has somewhere, too: the
        # test below compares it with its base.
        known = own | OF_PYTHON if name != way else own - NAMES_OF_KERAS | OF_PYTHON
        if (is_private(name) and name not in known) or name in WITHOUT_UNDERSCORE:
            found.append(f"{line}: {name}")
    return found


def sources() -> list[Path]:
    return [path for path in SOURCE.rglob("*.py") if FENCE not in path.parents]


OWN = set().union(
    *(names_defined(ast.parse(path.read_text("utf-8"))) for path in sources())
)


@pytest.mark.parametrize(
    "path", sources(), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_nothing_private_to_keras_outside_of_the_fence(path):
    found = breaches(path.read_text("utf-8"), OWN)
    assert found == [], (
        f"{path.name} touches what Keras keeps private: {found}. Use what is public, "
        "or add a function to fmkit/_keras_private, a row to the table in "
        "docs/architecture.md and a test to tests/test_keras_private.py."
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("from keras.src.trainers import trainer", "keras.src.trainers.trainer"),
        ("import keras\nkeras.src.backend.x()", "keras.src.backend"),
        ("def f(model):\n    return model._compile_config", "_compile_config"),
        ("getattr(optimizer, '_iterations')", "_iterations"),
        ("model.jax_state_sync()", "jax_state_sync"),
        ("class A:\n    _model = 1\ndef f(callback):\n    callback._model", "_model"),
        ("calls.on_epoch_end = mine", "calls.on_epoch_end replaced on an instance"),
        ("self.on_train_batch_end = mine", "replaced on an instance"),
    ],
)
def test_the_fence_sees_each_kind_of_breach(text, what):
    assert any(what in each for each in breaches(text, OWN)), breaches(text, OWN)
    assert breaches("def f(self):\n    self._own = self.x", {"_own"}) == []


def private_names(kind: type) -> set[str]:
    """Return the private names that a class of Keras's defines or uses on `self`."""
    names = set()
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in ("keras", "keras_tuner"):
            tree = ast.parse(inspect.getsource(inspect.getmodule(base)))
            names |= {*vars(base), *names_defined(tree)}
    return {name for name in names if is_private(name)}


def kinds_of_keras() -> list[type]:
    """Return the classes of fmkit that inherit from one of Keras's."""
    kinds = set()
    for module in pkgutil.walk_packages(fmkit.__path__, "fmkit."):
        if "_keras_private" in module.name or module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if (
                inspect.isclass(kind)
                and kind.__module__.startswith("fmkit.")
                and "_keras_private" not in kind.__module__
                and private_names(kind)
            ):
                kinds.add(kind)
    return sorted(kinds, key=lambda kind: kind.__name__)


def used_on_self(kind: type) -> set[str]:
    own = [base for base in kind.__mro__ if base.__module__.startswith("fmkit.")]
    trees = [ast.parse(inspect.cleandoc("\n" + inspect.getsource(k))) for k in own]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and is_private(node.attr)
    }


@pytest.mark.parametrize("kind", kinds_of_keras(), ids=lambda kind: kind.__name__)
def test_no_class_shares_a_private_name_with_its_base_in_keras(kind):
    shared = used_on_self(kind) & private_names(kind)
    assert not shared, f"{kind.__name__} uses or hides {shared} of its base in Keras."


def test_a_shared_private_name_is_seen():
    class Bad(keras.callbacks.Callback):
        def get(self):
            return self._model

    assert "_model" in private_names(Bad)
    bad = ast.parse("class Bad:\n    def get(self):\n        return self._model")
    assert [name for _, name in names_used(bad)] == ["self._model"]


TABLE = (SOURCE.parents[1] / "docs" / "architecture.md").read_text("utf-8")
TABLE = TABLE.split("## What is private to Keras")[1].split("\n## ")[0]


def names_in_the_fence() -> set[str]:
    """Return the private names of Keras that `_keras_private` touches."""
    trees = [ast.parse(path.read_text("utf-8")) for path in FENCE.rglob("*.py")]
    own = set().union(*map(names_defined, trees)) | OF_PYTHON
    used = {way.removeprefix("self.") for tree in trees for _, way in names_used(tree)}
    return {
        name
        for name in used
        if (is_private(name) and name not in own) or name in WITHOUT_UNDERSCORE
    }


def test_the_page_on_architecture_has_each_private_thing():
    rows = {
        "_get_iterator": "EpochIterator",
        "_oracle": "Keras Tuner",
        **dict.fromkeys(
            [
                name
                for names, _ in private.CALLBACK_ATTRIBUTES.values()
                for name in names
            ],
            "attributes of Keras's callbacks",
        ),
    }
    missing = [
        name for name in names_in_the_fence() if rows.get(name, name) not in TABLE
    ]
    assert missing == [], "Give them a row in docs/architecture.md: why, what, test."


def test_each_row_of_the_page_names_a_test():
    tests = (Path(__file__).parent / "test_keras_private.py").read_text("utf-8")
    rows = [line.split("|") for line in TABLE.splitlines() if line.startswith("| ")]
    for *_, named, _ in rows[1:]:
        name = named.strip(" `")
        exists = (Path(__file__).parent / name).exists() or f"{name}" in tests
        assert exists, f"No test {name!r} in tests/test_keras_private.py."
