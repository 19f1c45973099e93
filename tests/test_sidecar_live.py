"""The evaluator against a live training: real processes, both killed, both resumed."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fmkit._commits import list_commits, list_variables, read_commit
from fmkit.callbacks._resume import _training_state
from fmkit.evaluation import SidecarEvaluator

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
from lab import Lab

pytestmark = [pytest.mark.backend("tensorflow"), pytest.mark.long]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("sidecar"))
    yield lab
    lab.close()


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_commit_of_a_killed_training_is_evaluated_once_and_exactly(lab):
    folder = lab.new_folder()
    commits, results = folder / "commits", folder / "commits/evaluation/results.jsonl"
    rng = np.random.RandomState(4)
    x, y = rng.rand(30, 6).astype("float32"), rng.randint(0, 3, 30).astype("int32")
    np.savez(folder / "test.npz", x=x, y=y)
    command = [str(commits), "--data", f"test={folder / 'test.npz'}", "--poll", "0.02",
               "--max-poll", "0.1", "--batch-size", "30", "--no-best"]  # fmt: skip

    def start_sidecar():
        return lab.run(folder, evaluate=command, detach=True)["process"]

    training = {"every": 5, "keep": 1000, "epochs": 3}
    # The evaluator is there before the training, which is killed and resumed beside
    # it; then it is killed too, between any two steps of its work.
    sidecar = start_sidecar()
    assert lab.kill(folder, die_after=13, **training)
    wait_for(lambda: lines_of(results) >= 1)
    model = lab_model()
    rival = SidecarEvaluator(model, (x, y), commits, verbose=0)
    with pytest.raises(OSError, match=f"in use by another.*process {sidecar}"):
        rival.run()
    os.kill(sidecar, signal.SIGKILL)
    assert lab.run(folder, reap=sidecar)["code"] == -signal.SIGKILL
    before = results.read_bytes()
    sidecar = start_sidecar()
    assert lab.kill(folder, die_after=11, **training)
    lab.ends(folder, **training)
    # The marker of the finished run ends it.
    assert lab.run(folder, reap=sidecar)["code"] == 0, lab.log(folder)
    assert results.read_bytes().startswith(before)
    records = [json.loads(line) for line in results.read_bytes().splitlines()]
    paths = list_commits(commits)
    steps = [step_of(read_commit(path).meta) for path in paths]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 36]
    assert [(r["checkpoint"], r["step"]) for r in records] == [
        (path.name, step) for path, step in zip(paths, steps, strict=True)
    ]
    # The oracle can tell the commits apart, so a mistaken one would be seen.
    assert len({json.dumps(record["results"]) for record in records}) == len(paths)
    for record, path in zip(records, paths, strict=True):
        assert record["results"] == in_process(model, read_commit(path), x, y)


def step_of(meta):
    return meta.steps_before + meta.step


def lab_model():
    import trainer

    model = trainer.build({})
    model.optimizer.build(model.trainable_variables)
    return model


def in_process(model, commit, x, y):
    """Evaluate a commit with Keras's own means to put the averages in."""
    expected = {}
    for kind in ("raw", "averaged"):
        mine = len(list_variables(model, metrics=False))
        _training_state.restore_variables(
            model, commit.meta.variables[:mine], commit.arrays, metrics=False
        )
        if kind == "averaged":
            model.optimizer.finalize_variable_values(model.trainable_variables)
        logs = model.evaluate(x, y, batch_size=30, verbose=0, return_dict=True)
        expected[kind] = {"test": logs}
    return expected
