"""The losses as Keras sees them: targets, masks, dtypes, fit, refusals."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from scipy.special import log_softmax
from test_losses_exact import value_and_gradient

import fmkit
from fmkit import losses

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((6, 4)).astype("float32") * 3
LABELS = np.array([0, 3, 2, 1, 1, 0])
ONE_HOT = np.eye(4, dtype="float32")[LABELS]
NATS = -log_softmax(LOGITS.astype("float64"), axis=1)[np.arange(6), LABELS]


# One row per class, with every argument away from its default: tests/test_contracts.py.
LOSSES = {
    "AsymmetricError": lambda: losses.AsymmetricError(
        under=9.0, over=0.5, reduction="mean"
    ),
    "AsymmetricLossFromLogits": lambda: losses.AsymmetricLossFromLogits(
        positive_gamma=0.0, negative_gamma=2.0, margin=0.1, ignore_class=3
    ),
    "BinaryCrossentropyFromLogits": lambda: losses.BinaryCrossentropyFromLogits(
        label_smoothing=0.1,
        positive_weight=[3.0, 1.0, 0.5, 2.0],
        class_weights=[1.0, 2.0, 0.5, 1.0],
        ignore_class=3,
        temperature=2.0,
        focal_gamma=2.0,
    ),
    "BinaryFocalCrossentropyFromLogits": lambda: (
        losses.BinaryFocalCrossentropyFromLogits(gamma=3.0, alpha=0.3, ignore_class=3)
    ),
    "BinaryKLDivergenceFromLogits": lambda: losses.BinaryKLDivergenceFromLogits(
        target_form="logits", direction="reverse", temperature=3.0
    ),
    "ConfidencePenalty": lambda: losses.ConfidencePenalty(weight=0.3, axis=1),
    "CrossentropyFromLogits": lambda: losses.CrossentropyFromLogits(
        label_smoothing=0.1,
        class_weights=[1.0, 2.0, 0.5, 1.0],
        ignore_class=3,
        temperature=2.0,
        focal_gamma=2.0,
        z_loss=0.01,
        sum_tolerance=None,
        axis=1,
        reduction="sum",
        name="ce",
    ),
    "KLDivergenceFromLogits": lambda: losses.KLDivergenceFromLogits(
        target_form="logits",
        direction="reverse",
        temperature=3.0,
        sum_tolerance=None,
        axis=1,
    ),
    "MeanSquaredErrorFromLogits": lambda: losses.MeanSquaredErrorFromLogits(
        activation="softmax", k=15.0, M=30.0, sum_tolerance=0.5, axis=1
    ),
    "Pinball": lambda: losses.Pinball(quantiles=[0.1, 0.5, 0.9, 0.99]),
}
REGULARIZERS = {
    "ConfidenceRegularizer": lambda: losses.ConfidenceRegularizer(weight=0.3, axis=1),
}


def target_for(loss):
    if isinstance(loss, losses.CrossentropyFromLogits):
        return LABELS
    return LABELS[:, None] if isinstance(loss, losses.Pinball) else ONE_HOT


def numbers(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


# Targets


@pytest.mark.parametrize(
    "target",
    [
        LABELS,
        LABELS.tolist(),
        LABELS[:, None],
        LABELS.astype("uint8"),
        LABELS.astype("int64"),
        LABELS.astype("float32"),
        LABELS[:, None].astype("float32"),
        ONE_HOT,
        ONE_HOT.astype("int32"),
        ONE_HOT.astype("bool"),
    ],
    ids=lambda t: f"{np.asarray(t).dtype}-{np.asarray(t).shape}",
)
def test_labels_and_one_hot_targets_of_any_dtype_give_the_same_cost(target):
    cost = losses.crossentropy_from_logits(target, LOGITS)
    np.testing.assert_allclose(numbers(cost), NATS, rtol=1e-6)
    whole = losses.CrossentropyFromLogits()(target, LOGITS)
    np.testing.assert_allclose(numbers(whole), NATS.mean(), rtol=1e-6)


# One label, for logits of shape (classes,), in every form in which it may come.
ONE_LABEL = {
    "int": int,
    "bool": bool,
    "float": float,
    **{
        f"numpy.{name}": getattr(np, name)
        for name in ("int8", "uint8", "int32", "int64", "uint32", "float32", "float64")
    },
    "numpy.bool": np.bool_,
    "array of rank 0": np.asarray,
    "tensor": ops.convert_to_tensor,
    "list": lambda label: [label],
    "tuple": lambda label: (label,),
    "list of NumPy scalars": lambda label: [np.int64(label)],
    "variable": lambda label: keras.Variable(label, dtype="int32", trainable=False),
}


@pytest.mark.parametrize("make", ONE_LABEL.values(), ids=ONE_LABEL)
def test_one_label_costs_the_same_in_every_form(make):
    z = np.array([0.5, -1.0, 2.0], "float32")
    p = np.exp(log_softmax(z.astype("float64")))
    one_hot = np.array([0.0, 1.0, 0.0])
    for cost, expected in [
        (losses.crossentropy_from_logits, -np.log(p[1])),
        (losses.mean_squared_error_from_logits, ((z - one_hot) ** 2).mean()),
        (fmkit.metrics.brier_score, ((p - one_hot) ** 2).sum()),
    ]:
        found = numbers(cost(make(1), z)).reshape(())
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("make", [int, float, np.int64, np.float32, np.asarray])
def test_one_label_out_of_range_is_refused_in_every_form(make):
    # Negative control: the values of each form are read, not passed over.
    with pytest.raises(ValueError, match=r"whole numbers from 0 to 2, since.*got 3"):
        losses.crossentropy_from_logits(make(3), np.zeros(3, "float32"))


def test_the_class_axis_may_stand_anywhere():
    # (batch, classes, time), as with channels first.
    z = RNG.standard_normal((2, 4, 3)).astype("float32")
    y = RNG.integers(0, 4, (2, 3))
    true = -np.take_along_axis(log_softmax(z, axis=1), y[:, None], axis=1)[:, 0]
    for target in (y, y[:, None], y[..., None], np.moveaxis(np.eye(4)[y], -1, 1)):
        cost = losses.crossentropy_from_logits(target, z, axis=1)
        np.testing.assert_allclose(numbers(cost), true, rtol=1e-5)


SEVERAL_AXES = {
    "crossentropy_from_logits": losses.CrossentropyFromLogits,
    "kl_divergence_from_logits": losses.KLDivergenceFromLogits,
    "mean_squared_error_from_logits": losses.MeanSquaredErrorFromLogits,
    "confidence_penalty": losses.ConfidencePenalty,
}


@pytest.mark.parametrize(("name", "kind"), SEVERAL_AXES.items())
def test_several_class_axes_are_taken_as_one(name, kind):
    # (classes, batch, classes), as optax takes a tuple of axes.
    z = RNG.standard_normal((3, 5, 4)).astype("float32")
    q = RNG.dirichlet(np.ones(12), 5).reshape(5, 3, 4).swapaxes(0, 1).astype("float32")

    def cost(q, z, **options):
        targets = () if name == "confidence_penalty" else (q,)
        return numbers(getattr(losses, name)(*targets, z, **options))

    flat = [x.swapaxes(0, 1).reshape(5, 12) for x in (q, z)]
    for axis in ((0, 2), [-1, 0]):
        np.testing.assert_allclose(cost(q, z, axis=axis), cost(*flat), rtol=1e-6)
    loss = kind(axis=(0, 2))
    assert loss.get_config()["axis"] == [0, 2]
    np.testing.assert_allclose(numbers(loss(q, z)), cost(*flat).mean(), rtol=1e-6)
    # Negative control.
    assert not np.allclose(cost(q, 2 * z, axis=(0, 2)), cost(*flat), rtol=1e-2)


def test_a_label_of_several_class_axes_counts_them_in_order():
    z = RNG.standard_normal((2, 3, 4)).astype("float32")
    cost = losses.crossentropy_from_logits([7, 0], z, axis=(1, 2))
    nats = -log_softmax(z.reshape(2, 12).astype("float64"), axis=1)
    np.testing.assert_allclose(numbers(cost), [nats[0, 7], nats[1, 0]], rtol=1e-6)


# What optax 0.2.8 makes of these in float64 (`JAX_ENABLE_X64=1`); means over labels.
Z = np.float32([[2.0, -1.0, 2.0**-20], [-3.5, 10000.0, 0.25], [30.0, -30.0, 0.0]])
YES = np.float32([[1, 0, 1], [0, 1, 0.3], [0, 1, 0.5]])
SHARES = np.float32([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8]])
CLASSES = np.array([2, 0, 1])
OPTAX = {
    "sigmoid_binary_cross_entropy(Z, YES)": (
        lambda: losses.binary_crossentropy_from_logits(YES, Z),
        [0.3777788007613654, 0.26022994605048805, 20.23104906018671],
    ),
    "sigmoid_focal_loss(Z, YES.round(), alpha=0.25, gamma=2.0)": (
        lambda: losses.binary_focal_crossentropy_from_logits(
            YES.round(), Z, alpha=0.25
        ),
        [0.020255353836029562, 0.06526436331656109, 10.043321698783155],
    ),
    "softmax_cross_entropy(Z, SHARES)": (
        lambda: losses.crossentropy_from_logits(SHARES, Z),
        [2.069845651624202, 10003.5, 30.000000000000096],
    ),
    "softmax_cross_entropy_with_integer_labels(Z, CLASSES)": (
        lambda: losses.crossentropy_from_logits(CLASSES, Z),
        [2.169845174787044, 10003.5, 60.00000000000009],
    ),
    "softmax_cross_entropy(Z, smooth_labels(one_hot(CLASSES), 0.1))": (
        lambda: losses.crossentropy_from_logits(CLASSES, Z, label_smoothing=0.1),
        [2.1365119050319987, 9669.925000000001, 57.00000000000009],
    ),
    "kl_divergence(log_softmax(Z), SHARES)": (
        lambda: losses.kl_divergence_from_logits(SHARES, Z),
        [1.0401926375596284, 10003.5, 29.360968140349918],
    ),
    "softmax_cross_entropy_with_integer_labels(Z, 5, axis=(0, 1))": (
        lambda: losses.crossentropy_from_logits(5, Z, axis=(0, 1)),
        9999.75,
    ),
}


@pytest.mark.parametrize("call", OPTAX)
def test_a_loss_that_optax_has_too_costs_the_same(call):
    ours, theirs = OPTAX[call]
    np.testing.assert_allclose(numbers(ours()), theirs, rtol=1e-6)


def test_labels_survive_a_half_precision_floatx():
    # In float16 Keras would hand label 2049 to the loss as 2048.
    z = np.zeros((1, 3000), "float32")
    z[0, 2049] = 5.0
    keras.config.set_floatx("float16")
    try:
        loss = losses.CrossentropyFromLogits()([2049], z)
    finally:
        keras.config.set_floatx("float32")
    np.testing.assert_allclose(numbers(loss), np.log(np.exp(5) + 2999) - 5, rtol=1e-6)


# Reductions, weights, masks


@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", None]
)
def test_reductions_and_sample_weights_are_those_of_keras(reduction):
    weight = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0], "float32")
    ours = losses.CrossentropyFromLogits(reduction=reduction)
    total = (weight * NATS).sum()
    true = {
        "sum": total,
        "mean_with_sample_weight": total / weight.sum(),
        None: weight * NATS,
    }.get(reduction, total / 6)
    got = ours(LABELS, LOGITS, sample_weight=weight)
    np.testing.assert_allclose(numbers(got), true, rtol=1e-6)


def test_a_masked_position_counts_as_if_it_were_not_there():
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    y = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    model = keras.Sequential(
        [
            keras.layers.Input((4,), dtype="int32"),
            keras.layers.Embedding(5, 4, mask_zero=True),
        ]
    )
    z = numbers(model(tokens))
    real = tokens > 0
    nats = -log_softmax(z, axis=-1)
    nats = np.take_along_axis(nats, y[..., None], axis=-1)[..., 0]
    got = losses.CrossentropyFromLogits()(y, model(tokens))
    np.testing.assert_allclose(numbers(got), nats[real].mean(), rtol=1e-6)
    # Negative control: without the mask the mean is another.
    without = losses.CrossentropyFromLogits()(y, z)
    assert abs(numbers(without) - nats[real].mean()) > 1e-3
    # A label to ignore and a mask from the model together: both are left out.
    y[0, 1] = -1
    real[0, 1] = False
    both = losses.CrossentropyFromLogits(ignore_class=-1)(y, model(tokens))
    np.testing.assert_allclose(numbers(both), nats[real].mean(), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", None])
def test_an_ignored_label_costs_nothing_and_does_not_count(reduction):
    y = LABELS.copy()
    y[[1, 4]] = -1
    z = LOGITS.copy()
    z[1] = np.nan  # what stands at an ignored position must not matter
    kept = y >= 0
    true = {"sum": NATS[kept].sum(), None: np.where(kept, NATS, 0.0)}.get(
        reduction, NATS[kept].mean()
    )
    loss = losses.CrossentropyFromLogits(ignore_class=-1, reduction=reduction)
    for target in (y, y[:, None], y.astype("float32")):
        np.testing.assert_allclose(numbers(loss(target, z)), true, rtol=1e-6)


def test_a_batch_of_ignored_labels_only_costs_0():
    loss = losses.CrossentropyFromLogits(ignore_class=-1)
    assert float(loss([-1, -1], [[1.0, 2.0], [3.0, 4.0]])) == 0.0


# Formulas by hand


def test_rescaled_square_loss_is_that_of_hui_and_belkin():
    z = np.array([[1.0, 2.0, -1.0]])
    cost = losses.mean_squared_error_from_logits([1], z, k=15, M=30)
    true = (1.0 + 15 * (2.0 - 30.0) ** 2 + 1.0) / 3
    np.testing.assert_allclose(numbers(cost), [true], rtol=1e-6)
    dense = losses.mean_squared_error_from_logits([[0.0, 1.0, 0.0]], z, k=15, M=30)
    np.testing.assert_allclose(numbers(dense), [true], rtol=1e-6)


def test_squared_error_is_the_tutorials_mean_over_one_hot_and_raw_logits():
    got = losses.MeanSquaredErrorFromLogits()(LABELS, LOGITS)
    true = ((LOGITS.astype("float64") - ONE_HOT) ** 2).mean()
    np.testing.assert_allclose(numbers(got), true, rtol=1e-6)


def test_label_smoothing_is_the_cross_entropy_with_the_smoothed_target():
    smooth = 0.8 * ONE_HOT.astype("float64") + 0.05
    true = -(smooth * log_softmax(LOGITS.astype("float64"), axis=1)).sum(axis=1)
    for target in (LABELS, ONE_HOT):
        cost = losses.crossentropy_from_logits(target, LOGITS, label_smoothing=0.2)
        np.testing.assert_allclose(numbers(cost), true, rtol=1e-6)


def test_focal_factor_agrees_with_the_one_of_keras():
    keras_loss = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=2.0, from_logits=True, reduction=None
    )
    cost = losses.crossentropy_from_logits(LABELS, LOGITS, focal_gamma=2.0)
    true = numbers(keras_loss(ONE_HOT, LOGITS))
    np.testing.assert_allclose(numbers(cost), true, rtol=1e-3, atol=1e-6)


def test_jensen_shannon_of_disjoint_distributions_is_log_2():
    cost = losses.kl_divergence_from_logits(
        [[1.0, 0.0]], [[-200.0, 200.0]], direction="jensen_shannon"
    )
    np.testing.assert_allclose(numbers(cost), [np.log(2)], rtol=1e-6)


def test_reverse_divergence_is_infinite_where_the_target_is_0():
    cost = losses.kl_divergence_from_logits(
        [[1.0, 0.0]], [[0.0, 0.0]], direction="reverse"
    )
    assert numbers(cost).tolist() == [float("inf")]


def test_yogurt_loss_prices_what_was_missed_and_what_was_left():
    # 5 pieces short at a profit of 9 each, 2 pieces over at a cost of 1 each.
    loss = losses.AsymmetricError(under=9.0, over=1.0, reduction="sum")
    assert float(loss([[20.0], [10.0]], [[15.0], [12.0]])) == 47.0


def test_pinball_is_least_at_the_quantile():
    truth = np.arange(1.0, 102.0)[:, None]
    costs = [
        float(losses.Pinball(quantiles=0.9)(truth, np.full((101, 1), guess, "float32")))
        for guess in range(80, 102)
    ]
    assert 80 + int(np.argmin(costs)) == round(float(np.quantile(truth, 0.9)))


def test_forecasts_of_shape_batch_and_batch_1_are_not_broadcast_to_a_square():
    flat = losses.asymmetric_error(np.array([1.0, 2.0]), np.array([[1.0], [4.0]]))
    assert numbers(flat).tolist() == [0.0, 2.0]


# Properties


LOGIT = st.floats(-50, 50, width=32)


@settings(max_examples=25, deadline=None)
@given(
    arrays("float32", (3, 5), elements=LOGIT), arrays("float32", (3, 5), elements=LOGIT)
)
def test_divergences_are_never_negative_and_0_from_itself(z, w):
    for direction in ("forward", "reverse", "jensen_shannon"):

        def cost(w, z, direction=direction):
            return numbers(
                losses.kl_divergence_from_logits(
                    w, z, target_form="logits", direction=direction
                )
            )

        assert (cost(w, z) >= 0.0).all()
        assert (cost(z, z) == 0.0).all()


@settings(max_examples=25, deadline=None)
@given(arrays("float32", (3, 5), elements=LOGIT))
def test_the_largest_logit_costs_least_and_no_cost_is_negative(z):
    costs = np.stack(
        [numbers(losses.crossentropy_from_logits([y] * 3, z)) for y in range(5)]
    )
    assert (costs >= 0.0).all()
    # Equal logits may cost one last bit more or less.
    of_largest = costs[z.argmax(axis=1), np.arange(3)]
    np.testing.assert_allclose(of_largest, costs.min(axis=0), rtol=1e-6, atol=1e-7)


# In Keras


def small_model(outputs=4):
    return keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(outputs, name="logits")]
    )


def test_fit_with_labels_brings_the_loss_down():
    x = RNG.standard_normal((32, 3)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    model = small_model(2)
    model.compile(keras.optimizers.SGD(0.5), losses.CrossentropyFromLogits())
    history = model.fit(x, y, epochs=5, batch_size=16, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]
    wide = x.astype("float64")
    kernel, bias = (numbers(v) for v in model.weights)
    log_p = log_softmax(wide @ kernel + bias, axis=1)
    np.testing.assert_allclose(
        model.evaluate(x, y, verbose=0), -log_p[np.arange(32), y].mean(), rtol=1e-5
    )


@pytest.mark.backend("tensorflow", "jax")
def test_a_label_out_of_range_in_a_compiled_step_gives_nan_for_loss_and_weights():
    for loss in (losses.CrossentropyFromLogits(), losses.MeanSquaredErrorFromLogits()):
        model = small_model()
        model.compile("sgd", loss)
        history = model.fit(np.ones((2, 3)), np.array([0, 4]), verbose=0).history
        assert np.isnan(history["loss"]).all()
        assert np.isnan(model.get_weights()[0]).any()


@pytest.mark.backend("tensorflow", "jax")
def test_a_label_that_is_no_class_gives_nan_beside_a_class_weight_of_0():
    def cost(z):
        labels = ops.convert_to_tensor([3.0, 0.0]) + 0.0 * z[:, 0]
        return losses.crossentropy_from_logits(labels, z, class_weights=[0.0, 1.0])

    value, gradient = value_and_gradient(cost, [[0.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(value, [np.nan, 0.0])
    np.testing.assert_array_equal(gradient, [[np.nan] * 2, [0.0] * 2])


@pytest.mark.backend("torch")
def test_a_label_out_of_range_is_refused_in_the_step_of_pytorch():
    model = small_model()
    model.compile("sgd", losses.CrossentropyFromLogits())
    with pytest.raises(ValueError, match="from 0 to 3"):
        model.fit(np.ones((2, 3)), np.array([0, 4]), verbose=0)


@pytest.mark.open_on("3.12")
def test_two_losses_on_one_output_are_not_added_by_keras_but_a_regularizer_is():
    # The trap that ConfidenceRegularizer is for.
    x, y = np.ones((4, 3), "float32"), np.array([0, 1, 2, 3])
    model = small_model()
    model.compile(
        "sgd", [losses.CrossentropyFromLogits(), losses.ConfidencePenalty(weight=5.0)]
    )
    first_only = model.evaluate(x, y, verbose=0)
    z = numbers(model(x))
    log_p = log_softmax(z, axis=1)
    nats = -log_p[np.arange(4), y].mean()
    np.testing.assert_allclose(first_only[0], nats, rtol=1e-5)

    regularized = keras.Sequential(
        [
            keras.layers.Input((3,)),
            keras.layers.Dense(
                4, activity_regularizer=losses.ConfidenceRegularizer(5.0)
            ),
        ]
    )
    regularized.set_weights(model.get_weights())
    regularized.compile("sgd", losses.CrossentropyFromLogits())
    true = nats + 5.0 * (np.exp(log_p) * log_p).sum(axis=1).mean()
    np.testing.assert_allclose(regularized.evaluate(x, y, verbose=0), true, rtol=1e-5)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_every_option_is_an_attribute_that_the_loss_computes_with(make):
    loss = make()
    config = loss.get_config()
    assert {name: getattr(loss, name) for name in config} == config
    changed = type(loss)(reduction=loss.reduction, name=loss.name)
    for name in set(config) - {"name", "reduction", "dtype", "ignore_class"}:
        setattr(changed, name, getattr(loss, name))
    expected = config | ({"ignore_class": None} if "ignore_class" in config else {})
    assert changed.get_config() == expected
    same = type(loss).from_config(expected)
    y = target_for(loss)
    np.testing.assert_array_equal(numbers(changed(y, LOGITS)), numbers(same(y, LOGITS)))
    if not isinstance(loss, losses.Pinball):  # by default it takes no such targets
        default = type(loss)(reduction=loss.reduction)
        assert numbers(default(y, LOGITS)) != numbers(same(y, LOGITS))


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.crossentropy_from_logits([0, 4], LOGITS[:2]), "from 0 to 3"),
        (lambda: losses.crossentropy_from_logits([0, -1], LOGITS[:2]), "ignore_class"),
        (lambda: losses.crossentropy_from_logits([0.5, 1], LOGITS[:2]), "whole"),
        (lambda: losses.crossentropy_from_logits([0], LOGITS), r"\(6,\)"),
        (
            lambda: losses.crossentropy_from_logits(np.ones((6, 3)), LOGITS),
            r"dense targets of shape \(6, 4\)",
        ),
        (
            lambda: losses.crossentropy_from_logits(ONE_HOT * 2, LOGITS),
            "sum_tolerance=None",
        ),
        (
            lambda: losses.crossentropy_from_logits(ONE_HOT - 0.25, LOGITS),
            "none below 0",
        ),
        (
            lambda: losses.crossentropy_from_logits(ONE_HOT, LOGITS, ignore_class=1),
            "integer labels",
        ),
        (
            lambda: losses.crossentropy_from_logits(
                LABELS, LOGITS, class_weights=[1.0]
            ),
            "4 classes",
        ),
        (
            lambda: losses.crossentropy_from_logits(LABELS, LOGITS, temperature=-1.0),
            "temperature=-1.0",
        ),
        (lambda: losses.CrossentropyFromLogits(label_smoothing=1.0), "below 1"),
        (lambda: losses.CrossentropyFromLogits(focal_gamma=0.5), "at least 1"),
        (lambda: losses.CrossentropyFromLogits(z_loss=-1.0), "z_loss"),
        (lambda: losses.BinaryFocalCrossentropyFromLogits(alpha=1.0), "`alpha` must"),
        (lambda: losses.BinaryFocalCrossentropyFromLogits(gamma=0.5), "at least 1"),
        (
            lambda: losses.crossentropy_from_logits(LABELS[:0], LOGITS[:0]),
            "must not be empty",
        ),
        (
            lambda: losses.crossentropy_from_logits([0, 0], [[1.0], [2.0]]),
            "BinaryCrossentropy",
        ),
        (lambda: losses.crossentropy_from_logits(LABELS, LOGITS, axis=2), "axis=2"),
        (lambda: losses.confidence_penalty(LOGITS, axis=(1, -1)), "different axes"),
        (lambda: losses.confidence_penalty(LOGITS, axis=(0, 2)), "different axes"),
        (
            lambda: losses.kl_divergence_from_logits(LABELS, LOGITS),
            "CrossentropyFromLogits",
        ),
        (
            lambda: losses.KLDivergenceFromLogits(target_form="logit"),
            "Did you mean 'logits'",
        ),
        (lambda: losses.KLDivergenceFromLogits(temperature=0.0), "temperature"),
        (
            lambda: losses.MeanSquaredErrorFromLogits(activation="sigmoid"),
            "activation",
        ),
        (lambda: losses.MeanSquaredErrorFromLogits(k=0.0), "`k`"),
        (lambda: losses.AsymmetricError(under=-1.0), "under"),
        (lambda: losses.AsymmetricError(under=0.0, over=0.0), "positive"),
        (lambda: losses.Pinball(quantiles=[0.5, 1.0]), "below 1"),
        (lambda: losses.Pinball(quantiles=[]), "at least one"),
        (
            lambda: losses.asymmetric_error(np.ones((2, 3)), np.ones((2, 2))),
            "same shape",
        ),
        (lambda: losses.ConfidencePenalty(weight=float("nan")), "weight"),
    ],
)
def test_bad_input_is_refused_with_what_to_write_instead(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_label_that_float32_would_round_to_a_class_is_refused():
    label = np.array([0.9999999999])
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        losses.crossentropy_from_logits(label, np.float32([[1.0, 2.0]]))
    if keras.backend.backend() != "jax":  # whose tensors are float32
        with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
            losses.crossentropy_from_logits(
                ops.convert_to_tensor(label, "float64"), np.float32([[1.0, 2.0]])
            )


def test_the_check_of_the_sum_can_be_turned_off():
    cost = losses.crossentropy_from_logits(ONE_HOT * 2, LOGITS, sum_tolerance=None)
    np.testing.assert_allclose(numbers(cost), 2 * NATS, rtol=1e-6)


def test_targets_of_the_wrong_shape_are_refused_before_the_first_step():
    model = small_model()
    model.compile("sgd", losses.CrossentropyFromLogits())
    start = model.get_weights()
    with pytest.raises(ValueError, match="integer labels of shape"):
        model.fit(np.ones((2, 3)), np.ones((2, 5)), verbose=0)
    for before, after in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.backend("tensorflow")
def test_targets_whose_rank_the_pipeline_lost_are_refused():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(None, "int64")])
    def step(y):
        return losses.crossentropy_from_logits(y, LOGITS)

    with pytest.raises(ValueError, match="ensure_shape"):
        step(tf.constant(LABELS))


def test_pinball_costs_the_level_below_and_its_complement_above():
    # By hand: 0.9 for each unit the forecast is too low, 0.1 for each too high.
    too_low = losses.pinball([[3.0]], [[1.0]], quantiles=0.9)
    too_high = losses.pinball([[1.0]], [[3.0]], quantiles=0.9)
    assert float(too_low[0]) == pytest.approx(1.8)
    assert float(too_high[0]) == pytest.approx(0.2)
