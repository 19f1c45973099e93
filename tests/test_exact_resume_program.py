"""What makes another program of a run: all that changes bits is refused by its name."""

import functools
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from bits import same_bits
from resuming import StopAt, StopError, X, Y, build

from fmkit import _describe
from fmkit._commits import list_commits, read_commit, read_meta, write_commit
from fmkit._describe import describe, digest_of_arrays
from fmkit.augmentation import AlternatingFlip, Shift
from fmkit.callbacks import ExactResume
from fmkit.callbacks._resume import _program
from fmkit.data import Batches
from fmkit.optimizers import ExponentialMovingAverage
from fmkit.schedules import ExponentialDecay

BACKEND = keras.backend.backend()
layers = keras.layers
SCALE = 2.0


def own_loss(y, predicted):
    return keras.ops.mean((keras.ops.cast(y, "float32") - predicted[:, 0]) ** 2)


def another_loss(y, predicted):
    return keras.ops.mean((keras.ops.cast(y, "float32") - predicted[:, 1]) ** 2)


another_loss.__name__, another_loss.__qualname__ = "own_loss", "own_loss"

DEFAULTS = {
    "x": X,
    "y": Y,
    "activation": "relu",
    "rate": 0.2,
    "regularizer": None,
    "epsilon": 1e-3,
    "policy": "float32",
    "loss": "sparse_categorical_crossentropy",
    "loss_weights": None,
    "metrics": ("accuracy",),
    "run_eagerly": False,
    "optimizer": lambda: keras.optimizers.Adam(0.01, epsilon=1e-7),
    "class_weight": None,
    "sample_weight": None,
    "map": None,
    "augment": None,
    "drop": False,
    "skip": False,
    "validation": None,
    "epochs": 1,
    "callbacks": (),
    "layer": None,
}


def own_map(x, y):
    return x, y


def other_map(x, y):
    return x * 1.0, y


other_map.__name__, other_map.__qualname__ = "own_map", "own_map"


def own_noise(x, y, draws):
    return x + draws.uniform(0, 1, (3,)), y


def other_noise(x, y, draws):
    return x + draws.uniform(0, 2, (3,)), y


other_noise.__name__, other_noise.__qualname__ = "own_noise", "own_noise"


class Scaled(layers.Layer):
    def call(self, x):
        return x * 2.0


class Exotic(layers.Layer):
    """A layer of which Keras can make no configuration."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


class Callable:
    """A `map` that is an object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, y):
        return x * self.factor, y


def changed_layer():
    class Scaled(layers.Layer):
        def call(self, x):
            return x * 3.0

    Scaled.__module__, Scaled.__qualname__ = __name__, "Scaled"
    return Scaled()


def train(directory, resume=None, **changes):
    options = {**DEFAULTS, **changes}
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(options["policy"])
    inputs = keras.Input((3,))
    first = layers.Dense(
        4, options["activation"], kernel_regularizer=options["regularizer"]
    )(inputs)
    second = layers.BatchNormalization(epsilon=options["epsilon"])(first)
    second = layers.Dropout(options["rate"])(second)
    if options["layer"]:
        second = options["layer"]()(second)
    joined = layers.Add()([second, second if options["skip"] else first])
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(joined))
    model.compile(
        options["optimizer"](),
        options["loss"],
        loss_weights=options["loss_weights"],
        metrics=list(options["metrics"]),
        run_eagerly=options["run_eagerly"],
    )
    batches = Batches(
        options["x"],
        options["y"],
        8,
        map=options["map"],
        augment=options["augment"],
        sample_weight=options["sample_weight"],
        drop_remainder=options["drop"],
    )
    resume = resume or ExactResume(directory, every=2, verbose=0)
    model.fit(
        batches,
        epochs=options["epochs"],
        verbose=0,
        class_weight=options["class_weight"],
        validation_data=options["validation"],
        callbacks=[resume, *options["callbacks"]],
    )
    return model


def with_one_value_changed(array):
    array = array.copy()
    array[17] = array[17] + 1 if array.dtype.kind == "i" else array[17] * 1.5
    return array


