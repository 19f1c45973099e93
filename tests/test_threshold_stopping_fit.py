"""ThresholdStopping in real trainings."""

import copy
import csv
import functools
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS

from fmkit.callbacks import (
    BatchValidation,
    EvaluateWithAverages,
    ExactResume,
    Reached,
    Stop,
    StopReason,
    ThresholdStopping,
)
from fmkit.optimizers import ExponentialMovingAverage

BATCH, ROWS = 8, 64
STEPS = ROWS // BATCH


def small_data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 4)).astype("float32")
    return x, (x.sum(axis=1) > 0).astype("int32")


def new_model(steps_per_execution=1):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return model


COMPILED = {}


def small_model(steps_per_execution=1):
    """The same network each time, compiled once: most of a test's time is that."""
    if steps_per_execution not in COMPILED:
        model = new_model(steps_per_execution)
        model.optimizer.build(model.trainable_variables)
        start = [(v, v.numpy()) for v in model.variables + model.optimizer.variables]
        COMPILED[steps_per_execution] = model, start
    model, start = COMPILED[steps_per_execution]
    for variable, value in start:
        variable.assign(value)
    return model


def fit(*callbacks, model=None, epochs=4, verbose=0, **arguments):
    x, y = small_data()
    model = model or small_model()
    return model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        verbose=verbose,
        shuffle=False,
        callbacks=list(callbacks),
        **arguments,
    )


class Inject(keras.callbacks.Callback):
    """Put chosen values in the logs of the epochs, and keep each epoch's weights."""

    def __init__(self, **columns):
        super().__init__()
        self.columns = columns
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        logs.update({name: values[epoch] for name, values in self.columns.items()})
        self.weights.append(self.model.get_weights())


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# ----------------------------------------------------------------- when a run stops


def test_fit_stops_at_the_end_of_the_epoch_that_reaches_the_validation_value():
    stopping = ThresholdStopping("val_accuracy", 0.8)  # "auto" is max, by Keras
    inject = Inject(val_accuracy=[0.5, 0.8, 0.9, 0.9])
    history = fit(inject, stopping, validation_data=small_data())
    assert history.epoch == [0, 1]
    assert (stopping.stop.epoch, stopping.stop.step) == (1, 2 * STEPS)


def test_auto_follows_keras_for_a_metric_that_should_fall():
    model = new_model()
    model.compile("sgd", "mse", metrics=[keras.metrics.MeanAbsoluteError(name="mae")])
    x, _ = small_data()
    stopping = ThresholdStopping("mae", 0.3)
    inject = Inject(mae=[0.9, 0.4, 0.3, 0.2])
    history = model.fit(x, x[:, :2], epochs=4, verbose=0, callbacks=[inject, stopping])
    assert history.epoch == [0, 1, 2]


def test_auto_has_no_rule_for_a_name_that_keras_does_not_know():
    inject = Inject(score=[0.1] * 4)
    with pytest.raises(ValueError, match="Keras has none for 'score'"):
        fit(inject, ThresholdStopping("score", 0.5))


class Share(keras.metrics.Mean):
    """A metric of the user's own, with a direction by Keras's rule."""

    _direction = "up"

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(y_pred, sample_weight)


def mean_of_outputs(y_true, y_pred):
    return keras.ops.mean(y_pred)


@functools.cache
def two_outputs():
    """A model with the outputs `a` and `b`, compiled once."""
    inputs = keras.Input((4,))
    outputs = [
        keras.layers.Dense(n, name=name)(inputs) for n, name in ((2, "a"), (1, "b"))
    ]
    model = keras.Model(inputs, outputs)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        "sgd",
        [crossentropy, "mse"],
        metrics=[["accuracy"], ["mae", Share(name="share"), mean_of_outputs]],
        weighted_metrics=[["accuracy"], []],
    )
    return model


