"""The traps of Keras's own averages and decay, each as a run that goes wrong.

Beside each stands the same run with fmkit, which goes right. A Keras release that
mends one fails its test here, with a message that says what to do. The mark `open_on`
says from which version on a trap was seen: all were run on 3.12, 3.13, 3.14 and 3.15.
"""

import keras
import numpy as np
import pytest
from bits import array, bits
from keras import ops

from fmkit import schedules
from fmkit.callbacks import EvaluateWithAverages
from fmkit.optimizers import ExponentialMovingAverage, averaged, averaged_model

pytestmark = pytest.mark.open_on("3.12")

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


# Trap 1 only. The others are open on Keras 3.16 too, as far as it was run.
OPEN_UP_TO_3_15 = tuple(map(int, keras.__version__.split(".")[:2])) < (3, 16)


def mended(trap):
    return (
        f"Keras {keras.__version__} mended trap {trap}: give this test "
        "@pytest.mark.open_on('3.12', LAST) with the last version that has it, and say "
        "so where "
        "docs/guides/averages.md and the docstrings of fmkit name the trap."
    )


def keras_average(**arguments):
    return keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9, **arguments)


def fmkit_average(**arguments):
    inner = keras.optimizers.SGD(0.05, **arguments)
    return ExponentialMovingAverage(inner, decay=0.9, num_updates=None)


def make(optimizer, compiled=False, norm=False):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(1)]
    if norm:
        layers.insert(1, keras.layers.BatchNormalization())
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse", run_eagerly=not compiled)
    return model


def fit(model, *callbacks, epochs=1, **arguments):
    model.fit(
        X,
        Y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **arguments,
    )
    return bits(model.trainable_variables)


def test_trap_1_predict_leaves_keras_models_with_the_averages():
    model = make(keras_average())
    fit(model)
    # `fit` made weights and averages equal (trap 5): tell them apart again.
    model.trainable_variables[0].assign(ops.ones((4, 1)))
    before = bits(model.trainable_variables)
    model.predict(X, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
    changed = bits(model.trainable_variables) != before
    assert changed == OPEN_UP_TO_3_15, mended(1)

    ours = make(fmkit_average())
    before = fit(ours)
    shown = ours.predict(X, verbose=0, callbacks=[EvaluateWithAverages()])
    assert bits(ours.trainable_variables) == before
    assert not np.array_equal(shown, ours.predict(X, verbose=0))


# Each weight, beside the average that it is exchanged with, and what Keras makes of it.
PAIRS = {"weight": [1e-6, 3e38, 0.1, -1.0], "average": [1e3, 3e38, 0.3, 1e3]}


def extreme(model, weight, average):
    model.optimizer.build(model.trainable_variables)
    weight.assign(np.array(PAIRS["weight"], "float32")[:, None])
    average.assign(np.array(PAIRS["average"], "float32")[:, None])
    return array(weight).tobytes(), array(average).tobytes()


@pytest.mark.backend("tensorflow")
def test_trap_2_keras_swaps_by_adding_and_subtracting():
    model = make(keras_average())
    weight = model.trainable_variables[0]
    model.optimizer.build(model.trainable_variables)
    average = model.optimizer._model_variables_moving_average[0]
    before = extreme(model, weight, average)
    with np.errstate(all="ignore"):
        callbacks = [keras.callbacks.SwapEMAWeights()]
        model.evaluate(X, Y, verbose=0, callbacks=callbacks)
    assert array(weight).tobytes() != before[0], mended(2)
    assert array(weight)[0] == 0
    assert np.isnan(array(weight)[1])


def test_trap_2_fmkit_swaps_to_the_bit_a_thousand_times():
    model = make(fmkit_average())
    fit(model)
    weight, average = model.optimizer.averages[0]
    before = extreme(model, weight, average)
    for _ in range(1000):
        with averaged(model):
            assert array(weight).tobytes() == before[1]
        assert (array(weight).tobytes(), array(average).tobytes()) == before


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epoch:
            self.model.stop_training = True


def test_trap_3_an_early_stop_changes_which_weights_keras_leaves():
    def swap():
        return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)

    whole = fit(make(keras_average()), swap(), epochs=2)
    stopped = fit(make(keras_average()), swap(), StopAfter(2), epochs=5)
    assert stopped != whole, mended(3)

    models = [make(fmkit_average()) for _ in range(2)]
    whole = fit(models[0], EvaluateWithAverages(), epochs=2)
    stopped = fit(models[1], EvaluateWithAverages(), StopAfter(2), epochs=5)
    assert stopped == whole
    ends = [bits(averaged_model(model).weights) for model in models]
    assert ends[0] == ends[1] != whole


@pytest.mark.backend("jax")
def test_trap_4_a_second_fit_with_keras_averages_fails_on_jax():
    model = make(keras_average(), compiled=True)
    fit(model)
    told = []
    try:
        fit(model)
    except Exception as error:  # noqa: BLE001 - which one it is depends
        # Keras stumbles once more over what the first error left behind.
        while error is not None:
            told.append(str(error))
            error = error.__context__
    assert told, mended(4)
    assert "same buffer twice" in "".join(told) or "deleted" in "".join(told)

    ours = make(fmkit_average(), compiled=True)
    assert fit(ours) != fit(ours)


