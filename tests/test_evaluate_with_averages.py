"""EvaluateWithAverages: who sees which weights, and that every bit comes back."""

import contextlib
import copy

import keras
import numpy as np
import pytest
from bits import array, bits, state
from resuming import Stateless, StopError, broken_and_resumed

from fmkit import callbacks
from fmkit.callbacks import EvaluateWithAverages, ExactResume
from fmkit.data import Batches
from fmkit.evaluation import update_batch_norm
from fmkit.optimizers import (
    EqualRule,
    ExponentialMovingAverage,
    WeightAverages,
    averaged,
    averaged_model,
)

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def make(norm=False, compiled=False, wrap=lambda optimizer: optimizer, **arguments):
    """A small model; eager, unless a test is about compiled steps, to save time."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(3)]
    if norm:
        # Without a seed: on PyTorch, dropout then draws from the global generator.
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    optimizer = ExponentialMovingAverage(keras.optimizers.SGD(0.05), **arguments)
    model.compile(wrap(optimizer), "mse", run_eagerly=not compiled)
    return model


def fit(model, callbacks=(), epochs=1, **arguments):
    keras.utils.set_random_seed(1)
    options = {"batch_size": 8, "shuffle": False, "validation_data": (X, Y)}
    return model.fit(
        X,
        Y,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        **(options | arguments),
    ).history


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


def holds_averages(model):
    pairs = model.optimizer.averages
    return all(np.array_equal(array(w), array(a)) for w, a in pairs)


# Who sees what.


def test_validation_and_checkpoints_see_the_averages_and_training_does_not(tmp_path):
    plain, model = make(compiled=True), make(compiled=True)
    raw = fit(plain, epochs=3)["val_loss"]
    # The place in the list doesn't matter.
    before, after = (
        keras.callbacks.ModelCheckpoint(
            tmp_path / name, save_best_only=best, monitor="val_loss"
        )
        for name, best in (("best.keras", True), ("last.keras", False))
    )
    callback = EvaluateWithAverages(raw_validation_data=(X, Y))
    history = fit(model, [before, callback, after], epochs=3)
    assert state(model) == state(plain)
    with averaged(plain):
        expected = plain.evaluate(X, Y, batch_size=8, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-6)
    # Both values stand in the logs, and they are not the same.
    np.testing.assert_allclose(history["val_raw_loss"], raw, rtol=1e-5)
    assert abs(raw[-1] - expected) > 1e-3 * expected
    for name, loss in (
        ("best.keras", min(history["val_loss"])),
        ("last.keras", expected),
    ):
        saved = keras.models.load_model(tmp_path / name)
        found = saved.evaluate(X, Y, batch_size=8, verbose=0)
        assert found == pytest.approx(loss, rel=1e-6)


def test_every_callback_finds_raw_weights_but_for_the_end_of_an_epoch(tmp_path):
    seen = {}

    class Look(keras.callbacks.Callback):
        def __getattribute__(self, name):
            if name.startswith(("on_epoch", "on_train_batch", "on_train_end")):
                return lambda *a, **k: self.look(name)
            return super().__getattribute__(name)

        def look(self, name):
            if self.model.optimizer.updates:
                seen.setdefault(name, []).append(holds_averages(self.model))

    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "last.weights.h5", save_weights_only=True
    )
    model = make()
    fit(
        model,
        [Look(), checkpoint, EvaluateWithAverages(), Look()],
        epochs=2,
        validation_data=None,
    )
    assert seen.pop("on_epoch_end") == [True] * 4
    assert {name: set(values) for name, values in seen.items()} == {
        "on_epoch_begin": {False},
        "on_train_batch_begin": {False},
        "on_train_batch_end": {False},
        "on_train_end": {False},
    }
    expected = bits(averaged_model(model).weights)
    assert bits(model.weights) != expected
    model.load_weights(tmp_path / "last.weights.h5")
    assert bits(model.weights) == expected


def test_evaluate_and_predict_see_the_averages_for_one_call():
    model = make()
    fit(model)
    before = state(model)
    copied = averaged_model(model)
    callback = EvaluateWithAverages()
    found = model.predict(X, verbose=0, callbacks=[callback])
    np.testing.assert_array_equal(found, copied.predict(X, verbose=0))
    assert state(model) == before
    for _ in range(2):
        loss = model.evaluate(X, Y, verbose=0, callbacks=[callback])
        expected = float(np.mean((found - Y) ** 2))
        assert loss == pytest.approx(expected, rel=1e-5)
        assert state(model) == before
    # Without the callback: the raw weights.
    assert abs(model.evaluate(X, Y, verbose=0) - expected) > 1e-3 * expected


def test_an_early_stop_leaves_the_raw_weights():
    plain, model = make(), make()
    fit(plain, epochs=2)
    stop = At("on_epoch_end", lambda m: setattr(m, "stop_training", True), nth=2)
    assert len(fit(model, [stop, EvaluateWithAverages()], epochs=5)["loss"]) == 2
    assert state(model) == state(plain)


def test_the_best_averages_that_early_stopping_restores_stay():
    model = make()
    early = keras.callbacks.EarlyStopping(
        monitor="val_loss", mode="max", patience=1, restore_best_weights=True
    )
    history = fit(model, [early, EvaluateWithAverages()], epochs=6)
    assert len(history["val_loss"]) == 2
    loss = model.evaluate(X, Y, batch_size=8, verbose=0)
    assert loss == pytest.approx(history["val_loss"][0], rel=1e-6)


def test_a_threshold_is_met_by_the_averages_and_their_weights_are_saved(tmp_path):
    values = fit(make(), [EvaluateWithAverages()], epochs=3)["val_loss"]
    raw = fit(make(), epochs=2)["val_loss"]
    assert raw[1] < values[1] < values[0]
    model = make()
    stopping = callbacks.ThresholdStopping("val_loss", values[1], mode="min")
    saved = keras.callbacks.ModelCheckpoint(
        tmp_path / "at.weights.h5", save_weights_only=True
    )
    found = fit(model, [stopping, saved, EvaluateWithAverages()], epochs=5)
    assert found["val_loss"] == values[:2]
    model.load_weights(tmp_path / "at.weights.h5")
    assert model.evaluate(X, Y, batch_size=8, verbose=0) == pytest.approx(
        values[1], rel=1e-6
    )


def test_predict_and_evaluate_inside_fit_change_no_bit():
    plain, model = make(), make()
    fit(plain, epochs=2)
    callback = EvaluateWithAverages()
    seen = []

    def judge(model):
        before = state(model)
        seen.append(holds_averages(model))
        model.predict(X, verbose=0)
        model.predict(X, verbose=0, callbacks=[callback])
        model.evaluate(X, Y, verbose=0, callbacks=[callback])
        assert state(model) == before

    hooks = ["on_train_batch_end", "on_epoch_begin", "on_test_begin", "on_epoch_end"]
    actors = [At(hook, judge, nth=2) for hook in hooks]
    fit(model, [*actors, callback], epochs=2)
    assert seen == [False, False, False, True]
    assert state(model) == state(plain)


def test_before_the_first_update_the_raw_weights_stay():
    raw = fit(make(start_step=4), epochs=2)["val_loss"]
    found = fit(make(start_step=4), [EvaluateWithAverages()], epochs=2)["val_loss"]
    assert found[0] == raw[0]
    assert found[1] != raw[1]


@pytest.mark.backend("tensorflow")  # the way through optimizers is Python's
def test_a_loss_scale_optimizer_may_stand_around_it():
    wrap = keras.optimizers.LossScaleOptimizer
    plain, model = make(wrap=wrap), make(wrap=wrap)
    fit(plain)
    found = fit(model, [EvaluateWithAverages()])["val_loss"]
    assert state(model) == state(plain)
    with averaged(plain):
        expected = plain.evaluate(X, Y, batch_size=8, verbose=0)
    assert found == [pytest.approx(expected, rel=1e-6)]


# Exceptions. `caught` holds the traceback, and with it every frame of `fit`: as an
# interactive session does after Ctrl-C.


@pytest.fixture(scope="module")
def one_epoch():
    model = make()
    fit(model)
    return model


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        ("on_test_begin", KeyboardInterrupt),
        ("on_test_batch_end", KeyboardInterrupt),
        ("on_test_end", ValueError),
        ("on_epoch_end", ValueError),
        ("on_epoch_end", KeyboardInterrupt),
    ],
)
def test_the_raw_weights_are_back_after_an_exception_in_fit(hook, error, one_epoch):
    model = make()
    callback = EvaluateWithAverages()
    actor = At(hook, raising(error))
    first = error is ValueError  # once before the callback, once after it
    with pytest.raises(error) as caught:
        fit(model, [actor, callback] if first else [callback, actor])
    assert caught.tb is not None
    assert bits(model.trainable_variables) == bits(one_epoch.trainable_variables)
    assert not holds_averages(model)
    # And the same callback goes on to serve. On JAX Keras loses other variables by an
    # exception, with or without it.
    if BACKEND != "jax":
        assert state(model) == state(one_epoch)
    if (hook, error) == ("on_epoch_end", KeyboardInterrupt):
        again = fit(model, [callback])
        with averaged(model):
            loss = model.evaluate(X, Y, batch_size=8, verbose=0)
        assert again["val_loss"] == [pytest.approx(loss, rel=1e-6)]


class Broken(keras.utils.PyDataset):
    """Data whose third batch raises."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 2:
            raise OSError("disk")
        return X[:8], Y[:8]


