"""Networks: sizes by hand arithmetic, outputs by NumPy, starts by their laws."""

import keras
import numpy as np
import pytest

from fmkit import models

# One row per factory, from the seed: tests/test_contracts.py.
NETWORKS = {
    "lenet5": lambda seed: models.lenet5(filters=(2, 3), units=(5,), seed=seed),
    "linear": lambda seed: models.linear(num_classes=3, seed=seed),
    "mlp": lambda seed: models.mlp(
        (8, 8),
        activation=models.scaled_tanh,
        batch_norm=True,
        dropout=0.1,
        l2=1e-4,
        half_l2=True,
        seed=seed,
    ),
    "simple_cnn": lambda seed: models.simple_cnn(
        (3,), kernel_initializer=("he_normal", {}), seed=seed
    ),
    "small_resnet": lambda seed: models.small_resnet((2, 4), dropout=0.2, seed=seed),
}

VARIANTS = {
    "lenet5 of 1998": lambda seed: models.lenet5(
        variant="lecun1998", l1=1e-5, seed=seed
    )
}

# Every network of the tutorials, with its number of weights written out.
TUTORIALS = [
    (
        models.mlp,
        {},
        (784 * 256 + 256) + (256 * 128 + 128) + (128 * 64 + 64) + (64 * 32 + 32) + 330,
    ),
    (models.mlp, {"units": (500,)}, 397_510),
    (models.mlp, {"units": (128,)}, 101_770),
    (models.mlp, {"units": (512,)}, 784 * 512 + 512 + 512 * 10 + 10),
    (
        models.mlp,
        {"units": (10, 10), "num_classes": 1, "activation": "sigmoid"},
        7850 + 110 + 11,
    ),
    (models.mlp, {"units": (4,), "num_classes": 2, "input_shape": (3,)}, 26),
    (models.mlp, {"units": (11,), "num_classes": 1, "input_shape": (2,)}, 33 + 12),
    (
        models.mlp,
        {"units": (3,), "num_classes": 1, "input_shape": (2,), "use_bias": False},
        2 * 3 + 3,
    ),
    (models.linear, {}, 785),
    (models.linear, {"num_classes": 10}, 7850),
    (models.lenet5, {}, 61_610),
    # Section II.B of the paper: 156, 12, 1516, 32, 48120, 10164; then our output.
    (
        models.lenet5,
        {"variant": "lecun1998"},
        156 + 12 + 1516 + 32 + 48_120 + 10_164 + 850,
    ),
    (models.simple_cnn, {}, 520 + 10_020 + 9_810),
    (
        models.small_resnet,
        {},
        # 3x3 filters, 1x1 filters, four numbers a map for BatchNorm, output
        9 * (16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
        + (16 * 32 + 32 * 64)
        + 4 * (16 + 2 * 16 + 3 * 32 + 3 * 64)
        + 650,
    ),
]


@pytest.mark.parametrize(
    ("factory", "options", "weights"),
    TUTORIALS,
    ids=[f"{factory.__name__}-{weights}" for factory, _, weights in TUTORIALS],
)
def test_a_network_is_plain_and_has_the_tutorials_number_of_weights(
    factory, options, weights
):
    model = factory(kernel_initializer="zeros", **options)
    assert model.count_params() == weights
    assert not model.compiled
    assert model.name == factory.__name__
    assert model.layers[-1].activation is keras.activations.linear
    default = 1 if factory is models.linear else 10
    assert model.output_shape == (None, options.get("num_classes", default))


def test_the_tutorials_own_network_has_244522_weights_and_the_cnn_980_features():
    assert models.mlp(kernel_initializer="zeros").count_params() == 244_522
    cnn = models.simple_cnn(kernel_initializer="zeros")
    assert cnn.get_layer("flatten").output.shape == (None, 980)
    resnet = models.small_resnet(kernel_initializer="zeros")
    assert resnet.count_params() < 100_000


def test_the_output_activation_makes_probabilities_of_the_same_scores():
    x = np.random.default_rng(0).normal(size=(5, 28, 28)).astype("float32")
    raw = numbers(models.mlp(seed=3)(x)).astype("float64")
    soft = numbers(models.mlp(seed=3, output_activation="softmax")(x))
    expected = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(soft, expected, atol=1e-6)


# --- what they compute ------------------------------------------------------------


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def weights_of(model, layer):
    return [numbers(w).astype("float64") for w in model.get_layer(layer).weights]


def convolve(x, kernel, bias, padding=0):
    """Filters over images, (n, h, w, c) with (k, k, c, f), in float64."""
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    return np.einsum("nhwcij,ijcf->nhwf", windows, kernel) + bias


def halve(x, reduce):
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return reduce(x, axis=(2, 4))


def relu(x):
    return np.maximum(x, 0.0)


def images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


@pytest.mark.parametrize("bias", [True, False])
def test_mlp_computes_its_formula(bias):
    model = models.mlp(
        (7, 5),
        3,
        input_shape=(4, 6),
        use_bias=bias,
        bias_initializer="normal",
        activation="tanh",
    )
    x = images(9, 4, 6)
    h = x.astype("float64").reshape(9, 24)
    for layer in ("hidden_1", "hidden_2", "output"):
        kernel, offset = [*weights_of(model, layer), 0.0][:2]
        h = h @ kernel + offset
        h = np.tanh(h) if layer != "output" else h
    np.testing.assert_allclose(numbers(model(x)), h, atol=1e-5)


def paddle_lenet(model, x):
    x = halve(relu(convolve(x, *weights_of(model, "conv_1"), padding=1)), np.max)
    x = halve(relu(convolve(x, *weights_of(model, "conv_2"))), np.max)
    x = x.reshape(len(x), -1)
    for layer in ("hidden_1", "hidden_2", "output"):  # no activation between them
        kernel, bias = weights_of(model, layer)
        x = x @ kernel + bias
    return x


# Table I of the paper, one line a map of S2, one column a map of C3.
TABLE = [
    "X...XXX..XXXX.XX",
    "XX...XXX..XXXX.X",
    "XXX...XXX..X.XXX",
    ".XXX..XXXX..X.XX",
    "..XXX..XXXX.XX.X",
    "...XXX..XXXX.XXX",
]


def lecun_lenet(model, x, table=TABLE):
    def squash(x):
        return 1.7159 * np.tanh(2.0 * x / 3.0)

    def subsample(x, layer):
        factor, offset = weights_of(model, layer)
        return squash(halve(x, np.mean) * factor.reshape(-1) + offset)

    x = subsample(squash(convolve(x, *weights_of(model, "c1"), padding=2)), "s2")
    maps = []
    for k in range(16):
        seen = [row for row in range(6) if table[row][k] == "X"]
        maps.append(convolve(x[..., seen], *weights_of(model, f"c3_{k}")))
    x = subsample(squash(np.concatenate(maps, axis=-1)), "s4").reshape(len(x), -1)
    for layer in ("hidden_1", "hidden_2", "output"):
        kernel, bias = weights_of(model, layer)
        x = x @ kernel + bias
        x = x if layer == "output" else squash(x)
    return x


def simple_cnn(model, x, reduce):
    for block in (1, 2):
        kernel, bias = weights_of(model, f"conv_{block}")
        x = halve(relu(convolve(x, kernel, bias, padding=2)), reduce)
    kernel, bias = weights_of(model, "output")
    return x.reshape(len(x), -1) @ kernel + bias


def test_lenet_of_paddle_has_no_activation_between_its_dense_layers():
    model = models.lenet5(seed=2, bias_initializer="normal")
    x = images(3, 28, 28)
    expected = paddle_lenet(model, x[..., None].astype("float64"))
    np.testing.assert_allclose(numbers(model(x)), expected, atol=2e-5)
    # Negative control: with the activation that others put there, it differs.
    other = models.lenet5(seed=2, bias_initializer="normal", dense_activation="relu")
    other.set_weights(model.get_weights())
    assert np.abs(numbers(other(x)) - expected).max() > 1e-2


def test_lenet_of_1998_follows_the_papers_table_of_connections():
    model = models.lenet5(variant="lecun1998", seed=2, bias_initializer="normal")
    x = images(2, 28, 28)
    expected = lecun_lenet(model, x[..., None].astype("float64"))
    np.testing.assert_allclose(numbers(model(x)), expected, atol=2e-5)
    # Negative control: the same table upside down.
    wrong = lecun_lenet(model, x[..., None].astype("float64"), TABLE[::-1])
    assert np.abs(wrong - expected).max() > 1e-2


@pytest.mark.parametrize(("pooling", "reduce"), [("max", np.max), ("average", np.mean)])
def test_simple_cnn_computes_its_formula(pooling, reduce):
    model = models.simple_cnn(pooling=pooling, bias_initializer="normal")
    x = images(2, 28, 28)
    expected = simple_cnn(model, x[..., None].astype("float64"), reduce)
    np.testing.assert_allclose(numbers(model(x)), expected, atol=2e-5)


def test_a_residual_block_with_silent_filters_hands_its_input_through():
    model = models.small_resnet((4,), input_shape=(8, 8), seed=5)
    parts = [model.get_layer(n) for n in ("stem_activation", "block_1_activation")]
    inside = keras.Model(model.input, [part.output for part in parts])
    x = images(2, 8, 8)
    before, after = map(numbers, inside(x))
    assert np.abs(before - after).max() > 0.1
    for name in ("block_1_1_conv", "block_1_2_conv"):
        kernel = model.get_layer(name).kernel
        kernel.assign(keras.ops.zeros(kernel.shape))
    before, after = map(numbers, inside(x))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("side", [8, 7])
def test_a_residual_block_that_halves_adapts_every_second_pixel(side):
    model = models.small_resnet((3, 5), input_shape=(side, side), seed=5)
    names = ("block_1_activation", "block_2_shortcut_conv")
    parts = [model.get_layer(name) for name in names]
    inside = keras.Model(model.input, [part.output for part in parts])
    before, after = map(numbers, inside(images(2, side, side)))
    kernel = numbers(parts[1].kernel)[0, 0].astype("float64")
    expected = before[:, ::2, ::2].astype("float64") @ kernel
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_scaled_tanh_meets_the_numbers_of_the_paper():
    x = keras.ops.convert_to_tensor([-1.0, 0.0, 1.0, 1e4, 2.0])
    expected = [-1.0, 0.0, 1.0, 1.7159, 1.7159 * np.tanh(4.0 / 3.0)]
    np.testing.assert_allclose(numbers(models.scaled_tanh(x)), expected, atol=1e-5)


# --- shapes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "factory",
    [
        models.lenet5,
        models.simple_cnn,
        lambda **kw: models.small_resnet((4, 8), **kw),
    ],
)
def test_a_channel_axis_of_one_changes_nothing(factory):
    x = images(2, 28, 28)
    flat, with_axis = factory(seed=4), factory(seed=4, input_shape=(28, 28, 1))
    np.testing.assert_array_equal(numbers(flat(x)), numbers(with_axis(x[..., None])))
    assert factory(input_shape=(28, 20, 3)).input_shape == (None, 28, 20, 3)


