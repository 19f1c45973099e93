"""Real processes, real SIGKILL: what a killed training ends with, bit for bit.

`tests/chaos/trainer.py` is the program, `tests/chaos/lab.py` kills it.
"""

import random
import shutil
import signal
import sys
import time
from pathlib import Path

import keras
import pytest
from abilities import MANY_STEPS

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
from lab import Lab, kill_and_compare
from trainer import build

from fmkit._commits import list_commits, read_meta
from fmkit.evaluation import synthesize

BACKEND = keras.backend.backend()

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("chaos"))
    yield lab
    lab.close()


TRIALS = {
    # kills, options of the program: 35, 12 and 35 kills, with those below
    "tensorflow": [
        (4, {"every": 5}),
        (4, {"every": 1, "background": False}),
        (3, {"every": 3}),
        (1, {"every": 5, "steps_per_execution": 5, "jit_compile": True}),
        (1, {"every": 4, "dtype": "mixed_float16", "averages": True}),
        (2, {"every": 5, "built": False, "patience": 1}),
        (1, {"every": 5, "devices": 2}),
    ],
    "jax": [
        (3, {"every": 3}),
        (
            2,
            {
                "every": 5,
                "steps_per_execution": 5,
                "devices": 2,
                "built": False,
                "ema": False,
            },
        ),
    ],
    "torch": [
        (4, {"every": 5}),
        (4, {"every": 1, "background": False}),
        (2, {"every": 4, "dtype": "mixed_bfloat16", "averages": True}),
    ],
}


for backend, names in {
    "tensorflow": ["gan", "stateful", "dicts", "adapted", "fused"],
    "jax": ["stateful", "dicts", "adapted", "fused"],
    "torch": ["gan", "dicts", "adapted", "fused"],
}.items():
    kills = 1 if backend == "jax" else 2
    TRIALS[backend] += [(kills, {"every": 3, "network": name}) for name in names]


for trials in TRIALS.values():
    trials.append((1, {"every": 3, "augment": True, "schedule": True}))
    trials.append((2, {"every": 3, "averages": "all rules"}))


# With each kind of data; the others are broken off in tests/test_exact_resume_data.py.
for backend, names in {
    "tensorflow": [
        "arrays",
        "pieces_threads",
        "dataset",
        "dataset_parallel",
        "grain_map",
    ],
    "jax": ["arrays_by_steps", "pieces", "grain_iter"],
    "torch": [
        "arrays",
        "pieces",
        "pieces_processes",
        "loader",
        "loader_workers",
        "loader_stateful",
        "hugging_face_stream",
        "grain_loader",
        "own_generator",
    ],
}.items():
    TRIALS[backend] += [
        (1 if backend == "jax" else 2, {"every": 3, "data": name}) for name in names
    ]


if "torch" in MANY_STEPS:  # as far as this Keras can
    TRIALS["torch"].append((2, {"every": 5, "steps_per_execution": 5}))


@pytest.mark.parametrize(("kills", "options"), TRIALS[BACKEND])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(lab, kills, options):
    rng = random.Random(f"{BACKEND} {kills} {options}")
    for differences in kill_and_compare(lab, kills, rng, **options):
        assert differences == []


@pytest.mark.parametrize(
    "control",
    [{"seek": False}, {"callback_state": False}],
    ids=["seek off", "callback state off"],
)
def test_the_comparison_fails_when_a_mechanism_is_switched_off(lab, control):
    folder = lab.new_folder()
    assert lab.kill(folder, every=5, die_after=20, **control)
    ends = lab.ends(folder, every=5, **control)
    expected, _ = lab.reference()
    different = [k for k, v in expected.items() if v.tobytes() != ends[k].tobytes()]
    assert different


def differences(ends, expected):
    """Names of arrays with a different bit, for each process of a job."""
    assert [each.keys() for each in ends] == [each.keys() for each in expected]
    return [
        [name for name, value in old.items() if value.tobytes() != new[name].tobytes()]
        for old, new in zip(expected, ends, strict=True)
    ]


