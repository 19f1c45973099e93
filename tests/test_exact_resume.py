"""ExactResume inside one process: what it commits, refuses, restores and gives back."""

import datetime
import errno
import gc
import itertools
import os
import signal
import time

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS
from bits import array, bits, same_bits
from resuming import (
    Seen,
    StopAt,
    StopError,
    X,
    Y,
    broken_and_resumed,
    build,
    data,
    fit,
)

from fmkit import _files, callbacks, optimizers
from fmkit._commits import (
    CommitDirectory,
    _directory,
    list_commits,
    read_commit,
    read_meta,
    write_commit,
)
from fmkit.callbacks import ExactResume
from fmkit.data import Batches

BACKEND = keras.backend.backend()


def plain(epochs):
    model = build()
    history = model.fit(data(), epochs=epochs, verbose=0)
    return bits(model.weights), history.history


def test_a_run_broken_by_an_error_goes_on_where_it_was(tmp_path):
    with pytest.raises(StopError):
        fit(tmp_path, StopAt(1, 3), epochs=3)
    seen = Seen()
    model, resume, history = fit(tmp_path, seen, epochs=3)
    # Commits before steps 2, 4 and 6 of all, and the error came before that of 8.
    assert resume.resumed_from == (1, 1)
    assert seen.steps == [(e, s) for e in (1, 2) for s in range(5) if (e, s) > (1, 0)]
    expected, expected_history = plain(3)
    assert bits(model.weights) == expected
    assert history.history == expected_history
    assert history.epoch == [0, 1, 2]
    assert resume.finished


def test_a_finished_run_returns_its_history_and_takes_more_epochs(tmp_path, capsys):
    _, resume, history = fit(tmp_path, epochs=2)
    assert resume.resumed_from is None
    assert resume.finished
    seen = Seen()
    model, resume, again = fit(tmp_path, seen, epochs=2, verbose=1)
    assert "this run is finished after 2 epochs" in capsys.readouterr().out
    assert seen.steps == []
    assert again.history == history.history
    assert bits(model.weights) == plain(2)[0]
    model, resume, longer = fit(tmp_path, epochs=4)
    assert resume.resumed_from == (2, 0)
    assert bits(model.weights) == plain(4)[0]
    assert longer.history == plain(4)[1]
    # The same model trained on in the same process, without any resume: Keras's
    # own start epoch is as it was.
    model.fit(data(), epochs=1, verbose=0)
    assert model.history.epoch == [0]


def test_a_run_stopped_early_stays_stopped(tmp_path, capsys):
    class StopsAfterOne(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    fit(tmp_path, StopsAfterOne(), epochs=5)
    _, resume, history = fit(tmp_path, StopsAfterOne(), epochs=9, verbose=1)
    assert "was stopped after 1 epochs" in capsys.readouterr().out
    assert history.epoch == [0]
    assert resume.finished


def test_a_stop_that_the_arguments_would_no_longer_make_is_withdrawn(tmp_path):
    def run(threshold, budget=1000.0):
        stopping = callbacks.ThresholdStopping("loss", threshold, verbose=0)
        time_stopping = callbacks.TimeStopping(budget, verbose=0)
        return fit(tmp_path, stopping, time_stopping, epochs=3)

    assert run(9.0)[2].epoch == [0]
    assert run(9.0)[2].epoch == [0]  # the control: the same program stays stopped
    model, _, history = run(-1.0)
    assert history.epoch == [0, 1, 2]
    assert bits(model.weights) == plain(3)[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": lambda: build(units=5)}, r"model\[0\].*\[3, 4\].*\[3, 5\]"),
        ({"model": lambda: build(optimizer="sgd")}, "optimizer.class: 'Adam'.*'SGD'"),
        ({"model": lambda: build(learning_rate=0.5)}, "optimizer.learning_rate"),
        ({"batches": lambda: data(batch_size=4)}, "data.batch_size: 8 .*, 4 here"),
        ({"batches": lambda: data(seed=4)}, "data.seed: 0 .*, 4 here"),
        ({"batches": lambda: Batches(X[:30], Y[:30], 6, map=None)}, "data.samples: 40"),
    ],
)
def test_another_program_is_named_and_not_loaded(tmp_path, change, named):
    fit(tmp_path, epochs=1)
    (commit,) = list_commits(tmp_path)[-1:]
    before = commit.read_bytes()
    changed = {name: make() for name, make in change.items()}
    with pytest.raises(ValueError, match="(?s)made by another program.*" + named):
        fit(tmp_path, epochs=2, **changed)
    assert commit.read_bytes() == before
    fit(tmp_path, epochs=2)  # the directory is free again


