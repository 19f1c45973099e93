"""The steps of a run towards its threshold: tables of values, without Keras."""

import ast
import dataclasses
import inspect
import json
import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fmkit.callbacks import Reached, Stop, StopReason, ThresholdStopping
from fmkit.callbacks._stopping import _progress, _settings, _stop
from fmkit.callbacks._stopping._progress import (
    Moment,
    Progress,
    first_nonfinite,
    has_begun,
)
from fmkit.callbacks._stopping._settings import Settings

pytestmark = pytest.mark.backend("torch")

NAN, INF = float("nan"), float("inf")
RISES = Reached("score", 1.0, "max")
FALLS = Reached("loss", 1.0, "min")


def walk(values, rule=RISES, progress=None, **settings):
    """Do one step per value, `None` for a value that is not known yet.

    Returns the index of the step with a verdict, or `None`, that verdict, and the
    progress after each step.
    """
    settings, history = Settings(**settings), [progress or Progress()]
    for index, value in enumerate(values):
        known = {} if value is None else {rule.monitor: value}
        moment = Moment(index, read_step=lambda index=index: 10 * index)
        after, verdict = history[-1].step(known, rule, settings, moment)
        history.append(after)
        if verdict is not None:
            return index, verdict, history[1:]
    return None, None, history[1:]


# ------------------------------------------------------------- what ends a run, where


@pytest.mark.parametrize(
    ("settings", "values", "expected", "reason"),
    [
        ({}, [0.9, 1.0], 1, "threshold"),
        ({}, [0.9, INF, NAN, None], None, None),
        # count, consecutive: what is not known neither counts nor breaks the row
        ({"count": 2}, [1, 0, 1, 1], 3, "threshold"),
        ({"count": 2}, [1, NAN, 1, 1], 3, "threshold"),
        ({"count": 2}, [1, None, 1], 2, "threshold"),
        ({"count": 2, "consecutive": False}, [1, 0, NAN, 1], 3, "threshold"),
        ({"count": 3, "consecutive": False}, [1, 0, 1, 0], None, None),
        # patience begins when the threshold is reached; equal is no improvement
        ({"patience": 2}, [0.5, 0.4, 0.3, 0.2], None, None),
        ({"patience": 2}, [1.0, 1.0, 1.0], 2, "plateau"),
        ({"patience": 2}, [1.0, 1.1, 1.0, 1.2, 1.1, 1.1], 5, "plateau"),
        ({"patience": 2}, [1.0, None, NAN, None, NAN], 4, "plateau"),
        ({"patience": 1, "count": 2}, [1.0, 1.0, 1.0], 2, "plateau"),
        # a former peak below the threshold's row is what must be beaten
        ({"patience": 1, "count": 2}, [3.0, 0.0, 1.0, 2.0, 2.5], 4, "plateau"),
        # min_delta: exactly that is no improvement; small gains add up
        ({"patience": 1, "min_delta": 0.25}, [1.0, 1.25], 1, "plateau"),
        ({"patience": 1, "min_delta": 0.25}, [1.0, 1.5, 1.75], 2, "plateau"),
        ({"patience": 2, "min_delta": 0.25}, [1.0, 1.25, 1.5, 1.75, 2.0], None, None),
        # within: the last of the checks may still reach it; an unknown one is none
        ({"within": 2}, [0, 0, 1], 1, "not-reached"),
        ({"within": 2}, [0, 1, 0], 1, "threshold"),
        ({"within": 2}, [0, None, None, NAN, 1], 3, "not-reached"),
        ({"within": 3, "count": 2}, [1, 0, 1, 1], 2, "not-reached"),
        ({"within": 2, "patience": 1}, [0, 1, 2, 3], None, None),
        # divergence comes before all else, and NaN is not divergence
        ({"divergence_threshold": -2.0}, [0, -2.0, NAN, -2.5], 3, "divergence"),
        ({"divergence_threshold": -2.0}, [0, -INF], 1, "divergence"),
        ({"divergence_threshold": -2.0}, [INF, None, 0], None, None),
        ({"divergence_threshold": 2.0}, [1.0], 0, "divergence"),
        ({"divergence_threshold": -2.0, "within": 2}, [0, -3], 1, "divergence"),
        (
            {"divergence_threshold": -2.0, "patience": 1},
            [1, -3],
            1,
            "divergence",
        ),
    ],
)
@pytest.mark.parametrize("rule", [RISES, FALLS], ids=["rises", "falls"])
def test_a_table_of_values_ends_where_it_says(settings, values, expected, reason, rule):
    if rule is FALLS:  # The mirror image: what rises around 1 falls around 1.
        values = [None if value is None else 2 - value for value in values]
        if "divergence_threshold" in settings:
            limit = 2 - settings["divergence_threshold"]
            settings = settings | {"divergence_threshold": limit}
    index, verdict, _ = walk(values, rule, **settings)
    assert (index, verdict and verdict.reason) == (expected, reason)
    if verdict is not None:
        assert (verdict.monitor, verdict.value) == (rule.monitor, values[index])
        limit = settings.get("divergence_threshold")
        assert verdict.threshold == (limit if reason == "divergence" else 1.0)


