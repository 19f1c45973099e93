"""ThresholdStopping on injected sequences of values, without a training."""

import copy
import itertools
import json
import logging
import math
import pickle
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmkit import callbacks
from fmkit.callbacks import AllOf, Reached, Stop, StopReason, ThresholdStopping

pytestmark = pytest.mark.backend("torch")  # nothing here depends on the backend

NAN, INF = float("nan"), float("inf")


def fake_model(steps=0):
    """What a callback sees of a model, and no more."""
    return SimpleNamespace(
        stop_training=False,
        metrics=[],
        optimizer=SimpleNamespace(iterations=np.array(steps)),
    )


def run_epochs(stopping, *columns, names=("loss",), batches=1):
    """Call the hooks as `fit` does; return the index of the last epoch begun.

    `None` means that the sequence ended without a stop.
    """
    model = fake_model()
    stopping.set_model(model)
    stopping.set_params({"verbose": 0, "epochs": len(columns[0]), "steps": batches})
    stopping.on_train_begin()
    stopped = None
    for epoch, row in enumerate(zip(*columns, strict=True)):
        stopping.on_epoch_begin(epoch)
        model.optimizer.iterations = np.array((epoch + 1) * batches)
        logs = dict(zip(names, row, strict=True))
        stopping.on_epoch_end(epoch, logs)
        if model.stop_training:
            stopped = epoch
            break
    stopping.on_train_end()
    return stopped


def run_batches(stopping, values, steps_per_epoch=100, stride=1):
    """The same for one value at each batch; return the index of the last batch."""
    model = fake_model()
    stopping.set_model(model)
    stopping.set_params({"verbose": 0, "epochs": 1, "steps": steps_per_epoch})
    stopping.on_train_begin()
    for index in range(stride - 1, len(values), stride):
        epoch, batch = divmod(index, steps_per_epoch)
        if batch == stride - 1:
            stopping.on_epoch_begin(epoch)
        stopping.on_train_batch_end(batch, {"loss": values[index]})
        if model.stop_training:
            return index
    return None


# name: (mode, threshold, values, index of the check that must stop)
SEQUENCES = {
    "met in epoch 1": ("min", 0.4, [0.3, 0.2, 0.1], 0),
    "met in the last epoch": ("min", 0.4, [0.9, 0.8, 0.3], 2),
    "never met": ("min", 0.4, [0.9, 0.8, 0.7], None),
    "exactly equal, min": ("min", 0.5, [0.9, 0.5, 0.1], 1),
    "exactly equal, max": ("max", 0.5, [0.1, 0.5, 0.9], 1),
    "exactly equal, <=": ("<=", 0.5, [0.9, 0.5, 0.1], 1),
    "exactly equal, >=": (">=", 0.5, [0.1, 0.5, 0.9], 1),
    "exactly equal isn't <": ("<", 0.5, [0.9, 0.5, 0.1], 2),
    "exactly equal isn't >": (">", 0.5, [0.1, 0.5, 0.9], 2),
    "NaN first, min": ("min", 0.4, [NAN, 0.9, 0.3], 2),
    "NaN first, max": ("max", 0.4, [NAN, 0.3, 0.9], 2),
    "only NaN, min": ("min", 0.4, [NAN, NAN], None),
    "only NaN, max": ("max", 0.4, [NAN, NAN], None),
    "NaN in the middle": ("max", 0.8, [0.1, NAN, 0.7, 0.8], 3),
    "minus infinity isn't a small loss": ("min", 0.4, [-INF, 0.4], 1),
    "infinity isn't a great score": ("max", 0.4, [INF, 0.4], 1),
    "plateau above": ("min", 0.4, [0.5, 0.5, 0.5, 0.5], None),
    "plateau at the threshold": ("min", 0.4, [0.5, 0.4, 0.4, 0.4], 1),
    "wrong side for the mode": ("max", 0.4, [0.3, 0.2, 0.1], None),
    "negative values": ("max", -1.0, [-3.0, -1.5, -0.5], 2),
    "threshold zero": ("min", 0.0, [0.1, 0.0], 1),
    "19 of 20 in float32 is 0.95": ("max", 0.95, [float(np.float32(19 / 20))], 0),
    "float32 below 0.95 isn't": (
        "max",
        0.95,
        [float(np.nextafter(np.float32(0.95), np.float32(0)))],
        None,
    ),
    "float64 just below 0.95 isn't": ("max", 0.95, [math.nextafter(0.95, 0)], None),
    "float64 just above 0.4 isn't": ("min", 0.4, [math.nextafter(0.4, 1)], None),
    "auto is min for a loss": ("auto", 0.4, [0.9, 0.3], 1),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_an_epochs_sequence_stops_where_the_table_says(name):
    mode, threshold, values, expected = SEQUENCES[name]
    stopping = ThresholdStopping("loss", threshold, mode=mode)
    assert run_epochs(stopping, values) == expected
    if expected is None:
        assert stopping.stop is None
    else:
        assert stopping.stop.epoch == expected
        assert stopping.stop.value == values[expected]


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_batchs_sequence_stops_where_the_table_says(name):
    mode, threshold, values, expected = SEQUENCES[name]
    assert run_batches(
        ThresholdStopping("loss", threshold, mode=mode, every=1), values
    ) == (expected)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_loop_of_ones_own_stops_where_the_table_says(name):
    mode, threshold, values, expected = SEQUENCES[name]
    stopping = ThresholdStopping("loss", threshold, mode=mode)
    answers = [stopping.check({"loss": value}) for value in values]
    assert (answers.index(True) if True in answers else None) == expected


# ------------------------------------------------------------- how often it holds


@pytest.mark.parametrize(
    ("consecutive", "values", "expected"),
    [
        (True, [1, 0, 1, 1, 0, 1, 1, 1], 7),
        (False, [1, 0, 1, 1, 0, 1, 1, 1], 3),
        (True, [1, 1, NAN, 1, 1, 1], 5),
        (False, [1, 1, NAN, 1, 1, 1], 3),
        (True, [1, 1, 0, 1, 1], None),
    ],
)
def test_three_checks_in_a_row_or_any_three(consecutive, values, expected):
    stopping = ThresholdStopping(
        "loss", 1, mode="max", count=3, consecutive=consecutive
    )
    assert run_epochs(stopping, values) == expected


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, NAN]), max_size=12),
    count=st.integers(1, 4),
    consecutive=st.booleans(),
    start=st.integers(0, 5),
)
def test_counting_agrees_with_a_search_through_the_whole_sequence(
    values, count, consecutive, start
):
    hits = np.array(values, dtype=float) == 1.0
    hits[:start] = False

    def complete(end):
        return (
            hits[max(end - count, 0) : end].sum() == count
            if consecutive
            else hits[:end].sum() >= count
        )

    ends = [end for end in range(1, len(hits) + 1) if complete(end)]
    stopping = ThresholdStopping(
        "loss", 1, mode="max", count=count, consecutive=consecutive, start_epoch=start
    )
    # A stopper that never gets to check has nothing to say about the names.
    assert (run_epochs(stopping, values) if values else None) == (
        ends[0] - 1 if ends else None
    )


