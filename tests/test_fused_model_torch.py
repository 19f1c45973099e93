"""`FusedModel` on PyTorch: steps played from a graph, to the bit as in Keras."""

import random
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from bits import bits, state
from fused_cases import (
    CASES,
    IMAGES,
    LABELS,
    ROWS,
    ROWS_OF_6,
    SIZE,
    WEIGHTS,
    compiled,
    convolutional,
    dense,
    rows,
    trained,
)
from resuming import StopAt, StopError

import fmkit
from fmkit import losses
from fmkit.callbacks import ExactResume
from fmkit.data import Batches
from fmkit.performance import FusedModel, _torch_steps

pytestmark = pytest.mark.backend("torch")

K = keras.layers


class Counted:
    """Counts how often Python makes a step."""

    def __init__(self, monkeypatch):
        self.steps = 0
        of_keras = keras.Model.train_step

        def train_step(model, *arguments):
            self.steps += isinstance(model, FusedModel)
            return of_keras(model, *arguments)

        monkeypatch.setattr(keras.Model, "train_step", train_step)


# What `make test` runs; `make test-long` runs the others.
QUICK = ("an `if` over values", "noise with and without a seed", "average")


# Of Keras 3.16, whose LSTM on PyTorch takes no mask.
@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in QUICK else [pytest.mark.long])
        for case in CASES
    ],
)
def test_each_bit_is_that_of_kerass_own_step(case, monkeypatch):
    python = Counted(monkeypatch)
    _, expected, others = trained(keras.Model, **CASES[case])
    model, history, ends = trained(FusedModel, **CASES[case])
    assert model.why_not_fused is None
    # One step and one trace for each shape, and for each way through an `if`.
    assert python.steps <= 10 < 3 * 12
    assert history == expected
    assert ends == others


def test_another_order_has_other_bits():
    """The control: the comparison sees what a seed changes."""
    _, _, others = trained(keras.Model)
    _, _, ends = trained(
        FusedModel,
        data=lambda: Batches(ROWS_OF_6, LABELS, batch_size=SIZE, map=None, seed=2),
    )
    assert ends != others


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float64"])
def test_each_bit_in_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    (_, expected, others), (model, history, ends) = (
        trained(kind) for kind in (keras.Model, FusedModel)
    )
    assert (history, ends) == (expected, others)
    assert model.why_not_fused is None


def test_any_data(monkeypatch):
    import torch

    python = Counted(monkeypatch)
    tensors = torch.utils.data.TensorDataset(
        torch.tensor(ROWS_OF_6), torch.tensor(LABELS)
    )
    unshuffled = {"shuffle": False}  # by Keras
    for given in (
        {"x": ROWS_OF_6, "y": LABELS, "batch_size": SIZE},
        {"x": torch.utils.data.DataLoader(tensors, SIZE, shuffle=True), **unshuffled},
    ):
        ends = []
        for kind in (keras.Model, FusedModel):
            model = compiled(kind)
            model.fit(**given, epochs=2, verbose=0)
            ends.append(state(model))
        assert ends[0] == ends[1]
    assert python.steps == 2 * 4


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({}, True),
        ({"shuffle": False}, True),
        ({"shuffle": "batch"}, True),
        ({"sample_weight": WEIGHTS}, True),
        ({"class_weight": {0: 2.0, 1: 0.5, 2: 1.0}}, True),
        ({"validation_split": 0.3}, True),
        ({"x": (255 * ROWS_OF_6).astype("uint8")}, True),
        ({"y": LABELS.astype("int64")}, True),
        # Keras makes other numbers of these, or they don't lie row by row.
        ({"x": ROWS_OF_6.astype("float64")}, False),
        ({"y": LABELS.astype("uint32")}, False),
        ({"x": np.asfortranarray(ROWS_OF_6)}, False),
        ({"x": ROWS_OF_6.astype("float16")}, False),
    ],
)
def test_rows_of_arrays_are_those_that_keras_takes(given, ours, monkeypatch):
    gathered, rows_of = [], _torch_steps.rows_of

    def noted(arrays):
        gather = rows_of(arrays)
        gathered.append(gather is not None)
        return gather

    monkeypatch.setattr(_torch_steps, "rows_of", noted)
    given = {"x": ROWS_OF_6, "y": LABELS, "batch_size": SIZE, "shuffle": True, **given}
    weighted = {"weighted_metrics": ["accuracy"]}
    expected = trained(keras.Model, lambda: None, given, **weighted)
    found = trained(FusedModel, lambda: None, given, **weighted)
    assert gathered == [ours]
    assert found[1:] == expected[1:]
    assert found[0].why_not_fused is None