def test_the_raw_weights_are_back_after_an_exception_in_a_call():
    model = make()
    fit(model)
    before = bits(model.trainable_variables)
    for method, kind, data in (
        ("evaluate", "test", (X, Y)),
        ("predict", "predict", [X]),
    ):
        for error in (ValueError("stop"), KeyboardInterrupt("stop")):
            seen = []
            actor = At(f"on_{kind}_batch_end", raising(error), nth=2)
            saw = At(
                f"on_{kind}_batch_end",
                lambda m, seen=seen: seen.append(holds_averages(m)),
            )
            with pytest.raises(type(error), match="stop") as caught:
                getattr(model, method)(
                    *data,
                    batch_size=8,
                    verbose=0,
                    callbacks=[saw, EvaluateWithAverages(), actor],
                )
            assert caught.tb is not None
            assert seen == [True]
            assert bits(model.trainable_variables) == before
    with pytest.raises(Exception, match="disk") as caught:
        model.evaluate(Broken(), verbose=0, callbacks=[EvaluateWithAverages()])
    assert caught.tb is not None
    assert bits(model.trainable_variables) == before


def test_ctrl_c_while_the_raw_weights_come_back_is_heeded_after():
    model = make()
    fit(model)
    before = state(model)
    presses = iter([True, True])

    class Bias:
        """A weight between others, at which Ctrl-C comes twice."""

        def assign(self, value):
            if next(presses, False):
                raise KeyboardInterrupt

    swap = model.optimizer.swap
    swap.put_in(model.optimizer.averages)
    assert holds_averages(model)
    swap.saved.insert(1, (Bias(), None))
    with pytest.raises(KeyboardInterrupt):
        swap.take_out()
    assert state(model) == before
    assert swap.saved is None
    assert next(presses, None) is None


