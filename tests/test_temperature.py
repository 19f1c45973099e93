"""Temperature scaling against SciPy, by hand, and as a layer of a saved model."""

import keras
import numpy as np
import pytest
from fresh_process import run_python
from keras import ops
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, log_softmax

from fmkit import metrics
from fmkit.evaluation import (
    TemperatureFit,
    TemperatureScaling,
    fit_temperature,
    with_temperature,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((400, 4)) * 4
LABELS = np.array([RNG.choice(4, p=np.exp(log_softmax(z / 2.5))) for z in LOGITS])
SEVERAL = (RNG.random((400, 4)) < expit(LOGITS / [1.5, 2.0, 2.5, 3.0])).astype("int32")
Z, Y = np.float32([[2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]]), [0, 1, 2, 1]


def nats(scale, z=LOGITS, y=LABELS):
    return -log_softmax(scale * z, axis=1)[np.arange(len(z)), y].mean()


def binary_nats(scale, z=LOGITS, q=SEVERAL):
    return -(q * log_expit(scale * z) + (1 - q) * log_expit(-scale * z)).mean()


def test_a_temperature_that_made_the_labels_is_found_to_the_last_digits():
    # Each row of logits as often with each label as its softmax at T = 1.7 says.
    shares = np.array([[4, 2, 1, 1], [1, 5, 1, 1], [2, 2, 3, 1], [1, 1, 1, 5]])
    z = 1.7 * np.log(np.repeat(shares, shares.sum(axis=1), axis=0))
    y = np.concatenate([np.repeat(np.arange(4), row) for row in shares])
    fit = fit_temperature(z, y)
    assert fit.temperature == pytest.approx(1.7, rel=1e-12)
    assert type(fit.temperature) is float
    assert fit.iterations < 10
    # With one per class the same, since all are the same.
    several = fit_temperature(z, y, per_class=True)
    np.testing.assert_allclose(several.temperature, [1.7] * 4, rtol=1e-9)
    assert isinstance(several, TemperatureFit)


def test_a_temperature_of_each_label_that_made_the_labels_is_found():
    q = np.array([0.25, 0.5, 0.875])
    z = np.log(q / (1 - q)) * [[1.7], [0.6], [3.0]]
    z = np.repeat(z.T, 8, axis=0)
    y = np.concatenate([np.arange(8) < 8 * share for share in q])[:, None]
    fit = fit_temperature(z, np.tile(y, 3), activation="sigmoid", per_class=True)
    np.testing.assert_allclose(fit.temperature, [1.7, 0.6, 3.0], rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e4])
def test_scipy_finds_the_same_temperature_whatever_the_unit_of_the_logits(unit):
    fit = fit_temperature(unit * LOGITS, LABELS)
    true = minimize_scalar(nats, (0.1, 1.0), options={"xtol": 1e-10}).x
    assert fit.temperature == pytest.approx(unit / true, rel=1e-6)
    assert fit.iterations < 20
    assert fit.before["loss"] == pytest.approx(nats(1.0, unit * LOGITS), rel=1e-12)
    assert fit.after["loss"] == pytest.approx(nats(true), rel=1e-12)
    # Negative control: another temperature costs more.
    assert nats(1.01 * true) > fit.after["loss"] < nats(0.99 * true)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_scipy_finds_the_same_temperature_for_each_class(activation):
    cost, y = (nats, LABELS) if activation == "softmax" else (binary_nats, SEVERAL)
    fit = fit_temperature(LOGITS, y, activation=activation, per_class=True)
    true = minimize(cost, np.ones(4), options={"gtol": 1e-10})
    assert fit.after["loss"] <= true.fun + 1e-12
    np.testing.assert_allclose(fit.temperature, 1 / true.x, rtol=1e-4)
    one = fit_temperature(LOGITS, y, activation=activation)
    assert fit.after["loss"] < one.after["loss"] < one.before["loss"]


def test_one_yes_or_no_may_have_a_last_axis_or_none():
    z, y = LOGITS[:, 0], SEVERAL[:, 0]
    fit = fit_temperature(z, y, activation="sigmoid")
    true = minimize_scalar(lambda s: binary_nats(s, z, y), (0.1, 1.0)).x
    assert fit.temperature == pytest.approx(1 / true, rel=1e-5)
    for logits, labels in ((z[:, None], y), (z[:, None], y[:, None])):
        assert fit_temperature(logits, labels, activation="sigmoid") == fit


