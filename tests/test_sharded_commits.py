"""Commits in parts, read in one process: by the evaluator, and by `compare`.

The parts are those of processes that stand one after the other in this one.
"""

import os

import keras
import numpy as np
import pytest

import fmkit
from fmkit._commits import (
    CommitDirectory,
    ShardedArray,
    Shared,
    list_averages,
    list_commits,
    read_commit,
    write_commit,
)
from fmkit._commits._sharded import PartFile, Piece, box_of, cut
from fmkit.callbacks import ExactResume
from fmkit.compare import compare_runs
from fmkit.data import Batches
from fmkit.evaluation import SidecarEvaluator, export_checkpoint, synthesize
from fmkit.optimizers import PowerRule, WeightAverages

pytestmark = pytest.mark.backend("torch")


def trained(directory):
    """Train with averages of which snapshots are kept."""
    fmkit.set_random_seed(3)
    rng = np.random.RandomState(0)
    x, y = rng.rand(40, 5).astype("float32"), rng.randint(0, 3, 40)
    model = network()
    resume = ExactResume(directory, every=2, keep=9, verbose=0)
    model.fit(Batches(x, y, 8, map=None), epochs=2, verbose=0, callbacks=[resume])
    return model, x, y


def network():
    layers = [keras.layers.Dense(4, "relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    rules = [PowerRule(0.05), PowerRule(0.1)]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(WeightAverages(keras.optimizers.Adam(0.01), rules), loss)
    return model


def into_parts(path, count):
    """Write a commit or a snapshot again, as a job of `count` processes would."""
    commit = read_commit(path)
    path.unlink()
    directory = CommitDirectory(path.parent)
    cut_up = {k: v for k, v in commit.arrays.items() if k.startswith(("var", "power"))}
    cut_up = cut_up or dict(commit.arrays)
    rest = {k: v for k, v in commit.arrays.items() if k not in cut_up}
    shared = [[] for _ in range(count)]
    for name, array in cut_up.items():
        boxes = cut(box_of((), array.shape), count)
        for process, box in enumerate(boxes):
            part = array[(*(slice(*each) for each in box), ...)]
            piece = Piece(name, box, False, part.nbytes, lambda part=part: part)
            shared[-1 - process].append(piece)
    whole = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape)}
        for name, array in cut_up.items()
    }
    for process in reversed(range(count)):
        place = directory.place(1, process, count, "0" * 8)._replace(list=path)
        each = Shared(place, commit.meta, rest, shared[process], whole)
        directory.write_part(each)
    directory.write_list(each, each.parts())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directory of a run, and the same with each commit in three parts."""
    plain, parts = (tmp_path_factory.mktemp(name) for name in ("plain", "parts"))
    _, x, y = trained(plain / "run")
    trained(parts / "run")
    for path in list_commits(parts / "run"):
        into_parts(path, 3)
    for path in list_averages(parts / "run").values():
        into_parts(path, 3)
    return plain / "run", parts / "run", x, y


def records(directory, data, output):
    evaluator = SidecarEvaluator(
        network(), data, directory, output=output, keep_best=False, verbose=0
    )
    return evaluator.run()


def test_the_evaluator_finds_in_parts_what_it_finds_in_one_file(runs, tmp_path):
    plain, parts, *data = runs
    assert sum("-of-3-" in name for name in os.listdir(parts)) >= 9
    expected = records(plain, tuple(data), tmp_path / "plain")
    found = records(parts, tuple(data), tmp_path / "parts")
    assert len(expected) == len(list_commits(plain))
    for old, new in zip(expected, found, strict=True):
        for key in ("checkpoint", "step", "digest", "results"):
            assert old[key] == new[key]


def test_the_evaluator_reads_an_array_when_it_needs_it(runs, tmp_path, monkeypatch):
    _, parts, *data = runs
    held = []
    read = ShardedArray.read

    def counted(self, *index):
        found = read(self, *index)
        held.append(found.nbytes)
        return found

    monkeypatch.setattr(ShardedArray, "read", counted)
    commit = read_commit(list_commits(parts)[-1])
    assert held == []
    assert all(
        isinstance(commit.arrays[name], ShardedArray)
        for entry in commit.meta.variables
        for name in entry["arrays"]
    )
    records(parts, tuple(data), tmp_path)
    assert max(held) == 4 * 5 * 4  # of the largest kernel


def test_averages_are_made_from_snapshots_in_parts(runs):
    plain, parts, *_ = runs
    one, other = (
        synthesize(each, 0.08, model=network()).model for each in (plain, parts)
    )
    for a, b in zip(one.weights, other.weights, strict=True):
        values = [keras.ops.convert_to_numpy(each) for each in (a, b)]
        assert values[0].tobytes() == values[1].tobytes()


def test_runs_are_compared_whatever_their_parts(runs):
    plain, parts, *_ = runs
    found = compare_runs(plain, parts)
    assert found.compared == len(list_commits(plain))
    assert found.epoch is None


def test_a_file_may_be_deleted_while_it_is_read(runs, tmp_path):
    plain, *_ = runs
    path = tmp_path / "commit-00000001.npz"
    commit = read_commit(list_commits(plain)[-1])
    write_commit(path, commit.meta, commit.arrays)
    into_parts(path, 2)
    found = read_commit(path)
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    for name, array in commit.arrays.items():
        assert np.asarray(found.arrays[name]).tobytes() == array.tobytes()
    with pytest.raises(FileNotFoundError):
        PartFile(path)


def test_an_export_of_parts_is_that_of_one_file(runs, tmp_path):
    plain, parts, *_ = runs
    for kind in ("raw", "averaged"):
        found = []
        for name, folder in (("plain", plain), ("parts", parts)):
            path = tmp_path / f"{name}-{kind}.keras"
            export_checkpoint(folder, path, weights=kind)
            found.append(keras.saving.load_model(path).get_weights())
        assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))