# BatchNorm.


def statistics(model):
    layer = model.layers[1]
    return [array(layer.moving_mean), array(layer.moving_variance)]


def test_no_batch_norm_policy_changes_a_bit_of_training():
    plain = make(norm=True)
    fit(plain, epochs=2)
    for policy in ("average", "recompute", "copy")[
        : 3 if BACKEND == "tensorflow" else 2
    ]:
        model = make(norm=True)
        check_policy(model, policy)
        assert state(model) == state(plain)


def check_policy(model, policy):
    raw, seen = [], []
    gather = At("on_train_batch_end", lambda m: None)
    gather.on_train_batch_end = lambda *a, **k: raw.append(statistics(gather.model))
    look = At("on_epoch_end", lambda m: seen.append(statistics(m)), nth=2)
    data = {"batch_norm_data": (X, Y)} if policy == "recompute" else {}
    callback = EvaluateWithAverages(
        batch_norm=policy, raw_validation_data=(X, Y), **data
    )
    fit(model, [gather, look, callback], epochs=2)
    expected = raw[-1]
    if policy == "average":
        expected = raw[0]
        for n, now in enumerate(raw[1:], start=2):
            d = min(0.99, (1 + n) / (10 + n))
            expected = [d * a + (1 - d) * b for a, b in zip(expected, now, strict=True)]
    elif policy == "recompute":
        copied = averaged_model(model)
        update_batch_norm(copied, X)
        expected = statistics(copied)
    for found, right in zip(seen[0], expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
    if policy != "copy":
        assert not np.allclose(seen[0][1], raw[-1][1], rtol=1e-3)


# With others.


class Tracker(Stateless):
    """Raises at one training batch, counted over all epochs; `None` for never."""

    def __init__(self, stop):
        super().__init__()
        self.stop = stop
        self.batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.stop:
            raise StopError


def resumable(directory, order, stop=None):
    """One run of two epochs of four batches: model, history, checkpoint."""
    model = make(norm=True)
    path = directory / "best.weights.h5"
    show = EvaluateWithAverages(batch_norm="average")
    save = keras.callbacks.ModelCheckpoint(
        path, "val_loss", save_best_only=True, save_weights_only=True
    )
    resume = ExactResume(directory / "run", every="epoch", verbose=0)
    listed = [show, save, resume] if order == "first" else [resume, save, show]
    batches = Batches(X, Y, 8, map=None)
    history = model.fit(
        batches,
        epochs=2,
        verbose=0,
        validation_data=(X, Y),
        callbacks=[*listed, Tracker(stop)],
    ).history
    ends = state(model), history, show.get_state()["seen_updates"]
    statistics = bits(show.get_state()["statistics"])
    other = make(norm=True)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path)
    return *ends, statistics, bits(other.weights), resume.resumed_from


