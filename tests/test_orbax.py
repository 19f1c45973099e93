"""Keras's OrbaxCheckpoint: what it wrote, read by the evaluator and exported."""

import json
import shutil
import sys
import time
import warnings

import keras
import numpy as np
import pytest
from fresh_process import run_python

from fmkit import losses, optimizers
from fmkit.data import Batches
from fmkit.evaluation import SidecarEvaluator, export_checkpoint
from fmkit.evaluation.__main__ import main
from fmkit.evaluation._checkpoint import NotReadableError, Target
from fmkit.evaluation._listing import list_checkpoints
from fmkit.evaluation._session import read_checkpoint

BACKEND = keras.backend.backend()
RNG = np.random.RandomState(0)
X, Y = RNG.rand(24, 4).astype("float32"), RNG.randint(0, 2, 24).astype("int32")
TEST = (X[:12], Y[:12])
needs_orbax = pytest.mark.needs("OrbaxCheckpoint", "orbax")


def build(optimizer=None, units=4, dtype="float32"):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units, activation="relu", dtype=dtype),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        optimizer or averaging(),
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
        jit_compile=False if BACKEND == "torch" else "auto",
        run_eagerly=BACKEND == "tensorflow",  # nothing to compile
    )
    return model


def averaging():
    return optimizers.ExponentialMovingAverage(keras.optimizers.Adam(0.05), 0.9)


class Seen(keras.callbacks.Callback):
    """What the weights and their averages were at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.raw, self.averaged = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.raw.append(self.model.get_weights())
        with self.model.optimizer.averaged(self.model):
            self.averaged.append(self.model.get_weights())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that Keras's callback has saved, and what it was."""
    if BACKEND != "jax":
        build()  # other counts of layers than a fresh process has
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("orbax")
    seen = Seen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax's own
        saved = keras.callbacks.OrbaxCheckpoint(folder / "run", max_to_keep=None)
        light = keras.callbacks.OrbaxCheckpoint(
            folder / "light", save_weights_only=True, save_freq=3, max_to_keep=None
        )
        build().fit(
            Batches(X, Y, 8, map=None),
            epochs=3,
            verbose=0,
            callbacks=[seen, saved, light],
        )
    return folder, seen


def same(one, other):
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one, other, strict=True)
    )


def evaluate(model, weights):
    model.set_weights(weights)
    return model.evaluate(*TEST, verbose=0, return_dict=True)


@needs_orbax
def test_each_step_is_evaluated_with_its_averages(run, tmp_path):
    folder, seen = run
    for _ in range(2):
        model = build("sgd")  # another optimizer, other counts of layers
    options = {"idle_seconds": 0, "verbose": 0, "output": tmp_path}
    records = SidecarEvaluator(model, TEST, folder / "run", **options).run()
    assert [(r["checkpoint"], r["step"]) for r in records] == [
        ("0", 3), ("1", 6), ("2", 9),
    ]  # fmt: skip
    for index, record in enumerate(records):
        raw = evaluate(model, seen.raw[index])
        assert record["results"]["raw"]["test"] == raw
        averaged = evaluate(model, seen.averaged[index])
        assert record["results"]["averaged"]["test"] == averaged != raw


@needs_orbax
def test_exported_steps_have_the_bits_of_the_run(run, tmp_path):
    folder, seen = run
    path = tmp_path / "a.keras"
    written = export_checkpoint(folder / "run", path)
    assert (written.checkpoint, written.step) == ("2", 9)
    assert same(keras.saving.load_model(path).get_weights(), seen.raw[2])
    command = ["export", str(folder / "run" / "1"), str(path), "--weights", "averaged"]
    assert main([*command, "--overwrite", "--quiet"]) == 0
    assert same(keras.saving.load_model(path).get_weights(), seen.averaged[1])
    # Weights alone: no averages, no description, and the batches in the names.
    model = build("sgd")
    written = export_checkpoint(
        folder / "light" / "6", path, model=model, overwrite=True
    )
    assert written.step is None
    assert same(model.get_weights(), seen.raw[1])
    with pytest.raises(ValueError, match="Give `model`"):
        export_checkpoint(folder / "light", tmp_path / "b.keras")
    with pytest.raises(ValueError, match=r"holds \['raw'\]"):
        export_checkpoint(
            folder / "light", tmp_path / "b.keras", model=model, weights="averaged"
        )


@needs_orbax
def test_the_command_evaluates_a_run_from_its_folder_alone(run, tmp_path):
    folder, seen = run
    np.savez(tmp_path / "test.npz", x=TEST[0], y=TEST[1])
    data = ["--data", f"test={tmp_path / 'test.npz'}", "--output", str(tmp_path / "o")]
    assert main([str(folder / "run"), *data, "--idle", "0", "--newest", "--quiet"]) == 0
    record = json.loads((tmp_path / "o" / "results.jsonl").read_text())
    expected = evaluate(build("sgd"), seen.raw[2])
    assert record["results"]["raw"]["test"] == pytest.approx(expected, rel=1e-6)


