"""The base class of the losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_number
from fmkit._math import Tensor, namespace
from fmkit._targets import float32_or_float64


class ExactLoss(keras.losses.Loss):
    """Base class: a loss function with its options, which are attributes.

    The option `ignore_class` makes a `_mask`, which `call` must put on the costs.

    Keras casts logits and targets to the loss's dtype before `call`. In float16 that
    would already change a label of 2049, so a narrower dtype is raised to float32.
    """

    # Takes targets, predictions and the options. A static method of the subclass.
    _function: ClassVar[Callable[..., Tensor]]
    # Whether probabilities in the place of the predictions are a mistake.
    _expects_logits: ClassVar[bool] = True
    # Puts a mask on the costs, where some positions do not count.
    _mask: IgnoreMask | None = None

    def __init__(
        self, name: str | None, reduction: str | None, dtype: Any, **options: Any
    ):
        ignored = options.get("ignore_class")
        if ignored is not None:
            ignored = check_int("ignore_class", ignored, minimum=-(2**31))
            options["ignore_class"] = ignored
        super().__init__(name, reduction, dtype=float32_or_float64(dtype))
        self._option_names = tuple(options)
        for option, value in options.items():
            # A config is plain: JSON has no tuples.
            setattr(self, option, list(value) if isinstance(value, tuple) else value)
        if ignored is not None:
            self._mask = IgnoreMask()
        torch = keras.backend.backend() == "torch"
        self._may_be_brief = torch and private.marks_masks()

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        """Return the reduced cost.

        Keras's mean takes longer than the costs on PyTorch: here the plain one is a sum
        and a division, with the same bits.
        """
        if (
            not self._may_be_brief
            or sample_weight is not None
            or self._mask is not None
            or self.reduction not in ("sum_over_batch_size", "mean")
            or not (ops.is_tensor(y_true) and ops.is_tensor(y_pred))
            or private.is_masked(y_pred)
        ):
            return super().__call__(y_true, y_pred, sample_weight)
        costs = self.call(
            ops.convert_to_tensor(y_true, self.dtype),
            ops.convert_to_tensor(y_pred, self.dtype),
        )
        if private.is_masked(costs):
            return super().__call__(y_true, y_pred)
        return costs.sum() / costs.new_full((), costs.numel())

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        """Return the cost of each position."""
        if self._expects_logits and private.is_activated(y_pred):
            self._warn_of_activation()
        return self._function(y_true, y_pred, **self._options())

    def _warn_of_activation(self) -> None:
        warnings.warn(
            f"{type(self).__name__} expects logits, and gets the outputs of a softmax "
            "or sigmoid: the activation is taken twice. Leave out the last activation "
            "of the model (`activation=None`), or use Keras's loss of probabilities.",
            stacklevel=2,
        )

    def _options(self) -> dict[str, Any]:
        return {option: getattr(self, option) for option in self._option_names}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "dtype": self.dtype, **self._options()}


def check_sum_tolerance(tolerance: Any) -> None:
    """Refuse what is neither None nor a tolerance."""
    if tolerance is not None:
        check_number("sum_tolerance", tolerance, at_least=0.0)


def check_gamma(name: str, value: Any) -> float:
    """Return a focusing exponent: 0 (off) or at least 1."""
    gamma = check_number(name, value, at_least=0.0)
    if 0.0 < gamma < 1.0:
        raise ValueError(
            f"`{name}` must be 0 (off) or at least 1, got {name}={value!r}: between "
            "0 and 1 the gradient is unbounded as p approaches 1."
        )
    return gamma


def focal(nll: Tensor, gamma: float) -> Tensor:
    """Scale `nll` by (1 - p)^gamma, where p = exp(-nll)."""
    return focused(nll, -namespace(nll).expm1(-nll), gamma) if gamma else nll


def focused(nll: Tensor, rest: Tensor, gamma: float) -> Tensor:
    """Return `nll * rest^gamma`, by multiplication where gamma is a whole number."""
    if not gamma:
        return nll
    xp = namespace(nll)
    power = int(gamma) if gamma == int(gamma) else gamma
    # Where the cost is infinite, `rest` is 1, and its derivative 0 gives NaN with it.
    finite = xp.isfinite(nll)
    cost = xp.where(finite, nll, 0.0)
    if gamma >= 2.0:
        cost = cost * rest**power
    else:  # the second derivative of the power is infinite at 0, that of the cost 0
        none = rest == 0.0
        cost = xp.where(none, 0.0, cost * xp.where(none, 1.0, rest) ** power)
    return xp.where(finite, cost, nll)


def check_weights(name: str, weights: Iterable[float]) -> list[float]:
    """Return weights as plain numbers, none of them negative."""
    return [check_number(name, float(w), at_least=0.0) for w in np.asarray(weights)]


def weights_along(
    name: str, weights: Sequence[float] | None, logits: Tensor, axis: int
) -> Tensor | None:
    """Return the class weights as a row along the class axis."""
    if weights is None:
        return None
    size = logits.shape[axis]
    if len(weights) != size:
        raise ValueError(
            f"`{name}` must have one number for each of the {size} classes, "
            f"got {len(weights)} numbers."
        )
    shape = [1] * len(logits.shape)
    shape[axis] = size
    # By NumPy: on PyTorch Keras brings a list to float64 by way of float32.
    wide = np.asarray(weights, "float64")
    return ops.reshape(ops.convert_to_tensor(wide, logits.dtype), shape)


class IgnoreMask(keras.layers.Layer):
    """Puts a Keras mask on the losses, so that a mean counts only the valid ones."""

    def __init__(self) -> None:
        super().__init__(dtype="float32", autocast=False)
        self.supports_masking = True

    def call(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0] * 1.0

    def compute_mask(self, inputs: list[Tensor], mask: Any = None) -> Tensor:
        return inputs[1]