def test_a_run_goes_on_to_the_same_bits_after_a_commit_at_the_end_of_an_epoch(
    tmp_path, monkeypatch
):
    def broken_and_resumed(name, order):
        directory = tmp_path / name
        directory.mkdir()
        with pytest.raises(StopError):
            resumable(directory, order, stop=7)
        *ends, where = resumable(directory, order)
        assert where == (1, 0)
        return ends

    (tmp_path / "straight").mkdir()
    *straight, _ = resumable(tmp_path / "straight", "first")
    for order in ("first", "last"):
        assert broken_and_resumed(order, order) == straight
    # Negative control: a commit of what the model shows would not do.
    path = "fmkit.callbacks._resume._keeper.raw_weights"
    monkeypatch.setattr(path, contextlib.nullcontext)
    assert broken_and_resumed("control", "first")[0] != straight[0]


def test_a_copy_of_a_used_callback_serves_another_model():
    # Keras Tuner copies callbacks for each trial.
    callback = EvaluateWithAverages(batch_norm="average")
    plain, model = make(norm=True), make(norm=True)
    fit(plain)
    fit(make(norm=True), [callback])
    another = copy.deepcopy(callback)
    fit(model, [another])
    assert state(model) == state(plain)
    assert another.get_state()["seen_updates"] == 4


# Keras warns so of every optimizer: the tuner loads weights before the first step.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.backend("tensorflow")
@pytest.mark.needs("keras_tuner")
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
    # Negative control: it is not the score of the raw weights.
    raw = min(fit(make(decay=0.9), epochs=2)["val_loss"])
    assert abs(raw - trial.score) > 1e-3 * raw


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras, of any such
@pytest.mark.backend("tensorflow")
def test_works_on_data_of_unknown_length():
    import tensorflow as tf

    plain, model = make(), make()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
    arguments = {"epochs": 2, "verbose": 0, "validation_data": data, "shuffle": False}
    plain.fit(data, **arguments)
    history = model.fit(data, callbacks=[EvaluateWithAverages()], **arguments).history
    assert state(model) == state(plain)
    with averaged(plain):
        expected = plain.evaluate(data, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-6)


def test_a_list_of_the_users_own_serves_two_fits():
    plain, model = make(), make()
    for _ in range(2):
        fit(plain)
    history = keras.callbacks.History()
    callback = EvaluateWithAverages(raw_validation_data=(X, Y))
    calls = keras.callbacks.CallbackList(
        [callback, history], add_history=False, model=model
    )
    for _ in range(2):
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=calls)
    assert state(model) == state(plain)
    assert calls.epoch_end_contexts == [callback._epoch_end]


# Refusals.


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_a_model_without_averages_is_told_what_to_write(call):
    model = make()
    model.compile("adam", "mse")
    data = [X] if call == "predict" else [X, Y]
    with pytest.raises(ValueError, match=r"ExponentialMovingAverage\('adam'"):
        getattr(model, call)(*data, verbose=0, callbacks=[EvaluateWithAverages()])


def test_a_loop_of_ones_own_is_told_what_to_write():
    callback = EvaluateWithAverages()
    callback.set_model(make())
    for hook in (callback.on_train_begin, callback.on_test_begin):
        with pytest.raises(RuntimeError, match=r"with fmkit\.optimizers\.averaged"):
            hook()


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


