"""`ExactResume` with whatever feeds `fit`: arrays, datasets, loaders, generators.

`tests/chaos/sources.py` has the kinds; `tests/test_exact_resume_chaos.py` kills real
processes on them.
"""

import os
import secrets
import signal
import time

import keras
import numpy as np
import pytest
import sources
from bits import bits, state
from resuming import Stateless, StopAt, StopError

import fmkit
from fmkit import _keras_private as private
from fmkit.callbacks import ExactResume
from fmkit.callbacks._resume import _track
from fmkit.callbacks._resume._datasets import pass_over
from fmkit.callbacks._resume._digest import digest_of_batch
from fmkit.callbacks._resume._source import Source

BACKEND = keras.backend.backend()
PACKAGES = {
    "frame": "pandas",
    "loader_stateful": "torchdata",
    **dict.fromkeys(("hugging_face", "hugging_face_stream"), "datasets"),
    **dict.fromkeys(
        ("grain_map", "grain_iter", "grain_weighted", "grain_loader"), "grain"
    ),
}
# The others in `make test-long`.
QUICK = ["arrays", "arrays_by_steps", "pieces", "own_generator"]
if BACKEND == "torch":
    QUICK += ["loader_noisy", "loader_iterable"]


# JAX warns of a fork beside its threads, in every worker; warnings are errors here.
FORKED = {"pieces_processes", "loader_workers"} if BACKEND == "jax" else set()


def kinds():
    for name in sorted(set(sources.SOURCES) - FORKED):
        marks = []
        package = PACKAGES.get(name) or (
            "torch"
            if name.startswith("loader")
            else "tensorflow"
            if name.startswith("dataset")
            else None
        )
        if package:
            marks.append(pytest.mark.needs(package))
        if name not in QUICK:
            marks.append(pytest.mark.long)
        yield pytest.param(name, marks=marks)


def build(features=sources.FEATURES, steps=1, *, named=False):
    fmkit.set_random_seed(1)
    inputs = keras.Input((features,), name="all")
    x = keras.layers.Dense(4, activation="tanh")(inputs)
    outputs = keras.layers.Dense(sources.CLASSES)(keras.layers.Dropout(0.2)(x))
    model = keras.Model({"all": inputs} if named else inputs, outputs)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps,
    )
    return model


def train(directory, given, *callbacks, epochs=3, resume=True, **options):
    """Train a new model on what `given()` returns; return its bits."""
    arguments = given()
    model = build(named=isinstance(arguments["x"], dict))
    data = arguments.pop("data", None)
    if resume:
        options = {"every": 3, "verbose": 0, "data": data, **options}
        callbacks = [ExactResume(directory, **options), *callbacks]
    model.fit(**arguments, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return state(model)


def torch_state():
    import torch

    return torch.random.get_rng_state().numpy().tobytes()


def break_off(directory, given, *places, **options):
    for place in places:
        with pytest.raises(StopError):
            train(directory, given, StopAt(*place), **options)


@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
@pytest.mark.parametrize("name", list(kinds()))
def test_a_run_broken_off_ends_with_the_same_bits(tmp_path, name):
    def given():
        return sources.arguments(name)

    straight = train(tmp_path / "straight", given)
    at = (1, 3) if name == "arrays_by_steps" else (1, 5)
    break_off(tmp_path / "broken", given, (0, 2), at, (2, 2))
    assert train(tmp_path / "broken", given) == straight


@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
@pytest.mark.parametrize("name", QUICK)
def test_the_callback_leaves_the_order_of_the_data_as_it_is(tmp_path, name):
    def given():
        return sources.arguments(name)

    assert train(tmp_path, given) == train(None, given, resume=False)


@pytest.mark.long
@pytest.mark.backend("torch")  # each process imports all that this one has
@pytest.mark.needs("grain")
@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
def test_processes_of_grain_read_from_where_the_run_was(tmp_path):
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # Grain's processes look at them

    def given():
        stream = sources._grain().to_iter_dataset().batch(sources.SIZE)
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers=1)
        return {"x": stream.mp_prefetch(processes), "shuffle": False}

    straight = train(tmp_path / "straight", given, epochs=2)
    break_off(tmp_path / "broken", given, (1, 5), epochs=2)
    assert train(tmp_path / "broken", given, epochs=2) == straight


