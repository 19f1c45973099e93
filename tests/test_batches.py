"""Batches: the order, the sharding, and what `fit` really trains on."""

import itertools
import threading

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS
from hypothesis import given, settings
from hypothesis import strategies as st

from fmkit._buffers import Buffers
from fmkit.data import Batches
from fmkit.data._order import SORT_LIMIT, Order, feistel, sorted_order
from fmkit.preprocessing import Preprocess

BACKEND = keras.backend.backend()


def numbers(n, width=3):
    """Row i holds i: what comes out tells which sample it was."""
    x = np.repeat(np.arange(n, dtype=np.float32)[:, None], width, axis=1)
    return x, np.arange(n, dtype=np.int32)


def labels_of(batches):
    return [batch[1].tolist() for batch in batches]


class Recorder(keras.layers.Layer):
    """Keeps the sum of the rows it was called on, weighted by the step number."""

    def build(self, shape):
        self.total = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.steps.assign(self.steps + 1.0)
            self.total.assign(self.total + self.steps * keras.ops.sum(x[:, 0]) / 1024.0)
        return x


def recording_model(**compile_arguments):
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(2)(Recorder(name="recorder")(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **compile_arguments,
    )
    return model


def expected_total(n, size, seed, epochs):
    """The Recorder's sum by hand, from the orders alone."""
    total, step = np.float32(0), 0
    for epoch in epochs:
        order = sorted_order(n, seed, epoch)
        for start in range(0, n, size):
            step += 1
            total += np.float32(step * order[start : start + size].sum() / 1024)
    return step, float(total)


# The order


def philox(seed, epoch, count):
    """Philox4x64-10 in Python integers, from Salmon et al. 2011."""
    mask = 2**64 - 1
    out = []
    for block in range(1, -(-count // 4) + 1):
        c, k = [block, 0, 0, 0], [seed, epoch]
        for _ in range(10):
            a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [
                (b >> 64) ^ c[1] ^ k[0],
                b & mask,
                (a >> 64) ^ c[3] ^ k[1],
                a & mask,
            ]
            k = [
                (k[0] + 0x9E3779B97F4A7C15) & mask,
                (k[1] + 0xBB67AE8584CAA73B) & mask,
            ]
        out += c
    return out[:count]


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**64 - 1, 10**6)])
def test_order_sorts_the_philox_stream_of_the_paper(seed, epoch):
    keys = philox(seed, epoch, 257)
    expected = sorted(range(257), key=lambda i: (keys[i], i))
    assert sorted_order(257, seed, epoch).tolist() == expected


@pytest.mark.backend("tensorflow")
def test_orders_are_the_ones_of_every_release():
    # Pinned: another Python, NumPy or platform that changed them shows here.
    assert sorted_order(12, 0, 0).tolist() == GOLDEN[0]
    assert sorted_order(12, 23455, 7).tolist() == GOLDEN[1]
    assert feistel(np.arange(12), 12, 0, 0).tolist() == GOLDEN[2]
    assert feistel(np.arange(6), 10**12, 5, 1).tolist() == GOLDEN[3]


GOLDEN = [
    [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7],
    [5, 0, 10, 6, 2, 9, 1, 7, 8, 4, 11, 3],
    [2, 3, 7, 10, 1, 0, 8, 9, 6, 5, 4, 11],
    [52379853555, 233141544817, 168790583376, 78137427217, 377131007782, 885203655046],
]