CHANGES = {
    "activation": ({"activation": "tanh"}, r"layer dense\.activation: 'relu'"),
    "dropout": ({"rate": 0.3}, r"layer dropout\.rate: 0\.2 .*, 0\.3 here"),
    "policy": ({"policy": "mixed_bfloat16"}, r"\.dtype.*'float32'.*'mixed_bfloat16'"),
    "loss": ({"loss": own_loss}, r"loss: 'sparse_categorical_crossentropy' in"),
    "loss weight": ({"loss_weights": 0.5}, r"loss_weights: only here, 0\.5"),
    "class weight": ({"class_weight": {0: 2.0}}, r"fit\.class_weight"),
    "eager": ({"run_eagerly": True}, r"run_eagerly: False in the commit, True here"),
    "one input": ({"x": with_one_value_changed(X)}, r"data\.content: '"),
    "one label": ({"y": with_one_value_changed(Y)}, r"data\.content: '"),
    "permuted labels": ({"y": Y[::-1].copy()}, r"data\.content: '"),
    "sample weight": ({"sample_weight": np.ones(40)}, r"data\.arrays: "),
    "regularizer": ({"regularizer": "l2"}, r"kernel_regularizer.*only here"),
    "epsilon": ({"epsilon": 1e-2}, r"layer batch_normalization\.epsilon: 0\.001"),
    "connections": ({"skip": True}, r"connections"),
    "metric": ({"metrics": ()}, r"metrics: \['accuracy'\] in the commit, \[\] here"),
    "optimizer": ({"optimizer": lambda: keras.optimizers.SGD()}, "optimizer.class"),
    "optimizer's epsilon": (
        {"optimizer": lambda: keras.optimizers.Adam(0.01, epsilon=1e-6)},
        r"optimizer\.epsilon: 1e-07 in the commit, 1e-06 here",
    ),
    "schedule": (
        {"optimizer": lambda: keras.optimizers.Adam(ExponentialDecay(0.01, 5, 0.5))},
        r"optimizer\.learning_rate",
    ),
    "map": ({"map": own_map}, r"data\.map: only here, '.*own_map"),
    "augmentation": (
        {"augment": own_noise},
        r"data\.augment: only here, \['.*own_noise",
    ),
    "drop remainder": ({"drop": True, "batch": 7}, r"data\.drop_remainder: False"),
    "validation": ({"validation": (X, Y)}, r"fit\.validation_data"),
    "layer": ({"layer": Scaled}, r"layer scaled: only here"),
}


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("program")
    train(directory)
    return directory


@pytest.mark.backend("torch")  # the quickest; nothing in it depends on one
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_that_changes_bits_is_refused_by_its_name(committed, name):
    changes, named = CHANGES[name]
    before = [path.read_bytes() for path in list_commits(committed)]
    with pytest.raises(ValueError, match=f"(?s)made by another program.*{named}"):
        train(committed, epochs=2, **changes)
    assert [path.read_bytes() for path in list_commits(committed)] == before


def test_what_is_changed_on_purpose_passes(committed, tmp_path):
    class Quiet(keras.callbacks.Callback):
        pass

    resume = ExactResume(committed, every=3, keep=4, verbose=0)
    model = train(committed, resume, epochs=3, callbacks=[Quiet()])
    assert resume.resumed_from == (1, 0)
    assert same_bits(model.variables, train(tmp_path, epochs=3).variables)


@pytest.mark.backend("torch")  # the quickest; nothing in it depends on one
@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ({"loss": own_loss}, {"loss": another_loss}, "loss: '.*own_loss"),
        ({"map": own_map}, {"map": other_map}, r"data\.map: '.*own_map"),
        (
            {"augment": own_noise},
            {"augment": other_noise},
            r"data\.augment\[0\]: '.*own_noise",
        ),
        ({"layer": Scaled}, {"layer": changed_layer}, r"layer scaled\.code"),
        (
            {"optimizer": lambda: ExponentialMovingAverage("adam", 0.9)},
            {"optimizer": lambda: ExponentialMovingAverage("adam", 0.99)},
            r"optimizer\.decay: 0\.9 in the commit, 0\.99 here",
        ),
        (
            {"layer": lambda: Exotic(lambda x: x * 2.0)},
            {"layer": lambda: Exotic(lambda x: x * 3.0)},
            r"functions\.layer exotic\.function: '",
        ),
        (
            {"map": Callable(2.0)},
            {"map": Callable(3.0)},
            r"data\.map\.factor: 2\.0 in the commit, 3\.0 here",
        ),
        (
            {"validation": (X, Y)},
            {"validation": (with_one_value_changed(X), Y)},
            r"fit\.validation_data",
        ),
    ],
    ids=[
        "loss",
        "map",
        "augment",
        "layer",
        "decay",
        "exotic",
        "object",
        "validation data",
    ],
)
def test_an_edited_function_of_the_same_name_is_another(tmp_path, old, new, named):
    train(tmp_path, **old)
    with pytest.raises(ValueError, match=f"(?s)made by another program.*{named}"):
        train(tmp_path, epochs=2, **new)
    train(tmp_path, epochs=2, **old)


def scaled(factor, x, y):
    return factor * x, y