def reference(values, count, consecutive, patience, min_delta, within, limit):
    """Search whole sequences for the end that the documentation defines.

    Returns the index of the end, its reason, the index that reached 1, and the best
    value, each `None` if there is none.
    """
    known = [i for i, value in enumerate(values) if value is not None]
    finite = [i for i in known if math.isfinite(values[i])]
    hits = [i for i in finite if values[i] >= 1]

    def complete(index):
        row = [i for i in known if i <= index]
        row = row[-count:] if consecutive else row
        return index in hits and sum(i in hits for i in row) >= count

    ends = [(i, 0, "divergence") for i in known if values[i] < limit]
    reaching = next(filter(complete, known), None)
    deadline = known[within - 1] if within and len(known) >= within else None
    if deadline is not None and (reaching is None or reaching > deadline):
        ends.append((deadline, 1, "not-reached"))
        reaching = None
    if reaching is not None and patience == 0:
        ends.append((reaching, 1, "threshold"))
    elif reaching is not None:
        improving, beat = [], -INF
        for i in finite:
            if values[i] - beat > min_delta:
                improving.append(i)
                beat = values[i]
        for i in (i for i in known if i > reaching):
            since = max([reaching, *(j for j in improving if j <= i)])
            if sum(since < j <= i for j in known) >= patience:
                ends.append((i, 1, "plateau"))
                break
    end, _, reason = min(ends, default=(None, None, None))
    last = len(values) if end is None else end + (reason != "divergence")
    best = max((values[i] for i in finite if i < last), default=None)
    if reaching is not None and reaching >= last:
        reaching = None
    return end, reason, reaching, best


@hypothesis_settings(max_examples=500, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([None, NAN, INF, -INF, -1.0, 0.5, 1.0, 1.0, 1.25, 1.5, 1.75]),
        max_size=14,
    ),
    count=st.integers(1, 3),
    consecutive=st.booleans(),
    patience=st.integers(0, 3),
    min_delta=st.sampled_from([0.0, 0.25, 0.5]),
    spare=st.none() | st.integers(0, 5),
    limit=st.sampled_from([-INF, 0.0, 0.75, 1.0]),
    falls=st.booleans(),
)
def test_the_steps_agree_with_a_search_through_the_whole_sequence(
    values, count, consecutive, patience, min_delta, spare, limit, falls
):
    counting = {
        "count": count,
        "consecutive": consecutive,
        "patience": patience,
        "min_delta": min_delta,
        "within": None if spare is None else count + spare,
    }
    expected = reference(values, **counting, limit=limit)
    sign = -1 if falls else 1
    rule = Reached("value", sign, "min" if falls else "max")
    if math.isfinite(limit):
        counting["divergence_threshold"] = sign * limit
    mirrored = [None if value is None else sign * value for value in values]
    index, verdict, history = walk(mirrored, rule, **counting)
    last = history[-1] if history else Progress()
    best = None if last.best is None else sign * last.best
    assert (index, verdict and verdict.reason, last.reached_epoch, best) == expected
    assert last.reached == (last.reached_epoch is not None)
    assert last.reached_step == (10 * last.reached_epoch if last.reached else None)


# ----------------------------------------------------------------------- what is kept


