"""The learning-rate range test: its curve, its suggestion, and no trace of it."""

import random

import keras
import numpy as np
import pytest

from fmkit.data import Batches
from fmkit.optimizers import ExponentialMovingAverage
from fmkit.performance import LearningRateRange, learning_rate_range
from fmkit.performance._range import _smoothed, _steepest

X = np.random.RandomState(0).normal(size=(96, 4)).astype("float32")
Y = X @ np.float32([[1.0], [-2.0], [0.5], [3.0]])


@keras.saving.register_keras_serializable("test_learning_rate_range")
def constant(y_true, y_pred):
    return keras.ops.mean(0.0 * y_pred, axis=-1) + 1.0


def build(optimizer="sgd", loss="mse", **arguments):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(1), keras.layers.BatchNormalization()]
    layers = [keras.Input((4,)), *layers[: 1 + bool(arguments.pop("norm", False))]]
    model = keras.Sequential(layers)
    model.compile(optimizer, loss, **arguments)
    return model


def state_of(model):
    """Return all that a training would change in a model."""
    variables = [*model.weights, *model.optimizer.variables, *model.metrics_variables]
    return [np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in variables]


def generators():
    return random.getstate(), np.random.get_state()[1].tobytes()


def test_the_rates_grow_by_one_factor_and_the_losses_are_those_of_the_batches():
    model = build()
    found = learning_rate_range(
        model, Batches(X, Y, 32, map=None, shuffle=False), lowest=1e-6, highest=1e-3
    )
    assert isinstance(found, LearningRateRange)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-6, 1e-3, 100), rtol=1e-5)
    assert not found.diverged
    # By hand, in float64: gradient descent on the mean square of each batch.
    w, b = (weights.astype(float) for weights in model.get_weights())
    for step, rate in enumerate(found.rates):
        rows = slice(32 * (step % 3), 32 * (step % 3) + 32)
        residual = X[rows] @ w + b - Y[rows]
        assert found.losses[step] == pytest.approx(float((residual**2).mean()), 1e-4)
        w = w - rate * 2 * X[rows].T @ residual / 32
        b = b - rate * 2 * residual.mean(axis=0)


def test_it_stops_where_the_loss_diverges_and_suggests_a_rate_below():
    found = learning_rate_range(build(), X, Y, batch_size=96)
    assert found.diverged
    assert 20 < len(found.rates) < 100
    assert np.isfinite(found.losses).all()
    # The largest curvature of the loss: above 2 / it, gradient descent diverges.
    limit = 2 / np.linalg.eigvalsh(2 * np.cov(X.T)).max()
    assert found.rates[-1] > limit
    assert limit / 100 < found.suggestion < limit


def test_with_accumulated_gradients_a_step_is_an_update():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
    found = learning_rate_range(
        build(optimizer),
        Batches(X, Y, 32, map=None, shuffle=False),
        lowest=1e-6,
        highest=1e-3,
        steps=20,
    )
    # Three batches of a third are the whole.
    whole = learning_rate_range(
        build(), X, Y, batch_size=96, lowest=1e-6, highest=1e-3, steps=20
    )
    np.testing.assert_allclose(found.rates, whole.rates, rtol=1e-6)
    np.testing.assert_allclose(found.losses, whole.losses, rtol=1e-5)
    assert whole.losses[-1] < whole.losses[0]


@pytest.mark.needs("torch")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_it_leaves_the_generator_of_a_dataloader_where_it_was():
    import torch

    rows = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(rows, 32, shuffle=True)
    model, before = build(), torch.get_rng_state()
    learning_rate_range(model, loader, steps=10)
    assert (torch.get_rng_state() == before).all()
    model.fit(loader, verbose=0)  # the control: it draws
    assert (torch.get_rng_state() != before).any()


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adam", "averages"])
def test_it_leaves_no_trace(optimizer):
    if optimizer == "averages":
        optimizer = ExponentialMovingAverage("adam", decay=0.9)
    model = build(optimizer, norm=True, metrics=["mae"], steps_per_execution=1)
    batches = Batches(X, Y, 8, map=None)
    batches.seek(2, 3)
    model.fit(X, Y, batch_size=32, verbose=0)
    before, drawn = state_of(model), generators()
    function, rate = model.train_function, float(model.optimizer.learning_rate)
    learning_rate_range(model, batches, steps=20)
    assert state_of(model) == before
    assert generators() == drawn
    assert batches.position == (2, 3)
    assert model.train_function is function
    assert float(model.optimizer.learning_rate) == rate
    # Control: a training of the model itself changes all of them.
    model.fit(batches, epochs=3, verbose=0)
    assert state_of(model) != before
    assert batches.position != (2, 3)


@pytest.mark.backend("torch")
def test_it_leaves_no_trace_on_a_small_model():
    model, batches = build(), Batches(X, Y, 8, map=None)
    batches.seek(2, 3)
    before, drawn = state_of(model), generators()
    learning_rate_range(model, batches, steps=10)
    assert (state_of(model), generators()) == (before, drawn)
    assert batches.position == (2, 3)