SETTING = AlternatingFlip()


def with_a_global(x, y, draws):
    return SETTING(x, y, draws)


def within(value):
    def changed(x, y, draws):
        return value, x, y

    return changed


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    "make",
    [
        lambda n: functools.partial(scaled, n),
        lambda n: Callable(n).__call__,
        lambda n: within(Shift(n)),
        lambda n: within((n, "a")),
        lambda n: within([Shift(n), scaled]),
        lambda n: within(functools.partial(scaled, n)),
        lambda n: within(keras.layers.Dropout(n / 10)),
    ],
    ids=["partial", "method", "object", "tuple", "list", "inner partial", "layer"],
)
def test_what_a_function_is_made_with_is_a_part_of_it(make):
    assert describe(make(1)) == describe(make(1))
    assert describe(make(1)) != describe(make(3))


@pytest.mark.backend("torch")
def test_an_object_among_the_globals_of_a_function_is_a_part_of_it(monkeypatch):
    before = describe(with_a_global)
    monkeypatch.setitem(globals(), "SETTING", Shift(1))
    assert describe(with_a_global) != before


@pytest.mark.backend("torch")
def test_what_a_program_fills_as_it_runs_is_no_part_of_a_function():
    log = []
    before = describe(within(log))
    log += [0.5, 0.25]
    assert describe(within(log)) == before


def test_a_named_difference_may_pass(tmp_path):
    renamed = [keras.metrics.SparseCategoricalAccuracy("right")]
    broken = (StopAt(1, 3),)
    with pytest.raises(StopError):
        train(tmp_path, epochs=3, callbacks=broken)
    with pytest.raises(ValueError, match=r"allow_changes=\['metrics\[0\]'\]"):
        train(tmp_path, epochs=3, metrics=renamed)
    resume = ExactResume(tmp_path, every=2, verbose=0, allow_changes=["metrics"])
    model = train(tmp_path, resume, epochs=3, metrics=renamed)
    assert resume.resumed_from == (1, 1)
    assert "right" in model.history.history
    # Nothing but the names is other than in a run of its own.
    whole = train(tmp_path / "whole", epochs=3)
    assert same_bits(model.variables, whole.variables)
    # The commits after it are of the new program.
    train(tmp_path, epochs=4, metrics=renamed)


def test_a_rate_that_may_change_is_the_new_one(tmp_path):
    def adam(rate):
        return lambda: keras.optimizers.Adam(rate, epsilon=1e-7)

    with pytest.raises(StopError):
        train(tmp_path, epochs=3, callbacks=[StopAt(1, 3)])
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.00999"):
        train(tmp_path, epochs=3, optimizer=adam(0.5))
    resume = ExactResume(
        tmp_path, every=2, verbose=0, allow_changes="optimizer.learning_rate"
    )
    model = train(tmp_path, resume, epochs=3, optimizer=adam(0.5))
    assert float(model.optimizer.learning_rate) == 0.5


@pytest.mark.backend("torch")
def test_names_of_changes_are_checked(tmp_path):
    with pytest.raises(TypeError, match="`allow_changes` must be a list of names"):
        ExactResume(tmp_path, allow_changes=[3])


@pytest.mark.backend("torch")
def test_the_message_says_how_many_more_differ(committed):
    with pytest.raises(ValueError, match=r"(?s)and \d+ more"):
        train(
            committed,
            epochs=2,
            policy="mixed_bfloat16",
            rate=0.5,
            epsilon=1.0,
            class_weight={0: 2.0},
            loss_weights=0.5,
            metrics=(),
        )


# Versions and processor


# Keras's own `get_config` of an optimizer, under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_another_machine_is_a_warning_or_with_strict_an_error(tmp_path):
    train(tmp_path)
    commit = read_commit(list_commits(tmp_path)[-1])
    commit.meta.machine.update({"keras": "3.14.0", "processor": "Another"})
    write_commit(tmp_path / "commit-00000099.npz", commit.meta, commit.arrays)
    strict = ExactResume(tmp_path, strict=True, verbose=0)
    with pytest.raises(ValueError, match=r"strict=True: keras: '3\.14\.0'.*processor"):
        train(tmp_path, strict, epochs=2)
    with pytest.warns(UserWarning, match=r"written elsewhere: keras: '3\.14\.0' in"):
        train(tmp_path, epochs=2)


