"""The toy sets, against the tables the tutorials print and another generator.

The oracle is CPython's Mersenne Twister, started the way NumPy's legacy seeding
starts it, with the polar method for normal deviates written out here.
"""

import math
import random

import numpy as np
import pytest

from fmkit.datasets import toy

pytestmark = pytest.mark.backend("torch")


def twister(seed):
    """Return CPython's generator in the state of NumPy's `RandomState(seed)`."""
    state = [seed]
    for k in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + k) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    return generator


def normals(generator):
    """Yield normal deviates by Marsaglia's polar method, the second of a pair first."""
    while True:
        u, v = 2 * generator.random() - 1, 2 * generator.random() - 1
        r = u * u + v * v
        if 0 < r < 1:
            scale = math.sqrt(-2 * math.log(r) / r)
            yield scale * v
            yield scale * u


@pytest.mark.parametrize("seed", [23455, 0, 7])
def test_half_plane_labels_points_below_the_line(seed):
    generator = twister(seed)
    points = [(generator.random(), generator.random()) for _ in range(32)]
    x, y = toy.half_plane(seed=seed)
    np.testing.assert_array_equal(x, np.array(points, np.float32))
    assert y[:, 0].tolist() == [int(x0 + x1 < 1) for x0, x1 in points]
    assert (x.dtype, y.dtype, x.shape, y.shape) == (
        "float32",
        "int32",
        (32, 2),
        (32, 1),
    )


def test_half_plane_is_the_table_of_the_tutorial():
    x, y = toy.half_plane()
    printed = [
        [0.83494319, 0.11482951],
        [0.66899751, 0.46594987],
        [0.60181666, 0.58838408],
        [0.31836656, 0.20502072],
        [0.87043944, 0.02679395],
    ]
    np.testing.assert_allclose(x[:5], printed, atol=5e-8)
    assert y[:5, 0].tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("seed", [23455, 234555])
def test_yogurt_sales_are_the_sum_and_the_noise_drawn_after_all_points(seed):
    generator = twister(seed)
    points = [(generator.random(), generator.random()) for _ in range(32)]
    sales = [x0 + x1 + (generator.random() / 10.0 - 0.05) for x0, x1 in points]
    x, y = toy.yogurt_sales(seed=seed)
    np.testing.assert_array_equal(x, np.array(points, np.float32))
    np.testing.assert_array_equal(y[:, 0], np.array(sales, np.float32))
    assert (y.dtype, y.shape) == ("float32", (32, 1))
    noise = y[:, 0] - x.sum(axis=1)
    assert 0.03 < np.abs(noise).max() < 0.0501


def test_circle_labels_normal_points_inside_squared_radius_two():
    deviates = normals(twister(2))
    points = [(next(deviates), next(deviates)) for _ in range(300)]
    x, y = toy.circle()
    np.testing.assert_allclose(x, points, rtol=3e-7)
    assert y[:, 0].tolist() == [int(x0 * x0 + x1 * x1 < 2) for x0, x1 in points]
    np.testing.assert_allclose(
        x[:2], [[-0.41675785, -0.05626683], [-2.1361961, 1.64027081]], atol=5e-8
    )
    # A normal pair lies inside with probability 1 - 1/e.
    assert abs(y.mean() - (1 - math.exp(-1))) < 0.1
    assert (x.dtype, y.dtype, x.shape, y.shape) == (
        "float32",
        "int32",
        (300, 2),
        (300, 1),
    )


@pytest.mark.parametrize("make", [toy.half_plane, toy.circle])
def test_fewer_points_are_the_first_ones(make):
    np.testing.assert_array_equal(make(5)[0], make()[0][:5])
    np.testing.assert_array_equal(make(5)[1], make()[1][:5])


@pytest.mark.parametrize("make", [toy.half_plane, toy.yogurt_sales, toy.circle])
def test_the_global_generator_is_neither_used_nor_moved(make):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = make()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(6)
    np.testing.assert_array_equal(first[0], make()[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "`n` must be at least 1, got n=0"),
        ({"n": 2.5}, TypeError, "`n` must be an integer, got n=2.5"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got seed=-1"),
        ({"seed": None}, TypeError, "`seed` must be an integer, got seed=None"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        toy.circle(**arguments)
