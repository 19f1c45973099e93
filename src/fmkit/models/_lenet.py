"""LeNet-5, as PaddlePaddle ships it and as the paper describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from fmkit._checks import check_int, check_one_of
from fmkit.models._builder import (
    Activation,
    Initializer,
    Layers,
    finish,
    hidden_layers,
    integers,
)
from fmkit.models._convolutional import check_image, image_size


def lenet5(
    num_classes: int = 10,
    *,
    variant: str = "paddle",
    input_shape: Sequence[int] = (28, 28),
    filters: Sequence[int] = (6, 16),
    units: Sequence[int] = (120, 84),
    activation: Activation = None,
    dense_activation: Activation = None,
    output_activation: Activation = None,
    dropout: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    half_l2: bool = False,
    kernel_initializer: Initializer | None = None,
    bias_initializer: Initializer = "zeros",
    seed: int | None = None,
    data_format: str | None = None,
    name: str = "lenet5",
) -> keras.Model:
    r"""LeNet-5: two convolutions with subsampling, then three dense layers.

    `variant="paddle"` is the network that PaddlePaddle ships under this name: 6
    filters 3×3 with padding, ReLU, maximum over 2×2, 16 filters 5×5, ReLU,
    maximum, then 120, 84 and 10 units **with no activation between them**, so
    that the three are one linear map in the end; `dense_activation="relu"`
    changes that. It has 61,610 weights.

    `variant="lecun1998"` follows the paper where Keras's layers can: 5×5 filters,
    subsampling by $\phi(a \cdot \text{mean} + b)$ with one trainable $a$ and $b$
    for each map, the paper's sparse table of which maps the third layer sees, and
    $\phi(x) = 1.7159 \tanh(2x/3)$ throughout. These are the paper's 60,000
    trainable weights. **Not** as in the paper: the output is a dense layer of raw
    scores (850 weights more) and not distances to fixed drawings of the
    characters; a 28×28 image gets a border of two zeros, where the paper's border
    has the background's value; each $a$ starts at 1, and the weights of a unit
    with $F$ inputs start uniform in $\pm\sqrt{3/F}$ and not in the paper's
    $\pm 2.4/F$, from which plain gradient descent, without the paper's own step
    size for each weight, hardly moves.

    Args:
        num_classes: Number of outputs.
        variant: `"paddle"` or `"lecun1998"`.
        input_shape: `(height, width)` or with a channel axis. For `"lecun1998"`
            28×28, or 32×32 with the border already there.
        filters: Numbers of filters of the two convolutions; for `"lecun1998"`
            fixed by its table.
        units: Widths of the dense layers before the output.
        activation: After the convolutions (and in `"lecun1998"` after the
            subsampling); `None` for the variant's own.
        dense_activation: After the dense layers; `None` for the variant's own.
        output_activation: What follows the last layer, such as `"softmax"`.
        dropout: Fraction of each dense layer's outputs set to 0 in training.
        l1: $\lambda_1$ of the penalty on the weights.
        l2: $\lambda_2$ of the penalty on the weights.
        half_l2: Count $\lambda_2 \sum w^2 / 2$, as TensorFlow 1 does.
        kernel_initializer: Initial weights; `None` for the variant's own,
            `"glorot_uniform"` or `"lecun_uniform"`.
        bias_initializer: Initial biases.
        seed: Makes weights and dropout reproducible on one backend.
        data_format: `"channels_last"` or `"channels_first"`; by default Keras's
            `image_data_format()`. Whether the second runs is up to the backend
            and the device.
        name: Name of the model.

    Returns:
        An uncompiled model, `(batch, *input_shape)` to `(batch, num_classes)`.

    Raises:
        ValueError: If the image is too small, `variant` is unknown, or `filters`
            contradict the table of `"lecun1998"`.

    Examples:
        >>> lenet5().count_params()
        61610
        >>> lenet5(variant="lecun1998").count_params() - 850
        60000

    References:
        LeCun, Bottou, Bengio, Haffner, [*Gradient-based learning applied to
        document recognition*](https://doi.org/10.1109/5.726791), 1998, section II.B
        and appendix A.
    """
    original = check_one_of("variant", variant, ("paddle", "lecun1998")) == "lecun1998"
    maps = integers("filters", filters, example="(6, 16)", length=2)
    widths = integers("units", units, example="(120, 84)")
    outputs = check_int("num_classes", num_classes)
    own: Activation = scaled_tanh if original else None
    start = kernel_initializer
    if start is None:
        start = "lecun_uniform" if original else "glorot_uniform"
    maker = Layers(start, bias_initializer, l1, l2, half_l2, seed, data_format)
    inputs, x = maker.image_input(input_shape)
    if original:
        x = _lecun_features(x, maps, maker, activation or own)
    else:
        x = _paddle_features(x, maps, maker, activation or "relu")
    x = layers.Flatten(data_format=maker.data_format, name="flatten")(x)
    x = hidden_layers(x, widths, maker, dense_activation or own, True, False, dropout)
    return finish(inputs, x, outputs, maker, output_activation, True, name)


@keras.saving.register_keras_serializable("fmkit")
def scaled_tanh(x: Any) -> Any:
    r"""$1.7159 \tanh(2x/3)$, the activation of LeCun's networks.

    It maps ±1 to ±1, where its curvature is largest, so that a unit that works
    between -1 and 1 is neither linear nor saturated.

    Args:
        x: Tensor of any shape.

    Returns:
        Tensor of the same shape, between -1.7159 and 1.7159.

    Examples:
        >>> round(float(scaled_tanh(keras.ops.convert_to_tensor(1.0))), 4)
        1.0

    References:
        LeCun, Bottou, Bengio, Haffner, [*Gradient-based learning applied to
        document recognition*](https://doi.org/10.1109/5.726791), 1998, appendix A.
    """
    return 1.7159 * keras.ops.tanh(2.0 / 3.0 * x)


def _paddle_features(
    x: Any, maps: Sequence[int], maker: Layers, activation: Activation
) -> Any:
    check_image(x, maker, [("pool", 2), ("filter", 5), ("pool", 2)], "lenet5")
    x = maker.conv(maps[0], 3, "conv_1", "same", activation)(x)
    x = maker.pool("max", "pool_1")(x)
    x = maker.conv(maps[1], 5, "conv_2", "valid", activation)(x)
    return maker.pool("max", "pool_2")(x)


# Table I of the paper: the six maps of S2 stand in a ring. Each map of C3 sees
# three neighbours, four neighbours, two pairs of neighbours, or all six.
_C3_INPUTS = [
    *[sorted((i + j) % 6 for j in (0, 1, 2)) for i in range(6)],
    *[sorted((i + j) % 6 for j in (0, 1, 2, 3)) for i in range(6)],
    *[sorted((i + j) % 6 for j in (0, 1, 3, 4)) for i in range(3)],
    [0, 1, 2, 3, 4, 5],
]


def _lecun_features(
    x: Any, maps: Sequence[int], maker: Layers, activation: Activation
) -> Any:
    if tuple(maps) != (6, 16):
        raise ValueError(
            f"`filters` of variant='lecun1998' must be (6, 16), got {tuple(maps)}: its "
            "table of connections has 6 rows and 16 columns. Use variant='paddle'."
        )
    axis = -1 if maker.data_format == "channels_last" else 1
    height, width = image_size(x, maker)
    if (height, width) == (28, 28):
        pad = layers.ZeroPadding2D(2, data_format=maker.data_format, name="border")
        x = pad(x)
    elif (height, width) != (32, 32):
        raise ValueError(
            "`input_shape` of variant='lecun1998' must be 28x28 or 32x32 pixels, got "
            f"{height}x{width}. Resize the images, or use variant='paddle'."
        )
    x = maker.conv(6, 5, "c1", "valid", activation)(x)
    x = _subsample(x, maker, activation, "s2")
    x = layers.Concatenate(axis=axis, name="c3")(
        [
            maker.conv(1, 5, f"c3_{k}", "valid", activation)(
                keras.ops.take(x, inputs, axis=axis)
            )
            for k, inputs in enumerate(_C3_INPUTS)
        ]
    )
    return _subsample(x, maker, activation, "s4")


def _subsample(x: Any, maker: Layers, activation: Activation, name: str) -> Any:
    """Mean of 2×2 pixels, times a trainable number for each map, plus another."""
    x = maker.pool("average", f"{name}_mean")(x)
    return maker.scale_maps(name, activation)(x)
