"""Each private piece of Keras that fmkit uses, looked at by itself.

When another version of Keras moves one, the test that is named after it fails
here, before the features that stand on it fail in stranger ways.
"""

import contextlib
import inspect

import keras
import numpy as np
import pytest
from fresh_process import run_python

from fmkit import _keras_private as private
from fmkit.data import Batches

X, Y = np.zeros((10, 2), "float32"), np.zeros((10, 1), "float32")


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


class Steps(private.Feed):
    """Steps 2 to 4 of an epoch."""

    num_batches, batch_size, has_partial_batch, partial_batch_size = 5, 2, False, None

    def start_epoch(self):
        return 2, 5

    def get_jax_iterator(self, super_batch=None):
        return iter([(X[:2], Y[:2])] * 3)

    get_torch_dataloader = get_jax_iterator

    def get_tf_dataset(self):
        import tensorflow as tf

        return tf.data.Dataset.from_tensors((X[:2], Y[:2])).repeat(3)


class Arrays(private.DataSource):
    """Data that note what is asked of them, and by whom."""

    def __init__(self):
        self.requests = []

    def feed(self, request):
        self.requests.append(request)
        return Steps()

    def __len__(self):
        return 5


@pytest.mark.skipif(
    "dev" in keras.__version__, reason="a nightly is no release; `make matrix` tries it"
)
def test_this_keras_is_a_release_that_was_tried():
    release = ".".join(keras.__version__.split(".")[:2])
    assert release in private.CHECKED_ON, (
        f"Keras {keras.__version__} is new to fmkit: read what has changed in "
        "trainers/epoch_iterator.py, the trainers and the data adapters, run all "
        "tests on every backend, and add it to CHECKED_ON."
    )