@pytest.mark.backend("tensorflow")
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 700),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**40),
    limit=st.sampled_from([0, SORT_LIMIT]),
)
def test_every_epoch_is_a_permutation(n, seed, epoch, limit):
    order = Order(n, seed, shuffle=True, sort_limit=limit)
    taken = order.take(epoch, np.arange(n))
    assert sorted(taken.tolist()) == list(range(n))
    # Any part of it is the same part of the whole.
    assert order.take(epoch, np.arange(n // 3, n)).tolist() == taken[n // 3 :].tolist()


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("limit", [0, SORT_LIMIT], ids=["cipher", "sort"])
def test_shuffle_is_uniform_and_complete(limit):
    n, epochs = 20, 4000
    order = Order(n, 3, shuffle=True, sort_limit=limit)
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), order.take(epoch, np.arange(n))] += 1
    chi2 = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    # 19 * 19 degrees of freedom: mean 361, standard deviation 27.
    assert 361 - 5 * 27 < chi2 < 361 + 5 * 27
    # A full shuffle of n moves a sample by n/3 places on average.
    moved = np.abs(
        Order(60000, 3, shuffle=True, sort_limit=limit).take(0, np.arange(60000))
        - np.arange(60000)
    ).mean()
    assert abs(moved - 20000) < 200


