"""Settings for `fit`: what the rules say, and what measuring leaves behind."""

import os
import random

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS

from fmkit import _keras_private as private
from fmkit.data import Batches
from fmkit.performance import (
    FitSettings,
    Measurement,
    fit_settings,
    fused,
    keep_compiled_programs,
)
from fmkit.performance import _programs as programs
from fmkit.performance import _settings as rules
from fmkit.performance._measure import Candidate, measure_candidates

BACKEND = keras.backend.backend()
K = keras.layers


def data(steps=130, size=2):
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (steps * size, 4, 4, 1), dtype="uint8")
    return Batches(x, rng.randint(0, 3, len(x)), size)


def network(*layers):
    return keras.Sequential([keras.Input((4, 4, 1)), *layers, K.Flatten(), K.Dense(3)])


def compiled(*layers, **settings):
    model = network(*layers)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **settings,
    )
    return model


# The rules


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    ("layers", "epochs", "device", "xla", "why"),
    [
        (lambda: [K.Dense(8, "relu"), K.Dropout(0.1)], 100, "cpu", True, "repay"),
        (lambda: [K.Dense(8)], 1, "cpu", False, "too few"),
        (lambda: [K.MaxPooling2D()], 100, "cpu", False, "MaxPooling2D"),
        (lambda: [K.Conv2D(2, 3, strides=2)], 100, "cpu", False, "Conv2D"),
        (
            lambda: [keras.Sequential([K.MaxPooling2D()])],
            100,
            "cpu",
            False,
            "MaxPooling2D",
        ),
        (lambda: [K.MaxPooling2D()], 100, "gpu", True, "fuses"),
    ],
)
def test_xla_on_tensorflow_is_chosen_where_it_wins(layers, epochs, device, xla, why):
    settings = fit_settings(network(*layers()), data(), epochs=epochs, device=device)
    assert settings.compile["jit_compile"] is xla
    assert why in settings.reasons["jit_compile"]


def test_the_settings_say_why_and_go_into_compile_and_fit():
    batches = data(steps=7)
    model = network(K.Dense(4))
    settings = fit_settings(model, batches, epochs=2)
    model.compile("sgd", "sparse_categorical_crossentropy", **settings.compile)
    model.fit(**settings.fit, epochs=2, verbose=0)
    assert batches.position == (2, 0)
    assert int(model.optimizer.iterations) == 14
    assert len(str(settings).splitlines()) == 3 + len(settings.hints)
    assert set(settings.reasons) == {*settings.compile, *settings.fit}


def test_the_steps_of_an_execution_divide_the_epoch_evenly():
    steps = fit_settings(network(), data(steps=130)).compile["steps_per_execution"]
    assert steps == (1 if BACKEND == "torch" else 44)  # 44 + 44 + 42
    short = fit_settings(network(), data(steps=3)).compile["steps_per_execution"]
    assert short == (1 if BACKEND == "torch" else 3)


@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.parametrize(
    ("epoch", "pixels", "taken"),
    [(100, 16, 100), (149, 16, 75), (201, 16, 67), (74, 2**20, 25)],
)
def test_a_fused_model_gets_at_most_100_steps_or_64_mb(epoch, pixels, taken):
    # Of 2**20 pixels, 32 batches of two bytes per pixel are 64 MB.
    x = np.broadcast_to(np.uint8(0), (2 * epoch, pixels))
    model = fused(keras.Sequential([keras.Input((pixels,)), K.Flatten()]))
    settings = fit_settings(model, x, x[:, 0], batch_size=2)
    assert settings.compile["steps_per_execution"] == taken


