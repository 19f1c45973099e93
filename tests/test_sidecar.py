"""The evaluator beside a run: what it evaluates, waits for, survives and writes."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from odd_files import damaged

from fmkit import losses, models, optimizers
from fmkit._commits import list_commits, list_variables, read_commit, write_commit
from fmkit.callbacks import ExactResume
from fmkit.callbacks._resume import _training_state
from fmkit.data import Batches
from fmkit.datasets import fashion_mnist, mnist
from fmkit.evaluation import SidecarEvaluator
from fmkit.evaluation.__main__ import main
from fmkit.evaluation._checkpoint import NotReadableError, Target
from fmkit.evaluation._listing import list_checkpoints
from fmkit.evaluation._session import read_checkpoint

RNG = np.random.RandomState(0)
X, Y = RNG.rand(40, 4).astype("float32"), RNG.randint(0, 2, 40).astype("int32")
TEST = (X[:12], Y[:12])
BACKEND = keras.backend.backend()


def build(optimizer=None, **compile_options):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2),
        ]
    )
    model.compile(
        optimizer or "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False if BACKEND == "torch" else "auto",
        # Fewer graphs to trace; tests/test_sidecar_live.py evaluates compiled.
        run_eagerly=BACKEND == "tensorflow",
        **compile_options,
    )
    return model


def averaging():
    return optimizers.ExponentialMovingAverage(keras.optimizers.Adam(0.05), 0.9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run: its commits, ModelCheckpoint's files, and its model."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = build(averaging())
    checkpoint = keras.callbacks.ModelCheckpoint
    (folder / "h5").mkdir()
    (folder / "whole").mkdir()
    model.fit(
        Batches(X, Y, 8, map=None),
        epochs=3,
        verbose=0,
        callbacks=[
            checkpoint(
                folder / "h5" / "weights.{epoch:02d}-0.5.weights.h5",
                save_weights_only=True,
            ),
            checkpoint(folder / "whole" / "epoch_{epoch:d}.keras"),
            ExactResume(folder / "run", every=4, keep=99, verbose=0),
        ],
    )
    return folder, model


@pytest.fixture(scope="module")
def model():
    """The sidecar's own model, made anew, with another optimizer than the run's."""
    build("sgd")  # the process has counted other layers before
    return build("sgd")


class Script:
    """A clock that only `sleep` moves, with something to happen at each sleep."""

    def __init__(self, *steps):
        self.now, self.steps, self.waits = 0.0, list(steps), []

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds
        if self.steps:
            step = self.steps.pop(0)
            if step is not None:
                step()

    def options(self):
        return {"clock": lambda: self.now, "sleep": self.sleep, "verbose": 0}


def evaluator(model, directory, *steps, **options):
    script = Script(*steps)
    made = SidecarEvaluator(model, TEST, directory, **{**script.options(), **options})
    made.script = script
    return made


def names(records):
    return [record["checkpoint"] for record in records]


@contextlib.contextmanager
def warned(*parts):
    """Expect user warnings that hold these texts, one each; ignore Keras's own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    told = sorted(str(each.message) for each in caught)
    assert len(told) == len(parts), told
    for part in parts:
        assert any(part in text for text in told), (part, told)


def copy_run(trained, tmp_path, name="run"):
    target = tmp_path / name
    shutil.copytree(trained[0] / name, target)
    return target


# What is evaluated


