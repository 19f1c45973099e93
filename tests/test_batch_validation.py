"""BatchValidation: values of a validation inside an epoch, training undisturbed."""

import random

import keras
import numpy as np
import pytest

from fmkit.callbacks import BatchValidation

BATCH, ROWS = 8, 64


def small_data(seed=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 4)).astype("float32")
    return x, (x.sum(axis=1) > 0).astype("int32")


def new_model():
    """A network with dropout and running statistics, from one seed."""
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


COMPILED = []


def fit(*callbacks, epochs=2, shuffle=True, **arguments):
    """Train that network anew; it is compiled once, which is most of the time."""
    if not COMPILED:
        model = new_model()
        variables = model.variables + model.optimizer.variables
        # Copies: on JAX `numpy()` is a view of a buffer that training takes over.
        start = [(v, np.array(v.numpy())) for v in variables]
        # The first `fit` on JAX also draws an order for a batch to build with.
        model.fit(*small_data(), batch_size=BATCH, verbose=0)
        COMPILED.append((model, start))
    model, start = COMPILED[0]
    for variable, value in start:
        variable.assign(value)
    keras.utils.set_random_seed(7)
    x, y = small_data()
    history = model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        shuffle=shuffle,
        callbacks=list(callbacks),
        **arguments,
    )
    return model, history


class Record(keras.callbacks.Callback):
    """Keep the logs of each batch."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


def test_the_values_stand_in_the_logs_of_every_nth_batch():
    record = Record()
    validation = BatchValidation(small_data(1), every=5, batch_size=ROWS)
    _, history = fit(validation, record)
    having = [i + 1 for i, logs in enumerate(record.logs) if "val_loss" in logs]
    assert having == [5, 10, 15]
    assert [r["batch"] for r in validation.records] == [5, 10, 15]
    assert [r["epoch"] for r in validation.records] == [0, 1, 1]
    assert history.history["val_loss"] == [
        record.logs[4]["val_loss"],
        record.logs[14]["val_loss"],
    ]


def test_the_values_are_those_of_evaluate_at_that_moment():
    x, y = small_data(1)
    expected = []

    class Evaluate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                logits = self.model(x, training=False)
                logits = keras.ops.convert_to_numpy(logits).astype("float64")
                log_sum = np.log(np.exp(logits).sum(axis=1))
                expected.append(np.mean(log_sum - logits[np.arange(ROWS), y]))

    validation = BatchValidation((x, y), every=5, batch_size=ROWS)
    fit(Evaluate(), validation, epochs=1)
    assert validation.records[0]["val_loss"] == pytest.approx(expected[0], rel=1e-5)


class CarelessValidation(keras.callbacks.Callback):
    """What one writes at first: `evaluate` in the hook, and no more."""

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % 3 == 0:
            self.model.evaluate(*small_data(1), verbose=0)


def test_the_training_is_the_same_bit_for_bit():
    plain_model, plain = fit()
    expected = [variable.numpy() for variable in plain_model.variables]
    model, history = fit(BatchValidation(small_data(1), every=3))
    for name in ("loss", "accuracy"):
        assert history.history[name] == plain.history[name]
    for ours, theirs in zip(model.variables, expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
    # Negative control: without care the epoch's running metrics are lost.
    _, careless = fit(CarelessValidation())
    assert careless.history["loss"] != plain.history["loss"]


def test_the_generators_go_on_as_if_nothing_had_been():
    class Draw(keras.callbacks.Callback):
        """A validation that draws, as augmenting data do."""

        def on_test_begin(self, logs=None):
            random.random()
            np.random.random()

    def numbers(*callbacks):
        fit(*callbacks, epochs=1)
        return random.random(), np.random.random()

    drawing = BatchValidation(small_data(1), every=3, callbacks=[Draw()])
    assert numbers(drawing) == numbers()


@pytest.mark.backend("torch")
def test_a_torch_module_keeps_its_training_mode():
    modes = []

    class Mode(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            modes.append(self.model.training)

    fit(Mode(), BatchValidation(small_data(1), every=3), epochs=1)
    assert modes == [True] * 8
    # Negative control: `evaluate` by itself leaves the module in evaluation mode.
    modes.clear()
    fit(Mode(), CarelessValidation(), epochs=1)
    assert modes != [True] * 8


def test_fits_own_validation_has_the_last_word_on_the_epoch():
    first = BatchValidation(small_data(1), every=3)
    _, history = fit(first, validation_data=small_data(2), epochs=1)
    _, plain = fit(validation_data=small_data(2), epochs=1)
    assert history.history["val_loss"] == plain.history["val_loss"]
    assert history.history["val_loss"] != [first.records[-1]["val_loss"]]


def test_callbacks_of_the_validation_see_it_and_keep_their_parameters():
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append("begin")

        def on_test_end(self, logs=None):
            seen.append(sorted(logs))

        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.params["epochs"])

    spy = Spy()
    fit(BatchValidation(small_data(1), every=8, callbacks=[spy]), spy, epochs=1)
    assert seen == ["begin", ["accuracy", "loss"], 1]
    fit(BatchValidation(small_data(1), every=20, callbacks=[spy]), spy, epochs=3)
    assert seen[3:] == [3, 3, "begin", ["accuracy", "loss"], 3]


def test_steps_and_sample_weights_reach_the_validation():
    x, y = small_data(1)
    weight = np.zeros(ROWS, "float32")
    weight[: ROWS // 2] = 1.0
    half = BatchValidation((x, y), every=8, batch_size=ROWS // 2, steps=1)
    weighted = BatchValidation((x, y, weight), every=8, batch_size=ROWS)
    fit(half, weighted, epochs=1)
    # Zero weights halve the mean, which still divides by all the rows.
    assert 2 * weighted.records[0]["val_loss"] == pytest.approx(
        half.records[0]["val_loss"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "`every` must be at least 1"),
        ({"every": True}, TypeError, "`every` must be an integer"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"validation_data": iter([])}, TypeError, "can be read once: pass arrays"),
    ],
)
def test_a_refused_argument_says_why(arguments, error, message):
    good = {"validation_data": small_data(), "every": 1}
    with pytest.raises(error, match=message):
        BatchValidation(**(good | arguments))


def test_the_state_of_another_interval_is_refused():
    first = BatchValidation(small_data(1), every=5)
    fit(first, epochs=1)
    second = BatchValidation(small_data(1), every=7)
    with pytest.raises(ValueError, match=r"saved with every=5, but .* has every=7"):
        second.set_state(first.get_state())
    assert second.records == []
    # Negative control: other data for the same interval are the user's choice.
    third = BatchValidation(small_data(2), every=5, batch_size=4)
    third.set_state(first.get_state())
    assert third.records == first.records
