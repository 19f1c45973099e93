"""A Keras that has moved something private: one error where it is needed, no more."""

import ast
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import keras
import missing_pieces
import pytest
from fresh_process import run_python

from fmkit import _keras_private as private
from fmkit.callbacks._resume._callback_state import check_states

BACKEND = keras.backend.backend()
FENCE = Path(private.__file__).parent
# What only one backend needs.
ONLY = {
    "_symbolic_build": "tensorflow",
    "jax_state_sync": "jax",
    "keras.src.backend.common.stateless_scope:in_stateless_scope": "torch",
}


@pytest.mark.long
def test_without_a_piece_only_what_needs_it_fails_and_says_so():
    names = [name for name in private.PIECES if name != "jax_state_sync"]
    if BACKEND == "jax":
        names.append("jax_state_sync")
    else:
        assert not hasattr(keras.Model, "jax_state_sync")  # nothing to be missed
    # One fresh process for all: it takes each away in turn, and puts it back.
    code = Path(missing_pieces.__file__).read_text("utf-8")
    found = json.loads(run_python(code, *names).splitlines()[-1])
    assert [*found] == names
    for name, happened in found.items():
        assert_only_what_needs_it_fails(name, happened)


def assert_only_what_needs_it_fails(name, happened):
    assert happened["the rest"] is None, name
    module, _, attribute = name.partition(":")
    if name == missing_pieces.PARTIAL and not hasattr(
        importlib.import_module(module), attribute
    ):
        assert happened["put back"] == happened["needs it"]
    else:
        assert happened["put back"] is None, name
    if ONLY.get(name, BACKEND) != BACKEND:
        assert happened["needs it"] is None, name
        return
    error, message = happened["needs it"]
    assert error == "MissingPieceError", name
    what = private.PIECES[name]
    library = "Keras Tuner " if what.library == "keras_tuner" else "Keras "
    version = __import__(what.library).__version__
    assert message.startswith(f"{library}{version} has no `")
    assert f"{name.replace(':', '.')}`: it is private there, and has moved" in message
    assert f"fmkit lacks {what.needed_by}. All else works: {what.instead}." in message
    assert "pip install -U fmkit" in message


def pieces_in(text):
    """Return the names that a source of the fence asks for, and its imports."""
    asked, imported = set(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = {"piece": 0, "attribute": 1, "_of_compile": 1}.get(node.func.id)
            # A third one says what the piece is for, in place of `PIECES`.
            own = len(node.args) > 2
            argument = None if place is None or own else node.args[place]
            if isinstance(argument, ast.Constant):
                asked.add(argument.value)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("keras."):
            imported.append(node.module)
        if isinstance(node, ast.Import):
            imported += [a.name for a in node.names if a.name.startswith("keras.")]
    return asked, imported


def test_every_piece_is_asked_for_by_its_name_and_none_is_imported():
    asked = set()
    for path in FENCE.glob("*.py"):
        names, imported = pieces_in(path.read_text("utf-8"))
        assert imported == [], f"{path.name}: use `piece(...)`, and add it to PIECES."
        asked |= names
    calls = {f"{name}(epoch_iterator)" for name in ("fit", "evaluate", "predict")}
    assert asked | calls == set(private.PIECES)
    assert set(missing_pieces.NEEDED_BY) == set(private.PIECES)


def test_an_import_and_an_unknown_piece_are_seen():
    text = (
        "from keras.src.trainers import trainer\nimport keras.src.x\n"
        "piece('keras.src.a:b')\nattribute(model, '_c')\n"
    )
    asked, imported = pieces_in(text)
    assert asked == {"keras.src.a:b", "_c"}
    assert imported == ["keras.src.trainers", "keras.src.x"]


def attributes_read(text):
    """Return private attributes of Keras's that are read without `attribute`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and node.attr in private.PIECES
        and ast.unparse(node.value) != "keras"  # the module `keras.callbacks`
    }


def test_no_piece_is_read_past_the_check():
    for path in FENCE.glob("*.py"):
        read = attributes_read(path.read_text("utf-8"))
        assert read == set(), f"{path.name}: read {read} by `attribute(...)`."
    assert attributes_read("model._flatten_layers()") == {"_flatten_layers"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, (names, _) in private.CALLBACK_ATTRIBUTES.items()
        for name in names
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_callback_that_keeps_its_state_elsewhere_is_refused_at_the_start(kind, name):
    class Moved(kind):
        def __init__(self):
            pass

        def __getattribute__(self, asked):
            if asked == name:
                raise AttributeError(name)
            return super().__getattribute__(asked)

    callback = Moved()
    for each in private.CALLBACK_ATTRIBUTES[kind][0]:
        setattr(callback, each, 0)
    vars_of = dict.fromkeys(private.CALLBACK_ATTRIBUTES[kind][1], "x")
    callback.__dict__.update(vars_of)
    with pytest.raises(private.MissingPieceError) as caught:
        check_states([callback])
    assert re.match(
        rf"Keras {re.escape(keras.__version__)} has no `Moved\.{name}`: .* fmkit lacks "
        r"`ExactResume` together with `Moved`\.",
        str(caught.value),
    )


def test_a_piece_that_is_there_is_keras_s_own():
    owner = SimpleNamespace(_model=3)
    assert private._pieces.attribute(owner, "_model") == 3
    assert private._pieces.piece("keras.src.utils.io_utils:print_msg") is (
        keras.src.utils.io_utils.print_msg
    )