def test_results_are_those_of_the_committed_weights_exactly(trained, model, tmp_path):
    run_model = trained[1]
    folder = copy_run(trained, tmp_path)
    data = {"test": TEST, "train": Batches(X, Y, 16, map=None)}
    sidecar = SidecarEvaluator(model, data, folder, monitor="accuracy", verbose=0)
    records = sidecar.run()
    assert sidecar.ended_by == "finished"
    # 15 steps, a commit each 4, and the end.
    assert [(r["epoch"], r["step"]) for r in records] == [
        (0, 4), (1, 8), (2, 12), (3, 15),
    ]  # fmt: skip
    for record, path in zip(records, list_commits(folder), strict=True):
        commit = read_commit(path)
        _training_state.restore_variables(
            run_model,
            commit.meta.variables[: len(_all_variables(run_model))],
            commit.arrays,
            metrics=False,
        )
        for kind, found in record["results"].items():
            for name, one in data.items():
                expected = _evaluate(run_model, one, averaged=kind == "averaged")
                assert found[name] == expected, (path, kind, name)
        # Control: the two kinds are told apart.
        assert record["results"]["raw"] != record["results"]["averaged"]
    # The best is what its record says it is, also after loading.
    values = [
        (r["results"][kind]["test"]["accuracy"], kind) for r in records
        for kind in r["results"]
    ]  # fmt: skip
    assert sidecar.best["value"] == max(values)[0]
    assert [r["best"] for r in records if r["best"]][-1] == sidecar.best
    best = keras.saving.load_model(sidecar.best_path)
    assert _evaluate(best, TEST)["accuracy"] == sidecar.best["value"]
    # Started again, it evaluates nothing: what it knows is in the file.
    written = (folder / "evaluation" / "results.jsonl").read_bytes()
    again = SidecarEvaluator(model, data, folder, monitor="accuracy", verbose=0)
    assert again.run() == records
    assert again.best == sidecar.best
    assert (folder / "evaluation" / "results.jsonl").read_bytes() == written
    assert len(written.splitlines()) == 4


def _all_variables(model):
    return list_variables(model, metrics=False)


def _evaluate(model, data, averaged=False):
    keywords = {"verbose": 0, "return_dict": True}
    arguments = data if isinstance(data, tuple) else (data,)
    if not averaged:
        return model.evaluate(*arguments, **keywords)
    with optimizers.averaged(model):
        return model.evaluate(*arguments, **keywords)


@pytest.mark.backend("torch")
def test_averages_of_keras_itself_and_an_averaging_sidecar(tmp_path):
    model = build(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5))
    resume = ExactResume(tmp_path / "run", every=3, keep=9, verbose=0)
    model.fit(Batches(X, Y, 8, map=None), epochs=1, callbacks=[resume], verbose=0)
    target = Target.of(build(averaging()))
    first = read_checkpoint(list_checkpoints(tmp_path / "run")[0], target)
    # By hand, from the file: the optimizer's variables after the model's.
    commit = read_commit(list_commits(tmp_path / "run")[0])
    listed = {
        e["path"].rpartition("/")[2]: e["arrays"][0] for e in commit.meta.variables
    }
    found = {v.path: a for v, a in first.averages["averaged"]}
    assert len(found) == 6
    for weight in model.trainable_variables:
        expected = commit.arrays[listed[weight.path.replace("/", "_") + "_average"]]
        place = [a for p, a in found.items() if a.shape == expected.shape]
        assert any(a.tobytes() == expected.tobytes() for a in place), weight.path


@pytest.mark.backend("torch")
def test_weights_chooses_raw_or_averaged_and_best_holds_them(trained, model, tmp_path):
    folder = copy_run(trained, tmp_path)
    sidecar = evaluator(model, folder, weights="averaged", monitor="test/loss")
    records = sidecar.run()
    assert all(list(r["results"]) == ["averaged"] for r in records)
    assert sidecar.best["weights"] == "averaged"
    losses = [r["results"]["averaged"]["test"]["loss"] for r in records]
    assert sidecar.best["value"] == min(losses)
    best = keras.saving.load_model(sidecar.best_path)
    assert _evaluate(best, TEST)["loss"] == min(losses)
    # Asking for more later evaluates again: the line that is there lacks the raw ones.
    more = evaluator(model, folder, weights="both").run()
    assert len(more) == 8
    # A commit without averages.
    plain = build("sgd")
    resume = ExactResume(tmp_path / "plain", every=3, verbose=0)
    plain.fit(Batches(X, Y, 20, map=None), callbacks=[resume], verbose=0)
    with pytest.raises(ValueError, match="holds no averages"):
        evaluator(model, tmp_path / "plain", weights="averaged").run()
    records = evaluator(model, tmp_path / "plain").run()
    assert all(list(r["results"]) == ["raw"] for r in records)