@pytest.mark.backend("torch")
def test_smoothing_keeps_lines_and_the_steepest_place_is_before_the_minimum():
    line = np.arange(40.0)
    np.testing.assert_allclose(_smoothed(line, 1.0)[5:-5], line[5:-5])
    noise = np.random.default_rng(0).normal(size=4000)
    assert _smoothed(noise, 5.0).std() == pytest.approx(
        (2 * np.pi**0.5 * 5) ** -0.5, rel=0.1
    )
    rates = np.geomspace(1e-3, 10, 401)
    falls = -np.tanh(2 * np.log(rates / 0.1)) + 1e3 * np.maximum(rates - 2, 0)
    assert _steepest(rates, falls) == pytest.approx(0.1, rel=0.03)
    # Behind the minimum the slope may be steeper: noise of what has diverged.
    behind = np.where(rates > 5, falls - 900 * (rates > 7), falls)
    assert _steepest(rates, behind) == pytest.approx(0.1, rel=0.03)
    assert _steepest(rates, rates) is None


@pytest.mark.backend("torch")
def test_no_suggestion_where_the_loss_never_falls():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", constant)
    found = learning_rate_range(model, X, Y, steps=10)
    assert found.suggestion is None
    assert found.losses.tolist() == [1.0] * 10


@pytest.mark.backend("torch")
def test_what_gives_no_curve_is_refused():
    model = build()
    bad = X.copy()
    bad[0] = np.nan
    with pytest.raises(ValueError, match=r"The loss was nan after 0 steps.*check_arr"):
        learning_rate_range(model, bad, Y, batch_size=96)
    with pytest.raises(ValueError, match=r"after \d steps, at a learning rate.*Lower"):
        learning_rate_range(model, X, Y, lowest=10.0, highest=1e3)
    with pytest.raises(ValueError, match="`steps` must be at least 10"):
        learning_rate_range(model, X, Y, steps=9)
    with pytest.raises(ValueError, match="`highest`"):
        learning_rate_range(model, X, Y, lowest=1.0, highest=1.0)
    with pytest.raises(TypeError, match="got generator"):
        learning_rate_range(model, ((X, Y) for _ in range(9)))
    with pytest.raises(ValueError, match="`learning_rate_range` trains a copy"):
        learning_rate_range(keras.Sequential([keras.layers.Dense(1)]), X, Y)


def first_loss(model, x):
    model.compile("sgd", "mse")
    given = keras.ops.convert_to_numpy(model(x))
    found = learning_rate_range(model, x, Y, batch_size=96, steps=10, lowest=1e-9)
    return found.losses[0], float(((given - Y) ** 2).mean())


def test_the_copy_normalizes_as_the_model_was_adapted():
    normalization = keras.layers.Normalization()
    normalization.adapt(9 * X + 5)
    layers = [keras.Input((4,)), normalization, keras.layers.Dense(1)]
    found, expected = first_loss(keras.Sequential(layers), 9 * X + 5)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_the_copy_has_the_vocabulary_of_the_model():
    numbers = np.array([[70], [80], [90], [70]] * 24)
    lookup = keras.layers.IntegerLookup(output_mode="one_hot")
    lookup.adapt(numbers)
    inputs = keras.Input((1,), dtype="int64")
    outputs = keras.layers.Dense(1)(lookup(inputs))
    found, expected = first_loss(keras.Model(inputs, outputs), numbers)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.backend("torch")
def test_a_model_of_which_some_layers_are_built_is_refused():
    normalization = keras.layers.Normalization()
    normalization.adapt(X)
    model = keras.Sequential([normalization, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"only some layers of .* call it on a few"):
        learning_rate_range(model, X, Y, steps=10)
    model(X[:2])
    assert len(learning_rate_range(model, X, Y, steps=10, highest=1e-3).rates) == 10


class _Ordered(keras.Sequential):
    """A class of one's own, which Keras copies as a Sequential."""


class _Sized(keras.Model):
    """A functional model made of one number, which Keras copies as a Functional."""

    def __init__(self, units=1):
        inputs = keras.Input((4,))
        super().__init__(inputs, keras.layers.Dense(units)(inputs))


class _Compiling(keras.Model):
    """A model with a `compile` of its own, which Keras leaves out."""

    def compile(self, optimizer, loss):
        super().compile(optimizer, loss)


@pytest.mark.backend("torch")
@pytest.mark.filterwarnings("ignore:`compile.*was not called:UserWarning")
def test_a_copy_of_another_class_or_without_its_compile_is_refused():
    inputs, dense = keras.Input((4,)), keras.layers.Dense(1)
    for model, message in (
        (_Ordered([inputs, dense]), "is a Sequential, not a _Ordered"),
        (_Sized(), "is a Functional, not a _Sized"),
        (_Compiling(inputs, dense(inputs)), "_Compiling has a `compile` of its own"),
    ):
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match=message):
            learning_rate_range(model, X, Y, steps=10)


@pytest.mark.backend("torch")
def test_an_optimizer_inside_of_a_wrapper_gets_the_rates():
    averaging = ExponentialMovingAverage("sgd", decay=0.9)
    found = learning_rate_range(build(averaging), X, Y, steps=10, highest=1e-3)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-6, 1e-3, 10), rtol=1e-5)
    assert float(averaging.learning_rate) == pytest.approx(0.01)
