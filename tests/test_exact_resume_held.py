"""What a model holds beside the variables that Keras lists: all of it comes back."""

import collections
import random
import types
import zipfile

import keras
import numpy as np
import pytest
from bits import same_bits
from networks import Gan
from resuming import Stateless, X, broken_and_resumed, fit

from fmkit._commits import list_commits
from fmkit.callbacks import ExactResume
from fmkit.callbacks._resume import _held
from fmkit.data import Batches
from fmkit.optimizers import ExponentialMovingAverage

BACKEND = keras.backend.backend()
layers = keras.layers


def pairs():
    return Batches(X, X[:, :2], 8, map=None)


# Two optimizers, as in keras.io's DCGAN


ROWS = np.random.RandomState(0).rand(40, 4).astype("float32")
WRAPS = {
    "plain": lambda optimizer: optimizer,
    "averages": lambda optimizer: ExponentialMovingAverage(optimizer, 0.9),
    "loss scale": keras.optimizers.LossScaleOptimizer,
}


@pytest.mark.backend("tensorflow", "torch")
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("eager", [False, True])
def test_both_optimizers_of_a_gan_come_back(tmp_path, wrap, eager):
    def train(directory, *callbacks):
        keras.utils.set_random_seed(1)
        model = Gan(WRAPS[wrap])
        model.compile(run_eagerly=eager, jit_compile=False)
        resume = ExactResume(directory, every=2, verbose=0)
        history = model.fit(
            Batches(ROWS, batch_size=8, map=None),
            epochs=3,
            verbose=0,
            callbacks=[resume, *callbacks],
        )
        assert len(model.held()) > 10
        return model, [*model.variables, *model.held()], history

    unbroken, expected, expected_history = train(tmp_path / "unbroken")
    model, variables, history = broken_and_resumed(tmp_path / "broken", train)
    assert same_bits(variables, expected)
    assert history.history == expected_history.history
    # A counter in Python counts on where the step runs in Python, and only there.
    if eager or BACKEND == "torch":
        assert model.steps_done == unbroken.steps_done == 15


@pytest.mark.backend("tensorflow", "torch")
def test_without_what_is_held_the_gan_ends_with_other_bits(tmp_path, monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr(_held._Search, "look_into", lambda *arguments: None)
    with pytest.raises(AssertionError):
        test_both_optimizers_of_a_gan_come_back(tmp_path, "plain", False)


def test_an_optimizer_for_strange_variables_is_refused_at_the_first_commit(tmp_path):
    class Model(keras.Sequential):
        pass

    def train(optimizer):
        model = Model([keras.Input((3,)), layers.Dense(2)])
        model.compile("sgd", "mse")
        model.helper = optimizer
        resume = ExactResume(tmp_path, every=1, verbose=0)
        model.fit(pairs(), callbacks=[resume], verbose=0)

    optimizer = keras.optimizers.SGD(momentum=0.9)
    optimizer.build([keras.Variable(np.zeros(2), name="strange")])
    with pytest.raises(
        ValueError, match=r"model\.helper trains variables that don't belong"
    ):
        train(optimizer)


# Layers with a state


STATEFUL = {
    "gru": lambda: layers.GRU(4, stateful=True),
    "lstm": lambda: layers.LSTM(4, stateful=True, return_sequences=True),
    "cells": lambda: layers.RNN(
        [layers.GRUCell(3), layers.LSTMCell(4)], stateful=True, return_sequences=False
    ),
    "bidirectional": lambda: layers.Bidirectional(layers.LSTM(2, stateful=True)),
    "convolution": lambda: layers.ConvLSTM1D(2, 2, stateful=True),
}


# Keras's own backward pass fails for them on PyTorch: a state is changed in place.
@pytest.mark.backend("tensorflow", "jax")
# Each is a program of its own to compile, in seconds.
@pytest.mark.parametrize(
    "name", ["gru", *(pytest.param(n, marks=pytest.mark.long) for n in [*STATEFUL][1:])]
)
# Keras can't train them unbuilt on JAX either.
@pytest.mark.parametrize("built", [True] if BACKEND == "jax" else [True, False])
def test_states_of_recurrent_layers_come_back(tmp_path, name, built):
    rows = (5, 4, 2) if name == "convolution" else (5, 3)
    x = np.random.RandomState(0).rand(40, *rows).astype("float32")
    y = x.reshape(40, -1).sum(1)

    def train(directory, *callbacks):
        keras.utils.set_random_seed(1)
        stack = [
            STATEFUL[name](),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(1),
        ]
        if built:
            stack.insert(0, keras.Input(rows, batch_size=8))
        model = keras.Sequential(stack)
        model.compile("adam", "mse")
        resume = ExactResume(directory, every=1, verbose=0)
        model.fit(
            Batches(x, y, 8, map=None),
            epochs=3,
            verbose=0,
            callbacks=[resume, *callbacks],
        )
        states = keras.tree.flatten(
            [getattr(layer, "states", None) for layer in model.layers]
        )
        states = [each for each in states if each is not None]
        return [*model.variables, *model.optimizer.variables, *states]

    expected = train(tmp_path / "unbroken")
    assert same_bits(broken_and_resumed(tmp_path / "broken", train), expected)


class Restless(layers.Layer):
    """A layer of a user's own that has all kinds of state."""

    def __init__(self, kind, **arguments):
        super().__init__(**arguments)
        self.kind = kind
        self.bits = np.random.default_rng(3)
        self.old = np.random.RandomState(4)
        self.python = random.Random(5)
        self.table = {"counts": np.zeros(2), "names": ["a", 1]}
        self.helper = Helper()
        if BACKEND == "torch":
            import torch

            self.torch_generator = torch.Generator().manual_seed(6)
            self.tensor = torch.ones(3)
            self.norm = torch.nn.BatchNorm1d(3)
        if BACKEND == "tensorflow":
            import tensorflow as tf

            self.tf_generator = tf.random.Generator.from_seed(8)
            self.held = (tf.Variable([1.0, 2.0]),)

    def draw(self):
        self.table["counts"][0] += 1
        self.helper.seen += 1
        number = self.bits.random() + self.old.rand() + self.python.random()
        if BACKEND == "torch":
            import torch

            self.tensor.mul_(0.5 + 0.1 * torch.rand(1, generator=self.torch_generator))
            number += float(self.tensor.sum())
        if BACKEND == "tensorflow":
            self.held[0].assign(self.held[0] * 0.9)
            number += float(self.tf_generator.normal([]) + self.held[0][0])
        return number * 0.01 + 0.001 * self.helper.seen

    def call(self, x, training=False):
        if not training:
            return x
        if BACKEND == "torch":
            x = self.norm(x)
        return x * (1 + self.draw())


class Helper:
    """An object of no kind that Keras knows."""

    def __init__(self):
        self.seen = 0


@pytest.mark.backend("tensorflow", "torch")
def test_generators_and_counters_of_a_layer_come_back(tmp_path):
    def train(directory, *callbacks):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), Restless("any"), layers.Dense(2)])
        model.compile("adam", "mse", run_eagerly=True)
        fit(directory, *callbacks, epochs=3, model=model, batches=pairs())
        restless = model.layers[0]
        return restless, [*model.variables, restless.draw(), restless.table["counts"]]

    _, expected = train(tmp_path / "unbroken")
    restless, found = broken_and_resumed(tmp_path / "broken", train)
    assert same_bits(found, expected)
    assert restless.helper.seen == 16


