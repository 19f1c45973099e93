"""Many steps in one program: the same training as in Keras's own loop."""

import gc
import threading
import time

import fused_cases
import keras
import numpy as np
import pytest

from fmkit import callbacks, losses, optimizers, schedules
from fmkit._blocks import Blocks, cut
from fmkit.data import Batches
from fmkit.performance import FusedModel, fit_settings, fused

BACKEND = keras.backend.backend()
K = keras.layers
FUSES = BACKEND != "torch"
only_where_it_fuses = pytest.mark.backend("tensorflow", "jax")


def data(count=46, size=4, **options):
    """Eleven whole batches and a last one of two samples, of noise with a reason."""
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (count, 3, 2), dtype="uint8")
    return Batches(x, x[:, :, 0].argmax(1).astype("uint8"), size, seed=1, **options)


def network(*layers):
    inputs = keras.Input((3, 2))
    x = K.Flatten()(inputs)
    for layer in layers or [K.Dense(8, "relu")]:
        x = layer(x)
    return inputs, K.Dense(3)(x)


def compiled(kind=FusedModel, layers=(), optimizer=None, steps=5, **options):
    """The same network with the same start, whatever `kind` of model it becomes."""
    keras.utils.set_random_seed(3)
    model = kind(*network(*[make() for make in layers]))
    settings = {"jit_compile": FUSES, "steps_per_execution": steps if FUSES else 1}
    settings |= {"metrics": ["accuracy"], **options}
    optimizer = optimizer() if optimizer else keras.optimizers.Adam(0.01)
    model.compile(optimizer, losses.CrossentropyFromLogits(), **settings)
    return model


def ends(model):
    arrays = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in arrays]


def assert_close(found, expected, rtol=1e-4):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-5)


class Steps(keras.callbacks.Callback):
    """Notes the numbers of the steps that Keras tells callbacks of."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append((batch, sorted(logs)))


# Keras's own loop, one step at a time: the oracle needs no long program. With XLA,
# which draws other numbers for a dropout.
ONE_STEP = {"steps": 1}


def average():
    rate = schedules.ExponentialDecay(0.1, 5, 0.9, staircase=True)
    return optimizers.ExponentialMovingAverage(keras.optimizers.SGD(rate, 0.9), 0.95)


def scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": average},
        {"optimizer": scaled},
        {"layers": [K.BatchNormalization, lambda: K.Dropout(0.5, seed=4)]},
    ],
    ids=["Adam", "average", "loss scale", "BatchNorm and Dropout"],
)
def test_it_trains_as_keras_does(options):
    trained = []
    for kind in (FusedModel, keras.Model):
        model = compiled(kind, **({} if kind is FusedModel else ONE_STEP), **options)
        history = model.fit(
            data(), epochs=3, verbose=0, class_weight={0: 1.0, 1: 2.0, 2: 0.5}
        )
        assert int(model.optimizer.iterations) == 3 * 12
        trained.append((history.history, ends(model)))
    (found, weights), (expected, others) = trained
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4)
    assert_close(weights, others)
    # Negative control: one epoch more is something else.
    model.fit(data(), epochs=4, initial_epoch=3, verbose=0)
    with pytest.raises(AssertionError):
        assert_close(ends(model), weights)


# What `test_it_trains_as_keras_does` has not. Python's `if` over values is PyTorch's
# alone, and many BatchNorms of four samples make much of a last digit.
MORE = [
    case
    for case in fused_cases.CASES
    if case not in ("Adam", "average", "an `if` over values")
    and "BatchNorm" not in case
]
# Keras's compiled step on TensorFlow takes a smaller last batch for a full one in
# these. Fused, it counts by its samples, as in Keras's eager step.
OF_OUTPUTS = ("kind_loss", "sum_loss") if BACKEND == "tensorflow" else ()


@pytest.mark.long
@only_where_it_fuses
@pytest.mark.parametrize(
    ("case", "policy"),
    [*((case, "float32") for case in MORE), ("Adam", "mixed_bfloat16")],
)
def test_what_a_step_may_have_trains_as_in_kerass_loop(case, policy):
    keras.config.set_dtype_policy(policy)
    fast = {"jit_compile": True, "steps_per_execution": 5}
    given = fused_cases.CASES[case]
    model, found, _ = fused_cases.trained(FusedModel, **given, **fast)
    assert model.why_not_fused is None
    fast["steps_per_execution"] = 1
    other, expected, _ = fused_cases.trained(keras.Model, **given, **fast)
    assert found.keys() == expected.keys()
    rtol = 1e-4 if policy == "float32" else 0.02
    for name, values in expected.items():
        if name not in OF_OUTPUTS:
            np.testing.assert_allclose(found[name], values, rtol=rtol)
    assert_close(ends(model), ends(other), rtol)


@only_where_it_fuses
def test_one_call_makes_many_steps(monkeypatch):
    """Python is in no step: the step's code runs while it is traced, and then never."""
    traced = []

    class Counting(FusedModel):
        def train_step(self, *arguments):
            traced.append(1)
            return super().train_step(*arguments)

    model, steps = compiled(Counting), Steps()
    assert model.steps_in_one_program == 5
    model.fit(data(), epochs=1, verbose=0, callbacks=[steps])
    assert steps.begun == [0, 5, 10]
    assert [batch for batch, _ in steps.ended] == [4, 9, 11]
    assert all(logs == ["accuracy", "loss"] for _, logs in steps.ended)
    before = len(traced)
    # Other lengths of an execution too: two steps, then one and the smaller batch.
    batches = data()
    batches.seek(0, 3)
    model.fit(batches, verbose=0)
    model.fit(data(), epochs=2, verbose=0, steps_per_epoch=7)
    assert len(traced) == before
    assert int(model.optimizer.iterations) == 12 + 9 + 2 * 7


