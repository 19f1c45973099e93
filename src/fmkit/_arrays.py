"""Arrays from whatever holds numbers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

__all__ = ["as_array"]


def as_array(values: Any) -> np.ndarray[Any, Any]:
    """Return `values` as a NumPy array; a tensor of any backend too.

    An array that is mapped from disk stays there.
    """
    if keras.ops.is_tensor(values):
        values = keras.ops.convert_to_numpy(values)
    return np.asarray(values)