@pytest.mark.backend("jax", "torch")  # TensorFlow has no such filters on a CPU
@pytest.mark.parametrize(
    "build",
    [
        models.lenet5,
        lambda **kw: models.lenet5(variant="lecun1998", **kw),
        models.simple_cnn,
        lambda **kw: models.small_resnet((4, 8), **kw),
    ],
)
def test_channels_first_computes_the_same_from_the_same_weights(build):
    last = build(seed=4, input_shape=(28, 28, 2), data_format="channels_last")
    first = build(seed=9, input_shape=(2, 28, 28), data_format="channels_first")
    first.set_weights(last.get_weights())
    x = images(2, 28, 28, 2)
    np.testing.assert_allclose(
        numbers(first(x.transpose(0, 3, 1, 2))), numbers(last(x)), atol=2e-5
    )


def test_keras_own_data_format_is_the_default():
    keras.config.set_image_data_format("channels_first")
    try:
        model = models.lenet5()
    finally:
        keras.config.set_image_data_format("channels_last")
    assert model.get_layer("add_channel").output.shape == (None, 1, 28, 28)
    assert model.count_params() == 61_610


@pytest.mark.parametrize(
    ("build", "least"),
    [
        (models.lenet5, 12),
        (models.simple_cnn, 4),
        (lambda **kw: models.simple_cnn((8, 8, 8, 8), **kw), 16),
    ],
)
def test_an_image_too_small_for_the_pooling_is_refused_before_training(build, least):
    with pytest.raises(ValueError, match=rf"at least {least}x{least}"):
        build(input_shape=(least, least - 1))
    # Negative control: the size that the message names does work.
    small = build(input_shape=(least, least), kernel_initializer="zeros")
    assert small.output_shape == (None, 10)


