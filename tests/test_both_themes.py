"""Figures for dark pages: other colours, and the light figure as it was."""

import needs
import numpy as np
import pytest

needs.module("matplotlib")

from matplotlib import colors  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from fmkit.visualization import decision_boundary  # noqa: E402

pytestmark = pytest.mark.backend("torch")
# Neither is a colour of a line or a paper.
PIXELS = np.array([[[200, 30, 90], [20, 120, 40]]], np.uint8)


@pytest.fixture
def themes(program):
    return program("scripts/both_themes.py")


@pytest.fixture
def saved(themes, tmp_path):
    """Return a function that saves a figure, and reads what was written."""

    def save(figure, canvas=None):
        (canvas or themes.FigureCanvas)(figure)
        figure.savefig(tmp_path / "a.png", metadata={"Software": None})
        return {
            path.name: np.asarray(Image.open(path).convert("RGB")).astype(int)
            for path in sorted(tmp_path.glob("*.png"))
        }

    return save


def drawn():
    figure = Figure((3, 2))
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="black", marker="o", linewidth=4, label="black")
    left.scatter([0, 1], [1, 0], c=[0.0, 1.0])
    left.legend()
    left.text(0.5, 0.1, "boxed", bbox={"facecolor": "white"})
    right.imshow(PIXELS)
    return figure


def has(picture, colour):
    return (np.abs(picture - np.asarray(colour)).max(-1) == 0).any()


def rgb(colour):
    return np.round(255 * np.array(colors.to_rgb(colour)))


def test_a_figure_is_drawn_for_both_and_the_light_one_is_the_ordinary_one(
    themes, saved
):
    figure = drawn()
    ordinary = saved(figure, FigureCanvasAgg)
    assert list(ordinary) == ["a.png"]
    first, again = saved(figure), saved(figure)
    assert list(first) == ["a-dark.png", "a.png"]
    for found in (first, again):
        np.testing.assert_array_equal(found["a.png"], ordinary["a.png"])
    light, dark = first["a.png"], first["a-dark.png"]
    np.testing.assert_array_equal(light[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(dark[0, 0], rgb(themes.PAPER))
    assert has(dark, rgb(themes.INK))
    assert not has(dark, [0, 0, 0])
    assert not has(dark, [255, 255, 255])
    for picture in (light, dark):  # what a figure shows is no part of its theme
        assert all(has(picture, pixel) for pixel in PIXELS[0])


def test_a_boundary_is_drawn_in_ink_on_both(themes, saved):
    points = np.array([[-1.0, 0.0], [1.0, 0.0]])
    ax = decision_boundary(lambda x: x[:, 0] + 0.5, points, [0, 1])
    ax.get_legend().remove()
    found = saved(ax.figure)
    # A vertical line through the middle, beside an area that lets the paper through.
    for name, paper, ink in (
        ("a.png", "white", "black"),
        ("a-dark.png", themes.PAPER, themes.INK),
    ):
        height, width, _ = found[name].shape
        row = found[name][height // 2, width // 4 : -width // 4]
        assert has(row, rgb(ink)), name
        distance = np.abs(row - rgb(paper)).sum(-1)
        assert ((distance > 0) & (distance < 150)).sum() > 20, name


def test_colours_keep_their_hue_and_become_light_enough(themes):
    np.testing.assert_allclose(themes.dark("black")[:3], colors.to_rgb(themes.INK))
    np.testing.assert_allclose(themes.dark("white")[:3], colors.to_rgb(themes.PAPER))
    assert themes.dark((0.0, 0.0, 0.0, 0.25))[3] == 0.25
    blue = themes.dark("#0072B2")
    assert contrast(blue, themes.PAPER) > 4.5 > contrast("#0072B2", themes.PAPER)
    assert np.argmax(blue[:3]) == 2
    yellow = "#F0E442"
    np.testing.assert_allclose(themes.dark(yellow)[:3], colors.to_rgb(yellow))


def contrast(one, other):
    """Return WCAG's ratio of two colours' luminances."""

    def luminance(colour):
        part = np.array(colors.to_rgb(colour))
        linear = np.where(
            part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)
