"""What every public callback must do, whatever it does in `fit`."""

import copy
import json
import sys

import keras
import numpy as np
import pytest
from contracts import assert_complete, members
from resuming import StopAt, StopError

from fmkit import callbacks
from fmkit._commits import decode, encode
from fmkit.callbacks._resume._keeper import Keeper
from fmkit.data import Batches
from fmkit.optimizers import ExponentialMovingAverage
from fmkit.schedules import PolynomialDecay

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
HOOKS = [
    f"on_{kind}batch_{when}"
    for kind in ("", "train_", "test_", "predict_")
    for when in ("begin", "end")
]


class Row:
    """How to make a callback, and which batch hooks were asked for by making it so.

    Keras waits for the logs of each step if a callback has a hook of the end of a
    batch, so there is none unless the callback is there to look inside an epoch.
    """

    def __init__(self, make, hooks=(), counts=True):
        self.make, self.hooks = make, set(hooks)
        self.counts = counts  # whether its state changes from epoch to epoch


END = {"on_train_batch_end"}
BEGIN = {"on_train_batch_begin"}  # makes nobody wait
NOW = [0.0]  # seconds, one to a batch


def clock():
    return NOW[0]


ROWS = {
    "BatchValidation": Row(
        lambda folder: callbacks.BatchValidation((X, Y), every=2), END
    ),
    "EvaluateWithAverages": Row(
        lambda folder: callbacks.EvaluateWithAverages(), counts=False
    ),
    "ExactResume": Row(
        lambda folder: callbacks.ExactResume(folder / "run", every=2, verbose=0), BEGIN
    ),
    "Fingerprint": Row(
        lambda folder: callbacks.Fingerprint(folder / "steps.jsonl"), BEGIN | END
    ),
    "HyperparameterScheduler": Row(
        lambda folder: callbacks.HyperparameterScheduler(
            "momentum", PolynomialDecay(0.9, 9)
        ),
        counts=False,
    ),
    "LearningRateLogger": Row(
        lambda folder: callbacks.LearningRateLogger(), counts=False
    ),
    "LivePlot": Row(lambda folder: callbacks.LivePlot(folder / "curves.png")),
    "StepStopping": Row(lambda folder: callbacks.StepStopping(99), BEGIN),
    "ThresholdStopping": Row(
        lambda folder: callbacks.ThresholdStopping("loss", 1e-9, within=9)
    ),
    "TimeStopping": Row(lambda folder: callbacks.TimeStopping(9.0, clock=clock), BEGIN),
}
# The same with more asked for, and so with more to keep.
BUSY = {
    "LearningRateLogger": Row(lambda folder: callbacks.LearningRateLogger("step"), END),
    "EvaluateWithAverages": Row(
        lambda folder: callbacks.EvaluateWithAverages(batch_norm="average"), END
    ),
    "StepStopping": Row(lambda folder: callbacks.StepStopping(4), BEGIN),
    "ThresholdStopping": Row(
        lambda folder: callbacks.ThresholdStopping(
            "loss", 100.0, every=1, count=2, patience=9, restore="best"
        ),
        END,
    ),
    "TimeStopping": Row(lambda folder: callbacks.TimeStopping(4.0, clock=clock), BEGIN),
}
ALL = [
    pytest.param(row, id=f"{name}{kind}")
    for table, kind in ((ROWS, ""), (BUSY, "-busy"))
    for name, row in table.items()
]
# Those that keep something of their own; the state of ExactResume is its directory.
STATEFUL = [
    each
    for each in ALL
    if hasattr(getattr(callbacks, each.id.partition("-")[0]), "get_state")
]
every_callback = pytest.mark.parametrize("row", ALL)
every_callback_with_state = pytest.mark.parametrize("row", STATEFUL)


