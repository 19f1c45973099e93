"""What every loss, metric, schedule, optimizer and network must do.

Each kind has a table with one row per public member, which is found by import; most
tables are in the test file of the kind. A row has every argument away from its default:
a round trip of defaults would show nothing.
"""

import copy
import functools
import inspect
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from contracts import assert_complete, members, returning
from fresh_process import run_python
from keras import ops
from scipy.special import softmax
from test_losses import LABELS, LOGITS, LOSSES, ONE_HOT, REGULARIZERS, target_for
from test_metrics import METRICS, metric_of, targets_of
from test_models import NETWORKS, VARIANTS
from test_schedules import SCHEDULES

from fmkit import losses, metrics, models, optimizers, schedules

Schedule = keras.optimizers.schedules.LearningRateSchedule
RNG = np.random.default_rng(0)

OPTIMIZERS = {
    "ExponentialMovingAverage": lambda: optimizers.ExponentialMovingAverage(
        keras.optimizers.Adam(schedules.ExponentialDecay(0.1, 3, 0.5)),
        0.9,
        num_updates="before",
        zero_debias=True,
        start_step=3,
        update_interval=2,
        exclude=["bias"],
        name="mine",
    ),
    "WeightAverages": lambda: optimizers.WeightAverages(
        keras.optimizers.Adam(0.1),
        [
            optimizers.ExponentialRule(0.9, zero_debias=True),
            optimizers.WarmupRule(0.9, gamma=2, power=0.7, min_decay=0.1),
            optimizers.EqualRule(start_step=1, update_interval=2),
            optimizers.PowerRule(0.1),
        ],
        exclude=["bias"],
        name="mine",
    ),
    "Lookahead": lambda: optimizers.Lookahead(
        keras.optimizers.Adam(0.1), 4, 0.25, name="mine"
    ),
}
# On JAX each small operation of an eager step is compiled: once is enough.
TRAINED = [
    pytest.param(build, id=name, marks=pytest.mark.backend("tensorflow", "torch"))
    if name in ("small_resnet", "lenet5 of 1998")
    else pytest.param(build, id=name)
    for name, build in (NETWORKS | VARIANTS).items()
]


FOUND = {
    "losses": (LOSSES, members(losses, keras.losses.Loss)),
    "regularizers": (REGULARIZERS, members(losses, keras.regularizers.Regularizer)),
    "metrics": (METRICS, members(metrics, keras.metrics.Metric)),
    "schedules": (
        SCHEDULES,
        members(schedules, Schedule) | returning(schedules, "LearningRateSchedule"),
    ),
    "optimizers": (OPTIMIZERS, members(optimizers, keras.optimizers.Optimizer)),
    "networks": (NETWORKS, returning(models, "keras.Model")),
}


@pytest.mark.parametrize(("table", "found"), FOUND.values(), ids=FOUND)
def test_every_public_member_has_a_row(table, found):
    assert_complete(table, found)


def test_a_member_without_a_row_and_a_row_without_a_member_are_named():
    # Negative control.
    class New(keras.losses.Loss):
        pass

    module = SimpleNamespace(__all__=["New"], New=New)
    found = members(module, keras.losses.Loss)
    with pytest.raises(AssertionError, match=r"Give \['New'\] a row"):
        assert_complete({}, found)
    with pytest.raises(AssertionError, match=r"\['Old'\] in the table"):
        assert_complete({"New": New, "Old": New}, found)


# --- configs ------------------------------------------------------------------------


def numbers(x):
    return np.asarray(ops.convert_to_numpy(x))


def updated(metric):
    y = targets_of(type(metric).__name__, LABELS, 4)
    metric.update_state(y, softmax(LOGITS, axis=1))
    return numbers(metric.result())


def rates(schedule):
    return numbers(schedule(ops.convert_to_tensor(np.arange(0, 3000, 11))))


NAMES = ["kernel", "bias"]


def six_steps(optimizer):
    variables = [keras.Variable(np.ones(2, "float32"), name=n) for n in NAMES]
    gradient = ops.convert_to_tensor(np.array([1.0, -2.0], "float32"))
    for _ in range(6):
        optimizer.apply([gradient] * 2, variables)
    values = (*variables, *optimizer.variables)
    return np.concatenate([numbers(value).ravel() for value in values])


