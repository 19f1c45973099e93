"""In a Jupyter kernel: interrupt, kill, `Restart and run all`, a second `fit`.

Each test starts real kernels, and interrupts and kills them as a notebook does.
"""

import contextlib
import os

import needs
import pytest

needs.module("jupyter_client")
needs.module("ipykernel")

from kernels import Kernel  # noqa: E402

from fmkit._commits import CommitDirectory, list_commits, read_meta  # noqa: E402

pytestmark = pytest.mark.long
if os.name != "posix":
    pytest.skip("signals of POSIX", allow_module_level=True)

# A notebook of two cells, the second with its own settings.
SETUP = """
import hashlib, signal, time
from pathlib import Path
import keras, numpy as np
import fmkit
from fmkit.callbacks import ExactResume
from fmkit.data import Batches

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

def bits(model):
    digest = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables]:
        digest.update(keras.ops.convert_to_numpy(variable.value).tobytes())
    return digest.hexdigest()

class WaitAt(keras.callbacks.Callback):
    "Says that a step has come, and waits there until a file `go` exists."
    def __init__(self, *at):
        super().__init__()
        self.at = at
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) in self.at:
            go = Path(f"go-{self.epoch}-{batch}")
            print("at step", self.epoch, batch, flush=True)
            for _ in range(6000):
                if go.exists():
                    break
                time.sleep(0.01)
    def get_state(self):
        return {}
    def set_state(self, state):
        pass

rng = np.random.RandomState(0)
x, y = rng.rand(320, 8), rng.randint(0, 3, 320)
fmkit.set_random_seed(1)
model = keras.Sequential([
    keras.Input((8,)),
    keras.layers.Dense(16, activation="relu"),
    keras.layers.Dropout(0.2),
    keras.layers.Dense(3),
])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
batches = Batches(x, y, batch_size=16, map=None, seed=0)
before = handlers()
"""
FIT = """
epochs, folder = {epochs}, {folder!r}
resume = [ExactResume(folder, every=7)] if folder else []
history = model.fit(
    batches, epochs=epochs, verbose=0, callbacks=[WaitAt(*{waits}), *resume]
)
print(bits(model), history.epoch, handlers() == before)
"""
STEPS = 20  # in an epoch


def fit_cell(folder="run", epochs=3, waits=()):
    return FIT.format(folder=folder, epochs=epochs, waits=list(waits))


@contextlib.contextmanager
def started(folder, *cells):
    """Start a kernel and run these cells."""
    with Kernel(folder) as kernel:
        for cell in cells:
            done = kernel.run(cell)
            assert done.error is None, done.traceback
        yield kernel


def is_free(folder):
    """Return whether another process than the kernel can take a run's folder."""
    directory = CommitDirectory(folder)
    try:
        directory.acquire()
    except OSError:
        return False
    directory.release()
    return True


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the two cells print at the end in a kernel that nothing stops."""
    folder = tmp_path_factory.mktemp("straight")
    with started(folder, SETUP) as kernel:
        return kernel.run(fit_cell()).last_line()


def interrupt_at(kernel, folder, cell, epoch, step):
    """Run a cell that is interrupted at a step, where it waits for that."""

    def interrupt():
        kernel.interrupt()
        (folder / f"go-{epoch}-{step}").touch()

    done = kernel.run(cell, f"at step {epoch} {step}\n", interrupt)
    assert done.error == "KeyboardInterrupt", done.text + done.traceback
    return done


def test_an_interrupted_cell_run_again_ends_with_the_same_bits(tmp_path, expected):
    cell = fit_cell(waits=[(0, 11), (1, 4)])
    with started(tmp_path, SETUP) as kernel:
        stopped = interrupt_at(kernel, tmp_path, cell, 0, 11)
        assert "SIGINT received: state saved, stopping" in stopped.text
        meta = read_meta(list_commits(tmp_path / "run")[-1])
        assert (meta.epoch, meta.step) == (0, 12)
        assert kernel.run("print(handlers() == before)").last_line() == "True"
        assert is_free(tmp_path / "run")
        # Interrupted once more; then all cells from the first, in the same kernel.
        stopped = interrupt_at(kernel, tmp_path, cell, 1, 4)
        assert "resuming in epoch 1, at step 12 of 20" in stopped.text
        assert kernel.run(SETUP).error is None
        done = kernel.run(cell)
        assert "resuming in epoch 2, at step 5 of 20" in done.text
        assert done.last_line() == expected
        assert expected.endswith("[0, 1, 2] True")
        assert is_free(tmp_path / "run")


def test_without_exact_resume_the_cell_run_again_ends_with_others(tmp_path, expected):
    cell = fit_cell(None, waits=[(0, 11)])
    with started(tmp_path, SETUP) as kernel:
        interrupt_at(kernel, tmp_path, cell, 0, 11)
        assert kernel.run(cell).last_line().split()[0] != expected.split()[0]


def test_a_killed_kernel_and_run_all_end_with_the_same_bits(tmp_path, expected):
    with started(tmp_path, SETUP) as kernel:
        # Commits are written while the training goes on.
        commit = tmp_path / "run" / "commit-00000004.npz"
        kernel.kill_at(fit_cell(waits=[(1, 9)]), "at step 1 9\n", after=commit)
    (tmp_path / "go-1-9").touch()
    assert is_free(tmp_path / "run")
    with started(tmp_path, SETUP) as kernel:
        done = kernel.run(fit_cell(waits=[(1, 9)]))
        resumed = [line for line in done.text.splitlines() if "resuming" in line]
        # It was killed after step 30; the last commit before that is of step 28.
        assert "in epoch 2, at step 8 of 20" in resumed[0]
        assert done.last_line() == expected
        # A second `fit` in the same kernel goes on with more epochs, as one that
        # nothing has killed does.
        longer = kernel.run(fit_cell(epochs=5)).last_line()
        assert longer.endswith("[0, 1, 2, 3, 4] True")
        assert kernel.run(SETUP).error is None
        assert kernel.run(fit_cell("another", epochs=5)).last_line() == longer
        assert is_free(tmp_path / "run")
        assert is_free(tmp_path / "another")


ERRORS = {
    # A callback of the user's own that fails.
    "a callback's error": (
        "ValueError",
        """
