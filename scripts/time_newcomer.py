"""Time and weigh a newcomer's way: `git clone`, one command, the first figure.

make newcomer

Then the same packages once more, step by step: what of the set-up is download, what
unpacking, and what would be compiling, which is left to the first import.
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
        parts = parts_of_setup(clone)
    for what, seconds in (
        ("clone", cloned - start),
        ("set up", ready - cloned),
        ("train, judge, draw", done - ready),
        ("in all, to the first figure", done - start),
        *parts.items(),
    ):
        print(f"{seconds:6.1f} s  {what}")
    print(f"{megabytes:6,} MB  the environment, pip included")


def parts_of_setup(clone: Path) -> dict[str, float]:
    """Set up again in a second environment; return the seconds of each part."""
    wheels, folder = clone / "wheels", clone / ".venv2"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
    pins = ["-c", "tests/constraints/develop.txt"]
    seconds = {}
    for what, command in {
        "of it download": [*pip, "wheel", "--no-cache-dir", "-w", wheels, *pins, "."],
        "of it unpacking": [
            *pip,
            *["install", "--no-index", "--no-compile", "-f", wheels, "fmkit"],
        ],
        "not in it: compiling all": [python, "-m", "compileall", "-q", folder],
    }.items():
        began = time.perf_counter()
        done = subprocess.run(command, cwd=clone, stderr=subprocess.DEVNULL)
        # Some packages hold files for another Python, which can't be compiled.
        if done.returncode and "compileall" not in command:
            raise SystemExit(f"{what}: {command} failed.")
        seconds[what] = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    main()