def test_trap_5_keras_throws_the_raw_weights_away_at_the_end_of_fit():
    parts = make(keras_average())
    fit(parts, epochs=2)
    if keras.backend.backend() == "jax":
        # Trap 4 would stop the second `fit`: unalias by hand.
        for variable in parts.variables:
            variable.assign(ops.copy(variable))
    assert fit(parts, epochs=2) != fit(make(keras_average()), epochs=4), mended(5)

    parts = make(fmkit_average())
    fit(parts, epochs=2)
    whole = make(fmkit_average())
    assert fit(parts, epochs=2) == fit(whole, epochs=4)
    assert bits(averaged_model(parts).weights) == bits(averaged_model(whole).weights)


def test_trap_5_before_the_first_step_keras_shows_zeros():
    model = make(keras_average())
    model.optimizer.build(model.trainable_variables)
    callbacks = [keras.callbacks.SwapEMAWeights()]
    loss = model.evaluate(X, Y, verbose=0, callbacks=callbacks)
    assert loss == pytest.approx(float(np.mean(Y**2)), rel=1e-5), mended(5)

    ours = make(fmkit_average())
    raw = ours.evaluate(X, Y, verbose=0)
    assert ours.evaluate(X, Y, verbose=0, callbacks=[EvaluateWithAverages()]) == raw
    assert raw != pytest.approx(float(np.mean(Y**2)), rel=1e-3)


class Statistics(keras.callbacks.Callback):
    """Keeps the moving mean that each validation judged with, and that of training."""

    def on_train_batch_end(self, batch, logs=None):
        self.raw = array(self.model.layers[0].moving_mean)

    def on_test_batch_begin(self, batch, logs=None):
        self.judged = array(self.model.layers[0].moving_mean)


@pytest.mark.backend("tensorflow")
def test_trap_5_keras_leaves_the_statistics_of_batch_normalization_raw():
    seen = Statistics()
    model = make(keras_average(), norm=True)
    swap = keras.callbacks.SwapEMAWeights()
    fit(model, swap, seen, validation_data=(X, Y))
    assert np.array_equal(seen.judged, seen.raw), mended(5)

    ours = make(fmkit_average(), norm=True)
    callback = EvaluateWithAverages(batch_norm="recompute", batch_norm_data=X)
    fit(ours, seen, callback, validation_data=(X, Y))
    np.testing.assert_allclose(seen.judged, X.mean(axis=0), atol=1e-6)
    assert not np.allclose(seen.judged, seen.raw, atol=1e-4)


@pytest.mark.backend("tensorflow")
def test_trap_5_keras_decays_on_accumulation_steps():
    # One update of the weights, at the fourth of four steps.
    model = make(keras_average(gradient_accumulation_steps=4))
    start = [array(v).astype("float64") for v in model.trainable_variables]
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer = self.model.optimizer
            seen[:] = [array(a) for a in optimizer._model_variables_moving_average]
            seen.append(array(self.model.trainable_variables[0]))

    fit(model, Look())
    after = seen.pop().astype("float64")
    once = 0.9 * start[0] + 0.1 * after
    assert not np.allclose(seen[0], once, rtol=1e-5), mended(5)

    ours = make(fmkit_average(gradient_accumulation_steps=4))
    fit(ours)
    weight, average = ours.optimizer.averages[0]
    expected = 0.9 * start[0] + 0.1 * array(weight).astype("float64")
    np.testing.assert_allclose(array(average), expected, rtol=1e-5)


def test_trap_10_keras_steps_down_a_stair_too_early_at_a_large_count():
    step = 40 * 1_000_003 - 1
    theirs = keras.optimizers.schedules.ExponentialDecay(
        1.0, 1_000_003, 0.5, staircase=True
    )
    counter = ops.convert_to_tensor(np.array(step, "int32"))
    assert float(theirs(counter)) == 0.5**40, mended(10)
    ours = schedules.ExponentialDecay(1.0, 1_000_003, 0.5, staircase=True)
    assert float(ours(counter)) == pytest.approx(0.5**39, rel=1e-6)


# Trap 6: the optimizer that averages by itself.


@pytest.mark.open_on("3.14")
def test_trap_6_schedule_free_takes_the_new_point_for_the_old_one():
    """Keras reads `z` when it has changed it; on JAX a value it holds can't change."""
    optimizer = keras.optimizers.ScheduleFreeAdamW(0.05)
    variable = keras.Variable(np.array([1.0, -2.0], "float32"))
    optimizer.build([variable])
    z = mean = np.array([1.0, -2.0])
    velocity = np.zeros(2)
    for step, gradient in enumerate(np.random.default_rng(0).normal(size=(8, 2)), 1):
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")], [variable])
        velocity = 0.999 * velocity + 0.001 * gradient**2
        z = z - 0.05 * gradient / (np.sqrt(velocity / (1 - 0.999**step)) + 1e-8)
        mean = mean + (z - mean) / step
    is_the_papers = np.allclose(array(variable), 0.1 * z + 0.9 * mean, rtol=1e-4)
    assert is_the_papers == (keras.backend.backend() == "jax"), mended(6)


@pytest.mark.open_on("3.14")
def test_trap_7_schedule_free_forgets_the_initial_weights_on_tensorflow():
    """Its `z` is copied from weights within the first program, which isn't run."""

    def trained(build):
        model = make(keras.optimizers.ScheduleFreeAdamW(0.0), compiled=True)
        before = bits(model.trainable_variables)
        if build:  # what helps
            model.optimizer.build(model.trainable_variables)
        fit(model)
        after = [array(v) for v in model.trainable_variables]
        kept = np.concatenate([a.ravel() for a in after])
        start = np.concatenate([np.frombuffer(b, "float32") for b in before])
        return np.allclose(kept, start, rtol=1e-5)

    assert trained(build=True)
    assert trained(build=False) == (keras.backend.backend() != "tensorflow"), mended(7)