class Drawing(keras.callbacks.Callback):
    """Draws from a generator that the data leave alone, and keeps what it drew."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.002)  # a thread that reads ahead has read, and waits
        self.drawn.append(np.random.rand())

    on_epoch_end = on_train_batch_end

    def get_state(self):
        return {"drawn": self.drawn}

    def set_state(self, state):
        self.drawn = list(state["drawn"])


@pytest.mark.parametrize(
    "every", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 11))]
)
def test_what_callbacks_draw_goes_on_though_a_thread_reads_ahead(tmp_path, every):
    def trained(folder, *stops):
        drawing = Drawing()
        bits = train(
            tmp_path / folder, sources.pieces_in_order, drawing, *stops, every=every
        )
        return drawing.drawn, bits, np.random.rand()

    straight = trained("straight")
    for place in ((0, 2), (1, 1), (2, 3)):
        with pytest.raises(StopError):
            trained("broken", StopAt(*place))
    assert trained("broken") == straight


@pytest.mark.long
@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_per_execution_are_gone_back_to(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "build", _with_five_steps(build))
    straight = train(tmp_path / "straight", sources.arrays)
    break_off(tmp_path / "broken", sources.arrays, (1, 5), (2, 5))
    assert train(tmp_path / "broken", sources.arrays) == straight


def _with_five_steps(made):
    return lambda **options: made(steps=5, **options)


# Wrong orders are errors


HIDDEN = []  # where nobody looks for the state of data


class Unseeded(sources.Pieces):
    """Shuffled by nobody's seed."""

    def __init__(self):
        super().__init__()
        self.on_epoch_begin()

    def on_epoch_begin(self):
        rng = np.random.default_rng(secrets.randbits(64))
        HIDDEN[:] = rng.permutation(sources.ROWS)

    def __getitem__(self, index):
        rows = list(HIDDEN[index * sources.SIZE :][: sources.SIZE])
        return self.x[rows], self.y[rows]


def other_order(given):
    return pytest.raises(Exception, match="the data came in another order")


def test_a_source_with_an_order_of_its_own_is_an_error_and_never_wrong_bits(tmp_path):
    def given():
        return {"x": Unseeded(), "shuffle": False}

    break_off(tmp_path, given, (1, 5))
    with other_order(given):
        train(tmp_path, given)


def test_other_data_of_the_same_shape_are_an_error(tmp_path):
    class Loud(sources.Pieces):
        louder = 0.0

        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + np.float32(Loud.louder), y

    def given():
        return {"x": Loud()}

    break_off(tmp_path, given, (1, 5))
    Loud.louder = 1e-3
    with other_order(given):
        train(tmp_path, given)


@pytest.mark.backend("torch")
@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
def test_data_that_have_become_fewer_are_an_error(tmp_path):
    import torch

    class Shrinking(torch.utils.data.IterableDataset):
        rows = sources.ROWS

        def __iter__(self):
            x, y = sources.samples()
            for row in range(Shrinking.rows):
                yield torch.tensor(x[row]), int(y[row])

    def given():
        return sources._loader(Shrinking())

    break_off(tmp_path, given, (1, 7))
    Shrinking.rows = 20
    with pytest.raises(ValueError, match=r"data ended after 3 batches; .* 6 had been"):
        train(tmp_path, given)


def test_without_generators_and_digest_the_bits_would_differ(tmp_path, monkeypatch):
    """The negative control of all that is above."""
    straight = train(tmp_path / "straight", sources.pieces)
    monkeypatch.setattr(Source, "put", lambda self, states: None)
    break_off(tmp_path / "seen", sources.pieces, (1, 5))
    with other_order(sources.pieces):
        train(tmp_path / "seen", sources.pieces)
    monkeypatch.setattr(_track, "digest_of_batch", lambda batch: "the same")
    break_off(tmp_path / "unseen", sources.pieces, (1, 5))
    assert train(tmp_path / "unseen", sources.pieces) != straight


def test_an_array_shuffled_in_place_is_refused_where_a_commit_can_t_hold_it(tmp_path):
    class InPlace(sources.Pieces):
        def __init__(self):
            super().__init__()
            self.x = np.repeat(self.x, 1000, axis=1)

        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x[:, ::1000], y

        def on_epoch_end(self):
            np.random.shuffle(self.x)

    def given():
        return {"x": InPlace(), "shuffle": False}

    break_off(tmp_path, given, (1, 5))
    with pytest.raises(ValueError, match=r"changed data\.x, which a commit can't"):
        train(tmp_path, given)