@pytest.mark.parametrize(("start", "expected"), [(0, 0), (1, 1), (3, 3), (9, None)])
def test_no_check_before_the_start_epoch(start, expected):
    stopping = ThresholdStopping("loss", 0.4, start_epoch=start)
    assert run_epochs(stopping, [0.1] * 5) == expected


@pytest.mark.parametrize(("start", "expected"), [(10, 0), (11, 1), (50, 4), (51, None)])
def test_no_check_before_the_start_step(start, expected):
    stopping = ThresholdStopping("loss", 0.4, start_step=start)
    assert run_epochs(stopping, [0.1] * 5, batches=10) == expected


# ------------------------------------------------------------------ every N batches


@pytest.mark.parametrize(
    ("every", "stride", "steps_per_epoch", "expected"),
    [
        (1, 1, 100, 4),  # the value is below from batch index 4 on
        (3, 1, 100, 5),  # checks at 2, 5, 8
        (5, 1, 100, 4),
        (7, 1, 100, 6),
        (7, 1, 4, 6),  # epochs shorter than N: the count goes through them
        (3, 4, 100, 7),  # 4 steps per execution: hooks at 3, 7, 11
        (5, 2, 4, 5),  # hooks at 1, 3 | 1, 3: batch 5 is seen at batch 6
        (50, 1, 100, None),
    ],
)
def test_checks_come_at_multiples_of_n_batches(
    every, stride, steps_per_epoch, expected
):
    values = [0.9] * 4 + [0.1] * 16
    stopping = ThresholdStopping("loss", 0.4, every=every)
    assert run_batches(stopping, values, steps_per_epoch, stride) == expected


def test_between_two_multiples_the_value_is_not_looked_at():
    values = [0.9, 0.1, 0.9, 0.9, 0.1, 0.9]
    assert run_batches(ThresholdStopping("loss", 0.4, every=3), values) is None
    assert run_batches(ThresholdStopping("loss", 0.4, every=1), values) == 1


def test_with_batch_checks_the_end_of_an_epoch_is_not_a_check():
    stopping = ThresholdStopping("loss", 0.4, every=100)
    with pytest.warns(UserWarning, match="never saw 'loss'. It checks every 100"):
        assert run_epochs(stopping, [0.1, 0.1]) is None


# -------------------------------------------------------------- reach, then patience


@pytest.mark.parametrize(
    ("patience", "min_delta", "values", "expected"),
    [
        # reached at index 1; better at 2; worse at 3 and 4
        (2, 0.0, [0.5, 0.8, 0.9, 0.85, 0.88, 0.95], 4),
        (3, 0.0, [0.5, 0.8, 0.9, 0.85, 0.88, 0.95, 0.9], None),
        # equal is no improvement
        (1, 0.0, [0.8, 0.8], 1),
        # a gain of exactly min_delta is none, a greater one is
        (1, 0.125, [0.75, 0.875], 1),
        (1, 0.125, [0.75, 0.9, 0.9], 2),
        # small gains add up against the last value that counted
        (3, 0.1, [0.8, 0.85, 0.89, 0.91, 0.92], None),
        # NaN is no improvement and does not become the best
        (2, 0.0, [0.8, NAN, NAN], 2),
        (2, 0.0, [0.8, NAN, 0.9, NAN, 0.91, 0.9, 0.9], 6),
        # before the threshold is reached nothing runs out
        (1, 0.0, [0.5, 0.4, 0.3, 0.2], None),
        # falling back below the threshold is no improvement either
        (2, 0.0, [0.9, 0.1, 0.1], 2),
    ],
)
def test_reach_then_stop_when_it_no_longer_improves(
    patience, min_delta, values, expected
):
    stopping = ThresholdStopping(
        "loss", 0.75, mode="max", patience=patience, min_delta=min_delta
    )
    assert run_epochs(stopping, values) == expected
    if expected is not None:
        assert stopping.stop.reason is StopReason.PLATEAU


