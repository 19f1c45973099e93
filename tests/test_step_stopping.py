"""StepStopping: the last step is the one asked for, also after a resume."""

import json

import pytest
from abilities import MANY_STEPS
from bits import bits
from resuming import X, Y, broken_and_resumed, build, data, fit

from fmkit.callbacks import StepStopping, StopReason


@pytest.mark.parametrize(
    ("steps", "epochs", "last"),
    [(1, [0], 1), (4, [0], 4), (5, [0], 5), (6, [0, 1], 6), (13, [0, 1, 2], 13)],
)
def test_fit_ends_after_as_many_steps_as_asked_for(steps, epochs, last):
    model, stopping = build(), StepStopping(steps)
    history = model.fit(data(), epochs=9, verbose=0, callbacks=[stopping])
    assert int(model.optimizer.iterations) == last
    assert history.epoch == epochs
    assert stopping.stop.reason is StopReason.STEPS == "steps"
    assert (stopping.stop.value, stopping.stop.step) == (last, last)
    assert history.params["stops"] == [stopping.stop.as_dict()]
    assert stopping.done == steps


def test_a_run_with_fewer_steps_is_left_alone():
    model, stopping = build(), StepStopping(11)
    model.fit(data(), epochs=2, verbose=0, callbacks=[stopping])
    assert stopping.stop is None
    assert stopping.done == int(model.optimizer.iterations) == 10


def test_epochs_of_steps_are_counted_as_fit_counts_them():
    model, stopping = build(), StepStopping(10)
    batches = data()
    model.fit(batches, epochs=9, steps_per_epoch=7, verbose=0, callbacks=[stopping])
    assert int(model.optimizer.iterations) == 10


@pytest.mark.backend(*MANY_STEPS)
@pytest.mark.parametrize(
    ("steps", "last"), [(2, 2), (3, 4), (4, 4), (5, 5), (6, 7), (7, 7), (8, 9)]
)
def test_with_executions_it_is_the_first_that_reaches_the_number(steps, last):
    model, stopping = build(steps=2), StepStopping(steps)
    model.fit(data(), epochs=9, verbose=0, callbacks=[stopping])
    assert int(model.optimizer.iterations) == last
    late = "an execution has 2 steps, and" in stopping.stop.message
    assert late == (last > steps)


def test_data_of_unknown_length_are_refused_before_training():
    def endless():
        while True:
            yield X[:8], Y[:8]

    model = build()
    with pytest.raises(ValueError, match=r"how many steps.*fit\(steps_per_epoch=100"):
        model.fit(endless(), shuffle=False, verbose=0, callbacks=[StepStopping(3)])
    model.fit(
        endless(),
        epochs=3,
        steps_per_epoch=2,
        shuffle=False,
        verbose=0,
        callbacks=[StepStopping(3)],
    )
    assert int(model.optimizer.iterations) == 3


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "7"])
def test_a_wrong_number_is_refused(steps):
    with pytest.raises((ValueError, TypeError), match="`steps` must be"):
        StepStopping(steps)


# Also at the very step that is the last: a commit made there has the stop in it.
@pytest.mark.parametrize("at", [(0, 3), (1, 1), (1, 2), (1, 3)])
def test_a_resumed_run_ends_with_the_same_step(tmp_path, at):
    def train(folder, *callbacks):
        stopping = StepStopping(9)
        model, _, history = fit(
            folder, stopping, *callbacks, epochs=9, every=1, background=False
        )
        return bits(model.weights), history.history, stopping.stop.as_dict()

    expected = train(tmp_path / "straight")
    assert expected[2]["step"] == 9
    assert broken_and_resumed(tmp_path / "broken", train, at) == expected


def test_the_count_is_lost_without_the_state(tmp_path, monkeypatch):
    monkeypatch.setattr(StepStopping, "set_state", lambda self, state: None)

    def train(folder, *callbacks):
        model, *_ = fit(folder, StepStopping(9), *callbacks, epochs=9, every=1)
        return int(model.optimizer.iterations)

    assert broken_and_resumed(tmp_path, train, (1, 2)) != 9


def test_a_run_that_is_given_more_steps_goes_on(tmp_path):
    def train(steps):
        model, _, history = fit(tmp_path, StepStopping(steps), epochs=9)
        return int(model.optimizer.iterations), history.epoch

    assert train(7) == (7, [0, 1])
    assert train(7) == (7, [0, 1])  # the control: it stays stopped
    assert train(12) == (12, [0, 1, 2])


def test_the_count_goes_on_from_a_state_in_json():
    first = StepStopping(9)
    build().fit(data(), epochs=1, verbose=0, callbacks=[first])
    state = json.loads(json.dumps(first.get_state()))
    assert state == {"stop": None, "steps": 5}
    second, model = StepStopping(9), build()
    second.set_state(state)
    model.fit(data(), epochs=9, verbose=0, callbacks=[second])
    assert int(model.optimizer.iterations) == 4
