"""Moving averages against TensorFlow 1, NumPy in float64 and hand arithmetic."""

import re

import keras
import numpy as np
import pytest
from bits import array, bits, state
from fresh_process import run_python
from keras import ops

from fmkit import schedules
from fmkit.optimizers import ExponentialMovingAverage, averaged, averaged_model

BACKEND = keras.backend.backend()


class Follow(keras.optimizers.Optimizer):
    """Puts each "gradient" into the weights, so that a test rules the trajectory."""

    def __init__(self, learning_rate=1.0, **kwargs):
        super().__init__(learning_rate, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, ops.cast(gradient, variable.dtype))


def weight(value, dtype="float32", name="w"):
    return keras.Variable(np.asarray(value, "float32"), dtype=dtype, name=name)


def compiled_step(optimizer, variable):
    """Return a function that makes one compiled step and returns the average."""
    optimizer.build([variable])
    if BACKEND == "jax":
        import jax

        step = jax.jit(lambda o, g, t: optimizer.stateless_apply(o, [g], t))
        state = [v.value for v in optimizer.variables], [variable.value]

        def follow(target):
            nonlocal state
            weights, variables = step(state[0], target, state[1])
            state = variables, weights
            index = [id(v) for v in optimizer.variables].index(
                id(optimizer.average(variable))
            )
            return variables[index]

        return follow

    def follow(target):
        optimizer.apply([target], [variable])
        return ops.copy(optimizer.average(variable))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(follow)
    import torch

    return torch.no_grad()(follow)


def averages_along(trajectory, start, **arguments):
    """The average after each step of `trajectory`, by the code under test."""
    variable = weight(start)
    follow = compiled_step(ExponentialMovingAverage(Follow(), **arguments), variable)
    return np.array(
        [array(follow(ops.convert_to_tensor(w, "float32"))) for w in trajectory]
    )


def averages_by_hand(
    trajectory,
    start,
    decay=0.99,
    num_updates="after",
    start_step=0,
    update_interval=1,
    zero_debias=False,
):
    """The same in float64, each average as an explicit sum of weights."""
    average = np.array(start, "float64")
    numerator, total, result = 0.0, 0.0, []
    for step, w in enumerate(np.asarray(trajectory, "float64"), start=1):
        count = step - start_step
        if count <= 0:
            average = w
        elif count % update_interval == 0:
            d = decay
            if num_updates is not None:
                n = count - (num_updates == "before")
                d = min(decay, (1 + n) / (10 + n))
            numerator = d * numerator + (1 - d) * w
            total = d * total + (1 - d)
            average = numerator / total if zero_debias else d * average + (1 - d) * w
        result.append(average)
    return np.array(result)


def walk(steps, size=5, seed=0):
    generator = np.random.default_rng(seed)
    path = generator.normal(1.0, 0.5, size) + np.cumsum(
        generator.normal(0, 0.02, (steps, size)), axis=0
    )
    return path.astype("float32")


# The rule.


def test_the_tutorials_table_to_all_printed_digits():
    variable = weight(0.0)
    optimizer = ExponentialMovingAverage(Follow(), 0.99, num_updates="before")
    optimizer.build([variable])
    count, seen = optimizer.variables[0], []
    for step, value in [(0, 1.0)] + [(100, 10.0)] * 7:
        count.assign(step)
        optimizer.apply([ops.convert_to_tensor(value)], [variable])
        seen.append(float(array(optimizer.average(variable))))
    expected = [
        0.9,
        1.6445453,
        2.3281732,
        2.955868,
        3.532206,
        4.061389,
        4.547275,
        4.9934072,
    ]
    np.testing.assert_allclose(seen, expected, rtol=6e-8)


