"""Networks of dense layers."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from fmkit._checks import check_int
from fmkit.models._builder import (
    Activation,
    Initializer,
    Layers,
    example_shape,
    finish,
    hidden_layers,
    integers,
)


def mlp(
    units: Sequence[int] = (256, 128, 64, 32),
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (28, 28),
    activation: Activation = "relu",
    output_activation: Activation = None,
    use_bias: bool = True,
    batch_norm: bool = False,
    dropout: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    half_l2: bool = False,
    kernel_initializer: Initializer = "glorot_uniform",
    bias_initializer: Initializer = "zeros",
    seed: int | None = None,
    name: str = "mlp",
) -> keras.Model:
    r"""Multilayer perceptron: flattened input, dense hidden layers, logits.

    Layer $k$ computes $h_k = \phi(W_k h_{k-1} + b_k)$ from $h_0$, the flattened
    input; the last layer has no $\phi$ unless `output_activation` gives one.

    Args:
        units: Widths of the hidden layers, first to last; empty for none.
        num_classes: Number of outputs; 1 for a regressor.
        input_shape: Shape of one example, of any rank; it is flattened.
        activation: $\phi$ of the hidden layers.
        output_activation: What follows the last layer, such as `"softmax"`.
        use_bias: Whether the layers have the offsets $b_k$.
        batch_norm: Normalise each hidden layer before its activation. The offset
            of the normalisation then replaces the layer's bias.
        dropout: Fraction of each hidden layer's outputs set to 0 in training.
        l1: $\lambda_1$ of the penalty on the weights.
        l2: $\lambda_2$ of the penalty on the weights.
        half_l2: Count $\lambda_2 \sum w^2 / 2$, as TensorFlow 1 does.
        kernel_initializer: Initial weights; see `fmkit.models`.
        bias_initializer: Initial biases.
        seed: Makes weights and dropout reproducible on one backend.
        name: Name of the model.

    Returns:
        An uncompiled model, `(batch, *input_shape)` to `(batch, num_classes)`.

    Raises:
        TypeError: If a width or `input_shape` is not made of integers.
        ValueError: If a width, `dropout`, `l1` or `l2` is out of its range.

    Examples:
        >>> mlp().count_params()
        244522
        >>> course = mlp((500,), l2=1e-4, half_l2=True, bias_initializer=0.1)
        >>> course.count_params()
        397510
        >>> tiny = mlp((3,), 1, input_shape=(2,), activation=None, use_bias=False)
        >>> [tuple(w.shape) for w in tiny.weights]
        [(2, 3), (3, 1)]
    """
    widths = integers("units", units, example="(256, 128)")
    outputs = check_int("num_classes", num_classes)
    maker = Layers(kernel_initializer, bias_initializer, l1, l2, half_l2, seed)
    inputs = keras.Input(example_shape(input_shape), name="input")
    x = layers.Flatten(name="flatten")(inputs) if len(inputs.shape) > 2 else inputs
    x = hidden_layers(x, widths, maker, activation, use_bias, batch_norm, dropout)
    return finish(inputs, x, outputs, maker, output_activation, use_bias, name)


def linear(
    num_classes: int = 1,
    *,
    input_shape: Sequence[int] = (28, 28),
    output_activation: Activation = None,
    use_bias: bool = True,
    l1: float = 0.0,
    l2: float = 0.0,
    half_l2: bool = False,
    kernel_initializer: Initializer = "glorot_uniform",
    bias_initializer: Initializer = "zeros",
    seed: int | None = None,
    name: str = "linear",
) -> keras.Model:
    r"""One dense layer on the flattened input, $Wx + b$.

    With one output it is linear regression, as on the value of the digit; with
    `num_classes` outputs and a cross-entropy from logits, softmax regression.

    Args:
        num_classes: Number of outputs; 1 for a regressor.
        input_shape: Shape of one example, of any rank; it is flattened.
        output_activation: What follows the layer, such as `"softmax"`.
        use_bias: Whether the layer has the offset $b$.
        l1: $\lambda_1$ of the penalty on the weights.
        l2: $\lambda_2$ of the penalty on the weights.
        half_l2: Count $\lambda_2 \sum w^2 / 2$, as TensorFlow 1 does.
        kernel_initializer: Initial weights; see `fmkit.models`.
        bias_initializer: Initial bias.
        seed: Makes the weights reproducible on one backend.
        name: Name of the model.

    Returns:
        An uncompiled model, `(batch, *input_shape)` to `(batch, num_classes)`.

    Raises:
        TypeError: If `num_classes` or `input_shape` is not made of integers.
        ValueError: If `num_classes`, `l1` or `l2` is out of its range.

    Examples:
        >>> linear().count_params(), linear(10).count_params()
        (785, 7850)
    """
    return mlp(
        (),
        num_classes,
        input_shape=input_shape,
        output_activation=output_activation,
        use_bias=use_bias,
        l1=l1,
        l2=l2,
        half_l2=half_l2,
        kernel_initializer=kernel_initializer,
        bias_initializer=bias_initializer,
        seed=seed,
        name=name,
    )
