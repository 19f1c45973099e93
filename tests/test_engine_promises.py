"""What the page says of the engines' own checkpoints is what a program finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.backend("jax"),
    pytest.mark.needs("orbax", "torch"),
]

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_has_the_table_that_the_program_prints():
    # An engine that gets better is noticed here. The first column is the control: what
    # is tried on the others is tried on a commit, too.
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "engine_promises.py"],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    table, counts = done.stdout.split("\n\n")
    page = (ROOT / "docs" / "guides" / "scaling.md").read_text(encoding="utf-8")
    assert f"\n\n{table}\n\n" in page, done.stdout
    # It would notice: instants before and after the rename were read, in both.
    own, orbax, _ = counts.splitlines()
    assert all(f"'{state}': " in line for line in (own, orbax) for state in (1, 2))