def tensorflow_1_averages(trajectory, start, decay, num_updates):
    """TensorFlow 1's own class in a TensorFlow 1 graph, `n` read as said."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        target = v1.placeholder(tf.float32, start.shape)
        w = v1.get_variable("w", initializer=start, use_resource=True)
        step = v1.get_variable("step", initializer=0, use_resource=True)
        ema = v1.train.ExponentialMovingAverage(
            decay, None if num_updates is None else step
        )
        train = w.assign(target)
        if num_updates == "before":
            with tf.control_dependencies([train]):
                averaging = ema.apply([w])
            with tf.control_dependencies([averaging]):
                done = step.assign_add(1)
        else:
            with tf.control_dependencies([train]):
                increment = step.assign_add(1)
            with tf.control_dependencies([increment]):
                done = ema.apply([w])
        with tf.control_dependencies([done]):
            shadow = ema.average(w).read_value()
        session.run(v1.global_variables_initializer())
        return np.array([session.run(shadow, {target: value}) for value in trajectory])


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize(
    ("num_updates", "steps"),
    [
        pytest.param("after", 10_000, marks=pytest.mark.long),
        ("after", 500),
        ("before", 500),
        (None, 500),
    ],
)
def test_agrees_with_tensorflow_1_along_a_random_trajectory(num_updates, steps):
    start, trajectory = walk(1, seed=1)[0], walk(steps)
    expected = tensorflow_1_averages(trajectory, start, 0.99, num_updates)
    found = averages_along(trajectory, start, decay=0.99, num_updates=num_updates)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-6)
    # Negative control: read at the other moment, the count gives another average.
    other = {"after": "before", "before": "after", None: "after"}[num_updates]
    wrong = averages_by_hand(trajectory[:10], start, 0.99, other)
    assert np.abs(wrong - expected[:10]).max() > 1e-3


def test_keeps_a_long_average_to_float64s_value():
    start, trajectory = walk(1, seed=1)[0], walk(3000)
    found = averages_along(trajectory, start, decay=0.9999)
    expected = averages_by_hand(trajectory, start, 0.9999)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"zero_debias": True},
        {"zero_debias": True, "num_updates": None, "decay": 0.999},
        {"start_step": 7},
        {"start_step": 7, "zero_debias": True, "update_interval": 3},
        {"update_interval": 4},
        {"update_interval": 4, "start_step": 3, "num_updates": "before"},
        {"update_interval": 5, "zero_debias": True, "num_updates": "before"},
    ],
    ids=str,
)
def test_every_option_follows_its_formula(arguments):
    start, trajectory = walk(1, seed=1)[0], walk(40)
    found = averages_along(trajectory, start, **arguments)
    expected = averages_by_hand(trajectory, start, **arguments)
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)


def test_the_first_debiased_average_is_the_first_weight_to_the_bit():
    found = averages_along([[1e-6, 3.0]], [1e3, -1e3], zero_debias=True)
    assert np.array_equal(found[0], np.array([1e-6, 3.0], "float32"))


def test_the_decay_from_a_half_life_halves_the_past():
    optimizer = ExponentialMovingAverage.from_half_life("sgd", 10, update_interval=2)
    assert optimizer.decay**5 == pytest.approx(0.5, rel=1e-12)
    assert optimizer.update_interval == 2


def test_the_averages_start_as_copies_of_the_initial_weights():
    variable = weight([1.0, -2.0])
    optimizer = ExponentialMovingAverage("sgd", 0.9, num_updates=None)
    optimizer.build([variable])
    average = optimizer.average(variable)
    assert array(average).tolist() == [1.0, -2.0]
    optimizer.apply([ops.convert_to_tensor([100.0, 100.0])], [variable])
    # Weights 0 and -3 after a step of 0.01 · 100: an alias would show them.
    np.testing.assert_allclose(array(variable), [0.0, -3.0], atol=1e-6)
    np.testing.assert_allclose(array(average), [0.9, -2.1], rtol=1e-6)


def test_averages_of_half_precision_are_kept_in_float32():
    variable = weight([1.0], dtype="bfloat16")
    optimizer = ExponentialMovingAverage(Follow(), 0.999, num_updates=None)
    optimizer.build([variable])
    assert optimizer.average(variable).dtype == "float32"
    target = ops.cast(ops.convert_to_tensor([1.25]), "bfloat16")
    for _ in range(3):
        optimizer.apply([target], [variable])
    expected = 1.25 - 0.25 * 0.999**3
    np.testing.assert_allclose(array(optimizer.average(variable)), expected, rtol=1e-7)
    # Negative control: a bfloat16 average would not have moved at all.
    stuck = ops.cast(1.0, "bfloat16") + ops.cast(0.00025, "bfloat16")
    assert float(stuck) == 1.0


def test_excluded_variables_have_no_average():
    kernel, bias = weight([1.0], name="kernel"), weight([2.0], name="bias")
    optimizer = ExponentialMovingAverage(Follow(), exclude="bias$")
    optimizer.build([kernel, bias])
    optimizer.apply([ops.convert_to_tensor([5.0])] * 2, [kernel, bias])
    assert optimizer.average(bias) is None
    assert [w is kernel for w, _ in optimizer.averages] == [True]
    np.testing.assert_allclose(
        array(optimizer.average(kernel)), 1 + 4 * 9 / 11, rtol=1e-6
    )


def test_reset_starts_again_from_the_present_weights():
    variable = weight([1.0])
    optimizer = ExponentialMovingAverage(Follow(), zero_debias=True)
    optimizer.build([variable])
    for value in (5.0, 7.0):
        optimizer.apply([ops.convert_to_tensor([value])], [variable])
    assert optimizer.has_averages
    optimizer.reset_averages()
    assert array(optimizer.average(variable)).tolist() == [7.0]
    assert not optimizer.has_averages
    assert not any(array(v).any() for v in optimizer.variables[:2])


# Around other optimizers.


def tiny_model(optimizer=None, seed=0, norm=False, **compile_arguments):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((4,)), keras.layers.Dense(3, activation="relu")]
    layers += [keras.layers.BatchNormalization()] if norm else []
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    if optimizer is not None:
        model.compile(optimizer, "mse", **compile_arguments)
    return model


X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def fit(model, epochs=1):
    return model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1, clipnorm=0.5, momentum=0.9),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        lambda: keras.optimizers.RMSprop(
            schedules.ExponentialDecay(0.1, 2, 0.5, True), global_clipnorm=0.1
        ),
        lambda: keras.optimizers.SGD(
            0.1, gradient_accumulation_steps=3, loss_scale_factor=8.0
        ),
    ],
    ids=["clip", "weight_decay", "schedule", "accumulation"],
)
def test_the_wrapped_optimizer_trains_as_it_does_alone(make):
    results = []
    for optimizer in (make(), ExponentialMovingAverage(make())):
        variable = weight([[1.0, -2.0], [3.0, 0.5]])
        for step in range(7):
            gradient = ops.convert_to_tensor(walk(7, 4)[step].reshape(2, 2))
            optimizer.apply([gradient], [variable])
        results.append((bits([variable]), float(optimizer.learning_rate)))
        assert int(optimizer.iterations) == (2 if "3" in optimizer.name else 7) or (
            optimizer.gradient_accumulation_steps or results[0] == results[-1]
        )
        assert float(optimizer.scale_loss(ops.convert_to_tensor(1.0))) in (1.0, 8.0)
    assert results[0] == results[1]


def test_micro_steps_of_gradient_accumulation_do_not_count():
    variable = weight([0.0])
    optimizer = ExponentialMovingAverage(
        keras.optimizers.SGD(1.0, gradient_accumulation_steps=3), num_updates="after"
    )
    optimizer.build([variable])
    seen = []
    for _ in range(6):
        optimizer.apply([ops.convert_to_tensor([-1.0])], [variable])
        seen.append(float(array(optimizer.average(variable))[0]))
    # Weights go to 1 and then 2; the decays are 2/11 and 3/12.
    first = 9 / 11
    second = first * 3 / 12 + 2 * 9 / 12
    np.testing.assert_allclose(seen, [0, 0, first, first, first, second], rtol=1e-6)


@pytest.mark.backend("torch")
def test_within_a_stateless_scope_pytorchs_variables_stay_as_they_are():
    variable = keras.Variable([0.0])
    optimizer = ExponentialMovingAverage(Follow(), decay=0.5)
    optimizer.build([variable])
    optimizer.apply([ops.ones((1,))], [variable])
    held = [v.value.detach().clone() for v in optimizer.variables]
    scoped = [v + 0 for v in held]
    with keras.StatelessScope([*zip(optimizer.variables, scoped, strict=True)]) as s:
        optimizer.apply([ops.ones((1,)) * 3.0], [variable])
        (pair,) = optimizer.averages
        inside = array(s.get_current_value(pair[1]))
    assert bits(optimizer.variables) == bits(scoped) == bits(held)
    optimizer.apply([ops.ones((1,)) * 3.0], [variable])
    assert array(optimizer.averages[0][1]) == inside
    assert bits(optimizer.variables) != bits(held)


def test_a_step_skipped_by_the_loss_scale_leaves_the_averages_alone():
    model = tiny_model()
    optimizer = ExponentialMovingAverage(Follow())
    outer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
    model.compile(outer, "mse")
    outer.build(model.trainable_variables)
    good = [ops.ones(v.shape) * 4.0 for v in model.trainable_variables]
    bad = [*good[:-1], good[-1] * np.inf]

    def apply(gradients):
        if BACKEND != "jax":
            outer.apply(gradients, model.trainable_variables)
            return
        weights, variables = outer.stateless_apply(
            [v.value for v in outer.variables],
            gradients,
            [v.value for v in model.trainable_variables],
        )
        for v, value in zip(model.trainable_variables, weights, strict=True):
            v.assign(value)
        for v, value in zip(outer.variables, variables, strict=True):
            v.assign(value)

    apply(good)
    before = bits(average for _, average in optimizer.averages)
    apply(bad)
    assert bits(average for _, average in optimizer.averages) == before
    assert optimizer.updates == 1
    apply(good)
    assert optimizer.updates == 2
    assert bits(average for _, average in optimizer.averages) != before


def test_mixed_precision_trains_under_the_loss_scale_keras_adds():
    keras.config.set_dtype_policy("mixed_float16")
    model = tiny_model(ExponentialMovingAverage("sgd"))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    fit(model)
    raw = bits(model.weights)
    with averaged(model):
        assert bits(model.weights) != raw
    assert bits(model.weights) == raw


@pytest.mark.needs("MultiOptimizer")
def test_several_optimizers_in_one_are_averaged_together():
    def make():
        return keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                keras.optimizers.SGD(0.1), {"dense.*": keras.optimizers.Adam(0.01)}
            )
        )

    plain = tiny_model(make())
    fit(plain)
    model = tiny_model(ExponentialMovingAverage(make(), num_updates=None))
    start = [array(v) for v in model.trainable_variables]
    fit(model)
    for ours, theirs in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))
    for (_, average), old in zip(model.optimizer.averages, start, strict=True):
        assert not np.array_equal(array(average), old)


@pytest.mark.needs("MultiOptimizer")
def test_averaging_parts_of_several_optimizers_are_all_found():
    first = ExponentialMovingAverage(keras.optimizers.SGD(0.1))
    second = ExponentialMovingAverage(keras.optimizers.Adam(0.01))
    model = tiny_model()
    model.layers[1].name = "head"
    model.compile(
        keras.optimizers.MultiOptimizer(lambda v: first if v.ndim == 2 else second),
        "mse",
    )
    fit(model)
    raw = bits(model.weights)
    with averaged(model):
        assert all(a != b for a, b in zip(bits(model.weights), raw, strict=True))
    assert bits(model.weights) == raw


# Inside fit.


def test_two_fits_of_two_epochs_are_one_of_four_to_the_bit():
    results = []
    for parts in ([4], [2, 2]):
        model = tiny_model(ExponentialMovingAverage("adam", 0.9), norm=True)
        for epochs in parts:
            fit(model, epochs)
        results.append(bits(model.variables) + bits(model.optimizer.variables))
    assert results[0] == results[1]


@pytest.mark.backend("tensorflow", "jax")
def test_compiled_steps_in_groups_give_the_averages_of_single_ones():
    results = []
    for options in ({"jit_compile": True, "steps_per_execution": 4}, {}):
        model = tiny_model(ExponentialMovingAverage("sgd", 0.9), **options)
        fit(model, 2)
        results.append([array(a) for _, a in model.optimizer.averages])
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)


def test_fit_leaves_the_raw_weights_of_the_optimizer_alone():
    plain = tiny_model("sgd")
    model = tiny_model(ExponentialMovingAverage("sgd"))
    fit(plain, 2)
    fit(model, 2)
    for ours, theirs in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(array(ours), array(theirs), rtol=1e-6, atol=1e-7)


class AtBatch(keras.callbacks.Callback):
    """Calls `action(model)` at the end of one batch."""

    def __init__(self, batch, action, model):
        super().__init__()
        self.batch, self.action, self.mine = batch, action, model

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            # Not self.model, which Keras synchronises on JAX.
            self.action(self.mine)


def test_the_block_may_open_in_the_middle_of_an_epoch():
    seen = []

    def look(model):
        with averaged(model):
            seen.append(model.predict(X, verbose=0).sum())

    models = [tiny_model(ExponentialMovingAverage("sgd")) for _ in range(2)]
    models[0].fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    models[1].fit(
        X,
        Y,
        batch_size=8,
        shuffle=False,
        verbose=0,
        callbacks=[AtBatch(1, look, models[1])],
    )
    assert seen
    assert bits(models[0].variables) == bits(models[1].variables)
    assert bits(models[0].optimizer.variables) == bits(models[1].optimizer.variables)


@pytest.mark.backend("tensorflow")
def test_a_compiled_loop_of_ones_own_may_build_the_averages():
    import tensorflow as tf

    model = tiny_model()
    optimizer = ExponentialMovingAverage("sgd", num_updates=None)
    start = [array(v) for v in model.trainable_variables]

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        weights = model.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(loss, weights), weights, strict=True)
        )

    step(X, Y)
    for (w, average), old in zip(optimizer.averages, start, strict=True):
        expected = old + 0.01 * (array(w) - old)
        np.testing.assert_allclose(array(average), expected, rtol=1e-5, atol=1e-8)
    with optimizer.averaged(model):
        np.testing.assert_array_equal(
            array(model.weights[0]), array(optimizer.averages[0][1])
        )


# Models that fit builds, and variables that are not Keras's.


class Unbuilt(keras.Model):
    """A subclassed model, built by its first batch."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(8, "relu")
        self.dropout = keras.layers.Dropout(0.1)
        self.out = keras.layers.Dense(1)

    def call(self, x, training=None):
        return self.out(self.dropout(self.hidden(x), training=training))


