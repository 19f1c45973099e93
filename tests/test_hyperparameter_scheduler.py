"""HyperparameterScheduler: the compiled step takes the value of its own count."""

import os
import shutil

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS
from keras import ops
from resuming import broken_and_resumed, build, data, fit

import fmkit
from fmkit.callbacks import HyperparameterScheduler
from fmkit.callbacks._traced_number import TracedNumber
from fmkit.optimizers import ExponentialMovingAverage
from fmkit.performance import FusedModel
from fmkit.schedules import PolynomialDecay

BACKEND = keras.backend.backend()
ONES = np.ones((12, 1), "float32")
RATE = 0.05


def falling(step):
    """0.9, 0.8, and so on."""
    return 0.9 - 0.1 * ops.cast(step, "float32")


def network(optimizer, kind=keras.Model, **arguments):
    """Return `y = w x` without a bias, which starts at 0."""
    inputs = keras.Input((1,))
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = kind(inputs, layer(inputs))
    model.compile(optimizer, "mse", **arguments)
    return model


def trained(model, *callbacks, epochs=2):
    """Train 3 steps per epoch on `w = 1`, and return the weight."""
    model.fit(ONES, ONES, 4, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return float(np.ravel(model.get_weights()[0])[0])


def by_hand(momenta):
    """Gradient descent with momentum on the square of `w - 1`, in float64."""
    w = v = 0.0
    for momentum in momenta:
        v = momentum * v - RATE * 2 * (w - 1)
        w += v
    return w


def sgd(momentum=0.5):
    return keras.optimizers.SGD(RATE, momentum=momentum)


SIX = [0.9 - 0.1 * n for n in range(6)]


class Assign(keras.callbacks.Callback):
    """Sets the attribute before each step: the control."""

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        optimizer.momentum = 0.9 - 0.1 * int(optimizer.iterations)


def test_each_step_has_the_momentum_of_its_count():
    model = network(sgd())
    scheduler = HyperparameterScheduler("momentum", falling)
    assert trained(model, scheduler) == pytest.approx(by_hand(SIX), rel=1e-5)
    assert model.optimizer.momentum == 0.5
    assert type(model.optimizer) is type(sgd())
    assert "train_step" not in vars(model)
    # The next `fit` has the number again, in a step that is compiled too.
    expected = by_hand([*SIX, 0.5, 0.5, 0.5])
    assert trained(model, epochs=1) == pytest.approx(expected, rel=1e-5)


def test_an_attribute_that_is_set_has_no_effect_in_a_compiled_step():
    # Negative control: without it, the test above would show nothing. On PyTorch
    # nothing is compiled but in a `FusedModel`.
    model = network(sgd(), FusedModel if BACKEND == "torch" else keras.Model)
    found = trained(model, Assign())
    assert found != pytest.approx(by_hand(SIX), rel=1e-3)
    first = 0.8 if BACKEND == "torch" else 0.9  # traced in the second step
    assert found == pytest.approx(by_hand([0.9, *[first] * 5]), rel=1e-5)


class Fused(keras.callbacks.Callback):
    """Notes why a step is not fused, while it might be."""

    def on_train_batch_end(self, batch, logs=None):
        self.why = self.model.why_not_fused


@pytest.mark.parametrize("kind", [keras.Model, FusedModel])
def test_each_step_of_an_execution_has_its_own(kind):
    if BACKEND not in MANY_STEPS and kind is keras.Model:
        pytest.skip("one step per execution")
    many = {"steps_per_execution": 3, "jit_compile": True} if BACKEND != "torch" else {}
    model, fused = network(sgd(), kind, **many), Fused()
    calls = [HyperparameterScheduler("momentum", falling)]
    if kind is FusedModel:
        calls.append(fused)
    assert trained(model, *calls) == pytest.approx(by_hand(SIX), rel=1e-5)
    assert kind is keras.Model or fused.why is None


RISING = ("momentum", "weight_decay", "rate")


def ends(kind, names, *callbacks, **arguments):
    """Return the weights after 12 steps in which the numbers of `names` rise."""
    fmkit.set_random_seed(1)
    dropout = keras.layers.Dropout(0.2, seed=2)
    inputs = keras.Input((6,))
    model = kind(inputs, keras.layers.Dense(1)(dropout(inputs)))
    optimizer = keras.optimizers.SGD(RATE, momentum=0.2, weight_decay=0.2)
    if BACKEND == "tensorflow":
        arguments["jit_compile"] = True  # other masks of dropout without XLA
    model.compile(optimizer, "mse", **arguments)
    rising = [
        HyperparameterScheduler(
            name,
            lambda n: 0.2 + 0.05 * ops.cast(n, "float32"),
            of=dropout if name == "rate" else None,
        )
        for name in names
    ]
    x = np.random.default_rng(0).random((24, 6), "float32")
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    model.fit(x, x[:, :1], callbacks=[*rising, *callbacks], **options)
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()])


