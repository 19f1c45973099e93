"""The full Fashion-MNIST, where it is at hand.

On a machine without it this file has no tests. On CI (the variable `CI`) they are
always there, and fail if the set is not: `apt-get install dataset-fashion-mnist`.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from fmkit import preprocess
from fmkit.datasets import fashion_mnist

pytestmark = pytest.mark.backend("torch")

SOURCE = fashion_mnist.find()


@pytest.fixture(scope="module")
def source():
    assert SOURCE, "CI must have the full set: apt-get install dataset-fashion-mnist"
    return SOURCE


@pytest.fixture(scope="module")
def full(source):
    return fashion_mnist.load_data()


class TestTheFullSet:
    __test__ = SOURCE is not None or "CI" in os.environ

    def test_the_full_set_is_what_the_files_hold(self, source, full):
        # Read here as Keras reads it: no checks, everything after the header.
        names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3")
        arrays = [array for split in full for array in split]
        names = (*names, "t10k-labels-idx1")
        for name, array in zip(names, arrays, strict=True):
            with gzip.open(source / f"{name}-ubyte.gz") as file:
                content = np.frombuffer(file.read(), np.uint8)
            np.testing.assert_array_equal(array.ravel(), content[-array.size :])
            assert len(content) - array.size == 4 + 4 * array.ndim
            assert array.dtype == np.uint8

    def test_the_full_set_has_the_published_counts(self, full):
        (x_train, y_train), (x_test, y_test) = full
        assert x_train.shape == (60_000, 28, 28)
        assert x_test.shape == (10_000, 28, 28)
        assert np.bincount(y_train).tolist() == [6000] * 10
        assert np.bincount(y_test).tolist() == [1000] * 10
        # Mean and standard deviation of the training pixels, known from the literature.
        pixels = x_train / np.float32(255)
        assert round(float(pixels.mean(dtype=float)), 4) == 0.2860
        assert round(float(pixels.std(dtype=float)), 4) == 0.3530

    def test_the_sample_is_remade_to_the_byte(self, source, tmp_path, program):
        script = program("scripts/make_sample.py")
        for made in script.make_sample(source, tmp_path):
            folder = Path(fashion_mnist.__file__).parent / "_sample" / "fashion_mnist"
            shipped = folder / made.name
            assert made.read_bytes() == shipped.read_bytes()

    def test_the_copy_of_the_full_set_is_equal_to_it(self, full, tmp_path):
        for _ in range(2):
            copy = fashion_mnist.load_data(cache=tmp_path)
            for split, expected in zip(copy, full, strict=True):
                np.testing.assert_array_equal(split[0], expected[0])
                np.testing.assert_array_equal(split[1], expected[1])

    @pytest.mark.long
    def test_preprocess_equals_the_tutorials_map_on_every_image(self, full):
        import tensorflow as tf

        def tutorial(x, y):
            return tf.cast(x, tf.float32) / 255.0, tf.cast(y, tf.int32)

        for images, labels in full:
            samples = tf.data.Dataset.from_tensor_slices((images, labels))
            theirs = samples.map(tutorial).batch(5000).as_numpy_iterator()
            for number, (x, y) in enumerate(theirs):
                block = slice(5000 * number, 5000 * (number + 1))
                ours = preprocess(images[block], labels[block])
                np.testing.assert_array_equal(ours[0], x, strict=True)
                np.testing.assert_array_equal(ours[1], y, strict=True)
            assert block.stop == len(labels)