def fit_two_outputs(callback, **values):
    """Three epochs of the model with two outputs, with injected values."""
    x, y = small_data()
    injected = {name: [value] * 3 for name, value in values.items()}
    data = {"x": x, "y": [y, x[:, :1]], "validation_data": (x, [y, x[:, :1]])}
    callbacks = [Inject(**injected), callback]
    return two_outputs().fit(**data, epochs=3, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize(
    ("monitor", "rises"),
    [
        ("val_a_accuracy", True),
        ("a_accuracy", True),
        ("val_a_weighted_accuracy", True),
        ("val_b_mae", False),
        ("val_b_share", True),
        ("val_a_loss", False),
        ("b_loss", False),
        ("val_loss", False),
    ],
)
def test_auto_knows_the_metrics_and_losses_of_each_output(monitor, rises):
    stopping = ThresholdStopping(monitor, 0.5)
    history = fit_two_outputs(stopping, **{monitor: 0.9 if rises else 0.1})
    assert history.epoch == [0]
    assert stopping.stop.message.endswith(">= 0.5." if rises else "<= 0.5.")
    # Negative control: on the other side of the threshold the run goes on.
    stopping = ThresholdStopping(monitor, 0.5)
    history = fit_two_outputs(stopping, **{monitor: 0.1 if rises else 0.9})
    assert history.epoch == [0, 1, 2]


def test_auto_has_no_rule_for_a_metric_of_an_output_without_a_direction():
    stopping = ThresholdStopping("val_b_mean_of_outputs", 0.5)
    with pytest.raises(ValueError, match="Keras has none for 'val_b_mean_of_outputs'"):
        fit_two_outputs(stopping)
    # Keras's own stopper has no rule for any name that begins with an output's.
    with pytest.raises(ValueError, match="isn't able to automatically determine"):
        fit_two_outputs(keras.callbacks.EarlyStopping("val_a_accuracy"))


def test_auto_takes_the_metric_of_the_name_and_not_another_one_of_the_same_class():
    # Keras's rule knows the bare name "score" twice, and takes the last.
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, outputs)
    falls = keras.metrics.MeanSquaredError(name="score")
    model.compile("sgd", "mse", metrics=[[Share(name="score")], [falls]])
    x, _ = small_data()
    both = ThresholdStopping(Reached("a_score", 0.5) & Reached("b_score", 0.5))
    inject = Inject(a_score=[0.9], b_score=[0.1])
    model.fit(x, [x[:, :1]] * 2, verbose=0, callbacks=[inject, both])
    assert both.stop.message.endswith("a_score = 0.9 >= 0.5 and b_score = 0.1 <= 0.5.")