@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize(("known", "taken"), [(True, 25), (False, 37)])
def test_a_dataset_is_bounded_too_if_it_says_the_size_of_its_batches(known, taken):
    import tensorflow as tf

    def row(n):
        return tf.zeros((2**20,), "uint8"), tf.zeros((), "uint8")

    def never(n):
        raise AssertionError("nobody reads a batch to choose settings")

    # As the arrays above: 74 batches, of which 31 are 64 MB.
    rows = tf.data.Dataset.range(148).map(lambda n: tf.py_function(never, [n], n.dtype))
    rows = rows.map(row).batch(2, drop_remainder=known)
    model = fused(keras.Sequential([keras.Input((2**20,)), K.Flatten()]))
    settings = fit_settings(model, rows)
    assert settings.compile["steps_per_execution"] == taken
    told = "may take more than 64 MB" in settings.reasons["steps_per_execution"]
    assert told is not known
    plain = fit_settings(network(), rows).reasons["steps_per_execution"]
    assert "64 MB" not in plain  # which holds one batch at a time


def tensor_of_tensorflow(array):
    import tensorflow as tf

    return tf.constant(array)


def table(array):
    import pandas as pd

    return pd.DataFrame(array)


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        (np.asarray, 4 * 2),
        (keras.ops.convert_to_tensor, 4 * 2),
        pytest.param(
            tensor_of_tensorflow, 4 * 2, marks=pytest.mark.needs("tensorflow")
        ),
        # Eight bytes at most: its columns may be of several types.
        pytest.param(table, 4 * 8, marks=pytest.mark.needs("pandas")),
    ],
    ids=["NumPy", "the backend's", "TensorFlow's", "pandas"],
)
def test_the_size_of_a_batch_of_rows_is_known(kind, width):
    from fmkit.performance._given import look_at

    rows = kind(np.zeros((26, 4), "int16"))
    assert look_at(rows, None, 3, None).bytes_of_a_batch == 3 * width


class Whole:
    """What has rows and neither `dtype` nor `len`: a table, a sparse array."""

    shape = (26, 4)


class Pieces(keras.utils.PyDataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        raise AssertionError("nobody reads a batch to choose settings")


def dataset(**options):
    import tensorflow as tf

    rows = tf.data.Dataset.range(26).map(lambda n: (tf.zeros((4, 4, 1)), n % 3))
    return rows.batch(3, **options)


def endless():
    while True:
        yield np.zeros((2, 4, 4, 1)), np.zeros(2)


X, Y = np.zeros((26, 4, 4, 1), "float32"), np.zeros(26, "int32")


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (lambda: {"data": X, "y": Y, "batch_size": 3}, 9),
        (lambda: {"data": X, "y": Y}, 1),
        (lambda: {"data": Whole(), "y": Y, "batch_size": 3}, 9),
        (lambda: {"data": Pieces()}, 9),
        pytest.param(
            lambda: {"data": dataset()}, 9, marks=pytest.mark.needs("tensorflow")
        ),
        (lambda: {"data": endless(), "steps_per_epoch": 12}, 12),
    ],
    ids=["arrays", "32 by default", "other rows", "PyDataset", "tf.data", "generator"],
)
def test_any_data_say_how_many_batches_they_have(arguments, steps):
    given = arguments()
    settings = fit_settings(network(), **given)
    taken = settings.compile["steps_per_execution"]
    assert taken == (1 if BACKEND == "torch" else steps)
    given["x"] = given.pop("data")
    assert {name: settings.fit[name] for name in given} == given
    assert "array" in str(settings) or given["x"] is not X


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"steps_per_epoch": 4}, 7),
        ({"steps_per_epoch": 40}, 1),
        ({"steps_per_epoch": 4, "batch_size": 3}, 3),
        ({}, 32),
    ],
)
def test_arrays_are_cut_into_batches_as_keras_cuts_them(given, size):
    settings = fit_settings(network(), X, Y, **given)
    assert settings.fit["batch_size"] == size


@pytest.mark.backend("torch")  # a step in Python, and the same code on all
def test_keras_cuts_26_rows_for_4_steps_into_batches_of_7():
    sizes = []

    class Looking(K.Layer):
        def call(self, x):
            sizes.append(x.shape[0])
            return x

    model = compiled(Looking())
    model.fit(X, Y, steps_per_epoch=4, verbose=0)
    assert sizes[-4:] == [7, 7, 7, 5]