def test_patience_waits_for_falling_values_too():
    stopping = ThresholdStopping("loss", 0.4, patience=1)
    assert run_epochs(stopping, [0.9, 0.4, 0.3, 0.2, 0.25]) == 4
    assert (stopping.best, stopping.reached_epoch) == (0.2, 1)
    assert "after the threshold was reached in epoch 2 (step 2)" in (
        stopping.stop.message
    )


# ------------------------------------------------------- divergence and finite values


@pytest.mark.parametrize(
    ("mode", "limit", "values", "expected"),
    [
        ("min", 2.0, [1.0, 2.0, 2.5], 2),  # equal isn't worse
        ("max", 0.2, [0.3, 0.2, 0.1], 2),
        ("min", 2.0, [1.0, NAN, 1.0], None),
        ("min", 2.0, [1.0, INF], 1),
    ],
)
def test_divergence_stops_on_the_bad_side(mode, limit, values, expected):
    threshold = 0.0 if mode == "min" else 1.0
    stopping = ThresholdStopping(
        "loss", threshold, mode=mode, divergence_threshold=limit
    )
    assert run_epochs(stopping, values) == expected
    if expected is not None:
        assert stopping.stop.reason is StopReason.DIVERGENCE
        assert stopping.stop.threshold == limit


@pytest.mark.parametrize(
    ("check_finite", "expected"),
    [(False, None), (True, 1), ("val_loss", 1), (["val_loss"], 1), (["loss"], None)],
)
def test_a_nonfinite_value_of_any_name_stops_if_asked(check_finite, expected):
    stopping = ThresholdStopping("loss", 0.0, check_finite=check_finite)
    losses, val_losses = [0.9, 0.8, 0.7], [0.9, NAN, 0.7]
    names = ("loss", "val_loss")
    assert run_epochs(stopping, losses, val_losses, names=names) == expected
    if expected is not None:
        assert stopping.stop.reason is StopReason.NONFINITE
        assert stopping.stop.monitor == "val_loss"
        assert math.isnan(stopping.stop.value)


def test_a_nonfinite_value_stops_even_before_the_start_epoch():
    stopping = ThresholdStopping("loss", 0.0, check_finite=True, start_epoch=5)
    assert run_epochs(stopping, [INF, 0.5]) == 0


def test_a_nonfinite_value_can_be_an_error_with_the_record_of_the_stop():
    stopping = ThresholdStopping(
        "loss", 0.0, check_finite=True, on_nonfinite="error", name="guard"
    )
    message = "guard stopped the run in epoch 2 (step 2): loss = nan is not finite."
    with pytest.raises(FloatingPointError) as error:
        run_epochs(stopping, [0.9, NAN, 0.7])
    assert str(error.value) == stopping.stop.message == message
    assert stopping.stop.reason is StopReason.NONFINITE
    # Negative control: the names that it does not look at, and no such value.
    stopping = ThresholdStopping(
        "loss", 0.0, check_finite=["other"], on_nonfinite="error"
    )
    rows = [0.9, NAN, 0.7], [0.1, 0.1, 0.1]
    assert run_epochs(stopping, *rows, names=("loss", "other")) is None


@pytest.mark.parametrize(("every", "run"), [("epoch", run_epochs), (1, run_batches)])
def test_without_a_threshold_only_finite_values_are_asked_for(every, run):
    stopping = ThresholdStopping(check_finite=True, every=every)
    assert run(stopping, [0.9, 0.0, -5.0, INF]) == 3
    assert stopping.stop.reason is StopReason.NONFINITE
    assert stopping.stop.callback == "threshold_stopping"
    assert run(stopping, [0.9, 0.0, -5.0, 1e38]) is None
    assert stopping.stop is None


def test_without_a_threshold_it_survives_a_resume_and_a_copy():
    first = ThresholdStopping(check_finite=["loss"])
    assert first.check({"loss": 1.0}) is False
    second = copy.deepcopy(ThresholdStopping(check_finite=["loss"]))
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert second.check({"other": NAN}) is False
    assert second.check({"loss": NAN}) is True


def test_a_check_of_finite_values_that_never_came_is_warned_of():
    stopping = ThresholdStopping(check_finite=True, every=100)
    with pytest.warns(UserWarning, match="never saw any value. It checks every 100"):
        assert run_epochs(stopping, [NAN, NAN]) is None


# ------------------------------------------------------------- reached within N checks


