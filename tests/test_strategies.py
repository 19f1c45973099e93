"""Every feature on several devices and in several processes, against NumPy in float64.

`tests/chaos/features.py` is the program that runs under each strategy. What comes
out must be what one device makes of the same global batches, which the oracle below
works out by hand. `scripts/feature_table.py` turns the verdicts into the table of
`docs/guides/scaling.md`; the last tests hold the two together.
"""

import json
import os
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import feature_table
import features
from features import BATCH, COMMIT_EVERY, DECAY, FACTOR, RATE, SEED, STAIR
from lab import Lab

BACKEND = keras.backend.backend()
# Where Keras averages the gradients of all processes itself, and sums their metrics
# after each batch. `make matrix CORNERS=nightly` makes an environment with such a one.
BY_ITSELF = hasattr(keras.Model(), "ddp_model")
STRATEGIES = {
    "tensorflow": {
        "MirroredStrategy, 2 devices": {"strategy": "mirrored", "devices": 2},
        "MirroredStrategy, 4 devices": {"strategy": "mirrored", "devices": 4},
    },
    "jax": {
        "DataParallel, 4 devices": {"strategy": "data", "devices": 4},
        "ModelParallel, 2 × 2 devices": {"strategy": "model", "devices": 4},
        "DataParallel, 2 processes": {"strategy": "processes", "processes": 2},
        "ModelParallel, 2 processes × 2 devices": {
            "strategy": "processes",
            "processes": 2,
            "devices": 2,
        },
    },
    "torch": {
        "Keras 3.16, 2 processes" if BY_ITSELF else "mean gradient, 2 processes": {
            "strategy": "processes",
            "processes": 2,
        },
    },
}[BACKEND]

# What can't be had: the feature and strategy, what it ends with, and the reason.
INDIVISIBLE = (
    r"IndivisibleError: .* should evenly divide",
    "JAX cuts a batch into equal parts only: use `drop_remainder=True`",
)
ELSEWHERE = (
    r"RuntimeError: Fetching value for `jax\.Array` that spans non-addressable",
    "Keras reads predictions that other processes hold: predict in one process",
)
NOT_SUPPORTED = {
    ("partial", "DataParallel, 4 devices"): INDIVISIBLE,
    ("partial", "ModelParallel, 2 × 2 devices"): INDIVISIBLE,
    ("predict", "DataParallel, 2 processes"): ELSEWHERE,
    ("predict", "ModelParallel, 2 processes × 2 devices"): ELSEWHERE,
    ("common batch logs", "mean gradient, 2 processes"): (
        None,
        "the logs of a batch are of a process's own samples",
    ),
}

pytestmark = pytest.mark.long


# The oracle


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def forward(weights, x):
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    return hidden, softmax(hidden @ weights[2] + weights[3])


def judge(weights, x, y):
    """Sums over the samples of all that the network reports."""
    _, p = forward(weights, x)
    hit = p[np.arange(len(y)), y]
    return {
        "loss": -np.log(hit).sum(),
        "accuracy": (p.argmax(1) == y).sum(),
        "brier_score": ((p - np.eye(3)[y]) ** 2).sum(),
        "predictive_entropy": -(p * np.log(p)).sum(),
    }


def gradients(weights, x, y):
    hidden, p = forward(weights, x)
    at_logits = (p - np.eye(3)[y]) / len(y)
    at_hidden = (at_logits @ weights[2].T) * (hidden > 0)
    return [x.T @ at_hidden, at_hidden.sum(0), hidden.T @ at_logits, at_logits.sum(0)]


def philox_order(size, seed, epoch):
    key = np.array([seed, epoch], np.uint64)
    return np.random.Philox(key=key).random_raw(size).argsort(kind="stable")


