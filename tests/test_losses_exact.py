"""How exact the losses are, against mpmath with 60 digits and NumPy in float64.

Everything is computed in a compiled step (TensorFlow with XLA, JAX under jit), since
that is where a compiler could rearrange the arithmetic; PyTorch runs as it trains.
"""

import keras
import mpmath
import numpy as np
import pytest
from keras import ops

from fmkit import losses

BACKEND = keras.backend.backend()
SCALES = (1e-6, 1e-3, 0.3, 1.0, 10.0, 30.0, 100.0, 1e4)
VALUE = 1e-6  # relative
GRADIENT = 1e-5  # relative
SMALLEST = 1e-30  # below it float32 has no digits left to compare
INF = float("inf")


def value_and_gradient(cost, z, dtype="float32"):
    """Return the costs of logits `z` and the gradient of their sum."""
    z = np.asarray(z, dtype)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True, autograph=False)
        def step(z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                value = cost(z)
            return value, tape.gradient(value, z)

        value, gradient = step(tf.constant(z))
    elif BACKEND == "jax":
        import jax

        def total(z):
            value = cost(z)
            return value.sum(), value

        compiled = jax.jit(jax.value_and_grad(total, has_aux=True))
        (_, value), gradient = compiled(z)
    else:
        import torch

        z = torch.tensor(z, requires_grad=True)
        value = cost(z)
        value.sum().backward()
        value, gradient = value.detach(), z.grad
    return np.asarray(value, "float64"), np.asarray(gradient, "float64")


def rows(classes, each=4, seed=0):
    """Return logits of every scale, `each` rows of each."""
    rng = np.random.default_rng(seed)
    scales = np.repeat(SCALES, each)[:, None]
    return (rng.standard_normal((len(scales), classes)) * scales).astype("float32")


def relative_error(got, true):
    seen = (np.abs(true) > SMALLEST) & (np.abs(true) < 3e38)
    return np.max(np.abs(got - true)[seen] / np.abs(true)[seen], initial=0.0)


def exact_softmax(row):
    row = [mpmath.mpf(float(z)) for z in row]
    top = max(row)
    masses = [mpmath.exp(z - top) for z in row]
    return [m / mpmath.fsum(masses) for m in masses]


def exact_crossentropy(z, labels):
    """Return value and gradient, in 60 digits, rounded to float64 at the end."""
    values, gradients = [], []
    with mpmath.workdps(60):
        for row, y in zip(z, labels, strict=True):
            p = exact_softmax(row)
            others = mpmath.fsum(p[:y] + p[y + 1 :])
            values.append(
                float(-mpmath.log1p(-others) if others < 0.5 else -mpmath.log(p[y]))
            )
            gradients.append([float(x) for x in [*p[:y], -others, *p[y + 1 :]]])
    return np.array(values), np.array(gradients)


def labels_for(z):
    """Return labels that are the largest class in half of the rows, any in others."""
    labels = np.random.default_rng(1).integers(0, z.shape[1], len(z))
    labels[::2] = z.argmax(axis=1)[::2]
    return labels.astype("int32")


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_crossentropy_of_labels_is_exact_in_value_and_in_every_gradient_entry(classes):
    z = rows(classes, each=4 if classes < 300 else 1)
    y = labels_for(z)
    value, gradient = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(y, z), z
    )
    true_value, true_gradient = exact_crossentropy(z, y)
    assert relative_error(value, true_value) < VALUE
    assert relative_error(gradient, true_gradient) < GRADIENT


@pytest.mark.parametrize("classes", [2, 10])
def test_crossentropy_of_one_hot_targets_is_as_exact_as_that_of_labels(classes):
    z = rows(classes)
    y = labels_for(z)
    one_hot = np.eye(classes, dtype="float32")[y]
    value, gradient = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(one_hot, z), z
    )
    true_value, true_gradient = exact_crossentropy(z, y)
    assert relative_error(value, true_value) < VALUE
    assert relative_error(gradient, true_gradient) < GRADIENT


