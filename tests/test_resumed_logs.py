"""Logs after a kill and a resume: each step once, as if never killed."""

import collections
import functools
import json
import os
import sys
from pathlib import Path

import keras
import needs
import pytest
from resuming import StopAt, StopError, fit

from fmkit.callbacks._resume import _callback_state

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
from lab import Lab
from logs import Lines, Server, ServerLogger, events

BACKEND = keras.backend.backend()


# Real processes, real SIGKILL


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    needs.module("tensorflow")
    lab = Lab(tmp_path_factory.mktemp("logs"))
    yield lab
    lab.close()


def ends(lab, kills=(), **options):
    """Run the program with logs to its end; kill it before at these steps."""
    folder, options = lab.new_folder(), {"every": 2, **options, "program": "logs"}
    for step in kills:
        assert lab.kill(folder, die_after=step, **options), lab.log(folder)
    return {name: str(value) for name, value in lab.ends(folder, **options).items()}


@functools.cache
def straight(lab, update_freq):
    return ends(lab, update_freq=update_freq)


def twice(found):
    """Return which events of those in `found` are there more than once."""
    counted = collections.Counter(tuple(e[:3]) for e in json.loads(found["events"]))
    return [each for each, count in counted.items() if count > 1]


KILLS = [(1,), (4,), (5,), (6, 2), (9, 1, 1), (3, 3, 3, 3, 3)]
if BACKEND == "jax":  # whose processes take seconds to compile
    KILLS = [(6, 2)]


@pytest.mark.long
@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("update_freq", [1, "epoch"])
def test_after_kills_the_logs_are_those_of_a_run_never_killed(lab, kills, update_freq):
    expected = straight(lab, update_freq)
    found = ends(lab, kills, update_freq=update_freq)
    assert twice(expected) == []
    assert len(json.loads(expected["events"])) >= (25 if update_freq == 1 else 15)
    for name, value in expected.items():
        assert found[name].replace("],", "],\n") == value.replace("],", "],\n"), name


@pytest.mark.long
def test_without_the_cut_steps_are_there_twice(lab):
    expected, found = straight(lab, 1), ends(lab, (6, 2), cut=False)
    assert twice(found) != []
    assert found["lines"] != expected["lines"]
    assert len(found["lines"]) > len(expected["lines"])
    # What needs no cut: Keras's CSVLogger, and a server that is told the step.
    assert found["csv"] == expected["csv"]
    assert found["server"] == expected["server"]


# What the mechanism does with odd files, in one process


@pytest.fixture(autouse=True)
def closed():
    yield
    while Lines.files:
        Lines.files.pop().close()


# Keras's own `get_config` of an optimizer, under NumPy 2.
numpy_2 = pytest.mark.filterwarnings("ignore:__array__ implementation")


def lines(path):
    return Path(path).read_text().splitlines()


def broken_twice(folder, log, at=(1, 4), **options):
    for _ in range(2):
        with pytest.raises(StopError):
            fit(folder, log(), StopAt(*at), epochs=3, **options)
    return fit(folder, log(), epochs=3, **options)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("every", [2, 1000])
def test_lines_from_before_the_run_stay(tmp_path, every):
    paths = [tmp_path / name for name in ("expected", "found")]
    for path in paths:
        path.write_text("of another run\n")
    fit(tmp_path / "straight", Lines(str(paths[0])), epochs=3)
    broken_twice(tmp_path / "run", lambda: Lines(str(paths[1])), every=every)
    assert lines(paths[1]) == lines(paths[0])
    assert lines(paths[1])[0] == "of another run"
    assert len(lines(paths[0])) == 1 + 1 + 15 + 3


