"""The metrics against NumPy in float64, batch by batch, weighted, refused."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import softmax

from fmkit import metrics

RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((40, 3)) * 2).astype("float32")
LABELS = RNG.integers(0, 3, 40)
P = softmax(LOGITS.astype("float64"), axis=1)
WEIGHT = (RNG.random(40) ** 4).astype("float32")


def calibration_error(p, y, weight, bins):
    """Expected calibration error by a loop over the bins."""
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == y
    total = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        w = weight[inside]
        total += abs((w * hit[inside]).sum() - (w * confidence[inside]).sum())
    return total / weight.sum()


def expected(name, weight):
    if name == "PredictiveEntropy":
        return np.average(stats.entropy(P, axis=1), weights=weight)
    if name == "BrierScore":
        return np.average(((P - np.eye(3)[LABELS]) ** 2).sum(axis=1), weights=weight)
    return calibration_error(P, LABELS, weight, 15)


# One row per class, with every argument away from its default: tests/test_contracts.py.
METRICS = {
    "BrierScore": lambda: metrics.BrierScore(
        form="probabilities", sum_tolerance=None, axis=1, name="b"
    ),
    "ExpectedCalibrationError": lambda: metrics.ExpectedCalibrationError(
        bins=3, norm="l2", form="probabilities", axis=1, name="e"
    ),
    "PredictiveEntropy": lambda: metrics.PredictiveEntropy(
        form="probabilities", unit="bits", axis=1, name="h"
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_batches_of_uneven_weight_give_the_value_of_the_whole_set(name):
    metric = getattr(metrics, name)()
    for part in (slice(0, 20), slice(20, 40)):
        metric.update_state(LABELS[part], LOGITS[part], sample_weight=WEIGHT[part])
    got = float(metric.result())
    assert got == pytest.approx(expected(name, WEIGHT.astype("float64")), rel=1e-5)
    assert got != pytest.approx(expected(name, np.ones(40)), rel=1e-3)
    metric.reset_state()
    for part in (slice(0, 20), slice(20, 40)):
        metric.update_state(LABELS[part, None], LOGITS[part])
    assert float(metric.result()) == pytest.approx(
        expected(name, np.ones(40)), rel=1e-5
    )


@pytest.mark.parametrize("name", METRICS)
def test_probabilities_and_one_hot_targets_give_the_same(name):
    metric = getattr(metrics, name)(form="probabilities")
    metric.update_state(np.eye(3, dtype="float32")[LABELS], P.astype("float32"))
    assert float(metric.result()) == pytest.approx(
        expected(name, np.ones(40)), rel=1e-5
    )


def test_all_metrics_run_in_fit_and_agree_with_numpy():
    x = RNG.standard_normal((40, 4)).astype("float32")
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[getattr(metrics, name)() for name in METRICS],
    )
    logs = model.fit(x, LABELS, batch_size=16, shuffle=False, verbose=0).history
    kernel, bias = (v.astype("float64") for v in model.get_weights())
    p = softmax(x @ kernel + bias, axis=1)
    true = {
        "predictive_entropy": stats.entropy(p, axis=1).mean(),
        "brier_score": ((p - np.eye(3)[LABELS]) ** 2).sum(axis=1).mean(),
        "expected_calibration_error": calibration_error(p, LABELS, np.ones(40), 15),
    }
    for name, value in true.items():
        assert logs[name][0] == pytest.approx(value, rel=1e-4)


def test_brier_score_goes_from_0_to_2():
    score = metrics.brier_score([0, 0], [[1.0, 0.0], [0.0, 1.0]], form="probabilities")
    assert ops.convert_to_numpy(score).tolist() == [0.0, 2.0]


def test_a_sure_and_always_right_model_is_calibrated_and_a_sure_wrong_one_is_not():
    z = np.array([[30.0, 0.0], [0.0, 30.0]])
    right = metrics.expected_calibration_error([0, 1], z)
    wrong = metrics.expected_calibration_error([1, 0], z)
    assert float(right) == pytest.approx(0.0, abs=1e-6)
    assert float(wrong) == pytest.approx(1.0, abs=1e-6)


def test_entropy_is_given_in_the_unit_asked_for():
    for unit, true in (("nats", np.log(4)), ("bits", 2.0), ("bans", np.log10(4))):
        got = metrics.predictive_entropy(np.zeros((1, 4)), unit=unit)
        assert float(got[0]) == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.PredictiveEntropy(unit="bit"), "Did you mean 'bits'"),
        (lambda: metrics.PredictiveEntropy(form="logit"), "Did you mean 'logits'"),
        (lambda: metrics.BrierScore(form="proba"), "`form` must be one of"),
        (lambda: metrics.ExpectedCalibrationError(form="counts"), "`form` must be one"),
        (lambda: metrics.predictive_entropy(LOGITS, form="p"), "`form` must be one of"),
        (lambda: metrics.brier_score(LABELS, LOGITS, form="p"), "`form` must be one"),
        (
            lambda: metrics.expected_calibration_error(LABELS, LOGITS, form="p"),
            "`form` must be one of",
        ),
        (lambda: metrics.ExpectedCalibrationError(bins=0), "at least 1"),
        (lambda: metrics.ExpectedCalibrationError(norm="l3"), "`norm` must be one"),
        (lambda: metrics.brier_score([3], [[0.0, 1.0, 2.0]]), "from 0 to 2"),
        (lambda: metrics.brier_score([[1.0, 1.0]], [[0.0, 1.0]]), "sum_tolerance"),
        (lambda: metrics.expected_calibration_error([0], LOGITS), "integer labels"),
    ],
)
def test_bad_input_is_refused_with_what_to_write_instead(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("norm", "true"),
    [
        # By hand: two of three predictions in one bin, off by 0.3; one off by 0.6.
        ("l1", (2 * 0.3 + 0.6) / 3),
        ("l2", ((2 * 0.3**2 + 0.6**2) / 3) ** 0.5),
        ("max", 0.6),
    ],
    ids=["l1", "l2", "max"],
)
def test_norms_of_the_calibration_error_by_hand(norm, true):
    p = np.array([[0.85, 0.15], [0.75, 0.25], [0.6, 0.4]])
    y = [0, 1, 1]  # accuracy 1/2 at confidence 0.8, and 0 at confidence 0.6
    options = {"bins": 3, "norm": norm, "form": "probabilities"}
    whole = metrics.expected_calibration_error(y, p, **options)
    assert float(whole) == pytest.approx(true, rel=1e-5)
    metric = metrics.ExpectedCalibrationError(**options)
    for part in (slice(0, 1), slice(1, 3)):
        metric.update_state(y[part], p[part])
    assert float(metric.result()) == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_a_calibration_error_of_nothing_is_0(norm):
    assert float(metrics.ExpectedCalibrationError(norm=norm).result()) == 0.0