@pytest.mark.parametrize(
    ("arguments", "values", "expected", "reason"),
    [
        ({"within": 3}, [0.9, 0.8, 0.7, 0.1], 2, "not-reached"),
        # the last check of the N is one of them
        ({"within": 3}, [0.9, 0.8, 0.4, 0.1], 2, "threshold"),
        ({"within": 1}, [0.9, 0.1], 0, "not-reached"),
        ({"within": 1}, [0.1, 0.1], 0, "threshold"),
        ({"within": 4}, [0.9, 0.8, 0.7], None, None),
        # NaN is a check that has not reached it
        ({"within": 2}, [NAN, NAN, 0.1], 1, "not-reached"),
        # all K of `count` must be within the N
        ({"within": 3, "count": 2}, [0.9, 0.3, 0.3], 2, "threshold"),
        ({"within": 3, "count": 2}, [0.3, 0.9, 0.3, 0.3], 2, "not-reached"),
        (
            {"within": 3, "count": 2, "consecutive": False},
            [0.3, 0.9, 0.3, 0.3],
            2,
            "threshold",
        ),
        # checks that are not begun with don't count
        ({"within": 2, "start_epoch": 2}, [0.1, 0.1, 0.9, 0.9, 0.1], 3, "not-reached"),
        ({"within": 2, "start_step": 3}, [0.1, 0.1, 0.9, 0.9, 0.1], 3, "not-reached"),
        # once it is reached, only `patience` ends the run
        ({"within": 2, "patience": 2}, [0.9, 0.4, 0.3, 0.35, 0.36], 4, "plateau"),
        ({"within": 2, "patience": 2}, [0.9, 0.8, 0.3, 0.35], 1, "not-reached"),
        # a check that ends the run for a worse reason says so
        ({"within": 2, "divergence_threshold": 5.0}, [0.9, 9.0], 1, "divergence"),
        ({"within": 2, "check_finite": True}, [0.9, NAN], 1, "non-finite"),
    ],
)
def test_a_threshold_must_be_reached_within_the_checks_given(
    arguments, values, expected, reason
):
    stopping = ThresholdStopping("loss", 0.4, **arguments)
    assert run_epochs(stopping, values) == expected
    assert (stopping.stop and stopping.stop.reason) == reason


def test_within_counts_checks_and_not_batches():
    values = [0.9] * 20
    assert run_batches(ThresholdStopping("loss", 0.4, every=3, within=2), values) == 5
    assert run_batches(ThresholdStopping("loss", 0.4, every=1, within=2), values) == 1
    assert run_batches(ThresholdStopping("loss", 0.4, every=3), values) is None


@settings(max_examples=300, deadline=None)
@given(
    first=st.sampled_from([0.0, 1.0, NAN]),
    rest=st.lists(st.sampled_from([0.0, 1.0, NAN, None]), max_size=12),
    count=st.integers(1, 3),
    spare=st.integers(0, 4),
    consecutive=st.booleans(),
    start=st.integers(0, 4),
)
def test_within_agrees_with_a_search_through_the_whole_sequence(
    first, rest, count, spare, consecutive, start
):
    values, within = [first, *rest], count + spare
    known = [i for i, v in enumerate(values) if i >= start and v is not None]
    expected = None
    for number, index in enumerate(known, start=1):
        hits = [values[i] == 1.0 for i in known[:number]]
        row = hits[-count:] if consecutive else hits
        if sum(row) >= count:
            expected = index, "threshold"
        elif number == within:
            expected = index, "not-reached"
        if expected:
            break
    stopping = ThresholdStopping(
        "loss",
        1,
        mode="max",
        count=count,
        consecutive=consecutive,
        start_epoch=start,
        within=within,
    )
    logs = [{} if value is None else {"loss": value} for value in values]
    stopped = [stopping.check(each, epoch=epoch) for epoch, each in enumerate(logs)]
    found = (stopped.index(True), stopping.stop.reason) if any(stopped) else None
    assert found == expected


def test_the_record_of_what_was_not_reached_says_how_far_it_came():
    stopping = ThresholdStopping("loss", 0.4, within=2, name="soon")
    run_epochs(stopping, [0.9, 0.5], batches=10)
    message = (
        "soon stopped the run in epoch 2 (step 20): the threshold was not reached "
        "within 2 checks (loss = 0.5, wanted <= 0.4)."
    )
    assert stopping.stop.message == message
    assert (stopping.stop.monitor, stopping.stop.value) == ("loss", 0.5)
    assert stopping.stop.threshold == 0.4
    rule = Reached("accuracy", 0.9, "max") & Reached("loss", 0.4)
    both = ThresholdStopping(rule, within=3, count=2)
    run_epochs(both, [0.5, 0.5, 0.95], [0.5] * 3, names=("accuracy", "loss"))
    assert both.stop.message.endswith(
        "the threshold was not reached in 2 checks in a row within 3 checks "
        "(accuracy = 0.95, wanted >= 0.9; loss = 0.5, wanted <= 0.4)."
    )


def test_a_first_nan_does_not_spoil_the_best_value():
    stopping = ThresholdStopping("loss", 0.3, patience=2)
    run_epochs(stopping, [NAN, 0.9, 0.3, 0.5, 0.4])
    assert stopping.best == 0.3
    # Negative control: Keras's own stopper keeps the NaN as the best for ever.
    keras_stopping = keras.callbacks.EarlyStopping("loss", patience=100)
    run_epochs(keras_stopping, [NAN, 0.9, 0.3])
    assert math.isnan(keras_stopping.best)


# ---------------------------------------------------------------- several conditions


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        (lambda a, b: a & b, 3),
        (lambda a, b: a | b, 1),
        (lambda a, b: (a & b) | b, 1),
        (lambda a, b: (a | b) & a, 2),
    ],
)
def test_conditions_combine_with_and_and_or(combine, expected):
    condition = combine(Reached("accuracy", 0.9, "max"), Reached("loss", 0.4))
    stopping = ThresholdStopping(condition)
    accuracy, loss = [0.5, 0.6, 0.9, 0.95], [0.9, 0.4, 0.5, 0.3]
    names = ("accuracy", "loss")
    assert run_epochs(stopping, accuracy, loss, names=names) == expected


