"""The evaluator's files: a full disk, and things that are no files in their place."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from fmkit.callbacks import ExactResume
from fmkit.data import Batches
from fmkit.evaluation import SidecarEvaluator
from fmkit.evaluation import _results as results_module
from fmkit.evaluation._results import ResultsFile
from fmkit.optimizers import ExponentialMovingAverage

# What doesn't depend on the backend, on the one that has nothing to compile.
pytestmark = pytest.mark.backend("torch")


def record(number):
    results = {"raw": {"test": {"loss": float(number)}}}
    return {
        "checkpoint": f"commit-{number}", "epoch": number, "step": None, "digest": "0",
        "best": None, "results": results, "seconds": 0.5, "time": 1.0,
    }  # fmt: skip


def written(path):
    return [json.loads(line)["epoch"] for line in path.read_bytes().splitlines()]


class Disk:
    """Stands for `os`: takes some bytes at a time, and none beyond `room`."""

    def __init__(self, piece=None, room=None, error=errno.ENOSPC, truncates=True):
        self.piece, self.room, self.error = piece, room, error
        self.truncates = truncates

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, file, content):
        if self.room is not None and not self.room:
            raise OSError(self.error, os.strerror(self.error))
        sizes = [len(content), self.piece, self.room]
        count = os.write(file, content[: min(size for size in sizes if size)])
        if self.room is not None:
            self.room -= count
        return count

    def ftruncate(self, file, size):
        if not self.truncates:
            raise OSError(errno.EIO, "the disk is gone")
        os.ftruncate(file, size)


def use(monkeypatch, disk):
    monkeypatch.setattr(results_module, "os", disk)


def test_a_disk_that_takes_a_part_at_a_time_gets_the_whole_line(tmp_path, monkeypatch):
    use(monkeypatch, Disk(piece=7))
    file = ResultsFile(tmp_path / "results.jsonl")
    for number in range(3):
        file.append(record(number))
    assert written(file.path) == [0, 1, 2]
    assert ResultsFile(file.path).records == file.records
    # Negative control: one call writes a part.
    descriptor = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    assert Disk(piece=7).write(descriptor, b"0123456789") == 7
    os.close(descriptor)


@pytest.mark.parametrize("room", [1, 30, 100])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EDQUOT])
def test_a_full_disk_takes_back_the_line_and_is_named(
    tmp_path, monkeypatch, room, error
):
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(record(0))
    before = file.path.read_bytes()
    use(monkeypatch, Disk(room=room, error=error))
    message = r"results\.jsonl: the results of commit-1 could not be written"
    with pytest.raises(OSError, match=message) as raised:
        file.append(record(1))
    assert raised.value.errno == error
    assert file.path.read_bytes() == before
    assert [each["epoch"] for each in file.records] == [0]
    monkeypatch.undo()
    file.append(record(1))  # there is room again
    assert written(file.path) == [0, 1]
    assert [each["epoch"] for each in ResultsFile(file.path).records] == [0, 1]


def test_a_part_that_can_not_be_taken_back_spoils_no_other_line(tmp_path, monkeypatch):
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(record(0))
    use(monkeypatch, Disk(room=40, truncates=False))
    with pytest.raises(OSError, match="could not be written"):
        file.append(record(1))
    monkeypatch.undo()
    file.append(record(2))
    with pytest.warns(UserWarning, match="line 2, is damaged"):
        back = ResultsFile(file.path).records
    assert back == file.records == [record(0), record(2)]


def test_ctrl_c_within_a_line_takes_it_back(tmp_path, monkeypatch):
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(record(0))

    class Interrupted(Disk):
        def fsync(self, descriptor):
            if not self.room:
                os.fsync(descriptor)
            self.room = 0
            raise KeyboardInterrupt

    before = file.path.read_bytes()
    use(monkeypatch, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        file.append(record(1))
    assert file.path.read_bytes() == before
    assert len(file.records) == 1


def test_a_disk_that_takes_nothing_does_not_hang(tmp_path, monkeypatch):
    class Deaf(Disk):
        def write(self, file, content):
            return 0

    use(monkeypatch, Deaf())
    with pytest.raises(OSError, match="nothing was written"):
        ResultsFile(tmp_path / "results.jsonl").append(record(0))


@pytest.mark.long
def test_the_systems_own_limit_of_a_file_loses_no_line(tmp_path):
    code = """
        import resource, sys
        from pathlib import Path
        from test_sidecar_files import record, written
        from fmkit.evaluation._results import ResultsFile

        path = Path(sys.argv[1])
        file = ResultsFile(path)
        file.append(record(0))
        length = path.stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * length + 20, hard))
        file.append(record(1))
        try:
            file.append(record(2))
        except OSError as error:
            print(error)
        assert path.stat().st_size == 2 * length, path.stat().st_size
        assert len(file.records) == 2
        # Negative control: an ordinary file takes a part of the line.
        with open(path.with_name("other"), "ab", buffering=0) as other:
            assert other.write(bytes(3 * length)) == 2 * length + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        file.append(record(2))
        assert written(path) == [0, 1, 2]
        assert ResultsFile(path).records == file.records
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "results.jsonl"],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "the results of commit-2 could not be written (File too large)" in done.stdout
    )