def new_model():
    """Return one small network, always with the same weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(2), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])
    sgd = keras.optimizers.SGD(0.01, momentum=0.5)
    model.compile(ExponentialMovingAverage(sgd), "mse", run_eagerly=True)
    return model


def tick(batch, logs=None):
    NOW[0] += 1.0


def fit(*given, model=None, calls=None, epochs=2, initial_epoch=0):
    """Fit on `Batches`, which ExactResume wants, with 3 steps in an epoch."""
    model = model or new_model()
    ticking = keras.callbacks.LambdaCallback(on_train_batch_begin=tick)
    model.fit(
        Batches(X, Y, batch_size=8, map=None),
        epochs=epochs,
        initial_epoch=initial_epoch,
        verbose=0,
        callbacks=[ticking, *given] if calls is None else calls,
    )
    return model


def test_every_public_callback_has_a_row():
    assert_complete(ROWS, members(callbacks, keras.callbacks.Callback))


# --- copies and states --------------------------------------------------------------


def public(callback):
    """Return what a user sees of a callback."""
    names = (n for n in vars(callback) if not n.startswith(("_", "on_")))
    return {name: repr(vars(callback)[name]) for name in names}


def assert_copies(row, folder):
    """Fail unless a copy taken before `fit` works and leaves its original alone."""
    original = row.make(folder)
    before = public(original)
    twin = copy.deepcopy(original)
    assert type(twin) is type(original)
    assert public(twin).keys() == before.keys()
    fit(twin)
    assert public(original) == before


@every_callback
def test_a_deep_copy_is_a_callback_of_its_own(row, tmp_path):
    assert_copies(row, tmp_path)


def stored(callback):
    """Return the state that comes back from a commit, and the bits that it becomes."""
    arrays = {}
    text = json.dumps(encode(callback.get_state(), arrays, "state"), sort_keys=True)
    bits = [(name, array.tobytes()) for name, array in sorted(arrays.items())]
    return decode(json.loads(text), arrays), (text, bits)


def assert_goes_on(row, folder):
    """Fail unless a run cut after an epoch, its state restored, ends as the whole."""
    whole, first, second = (row.make(folder) for _ in range(3))
    fit(whole)
    model = fit(first, epochs=1)
    state, cut = stored(first)
    second.set_state(state)
    fit(second, model=model, initial_epoch=1)
    assert stored(second)[1] == stored(whole)[1]
    if row.counts:
        assert stored(whole)[1] != cut  # or the test would show nothing
    # The state was restored for that `fit`, and not for the next one.
    fit(second)
    assert stored(second)[1] == stored(whole)[1]


@every_callback_with_state
def test_a_run_goes_on_from_a_state_in_json_and_arrays(row, tmp_path):
    assert_goes_on(row, tmp_path)


def assert_starts_afresh(row, folder):
    """Fail unless a second `fit`, of a network as new as the first, is as the first."""
    once, twice = row.make(folder), row.make(folder)
    for callback in (once, twice, twice):
        fit(callback)
    assert stored(twice)[1] == stored(once)[1]


@every_callback_with_state
def test_a_second_fit_starts_afresh(row, tmp_path):
    assert_starts_afresh(row, tmp_path)


# --- manners ------------------------------------------------------------------------


def own_hooks(callback):
    """Return the batch hooks that are not those of Keras's class."""
    base = keras.callbacks.Callback
    return {
        name
        for name in HOOKS
        if getattr(getattr(callback, name), "__func__", None) is not getattr(base, name)
    }


def assert_hooks(row, folder):
    """Fail unless it, and what it adds to the list, have the hooks asked for."""
    model, found = new_model(), set()

    def look(epoch, logs):
        found.update(*map(own_hooks, set(calls.callbacks) - {looking}))

    looking = keras.callbacks.LambdaCallback(on_epoch_begin=look)
    calls = keras.callbacks.CallbackList(
        [row.make(folder), looking], add_history=True, model=model
    )
    fit(model=model, calls=calls)
    assert found == row.hooks


@every_callback
def test_there_is_no_batch_hook_unless_asked_for(row, tmp_path):
    assert_hooks(row, tmp_path)


def run(how, model, calls):
    """Fit, evaluate or predict with a list of callbacks."""
    if how == "evaluate":
        model.evaluate(X, Y, verbose=0, callbacks=calls)
    elif how == "predict":
        model.predict(X, verbose=0, callbacks=calls)
    elif how == "fit":
        fit(model=model, calls=calls)
    else:
        with pytest.raises(StopError):
            fit(model=model, calls=calls)


