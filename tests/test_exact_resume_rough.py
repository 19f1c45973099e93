"""ExactResume where things go wrong: odd files, signals, moved folders, loops."""

import errno
import gc
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from bits import bits, same_bits
from odd_files import ODD_FILES
from resuming import Stateless, StopAt, StopError, X, Y, build, data, fit

from fmkit import _files
from fmkit import _keras_private as private
from fmkit._commits import CommitDirectory, Meta, _archive, list_commits, read_commit
from fmkit._commits._encoding import decode
from fmkit.callbacks import ExactResume
from fmkit.callbacks._resume import _callback_state
from fmkit.callbacks._resume._background import Signals, StartEpoch, Writer
from fmkit.callbacks._resume._keeper import _close
from fmkit.callbacks._resume._places import Place
from fmkit.data import Batches
from fmkit.evaluation import SidecarEvaluator

pytestmark = pytest.mark.backend("torch")

if os.name != "posix":  # pragma: no cover
    pytest.skip("pipes, links and signals of POSIX", allow_module_level=True)


class Do(Stateless):
    """Does something once, at the end of the second batch."""

    def __init__(self, work):
        super().__init__()
        self.work = work

    def on_train_batch_end(self, batch, logs=None):
        if self.work and batch == 1:
            work, self.work = self.work, None
            work()


# The directory


@pytest.mark.parametrize(
    ("directory", "kind", "message"),
    [
        ("", ValueError, "`directory` must be a path, got an empty text"),
        (None, TypeError, "`directory` must be a path.*got directory=None"),
        (3, TypeError, "`directory` must be a path.*got directory=3"),
        (b"run", TypeError, "`directory` must be a path"),
    ],
)
def test_what_is_no_path_is_refused(directory, kind, message):
    with pytest.raises(kind, match=message):
        ExactResume(directory)
    with pytest.raises(kind, match=message):
        SidecarEvaluator(build(), (X, Y), directory)