@pytest.mark.parametrize("count", [3, 21])
def test_epochs_shorter_than_an_execution_or_a_batch(count):
    models = [compiled(steps=9), compiled(keras.Model, **ONE_STEP)]
    for model in models:
        model.fit(data(count), epochs=2, verbose=0)
    assert_close(*map(ends, models))
    assert int(models[0].optimizer.iterations) == 2 * -(-count // 4)


def test_an_epoch_of_steps_goes_on_past_a_smaller_batch():
    # Twelve batches, the last one smaller; executions of five.
    models = [compiled(), compiled(keras.Model, **ONE_STEP)]
    for model in models:
        model.fit(data(), epochs=3, steps_per_epoch=17, verbose=0)
    assert_close(*map(ends, models))
    assert int(models[0].optimizer.iterations) == 3 * 17
    # Negative control: as many steps in another order.
    model = compiled()
    model.fit(data(shuffle=False), epochs=3, steps_per_epoch=17, verbose=0)
    with pytest.raises(AssertionError):
        assert_close(ends(model), ends(models[0]))


@pytest.mark.long
def test_the_same_bits_from_run_to_run_and_after_a_resume(tmp_path):
    def train(folder, epochs, **options):
        model = compiled(layers=[lambda: K.Dense(8), lambda: K.Dropout(0.5, seed=4)])
        resume = callbacks.ExactResume(tmp_path / folder, every=5, keep=9, verbose=0)
        history = model.fit(
            data(), epochs=epochs, verbose=0, callbacks=[resume], **options
        )
        bits = [array.tobytes() for array in ends(model)]
        return resume.resumed_from, history.history, bits

    _, history, bits = train("straight", 3)
    assert train("again", 3)[1:] == (history, bits)
    # As after a kill in the second epoch: the later commits are not there.
    commits = sorted((tmp_path / "straight").glob("commit-*"))
    for commit in commits[3:]:
        commit.unlink()
    resumed_from, *found = train("straight", 3)
    assert resumed_from[0] == 1
    assert resumed_from[1]
    assert found == [history, bits]
    # Negative control: a run of other length.
    assert train("shorter", 2)[2] != bits


@only_where_it_fuses
def test_every_program_is_made_for_batches_of_a_known_size():
    sizes = []

    class Looking(K.Layer):
        def call(self, x):
            sizes.append(x.shape[0])
            return x

    model = compiled(layers=[Looking])
    sizes.clear()  # building the model looked too
    # The smaller last batch comes first, as after a resume there, then the others.
    batches = data()
    batches.seek(0, len(batches) - 1)
    model.fit(batches, epochs=2, verbose=0)
    # `None` would be a program for any size, whose sums XLA rounds differently.
    assert set(sizes) == {2, 4}


@pytest.mark.long
@only_where_it_fuses
def test_the_same_bits_if_the_smaller_last_batch_comes_first(tmp_path):
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (46, 12, 12, 1), dtype="uint8")
    y = rng.randint(0, 3, 46).astype("uint8")

    def train():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((12, 12, 1))
        outputs = K.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
        outputs = K.ReLU()(K.BatchNormalization()(outputs))
        model = FusedModel(inputs, K.Dense(3)(K.Flatten()(outputs)))
        model.compile(
            keras.optimizers.Adam(0.01),
            losses.CrossentropyFromLogits(),
            jit_compile=True,
            steps_per_execution=11,
        )
        resume = callbacks.ExactResume(tmp_path, every=11, keep=9, verbose=0)
        batches = Batches(x, y, 4, seed=1)
        model.fit(batches, epochs=2, verbose=0, callbacks=[resume])
        return resume.resumed_from, [array.tobytes() for array in ends(model)]

    _, bits = train()
    # As after a kill in the last, smaller batch of the first epoch.
    for commit in sorted(tmp_path.glob("commit-*"))[1:]:
        commit.unlink()
    assert train() == ((0, 11), bits)