def test_the_best_value_and_the_moment_of_reaching_are_kept():
    values = [NAN, 0.5, 1.0, INF, 0.75, 1.5, 1.25, None]
    _, _, history = walk(values, patience=9)
    bests = [progress.best for progress in history]
    assert bests == [None, 0.5, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5]
    assert [progress.reached for progress in history] == [False] * 2 + [True] * 6
    assert {(p.reached_epoch, p.reached_step) for p in history[2:]} == {(2, 20)}
    assert [progress.checks for progress in history] == [1, 2, 3, 4, 5, 6, 7, 7]
    # Worse at index 3 and 4, better at 5, worse at 6; what is unknown doesn't count.
    assert [progress.wait for progress in history] == [0, 0, 0, 1, 2, 0, 1, 1]


def test_the_best_value_is_not_bound_to_min_delta():
    _, _, history = walk([1.0, 1.125, 1.25], patience=9, min_delta=0.5)
    assert [progress.best for progress in history] == [1.0, 1.125, 1.25]
    assert [progress.to_beat for progress in history] == [1.0] * 3


def test_a_step_leaves_the_progress_it_began_with_alone():
    begun = Progress(best=0.5, to_beat=0.5, checks=1)
    copy = dataclasses.replace(begun)
    after, _ = begun.step({"score": 1.0}, RISES, Settings(), Moment())
    assert begun == copy != after
    with pytest.raises(dataclasses.FrozenInstanceError):
        begun.held = 3


def test_a_walk_cut_anywhere_ends_as_the_whole_one():
    values = [0.5, 1.0, 1.0, NAN, 1.25, 1.0, 1.5, 1.25, 1.25]
    whole = walk(values, count=2, patience=2)
    assert whole[0] == 8
    for cut in range(1, 8):
        *_, before = walk(values[:cut], count=2, patience=2)
        record = json.loads(json.dumps(dataclasses.asdict(before[-1])))
        index, verdict, after = walk(
            values[cut:], progress=Progress(**record), count=2, patience=2
        )
        assert index + cut == 8
        assert verdict.reason is StopReason.PLATEAU
        assert (after[-1].best, after[-1].checks) == (1.5, 9)
        # Negative control: the second part alone has less behind it.
        assert walk(values[cut:], count=2, patience=2)[2][-1].checks < 9


def test_two_names_count_by_their_condition_and_the_first_one_leads():
    rule = RISES & FALLS
    settings, progress = Settings(patience=1, count=2), Progress()
    table = [
        # score, loss: both hold in the rows 1, 2 and 4; the score improves in 3
        ({"score": 1.0, "loss": 0.5}, 1, 1.0, None),
        ({"score": 1.0, "loss": 0.1}, 2, 1.0, None),
        ({"score": 2.0, "loss": 9.0}, 0, 2.0, None),
        ({"loss": 0.5}, 0, 2.0, None),  # the score may still come
        ({"score": 1.5, "loss": 0.0}, 1, 2.0, "plateau"),
    ]
    for values, held, best, reason in table:
        progress, verdict = progress.step(values, rule, settings, Moment())
        assert (progress.held, progress.best) == (held, best)
        assert (verdict and verdict.reason) == reason


def test_a_smaller_within_ends_a_resumed_run_at_its_next_check_and_not_before():
    index, verdict, _ = walk([None, None, 0.5], progress=Progress(checks=5), within=2)
    assert (index, verdict.reason) == (2, StopReason.NOT_REACHED)
    assert "within 6 checks" in verdict.explanation


# ------------------------------------------------------- before the count, and after


@pytest.mark.parametrize(
    ("settings", "epoch", "step", "begun"),
    [
        ({}, None, None, True),
        ({"start_epoch": 2}, None, None, False),
        ({"start_epoch": 2}, 1, 99, False),
        ({"start_epoch": 2}, 2, None, True),
        ({"start_step": 10}, 5, 9, False),
        ({"start_step": 10}, None, 10, True),
        ({"start_epoch": 2, "start_step": 10}, 1, 10, False),
        ({"start_epoch": 2, "start_step": 10}, 2, 9, False),
        ({"start_epoch": 2, "start_step": 10}, 2, 10, True),
    ],
)
def test_checks_begin_at_the_first_epoch_and_step(settings, epoch, step, begun):
    moment = Moment(epoch, read_step=lambda: step)
    assert has_begun(Settings(**settings), moment) is begun


