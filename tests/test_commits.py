"""The files of commits: whole or not there, checked when read, kept and deleted."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import warnings
import zipfile

import keras
import ml_dtypes
import numpy as np
import pytest
from odd_files import damaged

from fmkit import _files
from fmkit._commits import (
    CommitDirectory,
    DamagedCommitError,
    Meta,
    group_variables,
    list_commits,
    list_variables,
    read_commit,
    read_meta,
    write_commit,
)
from fmkit._commits._encoding import decode, encode

pytestmark = pytest.mark.backend("tensorflow", "torch")
once = pytest.mark.backend("torch")  # processes of files, which import it the quickest

ARRAYS = {
    "variable/0/0": np.arange(12, dtype=np.float32).reshape(3, 4),
    "variable/1/0": np.array([0.0, -0.0, np.nan, np.inf, 5e-324]),
    "variable/2/0": np.array(7, np.int64),
    "variable/3/0": np.array([1.5, -2.25], ml_dtypes.bfloat16),
    "variable/4/0": np.zeros((0, 3), np.uint8),
    "variable/5/0": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "variable/6/0": np.array([True, False]),
    "variable/7/0": np.array([0.5], ml_dtypes.float8_e4m3fn),
}
META = Meta(epoch=3, step=4, data=[3, 4], logs={"a": 1.1, "b": float("inf"), "c": 1})


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_what_is_written_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "commit-00000001.npz"
    write_commit(path, META, ARRAYS)
    commit = read_commit(path)
    assert commit.number == 1
    assert commit.meta == META
    assert read_meta(path) == commit.meta
    assert commit.arrays.keys() == ARRAYS.keys()
    assert all(same(commit.arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert os.listdir(tmp_path) == [path.name]


def test_numpy_opens_a_commit(tmp_path):
    path = tmp_path / "commit-00000001.npz"
    write_commit(path, META, ARRAYS)
    with np.load(path) as loaded:
        assert same(loaded["variable/0/0"], ARRAYS["variable/0/0"])
        assert json.loads(loaded["meta.json"])["epoch"] == 3


def test_no_flipped_bit_and_no_cut_gives_a_wrong_state(tmp_path):
    path = tmp_path / "commit-00000001.npz"
    small = {name: ARRAYS[name] for name in list(ARRAYS)[:4]}
    write_commit(path, META, small)
    whole = path.read_bytes()
    rng = np.random.RandomState(0)
    contents = damaged(whole, rng, cuts=80, flips=1500)
    contents += [rng.bytes(size) for size in (0, 1, 22, 500)]
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            commit = read_commit(path)
        except DamagedCommitError:
            refused += 1
            continue
        # A bit that carries nothing (a time stamp): the state must be right.
        assert commit.meta == META
        assert all(same(commit.arrays[name], small[name]) for name in small)
    assert refused > 0.8 * len(contents)


def test_foreign_archives_are_refused(tmp_path):
    path = tmp_path / "commit-00000001.npz"
    np.savez(path, a=np.zeros(3))
    with pytest.raises(DamagedCommitError, match=r"meta\.json"):
        read_commit(path)
    np.savez(path, **{"meta.json": np.array({"a": 1}, dtype=object)})
    with pytest.raises(DamagedCommitError):
        read_commit(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.json", json.dumps({"format": "another"}))
    with pytest.raises(DamagedCommitError, match="not a fmkit commit"):
        read_commit(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", " " * 10**7)  # a bomb
    with pytest.raises(DamagedCommitError, match="not stored as it was written"):
        read_commit(path)


WRONG = {
    "epoch": [None, "1", 1.0, True],
    "data": [3, [3, "4"], "3"],
    "moment": ["never", None],
    "finished": [0, None],
    "score": ["low", False],
    "logs": [[], {"loss": "1"}],
    "variables": [{}, [1], [{"path": "a", "held": None, "metric": False}]],
    "random": [None, []],
    "program": ["keras"],
}


def test_a_key_that_is_missing_or_of_the_wrong_type_is_damage(tmp_path):
    path = tmp_path / "commit-00000001.npz"
    entry = {"path": "a/b", "held": None, "metric": False, "arrays": ["variable/0/0"]}
    right = {**vars(META), "variables": [entry], "score": 1, "from a later fmkit": 0}
    header = {"format": "fmkit commit", "version": 1, "arrays": {}}

    def read(values):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("meta.json", json.dumps({**header, **values}))
        assert read_commit(path).meta == read_meta(path)
        return read_meta(path)

    assert read(right).variables == [entry]
    for field in dataclasses.fields(Meta):
        without = {name: value for name, value in right.items() if name != field.name}
        with pytest.raises(DamagedCommitError, match=f"json lacks '{field.name}'"):
            read(without)
    for name, values in WRONG.items():
        for value in values:
            with pytest.raises(DamagedCommitError, match=f"'{name}' in meta.json is"):
                read({**right, name: value})
    assert read({**right, "data": None, "score": None}).score is None


def test_each_variable_is_listed_once_in_the_order_of_a_commit():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)]
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.train_on_batch(np.zeros((1, 3)), np.zeros((1, 2)))
    model.steps = model.optimizer.iterations  # the model's too
    groups = group_variables(model)
    listed = list_variables(model, metrics=True)
    names = [[v.path.rpartition("/")[2] for v in group] for group in groups]
    assert names[0] == ["iteration", "kernel", "bias", "seed_generator_state"]
    assert names[1][0] == "learning_rate"
    assert names[2] == ["total", "count"] * 2
    assert listed == [*groups.model, *groups.optimizer, *groups.metrics]
    assert len({id(variable) for variable in listed}) == len(listed)
    assert list_variables(model, metrics=False) == listed[:-4]


def test_newest_sound_commit_is_found_behind_damaged_ones(tmp_path):
    directory = CommitDirectory(tmp_path, keep=9)
    directory.acquire()
    assert directory.newest() is None
    for epoch in range(3):
        directory.write(Meta(epoch=epoch), ARRAYS)
    second, third = list_commits(tmp_path)[1:]
    third.write_bytes(third.read_bytes()[:-100])
    second.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged") as warned:
        commit = directory.newest()
    assert commit.meta.epoch == 0
    assert len(warned) == 2
    # New commits are newer than the damaged ones.
    directory.write(Meta(epoch=9), ARRAYS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert directory.newest().meta.epoch == 9
    for path in list_commits(tmp_path):
        path.write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(DamagedCommitError, match="None of the 4 commits"),
    ):
        directory.newest()
    directory.release()


def test_newest_and_best_commits_stay(tmp_path):
    directory = CommitDirectory(tmp_path, keep=2, keep_best=2)
    directory.acquire()
    for epoch, score in enumerate([5.0, 1.0, None, 3.0, 2.0, 4.0, 4.5]):
        directory.write(Meta(epoch=epoch, score=score), {})
    kept = [read_meta(path).epoch for path in list_commits(tmp_path)]
    assert kept == [1, 4, 5, 6]
    directory.release()
    # A new process knows the scores of the old one.
    again = CommitDirectory(tmp_path, keep=1, keep_best=1)
    again.acquire()
    again.newest()
    again.write(Meta(epoch=7, score=9.0), {})
    assert [read_meta(path).epoch for path in list_commits(tmp_path)] == [1, 7]
    again.release()


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, monkeypatch, call):
    directory = CommitDirectory(tmp_path)
    directory.acquire()
    directory.write(Meta(epoch=0), ARRAYS)
    before = sorted(os.listdir(tmp_path))

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "open":
            patch.setattr(_files, "open", full, raising=False)
        else:
            patch.setattr(_files.os, call, full)
        with pytest.raises(OSError, match=r"could not be written.*No space left"):
            directory.write(Meta(epoch=1), ARRAYS)
    assert sorted(os.listdir(tmp_path)) == before
    assert directory.newest().meta.epoch == 0
    directory.write(Meta(epoch=1), ARRAYS)
    assert directory.newest().meta.epoch == 1
    directory.release()


@pytest.mark.long
@once
def test_a_file_size_limit_of_the_system_loses_nothing(tmp_path):
    # A real failing write(2), half-way through the file.
    code = f"""