def test_a_fused_model_ends_with_the_weights_of_a_plain_one():
    plain = ends(keras.Model, RISING)
    many = {"steps_per_execution": 3, "jit_compile": True} if BACKEND != "torch" else {}
    np.testing.assert_allclose(ends(FusedModel, RISING, **many), plain, rtol=1e-6)
    for held in RISING:  # the control: each of the three counts
        others = ends(keras.Model, [name for name in RISING if name != held])
        assert np.abs(others - plain).max() > 0.01


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["momentum", "weight_decay"], None),
        (["rate"], "an `if` looks at a number that keeps changing"),
    ],
)
def test_a_rate_of_a_layer_takes_python_after_eight_values(names, why):
    fused = Fused()
    assert (ends(FusedModel, names, fused) == ends(keras.Model, names)).all()
    assert fused.why == why


@pytest.mark.backend("torch")
@pytest.mark.long
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs g++"
)
# Of tensors that torch.compile looks at, and hides itself where it is no error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("names", [["momentum", "weight_decay"], ["rate"]])
def test_a_step_of_torch_compile_ends_with_the_weights_of_a_plain_one(names):
    from torch._dynamo.utils import counters

    plain = ends(keras.Model, names)
    counters.clear()
    compiled = ends(keras.Model, names, jit_compile=True)
    assert counters["stats"]["unique_graphs"] > 0
    np.testing.assert_allclose(compiled, plain, atol=1e-6)
    # The control: held at what they were given, the numbers make other weights.
    assert np.abs(ends(keras.Model, []) - plain).max() > 0.01


def test_it_counts_as_the_learning_rate_does_where_gradients_are_accumulated():
    seen = {"rate": set(), "momentum": set()}

    def noted(name, value):
        def schedule(step):
            seen[name].add(int(step))
            return value + 0.0 * ops.cast(step, "float32")

        return schedule

    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return noted("rate", RATE)(step)

    optimizer = keras.optimizers.SGD(
        Rate(), momentum=0.5, gradient_accumulation_steps=2
    )
    model = network(optimizer, run_eagerly=True)
    trained(model, HyperparameterScheduler("momentum", noted("momentum", 0.7)))
    assert int(optimizer.iterations) == 3
    # PyTorch asks for the rate only where it is used, in every second batch.
    assert seen["momentum"] == set(range(6))
    assert {1, 3, 5} <= seen["rate"] <= seen["momentum"]


def test_a_schedule_may_count_epochs_and_end_at_zero():
    scheduler = HyperparameterScheduler(
        "momentum", PolynomialDecay(0.8, 2), steps_per_epoch=3
    )
    momenta = [0.8] * 3 + [0.4] * 3 + [0.0] * 3 + [0.0] * 3
    found = trained(network(sgd()), scheduler, epochs=4)
    assert found == pytest.approx(by_hand(momenta), rel=1e-5)


@pytest.mark.backend("torch")
def test_a_momentum_of_zero_forgets_the_velocity():
    def gap(step):
        return ops.where(ops.equal(step, 1), 0.0, 0.9)

    found = trained(network(sgd()), HyperparameterScheduler("momentum", gap), epochs=1)
    assert found == pytest.approx(by_hand([0.9, 0.0, 0.9]), rel=1e-6)


def test_weight_decay_and_momentum_follow_inside_of_a_wrapper():
    inner = keras.optimizers.SGD(RATE, momentum=0.5, weight_decay=0.1)
    model = network(ExponentialMovingAverage(inner, decay=0.5))
    found = trained(
        model,
        HyperparameterScheduler("momentum", falling),
        HyperparameterScheduler("weight_decay", lambda n: 0.3 * ops.cast(n, "float32")),
        epochs=1,
    )
    w = v = 0.0
    for n in range(3):
        # Keras decays the weights and then takes the step, whose gradient is older.
        slope = 2 * (w - 1)
        w -= w * 0.3 * n * RATE
        v = (0.9 - 0.1 * n) * v - RATE * slope
        w += v
    assert found == pytest.approx(w, rel=1e-5)
    assert (inner.momentum, inner.weight_decay) == (0.5, 0.1)


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_the_betas_of_adam_follow(name):
    adam = keras.optimizers.Adam(RATE, **{name: 0.5})
    found = trained(network(adam), HyperparameterScheduler(name, falling), epochs=1)
    w, m, v = 0.0, 0.0, 0.0
    for n in range(3):
        beta = 0.9 - 0.1 * n
        b1, b2 = (beta, 0.999) if name == "beta_1" else (0.9, beta)
        slope = 2 * (w - 1)
        m, v = b1 * m + (1 - b1) * slope, b2 * v + (1 - b2) * slope**2
        size = (1 - b2 ** (n + 1)) ** 0.5 / (1 - b1 ** (n + 1))
        w -= RATE * size * m / (v**0.5 + 1e-7)
    assert found == pytest.approx(w, rel=2e-5)


