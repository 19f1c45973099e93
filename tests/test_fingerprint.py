"""`Fingerprint`: a line of digests per step, the same for the same bits."""

import hashlib
import json

import keras
import numpy as np
import pytest
from abilities import MANY_STEPS
from bits import bits
from fresh_process import run_python
from resuming import X, Y, broken_and_resumed, build, data, fit

import fmkit
from fmkit.callbacks import Fingerprint
from fmkit.performance import FusedModel


def train(file, *, every=1, batches=None, model=None, epochs=2, **arguments):
    """Train 5 steps per epoch, from the names and seeds of a new process."""
    keras.utils.clear_session(free_memory=False)
    model = model or build()
    callbacks = [] if file is None else [Fingerprint(file, every)]
    batches = data() if batches is None else batches
    model.fit(batches, epochs=epochs, callbacks=callbacks, verbose=0, **arguments)
    return model


def lines(file):
    """Return the names in a file and the lines of its steps."""
    header, *rest = map(json.loads, file.read_text().splitlines())
    assert header == {"format": "fmkit fingerprint", "version": 1}
    names = [line["names"] for line in rest if "names" in line]
    return names[-1], [line for line in rest if "names" not in line]


def digest(*arrays):
    """Return a digest of arrays, by the formula that the docs give."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.str}{list(array.shape)};".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def test_there_is_a_line_for_the_start_and_for_each_step(tmp_path):
    train(tmp_path / "a")
    _, steps = lines(tmp_path / "a")
    expected = [(0, 0), *((e, s) for e in (0, 1) for s in (1, 2, 3, 4, 5))]
    assert [(line["epoch"], line["step"]) for line in steps] == expected


def test_every_counts_steps_across_epochs(tmp_path):
    train(tmp_path / "a", every=3)
    train(tmp_path / "b")
    _, few = lines(tmp_path / "a")
    assert [(line["epoch"], line["step"]) for line in few] == [
        *((0, 0), (0, 3), (1, 1), (1, 4))
    ]
    _, all_of_them = lines(tmp_path / "b")
    assert all(line in all_of_them for line in few)


def test_the_digests_are_of_the_variables_by_name(tmp_path):
    model = train(tmp_path / "a")
    names, steps = lines(tmp_path / "a")
    assert names["weights"] == [v.path for v in model.variables[:4]]
    assert names["optimizer"] == [v.path for v in model.optimizer.variables]
    last = steps[-1]["variables"][:4]
    assert last == [digest(w)[:8] for w in model.get_weights()]
    assert len(steps[-1]["variables"]) == sum(map(len, names.values()))


def test_the_batch_is_that_of_the_step(tmp_path):
    train(tmp_path / "a")
    _, steps = lines(tmp_path / "a")
    batches = data()
    expected = [None]
    for epoch in (0, 1):
        order = batches.order(epoch).reshape(5, 8)
        expected += [digest(X[rows], Y[rows])[:16] for rows in order]
    assert [line["batch"] for line in steps] == expected


def test_the_batches_of_arrays_are_seen_too(tmp_path):
    model = build()
    model.fit(
        X, Y, batch_size=16, shuffle=False, verbose=0,
        callbacks=[Fingerprint(tmp_path / "a")],
    )  # fmt: skip
    _, steps = lines(tmp_path / "a")
    expected = [digest(X[r], Y[r])[:16] for r in map(slice, (0, 16, 32), (16, 32, 40))]
    assert [line["batch"] for line in steps[1:]] == expected


def test_equal_runs_leave_equal_files_and_other_seeds_do_not(tmp_path):
    for name in "ab":
        train(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    train(tmp_path / "c", batches=data(seed=1))
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


class Dropping:
    """What draws from Keras's and from the backend's own generators."""

    def model():
        fmkit.set_random_seed(1)
        layers = [keras.layers.Dense(8), keras.layers.Dropout(0.5)]
        model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(2)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
        return model


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_training_is_the_same_as_without_it(shuffled, tmp_path):
    def trained(file):
        model = Dropping.model()
        callbacks = [Fingerprint(file)] if file else []
        given = (X, Y, 7) if shuffled else (data(),)
        history = model.fit(*given, epochs=3, callbacks=callbacks, verbose=0)
        drawn = keras.ops.convert_to_numpy(keras.random.uniform((3,)))
        return bits(model.weights), history.history, drawn.tobytes(), np.random.rand()

    assert trained(tmp_path / "a") == trained(None)


def test_a_run_that_was_killed_and_resumed_leaves_the_same_file(tmp_path):
    def run(directory, *callbacks):
        log = Fingerprint(directory.with_suffix(".jsonl"))
        return fit(directory, log, *callbacks, epochs=3)

    keras.utils.clear_session(free_memory=False)
    run(tmp_path / "straight")
    keras.utils.clear_session(free_memory=False)
    broken_and_resumed(tmp_path / "broken", run, at=(1, 3))
    straight = (tmp_path / "straight.jsonl").read_bytes()
    assert (tmp_path / "broken.jsonl").read_bytes() == straight
    assert straight.count(b"\n") == 2 + 1 + 15


def test_lines_after_the_commit_would_be_twice_without_its_state(tmp_path, monkeypatch):
    # Negative control.
    def run(directory, *callbacks):
        return fit(directory, Fingerprint(directory.with_suffix(".jsonl")), *callbacks)

    monkeypatch.setattr(Fingerprint, "set_state", lambda self, state: None)
    run(tmp_path / "straight")
    broken_and_resumed(tmp_path / "broken", run, at=(1, 3))
    straight = (tmp_path / "straight.jsonl").read_bytes()
    assert (tmp_path / "broken.jsonl").read_bytes() != straight


KILLED = """
import os, signal, sys
import keras, numpy as np
import fmkit
from fmkit.callbacks import ExactResume, Fingerprint
from fmkit.data import Batches