def blocks_against_places(places, size, cells=32):
    """Chi-square of (where a sample stood, where it stands), on a coarse grid.

    Its mean is cells^2 for independent ones, with a standard deviation of 1.4 cells.
    """
    at = np.arange(len(places)) * cells // len(places)
    counts = np.bincount(at * cells + places * cells // size, minlength=cells**2)
    return ((counts - len(places) / cells**2) ** 2).sum() * cells**2 / len(places)


@pytest.mark.backend("tensorflow")
def test_enciphered_orders_look_independent_of_place_neighbour_and_epoch():
    n, cells = SORT_LIMIT + 12_345, 32
    order, count = Order(n, 7, shuffle=True), 200_000
    first = np.arange(count)
    blocks = [order.take(epoch, first) for epoch in (0, 1)]
    for found in (
        blocks_against_places(blocks[0], n, cells),
        # The next one's place, given this one's; the same place an epoch later.
        blocks_against_places(blocks[0][1:][np.argsort(blocks[0][:-1])], n, cells),
        blocks_against_places(blocks[1][np.argsort(blocks[0])], n, cells),
    ):
        assert abs(found - cells**2) < 6 * 1.4 * cells
    # Negative control: a stride over the samples, which is a permutation too.
    stride = (first * 1_000_003) % n
    neighbour = stride[1:][np.argsort(stride[:-1])]
    assert blocks_against_places(neighbour, n, cells) > 10 * cells**2


@pytest.mark.backend("tensorflow")
def test_order_of_a_hundred_million_samples_needs_no_memory_for_the_rest():
    import tracemalloc

    n = 100_000_000
    order = Order(n, 1, shuffle=True)
    tracemalloc.start()
    middle = order.take(5, np.arange(n // 2, n // 2 + 2048))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(middle.tolist())) == 2048
    assert middle.min() >= 0
    assert middle.max() < n
    assert peak < 2**20
    # The permutation itself would take 800 MB: the control that peak is seen.
    tracemalloc.start()
    sorted_order(2**18, 1, 5)
    assert tracemalloc.get_traced_memory()[1] > 2**20
    tracemalloc.stop()


# The stream


def test_seek_equals_skipping():
    x, y = numbers(50)
    batches = Batches(x, y, batch_size=8, seed=5, map=None)
    epochs = [labels_of(batches) for _ in range(3)]
    assert batches.position == (3, 0)
    for epoch in range(3):
        for step in range(len(batches)):
            batches.seek(epoch, step)
            assert labels_of(batches) == epochs[epoch][step:]
    assert len({str(epoch) for epoch in epochs}) == 3
    batches.seek(2)
    assert batches.order(2).tolist() == [
        label for batch in epochs[2] for label in batch
    ]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300),
    size=st.integers(1, 90),
    count=st.integers(1, 4),
    drop=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_shards_see_each_sample_once_and_step_alike(n, size, count, drop, epoch):
    x, y = numbers(n, 1)

    def shards():
        return [
            Batches(x, y, size, map=None, drop_remainder=drop, shard=(i, count))
            for i in range(count)
        ]

    tail = n % (size * count)
    if (drop and n < size * count) or (not drop and 0 < tail < count):
        with pytest.raises(ValueError, match="batch"):
            shards()
        return
    streams = []
    for shard in shards():
        shard.seek(epoch)
        streams.append(labels_of(shard))
    assert len({len(stream) for stream in streams}) == 1
    # The shards' batches of a step, put together, are the global batch.
    whole = Batches(x, y, size * count, map=None, drop_remainder=drop)
    whole.seek(epoch)
    together = [list(itertools.chain(*parts)) for parts in zip(*streams, strict=True)]
    assert together == labels_of(whole)


def test_partial_batch_is_kept_or_dropped():
    x, y = numbers(10)
    kept = Batches(x, y, batch_size=4, map=None)
    assert [len(part) for part in labels_of(kept)] == [4, 4, 2]
    assert (len(kept), kept.has_partial_batch, kept.partial_batch_size) == (3, True, 2)
    dropped = Batches(x, y, batch_size=4, map=None, drop_remainder=True)
    assert [len(part) for part in labels_of(dropped)] == [4, 4]
    assert (len(dropped), dropped.partial_batch_size) == (2, None)
    assert len(Batches(x, y, batch_size=64, map=None)) == 1


def test_default_map_scales_images_bit_for_bit_as_one_division_each():
    x = np.arange(256, dtype=np.uint8).repeat(4).reshape(256, 2, 2)
    y = np.arange(256, dtype=np.uint8)
    ((images, labels),) = Batches(x, y, batch_size=256, shuffle=False)
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    expected = [np.float32(i) / np.float32(255) for i in range(256)]
    assert images[:, 0, 0].tolist() == expected
    # Negative control: a product with 1/255 differs in some of the 256 values.
    assert (x[:, 0, 0] * np.float32(1 / 255)).tolist() != expected


def test_a_label_outside_the_classes_is_refused_before_a_step_is_taken():
    x, y = numbers(6)
    one_hot = Preprocess(sample_rank=1, num_classes=6)
    rows = [labels for _, labels in Batches(x, y, 4, map=one_hot, shuffle=False)]
    np.testing.assert_array_equal(np.concatenate(rows), np.eye(6, dtype=np.float32))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    model.compile("sgd", "mse")
    outside = Batches(x, y, 4, map=Preprocess(sample_rank=1, num_classes=5))
    with pytest.raises(Exception, match=r"Labels must lie in 0 \.\. 4"):
        model.fit(outside, verbose=0)


def test_structures_weights_and_maps_of_one_argument():
    x, y = numbers(7)
    batches = Batches(
        {"a": x, "b": (y, x)},
        y,
        batch_size=3,
        map=lambda x, y: ({"a": x["a"] * 2, "b": x["b"]}, y),
        sample_weight=y / 2,
    )
    for inputs, labels, weight in batches:
        assert inputs["a"][:, 0].tolist() == (2 * labels).tolist()
        assert inputs["b"][0].tolist() == labels.tolist()
        assert weight.tolist() == (labels / 2).tolist()
    alone = Batches(x, batch_size=3, map=lambda x: x + 1, shuffle=False)
    assert np.concatenate(list(alone))[:, 1].tolist() == list(range(1, 8))
    # The default map takes labels; without any, only its first result counts.
    scaled = Batches(x * 255, batch_size=3, shuffle=False)
    assert np.concatenate(list(scaled))[:, 0].tolist() == list(range(7))


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.zeros(4)}, "same number of samples, got x: 5, y: 4"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "at least one sample"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"batch_size": 6, "drop_remainder": True}, "leaves no batch"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"seed": 2**64}, "below 2\\*\\*64"),
        ({"shard": (2, 2)}, "index below count"),
        ({"shard": 1}, "pair"),
        ({"batch_size": 2, "shard": (0, 2)}, "empty batch"),
        ({"sample_weight": np.ones(5), "class_weight": {0: 2}}, "same time"),
        ({"map": lambda x: x}, "`map` must take"),
        ({"class_weight": {}}, "dict from class to weight"),
        ({"y": None, "sample_weight": np.ones(5)}, "needs labels"),
    ],
)
def test_wrong_arguments_are_refused_with_the_rule(arguments, message):
    good = {"x": np.zeros((5, 2)), "y": np.zeros(5), "batch_size": 2}
    Batches(**good)
    with pytest.raises(ValueError, match=message):
        Batches(**{**good, **arguments})