def test_averaged_statistics_are_not_taken_over_by_another_policy():
    def show(policy):
        return EvaluateWithAverages(
            batch_norm=policy, batch_norm_data=X if policy == "recompute" else None
        )

    for old, new in (("average", "copy"), ("copy", "average")):
        with pytest.raises(ValueError, match=f"batch_norm='{old}', .*='{new}'"):
            show(new).set_state(show(old).get_state())
    # Negative control: the two that carry nothing may follow each other.
    for old, new in (("copy", "recompute"), ("average", "average")):
        show(new).set_state(show(old).get_state())


# Several averages.


def make_several(**arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    rules = [0.3, 0.9, EqualRule(start_step=2)]
    model.compile(WeightAverages(keras.optimizers.SGD(0.05), rules), "mse")
    return model


def test_each_average_is_logged_under_its_name_and_the_chosen_one_is_seen(tmp_path):
    model = make_several()
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "last.keras")
    with_averages = EvaluateWithAverages(which="swa", raw_validation_data=(X, Y))
    logs = fit(model, [with_averages, saved], epochs=2)
    names = {"loss", "val_loss", "val_raw_loss", "val_ema_0.3_loss", "val_ema_0.9_loss"}
    assert set(logs) == names
    expected = {"val_raw_loss": model.evaluate(X, Y, batch_size=32, verbose=0)}
    for name, key in (
        ("swa", "val_loss"),
        ("ema_0.3", "val_ema_0.3_loss"),
        ("ema_0.9", "val_ema_0.9_loss"),
    ):
        with averaged(model, name):
            expected[key] = model.evaluate(X, Y, batch_size=32, verbose=0)
    assert len(set(expected.values())) == 4
    for key, value in expected.items():
        assert logs[key][-1] == pytest.approx(value, rel=1e-5), key
    with averaged(model, "swa"):
        assert bits(keras.saving.load_model(tmp_path / "last.keras").variables) == bits(
            model.variables
        )


def test_the_best_of_all_weights_is_kept(tmp_path):
    model = make_several()
    path = tmp_path / "best.keras"
    keeper = EvaluateWithAverages(raw_validation_data=(X, Y), best=path)
    logs = fit(model, [keeper], epochs=4)
    results = {
        (name, epoch): value
        for name, key in (
            ("ema_0.3", "val_loss"),
            ("raw", "val_raw_loss"),
            ("ema_0.9", "val_ema_0.9_loss"),
            ("swa", "val_swa_loss"),
        )
        for epoch, value in enumerate(logs[key])
    }
    best = min(results, key=results.get)
    assert keeper.best_weights == best[0]
    assert keeper.best_value == results[best]
    loaded = keras.saving.load_model(path)
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(results[best], rel=1e-5)
    worst = EvaluateWithAverages(
        raw_validation_data=(X, Y), best=path, mode="max", monitor="val_loss"
    )
    fit(make_several(), [worst], epochs=4)
    assert worst.best_value == max(results.values())


def test_the_best_weights_survive_a_resume(tmp_path):
    def train(directory, *others):
        keeper = EvaluateWithAverages(
            batch_norm="average",
            raw_validation_data=(X, Y),
            best=directory / "best.keras",
        )
        resume = ExactResume(directory, every=2, verbose=0)
        model = make_several()
        model.fit(
            Batches(X, Y, 8, map=None),
            epochs=3,
            validation_data=(X, Y),
            verbose=0,
            callbacks=[keeper, resume, *others],
        )
        best = keras.saving.load_model(directory / "best.keras")
        return keeper.best_weights, keeper.best_value, state(model), bits(best.weights)

    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    straight = train(tmp_path / "once")
    assert broken_and_resumed(tmp_path / "twice", train, at=(2, 1)) == straight


def test_what_best_needs_is_said():
    with pytest.raises(ValueError, match=r"must end with '\.keras'"):
        EvaluateWithAverages(best="best.h5")
    with pytest.raises(ValueError, match="`best` needs monitor='val_accuracy'"):
        fit(
            make_several(),
            [EvaluateWithAverages(best="best.keras", monitor="val_accuracy")],
        )
    with pytest.raises(ValueError, match="keeps no average 'ema'"):
        fit(make_several(), [EvaluateWithAverages(which="ema")])


def test_a_stop_can_watch_any_of_the_averages():
    stop = callbacks.ThresholdStopping("val_ema_0.9_loss", 1e9)
    with_averages = EvaluateWithAverages(raw_validation_data=(X, Y))
    assert len(fit(make_several(), [with_averages, stop], epochs=3)["loss"]) == 1