def test_fit_takes_a_data_adapter_and_an_adapter_can_see_who_asks():
    adapter, model = Arrays(), build()
    model.fit(adapter, epochs=1, verbose=0, class_weight={0: 2.0}, shuffle=False)
    (request,) = adapter.requests[:1]
    assert (request.method, request.training) == ("fit", True)
    assert request.arguments["class_weight"] == {0: 2.0}
    assert request.arguments["steps_per_epoch"] is None
    for method in ("evaluate", "predict"):
        adapter = Arrays()
        getattr(model, method)(adapter, verbose=0)
        assert (adapter.requests[0].method, adapter.requests[0].training) == (
            method,
            False,
        )
    adapter = Arrays()
    model.fit(X, Y, validation_data=adapter, verbose=0)
    assert [(r.method, r.training) for r in adapter.requests[:1]] == [("fit", False)]
    adapter = Arrays()
    model.fit(adapter, epochs=3, initial_epoch=2, verbose=0)
    assert adapter.requests[0].initial_epoch == 2
    assert adapter.num_batches == 5
    assert len(adapter.requests) == 1


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize("update_freq", [1, "epoch"])
def test_the_writers_of_tensorboard_can_be_flushed_and_begin_new_files(
    tmp_path, update_freq
):
    board = keras.callbacks.TensorBoard(str(tmp_path), update_freq=update_freq)
    kept, begun = {}, []

    class Begin(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                kept.update(private.event_files(board))
                kept.update({n: p.stat().st_size for n, p in kept.items()})
                begun.append(private.event_files(board))
                private.begin_event_files(board, keep=kept)

    build().fit(
        X,
        Y,
        batch_size=2,
        validation_data=(X, Y),
        verbose=0,
        callbacks=[board, Begin()],
    )
    assert {name.partition("/")[0] for name in kept} == {"train", "validation"}
    # The old files are as they were; what came later is in new ones.
    assert {n: (tmp_path / n).stat().st_size for n in kept} == kept
    later = private.event_files(board).keys() - kept.keys()
    assert {name.partition("/")[0] for name in later} == {"train", "validation"}
    # What is not to be kept is deleted, but nobody else's file.
    other = "train/events.out.tfevents.9999999999.host.1.0.v2"
    (tmp_path / other).touch()
    private.begin_event_files(board, keep=kept)
    left = [f"{p.parent.name}/{p.name}" for p in tmp_path.rglob("*tfevents*")]
    assert sorted(left) == sorted([*kept, other])


def test_steps_are_numbered_by_the_adapter():
    steps = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            steps.append(batch)

    build().fit(Arrays(), epochs=2, verbose=0, callbacks=[Note()])
    assert steps == [2, 3, 4, 2, 3, 4]


def test_batches_go_by_a_callback():
    # On TensorFlow a dataset goes by, whose batches nobody sees in Python.
    wrapped = []

    class Wrap(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            iterator = private.running_fit(self).epoch_iterator
            private.wrap_batches(iterator, lambda data: wrapped.append(data) or data)

    for data in ((X, Y), (Arrays(),)):
        wrapped.clear()
        build().fit(*data, epochs=2, verbose=0, callbacks=[Wrap()])
        assert len(wrapped) >= 2


def test_a_callback_finds_its_fit_and_can_set_the_first_epoch():
    found, epochs = [], []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            fit = private.running_fit(self)
            found.append(fit)
            assert private.is_running(fit.callback_list)
            assert private.is_in_fit(inspect.currentframe(), fit.callback_list)
            assert self in fit.callback_list.callbacks
            private.set_initial_epoch(private.model_of(self), 3)

        def on_epoch_begin(self, epoch, logs=None):
            private.set_initial_epoch(private.model_of(self), None)
            epochs.append(epoch)

    model = build()
    model.fit(X, Y, epochs=5, initial_epoch=1, verbose=0, callbacks=[Look()])
    (fit,) = found
    assert (fit.epochs, fit.initial_epoch) == (5, 1)
    assert fit.epoch_iterator.num_batches == 1
    assert epochs == [3, 4]
    assert not private.is_running(fit.callback_list)
    look = Look()
    look.set_model(model)
    assert private.running_fit(look) is None
    epochs.clear()
    model.fit(X, Y, epochs=1, verbose=0)
    assert model.history.epoch == [0]


@pytest.mark.parametrize(
    ("arguments", "validated"),
    [
        ({}, []),
        ({"validation_data": (X, Y)}, [0, 1, 2, 3, 4]),
        ({"validation_split": 0.5}, [0, 1, 2, 3, 4]),
        ({"validation_data": (X, Y), "validation_freq": 2}, [1, 3]),
        ({"validation_data": (X, Y), "validation_freq": 9}, []),
        ({"validation_data": (X, Y), "validation_freq": [1, 4, 8]}, [0, 3]),
        ({"validation_freq": 2}, []),
    ],
)
def test_a_callback_is_told_whether_a_validation_follows(arguments, validated):
    answers, seen = [], []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_test_end(self, logs=None):
            seen.append(self.epoch)

        def on_epoch_end(self, epoch, logs=None):
            answers.append(private.running_fit(self).validates_after(epoch))

    build().fit(X, Y, epochs=5, verbose=0, callbacks=[Look()], **arguments)
    assert seen == validated
    assert answers == [any(v > epoch for v in validated) for epoch in range(5)]


def test_the_direction_of_each_name_in_the_logs():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [keras.layers.Dense(1, name=n)(inputs) for n in "ab"])
    mean = keras.metrics.Mean(name="mean")
    r2 = keras.metrics.R2Score()
    model.compile(
        "sgd", "mse", metrics=[["mae", "mae"], [r2]], weighted_metrics=[[], [r2]]
    )
    assert private.metric_directions(model) == {}
    model.tracker = mean  # in the logs of a train step of one's own; no direction
    history = model.fit(X, [Y, Y], verbose=0).history
    directions = private.metric_directions(model)
    assert directions == {
        "a_loss": "down",
        "b_loss": "down",
        "a_mae": "down",
        "a_mae_1": "down",
        "b_r2_score": "up",
        "b_weighted_r2_score": "up",
    }
    assert set(history) - set(directions) == {"loss", "mean"}


def test_callbacks_that_join_during_on_train_begin_have_their_turn_last():
    # ExactResume relies on it: Keras goes through the list itself, not a copy.
    turns = []

    class Note(keras.callbacks.Callback):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def on_train_begin(self, logs=None):
            turns.append(f"begin {self.name}")

        def on_epoch_end(self, epoch, logs=None):
            turns.append(f"end {self.name}")

    class Joins(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            fit = private.running_fit(self)
            private.put_last(fit.callback_list, Note("late"))

    build().fit(X, Y, verbose=0, callbacks=[Joins(), Note("early")])
    assert turns == ["begin early", "begin late", "end early", "end late"]


@pytest.mark.parametrize("end", ["end", "break", "raise"])
def test_the_steps_of_a_call_run_within_a_context(end):
    events = []

    @contextlib.contextmanager
    def context():
        events.append("in")
        try:
            yield
        finally:
            events.append("out")

    class Around(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            assert private.around_steps(self, context)
            events.append("begin")

        def on_test_batch_end(self, batch, logs=None):
            events.append(batch)
            if end == "raise":
                raise KeyboardInterrupt
            self.model.stop_evaluating = end == "break"

        def on_test_end(self, logs=None):
            events.append("end")

    model, arguments = build(), {"batch_size": 5, "verbose": 0}
    if end == "raise":
        with pytest.raises(KeyboardInterrupt) as caught:
            model.evaluate(X, Y, callbacks=[Around()], **arguments)
        assert caught.tb is not None  # holds the frame of `evaluate`
    else:
        model.evaluate(X, Y, callbacks=[Around()], **arguments)
    assert (
        events
        == {
            "end": ["begin", "in", 0, 1, "out", "end"],
            "break": ["begin", "in", 0, "out", "end"],
            "raise": ["begin", "in", 0, "out"],
        }[end]
    )
    around = Around()
    around.set_model(model)
    assert not private.around_steps(around, context)


def test_the_steps_of_each_epoch_of_a_fit_run_within_a_context():
    events = []

    @contextlib.contextmanager
    def context():
        events.append("in")
        yield
        events.append("out")

    class Around(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            assert private.around_steps(self, context)

        def on_train_batch_end(self, batch, logs=None):
            events.append(batch)

        def on_test_begin(self, logs=None):
            events.append("validation")

    model = build()
    arguments = {"batch_size": 5, "epochs": 2, "verbose": 0}
    model.fit(X, Y, validation_data=(X, Y), callbacks=[Around()], **arguments)
    assert events == ["in", 0, 1, "out", "validation"] * 2


def test_fit_makes_another_step_within_an_epoch():
    model, made, functions = build(), [], []

    class Another(keras.callbacks.Callback):
        @contextlib.contextmanager
        def context(self):
            step = model.train_step

            def another(*given):
                made.append(1)
                return step(*given)

            function = functions[-1] if functions else None
            with private.train_step_replaced(model, another, function) as function:
                functions.append(function)
                yield

        def on_epoch_begin(self, epoch, logs=None):
            private.around_steps(self, self.context)

    model.fit(X, Y, epochs=2, verbose=0, callbacks=[Another()])
    assert made
    assert functions[0] is functions[1] is not model.train_function
    assert "train_step" not in vars(model)
    made.clear()
    model.fit(X, Y, verbose=0)
    assert not made


def test_every_layer_is_found_at_any_depth():
    inner = keras.Sequential([keras.layers.Dense(1)])
    model = keras.Sequential([keras.Input((2,)), inner])
    assert inner.layers[0] in private.all_layers(model)
    assert len(private.all_layers(model)) == len(
        set(map(id, private.all_layers(model)))
    )


def test_the_rate_of_the_last_step_is_read():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    optimizer = keras.optimizers.SGD(schedule)
    optimizer.build([keras.Variable(1.0)])
    assert private.rate_of_last_step(optimizer) == 0.5
    optimizer.iterations.assign(2)
    assert private.rate_of_last_step(optimizer) == 0.25
    assert private.rate_of_last_step(keras.optimizers.SGD(0.125)) == 0.125


def test_variables_are_built_without_a_step():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    private.build_variables(model, lambda: (X, Y))
    assert model.built
    assert model.optimizer.built
    assert len(model.metrics_variables) == 4
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0
    private.build_variables(model, lambda: pytest.fail("all is built"))


@pytest.mark.long
@pytest.mark.backend("jax", "torch")
@pytest.mark.needs("tensorflow")
def test_tensorflow_stays_unloaded_while_keras_asks_for_it():
    printed = run_python(
        """
        import sys
        import keras
        from fmkit import _keras_private as private

        def loaded_by(layer):
            keras.saving.serialize_keras_object(layer)
            return "tensorflow" in sys.modules

        with private.tensorflow_unloaded():
            with private.tensorflow_unloaded():
                print(loaded_by(keras.layers.Dense(2)))
            print(loaded_by(keras.layers.Dense(2)))
        # Negative control: Keras asks, and would have found it.
        print(loaded_by(keras.layers.Dense(2)))
        """
    )
    assert printed.split() == ["False", "False", "True"]


@pytest.mark.backend("tensorflow")
def test_a_traced_number_passes_for_a_tensor():
    import tensorflow as tf

    from fmkit.callbacks._traced_number import TracedNumber

    number = TracedNumber(0.5, tf.constant(0.25))
    assert isinstance(number, private.tensor_interface())
    assert tf.is_tensor(number)
    # The control: without the class it would be taken for something else.
    assert not tf.is_tensor(object.__new__(TracedNumber))


def test_the_global_seed_generator_decides_unseeded_draws():
    keras.utils.set_random_seed(3)
    variable = private.global_seed_variable(create=True)
    state = np.array(keras.ops.convert_to_numpy(variable))
    first = keras.ops.convert_to_numpy(keras.random.normal((4,)))
    variable.assign(state)
    again = keras.ops.convert_to_numpy(keras.random.normal((4,)))
    assert first.tobytes() == again.tobytes()
    third = keras.ops.convert_to_numpy(keras.random.normal((4,)))
    assert third.tobytes() != first.tobytes()
    assert private.global_seed_variable() is variable
    private.forget_global_seed()
    assert private.global_seed_variable() is None, "Keras renamed its generator."


def test_the_arguments_of_compile_and_fit_are_found_as_they_were_given():
    def own_loss(y, predicted):
        return keras.ops.mean((y - predicted) ** 2)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", own_loss, loss_weights=0.5, metrics=["mae"])
    given = private.compile_arguments(model)
    assert given["loss"] is own_loss
    assert (given["loss_weights"], given["metrics"]) == (0.5, ["mae"])
    assert private.compile_arguments(keras.Model()) == {}
    found = {}

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            found.update(private.running_fit(self).arguments)

    x = np.ones((4, 1), "float32")
    weights = {0: 2.0, 1: 1.0}
    model.fit(
        x,
        x,
        batch_size=2,
        shuffle=False,
        class_weight=weights,
        validation_data=(x, x),
        verbose=0,
        callbacks=[Look()],
    )
    assert found["x"] is x
    assert found["validation_data"][1] is x
    assert (found["batch_size"], found["shuffle"]) == (2, False)
    assert found["class_weight"] == weights
    assert found.keys() == set(private._calls._ARGUMENTS)


def test_what_a_regularizer_returns_is_divided_by_the_batch_or_not():
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(1, activity_regularizer=lambda z: 8.0 + 0.0 * z[0, 0]),
        ]
    )
    model.compile("sgd", lambda y, predicted: 0.0 * keras.ops.sum(predicted))
    loss = model.evaluate(X[:4, :1], Y[:4], verbose=0)
    assert loss == (2.0 if private.divides_activity_losses() else 8.0)


def test_messages_go_where_keras_prints(capsys):
    private.print_msg("hello")
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.backend("tensorflow")
def test_outside_of_keras_there_is_no_request():
    arrays = Arrays()
    assert arrays.num_batches == 5
    assert arrays.requests == []


def test_an_optimizer_tells_the_weights_it_was_built_for():
    model = build()
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    found = private.trainable_variables(optimizer)
    assert len(found) == 2
    for weight, expected in zip(found, model.trainable_variables, strict=True):
        assert weight is expected, "Keras moved the list of an optimizer's weights."


@pytest.mark.backend("torch")
def test_arrays_move_together_with_the_bits_of_each_alone(monkeypatch):
    import torch

    def moved():
        random = torch.Generator().manual_seed(0)
        pairs = [torch.randn((2, 7), generator=random) for _ in range(3)]
        held = [pair[0].clone() for pair in pairs]
        private.move_arrays(held, [pair[1].bfloat16() for pair in pairs], 0.1)
        return held

    calls = []
    kernel = torch._foreach_sub  # PyTorch moved its kernels for lists, if this fails.
    monkeypatch.setattr(
        torch, "_foreach_sub", lambda *given: calls.append(0) or kernel(*given)
    )
    together = moved()
    assert calls == [0]
    monkeypatch.delattr(torch, "_foreach_sub")
    alone = moved()
    assert all((a == b).all() for a, b in zip(together, alone, strict=True))


@pytest.mark.backend("tensorflow", "torch")
def test_the_outputs_of_a_softmax_are_marked():
    logits = keras.ops.convert_to_tensor([[1.0, 2.0]])
    for activation in (keras.activations.softmax, keras.activations.sigmoid):
        assert private.is_activated(activation(logits)), "Keras moved its mark."
    assert not private.is_activated(logits)
    assert not private.is_activated(keras.activations.relu(logits))


@pytest.mark.backend("tensorflow", "torch")
def test_a_mask_is_found():
    assert private.marks_masks(), "Keras moved its mask."
    plain = keras.ops.zeros((2, 3, 1))
    assert not private.is_masked(plain)
    assert private.is_masked(keras.layers.Masking()(plain))


def test_keras_tells_that_variables_must_not_change_in_place():
    assert not private.in_stateless_scope()
    with keras.StatelessScope():
        assert private.in_stateless_scope(), "Keras moved its stateless scope."


def test_a_synchronised_model_holds_the_state_of_the_step_within_fit():
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model = private.model_of(self)
            private.synchronize(model)
            bias = model.layers[0].bias
            seen.append(float(np.array(keras.ops.convert_to_numpy(bias))[0]))

    build().fit(X, Y + 1, batch_size=5, verbose=0, callbacks=[Look()])
    # Gradient descent at 0.01 on (b - 1)^2, from 0.
    assert np.allclose(seen, [0.02, 0.0396]), (
        "Keras moved `jax_state_sync`: variables are not those of the step."
    )


def test_the_model_of_a_callback_is_read_without_a_synchronisation(monkeypatch):
    model, callback, synced = build(), keras.callbacks.Callback(), []
    assert private.model_of(callback) is None, "Keras moved a callback's model."
    callback.set_model(model)
    if keras.backend.backend() == "jax":
        # Keras 3.16 calls it `state_sync`, and keeps the older name beside it.
        name = "state_sync" if hasattr(model, "state_sync") else "jax_state_sync"
        monkeypatch.setattr(type(model), name, lambda self: synced.append(self))
        assert callback.model is model
        assert synced == [model]  # what `model_of` is there to avoid
    assert private.model_of(callback) is model, "Keras moved a callback's model."
    assert len(synced) <= 1


def test_a_hook_of_a_batch_is_called_and_only_then_makes_keras_wait():
    seen, waits = [], []

    class Hooked(keras.callbacks.Callback):
        def __init__(self, hooked):
            super().__init__()
            if hooked:
                private.bind_hook(self, "on_train_batch_end", self.note)

        def note(self, batch, logs=None):
            seen.append(batch)

    for hooked in (False, True):
        calls = keras.callbacks.CallbackList([Hooked(hooked)], model=build())
        waits.append(calls._async_train)
        calls.on_train_begin()
        calls.on_train_batch_end(3, {})
        calls.on_train_end()
    assert seen == [3], "Keras calls a hook of one callback no more."
    if keras.backend.backend() == "jax":  # elsewhere Keras always waits
        assert waits == [True, False], "Keras looks for batch hooks in another way."


class Watch(keras.callbacks.Callback):
    """Passes the batches of `fit` through a list, from step 1 on."""

    def __init__(self):
        super().__init__()
        self.seen, self.steps = [], []

    def on_train_begin(self, logs=None):
        iterator = private.running_fit(self).epoch_iterator
        self.kind = private.kind_of_data(iterator)
        self.by_python = private.watch(iterator, self.read, self.make, self.number)

    def read(self, make):
        for batch in make():
            self.seen.append(keras.ops.convert_to_numpy(batch[0]).shape)
            yield batch

    def make(self, make):
        self.seen.append("TensorFlow")
        return make()

    def number(self, enumerate_steps):
        for step in enumerate_steps():
            if step[0]:
                self.steps.append(step[:2])
                yield step


def in_pieces():
    class Pieces(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]

    return {"x": Pieces()}


def in_a_generator():
    batches = ((X[i : i + 2], Y[i : i + 2]) for i in range(0, 10, 2))
    return {"x": batches, "steps_per_epoch": 5, "shuffle": False}


def in_a_loader():
    import torch

    rows = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    return {"x": loader, "shuffle": False}


def in_arrays():
    return {"x": X, "y": Y, "batch_size": 2}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("arrays", in_arrays),
        ("PyDataset", in_pieces),
        ("generator", in_a_generator),
        pytest.param("DataLoader", in_a_loader, marks=pytest.mark.needs("torch")),
    ],
)
def test_the_batches_of_any_data_pass_through(kind, given):
    watch = Watch()
    build().fit(**given(), verbose=0, callbacks=[watch])
    assert watch.kind == kind
    assert watch.steps == [(1, 1), (2, 2), (3, 3), (4, 4)]
    if watch.by_python:
        assert set(watch.seen) == {(2, 2)}
        assert len(watch.seen) in (4, 5)  # TensorFlow may read ahead
    else:
        # And the iterator that Keras makes at an epoch's end, and throws away.
        assert watch.seen == ["TensorFlow"] * 2
        assert (keras.backend.backend(), kind) == ("tensorflow", "arrays")


