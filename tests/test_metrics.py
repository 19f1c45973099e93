"""The metrics against NumPy in float64, batch by batch, weighted, refused."""

import inspect

import keras
import numpy as np
import pytest
from fresh_process import run_python
from keras import ops
from scipy import stats
from scipy.special import expit, softmax

from fmkit import metrics

RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((40, 3)) * 2).astype("float32")
LABELS = RNG.integers(0, 3, 40)
P = softmax(LOGITS.astype("float64"), axis=1)
WEIGHT = (RNG.random(40) ** 4).astype("float32")


def calibration_error(p, y, weight, bins):
    """Expected calibration error by a loop over the bins."""
    return binned_error(p.max(axis=1), p.argmax(axis=1) == y, weight, bins)


def binned_error(confidence, hit, weight, bins):
    total = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        w = weight[inside]
        total += abs((w * hit[inside]).sum() - (w * confidence[inside]).sum())
    return total / weight.sum()


def expected(name, weight, p=P):
    """Return the metric by its definition; of several labels with one per class."""
    squares = (p - np.eye(3)[LABELS]) ** 2
    if name == "PredictiveEntropy":
        return np.average(stats.entropy(p, axis=1), weights=weight)
    if name == "BrierScore":
        return np.average(squares.sum(axis=1), weights=weight)
    if name == "ExpectedCalibrationError":
        return calibration_error(p, LABELS, weight, 15)
    q = expit(LOGITS.astype("float64"))
    one_hot = np.eye(3)[LABELS]
    if name == "BinaryBrierScore":
        return np.average(((q - one_hot) ** 2).mean(axis=1), weights=weight)
    if name == "BinaryExpectedCalibrationError":
        columns = zip(q.T, one_hot.T, strict=True)
        return np.mean([binned_error(*each, weight, 15) for each in columns])
    place = (p > p[np.arange(40), LABELS][:, None]).sum(axis=1)
    if name == "TopKAccuracy":
        return np.average(place < 2, weights=weight)
    members = [np.flatnonzero(each) for each in one_hot.T]
    return np.mean([np.average(place[m] == 0, weights=weight[m]) for m in members])


# One row per class, with every argument away from its default: tests/test_contracts.py.
METRICS = {
    "BinaryBrierScore": lambda: metrics.BinaryBrierScore(
        form="probabilities", name="bb"
    ),
    "BinaryExpectedCalibrationError": lambda: metrics.BinaryExpectedCalibrationError(
        4, bins=3, norm="max", form="probabilities", name="be"
    ),
    "BrierScore": lambda: metrics.BrierScore(
        form="probabilities", sum_tolerance=None, axis=1, name="b"
    ),
    "ClassAccuracy": lambda: metrics.ClassAccuracy(4, average=None, axis=1, name="c"),
    "ExpectedCalibrationError": lambda: metrics.ExpectedCalibrationError(
        bins=3, norm="l2", form="probabilities", axis=1, name="e"
    ),
    "PredictiveEntropy": lambda: metrics.PredictiveEntropy(
        form="probabilities", unit="bits", axis=1, name="h"
    ),
    "TopKAccuracy": lambda: metrics.TopKAccuracy(2, axis=1, name="t"),
}
# What a metric must be told.
TOLD = {"num_classes": None, "num_labels": None, "k": 2}


def metric_of(name, classes=3, **options):
    """Return the metric with its defaults, for predictions of `classes` columns."""
    kind = getattr(metrics, name)
    for option in inspect.signature(kind).parameters.keys() & TOLD.keys():
        options[option] = TOLD[option] or classes
    return kind(**options)


def targets_of(name, labels, classes=3):
    """Return class numbers; rows of 0 and 1 for a metric of several labels."""
    return np.eye(classes, dtype="float32")[labels] if "Binary" in name else labels


@pytest.mark.parametrize("name", METRICS)
def test_batches_of_uneven_weight_give_the_value_of_the_whole_set(name):
    metric, y = metric_of(name), targets_of(name, LABELS)
    for part in (slice(0, 20), slice(20, 40)):
        metric.update_state(y[part], LOGITS[part], sample_weight=WEIGHT[part])
    got = float(metric.result())
    assert got == pytest.approx(expected(name, WEIGHT.astype("float64")), rel=1e-5)
    assert got != pytest.approx(expected(name, np.ones(40)), rel=1e-3)
    metric.reset_state()
    for part in (slice(0, 20), slice(20, 40)):
        target = y[part] if "Binary" in name else y[part, None]
        metric.update_state(target, LOGITS[part])
    assert float(metric.result()) == pytest.approx(
        expected(name, np.ones(40)), rel=1e-5
    )