@pytest.mark.long
@only_where_it_fuses
@pytest.mark.parametrize(
    "way",
    [
        "arrays",
        pytest.param("dataset", marks=pytest.mark.needs("tensorflow")),
        "eager",
        "no XLA",
    ],
)
def test_it_trains_as_any_other_model_where_steps_cannot_be_fused(way):
    x, y = next(iter(data(46, 46)))
    given = {}
    if way == "arrays":
        given = {"x": x, "y": y, "batch_size": 4, "shuffle": False}
    elif way == "dataset":
        given = {"x": data().as_dataset(), "shuffle": False}
    options = {
        "eager": {"run_eagerly": True, "jit_compile": False},
        "no XLA": {"jit_compile": False},
    }.get(way, {})
    models = [compiled(kind, **options) for kind in (FusedModel, keras.Model)]
    for model in models:
        model.fit(**given or {"x": data()}, epochs=2, verbose=0)
    # These get data in one piece nowhere; those would be fused if it were Batches.
    assert models[0].steps_in_one_program == (5 if way in ("arrays", "dataset") else 1)
    assert_close(*map(ends, models))
    # And `Batches` after that, with the same model.
    for model in models:
        model.fit(data(), epochs=1, verbose=0)
    assert_close(*map(ends, models))


@pytest.mark.long
@pytest.mark.backend("jax")
def test_under_a_distribution_it_trains_as_any_other_model():
    devices = keras.distribution.list_devices()[:1]
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    try:
        models = [compiled(kind) for kind in (FusedModel, keras.Model)]
        for model in models:
            model.fit(data(), verbose=0)
        assert models[0].steps_in_one_program == 1
        assert_close(*map(ends, models))
    finally:
        keras.distribution.set_distribution(None)
    assert compiled().steps_in_one_program == 5


def test_the_model_says_why_steps_are_not_fused(monkeypatch, tmp_path):
    model = compiled()
    assert model.why_not_fused is None
    assert model.steps_in_one_program == (5 if FUSES else 1)
    assert model.make_train_function() is model.train_function
    for options, reason in (
        ({"run_eagerly": True, "jit_compile": False}, "run_eagerly=True asks for"),
        ({"jit_compile": False}, "jit_compile=False asks for no XLA" if FUSES else ""),
        ({"steps": 1}, "steps_per_execution is 1" if FUSES else ""),
    ):
        other = compiled(**options)
        assert (other.why_not_fused or "").startswith(reason)
        assert bool(other.why_not_fused) == bool(reason)
        assert other.steps_in_one_program == 1
    assert FusedModel(*network()).why_not_fused == "the model is not compiled"
    why = "a step is spread over several devices or processes"
    with monkeypatch.context() as context:
        context.setattr(keras.distribution, "distribution", lambda: "two devices")
        assert model.why_not_fused == why
        assert model.steps_in_one_program == 1
    assert model.why_not_fused is None
    if BACKEND == "torch":
        distributed = pytest.importorskip("torch.distributed")
        rendezvous = (tmp_path / "rendezvous").as_uri()
        distributed.init_process_group("gloo", rendezvous, rank=0, world_size=1)
        try:
            assert model.why_not_fused is None
            monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
            assert model.why_not_fused == why
            made = model.make_train_function(True)
            assert type(made).__name__ != "TorchSteps"
        finally:
            distributed.destroy_process_group()