def test_other_wrong_things_are_refused():
    x, y = numbers(10)
    batches = Batches(x, y, batch_size=4, map=None)
    with pytest.raises(ValueError, match="below 3"):
        batches.seek(0, 3)
    with pytest.raises(TypeError, match="must be a function"):
        Batches(x, y, map="scale")
    with pytest.raises(TypeError, match="samples in its first axis"):
        Batches(x, 3)
    with pytest.raises(ValueError, match=r"must return a pair"):
        list(Batches(x, y, map=lambda x, y: x))


def test_arrays_on_disk_stay_there(tmp_path):
    # 64 MB on disk, read in batches under a ceiling of 8 MB of new memory.
    import tracemalloc

    path = tmp_path / "x.npy"
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (64, 1024, 1024))
    array[:, 0, 0] = np.arange(64)
    array.flush()
    x = np.load(path, mmap_mode="r")
    tracemalloc.start()
    batches = Batches(x, np.arange(64), batch_size=2, map=None)
    for images, labels in batches:
        assert images[:, 0, 0].tolist() == labels.tolist()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


# In fit, evaluate and predict


@pytest.mark.parametrize("steps", [1, 4, 5] if BACKEND in MANY_STEPS else [1])
def test_fit_trains_on_every_batch_once_in_the_order_of_its_epoch(steps):
    n, size, epochs = 42, 4, 3
    x, y = numbers(n)
    batches = Batches(x, y % 2, size, seed=9, map=None)
    model = recording_model(steps_per_execution=steps)
    model.fit(batches, epochs=epochs, verbose=0)
    assert len(batches) == 11
    assert int(model.optimizer.iterations) == epochs * 11
    recorder = model.get_layer("recorder")
    count, total = expected_total(n, size, 9, range(epochs))
    assert int(recorder.steps) == count == epochs * 11
    assert float(recorder.total) == pytest.approx(total, rel=1e-6)
    # Negative control: the sum tells one order from another.
    assert expected_total(n, size, 8, range(epochs))[1] != pytest.approx(
        total, rel=1e-6
    )
    assert batches.position == (epochs, 0)


def test_fit_in_two_parts_goes_on_in_the_order():
    x, y = numbers(42)
    count, total = expected_total(42, 4, 9, range(4))
    model = recording_model()
    batches = Batches(x, y % 2, 4, seed=9, map=None)
    model.fit(batches, epochs=2, verbose=0)
    model.fit(batches, epochs=2, verbose=0)
    recorder = model.get_layer("recorder")
    assert int(recorder.steps) == count
    assert float(recorder.total) == pytest.approx(total, rel=1e-6)
    # A fresh object with `initial_epoch` starts at that epoch's order.
    model = recording_model()
    batches = Batches(x, y % 2, 4, seed=9, map=None)
    model.fit(batches, epochs=4, initial_epoch=3, verbose=0)
    total = expected_total(42, 4, 9, [3])[1]
    assert float(model.get_layer("recorder").total) == pytest.approx(total, rel=1e-6)