def test_lenet_of_1998_takes_28_or_32_pixels_and_its_own_filters():
    build = lambda **kw: models.lenet5(  # noqa: E731
        variant="lecun1998", kernel_initializer="zeros", **kw
    )
    assert build(input_shape=(32, 32)).count_params() == build().count_params()
    with pytest.raises(ValueError, match="28x28 or 32x32 pixels, got 30x30"):
        build(input_shape=(30, 30))
    with pytest.raises(ValueError, match=r"must be \(6, 16\), got \(8, 16\)"):
        build(filters=(8, 16))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.mlp(256), TypeError, r"Write \(256,\)\."),
        (lambda: models.mlp((64, 0)), ValueError, r"units\[1\]` must be at least 1"),
        (lambda: models.mlp((64.0,)), TypeError, r"units\[0\]` must be an integer"),
        (lambda: models.mlp(input_shape=784), TypeError, r"Write \(784,\)\."),
        (lambda: models.mlp(input_shape=()), ValueError, r"write \(28, 28\)"),
        (lambda: models.mlp(dropout=1.0), ValueError, "below 1"),
        (lambda: models.mlp(l2=-1.0), ValueError, "`l2` must be a finite number"),
        (lambda: models.mlp(seed=-1), ValueError, "`seed` must be at least 0"),
        (lambda: models.linear(0), ValueError, "num_classes"),
        (lambda: models.lenet5(filters=(6,)), ValueError, "must have 2 entries"),
        (lambda: models.lenet5(variant="padle"), ValueError, "mean 'paddle'?"),
        (lambda: models.simple_cnn(pooling="mean"), ValueError, "'average'"),
        (lambda: models.small_resnet(()), ValueError, "must not be empty"),
        (
            lambda: models.lenet5(input_shape=(784,)),
            ValueError,
            r"x\.reshape\(-1, 28, 28\)",
        ),
    ],
)
def test_a_refused_argument_says_what_to_write(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- starts -----------------------------------------------------------------------


def starts(model):
    return [numbers(w) for w in model.weights]


def differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_without_a_seed_the_weights_follow_keras_own():
    keras.utils.set_random_seed(5)
    first, second = starts(models.mlp()), starts(models.mlp())
    keras.utils.set_random_seed(5)
    assert not differ(first, starts(models.mlp()))
    assert differ(first, second)


@pytest.mark.parametrize("seed", [None, 3])
def test_layers_of_one_shape_start_differently_from_one_initializer_object(seed):
    start = keras.initializers.TruncatedNormal(stddev=0.1)
    model = models.mlp((8, 8, 8), input_shape=(8,), kernel_initializer=start, seed=seed)
    kernels = [weights_of(model, f"hidden_{k}")[0] for k in (1, 2, 3)]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])
    # Negative control: the same object in two layers of Keras gives equal weights.
    twins = [keras.layers.Dense(8, kernel_initializer=start) for _ in range(2)]
    for twin in twins:
        twin.build((None, 8))
    np.testing.assert_array_equal(numbers(twins[0].kernel), numbers(twins[1].kernel))


