"""`fmkit.compare`: the first step and the first variable in which two runs differ."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from resuming import build, data

from fmkit._commits import list_commits, read_commit, write_commit
from fmkit.callbacks import ExactResume, Fingerprint
from fmkit.compare import Comparison, compare_runs
from fmkit.compare.__main__ import main


class ChangeAt(keras.callbacks.Callback):
    """Changes something before a step, counted from 0 through all epochs."""

    def __init__(self, step, change):
        super().__init__()
        self.count, self.step, self.change = 0, step, change

    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def on_train_batch_begin(self, batch, logs=None):
        if self.count == self.step:
            self.change(self.model)
        self.count += 1


def train(where, *callbacks, every=1, epochs=2, model=None, **options):
    """Train 5 steps per epoch; leave a fingerprint and commits."""
    keras.utils.clear_session(free_memory=False)
    resume = ExactResume(f"{where}", every=every, keep=99, verbose=0)
    (model or build()).fit(
        data(**options),
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks, Fingerprint(f"{where}.jsonl", every), resume],
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that differ in one thing from `a`, which is equal to `b`."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "a")
    train(folder / "b")
    train(folder / "order", seed=1)
    train(folder / "rate", ChangeAt(7, half_the_rate))
    train(folder / "bit", ChangeAt(7, flip_a_bit))
    train(folder / "seldom", every=3)
    train(folder / "long", epochs=3)
    train(folder / "units", model=build(units=5))
    return folder


def half_the_rate(model):
    model.optimizer.learning_rate = 0.005


def flip_a_bit(model):
    """Flip the last bit of one element of the second layer's bias."""
    variable = model.layers[1].bias
    value = np.array(keras.ops.convert_to_numpy(variable))
    value.view("uint32")[1] ^= 1
    variable.assign(value)


KINDS = pytest.mark.parametrize("kind", ["", ".jsonl"])


def compare(runs, a, b, kind):
    return compare_runs(f"{runs / a}{kind}", f"{runs / b}{kind}")


@KINDS
def test_equal_runs_are_equal(kind, runs):
    found = compare(runs, "a", "b", kind)
    assert found.equal
    # The commits are those after each of 10 steps; the fingerprint has the start too.
    assert found == Comparison(compared=11 if kind else 10)


@KINDS
def test_another_order_differs_after_the_first_step(kind, runs):
    found = compare(runs, "a", "order", kind)
    assert (found.epoch, found.step) == (0, 1)
    assert found.variable == "sequential/dense/kernel"
    if kind:
        assert found.parts == ("batch", "weights", "optimizer", "metrics")
        assert found.largest_difference is None
    else:
        assert found.parts == ("variables",)
        assert found.settings == ("data.seed: 0, 1",)
        assert 0 < found.largest_difference < 1


@KINDS
def test_another_rate_from_a_step_on_names_the_step_and_the_rate(kind, runs):
    # It was changed before step 7, the third of the second epoch. ExactResume commits
    # last of all callbacks before that step, and so after the change.
    found = compare(runs, "a", "rate", kind)
    if kind:
        assert (found.epoch, found.step) == (1, 3)
        assert found.variable == "sequential/dense/kernel"
        # The loss of that step is of the weights before it.
        assert found.parts == ("weights", "optimizer")
    else:
        assert (found.epoch, found.step) == (1, 2)
        assert found.variable == "adam/learning_rate"
        assert found.largest_difference == pytest.approx(0.005)


@KINDS
def test_one_flipped_bit_names_the_step_and_the_variable(kind, runs):
    found = compare(runs, "a", "bit", kind)
    assert (found.epoch, found.step) == (1, 3 if kind else 2)
    if not kind:
        # Before the step that spreads it.
        assert found.variable == "sequential/dense_1/bias"
        assert 0 < found.largest_difference < 1e-6


def test_one_flipped_bit_of_a_commit_is_named_with_its_difference(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "flipped")
    path = list_commits(tmp_path / "flipped")[4]
    commit = read_commit(path)
    name = commit.meta.variables[3]["arrays"][0]
    array = commit.arrays[name].copy()
    array.view("uint32")[1] ^= 1
    largest = abs(float(array[1]) - float(commit.arrays[name][1]))
    write_commit(path, commit.meta, {**commit.arrays, name: array})
    found = compare_runs(runs / "a", tmp_path / "flipped")
    assert found.variable == commit.meta.variables[3]["path"]
    assert found.variable == "sequential/dense_1/bias"
    assert (found.epoch, found.step) == (commit.meta.epoch, commit.meta.step)
    assert found.largest_difference == largest > 0


@pytest.mark.parametrize(
    ("a", "b", "largest"),
    [
        ([0.0, 1.0], [-0.0, 1.0], 0.0),
        ([np.nan, 1.0], [np.nan, 1.5], 0.5),
        ([np.nan, 1.0], [0.0, 1.0], np.nan),
        ([np.inf, 1.0], [1.0, 1.0], np.inf),
    ],
)
def test_zeros_and_what_is_no_number(a, b, largest, runs, tmp_path):
    commit = read_commit(list_commits(runs / "a")[0])
    for name, values in (("a", a), ("b", b)):
        arrays = {**commit.arrays, "variable/3/0": np.array(values, "float32")}
        (tmp_path / name).mkdir()
        path = tmp_path / name / commit.path.name
        write_commit(path, commit.meta, arrays)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    np.testing.assert_equal(found.largest_difference, largest)
    assert compare_runs(tmp_path / "a", tmp_path / "a").equal


