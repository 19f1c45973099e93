"""What the factories share: layers, each with its own seed, and shape checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from fmkit._checks import check_int, check_number, check_one_of, or_none

Activation = str | Callable[..., Any] | None
Initializer = str | float | tuple[str, Mapping[str, Any]] | Callable[..., Any]


class Layers:
    """Makes the layers of one network, each with its own seed."""

    def __init__(
        self,
        kernel_initializer: Any,
        bias_initializer: Any,
        l1: float,
        l2: float,
        half_l2: bool,
        seed: int | None,
        data_format: str | None = None,
    ):
        l1 = check_number("l1", l1, at_least=0.0)
        l2 = check_number("l2", l2, at_least=0.0)
        self._penalty = (l1, l2 / 2 if half_l2 else l2)
        self._kernel = kernel_initializer
        self._bias = bias_initializer
        self._seed = or_none(check_int, "seed", seed, minimum=0)
        self._positions = itertools.count()
        self.data_format = check_one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
        )

    def next_seed(self) -> int | None:
        """Return a seed that no other layer of this network has."""
        if self._seed is None:
            return None
        sequence = np.random.SeedSequence([self._seed, next(self._positions)])
        return int(sequence.generate_state(1)[0]) >> 1

    def _initializer(self, value: Any) -> Any:
        """Return an initializer for one layer only.

        A Keras initializer draws the same numbers each time, so one object shared
        by two layers of the same shape would give both the same weights.
        """
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = keras.initializers.Constant(value)
        elif isinstance(value, tuple) and len(value) == 2:
            value = {"class_name": value[0], "config": dict(value[1])}
        found = keras.initializers.get(value)
        config = found.get_config() if hasattr(found, "get_config") else {}
        if config.get("seed", 0) is None:
            found = type(found).from_config({**config, "seed": self.next_seed()})
        return found

    def _weights(self, *, bias: bool = True) -> dict[str, Any]:
        l1, l2 = self._penalty
        penalty = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
        return {
            "use_bias": bias,
            "kernel_initializer": self._initializer(self._kernel),
            "bias_initializer": self._initializer(self._bias),
            "kernel_regularizer": penalty,
        }

    def channels(self, x: Any) -> int:
        """Return the number of maps of `x`, a batch of images."""
        return int(x.shape[-1 if self.data_format == "channels_last" else 1])

    def image_input(self, input_shape: Sequence[int]) -> tuple[Any, Any]:
        """Return the input, and the same with a channel axis."""
        shape = example_shape(input_shape)
        if len(shape) not in (2, 3):
            raise ValueError(
                "`input_shape` of a convolutional network must be (height, width) or "
                f"have a channel axis too, got {shape}. For flattened images write "
                "x.reshape(-1, 28, 28) and input_shape=(28, 28), or use `models.mlp`."
            )
        inputs = keras.Input(shape, name="input")
        if len(shape) == 3:
            return inputs, inputs
        last = self.data_format == "channels_last"
        image = (*shape, 1) if last else (1, *shape)
        return inputs, layers.Reshape(image, name="add_channel")(inputs)

    def dense(self, x: Any, units: int, name: str, bias: bool, activation: Any) -> Any:
        """Return a dense layer applied to `x`."""
        options = self._weights(bias=bias)
        return layers.Dense(units, activation=activation, name=name, **options)(x)

    def conv(self, count: int, side: int, name: str, padding: str, phi: Any) -> Any:
        """Return a layer of `count` square filters, `side` pixels wide."""
        return layers.Conv2D(
            count,
            side,
            padding=padding,
            activation=phi,
            data_format=self.data_format,
            name=name,
            **self._weights(),
        )

    def conv_norm(self, x: Any, count: int, side: int, stride: int, name: str) -> Any:
        """Return a convolution without bias and BatchNorm, applied to `x`."""
        x = layers.Conv2D(
            count,
            side,
            strides=stride,
            padding="same",
            data_format=self.data_format,
            name=f"{name}_conv",
            **self._weights(bias=False),
        )(x)
        axis = -1 if self.data_format == "channels_last" else 1
        return layers.BatchNormalization(axis=axis, name=f"{name}_norm")(x)

    def scale_maps(self, name: str, phi: Any) -> Any:
        """Return a layer with one factor, from 1, and one offset for each map."""
        return layers.DepthwiseConv2D(
            1,
            activation=phi,
            data_format=self.data_format,
            depthwise_initializer="ones",
            bias_initializer=self._initializer(self._bias),
            name=name,
        )

    def pool(self, kind: str, name: str) -> Any:
        """Return a layer that takes the maximum or the mean of 2×2 pixels."""
        layer = layers.MaxPooling2D if kind == "max" else layers.AveragePooling2D
        return layer(2, data_format=self.data_format, name=name)

    def dropout(self, x: Any, rate: float, name: str) -> Any:
        """Return `x` with dropout, or `x` itself where the rate is 0."""
        rate = check_number("dropout", rate, at_least=0.0, below=1.0)
        return layers.Dropout(rate, seed=self.next_seed(), name=name)(x) if rate else x


def hidden_layers(
    x: Any,
    widths: Sequence[int],
    maker: Layers,
    activation: Activation,
    use_bias: bool,
    batch_norm: bool,
    dropout: float,
) -> Any:
    """Apply the hidden dense layers `widths` to `x`."""
    for k, width in enumerate(widths, start=1):
        if batch_norm:
            x = maker.dense(x, width, f"hidden_{k}", False, None)
            x = layers.BatchNormalization(center=use_bias, name=f"norm_{k}")(x)
            x = layers.Activation(activation, name=f"activation_{k}")(x)
        else:
            x = maker.dense(x, width, f"hidden_{k}", use_bias, activation)
        x = maker.dropout(x, dropout, f"dropout_{k}")
    return x


def finish(
    inputs: Any,
    x: Any,
    outputs: int,
    maker: Layers,
    output_activation: Activation,
    use_bias: bool,
    name: str,
) -> keras.Model:
    """Add the output layer and close the model."""
    x = maker.dense(x, outputs, "output", use_bias, output_activation)
    return keras.Model(inputs, x, name=name)


def example_shape(input_shape: Any) -> tuple[int, ...]:
    shape = integers("input_shape", input_shape, example="(28, 28)", at_least_one=True)
    return tuple(shape)


def integers(
    name: str,
    values: Any,
    *,
    example: str,
    length: int | None = None,
    at_least_one: bool = False,
) -> list[int]:
    """Return `values` as a list of positive integers, or say how to write it."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(
            f"`{name}` must be a sequence of integers, such as {example}, got "
            f"{name}={values!r}."
            + (f" Write ({values},)." if isinstance(values, int) else "")
        )
    numbers = [check_int(f"{name}[{i}]", value) for i, value in enumerate(values)]
    if length is not None and len(numbers) != length:
        raise ValueError(
            f"`{name}` must have {length} entries, such as {example}, got {values!r}."
        )
    if at_least_one and not numbers:
        raise ValueError(f"`{name}` must not be empty; write {example}, for example.")
    return numbers