@pytest.mark.parametrize("values", list(itertools.product([0, 1, None], repeat=2)))
def test_missing_values_follow_three_valued_logic(values):
    # Kleene's tables: "and" is the minimum, "or" the maximum, unknown in between.
    logs = {n: float(v) for n, v in zip("ab", values, strict=True) if v is not None}
    a, b = Reached("a", 1, "max"), Reached("b", 1, "max")
    rank = [0.5 if v is None else v for v in values]
    answer = {0: False, 0.5: None, 1: True}
    assert (a & b).holds(logs) is answer[min(rank)]
    assert (a | b).holds(logs) is answer[max(rank)]


def test_a_check_that_knows_no_answer_counts_for_nothing():
    rule = Reached("loss", 0.4) & Reached("val_loss", 0.4)
    stopping = ThresholdStopping(rule, count=2, every=1)
    stopping.on_train_begin()
    good, partly = {"loss": 0.1, "val_loss": 0.1}, {"loss": 0.1}
    answers = [stopping.check(logs) for logs in (good, partly, good)]
    assert answers == [False, False, True]
    # Negative control: a known failure does break the row.
    stopping.on_train_begin()
    bad = {"loss": 0.9}
    assert not any(stopping.check(logs) for logs in (good, bad, good))


def test_the_leftmost_condition_leads():
    rule = Reached("accuracy", 0.5, "max") | Reached("loss", 0.4)
    stopping = ThresholdStopping(rule, patience=1)
    names = ("loss", "accuracy")
    losses, accuracies = [0.9, 0.4, 0.5, 0.6], [0.1, 0.2, 0.3, 0.2]
    assert run_epochs(stopping, losses, accuracies, names=names) == 3
    assert stopping.stop.monitor == "accuracy"


def test_conditions_compare_and_print_as_values():
    a, b = Reached("a", 1), Reached("b", 2, "<")
    assert a & b == AllOf(Reached("a", 1.0), b)
    assert a & b != a | b
    assert hash(a | b) == hash(a | Reached("b", 2, "<"))
    assert repr(a & b) == (
        "(Reached(monitor='a', threshold=1.0, mode='auto') & "
        "Reached(monitor='b', threshold=2.0, mode='<'))"
    )


# ------------------------------------------------------------------ the truth it tells


def test_the_record_has_metric_value_threshold_epoch_and_step():
    stopping = ThresholdStopping("loss", 0.4)
    run_epochs(stopping, [0.9, float(np.float32(0.35))], batches=469)
    message = (
        "threshold_stopping_loss stopped the run in epoch 2 (step 938): "
        "loss = 0.35 <= 0.4."
    )
    assert stopping.stop == Stop(
        callback="threshold_stopping_loss",
        reason=StopReason.THRESHOLD,
        monitor="loss",
        value=float(np.float32(0.35)),
        threshold=0.4,
        epoch=1,
        step=938,
        message=message,
        values={"loss": float(np.float32(0.35))},
    )


def test_the_message_shows_digits_enough_to_be_true():
    stopping = ThresholdStopping("loss", 0.4, mode="<")
    run_epochs(stopping, [float(np.nextafter(np.float32(0.4), np.float32(0)))])
    assert "loss = 0.39999998 < 0.4." in stopping.stop.message


def test_the_message_of_an_and_names_both_and_of_an_or_the_one_that_holds():
    a, b = Reached("accuracy", 0.9, "max"), Reached("loss", 0.4)
    names, rows = ("accuracy", "loss"), ([0.95], [0.5])
    either = ThresholdStopping(a | b, name="either")
    run_epochs(either, *rows, names=names)
    assert either.stop.message == (
        "either stopped the run in epoch 1 (step 1): accuracy = 0.95 >= 0.9."
    )
    both = ThresholdStopping(a & b, name="both")
    run_epochs(both, [0.95], [0.25], names=names)
    assert both.stop.message.endswith("accuracy = 0.95 >= 0.9 and loss = 0.25 <= 0.4.")


def test_the_stop_is_in_the_python_log_with_the_callbacks_name(caplog):
    with caplog.at_level(logging.INFO, logger="fmkit.callbacks"):
        run_epochs(ThresholdStopping("loss", 0.4, name="good_enough"), [0.3])
    assert [r.getMessage().split()[0] for r in caplog.records] == ["good_enough"]


def test_the_record_survives_json():
    stopping = ThresholdStopping("loss", 0.4)
    run_epochs(stopping, [0.3])
    record = json.loads(json.dumps(stopping.stop.as_dict()))
    assert record["reason"] == "threshold"
    assert Stop.from_dict(record) == stopping.stop


def test_the_distance_in_the_logs_is_never_negative_and_ends_at_zero():
    stopping = ThresholdStopping("loss", 0.5, progress=True, every=1)
    stopping.set_model(fake_model())
    stopping.on_train_begin()
    distances = []
    for batch, value in enumerate([2.0, 0.75, 0.5]):
        logs = {"loss": value}
        stopping.on_train_batch_end(batch, logs)
        distances.append(logs["loss_to_go"])
    assert distances == [1.5, 0.25, 0.0]


# ------------------------------------------------------------- names that aren't there


def test_a_missing_name_is_an_error_at_the_first_check():
    stopping = ThresholdStopping("acuracy", 0.9, mode="max")
    with pytest.raises(ValueError, match=r"'acuracy'.*'accuracy', 'loss'.*mean 'acc"):
        run_epochs(stopping, [0.1], [0.2], names=("accuracy", "loss"))