def unbuilt_sequential():
    return keras.Sequential(Unbuilt().layers)


def fitted_from(make, *, built, wrapper=lambda o: o, **options):
    """Train the same model, built by hand before `compile`, or by `fit`."""
    keras.utils.set_random_seed(3)
    model = make()
    if built:
        model(X[:1])
    names = ("decay", "start_step", "zero_debias", "update_interval")
    own = {name: options.pop(name) for name in names if name in options}
    model.compile(wrapper(ExponentialMovingAverage("adam", **own)), "mse", **options)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model


def everything(model):
    return bits(model.variables) + bits(model.optimizer.variables)


COMPILED = [{"jit_compile": True}, {"jit_compile": False}, {"steps_per_execution": 3}]
# Where small steps cost less than the program that would hold them.
QUICK = {} if BACKEND == "jax" else {"run_eagerly": True}
OPTIONS = [
    {},
    {"run_eagerly": True},
    {"start_step": 3, **QUICK},
    {"zero_debias": True, "update_interval": 2, **QUICK},
    # There is neither XLA nor a program of several steps on PyTorch.
    *(COMPILED if BACKEND != "torch" else []),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [unbuilt_sequential, Unbuilt])
def test_a_model_that_fit_builds_has_the_averages_of_one_built_before(make, options):
    before, by_fit = (
        fitted_from(make, built=built, **options) for built in (True, False)
    )
    assert everything(by_fit) == everything(before)
    # Negative control: averages that start at zeros, not at the initial weights.
    if not options:
        keras.utils.set_random_seed(3)
        zeros = make()
        zeros(X[:1])
        zeros.compile(ExponentialMovingAverage("adam"), "mse")
        zeros.optimizer.build(zeros.trainable_variables)
        for _, average in zeros.optimizer.averages:
            average.assign(np.zeros(average.shape))
        fit(zeros, epochs=2)
        assert bits(zeros.weights) == bits(before.weights)
        assert everything(zeros) != everything(before)


