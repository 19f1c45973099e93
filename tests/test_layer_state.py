"""What layers keep besides weights: in averaged models, beside a run, and refused."""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

from fmkit._layer_state import assets_as_json, restore_assets
from fmkit.callbacks import ExactResume
from fmkit.data import Batches
from fmkit.evaluation import SidecarEvaluator
from fmkit.evaluation.__main__ import _model, _UsageError, main
from fmkit.optimizers import ExponentialMovingAverage, averaged, averaged_model

BACKEND = keras.backend.backend()
COUNT = 12
RNG = np.random.default_rng(0)
REALS = (RNG.normal(size=(COUNT, 2)) * [3, 90] + [7, -40]).astype("float32")
WHOLE = RNG.integers(0, 5, (COUNT, 2)).astype("int32")
WORDS = np.array([["cat"], ["dog"], ["cow"], ["cat"]] * 3)
TEXTS = np.array([["the cat sat"], ["a dog"], ["the cow ate the grass"], ["cat"]] * 3)
Y = RNG.normal(size=(COUNT, 1)).astype("float32")


@keras.saving.register_keras_serializable("fmkit_test")
class Memory(layers.Layer):
    """A layer of one's own whose `adapt` keeps an array that is no weight."""

    offset = np.zeros(2, "float32")

    def adapt(self, x):
        self.offset = x.mean(axis=0)

    def call(self, x):
        return x - ops.convert_to_tensor(self.offset)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["offset"] = self.offset

    def load_own_variables(self, store):
        self.offset = np.array(store["offset"])


@keras.saving.register_keras_serializable("fmkit_test")
class Table(layers.Layer):
    """A layer of one's own that saves a file in a folder."""

    scale = 1.0

    def adapt(self, x):
        self.scale = float(np.abs(x).max())

    def call(self, x):
        return x / self.scale

    def save_assets(self, dir_path):
        Path(dir_path, "inner").mkdir()
        Path(dir_path, "inner", "scale.txt").write_text(str(self.scale))

    def load_assets(self, dir_path):
        self.scale = float(Path(dir_path, "inner", "scale.txt").read_text())