# Each with what its copies must compute alike.
WITH_CONFIG = {
    name: (make, use)
    for table, use in (
        (LOSSES, lambda loss: numbers(loss(target_for(loss), LOGITS))),
        (REGULARIZERS, lambda regularizer: numbers(regularizer(LOGITS))),
        (METRICS, updated),
        (SCHEDULES, rates),
        (OPTIMIZERS, six_steps),
    )
    for name, make in table.items()
}


# What a row may leave at its default.
OF_KERAS = {"name", "reduction", "dtype"}


def copies(made):
    """Return copies by config, by registered name and, where Keras can, by Python."""
    kind = type(made)
    config = json.loads(json.dumps(made.get_config()))
    assert keras.saving.get_registered_name(kind) == (
        f"fmkit>{kind.__name__.lstrip('_')}"
    )
    whole = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
    yield kind.from_config(config)
    yield keras.saving.deserialize_keras_object(whole)
    if not isinstance(made, keras.optimizers.Optimizer):  # Keras's own lose variables
        yield copy.deepcopy(made)


def assert_config_round_trip(make, use):
    made = make()
    config = made.get_config()
    for name, parameter in inspect.signature(type(made)).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD and name not in OF_KERAS:
            assert name in config, f"`{name}` is missing from the config."
            assert config[name] != parameter.default, f"`{name}` has its default."
    again = list(copies(made))
    expected = use(made)
    for each in again:
        assert type(each) is type(made)
        assert each.get_config() == config
        np.testing.assert_array_equal(use(each), expected)


@pytest.mark.parametrize(("make", "use"), WITH_CONFIG.values(), ids=WITH_CONFIG)
def test_copies_keep_every_argument_and_compute_the_same(make, use):
    assert_config_round_trip(make, use)


@keras.saving.register_keras_serializable("fmkit")
class Forgetful(keras.losses.Loss):
    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, y_true, y_pred):
        return self.scale * ops.mean(y_pred - y_true, axis=-1)


class Deceitful(Forgetful):
    def get_config(self):
        return super().get_config() | {"scale": 2.0}


def test_an_argument_that_is_not_kept_breaks_the_contract():
    # Negative control.
    def use(loss):
        return numbers(loss(ONE_HOT, LOGITS))

    with pytest.raises(AssertionError, match="`scale` is missing from the config"):
        assert_config_round_trip(lambda: Forgetful(3.0), use)
    keras.saving.register_keras_serializable("fmkit")(Deceitful)
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        assert_config_round_trip(lambda: Deceitful(3.0), use)


# --- precision, weights and masks ---------------------------------------------------


def assert_wide(loss, dtype):
    """Fail unless half-precision predictions are computed in float32."""
    half = ops.cast(LOGITS, dtype)
    cost = loss.call(target_for(loss), half)
    assert keras.backend.standardize_dtype(cost.dtype) == "float32"
    wide = loss.call(target_for(loss), ops.cast(half, "float32"))
    np.testing.assert_array_equal(numbers(cost), numbers(wide))


def per_example(name, **options):
    """Return the loss of a row of the table, or with defaults, without a reduction."""
    config = LOSSES[name]().get_config()
    config.pop("ignore_class", None)  # ignoring has weights of its own
    return getattr(losses, name).from_config(config | options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_predictions_are_computed_in_float32(name, dtype):
    assert_wide(LOSSES[name](), dtype)
    if name != "Pinball":  # four levels are for four columns
        assert_wide(getattr(losses, name)(), dtype)


def assert_weights_and_mask_count(make):
    """Fail unless weights multiply each cost and a masked position counts nothing."""
    loss, y = make(reduction=None), target_for(make())
    costs = numbers(loss(y, LOGITS))
    weight = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0], "float32")
    weighted = numbers(loss(y, LOGITS, sample_weight=weight))
    np.testing.assert_allclose(weighted, costs * weight, rtol=1e-6)
    assert not np.allclose(weighted, costs)
    kept = np.array([True, False, True, True, False, True])
    masked = ops.convert_to_tensor(LOGITS)
    keras.src.backend.common.masking.set_keras_mask(masked, ops.convert_to_tensor(kept))
    mean = numbers(make(reduction="sum_over_batch_size")(y, masked))
    np.testing.assert_allclose(mean, costs[kept].mean(), rtol=1e-6)
    assert not np.allclose(mean, costs.mean())


@pytest.mark.parametrize("name", LOSSES)
def test_sample_weights_multiply_and_masked_positions_do_not_count(name):
    assert_weights_and_mask_count(lambda **options: per_example(name, **options))


