"""`FusedModel` on TensorFlow and JAX with other data than `Batches`: stacked."""

import itertools

import keras
import numpy as np
import pytest
import sources
from bits import state
from resuming import StopAt, StopError
from test_exact_resume_data import kinds

import fmkit
from fmkit import _keras_private as private
from fmkit.callbacks import ExactResume
from fmkit.data import Batches
from fmkit.performance import FusedModel, _xla_steps

pytestmark = pytest.mark.backend("tensorflow", "jax")

BACKEND = keras.backend.backend()
STEPS = 3
# Of a Keras that stacks the batches itself.
only_where_it_stacks = pytest.mark.skipif(
    BACKEND == "jax" and private.stacks_batches(),
    reason="Keras has its own loop on JAX",
)


def build(kind=FusedModel, *, named=False, layers=()):
    fmkit.set_random_seed(1)
    inputs = keras.Input((sources.FEATURES,), name="all")
    x = keras.layers.Dense(4, activation="tanh")(inputs)
    x = keras.layers.Dropout(0.2)(x)
    for layer in layers:
        x = layer(x)
    outputs = keras.layers.Dense(sources.CLASSES)(x)
    model = kind({"all": inputs} if named else inputs, outputs)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
        jit_compile=True,
        steps_per_execution=STEPS,
    )
    return model


def train(given, *found, kind=FusedModel, epochs=3, **options):
    arguments = given()
    model = build(kind, named=isinstance(arguments["x"], dict))
    data = arguments.pop("data", None)
    resume = [
        ExactResume(each, every=STEPS, verbose=0, data=data) for each in found[:1]
    ]
    history = model.fit(
        **arguments,
        epochs=epochs,
        verbose=0,
        callbacks=[*resume, *found[1:]],
        **options,
    )
    return model, history.history


class Programs:
    """How many batches each program took: 0 stands for one that was not stacked."""

    def __init__(self, monkeypatch):
        self.steps, pieces = [], _xla_steps._pieces

        def noted(blocks):
            for data, steps in pieces(blocks):
                self.steps.append(steps)
                yield data, steps

        monkeypatch.setattr(_xla_steps, "_pieces", noted)


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.long
@only_where_it_stacks
@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
@pytest.mark.parametrize("name", list(kinds()))
def test_it_trains_as_keras_does_and_resumes_to_the_same_bits(
    tmp_path, name, monkeypatch
):
    def given():
        return sources.arguments(name)

    programs = Programs(monkeypatch)
    model, history = train(given, tmp_path / "straight")
    assert STEPS in programs.steps
    for place in ((0, 3), (1, 3)):
        with pytest.raises(StopError):
            train(given, tmp_path / "broken", StopAt(*place))
    assert state(train(given, tmp_path / "broken")[0]) == state(model)
    # With `ExactResume` too: without it, what Keras gives a model that isn't built yet
    # from a PyDataset with workers depends on the threads' timing.
    ordinary, expected = train(given, tmp_path / "ordinary", kind=keras.Model)
    assert_close(model.get_weights(), ordinary.get_weights())
    assert_close(history["loss"], expected["loss"])


X = np.random.RandomState(0).rand(46, sources.FEATURES).astype("float32")
Y = np.random.RandomState(1).randint(0, sources.CLASSES, 46)
WEIGHT = np.random.RandomState(2).rand(46)


class Pieces(keras.utils.PyDataset):
    def __init__(self, sizes, *, third=False):
        super().__init__()
        self.ends = list(itertools.accumulate(sizes, initial=0))
        self.third = third

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index):
        rows = slice(*self.ends[index : index + 2])
        return (X[rows], Y[rows], None) if self.third else (X[rows], Y[rows])


@only_where_it_stacks
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([4] * 5 + [2], [3, 2, 0]),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ([4] * 6, [3, 3]),
                ([4] * 4, [3, 0]),
                ([4] * 3 + [2], [3, 0]),
                ([4, 2], [0, 0]),
                ([4, 3, 4, 4, 4, 4], [0, 0, 0, 3]),
            )
        ),
    ],
)
def test_batches_of_one_shape_are_one_program(sizes, expected, monkeypatch):
    programs = Programs(monkeypatch)
    model = build()
    model.fit(Pieces(sizes), epochs=1, verbose=0, shuffle=False)
    assert programs.steps == expected
    assert int(model.optimizer.iterations) == len(sizes)


@pytest.mark.long
@pytest.mark.backend("jax")  # Keras itself fails on TensorFlow
def test_samples_that_say_they_have_no_weight():
    trained = [build(kind) for kind in (FusedModel, keras.Model)]
    for model in trained:
        model.fit(Pieces([4] * 7, third=True), epochs=1, verbose=0, shuffle=False)
    assert_close(*(model.get_weights() for model in trained))


WAYS = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": 4},
    "weighted": lambda: {"x": X, "y": Y, "sample_weight": WEIGHT, "batch_size": 5},
    "32 by default": lambda: {"x": X, "y": Y},
    "float64": lambda: {"x": X.astype("float64"), "y": Y, "batch_size": 4},
    "Batches": lambda: {"x": Batches(X, Y, 4, map=None)},
    "in steps": lambda: {"x": X, "y": Y, "batch_size": 4, "steps": 5},
    "PyDataset": lambda: {"x": Pieces([4] * 11 + [2])},
}


