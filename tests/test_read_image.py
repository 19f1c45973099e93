"""`read_image`: pictures of digits of one's own, as MNIST's are made."""

import importlib

import numpy as np
import pytest
from PIL import Image

from fmkit.datasets import mnist
from fmkit.preprocessing import read_image

pytestmark = [pytest.mark.backend("torch"), pytest.mark.needs("PIL")]


def drawing(height=120, width=90, paper=255, ink=0, at=(30, 20)):
    """A 7 drawn with a thick pen, not in the middle of its paper."""
    grey = np.full((height, width), paper, np.uint8)
    top, left = at
    grey[top : top + 11, left : left + 40] = ink
    for row in range(60):
        middle = left + 36 - row * 2 // 5
        grey[top + row, middle - 4 : middle + 4] = ink
    return grey


def centre(picture):
    mass = picture.astype(float)
    places = np.arange(28)
    return tuple((mass.sum(1 - axis) * places).sum() / mass.sum() for axis in (0, 1))


EXPECTED = read_image(drawing())


def test_the_drawing_fills_20_pixels_and_its_mass_is_in_the_middle():
    assert EXPECTED.shape == (28, 28)
    assert EXPECTED.dtype == np.uint8
    assert (EXPECTED.max(), EXPECTED.min()) == (255, 0)
    rows, columns = (np.flatnonzero(EXPECTED.any(axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == 20
    assert 12 <= columns[-1] - columns[0] + 1 <= 15
    assert max(abs(place - 14) for place in centre(EXPECTED)) <= 0.5


@pytest.mark.parametrize(
    "other",
    [
        drawing(paper=0, ink=255),
        drawing(at=(5, 45)),
        drawing(paper=30, ink=200),
        drawing() / 255,
        drawing() < 128,
        drawing()[:, :, np.newaxis],
        np.repeat(drawing()[:, :, np.newaxis], 3, axis=2),
    ],
    ids=["light on dark", "moved", "grey", "floats", "booleans", "a channel", "colour"],
)
def test_it_does_not_matter_how_it_was_drawn(other):
    difference = np.abs(read_image(other).astype(int) - EXPECTED)
    assert difference.max() <= 3


def test_twice_the_size_is_the_same_picture():
    large = drawing().repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(read_image(large).astype(int) - EXPECTED).max() <= 6


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tiff"])
def test_files_of_each_kind(tmp_path, kind):
    grey = drawing(at=(31, 20))
    Image.fromarray(grey).save(tmp_path / f"seven.{kind}")
    difference = read_image(tmp_path / f"seven.{kind}").astype(int) - read_image(grey)
    assert np.abs(difference).max() <= (60 if kind == "jpg" else 3)


def test_what_is_transparent_is_paper(tmp_path):
    ink = np.zeros((120, 90, 4), np.uint8)
    ink[:, :, 3] = 255 - drawing()
    Image.fromarray(ink).save(tmp_path / "seven.png")
    for source in (tmp_path / "seven.png", ink):
        assert np.abs(read_image(source).astype(int) - EXPECTED).max() <= 3


def test_sixteen_bits(tmp_path):
    Image.fromarray(drawing().astype(np.uint16) * 257).save(tmp_path / "seven.png")
    found = read_image(tmp_path / "seven.png")
    assert np.abs(found.astype(int) - EXPECTED).max() <= 3


def test_digits_of_mnist_stay_what_they_are():
    # Each was made so; read_image makes it again from a larger picture of it.
    (x, _), _ = mnist.load_sample()
    large = x[:100].repeat(5, axis=1).repeat(5, axis=2)
    found = np.stack([read_image(image) for image in large]).astype(float)

    def apart(others):  # grey levels, on average
        return np.abs(found - others).mean(axis=(1, 2))

    assert (apart(x[:100]) < 6).mean() >= 0.9
    assert apart(x[1:101]).min() > 16  # the control: another digit
    # A pixel to the side is seen: the middle is where MNIST has it.
    assert (apart(np.roll(x[:100], 1, axis=2)) > 10).mean() > 0.9


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 28, 28), np.uint8), r"got the shape \(5, 28, 28\). Give one"),
        (np.zeros(784, np.uint8), r"got the shape \(784,\)"),
        (np.zeros((0, 28), np.uint8), r"got the shape \(0, 28\)"),
        (np.full((9, 9), np.nan), "none of them NaN"),
        (np.full((9, 9), 200.0), "values from 0 to 1"),
        (np.zeros((9, 9), np.int64), r"got int64. Type: array.astype"),
        (np.full((9, 9), 7, np.uint8), "shows nothing"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(ValueError, match=message):
        read_image(array)


def test_files_that_are_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("a seven")
    Image.fromarray(drawing()).save(tmp_path / "seven.png")
    whole = (tmp_path / "seven.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "cut.png"):
        with pytest.raises(ValueError, match=rf"{name} is no picture .* Save it again"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("most", [100, 8000])
def test_a_picture_with_too_many_pixels_is_refused(tmp_path, monkeypatch, most):
    # Of 10,800: more than twice the limit, or more than it.
    Image.fromarray(drawing()).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(ValueError, match="more pixels than Pillow takes for safe"):
        read_image(tmp_path / "large.png")


def test_without_pillow_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="PIL")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"needs PIL.* pip install pillow"):
        read_image(drawing())


def test_postscript_is_not_opened_whatever_its_name(tmp_path):
    # Pillow would give it to Ghostscript, which executes it.
    path = tmp_path / "seven.png"
    Image.new("L", (9, 9)).save(tmp_path / "seven.eps")
    path.write_bytes((tmp_path / "seven.eps").read_bytes())
    with Image.open(path) as opened:
        assert opened.format == "EPS"  # the control: Pillow itself knows it
    with pytest.raises(ValueError, match=r"seven.png is no picture"):
        read_image(path)
