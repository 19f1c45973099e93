"""Search spaces: their settings, and what a search with them promises."""
# ruff: noqa: E402 - imports that need Keras Tuner follow the question if it is there

import gc
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import needs
import numpy as np
import pytest
from resuming import Stateless

needs.module("keras_tuner")

import keras_tuner
from keras_tuner import errors

from fmkit import data, hypermodels
from fmkit.hypermodels import HyperClassifier, HyperLeNet5, HyperMLP, Range

tensorflow_only = pytest.mark.backend("tensorflow")
# What doesn't depend on the backend, on the one that has nothing to compile.
once = pytest.mark.backend("torch")


@pytest.fixture(autouse=True)
def cheap_collections():
    """Keras Tuner collects garbage for each model: leave what was there before."""
    gc.freeze()
    yield
    gc.unfreeze()


# Three classes that a line can't part, 2x2 "images".
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (150, 2, 2), dtype=np.uint8)
Y = (X[:, 0, 0] > 127).astype("int32") + (X.mean(axis=(1, 2)) > 127)
TRAIN, VAL = (X[:100], Y[:100]), (X[100:], Y[100:])

FIXED = {
    "num_classes": 3,
    "units": 4,
    "depth": 1,
    "per_layer": False,
    "activation": "tanh",
    "dropout": 0.0,
    "l2": 0.0,
    "loss": "crossentropy",
    "optimizer": "adam",
    "learning_rate": 0.03,
    "learning_rate_decay": 1.0,
    "batch_size": 50,
    "ema": 0.0,
    "input_shape": (2, 2),
}


def space(**settings):
    return HyperMLP(**FIXED | settings)


def random_search(hypermodel, folder, **options):
    options = {"objective": "val_crossentropy", "max_trials": 1, "seed": 1} | options
    return keras_tuner.RandomSearch(
        hypermodel, directory=folder, project_name="p", **options
    )


def search(tuner, **options):
    options = {"validation_data": VAL, "epochs": 2, "verbose": 0} | options
    tuner.search(*TRAIN, **options)


# The search


@pytest.mark.backend("torch", "tensorflow")
def test_the_batch_size_is_tuned_and_the_loaded_model_scores_what_was_reported(
    tmp_path,
):
    settings = {"batch_size": [20, 30], "ema": 0.8, "learning_rate_decay": 0.9}
    hypermodel = space(**settings, dropout=0.2)
    tuner = keras_tuner.GridSearch(
        hypermodel, "val_crossentropy", directory=tmp_path, project_name="p"
    )
    validation = data.Batches(*VAL, batch_size=30, shuffle=False)
    search(tuner, validation_data=validation)
    hypermodels.check_trials(tuner)
    rows = hypermodels.trial_rows(tuner)
    models = tuner.get_best_models(2)
    assert {row["batch_size"] for row in rows} == {20, 30}
    for row, model in zip(rows, models, strict=True):
        # 100 images: 5 steps of 20, or 4 of 30 with the last one smaller.
        steps = row["best_epoch"] * {20: 5, 30: 4}[row["batch_size"]]
        assert int(model.optimizer.iterations) == steps
        # Exactly, and with averages: not within rounding.
        result = model.evaluate(validation, verbose=0, return_dict=True)
        assert result["crossentropy"] == row["score"]
    # The same settings give the same score, without a tuner too.
    hp = tuner.get_best_hyperparameters()[0]
    keras.utils.set_random_seed(77)
    history = hypermodel.fit(
        hp,
        hypermodel.build(hp),
        *TRAIN,
        validation_data=validation,
        epochs=2,
        verbose=0,
    ).history
    assert min(history["val_crossentropy"]) == rows[0]["score"]
    assert history["learning_rate"] == pytest.approx([0.03, 0.027])


