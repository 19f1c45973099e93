"""Convolutional networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from fmkit._checks import check_int, check_one_of
from fmkit.models._builder import Activation, Initializer, Layers, finish, integers


def simple_cnn(
    filters: Sequence[int] = (20, 20),
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (28, 28),
    kernel_size: int = 5,
    pooling: str = "max",
    activation: Activation = "relu",
    output_activation: Activation = None,
    dropout: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    half_l2: bool = False,
    kernel_initializer: Initializer = "glorot_uniform",
    bias_initializer: Initializer = "zeros",
    seed: int | None = None,
    data_format: str | None = None,
    name: str = "simple_cnn",
) -> keras.Model:
    r"""Blocks of a padded convolution and 2×2 pooling, then one dense layer.

    By default two blocks of 20 5×5 filters: a 28×28 image becomes 20 maps of 7×7,
    980 features, and 10 raw scores: 20,350 weights.

    Args:
        filters: Number of filters of each block, first to last.
        num_classes: Number of outputs; 1 for a regressor.
        input_shape: `(height, width)` or with a channel axis.
        kernel_size: Side of the square filters, in pixels.
        pooling: `"max"` or `"average"` over 2×2 pixels.
        activation: After each convolution.
        output_activation: What follows the last layer, such as `"softmax"`.
        dropout: Fraction of the features set to 0 in training.
        l1: $\lambda_1$ of the penalty on the weights.
        l2: $\lambda_2$ of the penalty on the weights.
        half_l2: Count $\lambda_2 \sum w^2 / 2$, as TensorFlow 1 does.
        kernel_initializer: Initial weights; see `fmkit.models`.
        bias_initializer: Initial biases.
        seed: Makes weights and dropout reproducible on one backend.
        data_format: `"channels_last"` or `"channels_first"`; by default Keras's
            `image_data_format()`. Whether the second runs is up to the backend
            and the device.
        name: Name of the model.

    Returns:
        An uncompiled model, `(batch, *input_shape)` to `(batch, num_classes)`.

    Raises:
        ValueError: If the image is too small for the pooling, or `pooling` is
            unknown.

    Examples:
        >>> simple_cnn().count_params()
        20350
        >>> simple_cnn().get_layer("flatten").output.shape
        (None, 980)
    """
    check_one_of("pooling", pooling, ("max", "average"))
    maps = integers("filters", filters, example="(20, 20)")
    side = check_int("kernel_size", kernel_size)
    outputs = check_int("num_classes", num_classes)
    maker = Layers(
        kernel_initializer, bias_initializer, l1, l2, half_l2, seed, data_format
    )
    inputs, x = maker.image_input(input_shape)
    check_image(x, maker, [("pool", 2)] * len(maps), "simple_cnn")
    for block, count in enumerate(maps, start=1):
        x = maker.conv(count, side, f"conv_{block}", "same", activation)(x)
        x = maker.pool(pooling, f"pool_{block}")(x)
    x = layers.Flatten(data_format=maker.data_format, name="flatten")(x)
    x = maker.dropout(x, dropout, "dropout")
    return finish(inputs, x, outputs, maker, output_activation, True, name)


def small_resnet(
    filters: Sequence[int] = (16, 32, 64),
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (28, 28),
    activation: Activation = "relu",
    output_activation: Activation = None,
    dropout: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    half_l2: bool = False,
    kernel_initializer: Initializer = "he_normal",
    bias_initializer: Initializer = "zeros",
    seed: int | None = None,
    data_format: str | None = None,
    name: str = "small_resnet",
) -> keras.Model:
    r"""Small residual network with BatchNorm, under 100,000 weights by default.

    A 3×3 convolution, then one block for each entry of `filters`: two 3×3
    convolutions with BatchNorm whose result is added to the block's input. Every
    block after the first halves height and width; where the shape changes, a 1×1
    convolution adapts the input, or every second pixel of it. The mean over the
    pixels of the last block goes to one dense layer.

    An image of any size works. `examples/time_to_accuracy.py residual_36` trains the
    network to 0.936 on the test images of Fashion-MNIST.

    Args:
        filters: Number of filters of each block, first to last.
        num_classes: Number of outputs.
        input_shape: `(height, width)` or with a channel axis.
        activation: After each BatchNorm.
        output_activation: What follows the last layer, such as `"softmax"`.
        dropout: Fraction of the last features set to 0 in training.
        l1: $\lambda_1$ of the penalty on the weights.
        l2: $\lambda_2$ of the penalty on the weights.
        half_l2: Count $\lambda_2 \sum w^2 / 2$, as TensorFlow 1 does.
        kernel_initializer: Initial weights; see `fmkit.models`.
        bias_initializer: Initial biases of the output.
        seed: Makes weights and dropout reproducible on one backend.
        data_format: `"channels_last"` or `"channels_first"`; by default Keras's
            `image_data_format()`. Whether the second runs is up to the backend
            and the device.
        name: Name of the model.

    Returns:
        An uncompiled model, `(batch, *input_shape)` to `(batch, num_classes)`.

    Raises:
        ValueError: If `filters` is empty, or not of positive integers.

    Examples:
        >>> small_resnet().count_params()
        78426

    References:
        He, Zhang, Ren, Sun, [*Deep residual learning for image
        recognition*](https://arxiv.org/abs/1512.03385), 2015.
    """
    maps = integers("filters", filters, example="(16, 32, 64)", at_least_one=True)
    outputs = check_int("num_classes", num_classes)
    maker = Layers(
        kernel_initializer, bias_initializer, l1, l2, half_l2, seed, data_format
    )
    inputs, x = maker.image_input(input_shape)
    x = maker.conv_norm(x, maps[0], 3, 1, "stem")
    x = layers.Activation(activation, name="stem_activation")(x)
    for block, count in enumerate(maps, start=1):
        stride = 1 if block == 1 else 2
        x = _residual_block(x, count, stride, maker, activation, f"block_{block}")
    pool = layers.GlobalAveragePooling2D(data_format=maker.data_format, name="features")
    x = maker.dropout(pool(x), dropout, "dropout")
    return finish(inputs, x, outputs, maker, output_activation, True, name)


def _residual_block(
    x: Any, count: int, stride: int, maker: Layers, activation: Activation, name: str
) -> Any:
    """Two 3×3 convolutions with BatchNorm, added to their input."""
    shortcut = x
    if stride > 1 or maker.channels(x) != count:
        if stride > 1:
            # What a 1×1 convolution with strides computes, in two layers: on a CPU
            # PyTorch 2.11 and 2.13 write past an array in that one's gradient if 8
            # doesn't divide the channels of its input (oneDNN, channels last).
            shortcut = layers.AveragePooling2D(
                1,
                stride,
                data_format=maker.data_format,
                name=f"{name}_shortcut_pixels",
            )(x)
        shortcut = maker.conv_norm(shortcut, count, 1, 1, f"{name}_shortcut")
    x = maker.conv_norm(x, count, 3, stride, f"{name}_1")
    x = layers.Activation(activation, name=f"{name}_1_activation")(x)
    x = maker.conv_norm(x, count, 3, 1, f"{name}_2")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation(activation, name=f"{name}_activation")(x)


def image_size(x: Any, maker: Layers) -> tuple[int, int]:
    first = 1 if maker.data_format == "channels_last" else 2
    return int(x.shape[first]), int(x.shape[first + 1])


def _remaining(side: int, stages: Sequence[tuple[str, int]]) -> int:
    """Return how many pixels of `side` are left after filters and halvings."""
    for kind, size in stages:
        side = side // size if kind == "pool" else side - size + 1
    return side


def check_image(
    x: Any, maker: Layers, stages: Sequence[tuple[str, int]], network: str
) -> None:
    height, width = image_size(x, maker)
    if min(_remaining(height, stages), _remaining(width, stages)) < 1:
        least = next(
            side for side in itertools.count(1) if _remaining(side, stages) >= 1
        )
        raise ValueError(
            f"`input_shape` is too small for {network}, got {height}x{width} pixels: "
            f"its filters and pooling need at least {least}x{least}. Enlarge or pad "
            "the images, or use `models.mlp`, which takes any shape. (The data format "
            f"is {maker.data_format!r}.)"
        )