@pytest.mark.backend("jax", "torch")
def test_a_job_of_two_processes_ends_with_the_same_bits_whatever_ends_one(lab):
    options = {"epochs": 2, "every": 5}
    expected = lab.job_ends(lab.new_folder(), 2, **options)
    # The processes hold the same weights, averages and history.
    common = [k for k in expected[0] if k.startswith("history")] + ["variable 0 0"]
    assert differences([expected[1]], [expected[0]])[0] in ([], OF_EACH_RANK)
    assert all((expected[0][k] == expected[1][k]).all() for k in common)
    folder = lab.new_folder()
    kills = [("1", 8)] if BACKEND == "jax" else [("1", 8), ("0", 9)]
    for rank, step in kills:
        codes = end_one(lab, folder, rank, options | {"die_after": step})
        assert codes[int(rank)] == -signal.SIGKILL, lab.log(folder)
        # The other one is killed with it, or fails when nobody answers any more.
        assert 0 not in codes
        assert list(folder.glob("commits/commit-*.npz"))
    # SIGTERM in one process ends both, at their next commit.
    terminated = options | {"die_after": 4, "die_by": signal.SIGTERM}
    before = read_meta(list_commits(folder / "commits")[-1])
    assert end_one(lab, folder, "1", terminated) == [143, 143], lab.log(folder)
    after = read_meta(list_commits(folder / "commits")[-1])
    assert steps_done(after) == steps_done(before) + options["every"]
    stopped = copy_of(lab, folder)
    assert differences(lab.job_ends(folder, 2, **options), expected) == [[], []]
    # Negative control: a job that can't find its place in the data ends otherwise.
    lost = lab.job_ends(stopped, 2, **options, seek=False)
    assert all("history loss" in each for each in differences(lost, expected))


def steps_done(meta):
    return 12 * meta.epoch + meta.step


# Keras can't save or copy what other processes hold.
CUT = {"saved": False, "restore_best": False}

# Weights that are cut over the processes, on JAX.
IN_TURN = {
    "jax": [(4, {"background": False, "mesh": [2, 2], **CUT})],
    "torch": [(2, {}), (2, {"background": False})],
}.get(BACKEND, [])


@pytest.mark.backend("jax", "torch")
@pytest.mark.parametrize(("processes", "options"), IN_TURN)
@pytest.mark.timeout(1200)  # six starts or more of four processes
def test_each_process_of_a_job_may_be_killed_in_turn(lab, processes, options):
    rng = random.Random(f"{BACKEND} {processes} {options}")
    options, started = {"epochs": 1, "every": 2, **options}, time.monotonic()
    expected = lab.job_ends(lab.new_folder(), processes, **options)
    seconds, folder = time.monotonic() - started, lab.new_folder()
    for rank in range(processes):
        while not lab.kill_one(folder, rng, seconds, processes, rank, **options):
            # It has come to its end before: from the beginning, for this one.
            ends = lab.ends_of_job(folder, processes)
            assert differences(ends, expected) == [[]] * processes
            folder = lab.new_folder()
    ends = lab.job_ends(folder, processes, **options)
    assert differences(ends, expected) == [[]] * processes


# Processes, and the mesh over which their devices are laid out on JAX: what the layers
# name is cut along its second axis.
SIZES = {
    "jax": {
        "4 to 2": [(4, {"mesh": [2, 2], **CUT}), (2, {"mesh": [1, 2], **CUT})],
        "2 to 1": [(2, {"mesh": [1, 2], **CUT}), (1, {"mesh": [2, 2], **CUT})],
        "1 to 4": [(1, {"mesh": [1, 1], **CUT}), (4, {"mesh": [1, 4], **CUT})],
    },
    "torch": {
        "2 to 1": [(2, {}), (1, {})],
        "1 to 2": [(1, {}), (2, {})],
    },
}.get(BACKEND, {})


@pytest.mark.backend("jax", "torch")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_a_job_that_is_killed_goes_on_in_another_size_with_the_same_bits(lab, sizes):
    rng, folder = random.Random(f"{BACKEND} {sizes}"), lab.new_folder()
    every = {"every": 4, "samples": 92, "verbose": 1, "job": True}
    (first, own), (processes, options) = sizes
    before = lab.job_ends(folder, first, epochs=1, **every, **own)[0]
    # What the one job ended with is what the other begins with.
    options = every | options
    ends = lab.job_ends(copy_of(lab, folder), processes, epochs=1, **options)
    assert different_values(ends[0], before) == []
    # It begins inside an epoch, too.
    rank = str(rng.randrange(first))
    request = {"ranks": {rank: {"die_after": 6}}, "background": False, "epochs": 2}
    lab.run(folder, processes=first, **request, **every, **own)
    assert read_meta(list_commits(folder / "commits")[-1]).step == 4
    calm = copy_of(lab, folder)
    started = time.monotonic()
    expected = lab.job_ends(calm, processes, epochs=2, **options)
    seconds = time.monotonic() - started
    for _ in range(1 if BACKEND == "jax" else 4):
        if not lab.kill_one(folder, rng, seconds, processes, epochs=2, **options):
            break
    ends = lab.job_ends(folder, processes, epochs=2, **options)
    assert differences(ends, expected) == [[]] * processes
    told = "".join(path.read_text() for path in calm.glob("log.txt*"))
    assert "differ in the last bits" in told
    # Negative control: the comparison sees what another size does to the bits.
    if BACKEND == "torch":
        other = lab.job_ends(copy_of(lab, folder), first, epochs=3, **every, **own)
        same = lab.job_ends(folder, processes, epochs=3, **options)
        assert different_values(other[0], same[0])