@only_where_it_fuses
def test_a_step_of_ones_own_with_logs_of_its_own():
    class Own(FusedModel):
        def train_step(self, *arguments):
            told = super().train_step(*arguments)
            logs, state = told if BACKEND == "jax" else (told, None)
            logs = {**logs, "twice": 2 * logs["loss"]}
            return (logs, state) if BACKEND == "jax" else logs

    logs = compiled(Own).fit(data(), epochs=2, verbose=0).history
    assert logs["twice"] == pytest.approx([2 * loss for loss in logs["loss"]])


@only_where_it_fuses
def test_an_error_in_the_map_reaches_the_user_and_no_thread_is_left():
    def broken(x, y):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the disk is gone")
        return x.astype("float32"), y

    calls = []
    x = np.zeros((40, 3, 2), "uint8")
    # The first is a look at a batch, the second the block that trains meanwhile.
    with pytest.raises(RuntimeError, match="the disk is gone"):
        compiled(steps=2).fit(Batches(x, x[:, 0, 0], 4, map=broken), verbose=0)
    # Nor where `fit` leaves an epoch early.
    stop = callbacks.ThresholdStopping("loss", 1e9, mode="min", every=2)
    compiled(steps=2).fit(data(), verbose=0, callbacks=[stop])
    gc.collect()
    deadline = time.monotonic() + 10
    while [t for t in threading.enumerate() if t.name.startswith("fmkit blocks")]:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def test_stopping_validation_evaluation_and_prediction_are_kerass_own():
    stop = callbacks.ThresholdStopping("loss", 1e9, mode="min", every=5)
    models = [compiled(kind) for kind in (FusedModel, keras.Model)]
    validated, evaluated, predicted, stopped = [], [], [], []
    for model in models:
        held_out = data(13, shuffle=False)
        history = model.fit(data(), epochs=2, verbose=0, validation_data=held_out)
        validated.append(history.history["val_loss"])
        evaluated.append(model.evaluate(held_out, verbose=0))
        predicted.append(model.predict(held_out, verbose=0))
        model.fit(data(), epochs=1, verbose=0, callbacks=[stop])
        stopped.append(int(model.optimizer.iterations))
    for found in (validated, evaluated, predicted):
        np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert stopped == [29, 29]


def test_structures_of_inputs_and_samples_with_weights():
    rng = np.random.RandomState(0)
    x = {"a": rng.rand(22, 2), "b": rng.rand(22, 1)}
    y, weight = x["a"].sum(1, keepdims=True), rng.rand(22)
    trained = []
    for kind in (FusedModel, keras.Model):
        keras.utils.set_random_seed(3)
        inputs = {name: keras.Input((x[name].shape[1],), name=name) for name in x}
        outputs = K.Dense(1)(K.Concatenate()([inputs["a"], inputs["b"]]))
        model = kind(inputs, outputs)
        model.compile(
            "sgd", "mse", jit_compile=FUSES, steps_per_execution=3 if FUSES else 1
        )
        # float64 rows become what the model computes in, in either loop.
        batches = Batches(x, y, 4, sample_weight=weight, map=None)
        model.fit(batches, epochs=2, verbose=0)
        trained.append(ends(model))
    assert_close(*trained)