def test_keras_own_crossentropy_does_not_pass_the_same_check():
    # Negative control: the check must see what rounding takes away.
    z = rows(10)
    y = z.argmax(axis=1).astype("int32")
    value, gradient = value_and_gradient(
        lambda z: keras.losses.sparse_categorical_crossentropy(
            ops.convert_to_tensor(y), z, from_logits=True
        ),
        z,
    )
    true_value, true_gradient = exact_crossentropy(z, y)
    assert relative_error(value, true_value) > 0.1
    assert relative_error(gradient, true_gradient) > 0.1


def test_a_confident_right_answer_still_has_its_cost_and_gradient():
    cost = losses.crossentropy_from_logits
    value, gradient = value_and_gradient(lambda z: cost([0], z), [[50.0, 0.0]])
    np.testing.assert_allclose(value, [np.exp(-50.0)], rtol=VALUE)
    np.testing.assert_allclose(
        gradient, [[-np.exp(-50.0), np.exp(-50.0)]], rtol=GRADIENT
    )


@pytest.mark.parametrize("dense", [False, True])
def test_crossentropy_over_100000_classes_is_exact(dense):
    classes = 100_000
    rng = np.random.default_rng(2)
    z = rng.standard_normal((4, classes)) * np.array([[1e-6], [1.0], [5.0], [1e4]])
    z = z.astype("float32")
    y = np.array([7, 99_999, int(z[2].argmax()), 5], "int32")
    one_hot = np.zeros_like(z)
    one_hot[np.arange(4), y] = 1.0
    target = one_hot if dense else y
    value, gradient = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(target, z), z
    )
    wide = z.astype("float64") - z[np.arange(4), y][:, None].astype("float64")
    top = wide.max(axis=1, keepdims=True)
    mass = np.exp(wide - top).sum(axis=1, keepdims=True)
    p = np.exp(wide - top) / mass
    true_gradient = p - one_hot
    np.testing.assert_allclose(value, (top + np.log(mass))[:, 0], rtol=VALUE)
    assert relative_error(gradient, true_gradient) < GRADIENT


def test_logits_of_minus_infinity_take_classes_out():
    z = np.array([[1.0, -INF, 2.0, -INF], [-INF, -INF, 3.0, -INF]], "float32")
    for target in (np.array([0, 2]), np.eye(4, dtype="float32")[[0, 2]]):
        value, gradient = value_and_gradient(
            lambda z, target=target: losses.crossentropy_from_logits(target, z), z
        )
        true = np.log1p(np.e)
        np.testing.assert_allclose(value, [true, 0.0], rtol=VALUE)
        p = 1.0 / (1.0 + np.e)
        np.testing.assert_allclose(
            gradient, [[p - 1.0, 0.0, 1.0 - p, 0.0], [0.0] * 4], rtol=GRADIENT
        )


def test_a_label_whose_class_was_taken_out_costs_infinity_with_a_finite_gradient():
    z = [[-INF, 0.0, 0.0]]
    value, gradient = value_and_gradient(
        lambda z: losses.crossentropy_from_logits([0], z), z
    )
    assert value[0] == INF
    np.testing.assert_allclose(gradient, [[-1.0, 0.5, 0.5]], rtol=GRADIENT)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("dense", [False, True])
def test_a_weight_of_0_makes_a_class_that_was_taken_out_free(dense, gamma):
    z = [[-INF, 0.0, 0.0], [0.0, -INF, 0.0]]
    target = np.eye(3, dtype="float32")[:2] if dense else np.array([0, 1])
    options = {"class_weights": [0.0, 2.0, 1.0], "focal_gamma": gamma}
    value, gradient = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(target, z, **options), z
    )
    assert value.tolist() == [0.0, INF]
    # 1 - p is 1 there, and its derivative 0: focusing changes nothing.
    expected = [[0.0, 0.0, 0.0], [1.0, -2.0, 1.0]]
    np.testing.assert_allclose(gradient, expected, rtol=GRADIENT)


def test_a_logit_of_plus_infinity_settles_the_class():
    z = np.array([[INF, 0.0], [INF, 0.0]], "float32")
    value = losses.crossentropy_from_logits([0, 1], z)
    assert ops.convert_to_numpy(value).tolist() == [0.0, INF]