# What may stand in the place of a file


X = np.random.RandomState(0).rand(8, 2).astype("float32")
Y = X.sum(axis=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(ExponentialMovingAverage("sgd"), "mse")
    resume = ExactResume(folder, every=2, keep=9, verbose=0)
    batches = Batches(X, Y, 4, map=None)
    model.fit(batches, epochs=2, callbacks=[resume], verbose=0)
    return folder, model


@pytest.fixture
def evaluate(run, tmp_path):
    """Evaluate a copy of the run, with something put into its folder first."""

    def evaluate(prepare, **options):
        folder = tmp_path / "run"
        folder.mkdir()
        for path in run[0].iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        prepare(folder / "evaluation")
        evaluator = SidecarEvaluator(run[1], (X, Y), folder, verbose=0, **options)
        return evaluator.run()

    return evaluate


def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"precious")
    return folder


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


PLACES = ["results.jsonl", "best.keras", ".best.PROCESS.keras"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("odd", ["link", "dangling link", "FIFO", "folder", "device"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_regular_file_is_named_and_left_alone(
    tmp_path, evaluate, place, odd
):
    target = outside(tmp_path)
    # Not in the parameter: workers of pytest must find the same tests.
    place = place.replace("PROCESS", str(os.getpid()))

    def prepare(output):
        output.mkdir()
        path = output / place
        if odd == "FIFO":
            os.mkfifo(path)
        elif odd == "folder":
            path.mkdir()
        else:
            names = {"link": target / "file", "device": "/dev/null"}
            path.symlink_to(names.get(odd, target / "nowhere"))

    word = {"dangling link": "link", "device": "link"}.get(odd, odd)
    message = rf"{place.replace('.', '[.]')} must be a regular file, but .*{word}"
    with pytest.raises(OSError, match=message):
        evaluate(prepare)
    assert contents(target) == {"file": b"precious"}


@pytest.mark.needs("tensorboard")
@pytest.mark.parametrize("odd", ["link", "file"])
@pytest.mark.parametrize("place", ["", "tensorboard", "tensorboard/raw"])
def test_what_is_no_folder_is_named_and_left_alone(tmp_path, evaluate, place, odd):
    target = outside(tmp_path)

    def prepare(output):
        path = output / place if place else output
        path.parent.mkdir(parents=True, exist_ok=True)
        if odd == "link":
            path.symlink_to(target)
        else:
            path.write_bytes(b"")

    found = f"symbolic link to {target}" if odd == "link" else "something else"
    message = f"{place or 'evaluation'} must be a folder, but .*{found}"
    with pytest.raises(OSError, match=message):
        evaluate(prepare, tensorboard=True)
    assert contents(target) == {"file": b"precious"}


def test_a_link_to_a_folder_may_be_given_as_output(tmp_path, evaluate):
    # Negative control of the refusal above: what the user names is followed.
    target = outside(tmp_path)
    (tmp_path / "named").symlink_to(target)
    records = evaluate(
        lambda output: None, output=tmp_path / "named", tensorboard=False
    )
    assert len(records) == 2
    assert {"file", "results.jsonl", "best.keras"} <= set(contents(target))


def test_a_temporary_file_that_a_kill_left_behind_is_removed(tmp_path, evaluate):
    def prepare(output):
        output.mkdir()
        (output / ".best.12345.keras").write_bytes(b"half a model")
        (output / f".best.{os.getpid()}.keras").write_bytes(b"half a model")

    assert len(evaluate(prepare)) == 2
    output = tmp_path / "run" / "evaluation"
    assert {path.name for path in output.iterdir()} == {
        "best.keras",
        "lock",
        "results.jsonl",
    }
    keras.saving.load_model(output / "best.keras")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["commit-00000099.npz", "late.keras", "a.weights.h5"])
@pytest.mark.parametrize("odd", ["FIFO", "folder", "dangling link"])
def test_what_is_no_file_among_the_checkpoints_is_passed_over(evaluate, name, odd):
    def prepare(output):
        path = output.parent / name
        if odd == "FIFO":
            os.mkfifo(path)
        elif odd == "folder":
            path.mkdir()
        else:
            path.symlink_to(output.parent / "nowhere")

    assert len(evaluate(prepare)) == 2


def test_best_keras_has_the_permissions_of_any_new_file(tmp_path, evaluate):
    evaluate(lambda output: None)
    (tmp_path / "plain").write_bytes(b"")
    best = tmp_path / "run" / "evaluation" / "best.keras"
    assert best.stat().st_mode == (tmp_path / "plain").stat().st_mode
