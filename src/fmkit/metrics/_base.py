"""The base classes of the metrics."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_one_of
from fmkit._math import Tensor
from fmkit._targets import float32_or_float64

FORMS = ("logits", "probabilities")


class OfPredictions(keras.metrics.MeanMetricWrapper):
    """A mean over positions, weighted and masked as Keras does it."""

    def __init__(self, fn: Any, name: str | None, dtype: Any, **options: Any):
        if "form" in options:
            check_one_of("form", options["form"], FORMS)
        super().__init__(fn, name, float32_or_float64(dtype), **options)
        self.options = options

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {"name": self.name, "dtype": self.dtype, **self.options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OfPredictions:
        """Make the metric from what `get_config` returned."""
        return cls(**config)


class Sums(keras.metrics.Mean):
    """Keeps sums in `self.sums`; `MeanMetricWrapper` passes it values and weights."""

    def update_state(self, values: Tensor, sample_weight: Any = None) -> None:
        sums = self._sums_of(values, sample_weight)
        self.sums.assign_add(ops.cast(sums, self.sums.dtype))

    def reset_state(self) -> None:
        # `Mean` resets its own two variables only.
        super().reset_state()
        self.sums.assign(ops.zeros(self.sums.shape))


def weights_of(positions: Tensor, sample_weight: Any) -> Tensor:
    """Return a weight for each position: 1, or what `sample_weight` says."""
    weight = ops.ones_like(positions)
    if sample_weight is None:
        return weight
    sample_weight = ops.cast(sample_weight, weight.dtype)
    if len(sample_weight.shape) == len(weight.shape) + 1:
        sample_weight = ops.squeeze(sample_weight, axis=-1)
    while len(sample_weight.shape) < len(weight.shape):
        sample_weight = ops.expand_dims(sample_weight, -1)
    return weight * sample_weight


def sums_by(index: Tensor, columns: list[Tensor], count: int) -> Tensor:
    """Return the sums of each column over equal indices, shape (columns, k, count).

    Index and columns have the shape (..., k): each of the k is summed by itself.
    """
    k = index.shape[-1]
    member = ops.one_hot(ops.cast(ops.reshape(index, (-1, k)), "int32"), count)
    rows = ops.reshape(ops.stack(columns), (len(columns), -1, k))
    return ops.einsum("cnk,nkb->ckb", rows, ops.cast(member, rows.dtype))