def exact_divergence(direction, p, q):
    """Return value, gradient in the logits of p, and the size of what it is made of."""
    log = [mpmath.log(a / b) if a else mpmath.mpf(0) for a, b in zip(p, q, strict=True)]
    if direction == "forward":
        value = mpmath.fsum(-b * r for b, r in zip(q, log, strict=True))
        gradient = [a - b for a, b in zip(p, q, strict=True)]
        return value, gradient, [a + b for a, b in zip(p, q, strict=True)]
    if direction == "reverse":
        value = mpmath.fsum(a * r for a, r in zip(p, log, strict=True))
        slope = log
    else:
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        slope = [mpmath.log(a / c) / 2 for a, c in zip(p, m, strict=True)]
        other = mpmath.fsum(
            b * mpmath.log(b / c) / 2 for b, c in zip(q, m, strict=True)
        )
        value = other + mpmath.fsum(a * s for a, s in zip(p, slope, strict=True))
    mean = mpmath.fsum(a * s for a, s in zip(p, slope, strict=True))
    gradient = [a * (s - mean) for a, s in zip(p, slope, strict=True)]
    size = [a * (abs(s) + abs(mean)) for a, s in zip(p, slope, strict=True)]
    return value, gradient, size


def divergence_and_truth(direction, w, z):
    """Value and gradient between logits, and each row's value, gradient and size."""
    value, gradient = value_and_gradient(
        lambda z: losses.kl_divergence_from_logits(
            w, z, target_form="logits", direction=direction
        ),
        z,
    )
    with mpmath.workdps(60):
        true = [
            exact_divergence(direction, exact_softmax(a), exact_softmax(b))
            for a, b in zip(z, w, strict=True)
        ]
    return value, gradient, true


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
def test_divergence_between_logits_is_exact_from_1e_6_to_1e4(direction):
    z, w = rows(5, each=3), rows(5, each=3, seed=1)
    value, gradient, true = divergence_and_truth(direction, w, z)
    true_value = np.array([float(t[0]) for t in true])
    assert relative_error(value, true_value) < VALUE
    assert np.isfinite(gradient).all()
    # An entry that is a small difference of large terms is right to the terms' size.
    true_gradient = np.array([[float(g) for g in t[1]] for t in true])
    size = np.array([[float(s) for s in t[2]] for t in true])
    off = np.abs(gradient - true_gradient)
    row = np.abs(true_gradient).max(axis=1, keepdims=True)
    assert (off <= GRADIENT * np.abs(true_gradient) + 5e-7 * size + SMALLEST).all()
    # And in a row as a whole there is no such excuse, as long as float32 can hold it.
    far = row[:, 0] > SMALLEST
    assert (off[far] <= GRADIENT * row[far]).all()


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
def test_divergence_between_close_and_confident_distributions_keeps_its_digits(
    direction,
):
    # What differs is a share of exp(-gap), which the ratio of the sure class must show.
    gaps = np.float32([1, 5, 17, 30, 60])[:, None]
    w = gaps * np.float32([1, 0, 0, 0]) + np.float32([0, 0, -1, 0.5])
    z = w + np.float32([-0.25, 0.1, 0.3, 0.1])
    value, gradient, true = divergence_and_truth(direction, w, z)
    true_value = np.array([float(t[0]) for t in true])
    assert relative_error(value, true_value) < VALUE
    true_gradient = np.array([[float(g) for g in t[1]] for t in true])
    off = np.abs(gradient - true_gradient)
    assert (off <= GRADIENT * np.abs(true_gradient).max(axis=1, keepdims=True)).all()


def test_divergence_from_a_certain_target_is_200_with_gradient_minus_1_and_1():
    value, gradient = value_and_gradient(
        lambda z: losses.kl_divergence_from_logits([[1.0, 0.0]], z), [[0.0, 200.0]]
    )
    assert value.tolist() == [200.0]
    assert gradient.tolist() == [[-1.0, 1.0]]


