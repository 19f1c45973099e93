"""Losses of labels that are yes or no, against mpmath, PyTorch and Keras.

What they share with all losses (copies, dtypes, weights, masks) is in
tests/test_contracts.py.
"""

import keras
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy.special import expit
from test_losses_exact import SCALES, relative_error, value_and_gradient

from fmkit import losses

RNG = np.random.default_rng(0)
# Units in the last place of float32, relative to the true value.
ULP = 2.0**-23
VALUE, GRADIENT = 4 * ULP, 4 * ULP
# Powers above 2 and differences are computed in float64, where the backend has it.
POWER = SHIFTED = DIFFERENCE = VALUE
if keras.backend.backend() == "jax":
    from fmkit._math import _jax_float64

    if not _jax_float64.is_kept():
        POWER, SHIFTED, DIFFERENCE = 8 * ULP, 16 * ULP, 32 * ULP
NAN = float("nan")


def logits_of_every_scale(each=12):
    """Return a column of logits of every scale and both signs, and 0."""
    z = np.concatenate([RNG.standard_normal(each) * scale for scale in SCALES])
    z = np.concatenate([z, [0.0, 16.5, 17.0, 50.0, -50.0, 80.0, -80.0]])
    return z.astype("float32")[:, None]


def oracle(cost, z, *targets):
    """Return values and derivatives of `cost` in 60 digits, rounded to float64."""
    with mpmath.workdps(60):
        pairs = [
            (
                cost(*map(mpmath.mpf, each)),
                mpmath.diff(
                    lambda x, e=each: cost(x, *map(mpmath.mpf, e[1:])),
                    mpmath.mpf(each[0]),
                    h=mpmath.mpf(10) ** -25,
                ),
            )
            for each in zip(
                *(np.ravel(a).astype("float64").tolist() for a in (z, *targets)),
                strict=True,
            )
        ]
    return np.array([[float(v), float(g)] for v, g in pairs]).T


def nll(x):
    """Return -log sigmoid(x), without cancellation."""
    small = mpmath.exp(-abs(x))
    return mpmath.log1p(small) + max(-x, mpmath.mpf(0))


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def crossentropy(x, q, gamma=0):
    yes = nll(x) * sigmoid(-x) ** gamma if q else 0
    no = nll(-x) * sigmoid(x) ** gamma if q < 1 else 0
    return q * yes + (1 - q) * no


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_label_is_exact_in_value_and_gradient_at_every_scale(label):
    z = logits_of_every_scale()
    q = np.full_like(z, label)
    value, gradient = value_and_gradient(
        lambda z: losses.binary_crossentropy_from_logits(q, z), z
    )
    true_value, true_gradient = oracle(crossentropy, z, q)
    assert relative_error(value, true_value) < VALUE
    assert relative_error(gradient[:, 0], true_gradient) < GRADIENT
    seen = np.abs(true_gradient) > 1e-37
    assert gradient[seen].all()


def test_keras_own_binary_crossentropy_does_not_pass_the_same_check():
    # Negative control: after a sigmoid the clipping takes cost and gradient away.
    # (TensorFlow's Keras undoes a sigmoid that is the last operation.)
    z = logits_of_every_scale()
    q = np.ones_like(z)
    value, gradient = value_and_gradient(
        lambda z: keras.losses.binary_crossentropy(
            ops.convert_to_tensor(q), 1.0 * ops.sigmoid(z)
        ),
        z,
    )
    true_value, true_gradient = oracle(crossentropy, z, q)
    assert relative_error(value, true_value) > 0.1
    assert relative_error(gradient[:, 0], true_gradient) > 0.1


def test_a_probability_is_exact_and_its_gradient_is_right_to_the_size_of_its_terms():
    z = logits_of_every_scale()
    q = RNG.random(z.shape).astype("float32")
    q[::5] = 1e-9
    value, gradient = value_and_gradient(
        lambda z: losses.binary_crossentropy_from_logits(q, z), z
    )
    true_value, true_gradient = oracle(crossentropy, z, q)
    assert relative_error(value, true_value) < VALUE
    p = expit(z.astype("float64"))
    size = (q + p - 2 * q * p)[:, 0]  # q (1 - p) + (1 - q) p
    assert (np.abs(gradient[:, 0] - true_gradient) <= GRADIENT * size + 1e-30).all()