@pytest.mark.backend("jax")
def test_snapshots_of_a_job_give_the_average_that_those_of_one_process_give(lab):
    # Both cut the weights over two devices. On PyTorch the network's BatchNorm sees
    # other samples with another number of processes.
    options = {"averages": "all rules", "mesh": [1, 2], "job": True, **CUT}
    options |= {"epochs": 1, "every": 4, "samples": 92}
    made = []
    for processes in (2, 1):
        folder = lab.new_folder()
        lab.job_ends(folder, processes, **options)
        parts = list(folder.glob("commits/averages-part-*-of-2-*"))
        assert len(parts) == (6 if processes == 2 else 0)
        for width in (0.07, 0.09):
            model = synthesize(folder / "commits", width, model=build(options)).model
            made.append([keras.ops.convert_to_numpy(each) for each in model.weights])
    one, other, same_as_one, same_as_other = map(bytes_of, made)
    assert (one, other) == (same_as_one, same_as_other)
    assert one != other


def bytes_of(arrays):
    return [array.tobytes() for array in arrays]


def copy_of(lab, folder):
    copy = lab.new_folder()
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    return copy


def different_values(ends, before):
    """Names of variables with another bit; processes count for nothing."""
    names = [name for name in before if name.startswith(("variable", "history"))]
    return [name for name in names if ends[name].tobytes() != before[name].tobytes()]


def end_one(lab, folder, rank, options):
    """Run a job of which one process has another end; return both exit codes."""
    shared = {k: v for k, v in options.items() if not k.startswith("die")}
    own = {k: v for k, v in options.items() if k.startswith("die")}
    # Grace: what another process does about it by itself must be seen.
    request = {"processes": 2, "ranks": {rank: own}, "grace": 2.0, **shared}
    return lab.run(folder, **request)["code"]


@pytest.mark.backend("torch")
def test_what_stops_one_process_of_a_job_is_told_in_all(lab):
    folder = lab.new_folder()
    lab.job_ends(folder, 2, epochs=1)
    # Another order of the data in process 1: another program.
    other = {"processes": 2, "ranks": {"1": {"order": 6}}, "grace": 5.0}
    assert lab.run(folder, epochs=2, **other)["code"] == [1, 1]
    told = lab.log(folder)
    assert "RuntimeError: Process 1 of the 2 in this job failed" in told
    assert "data.seed: 5 in the commit, 6 here" in told
    # Clocks differ, so commits by the clock are refused.
    by_time = {"processes": 2, "every": "10 minutes", "grace": 5.0}
    assert lab.run(lab.new_folder(), **by_time)["code"] == [1, 1]


@pytest.mark.backend("torch")
def test_a_job_passes_over_a_commit_whose_part_is_missing_or_changed(lab):
    options = {"epochs": 1, "every": 4, "verbose": 1}
    folder = lab.new_folder()
    expected = lab.job_ends(folder, 2, **options)
    for rank, changed in ((0, True), (1, True), (1, False)):
        copy = copy_of(lab, folder)
        part = max(copy.glob(f"commits/part-*-{rank}-of-2-*"))
        content = bytearray(part.read_bytes())
        part.unlink()
        if changed:
            content[len(content) // 2] ^= 1
            part.write_bytes(content)
        assert differences(lab.job_ends(copy, 2, **options), expected) == [[], []]
        told = lab.log(copy)
        assert part.name in told
        assert "Using the one before it" in told
        assert "resuming in epoch 1, at step 8" in told
    for part in folder.glob("commits/part-*-1-of-2-*"):
        part.unlink()
    assert lab.run(folder, processes=2, grace=5.0, **options)["code"] == [1, 1]
    assert "None of the 2 commits" in lab.log(folder)


# BatchNorm's statistics: PyTorch has those of a rank's own samples.
OF_EACH_RANK = ["variable 4 0", "variable 5 0"]