class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 9:
            raise ValueError("no")
model.fit(batches, verbose=0, callbacks=[Fails(), ExactResume("run")])
""",
    ),
    # The stop button, where ExactResume leaves the signals alone.
    "an interrupt of its own": (
        "KeyboardInterrupt",
        """
class Stops(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 9:
            signal.raise_signal(signal.SIGINT)
own = ExactResume("run", stop_on_signal=False)
model.fit(batches, verbose=0, callbacks=[Stops(), own])
""",
    ),
    # The stop button twice: the second doesn't wait for a commit.
    "two interrupts": (
        "KeyboardInterrupt",
        """
class Stops(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 9:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
model.fit(batches, verbose=0, callbacks=[Stops(), ExactResume("run")])
""",
    ),
}


def test_after_an_error_no_lock_is_held_and_no_handler_left(tmp_path):
    count = "print(len(get_ipython().events.callbacks['post_execute']))"
    with started(tmp_path, SETUP) as kernel:

        def after(name):
            error, cell = ERRORS[name]
            done = kernel.run(cell)
            assert done.error == error, done.traceback
            same = kernel.run("print(handlers() == before)").last_line()
            return same == "True", is_free(tmp_path / "run")

        registered = kernel.run(count).last_line()
        assert {name: after(name) for name in ERRORS} == dict.fromkeys(
            ERRORS, (True, True)
        )
        assert kernel.run(count).last_line() == registered
        # Negative control: IPython keeps the frames of the broken `fit`.
        module = "fmkit.callbacks._resume._keeper"
        off = f"import {module} as keeper; keeper.close_after_cell = lambda *_: None"
        assert kernel.run(off).error is None
        assert after("a callback's error") == (False, False)
        # The next `fit` of the same kernel takes the folder over, and gives it back.
        assert kernel.run(fit_cell(epochs=2)).error is None
        assert is_free(tmp_path / "run")


IN_A_THREAD = """
import threading
callbacks = [WaitAt((0, 3)), ExactResume("run", every=7)]
fit = threading.Thread(target=model.fit, args=(batches,), kwargs=dict(
    epochs=2, verbose=0, callbacks=callbacks
))
fit.start()
while not Path("run/lock").exists():
    time.sleep(0.01)
"""


@pytest.mark.backend("torch")  # the same code on the others
def test_a_fit_in_a_thread_keeps_its_lock_when_the_cell_ends(tmp_path):
    with started(tmp_path, SETUP, IN_A_THREAD) as kernel:
        assert kernel.run("assert fit.is_alive()").error is None
        assert not is_free(tmp_path / "run")
        (tmp_path / "go-0-3").touch()
        assert kernel.run("fit.join(); print(callbacks[1].finished)").last_line() == (
            "True"
        )
        assert is_free(tmp_path / "run")


MANY = """
class Chatty(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("step", batch)
begin = time.monotonic()
model.fit(
    Batches(np.tile(x, (25, 1)), np.tile(y, 25), 16, map=None), epochs=2,
    verbose={verbose}, callbacks=[ExactResume("{verbose}", every=100), {more}]
)
seconds = time.monotonic() - begin
"""


def visible_lines(text):
    """Return the lines that a notebook shows: what follows `\\r` replaces the line."""
    lines = text.replace("\b", "").split("\n")
    return [line.rsplit("\r", 1)[-1] for line in lines if line.strip()]


@pytest.mark.backend("torch")  # what is printed is Keras's, and the same on the others
def test_what_fit_prints_grows_with_the_time_and_not_with_the_steps(tmp_path):
    with started(tmp_path, SETUP) as kernel:
        # Each `fit` has 2 epochs of 500 steps, and 10 commits.
        bar = kernel.run(MANY.format(verbose=1, more=""))
        seconds = float(kernel.run("print(seconds)").last_line())
        # Keras's bar is drawn again every 0.05 seconds at most.
        updates = 20 * seconds + 10
        assert len(bar.texts) <= updates
        assert len(bar.text) < 300 * updates
        shown = visible_lines(bar.text)
        assert len(shown) == 5, shown  # ExactResume's line, and two for each epoch
        lines = kernel.run(MANY.format(verbose=2, more=""))
        assert len(lines.texts) <= 5
        assert len(lines.text) < 500
        assert len(visible_lines(lines.text)) == 5
        # Negative control: a callback that prints each step.
        flood = kernel.run(MANY.format(verbose=0, more="Chatty()"))
        assert len(visible_lines(flood.text)) > 1000