@pytest.mark.parametrize("every", [1, 3, 10])
def test_fit_stops_inside_an_epoch(every):
    stopping = ThresholdStopping("loss", 100.0, every=every)
    history = fit(stopping)
    assert stopping.stop.step == every
    assert history.epoch == list(range(-(-every // STEPS)))


@pytest.mark.backend(*MANY_STEPS)
@pytest.mark.parametrize(
    ("steps_per_execution", "every", "expected"),
    # 3 does not divide the 8 batches of an epoch: its hooks come after 3, 6, 8.
    [(4, 3, 4), (4, 10, 12), (3, 9, 11)],
)
def test_fit_stops_at_the_first_execution_that_passes_the_multiple(
    steps_per_execution, every, expected
):
    stopping = ThresholdStopping("loss", 100.0, every=every)
    fit(stopping, model=small_model(steps_per_execution))
    assert stopping.stop.step == expected


def test_a_validation_inside_an_epoch_can_stop_it():
    validation = BatchValidation(small_data(), every=3, batch_size=ROWS)
    stopping = ThresholdStopping("val_loss", 100.0, count=2, every="validation")
    history = fit(validation, stopping)
    assert stopping.stop.step == 6
    assert history.history["val_loss"] == [stopping.stop.value]


def test_a_validation_between_two_batch_checks_is_not_waited_for():
    validation = BatchValidation(small_data(), every=3, batch_size=ROWS)
    rule = Reached("loss", 100.0) & Reached("val_loss", 100.0)
    stopping = ThresholdStopping(rule, every=2)
    fit(validation, stopping)
    assert stopping.stop.step == 6


def test_with_validation_freq_the_checks_follow_the_validations():
    stopping = ThresholdStopping("val_loss", 100.0, every="validation")
    history = fit(stopping, validation_data=small_data(), validation_freq=2)
    assert history.epoch == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "freq", "last"),
    [
        ({}, 2, 1),  # epochs 1, 3, 5 validate, counted from 0
        ({}, [3, 4], 2),
        ({"count": 2}, 2, 3),
        ({"count": 2, "every": "validation"}, 2, 3),
        ({"patience": 1, "min_delta": 1e9}, 2, 3),
        ({"threshold": -1.0, "within": 2}, 2, 3),
        ({"threshold": -1.0, "within": 2}, 1, 1),
        ({"threshold": -1.0, "divergence_threshold": 0.0}, 2, 1),
        ({"on_missing": "warn"}, 2, 1),
        ({"start_epoch": 2}, 2, 3),
    ],
)
def test_an_epoch_without_its_validation_is_no_check(arguments, freq, last):
    arguments = {"monitor": "val_loss", "threshold": 100.0} | arguments
    stopping = ThresholdStopping(**arguments)
    history = fit(
        stopping, validation_data=small_data(), validation_freq=freq, epochs=6
    )
    assert history.epoch[-1] == last


def test_values_of_the_validation_that_must_be_finite_are_awaited():
    stopping = ThresholdStopping(check_finite=["val_loss"])
    inject = Inject(loss=[0.1] * 4)
    history = fit(inject, stopping, validation_data=small_data(), validation_freq=2)
    assert history.epoch == [0, 1, 2, 3]


def test_a_wrong_name_is_refused_at_the_first_validation():
    inject = Inject()
    stopping = ThresholdStopping("val_los", 0.1, mode="min")
    data = {"validation_data": small_data(), "validation_freq": 2}
    with pytest.raises(ValueError, match=r"'val_los'.*Did you mean 'val_loss'"):
        fit(inject, stopping, **data)
    assert len(inject.weights) == 2  # the epochs that were trained
    # What a validation can't bring is not awaited, and only that is refused.
    rule = Reached("val_loss", 0.1) & Reached("acuracy", 0.9, "max")
    with pytest.raises(ValueError, match=r"monitors 'acuracy', which.*'accuracy'"):
        fit(inject, ThresholdStopping(rule), **data)
    assert len(inject.weights) == 3


@pytest.mark.parametrize(("freq", "refused"), [(4, False), (5, True), ([9], True)])
def test_a_validation_that_never_comes_is_an_error_in_the_first_epoch(freq, refused):
    inject = Inject()
    data = {"validation_data": small_data(), "validation_freq": freq}
    if refused:
        with pytest.raises(ValueError, match="no `validation_freq` above"):
            fit(inject, ThresholdStopping("val_loss", 0.0), **data)
    else:
        fit(inject, ThresholdStopping("val_loss", 0.0), **data)
    assert len(inject.weights) == (1 if refused else 4)


def test_a_batch_validation_that_is_due_in_a_later_epoch_is_awaited():
    validation = BatchValidation(small_data(), every=STEPS + 3, batch_size=ROWS)
    assert fit(validation, ThresholdStopping("val_loss", 100.0)).epoch == [0, 1]
    with pytest.raises(ValueError, match="Did you mean 'val_loss'"):
        fit(validation, ThresholdStopping("val_los", 100.0, mode="min"))
    assert len(validation.records) == 1
    # Negative control: after the stopper in the list, it can bring nothing.
    with pytest.raises(ValueError, match="There are no values of a validation"):
        fit(ThresholdStopping("val_loss", 100.0), validation)


@pytest.mark.parametrize("monitor", ["val_raw_accuracy", "val_accuracy"])
def test_the_raw_weights_values_are_no_validation_and_have_their_metrics_rule(monitor):
    model = new_model()
    model.compile(
        ExponentialMovingAverage(keras.optimizers.SGD(0.05)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    averages = EvaluateWithAverages(raw_validation_data=small_data())
    stopping = ThresholdStopping(monitor, 0.0)
    data = {"validation_data": small_data(), "validation_freq": 2}
    history = fit(averages, stopping, model=model, **data)
    # The raw weights are evaluated in every epoch, the averages in every second.
    assert history.epoch == ([0] if "raw" in monitor else [0, 1])
    assert ">= 0.0" in stopping.stop.message


# `pytest.warns` raises other warnings anew, without their module's filter.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_no_validation_at_all_is_told_at_the_end():
    stopping = ThresholdStopping("val_loss", 100.0, every="validation")
    with pytest.warns(UserWarning, match="never saw 'val_loss'"):
        fit(stopping, epochs=1)


def test_a_forgotten_validation_is_an_error_in_the_first_epoch():
    with pytest.raises(ValueError, match="give `fit` its `validation_data`"):
        fit(ThresholdStopping("val_loss", 0.1))


def test_a_nan_in_the_validation_stops_if_asked():
    inject = Inject(val_loss=[0.5, float("nan"), 0.5, 0.5])
    stopping = ThresholdStopping("loss", -1.0, check_finite=True)
    history = fit(inject, stopping, validation_data=small_data())
    assert history.epoch == [0, 1]
    assert stopping.stop.reason is StopReason.NONFINITE
    # Negative control: Keras's callback for it looks at `loss` only.
    inject = Inject(val_loss=[0.5, float("nan"), 0.5, 0.5])
    keras_callback = keras.callbacks.TerminateOnNaN()
    history = fit(inject, keras_callback, validation_data=small_data())
    assert history.epoch == [0, 1, 2, 3]


@pytest.mark.parametrize("every", ["epoch", 1])
def test_a_nan_can_end_fit_with_an_error(every):
    class Nan(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            logs["loss"] = float("nan")

        def on_epoch_end(self, epoch, logs=None):
            logs["loss"] = float("nan")

    guard = {"check_finite": True, "every": every}
    with pytest.raises(FloatingPointError, match="loss = nan is not finite"):
        fit(Nan(), ThresholdStopping(**guard, on_nonfinite="error"))
    # Negative control: the quiet stop, and a training whose values are finite.
    assert fit(Nan(), ThresholdStopping(**guard)).epoch == [0]
    stopping = ThresholdStopping(**guard, on_nonfinite="error")
    assert fit(stopping).epoch == [0, 1, 2, 3]


def test_a_run_that_has_not_reached_it_in_time_gives_its_best_weights_back():
    inject = Inject(loss=[0.7, 0.5, 0.9, 0.1])
    stopping = ThresholdStopping("loss", 0.4, within=3, restore="best")
    model = small_model()
    history = fit(inject, stopping, model=model)
    assert history.epoch == [0, 1, 2]
    assert history.params["stops"][0]["reason"] == StopReason.NOT_REACHED
    assert same(model.get_weights(), inject.weights[1])


def test_a_stop_stands_though_another_callback_clears_it_in_the_epoch():
    class Clear(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = False

    stopping = ThresholdStopping("loss", 100.0, every=3)
    assert fit(Clear(), stopping).epoch == [0]


# --------------------------------------------------------------- weights given back


@pytest.mark.parametrize(
    ("restore", "patience", "values", "kept"),
    [
        ("best", 0, [0.9, 0.7, 0.8, 0.85], 1),  # never reached: still the best
        ("best", 2, [0.9, 0.4, 0.5, 0.6], 1),
        ("best", 2, [float("nan"), 0.4, 0.3, 0.35], 2),
        ("reaching", 2, [0.9, 0.4, 0.3, 0.35], 1),
        ("reaching", 0, [0.9, 0.7, 0.8, 0.85], 3),  # never reached: the last
        (None, 2, [0.9, 0.4, 0.5, 0.6], 3),
    ],
)
def test_fit_ends_with_the_weights_asked_for(restore, patience, values, kept):
    inject = Inject(loss=values)
    stopping = ThresholdStopping("loss", 0.4, patience=patience, restore=restore)
    model = small_model()
    fit(inject, stopping, model=model)
    assert len(inject.weights) == 4
    matches = [same(model.get_weights(), weights) for weights in inject.weights]
    assert matches == [epoch == kept for epoch in range(4)]
    # What was restored can be trained and saved: nothing is aliased or deleted.
    fit(model=model, epochs=1)


def test_a_diverging_run_gives_the_best_weights_back():
    inject = Inject(loss=[0.5, 0.45, 9.0, 9.0])
    stopping = ThresholdStopping("loss", 0.4, divergence_threshold=5.0, restore="best")
    model = small_model()
    assert fit(inject, stopping, model=model).epoch == [0, 1, 2]
    assert same(model.get_weights(), inject.weights[1])


def test_the_reaching_weights_of_a_batch_are_those_after_that_batch():
    after = {}

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            after[len(after) + 1] = self.model.get_weights()

    model = small_model()
    stopping = ThresholdStopping(
        "loss", 100.0, every=3, patience=1, restore="reaching", min_delta=100.0
    )
    fit(Keep(), stopping, model=model)
    assert (stopping.reached_step, stopping.stop.step) == (3, 6)
    assert same(model.get_weights(), after[3])
    assert not same(model.get_weights(), after[6])


def test_a_resumed_run_restores_the_best_weights_of_its_first_part():
    values = [0.9, 0.2, 0.8, 0.7]
    model, inject = small_model(), Inject(loss=values)
    first = ThresholdStopping("loss", 0.1, restore="best")
    states = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: saved.append(first.get_state())
    )
    saved = []
    fit(inject, first, states, model=model, epochs=3)
    state = saved[-1]
    assert all(
        isinstance(value, np.ndarray) == name.startswith("weight_")
        for name, value in state.items()
    )
    second = ThresholdStopping("loss", 0.1, restore="best")
    second.set_state(state)
    rest = Inject(loss=values)
    fit(rest, second, model=model, epochs=4, initial_epoch=3)
    assert same(model.get_weights(), inject.weights[1])
    assert second.best == 0.2


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ThresholdStopping, {"threshold": 0.0}),
        (keras.callbacks.EarlyStopping, {"patience": 9}),
        (keras.callbacks.ReduceLROnPlateau, {"patience": 9}),
        (keras.callbacks.ModelCheckpoint, {"filepath": "best.weights.h5"}),
    ],
)
def test_a_resume_refuses_a_callback_that_monitors_something_else(
    tmp_path, monkeypatch, kind, arguments
):
    monkeypatch.chdir(tmp_path)

    def train(monitor, epochs):
        resume = ExactResume("run", every="epoch", verbose=0)
        callback = kind(monitor=monitor, **arguments)
        data = {"validation_data": small_data()}
        fit(callback, resume, epochs=epochs, **data)
        return resume.resumed_from

    assert train("loss", 1) is None
    with pytest.raises(ValueError, match=r"saved with monitor='loss'.*'val_loss'"):
        train("val_loss", 2)
    # Negative control, and the directory is free again.
    assert train("loss", 2) == (1, 0)


# ------------------------------------------------------------------ where it is told


def test_the_history_tells_the_stop_and_keeps_its_lists_of_floats():
    inject = Inject(loss=[0.9, 0.3, 0.1, 0.1])
    first = ThresholdStopping("loss", 0.4, name="good_enough")
    second = ThresholdStopping("loss", 0.35, name="very_good")
    other = ThresholdStopping("loss", 0.2, name="excellent")
    history = fit(inject, first, second, other)
    records = [Stop.from_dict(record) for record in history.params["stops"]]
    assert records == [first.stop, second.stop]
    assert [record.callback for record in records] == ["good_enough", "very_good"]
    assert other.stop is None
    assert set(history.history) == {"loss", "accuracy"}
    assert all(
        [type(value) for value in column] == [float, float]
        for column in history.history.values()
    )


def test_a_name_in_the_logs_of_each_epoch_tells_which_callback_stopped(tmp_path):
    inject = Inject(loss=[0.9, 0.3, 0.1, 0.1])
    good = ThresholdStopping("loss", 0.4, name="good", log_stop=True)
    best = ThresholdStopping("loss", 0.2, name="best", log_stop=True)
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    history = fit(inject, good, best, log)
    assert history.history["stopped_by_good"] == [0.0, 1.0]
    assert history.history["stopped_by_best"] == [0.0, 0.0]
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stopped_by_good"] for row in rows] == ["0.0", "1.0"]


@pytest.mark.backend("tensorflow")
@pytest.mark.needs("tensorboard")
def test_tensorboard_takes_the_logs_as_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopping = ThresholdStopping("loss", 100.0, name="good", log_stop=True)
    fit(stopping, keras.callbacks.TensorBoard(str(tmp_path)), epochs=2)
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    assert "epoch_stopped_by_good" in events.Tags()["tensors"]


def test_the_message_follows_the_verbosity_of_fit(capsys):
    inject = {"loss": [0.3]}
    fit(Inject(**inject), ThresholdStopping("loss", 0.4, progress=True), epochs=1)
    assert capsys.readouterr().out == ""
    stopping = ThresholdStopping("loss", 0.4)
    fit(Inject(**inject), stopping, epochs=1, verbose=2)
    assert capsys.readouterr().out.endswith(
        "threshold_stopping_loss stopped the run in epoch 1 (step 8): "
        "loss = 0.3 <= 0.4.\n"
    )
    fit(
        Inject(**inject), ThresholdStopping("loss", 0.4, verbose=0), epochs=1, verbose=2
    )
    assert "stopped" not in capsys.readouterr().out
    fit(Inject(**inject), ThresholdStopping("loss", 0.4, verbose=1), epochs=1)
    assert capsys.readouterr().out == stopping.stop.message + "\n"


def test_the_progress_bar_shows_the_distance(capsys):
    stopping = ThresholdStopping("loss", 0.25, progress=True)
    history = fit(Inject(loss=[0.75]), stopping, epochs=1, verbose=2)
    assert "loss_to_go: 0.5000" in capsys.readouterr().out
    assert history.history["loss_to_go"] == [0.5]


# ------------------------------------------------------------------ what it costs


@pytest.mark.backend("jax", "torch")
@pytest.mark.parametrize(
    ("arguments", "waits"),
    [({}, False), ({"every": "validation"}, False), ({"every": 100}, True)],
)
@pytest.mark.filterwarnings("ignore:threshold_stopping.*never saw")
def test_keras_does_not_wait_for_the_steps_logs(arguments, waits):
    # Keras hands a step's logs to its threads if no callback looks at them, and
    # waits for them on the main thread if one does (the negative control).
    class Spy(keras.callbacks.Callback):
        async_safe = True

        def __init__(self):
            super().__init__()
            self.threads = set()

        def on_train_batch_end(self, batch, logs=None):
            self.threads.add(threading.current_thread() is threading.main_thread())

    spy = Spy()
    fit(spy, ThresholdStopping("loss", 0.0, **arguments), epochs=1)
    assert spy.threads == {waits}


@pytest.mark.backend("jax")
@pytest.mark.parametrize("every", ["epoch", 1])
def test_no_check_pulls_the_models_state_back_from_jax(every):
    def moves(callback):
        model = new_model()
        count = 0
        # Keras 3.16 calls it `state_sync`, and keeps the older name beside it.
        name = "state_sync" if hasattr(model, "state_sync") else "jax_state_sync"
        sync = getattr(model, name)

        def counted():
            nonlocal count
            count += not model._jax_state_synced
            sync()

        setattr(model, name, counted)
        fit(callback, model=model, epochs=2)
        return count

    reader = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: reader.model
    )
    none = moves(keras.callbacks.Callback())
    assert moves(reader) > none  # negative control
    stopping = ThresholdStopping("loss", 0.0, every=every)
    # The first check asks Keras for its rule about the metric, once.
    assert moves(stopping) - none <= (1 if every == 1 else 0)