def test_what_is_reported_is_what_the_metrics_say():
    fit = fit_temperature(LOGITS, LABELS, bins=10)
    for scores, temperature in ((fit.before, 1.0), (fit.after, fit.temperature)):
        z = np.float32(LOGITS / temperature)
        error = metrics.expected_calibration_error(LABELS, z, bins=10)
        assert scores["calibration_error"] == pytest.approx(float(error), abs=1e-4)
        brier = metrics.BrierScore()(LABELS, z)
        assert scores["brier_score"] == pytest.approx(float(brier), rel=1e-5)
    assert fit.after["calibration_error"] < fit.before["calibration_error"] / 2
    several = fit_temperature(LOGITS, SEVERAL, activation="sigmoid")
    error = metrics.BinaryExpectedCalibrationError(4)(SEVERAL, np.float32(LOGITS))
    assert several.before["calibration_error"] == pytest.approx(float(error), abs=1e-4)


def test_positions_of_any_shape_count_alike():
    fit = fit_temperature(LOGITS, LABELS)
    for labels in (LABELS.reshape(20, 20), LABELS.reshape(20, 20, 1)):
        assert fit_temperature(LOGITS.reshape(20, 20, 4), labels) == fit
    tensor = ops.convert_to_tensor(LOGITS.astype("float32"))
    same = fit_temperature(tensor, ops.convert_to_tensor(LABELS))
    assert same.temperature == pytest.approx(fit.temperature, rel=1e-6)


def model_of(kernel):
    layer = keras.layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.set_weights([np.asarray(kernel, "float32")])
    return model