@KINDS
def test_steps_that_only_one_run_has_are_counted_and_left_out(kind, runs):
    found = compare(runs, "a", "long", kind)
    assert found.equal
    assert found.only_in_one == 5
    seldom = compare(runs, "a", "seldom", kind)
    assert seldom.equal
    assert 0 < seldom.compared < found.compared


@KINDS
def test_another_network_differs_in_its_variables(kind, runs):
    found = compare(runs, "a", "units", kind)
    assert found.variable == "sequential/dense/kernel"
    assert (found.epoch, found.step) == ((0, 0) if kind else (0, 1))
    assert found.largest_difference is None


# The command


@KINDS
def test_the_command_ends_with_0_1_or_2(kind, runs, capsys):
    def status(a, b):
        return main([f"{runs / a}{kind}", f"{runs / b}{kind}"])

    assert status("a", "b") == 0
    assert capsys.readouterr().out.startswith("No difference at 1")
    assert status("a", "order") == 1
    printed = capsys.readouterr().out
    assert "after step 1 of epoch 1, in sequential/dense/kernel" in printed
    with pytest.raises(SystemExit) as ended:
        status("a", "none")
    assert ended.value.code == 2
    assert "none" in capsys.readouterr().err


def test_a_directory_and_a_file_are_refused(runs):
    with pytest.raises(ValueError, match="both be directories of ExactResume, or both"):
        compare_runs(runs / "a", runs / "a.jsonl")


def test_runs_without_a_common_step_say_which_they_have(runs, tmp_path):
    for run, chosen in (("a", [0, 1]), ("b", [3])):
        (tmp_path / run).mkdir()
        for number in chosen:
            shutil.copy(list_commits(runs / run)[number], tmp_path / run)
    with pytest.raises(ValueError, match="2 from epoch 1, step 1 to epoch 1, step 2"):
        compare_runs(tmp_path / "a", tmp_path / "b")


def test_a_directory_without_commits_is_refused(tmp_path, runs):
    with pytest.raises(ValueError, match="There are no commits in"):
        compare_runs(tmp_path, runs / "a")


# Damaged and hostile files


def test_a_damaged_commit_is_an_error_that_names_it(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "a")
    path = list_commits(tmp_path / "a")[2]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=path.name):
        compare_runs(tmp_path / "a", runs / "b")


def test_a_commit_whose_meta_names_an_array_that_is_not_there(runs, tmp_path):
    commit = read_commit(list_commits(runs / "a")[0])
    listed = [{**commit.meta.variables[0], "arrays": ["none"]}]
    meta = dataclasses.replace(commit.meta, variables=listed)
    write_commit(tmp_path / commit.path.name, meta, commit.arrays)
    with pytest.raises(ValueError, match="no array 'none'"):
        compare_runs(tmp_path, runs / "b")


def changed(line, **values):
    return json.dumps({**json.loads(line), **values}).encode()


@pytest.mark.parametrize(
    ("number", "change", "why"),
    [
        (1, lambda line: b"{}", "format"),
        (1, lambda line: changed(line, version=2), "version 1"),
        (1, lambda line: b"\x80\x04K\x01.", "Line 1"),
        (2, lambda line: changed(line, names={}), "weights"),
        (2, lambda line: changed(line, names=[]), "TypeError"),
        (4, lambda line: line[:-9], "Line 4"),
        (4, lambda line: b"[" * 100_000, "Line 4"),
        (4, lambda line: b"[]", "TypeError"),
        (4, lambda line: b"3", "TypeError"),
        (4, lambda line: changed(line, step=-1), "counts"),
        (4, lambda line: changed(line, step=True), "counts"),
        (4, lambda line: changed(line, epoch="0"), "counts"),
        (4, lambda line: changed(line, weights="zz"), "a digest"),
        (4, lambda line: changed(line, weights=7), "TypeError"),
        (4, lambda line: changed(line, variables=[]), "0 variables"),
        (4, lambda line: changed(line, variables=None), "TypeError"),
    ],
)
def test_a_line_that_fingerprint_does_not_write_is_named(
    number, change, why, runs, tmp_path
):
    lines = (runs / "a.jsonl").read_bytes().splitlines()
    lines[number - 1] = change(lines[number - 1])
    (tmp_path / "a").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=f"Line {number} of .*Fingerprint") as found:
        compare_runs(tmp_path / "a", runs / "b.jsonl")
    assert why in str(found.value)


def test_a_last_line_that_is_cut_short_is_named(runs, tmp_path):
    (tmp_path / "a").write_bytes((runs / "a.jsonl").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"Line 13 of .* it is cut short"):
        compare_runs(tmp_path / "a", runs / "b.jsonl")


@pytest.mark.parametrize(
    "content", [b"", b'{"format":"fmkit fingerprint","version":1}\n']
)
def test_a_file_without_a_step_is_refused(content, runs, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="There is no step in"):
        compare_runs(tmp_path / "a", runs / "b.jsonl")


def test_a_difference_in_no_variable_is_told_by_its_parts(runs, tmp_path):
    lines = (runs / "a.jsonl").read_bytes().splitlines()
    lines[3] = changed(lines[3], generators="00000000")
    (tmp_path / "a").write_bytes(b"\n".join(lines) + b"\n")
    found = compare_runs(tmp_path / "a", runs / "b.jsonl")
    assert (found.variable, found.parts) == (None, ("generators",))
    assert str(found).endswith(f"of epoch {found.epoch + 1}: generators.")