@pytest.mark.backend("torch")
def test_each_of_several_averages_has_its_results(tmp_path):
    rules = [0.5, optimizers.EqualRule(start_step=2), optimizers.PowerRule(0.1)]
    trained = build(optimizers.WeightAverages(keras.optimizers.Adam(0.05), rules))
    resume = ExactResume(tmp_path / "run", every="epoch", keep=1, verbose=0)
    trained.fit(Batches(X, Y, 8, map=None), epochs=2, callbacks=[resume], verbose=0)
    (record,) = evaluator(build("sgd"), tmp_path / "run", monitor="test/loss").run()
    results = {name: each["test"]["loss"] for name, each in record["results"].items()}
    expected = {"raw": _evaluate(trained, TEST)["loss"]}
    for key, name in (("averaged", None), ("swa", "swa"), ("power_0.1", "power_0.1")):
        with optimizers.averaged(trained, name):
            expected[key] = _evaluate(trained, TEST)["loss"]
    assert results == pytest.approx(expected, rel=1e-5)
    assert len(set(results.values())) == 4
    assert record["best"]["weights"] == min(results, key=results.get)


@pytest.mark.open_on("3.14")
@pytest.mark.backend("torch")
def test_a_schedule_free_run_is_evaluated_at_its_average(tmp_path):
    trained = build(keras.optimizers.ScheduleFreeAdamW(0.05))
    resume = ExactResume(tmp_path / "run", every="epoch", keep=1, verbose=0)
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "files" / "1.keras")
    trained.fit(
        Batches(X, Y, 8, map=None), epochs=2, callbacks=[resume, saved], verbose=0
    )
    expected = [
        _evaluate(trained, TEST, averaged)["loss"] for averaged in (False, True)
    ]
    assert expected[0] != expected[1]
    model = build(keras.optimizers.ScheduleFreeAdamW(0.05))
    for folder in ("run", "files"):
        record = evaluator(model, tmp_path / folder, idle_seconds=0).run()[-1]
        found = [
            record["results"][name]["test"]["loss"] for name in ("raw", "averaged")
        ]
        assert found == pytest.approx(expected, rel=1e-5), folder


# Waiting and ending


@pytest.mark.backend("torch")
def test_waits_longer_and_longer_for_a_run_that_starts_late(trained, model, tmp_path):
    commits = list_commits(trained[0] / "run")
    folder = tmp_path / "late"

    def appear(*which):
        def step():
            folder.mkdir(exist_ok=True)
            for index in which:
                shutil.copy(commits[index], folder)

        return step

    output = tmp_path / "out"
    sidecar = evaluator(
        model, folder, None, None, None, None, None, appear(0), None, appear(1, 2),
        idle_seconds=100, output=output, poll_seconds=1, max_poll_seconds=10,
    )  # fmt: skip
    records = sidecar.run()
    assert names(records) == [path.name for path in commits[:3]]
    # Doubled up to the longest; from the start again when something has come; the
    # last one not beyond the end.
    waits = sidecar.script.waits
    assert waits[:8] == [1, 2, 4, 8, 10, 10, 1, 2]
    assert waits[8:12] == [1, 2, 4, 8]
    assert sum(waits[8:]) == 100
    assert sidecar.ended_by == "idle"
    # The end of the run ends it at once.
    more = evaluator(model, folder, appear(3), output=output)
    assert len(more.run()) == 4
    assert (more.ended_by, more.script.waits) == ("finished", [1])
    # Unless it is to wait for a finished run to be continued.
    waiting = evaluator(
        model, folder, output=output, stop_with_run=False, idle_seconds=5
    )
    waiting.run()
    assert waiting.ended_by == "idle"


@pytest.mark.backend("torch")
def test_the_newest_only_and_a_number_of_evaluations(trained, model, tmp_path):
    folder = copy_run(trained, tmp_path)
    commits = list_commits(folder)
    newest = evaluator(model, folder, checkpoints="newest", output=tmp_path / "newest")
    assert names(newest.run()) == [commits[-1].name]
    # A damaged newest: the one before it, and no end of the run.
    commits[-1].write_bytes(commits[-1].read_bytes()[:-30])
    newest = evaluator(
        model, folder, checkpoints="newest", output=tmp_path / "before", idle_seconds=1
    )
    with warned(commits[-1].name):
        assert names(newest.run()) == [commits[-2].name]
    assert newest.ended_by == "idle"
    two = evaluator(model, folder, max_evaluations=2, output=tmp_path / "two")
    assert names(two.run()) == [path.name for path in commits[:2]]
    assert two.ended_by == "max_evaluations"
    # Counted over restarts: the same command ends the same.
    assert (
        len(evaluator(model, folder, max_evaluations=2, output=tmp_path / "two").run())
        == 2
    )