class Rows(keras.utils.PyDataset):
    """The examples in batches of three."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(3 * index, 3 * index + 3)
        return Z[part], np.array(Y)[part]


def test_a_model_is_asked_for_its_logits_batch_by_batch_or_at_once():
    model = model_of(3 * np.eye(3))
    fit = fit_temperature(3 * Z, Y)
    batches = [(Z[:3], np.array(Y[:3])), (Z[3:], np.array(Y[3:]))]
    for data in ((Z, np.array(Y)), iter(batches), Rows()):
        found = fit_temperature(model, data)
        assert found.temperature == pytest.approx(fit.temperature, rel=1e-6)
    with pytest.raises(ValueError, match="sample weights are not used"):
        fit_temperature(model, (Z, np.array(Y), np.ones(4)))


NAN, INF = float("nan"), float("inf")
ALL_RIGHT = (np.eye(3) * 2 - 1, [0, 1, 2])
# With one temperature an example is wrong; with one per class none need be.
TOLD_APART = ([[2.0, 3.0, -9], [0, 1, -9], [-9, -9, 9], [3, 1, -9]], [0, 1, 2, 0])


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (
            Z,
            [0, 1],
            {},
            r"labels of shape \(4,\): class numbers, not rows; got .*\(2,\)",
        ),
        (Z, np.eye(3)[Y], {}, "pass `labels.argmax"),
        (Z[:, :1], Y, {}, "at least 2 per example"),
        (Z[:0], Y[:0], {}, "at least 2 per example"),
        (Z, Y, {"activation": "sigmoid"}, "0 or 1 for each logit; got labels"),
        ([[NAN, 1.0], [INF, 0.0]], [0, 1], {}, "got 1 NaN and 1 infinite"),
        ([[0.9, 0.1], [0.2, 0.8]], [0, 0], {}, "each row sums to 1"),
        ([0.9, 0.1], [1, 1], {"activation": "sigmoid"}, "none is above 1"),
        (Z, [0, 1, 2, 3], {}, "class numbers from 0 to 2, got 3 .1 such"),
        (Z, [0, 1, 2, 0.5], {}, "class numbers from 0 to 2, got 0.5"),
        ([2.0, -1.0], [1, -1], {"activation": "sigmoid"}, "0, 1 or between, got -1"),
        (Z, [1, 1, 1, 1], {}, "examples of every class, got none of 0, 2"),
        (Z, [0, 1, 1, 1], {"per_class": True}, "none of 2.*`per_class=False`"),
        ([2.0, -1.0], [1, 1], {"activation": "sigmoid"}, "yes and of no.*label 0"),
        (*ALL_RIGHT, {}, "Every example is classified right"),
        ([2.0, -1.0], [1, 0], {"activation": "sigmoid"}, "Every example is"),
        (-Z, Y, {}, "say nothing about the labels, or the opposite"),
        (np.full((3, 3), 0.1), [0, 1, 2], {}, "say nothing about the labels"),
        (TOLD_APART[0], TOLD_APART[1], {"per_class": True}, "No temperature"),
        (Z, Y, {"activation": "tanh"}, "`activation` must be one of"),
        (Z, Y, {"bins": 0}, "`bins` must be at least 1"),
    ],
)
def test_what_has_no_best_temperature_is_refused(logits, labels, options, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels, **options)


def test_a_class_whose_logit_misleads_is_named():
    z = LOGITS * [1, 1, 1, -1]
    with pytest.raises(ValueError, match=r"for the classes \[3\]"):
        fit_temperature(z, LABELS, per_class=True)


# The layer and the model


def test_the_model_has_the_divided_logits_and_the_weights_of_the_other():
    model = model_of(np.eye(3))
    calibrated = with_temperature(model, 4.0)
    assert type(calibrated).__module__.startswith("keras.")
    assert not calibrated.compiled
    assert calibrated.weights[0] is model.weights[0]
    np.testing.assert_array_equal(calibrated.predict(Z, verbose=0), Z / 4)
    each = with_temperature(calibrated, [1.0, 2.0, 0.5])
    np.testing.assert_array_equal(each.predict(Z, verbose=0), Z / [4, 8, 2])
    # What is found for the logits is 1 once they are divided by it.
    found = fit_temperature(model, (Z, np.array(Y))).temperature
    again = fit_temperature(with_temperature(model, found), (Z, np.array(Y)))
    assert again.temperature == pytest.approx(1.0, rel=1e-6)


def test_the_layer_keeps_its_temperature_its_dtype_and_the_mask():
    layer = TemperatureScaling([1.0, 2.0], dtype="float64", name="t")
    same = TemperatureScaling.from_config(layer.get_config())
    assert (same.temperature, same.name) == ([1.0, 2.0], "t")
    assert layer.compute_dtype == "float64"
    embedding = keras.layers.Embedding(3, 2, mask_zero=True)
    masked = TemperatureScaling(2.0)(embedding(np.array([[1, 0]])))
    mask = keras.src.backend.common.masking.get_keras_mask(masked)
    assert ops.convert_to_numpy(mask).tolist() == [[True, False]]
    half = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="float16")])
    assert with_temperature(half, 2.0).output.dtype == "float16"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TemperatureScaling(0.0),
            "`temperature` must be a finite number above",
        ),
        (lambda: TemperatureScaling([1.0, -1.0]), "`temperature` must be a finite"),
        (lambda: TemperatureScaling([1.0, 2.0])(Z), "each of the 3 classes, got 2"),
        (
            lambda: with_temperature(keras.Sequential([keras.layers.Dense(2)]), 1.0),
            "has been built, got Sequential",
        ),
        (
            lambda: with_temperature(
                keras.Model(inputs := keras.Input((2,)), [inputs + 1, inputs + 2]), 1.0
            ),
            "one output, got 2",
        ),
    ],
)
def test_a_layer_or_model_that_cannot_be_made_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_saved_model_has_its_temperature(tmp_path):
    calibrated = with_temperature(model_of(np.eye(3)), [1.0, 2.0, 4.0])
    calibrated.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(Z, verbose=0), Z / [1, 2, 4])


@pytest.mark.long
@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.filterwarnings("ignore:The `native_serialization`:DeprecationWarning")
def test_an_exported_model_divides_without_fmkit(tmp_path):
    with_temperature(model_of(np.eye(3)), [1.0, 2.0, 4.0]).export(
        tmp_path / "model", verbose=False
    )
    code = """
        import sys, numpy as np, tensorflow as tf
        model = tf.saved_model.load(sys.argv[1])
        print(*np.ravel(model.serve(np.ones((1, 3), "float32"))))
        assert "fmkit" not in sys.modules
    """
    printed = run_python(code, str(tmp_path / "model"))
    assert printed.split()[-3:] == ["1.0", "0.5", "0.25"]