def test_what_can_not_be_read_is_named_before_training(tmp_path, capsys):
    class Model(keras.Sequential):
        pass

    def train():
        model = Model([keras.Input((3,)), layers.Dense(2)])
        model.compile("sgd", "mse")
        model.rows = iter([1, 2])
        model.buffer = np.zeros(10_000)
        model.fine = {"rate": 0.5, "layers": [4, 4]}
        resume = ExactResume(tmp_path, every=1)
        model.fit(pairs(), callbacks=[resume], verbose=0)

    train()
    (line,) = [
        k for k in capsys.readouterr().out.splitlines() if "training changes" in k
    ]
    assert "not restored, if training changes it: " in line
    assert "model.rows (list_iterator), model.buffer (ndarray)" in line
    assert "model.fine" not in line


def test_attributes_that_the_program_sets_anew_are_left_alone(tmp_path):
    class Model(keras.Sequential):
        pass

    def train(note):
        keras.utils.set_random_seed(1)
        model = Model([keras.Input((3,)), layers.Dense(2)])
        model.compile("sgd", "mse")
        model.note = note
        resume = ExactResume(tmp_path, every=1, verbose=0)
        model.fit(pairs(), callbacks=[resume], verbose=0)
        return model

    train("first")
    assert train("second").note == "second"


@pytest.mark.needs("MultiOptimizer")
def test_parts_of_a_multi_optimizer_come_back(tmp_path):
    def train(directory, *callbacks):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(4, name="first"),
                layers.Dense(2, name="last"),
            ]
        )
        parts = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1, momentum=0.9))
        parts["last/.*"] = keras.optimizers.Adam(0.01)
        model.compile(keras.optimizers.MultiOptimizer(parts), "mse")
        fit(directory, *callbacks, epochs=3, model=model, batches=pairs())
        inner = [v for part in model.optimizer.optimizers for v in part.variables]
        return [*model.variables, *inner]

    expected = train(tmp_path / "unbroken")
    assert same_bits(broken_and_resumed(tmp_path / "broken", train), expected)


