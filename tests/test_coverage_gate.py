"""The gate of `make coverage` sees what never ran, and only in public names."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend("torch")
ROOT = Path(__file__).resolve().parents[1]
TOY = """\
class Loss:
    def call(self, x):
        if x > 0:
            return self.half(x)
        return -x

    def half(self, x):
        def inner():
            return x / 2

        return inner()


def never(x):
    return x + 1


def _private(x):
    return x
"""


@pytest.fixture(scope="module")
def script(program):
    return program("scripts/check_coverage.py")


@pytest.fixture
def toy(script, tmp_path, monkeypatch):
    """Run one branch of a module under coverage; return it and what was reported."""
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    (tmp_path / "use.py").write_text("import toy\ntoy.Loss().call(2)\n")
    command = [sys.executable, "-m", "coverage", "run", "--include=toy.py", "use.py"]
    subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    spec = importlib.util.spec_from_file_location("toy", tmp_path / "toy.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy", module)
    spec.loader.exec_module(module)
    return module, script.report()


def test_lines_that_never_ran_are_counted_for_their_public_name(script, toy):
    module, files = toy
    # With what is inside of its methods: 2 + 1 of `call`, 2 of `half`, 1 of `inner`.
    assert script.statements(module.Loss, files) == (6, [5])
    assert script.statements(module.never, files) == (1, [15])


def test_a_name_below_the_least_fails_the_gate(script, toy, monkeypatch):
    module, files = toy
    monkeypatch.setattr(script, "report", lambda: files)
    monkeypatch.setattr(script, "FEWEST", 1)
    names = [("toy.Loss", module.Loss), ("toy.never", module.never)]
    monkeypatch.setattr(script, "public_names", lambda: names)
    with pytest.raises(SystemExit) as failed:
        script.main()
    assert "toy.Loss: 83 %, never run: toy.py 5" in str(failed.value)
    assert "toy.never: 0 %, never run: toy.py 15" in str(failed.value)
    monkeypatch.setattr(script, "LEAST", 0.0)
    script.main()


def test_a_report_of_nothing_fails_the_gate(script, monkeypatch):
    monkeypatch.setattr(script, "report", dict)
    monkeypatch.setattr(script, "public_names", list)
    with pytest.raises(SystemExit, match="Only 0 public names"):
        script.main()


def test_every_public_function_and_class_is_under_the_gate(script):
    names = dict(script.public_names())
    assert len(names) > script.FEWEST
    assert {"losses.CrossentropyFromLogits", "hypermodels.HyperMLP"} <= set(names)
