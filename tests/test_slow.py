"""`tests/slow.txt`: each test in it exists, and `make test` runs it on some backend.

And `SHARE=1/8`, with which the server runs an eighth of the long tests.
"""

import ast
import copy
import functools
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend("torch")

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = {"tensorflow", "jax", "torch"}
LINES = (ROOT / "tests/slow.txt").read_text().splitlines()
ROWS = [line.split() for line in LINES if line and not line.startswith("#")]


@functools.cache
def statements(file):
    """Return the top level of a file's source."""
    return ast.parse((ROOT / file).read_text()).body


def backends_of(marks):
    """Return the arguments of each `pytest.mark.backend(...)` in some expressions.

    Such as stand there in words: `backend(*MANY_STEPS)` may be any of them.
    """
    calls = (n for mark in marks for n in ast.walk(mark) if isinstance(n, ast.Call))
    return [
        [ast.literal_eval(argument) for argument in call.args]
        for call in calls
        if ast.unparse(call.func) == "pytest.mark.backend"
        and not any(isinstance(argument, ast.Starred) for argument in call.args)
    ]


def runs_on(where):
    """Return the backends that `make test` runs a test on but for `slow.txt`.

    Raises:
        LookupError: If there is no such test.
    """
    file, _, test = where.partition("::")
    path = ROOT / file
    if not path.is_file():
        raise LookupError(f"There is no file {file}.")
    if path.is_relative_to(ROOT / "src"):
        return BACKENDS  # a doctest
    body = statements(file)
    functions = {n.name: n for n in body if isinstance(n, ast.FunctionDef)}
    if test and test not in functions:
        raise LookupError(f"There is no test {where}.")
    assigned = [n for n in body if isinstance(n, ast.Assign)]
    marks = [n.value for n in assigned if ast.unparse(n.targets[0]) == "pytestmark"]
    own = functions[test].decorator_list if test else []
    if any("pytest.mark.long" in ast.unparse(mark) for mark in [*marks, *own]):
        return set()
    return BACKENDS.intersection(*(backends_of(own) or backends_of(marks)))


def quick_on(where, rows):
    """Return the backends that `make test` runs a test on."""
    names = (where, where.partition("::")[0])
    return runs_on(where) - {backend for backend, name in rows if name in names}


def test_the_list_is_in_order_and_says_each_thing_once():
    assert sorted(ROWS) == ROWS
    assert len({tuple(row) for row in ROWS}) == len(ROWS)
    assert {backend for backend, _ in ROWS} <= BACKENDS


def each_test_in(where):
    """Return the names of the tests that a line stands for."""
    if "::" in where:
        return [where]
    names = (n.name for n in statements(where) if named(n))
    return [f"{where}::{name}" for name in names]


def named(node):
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


def test_a_file_stands_for_its_tests():
    assert len(each_test_in("tests/test_slow.py")) > 4
    assert each_test_in("tests/test_a.py::test_b") == ["tests/test_a.py::test_b"]


def test_each_is_a_test_that_is_quick_on_some_backend():
    listed = {test for _, where in ROWS for test in each_test_in(where)}
    assert not [
        where
        for where in sorted(listed)
        if runs_on(where) and not quick_on(where, ROWS)  # the rest is long in any case
    ]


def test_a_test_that_is_gone_or_quick_nowhere_is_found():
    with pytest.raises(LookupError, match="no test"):
        runs_on("tests/test_slow.py::test_that_is_gone")
    with pytest.raises(LookupError, match="no file"):
        runs_on("tests/test_gone.py")
    here = "tests/test_slow.py::test_a_test_that_is_gone_or_quick_nowhere_is_found"
    assert quick_on(here, []) == {"torch"}  # by this file's mark
    assert not quick_on(here, [["torch", here]])
    assert not quick_on(here, [["torch", "tests/test_slow.py"]])
    assert quick_on(here, [["jax", here]])
    assert runs_on("tests/test_batches.py") == BACKENDS


def test_a_line_makes_a_test_slow(request, monkeypatch):
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "tests/conftest.py"))
    item = request.node
    for listed in (set(), {"tests/test_slow.py"}, {item.nodeid}):
        monkeypatch.setattr(conftest, "SLOW", listed)
        items = [copy.copy(item)]
        items[0].own_markers = list(item.own_markers)
        conftest.pytest_collection_modifyitems(request.config, items)
        assert bool(items[0].get_closest_marker("slow")) == bool(listed)


def test_shares_leave_out_no_test_and_run_none_twice(request, monkeypatch):
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "tests/conftest.py"))
    monkeypatch.setattr(conftest, "SLOW", set())
    names = [f"tests/test_any.py::test_{number}" for number in range(40)]
    killing = "tests/test_exact_resume_chaos.py::test_killed"
    for mark, wanted in (("long", 40), ("slow", 40), ("backend", 160)):
        found = []
        for part in range(4):
            monkeypatch.setattr(conftest, "SHARE", f"{part}/4")
            items = []
            for name in [*names, killing]:
                items.append(copy.copy(request.node))
                named_so = {"nodeid": name}
                items[-1].__class__ = type("Named", (pytest.Function,), named_so)
                items[-1].own_markers = [getattr(pytest.mark, mark)("torch").mark]
            conftest.pytest_collection_modifyitems(request.config, items)
            found.append([item.nodeid for item in items])
        assert all(killing in each for each in found)
        run = [name for each in found for name in each if name != killing]
        assert set(run) == set(names)
        assert len(run) == wanted
        assert max(map(len, found)) < wanted  # a part is not the whole
