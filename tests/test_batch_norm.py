"""update_batch_norm against NumPy in float64."""

import keras
import numpy as np
import pytest
from bits import array

from fmkit.evaluation import update_batch_norm

X = (np.random.default_rng(0).normal(size=(50, 3)) * [1, 10, 0.1] + [0, 5, -1]).astype(
    "float32"
)


def moments_match(layer, x, axes=(0,)):
    expected = x.astype("float64")
    np.testing.assert_allclose(
        array(layer.moving_mean), expected.mean(axes), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        array(layer.moving_variance), expected.var(axes), rtol=1e-4
    )


def model_of(*layers, shape=(3,)):
    return keras.Sequential([keras.Input(shape), *layers])


@pytest.mark.parametrize("batch_size", [50, 8, 1])
def test_the_statistics_are_the_datas_whatever_the_batches(batch_size):
    layer = keras.layers.BatchNormalization()
    update_batch_norm(model_of(layer), X, batch_size=batch_size)
    moments_match(layer, X)
    assert layer.momentum == 0.99


def test_an_image_has_one_statistic_for_each_channel():
    images = np.random.default_rng(1).normal(3, 2, (10, 4, 4, 2)).astype("float32")
    layer = keras.layers.BatchNormalization()
    update_batch_norm(model_of(layer, shape=(4, 4, 2)), images, batch_size=3)
    moments_match(layer, images, (0, 1, 2))


def test_layers_inside_layers_are_found():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def build(self, shape):
            self.norm.build(shape)

        def call(self, x, training=None):
            return self.norm(x, training=training)

    block = Block()
    update_batch_norm(model_of(block), X)
    moments_match(block.norm, X)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[index * 10 : index * 10 + 10], np.zeros(10)


@pytest.mark.parametrize(
    "data",
    [
        lambda: Batches(),
        lambda: [(X[:30], None), (X[30:], None)],
        lambda: iter([X[:30], X[30:]]),
        lambda: (X, np.zeros(50)),
    ],
    ids=["PyDataset", "list", "iterator", "arrays"],
)
def test_takes_every_kind_of_data(data):
    layer = keras.layers.BatchNormalization()
    update_batch_norm(model_of(layer), data())
    moments_match(layer, X)


@pytest.mark.backend("tensorflow")
def test_takes_a_dataset_and_so_many_steps_of_it():
    import tensorflow as tf

    layer = keras.layers.BatchNormalization()
    data = tf.data.Dataset.from_tensor_slices((X, X)).batch(10).repeat()
    update_batch_norm(model_of(layer), data, steps=3)
    moments_match(layer, X[:30])


def test_the_second_layer_sees_what_training_shows_it():
    first, second = (keras.layers.BatchNormalization() for _ in range(2))
    dense = keras.layers.Dense(2)
    update_batch_norm(model_of(first, dense, second), X)  # one batch
    x = X.astype("float64")
    normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.001)
    moments_match(second, (normal @ array(dense.kernel)).astype("float32"))


def test_nothing_else_of_the_model_changes():
    norm, frozen = (keras.layers.BatchNormalization() for _ in range(2))
    frozen.trainable = False
    model = model_of(keras.layers.Dense(3), frozen, keras.layers.Dropout(0.5), norm)
    statistics = {id(norm.moving_mean), id(norm.moving_variance)}
    others = [v for v in model.variables if id(v) not in statistics]
    before = [array(v).tobytes() for v in others]
    assert len(others) == 9  # a seed among them
    update_batch_norm(model, X)
    assert [array(v).tobytes() for v in others] == before
    assert not np.allclose(array(norm.moving_variance), 1)


def test_the_old_statistics_are_back_after_an_exception():
    layer = keras.layers.BatchNormalization()
    model = model_of(layer)
    layer.moving_mean.assign([2, 2, 2])

    def data():
        yield X
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        update_batch_norm(model, data())
    assert array(layer.moving_mean).tolist() == [2, 2, 2]
    assert array(layer.moving_variance).tolist() == [1, 1, 1]
    assert layer.momentum == 0.99


def test_old_statistics_that_are_not_finite_leave_no_trace():
    layer = keras.layers.BatchNormalization()
    model = model_of(layer)
    layer.moving_mean.assign([np.nan, np.inf, 1e38])
    update_batch_norm(model, X)
    moments_match(layer, X)


def test_no_data_is_refused():
    model = model_of(keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match="held no batch"):
        update_batch_norm(model, iter([]))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        update_batch_norm(model, X, batch_size=0)


def test_a_model_without_such_layers_is_left_alone():
    update_batch_norm(model_of(keras.layers.Dense(1)), X)