def test_the_loss_scale_around_the_averages_of_a_model_that_fit_builds():
    keras.config.set_dtype_policy("mixed_float16")
    scaled = keras.optimizers.LossScaleOptimizer
    models = [
        fitted_from(unbuilt_sequential, built=built, wrapper=scaled)
        for built in (True, False)
    ]
    assert everything(models[0]) == everything(models[1])


def test_the_block_holds_the_averages_of_a_model_that_fit_builds():
    models = [fitted_from(Unbuilt, built=built) for built in (True, False)]
    outputs = []
    for model in models:
        with averaged(model):
            outputs.append(model.predict(X, verbose=0))
        raw = model.predict(X, verbose=0)
        assert raw.tobytes() != outputs[-1].tobytes()
    assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.backend("tensorflow")
def test_a_compiled_loop_of_ones_own_may_build_the_model_too():
    import tensorflow as tf

    def train(*, built):
        keras.utils.set_random_seed(3)
        model = unbuilt_sequential()
        if built:
            model.build((None, 4))
        optimizer = ExponentialMovingAverage("sgd", decay=0.5, num_updates=None)

        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)

        for rows in (8, 8, 4):  # traced once more for the last
            step(X[:rows], Y[:rows])
        return bits(model.variables) + bits(optimizer.variables)

    assert train(built=False) == train(built=True)