def test_memory_is_used_again_only_when_nobody_looks_at_a_batch():
    gather = _torch_steps.rows_of([np.arange(2**16, dtype="float32").reshape(4, -1)])
    first, second = gather([0, 3]), gather([1, 2])
    assert first[0][:, 0].tolist() == [0, 3 * 2**14]
    place = second[0].data_ptr()
    del second
    assert gather([2, 2])[0].data_ptr() == place
    assert first[0][:, 0].tolist() == [0, 3 * 2**14]


def test_layers_frozen_between_two_fits():
    ends = []
    for kind in (keras.Model, FusedModel):
        model = compiled(kind)
        model.fit(rows(), verbose=0)
        model.layers[1].trainable = False
        kept = bits(model.layers[1].get_weights())
        model.compile("adam", losses.CrossentropyFromLogits())
        model.fit(rows(), epochs=2, verbose=0)
        assert bits(model.layers[1].get_weights()) == kept
        model.layers[1].trainable = True
        model.compile("adam", losses.CrossentropyFromLogits())
        model.fit(rows(), epochs=2, verbose=0)
        assert bits(model.layers[1].get_weights()) != kept
        ends.append(state(model))
    assert ends[0] == ends[1]


class Freeze(keras.callbacks.Callback):
    """Freezes something in the middle of a `fit`, which Keras allows on PyTorch."""

    def __init__(self, what=lambda model: model.layers[1].bias):
        super().__init__()
        self.what = what

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.what(self.model).trainable = False


def test_a_weight_frozen_in_the_middle_of_a_fit():
    ends = []
    for kind in (keras.Model, FusedModel):
        model = compiled(kind, optimizer=lambda: keras.optimizers.SGD(0.1))
        model.fit(rows(), epochs=3, verbose=0, callbacks=[Freeze()])
        ends.append(state(model))
    assert ends[0] == ends[1]


def own_step(kind):
    class Own(kind):
        """Two losses, and logs of its own; the gradients are PyTorch's business."""

        def train_step(self, data):
            import torch

            x, y = data
            self.zero_grad()
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs) + 0.1 * outputs.square().mean()
            loss.backward()
            weights = self.trainable_weights
            with torch.no_grad():
                self.optimizer.apply([w.value.grad for w in weights], weights)
            return {"loss": loss, "parts": {"twice": 2 * loss}}

    return Own


