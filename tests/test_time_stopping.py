"""TimeStopping, on a clock that the test moves by hand."""

import datetime
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from fmkit.callbacks import StopReason, TimeStopping


class Clock:
    """Seconds that pass only when told to; begins anywhere, as clocks do."""

    def __init__(self, now=1e6):
        self.now = now

    def __call__(self):
        return self.now


def run(stopping, clock, epochs=3, steps=4, step_time=10.0, validation_time=0.0):
    """Call the hooks as `fit` does; return (epoch, step) of the last step done."""
    model = SimpleNamespace(stop_training=False, optimizer=None)
    stopping.set_model(model)
    stopping.set_params({"verbose": 0, "epochs": epochs, "steps": steps})
    stopping.on_train_begin()
    last = None
    for epoch in range(epochs):
        stopping.on_epoch_begin(epoch)
        for step in range(steps):
            stopping.on_train_batch_begin(step)
            clock.now += step_time
            last = (epoch, step)
            if model.stop_training:
                break
        clock.now += validation_time
        stopping.on_epoch_end(epoch, {})
        if model.stop_training:
            break
    stopping.on_train_end()
    return last


@pytest.mark.parametrize(
    ("budget", "margin", "validation_time", "last"),
    [
        # The step that begins when the time is up is still done, and is the last.
        (20.0, 0.0, 0.0, (0, 2)),
        (20.5, 0.0, 0.0, (0, 3)),
        (60.0, 40.0, 0.0, (0, 2)),
        (120.0, 0.0, 0.0, (2, 3)),
        (121.0, 0.0, 0.0, (2, 3)),
        (0.5, 0.0, 0.0, (0, 1)),
        # 40 s of steps and 30 s of validation: over at the end of the first epoch
        (65.0, 0.0, 30.0, (0, 3)),
        (75.0, 0.0, 30.0, (1, 1)),
    ],
)
def test_the_run_ends_with_the_step_that_finds_the_time_used(
    budget, margin, validation_time, last
):
    clock = Clock()
    stopping = TimeStopping(budget, margin=margin, clock=clock)
    assert run(stopping, clock, validation_time=validation_time) == last


def test_a_run_within_its_budget_is_left_alone():
    clock = Clock()
    stopping = TimeStopping(1000.0, clock=clock)
    assert run(stopping, clock) == (2, 3)
    assert stopping.stop is None
    assert stopping.used == 120.0


def test_a_timedelta_counts_as_its_seconds():
    minutes = datetime.timedelta(minutes=1, seconds=30)
    stopping = TimeStopping(minutes, margin=datetime.timedelta(seconds=5))
    assert (stopping.budget, stopping.margin) == (90.0, 5.0)


def test_the_record_tells_the_seconds():
    clock = Clock()
    stopping = TimeStopping(60, margin=40, clock=clock, name="night")
    run(stopping, clock)
    assert stopping.stop.reason is StopReason.TIME
    assert (stopping.stop.value, stopping.stop.threshold) == (20.0, 20.0)
    assert (stopping.stop.epoch, stopping.stop.step) == (0, None)
    assert stopping.stop.message == (
        "night stopped the run in epoch 1 at batch 3: 20.0 s of 60 s are used "
        "(a margin of 40 s is kept)."
    )


def test_the_used_time_goes_on_across_a_resume():
    clock = Clock()
    first = TimeStopping(100.0, clock=clock)
    run(first, clock, epochs=1)
    state = json.loads(json.dumps(first.get_state()))
    assert state["used"] == 40.0
    other_clock = Clock(now=5.0)  # another process, another machine
    second = TimeStopping(100.0, clock=other_clock)
    second.set_state(state)
    assert run(second, other_clock) == (1, 2)
    assert second.stop.value == 100.0
    # Negative control: without the state the budget begins anew.
    fresh_clock = Clock()
    fresh = TimeStopping(100.0, clock=fresh_clock)
    assert run(fresh, fresh_clock) == (2, 2)


@pytest.mark.parametrize("text", ["6:00:00", "1:30:05", "45s", "2 days", "1 h"])
def test_the_timedelta_that_an_error_says_to_write_is_taken(text):
    with pytest.raises(TypeError) as error:
        TimeStopping(text)
    written = str(error.value).partition("for example budget=")[2].rstrip(".")
    budget = TimeStopping(eval(written)).budget
    expected = {"6:00:00": 21600, "1:30:05": 5405, "45s": 45, "2 days": 172800}
    assert budget == expected.get(text, 3600)


