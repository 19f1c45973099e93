"""Preprocessing: a stand-in until the module of that name is merged."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["preprocess"]


def preprocess(x: Any, y: Any) -> tuple[Any, Any]:
    """Scale `x` to float32 in [0, 1] and cast `y` to int32."""
    if isinstance(x, np.ndarray):
        return x.astype("float32") / np.float32(255), np.asarray(y).astype("int32")
    import tensorflow as tf

    return tf.cast(x, tf.float32) / 255.0, tf.cast(y, tf.int32)