def one_device(epochs, drop_remainder=False):
    """Gradient descent, stairs and averages: the formulas, in float64."""
    x, y, held_x, held_y = features.data()
    x, held_x = x / 255.0, held_x / 255.0
    weights = [w.astype("float64") for w in features.initial_weights()]
    averages, step, history, validations = list(weights), 0, [], []
    last = len(x) // BATCH * BATCH if drop_remainder else len(x)
    for epoch in range(epochs):
        order, sums = philox_order(len(x), SEED, epoch), {}
        for start in range(0, last, BATCH):
            rows = order[start : min(start + BATCH, last)]
            for name, value in judge(weights, x[rows], y[rows]).items():
                sums[name] = sums.get(name, 0.0) + value
            rate = RATE * FACTOR ** (step // STAIR)
            found = gradients(weights, x[rows], y[rows])
            weights = [w - rate * g for w, g in zip(weights, found, strict=True)]
            step += 1
            d = min(DECAY, (1 + step) / (10 + step))
            pairs = zip(averages, weights, strict=True)
            averages = [d * a + (1 - d) * w for a, w in pairs]
            if step % features.VALIDATE_EVERY == 0:
                found = judge(weights, held_x, held_y)["loss"] / len(held_y)
                validations.append(found)
        history.append({name: value / last for name, value in sums.items()})
    averaged = judge(averages, held_x, held_y)["loss"] / len(held_y)
    predictions = forward(weights, held_x)[1]
    return {
        "history": history,
        "weights": weights,
        "averages": averages,
        "averaged loss": averaged,
        "validations": validations,
        "predictions": predictions,
        "step": step,
    }


def with_falling_momentum():
    """Weights after one epoch of descent with a momentum that a schedule lowers."""
    x, y, *_ = features.data()
    weights = [w.astype("float64") for w in features.initial_weights()]
    velocities, order = [0.0] * len(weights), philox_order(len(x), SEED, 0)
    for step, start in enumerate(range(0, len(x), BATCH)):
        rows = order[start : start + BATCH]
        momentum = features.MOMENTUM - features.LOWER * step
        found = gradients(weights, x[rows] / 255.0, y[rows])
        pairs = zip(velocities, found, strict=True)
        velocities = [momentum * v - features.PACE * g for v, g in pairs]
        weights = [w + v for w, v in zip(weights, velocities, strict=True)]
    return weights


@pytest.fixture(scope="module")
def expected():
    losses = [epoch["loss"] for epoch in one_device(features.EPOCHS)["history"]]
    stop = next(i for i, loss in enumerate(losses) if loss <= features.THRESHOLD)
    # Neither the first nor the last epoch, and not by rounding.
    assert 0 < stop < features.EPOCHS - 1
    assert min(abs(loss - features.THRESHOLD) for loss in losses) > 3e-3
    return one_device(stop + 1) | {"stop": stop}


# The verdicts


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def check_losses(ends, expected):
    for name, found in ends[0].items():
        if name in ("history loss", "history accuracy"):
            key = name.removeprefix("history ")
            close(found, [epoch[key] for epoch in expected["history"]])
    for each in ends:
        for place, weight in enumerate(expected["weights"]):
            close(each[f"weight {place}"], weight)


def check_metrics(ends, expected):
    for name in ("brier_score", "predictive_entropy"):
        found = ends[0][f"history {name}"]
        close(found, [epoch[name] for epoch in expected["history"]])


def check_averages(ends, expected):
    for each in ends:
        for place, average in enumerate(expected["averages"]):
            close(each[f"average {place}"], average)


def check_averaged(ends, expected):
    close(np.mean([each["averaged loss"] for each in ends]), expected["averaged loss"])
    assert all(each["raw is back"] for each in ends)
    # The raw weights' loss is another: evaluating those would not pass.
    assert abs(ends[0]["history val_loss"][-1] - expected["averaged loss"]) > 1e-3


def check_shown(ends, expected):
    for each in ends:
        shown, averaged, raw = each["shown loss"]
        close(shown, averaged)
        assert abs(shown - raw) > 1e-3


def check_validation(ends, expected):
    found = np.mean([each["validations"] for each in ends], axis=0)
    close(found, expected["validations"])


def check_stop(ends, expected):
    for each in ends:
        assert each["stop"].tolist() == [expected["stop"], expected["step"]]


def check_stop_inside(ends, expected):
    assert [int(each["stopped inside"]) for each in ends] == [4] * len(ends)


def check_common_logs(ends, expected):
    assert all((e["batch losses"] == ends[0]["batch losses"]).all() for e in ends)


def check_time(ends, expected):
    # One second at four steps a second; a job ends the epoch.
    steps = 4 if len(ends) == 1 else features.STEPS
    assert [each["stopped in time"].tolist() for each in ends] == [[1, steps]] * len(
        ends
    )


def check_momentum(ends, expected):
    for each in ends:
        for place, weight in enumerate(with_falling_momentum()):
            close(each[f"falling {place}"], weight)


def check_resume(ends, expected):
    for each in ends:
        # From the middle of an epoch, to the same bits.
        epoch, step = each["resumed from"].tolist()
        assert features.STEPS * epoch + step == 3 * COMMIT_EVERY
        assert step
        assert each["resumed bits"].all()
        assert each["resumed history"]


def check_predictions(ends, expected):
    shares = [softmax(each["predictions"]) for each in ends]
    size = BATCH // len(ends)
    cut = [np.split(share, range(size, len(share), size)) for share in shares]
    whole = np.concatenate([part for parts in zip(*cut, strict=True) for part in parts])
    close(whole, expected["predictions"])


def check_partial(ends, expected):
    assert "partial" not in json.loads(str(ends[0]["errors"]))


# Row of the table: the part of the program it comes from, and what must hold.
ROWS = {
    "losses, schedule, `Batches`": ("training", check_losses),
    "metrics": ("training", check_metrics),
    "`ExponentialMovingAverage`": ("training", check_averages),
    "`averaged(model)`, `evaluate`": ("averages", check_averaged),
    "`EvaluateWithAverages`": ("shown", check_shown),
    "`BatchValidation`": ("training", check_validation),
    "`ThresholdStopping`, end of epoch": ("training", check_stop),
    "`ThresholdStopping`, every n batches": ("stop_inside", check_stop_inside),
    "the same logs of a batch everywhere": ("common batch logs", check_common_logs),
    "`TimeStopping`": ("time_stopping", check_time),
    "`HyperparameterScheduler`": ("momentum", check_momentum),
    "`ExactResume` inside an epoch": ("resume", check_resume),
    "`predict` on `Batches`": ("predict", check_predictions),
    "a last batch of fewer samples than devices": ("partial", check_partial),
}


def verdict(part, check, strategy, ends, expected):
    """Return "pass", or the reason why not, if it is a reason that is known."""
    error = json.loads(str(ends[0]["errors"])).get(part)
    pattern, reason = NOT_SUPPORTED.get((part, strategy), ("", ""))
    if error is not None:
        assert reason, error
        assert re.match(pattern, error, re.DOTALL), error
        return reason
    try:
        check(ends, expected)
    except AssertionError:
        if not reason:
            raise
        return reason
    return "pass"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("strategies"))
    yield lab
    lab.close()