def test_another_backend_is_named(tmp_path):
    fit(tmp_path, epochs=1)
    commit = read_commit(list_commits(tmp_path)[-1])
    commit.meta.program["backend"] = "another"
    write_commit(tmp_path / "commit-00000099.npz", commit.meta, commit.arrays)
    with pytest.raises(ValueError, match=f"backend: 'another' .* '{BACKEND}' here"):
        fit(tmp_path, epochs=2)


# Keras's own `get_config` of an optimizer, under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_damaged_commits_give_way_to_the_one_before_and_never_to_a_fresh_start(
    tmp_path,
):
    fit(tmp_path, epochs=2, keep=3)
    newest = list_commits(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"damaged commit.*{newest.name}"):
        model, resume, _ = fit(tmp_path, epochs=2)
    assert resume.resumed_from is not None
    assert bits(model.weights) == plain(2)[0]
    for path in list_commits(tmp_path):
        path.write_bytes(b"PK")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="None of the"),
    ):
        fit(tmp_path, epochs=2)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (3, [(0, 3), (1, 1), (1, 4), (2, 0)]),
        ("epoch", [(1, 0), (2, 0)]),
        ("2 epochs", [(2, 0)]),
        ("1 hour", [(2, 0)]),
        (datetime.timedelta(hours=1), [(2, 0)]),
        ("1e-9 seconds", [(e, s) for e in (0, 1) for s in range(5)] + [(2, 0)]),
    ],
)
def test_commits_come_as_often_as_asked(tmp_path, every, expected):
    fit(tmp_path, every=every, keep=99)
    metas = [read_meta(path) for path in list_commits(tmp_path)]
    found = [(meta.epoch, meta.step) for meta in metas]
    if every == "1e-9 seconds":  # the end of an epoch and the start of the next
        found = sorted(set(found))
    assert found == expected
    assert [meta.finished for meta in metas] == [False] * (len(metas) - 1) + [True]


@pytest.mark.parametrize("every", [0, "5 fortnights", "often", "0 epochs", True])
def test_a_wrong_every_is_refused(every):
    with pytest.raises((ValueError, TypeError), match="`every` must be"):
        ExactResume("somewhere", every=every)