@pytest.mark.backend("torch")
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", None])
@pytest.mark.parametrize("name", LOSSES)
def test_on_pytorch_the_mean_has_the_bits_of_keras(name, reduction):
    by_keras = keras.losses.Loss.__call__
    loss = per_example(name, reduction=reduction)
    targets = np.asarray(target_for(loss))
    for rows in (1, 6, 6 * 1001):
        z = ops.convert_to_tensor(np.resize(LOGITS, (rows, LOGITS.shape[1])))
        y = np.resize(targets, (rows, *targets.shape[1:]))
        y = ops.convert_to_tensor(y)
        found = []
        for reduce in (loss.__call__, functools.partial(by_keras, loss)):
            own = z.detach().clone().requires_grad_()
            cost = reduce(y, own)
            cost.sum().backward()
            found.append((numbers(cost), numbers(own.grad)))
        for mine, kerass in zip(*found, strict=True):
            np.testing.assert_array_equal(mine, kerass, strict=True)


@pytest.mark.backend("torch")
def test_on_pytorch_only_the_plain_mean_leaves_keras_out(monkeypatch):
    def refuse(*_, **__):
        raise ZeroDivisionError

    z, y = ops.convert_to_tensor(LOGITS), ops.convert_to_tensor(LABELS)
    plain = losses.CrossentropyFromLogits()
    expected = numbers(plain(y, z))
    monkeypatch.setattr(keras.losses.Loss, "__call__", refuse)
    np.testing.assert_array_equal(numbers(plain(y, z)), expected)
    masked = ops.convert_to_tensor(LOGITS)
    keras.src.backend.common.masking.set_keras_mask(masked, ops.ones(6, "bool"))
    for made, inputs in (
        (plain, (y, z, np.ones(6))),
        (plain, (y, masked)),
        (plain, (LABELS, z)),
        (losses.CrossentropyFromLogits(reduction="sum"), (y, z)),
        (losses.CrossentropyFromLogits(ignore_class=-1), (y, z)),
    ):
        with pytest.raises(ZeroDivisionError):
            made(*inputs)