def run(lab, options):
    folder = lab.new_folder()
    if options.get("processes", 1) > 1:
        return lab.job_ends(folder, program="features", **options)
    return [lab.ends(folder, program="features", **options)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_feature_does_what_the_table_says(lab, expected, strategy):
    ends = run(lab, STRATEGIES[strategy])
    found = {
        row: verdict(part, check, strategy, ends, expected)
        for row, (part, check) in ROWS.items()
    }
    if feature_table.VARIABLE in os.environ:
        feature_table.record(BACKEND, strategy, found)
    else:
        assert found == feature_table.recorded()[BACKEND][strategy]


MULTI_WORKER = "MultiWorkerMirroredStrategy, 2 processes"


@pytest.mark.backend("tensorflow")
def test_multi_worker_mirrored_strategy_has_no_fit_but_a_loop_of_ones_own(lab):
    # When Keras mends its `fit`, this fails, and the table gets a column.
    ends = run(lab, {"strategy": "processes", "processes": 2})
    for each in ends:
        told = json.loads(str(each["errors"]))["fit"]
        assert re.match(r"ValueError: Attempt to convert a value \(PerReplica", told)
    # By hand the same steps are those of one device.
    expected = one_device(1, drop_remainder=True)
    check_averages(ends, expected)
    for each in ends:
        for place, weight in enumerate(expected["weights"]):
            close(each[f"weight {place}"], weight)


@pytest.mark.backend("tensorflow")
def test_the_page_has_the_table_of_the_tests():
    page = feature_table.PAGE.read_text(encoding="utf-8")
    assert feature_table.render(feature_table.recorded()) in page


@pytest.mark.backend("torch")
def test_the_recipe_for_pytorch_keeps_one_set_of_weights(lab):
    folder = lab.new_folder()
    first, second = lab.job_ends(folder, 2, program="recipe")
    for each in (first, second):
        # The gradients are averaged once a step: by Keras, or by the optimizer.
        by_keras, by_optimizer, steps = each["averaged"].tolist()
        assert by_keras == BY_ITSELF
        assert by_optimizer == (0 if by_keras else steps)
        assert steps > 0
    assert first["weights"].tobytes() == second["weights"].tobytes()
    assert first["loss"].tolist() == second["loss"].tolist()
    assert first["loss"][1] < first["loss"][0] < np.log(10)
    assert list((folder / "run").glob("commit-*.npz"))
    # Negative control: where nobody averages, each process has its own weights.
    first, second = lab.job_ends(lab.new_folder(), 2, program="recipe", average=False)
    assert first["averaged"].tolist()[:2] == [0, 0]
    assert first["weights"].tobytes() != second["weights"].tobytes()
