"""Time and weigh a newcomer's way: `git clone`, one command, the first figure.

make newcomer
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from matrix import size

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Walk the way in an empty folder; print the seconds of each part and the MB."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "fmkit"
        start = time.perf_counter()
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        cloned = time.perf_counter()
        make = ["make", "-s", f"PYTHON={sys.executable}"]
        subprocess.run([*make, ".venv/run.stamp"], check=True, cwd=clone)
        ready = time.perf_counter()
        subprocess.run(
            [*make, "quickstart"], check=True, cwd=clone, stdout=subprocess.DEVNULL
        )
        done = time.perf_counter()
        figures = sorted((clone / "outputs").glob("*.png"))
        if not figures:
            raise SystemExit("`make quickstart` drew no figure.")
        megabytes = size(clone / ".venv")
    for what, seconds in (
        ("clone", cloned - start),
        ("set up", ready - cloned),
        ("train, judge, draw", done - ready),
        ("in all, to the first figure", done - start),
    ):
        print(f"{seconds:6.1f} s  {what}")
    print(f"{megabytes:6,} MB  the environment, pip included")


if __name__ == "__main__":
    main()
