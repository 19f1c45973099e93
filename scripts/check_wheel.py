"""Build the wheel, look inside, and use it in an empty virtual environment.

Run it as `make wheel-check`. It fails if the wheel holds anything but the package and
its bundled sample, if its metadata has a ceiling that would change what people have, or
if `from fmkit import callbacks` doesn't work where only the wheel was installed.
"""

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 5_000_000  # bytes; the samples are allowed 4 MB of them
RANGE = re.compile(r"^Requires-Dist: ([\w-]+)([^;\n]*)", re.MULTILINE)
# What people have already; the other extras are tools.
PEOPLES = {"keras", "keras-tuner", "matplotlib", "numpy", "tensorflow", "jax", "torch"}
FLOOR = re.compile(r">=[\d.]+\s*")
BELOW_4 = re.compile(r"<4,>=[\d.]+")

PROGRAM = """
import importlib.resources, fmkit
from fmkit import callbacks, datasets
assert "site-packages" in fmkit.__file__, fmkit.__file__
assert importlib.resources.files("fmkit").joinpath("py.typed").is_file()
(x, y), (x_test, y_test) = datasets.fashion_mnist.load_sample()
assert x.shape == (6000, 28, 28) and x_test.shape == (1000, 28, 28)
assert callbacks.ThresholdStopping("loss", 0.4).condition.monitors == ("loss",)
print("fmkit", fmkit.__version__, "works from the wheel")
"""


def build(folder: Path) -> Path:
    """Build the wheel from the source distribution into `folder`; return its path."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def ceilings(metadata: str) -> list[str]:
    """Return the ranges that have more than a floor; Keras may end below 4."""
    return [
        f"{name}{range_}"
        for name, range_ in RANGE.findall(metadata)
        if name in PEOPLES
        and not FLOOR.fullmatch(range_)
        and not (name == "keras" and BELOW_4.fullmatch(range_))
    ]


def look_inside(wheel: Path) -> None:
    """Refuse a wheel that holds too much, or lacks what it must hold."""
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    if closed := ceilings(archive.read(metadata).decode("utf-8")):
        raise SystemExit(f"{wheel.name} has ceilings: {closed}.")
    strangers = [
        name for name in names if not name.startswith(("fmkit/", "fmkit-"))
    ] + [name for name in names if "test" in Path(name).stem and name.endswith(".py")]
    if strangers:
        raise SystemExit(f"{wheel.name} holds what doesn't belong there: {strangers}")
    if wheel.stat().st_size > LARGEST:
        raise SystemExit(f"{wheel.name} has {wheel.stat().st_size} bytes; > {LARGEST}.")
    for wanted in ("fmkit/py.typed", "fmkit/datasets/_sample/mnist/LICENSE"):
        if wanted not in names:
            raise SystemExit(f"{wheel.name} lacks {wanted}.")


def main() -> None:
    """Build, look, install, use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        look_inside(wheel)
        venv.create(folder / "empty", with_pip=True)
        bin_folder = (
            folder / "empty" / ("Scripts" if sys.platform == "win32" else "bin")
        )
        python = bin_folder / "python"
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                wheel,
            ],
            check=True,
        )
        subprocess.run([python, "-c", PROGRAM], check=True, cwd=folder)


if __name__ == "__main__":
    main()
