"""The column on Keras in the comparison table of docs/guides/stopping.md."""

import inspect
import math
from types import SimpleNamespace

import keras
import pytest

from fmkit.callbacks import ThresholdStopping

pytestmark = pytest.mark.backend("torch")  # nothing here depends on the backend


def last_epoch(callback, **columns):
    """Call the hooks as `fit` does; return the index of the last epoch."""
    model = SimpleNamespace(stop_training=False, metrics=[], optimizer=None)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, row in enumerate(zip(*columns.values(), strict=True)):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, dict(zip(columns, row, strict=True)))
        if model.stop_training:
            break
    return epoch


@pytest.mark.open_on("3.12")
def test_kerass_baseline_is_no_target_and_ours_is():
    values = [0.5, 0.4, 0.3, 0.2, 0.1]
    # It looks for improvement: as long as there is some, no value stops the run.
    keras_stopping = keras.callbacks.EarlyStopping("loss", baseline=0.6, patience=1)
    assert last_epoch(keras_stopping, loss=values) == 4
    assert last_epoch(ThresholdStopping("loss", 0.6), loss=values) == 0


@pytest.mark.open_on("3.12")
def test_keras_has_an_argument_for_the_first_epoch_and_for_nothing_else_of_ours():
    arguments = set(inspect.signature(keras.callbacks.EarlyStopping).parameters)
    assert arguments == {
        "monitor",
        "min_delta",
        "patience",
        "verbose",
        "mode",
        "baseline",
        "restore_best_weights",
        "start_from_epoch",
    }


@pytest.mark.open_on("3.12")
def test_keras_checks_at_the_end_of_an_epoch_only():
    own, base = keras.callbacks.EarlyStopping, keras.callbacks.Callback
    assert own.on_train_batch_end is base.on_train_batch_end
    assert own.on_epoch_end is not base.on_epoch_end


@pytest.mark.open_on("3.12")
def test_a_first_nan_is_kerass_best_for_ever_and_not_ours():
    nan = float("nan")
    values = [nan, 0.9, 0.8, 0.7, 0.6]
    keras_stopping = keras.callbacks.EarlyStopping("loss", patience=2)
    assert last_epoch(keras_stopping, loss=values) == 2  # though it improves
    assert math.isnan(keras_stopping.best)
    stopping = ThresholdStopping("loss", 0.6)
    assert last_epoch(stopping, loss=values) == 4
    assert stopping.best == 0.6


@pytest.mark.open_on("3.12")
def test_keras_warns_of_a_missing_name_and_trains_on_where_we_stop_at_once():
    with pytest.warns(UserWarning, match="which is not available"):
        assert last_epoch(keras.callbacks.EarlyStopping("val_loss"), loss=[1] * 3) == 2
    with pytest.raises(ValueError, match="monitors 'val_loss'"):
        last_epoch(ThresholdStopping("val_loss", 0.4), loss=[1] * 3)


@pytest.mark.open_on("3.12")
def test_keras_keeps_the_epoch_of_the_stop_and_no_reason():
    keras_stopping = keras.callbacks.EarlyStopping("loss", patience=1)
    last_epoch(keras_stopping, loss=[0.1, 0.2])
    assert keras_stopping.stopped_epoch == 1
    assert not [name for name in vars(keras_stopping) if "reason" in name]


@pytest.mark.open_on("3.12")
def test_keras_loses_its_count_when_a_run_is_taken_up_again():
    values = [0.1, 0.2, 0.3]
    keras_stopping = keras.callbacks.EarlyStopping("loss", patience=2)
    last_epoch(keras_stopping, loss=values[:2])
    assert keras_stopping.wait == 1
    keras_stopping.on_train_begin()
    assert keras_stopping.wait == 0
    assert not hasattr(keras_stopping, "get_state")
    ours = ThresholdStopping("loss", 0.5, patience=2)
    last_epoch(ours, loss=values[:2])
    again = ThresholdStopping("loss", 0.5, patience=2)
    again.set_state(ours.get_state())
    assert last_epoch(again, loss=values[2:]) == 0
    assert again.stop is not None