def test_a_step_of_ones_own_with_logs_of_its_own(monkeypatch):
    read = []

    class Read(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            read[-1].append((float(logs["loss"]), float(logs["twice"])))

    ends = []
    for kind in (keras.Model, FusedModel):
        read.append([])
        model = compiled(own_step(kind), metrics=None)
        model.fit(rows(), verbose=0, callbacks=[Read()])
        ends.append(state(model))
    assert ends[0] == ends[1]
    assert read[0] == read[1]
    assert model.why_not_fused is None


def test_a_model_within_a_model_with_a_call_of_its_own():
    class Inner(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.Sequential([K.Dense(8, "relu"), K.Dropout(0.2)])

        def call(self, x, training=False):
            return x[:, :8] + self.inner(x, training=training)

    ends = []
    for kind in (keras.Model, FusedModel):
        model = compiled(kind, lambda: dense(Inner()))
        model.fit(rows(), epochs=2, verbose=0)
        ends.append(state(model))
    assert ends[0] == ends[1]
    assert model.why_not_fused is None


# What can't be traced


class TakesValuesOut(K.Layer):
    def call(self, x):
        return x + float(np.asarray(keras.ops.convert_to_numpy(x)).mean())


class DrawsInPython(K.Layer):
    def call(self, x):
        return x * random.random()


class Counts(K.Layer):
    """Keeps a tensor of its own, which Keras does not know."""

    def __init__(self):
        super().__init__()
        self.count = [keras.ops.zeros(())]

    def call(self, x):
        return x + self.count[0].add_(1)


def wrapped(name):
    import torch

    sizes = (8, 8) if name == "Linear" else (8,)
    module = getattr(torch.nn, name)(*sizes)
    return dense(K.TorchModuleWrapper(module, output_shape=(None, 8)))


OUTSIDE = [keras.Variable(1.0, trainable=False, name="stranger")]


class UsesAStranger(K.Layer):
    def call(self, x):
        OUTSIDE[0].assign(OUTSIDE[0].value + 1)
        return x * OUTSIDE[0].value


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"made": lambda: dense(TakesValuesOut())}, "takes values out of it"),
        ({"made": lambda: dense(DrawsInPython())}, "draws from Python's or NumPy's"),
        ({"made": lambda: dense(Counts())}, "changes a tensor that is no variable"),
        (
            {"made": lambda: wrapped("BatchNorm1d")},
            "the step changes a tensor that is no variable",
        ),
        (
            {"made": lambda: wrapped("Linear")},
            "the step takes gradients by a tensor that is no variable",
        ),
        ({"made": lambda: dense(UsesAStranger())}, "the variable .*stranger.*, which"),
        (
            {
                "optimizer": lambda: keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.Adam(0.01)
                )
            },
            "an `if` looks at a value that the whole step computes",
        ),
        ({"run_eagerly": True}, "run_eagerly=True asks for Python"),
    ],
    ids=[
        "numpy",
        "random",
        "tensor",
        "BatchNorm1d",
        "Linear",
        "variable",
        "loss scale",
        "eager",
    ],
)
def test_what_cannot_be_traced_trains_as_before_and_says_why(case, reason):
    OUTSIDE[0].assign(1.0)
    _, expected, others = trained(keras.Model, **case)
    OUTSIDE[0].assign(1.0)
    model, history, ends = trained(FusedModel, **case)
    assert (history, ends) == (expected, others)
    with pytest.raises(AssertionError, match=reason):
        assert not model.why_not_fused, model.why_not_fused


def test_an_if_over_a_count_is_decided_before_each_step(monkeypatch):
    """The control of the accumulation: taken as decided once, the bits are others."""
    from fmkit.performance import _graph

    _, _, others = trained(keras.Model, **CASES["accumulation"])
    monkeypatch.setattr(_graph.Graph, "fits", lambda self, inputs: True)
    _, _, ends = trained(FusedModel, **CASES["accumulation"])
    assert ends != others


def test_many_shapes_are_refused_and_trained_on():
    shapes = [
        (np.ones((2, n), "float32"), np.ones((2, 1), "float32")) for n in range(1, 13)
    ]

    class Pieces(keras.utils.PyDataset):
        def __len__(self):
            return 36

        def __getitem__(self, index):
            return shapes[index % 12]

    ends = []
    for kind in (keras.Model, FusedModel):
        fmkit.set_random_seed(1)
        inputs = keras.Input((None,))
        x = K.Dense(3)(K.GlobalAveragePooling1D()(K.Reshape((-1, 1))(inputs)))
        model = kind(inputs, K.Dense(1)(x))
        model.compile("sgd", "mse")
        model.fit(Pieces(), verbose=0, shuffle=False)
        ends.append(state(model))
    assert ends[0] == ends[1]
    assert "graphs for 8 shapes" in model.why_not_fused


# Steps that a graph could get wrong


def both(train):
    """Return what `train` returns of a Keras model and of a fused one."""
    return [train(kind) for kind in (keras.Model, FusedModel)]


def adding_up(kind, clears=False):
    class Own(kind):
        def train_step(self, data):
            import torch

            if clears:
                self.zero_grad()
            loss = self.compute_loss(data[0], data[1], self(data[0], training=True))
            loss.backward()
            weights = self.trainable_weights
            with torch.no_grad():
                self.optimizer.apply([w.value.grad for w in weights], weights)
            return {"loss": loss}

    return Own