class Kill(keras.callbacks.Callback):
    count = 0
    def on_train_batch_end(self, batch, logs=None):
        Kill.count += 1
        if Kill.count == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

fmkit.set_random_seed(1)
x = np.random.rand(40, 3)
layers = [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
model = keras.Sequential([keras.Input((3,)), *layers])
model.compile("adam", "mse")
resume = ExactResume(sys.argv[1], every=3, verbose=0)
log = Fingerprint(sys.argv[1] + ".jsonl")
batches = Batches(x, x[:, :1], 8, map=None)
model.fit(batches, epochs=3, callbacks=[log, resume, Kill()], verbose=0)
"""


@pytest.mark.long  # four processes
def test_real_kills_leave_no_trace_and_processes_agree(tmp_path):
    run_python(KILLED, str(tmp_path / "straight"), "0", PYTHONHASHSEED="1")
    killed = str(tmp_path / "killed")
    for at in ("8", "5"):
        with pytest.raises(AssertionError):
            run_python(KILLED, killed, at)
    run_python(KILLED, killed, "0", PYTHONHASHSEED="2")
    straight = (tmp_path / "straight.jsonl").read_bytes()
    assert (tmp_path / "killed.jsonl").read_bytes() == straight


@pytest.mark.backend(*MANY_STEPS)
def test_several_steps_per_execution_have_one_line(tmp_path):
    train(tmp_path / "a", model=build(steps=2))
    _, steps = lines(tmp_path / "a")
    places = [(line["epoch"], line["step"]) for line in steps]
    assert places == [(0, 0), *((e, s) for e in (0, 1) for s in (2, 4, 5))]
    assert None not in [line["batch"] for line in steps[1:]]


@pytest.mark.long
@pytest.mark.backend("tensorflow", "jax")
def test_the_batches_of_a_fused_program_are_not_seen(tmp_path):
    inputs = keras.Input((3,))
    model = FusedModel(inputs, keras.layers.Dense(2)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, steps_per_execution=5, jit_compile=True)
    train(tmp_path / "a", model=model)
    _, steps = lines(tmp_path / "a")
    assert [line["batch"] for line in steps] == [None] * 3
    assert len({line["weights"] for line in steps}) == 3


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_a_dataset_of_dicts_strings_and_single_tensors_is_seen(tmp_path):
    import tensorflow as tf

    seen = []
    for element in (
        {"a": tf.zeros((6, 2)), "b": tf.constant(["x"] * 6)},
        (tf.zeros((6, 2)), tf.zeros((6,))),
        tf.zeros((6, 2)),
        (tf.zeros((6, 2)),),
    ):
        from fmkit.callbacks._batches_seen import BatchesSeen, digest_of_batches

        watch = BatchesSeen()
        dataset = tf.data.Dataset.from_tensor_slices(element).batch(2)
        wrapped = watch.wrap(dataset)
        assert wrapped is watch.wrap(dataset)
        assert wrapped.element_spec == dataset.element_spec
        assert len(list(wrapped)) == 3
        seen.append(digest_of_batches(watch.take(1)))
    assert seen[2] == seen[3]
    assert len({*seen}) == 3
    assert None not in seen


def test_a_file_that_was_cut_short_meanwhile_is_an_error(tmp_path):
    def cut(epoch, logs):
        (tmp_path / "a").write_bytes(b"")

    cutting = keras.callbacks.LambdaCallback(on_epoch_end=cut)
    with pytest.raises(OSError, match="lacks lines that this run has written"):
        build().fit(
            data(),
            epochs=2,
            verbose=0,
            callbacks=[Fingerprint(tmp_path / "a"), cutting],
        )


def test_what_is_no_file_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(OSError, match="must be a regular file, but a folder"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "`file` must be a path"),
        (("a", 0), ValueError, "`every` must be at least 1, got every=0"),
        (("a", 1.5), TypeError, "`every` must be an integer, got every=1.5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Fingerprint(*arguments)


def test_a_state_with_another_every_is_refused(tmp_path):
    state = Fingerprint(tmp_path / "a").get_state()
    with pytest.raises(ValueError, match="saved with every=1"):
        Fingerprint(tmp_path / "a", every=2).set_state(state)
