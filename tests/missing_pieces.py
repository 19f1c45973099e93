"""Takes private pieces of Keras away, one at a time, and prints what fmkit says.

Run as a program, in a process of its own, with the names of the pieces.
"""

import importlib
import inspect
import json
import sys
import tempfile

import keras
import numpy as np
from keras.src.trainers.epoch_iterator import EpochIterator

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X[:, :1]

OWNERS = {
    "_enumerate_iterator": EpochIterator,
    "_get_iterator": EpochIterator,
    "callbacks": keras.callbacks.CallbackList,
    "_model": keras.callbacks.Callback,
    "_direction": keras.metrics.Metric,
    "_learning_rate": keras.optimizers.Optimizer,
    "_iterations": keras.optimizers.Optimizer,
    "_trainable_variables": keras.optimizers.Optimizer,
}


# From Keras 3.16 on; nothing of an older Keras asks for it.
PARTIAL = "keras.src.trainers.data_adapters.data_adapter_utils:PartialBatchList"

# Taking away


def hide(owner, name):
    """Let fmkit, and nobody else, find no attribute `name` in objects of `owner`."""
    found = owner.__getattribute__

    def without(self, asked):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if asked == name and caller.startswith("fmkit."):
            raise AttributeError(name)
        return found(self, asked)

    own = "__getattribute__" in vars(owner)
    owner.__getattribute__ = without

    def put_back():
        if own:
            owner.__getattribute__ = found
        else:
            del owner.__getattribute__

    return put_back


def rename_variable(method, name):
    """Give a local variable of a method of Keras's another name."""
    function = inspect.unwrap(getattr(keras.Model, method))
    code = function.__code__
    assert name in code.co_varnames
    names = tuple(f"moved_{v}" if v == name else v for v in code.co_varnames)
    function.__code__ = code.replace(co_varnames=names)
    return lambda: setattr(function, "__code__", code)


def take_from_module(name):
    module, _, attributes = name.partition(":")
    module, first = importlib.import_module(module), attributes.split(".")[0]
    if name == PARTIAL and not hasattr(module, first):
        return lambda: None
    found = getattr(module, first)
    delattr(module, first)
    return lambda: setattr(module, first, found)


def take_away(name):
    """Take a piece away, and return how to put it back."""
    if ":" in name:
        return take_from_module(name)
    if "(" in name:
        return rename_variable(*name.removesuffix(")").split("("))
    return hide(OWNERS.get(name, keras.Model), name)


# What needs them, and what does not


def model(optimizer="sgd", metrics=()):
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile(optimizer, "mse", metrics=list(metrics), run_eagerly=True)
    return made


def fit(callbacks=(), data=(X, Y), **arguments):
    made = model(**arguments)
    made.fit(*data, epochs=1, verbose=0, callbacks=list(callbacks))
    return made


def batches(fmkit):
    fit(data=(fmkit.data.Batches(X, Y, 4, map=None),))


def executions(fmkit):
    data = fmkit.data.Batches(X[:15], Y[:15], 4, map=None)
    assert len(list(data.get_jax_iterator(super_batch=3))) == 2


def resume(fmkit):
    with tempfile.TemporaryDirectory() as folder:
        fit([fmkit.callbacks.ExactResume(folder, verbose=0)])


def resume_batches(fmkit):
    data = fmkit.data.Batches(X, Y, 4, map=None)
    with tempfile.TemporaryDirectory() as folder:
        made = keras.Sequential([keras.layers.Dense(1)])
        made.compile("sgd", "mse")
        resume = fmkit.callbacks.ExactResume(folder, verbose=0)
        made.fit(data, verbose=0, callbacks=[resume])


def resume_with_print(fmkit):
    with tempfile.TemporaryDirectory() as folder:
        fit([fmkit.callbacks.ExactResume(folder)])