@pytest.mark.open_on("3.12")
def test_keras_own_divergence_clips_the_same_case():
    # Negative control, and the trap that the loss exists for.
    value, gradient = value_and_gradient(
        lambda z: keras.losses.kl_divergence(
            ops.convert_to_tensor([[1.0, 0.0]]), ops.softmax(z)
        ),
        [[0.0, 200.0]],
    )
    assert value[0] < 17.0
    assert not gradient.any()


def test_divergence_from_probabilities_and_from_their_logarithms_agree():
    rng = np.random.default_rng(3)
    q = rng.dirichlet(np.ones(6), 8)
    z = rng.standard_normal((8, 6)).astype("float32") * 5
    q32 = q.astype("float32")
    wide = z.astype("float64")
    log_p = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    q64 = q32.astype("float64") / q32.astype("float64").sum(axis=1, keepdims=True)
    true = (q64 * (np.log(q64) - log_p)).sum(axis=1)
    for target, form in ((q32, "probabilities"), (np.log(q32), "log_probabilities")):
        value, gradient = value_and_gradient(
            lambda z, t=target, f=form: losses.kl_divergence_from_logits(
                t, z, target_form=f
            ),
            z,
        )
        np.testing.assert_allclose(value, true, rtol=VALUE)
        np.testing.assert_allclose(
            gradient, np.exp(log_p) - q64, rtol=GRADIENT, atol=5e-7
        )


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
def test_a_class_that_both_sides_exclude_leaves_the_gradient_finite(direction):
    def cost(form, q):
        return value_and_gradient(
            lambda z: losses.kl_divergence_from_logits(
                q, z, target_form=form, direction=direction
            ),
            [[0.0, 1.0, -INF]],
        )

    q = np.float32([[0.25, 0.75, 0.0]])
    with np.errstate(divide="ignore"):
        value, gradient = cost("log_probabilities", np.log(q))
    same, slope = cost("probabilities", q)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, same, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4)


def test_temperature_divides_the_logits_and_scales_the_loss_by_its_square():
    z, w = rows(4, each=1, seed=4)[:5], rows(4, each=1, seed=5)[:5]
    value, _ = value_and_gradient(
        lambda z: losses.kl_divergence_from_logits(
            w, z, target_form="logits", temperature=4.0
        ),
        z,
    )
    with mpmath.workdps(60):
        true = [
            16
            * float(
                exact_divergence("forward", exact_softmax(a / 4), exact_softmax(b / 4))[
                    0
                ]
            )
            for a, b in zip(z.astype("float64"), w.astype("float64"), strict=True)
        ]
    np.testing.assert_allclose(value, true, rtol=VALUE)


@pytest.mark.parametrize("direction", ["forward", "jensen_shannon"])
def test_divergence_with_masked_classes_is_that_of_the_classes_left(direction):
    z, w = rows(4, each=1, seed=6)[:6], rows(4, each=1, seed=7)[:6]
    masked_z, masked_w = z.copy(), w.copy()
    masked_z[:, 2], masked_w[:, 2] = -INF, -INF
    value, gradient = value_and_gradient(
        lambda z: losses.kl_divergence_from_logits(
            masked_w, z, target_form="logits", direction=direction
        ),
        masked_z,
    )
    kept = [0, 1, 3]
    with mpmath.workdps(60):
        true = [
            exact_divergence(direction, exact_softmax(a), exact_softmax(b))
            for a, b in zip(z[:, kept], w[:, kept], strict=True)
        ]
    true_gradient = np.array([[float(g) for g in t[1]] for t in true])
    np.testing.assert_allclose(value, [float(t[0]) for t in true], rtol=VALUE)
    off = np.abs(gradient[:, kept] - true_gradient)
    row = np.abs(true_gradient).max(axis=1, keepdims=True)
    assert (off <= GRADIENT * row).all()
    assert not gradient[:, 2].any()