@pytest.mark.parametrize(
    ("budget", "margin", "last"),
    [
        (50.0, 0.0, (0, 0)),  # stopped as before, in the first step that asks
        (40.0, 0.0, (0, 0)),
        (90.0, 40.0, (0, 0)),
        (90.0, 0.0, (0, 3)),
        (140.0, 0.0, (1, 3)),
    ],
)
def test_a_run_that_was_out_of_time_goes_on_with_a_larger_budget(budget, margin, last):
    clock = Clock()
    first = TimeStopping(50.0, clock=clock)
    assert run(first, clock) == (1, 1)  # 60 s: the step that finds it used is done
    second = TimeStopping(budget, margin=margin, clock=clock)
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert (second.stop is None) == (budget - margin > 50.0)
    assert run(second, clock) == last


def test_a_state_saved_and_given_inside_a_run_counts_once():
    clock = Clock()
    first = TimeStopping(100.0, clock=clock)
    first.set_model(SimpleNamespace(stop_training=False))
    first.on_train_begin()
    clock.now += 30.0
    state = first.get_state()
    second = TimeStopping(100.0, clock=clock)
    second.on_train_begin()
    clock.now += 7.0
    second.set_state(state)
    assert second.used == 37.0


def test_a_loop_of_ones_own_asks_check():
    clock = Clock()
    stopping = TimeStopping(25.0, clock=clock)
    stopping.on_train_begin()
    answers = []
    for step in range(4):
        answers.append(stopping.check(epoch=0, step=step))
        clock.now += 10.0
    assert answers == [False, False, False, True]
    assert stopping.stop.step == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": 0}, ValueError, "`budget` must be a finite number above 0"),
        ({"budget": float("nan")}, ValueError, "`budget` must be a finite"),
        ({"budget": "1h"}, TypeError, "`budget` must be a number"),
        (
            {"budget": "6:00:00"},
            TypeError,
            r"got budget='6:00:00' \(str\). Write for example "
            r"budget=datetime.timedelta\(hours=6\)\.",
        ),
        ({"budget": "1:30:05"}, TypeError, r"\(hours=1, minutes=30, seconds=5\)"),
        ({"budget": "1 day, 2:00:00"}, TypeError, r"\(days=1, hours=2\)"),
        ({"budget": "90 minutes"}, TypeError, r"budget=datetime.timedelta\(minutes=90"),
        ({"budget": "2 months"}, TypeError, r"budget=datetime.timedelta\(hours=6\)"),
        ({"margin": "0:05:00"}, TypeError, r"margin=datetime.timedelta\(minutes=5\)"),
        ({"budget": None}, TypeError, r"None \(NoneType\).*datetime.timedelta"),
        ({"margin": -1}, ValueError, "at least 0 and below 10"),
        ({"margin": 10}, ValueError, "at least 0 and below 10"),
    ],
)
def test_a_refused_argument_says_why(arguments, error, message):
    with pytest.raises(error, match=message):
        TimeStopping(**({"budget": 10} | arguments))


def test_fit_ends_in_time_and_tells_it_in_its_history():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    clock = Clock()
    ticking = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: setattr(clock, "now", clock.now + 1)
    )
    stopping = TimeStopping(5.0, margin=1.0, clock=clock)
    x = np.ones((64, 2), "float32")
    history = model.fit(
        x, x[:, :1], batch_size=8, epochs=4, verbose=0, callbacks=[ticking, stopping]
    )
    assert history.epoch == [0]
    # The look before the fourth step finds 4 s; three steps are done by then.
    assert stopping.stop.step == 3
    assert int(model.optimizer.iterations.numpy()) == 4
    assert [record["reason"] for record in history.params["stops"]] == ["time"]


def test_a_stop_restored_in_its_own_step_stops_there_again():
    clock = Clock()
    stopping = TimeStopping(20.0, clock=clock)
    assert run(stopping, clock) == (0, 2)
    resumed = TimeStopping(20.0, clock=clock)
    resumed.set_state(json.loads(json.dumps(stopping.get_state())))
    assert run(resumed, clock) == (0, 0)
    assert resumed.stop == stopping.stop
    # With a larger budget it continues.
    more = TimeStopping(200.0, clock=clock)
    more.set_state(stopping.get_state())
    assert run(more, clock, epochs=1) == (0, 3)