def test_the_best_epochs_stay_besides_the_newest(tmp_path):
    model = build()
    scores = iter([0.5, 0.1, 0.9, 0.2, 0.3])

    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = next(scores)

    options = {"keep": 1, "keep_best": 2, "monitor": "score", "every": "epoch"}
    fit(tmp_path, Score(), model=model, epochs=5, mode="max", **options)
    kept = [read_meta(path).epoch for path in list_commits(tmp_path)]
    assert kept == [1, 3, 5]
    with pytest.raises(ValueError, match="`keep_best` needs monitor='val_loss'"):
        fit(tmp_path / "b", keep_best=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_at_the_next_step_and_stops(tmp_path, number):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    kind = SystemExit if number == signal.SIGTERM else KeyboardInterrupt
    with pytest.raises(kind) as stopped:
        fit(tmp_path, Interrupt(), every=1000)
    if number == signal.SIGTERM:
        assert stopped.value.code == 143
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    meta = read_meta(list_commits(tmp_path)[-1])
    assert (meta.epoch, meta.step) == (0, 3)
    model, resume, _ = fit(tmp_path)
    assert resume.resumed_from == (0, 3)
    assert bits(model.weights) == plain(2)[0]


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal; a shell's background job begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_after_an_error_finds_its_old_handler(tmp_path):
    with pytest.raises(StopError) as kept:
        fit(tmp_path, StopAt(0, 1))
    # `kept` keeps the frames of the broken fit, as a notebook does.
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _, resume, _ = fit(tmp_path)  # and its directory is taken over
    assert resume.finished
    assert kept.type is StopError


@pytest.mark.usefixtures("interruptible")
def test_signals_are_left_alone_when_told_so(tmp_path):
    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    fit(tmp_path, Look(), stop_on_signal=False, epochs=1)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_ends_the_training_with_the_commits_before_it(
    tmp_path, monkeypatch, background
):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        # Two calls for model.json, and for a commit: the file and the directory.
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(_files.os, "fsync", fsync)
    with pytest.raises(OSError, match=r"(?s)could not be written.*No space left.*room"):
        fit(tmp_path, background=background)
    monkeypatch.undo()
    assert len(list_commits(tmp_path)) == 1
    model, resume, _ = fit(tmp_path)
    assert resume.resumed_from == (0, 2)
    assert bits(model.weights) == plain(2)[0]


def test_two_fits_cannot_share_a_directory(tmp_path):
    class Nested(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            with pytest.raises(OSError, match="in use by another live run"):
                fit(tmp_path, epochs=1)

    fit(tmp_path, Nested(), epochs=1)


def test_rivals_are_refused(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "b")
    with pytest.raises(ValueError, match="Only one callback may decide"):
        fit(tmp_path, backup)
    with pytest.raises(ValueError, match="Only one callback may decide"):
        fit(tmp_path, ExactResume(tmp_path / "c"))
    resume = ExactResume(tmp_path)
    resume.set_model(build())
    with pytest.raises(RuntimeError, match=r"inside `model\.fit`"):
        resume.on_train_begin()


def test_a_generator_resumes_at_the_start_of_an_epoch_and_says_so(tmp_path, capsys):
    def batches(skipped=0):
        for number in itertools.count(skipped):
            rows = slice(number % 5 * 8, number % 5 * 8 + 8)
            yield X[rows], Y[rows]

    options = {"steps_per_epoch": 5, "shuffle": False}

    def run(data, *callbacks):
        model = build()
        resume = ExactResume(tmp_path, every=2)
        model.fit(data, **options, epochs=3, verbose=0, callbacks=[resume, *callbacks])
        return model, resume

    with pytest.raises(StopError):
        run(batches(), StopAt(2, 3))
    printed = capsys.readouterr().out
    assert "resuming at the start of an epoch" in printed
    assert "use a keras.utils.PyDataset, or name" in printed
    model, resume = run(batches())
    assert resume.resumed_from == (2, 0)
    # These give the same in each epoch: so even that is exact.
    straight = build()
    straight.fit(batches(), **options, epochs=3, verbose=0)
    assert bits(model.weights) == bits(straight.weights)


def test_callbacks_without_state_are_named(tmp_path, capsys):
    fit(tmp_path, Seen(), keras.callbacks.TerminateOnNaN(), epochs=1, verbose=1)
    printed = capsys.readouterr().out
    assert "not restored: the attributes of Seen (give it get_state" in printed
    assert "TerminateOnNaN" not in printed


def test_the_progress_bar_goes_on_where_it_was(tmp_path, capsys):
    with pytest.raises(StopError):
        fit(tmp_path, StopAt(1, 3))
    seen = []

    class Bar(keras.callbacks.ProgbarLogger):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            seen.append((self.seen, self.target))

    fit(tmp_path, Bar())
    assert seen == [(2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_commit_changes_nothing_in_the_training(tmp_path):
    # Neither does having ExactResume at all.
    model, _, history = fit(tmp_path, every=1)
    assert bits(model.weights) == plain(2)[0]
    assert history.history == plain(2)[1]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_half_precision_states_come_back(tmp_path, dtype):
    keras.config.set_dtype_policy(dtype)
    expected, history = plain(2)
    with pytest.raises(StopError):
        fit(tmp_path, StopAt(1, 2), every=1)
    model, resume, again = fit(tmp_path)
    assert resume.resumed_from == (1, 1)
    assert bits(model.weights) == expected
    assert again.history == history


def test_callbacks_that_count_batches_count_none_twice(tmp_path):
    def counting():
        stop = callbacks.ThresholdStopping("loss", 0.0, every=4)
        return stop, callbacks.BatchValidation((X, Y), every=3)

    straight = counting()
    fit(tmp_path / "straight", *straight, epochs=3)
    with pytest.raises(StopError):
        fit(tmp_path / "broken", *counting(), StopAt(1, 3), epochs=3)
    resumed = counting()
    _, resume, _ = fit(tmp_path / "broken", *resumed, epochs=3)
    assert resume.resumed_from == (1, 1)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert ours.get_state() == theirs.get_state()


@pytest.mark.parametrize("every", ["epoch", 2])
def test_weights_that_keras_swaps_at_the_end_of_an_epoch_come_back(tmp_path, every):
    def train(directory, *callbacks):
        model = build(optimizer=keras.optimizers.Adam(0.05, use_ema=True))
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        fit(directory, swap, *callbacks, epochs=4, model=model, every=every)
        # On JAX Keras leaves one array under two names at the end of `fit`.
        return [array(v) for v in [*model.variables, *model.optimizer.variables]]

    expected = train(tmp_path / "unbroken")
    assert same_bits(broken_and_resumed(tmp_path / "broken", train, (2, 1)), expected)


@pytest.mark.backend(*MANY_STEPS)
def test_several_steps_per_execution_come_back_between_two_executions(tmp_path):
    def train(directory, *others, epochs=2):
        seen, model = Seen(), build(steps=2)
        fit(directory, seen, *others, model=model, epochs=epochs)
        return seen.steps, [*model.variables, *model.optimizer.variables]

    steps, expected = train(tmp_path / "straight")
    # Five batches an epoch: the third execution is a single step.
    assert steps == [(0, 1), (0, 3), (0, 4), (1, 1), (1, 3), (1, 4)]
    resumed, found = broken_and_resumed(tmp_path / "broken", train, at=(1, 4))
    assert resumed == steps[4:]
    assert same_bits(found, expected)
    # Negative control: one epoch less is something else.
    assert not same_bits(train(tmp_path / "shorter", epochs=1)[1], expected)


def test_the_next_fit_waits_for_what_a_broken_one_is_still_writing(
    tmp_path, monkeypatch
):
    under_way = []

    def slowly(*arguments):
        under_way.append(arguments)
        time.sleep(0.3)
        write_commit(*arguments)
        under_way.pop()

    monkeypatch.setattr(_directory, "write_commit", slowly)
    with pytest.raises(StopError) as kept:  # as a notebook keeps the last exception
        fit(tmp_path, StopAt(0, 3), every=1)
    seen = []
    newest = CommitDirectory.newest
    monkeypatch.setattr(
        CommitDirectory,
        "newest",
        lambda *given: (seen.append(len(under_way)), newest(*given))[1],
    )
    _, resume, _ = fit(tmp_path)
    assert kept is not None
    assert seen[0] == 0
    assert resume.resumed_from == (0, 2)


def test_moving_averages_of_the_weights_come_back(tmp_path):
    def averaging():
        return build(optimizer=optimizers.ExponentialMovingAverage("adam", 0.9))

    def averages(model):
        return [np.asarray(a.numpy()).tobytes() for _, a in model.optimizer.averages]

    straight = averaging()
    straight.fit(data(), epochs=3, verbose=0)
    with pytest.raises(StopError):
        fit(tmp_path, StopAt(1, 3), epochs=3, model=averaging())
    resumed, resume, _ = fit(tmp_path, epochs=3, model=averaging())
    assert resume.resumed_from == (1, 1)
    assert bits(resumed.weights) == bits(straight.weights)
    assert averages(resumed) == averages(straight)
    assert averages(resumed) != bits(resumed.weights)


def test_a_fit_that_breaks_off_as_it_resumes_leaves_the_next_fit_its_epochs(tmp_path):
    class Fails(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise StopError

    fit(tmp_path, epochs=1)
    model = build()
    with pytest.raises(StopError):
        fit(tmp_path, Fails(), epochs=3, model=model)
    gc.collect()
    assert model.fit(data(), epochs=2, verbose=0).epoch == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
def test_a_signal_in_the_last_step_ends_the_program_too(tmp_path, capsys, hook, number):
    def last_time(self, index, logs=None):
        if index == (4 if hook == "on_train_batch_end" else 0):
            os.kill(os.getpid(), number)

    kind = SystemExit if number == signal.SIGTERM else KeyboardInterrupt
    interrupt = type("Interrupt", (keras.callbacks.Callback,), {hook: last_time})()
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(kind):
        fit(tmp_path, interrupt, epochs=1, verbose=1)
    assert "received: state saved, stopping" in capsys.readouterr().out
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    model, resume, _ = fit(tmp_path, epochs=1)
    assert resume.resumed_from == (1, 0)
    assert bits(model.weights) == plain(1)[0]


def test_the_run_after_a_broken_resumed_one_begins_with_nothing(tmp_path):
    def counting():
        return [
            callbacks.ThresholdStopping("loss", -1.0, every=1, verbose=0),
            callbacks.BatchValidation((X, Y), every=3),
            callbacks.LearningRateLogger(every="step"),
            callbacks.Fingerprint(tmp_path / "lines"),
        ]

    with pytest.raises(StopError):
        fit(tmp_path / "run", *counting(), StopAt(1, 3))
    again = counting()
    with pytest.raises(StopError):
        fit(tmp_path / "run", *again, StopAt(1, 4))
    new = counting()
    for each in (again, new):
        build().fit(data(), epochs=1, verbose=0, callbacks=each)
    for ours, fresh in zip(again, new, strict=True):
        assert ours.get_state() == fresh.get_state()