@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=[] if way == "weighted" else [pytest.mark.long])
        for way in WAYS
    ],
)
def test_evaluation_and_prediction_are_keras_s(way):
    fused, ordinary = build(), build(keras.Model)
    given = WAYS[way]()
    np.testing.assert_allclose(
        fused.evaluate(**given, verbose=0),
        ordinary.evaluate(**given, verbose=0),
        rtol=1e-6,
    )
    for name in ("y", "sample_weight"):
        given.pop(name, None)
    predicted = fused.predict(**given, verbose=0)
    expected = ordinary.predict(**given, verbose=0)
    assert predicted.shape == expected.shape
    np.testing.assert_allclose(predicted, expected, rtol=1e-6, atol=1e-7)
    assert ordinary.count_params() == fused.count_params()


def test_evaluation_of_arrays_is_one_program_for_many_steps(monkeypatch):
    programs = Programs(monkeypatch)
    model = build()
    model.evaluate(X, Y, batch_size=4, verbose=0)
    assert programs.steps == [3, 3, 3, 2, 0]
    programs.steps.clear()
    model.fit(
        Batches(X, Y, 4, map=None),
        verbose=0,
        validation_data=(X, Y),
        validation_batch_size=6,
    )
    assert programs.steps == [3, 3, 3, 2, 0, 3, 3, 1, 0]


@pytest.mark.long
@pytest.mark.parametrize("way", ["evaluate", "validation"])
def test_weights_without_labels_are_left_out_as_keras_does(way):
    found = []
    for kind in (FusedModel, keras.Model):
        inputs = keras.Input((sources.FEATURES,))
        x = keras.layers.Dense(2, kernel_initializer="ones")(inputs)
        # The loss is the layer's own: the sum of the squares that come in.
        model = kind(inputs, keras.layers.ActivityRegularization(l2=0.1)(x))
        optimizer = keras.optimizers.SGD(1e-4)
        model.compile(optimizer, jit_compile=True, steps_per_execution=STEPS)
        if way == "validation":
            given = (X, None, WEIGHT)
            history = model.fit(X, shuffle=False, verbose=0, validation_data=given)
            found.append(history.history["val_loss"][0])
        else:
            found.append(model.evaluate(X, sample_weight=WEIGHT, verbose=0))
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert found[0] > 0


@pytest.mark.backend("tensorflow")
def test_prediction_is_one_program_for_many_steps(monkeypatch):
    programs = Programs(monkeypatch)
    model = build()
    model.predict(X, batch_size=4, verbose=0)
    assert programs.steps == [3, 3, 3, 2, 0]


@keras.saving.register_keras_serializable("test_fused_model_data")
class Counting(keras.layers.Layer):
    """Counts the batches that it sees, and adds their number to the outputs."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x + self.count


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("rows", [3, 4, 8, 12, 22])
def test_a_prediction_computes_the_batches_that_there_are(rows):
    found = []
    for kind in (FusedModel, keras.Model):
        counting = Counting()
        model = build(kind, layers=[counting])
        predicted = model.predict(X[:rows], batch_size=4, verbose=0)
        found.append([*predicted.ravel(), float(counting.count)])
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
    assert found[0][-1] == -(-rows // 4)


@pytest.mark.needs("scipy")
def test_sparse_data_are_trained_on_step_by_step():
    from scipy import sparse

    x = sparse.csr_matrix(X * (np.abs(X) > 0.5))
    weights = []
    for kind in (FusedModel, keras.Model):
        fmkit.set_random_seed(1)
        inputs = keras.Input((sources.FEATURES,), sparse=True)
        model = kind(inputs, keras.layers.Dense(sources.CLASSES)(inputs))
        model.compile("sgd", "mse", jit_compile=BACKEND == "jax", steps_per_execution=3)
        model.fit(x, np.ones((len(X), sources.CLASSES)), batch_size=4, verbose=0)
        weights.append(model.get_weights()[0])
    np.testing.assert_allclose(*weights, rtol=1e-5)
    assert np.abs(weights[0]).max() > 0


@pytest.mark.long
def test_callbacks_see_each_execution_of_a_prediction():
    ends, shapes = [], []

    class Noting(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            ends.append(batch)
            shapes.append(logs["outputs"].shape)

    build().predict(X, batch_size=4, verbose=0, callbacks=[Noting()])
    assert ends == [2, 5, 8, 11]
    assert [shape[0] for shape in shapes] == [12, 12, 12, 10]


@pytest.mark.long
def test_validation_of_arrays_is_keras_s():
    histories = []
    for kind in (FusedModel, keras.Model):
        history = build(kind).fit(
            X,
            Y,
            batch_size=4,
            epochs=2,
            verbose=0,
            class_weight=dict.fromkeys(range(sources.CLASSES), 0.5) | {0: 2.0},
            validation_data=(X[:13], Y[:13], WEIGHT[:13]),
        )
        histories.append(history.history)
    assert set(histories[0]) == set(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4)
