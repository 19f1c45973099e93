"""What averages must not cost: a second copy of the weights, a way through NumPy."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from fmkit.optimizers import ExponentialMovingAverage, averaged

SIZES = (37 * 41, 41)


def trained(optimizer):
    """One step of a network whose arrays have sizes that nothing else has."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((37,)), keras.layers.Dense(41)])
    model.compile(optimizer, "mse")
    weights = model.trainable_variables
    model.optimizer.apply([ops.ones(weight.shape) for weight in weights], weights)
    return model


def sizes_through_numpy(monkeypatch, action):
    """Sizes of the arrays that NumPy makes in `action` of what is not NumPy's."""
    sizes = []

    def spy(function):
        def wrapped(value, *args, **kwargs):
            with warnings.catch_warnings():
                # Keras's variables don't know the `copy` that NumPy asks for.
                warnings.simplefilter("ignore", DeprecationWarning)
                result = function(value, *args, **kwargs)
            if not isinstance(value, np.ndarray):
                sizes.append(np.size(result))
            return result

        return wrapped

    tensor = type(ops.ones(()))
    with monkeypatch.context() as patch:
        for name in ("array", "asarray", "ascontiguousarray"):
            patch.setattr(np, name, spy(getattr(np, name)))
        for name in ("__array__", "numpy"):
            if hasattr(tensor, name):
                patch.setattr(tensor, name, spy(getattr(tensor, name)))
        action()
    return set(sizes)


def test_a_swap_takes_no_array_through_numpy(monkeypatch):
    model = trained(ExponentialMovingAverage("sgd"))

    def swap():
        with averaged(model):
            ops.mean(model.weights[0])

    assert not set(SIZES) & sizes_through_numpy(monkeypatch, swap)
    # The spies do see an array that goes that way.
    assert set(SIZES) <= sizes_through_numpy(monkeypatch, model.get_weights)


@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_the_average_adds_exactly_one_copy_of_the_weights(inner):
    def count(optimizer):
        optimizer.build(weights)
        return sum(int(np.prod(v.shape)) for v in optimizer.variables if len(v.shape))

    model = keras.Sequential([keras.Input((37,)), keras.layers.Dense(41)])
    weights = model.trainable_variables
    plain = count(keras.optimizers.get(inner))
    ours = ExponentialMovingAverage(keras.optimizers.get(inner))
    assert count(ours) - plain == sum(SIZES)
    # Beside them stands a single number, the count of updates.
    own = set(map(id, ours.variables)) - set(map(id, ours.inner_optimizer.variables))
    assert len(own) == 1 + len(weights)
    half = ExponentialMovingAverage("sgd", exclude="bias")
    assert count(half) == count(keras.optimizers.SGD()) + SIZES[0]


@pytest.mark.backend("tensorflow")
def test_a_plain_average_adds_no_choice_between_arrays_to_the_step():
    """Start steps and intervals need masks; without them there must be none.

    Keras's `use_ema` has the same arithmetic: one subtraction or sum and one product
    for each weight, which XLA joins into one pass.
    """
    import tensorflow as tf

    def operations(**arguments):
        optimizer = ExponentialMovingAverage("sgd", **arguments)
        variable = keras.Variable(np.ones(SIZES[0], "float32"))
        optimizer.build([variable])
        graph = tf.function(
            lambda gradient: optimizer.apply([gradient]), autograph=False
        ).get_concrete_function(tf.ones(SIZES[0]))
        return [
            op.type
            for op in graph.graph.get_operations()
            if any(SIZES[0] in output.shape for output in op.outputs)
            and op.type not in ("ReadVariableOp", "Placeholder", "Identity")
        ]

    assert "SelectV2" not in operations()
    assert "SelectV2" in operations(start_step=3)
    # Two for the descent, three for the average, no more passes than that.
    assert len(operations()) <= 5, operations()


@pytest.mark.backend("torch")
def test_averages_moved_together_have_the_bits_of_each_moved_alone(monkeypatch):
    from fmkit.optimizers import WarmupRule, WeightAverages, _update

    def averages(largest):
        monkeypatch.setattr(_update, "_SMALL", largest)
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(7, dtype=kind) for kind in ("float64", "bfloat16")]
        model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(2)])
        model.compile(WeightAverages("sgd", [0.9, WarmupRule()]), "mse")
        x = np.random.default_rng(0).standard_normal((64, 5))
        model.fit(x, x[:, :2], batch_size=8, verbose=0)
        kept = model.optimizer.variables
        return [ops.convert_to_numpy(ops.cast(each, "float64")) for each in kept]

    calls = []
    whole = _update._move_in_place
    monkeypatch.setattr(
        _update, "_move_in_place", lambda *given: calls.append(0) or whole(*given)
    )
    together = averages(2**18)
    few = len(calls)
    alone = averages(0)
    assert few < len(calls) - few
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)