class Scaled(keras.losses.Loss):
    """A loss with a number of its own, times the share of outputs that are 0."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def call(self, y_true, y_pred):
        zero = ops.cast(ops.equal(y_pred, 0.0), y_pred.dtype)
        return self.scale * zero + 0.0 * y_pred


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_dropout_rate_and_a_number_of_a_loss_follow(dtype):
    dropout = keras.layers.Dropout(0.5, seed=1, dtype=dtype)
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((4000, 1)), dropout, dense])
    loss = Scaled(7.0)
    model.compile("sgd", loss)
    history = model.fit(
        np.ones((1, 4000, 1)),
        np.ones((1, 4000, 1)),
        epochs=3,
        verbose=0,
        callbacks=[
            HyperparameterScheduler(
                "rate", lambda n: 0.2 + 0.3 * ops.cast(n, "float32"), of=[dropout]
            ),
            HyperparameterScheduler(
                "scale", lambda n: 1.0 + ops.cast(n, "float32"), of=loss
            ),
        ],
    ).history["loss"]
    np.testing.assert_allclose(history, [0.2, 2 * 0.5, 3 * 0.8], atol=0.1)
    assert (dropout.rate, loss.scale) == (0.5, 7.0)


@pytest.mark.parametrize("at", [(0, 1), (1, 2)])
def test_a_run_broken_off_and_resumed_ends_with_the_same_bits(tmp_path, at):
    def train(directory, *callbacks):
        adam = keras.optimizers.Adam(0.05, beta_1=0.5)
        scheduler = HyperparameterScheduler("beta_1", PolynomialDecay(0.95, 9))
        return fit(directory, scheduler, *callbacks, model=build(optimizer=adam))[0]

    whole = train(tmp_path / "whole").get_weights()
    again = broken_and_resumed(tmp_path / "broken", train, at).get_weights()
    assert [a.tobytes() for a in again] == [a.tobytes() for a in whole]


@pytest.mark.backend("torch")
def test_a_resume_with_another_schedule_is_refused(tmp_path):
    def train(steps):
        adam = keras.optimizers.Adam(0.05, beta_1=0.5)
        scheduler = HyperparameterScheduler("beta_1", PolynomialDecay(0.95, steps))
        fit(tmp_path, scheduler, model=build(optimizer=adam), batches=data())

    train(9)
    with pytest.raises(ValueError, match="the callback has schedule="):
        train(10)


class Fail(keras.callbacks.Callback):
    """Reads what others would save during a step, and fails."""

    def on_train_batch_end(self, batch, logs=None):
        self.config = self.model.optimizer.get_config()
        raise KeyboardInterrupt


def test_after_an_exception_all_is_as_it_was():
    model, fail = network(sgd()), Fail()
    function = model.train_function
    with pytest.raises(KeyboardInterrupt):
        trained(model, HyperparameterScheduler("momentum", falling), fail)
    assert fail.config["momentum"] == model.optimizer.momentum == 0.5
    assert "train_step" not in vars(model)
    assert type(model.optimizer) is type(sgd())
    assert function is None or model.train_function is function


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (sgd(0.0), "momentum"),
        (sgd(), "weight_decay"),
        (sgd(), "nesterov"),
        (sgd(), "learning_rate"),
        (sgd(), "momenta"),
    ],
)
def test_what_is_no_number_in_the_step_is_refused_before_it(optimizer, name):
    scheduler = HyperparameterScheduler(name, falling)
    with pytest.raises(ValueError, match=f"`{name}` of SGD must be a number other"):
        trained(network(optimizer), scheduler)


def test_what_no_step_reads_is_refused():
    smooth = keras.losses.BinaryCrossentropy(label_smoothing=0.1)
    scheduler = HyperparameterScheduler("label_smoothing", falling, of=smooth)
    model = network(sgd())
    model.compile(sgd(), smooth)
    with pytest.raises(ValueError, match="No training step reads `label_smoothing`"):
        trained(model, scheduler)


def test_a_layer_of_another_model_is_refused():
    scheduler = HyperparameterScheduler("rate", falling, of=keras.layers.Dropout(0.5))
    with pytest.raises(ValueError, match="no part of this model"):
        trained(network(sgd()), scheduler)


@pytest.mark.backend("torch")
def test_other_uses_are_refused():
    with pytest.raises(TypeError, match=r"got schedule=0\.9"):
        HyperparameterScheduler("momentum", 0.9)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be at least 1"):
        HyperparameterScheduler("momentum", falling, steps_per_epoch=0)
    scheduler = HyperparameterScheduler("momentum", falling)
    scheduler.set_model(network(sgd()))
    with pytest.raises(RuntimeError, match=r"fit\(\.\.\., callbacks="):
        scheduler.on_epoch_begin(0)


def test_a_number_that_is_traced_computes_as_its_tensor_and_decides_as_its_number():
    traced = TracedNumber(0.5, ops.convert_to_tensor(3.0))
    for found, expected in [
        (1 - traced, -2),
        (traced - 1, 2),
        (traced * traced, 9),
        (-traced, -3),
        (2**traced, 8),
        (traced / 2, 1.5),
    ]:
        assert float(found) == expected
    if BACKEND != "torch":  # which gets the tensor itself
        assert float(ops.multiply(2.0, traced)) == 6
        assert float(ops.cast(traced, "float16")) == 3
    assert traced
    assert traced == 0.5
    assert traced < 1
    assert not traced > 1
    assert traced != 3
    with pytest.raises(TypeError, match="needs a Python number"):
        float(traced)