def test_the_step_is_read_once_and_only_if_something_asks_for_it():
    reads = []
    moment = Moment(1, read_step=lambda: reads.append(1) or 7)
    assert has_begun(Settings(start_epoch=1), moment)
    progress, _ = Progress().step({"score": 0.5}, RISES, Settings(), moment)
    assert reads == []
    progress, _ = progress.step({"score": 1.0}, RISES, Settings(), moment)
    assert (progress.reached_step, str(moment)) == (7, " in epoch 2 (step 7)")
    assert reads == [1]


@pytest.mark.parametrize(
    ("values", "monitor"),
    [
        ([], None),
        ([("loss", 1.0), ("score", -1e308)], None),
        ([("loss", 1.0), ("score", -INF)], "score"),
        ([("loss", INF), ("score", NAN)], "loss"),
    ],
)
def test_the_first_value_that_is_not_finite_is_named(values, monitor):
    verdict = first_nonfinite(values)
    assert (verdict and verdict.monitor) == monitor
    if verdict is not None:
        assert verdict.reason is StopReason.NONFINITE
        assert verdict.threshold is None
        assert str(verdict.value) in verdict.explanation


def test_values_after_the_first_that_is_not_finite_are_not_looked_at():
    def values():
        yield "loss", NAN
        raise AssertionError("looked too far")

    assert first_nonfinite(values()).monitor == "loss"


@pytest.mark.parametrize(
    ("reason", "progress", "limit", "settings", "ends"),
    [
        ("threshold", {"reached": True}, 1.0, {}, True),
        ("threshold", {"reached": True}, 1.0, {"patience": 1}, False),
        ("threshold", {}, 1.0, {}, False),
        ("plateau", {"reached": True, "wait": 2}, 1.0, {"patience": 2}, True),
        ("plateau", {"reached": True, "wait": 2}, 1.0, {"patience": 3}, False),
        ("plateau", {"wait": 2}, 1.0, {"patience": 2}, False),
        ("not-reached", {"checks": 3}, 1.0, {"within": 3}, True),
        ("not-reached", {"checks": 3}, 1.0, {"within": 4}, False),
        ("not-reached", {"checks": 3}, 1.0, {}, False),
        ("divergence", {}, 9.0, {"divergence_threshold": 9.0}, True),
        ("divergence", {}, 9.0, {"divergence_threshold": 10.0}, False),
        ("divergence", {}, 9.0, {}, False),
        ("non-finite", {}, None, {}, True),
    ],
)
def test_a_former_end_is_one_with_other_settings_or_is_not(
    reason, progress, limit, settings, ends
):
    stop = Stop("name", StopReason(reason), "loss", 0.0, limit, None, None, "text")
    assert Progress(**progress).still_ends(stop, Settings(**settings)) is ends


def test_for_another_threshold_only_the_best_value_and_the_checks_remain():
    _, _, history = walk([1.0, 1.5, 1.25], patience=9)
    kept = history[-1].for_another_threshold()
    assert kept == Progress(best=1.5, to_beat=1.5, checks=3)
    assert kept != history[-1]


# ------------------------------------------------------------------- how it is built


def test_the_settings_have_the_defaults_that_the_callback_documents():
    parameters = inspect.signature(ThresholdStopping).parameters
    documented = {
        field.name: parameters[field.name].default
        for field in dataclasses.fields(Settings)
    }
    assert documented.pop("check_finite") is False
    own = dataclasses.asdict(Settings())
    assert own.pop("check_finite") is None
    assert own == documented


def test_an_attribute_changes_its_setting_and_is_validated_as_the_argument():
    stopping = ThresholdStopping("loss", 0.4, within=3)
    stopping.count = 2
    assert (stopping.count, stopping.within) == (2, 3)
    answers = [stopping.check({"loss": value}) for value in (0.3, 0.2)]
    assert answers == [False, True]
    with pytest.raises(ValueError, match="`within` must be at least 2"):
        stopping.within = 1
    assert stopping.within == 3


@pytest.mark.parametrize("module", [_progress, _settings, _stop])
def test_what_counts_imports_neither_keras_nor_a_callback(module):
    def imported(source):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                yield node.module
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)

    forbidden = ("keras", "_keras_private", "_stopper", "_threshold_stopping")
    found = set(imported(inspect.getsource(module)))
    assert not [name for name in found if name.endswith(forbidden)]
    # Negative control: the module of the callback has both.
    shell = set(imported(inspect.getsource(inspect.getmodule(ThresholdStopping))))
    assert {name for name in shell if name.endswith(forbidden)} > {"keras"}