def test_a_loss_that_takes_the_mean_itself_breaks_the_contract():
    # Negative control.
    class Early(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.zeros((6,)) + ops.mean(y_pred - y_true)

    class Half(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.mean(y_pred, axis=-1)

    with pytest.raises(AssertionError):
        assert_weights_and_mask_count(Early)
    with pytest.raises(AssertionError, match="float16"):
        assert_wide(Half(), "float16")


def assert_sums_in_float32(make, y=LABELS):
    keras.config.set_dtype_policy("mixed_float16")
    metric, wide = make(dtype="float16"), make()
    assert metric.dtype == wide.dtype == "float32"
    half = ops.cast(LOGITS, "float16")
    metric.update_state(y, half)
    wide.update_state(y, ops.cast(half, "float32"))
    np.testing.assert_allclose(
        numbers(metric.result()), numbers(wide.result()), rtol=1e-6
    )


@pytest.mark.parametrize("name", METRICS)
def test_half_precision_never_narrows_the_sums_of_a_metric(name):
    y = targets_of(name, LABELS, 4)
    assert_sums_in_float32(lambda **options: metric_of(name, 4, **options), y)


def test_a_metric_that_sums_in_float16_breaks_the_contract():
    # Negative control.
    with pytest.raises(AssertionError):
        assert_sums_in_float32(keras.metrics.Mean)


@pytest.mark.parametrize("name", METRICS)
def test_masked_positions_count_as_if_they_were_not_there(name):
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    y, kept = np.array([[0, 1, 2], [2, 1, 0]]), tokens > 0
    embedding = keras.layers.Embedding(4, 3, mask_zero=True)
    model = keras.Sequential([keras.layers.Input((3,), dtype="int32"), embedding])
    # Not the shared generator: the accuracies of so few positions could be equal.
    model.set_weights([np.random.default_rng(4).standard_normal((4, 3))])
    z = numbers(model(tokens))

    def value(y, z, **options):
        metric = metric_of(name)
        metric.update_state(targets_of(name, y), z, **options)
        return float(metric.result())

    alone = value(y[kept], z[kept])
    assert value(y, model(tokens)) == pytest.approx(alone, rel=1e-5)
    weighted = value(y, z, sample_weight=kept.astype("float32"))
    assert weighted == pytest.approx(alone, rel=1e-5)
    assert value(y, z) != pytest.approx(alone, rel=1e-3)


# --- networks ----------------------------------------------------------------------

IMAGES = RNG.integers(0, 256, (4, 28, 28)).astype("float32") / 255


def assert_seeded(build):
    """Fail unless the start weights are a function of the seed."""
    one, same, other = (build(seed).get_weights() for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_seed_makes_the_weights_reproducible_and_another_changes_them(build):
    assert_seeded(build)


def assert_trains_every_weight(model):
    model.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)
    before = [numbers(w) for w in model.trainable_variables]
    outputs = model.output_shape[-1]
    model.train_on_batch(IMAGES, np.eye(4, outputs, dtype="float32"))
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert not np.array_equal(old, numbers(variable)), variable.path


@pytest.mark.parametrize("build", TRAINED)
def test_a_network_is_a_plain_model_of_which_a_step_moves_every_weight(build):
    model = build(1)
    assert not model.compiled
    assert type(model).__module__.startswith("keras.")
    assert_trains_every_weight(model)


def test_a_network_with_a_weight_of_no_use_or_without_a_seed_breaks_the_contract():
    # Negative control.
    inputs = keras.Input((28, 28))
    outputs = keras.layers.Dense(3, use_bias=True)(keras.layers.Flatten()(inputs))
    dead = keras.Model(inputs, ops.subtract(outputs, outputs))
    with pytest.raises(AssertionError, match="kernel"):
        assert_trains_every_weight(dead)
    with pytest.raises(AssertionError):
        assert_seeded(lambda seed: models.linear())


# --- files --------------------------------------------------------------------------

LOAD = """
import sys, keras, numpy as np
import fmkit
folder, *networks = sys.argv[1:]
data = np.load(f"{folder}/data.npz")
for name in networks:
    model = keras.models.load_model(f"{folder}/{name}.keras")
    assert np.array_equal(keras.ops.convert_to_numpy(model(data["images"])), data[name])
    assert model.name == data[f"{name}, its name"]
model = keras.models.load_model(f"{folder}/compiled.keras")
x, y = data["x"], [data[f"y{i}"] for i in range(len(model.outputs))]
print(*model.evaluate(x, y, verbose=0))
model.train_on_batch(x, y)
print(*keras.ops.convert_to_numpy(model.weights[0]).ravel().tolist())
"""


def compiled():
    """A model with every loss, regularizer, metric and optimizer, and its data."""
    made = [make() for make in LOSSES.values()]
    # Of each class would be a row of numbers.
    rows = METRICS | {"ClassAccuracy": lambda: metrics.ClassAccuracy(4)}
    scalars = [make() for make in rows.values()]
    inputs = keras.Input((3,))
    regularizer = REGULARIZERS["ConfidenceRegularizer"]()
    outputs = [
        keras.layers.Dense(4, activity_regularizer=None if i else regularizer)(inputs)
        for i in range(len(made) + 1)
    ]
    outputs[-1] = keras.layers.Softmax()(outputs[-1])  # the metrics' rows want it
    model = keras.Model(inputs, outputs)
    rate = SCHEDULES["join"]()
    model.compile(
        optimizers.ExponentialMovingAverage(keras.optimizers.SGD(rate)),
        # A function as a loss is saved by its registered name as well.
        [*made, losses.mean_squared_error_from_logits],
        metrics=[[]] * len(made) + [scalars],
        jit_compile=False,
    )
    y = [*map(target_for, made), ONE_HOT]
    return model, RNG.standard_normal((6, 3)).astype("float32"), y


# What is in a file does not depend on the backend; JAX compiles each small operation.
@pytest.mark.long
@pytest.mark.backend("tensorflow", "torch")
def test_a_fresh_process_loads_all_that_was_saved_without_custom_objects(tmp_path):
    arrays = {"images": IMAGES}
    for name, build in (NETWORKS | VARIANTS).items():
        network = build(1)
        network.save(tmp_path / f"{name}.keras")
        arrays[name] = numbers(network(IMAGES))
        arrays[f"{name}, its name"] = network.name
    model, x, y = compiled()
    model.train_on_batch(x, y)
    model.save(tmp_path / "compiled.keras")
    arrays |= {"x": x} | {f"y{i}": each for i, each in enumerate(y)}
    np.savez(tmp_path / "data.npz", **arrays)
    printed = run_python(LOAD, str(tmp_path), *NETWORKS, *VARIANTS)
    found, weights = (np.array(line.split(), float) for line in printed.splitlines())
    np.testing.assert_allclose(found, model.evaluate(x, y, verbose=0), rtol=1e-6)
    model.train_on_batch(x, y)
    np.testing.assert_allclose(weights, numbers(model.weights[0]).ravel(), rtol=1e-6)