@pytest.mark.backend("tensorflow")
def test_averages_of_plain_tensorflow_variables():
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.a = tf.Variable([1.0, 2.0], name="a/w")
            self.b = tf.Variable(tf.constant([4.0], tf.float16))

    module = Module()
    optimizer = ExponentialMovingAverage(
        keras.optimizers.SGD(1.0), decay=0.5, num_updates=None
    )
    for _ in range(2):
        optimizer.apply(
            [tf.constant([1.0, 1.0]), tf.constant([1.0], tf.float16)],
            module.trainable_variables,
        )
    # By hand: 1, 0, -1 give (1 + 0)/2 = 0.5 and (0.5 - 1)/2 = -0.25; and so on.
    averages = [average for _, average in optimizer.averages]
    np.testing.assert_array_equal(array(averages[0]), [-0.25, 0.75])
    np.testing.assert_array_equal(array(averages[1]), [2.75])
    assert averages[1].dtype == "float32"
    assert averages[0].path.endswith("/a_w_0_average")
    assert optimizer.average(module.a) is averages[0]
    raw = bits([module.a, module.b])
    with optimizer.averaged(module):
        np.testing.assert_array_equal(module.a.numpy(), [-0.25, 0.75])
        np.testing.assert_array_equal(module.b.numpy(), [2.75])
    assert bits([module.a, module.b]) == raw
    with (
        pytest.raises(ValueError, match="different network"),
        optimizer.averaged(Module()),
    ):
        pass


@pytest.mark.backend("tensorflow")
def test_plain_tensorflow_variables_are_excluded_by_their_names():
    import tensorflow as tf

    kept, left = (tf.Variable([1.0], name=name) for name in ("kept", "left"))
    optimizer = ExponentialMovingAverage("sgd", exclude="^left:0$")
    optimizer.apply([tf.constant([1.0])] * 2, [kept, left])
    assert [weight is kept for weight, _ in optimizer.averages] == [True]
    assert optimizer.average(left) is None
    with pytest.raises(ValueError, match="no average of 'other:0'"):
        optimizer.average(tf.Variable([1.0], name="other"))


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("autograph", [True, False])
def test_averages_start_at_a_value_that_depends_on_the_first_argument(autograph):
    # TensorFlow can't initialise such a variable before the first step runs.
    import tensorflow as tf

    made = []
    optimizer = ExponentialMovingAverage(
        keras.optimizers.SGD(1.0), decay=0.5, num_updates=None
    )

    @tf.function(autograph=autograph)
    def step(start):
        if not made:
            made.append(tf.Variable(start[0] * 2.0))
        optimizer.apply([tf.constant(1.0)], made)

    found = []
    for rows in (1, 1, 2):  # traced once more for the last
        step(tf.fill([rows], 2.0))
        found.append(float(optimizer.averages[0][1]))
    # By hand: weights 4, 3, 2, 1; averages 4, 3.5, 2.75, 1.875.
    assert found == [3.5, 2.75, 1.875]


@pytest.mark.long
@pytest.mark.backend("tensorflow", "torch")
@pytest.mark.needs("keras_tuner")
def test_the_first_program_of_keras_tuners_documentation(tmp_path):
    import keras_tuner

    def scores(optimizer):
        def build_model(hp):
            model = keras.Sequential()
            units = hp.Choice("units", [8, 16, 32])
            model.add(keras.layers.Dense(units, activation="relu"))
            model.add(keras.layers.Dense(1))
            model.compile(optimizer(), loss="mse")
            return model

        keras.utils.set_random_seed(3)
        tuner = keras_tuner.RandomSearch(
            build_model,
            objective="val_loss",
            max_trials=2,
            directory=tmp_path,
            project_name=optimizer.__name__,
            seed=1,
        )
        tuner.search(X, Y, epochs=2, validation_data=(X, Y), verbose=0)
        # As the documentation goes on: again, from the best settings, on all data.
        best = build_model(tuner.get_best_hyperparameters(1)[0])
        history = best.fit(X, Y, epochs=1, shuffle=False, verbose=0)
        trials = tuner.oracle.trials.values()
        return [trial.score for trial in trials], history.history

    def averaging():
        return ExponentialMovingAverage("adam")

    assert scores(averaging) == scores(keras.optimizers.Adam)