def test_a_missing_validation_says_how_to_get_one():
    stopping = ThresholdStopping("val_loss", 0.4)
    with pytest.raises(ValueError, match=r"validation_data.*every='validation'"):
        run_epochs(stopping, [0.1])


def test_a_missing_name_can_be_a_warning_given_once():
    stopping = ThresholdStopping("val_loss", 0.4, on_missing="warn")
    with pytest.warns(UserWarning, match="monitors 'val_loss'") as caught:
        assert run_epochs(stopping, [0.1, 0.1, 0.1]) is None
    assert len(caught) == 1


def test_a_name_that_was_there_before_may_be_missing_once():
    stopping = ThresholdStopping("loss", 0.4)
    answers = [stopping.check(logs) for logs in ({"loss": 1}, {"a": 1}, {"loss": 0})]
    assert answers == [False, False, True]


def test_a_batch_check_waits_for_the_validation_but_not_for_a_slip_of_the_pen():
    stopping = ThresholdStopping("val_los", 0.4, every=1, mode="min")
    stopping.on_epoch_begin(0)
    stopping.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(ValueError, match="mean 'val_loss'"):
        stopping.on_train_batch_end(1, {"loss": 1.0, "val_loss": 1.0})


def test_after_each_validation_means_only_then():
    stopping = ThresholdStopping("val_loss", 0.4, every="validation", count=2)
    model = fake_model()
    stopping.set_model(model)
    stopping.on_train_begin()
    stopped = []
    for epoch in range(6):
        stopping.on_epoch_begin(epoch)
        logs = {"loss": 1.0}
        if epoch % 2:  # fit(validation_freq=2)
            stopping.on_test_end({"loss": 0.1})
            logs["val_loss"] = 0.1
        stopping.on_epoch_end(epoch, logs)
        stopped.append(model.stop_training)
    assert stopped == [False, False, False, True, True, True]


def test_keras_has_no_rule_for_an_unknown_name():
    with pytest.raises(ValueError, match="mode='max' if a greater value"):
        ThresholdStopping("score", 0.9).check({"score": 0.5})


# --------------------------------------------------------------- arguments and copies


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"monitor": 3}, TypeError, "name of a value in the logs, got monitor=3"),
        ({"threshold": None}, TypeError, r"ThresholdStopping\('val_accuracy', 0.95\)"),
        ({"threshold": "0.4"}, TypeError, "`threshold` must be a number"),
        ({"threshold": NAN}, ValueError, "`threshold` must be a finite number"),
        ({"mode": "maxi"}, ValueError, "Did you mean 'max'"),
        ({"every": "epochs"}, ValueError, "Did you mean 'epoch'"),
        ({"every": 0}, ValueError, "`every` must be at least 1"),
        ({"every": 2.5}, TypeError, "`every` must be an integer"),
        ({"count": 0}, ValueError, "`count` must be at least 1"),
        ({"start_epoch": -1}, ValueError, "`start_epoch` must be at least 0"),
        ({"start_step": -1}, ValueError, "`start_step` must be at least 0"),
        ({"patience": -1}, ValueError, "`patience` must be at least 0"),
        ({"min_delta": -0.1}, ValueError, "`min_delta` must be a finite number at"),
        ({"divergence_threshold": INF}, ValueError, "`divergence_threshold` must be"),
        ({"restore": "last"}, ValueError, r"must be one of \['best', 'reaching'\]"),
        ({"on_missing": "ignore"}, ValueError, r"one of \['error', 'warn'\]"),
        ({"verbose": "loud"}, ValueError, "`verbose` must be one of"),
        ({"within": 0}, ValueError, "`within` must be at least 1"),
        ({"within": 2, "count": 3}, ValueError, "`within` must be at least 3"),
        ({"within": 2.0}, TypeError, "`within` must be an integer"),
        ({"on_nonfinite": "raise"}, ValueError, r"one of \['stop', 'error'\]"),
        ({"on_nonfinite": "error"}, ValueError, "add check_finite=True"),
        ({"monitor": None}, TypeError, "got monitor=None"),
        ({"monitor": None, "threshold": None}, TypeError, r"\(check_finite=True\)"),
        ({"name": ""}, TypeError, "`name` must be a non-empty string"),
    ],
)
def test_a_refused_argument_says_why(arguments, error, message):
    given_arguments = {"monitor": "loss", "threshold": 0.4} | arguments
    with pytest.raises(error, match=message):
        ThresholdStopping(**given_arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 2},
        {"consecutive": False},
        {"start_epoch": 1},
        {"patience": 1},
        {"within": 5},
        {"divergence_threshold": 5.0},
        {"restore": "best"},
        {"progress": True},
    ],
)
def test_without_a_threshold_an_argument_without_effect_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Without a threshold `{name}` would have"):
        ThresholdStopping(check_finite=True, **arguments)
    ThresholdStopping("loss", 0.1, check_finite=True, **arguments)


def test_a_condition_brings_its_own_numbers():
    with pytest.raises(ValueError, match="leave out `threshold` and `mode`"):
        ThresholdStopping(Reached("loss", 0.4), 0.5)


def test_only_conditions_combine():
    with pytest.raises(TypeError, match="unsupported operand"):
        Reached("loss", 0.4) & 3
    with pytest.raises(TypeError, match="`AllOf` combines conditions"):
        AllOf(Reached("loss", 0.4), "loss")
    with pytest.raises(ValueError, match="at least one condition"):
        AllOf()


