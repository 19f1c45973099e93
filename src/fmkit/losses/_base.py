"""The base class of the losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras

from fmkit._checks import check_number
from fmkit._math import Tensor
from fmkit._targets import float32_or_float64


class ExactLoss(keras.losses.Loss):
    """Base class: a loss function with its options, which are attributes.

    Keras casts logits and targets to the loss's dtype before `call`. In float16 that
    would already change a label of 2049, so a narrower dtype is raised to float32.
    """

    # Takes targets, predictions and the options. A static method of the subclass.
    _function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self, name: str | None, reduction: str | None, dtype: Any, **options: Any
    ):
        super().__init__(name, reduction, dtype=float32_or_float64(dtype))
        self._option_names = tuple(options)
        for option, value in options.items():
            setattr(self, option, value)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        """Return the cost of each position."""
        return self._function(y_true, y_pred, **self._options())

    def _options(self) -> dict[str, Any]:
        return {option: getattr(self, option) for option in self._option_names}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "dtype": self.dtype, **self._options()}


def check_sum_tolerance(tolerance: Any) -> None:
    """Refuse what is neither None nor a tolerance."""
    if tolerance is not None:
        check_number("sum_tolerance", tolerance, at_least=0.0)