# Swapping.


def trained():
    model = tiny_model(ExponentialMovingAverage("sgd"), norm=True)
    fit(model)
    return model


def test_a_thousand_swaps_change_no_bit():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    optimizer = ExponentialMovingAverage(Follow())
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    raw = np.array([[1e-6, 3e38], [-1e-6, -3e38], [0.0, -0.0], [1.1, 1e-45]], "float32")
    mean = np.array([[1e3, 3e38], [1e3, 3e38], [-0.0, 0.0], [1e-6, 7.0]], "float32")
    optimizer.variables[0].assign(1)
    model.weights[0].assign(raw)
    optimizer.averages[0][1].assign(mean)
    before = state(model)
    for _ in range(1000):
        with averaged(model):
            pass
    assert state(model) == before
    with averaged(model):
        assert array(model.weights[0]).tobytes() == mean.tobytes()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_block_gives_the_weights_back_after_an_exception(error):
    model = trained()
    before = state(model)

    def use():
        with averaged(model):
            assert state(model) != before
            model.weights[0].assign(ops.zeros(model.weights[0].shape))
            raise error

    with pytest.raises(error):
        use()
    assert state(model) == before


def test_nested_blocks_swap_once():
    model = trained()
    before = state(model)
    with averaged(model):
        inside = state(model)
        with averaged(model), model.optimizer.averaged(model):
            assert state(model) == inside
        assert state(model) == inside
    assert state(model) == before != inside


def test_the_block_holds_the_averages_for_evaluate_predict_and_save(tmp_path):
    model = trained()
    by_hand = tiny_model(norm=True)
    by_hand.set_weights(model.get_weights())
    for (w, average), target in zip(
        model.optimizer.averages, by_hand.trainable_variables, strict=True
    ):
        assert w.shape == target.shape
        target.assign(array(average))
    expected = by_hand.predict(X, verbose=0)
    with averaged(model) as same:
        assert same is model
        np.testing.assert_array_equal(model.predict(X, verbose=0), expected)
        model.save_weights(tmp_path / "averaged.weights.h5")
    assert not np.array_equal(model.predict(X, verbose=0), expected)
    plain = tiny_model(norm=True)
    plain.load_weights(tmp_path / "averaged.weights.h5")
    np.testing.assert_array_equal(plain.predict(X, verbose=0), expected)


def test_before_the_first_update_the_weights_stay():
    model = tiny_model(ExponentialMovingAverage("sgd", start_step=4))
    before = bits(model.variables)
    with averaged(model):  # not built
        assert bits(model.variables) == before
    fit(model)  # four updates: still none of the averages
    model.weights[0].assign(ops.zeros(model.weights[0].shape))
    before = bits(model.variables)
    with averaged(model):
        assert bits(model.variables) == before


def test_training_inside_the_block_is_refused():
    model = trained()
    before = bits(model.variables[:2])
    with (
        pytest.raises(RuntimeError, match="trained inside `with averaged"),
        averaged(model),
    ):
        fit(model)
    assert bits(model.variables[:2]) == before


def test_the_averaged_model_is_a_model_of_its_own():
    model = trained()
    before = state(model)
    copy = averaged_model(model)
    with averaged(model):
        expected = model.predict(X, verbose=0)
    np.testing.assert_array_equal(copy.predict(X, verbose=0), expected)
    assert copy.optimizer is None
    fit(model)
    np.testing.assert_array_equal(copy.predict(X, verbose=0), expected)
    copy.set_weights([w * 0 for w in copy.get_weights()])
    assert state(model) != before