def test_a_relative_directory_is_the_same_after_chdir(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    fit("run", epochs=1)  # another run, under the same relative name
    before = {p.name: p.read_bytes() for p in (tmp_path / "there" / "run").iterdir()}
    monkeypatch.chdir(tmp_path / "here")
    log = keras.callbacks.CSVLogger("log.csv")
    model, resume, _ = fit("run", Do(lambda: os.chdir(tmp_path / "there")), log)
    found = {p.name: p.read_bytes() for p in (tmp_path / "there" / "run").iterdir()}
    assert found == before
    assert resume.directory == str(tmp_path / "here" / "run")
    newest = read_commit(list_commits(tmp_path / "here" / "run")[-1])
    assert newest.meta.finished
    # The file of the logger was found, too.
    text = (tmp_path / "here" / "log.csv").read_bytes()
    state = decode(newest.meta.callbacks, newest.arrays)
    assert state["CSVLogger"]["keras"]["content"] == text
    assert text.count(b"\n") == 3
    # As does the evaluator.
    monkeypatch.chdir(tmp_path / "here")
    evaluator = SidecarEvaluator(model, (X, Y), "run", output="results", verbose=0)
    monkeypatch.chdir(tmp_path / "there")
    assert evaluator.run()
    assert (tmp_path / "here" / "results" / "results.jsonl").exists()


def test_a_directory_that_is_removed_in_training_is_told_as_it_is(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(OSError, match="was removed during the run, and its commits"):
        fit(run, Do(lambda: shutil.rmtree(run)), background=False)
    assert not run.exists()
    # Where the commits are still there, the message says so, and which is newest.
    directory = CommitDirectory(run)
    directory.acquire()
    directory.write(Meta(epoch=0), {})
    with pytest.raises(OSError, match=r"still there, the newest is commit-00000001\."):
        directory.write(Meta(epoch=1), {"not/../a/name": NoArray()})
    directory.release()


class NoArray:
    """Fails when it is written, as a full disk does."""

    dtype, shape, nbytes = np.dtype("float32"), (), 4

    def __array__(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")


# Locks


# Of the library only what has the lock: a start in no time.
TAKES_IT = f"""
import sys, pathlib, importlib.util
spec = importlib.util.spec_from_file_location("files", {_files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
try:
    files.Lock(pathlib.Path(sys.argv[1], "lock"), "fit").acquire()
except files.InUseError as error:
    print(error)
"""


def taken_by_another(directory):
    """What another process says that tries to hold the directory."""
    done = subprocess.run(
        [sys.executable, "-c", TAKES_IT, str(directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_callback_that_copies_the_folder_leaves_the_lock(tmp_path):
    run, said = tmp_path / "run", []

    def copy():
        shutil.copytree(run, tmp_path / "copy")  # opens and closes the lock
        said.append(taken_by_another(run))

    fit(run, Do(copy), epochs=1)
    assert said == [f"process {os.getpid()}\n"]
    assert taken_by_another(run) == ""  # the control: afterwards it is free


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, if loaded
def test_a_forked_child_neither_holds_nor_loses_the_lock(tmp_path):
    directory = CommitDirectory(tmp_path)
    directory.acquire()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    assert taken_by_another(tmp_path) == f"process {os.getpid()}\n"
    directory.release()
    assert child.is_alive()
    assert taken_by_another(tmp_path) == ""
    child.kill()
    child.join()


# Files that are no files


@pytest.mark.parametrize("name", ["commit-00000007.npz", "lock"])
@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_file_is_refused_and_named(tmp_path, name, kind):
    run = tmp_path / "r"
    fit(run, epochs=1)
    (run / name).unlink(missing_ok=True)
    ODD_FILES[kind](run / name)
    with pytest.raises(OSError, match=f"{name} must be a regular file, but {kind}"):
        fit(run, epochs=2)
    if kind == "a symbolic link":
        assert (run / "target").read_text() == "precious"
    with pytest.raises(OSError, match=f"but {kind}"):
        _files.open_regular(run / name, os.O_RDWR | os.O_CREAT)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_temporary_of_a_dead_run_does_no_harm(tmp_path, kind):
    run = tmp_path / "r"
    fit(run, epochs=1)
    ODD_FILES[kind](run / ".commit-00000007.npz.1.tmp")
    if kind == "a folder":
        with pytest.raises(OSError, match=r"cannot be used for commits.*\.1\.tmp"):
            fit(run, epochs=2)
    else:
        fit(run, epochs=2)
        assert not (run / ".commit-00000007.npz.1.tmp").exists()
    if kind == "a symbolic link":
        assert (run / "target").read_text() == "precious"


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_description_that_is_no_file_is_told_in_the_log(tmp_path, kind, caplog):
    run = tmp_path / "r"
    run.mkdir()
    ODD_FILES[kind](run / "model.json")
    fit(run, epochs=1)
    assert f"model.json could not be written: {run}" in caplog.text
    assert kind in caplog.text


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_lock_of_the_evaluator_that_is_no_file_is_refused(tmp_path, kind):
    run = tmp_path / "r"
    model, *_ = fit(run, epochs=1)
    (run / "evaluation").mkdir()
    ODD_FILES[kind](run / "evaluation" / "lock")
    with pytest.raises(OSError, match=f"lock must be a regular file, but {kind}"):
        SidecarEvaluator(model, (X, Y), run, verbose=0).run()
    if kind == "a symbolic link":
        assert (run / "evaluation" / "target").read_text() == "precious"


# Reading and writing


class Unreadable:
    """A file on a disk that does not answer."""

    def __init__(self, file):
        self.file = file

    def read(self, *arguments):
        raise OSError(errno.EIO, "Input/output error")

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def test_an_input_output_error_is_an_error_and_no_damage(tmp_path, monkeypatch):
    fit(tmp_path, epochs=1)
    before = [path.read_bytes() for path in list_commits(tmp_path)]
    newest = list_commits(tmp_path)[-1].stat().st_ino

    def failing(descriptor, *arguments, **options):
        file = open(descriptor, *arguments, **options)  # noqa: SIM115
        number = os.fstat(file.fileno()).st_ino
        return Unreadable(file) if number == newest else file

    with monkeypatch.context() as patch:
        patch.setattr(_archive, "open", failing, raising=False)
        with pytest.raises(OSError, match="cannot be read, though it may be sound"):
            fit(tmp_path, epochs=2)
    assert [path.read_bytes() for path in list_commits(tmp_path)] == before
    _, resume, _ = fit(tmp_path, epochs=2)
    assert resume.resumed_from == (1, 0)


def test_a_clock_before_1980_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.0)
    fit(tmp_path, epochs=1)
    monkeypatch.undo()
    _, resume, _ = fit(tmp_path, epochs=2)
    assert resume.resumed_from == (1, 0)


# The state of callbacks


class Carries(keras.callbacks.Callback):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_state(self):
        return {"held": self.state}

    def set_state(self, state):
        self.state = state["held"]


class Units(np.ndarray):
    """An array that means more than its numbers."""


RECORD = np.dtype([("a", ">i4"), ("b", "f8", (2,)), ("c", "U3")])
STATES = {
    "big-endian": np.arange(5, dtype=">f8") / 3,
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0], fill_value=7),
    "strings": np.array(["a", "longer"]),
    "bytes": np.array([b"a", b"longer"]),
    "dates": np.array(["2026-11-24", "NaT"], "datetime64[D]"),
    "records": np.array([(1, [2, 3], "x"), (4, [5, 6], "y")], RECORD),
    "void": np.array([b"\0\1\2"], "V3"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 3), ">i2"),
    "scalar": np.float32(0.1),
    "tuple keys": {(0, 1): "a", (2, (3, b"x")): "b"},
    "number keys": {np.int64(3): 1, 4.5: 2, None: 3, True: 4, b"k": 5},
    "tuples": [(1, 2), [(3,)], ()],
    "large integer": [10**5000, -(10**5000), 2**64, -(2**63)],
    "deep": None,
}
nested = STATES["deep"]
for _ in range(90):
    nested = [nested]
STATES["deep"] = nested


def alike(one, other):
    if isinstance(one, np.ma.MaskedArray):
        return (
            alike(one.data, other.data)
            and alike(one.mask, other.mask)
            and one.fill_value == other.fill_value
        )
    if isinstance(one, (np.ndarray, np.generic)):
        kinds = type(one) is type(other)
        return kinds and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and one == other
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_a_callback_comes_back_as_it_was(tmp_path, name):
    fit(tmp_path, Carries(STATES[name]), epochs=1)
    back = Carries(None)
    fit(tmp_path, back, epochs=1)
    assert alike(STATES[name], back.state)


REFUSED = {
    "objects": (np.array([None, 1], object), r"ndarray of dtype object at \['held'\]"),
    "object records": (np.zeros(2, [("a", object)]), r"ndarray of dtype .* at"),
    "subclass": (np.zeros(2).view(Units), "Units of dtype"),
    "set": ([1, {2, 3}], r"holds a set at \['held'\]\[1\]"),
    "object": ({"key": object()}, r"holds a object at \['held'\]\['key'\]"),
    "key": ({object(): 1}, r"holds a object at \['held'\]\['key'\]"),
    "complex": (1j, r"holds a complex at \['held'\]: 1j"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_commit_can_not_hold_is_refused_before_training(tmp_path, name):
    state, named = REFUSED[name]
    seen = StopAt(0, 0)  # would end with another error
    with pytest.raises(TypeError, match=f"(?s)state of Carries.*{named}.*may return"):
        fit(tmp_path, Carries(state), seen)
    fit(tmp_path, epochs=1)  # the directory is free


def test_a_state_that_is_too_deep_is_refused_before_training(tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="state of Carries is nested more than 100"):
        fit(tmp_path, Carries(deep))


def test_a_state_that_changes_its_kind_names_callback_and_key(tmp_path):
    carries = Carries(1)

    def change():
        carries.state = {1, 2}

    with pytest.raises(TypeError, match=r"state of Carries holds a set at \['held'\]"):
        fit(tmp_path, Do(change), carries)


def test_every_callback_of_keras_is_known():
    others = (keras.callbacks.Callback, keras.callbacks.CallbackList)
    rival = keras.callbacks.BackupAndRestore
    known = {*_callback_state._TABLE, *private.STATELESS_CALLBACKS, *others, rival}
    every = {k for k in vars(keras.callbacks).values() if isinstance(k, type)}
    assert every <= known, every - known


def test_attributes_of_a_subclass_of_a_known_callback_are_named(tmp_path, capsys):
    class Counting(keras.callbacks.EarlyStopping):
        def __init__(self):
            super().__init__("loss", patience=9)
            self.counted = 0

    class Same(keras.callbacks.EarlyStopping):
        pass

    fit(tmp_path, Counting(), Same("loss", patience=9), epochs=1, verbose=1)
    (line,) = [k for k in capsys.readouterr().out.splitlines() if "not restored" in k]
    assert "the attributes of Counting (" in line


# CSVLogger


@pytest.fixture
def logged():
    """Makes loggers, and closes what a broken fit leaves open."""
    made = []

    def make(path, append=True):
        made.append(keras.callbacks.CSVLogger(path, append=append))
        return made[-1]

    yield make
    for logger in made:
        if logger.csv_file:
            logger.csv_file.close()


def test_rows_of_a_run_killed_before_its_first_commit_stand_once(tmp_path, logged):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n0,0.5\n")
    expected = tmp_path / "expected.csv"
    shutil.copy(path, expected)
    fit(tmp_path / "unbroken", logged(expected), epochs=3)
    for _ in range(2):
        with pytest.raises(StopError):
            fit(tmp_path / "run", logged(path), StopAt(2, 1), every=1000, epochs=3)
    assert path.read_bytes() != expected.read_bytes()
    fit(tmp_path / "run", logged(path), every=1000, epochs=3)
    assert path.read_bytes() == expected.read_bytes()


def test_a_linked_log_stays_a_link_and_keeps_its_mode(tmp_path, logged):
    target, path = tmp_path / "elsewhere" / "log.csv", tmp_path / "log.csv"
    target.parent.mkdir()
    target.touch(mode=0o600)
    target.chmod(0o600)
    path.symlink_to(target)
    with pytest.raises(StopError):
        fit(tmp_path / "run", logged(path), StopAt(1, 3), epochs=3)
    fit(tmp_path / "run", logged(path), epochs=3)
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_text().count("\n") == 4


def test_a_log_that_is_a_pipe_is_left_alone(tmp_path, logged):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fit(tmp_path / "run", logged(path, append=False), epochs=2)
    fit(tmp_path / "run", logged(path, append=False), epochs=3)
    assert os.read(reader, 10_000).count(b"\n") >= 3
    os.close(reader)


# Ends of a run


def test_a_run_that_was_stopped_says_so_when_it_is_started_again(tmp_path):
    stopping = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0)
    model, *_ = fit(tmp_path, stopping, epochs=9)
    assert model.stop_training
    again, resume, _ = fit(
        tmp_path,
        keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0),
        epochs=9,
    )
    assert resume.finished
    assert again.stop_training
    # The control: a run that came to its end was not stopped.
    for _ in range(2):
        model, *_ = fit(tmp_path / "whole", epochs=1)
        assert not model.stop_training


# Keras's own `get_config` of an optimizer, under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_loop_that_trains_nothing_says_what_to_write(tmp_path):
    model = build()
    resume = ExactResume(tmp_path, every=2, verbose=0)
    model.fit(data(), epochs=1, verbose=0, callbacks=[resume])
    with pytest.warns(UserWarning, match=r"trains nothing.*initial_epoch=i, epochs=i"):
        model.fit(data(), epochs=1, verbose=0, callbacks=[resume])


def test_a_loop_over_epochs_goes_on_where_it_was(tmp_path):
    def loop(directory, *callbacks):
        model = build()
        resume = ExactResume(directory, every=2, verbose=0)
        for i in range(4):
            model.fit(
                data(),
                initial_epoch=i,
                epochs=i + 1,
                verbose=0,
                callbacks=[resume, *callbacks],
            )
        return [*model.variables, *model.optimizer.variables]

    expected = loop(tmp_path / "unbroken")
    with pytest.raises(StopError):
        loop(tmp_path / "broken", StopAt(2, 3))
    assert same_bits(loop(tmp_path / "broken"), expected)


# Signals


def endless():
    while True:
        yield X[:8], Y[:8]


def test_a_signal_says_what_is_saved(tmp_path, capsys):
    def terminated(directory, x, *callbacks, epochs=3, **options):
        class Terminate(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch

            def on_train_batch_end(self, batch, logs=None):
                if (self.epoch, batch) == (1, 2):
                    os.kill(os.getpid(), signal.SIGTERM)

        resume = ExactResume(directory, **options)
        arguments = (
            {} if isinstance(x, Batches) else {"steps_per_epoch": 5, "shuffle": False}
        )
        with pytest.raises(SystemExit):
            build().fit(
                x,
                epochs=epochs,
                verbose=0,
                callbacks=[resume, Terminate()],
                **arguments,
            )
        return next(
            line for line in capsys.readouterr().out.splitlines() if "SIGTERM" in line
        )

    assert "state saved, stopping" in terminated(tmp_path / "a", data(), every=1000)
    said = terminated(tmp_path / "b", endless(), every="epoch")
    assert "the next start continues from epoch 2, step 0, and trains again" in said
    said = terminated(tmp_path / "c", endless(), every="2 epochs")
    assert "nothing is saved yet, the next run starts from the beginning" in said


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, if loaded
@pytest.mark.parametrize("kind", ["process", "pool", "after a broken fit"])
def test_a_forked_child_dies_of_its_first_signal(tmp_path, kind):
    kept = []
    if kind == "after a broken fit":
        # As in a notebook, whose traceback keeps the frames of `fit`.
        with pytest.raises(StopError) as kept:
            fit(tmp_path / "broken", StopAt(0, 1))
    context = multiprocessing.get_context("fork")
    codes = []

    def fork():
        if kind != "pool":
            child = context.Process(target=time.sleep, args=(60,))
            child.start()
            child.terminate()
            child.join(20)
            codes.append(child.exitcode)
        else:
            pool = context.Pool(1)
            pool.apply_async(time.sleep, (60,))
            (worker,) = pool._pool
            time.sleep(0.2)
            pool.terminate()
            pool.join()
            codes.append(worker.exitcode)

    before = signal.getsignal(signal.SIGTERM)
    fit(tmp_path / "run", Do(fork), epochs=1)
    assert codes == [-signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before
    del kept
    gc.collect()  # and with the frames go the handlers


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, if loaded
def test_a_forked_child_has_the_handlers_of_before(tmp_path):
    seen = []

    def look():
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            same = signal.getsignal(signal.SIGTERM) is before
            os.write(writer, b"y" if same else b"n")
            os._exit(0)
        os.waitpid(child, 0)
        seen.append(os.read(reader, 1))
        # The parent notes its signals as before.
        seen.append(signal.getsignal(signal.SIGTERM) is before)

    def before(number, frame):
        raise AssertionError("no signal is sent")

    old = signal.signal(signal.SIGTERM, before)
    fit(tmp_path, Do(look), epochs=1)
    assert seen == [b"y", False]
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, old)


def test_bits_are_those_of_a_run_without_all_this(tmp_path, logged):
    model, *_ = fit(tmp_path, Do(lambda: None), logged(tmp_path / "log.csv"))
    alone = build()
    alone.fit(data(), epochs=2, verbose=0)
    assert bits(model.weights) == bits(alone.weights)


def test_a_fit_collected_in_the_thread_that_writes_keeps_its_directory(tmp_path):
    # Python may collect a broken `fit` in any thread, also in that one.
    writer, directory, seen = Writer(background=True), CommitDirectory(tmp_path), []
    directory.acquire(lambda: True)
    signals = Signals(lambda: None)

    def work():
        _close(signals, writer, directory, Place(), StartEpoch(build()))
        time.sleep(0.2)
        with pytest.raises(OSError, match="in use"):
            CommitDirectory(tmp_path).acquire()
        seen.append("held while it writes")

    writer.start(work)
    writer.finish()
    assert seen == ["held while it writes"]
    for _ in range(100):  # a thread of its own closes it soon
        if not directory.is_held:
            break
        time.sleep(0.05)
    CommitDirectory(tmp_path).acquire()


def test_ctrl_c_while_closing_waits_for_what_is_being_written(tmp_path):
    writer, directory = Writer(background=True), CommitDirectory(tmp_path)
    directory.acquire(lambda: True)
    go, seen = threading.Event(), []

    def work():
        go.wait()
        seen.append(directory.is_held)

    writer.start(work)
    join = writer._thread.join

    def interrupted():
        if not go.is_set():
            go.set()
            raise KeyboardInterrupt
        join()

    writer._thread.join = interrupted
    signals, start = Signals(lambda: None), StartEpoch(build())
    with pytest.raises(KeyboardInterrupt):
        _close(signals, writer, directory, Place(), start)
    assert seen == [True]
    assert not directory.is_held


def test_the_holder_of_a_lock_is_named_wherever_locking_leaves_the_file(
    tmp_path, monkeypatch
):
    path = tmp_path / "lock"
    path.write_text("1234\n")

    def lock(descriptor):  # as on Windows
        os.lseek(descriptor, 2**20, os.SEEK_SET)
        raise PermissionError

    monkeypatch.setattr(_files, "_lock", lock)
    with pytest.raises(_files.InUseError, match="process 1234"):
        _files.Lock(path, "fit").acquire()