import resource, signal, numpy as np
from fmkit._commits import CommitDirectory, Meta
directory = CommitDirectory({str(tmp_path)!r}); directory.acquire()
directory.write(Meta(epoch=0), {{"a": np.zeros(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    directory.write(Meta(epoch=1), {{"a": np.zeros(100_000)}})
except OSError as error:
    print(error)
print(directory.newest().meta.epoch)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "could not be written" in done.stdout
    assert done.stdout.endswith("\n0\n")
    assert sorted(os.listdir(tmp_path)) == ["commit-00000001.npz", "lock"]


def test_a_path_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be used for commits"):
        CommitDirectory(tmp_path / "file" / "deeper").acquire()


@pytest.mark.long
@once
def test_a_directory_is_held_by_one_live_run(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom fmkit._commits import CommitDirectory\n"
            f"CommitDirectory({str(tmp_path)!r}).acquire()\n"
            "print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(
        OSError, match=f"in use by another live run .process {holder.pid}"
    ):
        CommitDirectory(tmp_path).acquire()
    # What it had half-written is removed when the next run takes over.
    half = tmp_path / f".commit-00000001.npz.{holder.pid}.tmp"
    half.write_bytes(b"half")
    holder.kill()
    holder.communicate()
    directory = CommitDirectory(tmp_path)
    directory.acquire()
    assert not half.exists()
    with pytest.raises(OSError, match="another `fit` of this very process"):
        CommitDirectory(tmp_path).acquire()
    directory.release()
    second = CommitDirectory(tmp_path)
    second.acquire(is_live=lambda: False)
    third = CommitDirectory(tmp_path)
    third.acquire()  # the second ended without letting go
    second.release()
    with pytest.raises(OSError, match="this very process"):
        CommitDirectory(tmp_path).acquire()
    third.release()


def test_states_of_callbacks_survive_json():
    state = {
        "a": [1, 2.5, None, True, "x", float("-inf")],
        "b": {"c": np.arange(3, dtype=np.int8), "d": np.float32(0.1)},
        "e": {1: "one", (2): b"\x00\xff"},
        "f": {"__array__": 1},
    }
    arrays = {}
    back = decode(json.loads(json.dumps(encode(state, arrays, "mine"))), arrays)
    assert back["a"] == state["a"]
    assert same(back["b"]["c"], state["b"]["c"])
    assert type(back["b"]["d"]) is np.float32
    assert back["b"]["d"] == state["b"]["d"]
    assert back["e"] == state["e"]
    assert back["f"] == state["f"]
    with pytest.raises(TypeError, match="state of mine holds a object"):
        encode({"a": object()}, {}, "mine")
