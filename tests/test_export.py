"""A checkpoint as a plain file: what is in it, who can load it, and what is refused."""

import contextlib
import itertools
import os
import shutil
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from fresh_process import run_python

from fmkit import losses, models, optimizers
from fmkit._commits import list_commits, read_commit
from fmkit.callbacks import ExactResume
from fmkit.data import Batches
from fmkit.evaluation import ExportedCheckpoint, export_checkpoint
from fmkit.evaluation.__main__ import main
from fmkit.performance import FusedModel

BACKEND = keras.backend.backend()
RNG = np.random.RandomState(0)
X, Y = RNG.rand(24, 4).astype("float32"), RNG.randint(0, 2, 24).astype("int32")
KINDS = ("raw", "averaged")
SUFFIXES = (".keras", ".weights.h5")


def network():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2),
        ]
    )


def compiled(model):
    model.compile(
        optimizers.ExponentialMovingAverage(keras.optimizers.Adam(0.05), 0.9),
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
        jit_compile=False if BACKEND == "torch" else "auto",
        run_eagerly=BACKEND == "tensorflow",  # nothing to compile
    )
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that trained with fmkit's optimizer and loss: its folder."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("run")
    (folder / "files").mkdir()
    checkpoint = keras.callbacks.ModelCheckpoint
    compiled(network()).fit(
        Batches(X, Y, 8, map=None),
        epochs=2,
        verbose=0,
        callbacks=[
            checkpoint(folder / "files" / "epoch_{epoch:d}.keras"),
            ExactResume(folder / "commits", every=2, keep=9, verbose=0),
        ],
    )
    return folder


def committed(path, kind):
    """The weights of a commit in the order of `get_weights`, from its arrays."""
    commit = read_commit(path)
    values = {
        entry["path"]: commit.arrays[entry["arrays"][0]]
        for entry in commit.meta.variables
    }
    count = len(commit.meta.program["model"])  # weights; the seed comes in between
    paths = [path for path in values if "seed" not in path][:count]
    found = []
    for path in paths:
        name = path.replace("/", "_") + "_average"
        averages = [v for p, v in values.items() if p.endswith("/" + name)]
        found.append(averages[0] if averages and kind == "averaged" else values[path])
    return found


def same(one, other):
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one, other, strict=True)
    )


@contextlib.contextmanager
def quiet():
    """Without the deprecations of NumPy's that `pytest.warns` brings up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


# What is in the file


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_bits_of_the_commit(run, tmp_path, kind):
    commits = list_commits(run / "commits")
    expected = [committed(path, kind) for path in commits]
    assert not same(*expected[-2:])
    assert not same(expected[-1], committed(commits[-1], KINDS[kind == "raw"]))
    written = export_checkpoint(run / "commits", tmp_path / "a.keras", weights=kind)
    assert written == ExportedCheckpoint(commits[-1].name, 2, 6, kind)
    assert same(
        keras.saving.load_model(tmp_path / "a.keras").get_weights(), expected[-1]
    )
    written = export_checkpoint(commits[-2], tmp_path / "b.weights.h5", weights=kind)
    assert written.step == 4
    model = network()
    model.load_weights(tmp_path / "b.weights.h5")
    assert same(model.get_weights(), expected[-2])


def test_the_file_holds_nothing_of_the_training(run, tmp_path):
    for suffix in SUFFIXES:
        export_checkpoint(run / "commits", tmp_path / f"a{suffix}")
    assert not keras.saving.load_model(tmp_path / "a.keras").compiled
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        assert b"fmkit" not in archive.read("config.json")
    with h5py.File(tmp_path / "a.weights.h5") as file:
        assert "optimizer" not in file
    # Negative control: where it is.
    with zipfile.ZipFile(run / "files" / "epoch_1.keras") as archive:
        assert b"fmkit" in archive.read("config.json")
        (tmp_path / "whole").mkdir()
        archive.extract("model.weights.h5", tmp_path / "whole")
    with h5py.File(tmp_path / "whole" / "model.weights.h5") as file:
        assert "optimizer" in file


LOAD = """
import sys
import keras, numpy as np
for path in sys.argv[1:]:
    if path.endswith(".keras"):
        model = keras.saving.load_model(path)
    else:
        model = keras.Sequential([
            keras.Input((4,)),
            keras.layers.Dense(3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2),
        ])
        model.load_weights(path)
    np.savez(path + ".npz", *model.get_weights())