def test_an_initializer_with_its_own_seed_keeps_it():
    start = keras.initializers.RandomNormal(stddev=1.0, seed=1)
    kernels = [
        weights_of(
            models.mlp((3,), 1, input_shape=(2,), kernel_initializer=start, seed=s),
            "hidden_1",
        )[0]
        for s in (1, 2)
    ]
    np.testing.assert_array_equal(*kernels)
    np.testing.assert_array_equal(kernels[0], numbers(start((2, 3))))


def test_the_tf1_courses_start_is_truncated_normal_weights_and_constant_biases():
    model = models.mlp(
        (500,),
        kernel_initializer=("truncated_normal", {"stddev": 0.1}),
        bias_initializer=0.1,
        seed=0,
    )
    kernel, bias = weights_of(model, "hidden_1")
    assert np.abs(kernel).max() <= 0.2 + 1e-6
    # A normal cut at two standard deviations has 0.8796 of its deviation left.
    assert kernel.std() == pytest.approx(0.08796, rel=0.01)
    np.testing.assert_allclose(bias, 0.1, rtol=1e-6)
    # Negative control: Keras's own start under that name is half as wide.
    plain = models.mlp((500,), kernel_initializer="truncated_normal", seed=0)
    assert weights_of(plain, "hidden_1")[0].std() == pytest.approx(0.04398, rel=0.01)


