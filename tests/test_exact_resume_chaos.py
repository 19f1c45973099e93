"""Real processes, real SIGKILL: what a killed training ends with, bit for bit.

`tests/chaos/trainer.py` is the program, `tests/chaos/lab.py` kills it.
"""

import random
import sys
from pathlib import Path

import keras
import pytest

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
from lab import Lab, kill_and_compare

BACKEND = keras.backend.backend()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("chaos"))
    yield lab
    lab.close()


TRIALS = {
    # kills, options of the program: 25, 5 and 12 kills
    "tensorflow": [
        (7, {"every": 5}),
        (7, {"every": 1, "background": False}),
        (6, {"every": 3}),
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
        (5, {"every": 5}),
        (5, {"every": 1, "background": False}),
        (2, {"every": 4, "dtype": "mixed_bfloat16", "averages": True}),
    ],
}


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