@pytest.mark.parametrize("name", METRICS)
def test_probabilities_and_one_hot_targets_give_the_same(name):
    # Of scores only the order counts.
    form = {} if "Accuracy" in name else {"form": "probabilities"}
    metric = metric_of(name, **form)
    p = expit(LOGITS) if "Binary" in name else P.astype("float32")
    metric.update_state(np.eye(3, dtype="float32")[LABELS], p)
    assert float(metric.result()) == pytest.approx(
        expected(name, np.ones(40)), rel=1e-5
    )


def test_all_metrics_run_in_fit_and_agree_with_numpy():
    x = RNG.standard_normal((40, 4)).astype("float32")
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[metric_of(name) for name in METRICS if "Binary" not in name],
    )
    logs = model.fit(x, LABELS, batch_size=16, shuffle=False, verbose=0).history
    kernel, bias = (v.astype("float64") for v in model.get_weights())
    p = softmax(x @ kernel + bias, axis=1)
    true = {
        "predictive_entropy": stats.entropy(p, axis=1).mean(),
        "brier_score": ((p - np.eye(3)[LABELS]) ** 2).sum(axis=1).mean(),
        "expected_calibration_error": calibration_error(p, LABELS, np.ones(40), 15),
        "top_k_accuracy": expected("TopKAccuracy", np.ones(40), p),
        "class_accuracy": expected("ClassAccuracy", np.ones(40), p),
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
        (lambda: metrics.BinaryBrierScore(form="p"), "`form` must be one of"),
        (lambda: metrics.binary_brier_score([0], [0.0], form="p"), "`form` must be"),
        (lambda: metrics.binary_brier_score([2], [0.0]), "must hold 0, 1"),
        (lambda: metrics.binary_brier_score([[0, 1]], [[0.0]]), "for each logit"),
        (
            lambda: metrics.binary_expected_calibration_error([0], [0.0], norm="l3"),
            "`norm` must be one",
        ),
        (
            lambda: metrics.binary_expected_calibration_error([-1], [0.0]),
            "must hold 0, 1",
        ),
        (
            lambda: metrics.BinaryExpectedCalibrationError()([[0, 1]], [[0.0, 1.0]]),
            "Pass `num_labels=2`",
        ),
        (lambda: metrics.BinaryExpectedCalibrationError(0), "`num_labels` must be"),
        (lambda: metrics.ClassAccuracy(1), "`num_classes` must be at least 2"),
        (lambda: metrics.ClassAccuracy(2)(LABELS, LOGITS), "Pass `num_classes=3`"),
        (lambda: metrics.ClassAccuracy(3, average="mean"), "`average` must be one"),
        (lambda: metrics.class_accuracy([3], [[0.0, 1.0, 2.0]]), "from 0 to 2"),
        (lambda: metrics.TopKAccuracy(0), "`k` must be at least 1"),
        (lambda: metrics.top_k_accuracy(LABELS, LOGITS, 4), "at most the 3 classes"),
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


def numbers(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def test_each_label_has_bins_of_its_own():
    p = np.float32([[0.85, 0.15], [0.75, 0.15], [0.6, 0.9]])
    q = [[1, 0], [0, 1], [1, 1]]
    got = metrics.binary_expected_calibration_error(q, p, bins=3, form="probabilities")
    # By hand. First label: two of three at 0.8, half of them yes, and one at 0.6.
    # Second: two at 0.15, half of them yes, and one at 0.9.
    true = [(2 * 0.3 + 0.4) / 3, (2 * 0.35 + 0.1) / 3]
    np.testing.assert_allclose(numbers(got), true, rtol=1e-5)
    # Negative control: in the same bins the errors of two labels would cancel.
    both = metrics.binary_expected_calibration_error(
        np.float32([1, 0]), np.float32([0.6, 0.4]), bins=1, form="probabilities"
    )
    assert float(both[0]) == pytest.approx(0.0, abs=1e-6)
    apart = metrics.binary_expected_calibration_error(
        [[1, 0]], np.float32([[0.6, 0.4]]), bins=1, form="probabilities"
    )
    np.testing.assert_allclose(numbers(apart), [0.4, 0.4], rtol=1e-5)


@pytest.mark.backend("jax")
def test_a_target_out_of_range_scores_nan_in_a_compiled_step():
    import jax

    y, z = np.float32([[2, 1], [1, 0]]), np.zeros((2, 2), "float32")
    got = np.asarray(jax.jit(metrics.binary_brier_score)(y, z))
    np.testing.assert_array_equal(np.isnan(got), [True, False])
    for norm in ("l1", "l2", "max"):
        error = jax.jit(
            lambda y, z, norm=norm: metrics.expected_calibration_error(y, z, norm=norm)
        )
        assert np.isnan(error(np.array([1, 7]), z))
        assert np.isfinite(error(np.array([1, 0]), z))  # negative control


def test_a_binary_brier_score_keeps_the_digits_of_a_sure_and_right_answer():
    got = metrics.binary_brier_score([1, 0, 1], np.float32([17.0, -17.0, 0.0]))
    true = [expit(-17.0) ** 2, expit(-17.0) ** 2, 0.25]
    np.testing.assert_allclose(numbers(got), true, rtol=1e-6)


# Scores, k, and the probability that class 0 is among the k if ties are broken by lot.
TIES = [
    ([2.0, 1.0, 0.0], 1, 1.0),
    ([1.0, 2.0, 0.0], 1, 0.0),
    ([1.0, 2.0, 0.0], 2, 1.0),
    ([1.0, 1.0, 0.0], 1, 0.5),
    ([1.0, 1.0, 1.0], 1, 1 / 3),
    ([1.0, 1.0, 1.0], 2, 2 / 3),
    ([1.0, 1.0, 2.0], 2, 0.5),
    ([1.0, 1.0, 1.0], 3, 1.0),
    ([float("nan"), 1.0, 1.0], 2, 0.0),
    ([1.0, float("nan"), 0.0], 1, 0.0),
    ([-float("inf"), 0.0, -float("inf")], 2, 0.5),
]


@pytest.mark.parametrize(("scores", "k", "hit"), TIES)
def test_ties_share_the_places_that_are_left(scores, k, hit):
    got = metrics.top_k_accuracy([0], np.float32([scores]), k)
    assert float(got[0]) == pytest.approx(hit, rel=1e-6)


def test_equal_scores_hit_by_chance_where_keras_counts_every_one():
    y, z = np.arange(4), np.zeros((4, 4), "float32")
    ours = metrics.TopKAccuracy(2)(y, z)
    assert float(ours) == pytest.approx(0.5)
    # The trap that it exists for: a network that says nothing is right in all cases.
    theirs = keras.metrics.SparseTopKCategoricalAccuracy(2)(y, z)
    assert float(theirs) == 1.0


def test_a_class_without_examples_is_nan_and_does_not_enter_the_mean():
    y, z = [0, 0, 2], np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(
        numbers(metrics.class_accuracy(y, z)), [0.5, np.nan, 1.0]
    )
    each = metrics.ClassAccuracy(3, average=None)
    mean = metrics.ClassAccuracy(3)
    for part in (slice(0, 1), slice(1, 3)):
        each.update_state(y[part], z[part])
        mean.update_state(y[part], z[part])
    np.testing.assert_array_equal(numbers(each.result()), [0.5, np.nan, 1.0])
    assert float(mean.result()) == 0.75
    assert float(metrics.ClassAccuracy(3).result()) == 0.0


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_two_mirrored_replicas_sum_what_one_device_does():
    code = """
        import numpy as np, tensorflow as tf, keras
        from fmkit import metrics
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2)
        rng = np.random.default_rng(0)
        z = rng.standard_normal((50, 3)).astype("float32")
        y = np.eye(3, dtype="float32")[rng.integers(0, 3, 50)]

        def results():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
            model.compile(
                loss=keras.losses.CategoricalCrossentropy(from_logits=True),
                metrics=[
                    metrics.ClassAccuracy(3),
                    metrics.TopKAccuracy(2),
                    metrics.BinaryBrierScore(),
                    metrics.BinaryExpectedCalibrationError(3),
                    metrics.ExpectedCalibrationError(),
                ],
            )
            return model.evaluate(z, y, batch_size=20, verbose=0, return_dict=True)

        alone = results()
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            both = results()
        assert alone.keys() == both.keys() and len(both) == 6
        for name, value in alone.items():
            np.testing.assert_allclose(both[name], value, rtol=1e-5, err_msg=name)
        print("same")
    """
    assert run_python(code).split()[-1] == "same"