def test_it_is_saved_cloned_and_made_from_a_sequential_model(tmp_path):
    sequential = keras.Sequential([keras.Input((3, 2)), K.Flatten(), K.Dense(3)])
    model = FusedModel(sequential.inputs, sequential.outputs)
    model.compile("sgd", losses.CrossentropyFromLogits(), jit_compile=FUSES)
    model.fit(data(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.ones((2, 3, 2), "float32")
    # XLA rounds as XLA does: the same bits are promised with the same settings.
    sequential.compile(jit_compile=FUSES)
    for other in (loaded, sequential):
        np.testing.assert_array_equal(
            other.predict(x, verbose=0), model.predict(x, verbose=0)
        )
    assert isinstance(loaded, FusedModel)
    assert isinstance(keras.models.clone_model(model), FusedModel)
    # What the evaluator beside a run makes the model from.
    assert isinstance(keras.models.model_from_json(model.to_json()), FusedModel)
    loaded.fit(data(), verbose=0)


def by_name():
    inputs = {"image": keras.Input((3, 2), name="image")}
    x = K.Flatten()(inputs["image"])
    return keras.Model(inputs, {"kind": K.Dense(3, name="kind")(x)})


class WithACall(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential([K.Flatten(), K.Dense(8, "relu"), K.Dense(3)])

    def call(self, x):
        return self.inner(x)


def sequential():
    return keras.Sequential([keras.Input((3, 2)), K.Flatten(), K.Dense(3)])


def with_a_call():
    model = WithACall()
    model(np.zeros((1, 3, 2), "float32"))
    return model


@pytest.mark.parametrize("made", [sequential, by_name, with_a_call])
def test_one_call_makes_a_fused_model_of_the_same_layers(made):
    ends_of = []
    for kind in (fused, lambda model: model):
        keras.utils.set_random_seed(3)
        model = made()
        given = data()
        if made is by_name:
            x, y = next(iter(data(46, 46)))
            given = Batches({"image": x}, {"kind": y}, 4, map=None, seed=1)
        loss = losses.CrossentropyFromLogits()
        model.compile(
            keras.optimizers.Adam(0.01),
            {"kind": loss} if made is by_name else loss,
            jit_compile=FUSES,
        )
        other = kind(model)
        if kind is fused:
            assert isinstance(other, FusedModel)
            assert other.why_not_fused is None
            assert other.optimizer is model.optimizer
            assert other.steps_in_one_program == (50 if FUSES else 1)
        other.fit(given, epochs=3, verbose=0)
        ends_of.append(ends(model))  # it has the trained weights too
    assert_close(*ends_of)


class Whole(keras.Model):
    """Takes whole numbers, and two inputs."""

    def call(self, x):
        return keras.ops.cast(x["a"] // 2 + x["b"], "float32")[:, None]


def test_a_call_of_ones_own_gets_the_numbers_as_they_are():
    x = {name: np.array([16_777_219, 5], "int32") for name in "ab"}
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in x}
    model = fused(Whole(), inputs=inputs)  # it has not been called
    model.compile("sgd", "mse")
    # In float32, 16,777,219 is 16,777,220.
    assert model.predict(x, verbose=0).ravel().tolist() == [25_165_828.0, 7.0]


class FusedWithACall(FusedModel):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.inner = K.Dense(3)

    def call(self, x):
        return self.inner(keras.ops.reshape(x, (-1, 6)))


class Functional(FusedModel):
    """Makes its inputs and outputs itself."""

    def __init__(self, units, **arguments):
        inputs = keras.Input((3, 2))
        outputs = K.Dense(units)(K.Flatten()(inputs))
        super().__init__(inputs, outputs, **arguments)
        self.units = units


def test_a_class_may_have_a_call_of_its_own_beside_functional_models():
    """Keras makes a class functional with the first model of it that is."""
    trained = []
    for make in (
        lambda: FusedWithACall(),
        lambda: Functional(3),
        lambda: FusedModel(*network(K.Dense(3))),
    ) * 2:
        model = make()
        assert isinstance(model, FusedModel)
        model.compile("sgd", losses.CrossentropyFromLogits(), jit_compile=FUSES)
        model.fit(data(), verbose=0)
        trained.append(model)
    assert trained[0].layers[0] is trained[0].inner
    assert trained[1].units == 3
    assert isinstance(trained[1], Functional)
    assert keras.Model in FusedModel.__bases__


class Doubled(keras.Sequential):
    def call(self, x, **options):
        return 2 * super().call(x, **options)


def test_a_call_of_ones_own_is_called_where_there_are_inputs_too():
    model = Doubled([keras.Input((1,)), K.Dense(1)])
    x = np.ones((3, 1), "float32")
    found = fused(model)(x)
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (found, model(x))))


class Named(K.Layer):
    def call(self, x):
        return {"b": 2 * x, "a": (x, [x + 1])}


class Listed(K.Layer):
    def call(self, x):
        return [x]


@pytest.mark.parametrize(
    "last",
    [lambda: K.LSTM(4, return_state=True), Named, Listed, lambda: K.Dense(2)],
    ids=["LSTM", "dict", "list of one", "one"],
)
def test_all_outputs_of_a_sequential_model_come_in_its_own_structure(last):
    model = keras.Sequential([keras.Input((5, 3)), last()])
    x = np.ones((2, 5, 3), "float32")
    found, expected = fused(model)(x), model(x)
    keras.tree.assert_same_structure(found, expected)
    for pair in zip(*map(keras.tree.flatten, (found, expected)), strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, pair))


