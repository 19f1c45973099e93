"""All that must hold before a release: `make release-check`.

Refuses Chinese pages that are missing or older than the English ones. Builds the source
distribution and the wheel, reads their metadata as an index would, finds the one
version everywhere, and on each Python given installs the wheel into an empty
environment and runs the README's program there. A program as users write them passes
mypy in strict mode against the installed package.

    python scripts/check_release.py [python3.11 python3.12 python3.13 python3.14]
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_wheel import PROGRAM, ROOT, build, look_inside
from translations import problems

BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)

USER_PROGRAM = '''
"""What users write, as a strict type checker sees it."""

import keras
import numpy as np

from fmkit import callbacks, data, losses, models, optimizers, schedules

x = np.zeros((8, 28, 28), "uint8")
y = np.zeros(8, "uint8")
batches: data.Batches = data.Batches(x, y, batch_size=4, seed=0)
rate = schedules.ExponentialDecay(0.1, decay_steps=10, decay_rate=0.99, staircase=True)
optimizer = optimizers.ExponentialMovingAverage(keras.optimizers.SGD(rate), decay=0.99)
loss = losses.CrossentropyFromLogits(label_smoothing=0.1)
model = models.mlp((16,), num_classes=10)
stop = callbacks.ThresholdStopping("loss", 0.4)
resume = callbacks.ExactResume("run", every=100)
model.compile(optimizer, loss)
model.fit(batches, epochs=1, callbacks=[stop, resume])
print(stop.stop)
'''


def one_version(metadata: Metadata) -> None:
    """Refuse a version that is told differently somewhere."""
    version = str(metadata.version)
    for name, pattern in (
        ("CHANGELOG.md", rf"^## {re.escape(version)} "),
        ("CITATION.cff", rf"^version: {re.escape(version)}$"),
        ("src/fmkit/__init__.py", rf'^__version__ = "{re.escape(version)}"$'),
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        if not re.search(pattern, text, re.MULTILINE):
            raise SystemExit(f"{name} does not name version {version}.")


def read_metadata(wheel: Path) -> Metadata:
    """Read the metadata strictly: what an index would refuse is an error."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        raw = archive.read(name)
    metadata = Metadata.from_email(raw, validate=True)
    if email.message_from_bytes(raw)["License-Expression"] != "Apache-2.0":
        raise SystemExit("The metadata does not name the licence Apache-2.0.")
    open_ranges = [
        str(need)
        for need in metadata.requires_dist or []
        if isinstance(need, Requirement) and not need.specifier
    ]
    if open_ranges:
        raise SystemExit(f"Requirements without a range: {open_ranges}")
    return metadata


def environment(python: str, folder: Path, wheel: Path) -> Path:
    """Install the wheel with JAX, and nothing else, into an empty environment."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, f"{wheel}[jax]"], check=True)
    return inside


def backend(python: Path) -> str:
    """Return TensorFlow, or JAX on a Python that TensorFlow has no release for."""
    code = "from importlib.util import find_spec; print(bool(find_spec('tensorflow')))"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return "tensorflow" if answer.stdout.strip() == "True" else "jax"


def try_on(python: str, folder: Path, wheel: Path) -> None:
    """Use the wheel on one Python: the import, and the README's program."""
    folder.mkdir()
    inside = environment(python, folder / "empty", wheel)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    settings = os.environ | {"KERAS_BACKEND": backend(inside)}
    for program in (PROGRAM, "\n".join(BLOCK.findall(readme))):
        subprocess.run(
            [inside, "-c", program],
            check=True,
            cwd=folder,
            env=settings,
            stdout=subprocess.DEVNULL,
        )
    user = folder / "user_program.py"
    user.write_text(USER_PROGRAM, encoding="utf-8")
    checker = [sys.executable, "-m", "mypy", "--strict", "--python-executable", inside]
    # Keras 3.15 ships no types: what comes from it is Any, and mypy may say so.
    options = ["--disable-error-code=import-untyped", "--no-warn-return-any"]
    subprocess.run([*checker, *options, user], check=True, cwd=folder)


def pythons(given: list[str], supported: SpecifierSet) -> list[str]:
    """Return the interpreters to try, and refuse to try none."""
    names = given or [f"python3.{minor}" for minor in range(9, 20)]
    found = []
    for name in names:
        path = shutil.which(name)
        if path is None and given:
            raise SystemExit(f"There is no interpreter {name}.")
        if path is None:
            continue
        code = "import platform; print(platform.python_version())"
        answer = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if answer.returncode == 0 and Version(answer.stdout.strip()) in supported:
            found.append(path)
    if not found:
        raise SystemExit(f"None of {names} is a Python that fmkit supports.")
    return found


def main() -> None:
    """Check all, and say what was checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pythons", nargs="*", help="interpreters; default: all there are"
    )
    given = parser.parse_args().pythons
    if outdated := problems():
        raise SystemExit("\n".join(outdated))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        look_inside(wheel)
        metadata = read_metadata(wheel)
        one_version(metadata)
        tried = pythons(given, metadata.requires_python or SpecifierSet())
        for index, python in enumerate(tried):
            try_on(python, folder / str(index), wheel)
    print(f"fmkit {metadata.version} is ready; tried on {', '.join(tried)}.")


if __name__ == "__main__":
    main()