@pytest.mark.backend("torch")
def test_ctrl_c_ends_it_with_all_results_kept(trained, model, tmp_path):
    folder = copy_run(trained, tmp_path)
    list_commits(folder)[-1].unlink()

    def interrupt():
        raise KeyboardInterrupt

    sidecar = evaluator(model, folder, interrupt)
    assert len(sidecar.run()) == 3
    assert sidecar.ended_by == "interrupted"
    lines = (folder / "evaluation" / "results.jsonl").read_text().splitlines()
    assert names(map(json.loads, lines)) == [p.name for p in list_commits(folder)]


# Damage


@pytest.mark.backend("torch")
def test_damaged_and_deleted_commits_are_named_and_passed_over(
    trained, model, tmp_path
):
    folder = copy_run(trained, tmp_path)
    first, second, third, _ = list_commits(folder)
    first.write_bytes(b"PK" + first.read_bytes()[2:1000])
    second.write_bytes(b"")
    sidecar = evaluator(model, folder)
    with warned(first.name, second.name):
        records = sidecar.run()
    assert names(records)[0] == third.name
    assert sidecar.ended_by == "finished"
    # Deleted before its turn, told by the gap in the numbers.
    folder = copy_run(trained, tmp_path / "gap")
    for path in list_commits(folder)[1:3]:
        path.unlink()
    with warned("commit 2 to 3, deleted before"):
        assert len(evaluator(model, folder).run()) == 2


@pytest.mark.backend("torch")
@pytest.mark.parametrize("checkpoints", ["every", "newest"])
@pytest.mark.parametrize("failures", [1, 99])
def test_a_finished_run_waits_for_a_commit_that_can_not_be_read_for_a_while(
    trained, model, tmp_path, monkeypatch, checkpoints, failures
):
    folder = copy_run(trained, tmp_path)
    bad = list_commits(folder)[1]
    left = [failures]

    def flaky(path):
        if path == bad and left[0]:
            left[0] -= 1
            raise OSError("the disk is away")
        return read_commit(path)

    monkeypatch.setattr("fmkit.evaluation._commit_reader.read_commit", flaky)
    sidecar = evaluator(model, folder, checkpoints=checkpoints)
    given_up = failures > 1 and checkpoints == "every"
    with warned("the disk is away") if given_up else contextlib.nullcontext():
        records = sidecar.run()
    assert sidecar.ended_by == "finished"
    if checkpoints == "newest":
        assert names(records) == [list_commits(folder)[-1].name]
        assert not sidecar.script.waits
    else:
        assert (bad.name in names(records)) == (not given_up)
        assert len(records) == 4 - given_up
        # Long enough to look again at a file that has not changed, and no longer.
        assert 5 <= sum(sidecar.script.waits) < 15


@pytest.mark.backend("torch")
def test_with_newest_an_older_commit_is_not_waited_for(
    trained, model, tmp_path, monkeypatch
):
    folder = copy_run(trained, tmp_path)
    *_, older, newest = list_commits(folder)
    failing = {older, newest}

    def flaky(path):
        if path in failing:
            raise OSError("the disk is away")
        return read_commit(path)

    monkeypatch.setattr("fmkit.evaluation._commit_reader.read_commit", flaky)
    # In the first look both fail; from then on only the older one.
    sidecar = evaluator(
        model, folder, lambda: failing.discard(newest), checkpoints="newest"
    )
    assert newest.name in names(sidecar.run())
    assert sidecar.ended_by == "finished"


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    "change",
    [
        {"program": {}},
        {"program": {"model": 3, "optimizer": None}},
        {"program": {"model": [], "optimizer": ["Adam"]}},
        {"variables": [{"path": "", "held": None, "metric": False, "arrays": []}]},
        {"variables": [{"path": "", "held": None, "metric": False, "arrays": ["a"]}]},
    ],
)
def test_a_sound_file_with_a_nonsensical_content_is_named(
    trained, model, tmp_path, change
):
    folder = copy_run(trained, tmp_path)
    first, *_ = list_commits(folder)
    commit = read_commit(first)
    write_commit(first, dataclasses.replace(commit.meta, **change), commit.arrays)
    with warned(f"{first.name}: not what ExactResume writes"):
        assert len(evaluator(model, folder).run()) == 3