@tensorflow_only
def test_keras_own_averages_are_saved_otherwise_than_scored(tmp_path):
    # Negative control for the test above.
    def build(hp):
        hp.Fixed("units", 4)
        model = space().build(keras_tuner.HyperParameters())
        optimizer = keras.optimizers.Adam(0.03, use_ema=True, ema_momentum=0.8)
        model.compile(optimizer, model.loss, metrics=["accuracy"])
        optimizer.build(model.trainable_variables)
        return model

    tuner = random_search(build, tmp_path, objective="val_loss")
    search(
        tuner,
        validation_data=(VAL[0] / 255.0, VAL[1]),
        callbacks=[keras.callbacks.SwapEMAWeights()],
    )
    model = tuner.get_best_models()[0]
    loss, _ = model.evaluate(VAL[0] / 255.0, VAL[1], verbose=0)
    assert abs(loss - hypermodels.trial_rows(tuner)[0]["score"]) > 1e-4


@once
def test_hyperband_owns_the_epochs_and_later_rounds_go_on_with_the_optimizer(tmp_path):
    tuner = keras_tuner.Hyperband(
        space(units=[3, 5], learning_rate_decay=0.5, learning_rate=[0.03, 0.01]),
        "val_crossentropy",
        max_epochs=2,
        factor=2,
        seed=1,
        directory=tmp_path,
        project_name="p",
    )
    search(tuner, epochs=None)
    hypermodels.check_trials(tuner)
    rows = hypermodels.trial_rows(tuner)
    assert {row["epochs"] for row in rows} == {1, 2}
    later = [
        trial
        for trial in tuner.oracle.get_best_trials(99)
        if trial.hyperparameters.values["tuner/initial_epoch"] == 1
    ]
    model = tuner.load_model(later[0])
    # One epoch of its own after one of the round before, 2 steps each.
    assert int(model.optimizer.iterations) == 4
    rate = later[0].hyperparameters.values["learning_rate"]
    assert float(model.optimizer.learning_rate) == pytest.approx(rate * 0.5)
    loss = model.evaluate(
        data.Batches(*VAL, shuffle=False), verbose=0, return_dict=True
    )
    assert loss["crossentropy"] == later[0].score


BAYESIAN = importlib.util.find_spec("sklearn") is not None


@once
def test_bayesian_optimization_runs_or_names_what_to_install(tmp_path):
    def make():
        return keras_tuner.BayesianOptimization(
            space(units=Range(3, 9), learning_rate=Range(1e-3, 1e-1, log=True)),
            "val_crossentropy",
            max_trials=3,
            num_initial_points=2,
            seed=1,
            directory=tmp_path,
        )

    if BAYESIAN:
        tuner = make()
        search(tuner, epochs=1)
        assert len(hypermodels.trial_rows(tuner)) == 3
    else:
        with pytest.raises(ImportError, match=r"pip install keras-tuner\[bayesian\]"):
            make()


# Kills


PROGRAM = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import test_hypermodels as t
    t.resumable_search(sys.argv[2], kill_at=int(sys.argv[3]))