@pytest.mark.needs("pandas", "scipy")
def test_tables_and_sparse_arrays_are_rows_too():
    import pandas as pd
    from scipy import sparse

    for x in (pd.DataFrame(X[:, 0, 0]), sparse.csr_array(X[:, :, 0, 0])):
        assert fit_settings(network(), x, Y).fit["x"] is x


@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.parametrize(
    ("steps", "taken"), [(60, 60), (100, 50), (75, 25), (118, 59), (131, 1)]
)
def test_whole_executions_end_with_the_epoch(steps, taken):
    # Keras would train on past `steps_per_epoch`; Batches end where they should.
    settings = fit_settings(network(), endless(), steps_per_epoch=steps)
    assert settings.compile["steps_per_execution"] == taken
    assert settings.fit["steps_per_epoch"] == steps


@pytest.mark.needs("tensorflow")
def test_what_does_not_tell_its_batches_is_named():
    for unknown in (endless(), dataset().repeat(), dataset().filter(lambda x, y: True)):
        with pytest.raises(
            ValueError, match="Give `fit_settings` and `fit` a `steps_p"
        ):
            fit_settings(network(), unknown)
    with pytest.raises(
        ValueError, match=r"`batch_size` goes with arrays.* Leave it out"
    ):
        fit_settings(network(), Pieces(), batch_size=3)
    with pytest.raises(ValueError, match=r"all the same number; got the shapes"):
        fit_settings(network(), X, Y[:-1])
    with pytest.raises(ValueError, match=r"must have rows"):
        fit_settings(network(), X[:0], Y[:0])
    with pytest.raises(ValueError, match=r"must have rows"):
        fit_settings(network(), np.float32(0), np.int32(0))


@pytest.mark.backend("jax")
@pytest.mark.parametrize("of_keras", [False, True])
def test_convolutions_are_not_put_into_a_loop_on_a_cpu(of_keras, monkeypatch):
    def steps(model, device="cpu"):
        batches = Batches(np.zeros((640, 8, 8, 1), "uint8"), np.zeros(640), 64)
        settings = fit_settings(model, batches, device=device)
        return settings.compile["steps_per_execution"], str(settings)

    layers = keras.layers
    convolutional = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3)])
    dense = keras.Sequential([keras.Input((8, 8, 1)), layers.Dense(2)])
    # Whether Keras has a loop itself, as from 3.16 on, which puts any model into it.
    monkeypatch.setattr(private, "stacks_batches", lambda: of_keras)
    for model in (fused(convolutional), *[convolutional] * of_keras):
        few, why = steps(model)
        assert few == 1
        assert "Conv2D inside a loop over steps" in why
    for model, device in (
        *[(convolutional, "cpu")] * (not of_keras),
        (dense, "cpu"),
        (fused(dense), "cpu"),
        (convolutional, "gpu"),
        (fused(convolutional), "gpu"),
    ):
        assert steps(model, device)[0] == 10


def test_hints_name_what_saves_more_where_the_benchmarks_say_so(monkeypatch):
    def hints(model, device="cpu"):
        settings = fit_settings(model, data(), device=device)
        assert str(settings).endswith("\n".join(settings.hints))
        return " ".join(settings.hints)

    class OwnStep(keras.Sequential):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    monkeypatch.setattr(private, "stacks_batches", lambda: False)
    dense, convolutional = network(K.Dense(4)), network(K.Conv2D(2, 3))
    assert "performance.fused(model)" in hints(dense)
    assert ("fused" in hints(convolutional)) is (BACKEND == "torch")
    own = OwnStep([keras.Input((4, 4, 1)), K.Flatten(), K.Dense(3)])
    for other in (fused(dense), own):  # is one, or can't become one
        assert "fused" not in hints(other)
    assert "fused" not in hints(dense, "gpu")
    monkeypatch.setattr(private, "stacks_batches", lambda: True)
    assert ("fused" in hints(dense)) is (BACKEND != "jax")