@pytest.mark.backend("torch")
def test_rows_of_arrays_are_gathered():
    import torch

    x, y, batches = np.arange(6, dtype="float32")[:, None], np.arange(6) % 2, []

    def make(arrays):
        assert [*map(id, arrays)] == [id(x), id(y)]
        return lambda indices: [
            batches.append(indices) or torch.tensor(array[indices]) for array in arrays
        ]

    class Gathered(keras.Model):
        def make_train_function(self, force=False):
            private.gather_arrays(self, make)
            return super().make_train_function(force)

    inputs = keras.Input((1,))
    model = Gathered(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    assert batches == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5], [4, 5]]
    # Of other data, and outside of `fit`, nothing happens.
    model.fit(Batches(x, y, 4, map=None), verbose=0)
    model.train_on_batch(x, y)
    assert len(batches) == 4


@pytest.mark.needs("tensorflow")
def test_the_steps_of_a_dataset_are_told():
    import tensorflow as tf

    rows = tf.data.Dataset.range(4)
    assert private.ways_through(rows.shuffle(2).batch(2).prefetch(1)) == [
        ["Range", "Shuffle", "Batch", "Prefetch"]
    ]
    both = tf.data.Dataset.zip((rows, rows.repeat(2).cache()))
    assert private.ways_through(both) == [
        ["Range", "Zip"],
        ["Range", "Repeat", "Cache", "Zip"],
    ]
    noisy = rows.map(lambda row: tf.random.uniform(()) + float(row)).batch(2)
    assert private.stateful_operations(noisy) == {"RandomUniform"}
    assert private.stateful_operations(rows.map(lambda row: row + 1)) == set()
    tf.random.set_seed(1)
    assert private.is_seeded()


@pytest.mark.backend("torch")
def test_a_generator_is_made_from_a_seed_where_we_look(monkeypatch):
    import torch

    seeds = []

    def make(of_keras, seed):
        seeds.append(seed)
        return of_keras(7)

    with private.generators_made_by(make):
        drawn = keras.random.uniform((3,), seed=1)
    assert seeds == [1]
    assert torch.equal(drawn, keras.random.uniform((3,), seed=7))
    monkeypatch.delattr("keras.src.backend.torch.random.torch_seed_generator")
    with (
        pytest.raises(private.MissingPieceError, match="torch_seed_generator"),
        private.generators_made_by(make),
    ):
        pass
