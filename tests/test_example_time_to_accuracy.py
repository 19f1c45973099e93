"""`examples/time_to_accuracy.py`, on the images that come with fmkit."""

import dataclasses

import keras
import numpy as np
import pytest

# An example, whose parts have tests on every backend.
pytestmark = pytest.mark.backend("tensorflow", "torch")


@pytest.fixture
def lesson(example):
    return example("time_to_accuracy")


@pytest.mark.long
def test_a_recipe_learns_and_judges_what_it_was_not_trained_on(lesson):
    accuracy, seconds = lesson.main("short", epochs=12)
    assert accuracy > 0.7
    assert seconds > 0
    # Negative control: hardly trained, it is hardly right.
    assert lesson.main("short", epochs=1)[0] < accuracy


def test_every_recipe_has_the_network_it_names(lesson):
    counts = {
        name: lesson.build(name, seed=0).count_params()
        for name in lesson.RECIPES
        if name != "dense"
    }
    assert counts["three_strided"] == 66_698
    assert counts["residual_36"] == 78_426
    assert counts["mirrored"] == counts["three_strided"]
    assert counts["moved"] <= 100_000
    assert counts["wide"] <= 300_000
    assert counts["residual_8"] == counts["residual_16"] == counts["residual_36"]


def test_the_residual_network_judges_both_sides_of_an_image(lesson):
    images = np.random.RandomState(0).rand(3, 28, 28, 1).astype("float32")
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    model = lesson.residual(seed=0)
    judge = lesson.both_sides(model)

    def logits(of, x):
        return keras.ops.convert_to_numpy(of(x, training=False))

    np.testing.assert_allclose(
        logits(judge, images), logits(judge, mirrored), rtol=1e-4, atol=1e-5
    )
    # Negative control: the network itself sees a difference.
    assert np.abs(logits(model, images) - logits(model, mirrored)).max() > 1e-3


def test_moved_images_are_judged_with_the_image_itself(lesson):
    images = np.random.RandomState(0).rand(3, 28, 28, 1).astype("float32")
    model = lesson.build("moved", seed=0)

    def logits(of, x):
        return keras.ops.convert_to_numpy(of(np.ascontiguousarray(x), training=False))

    around = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    steps = [(1, 1), (1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    views = [logits(model, around[:, i : i + 28, j : j + 28]) for i, j in steps]
    judged = logits(lesson.moved(model), images)
    np.testing.assert_allclose(judged, np.mean(views, axis=0), rtol=1e-3, atol=1e-4)
    # Negative control: the network itself sees a difference.
    assert np.abs(judged - views[0]).max() > 1e-2


@pytest.mark.long
@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    ("name", "rate", "epochs"),
    [
        ("residual_36", 0.05, 3),
        ("mirrored", 0.01, 8),
        ("moved", 0.1, 8),
        ("wide", 0.1, 8),
    ],
)
def test_a_recipe_of_mirrored_images_runs_to_its_end(
    lesson, monkeypatch, name, rate, epochs
):
    # Smaller batches: few images come with fmkit, and BatchNorm needs its steps.
    small = dataclasses.replace(lesson.RECIPES[name], batch_size=32, rate=rate)
    monkeypatch.setitem(lesson.RECIPES, name, small)
    assert lesson.main(name, epochs=epochs)[0] > 0.7