def test_a_start_step_without_any_count_of_steps_is_refused():
    stopping = ThresholdStopping("loss", 0.4, start_step=3)
    with pytest.raises(ValueError, match="pass `step=` to `check`"):
        stopping.check({"loss": 0.1})
    answers = [stopping.check({"loss": 0.1}, step=step) for step in (2, 3)]
    assert answers == [False, True]


def test_restoring_without_a_model_says_what_to_call():
    stopping = ThresholdStopping("loss", 0.4, restore="best")
    with pytest.raises(ValueError, match="call `set_model"):
        stopping.check({"loss": 0.5})


def test_a_value_that_is_not_one_number_is_refused():
    with pytest.raises(TypeError, match=r"one number, got shape \(2,\)"):
        ThresholdStopping("loss", 0.4).check({"loss": np.zeros(2)})


@pytest.mark.parametrize("every", ["epoch", 1])
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_is_a_callback_of_its_own(duplicate, every):
    rule = Reached("loss", 0.4) & Reached("loss", 0.5)
    original = ThresholdStopping(rule, every=every, restore="best")
    twin = duplicate(original)
    twin.restore = None
    run = run_epochs if every == "epoch" else run_batches
    assert run(twin, [0.9, 0.3]) == 1
    assert twin.stop.value == 0.3
    assert original.stop is None


def test_a_second_run_starts_afresh():
    stopping = ThresholdStopping("loss", 0.4, count=2)
    assert run_epochs(stopping, [0.9, 0.3, 0.3]) == 2
    assert run_epochs(stopping, [0.3, 0.9, 0.3, 0.3]) == 3


# -------------------------------------------------------------------------------- state


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 3},
        {"count": 3, "consecutive": False},
        {"patience": 2},
        {"count": 2, "patience": 2, "min_delta": 0.05},
        {"count": 3, "within": 5},
        {"within": 2},
    ],
)
@pytest.mark.parametrize("cut", range(1, 7))
def test_a_run_cut_anywhere_ends_as_the_whole_run(arguments, cut):
    values = [0.9, 0.35, 0.3, NAN, 0.25, 0.2, 0.28, 0.3, 0.29]
    whole = ThresholdStopping("loss", 0.4, **arguments)
    expected = run_epochs(whole, values)
    first = ThresholdStopping("loss", 0.4, **arguments)
    first.on_train_begin()
    stopped = [first.check({"loss": value}, epoch=i) for i, value in enumerate(values)]
    assert stopped.index(True) == expected
    first.on_train_begin()
    for epoch, value in enumerate(values[:cut]):
        first.check({"loss": value}, epoch=epoch)
    second = ThresholdStopping("loss", 0.4, **arguments)
    second.set_state(json.loads(json.dumps(first.get_state())))
    rest = enumerate(values[cut:], start=cut)
    ends = [
        epoch for epoch, value in rest if second.check({"loss": value}, epoch=epoch)
    ]
    assert ends[0] == max(expected, cut)
    assert second.best == whole.best
    assert second.stop.epoch == whole.stop.epoch


def test_a_run_that_forgets_its_state_ends_elsewhere():
    # Negative control of the test above.
    values = [0.9, 0.35, 0.3, 0.25, 0.2, 0.1]
    whole = ThresholdStopping("loss", 0.4, count=3)
    assert run_epochs(whole, values) == 3
    forgetful = ThresholdStopping("loss", 0.4, count=3)
    assert run_epochs(forgetful, values[2:]) == 4 - 2


def test_a_state_given_before_fit_is_kept_for_that_fit_only():
    first = ThresholdStopping("loss", 0.4, count=2)
    first.check({"loss": 0.1})
    second = ThresholdStopping("loss", 0.4, count=2)
    second.set_state(first.get_state())
    assert run_epochs(second, [0.1, 0.1]) == 0
    assert run_epochs(second, [0.1, 0.1]) == 1


LOSS = Reached("loss", 0.4, "min")
SCORE = Reached("score", 0.9, "max")


@pytest.mark.parametrize(
    ("before", "after", "then", "now"),
    [
        ({}, {"monitor": "val_loss"}, "monitor='loss'", "monitor='val_loss'"),
        ({}, {"mode": "max"}, "mode='<='", "mode='>='"),
        ({}, {"mode": "<"}, "mode='<='", "mode='<'"),
        ({"mode": "max"}, {}, "mode='>='", "mode='auto'"),
        ({}, {"every": 10}, "every='epoch'", "every=10"),
        ({"every": 10}, {"every": 20}, "every=10", "every=20"),
        ({"count": 2}, {"count": 3}, "count=2", "count=3"),
        ({}, {"consecutive": False}, "consecutive=True", "consecutive=False"),
        ({}, {"restore": "best"}, "restore=None", "restore='best'"),
        (
            {"monitor": LOSS & SCORE, "threshold": None},
            {"monitor": LOSS | SCORE, "threshold": None},
            "(loss & score)",
            "(loss | score)",
        ),
        (
            {"monitor": LOSS & SCORE, "threshold": None},
            {"monitor": SCORE & LOSS, "threshold": None},
            "(loss & score)",
            "(score & loss)",
        ),
        ({}, {"monitor": None, "threshold": None, "check_finite": True}, "loss", "''"),
    ],
)
def test_the_state_of_a_stopper_with_another_condition_is_refused(
    before, after, then, now
):
    common = {"monitor": "loss", "threshold": 0.4}
    first = ThresholdStopping(**(common | before))
    first.set_model(fake_model())
    first.check({"loss": 0.9, "score": 0.1})
    state = json.loads(json.dumps(first.get_state()))
    second = ThresholdStopping(**(common | after), name="second")
    untouched = second.get_state()
    with pytest.raises(ValueError, match="state given to second was saved") as error:
        second.set_state(state)
    message = str(error.value)
    assert message.index(then) < message.index("but the callback has")
    assert message.index("but the callback has") < message.index(now)
    assert "ExactResume` in another directory" in message
    # It took nothing of what it refused.
    assert second.get_state() == untouched
    # Negative control: the one whose state it is takes it.
    ThresholdStopping(**(common | before)).set_state(state)