class Steps(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(batch)


def test_a_sought_epoch_keeps_its_step_numbers_and_stops_at_its_end():
    x, y = numbers(42)
    batches = Batches(x, y % 2, 4, seed=9, map=None)
    batches.seek(1, step=7)
    model, steps = recording_model(), Steps()
    model.fit(batches, epochs=2, verbose=0, callbacks=[steps])
    assert steps.seen == [7, 8, 9, 10, *range(11)]
    assert int(model.optimizer.iterations) == 15
    assert batches.position == (3, 0)


@pytest.mark.backend(*MANY_STEPS)
def test_executions_end_with_the_epoch_and_are_not_taken_for_missing_data():
    class Ends(Steps):
        def on_train_batch_end(self, batch, logs=None):
            self.seen.append((batch, sorted(logs)))

    x, y = numbers(42)
    batches = Batches(x, y % 2, 4, seed=9, map=None)
    batches.seek(0, step=3)
    model, steps = recording_model(steps_per_execution=4), Ends()
    # Eight steps of eleven, then all; Keras warns where it misses a batch.
    model.fit(batches, epochs=2, verbose=0, callbacks=[steps])
    logs = ["loss"]
    first, second = steps.seen[:4], steps.seen[4:]
    assert first == [3, (6, logs), 7, (10, logs)]
    assert second == [0, (3, logs), 4, (7, logs), 8, (10, logs)]
    assert batches.position == (2, 0)
    steps.seen.clear()
    model.fit(batches, epochs=1, steps_per_epoch=6, verbose=0, callbacks=[steps])
    assert steps.seen == [0, (3, logs), 4, (5, logs)]
    assert int(model.optimizer.iterations) == 8 + 11 + 6
    assert batches.position == (2, 6)


@pytest.mark.backend("jax")
def test_the_batches_of_an_execution_come_in_one_piece_when_keras_asks():
    x, y = numbers(40)
    batches = Batches(x, y % 2, 4, seed=9, map=None)
    single = [images for images, _ in batches]
    batches.seek(0, step=2)
    stacked = [images for images, _ in batches.get_jax_iterator(super_batch=3)]
    assert [images.shape for images in stacked] == [(3, 4, 3)] * 2 + [(2, 4, 3)]
    np.testing.assert_array_equal(np.concatenate(stacked), single[2:])
    assert batches.position == (1, 0)
    # A smaller batch can't be stacked: with it, Keras takes a list of its own kind.
    ragged = Batches(x[:39], y[:39] % 2, 4, shuffle=False, map=None)
    pieces = ragged.get_jax_iterator(super_batch=4)
    assert [next(pieces)[0].shape for _ in range(2)] == [(4, 4, 3)] * 2
    utils = keras.src.trainers.data_adapters.data_adapter_utils
    if hasattr(utils, "PartialBatchList"):
        last = next(pieces)
        assert isinstance(last, utils.PartialBatchList)
        assert [len(images) for images, _ in last] == [4, 3]
        assert next(pieces, None) is None
    else:
        # A Keras without the list does not ask.
        with pytest.raises(RuntimeError, match=r"has no .*PartialBatchList"):
            next(pieces)


def test_model_without_input_shape_is_built_without_losing_a_batch():
    x, y = numbers(42)
    batches = Batches(x, y % 2, 4, seed=9, map=None)
    model = keras.Sequential([Recorder(name="recorder"), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(batches, epochs=1, verbose=0)
    count, total = expected_total(42, 4, 9, [0])
    recorder = model.get_layer("recorder")
    assert int(recorder.steps) == count
    assert float(recorder.total) == pytest.approx(total, rel=1e-6)
    assert batches.position == (1, 0)


@pytest.mark.parametrize("steps", [1, 3] if BACKEND in MANY_STEPS else [1])
def test_evaluate_and_predict_keep_the_order_of_the_samples(steps):
    x, y = numbers(42)
    batches = Batches(x / 42, y % 2, 4, seed=9, map=None)
    model = recording_model(steps_per_execution=steps)
    expected = (x / 42) @ np.asarray(
        keras.ops.convert_to_numpy(model.layers[-1].kernel), np.float64
    )
    np.testing.assert_allclose(
        model.predict(batches, verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    assert model.predict(batches, steps=2, verbose=0).shape == (8, 2)
    correct = model.evaluate(batches, verbose=0)
    log_sum = np.logaddexp(*expected.T)
    loss = np.mean(log_sum - expected[np.arange(42), y % 2])
    assert correct == pytest.approx(loss, rel=1e-5)
    assert batches.position == (0, 0)
    history = model.fit(batches, epochs=2, verbose=0, validation_data=batches).history
    assert history["val_loss"] == pytest.approx([loss, loss], rel=1e-5)
    assert batches.position == (2, 0)


def test_class_weights_given_to_fit_count():
    x, y = numbers(40)
    weights = {0: 3.0, 1: 0.5}
    model = recording_model()
    logits = (
        x
        / 40
        @ np.asarray(keras.ops.convert_to_numpy(model.layers[-1].kernel), np.float64)
    )
    each = np.logaddexp(*logits.T) - logits[np.arange(40), y % 2]
    expected = np.mean(each * np.where(y % 2, 0.5, 3.0))
    for options, fit_options in [
        ({}, {"class_weight": weights}),
        ({"class_weight": weights}, {}),
        ({"sample_weight": np.where(y % 2, 0.5, 3.0)}, {}),
    ]:
        batches = Batches(x / 40, y % 2, 8, map=None, **options)
        history = model.fit(batches, epochs=1, verbose=0, **fit_options)
        assert history.history["loss"] == pytest.approx([expected], rel=1e-5)
    # Negative control: without weights the loss is another number.
    assert np.mean(each) != pytest.approx(expected, rel=1e-3)


def test_arguments_that_keras_would_ignore_are_refused():
    x, y = numbers(40)
    batches = Batches(x, y % 2, 8, map=None)
    weighted = Batches(x, y % 2, 8, map=None, sample_weight=np.ones(40))
    model = recording_model()
    for arguments, message in [
        ({"y": y}, "`y` must be given to Batches"),
        ({"sample_weight": y}, "`sample_weight` must be given to Batches"),
        ({"batch_size": 4}, "got batch_size=4"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(batches, verbose=0, **arguments)
    with pytest.raises(ValueError, match="same time"):
        model.fit(weighted, class_weight={0: 1.0}, verbose=0)
    model.fit(batches, batch_size=8, steps_per_epoch=3, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 6


def test_losses_agree_across_backends_within_rounding():
    # The expected history is float64 NumPy: the same data in the same order.
    rng = np.random.RandomState(0)
    x, y = rng.rand(50, 3).astype("float32"), rng.randint(0, 2, 50)
    batches = Batches(x, y, 8, seed=2, map=None)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    kernel = np.array([[0.1, -0.2], [0.3, 0.05], [-0.4, 0.2]])
    model.set_weights([kernel, np.zeros(2)])
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = model.fit(batches, epochs=2, verbose=0).history["loss"]
    bias, expected = np.zeros(2), []
    for epoch in range(2):
        order, total = sorted_order(50, 2, epoch), 0.0
        for start in range(0, 50, 8):
            xb, yb = x[order[start : start + 8]], y[order[start : start + 8]]
            logits = xb @ kernel + bias
            logp = logits - np.logaddexp(*logits.T)[:, None]
            total -= logp[np.arange(len(yb)), yb].sum()
            residual = (np.exp(logp) - np.eye(2)[yb]) / len(yb)
            kernel = kernel - 0.5 * xb.T @ residual
            bias = bias - 0.5 * residual.sum(0)
        expected.append(total / 50)
    assert losses == pytest.approx(expected, rel=2e-6)


# tf.data


@pytest.mark.backend("tensorflow")
def test_dataset_gives_the_batches_of_the_python_loop():
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (5000, 4, 4), dtype=np.uint8)
    y = rng.randint(0, 10, 5000).astype(np.uint8)
    batches = Batches(x, y, 96, seed=3)
    for epoch, step in [(0, 0), (2, 17), (2, 52)]:
        dataset = batches.as_dataset(epoch, step)
        assert int(dataset.cardinality()) == 53 - step
        batches.seek(epoch, step)
        for (a, b), (c, d) in zip(dataset, batches, strict=True):
            assert a.numpy().tobytes() == c.tobytes()
            assert b.numpy().tobytes() == d.tobytes()
    assert dataset.element_spec[0].shape.as_list() == [None, 4, 4]
    even = Batches(x, y, 100).as_dataset()
    assert even.element_spec[0].shape.as_list() == [100, 4, 4]


@pytest.mark.backend("tensorflow")
def test_dataset_takes_structures_weights_and_labels_left_out():
    x, y = numbers(7)
    batches = Batches({"a": x}, y, 3, map=None, sample_weight=y / 2)
    for inputs, labels, weight in batches.as_dataset():
        assert inputs["a"].numpy()[:, 0].tolist() == labels.numpy().tolist()
        assert weight.numpy().tolist() == (labels.numpy() / 2).tolist()
    weighted = Batches(x, y % 3, 3, map=None, class_weight={2: 5.0})
    for _, labels, weight in weighted.as_dataset():
        assert weight.numpy().tolist() == [5.0 if k == 2 else 1.0 for k in labels]
    alone = np.concatenate([part.numpy() for part in Batches(x, None, 3).as_dataset()])
    assert sorted((alone[:, 0] * 255).round().tolist()) == list(range(7))


def test_two_iterators_at_once_do_not_disturb_each_other():
    x, y = numbers(100)
    batches = Batches(x, y, 10, map=None)
    first, second = iter(batches), iter(batches)
    mixed = [(next(first)[1].tolist(), next(second)[1].tolist()) for _ in range(10)]
    assert list(itertools.chain(*(a for a, _ in mixed))) == batches.order(0).tolist()
    assert list(itertools.chain(*(b for _, b in mixed))) == batches.order(1).tolist()
    # The cached order of one epoch is asked for by several threads.
    found = []
    threads = [
        threading.Thread(target=lambda e=e: found.append((e, batches.order(e))))
        for e in (0, 1) * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for epoch, order in found:
        assert order.tolist() == sorted_order(100, 0, epoch).tolist()


# The memory of the blocks


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_its_last_view_is_gone():
    buffers = Buffers()
    first = buffers.empty((1000, 100), "float32")
    assert address(first) % 64 == 0
    view = first[3:5]
    place = address(first)
    del first
    # Negative control: a view alone keeps the memory from being handed out.
    assert address(buffers.empty((1000, 100), "float32")) != place
    del view
    taken = [buffers.empty((1000, 100), "float32") for _ in range(2)]
    assert place in map(address, taken)


def test_batches_that_are_kept_never_change():
    rng = np.random.RandomState(3)
    x = rng.randint(0, 256, (3000, 12, 12), dtype="uint8")
    batches = Batches(x, np.arange(3000) % 7, 100, seed=5)
    kept = list(batches)
    for _ in range(2):  # enough epochs to fill every buffer anew
        for _ in batches:
            pass
    order = batches.order(0)
    for step, (images, labels) in enumerate(kept):
        rows = order[100 * step : 100 * (step + 1)]
        np.testing.assert_array_equal(images, x[rows].astype("float32") / 255)
        np.testing.assert_array_equal(labels, rows % 7)


@pytest.mark.backend("tensorflow")
def test_tensors_that_are_kept_never_change():
    rng = np.random.RandomState(3)
    x = rng.randint(0, 256, (5000, 12, 12), dtype="uint8")
    batches = Batches(x, np.arange(5000), 100, seed=5)
    kept = list(batches.as_dataset(0)) + list(batches.as_dataset(1))
    order = np.concatenate([batches.order(0), batches.order(1)])
    for step, (images, labels) in enumerate(kept):
        rows = order[100 * step : 100 * (step + 1)]
        np.testing.assert_array_equal(images, x[rows].astype("float32") / 255)
        np.testing.assert_array_equal(labels, rows)


def test_arrays_whose_rows_are_scattered_in_memory_are_read_as_they_are():
    x = np.asfortranarray(np.random.RandomState(0).randint(0, 256, (300, 20), "uint8"))
    for array in (x, x[:, ::2], np.zeros((300, 2), "uint8")[:, 0]):
        batches = Batches(array, batch_size=100, shuffle=False, map=None)
        np.testing.assert_array_equal(np.concatenate(list(batches)), array)


class Scaled(keras.layers.Layer):
    """Divides what it gets, and keeps its dtype."""

    def __init__(self, divisor):
        super().__init__(autocast=False)
        self.divisor, self.seen = divisor, set()

    def call(self, x):
        self.seen.add(keras.backend.standardize_dtype(x.dtype))
        return keras.ops.cast(x, "float32") / self.divisor


def test_bytes_go_to_the_device_and_the_graph_casts_them():
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (300, 12), dtype=np.uint8)
    y = rng.randint(0, 10, 300)

    def trained(divisor, dtype, **arguments):
        keras.utils.set_random_seed(3)
        scaled, image = Scaled(divisor), keras.Input((12,), dtype=dtype)
        model = keras.Model(image, keras.layers.Dense(10)(scaled(image)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        model.fit(Batches(x, y, 64, seed=1, **arguments), epochs=2, verbose=0)
        weights = [keras.ops.convert_to_numpy(w) for w in model.weights]
        return scaled.seen, np.concatenate([w.ravel() for w in weights])

    seen, in_graph = trained(255, "uint8", map=None)
    assert seen == {"uint8"}
    floats, mapped = trained(1, "float32")
    assert floats == {"float32"}
    np.testing.assert_allclose(in_graph, mapped, atol=2e-6)
    # Negative control: undivided pixels train to other weights.
    assert np.abs(trained(1, "uint8", map=None)[1] - mapped).max() > 1e-4


def test_a_step_without_its_epoch_and_places_that_are_not_there_are_refused():
    batches = Batches(np.arange(10), None, 2, map=None)
    with pytest.raises(ValueError, match=r"as_dataset\(epoch=..., step=2\)"):
        batches.as_dataset(step=2)
    with pytest.raises(ValueError, match="below 5"):
        batches.as_dataset(epoch=1, step=5)
    for call in (batches.seek, batches.order):
        with pytest.raises(ValueError, match=r"below 2\*\*63"):
            call(2**63)


def test_an_epoch_that_ends_before_the_place_is_refused():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((20, 1), "float32")
    batches = Batches(x, x, 2, map=None, restart=True)
    batches.seek(0, 5)
    with pytest.raises(ValueError, match=r"seek\(0, 0\)"):
        model.fit(batches, steps_per_epoch=3, verbose=0)


@pytest.mark.backend("torch")
def test_floats_as_labels_are_labels_whatever_the_size_of_a_block():
    labels = np.arange(10.0)
    for size in (3, 10):
        batches = Batches(
            np.zeros((10, 4)), labels, size, map=Preprocess(num_classes=10)
        )
        found = np.concatenate([y for _, y in batches])
        expected = np.eye(10, dtype="float32")[batches.order(0)]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.backend("torch")
def test_weights_of_classes_need_one_label_per_sample():
    with pytest.raises(ValueError, match="`sample_weight`"):
        Batches(np.zeros((4, 2)), np.ones((4, 2, 3), int), 2, class_weight={0: 1.0})


@pytest.mark.backend("torch")
def test_pictures_read_backwards_become_tensors():
    x = np.arange(12, dtype="float32").reshape(4, 3)

    def mirrored(x, y):
        return x[:, ::-1], y

    feed = Batches(x, np.zeros(4), 2, map=mirrored, shuffle=False)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    expected = model.predict(np.ascontiguousarray(x[:, ::-1]), verbose=0)
    np.testing.assert_array_equal(model.predict(feed, verbose=0), expected)