def test_gradients_that_add_up_over_steps_are_not_lost():
    def train(kind, clears=False):
        model = compiled(adding_up(kind, clears))
        model.fit(rows(), verbose=0)
        return model, state(model)

    (_, expected), (model, found) = both(train)
    assert found == expected
    assert "adds its gradients to those of the step before" in model.why_not_fused
    # Negative control: with `zero_grad` the step is fused, and the bits are others.
    model, cleared = train(FusedModel, clears=True)
    assert model.why_not_fused is None
    assert cleared != expected


def of_some_rows(y, outputs):
    kept = y[:, 0] > 1
    return keras.ops.mean(keras.ops.square(outputs[kept] - y[kept]))


def test_a_shape_that_depends_on_values_is_refused():
    def train(kind):
        model = compiled(kind, loss=of_some_rows, metrics=[])
        model.fit(rows(y=LABELS[:, None]), epochs=2, verbose=0)
        return model, state(model)

    (_, expected), (model, found) = both(train)
    assert found == expected
    assert "the shape of what" in model.why_not_fused


def test_batches_that_lie_otherwise_in_memory():
    x = np.random.default_rng(0).random((4, 6, 6), np.float32)
    y, views = LABELS[:4], [x, x, x, x.transpose(0, 2, 1), x.transpose(0, 2, 1)]

    def images():
        inputs = keras.Input((6, 6))
        return inputs, K.Dense(3)(K.Flatten()(inputs))

    def train(kind):
        model = compiled(kind, images)
        logs = [model.train_on_batch(view, y) for view in views]
        logs.append(model.train_on_batch(x[::-1], y))
        return logs, state(model)

    expected, found = both(train)
    assert found == expected


def test_a_model_without_variables():
    inputs = keras.Input((3,))
    model = FusedModel(inputs, K.Rescaling(2.0)(inputs))
    for rows_ in (4, 4, 4, 2):
        found = model.predict(np.ones((rows_, 3)), verbose=0)
        assert (found == np.full((rows_, 3), 2.0)).all()


def test_a_layer_without_weights_frozen_between_two_fits():
    def train(kind, frozen=True):
        layer = K.BatchNormalization(center=False, scale=False)
        model = compiled(kind, lambda: dense(layer))
        model.fit(rows(), verbose=0)
        layer.trainable = not frozen
        model.fit(rows(), verbose=0)
        return state(model)

    expected, found = both(train)
    assert found == expected
    assert train(FusedModel, frozen=False) != expected


def test_a_layer_without_weights_frozen_in_the_middle_of_a_fit():
    def train(kind, callbacks):
        layer = K.BatchNormalization(center=False, scale=False)
        model = compiled(kind, lambda: dense(layer))
        model.fit(rows(), epochs=3, verbose=0, callbacks=callbacks(layer))
        return state(model)

    expected, found = both(lambda kind: train(kind, freeze))
    assert found == expected
    assert train(FusedModel, lambda layer: []) != expected


def freeze(layer):
    return [Freeze(lambda model: layer)]


class OwnGenerator(K.Layer):
    def __init__(self):
        super().__init__()
        import torch

        self.generator = [torch.Generator().manual_seed(1)]

    def call(self, x):
        import torch

        return x + torch.randn(x.shape, generator=self.generator[0])


def test_a_generator_of_a_layers_own_draws_each_number_once():
    def train(kind):
        model = compiled(kind, lambda: dense(OwnGenerator()))
        model.fit(rows(), epochs=2, verbose=0)
        return model, state(model)

    (_, expected), (model, found) = both(train)
    assert found == expected
    assert model.why_not_fused is None


class DrawsGamma(K.Layer):
    """Of which Keras draws with PyTorch's global generator, after seeding it."""

    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        return x * keras.random.gamma((1,), 2.0, seed=self.seed)


def test_a_prediction_is_checked_too():
    def predict(kind):
        model = compiled(kind, lambda: dense(DrawsGamma()))
        return [model.predict(ROWS_OF_6[:4], verbose=0).tobytes() for _ in range(4)]

    expected, found = both(predict)
    assert found == expected
    assert len(set(found)) == 4