def rewritten(directory, keras_version, change):
    """Let the newest commit be one that another version of Keras described."""
    commit = read_commit(list_commits(directory)[-1])
    commit.meta.machine["keras"] = keras_version
    change(commit.meta.program)
    write_commit(directory / "commit-00000099.npz", commit.meta, commit.arrays)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_setting_that_an_older_keras_had_not_may_be_at_its_default(tmp_path):
    # As `renorm` of BatchNormalization, which came after Keras 3.12.
    def without(program):
        assert program["layer batch_normalization"].pop("scale") is True
        assert program["optimizer"].pop("amsgrad") is False

    train(tmp_path)
    rewritten(tmp_path, "3.12.4", without)
    with pytest.warns(UserWarning, match=rf"'3\.12\.4' in .*{keras.__version__}' here"):
        train(tmp_path, epochs=2)
    # Controls: with one version of Keras it is another program, and so is a value
    # that somebody must have set.
    other = tmp_path / "other"
    train(other)
    rewritten(other, keras.__version__, without)
    with pytest.raises(ValueError, match="made by another program") as caught:
        train(other, epochs=2)
    assert "under Keras" not in str(caught.value)
    another = tmp_path / "another"
    train(another, epsilon=0.5)
    rewritten(
        another, "3.12.4", lambda p: p["layer batch_normalization"].pop("epsilon")
    )
    with pytest.raises(ValueError, match=r"epsilon: only here, 0\.5"):
        train(another, epochs=2, epsilon=0.5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_settings_of_another_keras_are_refused_with_both_versions_and_all_names(
    tmp_path,
):
    names = [f"unknown_{place}" for place in range(12)]
    train(tmp_path)
    rewritten(
        tmp_path,
        "3.99.0",
        lambda p: p["layer batch_normalization"].update(dict.fromkeys(names, False)),
    )
    with pytest.raises(ValueError, match="and 4 more") as caught:
        train(tmp_path, epochs=2)
    message = str(caught.value)
    assert f"written under Keras 3.99.0, and this is {keras.__version__}: " in message
    settings = [f"layer batch_normalization.{name}" for name in names]
    assert message.endswith(f"allow_changes={sorted(settings)}).")
    resume = ExactResume(tmp_path, verbose=0, allow_changes=settings)
    with pytest.warns(UserWarning, match=r"written elsewhere: keras: '3\.99\.0' in"):
        train(tmp_path, resume, epochs=2)


def test_the_machine_is_known():
    machine = _program.machine()
    assert machine["keras"] == keras.__version__
    assert BACKEND in machine
    assert all(machine.values())


# Descriptions


@pytest.mark.long
@pytest.mark.backend("torch")  # three processes, of which JAX and TensorFlow are slow
def test_a_description_is_the_same_in_another_process(tmp_path):
    code = f"""
import sys, json
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_exact_resume_program as t
for _ in range(int(sys.argv[2])):  # names of layers are counted
    t.layers.Dense(1), t.keras.optimizers.Adam()
t.train(sys.argv[1], loss=t.own_loss, map=t.own_map, layer=t.Scaled)
"""
    found = []
    for number in (0, 3):
        directory = tmp_path / str(number)
        subprocess.run(
            [sys.executable, "-c", code, str(directory), str(number)],
            env=os.environ | {"PYTHONHASHSEED": str(number + 1)},
            check=True,
            capture_output=True,
        )
        found.append(read_meta(list_commits(directory)[-1]).program)
    assert json.dumps(found[0]) == json.dumps(found[1])


def half(x):
    return x / SCALE


def calls_half(x):
    return half(x)


@pytest.mark.backend("torch")
def test_functions_are_described_by_what_they_do(monkeypatch):
    def first(x):
        """Say something."""
        return x + 1  # and more

    def second(x):
        """Say something else."""

        return x + 1

    def third(x):
        """Say something."""
        return x + 2

    for function in (second, third):
        function.__qualname__ = first.__qualname__
    assert describe(first) == describe(second) != describe(third)
    # A number or function of the user's own that a function names is a part of it.
    before = describe(calls_half)
    monkeypatch.setitem(globals(), "SCALE", 4.0)
    assert describe(calls_half) != before
    # And what it closes over.
    assert describe(closing_over(1)) != describe(closing_over(2))
    assert describe(lambda x: x in {"a", "b", "c"}) == describe(
        lambda x: x in {"a", "b", "c"}
    )


def closing_over(number):
    return lambda x: x + number


@pytest.mark.backend("torch")
def test_arrays_are_described_by_their_bytes(monkeypatch):
    array = np.arange(6.0).reshape(2, 3)
    assert digest_of_arrays([array]) == digest_of_arrays([array.copy(order="F")])
    for other in (array + 1, array.astype("float32"), array.reshape(3, 2), -array):
        assert digest_of_arrays([array]) != digest_of_arrays([other])
    assert digest_of_arrays([np.array(["a", None], object)])
    # Beyond the limit rows are drawn by a fixed rule, from the first to the last.
    monkeypatch.setattr(_describe, "WHOLE_BYTES", 10)
    monkeypatch.setattr(_describe, "ROWS", 3)
    rows = np.zeros((101, 2))
    digests = set()
    for changed in (None, 0, 50, 100, 7):
        other = rows.copy()
        if changed is not None:
            other[changed] = 1
        digests.add(digest_of_arrays([other]))
    assert len(digests) == 4  # row 7 is not looked at


def test_a_layer_that_was_adapted_to_other_data_is_another(tmp_path):
    def fit(directory, rows, epochs=1, changes=()):
        keras.utils.set_random_seed(1)
        scale = layers.Normalization()
        if rows is not None:
            scale.adapt(rows)
        model = keras.Sequential([keras.Input((3,)), scale, layers.Dense(2)])
        model.compile("sgd", "mse")
        resume = ExactResume(directory, every="epoch", allow_changes=changes, verbose=0)
        batches = Batches(X, X[:, :2], 8, map=None)
        model.fit(batches, epochs=epochs, verbose=0, callbacks=[resume])
        return [*model.variables, model.predict(X, verbose=0)]

    fit(tmp_path / "run", X)
    expected = fit(tmp_path / "whole", X, epochs=2)
    for rows in (X[::2], None):
        with pytest.raises(ValueError, match=r"layer normalization\.adapted: '"):
            fit(tmp_path / "run", rows, epochs=2)
    # Where it is allowed, the commit's values count, and all that is made of them.
    changes = ["layer normalization.adapted", "model"]
    assert same_bits(fit(tmp_path / "run", None, 2, changes), expected)


def test_data_that_are_no_batches_are_described(tmp_path):
    def fit(y, **options):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
        model.compile("sgd", "mse")
        resume = ExactResume(tmp_path, every="epoch", verbose=0)
        model.fit(X, y, verbose=0, callbacks=[resume], **options)

    y = np.stack([Y, 1 - Y], 1).astype("float32")
    fit(y, batch_size=8)
    with pytest.raises(ValueError, match=r"data\.batch_size: 8 in the commit, 4 here"):
        fit(y, batch_size=4, epochs=2)
    with pytest.raises(ValueError, match=r"data\.y: '"):
        fit(y[::-1], batch_size=8, epochs=2)
    fit(y, batch_size=8, epochs=2)


@pytest.mark.parametrize(
    "given",
    # PyTorch's own loader refuses such a batch size.
    [{"steps_per_epoch": 4}, *([{"batch_size": 8}] if BACKEND != "torch" else [])],
)
def test_integers_of_numpy_are_described_as_those_of_python(tmp_path, given):
    of_numpy = {name: np.int64(number) for name, number in given.items()}
    for epochs, arguments in ((1, of_numpy), (2, given)):
        resume = ExactResume(tmp_path, every=2, verbose=0)
        callbacks = [resume]
        build().fit(X, Y, epochs=epochs, verbose=0, callbacks=callbacks, **arguments)
    assert resume.resumed_from == (1, 0)


@pytest.mark.parametrize("wrap", ["averages", "loss scale", "both", "held"])
def test_a_rate_that_may_change_inside_a_wrapper_is_the_new_one(tmp_path, wrap):
    class Model(keras.Sequential):
        pass

    def run(rate, *callbacks, **options):
        inner = optimizer = keras.optimizers.SGD(rate)
        if wrap in ("averages", "both"):
            optimizer = ExponentialMovingAverage(optimizer, 0.9)
        if wrap in ("loss scale", "both"):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model = Model([keras.Input((3,)), layers.Dense(2)])
        if wrap == "held":
            model.second = optimizer
            optimizer.build(model.trainable_variables)
            optimizer = "sgd"
        model.compile(optimizer, "mse")
        resume = ExactResume(tmp_path, every=2, verbose=0, **options)
        given = Batches(X, X[:, :2], 8, map=None)
        model.fit(given, epochs=3, verbose=0, callbacks=[resume, *callbacks])
        return float(inner.learning_rate)

    names = {
        "averages": "optimizer.optimizer.learning_rate",
        "loss scale": "optimizer.inner_optimizer.learning_rate",
        "both": "optimizer.inner_optimizer.optimizer.learning_rate",
        "held": "optimizers.model.second.learning_rate",
    }
    with pytest.raises(StopError):
        run(0.125, StopAt(1, 3))
    with pytest.raises(ValueError, match=names[wrap].replace(".", r"\.")):
        run(0.5)
    assert run(0.5, StopAt(9, 9), allow_changes=names[wrap]) == 0.5