@keras.saving.register_keras_serializable("fmkit_test")
class Halved(layers.Layer):
    """A layer of one's own that calculates with something made of its weight."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.half = None

    def call(self, x):
        w = self.w if self.half is None else ops.convert_to_tensor(self.half) * 2
        return x * w

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.half = ops.convert_to_numpy(self.w) / 2


NUMERIC = {
    "Normalization": (lambda: layers.Normalization(), REALS),
    "Normalization of all": (lambda: layers.Normalization(axis=None), REALS),
    "Normalization inverted": (lambda: layers.Normalization(invert=True), REALS),
    "Normalization given": (
        lambda: layers.Normalization(mean=[7.0, -40.0], variance=[9.0, 8100.0]),
        REALS,
    ),
    "Discretization": (lambda: layers.Discretization(num_bins=3), REALS),
    "Discretization given": (lambda: layers.Discretization([-40.0, 7.0]), REALS),
    "a file": (Table, REALS),
    "made of a weight": (Halved, REALS),
}
IN_MEMORY = {"an array": (Memory, REALS)}

text = layers.TextVectorization
LOOKUPS = {
    "IntegerLookup": (layers.IntegerLookup, WHOLE),
    "IntegerLookup one-hot": (
        lambda: layers.IntegerLookup(output_mode="multi_hot"),
        WHOLE,
    ),
    "StringLookup": (layers.StringLookup, WORDS),
    "StringLookup given": (
        lambda: layers.StringLookup(vocabulary=["cow", "dog", "cat"]),
        WORDS,
    ),
    **{
        f"StringLookup {mode}": (
            lambda mode=mode: layers.StringLookup(output_mode=mode),
            WORDS,
        )
        for mode in ("one_hot", "multi_hot", "count", "tf_idf")
    },
    "Hashing": (lambda: layers.Hashing(3), WORDS),
    "TextVectorization": (lambda: text(output_sequence_length=4), TEXTS),
    **{
        f"TextVectorization {mode}": (lambda mode=mode: text(output_mode=mode), TEXTS)
        for mode in ("multi_hot", "count", "tf_idf")
    },
}

# Lookups are TensorFlow's, whatever the backend: only there can a model hold them.
RUNS = {**NUMERIC, **(LOOKUPS if BACKEND == "tensorflow" else {})}
ALL = {**RUNS, **IN_MEMORY}


@keras.saving.register_keras_serializable("fmkit_test")
class AsFloats(layers.Layer):
    """Makes indices or counts of some rank into rows of floats."""

    def call(self, x):
        return ops.cast(x, "float32")


def make(name, *, adapt=True, inner=False):
    keras.utils.set_random_seed(2)
    create, x = ALL[name]
    layer = create()
    given = "given" in name or name in ("Hashing", "made of a weight")
    if adapt and not given:
        layer.adapt(x)
    kind = "string" if x.dtype.kind == "U" else x.dtype.name
    inputs = keras.Input(x.shape[1:], dtype=kind)
    outputs = layers.Flatten()(AsFloats()(layer(inputs)))
    if inner:
        part = keras.Model(inputs, outputs)
        inputs = keras.Input(x.shape[1:], dtype=kind)
        outputs = part(inputs)
    model = keras.Model(inputs, layers.Dense(1)(outputs))
    model.compile(
        ExponentialMovingAverage(keras.optimizers.Adam(0.1)),
        "mse",
        # XLA has no strings; beside a run, the model is made with the same setting.
        jit_compile=BACKEND == "jax",
    )
    return model, x


def fit(model, x, **options):
    batches = Batches(x, Y, 4, map=None)
    return model.fit(batches, epochs=2, verbose=0, **options)


def bits(model, x):
    return np.asarray(model.predict(Batches(x, None, 4, map=None), verbose=0)).tobytes()


INNER = {"Normalization", "a file", "made of a weight", "TextVectorization tf_idf"}


@pytest.mark.parametrize(
    ("name", "inner"),
    [(name, inner) for name in ALL for inner in {False, name in INNER}],
)
def test_an_averaged_model_predicts_as_the_model_that_holds_the_averages(name, inner):
    model, x = make(name, inner=inner)
    fit(model, x)
    with averaged(model):
        expected = bits(model, x)
    assert bits(model, x) != expected  # the averages differ from the weights
    copy = averaged_model(model)
    assert bits(copy, x) == expected
    # And it is a model of its own.
    for variable in copy.variables:
        variable.assign(ops.zeros_like(ops.convert_to_tensor(variable)))
    with averaged(model):
        assert bits(model, x) == expected


LEARNT = {"Normalization", "a file", "an array"}
LEARNT |= {"IntegerLookup", "StringLookup tf_idf", "TextVectorization"} & set(ALL)


@pytest.mark.parametrize("name", sorted(LEARNT))
def test_weights_alone_are_not_the_model(name):
    # Negative control: what a clone with the same weights predicts.
    if BACKEND == "torch" and name == "Normalization":
        return  # there the constants share the memory of the weights
    model, x = make(name)
    clone = keras.models.clone_model(model)
    for target, source in zip(clone.variables, model.variables, strict=False):
        target.assign(ops.copy(source))
    expected = bits(model, x)
    if name in LOOKUPS:
        with pytest.raises(Exception, match=r"not initialized|idf_weights|NoneType"):
            bits(clone, x)
    else:
        assert bits(clone, x) != expected


def test_a_subclass_whose_clone_is_another_network_is_refused():
    @keras.saving.register_keras_serializable("fmkit_test")
    class Net(keras.Model):
        def __init__(self, adapted=None):
            super().__init__()
            self.first = adapted or layers.Rescaling(1.0)
            self.out = layers.Dense(1)

        def call(self, x):
            return self.out(self.first(x))

        def get_config(self):  # leaves out what was given
            return {}

    memory = Memory()
    memory.adapt(REALS)
    model = Net(memory)
    model.compile(ExponentialMovingAverage("sgd"), "mse")
    fit(model, REALS)
    with pytest.raises(
        ValueError, match=r"'memory.*' is, which keeps more than weights"
    ):
        averaged_model(model)


# Beside a run


def finished_run(folder, name, **options):
    model, x = make(name, **options)
    fit(model, x, callbacks=[ExactResume(folder, every=2, keep=9, verbose=0)])
    return model, x


def described(folder, model=None):
    return _model(argparse.Namespace(model=model, directory=folder, idle=0, poll=1))


def last_results(model, x, folder):
    data = Batches(x, Y, 4, map=None)
    records = SidecarEvaluator(model, data, folder, verbose=0, keep_best=False).run()
    return {
        kind: found["test"]["loss"] for kind, found in records[-1]["results"].items()
    }


def expected_results(model, x):
    data = Batches(x, Y, 4, map=None)
    raw = model.evaluate(data, verbose=0)
    with averaged(model):
        return {"raw": raw, "averaged": model.evaluate(data, verbose=0)}


@pytest.mark.parametrize("name", RUNS)
def test_the_model_made_from_what_the_run_wrote_gives_its_results(tmp_path, name):
    model, x = finished_run(tmp_path, name)
    made = described(tmp_path)
    assert last_results(made, x, tmp_path) == expected_results(model, x)
    assert bits(made, x) != b""


@pytest.mark.parametrize("name", ["Normalization", "made of a weight"])
def test_a_model_that_was_adapted_to_other_data_takes_the_runs_values(tmp_path, name):
    model, x = finished_run(tmp_path, name)
    other, _ = make(name)
    if hasattr(other.layers[1], "adapt"):
        other.layers[1].adapt(3 * x + 1)
    other.evaluate(x, Y, verbose=0)  # compiled with what it knows
    before = expected_results(other, x)
    assert last_results(other, x, tmp_path) == expected_results(model, x)
    assert before != expected_results(model, x)


def test_a_run_that_adapts_on_the_way_is_followed(tmp_path):
    model, x = make("Normalization")

    class Adapt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                variables = model.layers[1].variables
                variables[0].assign(variables[0] + 2.0)

    resume = ExactResume(tmp_path, every=3, keep=9, verbose=0)
    fit(model, x, callbacks=[Adapt(), resume])
    made = described(tmp_path)
    data = Batches(x, Y, 4, map=None)
    records = SidecarEvaluator(made, data, tmp_path, verbose=0, keep_best=False).run()
    model.layers[1].finalize_state()
    model.make_test_function(force=True)
    assert len(records) == 2
    assert records[-1]["results"]["raw"]["test"]["loss"] == model.evaluate(
        data, verbose=0
    )


@pytest.mark.parametrize("kind", ["model.weights.h5", "model.keras"])
def test_files_of_model_checkpoint_bring_their_values_too(tmp_path, kind):
    model, x = make("Normalization")
    fit(model, x)
    (model.save_weights if "weights" in kind else model.save)(tmp_path / kind)
    other, _ = make("Normalization")
    other.layers[1].adapt(3 * x + 1)
    other.evaluate(x, Y, verbose=0)
    evaluator = SidecarEvaluator(
        other, Batches(x, Y, 4, map=None), tmp_path, verbose=0, max_evaluations=1
    )
    results = evaluator.run()[-1]["results"]
    found = {kind: by_data["test"]["loss"] for kind, by_data in results.items()}
    assert found == expected_results(model, x)


def test_the_command_and_its_best_model(tmp_path, capsys):
    model, x = finished_run(tmp_path / "run", "Normalization")
    np.savez(tmp_path / "test.npz", x=x, y=Y)
    data = ["--data", f"test={tmp_path / 'test.npz'}", "--batch-size", "4"]
    assert main([str(tmp_path / "run"), *data, "--map", "none", "--quiet"]) == 0
    lines = (tmp_path / "run/evaluation/results.jsonl").read_text().splitlines()
    results = json.loads(lines[-1])["results"]
    expected = expected_results(model, x)
    assert {k: found["test"]["loss"] for k, found in results.items()} == expected
    best = keras.models.load_model(tmp_path / "run/evaluation/best.keras")
    losses = [
        found["test"]["loss"]
        for line in lines
        for found in json.loads(line)["results"].values()
    ]
    assert best.evaluate(Batches(x, Y, 4, map=None), verbose=0) == min(losses)


def test_a_description_without_its_vocabulary_is_refused(tmp_path):
    # As an earlier version wrote it.
    finished_run(tmp_path, "a file")
    config = json.loads((tmp_path / "model.json").read_bytes())
    assert config.pop("fmkit_assets")
    (tmp_path / "model.json").write_text(json.dumps(config))
    message = "no vocabulary, nor other file, for layer 'table.*--model model.keras"
    with pytest.raises(_UsageError, match=message):
        described(tmp_path)


@pytest.mark.parametrize("version", ["3.99.0", keras.__version__])
def test_a_description_by_a_newer_keras_is_refused_with_both_versions(
    tmp_path, version
):
    finished_run(tmp_path, "Normalization")
    described(tmp_path)  # the control: it can be read
    config = json.loads((tmp_path / "model.json").read_bytes())
    assert config["fmkit_keras"] == keras.__version__
    config["fmkit_keras"] = version
    config["config"]["layers"][-1]["config"]["of_the_future"] = True
    (tmp_path / "model.json").write_text(json.dumps(config))
    with pytest.raises(_UsageError, match="of_the_future") as caught:
        described(tmp_path)
    both = f"Keras {version} wrote it, and this is {keras.__version__}, which does not"
    assert (both in str(caught.value)) is (version != keras.__version__)
    assert ("SidecarEvaluator" in str(caught.value)) is (version == "3.99.0")


def test_a_model_file_has_its_vocabulary(tmp_path):
    model, x = finished_run(tmp_path, "a file")
    model.save(tmp_path.parent / "model.keras")
    made = described(tmp_path, tmp_path.parent / "model.keras")
    assert last_results(made, x, tmp_path) == expected_results(model, x)


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", ".."])
def test_a_hostile_description_writes_nothing_outside(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, _ = make("a file")
    entries = assets_as_json(model)
    (content,) = entries[0]["assets"].values()
    entries[0]["assets"] = {name: content}
    with pytest.raises((ValueError, OSError)):
        restore_assets(model, entries)
    assert list(tmp_path.iterdir()) == []
    assert not Path("/outside.txt").exists()


@pytest.mark.backend("tensorflow")
@pytest.mark.filterwarnings("ignore:.*The structure of `inputs` doesn't match")
def test_a_feature_space_is_copied_with_what_it_learnt():
    import tensorflow as tf

    kinds = {"real": "float_normalized", "word": "string_categorical"}
    space = keras.utils.FeatureSpace(features=kinds, output_mode="concat")
    columns = {"real": REALS[:, 0], "word": WORDS[:, 0]}
    space.adapt(tf.data.Dataset.from_tensor_slices(columns))
    inputs, encoded = space.get_inputs(), space.get_encoded_features()
    model = keras.Model(inputs, layers.Dense(1)(encoded))
    model.compile(ExponentialMovingAverage("sgd"), "mse", jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((columns, Y)).batch(4)
    model.fit(data, epochs=1, shuffle=False, verbose=0)
    with averaged(model):
        expected = model.predict(data, verbose=0)
    copy = averaged_model(model)
    np.testing.assert_array_equal(copy.predict(data, verbose=0), expected)
