"""EvaluateWithAverages: who sees which weights, and that every bit comes back."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

from fmkit.callbacks import EvaluateWithAverages
from fmkit.evaluation import update_batch_norm
from fmkit.optimizers import ExponentialMovingAverage, averaged, averaged_model

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def array(value):
    return np.asarray(ops.convert_to_numpy(value))


def bits(values):
    return [array(value).tobytes() for value in values]


def state(model):
    return bits(model.variables) + bits(model.optimizer.variables)


def make(norm=False, **arguments):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(3)]
    if norm:
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    optimizer = ExponentialMovingAverage(keras.optimizers.SGD(0.05), **arguments)
    model.compile(optimizer, "mse")
    return model


def fit(model, callbacks=(), epochs=1, **arguments):
    return model.fit(
        X,
        Y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        validation_data=(X, Y),
        **arguments,
    )


class At(keras.callbacks.Callback):
    """Calls `action(model)` in one hook, the `nth` time it comes."""

    def __init__(self, hook, action, nth=1):
        super().__init__()
        self.calls = 0

        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == nth:
                action(self.model)

        setattr(self, hook, call)


def raising(error):
    def action(model):
        raise error

    return action


# Who sees what.


def test_validation_sees_the_averages_and_training_does_not():
    plain, model = make(), make()
    fit(plain, epochs=3)
    history = fit(model, [EvaluateWithAverages()], epochs=3).history
    assert state(model) == state(plain)
    with averaged(plain):
        expected = plain.evaluate(X, Y, batch_size=8, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-6)
    # Negative control: the raw weights have another loss.
    assert abs(plain.evaluate(X, Y, verbose=0) - expected) > 1e-3 * expected


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_checkpoint_holds_the_weights_that_were_scored(first, tmp_path):
    path = tmp_path / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, save_best_only=True, monitor="val_loss"
    )
    callbacks = [checkpoint, EvaluateWithAverages()]
    model = make()
    history = fit(model, callbacks if first else callbacks[::-1], epochs=3).history
    saved = keras.models.load_model(path)
    loss = saved.evaluate(X, Y, batch_size=8, verbose=0)
    assert loss == pytest.approx(min(history["val_loss"]), rel=1e-6)


def test_without_validation_a_checkpoint_holds_the_averages(tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "last.weights.h5", save_weights_only=True
    )
    model = make()
    model.fit(X, Y, verbose=0, callbacks=[checkpoint, EvaluateWithAverages()])
    expected = bits(averaged_model(model).weights)
    assert bits(model.weights) != expected
    saved = make()
    saved.load_weights(tmp_path / "last.weights.h5")
    assert bits(saved.weights) == expected


def test_every_callback_finds_the_raw_weights_at_the_next_epoch_and_batch():
    seen = []

    class Look(keras.callbacks.Callback):
        def look(self, *args, **kwargs):
            inner = self.model.optimizer
            seen.append(
                any(
                    np.array_equal(array(w), array(a)) and inner.updates
                    for w, a in inner.averages
                )
            )

        on_epoch_begin = on_train_batch_begin = on_train_end = look

    fit(make(), [Look(), EvaluateWithAverages(), Look()], epochs=2)
    assert len(seen) == 2 * (2 + 8 + 1)
    assert not any(seen)


def test_evaluate_and_predict_see_the_averages_for_one_call():
    model = make()
    fit(model)
    before = state(model)
    copied = averaged_model(model)
    found = model.predict(X, verbose=0, callbacks=[EvaluateWithAverages()])
    np.testing.assert_array_equal(found, copied.predict(X, verbose=0))
    assert state(model) == before
    callback = EvaluateWithAverages()
    for _ in range(2):
        loss = model.evaluate(X, Y, verbose=0, callbacks=[callback])
        expected = float(np.mean((found - Y) ** 2))
        assert loss == pytest.approx(expected, rel=1e-5)
        assert state(model) == before
    assert "test_function" in vars(model)
    assert not hasattr(model.test_function, "__wrapped__") or BACKEND == "tensorflow"


def test_an_early_stop_leaves_the_raw_weights():
    plain, model = make(), make()
    fit(plain, epochs=2)
    stop = At("on_epoch_end", lambda m: setattr(m, "stop_training", True), nth=2)
    fit(model, [stop, EvaluateWithAverages()], epochs=5)
    assert state(model) == state(plain)


def test_the_best_averages_that_early_stopping_restores_stay():
    model = make()
    early = keras.callbacks.EarlyStopping(
        monitor="val_loss", mode="max", patience=1, restore_best_weights=True
    )
    history = fit(model, [early, EvaluateWithAverages()], epochs=6).history
    assert len(history["val_loss"]) == 2
    loss = model.evaluate(X, Y, batch_size=8, verbose=0)
    assert loss == pytest.approx(history["val_loss"][0], rel=1e-6)


def test_predict_inside_fit_changes_no_bit():
    plain, model = make(), make()
    fit(plain, epochs=2)
    callback = EvaluateWithAverages()
    seen = []

    def predict(model):
        inner = model.optimizer
        before = state(model)
        seen.append(bits(model.weights) == bits(a for _, a in inner.averages))
        model.predict(X, verbose=0)
        model.predict(X, verbose=0, callbacks=[callback])
        model.evaluate(X, Y, verbose=0, callbacks=[callback])
        assert state(model) == before

    hooks = ["on_train_batch_end", "on_test_begin", "on_epoch_end", "on_epoch_begin"]
    actors = [At(hook, predict, nth=2) for hook in hooks]
    fit(model, [*actors, callback], epochs=2)
    assert seen == [False, False, True, True]
    assert state(model) == state(plain)


def test_both_values_stand_in_the_logs():
    model = make()
    losses = []

    def measure(model):
        losses.append(model.evaluate(X, Y, verbose=0))

    history = fit(
        model,
        [EvaluateWithAverages(raw_validation_data=(X, Y))],
        epochs=2,
    ).history
    plain = make()
    raw = fit(plain, epochs=2).history["val_loss"]
    np.testing.assert_allclose(history["val_raw_loss"], raw, rtol=1e-5)
    assert abs(history["val_loss"][0] - raw[0]) > 1e-3 * raw[0]
    assert state(model) == state(plain)


def test_before_the_first_update_the_raw_weights_stay():
    raw = fit(make(start_step=4), epochs=2).history["val_loss"]
    history = fit(make(start_step=4), [EvaluateWithAverages()], epochs=2).history
    assert history["val_loss"][0] == raw[0]
    assert history["val_loss"][1] != raw[1]


# Exceptions.


class Broken(keras.utils.PyDataset):
    """Data whose second batch raises."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 2:
            raise self.error
        return X[:8], Y[:8]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_end",
        "on_test_begin",
        "on_test_batch_begin",
        "on_test_batch_end",
        "on_test_end",
        "on_epoch_end",
        "on_epoch_begin",
    ],
)
def test_the_raw_weights_are_back_after_an_exception_in_fit(hook, error):
    plain, model = make(), make()
    nth = 2 if hook == "on_epoch_begin" else 1
    actor = At(hook, raising(error), nth=nth)
    reference = At(hook, raising(error), nth=nth)
    callback = EvaluateWithAverages()
    for each, callbacks in ((plain, [reference]), (model, [actor, callback])):
        with pytest.raises(error):
            fit(each, callbacks, epochs=2)
    # Looked at while the exception's traceback may still hold the frames of fit.
    assert bits(model.trainable_variables) == bits(plain.trainable_variables)
    assert "evaluate" not in vars(model) or hook == "on_train_batch_end"
    # And the same callback goes on to serve.
    if BACKEND != "jax":
        assert state(model) == state(plain)
        fit(plain)
        fit(model, [callback])
        assert state(model) == state(plain)
        assert "evaluate" not in vars(model)