@keras.saving.register_keras_serializable("fmkit_tests")
class Subclassed(keras.Model):
    def __init__(self, units=1, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return super().get_config() | {"units": self.units}


def test_a_subclassed_model_is_copied_by_its_config_or_refused():
    model = Subclassed(units=2)
    optimizer = ExponentialMovingAverage(keras.optimizers.SGD(0.1), decay=0.5)
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    copy = averaged_model(model)
    with averaged(model):
        assert bits(copy.variables) == bits(model.variables[: len(copy.variables)])
    # A config that leaves out what the variables' shapes depend on.
    model.get_config = lambda: {}
    with pytest.raises(ValueError, match="has different variables from the model"):
        averaged_model(model)


def test_the_averaged_model_of_a_subclass():
    model = Subclassed()
    model.compile(ExponentialMovingAverage("sgd"), "mse")
    fit(model)
    copy = averaged_model(model)
    with averaged(model):
        expected = model.predict(X, verbose=0)
    np.testing.assert_array_equal(copy.predict(X, verbose=0), expected)


# Saving.


FRESH = """
    import sys, numpy as np, keras
    import fmkit.optimizers
    from keras import ops
    folder = sys.argv[1]
    expected = np.load(folder + "/expected.npz")
    x, y = expected["x"], expected["y"]

    def check(model, tag):
        values = [*model.variables, *model.optimizer.variables]
        names = [n for n in expected if n.startswith("v")]
        assert len(values) == len(names), (tag, len(values), len(names))
        for name, value in zip(names, values):
            found = np.asarray(ops.convert_to_numpy(value))
            assert found.tobytes() == expected[name].tobytes(), (tag, name, value.path)
        with fmkit.optimizers.averaged(model):
            out = model.predict(x, verbose=0)
        assert out.tobytes() == expected["averaged"].tobytes(), tag
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        again = np.asarray(ops.convert_to_numpy(model.weights[0]))
        assert again.tobytes() == expected["next"].tobytes(), tag

    model = keras.models.load_model(folder + "/model.keras")
    check(model, "model")
    model.load_weights(folder + "/model.weights.h5")
    check(model, "weights")
    loss_scaled = keras.models.load_model(folder + "/scaled.keras")
    averages = loss_scaled.optimizer.inner_optimizer.averages
    for (_, average), index in zip(averages, range(99)):
        found = np.asarray(ops.convert_to_numpy(average))
        assert found.tobytes() == expected[f"scaled{index}"].tobytes(), index
    print("all", len(averages))
"""


@pytest.mark.long
def test_a_fresh_process_loads_weights_averages_and_slots_to_the_bit(tmp_path):
    model = tiny_model(
        ExponentialMovingAverage("adam", zero_debias=True, exclude="bias"), norm=True
    )
    fit(model)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    values = [array(v) for v in [*model.variables, *model.optimizer.variables]]
    arrays = {f"v{i:03}": value for i, value in enumerate(values)}
    with averaged(model):
        arrays["averaged"] = model.predict(X, verbose=0)
    fit(model)
    arrays["next"] = array(model.weights[0])

    scaled = tiny_model(
        keras.optimizers.LossScaleOptimizer(ExponentialMovingAverage("sgd"))
    )
    fit(scaled)
    scaled.save(tmp_path / "scaled.keras")
    inner = scaled.optimizer.inner_optimizer
    arrays |= {f"scaled{i}": array(a) for i, (_, a) in enumerate(inner.averages)}
    np.savez(tmp_path / "expected.npz", x=X, y=Y, **arrays)
    assert run_python(FRESH, str(tmp_path)).split() == ["all", "4"]


def test_averages_of_another_network_are_refused(tmp_path):
    model = trained()
    model.save_weights(tmp_path / "model.weights.h5")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(7)])
    other.compile(ExponentialMovingAverage("sgd"), "mse")
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match="averages to restore are of another network"):
        other.optimizer.set_weights([array(v) for v in model.optimizer.variables])
    store = {}
    model.optimizer.save_own_variables(store)
    with pytest.raises(ValueError, match="averages to restore are of another network"):
        other.optimizer.load_own_variables(store)
    with (
        pytest.raises(ValueError, match="averages are of a different network"),
        model.optimizer.averaged(other),
    ):
        pass


# Devices.


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_two_mirrored_replicas_keep_one_average():
    code = """
        import numpy as np, tensorflow as tf, keras
        from fmkit.optimizers import ExponentialMovingAverage, averaged
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2)
        x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        y = x.sum(axis=1, keepdims=True)

        def train(*start):
            keras.utils.set_random_seed(0)
            model = keras.Sequential([
                *start, keras.layers.Dense(3), keras.layers.Dense(1)])
            model.compile(ExponentialMovingAverage("sgd"), "mse")
            model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
            return model

        alone = train(keras.Input((4,)))
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = train(keras.Input((4,)))
            by_fit = train()  # built by fit
        for a, b in zip(model.variables + model.optimizer.variables,
                        by_fit.variables + by_fit.optimizer.variables):
            assert a.numpy().tobytes() == b.numpy().tobytes(), a.path
        for (_, a), (_, b) in zip(alone.optimizer.averages, model.optimizer.averages):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
        copies = lambda: [
            p.numpy().tobytes() for v in model.variables for p in v.value.values]
        raw = copies()
        with averaged(model):
            assert copies() != raw
            swapped = model.weights[0].value.values
            assert len(swapped) == 2
            for part in swapped:
                assert (part.numpy() == model.optimizer.averages[0][1].numpy()).all()
        assert copies() == raw
        print("same")
    """
    assert run_python(code).split()[-1] == "same"