def test_a_thread_that_draws_while_a_step_is_traced(monkeypatch):
    """Its numbers are not drawn again, and the step is traced anew."""
    traced, drawn = [], []

    class Disturbed(_torch_steps.Graph):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            traced.append(1)
            if len(traced) == 1:
                with ThreadPoolExecutor(1) as reader:
                    reader.submit(lambda: drawn.append(np.random.random())).result()

    monkeypatch.setattr(_torch_steps, "Graph", Disturbed)
    with ThreadPoolExecutor(1) as waits:  # another thread that is there
        waits.submit(int).result()
        model = compiled(FusedModel)
        np.random.seed(5)
        expected = np.random.random(2)
        np.random.seed(5)
        model.fit(rows(np.ones((8, 6), "float32"), LABELS[:8]), epochs=3, verbose=0)
    assert model.why_not_fused is None
    assert len(traced) == 2
    assert [*drawn, np.random.random()] == expected.tolist()


# What a trace may not leave behind


def test_a_trace_changes_no_variable_and_draws_no_number():
    import torch

    model = compiled(FusedModel, CASES["noise with and without a seed"]["made"])
    model.fit(rows(), epochs=1, verbose=0)
    model.make_train_function()
    steps = model.train_function
    batch = (torch.tensor(ROWS_OF_6[:3]), torch.tensor(LABELS[:3]))  # a new shape
    before = state(model), torch.get_rng_state().numpy().tobytes()
    tensors = []
    from fmkit.performance import _torch_steps

    layout = _torch_steps._layout_of(batch, tensors)
    steps._trace("key", layout, [*steps._values, *tensors])
    assert before == (state(model), torch.get_rng_state().numpy().tobytes())
    steps([batch])
    assert state(model) != before[0]


# Evaluation and prediction


def test_evaluation_and_prediction_are_kerass_to_the_bit(monkeypatch):
    counts = {"test_step": 0, "predict_step": 0}

    def count(name):
        of_keras = getattr(keras.Model, name)

        def counted(model, data):
            counts[name] += isinstance(model, FusedModel)
            return of_keras(model, data)

        monkeypatch.setattr(keras.Model, name, counted)

    for name in counts:
        count(name)
    found = []
    for kind in (keras.Model, FusedModel):
        model = compiled(kind, convolutional)
        fit = {"validation_data": rows(IMAGES), "epochs": 2, "verbose": 0}
        history = model.fit(rows(IMAGES), **fit).history
        scores = model.evaluate(IMAGES, LABELS, batch_size=SIZE, verbose=0)
        outputs = model.predict(IMAGES, batch_size=SIZE, verbose=0)
        found.append((history, scores, outputs.tobytes()))
    assert found[0] == found[1]
    assert outputs.shape == (ROWS, 3)
    assert counts == {"test_step": 4, "predict_step": 3}


# Exact resume


@pytest.mark.long
@pytest.mark.parametrize("data", ["Batches", "arrays"])
def test_a_run_broken_off_ends_with_the_same_bits(tmp_path, data):
    def train(directory, *callbacks):
        model = compiled(FusedModel, lambda: dense(K.Dropout(0.2, seed=3)))
        given = {"x": rows()}
        if data == "arrays":
            given = {"x": ROWS_OF_6, "y": LABELS, "batch_size": SIZE}
        resume = ExactResume(directory, every=2, verbose=0)
        model.fit(**given, epochs=3, verbose=0, callbacks=[resume, *callbacks])
        assert model.why_not_fused is None
        return state(model)

    straight = train(tmp_path / "straight")
    for place in ((0, 5), (1, 11), (2, 2)):
        with pytest.raises(StopError):
            train(tmp_path / "broken", StopAt(*place))
    assert train(tmp_path / "broken") == straight


def test_a_graph_with_other_bits_is_refused(monkeypatch):
    from fmkit.performance._graph import _trace

    _, _, others = trained(keras.Model)
    of_fmkit = _trace.simplified

    def wrong(module):
        module, *rest = of_fmkit(module)
        node = next(n for n in module.graph.nodes if n.target is torch.mm)
        with module.graph.inserting_after(node):
            double = module.graph.call_function(torch.mul, (node, 2.0))
        node.replace_all_uses_with(double, lambda user: user is not double)
        module.recompile()
        return module, *rest

    import torch

    monkeypatch.setattr(_trace, "simplified", wrong)
    model, _, ends = trained(FusedModel)
    assert model.why_not_fused == "its graph would change other bits"
    assert ends == others