@pytest.mark.parametrize(
    "arguments",
    [
        {"verbose": 1},
        {"progress": True},
        {"log_stop": True},
        {"name": "other"},
        {"on_missing": "warn"},
        {"start_epoch": 1},
        {"patience": 3, "min_delta": 0.1},
        {"divergence_threshold": 9.0},
        {"check_finite": True},
        {"within": 9},
        {"mode": "min"},  # what "auto" has turned out to mean
    ],
)
def test_a_state_is_taken_where_another_argument_leaves_it_its_meaning(arguments):
    first = ThresholdStopping("loss", 0.4, count=2)
    first.check({"loss": 0.3})
    second = ThresholdStopping("loss", 0.4, count=2, **arguments)
    second.set_state(json.loads(json.dumps(first.get_state())))
    second.check({"loss": 0.35}, epoch=1)
    assert second.reached_epoch == 1
    assert second.best == 0.3


def test_an_auto_that_had_no_check_yet_may_be_written_out():
    # The way out of the error that Keras has no rule for the name.
    first = ThresholdStopping("score", 0.9)
    with pytest.raises(ValueError, match="Keras has none for 'score'"):
        first.check({"score": 0.5})
    second = ThresholdStopping("score", 0.9, mode="max")
    second.set_state(first.get_state())
    assert second.check({"score": 0.95}) is True


def test_with_another_threshold_the_count_begins_anew_and_the_best_value_stays():
    first = ThresholdStopping("loss", 0.4, count=2)
    first.check({"loss": 0.2})
    other = ThresholdStopping("loss", 0.3, count=2)
    other.set_state(first.get_state())
    assert other.best == 0.2
    assert [other.check({"loss": 0.25}) for _ in range(2)] == [False, True]
    # Negative control: for the same threshold the first check counts.
    same = ThresholdStopping("loss", 0.4, count=2)
    same.set_state(first.get_state())
    assert same.check({"loss": 0.25}) is True


def test_with_another_threshold_the_weights_that_reached_the_old_one_are_let_go():
    first = ThresholdStopping("loss", 0.4, patience=9, restore="reaching")
    first.set_model(SimpleNamespace(metrics=[], get_weights=lambda: [np.ones(2)]))
    first.check({"loss": 0.3}, step=1)
    same = ThresholdStopping("loss", 0.4, patience=9, restore="reaching")
    other = ThresholdStopping("loss", 0.1, patience=9, restore="reaching")
    for second in (same, other):
        second.set_state(first.get_state())
    assert "weight_0" in same.get_state()
    assert "weight_0" not in other.get_state()


@pytest.mark.parametrize(
    ("reason", "before", "after", "goes_on"),
    [
        ("threshold", {}, {}, False),
        ("threshold", {}, {"threshold": 0.1}, True),
        ("threshold", {}, {"patience": 5}, True),
        ("plateau", {"patience": 1}, {"patience": 1}, False),
        ("plateau", {"patience": 1}, {"patience": 5}, True),
        ("not-reached", {"threshold": 0.1, "within": 3}, {"within": 3}, False),
        ("not-reached", {"threshold": 0.1, "within": 3}, {"within": 9}, True),
        ("not-reached", {"threshold": 0.1, "within": 3}, {}, True),
        ("divergence", {"divergence_threshold": 0.48}, {}, True),
        (
            "divergence",
            {"divergence_threshold": 0.48},
            {"divergence_threshold": 0.48},
            False,
        ),
    ],
)
def test_a_restored_stop_ends_the_run_unless_the_arguments_now_allow_more(
    reason, before, after, goes_on
):
    common = {"monitor": "loss", "threshold": before.get("threshold", 0.4)}
    first = ThresholdStopping(**(common | before))
    values = [0.5, 0.4, 0.4] if reason == "divergence" else [0.45, 0.4, 0.42]
    run_epochs(first, values)
    assert first.stop.reason == reason
    second = ThresholdStopping(**(common | after))
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert (second.stop is None) == goes_on
    assert run_epochs(second, [0.46, 0.46]) == (None if goes_on else 0)


def test_the_count_of_batches_goes_on_inside_an_epoch():
    first = ThresholdStopping("loss", 0.4, every=5)
    for batch in range(3):
        first.on_train_batch_end(batch, {"loss": 0.1})
    second = ThresholdStopping("loss", 0.4, every=5)
    second.set_state(first.get_state())
    # The resumed epoch counts its batches from 0; the check is due at the second.
    assert run_batches(second, [0.1] * 9) == 1


def test_the_operators_make_the_named_combinations():
    a, b = Reached("loss", 0.4, "min"), Reached("accuracy", 0.9, "max")
    assert (a & b) == callbacks.AllOf(a, b)
    assert (a | b) == callbacks.AnyOf(a, b)
    assert (a & b) != (a | b)
    assert all(isinstance(c, callbacks.Condition) for c in (a, a & b, a | b))