@pytest.mark.parametrize("gamma", [1, 1.5, 2, 2.5, 5])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_focal_factor_is_exact(label, gamma):
    z = logits_of_every_scale()
    q = np.full_like(z, label)
    value, gradient = value_and_gradient(
        lambda z: losses.binary_crossentropy_from_logits(q, z, focal_gamma=gamma), z
    )
    true_value, true_gradient = oracle(lambda x, q: crossentropy(x, q, gamma), z, q)
    assert relative_error(value, true_value) < POWER
    assert relative_error(gradient[:, 0], true_gradient) < POWER


@pytest.mark.backend("tensorflow", "jax")
def test_the_fifth_power_in_float32_does_not_pass_the_same_check(monkeypatch):
    # Negative control: it is float64 that keeps the digits of a power.
    from fmkit.losses import _binary

    z = np.linspace(-3, 3, 999, dtype="float32")[:, None]
    wide = z.astype("float64")

    def off():
        value, _ = value_and_gradient(
            lambda z: losses.binary_crossentropy_from_logits(0 * z, z, focal_gamma=5.0),
            z,
        )
        return relative_error(value, (np.logaddexp(0, wide) * expit(wide) ** 5)[:, 0])

    assert off() < POWER
    monkeypatch.setattr(_binary, "in_float64", lambda plain, *arrays: plain(*arrays))
    assert VALUE < off() < 16 * ULP


@pytest.mark.backend("tensorflow")
def test_on_a_tpu_nothing_is_computed_in_float64(monkeypatch):
    import tensorflow as tf

    from fmkit import _math

    def dtype():
        seen = []
        result = _math.in_float64(lambda z: seen.append(z.dtype) or z, tf.ones(2))
        assert result.dtype == tf.float32
        return seen

    assert dtype() == [tf.float64]
    strategy = type("TPUStrategyV2", (), {})
    monkeypatch.setattr(tf.distribute, "get_strategy", strategy)
    assert dtype() == [tf.float32]


