"""`fit(steps_per_epoch=k)`: which batches each epoch of `fit` takes."""

import itertools

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS
from bits import array, bits
from resuming import Seen, X, Y, broken_and_resumed, build

from fmkit.callbacks import ExactResume
from fmkit.data import Batches

BACKEND = keras.backend.backend()
SIZE = 7  # 40 samples: five batches and a smaller one, six in all
LABELS = np.arange(40)


class Rows(keras.layers.Layer):
    """Adds up the rows it is trained on, each step's with another factor."""

    def build(self, shape):
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.total = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.steps.assign(self.steps + 1.0)
            self.total.assign(self.total + self.steps * keras.ops.sum(x[:, 0]) / 1024.0)
        return x


def numbered(**options):
    x = np.repeat(LABELS[:, None], 3, axis=1).astype("float32")
    return Batches(x, LABELS % 2, SIZE, **{"map": None, "seed": 9, **options})


def recording(**compile_arguments):
    inputs = keras.Input((3,))
    rows = Rows(name="rows")
    model = keras.Model(inputs, keras.layers.Dense(2)(rows(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, **compile_arguments)
    return model


def in_a_row(batches):
    """Yield the samples of each batch of epochs 0, 1, 2, ... without end."""
    for epoch in itertools.count():
        order = batches.order(epoch)
        yield from (order[i : i + SIZE] for i in range(0, len(order), SIZE))


def total(taken):
    """Return what `Rows` adds up over batches that are taken in this order."""
    sums = [np.float32(step * rows.sum() / 1024) for step, rows in enumerate(taken, 1)]
    return sum(sums, np.float32(0))


def assert_taken(model, taken):
    rows, taken = model.get_layer("rows"), list(taken)
    assert int(array(rows.steps)) == len(taken)
    assert array(rows.total) == pytest.approx(float(total(taken)), rel=1e-6)


@pytest.mark.parametrize("steps", [4, 6, 9, 20])
def test_an_epoch_takes_the_batches_after_those_of_the_one_before(steps):
    batches, model, seen = numbered(), recording(), Seen()
    history = model.fit(
        batches, epochs=3, steps_per_epoch=steps, verbose=0, callbacks=[seen]
    )
    assert_taken(model, itertools.islice(in_a_row(batches), 3 * steps))
    assert batches.position == divmod(3 * steps, 6)
    assert seen.steps == [(e, s) for e in range(3) for s in range(steps)]
    assert history.epoch == [0, 1, 2]
    # And so does a second `fit`, and a whole epoch after it takes what is left of one.
    model.fit(batches, epochs=1, steps_per_epoch=steps, verbose=0)
    assert_taken(model, itertools.islice(in_a_row(batches), 4 * steps))
    # Negative control: the sum tells the first batches of each epoch from these.
    if steps != 6:
        first = [in_a_row(batches)] * (4 * steps)
        restarted = [numbered().order(0)[:SIZE] for _ in first]
        assert float(model.get_layer("rows").total) != pytest.approx(
            float(total(restarted)), rel=1e-6
        )


@pytest.mark.backend(*MANY_STEPS)
@pytest.mark.parametrize("jit", [False, True])
def test_executions_take_a_smaller_batch_in_their_middle(jit):
    batches = numbered()
    jit = jit and BACKEND != "torch"
    model = recording(steps_per_execution=4, jit_compile=jit)
    model.fit(batches, epochs=3, steps_per_epoch=10, verbose=0)
    assert_taken(model, itertools.islice(in_a_row(batches), 30))


def test_with_restart_an_epoch_takes_the_first_batches_of_an_order():
    batches, model = numbered(restart=True), recording()
    assert batches.restart
    model.fit(batches, epochs=3, steps_per_epoch=4, verbose=0)
    sequence = list(itertools.islice(in_a_row(batches), 18))
    assert_taken(model, sequence[0:4] + sequence[6:10] + sequence[12:16])
    assert batches.position == (3, 0)
    with pytest.raises(ValueError, match=r"at most 6.*Batches\(restart=False\)"):
        model.fit(batches, steps_per_epoch=7, verbose=0)
    # Which of the two it is decides what is trained on, so a commit tells them apart.
    assert numbered().describe() != batches.describe()


def test_a_fit_that_begins_later_begins_at_that_epochs_batches():
    batches, model = numbered(), recording()
    model.fit(batches, initial_epoch=2, epochs=3, steps_per_epoch=4, verbose=0)
    assert_taken(model, itertools.islice(in_a_row(batches), 8, 12))
    # A position inside that epoch is kept.
    batches.seek(1, 3)
    model = recording()
    model.fit(batches, initial_epoch=2, epochs=3, steps_per_epoch=4, verbose=0)
    assert_taken(model, itertools.islice(in_a_row(batches), 9, 13))
    assert batches.position == (2, 1)


def test_a_fit_without_steps_takes_the_rest_of_an_epoch():
    batches, model, seen = numbered(), recording(), Seen()
    model.fit(batches, epochs=1, steps_per_epoch=4, verbose=0)
    model.fit(batches, epochs=2, verbose=0, callbacks=[seen])
    assert_taken(model, itertools.islice(in_a_row(batches), 12))
    assert seen.steps == [(0, 4), (0, 5), *((1, s) for s in range(6))]


def test_shards_go_on_together():
    whole = Batches(X, Y, 8, map=None)
    shards = [Batches(X, Y, 4, map=None, shard=(i, 2)) for i in range(2)]
    for each in (whole, *shards):
        build().fit(each, epochs=2, steps_per_epoch=4, verbose=0)
        assert each.position == (1, 3)


def test_validation_begins_at_the_beginning_each_time():
    batches, model = numbered(), recording()
    held_out = numbered(restart=False)
    history = model.fit(
        batches,
        epochs=3,
        steps_per_epoch=4,
        validation_data=held_out,
        validation_steps=2,
        verbose=0,
    ).history
    expected = model.evaluate(held_out, steps=2, verbose=0)
    assert history["val_loss"] == [expected] * 3
    assert held_out.position == (0, 0)
    assert expected != model.evaluate(held_out, verbose=0)
    with pytest.raises(ValueError, match=r"`steps` must be at most 6.*Leave it out"):
        model.evaluate(held_out, steps=7, verbose=0)


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_the_dataset_of_an_epoch_is_the_same_whatever_fit_takes():
    batches = numbered()
    recording().fit(batches, epochs=1, steps_per_epoch=4, verbose=0)
    order, dataset = batches.order(0), batches.as_dataset()
    labels = [y.numpy() for _, y in dataset]
    np.testing.assert_array_equal(np.concatenate(labels), order[4 * SIZE :] % 2)
    assert int(dataset.cardinality()) == 2


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_replicas_take_the_same_batches():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = recording()
    batches = numbered()
    model.fit(batches, epochs=2, steps_per_epoch=9, verbose=0)
    assert_taken(model, itertools.islice(in_a_row(batches), 18))


# Exact resume


def train(folder, *callbacks, every=2, restart=False, steps=8, steps_per_execution=1):
    model = build(steps=steps_per_execution)
    batches = Batches(X, Y, SIZE, map=None, seed=3, restart=restart)
    resume = ExactResume(folder, every=every, verbose=0)
    history = model.fit(
        batches,
        epochs=3,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[resume, *callbacks],
    )
    return bits(model.weights), history.history, batches.position, resume.resumed_from


@pytest.mark.parametrize("at", [(0, 7), (1, 3), (1, 5), (2, 0)])
def test_a_run_broken_off_goes_on_in_the_middle_of_both_epochs(tmp_path, at):
    *expected, none = train(tmp_path / "straight")
    assert none is None
    *found, resumed_from = broken_and_resumed(tmp_path / "broken", train, at)
    assert resumed_from == (at[0], at[1] - at[1] % 2)
    assert found == expected
    assert expected[2] == (4, 0)


def test_a_resume_at_another_place_in_the_data_is_seen(tmp_path, monkeypatch):
    *expected, _ = train(tmp_path / "straight")
    seek = Batches.seek
    monkeypatch.setattr(Batches, "seek", lambda b, e, s=0: seek(b, e, (s + 1) % 6))
    *found, _ = broken_and_resumed(tmp_path / "broken", train, (1, 3))
    assert found[:2] != expected[:2]


def test_with_restart_a_run_goes_on_too(tmp_path):
    def restarting(folder, *callbacks):
        return train(folder, *callbacks, restart=True, steps=4)

    *expected, _ = restarting(tmp_path / "straight")
    *found, resumed_from = broken_and_resumed(tmp_path / "broken", restarting, (1, 3))
    assert resumed_from == (1, 2)
    assert found == expected
    with pytest.raises(ValueError, match=r"data\.restart: True in the commit, False"):
        train(tmp_path / "broken", steps=4)


@pytest.mark.backend(*MANY_STEPS)
def test_executions_go_on_too(tmp_path):
    def many(folder, *callbacks):
        return train(folder, *callbacks, every=3, steps_per_execution=3)

    *expected, _ = many(tmp_path / "straight")
    *found, resumed_from = broken_and_resumed(tmp_path / "broken", many, (1, 6))
    assert resumed_from == (1, 3)
    assert found == expected


# Keras's own data


class Labels(keras.layers.Layer):
    """Keeps the rows it is trained on, in a model that runs eagerly."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def call(self, x, training=False):
        if training:
            self.taken.append(keras.ops.convert_to_numpy(x)[:, 0].astype(int).tolist())
        return x


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_kerass_own_arrays_go_on_too_and_cut_an_epoch_where_they_end():
    """What `docs/guides/data.md` says of `fit(x, y, steps_per_epoch=k)`."""
    x = np.arange(24, dtype="float32")[:, None]
    for steps, expected in ((2, [2, 2, 2]), (4, [4, 2, 4]), (6, [6, 6, 6])):
        labels, seen = Labels(), Seen()
        model = keras.Sequential([keras.Input((1,)), labels, keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        labels.taken.clear()
        model.fit(
            x,
            x,
            batch_size=4,
            epochs=3,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[seen],
        )
        lengths = [sum(e == epoch for e, _ in seen.steps) for epoch in range(3)]
        assert lengths == expected
        rows = [row for batch in labels.taken for row in batch]
        assert rows == [i % 24 for i in range(len(rows))]
