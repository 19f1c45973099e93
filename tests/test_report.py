"""`python -m fmkit`: the report for an issue."""

import platform

import keras
import pytest

import fmkit
from fmkit import _keras_private as private
from fmkit.__main__ import main, report
from fmkit._keras_private import _pieces


def test_it_says_what_is_installed_and_found(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("FMKIT_DATA_DIR", raising=False)
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"fmkit {fmkit.__version__}, Python ")
    assert platform.python_version() in lines[0]
    backend = keras.backend.backend()
    assert lines[1].startswith(f"Keras {keras.__version__} on {backend} ")
    assert "cpu" in lines[1].lower()
    assert backend not in lines[2]
    assert "numpy" in lines[3]
    assert "MNIST: not found; 7,000 digits of it are in fmkit" in lines
    assert len(lines) < 12


@pytest.mark.backend("torch")
def test_what_this_keras_lacks_is_named(monkeypatch):
    assert private.missing_pieces() == []
    gone = "keras.src.random.seed_generator:moved_away"
    monkeypatch.setitem(
        _pieces.PIECES, gone, _pieces.Piece("what needs it", "all else")
    )
    assert "Missing on this Keras: what needs it; all else" in list(report())
    monkeypatch.setattr(keras, "__version__", "3.99.1")
    assert "Not tested on Keras 3.99; 3.12 to 3.15 were." in list(report())