@pytest.mark.backend("torch")
def test_a_link_stays_and_a_relative_path_is_that_of_the_beginning(
    tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "log.jsonl"
    (tmp_path / "log.jsonl").symlink_to(target)
    monkeypatch.chdir(tmp_path)

    class Moves(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            os.chdir(tmp_path / "elsewhere")

    def moving(*callbacks):
        os.chdir(tmp_path)
        log = Lines("log.jsonl")
        return fit(tmp_path / "run", log, Moves(), *callbacks, epochs=3)

    with pytest.raises(StopError):
        moving(StopAt(1, 4))
    moving()
    assert (tmp_path / "log.jsonl").is_symlink()
    assert len(lines(target)) == 1 + 15 + 3


@numpy_2
@pytest.mark.backend("torch")
def test_a_file_that_has_lost_lines_is_told(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(StopError):
        fit(tmp_path / "run", Lines(str(path)), StopAt(1, 4), epochs=3)
    path.write_text("short\n")
    with pytest.warns(UserWarning, match=r"had written \d+ bytes.*and \d+ are there"):
        fit(tmp_path / "run", Lines(str(path)), epochs=3)
    assert lines(path)[0] == "short"


@numpy_2
@pytest.mark.backend("torch")
def test_a_file_that_the_commit_does_not_know_is_left_alone(tmp_path):
    with pytest.raises(StopError):
        fit(tmp_path / "run", Lines(str(tmp_path / "a")), StopAt(1, 4), epochs=3)
    (tmp_path / "b").write_text("precious\n")
    with pytest.warns(UserWarning, match="which the commit doesn't know"):
        fit(tmp_path / "run", Lines(str(tmp_path / "b")), epochs=3)
    assert lines(tmp_path / "b")[0] == "precious"


@pytest.mark.backend("torch")
@pytest.mark.parametrize("named", ["log.jsonl", [3], None])
def test_what_is_no_list_of_paths_is_refused_before_training(tmp_path, named):
    class Wrong(keras.callbacks.Callback):
        def resumable_files(self):
            return named

    with pytest.raises(
        TypeError, match="`resumable_files` of Wrong must return a list"
    ):
        fit(tmp_path, Wrong())


@pytest.mark.backend("torch")
def test_a_log_that_is_a_pipe_is_not_cut(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    for epochs in (2, 3):
        fit(tmp_path / "run", Lines(str(path)), epochs=epochs)
    assert os.read(reader, 10_000).count(b"\n") >= 15
    os.close(reader)


@pytest.mark.backend("torch")
def test_a_logger_that_names_its_files_is_not_said_to_lose_its_state(tmp_path, capsys):
    fit(tmp_path, Lines(str(tmp_path / "log")), epochs=1, verbose=1)
    assert "not restored" not in capsys.readouterr().out
    assert _callback_state.without_state([Lines("log")]) == []


@pytest.mark.backend("torch")
def test_a_server_is_told_the_step_from_which_a_run_goes_on(tmp_path):
    def logged(folder):
        (run,) = (tmp_path / folder).iterdir()
        return json.loads(run.read_text())

    fit(tmp_path / "straight", ServerLogger(Server(tmp_path / "expected")), epochs=3)
    broken_twice(tmp_path / "run", lambda: ServerLogger(Server(tmp_path / "found")))
    assert logged("found") == logged("expected")
    assert [step for step, _ in logged("found")] == list(range(1, 16))


# TensorBoard


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize("update_freq", [1, "epoch"])
def test_events_of_another_run_in_the_folder_stay(tmp_path, update_freq):
    def board():
        return keras.callbacks.TensorBoard(
            str(tmp_path / "board"), update_freq=update_freq, write_graph=False
        )

    # Without ExactResume, then broken off and resumed, all in one folder.
    fit(tmp_path / "other", board(), epochs=1)
    for part in ("train", "validation"):
        folder = tmp_path / "board" / part
        folder.mkdir(exist_ok=True)
        (folder / "events.out.tfevents.17.somewhere.7.0.v2").write_bytes(b"")
    before = events(tmp_path / "board")
    assert before
    alone = keras.callbacks.TensorBoard(
        str(tmp_path / "alone"), update_freq=update_freq, write_graph=False
    )
    fit(tmp_path / "straight", alone, epochs=3)
    broken_twice(tmp_path / "run", board)
    found = collections.Counter(e[:3] for e in events(tmp_path / "board"))
    expected = [*before, *events(tmp_path / "alone")]
    assert found == collections.Counter(e[:3] for e in expected)
    names = {path.name for path in (tmp_path / "board").rglob("*somewhere*")}
    assert names == {"events.out.tfevents.17.somewhere.7.0.v2"}


@pytest.mark.needs("tensorflow")
def test_summaries_of_the_users_own_go_to_the_new_file(tmp_path):
    import tensorflow as tf

    class Own(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            tf.summary.scalar("own epoch", epoch, step=epoch)

        def on_train_batch_begin(self, batch, logs=None):
            tf.summary.scalar("own", batch)

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    def run(folder, *callbacks):
        board = keras.callbacks.TensorBoard(str(tmp_path / folder), update_freq=1)
        fit(tmp_path / f"{folder} commits", board, Own(), *callbacks, epochs=3)

    run("straight")
    with pytest.raises(StopError):
        run("broken", StopAt(1, 4))
    run("broken")
    expected = [e for e in events(tmp_path / "straight") if e[1].startswith("own")]
    found = [e for e in events(tmp_path / "broken") if e[1].startswith("own")]
    assert found == expected
    assert len(found) == 3 + 15