class StopAfter(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise StopError


class Losses(Stateless):
    def __init__(self):
        super().__init__()
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(logs["loss"])


STREAMS = [
    pytest.param("loader_iterable", marks=pytest.mark.needs("torch")),
    pytest.param("dataset_parallel", marks=pytest.mark.needs("tensorflow")),
]


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
def test_no_commit_is_of_a_step_for_which_there_is_no_batch(tmp_path, name):
    """Keras learns the length of a stream when it asks for one batch too many."""

    def given():
        return sources.arguments(name)

    straight, losses = Losses(), Losses()
    expected = train(tmp_path / "straight", given, straight, epochs=2)
    directory = tmp_path / "broken"
    with pytest.raises(StopError):
        train(directory, given, StopAfter(), Losses(), epochs=2, every=12)
    assert train(directory, given, losses, epochs=2) == expected
    assert losses.found == straight.found


class Terminate(Stateless):
    """Sends SIGTERM at the end of a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
def test_a_signal_in_a_stream_loses_no_step(tmp_path, capsys, name):
    def given():
        return sources.arguments(name)

    expected = train(tmp_path / "straight", given, epochs=2)
    for step in (4, 7):
        with pytest.raises(SystemExit):
            train(tmp_path / "b", given, Terminate(step), every=1000, verbose=1)
        said = capsys.readouterr().out
        assert "state saved" in said or f"from epoch 1, step {step + 1}, and" in said
    assert train(tmp_path / "b", given, epochs=2, every=1000) == expected


@pytest.mark.needs("torch")
def test_a_thread_of_a_broken_fit_draws_for_no_other(tmp_path):
    """TensorFlow's threads read ahead, and would go on drawing when `fit` is over."""

    import torch

    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return sources.ROWS

        def __getitem__(self, index):
            time.sleep(0.005)
            x, y = sources.samples()
            return torch.tensor(x[index]) + torch.rand(sources.FEATURES), int(y[index])

    break_off(tmp_path, lambda: sources._loader(Slow()), (0, 2))
    drawn = torch_state()
    time.sleep(0.3)
    assert torch_state() == drawn


# The cheapest way back


def test_batches_are_passed_over_by_index(tmp_path):
    read = []

    class Counted(sources.Pieces):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    def given():
        return {"x": Counted()}

    break_off(tmp_path, given, (0, 10))
    read.clear()
    train(tmp_path, given, epochs=1)
    # The batch that stands for those passed over, the last one, and the rest; Keras
    # itself looks at up to two first.
    assert len(read) <= 2 + 2 + 3


@pytest.mark.backend("torch")
def test_a_loader_passes_over_indices_without_reading_samples(tmp_path):
    import torch

    read = []

    class Counted(torch.utils.data.Dataset):
        def __len__(self):
            return sources.ROWS

        def __getitem__(self, index):
            read.append(index)
            x, y = sources.samples()
            return torch.tensor(x[index]), int(y[index])

    def given():
        return sources._loader(Counted())

    break_off(tmp_path, given, (0, 10))
    read.clear()
    train(tmp_path, given, epochs=1)
    looked_at = set(range(sources.SIZE))  # by Keras, to build the model
    assert set(read) - looked_at == set(range(8 * sources.SIZE, sources.ROWS))


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_an_earlier_shuffle_is_repeated_as_often_as_it_was_begun():
    import tensorflow as tf

    def orders(make, used, *, pass_first=0):
        tf.random.set_seed(3)
        dataset = make(tf.data.Dataset.range(20))
        if pass_first:
            pass_over(dataset, lambda: dataset, pass_first, used_every=1)
        return [list(dataset.as_numpy_iterator()) for _ in range(used)]

    for make in (
        lambda rows: rows.shuffle(20).batch(4).prefetch(1).unbatch(),
        lambda rows: rows.shuffle(20).repeat(2),
        lambda rows: rows.shuffle(20).cache().shuffle(20),
    ):
        assert orders(make, 1, pass_first=3)[0] == orders(make, 4)[3]
        assert orders(make, 1, pass_first=2)[0] != orders(make, 4)[3]


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_several_fits_count_the_iterators_of_one_dataset(tmp_path, monkeypatch):
    import tensorflow as tf

    def loop(directory, *callbacks):
        tf.random.set_seed(3)
        model, resume = build(), ExactResume(directory, every=5, verbose=0)
        given = sources.dataset()
        for i in range(3):
            model.fit(
                **given,
                initial_epoch=i,
                epochs=i + 1,
                verbose=0,
                callbacks=[resume, *callbacks],
            )
        return bits(model.weights)

    def broken_and_resumed(directory, *place):
        with pytest.raises(StopError):
            loop(directory, StopAt(*place))
        return loop(directory)

    straight = loop(tmp_path / "straight")
    assert broken_and_resumed(tmp_path / "a", 2, 3) == straight
    assert broken_and_resumed(tmp_path / "b", 2, 7) == straight
    # The negative control: each `fit` counts for itself.
    monkeypatch.setattr(_track, "iterators_of", lambda data: 0)
    assert broken_and_resumed(tmp_path / "c", 2, 3) != straight


# What is said before training


def said(capsys, tmp_path, given, **options):
    train(tmp_path / secrets.token_hex(4), given, epochs=1, verbose=1, **options)
    lines = capsys.readouterr().out.splitlines()
    return next((line for line in lines if "at the start of an epoch" in line), None)


def test_nothing_is_said_of_data_that_resume_inside_an_epoch(tmp_path, capsys):
    assert said(capsys, tmp_path, sources.arrays) is None


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_what_tensorflow_can_t_draw_again_is_named(tmp_path, capsys):
    import tensorflow as tf

    def noisy():
        rows = sources._dataset().map(
            lambda x, y: (x + tf.random.uniform([sources.FEATURES]), y)
        )
        return {"x": rows.batch(8), "shuffle": False}

    line = said(capsys, tmp_path, noisy)
    assert "RandomUniform: use tf.random.stateless_" in line

    def in_python():
        def noisy(x):
            return x + np.random.rand(sources.FEATURES).astype(np.float32)

        rows = sources._dataset().map(
            lambda x, y: (
                tf.ensure_shape(tf.numpy_function(noisy, [x], tf.float32), 6),
                y,
            )
        )
        return {"x": rows.batch(8).prefetch(2), "shuffle": False}

    line = said(capsys, tmp_path, in_python)
    assert "Python functions of the tf.data.Dataset draw random" in line

    def in_any_order():
        options = tf.data.Options()
        options.deterministic = False
        rows = sources._dataset().batch(8).with_options(options)
        return {"x": rows, "shuffle": False}

    line = said(capsys, tmp_path, in_any_order)
    assert "options().deterministic is False" in line


@pytest.mark.backend("torch")
def test_persistent_workers_are_named(tmp_path, capsys):
    def given():
        return sources._loader(num_workers=1, persistent_workers=True)

    assert "persistent workers" in said(capsys, tmp_path, given)


def test_where_keras_has_moved_a_piece_a_line_says_so(tmp_path, capsys, monkeypatch):
    piece = "_steps_seen"
    found = private._batches.attribute

    def without(owner, name, what=None):
        if name == piece:
            raise private._pieces.missing(name, type(owner).__name__, what)
        return found(owner, name, what)

    monkeypatch.setattr(private._batches, "attribute", without)
    line = said(capsys, tmp_path, sources.arrays)
    assert f"Keras {keras.__version__} has no `" in line
    assert piece in line


def test_data_without_a_place_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`data` must know its place"):
        ExactResume(tmp_path, data=[1, 2])


# Digests


def test_the_digest_of_a_batch_sees_one_bit_and_the_order():
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    same = digest_of_batch((x, {"y": x[:, 0], "none": None}))
    assert digest_of_batch((x.copy(), {"y": x[:, 0].copy(), "none": None})) == same
    other = x.copy()
    other.view(np.uint32)[5, 1] ^= 1
    assert digest_of_batch((other, {"y": x[:, 0]})) != same
    assert digest_of_batch((x[::-1], {"y": x[:, 0]})) != same
    assert digest_of_batch((x.astype(np.float64), {"y": x[:, 0]})) != same


@pytest.mark.backend("torch")
@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
def test_data_that_can_no_longer_be_started_inside_an_epoch_are_refused(tmp_path):
    def given(**options):
        return lambda: sources._loader(num_workers=1, **options)

    break_off(tmp_path, given(), (1, 4))
    with pytest.raises(ValueError, match=r"(?s)inside epoch 2.*persistent workers"):
        train(tmp_path, given(persistent_workers=True))