def test_lenet_of_1998_starts_uniform_with_variance_one_by_the_number_of_inputs():
    model = models.lenet5(variant="lecun1998", seed=0)
    fans = {"c1": 25, "c3_0": 75, "c3_6": 100, "c3_15": 150, "hidden_1": 400}
    fans |= {"hidden_2": 120, "output": 84}
    for layer, fan_in in fans.items():
        kernel = weights_of(model, layer)[0]
        bound = np.sqrt(3 / fan_in)
        assert 0.9 * bound < np.abs(kernel).max() <= bound * 1.0001


def test_every_offset_of_lenet_of_1998_starts_as_told():
    model = models.lenet5(variant="lecun1998", bias_initializer=0.1)
    offsets = {w.path: numbers(w) for w in model.weights if w.path.endswith("bias")}
    assert {"s2/bias", "s4/bias"} < {"/".join(path.split("/")[-2:]) for path in offsets}
    for values in offsets.values():
        np.testing.assert_allclose(values, 0.1, rtol=1e-6)


# --- penalties, BatchNorm, dropout --------------------------------------------------


def penalty(model):
    return sum(float(numbers(loss)) for loss in model.losses)


def test_the_penalties_count_weights_only_and_half_l2_halves_the_square():
    shape = {"input_shape": (5,), "bias_initializer": 3.0, "seed": 1}
    plain = models.mlp((4,), 2, **shape)
    kernels = [weights_of(plain, layer)[0] for layer in ("hidden_1", "output")]
    square = sum(float((w**2).sum()) for w in kernels)
    absolute = sum(float(np.abs(w).sum()) for w in kernels)
    assert plain.losses == []
    for options, expected in [
        ({"l2": 0.1}, 0.1 * square),
        ({"l2": 0.1, "half_l2": True}, 0.05 * square),
        ({"l1": 0.2, "l2": 0.1}, 0.2 * absolute + 0.1 * square),
    ]:
        model = models.mlp((4,), 2, **shape, **options)
        assert penalty(model) == pytest.approx(expected, rel=1e-5)