def test_a_scaled_loss_stays_scaled_once():
    keras.config.set_dtype_policy("mixed_float16")
    model = sequential()
    model.compile("adam", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert fused(model).optimizer is model.optimizer


def test_what_cannot_be_fused_by_one_call_is_refused():
    class OwnStep(WithACall):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    with pytest.raises(ValueError, match="Derive the class from fmkit"):
        fused(OwnStep())
    with pytest.raises(ValueError, match=r"inputs=keras.Input\(shape, dtype=...\)"):
        fused(WithACall())
    model = sequential()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="steps_per_execution"):
        fused(model, steps_per_execution=-1)
    assert not fused(sequential()).compiled


@pytest.mark.parametrize(
    "name",
    [
        "train_step",
        "fit",
        "evaluate",
        "predict",
        "metrics",
        "reset_metrics",
        "get_metrics_result",
    ],
)
def test_a_class_with_a_method_of_its_own_that_would_be_lost_is_refused(name):
    # A copy of Keras's own, as one that calls `super()`.
    kind = type("Own", (WithACall,), {name: getattr(keras.Model, name)})
    with pytest.raises(ValueError, match=f"Own has a `{name}` of its own.* Derive the"):
        fused(kind(), inputs=keras.Input((3, 2)))
    # Negative control: the same class without it.
    assert fused(WithACall(), inputs=keras.Input((3, 2)))


class Counting(K.Layer):
    """Has a metric, which Keras finds in any model."""

    def __init__(self):
        super().__init__()
        self.seen = keras.metrics.Sum("seen")

    def call(self, x):
        self.seen.update_state(keras.ops.ones_like(x[:, 0]))
        return x


class CountingModel(WithACall):
    """Has it itself."""

    def __init__(self):
        super().__init__()
        self.seen = keras.metrics.Sum("seen")

    def call(self, x):
        self.seen.update_state(keras.ops.ones_like(x[:, 0]))
        return super().call(x)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_metric_of_the_models_own_that_would_be_lost_is_refused(compiles):
    def made(model):
        if compiles:
            model.compile("sgd", "mse", metrics=["mae"])
        return fused(model, inputs=keras.Input((3, 2)))

    with pytest.raises(ValueError, match=r"a metric 'seen' of its own.* Derive the"):
        made(CountingModel())
    # Those of layers and of `compile` are not lost.
    in_a_layer = keras.Sequential([keras.Input((3, 2)), Counting(), K.Dense(3)])
    assert "seen" in {metric.name for metric in made(in_a_layer).metrics}
    assert made(WithACall()).compiled is compiles


@only_where_it_fuses
def test_fit_settings_fuses_more_steps_but_bounds_their_memory():
    def steps(kind, width):
        x = np.zeros((400, width), "uint8")
        inputs = keras.Input((width,))
        model = kind(inputs, K.Dense(1)(inputs))
        return fit_settings(model, Batches(x, x[:, 0], 2)).compile[
            "steps_per_execution"
        ]

    assert steps(keras.Model, 4) == 50
    assert steps(FusedModel, 4) == 100
    # 2 MB a batch: 64 MB are 31, and seven executions of the epoch keep below.
    assert steps(FusedModel, 2**18) == 29


def test_fit_settings_takes_it_by_rule_and_by_measurement():
    model = compiled()
    before = ends(model)
    settings = fit_settings(model, data(), epochs=2, measure=True, seconds=0.01)
    assert settings.measurements
    assert all((a == b).all() for a, b in zip(before, ends(model), strict=True))
    model.compile("sgd", losses.CrossentropyFromLogits(), **settings.compile)
    model.fit(**settings.fit, verbose=0)


def test_blocks_come_in_order_and_end():
    made = (cut((np.arange(start, start + 5),), 5, 2) for start in (0, 5))
    found = list(Blocks(made))
    assert [block.whole[0].tolist() for block in found] == [
        [[0, 1], [2, 3]],
        [[5, 6], [7, 8]],
    ]
    assert [block.tail[0].tolist() for block in found] == [[4], [9]]