def callback_list(row, folder, how):
    """Return a list of callbacks of which one is the row's."""
    around = [keras.callbacks.LambdaCallback() for _ in range(2)]
    error = [StopAt(0, 1)] if how == "error" else []
    return [around[0], row.make(folder), *error, around[1]]


def assert_left_as_found(get_held, how, calls, model):
    """Fail unless the list that `calls` is or has is as it was."""
    before = list(get_held())
    run(how, model, calls)
    assert get_held() == before


CHANGE_THE_LIST = (callbacks.LearningRateLogger, callbacks.ExactResume)
HOW = pytest.mark.parametrize("how", ["fit", "error", "evaluate", "predict"])


@HOW
@every_callback
def test_the_list_of_callbacks_is_left_as_found(row, how, tmp_path):
    calls = callback_list(row, tmp_path, how)
    assert_left_as_found(lambda: calls, how, calls, new_model())


def users_callback_list(row, folder, how, model):
    given = callback_list(row, folder, how)
    return keras.callbacks.CallbackList(given, add_history=True, model=model)


@HOW
@every_callback
def test_a_callback_list_of_the_users_own_is_left_as_found(row, how, tmp_path):
    model = new_model()
    calls = users_callback_list(row, tmp_path, how, model)
    if how == "error" and isinstance(calls.callbacks[1], CHANGE_THE_LIST):
        # Keras tells nobody of an exception: it is the next `fit` that clears up.
        run(how, model, calls)
        calls.callbacks = [c for c in calls.callbacks if not isinstance(c, StopAt)]
        before = {each for each in calls.callbacks if not isinstance(each, Keeper)}
        run("fit", model, calls)
        assert set(calls.callbacks) == before
        return
    assert_left_as_found(lambda: calls.callbacks, how, calls, model)


def assert_silent(row, folder, capfd):
    """Fail if anything is printed, by Python or beneath it."""
    fit(row.make(folder))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@every_callback
def test_with_verbose_0_nothing_is_printed(row, tmp_path, capfd):
    assert_silent(row, tmp_path, capfd)


# --- negative controls --------------------------------------------------------------


class Bad(keras.callbacks.Callback):
    """A callback that breaks each of the contracts."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def __deepcopy__(self, memo):
        return self

    def on_train_begin(self, logs=None):
        sys.stdout.write("hello\n")
        sys._getframe(1).f_locals["self"].callbacks.append(keras.callbacks.Callback())

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)

    def get_state(self):
        return {"batches": list(self.batches)}

    def set_state(self, state):
        pass


@pytest.mark.parametrize(
    "contract", [assert_copies, assert_goes_on, assert_starts_afresh, assert_hooks]
)
def test_a_bad_callback_breaks_the_contract(contract, tmp_path):
    with pytest.raises(AssertionError):
        contract(Row(lambda folder: Bad()), tmp_path)


@pytest.mark.parametrize("how", ["fit", "error"])
def test_a_callback_that_changes_the_list_breaks_the_contract(how, tmp_path):
    row, model = Row(lambda folder: Bad()), new_model()
    calls = users_callback_list(row, tmp_path, how, model)
    with pytest.raises(AssertionError):
        assert_left_as_found(lambda: calls.callbacks, how, calls, model)
    given = []
    empties = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: given.clear())
    given += callback_list(Row(lambda folder: empties), tmp_path, how)
    with pytest.raises(AssertionError):
        assert_left_as_found(lambda: given, how, given, model)


def test_a_callback_that_prints_breaks_the_contract(tmp_path, capfd):
    with pytest.raises(AssertionError):
        assert_silent(Row(lambda folder: Bad()), tmp_path, capfd)


def test_a_state_that_no_commit_can_hold_breaks_the_contract(tmp_path):
    class Unstorable(Bad):
        def get_state(self):
            return {"model": object()}

    with pytest.raises(TypeError):
        assert_starts_afresh(Row(lambda folder: Unstorable()), tmp_path)