@pytest.mark.parametrize("method", ["evaluate", "predict"])
@pytest.mark.parametrize("when", ["batch_begin", "batch_end"])
def test_the_raw_weights_are_back_after_an_exception_in_a_call(method, when):
    model = make()
    fit(model)
    before = bits(model.trainable_variables)
    kind = {"evaluate": "test", "predict": "predict"}[method]
    actor = At(f"on_{kind}_{when}", raising(ValueError("stop")), nth=2)
    with pytest.raises(ValueError, match="stop"):
        getattr(model, method)(
            X, batch_size=8, verbose=0, callbacks=[EvaluateWithAverages(), actor]
        )
    assert bits(model.trainable_variables) == before


def test_the_raw_weights_are_back_after_the_data_failed():
    model = make()
    fit(model)
    before = bits(model.trainable_variables)
    callback = EvaluateWithAverages()
    with pytest.raises(Exception, match="disk"):
        model.evaluate(Broken(OSError("disk")), verbose=0, callbacks=[callback])
    assert bits(model.trainable_variables) == before


# BatchNorm.


@pytest.mark.parametrize("policy", ["copy", "average", "recompute"])
def test_no_batch_norm_policy_changes_a_bit_of_training(policy):
    plain, model = make(norm=True), make(norm=True)
    fit(plain, epochs=2)
    data = {"batch_norm_data": X} if policy == "recompute" else {}
    fit(model, [EvaluateWithAverages(batch_norm=policy, **data)], epochs=2)
    assert state(model) == state(plain)


