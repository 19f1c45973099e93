"""Real processes, real SIGKILL: what a killed training ends with, bit for bit."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
COMMITTING = ("every", "background")
SERVER = Path(__file__).parent / "chaos" / "server.py"


class Lab:
    """Runs trainers through the fork server, and knows how they end unkilled."""

    def __init__(self, folder):
        self.folder = folder
        self.number = 0
        self.references = {}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        greeting = json.loads(self.process.stdout.readline())
        assert greeting["backend"] == BACKEND

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def new_folder(self):
        self.number += 1
        folder = self.folder / f"run{self.number}"
        folder.mkdir()
        return folder

    def run(self, folder, **request):
        """One process from start to death: its exit code, negative for a signal."""
        request |= {"folder": str(folder), "log": str(folder / "log.txt")}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self, folder, **request):
        """Run, and tell whether the process was killed before its end."""
        code = self.run(folder, **request)["code"]
        assert code in (0, -signal.SIGKILL), self.log(folder)
        return code != 0

    def ends(self, folder, **options):
        """Run to the end; return what it ends with."""
        code = self.run(folder, **options)["code"]
        assert code == 0, self.log(folder)
        with np.load(folder / "ends.npz") as ends:
            return dict(ends)

    def log(self, folder):
        return (folder / "log.txt").read_text()[-4000:]

    def reference(self, **options):
        """What the never-killed run ends with, and how long it takes."""
        # How often it commits must not matter: one reference for all.
        options = {k: v for k, v in options.items() if k not in COMMITTING}
        key = json.dumps(options, sort_keys=True)
        if key not in self.references:
            folder = self.new_folder()
            seconds = self.run(folder, every=10**9, **options)["seconds"]
            with np.load(folder / "ends.npz") as ends:
                self.references[key] = dict(ends), seconds
        return self.references[key]

    def differences(self, folder, **options):
        """Names of the arrays that differ in any bit from the never-killed run."""
        expected, _ = self.reference(**options)
        ends = self.ends(folder, **options)
        assert ends.keys() == expected.keys()
        return [
            name
            for name, value in expected.items()
            if value.tobytes() != ends[name].tobytes()
            or value.dtype != ends[name].dtype
        ]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("chaos"))
    yield lab
    lab.close()


def kill_at_random(lab, rng, folder, **options):
    """At a random moment, at a random step, or between two system calls."""
    _, seconds = lab.reference(**options)
    way = rng.randrange(3)
    if way == 0:
        # Not during start-up, where nothing can be lost.
        options["kill_after"] = seconds * rng.uniform(0.4, 1.0)
    elif way == 1:
        options["die_after"] = rng.randrange(1, 20)
    else:
        options["fault"] = rng.randrange(1, 400)
    return lab.kill(folder, **options)


TRIALS = {
    # kills in a row, options of the program: 27, 8 and 12 kills
    "tensorflow": [
        (6, {"every": 5}),
        (6, {"every": 1, "background": False}),
        (5, {"every": 3}),
        (4, {"every": 5, "steps_per_execution": 5, "jit_compile": True}),
        (2, {"every": 5, "dtype": "mixed_float16", "ema": False}),
        (2, {"every": 5, "built": False, "patience": 1}),
        (2, {"every": 5, "devices": 2}),
    ],
    "jax": [
        (4, {"every": 3}),
        (2, {"every": 5, "steps_per_execution": 5}),
        (2, {"every": 5, "devices": 2, "built": False, "ema": False}),
    ],
    "torch": [
        (5, {"every": 5}),
        (5, {"every": 1, "background": False}),
        (2, {"every": 5, "dtype": "mixed_bfloat16", "built": False}),
    ],
}


@pytest.mark.parametrize(("kills", "options"), TRIALS[BACKEND])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(lab, kills, options):
    rng = random.Random(f"{BACKEND} {kills} {options}")
    for _ in range(5):
        folder = lab.new_folder()
        while kills and kill_at_random(lab, rng, folder, **options):
            kills -= 1
        assert lab.differences(folder, **options) == []
        # A kill that came after the end of a run is made up for by another run.
        if not kills:
            return
    pytest.fail(f"{kills} kills came too late in five runs: run on an idle machine.")


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
