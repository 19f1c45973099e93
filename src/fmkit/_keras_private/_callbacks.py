"""What Keras's own callbacks carry from step to step, and don't save."""

from __future__ import annotations

from typing import Any

import keras

from fmkit._keras_private._pieces import Piece, attribute

__all__ = ["CALLBACK_ATTRIBUTES", "STATELESS_CALLBACKS", "attribute_of_callback"]

_BATCHES_SEEN = ("_batches_seen_since_last_saving", "_last_batch_seen")
# What "best" is the best of.
_MONITORED = ("monitor", "mode")

# The attributes that carry something, and the settings that give it its meaning.
# `EarlyStopping.min_delta` is not here: Keras flips its sign once when monitoring
# starts.
_ATTRIBUTES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "EarlyStopping": (
        ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
        _MONITORED,
    ),
    "ReduceLROnPlateau": (
        ("wait", "cooldown_counter", "best"),
        _MONITORED,
    ),
    "ModelCheckpoint": (("best", *_BATCHES_SEEN), _MONITORED),
    "OrbaxCheckpoint": (
        ("best", *_BATCHES_SEEN, "_total_batches_seen"),
        (),
    ),
    "SwapEMAWeights": (("_ema_weights_in_model",), ()),
    "History": (("history", "epoch"), ()),
    "TensorBoard": (
        ("_global_train_batch", "_global_test_batch", "_should_write_train_graph"),
        (),
    ),
}

# By class, of those that there are: `OrbaxCheckpoint` came with Keras 3.14.
CALLBACK_ATTRIBUTES: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    getattr(keras.callbacks, name): carried
    for name, carried in _ATTRIBUTES.items()
    if hasattr(keras.callbacks, name)
}

# They carry nothing that training depends on.
STATELESS_CALLBACKS = (
    keras.callbacks.LambdaCallback,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TerminateOnNaN,
)


def attribute_of_callback(callback: Any, name: str) -> Any:
    """Return an attribute of `CALLBACK_ATTRIBUTES`.

    Raises:
        MissingPieceError: If the callback has none, as its state would be lost.
    """
    both = f"`ExactResume` together with `{type(callback).__name__}`"
    return attribute(callback, name, Piece(both, "train with one of the two"))