def resume_with_held_optimizer(fmkit):
    class Holds(keras.Sequential):
        pass

    made = Holds([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile("sgd", "mse")
    made.second = keras.optimizers.SGD()
    made.second.build(made.trainable_variables)
    with tempfile.TemporaryDirectory() as folder:
        resume = fmkit.callbacks.ExactResume(folder, verbose=0)
        made.fit(X, Y, verbose=0, callbacks=[resume])


def averages(fmkit):
    return fmkit.optimizers.ExponentialMovingAverage("sgd", 0.9)


def evaluate_averages(fmkit):
    made = fit(optimizer=averages(fmkit))
    made.evaluate(X, Y, verbose=0, callbacks=[fmkit.callbacks.EvaluateWithAverages()])


def predict_averages(fmkit):
    made = fit(optimizer=averages(fmkit))
    made.predict(X, verbose=0, callbacks=[fmkit.callbacks.EvaluateWithAverages()])


def averages_in_the_model(fmkit):
    with fmkit.optimizers.averaged(fit(optimizer=averages(fmkit))):
        pass


def log_rates(fmkit):
    fit([fmkit.callbacks.LearningRateLogger()])


def log_scheduled_rates(fmkit):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    optimizer = keras.optimizers.SGD(schedule)
    fit([fmkit.callbacks.LearningRateLogger()], optimizer=optimizer)


def direction(fmkit):
    fit([fmkit.callbacks.ThresholdStopping("mae", 0.0)], metrics=["mae"])


def draw(fmkit):
    keras.utils.clear_session()
    private = importlib.import_module("fmkit._keras_private")
    private.global_seed_variable(create=True)


def forget(fmkit):
    importlib.import_module("fmkit._keras_private").forget_global_seed()


def grid(fmkit):
    oracle = importlib.import_module("keras_tuner.oracles").GridSearchOracle()
    importlib.import_module("fmkit._keras_private").restore_grid(oracle)


def rest(fmkit):
    """Use one thing of each kind that no private piece is for, and train with them."""
    loss = fmkit.losses.crossentropy_from_logits([1], [[0.0, 0.0]])
    assert abs(float(keras.ops.sum(loss)) - np.log(2)) < 1e-6
    metric = fmkit.metrics.BrierScore(form="probabilities")
    assert float(metric([1], [[0.5, 0.5]])) == 0.5
    assert float(fmkit.schedules.ExponentialDecay(1.0, 1, 0.5)(3)) == 0.125
    assert fmkit.preprocess(np.full((1, 2), 255, "uint8"), [1])[0].max() == 1.0
    network = fmkit.models.linear(2, input_shape=(3,))
    network.compile("sgd", fmkit.losses.CrossentropyFromLogits(), run_eagerly=True)
    stop = fmkit.callbacks.ThresholdStopping("loss", 1e9, mode="min")
    history = network.fit(
        X, np.zeros(16, "int32"), batch_size=4, epochs=3, verbose=0, callbacks=[stop]
    )
    assert history.epoch == [0]
    assert stop.stop is not None


NEEDED_BY = {
    "keras.src.trainers.data_adapters.data_adapter:DataAdapter": batches,
    "keras.src.trainers.epoch_iterator:EpochIterator.__init__": batches,
    PARTIAL: executions,
    "_enumerate_iterator": batches,
    "_get_iterator": batches,
    "fit(epoch_iterator)": log_rates,
    "evaluate(epoch_iterator)": evaluate_averages,
    "predict(epoch_iterator)": predict_averages,
    "callbacks": log_rates,
    "_model": log_rates,
    "_initial_epoch": resume,
    "_symbolic_build": resume_batches,
    "_flatten_layers": resume,
    "_compile_config": resume,
    "_compile_metrics": direction,
    "_compile_loss": direction,
    "_direction": direction,
    "jax_state_sync": averages_in_the_model,
    "_learning_rate": log_rates,
    "_iterations": log_scheduled_rates,
    "_trainable_variables": resume_with_held_optimizer,
    "keras.src.backend.common.stateless_scope:in_stateless_scope": evaluate_averages,
    "keras.src.backend.common.global_state:get_global_attribute": draw,
    "keras.src.backend.common.global_state:set_global_attribute": forget,
    "keras.src.random.seed_generator:global_seed_generator": draw,
    "keras.src.utils.io_utils:print_msg": resume_with_print,
    "_compare": grid,
    "_ordered_ids": grid,
    "_populate_next": grid,
}


def attempt(action, fmkit):
    try:
        action(fmkit)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
        return [type(error).__name__, str(error)]
    return None


def fresh_fmkit():
    """Import fmkit as if for the first time."""
    for name in [n for n in sys.modules if n.split(".")[0] == "fmkit"]:
        del sys.modules[name]
    registered = keras.saving.get_custom_objects()
    for name in [n for n in registered if n.startswith("fmkit>")]:
        del registered[name]
    return importlib.import_module("fmkit")


def without(name):
    put_back = take_away(name)
    try:
        fmkit = fresh_fmkit()
        if ":" in name:
            put_back()  # for Keras, which asks its modules; fmkit has asked by now
        return {
            "needs it": attempt(NEEDED_BY[name], fmkit),
            "the rest": attempt(rest, fmkit),
        }
    finally:
        put_back()


def main():
    if any(NEEDED_BY[name] is grid for name in sys.argv[1:]):
        oracles = importlib.import_module("keras_tuner.oracles")
        OWNERS.update(
            dict.fromkeys(
                ("_compare", "_ordered_ids", "_populate_next"), oracles.GridSearchOracle
            )
        )
    found = {name: without(name) for name in sys.argv[1:]}
    fmkit = fresh_fmkit()  # the control: nothing is missing now
    for name in sys.argv[1:]:
        found[name]["put back"] = attempt(NEEDED_BY[name], fmkit)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
