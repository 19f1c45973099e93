"""The base class of the losses."""

from __future__ import annotations

from typing import Any

import keras


class ExactLoss(keras.losses.Loss):
    """Base class: computes in float32 at least, and keeps `dtype` in the config.

    Keras casts logits and targets to the loss's dtype before `call`. In float16 that
    would already change a label of 2049, so a narrower dtype is raised to float32.
    """

    def __init__(
        self,
        name: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ):
        wanted = keras.dtype_policies.get(dtype or keras.config.floatx()).compute_dtype
        super().__init__(
            name=name,
            reduction=reduction,
            dtype="float64" if wanted == "float64" else "float32",
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "dtype": self.dtype}