# ------------------------------------------------------ other places it must work in


def test_a_loop_of_ones_own_gets_the_same_answers():
    values = [0.9, 0.5, 0.4, 0.3]
    model, x = small_model(), small_data()[0]
    model(x)
    stopping = ThresholdStopping("loss", 0.4, restore="reaching", patience=1)
    stopping.set_model(model)
    stopping.on_train_begin()
    kept = []
    for epoch, value in enumerate([*values, 0.35]):
        model.set_weights([w + 1 for w in model.get_weights()])
        kept.append(model.get_weights())
        value = keras.ops.convert_to_tensor(value)
        if stopping.check({"loss": value}, epoch=epoch, step=10 * (epoch + 1)):
            break
    stopping.on_train_end()
    assert (stopping.stop.epoch, stopping.stop.step) == (4, 50)
    assert same(model.get_weights(), kept[2])
    assert not same(model.get_weights(), kept[4])


@pytest.mark.backend("tensorflow")
def test_a_gradient_tape_loop_stops():
    import tensorflow as tf

    w = tf.Variable(4.0)
    optimizer = keras.optimizers.SGD(0.25)
    stopping = ThresholdStopping("loss", 1.0)
    for step in range(100):
        with tf.GradientTape() as tape:
            loss = w * w  # halves w at each step: 16, 4, 1
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])
        if stopping.check({"loss": loss}, step=step + 1):
            break
    assert (stopping.stop.step, stopping.stop.value) == (3, 1.0)


