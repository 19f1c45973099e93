"""Temperature scaling: calibrated probabilities from the logits of a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit import metrics
from fmkit._checks import check_int, check_number, check_one_of
from fmkit.evaluation._newton import (
    Array,
    check_kinds,
    check_slopes,
    float64,
    logits_and_labels,
    minimum,
    read,
    sigmoid_cost,
    softmax_cost,
)

_ACTIVATIONS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class TemperatureFit:
    """What `fit_temperature` found.

    Attributes:
        temperature: $T$; a list of one number per class if asked for.
        before: The mean cross-entropy in nats (`loss`), the `calibration_error` and the
            `brier_score` on the data of the fit, at a temperature of 1.
        after: The same at the temperature that was found. The loss is never higher;
            the other two may be.
        iterations: How many steps Newton's method took.
    """

    temperature: float | list[float]
    before: dict[str, float]
    after: dict[str, float]
    iterations: int


def fit_temperature(
    source: Any,
    data: Any,
    *,
    activation: str = "softmax",
    per_class: bool = False,
    bins: int = 15,
) -> TemperatureFit:
    r"""Find the temperature whose probabilities have the lowest cross-entropy.

    Divided by a temperature $T$, the logits $z$ of a classifier that is too confident
    give probabilities that can be trusted. Over $n$ examples with labels $y$,

    $$T = \arg\min_{T > 0} -\frac1n \sum_{i=1}^{n} \log
        \mathrm{softmax}(z_i / T)_{y_i}.$$

    The loss is convex in $1/T$; it is minimised by Newton's method in float64. One
    temperature changes no predicted class. With one per class, $z_j / T_j$, the
    prediction may change, and the result depends on what is added to all logits of an
    example. (This is the paper's vector scaling, without a bias.)

    Args:
        source: A model that ends in logits, or the logits themselves, shape
            `(n, ..., K)`.
        data: For a model `(x, y)`, or a data set of batches `(x, y)`; for logits the
            labels. Examples that the model was not trained on. Labels are class
            numbers, shape `(n, ...)` or `(n, ..., 1)`; with `activation="sigmoid"`
            0, 1 or probabilities, in the shape of the logits.
        activation: `"softmax"` for one class out of $K$; `"sigmoid"` for one yes or
            no, or several labels at once.
        per_class: Whether each class (or label) has a temperature of its own.
        bins: Bins of the calibration error that is reported.

    Returns:
        The temperature, and loss, calibration error and Brier score before and after.

    Raises:
        ValueError: If shapes don't fit, a label is out of range, logits are not finite
            or are probabilities, a class that the fit needs has no examples, or no
            temperature is best: all examples are classified right (the loss falls all
            the way to 0), or the logits say nothing about the labels.

    Examples:
        >>> logits = [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]
        >>> fit = fit_temperature(logits, [0, 0, 1, 1])
        >>> round(fit.temperature, 4)
        1.8205
        >>> round(fit.after["loss"], 4)
        0.5623

    References:
        Guo et al., [*On calibration of modern neural networks*](
        https://arxiv.org/abs/1706.04599), 2017, section 4.2.
    """
    check_one_of("activation", activation, _ACTIVATIONS)
    check_int("bins", bins)
    z, y = read(*logits_and_labels(source, data), activation)
    check_kinds(y, z.shape[1], per_class)
    check_slopes(z, y, per_class)
    function = softmax_cost if activation == "softmax" else sigmoid_cost
    scale, iterations = minimum(
        lambda scale: function(scale, z, y), z.shape[-1] if per_class else 1
    )
    if not (scale > 0.0).all():
        raise ValueError(
            "No temperature above 0 is best for the classes "
            f"{np.flatnonzero(scale <= 0.0).tolist()}: their logits say nothing about "
            "the labels, or the opposite. Fit one temperature with `per_class=False`."
        )

    def results(scale: Array) -> dict[str, float]:
        return {"loss": function(scale, z, y)[0]} | _scores(
            scale * z, y, activation, bins
        )

    temperature = (1.0 / scale).tolist()
    return TemperatureFit(
        temperature=temperature if per_class else temperature[0],
        before=results(np.ones(1)),
        after=results(scale),
        iterations=iterations,
    )


def _scores(z: Array, y: Array, activation: str, bins: int) -> dict[str, float]:
    error, brier = (
        (metrics.expected_calibration_error, metrics.brier_score)
        if activation == "softmax"
        else (metrics.binary_expected_calibration_error, metrics.binary_brier_score)
    )
    return {
        "calibration_error": float(np.mean(float64(error(y, z, bins=bins)))),
        "brier_score": float(np.mean(float64(brier(y, z)))),
    }


def with_temperature(
    model: keras.Model, temperature: float | Sequence[float]
) -> keras.Model:
    """Return a model whose logits are those of `model` divided by a temperature.

    The layers, and so the weights, are those of `model`. The new model is not compiled.
    It can be saved and exported as any other.

    Args:
        model: A Sequential or functional model with one output of logits.
        temperature: One number, or one per class: `TemperatureFit.temperature`.

    Returns:
        A `keras.Model` of the same inputs.

    Raises:
        ValueError: If `model` is neither (put a `TemperatureScaling` after the last
            layer of a class of your own), has several outputs, or the number of
            temperatures is not that of its outputs.

    Examples:
        >>> from fmkit import models
        >>> calibrated = with_temperature(models.mlp(), 1.5)
        >>> calibrated.layers[-1].temperature
        1.5
    """
    try:
        outputs = model.outputs
        # A Sequential has no `input`; that of a functional model may be a dict.
        one = isinstance(model, keras.Sequential)
        inputs = model.inputs[0] if one else model.input
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"`model` must be a functional model, or a Sequential one that has been "
            f"built, got {type(model).__name__}. In a class of your own call "
            "`TemperatureScaling(temperature)` on the logits."
        ) from error
    if len(outputs) != 1:
        raise ValueError(
            f"`model` must have one output, got {len(outputs)}. "
            "Call `TemperatureScaling(temperature)` on the one that has the logits."
        )
    scaling = TemperatureScaling(temperature, dtype=outputs[0].dtype)
    return keras.Model(inputs, scaling(outputs[0]))


@keras.saving.register_keras_serializable("fmkit")
class TemperatureScaling(keras.layers.Layer):
    """Divides logits by a temperature, or by one per class. It has no weights.

    Args:
        temperature: One number above 0, or one per class (the last axis).
        **kwargs: `name` and `dtype`, as in every layer.

    Raises:
        ValueError: If a temperature is not above 0, or, when the layer is first called,
            there is not one for each class.

    Examples:
        >>> float(TemperatureScaling(2.0)(np.array([[3.0]]))[0, 0])
        1.5
    """

    def __init__(self, temperature: float | Sequence[float] = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        numbers = np.ravel(np.asarray(temperature)).tolist()
        checked = [check_number("temperature", t, above=0.0) for t in numbers]
        self.temperature = checked if np.ndim(temperature) else checked[0]
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Check that there is a temperature for each class."""
        several = self.temperature
        if isinstance(several, list) and len(several) != input_shape[-1]:
            raise ValueError(
                f"`temperature` must be one number, or one for each of the "
                f"{input_shape[-1]} classes, got {len(several)} numbers."
            )

    def call(self, logits: Any) -> Any:
        """Return the logits divided by the temperature."""
        # By NumPy: on PyTorch Keras brings a list to float64 by way of float32.
        wide = np.asarray(self.temperature, "float64")
        return logits / ops.convert_to_tensor(wide, logits.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain Python values."""
        return {**super().get_config(), "temperature": self.temperature}