@pytest.mark.parametrize("classes", [2, 10])
def test_confidence_penalty_is_exact_from_1e_6_to_1e4(classes):
    z = rows(classes)
    value, gradient = value_and_gradient(
        lambda z: losses.confidence_penalty(z, weight=1.0), z
    )
    with mpmath.workdps(60):
        true_value, true_gradient = [], []
        for row in z:
            p = exact_softmax(row)
            log_p = [mpmath.log(a) for a in p]
            negative = mpmath.fsum(a * b for a, b in zip(p, log_p, strict=True))
            true_value.append(float(negative))
            true_gradient.append(
                [float(a * (b - negative)) for a, b in zip(p, log_p, strict=True)]
            )
    true_gradient = np.array(true_gradient)
    assert relative_error(value, np.array(true_value)) < VALUE
    row = np.abs(true_gradient).max(axis=1, keepdims=True)
    seen = row[:, 0] > SMALLEST
    assert (np.abs(gradient - true_gradient)[seen] <= GRADIENT * row[seen]).all()


@pytest.mark.parametrize("activation", ["linear", "softmax"])
def test_squared_error_is_exact(activation):
    z = rows(10)
    y = labels_for(z)
    value, gradient = value_and_gradient(
        lambda z: losses.mean_squared_error_from_logits(y, z, activation=activation), z
    )
    one_hot = np.eye(10)[y]
    if activation == "linear":
        residual = z.astype("float64") - one_hot
        true_value, true_gradient = (residual**2).mean(axis=1), 0.2 * residual
    else:
        true_value, true_gradient = [], []
        with mpmath.workdps(60):
            for row, hot in zip(z, one_hot, strict=True):
                p = exact_softmax(row)
                r = [a - int(b) for a, b in zip(p, hot, strict=True)]
                true_value.append(float(mpmath.fsum(a * a for a in r) / 10))
                mean = mpmath.fsum(a * b for a, b in zip(p, r, strict=True))
                true_gradient.append(
                    [float(a * (b - mean) / 5) for a, b in zip(p, r, strict=True)]
                )
        true_value, true_gradient = np.array(true_value), np.array(true_gradient)
    assert relative_error(value, true_value) < VALUE
    row = np.abs(true_gradient).max(axis=1, keepdims=True)
    seen = row[:, 0] > SMALLEST
    assert (np.abs(gradient - true_gradient)[seen] <= GRADIENT * row[seen]).all()


@pytest.mark.parametrize("dense", [False, True])
def test_a_constant_added_to_the_logits_changes_no_bit(dense):
    # Multiples of 1/8 stay exact when 1024 is added, so nothing else can change.
    z = np.random.default_rng(8).integers(-64, 64, (6, 5)) / 8.0
    y = np.arange(6) % 5
    target = np.eye(5, dtype="float32")[y] if dense else y
    plain = value_and_gradient(lambda z: losses.crossentropy_from_logits(target, z), z)
    shifted = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(target, z), z + 1024.0
    )
    np.testing.assert_array_equal(plain[0], shifted[0])
    np.testing.assert_array_equal(plain[1], shifted[1])


def test_equal_logits_share_the_gradient():
    value, gradient = value_and_gradient(
        lambda z: losses.crossentropy_from_logits([0, 1], z), np.zeros((2, 4))
    )
    np.testing.assert_allclose(value, np.log([4.0, 4.0]), rtol=VALUE)
    np.testing.assert_allclose(
        gradient,
        [[-0.75, 0.25, 0.25, 0.25], [0.25, -0.75, 0.25, 0.25]],
        rtol=GRADIENT,
    )


def test_options_of_crossentropy_match_the_formula_in_value_and_gradient():
    rng = np.random.default_rng(9)
    z = (rng.standard_normal((6, 5)) * 3).astype("float32")
    y = np.array([0, 1, 2, 3, 4, 0])
    weights = [1.0, 0.5, 2.0, 0.25, 3.0]
    options = {
        "label_smoothing": 0.1,
        "class_weights": weights,
        "temperature": 1.5,
        "focal_gamma": 2.0,
        "z_loss": 0.01,
    }

    def formula(z):
        scaled = z / 1.5
        lse = np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        log_p = scaled - lse
        q = 0.9 * np.eye(5)[y] + 0.02
        terms = -np.array(weights) * q * (1 - np.exp(log_p)) ** 2 * log_p
        return terms.sum(axis=1) + 0.01 * lse[:, 0] ** 2

    value, gradient = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(y, z, **options), z
    )
    wide = z.astype("float64")
    np.testing.assert_allclose(value, formula(wide), rtol=VALUE)
    for j in range(5):
        step = np.zeros_like(wide)
        step[:, j] = 1e-5
        slope = (formula(wide + step) - formula(wide - step)) / 2e-5
        np.testing.assert_allclose(gradient[:, j], slope, rtol=GRADIENT, atol=1e-7)