"""


class Kill(Stateless):
    """End the process by SIGKILL, or the search by Ctrl-C, at a step."""

    def __init__(self, step, how):
        super().__init__()
        self.step, self.how, self.seen = step, how, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            self.how()


def kill_process():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def resumable_search(folder, *, kill_at=0, how=kill_process):
    """Search for the *worst* cross-entropy, so that an early epoch is the best."""
    hypermodel = space(dropout=0.3, resume=1)
    objective = keras_tuner.Objective("val_crossentropy", "max")
    tuner = random_search(hypermodel, folder, objective=objective)
    stop = [Kill(kill_at, how)] if kill_at else []
    search(tuner, epochs=3, callbacks=stop)
    return tuner


def best_weights(tuner):
    trial = tuner.oracle.get_best_trials()[0]
    return trial.score, [w.tobytes() for w in tuner.load_model(trial).get_weights()]


@pytest.mark.long
@pytest.mark.backend("jax")
def test_a_search_that_is_killed_goes_on_inside_its_first_trial(tmp_path):
    straight = resumable_search(tmp_path / "straight")
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    place = [str(Path(__file__).parent), str(tmp_path / "killed")]
    # In the first epoch's second step; there are 2 steps to an epoch.
    killed = subprocess.run([*program, *place, "2"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    resumed = resumable_search(tmp_path / "killed", kill_at=99)
    assert best_weights(resumed) == best_weights(straight)
    commits = list((tmp_path / "killed").rglob("resume-*/*"))
    assert commits


class KillOnce(Kill):
    """Count the steps of all trials: the tuner copies the callbacks for each."""

    def __deepcopy__(self, memo):
        return self


def grid(kind, folder, stop=()):
    """Search over six trials; return what each scored."""
    hypermodel = space(units=[4, 6, 8], dropout=[0.0, 0.3])
    tuner = kind(hypermodel, "val_crossentropy", directory=folder, project_name="p")
    try:
        search(tuner, callbacks=[*stop])
    except KeyboardInterrupt:
        assert stop
    return {
        (row["units"], row["dropout"]): row["score"]
        for row in hypermodels.trial_rows(tuner)
        if row["status"] == "COMPLETED"
    }


@once
@pytest.mark.parametrize(
    "killed_in",
    [
        pytest.param(1, marks=pytest.mark.long),
        4,
        pytest.param(6, marks=pytest.mark.long),
    ],
)
def test_a_grid_search_goes_on_where_it_was_interrupted(tmp_path, killed_in):
    straight = grid(keras_tuner.GridSearch, tmp_path / "straight")
    assert len(straight) == 6
    # 2 epochs of 2 steps to a trial.
    stop = KillOnce(4 * (killed_in - 1) + 2, interrupt)
    begun = grid(hypermodels.GridSearch, tmp_path / "killed", [stop])
    assert len(begun) == killed_in - 1
    assert grid(hypermodels.GridSearch, tmp_path / "killed") == straight


@once
def test_the_grid_search_of_keras_tuner_forgets_its_place(tmp_path):
    # When this fails, Keras Tuner was mended: `hypermodels.GridSearch` may go.
    grid(keras_tuner.GridSearch, tmp_path, [KillOnce(6, interrupt)])
    with pytest.raises(KeyError, match="000"):
        grid(keras_tuner.GridSearch, tmp_path)


@once
@pytest.mark.parametrize("keeps_best", [True, False])
def test_the_best_epoch_before_an_interrupt_stays_the_best(
    tmp_path, monkeypatch, keeps_best
):
    if not keeps_best:
        # Negative control: without its state the next epoch counts as the best.
        kind = sys.modules["fmkit.hypermodels._trial"]._BestEpoch
        monkeypatch.delattr(kind, "get_state")
        monkeypatch.delattr(kind, "set_state")
    with pytest.raises(KeyboardInterrupt):
        resumable_search(tmp_path, kill_at=4, how=interrupt)
    tuner = resumable_search(tmp_path)
    row = hypermodels.trial_rows(tuner)[0]
    assert (row["status"], row["best_epoch"]) == ("COMPLETED", 1)
    validation = data.Batches(*VAL, shuffle=False)
    loaded = tuner.get_best_models()[0].evaluate(
        validation, verbose=0, return_dict=True
    )
    assert (loaded["crossentropy"] == row["score"]) == keeps_best


# Failures


class Broken(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise OSError("the disk is full")


@once
def test_an_error_in_a_trial_ends_the_search_and_the_next_run_completes_it(tmp_path):
    with pytest.raises(errors.FatalRuntimeError, match="disk is full") as caught:
        search(random_search(space(), tmp_path), callbacks=[Broken()])
    assert "'units': 4" in str(caught.value)
    tuner = random_search(space(), tmp_path)
    search(tuner)
    assert [row["status"] for row in hypermodels.trial_rows(tuner)] == ["COMPLETED"]


@once
def test_with_continue_the_error_is_logged_and_check_trials_raises(tmp_path, caplog):
    tuner = random_search(space(on_error="continue"), tmp_path)
    with caplog.at_level(logging.WARNING, "fmkit.hypermodels"):
        search(tuner, callbacks=[Broken()])
    assert "the disk is full" in caplog.text
    with pytest.raises(RuntimeError, match="1 of 1 trials failed") as caught:
        hypermodels.check_trials(tuner)
    assert "trial 0" in str(caught.value)


@once
def test_a_trial_that_diverges_is_failed_with_its_reason(tmp_path, caplog):
    hypermodel = space(optimizer="sgd", loss="mse", learning_rate=1e30)
    tuner = random_search(hypermodel, tmp_path)
    search(tuner)
    assert "diverged: val_crossentropy was nan" in caplog.text
    row = hypermodels.trial_rows(tuner)[0]
    assert (row["status"], row["score"]) == ("FAILED", None)
    assert "diverged" in row["message"]


@tensorflow_only
def test_without_tensorboard_nothing_starts(tmp_path, monkeypatch):
    # Negative control first: Keras Tuner's search returns as if all were well.
    monkeypatch.setitem(sys.modules, "tensorboard.plugins.hparams", None)

    def build(hp):
        hp.Fixed("units", 4)
        return space().build(keras_tuner.HyperParameters())

    tuner = random_search(build, tmp_path)
    search(tuner)
    with pytest.raises(RuntimeError, match=r"1 of 1 trials failed"):
        hypermodels.check_trials(tuner)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        space()


@once
@pytest.mark.parametrize(
    ("settings", "options", "arguments", "message"),
    [
        ({"loss": ["mse", "crossentropy"]}, {"objective": "val_loss"}, {}, "compare"),
        ({"l2": [0.0, 0.1]}, {"objective": "val_loss"}, {}, r"\['l2'\]"),
        ({}, {}, {"validation_data": None}, "no validation_data"),
        ({}, {"executions_per_trial": 2}, {}, "Search over seeds"),
        ({}, {"objective": keras_tuner.Objective("val_acuracy", "max")}, {},
         "Did you mean 'val_accuracy'"),
        ({"epochs": 2}, {}, {}, "given once"),
        ({}, {}, {"epochs": None}, "given once"),
        ({}, {}, {"batch_size": 3}, "pass it to the constructor"),
        ({}, {}, {"validation_split": 0.1}, "preprocessing.split"),
        ({"num_classes": 2}, {}, {}, "num_classes=3"),
        ({}, {}, {"validation_data": VAL[0]}, "pair of arrays"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_ends_the_search_before_it_trains(
    tmp_path, settings, options, arguments, message
):
    tuner = random_search(space(**settings), tmp_path, **options)
    with pytest.raises(errors.FatalError, match=message):
        search(tuner, **arguments)


@once
def test_hyperband_refuses_epochs_of_the_space(tmp_path):
    tuner = keras_tuner.Hyperband(space(epochs=[1, 2]), "val_accuracy", max_epochs=2,
                                  directory=tmp_path)  # fmt: skip
    with pytest.raises(errors.FatalValueError, match="chooses the epochs itself"):
        search(tuner, epochs=None)


@once
def test_training_data_must_be_arrays():
    hypermodel, hp = space(), keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    with pytest.raises(errors.FatalTypeError, match="its own batch size"):
        hypermodel.fit(hp, model, data.Batches(*TRAIN), epochs=1)


@once
def test_resume_needs_the_directory_of_a_tuner():
    hypermodel, hp = space(resume="epoch"), keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    with pytest.raises(errors.FatalValueError, match="only a tuner"):
        hypermodel.fit(hp, model, *TRAIN, epochs=1)


# The spaces


def values(hypermodel, **chosen):
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    hp.values |= chosen
    hp.ensure_active_values()
    return hypermodel.build(hp), hp.values


@once
def test_each_layer_has_its_own_width_and_only_as_many_as_there_are():
    hypermodel = space(units=[4, 6, 8], depth=[1, 3], per_layer=True)
    model, found = values(hypermodel, depth=3, units_1=8, units_2=4, units_3=6)
    widths = [layer.units for layer in model.layers if hasattr(layer, "units")]
    assert widths == [8, 4, 6, 3]
    _, found = values(hypermodel, depth=1)
    assert "units_2" not in found


@once
def test_each_optimizer_has_its_own_rate():
    settings = {"optimizer": ["adam", "momentum", "sgd"], "learning_rate": None}
    hypermodel = space(**settings, momentum=[0.9, 0.5])
    for kind, cls in [("adam", "Adam"), ("momentum", "SGD"), ("sgd", "SGD")]:
        chosen = {f"{kind}_learning_rate": 0.0123, "optimizer": kind}
        model, found = values(hypermodel, **chosen)
        assert type(model.optimizer).__name__ == cls
        assert float(model.optimizer.learning_rate) == pytest.approx(0.0123)
        assert ("momentum" in found) == (kind == "momentum")
        assert sum(name.endswith("learning_rate") for name in found) == 1
    with pytest.raises(errors.FatalValueError, match="no entry for"):
        values(space(optimizer=["adam", "sgd"], learning_rate={"adam": 0.1}))


@once
def test_regularisation_averages_and_lenet_arrive_in_the_model():
    model, _ = values(space(l2=0.25, dropout=0.5, half_l2=True, ema=0.5))
    hidden = model.get_layer("hidden_1")
    # keras.regularizers.L2 has no half: 0.25 / 2.
    assert float(hidden.kernel_regularizer.l2) == pytest.approx(0.125)
    assert model.get_layer("dropout_1").rate == 0.5
    assert model.optimizer.decay == 0.5
    model, _ = values(HyperLeNet5(filters_1=8, filters_2=12, units_1=30, units_2=20))
    # By hand: 8(9+1) + 12(25·8+1) + 30(12·25+1) + 20(30+1) + 10(20+1).
    assert model.count_params() == 80 + 2412 + 9030 + 620 + 210


@once
def test_a_number_that_came_as_float32_is_the_one_that_was_sent():
    sent = np.float32(0.05)
    assert float(sent) != 0.05
    model, _ = values(space(l2=[0.05, 0.5]), l2=float(sent))
    exact, _ = values(space(l2=0.05))
    pair = [m.get_layer("hidden_1").kernel_regularizer.l2 for m in (model, exact)]
    assert float(pair[0]) == float(pair[1])


@once
def test_a_network_of_ones_own_is_searched_over():
    class Mine(HyperClassifier):
        def network(self, hp, seed):
            units = hp.Int("width", 3, 5)
            return keras.Sequential(
                [keras.Input((2, 2)), keras.layers.Flatten(),
                 keras.layers.Dense(units), keras.layers.Dense(3)]
            )  # fmt: skip

    model, found = values(Mine(num_classes=3), width=5)
    assert model.layers[1].units == found["width"] == 5
    with pytest.raises(errors.FatalRuntimeError, match="must have a method network"):
        HyperClassifier().build(keras_tuner.HyperParameters())


@once
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Range(3, 3), ValueError, "above 3"),
        (lambda: Range(0.0, 1.0, log=True), ValueError, "above 0"),
        (lambda: Range(1, 8, step=1, log=True), ValueError, "above 1"),
        (lambda: Range(1, 8, step=0.5), TypeError, "integer"),
        (lambda: space(units=Range(1.0, 8)), TypeError, r"Write Range\(1, 8\)"),
        (lambda: space(units=[]), ValueError, "empty list"),
        (lambda: space(units=[4, 0]), ValueError, "at least 1"),
        (lambda: space(optimizer=["adm"]), ValueError, "Did you mean 'adam'"),
        (lambda: space(optimizer=Range(1, 2)), TypeError, "list of names"),
        (lambda: space(activation=[keras.ops.relu]), TypeError, "must be a name"),
        (lambda: space(activation="rely"), ValueError, "rely"),
        (lambda: space(learning_rate={"adm": 1.0}), ValueError, "Did you mean"),
        (lambda: space(ema=1.0), ValueError, "below 1"),
        (lambda: space(on_error="ignore"), ValueError, "on_error"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


@once
def test_check_trials_wants_a_search(tmp_path):
    with pytest.raises(RuntimeError, match=r"Call tuner\.search"):
        hypermodels.check_trials(random_search(space(), tmp_path))