@pytest.mark.backend("tensorflow")
def test_half_l2_is_tensorflow_ones_l2_loss():
    import tensorflow as tf

    model = models.mlp((11,), 1, input_shape=(2,), l2=0.01, half_l2=True)
    kernels = [model.get_layer(n).kernel.value for n in ("hidden_1", "output")]
    expected = 0.01 * sum(float(tf.nn.l2_loss(w)) for w in kernels)
    assert penalty(model) == pytest.approx(expected, rel=1e-5)


def test_convolutions_are_penalised_too():
    plain, model = models.simple_cnn(seed=1), models.simple_cnn(seed=1, l2=0.1)
    kernels = [weights_of(plain, n)[0] for n in ("conv_1", "conv_2", "output")]
    expected = 0.1 * sum(float((w**2).sum()) for w in kernels)
    assert penalty(model) == pytest.approx(expected, rel=1e-5)


def test_batch_norm_stands_before_the_activation_and_replaces_the_bias():
    model = models.mlp((6,), 2, input_shape=(3,), batch_norm=True)
    assert not model.get_layer("hidden_1").use_bias
    assert model.get_layer("output").use_bias
    before = keras.Model(model.input, model.get_layer("norm_1").output)
    z = numbers(before(10 + 3 * images(64, 3), training=True))
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1.0, atol=1e-2)
    without = models.mlp((6,), 2, input_shape=(3,), batch_norm=True, use_bias=False)
    assert not without.get_layer("norm_1").center


def test_dropout_acts_in_training_only_and_repeats_with_its_seed():
    x = np.ones((4, 28, 28), "float32")
    first, again, other = (models.mlp(dropout=0.5, seed=s) for s in (1, 1, 2))
    other.set_weights(first.get_weights())
    np.testing.assert_array_equal(numbers(first(x)), numbers(other(x)))
    trained = numbers(first(x, training=True))
    np.testing.assert_array_equal(trained, numbers(again(x, training=True)))
    assert not np.array_equal(trained, numbers(other(x, training=True)))
    assert not np.array_equal(trained, numbers(first(x)))


# --- labels against outputs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (10, [0, 9]),
        (10, [[3], [4]]),
        (10, np.array([1.0, 2.0], "float32")),
        (3, np.eye(3)),
        (1, [0.5, -7.25]),
        (1, [[0.0], [1.0]]),
    ],
)
def test_labels_that_fit_pass(outputs, labels):
    assert models.check_outputs(models.linear(outputs), labels) is None


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "message"),
    [
        (5, [0, 9], ValueError, "go up to 9.*has 5.*`num_classes=10`"),
        (10, [0, 10], ValueError, "`num_classes=11`"),
        (5, np.eye(10), ValueError, "10 columns.*5 outputs.*`num_classes=10`"),
        (1, np.eye(10), ValueError, "10 columns.*1 output. Build"),
        (10, [-1, 3], ValueError, "start at 0, got -1"),
        (10, [0.5, 1.0], TypeError, "whole numbers 0 to 9.*`num_classes=1`"),
        (10, ["Coat", "Bag"], TypeError, "number them first"),
        (10, [float("nan")], TypeError, "whole numbers"),
        (10, [], ValueError, "no elements"),
        (10, np.zeros((2, 3, 4)), ValueError, r"got \(2, 3, 4\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(outputs, labels, error, message):
    with pytest.raises(error, match=message):
        models.check_outputs(models.linear(outputs), labels)


def test_a_model_of_several_outputs_is_refused():
    inputs = keras.Input((3,))
    two = keras.Model(inputs, [keras.layers.Dense(2)(inputs) for _ in range(2)])
    with pytest.raises(ValueError, match="must have one output"):
        models.check_outputs(two, [0, 1])
