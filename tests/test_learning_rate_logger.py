"""LearningRateLogger: the rate that was used, for numbers, schedules, callbacks."""

import csv

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS

from fmkit.callbacks import LearningRateLogger
from fmkit.optimizers import ExponentialMovingAverage
from fmkit.schedules import ExponentialDecay

X = np.ones((12, 1), "float32")


def fit(optimizer, callbacks, epochs=2, **arguments):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    eager = not arguments  # to save time: the logger stands outside of the steps
    model.compile(optimizer, "mse", run_eagerly=eager, **arguments)
    return model.fit(
        X, X, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks
    ).history


def test_logs_a_number():
    assert (
        fit("sgd", [LearningRateLogger()])["learning_rate"] == [pytest.approx(0.01)] * 2
    )


def test_logs_the_rate_of_the_last_step_of_a_schedule():
    # Three steps an epoch; a stair at each third step.
    schedule = ExponentialDecay(0.8, 3, 0.5, staircase=True)
    history = fit(keras.optimizers.SGD(schedule), [LearningRateLogger()], epochs=3)
    np.testing.assert_allclose(history["learning_rate"], [0.8, 0.4, 0.2], rtol=1e-6)


@pytest.mark.backend("torch")  # the way through optimizers is Python's
@pytest.mark.parametrize(
    "wrap",
    [
        ExponentialMovingAverage,
        keras.optimizers.LossScaleOptimizer,
        lambda o: keras.optimizers.LossScaleOptimizer(ExponentialMovingAverage(o)),
    ],
    ids=["average", "loss_scale", "both"],
)
def test_looks_through_optimizers_around_optimizers(wrap):
    schedule = ExponentialDecay(0.8, 3, 0.5, staircase=True)
    optimizer = wrap(keras.optimizers.SGD(schedule))
    history = fit(optimizer, [LearningRateLogger()])
    np.testing.assert_allclose(history["learning_rate"], [0.8, 0.4], rtol=1e-6)


def test_logs_the_rate_that_another_callback_sets():
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    history = fit("sgd", [scheduler, LearningRateLogger()])
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.05], rtol=1e-6)


def test_logs_the_rate_before_a_callback_lowers_it_for_the_next_epoch():
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rate = float(self.model.optimizer.learning_rate)
            self.model.optimizer.learning_rate = rate / 2

    history = fit(keras.optimizers.SGD(0.5), [Halve(), LearningRateLogger()], 3)
    np.testing.assert_allclose(history["learning_rate"], [0.5, 0.25, 0.125])


@pytest.mark.needs("MultiOptimizer")
def test_logs_each_optimizer_of_several():
    first = keras.optimizers.SGD(0.5, name="first")
    second = keras.optimizers.Adam(0.25, name="second")
    optimizer = keras.optimizers.MultiOptimizer(
        lambda variable: first if variable.ndim == 2 else second
    )
    history = fit(optimizer, [LearningRateLogger()], epochs=1)
    assert history["learning_rate_first"] == [0.5]
    assert history["learning_rate_second"] == [0.25]


def test_logs_every_step():
    schedule = ExponentialDecay(0.8, 1, 0.5)
    logger, seen = LearningRateLogger(every="step"), []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["learning_rate"])

    # Look stands before the logger, and sees its entry all the same.
    fit(keras.optimizers.SGD(schedule), [Look(), logger])
    expected = [0.8, 0.4, 0.2, 0.1, 0.05, 0.025]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    np.testing.assert_allclose(logger.learning_rates, expected, rtol=1e-6)
    assert logger.steps == [0, 1, 2, 3, 4, 5]
    again = LearningRateLogger(every="step")
    again.set_state(logger.get_state())
    fit(keras.optimizers.SGD(0.5), [again], epochs=1)
    assert again.steps == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert again.learning_rates[-1] == 0.5


@pytest.mark.parametrize("arguments", [{"every": "epoch"}, {"name": "rate"}])
def test_the_state_of_a_logger_with_other_settings_is_refused(arguments):
    logger = LearningRateLogger(every="step")
    fit(keras.optimizers.SGD(0.5), [logger], epochs=1)
    other = LearningRateLogger(**({"every": "step"} | arguments))
    ((setting, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"but the callback has {setting}='{value}'"):
        other.set_state(logger.get_state())
    assert other.steps == []
    LearningRateLogger(every="step").set_state(logger.get_state())


@pytest.mark.backend(*MANY_STEPS)
def test_counts_steps_where_they_run_in_groups():
    logger = LearningRateLogger(every="step")
    fit("sgd", [logger], steps_per_execution=2)
    assert logger.steps == [1, 2, 4, 5]


def test_the_csv_file_shows_it_wherever_its_logger_stands(tmp_path):
    path = tmp_path / "log.csv"
    fit(
        keras.optimizers.SGD(0.5),
        [keras.callbacks.CSVLogger(path), LearningRateLogger()],
    )
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == [0.5, 0.5]


@pytest.mark.backend("tensorflow")
@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_each_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    board = keras.callbacks.TensorBoard(tmp_path, update_freq="batch")
    fit(keras.optimizers.SGD(0.5), [board, LearningRateLogger(every="step")])
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    values = [
        float(make_ndarray(event.tensor_proto))
        for event in events.Tensors("batch_learning_rate")
    ]
    assert values == [0.5] * 6
    assert "epoch_learning_rate" in events.Tags()["tensors"]


@pytest.mark.backend("tensorflow")
@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_the_rate_used_in_an_epoch_under_another_name(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    schedule = ExponentialDecay(0.8, 3, 0.5, staircase=True)
    board = keras.callbacks.TensorBoard(tmp_path)
    fit(keras.optimizers.SGD(schedule), [board, LearningRateLogger(name="rate")])
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()

    def shown(tag):
        return [float(make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]

    np.testing.assert_allclose(shown("epoch_rate"), [0.8, 0.4], rtol=1e-6)
    # Keras's own entry is the rate of the step to come.
    np.testing.assert_allclose(shown("epoch_learning_rate"), [0.4, 0.2], rtol=1e-6)


def test_a_rate_that_changes_as_a_batch_ends_counts_for_the_next():
    class Halve(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rate = float(self.model.optimizer.learning_rate)
            self.model.optimizer.learning_rate = rate / 2

    logger = LearningRateLogger(every="step")
    history = fit(keras.optimizers.SGD(0.5), [Halve(), logger], epochs=2)
    assert logger.learning_rates == [0.5 / 2**n for n in range(6)]
    assert history["learning_rate"] == [0.5 / 2**2, 0.5 / 2**5]


def test_outside_of_fit_it_is_told_what_to_write():
    with pytest.raises(RuntimeError, match=r"fit\(\.\.\., callbacks="):
        LearningRateLogger().on_train_begin()


def test_the_words_of_every_are_checked():
    with pytest.raises(ValueError, match="Did you mean 'epoch'"):
        LearningRateLogger(every="epochs")
