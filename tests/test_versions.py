"""Versions that fmkit refuses at import, with stand-ins for what is installed."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import needs
import pytest
from fresh_process import run_python
from needs import ABILITIES, missing, reasons

from fmkit._versions import refuse_other_versions

BACKEND = keras.backend.backend()
OLDEST = {"tensorflow": (2, 18), "jax": (0, 5), "torch": (2, 4)}


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("2.15.0", "another library"),
        ("3.0.5", "never tested"),
        ("3.9.2", "never tested"),
        ("3.10.0", "stop at another"),
        ("3.11.3", "come out wrong"),
        ("4.0.0", "does not know Keras 4"),
        ("10.0", "does not know Keras 4"),
    ],
)
def test_another_keras_is_refused_in_one_line(version, reason, monkeypatch):
    monkeypatch.setattr(keras, "__version__", version)
    with pytest.raises(ImportError) as caught:
        refuse_other_versions()
    (line,) = str(caught.value).splitlines()
    assert f"found {version}: " in line
    assert reason in line
    assert line.endswith('Type: pip install -U "keras>=3.12,<4"')


@pytest.mark.parametrize(
    "version", ["3.12.0", "3.12.4", "3.15.1", "3.16.0.dev2026102704", "3.100.0"]
)
def test_a_supported_keras_is_taken(version, monkeypatch):
    monkeypatch.setattr(keras, "__version__", version)
    refuse_other_versions()


def test_an_old_backend_is_refused_and_the_oldest_supported_one_is_taken(monkeypatch):
    backend = importlib.import_module(BACKEND)
    first, second = OLDEST[BACKEND]
    monkeypatch.setattr(backend, "__version__", f"{first}.{second - 1}.9+cpu")
    with pytest.raises(ImportError) as caught:
        refuse_other_versions()
    (line,) = str(caught.value).splitlines()
    assert f"{first}.{second} or later, and found {first}.{second - 1}.9+cpu" in line
    assert line.endswith(f'Type: pip install -U "{BACKEND}>={first}.{second}"')
    monkeypatch.setattr(backend, "__version__", f"{first}.{second}.0rc1")
    refuse_other_versions()


def test_a_backend_that_is_not_used_may_be_old_or_missing(monkeypatch):
    for other in OLDEST.keys() - {BACKEND}:
        monkeypatch.setitem(sys.modules, other, None)  # importing it would fail
        refuse_other_versions()
        old = type(sys)(other)
        old.__version__ = "0.1"
        monkeypatch.setitem(sys.modules, other, old)
        refuse_other_versions()


@pytest.mark.backend("torch")  # the quickest; nothing in it depends on one
@pytest.mark.long
def test_nothing_of_fmkit_is_loaded_with_an_old_keras():
    printed = run_python(
        """
        import sys, keras
        keras.__version__ = "3.11.3"
        try:
            import fmkit.losses
        except ImportError as error:
            print(error)
        print(sorted(name for name in sys.modules if name.startswith("fmkit")))
        """
    )
    error, loaded = printed.splitlines()[-2:]
    assert error.startswith("fmkit needs Keras 3.12 or later, below 4, and found 3.11")
    assert loaded == "['fmkit._versions']"


@pytest.mark.backend("torch")  # the quickest; nothing in it depends on one
def test_what_keras_is_said_to_lack_is_nowhere_in_it():
    sources = Path(keras.src.__file__).parent
    for ability, (owner, name) in ABILITIES.items():
        defined = any(
            re.search(rf"^(class|def) {name}\b", path.read_text("utf-8"), re.MULTILINE)
            for path in sources.rglob("*.py")
        )
        assert bool(missing(ability)) is not defined, (
            f"{owner.__name__} has no {name}, and yet Keras defines it."
            if defined
            else f"{name} moved: correct ABILITIES in tests/needs.py."
        )


@pytest.mark.parametrize(
    ("version", "spans", "is_open"),
    [
        ("3.12.4", ("3.12",), True),
        ("3.16.0.dev2026102704", ("3.12",), True),
        ("3.15.1", ("3.16",), False),
        ("3.15.1", ("3.12", "3.15"), True),
        ("3.16.0", ("3.12", "3.15"), False),
    ],
)
def test_a_trap_is_looked_for_where_it_is_open(version, spans, is_open, monkeypatch):
    monkeypatch.setattr(keras, "__version__", version)
    assert needs.is_open(*spans) is is_open


def test_a_test_that_needs_what_is_lacking_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setitem(ABILITIES, "ears", (keras, "Ears"))
    monkeypatch.setitem(ABILITIES, "models", (keras, "Model"))

    def reasons_against(*names):
        mark = pytest.mark.needs(*names).mark
        return reasons(SimpleNamespace(iter_markers=lambda kind: [mark]))

    assert reasons_against() == reasons_against("models", "keras") == []
    ears = f"needs keras.Ears, not in Keras {keras.__version__}"
    assert reasons_against("models", "ears") == [ears]
    [nowhere] = reasons_against("fmkit_is_nowhere")
    assert "pip install fmkit_is_nowhere" in nowhere