@pytest.mark.backend("torch")
@pytest.mark.needs("keras_tuner")
def test_a_keras_tuner_trial_stops_and_the_given_callback_stays_untouched(tmp_path):
    import keras_tuner

    epochs = []
    counter = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epochs.append(epoch)
    )
    x, y = small_data()

    class Hyper(keras_tuner.HyperModel):
        def build(self, hp):
            hp.Float("nothing", 0.0, 1.0)
            return new_model()

        def fit(self, hp, model, *args, callbacks=(), **kwargs):
            return model.fit(*args, callbacks=[*callbacks, counter], **kwargs)

    tuner = keras_tuner.RandomSearch(
        Hyper(), "val_loss", max_trials=1, directory=tmp_path, overwrite=True
    )
    stopping = ThresholdStopping("val_loss", 100.0, count=2)
    tuner.search(
        x, y, epochs=5, validation_data=(x, y), verbose=0, callbacks=[stopping]
    )
    assert epochs == [0, 1]
    assert tuner.oracle.get_best_trials()[0].status == "COMPLETED"
    assert stopping.stop is None
    assert copy.deepcopy(stopping).condition == stopping.condition


REPLICAS = """
import numpy as np, keras, tensorflow as tf
from fmkit.callbacks import BatchValidation, ThresholdStopping
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = x.sum(axis=1, keepdims=True)
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(),
                              keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"])
kept = []
keep = keras.callbacks.LambdaCallback(
    on_epoch_end=lambda e, logs: kept.append(model.get_weights()))
validation = BatchValidation((x, y), every=4, batch_size=64)
epochs = ThresholdStopping("mae", -1.0, patience=1, restore="best", name="a")
batches = ThresholdStopping("val_loss", 1e9, count=3, every="validation", name="b")
history = model.fit(x, y, batch_size=8, epochs=5, verbose=0, shuffle=False,
                    callbacks=[keep, validation, epochs, batches])
assert history.epoch == [0, 1], history.epoch
assert batches.stop.step == 12 and epochs.stop is None
assert len(history.params["stops"]) == 1
maes = history.history["mae"]
best = kept[int(np.argmin(maes))]
assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), best))
print("done", validation.records[0]["val_loss"] > 0)
"""


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_two_mirrored_replicas_stop_together():
    result = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "done True\n", result.stderr[-2000:]