# Each backend's is exported on one other.
ELSEWHERE = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}[BACKEND]


@pytest.mark.long
@needs_orbax
@pytest.mark.needs(ELSEWHERE)
def test_a_step_of_one_backend_is_exported_on_another(run, tmp_path):
    folder, seen = run
    path = tmp_path / "a.keras"
    run_python(
        "import sys; from fmkit.evaluation.__main__ import main;"
        "raise SystemExit(main(sys.argv[1:]))",
        *("export", str(folder / "run" / "0"), str(path), "--weights", "averaged"),
        KERAS_BACKEND=ELSEWHERE,
    )
    found = keras.saving.load_model(path).get_weights()
    assert same(found, seen.averaged[0])


SHARDED = """
import sys
import keras, numpy as np
devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((1, 4), ["batch", "model"], devices)
layout = keras.distribution.LayoutMap(mesh)
layout["wide/kernel"] = (None, "model")
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
model = keras.Sequential([
    keras.Input((4,)), keras.layers.Dense(8, name="wide"), keras.layers.Dense(1)])
model.compile("adam", "mse")
saved = keras.callbacks.OrbaxCheckpoint(sys.argv[1])
x = np.random.RandomState(0).rand(8, 4)
model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[saved])
assert len(model.layers[0].kernel.value.sharding.device_set) == 4
np.savez(sys.argv[2], *model.get_weights())
"""


@pytest.mark.long
@needs_orbax
@pytest.mark.backend("jax")
def test_a_step_of_several_devices_is_read_on_one(tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out.npz"
    devices = "--xla_force_host_platform_device_count=4"
    run_python(SHARDED, str(folder), str(out), XLA_FLAGS=devices)
    assert len(keras.distribution.list_devices()) == 1
    export_checkpoint(folder, tmp_path / "a.keras")
    found = keras.saving.load_model(tmp_path / "a.keras").get_weights()
    with np.load(out) as arrays:
        assert same(found, [arrays[name] for name in arrays.files])


def listed(folder, name):
    return next(file for file in list_checkpoints(folder) if file.path.name == name)


@needs_orbax
@pytest.mark.backend("torch")
def test_what_is_being_written_or_deleted_is_no_step(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run[0] / "run", tmp_path / "run")
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    (folder / "4").mkdir()
    (folder / "5").touch()
    assert [file.path.name for file in list_checkpoints(folder)] == ["0", "1", "2"]
    target, gone = Target.of(build()), listed(folder, "1")
    shutil.rmtree(gone.path)
    with pytest.raises(FileNotFoundError, match="has been deleted"):
        read_checkpoint(gone, target)
    # Half deleted: the arrays are not taken for zeros.
    half = listed(folder, "2")
    shutil.rmtree(half.path / "pytree" / "d", ignore_errors=True)
    for path in half.path.glob("pytree/ocdbt.process_*"):
        shutil.rmtree(path)
    # Of reads that fail together, Orbax waits for the first: the others report to an
    # event loop that has ended.
    late = []
    monkeypatch.setattr(sys, "unraisablehook", late.append)
    with pytest.raises(NotReadableError):
        read_checkpoint(half, target)
    heard = -1
    while heard < len(late):
        heard = len(late)
        time.sleep(1)
    assert {str(each.exc_value) for each in late} <= {"Event loop is closed"}


@needs_orbax
@pytest.mark.backend("torch")
def test_another_model_is_refused_by_name(run):
    file = listed(run[0] / "run", "0")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="wide")])
    with pytest.raises(ValueError, match=r"different model.*\n(.*\n)*.*wide/kernel"):
        read_checkpoint(file, Target.of(other))
    for changed in ({"units": 5}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="different model"):
            read_checkpoint(file, Target.of(build("sgd", **changed)))


@pytest.mark.backend("torch")
def test_without_orbax_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "_CHECKPOINT_METADATA").write_text("{}")

    def import_module(name):
        assert name == "orbax.checkpoint"
        raise ModuleNotFoundError("No module named 'orbax'", name="orbax")

    monkeypatch.setattr("fmkit._requirements.importlib.import_module", import_module)
    model = build("sgd")
    with pytest.raises(ModuleNotFoundError, match="pip install orbax-checkpoint"):
        export_checkpoint(tmp_path / "7", tmp_path / "a.keras", model=model)
    options = {"idle_seconds": 0, "verbose": 0}
    with pytest.raises(ModuleNotFoundError, match="pip install orbax-checkpoint"):
        SidecarEvaluator(model, TEST, tmp_path, **options).run()
    (tmp_path / "7" / "model_config").mkdir()
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), str(tmp_path / "a.keras")])
    assert "pip install orbax-checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "a.keras").exists()