@pytest.mark.parametrize("option", ["class_weights", "focal_gamma", "z_loss"])
def test_each_option_is_the_same_for_labels_and_for_one_hot_targets(option):
    z = np.random.default_rng(10).standard_normal((5, 4)).astype("float32") * 4
    y = np.array([0, 1, 2, 3, 1])
    options = {
        "class_weights": {"class_weights": [1.0, 2.0, 0.5, 3.0]},
        "focal_gamma": {"focal_gamma": 2.0},
        "z_loss": {"z_loss": 0.1},
    }[option]
    hard = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(y, z, **options), z
    )
    dense = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(
            np.eye(4, dtype="float32")[y], z, **options
        ),
        z,
    )
    np.testing.assert_allclose(hard[0], dense[0], rtol=VALUE)
    np.testing.assert_allclose(hard[1], dense[1], rtol=GRADIENT, atol=1e-7)


@pytest.mark.backend("tensorflow", "torch")
def test_float64_logits_are_computed_in_float64():
    z = ops.convert_to_tensor(rows(5, each=1).astype("float64"), "float64")
    wide = ops.convert_to_numpy(z)
    log_p = wide - wide.max(axis=1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    y = np.arange(len(wide)) % 5
    one_hot = np.eye(5)[y]
    nats = -(one_hot * log_p).sum(axis=1)
    p = np.exp(log_p)
    expected = {
        losses.crossentropy_from_logits: nats,
        losses.kl_divergence_from_logits: nats,
        losses.mean_squared_error_from_logits: ((wide - one_hot) ** 2).mean(axis=1),
    }
    for cost, true in expected.items():
        value = cost(one_hot, z)
        assert keras.backend.standardize_dtype(value.dtype) == "float64"
        np.testing.assert_allclose(ops.convert_to_numpy(value), true, rtol=1e-12)
    for value, true in (
        (losses.crossentropy_from_logits(y, z), nats),
        (losses.confidence_penalty(z, weight=1.0), (p * log_p).sum(axis=1)),
    ):
        got = ops.convert_to_numpy(value)
        np.testing.assert_allclose(got, true, rtol=1e-12, atol=1e-15)
    js = losses.kl_divergence_from_logits(
        z * 0.5, z, target_form="logits", direction="jensen_shannon"
    )
    assert keras.backend.standardize_dtype(js.dtype) == "float64"


@pytest.mark.backend("torch")
@pytest.mark.parametrize("classes", [2, 10, 5000])
def test_pytorchs_own_functions_give_the_bits_of_keras_ops(classes):
    from fmkit import _math

    z = np.concatenate([rows(classes), rows(classes) - np.float32(1e30)])
    z[3, 0], z[4, 1:], z[5, 0] = -INF, -INF, INF
    labels = ops.convert_to_tensor(np.arange(len(z)) % classes)
    own = _math.namespace(labels)
    assert own is not ops
    assert set(vars(_math.numpy_ops)) <= set(vars(own))

    def cost(z, xp):
        picked = _math.one_hot_mask(labels, classes, 1, xp)
        first, second = _math.surprisal(*_math.split(z, picked, 1, xp), xp)
        if z.dtype.itemsize == 4:  # there it is one node, see test_torch_nodes.py
            return first + second
        return first + second + _math.surprisals(z, 1, xp)

    for dtype in ("float32", "float64"):
        for theirs, ours in zip(
            value_and_gradient(lambda z: cost(z, ops), z, dtype),
            value_and_gradient(lambda z: cost(z, _math.namespace(z)), z, dtype),
            strict=True,
        ):
            assert theirs.tobytes() == ours.tobytes()
            assert np.isfinite(theirs).any()