def statistics(model):
    layer = model.layers[1]
    return [array(layer.moving_mean), array(layer.moving_variance)]


def test_recomputed_statistics_are_those_of_update_batch_norm():
    model, seen = make(norm=True), []
    look = At("on_epoch_end", lambda m: seen.append(statistics(m)), nth=2)
    policy = EvaluateWithAverages(batch_norm="recompute", batch_norm_data=(X, Y))
    fit(model, [look, policy], epochs=2)
    copied = averaged_model(model)
    update_batch_norm(copied, X)
    for found, expected in zip(seen[0], statistics(copied), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(seen[0][1], statistics(model)[1], rtol=1e-3)


def test_averaged_statistics_follow_the_decays_of_the_weights():
    model, raw, seen = make(norm=True), [], []
    gather = At("on_train_batch_end", lambda m: None)
    gather.on_train_batch_end = lambda *a, **k: raw.append(statistics(gather.model))
    look = At("on_epoch_end", lambda m: seen.append(statistics(m)), nth=2)
    callback = EvaluateWithAverages(batch_norm="average")
    fit(model, [gather, look, callback], epochs=2)
    average = raw[0]
    for n, now in enumerate(raw[1:], start=2):
        d = min(0.99, (1 + n) / (10 + n))
        average = [d * a + (1 - d) * b for a, b in zip(average, now, strict=True)]
    for found, expected in zip(seen[0], average, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # What an exact resume carries.
    twin = EvaluateWithAverages(batch_norm="average")
    twin.set_state(callback.get_state())
    assert twin.get_state()["seen_updates"] == 8
    for a, b in zip(
        twin.get_state()["statistics"], callback.get_state()["statistics"], strict=True
    ):
        np.testing.assert_array_equal(a, b)


# With others.


def test_a_copy_of_a_used_callback_serves_another_model():
    # Keras Tuner copies callbacks for each trial.
    callback = EvaluateWithAverages(batch_norm="average")
    another = copy.deepcopy(callback)
    plain, model = make(norm=True), make(norm=True)
    fit(plain)
    fit(make(norm=True), [callback])
    fit(model, [another])
    assert state(model) == state(plain)


@pytest.mark.backend("tensorflow")
def test_keras_tuner_saves_the_weights_it_scores(tmp_path):
    import keras_tuner

    tuner = keras_tuner.RandomSearch(
        lambda hp: make(decay=hp.Fixed("decay", 0.9)),
        objective="val_loss",
        max_trials=1,
        directory=tmp_path,
        project_name="search",
    )
    tuner.search(
        X,
        Y,
        batch_size=8,
        epochs=2,
        validation_data=(X, Y),
        verbose=0,
        callbacks=[EvaluateWithAverages()],
    )
    (trial,) = tuner.oracle.get_best_trials()
    best = tuner.get_best_models()[0]
    loss = best.evaluate(X, Y, batch_size=8, verbose=0)
    assert loss == pytest.approx(trial.score, rel=1e-5)


@pytest.mark.backend("tensorflow")
def test_works_on_data_of_unknown_length():
    import tensorflow as tf

    plain, model = make(), make()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
    arguments = {"epochs": 2, "verbose": 0, "validation_data": data}
    plain.fit(data, **arguments)
    history = model.fit(data, callbacks=[EvaluateWithAverages()], **arguments).history
    assert state(model) == state(plain)
    with averaged(plain):
        expected = plain.evaluate(data, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-6)


# Refusals.


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_a_model_without_averages_is_told_what_to_write(call):
    model = make()
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match=r"ExponentialMovingAverage\('adam'"):
        getattr(model, call)(X, verbose=0, callbacks=[EvaluateWithAverages()])


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_norm": "recompute"},
        {"batch_norm": "copy", "batch_norm_data": X},
        {"batch_norm": "averages"},
    ],
    ids=str,
)
def test_a_batch_norm_policy_that_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match="`batch_norm"):
        EvaluateWithAverages(**arguments)