@pytest.mark.long
@pytest.mark.backend("jax")
def test_sharded_and_replicated_weights_keep_their_layout_on_two_devices():
    code = """
        import numpy as np, jax, keras
        from fmkit.optimizers import ExponentialMovingAverage, averaged
        assert jax.device_count() == 2
        x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        y = x.sum(axis=1, keepdims=True)

        def train():
            keras.utils.set_random_seed(0)
            model = keras.Sequential([
                keras.Input((4,)), keras.layers.Dense(6, name="first"),
                keras.layers.Dense(1)])
            model.compile(ExponentialMovingAverage("sgd"), "mse")
            model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
            return model

        alone = train()
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh((2,), ["d"], devices)
        data = keras.distribution.DataParallel(device_mesh=mesh)
        layouts = keras.distribution.LayoutMap(mesh)
        layouts[".*first.*kernel"] = (None, "d")
        sharded = keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="d")
        for distribution in (data, sharded):
            keras.distribution.set_distribution(distribution)
            model = train()
            pairs = zip(alone.optimizer.averages, model.optimizer.averages)
            for (_, a), (w, b) in pairs:
                np.testing.assert_allclose(np.array(a), np.array(b), 1e-5, 1e-6)
                assert b.value.sharding == w.value.sharding, w.path
            raw = [np.array(v).tobytes() for v in model.variables]
            kinds = [v.value.sharding for v in model.variables]
            with averaged(model):
                assert [v.value.sharding for v in model.variables] == kinds
                model.evaluate(x, y, batch_size=8, verbose=0)
            assert [np.array(v).tobytes() for v in model.variables] == raw
        assert not kinds[0].is_fully_replicated
        print("same")
    """
    flags = "--xla_force_host_platform_device_count=2"
    assert run_python(code, XLA_FLAGS=flags).split()[-1] == "same"


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, "`decay` must be a finite number at least 0"),
        ({"decay": -0.1}, ValueError, "`decay`"),
        ({"decay": "0.9"}, TypeError, "`decay` must be a number"),
        ({"start_step": -1}, ValueError, "`start_step` must be at least 0"),
        ({"update_interval": 0}, ValueError, "`update_interval` must be at least 1"),
        ({"num_updates": "befor"}, ValueError, "Did you mean 'before'?"),
        ({"optimizer": "adamm"}, ValueError, "Did you mean 'adam'?"),
        ({"optimizer": {"a": 1}}, ValueError, "config of a Keras optimizer"),
        (
            {"optimizer": {"class_name": "Dense", "config": {"units": 1}}},
            ValueError,
            "config of a Keras optimizer",
        ),
        ({"optimizer": keras.optimizers.Adam}, TypeError, "Write Adam(), with"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_rule(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ExponentialMovingAverage(**({"optimizer": "sgd"} | arguments))


@pytest.mark.parametrize(
    "given",
    [
        None,
        3,
        object(),
        [keras.optimizers.SGD()],
        keras.losses.MeanSquaredError(),
        keras.layers.Dense(1),
        keras.optimizers.schedules.CosineDecay(0.1, 10),
        lambda: keras.optimizers.SGD(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_optimizer_is_refused_at_once(given):
    found = re.escape(f"({type(given).__name__})")
    message = rf"got optimizer=.*{found}. Write for instance .*'adam'"
    for make in (
        ExponentialMovingAverage,
        lambda given: ExponentialMovingAverage.from_half_life(given, 10),
    ):
        with pytest.raises(TypeError, match=message):
            make(given)


def test_the_name_and_the_config_of_an_optimizer_are_taken():
    # Negative control of the refusals: also of a class of one's own.
    config = keras.optimizers.serialize(keras.optimizers.Adam(0.25))
    for given, name in [("Adam", "Adam"), (config, "Adam"), (Follow(), "Follow")]:
        inner = ExponentialMovingAverage(given).inner_optimizer
        assert type(inner).__name__ == name


@pytest.mark.parametrize("given", [None, 3, keras.optimizers.SGD()])
def test_what_is_no_model_has_no_averages(given):
    for look in (averaged, averaged_model, ExponentialMovingAverage("sgd").averaged):
        with (
            pytest.raises(TypeError, match=r"`model` must be .*got"),
            look(given),
        ):
            pass


def test_an_optimizer_that_can_not_be_wrapped_is_refused():
    built = keras.optimizers.SGD()
    built.build([weight([1.0])])
    for optimizer, message in [
        (built, "must not be built"),
        (keras.optimizers.Adam(use_ema=True), "use_ema=True"),
        (ExponentialMovingAverage("sgd"), "Wrap once"),
        (
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
            "LossScaleOptimizer(ExponentialMovingAverage(optimizer))",
        ),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            ExponentialMovingAverage(optimizer)


def test_a_pattern_that_excludes_nothing_is_refused():
    optimizer = ExponentialMovingAverage("sgd", exclude=["kernal"])
    with pytest.raises(ValueError, match="'kernal', which matches no variable"):
        optimizer.build([weight([1.0], name="kernel")])


def test_a_model_without_averages_says_what_to_compile():
    model = tiny_model("adam")
    message = "ExponentialMovingAverage('adam', decay=0.99)"
    with pytest.raises(ValueError, match=re.escape(message)), averaged(model):
        pass
    with pytest.raises(ValueError, match=re.escape(message)):
        averaged_model(model)


def test_an_average_that_is_not_there_says_so():
    optimizer = ExponentialMovingAverage("sgd")
    with pytest.raises(ValueError, match="is not built"):
        optimizer.average(weight([1.0]))
    optimizer.build([weight([1.0])])
    with pytest.raises(ValueError, match="built for other variables"):
        optimizer.average(weight([1.0]))


@pytest.mark.backend("tensorflow")  # Python's own numbers
def test_the_decay_of_each_update_is_told():
    # By hand: (1 + n)/(10 + n) for n = 1, 2, ... and 0.5 from n = 8 on.
    warm = ExponentialMovingAverage("sgd", decay=0.5)
    assert [warm.decay_at(n) for n in (1, 2, 7, 8, 99)] == [
        2 / 11,
        0.25,
        8 / 17,
        0.5,
        0.5,
    ]
    before = ExponentialMovingAverage("sgd", decay=0.5, num_updates="before")
    assert before.decay_at(1) == 0.1
    late = ExponentialMovingAverage(
        "sgd", decay=0.5, num_updates=None, start_step=2, update_interval=2
    )
    assert [late.decay_at(n) for n in (1, 2, 3, 4)] == [0.0, 0.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="`update` must be at least 1"):
        late.decay_at(0)