assert not [name for name in sys.modules if name.startswith("fmkit")]
"""


def load_afresh(paths):
    """Load files with Keras alone in a fresh process; return the weights in each."""
    run_python(LOAD, *map(str, paths))
    found = []
    for path in paths:
        with np.load(f"{path}.npz") as arrays:
            found.append([arrays[f"arr_{i}"] for i in range(len(arrays.files))])
    return found


@pytest.mark.long
def test_a_fresh_process_loads_it_with_plain_keras(run, tmp_path):
    files = list(itertools.product(KINDS, SUFFIXES))
    paths = [tmp_path / f"{kind}{suffix}" for kind, suffix in files]
    for (kind, _), path in zip(files, paths, strict=True):
        export_checkpoint(run / "commits", path, weights=kind)
    newest = list_commits(run / "commits")[-1]
    for (kind, _), found in zip(files, load_afresh(paths), strict=True):
        assert same(found, committed(newest, kind))


# Each backend's is exported on one other.
ELSEWHERE = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}[BACKEND]


@pytest.mark.long
@pytest.mark.needs(ELSEWHERE)
def test_a_commit_of_one_backend_is_exported_on_another(run, tmp_path):
    newest = list_commits(run / "commits")[-1]
    path = tmp_path / "a.keras"
    run_python(
        "import sys; from fmkit.evaluation.__main__ import main;"
        "raise SystemExit(main(sys.argv[1:]))",
        *("export", str(newest), str(path), "--weights", "averaged"),
        KERAS_BACKEND=ELSEWHERE,
    )
    found = keras.saving.load_model(path).get_weights()
    assert same(found, committed(newest, "averaged"))


@pytest.mark.backend("torch")
def test_files_of_model_checkpoint_with_their_averages(run, tmp_path):
    # Commits of the same steps: those at the ends of the epochs.
    ends = [
        path
        for path in list_commits(run / "commits")
        if read_commit(path).meta.steps_before + read_commit(path).meta.step == 6
    ]
    for kind in KINDS:
        written = export_checkpoint(
            run / "files", tmp_path / f"{kind}.keras", weights=kind
        )
        assert (written.checkpoint, written.step) == ("epoch_2.keras", 6)
        found = keras.saving.load_model(tmp_path / f"{kind}.keras").get_weights()
        assert same(found, committed(ends[-1], kind))


@pytest.mark.backend("torch")
def test_a_model_of_fmkits_own_class_becomes_one_of_keras(tmp_path):
    made = models.mlp((3,), 2, input_shape=(4,))
    model = compiled(FusedModel(made.inputs, made.outputs))
    resume = ExactResume(tmp_path / "run", verbose=0)
    model.fit(Batches(X, Y, 8, map=None), callbacks=[resume], verbose=0)
    export_checkpoint(tmp_path / "run", tmp_path / "a.keras", model=model)
    found = keras.saving.load_model(tmp_path / "a.keras")
    assert type(found) is type(made)
    assert same(found.get_weights(), model.get_weights())
    assert np.array_equal(found.predict(X, verbose=0), model.predict(X, verbose=0))


@pytest.mark.backend("torch")
def test_the_model_that_is_given_stays_compiled(run, tmp_path):
    model = compiled(network())
    optimizer = model.optimizer
    export_checkpoint(run / "commits", tmp_path / "a.keras", model=model)
    assert model.compiled
    assert model.optimizer is optimizer
    model.fit(X, Y, verbose=0)
    plain = network()  # needs no `compile`
    export_checkpoint(
        run / "commits", tmp_path / "b.keras", model=plain, weights="averaged"
    )
    assert not plain.compiled
    expected = committed(list_commits(run / "commits")[-1], "averaged")
    assert same(plain.get_weights(), expected)


# Whole or not at all


@pytest.mark.backend("torch")
def test_a_file_that_is_there_is_replaced_only_when_asked(run, tmp_path):
    path = tmp_path / "a.keras"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_checkpoint(run / "commits", path)
    assert path.read_text() == "precious"
    export_checkpoint(run / "commits", path, overwrite=True)
    assert zipfile.is_zipfile(path)
    (tmp_path / "b.keras").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists already"):
        export_checkpoint(run / "commits", tmp_path / "b.keras")


@pytest.mark.backend("torch")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_write_that_fails_leaves_what_was_there(run, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("precious")
    half = []

    def fail(self, name, *args, **kwargs):
        with open(name, "wb") as file:
            file.write(b"half")
        half.append(name)
        raise OSError("the disk is full")

    model = compiled(network())
    method = "save" if suffix == ".keras" else "save_weights"
    monkeypatch.setattr(keras.Model, method, fail)
    with pytest.raises(OSError, match="the disk is full"):
        export_checkpoint(run / "commits", path, model=model, overwrite=True)
    assert half
    assert half[0] != str(path)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == [path.name]
    assert model.compiled


# What is refused, and with which words


@pytest.mark.backend("torch")
def test_a_damaged_commit_is_named_and_the_one_before_it_taken(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run / "commits", folder)
    *_, before, newest = list_commits(folder)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"Skipping .*{newest.name}"), quiet():
        written = export_checkpoint(folder, tmp_path / "a.keras")
    assert written.checkpoint == before.name
    with pytest.raises(ValueError, match=newest.name):
        export_checkpoint(newest, tmp_path / "b.keras")
    for path in list_commits(folder):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="Skipping"),
        quiet(),
        pytest.raises(ValueError, match="Restore one of them"),
    ):
        export_checkpoint(folder, tmp_path / "b.keras")
    assert not (tmp_path / "b.keras").exists()


@pytest.mark.backend("torch")
def test_errors_say_what_to_give(run, tmp_path):
    commits = run / "commits"
    with pytest.raises(ValueError, match=r"must end in \.keras or \.weights\.h5"):
        export_checkpoint(commits, tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"holds \['raw', 'averaged'\].* Did you mean"):
        export_checkpoint(commits, tmp_path / "a.keras", weights="average")
    with pytest.raises(ValueError, match="is no checkpoint, and holds none"):
        export_checkpoint(tmp_path / "nothing", tmp_path / "a.keras")
    alone = tmp_path / "alone" / "run" / "commit-00000001.npz"
    alone.parent.mkdir(parents=True)
    shutil.copy(list_commits(commits)[0], alone)
    with pytest.raises(ValueError, match="Give `model`"):
        export_checkpoint(alone, tmp_path / "a.keras")
    with pytest.raises(ValueError, match="different model"):
        export_checkpoint(commits, tmp_path / "a.keras", model=models.linear(3))
    assert os.listdir(tmp_path) == ["alone"]


def test_the_command_writes_the_file_and_says_which(run, tmp_path, capsys):
    path = tmp_path / "model.keras"
    command = ["export", str(run / "commits"), str(path), "--weights", "averaged"]
    assert main(command) == 0
    newest = list_commits(run / "commits")[-1]
    said = f"{newest.name}, epoch 2, step 6: averaged weights are in {path}.\n"
    assert capsys.readouterr().out == said
    found = keras.saving.load_model(path).get_weights()
    assert same(found, committed(newest, "averaged"))
    assert main([*command, "--overwrite", "--quiet"]) == 0
    model = ["--model", str(run / "files" / "epoch_1.keras"), "--quiet"]
    assert main(["export", str(newest), str(tmp_path / "b.weights.h5"), *model]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.backend("torch")
def test_the_command_helps_and_its_errors_tell_what_to_write(run, tmp_path, capsys):
    def fails(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["export", *map(str, arguments)])
        assert ended.value.code != 0
        assert os.listdir(tmp_path) == ["there.keras"]
        return capsys.readouterr().err

    (tmp_path / "there.keras").touch()
    path = tmp_path / "a.keras"
    assert "required: checkpoint, path" in fails()
    assert "--overwrite" in fails(run / "commits", tmp_path / "there.keras")
    assert "holds none" in fails(tmp_path / "none", path)
    assert "There is no file" in fails(
        run / "commits", path, "--model", tmp_path / "x.keras"
    )
    assert "No module named" in fails(run / "commits", path, "--import", "nowhere_at")
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    assert ended.value.code == 0
    assert "model.keras" in capsys.readouterr().out