@pytest.fixture
def jax_cache():
    """JAX's cache of programs, put back as it was."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    yield compilation_cache
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.backend("jax")
@pytest.mark.usefixtures("jax_cache")
def test_compiled_programs_are_kept_for_the_next_start(tmp_path):
    import jax

    def trained():
        jax.clear_caches()  # as in a new process
        keras.utils.set_random_seed(3)
        model = compiled()
        model.fit(data(), verbose=0)
        return [weights.tobytes() for weights in model.get_weights()]

    expected = trained()
    keep_compiled_programs(tmp_path / "programs")
    assert trained() == expected
    kept = {path.name for path in (tmp_path / "programs").iterdir()}
    assert kept
    assert trained() == expected
    assert {path.name for path in (tmp_path / "programs").iterdir()} == kept


@pytest.mark.backend("jax")
@pytest.mark.usefixtures("jax_cache")
def test_another_folder_takes_over_and_a_relative_one_stays_where_it_is(
    tmp_path, monkeypatch
):
    import jax

    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        keep_compiled_programs(name)
        assert jax.config.jax_compilation_cache_dir == os.path.join(os.getcwd(), name)
        jax.clear_caches()
        jax.jit(lambda x: x + 1)(np.ones(3, "float32"))
        assert list((tmp_path / name).iterdir())
    assert "keep_compiled" not in " ".join(fit_settings(network(), data()).hints)
    jax.config.update("jax_compilation_cache_dir", None)
    assert "keep_compiled" in " ".join(fit_settings(network(), data()).hints)
    keep_compiled_programs("gs://bucket/programs")  # not a folder of this machine
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs"


@pytest.mark.backend("jax")
def test_a_jax_that_cannot_change_the_folder_says_so(tmp_path, jax_cache, monkeypatch):
    keep_compiled_programs(tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.delattr(jax_cache, "reset_cache")
        keep_compiled_programs(tmp_path / "one")  # which is in use already
        with pytest.raises(RuntimeError, match=r"one' until the process .*other'"):
            keep_compiled_programs(tmp_path / "other")
    assert programs.folder_of_programs() == str(tmp_path / "one")
    keep_compiled_programs(tmp_path / "other")


@pytest.mark.backend("tensorflow", "torch")
def test_who_keeps_no_programs_says_so(tmp_path):
    with pytest.raises(NotImplementedError, match=r"can't\. Leave out `keep_comp"):
        keep_compiled_programs(tmp_path)


@pytest.mark.backend("torch")
def test_pytorch_gains_nothing_from_several_steps_an_execution(monkeypatch):
    # What the rule rests on: should Keras fuse the steps, this asks for a new rule.
    model, calls = compiled(steps_per_execution=2), []
    step = model.train_step
    monkeypatch.setattr(model, "train_step", lambda x: (calls.append(1), step(x))[1])
    if BACKEND in MANY_STEPS:
        model.fit(data(steps=7), verbose=0)
        assert len(calls) == 7
    else:
        with pytest.raises(ValueError, match="must be 1 with the PyTorch backend"):
            model.fit(data(), verbose=0)


@pytest.mark.backend("tensorflow")
def test_auto_steps_per_execution_makes_fit_raise():
    model = compiled(steps_per_execution="auto")
    with pytest.raises(TypeError):
        model.fit(data(), verbose=0)


@pytest.mark.backend("tensorflow")
def test_auto_jit_compile_is_no_xla_on_a_cpu():
    import tensorflow as tf

    if not tf.config.get_visible_devices("GPU"):
        assert compiled(jit_compile="auto").jit_compile is False
    assert compiled(jit_compile=True).jit_compile is True


class Refusing(K.Layer):
    def __init__(self):
        super().__init__(name="no_xla")
        self.supports_jit = False

    def call(self, x):
        return x


def test_a_layer_that_refuses_xla_is_named():
    settings = fit_settings(network(Refusing()), data(), epochs=100)
    assert settings.compile["jit_compile"] is False
    if BACKEND != "torch":
        assert "'no_xla'" in settings.reasons["jit_compile"]


def test_what_keras_would_turn_off_is_not_timed(monkeypatch):
    timed = []

    def measured(model, batches, candidates, seconds):
        timed.extend(candidates)
        # XLA would win, if it were among them.
        return tuple(
            Measurement(c.jit_compile, c.steps_per_execution, 0.0, 2.0 - c.jit_compile)
            for c in candidates
        )

    monkeypatch.setattr(rules, "measure_candidates", measured)
    for layer, xla in ((Refusing(), False), (K.Dense(4), BACKEND != "torch")):
        timed.clear()
        settings = fit_settings(compiled(layer), data(), measure=True)
        assert settings.compile["jit_compile"] is xla
        assert any(each.jit_compile for each in timed) is xla


# The measurement


def everything(model):
    """All that a measurement could have touched, as bytes."""
    arrays = [keras.ops.convert_to_numpy(v) for v in model.variables]
    arrays += [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    seen = [array.tobytes() for array in arrays]
    seen += [random.getstate(), np.random.get_state()[1].tobytes()]
    if BACKEND == "torch":
        import torch

        seen.append(torch.get_rng_state().numpy().tobytes())
    return seen


def test_measuring_leaves_no_trace_and_what_follows_is_the_same():
    def train(measured):
        keras.utils.set_random_seed(3)
        batches = data(steps=5)
        batches.seek(4, 1)
        model = compiled(K.Dense(4), K.Dropout(0.5))
        if measured:
            before = everything(model)
            settings = fit_settings(
                model, batches, epochs=3, measure=True, seconds=1e-3
            )
            assert everything(model) == before
            assert batches.position == (4, 1)
            check_the_report(settings)
        model.fit(batches, epochs=1, verbose=0)
        draw = keras.ops.convert_to_numpy(keras.random.normal((3,)))
        return [*everything(model), draw.tobytes()]

    assert train(measured=True) == train(measured=False)


def check_the_report(settings):
    totals = [one.total(15) for one in settings.measurements]
    best = settings.measurements[0]
    assert totals == sorted(totals)
    assert settings.compile == {
        "jit_compile": best.jit_compile,
        "steps_per_execution": best.steps_per_execution,
    }
    assert "Measured for 15 steps" in settings.reasons["jit_compile"]


def test_without_the_restore_a_measurement_would_show(monkeypatch):
    # Negative control: copying and training a model draws from the generators.
    from fmkit import _generators

    monkeypatch.setattr(_generators, "restore_random_state", lambda state: None)
    model = compiled(K.Dropout(0.5))
    before = everything(model)
    copied = [Candidate(BACKEND == "jax", 1)]
    measure_candidates(model, data(steps=2), copied, 1e-3)
    assert everything(model) != before


@pytest.mark.backend("tensorflow")
def test_the_time_of_a_step_and_of_the_start_come_apart(monkeypatch):
    # A clock that a model moves: 7 s at its first fit, half a second a step.
    now, seen = [0.0], []

    def fit(self, batches, **_):
        steps = len(batches) - batches.position[1]
        now[0] += 0.5 * steps + (0 if id(self) in seen else 7)
        seen.append(id(self))

    model = compiled()
    monkeypatch.setattr(keras.Sequential, "fit", fit)
    candidate = Candidate(False, 3)
    (found,) = measure_candidates(model, data(), [candidate], 60.0, lambda: now[0])
    assert found == Measurement(False, 3, start=7.0, step=0.5)


@pytest.mark.backend("tensorflow")
def test_compilation_counts_against_the_number_of_steps():
    xla = Measurement(True, 50, start=3.0, step=0.001)
    plain = Measurement(False, 50, start=1.0, step=0.002)
    assert rules._fastest((xla, plain), 1900).jit_compile is False
    assert rules._fastest((xla, plain), 2100).jit_compile is True


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="must be compiled"):
        fit_settings(network(), data(), measure=True)
    with pytest.raises(ValueError, match=r"which only Batches.*got ndarray.* Give"):
        fit_settings(compiled(), np.zeros((3, 4, 4, 1)), np.zeros(3), measure=True)
    with pytest.raises(ValueError, match="must be one of"):
        fit_settings(network(), data(), device="gpus")
    assert isinstance(fit_settings(network(), data()), FitSettings)
