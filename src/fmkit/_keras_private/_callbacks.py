"""What Keras's own callbacks carry from step to step, and don't save."""

from __future__ import annotations

import keras

__all__ = ["CALLBACK_ATTRIBUTES", "STATELESS_CALLBACKS"]

_BATCHES_SEEN = ("_batches_seen_since_last_saving", "_last_batch_seen")
# What "best" is the best of.
_MONITORED = ("monitor", "mode")

# The attributes that carry something, and the settings that give it its meaning.
# `EarlyStopping.min_delta` is not here: Keras flips its sign once when monitoring
# starts.
CALLBACK_ATTRIBUTES: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    keras.callbacks.EarlyStopping: (
        ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
        _MONITORED,
    ),
    keras.callbacks.ReduceLROnPlateau: (
        ("wait", "cooldown_counter", "best"),
        _MONITORED,
    ),
    keras.callbacks.ModelCheckpoint: (("best", *_BATCHES_SEEN), _MONITORED),
    keras.callbacks.OrbaxCheckpoint: (
        ("best", *_BATCHES_SEEN, "_total_batches_seen"),
        (),
    ),
    keras.callbacks.SwapEMAWeights: (("_ema_weights_in_model",), ()),
    keras.callbacks.History: (("history", "epoch"), ()),
    keras.callbacks.TensorBoard: (("_global_train_batch", "_global_test_batch"), ()),
}

# They carry nothing that training depends on.
STATELESS_CALLBACKS = (
    keras.callbacks.LambdaCallback,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TerminateOnNaN,
)