def derivative(function, x):
    """Return the derivative of the sum of what `function` makes of `x`, a tensor."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(function(x))
        return tape.gradient(total, x)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(jax.grad(lambda x: function(x).sum()))(x)
    import torch

    x = x.clone().requires_grad_()
    total = function(x).sum()
    return torch.autograd.grad(total, x, create_graph=True)[0]


def test_what_is_computed_in_float64_has_a_second_derivative():
    z = ops.convert_to_tensor(np.float32([[-2.0], [0.5], [3.0]]))

    def cost(z):
        return losses.binary_crossentropy_from_logits(0.0 * z, z, focal_gamma=3.0)

    got = derivative(lambda z: derivative(cost, z), z)
    for x, second in zip(
        [-2.0, 0.5, 3.0], np.ravel(ops.convert_to_numpy(got)), strict=True
    ):
        true = mpmath.diff(lambda x: crossentropy(x, 0, 3), x, 2)
        np.testing.assert_allclose(second, float(true), rtol=1e-5)


def test_the_divergence_has_the_gradient_of_its_target_too():
    # In the target it is the derivative of the reverse one, with both exchanged.
    z = ops.convert_to_tensor(np.float32([[-2.0], [0.5], [3.0]]))
    w = ops.convert_to_tensor(np.float32([[-1.0], [0.6], [-3.0]]))

    def divergence(target, logits, direction):
        return losses.binary_kl_divergence_from_logits(
            target, logits, target_form="logits", direction=direction
        )

    by_target = derivative(lambda w: divergence(w, z, "forward"), w)
    by_logits = derivative(lambda w: divergence(z, w, "reverse"), w)
    by_target, by_logits = map(ops.convert_to_numpy, (by_target, by_logits))
    assert np.abs(by_target).min() > 1e-3
    np.testing.assert_allclose(by_target, by_logits, rtol=1e-6)


def asymmetric(x, q, gamma=4):
    if q == 1:
        return sigmoid(-x) * nll(x)
    p = max(sigmoid(x) - mpmath.mpf(0.05), mpmath.mpf(0))
    return -(p**gamma) * mpmath.log1p(-p)


THRESHOLD = np.log(0.05 / 0.95)
BESIDE = np.float32(THRESHOLD + np.geomspace(3e-7, 1.0, 20)[:, None])


@pytest.mark.parametrize(("label", "gamma"), [(1.0, 4), (0.0, 1), (0.0, 4)])
def test_the_asymmetric_loss_is_exact_also_beside_its_threshold(label, gamma):
    z = np.concatenate([logits_of_every_scale(), BESIDE])
    q = np.full_like(z, label)
    value, gradient = value_and_gradient(
        lambda z: losses.asymmetric_loss_from_logits(q, z, negative_gamma=gamma), z
    )
    true_value, true_gradient = oracle(lambda x, q: asymmetric(x, q, gamma), z, q)
    assert relative_error(value, true_value) < SHIFTED
    assert relative_error(gradient[:, 0], true_gradient) < SHIFTED
    assert bool(gradient[z < THRESHOLD].any()) == (label == 1.0)


def test_the_difference_to_the_margin_written_down_plainly_is_not_exact():
    # Negative control: it is the product in `_shifted_cost` that keeps the digits.
    p = np.maximum(expit(BESIDE) - np.float32(0.05), np.float32(0.0))
    plain = (-p * np.log1p(-p))[:, 0].astype("float64")
    true_value, _ = oracle(lambda x, q: asymmetric(x, q, 1), BESIDE, 0 * BESIDE)
    assert relative_error(plain, true_value) > 1e-3


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
def test_the_divergence_of_each_label_is_exact(direction):
    z, w = logits_of_every_scale(4), logits_of_every_scale(4)[::-1]
    z = np.concatenate([z, w + np.float32(1e-3), w * np.float32(1.0001)])
    w = np.concatenate([w, w, w])

    def relative_entropy(a, b):
        return sigmoid(a) * (nll(b) - nll(a)) + sigmoid(-a) * (nll(-b) - nll(-a))

    def divergence(x, w):
        if direction == "forward":
            return relative_entropy(w, x)
        if direction == "reverse":
            return relative_entropy(x, w)
        total = mpmath.mpf(0)
        for sign in (1, -1):
            p, q = sigmoid(sign * x), sigmoid(sign * w)
            total += p * mpmath.log(2 * p / (p + q)) + q * mpmath.log(2 * q / (p + q))
        return total / 2

    value, gradient = value_and_gradient(
        lambda z: losses.binary_kl_divergence_from_logits(
            w, z, target_form="logits", direction=direction
        ),
        z,
    )
    true_value, true_gradient = oracle(divergence, z, w)
    assert relative_error(value, true_value) < SHIFTED
    assert relative_error(gradient[:, 0], true_gradient) < DIFFERENCE


def test_the_divergence_is_the_cross_entropy_less_the_entropy_of_the_target():
    z = RNG.standard_normal((6, 3)).astype("float32") * 3
    q = RNG.random((6, 3)).astype("float32")
    q[0] = [0.0, 1.0, 0.5]
    cross = ops.convert_to_numpy(losses.binary_crossentropy_from_logits(q, z))
    wide = np.clip(q.astype("float64"), 1e-300, 1.0)
    other = np.clip(1.0 - q.astype("float64"), 1e-300, 1.0)
    entropy = -(q * np.log(wide) + (1 - q) * np.log(other)).mean(axis=1)
    got = ops.convert_to_numpy(losses.binary_kl_divergence_from_logits(q, z))
    np.testing.assert_allclose(got, cross - entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.backend("torch")
def test_weights_are_those_of_pytorch():
    import torch

    z = RNG.standard_normal((6, 3)) * 3
    q = RNG.random((6, 3)).round()
    weights, positive = [1.0, 0.5, 2.0], [3.0, 1.0, 0.2]
    theirs = torch.nn.BCEWithLogitsLoss(
        torch.tensor(weights, dtype=torch.float64),
        pos_weight=torch.tensor(positive, dtype=torch.float64),
    )
    true = theirs(torch.tensor(z), torch.tensor(q)).numpy()
    ours = losses.binary_crossentropy_from_logits(
        torch.tensor(q),
        torch.tensor(z),
        class_weights=weights,
        positive_weight=positive,
    )
    np.testing.assert_allclose(ours.numpy().mean(), true, rtol=1e-12)


def test_focal_factor_and_positive_weight_are_the_focal_loss_of_keras():
    z = RNG.standard_normal((6, 3)).astype("float32")
    q = RNG.random((6, 3)).round().astype("float32")
    theirs = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, alpha=0.25, gamma=2.0, from_logits=True
    )
    ours = losses.BinaryCrossentropyFromLogits(
        focal_gamma=2.0, positive_weight=0.25 / 0.75, class_weights=[0.75] * 3
    )
    named = losses.BinaryFocalCrossentropyFromLogits(alpha=0.25)
    for loss in (ours, named):
        np.testing.assert_allclose(float(loss(q, z)), float(theirs(q, z)), rtol=1e-5)
    plain = keras.losses.BinaryFocalCrossentropy(from_logits=True)
    named = losses.BinaryFocalCrossentropyFromLogits()
    np.testing.assert_allclose(float(named(q, z)), float(plain(q, z)), rtol=1e-5)


def test_smoothing_and_temperature_match_the_formula():
    z = RNG.standard_normal((6, 3)) * 3
    q = RNG.random((6, 3)).round()
    smooth, p = 0.8 * q + 0.1, 1 / (1 + np.exp(-z / 2))
    true = -(smooth * np.log(p) + (1 - smooth) * np.log(1 - p)).mean(axis=1)
    got = losses.binary_crossentropy_from_logits(
        q, z.astype("float32"), label_smoothing=0.2, temperature=2.0
    )
    np.testing.assert_allclose(ops.convert_to_numpy(got), true, rtol=1e-5)


def test_the_asymmetric_loss_without_margin_and_factors_is_the_cross_entropy():
    z = RNG.standard_normal((6, 3)).astype("float32")
    q = RNG.random((6, 3)).round()
    plain = losses.asymmetric_loss_from_logits(
        q, z, positive_gamma=0.0, negative_gamma=0.0, margin=0.0
    )
    same = losses.binary_crossentropy_from_logits(q, z)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (plain, same)))


BINARY = {
    "crossentropy": (
        losses.binary_crossentropy_from_logits,
        losses.BinaryCrossentropyFromLogits,
    ),
    "asymmetric": (losses.asymmetric_loss_from_logits, losses.AsymmetricLossFromLogits),
    "focal": (
        losses.binary_focal_crossentropy_from_logits,
        losses.BinaryFocalCrossentropyFromLogits,
    ),
}
PAIRS = pytest.mark.parametrize(("function", "kind"), BINARY.values(), ids=BINARY)


@PAIRS
def test_an_ignored_label_counts_neither_in_its_row_nor_in_the_mean(function, kind):
    z = RNG.standard_normal((4, 3)).astype("float32")
    q = np.array([[1, 0, 1], [0, -1, 1], [-1, -1, -1], [-1, 0, -1]])
    z[q == -1] = NAN  # what stands at an ignored label must not matter
    rows = [
        ops.convert_to_numpy(function(q[i : i + 1, k], z[i : i + 1, k]))[0]
        for i, k in ((0, [0, 1, 2]), (1, [0, 2]), (3, [1]))
    ]
    value, gradient = value_and_gradient(lambda z: function(q, z, ignore_class=-1), z)
    np.testing.assert_allclose(value, [rows[0], rows[1], 0.0, rows[2]], rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[q == -1].any()
    whole = kind(ignore_class=-1)(q, z)
    np.testing.assert_allclose(float(whole), np.mean(rows), rtol=1e-6)


@PAIRS
def test_one_logit_may_have_a_last_axis_or_none_on_either_side(function, kind):
    z = RNG.standard_normal((5, 1)).astype("float32")
    q = np.array([[0], [1], [1], [0], [1]])
    expected = ops.convert_to_numpy(function(q, z))
    assert expected.shape == (5,)
    for target, logits in ((q[:, 0], z), (q, z[:, 0]), (q[:, 0], z[:, 0])):
        got = ops.convert_to_numpy(function(target, logits))
        np.testing.assert_array_equal(got, expected)
        whole = float(kind()(target, logits))
        np.testing.assert_allclose(whole, expected.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        losses.binary_crossentropy_from_logits,
        losses.asymmetric_loss_from_logits,
        losses.binary_kl_divergence_from_logits,
    ],
)
@pytest.mark.backend("tensorflow", "jax")
def test_a_target_out_of_range_in_a_compiled_step_gives_nan(function):
    value, gradient = value_and_gradient(
        lambda z: function(ops.convert_to_tensor([[2.0], [1.0]]) + 0.0 * z, z),
        [[1.0], [1.0]],
    )
    assert np.isnan(value[0])
    assert np.isnan(gradient[0]).all()
    assert np.isfinite([value[1], gradient[1, 0]]).all()


def test_infinite_logits_cost_nothing_or_infinity():
    infinity = float("inf")
    z = [[infinity], [-infinity], [infinity], [-infinity]]
    got = losses.binary_crossentropy_from_logits([1, 0, 0, 1], np.float32(z))
    assert ops.convert_to_numpy(got).tolist() == [0.0, 0.0, infinity, infinity]


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_weight_of_0_makes_an_infinite_cost_free(dtype, gamma):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless a flag is set")
    options = {"class_weights": [0.0, 2.0], "focal_gamma": gamma}
    value, gradient = value_and_gradient(
        lambda z: losses.binary_crossentropy_from_logits(
            [[1, 1], [1, 0]], z, **options
        ),
        [[-float("inf"), 1000.0], [-float("inf"), float("inf")]],
        dtype,
    )
    assert value.tolist() == [0.0, float("inf")]
    np.testing.assert_allclose(gradient, [[0.0, 0.0], [0.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
@pytest.mark.parametrize(
    "cost",
    [
        lambda z, gamma: losses.crossentropy_from_logits(
            np.array([0]), z, focal_gamma=gamma
        ),
        lambda z, gamma: losses.binary_crossentropy_from_logits(
            np.array([[1, 0]]), z, focal_gamma=gamma
        ),
    ],
)
def test_a_focal_cost_of_0_has_a_second_derivative_of_0(cost, gamma):
    # So sure that 1 - p is 0 in float32.
    z = ops.convert_to_tensor(np.float32([[200.0, -200.0]]))
    got = derivative(lambda z: derivative(lambda z: cost(z, gamma), z), z)
    assert ops.convert_to_numpy(got).tolist() == [[0.0, 0.0]]


@settings(max_examples=25, deadline=None)
@given(st.floats(-50, 50, width=32), st.floats(0, 1, width=32))
def test_swapping_the_answer_and_the_sign_changes_no_bit(z, q):
    one = losses.binary_crossentropy_from_logits([q], np.float32([z]))
    other = losses.binary_crossentropy_from_logits(
        np.float32([1]) - np.float32([q]), np.float32([-z])
    )
    back = np.float32(1) - (np.float32(1) - np.float32(q))
    if back == np.float32(q):
        assert float(one[0]) == float(other[0])
    assert float(one[0]) >= 0.0


@pytest.mark.parametrize(
    "kind", [losses.BinaryCrossentropyFromLogits, losses.AsymmetricLossFromLogits]
)
def test_fit_brings_the_loss_down_for_several_labels(kind):
    x = RNG.standard_normal((64, 3)).astype("float32")
    y = (x[:, :2] > 0).astype("int32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(2.0), kind(ignore_class=-1))
    history = model.fit(x, y, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.binary_crossentropy_from_logits([2], [0.0]), "got 2"),
        (lambda: losses.asymmetric_loss_from_logits([-1], [0.0]), "ignore_class"),
        (lambda: losses.binary_kl_divergence_from_logits([NAN], [0.0]), "got nan"),
        (
            lambda: losses.binary_crossentropy_from_logits([0, 1], np.zeros((2, 3))),
            r"shape of the logits \(2, 3\); got shape \(2,\).*CrossentropyFromLogits",
        ),
        (
            lambda: losses.binary_crossentropy_from_logits([], np.zeros((0, 3))),
            "must not be empty",
        ),
        (
            lambda: losses.binary_crossentropy_from_logits(
                [[0, 1]], [[0.0, 1.0]], positive_weight=[1.0]
            ),
            "`positive_weight` must have one number for each of the 2",
        ),
        (lambda: losses.BinaryCrossentropyFromLogits(positive_weight=-1.0), "at least"),
        (lambda: losses.BinaryCrossentropyFromLogits(focal_gamma=0.5), "at least 1"),
        (lambda: losses.AsymmetricLossFromLogits(margin=1.0), "below 1"),
        (lambda: losses.AsymmetricLossFromLogits(negative_gamma=0.5), "at least 1"),
        (
            lambda: losses.BinaryKLDivergenceFromLogits(target_form="logit"),
            "Did you mean 'logits'",
        ),
    ],
)
def test_bad_input_is_refused_with_what_to_write_instead(call, message):
    with pytest.raises(ValueError, match=message):
        call()