@pytest.mark.backend("tensorflow", "torch")  # on JAX Keras leaves it as it is
@pytest.mark.parametrize("place", ["compiled", "attribute"])
def test_a_loss_with_a_variable_comes_back(tmp_path, place):
    class Model(keras.Sequential):
        pass

    class Moving(keras.losses.Loss):
        def __init__(self):
            super().__init__(name="moving")
            self.scale = keras.Variable(1.0, name="scale", trainable=False)

        def call(self, y, predicted):
            self.scale.assign(self.scale * 0.9)
            return self.scale * keras.ops.mean((y - predicted) ** 2, axis=-1)

    def train(directory, *callbacks):
        keras.utils.set_random_seed(1)
        model = Model([keras.Input((3,)), layers.Dense(2)])
        loss = Moving()
        if place == "attribute":
            model.own_loss = loss
        given = loss if place == "compiled" else lambda y, p: model.own_loss(y, p)
        model.compile("adam", given, run_eagerly=True)
        fit(directory, *callbacks, epochs=3, model=model, batches=pairs())
        return [*model.variables, loss.scale]

    expected = train(tmp_path / "unbroken")
    assert same_bits(broken_and_resumed(tmp_path / "broken", train), expected)
    assert float(expected[-1]) < 0.5


# Attributes of several kinds


class Plain(keras.Sequential):
    pass


class Box:
    pass


def with_attributes(directory, *others, change=lambda model: None, **attributes):
    class Change(Stateless):
        def on_train_batch_end(self, batch, logs=None):
            change(self.model)

    keras.utils.set_random_seed(1)
    model = Plain([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    # Keras makes its own kind of dict of each that a model has itself.
    model.box = Box()
    vars(model.box).update(attributes)
    resume = ExactResume(directory, every=1)
    given = [resume, Change(), *others]
    model.fit(pairs(), epochs=2, verbose=0, callbacks=given)
    return model


def unreadable(capsys):
    lines = capsys.readouterr().out.splitlines()
    return next((line for line in lines if "training changes" in line), "")


def test_containers_that_a_commit_can_not_give_back_are_named(tmp_path, capsys):
    point = collections.namedtuple("Point", "x y")
    with_attributes(
        tmp_path,
        cfg=types.MappingProxyType({"a": 1}),
        missing=collections.defaultdict(list, a=[1]),
        point=point(1, 2),
        fine={"a": [1, (2, 3)]},
        blob=b"x" * 5000,
        short=b"x",
        many=[np.zeros(2000)] * 3,
    )
    line = unreadable(capsys)
    for named in (
        "cfg (mappingproxy)",
        "missing (defaultdict)",
        "point (Point)",
        "blob (bytes)",
        "many (",
    ):
        assert f"model.box.{named}" in line
    assert "fine" not in line
    assert "short" not in line


def test_counters_ordered_dicts_and_bytes_come_back_as_they_were(tmp_path, capsys):
    def change(model):
        model.box.counts["steps"] += 1
        model.box.order["first"] = len(model.box.order)
        model.box.order.move_to_end("last")
        model.box.blob = model.box.blob + b"\x00\xff"

    def train(directory, *others):
        return with_attributes(
            directory,
            *others,
            change=change,
            counts=collections.Counter(),
            order=collections.OrderedDict(last=1),
            blob=b"",
        )

    expected = train(tmp_path / "unbroken")
    model = broken_and_resumed(tmp_path / "broken", train)
    assert model.box.counts == expected.box.counts == {"steps": 10}
    assert list(model.box.order.items()) == [("first", 2), ("last", 1)]
    assert model.box.blob == expected.box.blob == b"\x00\xff" * 10
    assert [type(each) for each in (model.box.counts, model.box.order)] == [
        type(each) for each in (expected.box.counts, expected.box.order)
    ]
    assert unreadable(capsys) == ""


@pytest.mark.parametrize("length", [4095, 5000])
@pytest.mark.parametrize("kind", ["model", "layer"])
def test_long_lists_are_named_before_training(tmp_path, capsys, kind, length):
    class Listing(layers.Layer):
        def __init__(self):
            super().__init__()
            self.long = list(range(length))

        def call(self, x):
            return x

    listing = Listing()
    model = Plain([keras.Input((3,)), listing, layers.Dense(2)])
    if kind == "model":
        listing.long = []
        model.long = list(range(length))
    model.compile("sgd", "mse")
    model.fit(pairs(), verbose=0, callbacks=[ExactResume(tmp_path)])
    assert "long (" in unreadable(capsys)


# Keras's own `get_config` of an optimizer, under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_list_that_grows_too_long_in_training_is_a_warning(tmp_path):
    def grow(model):
        model.box.losses_seen = [*model.box.losses_seen, *range(1000)]

    with pytest.warns(UserWarning, match=r"losses_seen \(.* no commit") as told:
        with_attributes(tmp_path, change=grow, losses_seen=[])
    assert len([each for each in told if "losses_seen" in str(each.message)]) == 1


def test_a_key_with_a_backslash_makes_no_member_that_windows_would_rename(tmp_path):
    generators = {"C:\\a": np.random.RandomState(0)}
    with_attributes(tmp_path, generators=generators)
    with zipfile.ZipFile(list_commits(tmp_path)[-1]) as archive:
        names = archive.namelist()
    assert any("generators" in name for name in names)
    assert not any("\\" in name for name in names)
    with_attributes(tmp_path, generators=generators)  # and it is read again