@pytest.mark.backend("torch")
def test_a_step_done_again_counts_only_with_other_bits(trained, model, tmp_path):
    folder = copy_run(trained, tmp_path)
    *_, third, last = list_commits(folder)
    last.unlink()
    commit = read_commit(third)

    def again(number, change):
        arrays = {name: array.copy() for name, array in commit.arrays.items()}
        if change:
            arrays["variable/0/0"].reshape(-1)[0] += 1
        meta = dataclasses.replace(commit.meta, time=0.0)
        write_commit(folder / f"commit-{number:08d}.npz", meta, arrays)

    again(4, change=False)
    assert (folder / "commit-00000004.npz").read_bytes() != third.read_bytes()
    sidecar = evaluator(model, folder, lambda: again(5, change=True), idle_seconds=3)
    records = sidecar.run()
    assert names(records)[2:] == [third.name, "commit-00000005.npz"]
    assert records[2]["step"] == records[3]["step"] == 12
    assert records[2]["digest"] != records[3]["digest"]


@pytest.mark.backend("torch")
def test_damaged_results_are_repaired_or_counted_out(trained, model, tmp_path):
    folder = copy_run(trained, tmp_path)
    evaluator(model, folder).run()
    path = folder / "evaluation" / "results.jsonl"
    whole = path.read_bytes()
    records = [json.loads(line) for line in whole.splitlines()]
    # Killed while writing the last line: cut off, and evaluated again.
    path.write_bytes(whole[:-20])
    assert names(evaluator(model, folder).run()) == names(records)
    assert len(path.read_bytes().splitlines()) == 4
    # Only the end of the line is missing: not evaluated again.
    path.write_bytes(whole[:-1])
    evaluator(model, folder).run()
    assert path.read_bytes() == whole
    # A damaged line in the middle is told, kept, and its checkpoint done again.
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"checkpoint": [[[\n' + lines[2] + lines[3])
    with warned("line 2, is damaged"):
        again = evaluator(model, folder).run()
    assert sorted(names(again)) == names(records)
    assert path.read_bytes().splitlines()[1] == b'{"checkpoint": [[['


@pytest.mark.backend("torch")
def test_no_damage_to_the_results_file_crashes_its_reader(tmp_path):
    from fmkit.evaluation._results import ResultsFile, is_record

    path = tmp_path / "results.jsonl"
    results = {"raw": {"test": {"loss": float("nan"), "f1": [0.5, float("inf")]}}}
    record = {
        "checkpoint": "a", "epoch": 1, "step": None, "digest": "0", "best": None,
        "results": results, "seconds": 0.5, "time": 1.0,
    }  # fmt: skip
    file = ResultsFile(path)
    for _ in range(3):
        file.append(record)
    whole = path.read_bytes()
    json.loads(whole.splitlines()[0], parse_constant=pytest.fail)
    back = ResultsFile(path).records
    assert len(back) == 3
    assert np.isnan(back[0]["results"]["raw"]["test"]["loss"])
    assert back[0]["results"]["raw"]["test"]["f1"] == [0.5, float("inf")]
    rng = np.random.RandomState(1)
    contents = damaged(whole, rng, cuts=60, flips=300)
    contents += [b"[" * 10**5, b"\xff\n" * 5, b"1" * 9999 + b"\n", b"null\n{}\n"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in contents:
            path.write_bytes(content)
            assert all(map(is_record, ResultsFile(path).records))
            after = path.read_bytes()
            assert after == b"" or after.endswith(b"\n")


# Files of Keras's ModelCheckpoint


@pytest.mark.backend("torch")
def test_files_of_model_checkpoint_with_their_averages(trained, tmp_path):
    run_model = trained[1]
    model = build(averaging())
    h5 = copy_run(trained, tmp_path, "h5")
    sidecar = evaluator(model, h5, idle_seconds=1)
    records = sidecar.run()
    assert [(r["epoch"], r["step"]) for r in records] == [(1, 5), (2, 10), (3, 15)]
    run_model.load_weights(h5 / records[1]["checkpoint"])
    for kind in ("raw", "averaged"):
        expected = _evaluate(run_model, TEST, averaged=kind == "averaged")
        assert records[1]["results"][kind]["test"] == expected
    # The same weights in .keras files have the same digest.
    whole = copy_run(trained, tmp_path, "whole")
    others = evaluator(model, whole, idle_seconds=1).run()
    assert [r["digest"] for r in others] == [r["digest"] for r in records]
    assert [r["results"] for r in others] == [r["results"] for r in records]
    # A model whose optimizer keeps none: raw weights alone, and none of an earlier
    # file's averages.
    plain = evaluator(build("sgd"), h5, idle_seconds=1, output=tmp_path / "plain").run()
    assert [list(r["results"]) for r in plain] == [["raw"]] * 3
    bare = build("sgd")
    bare.save_weights(whole / "epoch_4.weights.h5")
    more = evaluator(model, whole, idle_seconds=1).run()
    assert (more[-1]["epoch"], list(more[-1]["results"])) == (4, ["raw"])


@pytest.mark.backend("torch")
def test_a_half_written_file_is_waited_for_and_a_damaged_one_named(
    trained, model, tmp_path
):
    h5 = sorted((trained[0] / "h5").iterdir())
    data = h5[0].read_bytes()
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "latest.weights.h5"
    path.write_bytes(data[: len(data) // 2])
    # Half-written for a while, then whole, then overwritten by the next epoch's.
    sidecar = evaluator(
        model,
        folder,
        lambda: path.write_bytes(data[: len(data) // 2 + 512]),
        lambda: path.write_bytes(data),
        lambda: path.write_bytes(h5[1].read_bytes()),
        lambda: os.utime(path, ns=(1, 1)),
        idle_seconds=30,
        output=tmp_path / "out",
    )
    records = sidecar.run()  # any warning would be an error here
    assert names(records) == [path.name] * 2
    # Never completed: named once, when it has not changed for some seconds.
    path.write_bytes(data[: len(data) // 2])
    sidecar = evaluator(model, folder, idle_seconds=30, output=tmp_path / "out")
    with warned(path.name):
        sidecar.run()
    # Another model's weights.
    other = keras.Sequential([keras.Input((9,)), keras.layers.Dense(1)])
    other.save_weights(path)
    with warned("Skipping"):
        evaluator(model, folder, idle_seconds=30, output=tmp_path / "out").run()


@pytest.mark.backend("torch")
def test_flipped_bytes_in_a_keras_file_give_no_wrong_weights(trained, model, tmp_path):
    source = sorted((trained[0] / "whole").iterdir())[0]
    whole = source.read_bytes()
    path = tmp_path / "epoch_1.keras"
    shutil.copy(source, path)
    target = Target.of(model)
    digest = read_checkpoint(list_checkpoints(tmp_path)[0], target).digest
    rng = np.random.RandomState(2)
    contents = damaged(whole, rng, cuts=10, flips=60)
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            checkpoint = read_checkpoint(list_checkpoints(tmp_path)[0], target)
        except NotReadableError:
            refused += 1
        else:
            assert checkpoint.digest == digest
    assert refused > len(contents) // 2


@pytest.mark.backend("torch")
def test_hostile_files_are_refused_and_nothing_in_them_runs(trained, model, tmp_path):
    sentinel = tmp_path / "executed"
    folder = tmp_path / "run"
    folder.mkdir()
    # Code in the description of the model: only the numbers are read.
    good = sorted((trained[0] / "whole").iterdir())[0]
    with (
        zipfile.ZipFile(good) as old,
        zipfile.ZipFile(folder / "epoch_1.keras", "w") as new,
    ):
        new.writestr("config.json", json.dumps({
            "module": "os", "class_name": "system", "registered_name": None,
            "config": {"command": f"touch {sentinel}"},
        }))  # fmt: skip
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    # A compressed bomb, a link to another file, an array larger than the file.
    with zipfile.ZipFile(folder / "epoch_2.keras", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("model.weights.h5", bytes(10**7))
    with h5py.File(folder / "03.weights.h5", "w") as file:
        file["layers"] = h5py.ExternalLink("/etc/hostname", "/")
    with h5py.File(folder / "04.weights.h5", "w") as file:
        file.create_dataset("vars/0", (10**6, 10**6), "f4", chunks=(1000, 1000))
    with h5py.File(folder / "05.weights.h5", "w") as file:
        group = file.create_group("a")
        group["b"] = group
    sidecar = evaluator(model, folder, idle_seconds=30)
    with warned(
        "epoch_2.keras: model.weights.h5 is not stored",
        "03.weights.h5: 'layers' is a link",
        "04.weights.h5: '0' is not stored in this file",
        "05.weights.h5: 'b' is linked twice",
    ):
        records = sidecar.run()
    assert names(records) == ["epoch_1.keras"]
    assert not sentinel.exists()
    # As the command's model they are refused too.
    with pytest.raises(SystemExit):
        main([str(folder), "--data", "fashion_mnist=sample", "--quiet"])
    assert not sentinel.exists()


@pytest.mark.backend("torch")
def test_the_training_can_write_a_file_while_it_is_read(
    trained, model, tmp_path, monkeypatch
):
    shutil.copy(sorted((trained[0] / "h5").iterdir())[0], tmp_path / "a.weights.h5")
    path = tmp_path / "a.weights.h5"
    load, loaded = model.load_weights, []

    def load_while_written(file):
        with h5py.File(path, "r+"):  # as ModelCheckpoint opens it
            loaded.append(load(file))

    monkeypatch.setattr(model, "load_weights", load_while_written, raising=True)
    read_checkpoint(list_checkpoints(tmp_path)[0], Target.of(model))
    assert len(loaded) == 1
    # Control: read where it stands, the training's own write would fail.
    with (
        h5py.File(path, "r"),
        pytest.raises(OSError, match="open"),
        h5py.File(path, "w"),
    ):
        pass


# Best, TensorBoard, arguments


@pytest.mark.backend("torch")
@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_what_the_file_holds(trained, model, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = copy_run(trained, tmp_path)
    records = evaluator(model, folder, tensorboard=True).run()
    for kind in ("raw", "averaged"):
        events = EventAccumulator(str(folder / "evaluation" / "tensorboard" / kind))
        events.Reload()
        shown = {
            e.step: float(e.tensor_proto.float_val[0])
            for e in events.Tensors("test/accuracy")
        }
        assert shown == {
            r["step"]: np.float32(r["results"][kind]["test"]["accuracy"])
            for r in records
        }
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        evaluator(model, folder, tensorboard=True).run()


@pytest.mark.backend("torch")
def test_the_model_of_another_run_is_refused_by_name(trained, tmp_path):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.compile("sgd", "mse")
    folder = copy_run(trained, tmp_path)
    with pytest.raises(ValueError, match=r"8 weights in the commit, 2 here(?s:.)*Give"):
        evaluator(other, folder).run()


@pytest.mark.backend("torch")
def test_bad_arguments_are_refused_with_what_to_do(trained, model, tmp_path):
    def make(model=model, data=TEST, directory=tmp_path, **options):
        return SidecarEvaluator(model, data, directory, **options)

    with pytest.raises(TypeError, match=r"keras\.Model"):
        make("model.keras")
    with pytest.raises(ValueError, match="must be built"):
        make(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="must be compiled"):
        make(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="empty dict"):
        make(data={})
    with pytest.raises(ValueError, match="a/b"):
        make(data={"a/b": TEST})
    with pytest.raises(ValueError, match="1 parts"):
        make(data=(X,))
    with pytest.raises(TypeError, match="read once"):
        make(data=(batch for batch in [TEST]))
    with pytest.raises(ValueError, match="Did you mean 'every'"):
        make(checkpoints="evry")
    with pytest.raises(ValueError, match=r"best\.keras"):
        make(output=tmp_path)
    with pytest.raises(ValueError, match="idle_seconds"):
        make(idle_seconds=-1)
    folder = copy_run(trained, tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
        make(directory=folder, monitor="acuracy", verbose=0).run()
    # Nothing is written of an evaluation that failed.
    assert not (folder / "evaluation" / "results.jsonl").exists()


@pytest.mark.backend("torch")
def test_a_value_that_is_not_a_number_is_never_the_best(trained, tmp_path):
    folder = copy_run(trained, tmp_path)
    for path in list_commits(folder)[:2]:
        commit = read_commit(path)
        arrays = {k: v.copy() for k, v in commit.arrays.items()}
        arrays["variable/5/0"][:] = np.nan  # a variance of BatchNormalization
        write_commit(path, commit.meta, arrays)
    records = evaluator(build(), folder, weights="raw").run()
    assert np.isnan(records[0]["results"]["raw"]["test"]["loss"])
    assert [bool(r["best"]) for r in records[:3]] == [False, False, True]


# The command


@pytest.mark.backend("torch")
def test_the_command_makes_the_model_from_what_the_run_wrote(trained, tmp_path, capsys):
    folder = copy_run(trained, tmp_path)
    np.savez(tmp_path / "test.npz", x=TEST[0], y=TEST[1])
    data = ["--data", f"test={tmp_path / 'test.npz'}"]
    assert main([str(folder), *data, "--monitor", "accuracy", "--poll", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "commit-00000004.npz, epoch 3, step 15; raw test: accuracy" in said
    assert "ended (finished); 4 checkpoints" in said
    lines = (folder / "evaluation" / "results.jsonl").read_text().splitlines()
    commit = read_commit(list_commits(folder)[-1])
    _training_state.restore_variables(
        trained[1], commit.meta.variables, commit.arrays, metrics=False
    )
    found = json.loads(lines[-1])["results"]
    assert found["raw"]["test"] == _evaluate(trained[1], TEST)
    assert found["averaged"]["test"] == _evaluate(trained[1], TEST, averaged=True)


@pytest.mark.backend("torch")
def test_the_command_knows_two_sets_of_images_by_name(tmp_path, monkeypatch):
    (x_train, y_train), (x, y) = mnist.load_sample()
    found = (x[:200], y[:200])
    (tmp_path / "mnist").mkdir()
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x[:200]}
    np.savez(tmp_path / "mnist" / "mnist.npz", **arrays, y_test=y[:200])
    monkeypatch.setenv("FMKIT_DATA_DIR", str(tmp_path))
    model = models.linear(10)
    model.compile("sgd", losses.CrossentropyFromLogits(), metrics=["accuracy"])
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "1.keras")
    for number, (text, images) in enumerate(
        {
            "mnist": found,
            f"mnist={tmp_path / 'mnist'}": found,
            "mnist=sample": (x, y),
            "fashion_mnist=sample": fashion_mnist.load_sample()[1],
        }.items()
    ):
        output = tmp_path / str(number)
        options = ["--output", str(output), "--max-evaluations", "1", "--quiet"]
        assert main([str(tmp_path / "run"), "--data", text, *options]) == 0
        record = json.loads((output / "results.jsonl").read_text())
        name = text.partition("=")[0]
        expected = model.evaluate(Batches(*images, 100), verbose=0, return_dict=True)
        assert record["results"]["raw"] == {name: pytest.approx(expected, rel=1e-5)}


@pytest.mark.backend("torch")
def test_the_command_helps_and_its_errors_tell_what_to_write(trained, tmp_path, capsys):
    def fails(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code != 0
        return capsys.readouterr().err

    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "--model",
        "--data",
        "fashion_mnist",
        "--newest",
        "--idle",
        "examples",
    ):
        assert word in text
    whole = next((trained[0] / "whole").iterdir())
    model = ["--model", whole]
    assert "required: directory" in fails()
    assert "Give fashion_mnist" in fails(tmp_path, *model, "--data", "fashon_mnist")
    assert "given twice" in fails(
        tmp_path, *model, "--data", "fashion_mnist=sample", "--data", "fashion_mnist"
    )
    sample = ["--data", "fashion_mnist=sample"]
    assert "Give --model" in fails(tmp_path / "none", *sample, "--idle", "0")
    assert "There is no file" in fails(
        tmp_path, *sample, "--model", tmp_path / "x.keras"
    )
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object), y=np.zeros(1))
    assert "never loaded" in fails(
        tmp_path, *model, "--data", f"a={tmp_path / 'objects.npz'}"
    )
    hostile = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])
    hostile.compile("sgd", "mse")
    hostile.save(tmp_path / "lambda.keras")
    said = fails(tmp_path, *sample, "--model", tmp_path / "lambda.keras")
    assert "arbitrary code" in said
    uncompiled = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    uncompiled.save(tmp_path / "plain.keras")
    assert "no compiled model" in fails(
        tmp_path, *sample, "--model", tmp_path / "plain.keras"
    )


@pytest.mark.backend("torch")
def test_a_model_without_a_config_leaves_no_description():
    class Unknown(keras.Model):
        def get_config(self):
            raise NotImplementedError

    assert _training_state.model_as_json(Unknown()) is None
    described = json.loads(_training_state.model_as_json(build()))
    made = keras.saving.deserialize_keras_object(described, safe_mode=True)
    assert [tuple(w.shape) for w in made.weights] == [
        tuple(w.shape) for w in build().weights
    ]
    assert made.compiled
